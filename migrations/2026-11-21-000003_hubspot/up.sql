-- HubSpot's tables, the unified view of tickets, and the views about the mirror itself.

-- Comments on the columns that every mirror table has.
CREATE PROCEDURE fieldmirror.describe_mirror_table(target regclass, provider text)
LANGUAGE plpgsql AS $$
DECLARE
    described record;
BEGIN
    FOR described IN
        SELECT * FROM (VALUES
            ('connection_id', 'The connection that the row was read through: mirror.connections.id'),
            ('id', 'The record''s id, as ' || provider || ' sends it'),
            ('source_created_at', 'When the record was created, by ' || provider),
            ('source_updated_at', 'When the record was last modified, by ' || provider),
            ('raw', 'The whole record as ' || provider || ' sent it'),
            ('first_seen_at', 'When the row first came into the mirror'),
            ('synced_at', 'When the request that brought this version was sent'),
            ('deleted_at', 'When the record was archived, deleted or merged away; null while it lives'),
            ('deleted_evidence', 'How it is known that the record is gone'),
            ('content_hash', 'SHA-256 of raw: an unchanged record costs no write'),
            ('sync_run_id', 'The run that last wrote the row: mirror.sync_runs.id')
        ) AS base (name, text)
    LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', target, described.name, described.text);
    END LOOP;
END
$$;

CREATE TABLE mirror.hubspot_tickets (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    subject text,
    content text,
    pipeline_id text,
    stage_id text,
    priority text,
    category text,
    source_type text,
    owner_id text,
    closed_at timestamptz,
    company_ids text[],
    contact_ids text[],
    url text,
    merged_into text,
    source_created_at timestamptz,
    source_updated_at timestamptz,
    raw jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL,
    synced_at timestamptz NOT NULL,
    deleted_at timestamptz,
    deleted_evidence text,
    content_hash bytea NOT NULL,
    sync_run_id bigint,
    PRIMARY KEY (connection_id, id)
);
CREATE INDEX hubspot_tickets_updated ON mirror.hubspot_tickets (source_updated_at);
COMMENT ON TABLE mirror.hubspot_tickets IS 'HubSpot tickets (object type 0-5) with all properties of the account in raw';
COMMENT ON COLUMN mirror.hubspot_tickets.subject IS 'Property subject';
COMMENT ON COLUMN mirror.hubspot_tickets.content IS 'Property content: the description';
COMMENT ON COLUMN mirror.hubspot_tickets.pipeline_id IS 'Property hs_pipeline; its words are in mirror.hubspot_pipeline_stages';
COMMENT ON COLUMN mirror.hubspot_tickets.stage_id IS 'Property hs_pipeline_stage; its words are in mirror.hubspot_pipeline_stages';
COMMENT ON COLUMN mirror.hubspot_tickets.priority IS 'Property hs_ticket_priority';
COMMENT ON COLUMN mirror.hubspot_tickets.category IS 'Property hs_ticket_category';
COMMENT ON COLUMN mirror.hubspot_tickets.source_type IS 'Property source_type: the channel it came by';
COMMENT ON COLUMN mirror.hubspot_tickets.owner_id IS 'Property hubspot_owner_id: mirror.hubspot_owners.id';
COMMENT ON COLUMN mirror.hubspot_tickets.closed_at IS 'Property closed_date';
COMMENT ON COLUMN mirror.hubspot_tickets.company_ids IS 'Associated companies, the primary one first';
COMMENT ON COLUMN mirror.hubspot_tickets.contact_ids IS 'Associated contacts';
COMMENT ON COLUMN mirror.hubspot_tickets.url IS 'The ticket in HubSpot''s own pages, where the answer names it';
COMMENT ON COLUMN mirror.hubspot_tickets.merged_into IS 'Id of the ticket that this one was merged into (property hs_merged_object_ids of the survivor)';
CALL fieldmirror.describe_mirror_table('mirror.hubspot_tickets', 'HubSpot');

CREATE TABLE mirror.hubspot_pipeline_stages (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    pipeline_id text,
    pipeline_label text,
    stage_id text,
    label text,
    ticket_state text,
    is_closed boolean,
    display_order bigint,
    archived boolean,
    source_created_at timestamptz,
    source_updated_at timestamptz,
    raw jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL,
    synced_at timestamptz NOT NULL,
    deleted_at timestamptz,
    deleted_evidence text,
    content_hash bytea NOT NULL,
    sync_run_id bigint,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.hubspot_pipeline_stages IS 'Stages of HubSpot''s ticket pipelines, one row a stage';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.pipeline_id IS 'The pipeline''s id';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.pipeline_label IS 'The pipeline''s name';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.stage_id IS 'The stage''s id; unique within its pipeline';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.label IS 'The stage''s name';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.ticket_state IS 'metadata.ticketState: OPEN or CLOSED';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.is_closed IS 'metadata.isClosed, where it is sent';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.display_order IS 'Place within the pipeline';
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.archived IS 'The stage''s own archived flag';
CALL fieldmirror.describe_mirror_table('mirror.hubspot_pipeline_stages', 'HubSpot');
COMMENT ON COLUMN mirror.hubspot_pipeline_stages.id IS 'pipeline id / stage id: stage ids alone are unique by convention only';

CREATE TABLE mirror.hubspot_owners (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    email text,
    first_name text,
    last_name text,
    type text,
    user_id text,
    archived boolean,
    source_created_at timestamptz,
    source_updated_at timestamptz,
    raw jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL,
    synced_at timestamptz NOT NULL,
    deleted_at timestamptz,
    deleted_evidence text,
    content_hash bytea NOT NULL,
    sync_run_id bigint,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.hubspot_owners IS 'HubSpot owners, archived ones included';
COMMENT ON COLUMN mirror.hubspot_owners.email IS 'E-mail address';
COMMENT ON COLUMN mirror.hubspot_owners.first_name IS 'First name';
COMMENT ON COLUMN mirror.hubspot_owners.last_name IS 'Last name';
COMMENT ON COLUMN mirror.hubspot_owners.type IS 'PERSON or QUEUE';
COMMENT ON COLUMN mirror.hubspot_owners.user_id IS 'The owner''s user id, which is not the id that tickets carry';
COMMENT ON COLUMN mirror.hubspot_owners.archived IS 'The owner''s own archived flag';
CALL fieldmirror.describe_mirror_table('mirror.hubspot_owners', 'HubSpot');

CREATE TABLE mirror.hubspot_properties (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    label text,
    type text,
    field_type text,
    group_name text,
    description text,
    calculated boolean,
    hubspot_defined boolean,
    archived boolean,
    archived_at timestamptz,
    source_created_at timestamptz,
    source_updated_at timestamptz,
    raw jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL,
    synced_at timestamptz NOT NULL,
    deleted_at timestamptz,
    deleted_evidence text,
    content_hash bytea NOT NULL,
    sync_run_id bigint,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.hubspot_properties IS 'Ticket properties of a HubSpot account: the meaning of the keys in raw';
COMMENT ON COLUMN mirror.hubspot_properties.label IS 'The property''s name in HubSpot''s pages';
COMMENT ON COLUMN mirror.hubspot_properties.type IS 'string, number, bool, date, datetime, enumeration and others';
COMMENT ON COLUMN mirror.hubspot_properties.field_type IS 'How it is entered';
COMMENT ON COLUMN mirror.hubspot_properties.group_name IS 'The group it stands in';
COMMENT ON COLUMN mirror.hubspot_properties.description IS 'What it is for, in the account''s own words';
COMMENT ON COLUMN mirror.hubspot_properties.calculated IS 'Whether HubSpot computes it';
COMMENT ON COLUMN mirror.hubspot_properties.hubspot_defined IS 'Whether it is one of HubSpot''s own';
COMMENT ON COLUMN mirror.hubspot_properties.archived IS 'The property''s own archived flag';
COMMENT ON COLUMN mirror.hubspot_properties.archived_at IS 'When it was archived';
CALL fieldmirror.describe_mirror_table('mirror.hubspot_properties', 'HubSpot');
COMMENT ON COLUMN mirror.hubspot_properties.id IS 'The property''s internal name: a key of raw->''properties'' in mirror.hubspot_tickets';

-- Casts that never raise, for values that a provider types loosely. None of them catches an error: Postgres 15 and 16
-- refuse that in parallel plans, and it costs a subtransaction a value. So what is cast has been checked to the end.
-- Classes such as \d and \s know more digits and spaces than the casts do, so they are spelt out.
CREATE FUNCTION mirror.as_numeric(value text) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN length(value) <= 200 AND value ~ '^[ \t\n\r]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?[ \t\n\r]*$'
    THEN value::numeric
END;
COMMENT ON FUNCTION mirror.as_numeric IS 'The text as a number, or null where it is none';

CREATE FUNCTION mirror.as_boolean(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE lower(value) WHEN 'true' THEN true WHEN 'false' THEN false END;
COMMENT ON FUNCTION mirror.as_boolean IS 'true or false in words as boolean, or null';

CREATE FUNCTION mirror.as_timestamptz(value text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    month_begins date;
BEGIN
    IF value ~ '^-?[0-9]{1,15}(\.[0-9]{0,9})?$' THEN
        -- Years 1 to 9999.
        IF value::numeric BETWEEN -62135596800000 AND 253402300799999 THEN
            RETURN to_timestamp(value::double precision / 1000);
        END IF;
        RETURN NULL;
    END IF;
    IF value !~ ('^(?!0000)[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])'
        '(T([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?(Z|[+-](0[0-9]|1[0-4]):?[0-5][0-9]))?$')
    THEN
        RETURN NULL;
    END IF;
    month_begins := make_date(substr(value, 1, 4)::integer, substr(value, 6, 2)::integer, 1);
    IF substr(value, 9, 2)::integer > extract(day FROM month_begins + interval '1 month' - interval '1 day') THEN
        RETURN NULL;
    END IF;
    RETURN CASE WHEN length(value) = 10 THEN value || 'T00:00:00Z' ELSE value END::timestamptz;
END
$$;
COMMENT ON FUNCTION mirror.as_timestamptz IS 'RFC 3339, a bare date (midnight UTC) or epoch milliseconds as a moment, or null';

CREATE FUNCTION mirror.as_date(value text) RETURNS date
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (mirror.as_timestamptz(value) AT TIME ZONE 'UTC')::date;
COMMENT ON FUNCTION mirror.as_date IS 'The day, in UTC, of a text that mirror.as_timestamptz understands, or null';

CREATE VIEW mirror.tickets AS
SELECT
    'hubspot'::text AS provider,
    t.connection_id,
    c.name AS connection_name,
    t.id,
    t.source_created_at AS created_at,
    t.source_updated_at AS updated_at,
    t.deleted_at,
    t.synced_at,
    t.subject,
    t.content AS description,
    CASE
        WHEN s.ticket_state = 'CLOSED' OR s.is_closed THEN 'closed'
        -- A ticket that was opened again may keep its date.
        WHEN s.ticket_state IS NULL AND s.is_closed IS NULL AND t.closed_at IS NOT NULL THEN 'closed'
        ELSE 'open'
    END AS status,
    coalesce(s.label, t.stage_id) AS provider_status,
    coalesce(s.pipeline_label, t.pipeline_id) AS pipeline,
    t.priority,
    t.category,
    t.source_type AS source,
    t.owner_id,
    coalesce(nullif(concat_ws(' ', nullif(o.first_name, ''), nullif(o.last_name, '')), ''), o.email) AS owner_name,
    coalesce(t.company_ids[1], t.contact_ids[1]) AS customer_id,
    t.closed_at,
    t.merged_into,
    t.url,
    t.raw
FROM mirror.hubspot_tickets t
JOIN fieldmirror.connections c ON c.id = t.connection_id
LEFT JOIN mirror.hubspot_pipeline_stages s
    ON s.connection_id = t.connection_id AND s.id = t.pipeline_id || '/' || t.stage_id
LEFT JOIN mirror.hubspot_owners o ON o.connection_id = t.connection_id AND o.id = t.owner_id;
COMMENT ON VIEW mirror.tickets IS 'Tickets of all providers in one shape; deleted ones have deleted_at set';
COMMENT ON COLUMN mirror.tickets.provider IS 'Where the ticket comes from: hubspot';
COMMENT ON COLUMN mirror.tickets.connection_id IS 'mirror.connections.id';
COMMENT ON COLUMN mirror.tickets.connection_name IS 'mirror.connections.name';
COMMENT ON COLUMN mirror.tickets.id IS 'The ticket''s id at its provider';
COMMENT ON COLUMN mirror.tickets.created_at IS 'When it was created, by the provider';
COMMENT ON COLUMN mirror.tickets.updated_at IS 'When it was last modified, by the provider';
COMMENT ON COLUMN mirror.tickets.deleted_at IS 'When it was archived, deleted or merged away; null while it lives';
COMMENT ON COLUMN mirror.tickets.synced_at IS 'When the request that brought this version was sent';
COMMENT ON COLUMN mirror.tickets.subject IS 'Subject line';
COMMENT ON COLUMN mirror.tickets.description IS 'Body text';
COMMENT ON COLUMN mirror.tickets.status IS 'open or closed, by the state of its stage';
COMMENT ON COLUMN mirror.tickets.provider_status IS 'The stage''s name; its id where the name is not known';
COMMENT ON COLUMN mirror.tickets.pipeline IS 'The pipeline''s name; its id where the name is not known';
COMMENT ON COLUMN mirror.tickets.priority IS 'Priority, as the provider words it';
COMMENT ON COLUMN mirror.tickets.category IS 'Category, as the provider words it';
COMMENT ON COLUMN mirror.tickets.source IS 'The channel it came by';
COMMENT ON COLUMN mirror.tickets.owner_id IS 'Who it is assigned to: id';
COMMENT ON COLUMN mirror.tickets.owner_name IS 'Who it is assigned to: name, or e-mail address where there is none';
COMMENT ON COLUMN mirror.tickets.customer_id IS 'The primary company''s id; the first contact''s where there is no company';
COMMENT ON COLUMN mirror.tickets.closed_at IS 'When it was closed';
COMMENT ON COLUMN mirror.tickets.merged_into IS 'Id of the ticket that this one was merged into';
COMMENT ON COLUMN mirror.tickets.url IS 'The ticket in the provider''s own pages';
COMMENT ON COLUMN mirror.tickets.raw IS 'The whole record as the provider sent it';

CREATE VIEW mirror.connections AS
SELECT id, name, provider, state, account_id, account_name, connected_at FROM fieldmirror.connections;
COMMENT ON VIEW mirror.connections IS 'Company accounts that are mirrored; no secrets';
COMMENT ON COLUMN mirror.connections.id IS 'Number of the connection';
COMMENT ON COLUMN mirror.connections.name IS 'The name that the admin gave it';
COMMENT ON COLUMN mirror.connections.provider IS 'Where the account is';
COMMENT ON COLUMN mirror.connections.state IS 'awaiting_consent, verifying, connected, needs_reauth, disconnected or failed';
COMMENT ON COLUMN mirror.connections.account_id IS 'The account''s id at the provider';
COMMENT ON COLUMN mirror.connections.account_name IS 'The account''s name at the provider, or the best label it has';
COMMENT ON COLUMN mirror.connections.connected_at IS 'When consent was last given';

CREATE VIEW mirror.freshness AS
SELECT
    c.name AS connection_name,
    c.provider,
    s.stream,
    s.state,
    s.complete_to,
    s.swept_to,
    now() - s.complete_to AS lag,
    s.last_success_at,
    s.backfill_done,
    s.rows,
    s.deleted_rows,
    s.stalled_reason,
    (SELECT greatest(min(w.due_at), s.not_before)
     FROM fieldmirror.walks w
     WHERE (w.connection_id, w.stream, w.partition) = (s.connection_id, s.stream, s.partition)) AS next_due_at
FROM fieldmirror.stream_state s
JOIN fieldmirror.connections c ON c.id = s.connection_id;
COMMENT ON VIEW mirror.freshness IS 'How far each stream of each connection can be relied upon';
COMMENT ON COLUMN mirror.freshness.connection_name IS 'mirror.connections.name';
COMMENT ON COLUMN mirror.freshness.provider IS 'Where the account is';
COMMENT ON COLUMN mirror.freshness.stream IS 'What is mirrored, such as tickets';
COMMENT ON COLUMN mirror.freshness.state IS 'pending, backfilling, idle, syncing, backing_off, stalled or forbidden';
COMMENT ON COLUMN mirror.freshness.complete_to IS 'Every change that the provider exposes up to here is in the mirror';
COMMENT ON COLUMN mirror.freshness.swept_to IS 'Everything up to here, deletions included, is in the mirror';
COMMENT ON COLUMN mirror.freshness.lag IS 'Age of complete_to';
COMMENT ON COLUMN mirror.freshness.last_success_at IS 'When a walk over the stream last closed';
COMMENT ON COLUMN mirror.freshness.backfill_done IS 'Whether everything has been read once';
COMMENT ON COLUMN mirror.freshness.rows IS 'Rows that live';
COMMENT ON COLUMN mirror.freshness.deleted_rows IS 'Rows kept of records that are gone';
COMMENT ON COLUMN mirror.freshness.stalled_reason IS 'Why the watermarks do not move, when they do not';
COMMENT ON COLUMN mirror.freshness.next_due_at IS 'When the stream is next read';

CREATE VIEW mirror.sync_runs AS
SELECT r.id, r.connection_id, c.name AS connection_name, c.provider, r.stream, r.mode, r.started_at, r.ended_at,
       r.outcome, r.pages, r.requests, r.throttled, r.records, r.rows_written, r.rows_deleted, r.error
FROM fieldmirror.sync_runs r
JOIN fieldmirror.connections c ON c.id = r.connection_id;
COMMENT ON VIEW mirror.sync_runs IS 'What ran: one row for each piece of a walk that a turn worked on';
COMMENT ON COLUMN mirror.sync_runs.id IS 'Number of the run';
COMMENT ON COLUMN mirror.sync_runs.connection_id IS 'mirror.connections.id';
COMMENT ON COLUMN mirror.sync_runs.connection_name IS 'mirror.connections.name';
COMMENT ON COLUMN mirror.sync_runs.provider IS 'Where the account is';
COMMENT ON COLUMN mirror.sync_runs.stream IS 'What was read';
COMMENT ON COLUMN mirror.sync_runs.mode IS 'backfill, incremental, archived or snapshot';
COMMENT ON COLUMN mirror.sync_runs.started_at IS 'When it began';
COMMENT ON COLUMN mirror.sync_runs.ended_at IS 'When it ended; null while it runs';
COMMENT ON COLUMN mirror.sync_runs.outcome IS 'closed: the walk is complete; yielded: it goes on in a later run; failed; lost: another turn took over';
COMMENT ON COLUMN mirror.sync_runs.pages IS 'Pages written';
COMMENT ON COLUMN mirror.sync_runs.requests IS 'Requests sent';
COMMENT ON COLUMN mirror.sync_runs.throttled IS 'Requests refused with 429';
COMMENT ON COLUMN mirror.sync_runs.records IS 'Records and proofs of deletion received';
COMMENT ON COLUMN mirror.sync_runs.rows_written IS 'Rows inserted or changed';
COMMENT ON COLUMN mirror.sync_runs.rows_deleted IS 'Rows newly marked as gone';
COMMENT ON COLUMN mirror.sync_runs.error IS 'What went wrong, when it did';
