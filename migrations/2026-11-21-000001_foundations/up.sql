-- The daemon's own bookkeeping (schema fieldmirror) and the bare public schema (mirror).

COMMENT ON SCHEMA fieldmirror IS 'Internal state of the fieldmirror daemon; not for analysts, changes without notice';

CREATE SCHEMA mirror;
COMMENT ON SCHEMA mirror IS 'Local mirror of jobs, tickets and bookings; read-only for analysts, written by fieldmirror';

-- One company account authorised at one provider.
CREATE TABLE fieldmirror.connections (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    provider text NOT NULL,
    grant_kind text NOT NULL CHECK (grant_kind IN ('authorization_code', 'client_credentials', 'api_key', 'bearer_token')),
    -- New with every consent: what sealed values are bound to besides the connection.
    grant_id uuid,
    state text NOT NULL CHECK (state IN ('awaiting_consent', 'verifying', 'connected', 'needs_reauth', 'disconnected', 'failed')),
    reason text,
    account_id text,
    account_name text,
    params jsonb NOT NULL DEFAULT '{}',
    -- What streams have learned about the account, by name (custom properties, for one).
    facts jsonb NOT NULL DEFAULT '{}',
    -- What the last turn left of the rate limits; null while a turn runs, so that after a crash nothing counts as left.
    pacing jsonb DEFAULT '{}',
    pacing_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    connected_at timestamptz
);
-- Two connections to one account would share refresh tokens and quotas.
CREATE UNIQUE INDEX connections_one_per_account ON fieldmirror.connections (provider, account_id)
    WHERE state IN ('connected', 'needs_reauth');

-- Sealed credentials that an admin handed over (API keys, client secrets), by name.
CREATE TABLE fieldmirror.secrets (
    connection_id bigint NOT NULL REFERENCES fieldmirror.connections ON DELETE CASCADE,
    name text NOT NULL,
    grant_id uuid NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (connection_id, name)
);

-- The live token of a connection. Every refresh moves `generation` by one; nothing else does.
CREATE TABLE fieldmirror.tokens (
    connection_id bigint PRIMARY KEY REFERENCES fieldmirror.connections ON DELETE CASCADE,
    grant_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('oauth', 'client_credentials', 'api_key', 'bearer')),
    generation bigint NOT NULL DEFAULT 1,
    access_sealed bytea NOT NULL,
    refresh_sealed bytea,
    scopes text[] NOT NULL DEFAULT '{}',
    -- When the request that brought the token was sent; expiry counts from here.
    issued_at timestamptz NOT NULL,
    expires_at timestamptz,
    refresh_due_at timestamptz,
    last_refresh_at timestamptz,
    failures integer NOT NULL DEFAULT 0,
    last_error text,
    -- The provider said that the grant is dead.
    rejected_at timestamptz
);
CREATE INDEX tokens_due ON fieldmirror.tokens (refresh_due_at);

-- The open refresh of a connection: mutual exclusion, proof that the database is writable, evidence after a crash.
CREATE TABLE fieldmirror.refresh_attempts (
    connection_id bigint PRIMARY KEY REFERENCES fieldmirror.connections ON DELETE CASCADE,
    grant_id uuid NOT NULL,
    generation bigint NOT NULL,
    daemon_id uuid NOT NULL,
    host text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    blocked_until timestamptz NOT NULL
);

-- A start link: good for many starts until it expires, is superseded or has led to a connection.
CREATE TABLE fieldmirror.authorizations (
    id uuid PRIMARY KEY,
    connection_id bigint NOT NULL REFERENCES fieldmirror.connections ON DELETE CASCADE,
    request_id uuid NOT NULL,
    ticket_hash bytea NOT NULL UNIQUE,
    redirect_uri text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    closed_at timestamptz
);
CREATE INDEX authorizations_connection ON fieldmirror.authorizations (connection_id);

-- One start of a consent: a state that can be redeemed once.
CREATE TABLE fieldmirror.authorization_attempts (
    id uuid PRIMARY KEY,
    authorization_id uuid NOT NULL REFERENCES fieldmirror.authorizations ON DELETE CASCADE,
    provider text NOT NULL,
    state_hash bytea NOT NULL UNIQUE,
    verifier_sealed bytea,
    redirect_uri text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    outcome text
);
CREATE INDEX authorization_attempts_authorization ON fieldmirror.authorization_attempts (authorization_id);

-- What an admin asked for. Turns derive work from open rows; `--wait` waits for `done_at`.
CREATE TABLE fieldmirror.requests (
    id uuid PRIMARY KEY,
    connection_id bigint NOT NULL REFERENCES fieldmirror.connections ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('connect', 'callback', 'refresh', 'sync', 'disconnect')),
    args jsonb NOT NULL DEFAULT '{}',
    -- Secrets and pasted codes, sealed to the daemon's public key.
    sealed bytea,
    -- What the asker may read before the end, sealed to the key it gave in `args.reply_to`.
    reply_sealed bytea,
    job_id bigint,
    requested_at timestamptz NOT NULL DEFAULT now(),
    -- When a turn made the walks that it asks for due.
    applied_at timestamptz,
    done_at timestamptz,
    outcome text CHECK (outcome IN ('done', 'denied', 'expired', 'wrong_account', 'superseded', 'failed')),
    message text
);
CREATE INDEX requests_open ON fieldmirror.requests (connection_id, kind) WHERE done_at IS NULL;

-- Which turn owns a stream, and what the stream holds. Every page commit updates this row under its epoch.
CREATE TABLE fieldmirror.stream_state (
    connection_id bigint NOT NULL REFERENCES fieldmirror.connections ON DELETE CASCADE,
    stream text NOT NULL,
    partition text NOT NULL DEFAULT '',
    turn_epoch bigint NOT NULL DEFAULT 0,
    state text NOT NULL DEFAULT 'pending'
        CHECK (state IN ('pending', 'backfilling', 'idle', 'syncing', 'backing_off', 'stalled', 'forbidden')),
    complete_to timestamptz,
    swept_to timestamptz,
    backfill_done boolean NOT NULL DEFAULT false,
    backfill_progress real,
    rows bigint NOT NULL DEFAULT 0,
    deleted_rows bigint NOT NULL DEFAULT 0,
    stalled_reason text,
    last_error text,
    last_success_at timestamptz,
    failures integer NOT NULL DEFAULT 0,
    -- Nothing of the stream is tried before this moment.
    not_before timestamptz,
    PRIMARY KEY (connection_id, stream, partition)
);

-- Where each walk over a stream stands, and when it is due again.
CREATE TABLE fieldmirror.walks (
    connection_id bigint NOT NULL REFERENCES fieldmirror.connections ON DELETE CASCADE,
    stream text NOT NULL,
    partition text NOT NULL DEFAULT '',
    mode text NOT NULL CHECK (mode IN ('backfill', 'incremental', 'archived', 'snapshot')),
    -- The open walk: null `started_at` means none is open.
    started_at timestamptz,
    from_time timestamptz,
    position jsonb,
    -- Everything that the provider's change marker exposes up to here has been read by closed walks of this mode.
    covered_to timestamptz,
    closed_at timestamptz,
    closed_started_at timestamptz,
    -- Null: not by itself.
    due_at timestamptz DEFAULT now(),
    -- The open walk notes every id it meets, and proves by its end what is gone.
    sweeping boolean NOT NULL DEFAULT false,
    -- An admin allowed this walk to mark more rows as gone than the brake lets pass.
    mass_delete_allowed boolean NOT NULL DEFAULT false,
    restarts integer NOT NULL DEFAULT 0,
    restart_reason text,
    -- Turns in a row in which it failed.
    failures integer NOT NULL DEFAULT 0,
    PRIMARY KEY (connection_id, stream, partition, mode)
);
CREATE INDEX walks_due ON fieldmirror.walks (due_at);

-- Ids met by an open re-read of everything: when it closes, what is not here is proven to be gone.
CREATE TABLE fieldmirror.walk_seen (
    connection_id bigint NOT NULL,
    stream text NOT NULL,
    partition text NOT NULL,
    mode text NOT NULL,
    record_id text NOT NULL,
    PRIMARY KEY (connection_id, stream, partition, mode, record_id),
    FOREIGN KEY (connection_id, stream, partition, mode)
        REFERENCES fieldmirror.walks (connection_id, stream, partition, mode) ON DELETE CASCADE
);

CREATE TABLE fieldmirror.sync_runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    connection_id bigint NOT NULL REFERENCES fieldmirror.connections ON DELETE CASCADE,
    stream text NOT NULL,
    mode text NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    outcome text CHECK (outcome IN ('closed', 'yielded', 'failed', 'lost')),
    pages bigint NOT NULL DEFAULT 0,
    requests bigint NOT NULL DEFAULT 0,
    throttled bigint NOT NULL DEFAULT 0,
    records bigint NOT NULL DEFAULT 0,
    rows_written bigint NOT NULL DEFAULT 0,
    rows_deleted bigint NOT NULL DEFAULT 0,
    error text
);
CREATE INDEX sync_runs_connection ON fieldmirror.sync_runs (connection_id, id);

-- Daemons that share this database.
CREATE TABLE fieldmirror.daemons (
    id uuid PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now()
);

-- What the CLI seals secrets to.
CREATE TABLE fieldmirror.vault_keys (
    key_id text PRIMARY KEY,
    public_key bytea NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now()
);

-- Limits that cross connections or daemons: the moment until which the permits already taken reach.
CREATE TABLE fieldmirror.rate_budget (
    scope text NOT NULL,
    bucket text NOT NULL,
    taken_until timestamptz NOT NULL,
    PRIMARY KEY (scope, bucket)
);

-- Every connect, refresh, failure and disconnect: what, when, outcome; never a secret.
CREATE TABLE fieldmirror.audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    connection_id bigint,
    connection_name text,
    event text NOT NULL,
    outcome text NOT NULL,
    detail text,
    daemon_id uuid
);
CREATE INDEX audit_log_connection ON fieldmirror.audit_log (connection_id, id);
