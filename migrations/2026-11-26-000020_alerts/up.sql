-- What kind of failure the last one was, and the alerts that operators are told.

-- The kind of what `last_error` says (domain/failure.rs); null when nothing is wrong, or it was written before this
-- column was there.
ALTER TABLE fieldmirror.tokens ADD COLUMN failure_kind text;
ALTER TABLE fieldmirror.stream_state ADD COLUMN failure_kind text;

-- A condition that needs a person, from when it was first seen until it was gone. No foreign key: the end of an alert
-- is told even when its connection has been removed.
CREATE TABLE fieldmirror.alerts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind ~ '^[a-z][a-z0-9_]{0,62}$'),
    -- What it is about, unique among the alerts of a kind: `connection 7`, `connection 7 stream tickets`, `job 12`.
    subject text NOT NULL,
    connection_id bigint,
    connection_name text,
    provider text,
    stream text,
    job_id bigint,
    -- A sentence without secrets and customer data.
    reason text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    -- When the hook last took the alert, and its end.
    fired_at timestamptz,
    resolution_told_at timestamptz,
    -- The daemon that tells it right now, and until when nobody else does.
    teller uuid,
    telling_until timestamptz,
    -- Times in a row that the hook did not take it.
    failures integer NOT NULL DEFAULT 0,
    last_error text,
    failed_at timestamptz
);
-- However many daemons look: one open alert for one condition.
CREATE UNIQUE INDEX alerts_one_open ON fieldmirror.alerts (kind, subject) WHERE resolved_at IS NULL;
CREATE INDEX alerts_resolved ON fieldmirror.alerts (resolved_at) WHERE resolved_at IS NOT NULL;
