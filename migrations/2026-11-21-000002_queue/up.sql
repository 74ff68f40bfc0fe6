-- The job queue. Rows carry a kind and a connection, nothing else: what there is to do is read from other tables.
CREATE TABLE fieldmirror.jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind ~ '^[a-z][a-z0-9_]{0,62}$'),
    -- Null for work that concerns no connection in particular.
    connection_id bigint REFERENCES fieldmirror.connections ON DELETE CASCADE,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done', 'failed', 'parked')),
    run_at timestamptz NOT NULL DEFAULT now(),
    -- The holder and its lease; together with `attempt` they fence what it may write.
    owner uuid,
    lease_until timestamptz,
    attempt integer NOT NULL DEFAULT 0,
    -- Runs in a row that ended in a lapsed lease or a panic.
    crashes integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz,
    last_error text,
    CONSTRAINT jobs_lease CHECK ((state = 'running') = (owner IS NOT NULL) AND (owner IS NULL) = (lease_until IS NULL)),
    CONSTRAINT jobs_end CHECK ((state IN ('done', 'failed')) = (ended_at IS NOT NULL))
);

-- At most one live job per (kind, connection). Parked counts as live: else the scheduler would make the job that
-- keeps crashing anew.
CREATE UNIQUE INDEX jobs_one_live ON fieldmirror.jobs (kind, connection_id) NULLS NOT DISTINCT
    WHERE state IN ('pending', 'running', 'parked');
-- What a claim scans: due rows and rows whose lease has lapsed, in one order.
CREATE INDEX jobs_claim ON fieldmirror.jobs (kind, coalesce(lease_until, run_at)) WHERE state IN ('pending', 'running');
-- What pruning scans.
CREATE INDEX jobs_ended ON fieldmirror.jobs (ended_at) WHERE state IN ('done', 'failed');
-- What deleting a connection scans.
CREATE INDEX jobs_connection ON fieldmirror.jobs (connection_id);
