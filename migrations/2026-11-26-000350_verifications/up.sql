-- Comparisons of the mirror with the provider, as `fieldmirror verify` asks for them: one row for each stream of a request.
ALTER TABLE fieldmirror.requests DROP CONSTRAINT requests_kind_check;
ALTER TABLE fieldmirror.requests ADD CONSTRAINT requests_kind_check
    CHECK (kind IN ('connect', 'callback', 'refresh', 'sync', 'verify', 'disconnect'));

CREATE TABLE fieldmirror.verifications (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    connection_id bigint NOT NULL REFERENCES fieldmirror.connections ON DELETE CASCADE,
    stream text NOT NULL,
    request_id uuid NOT NULL,
    started_at timestamptz NOT NULL,
    -- Where it stands, saved with each answer; null once it has ended.
    progress jsonb,
    ended_at timestamptz,
    -- Null: nothing could be compared.
    agrees boolean,
    -- Why it could not be done.
    error text,
    -- What was compared and what differs.
    report jsonb,
    UNIQUE (request_id, stream)
);
CREATE INDEX verifications_stream ON fieldmirror.verifications (connection_id, stream, ended_at);
