-- The unified views, made of what each provider contributes.
--
-- A provider's migration makes `fieldmirror.<provider>_as_<view>`, with the columns below but for `provider` and
-- `connection_name`, and then calls `fieldmirror.make_unified_views()`. So a new provider touches no other's SQL.

CREATE TABLE fieldmirror.unified_columns (
    view text NOT NULL,
    position integer NOT NULL,
    name text NOT NULL,
    type text NOT NULL,
    comment text NOT NULL,
    PRIMARY KEY (view, position),
    UNIQUE (view, name)
);
COMMENT ON TABLE fieldmirror.unified_columns IS 'The columns of the unified views: what every provider''s share of them has';

INSERT INTO fieldmirror.unified_columns (view, position, name, type, comment) VALUES
    ('tickets', 1, 'provider', 'text', 'Where the ticket comes from'),
    ('tickets', 2, 'connection_id', 'bigint', 'mirror.connections.id'),
    ('tickets', 3, 'connection_name', 'text', 'mirror.connections.name'),
    ('tickets', 4, 'id', 'text', 'The ticket''s id at its provider'),
    ('tickets', 5, 'created_at', 'timestamptz', 'When it was created, by the provider'),
    ('tickets', 6, 'updated_at', 'timestamptz', 'When it was last modified, by the provider'),
    ('tickets', 7, 'deleted_at', 'timestamptz', 'When it was archived, deleted or merged away; null while it lives'),
    ('tickets', 8, 'synced_at', 'timestamptz', 'When the request that brought this version was sent'),
    ('tickets', 9, 'subject', 'text', 'Subject line'),
    ('tickets', 10, 'description', 'text', 'Body text'),
    ('tickets', 11, 'status', 'text', 'open or closed'),
    ('tickets', 12, 'provider_status', 'text', 'The provider''s own word for the status; its id where the word is not known'),
    ('tickets', 13, 'pipeline', 'text', 'The pipeline''s name; its id where the name is not known'),
    ('tickets', 14, 'priority', 'text', 'Priority, as the provider words it'),
    ('tickets', 15, 'category', 'text', 'Category, as the provider words it'),
    ('tickets', 16, 'source', 'text', 'The channel it came by'),
    ('tickets', 17, 'owner_id', 'text', 'Who it is assigned to: id'),
    ('tickets', 18, 'owner_name', 'text', 'Who it is assigned to: name, or e-mail address where there is none'),
    ('tickets', 19, 'customer_id', 'text', 'The primary company''s id; the first contact''s where there is no company'),
    ('tickets', 20, 'closed_at', 'timestamptz', 'When it was closed'),
    ('tickets', 21, 'merged_into', 'text', 'Id of the ticket that this one was merged into'),
    ('tickets', 22, 'url', 'text', 'The ticket in the provider''s own pages'),
    ('tickets', 23, 'raw', 'jsonb', 'The whole record as the provider sent it'),
    ('jobs', 1, 'provider', 'text', 'Where the job comes from'),
    ('jobs', 2, 'connection_id', 'bigint', 'mirror.connections.id'),
    ('jobs', 3, 'connection_name', 'text', 'mirror.connections.name'),
    ('jobs', 4, 'id', 'text', 'The job''s id at its provider'),
    ('jobs', 5, 'created_at', 'timestamptz', 'When it was created, by the provider'),
    ('jobs', 6, 'updated_at', 'timestamptz', 'When it was last modified, by the provider'),
    ('jobs', 7, 'deleted_at', 'timestamptz', 'When it was archived, deleted or merged away; null while it lives'),
    ('jobs', 8, 'synced_at', 'timestamptz', 'When the request that brought this version was sent'),
    ('jobs', 9, 'number', 'text', 'The number that people call it by'),
    ('jobs', 10, 'title', 'text', 'Title, or the first words that describe it'),
    ('jobs', 11, 'status', 'text', 'unscheduled, scheduled, in_progress, completed, cancelled, archived or other'),
    ('jobs', 12, 'provider_status', 'text', 'The provider''s own word for the status'),
    ('jobs', 13, 'customer_id', 'text', 'The customer''s id at the provider'),
    ('jobs', 14, 'customer_name', 'text', 'The customer''s name'),
    ('jobs', 15, 'address', 'text', 'Where the work is done, in one line'),
    ('jobs', 16, 'scheduled_start', 'timestamptz', 'When the work is to begin'),
    ('jobs', 17, 'scheduled_end', 'timestamptz', 'When the work is to end'),
    ('jobs', 18, 'started_at', 'timestamptz', 'When the work began'),
    ('jobs', 19, 'completed_at', 'timestamptz', 'When the work was completed'),
    ('jobs', 20, 'cancelled_at', 'timestamptz', 'When the job was cancelled'),
    ('jobs', 21, 'total_amount', 'numeric', 'What the job costs, in major units of the account''s currency'),
    ('jobs', 22, 'outstanding_amount', 'numeric', 'What of it is not paid yet, in major units of the account''s currency'),
    ('jobs', 23, 'assigned_to', 'text[]', 'Who does the work: names, or ids where a name is not known'),
    ('jobs', 24, 'url', 'text', 'The job in the provider''s own pages'),
    ('jobs', 25, 'raw', 'jsonb', 'The whole record as the provider sent it'),
    ('bookings', 1, 'provider', 'text', 'Where the booking comes from'),
    ('bookings', 2, 'connection_id', 'bigint', 'mirror.connections.id'),
    ('bookings', 3, 'connection_name', 'text', 'mirror.connections.name'),
    ('bookings', 4, 'id', 'text', 'The booking''s id at its provider'),
    ('bookings', 5, 'created_at', 'timestamptz', 'When it was created, by the provider'),
    ('bookings', 6, 'updated_at', 'timestamptz', 'When it was last modified, by the provider'),
    ('bookings', 7, 'deleted_at', 'timestamptz', 'When it was archived, deleted or merged away; null while it lives'),
    ('bookings', 8, 'synced_at', 'timestamptz', 'When the request that brought this version was sent'),
    ('bookings', 9, 'subject', 'text', 'What it is about'),
    ('bookings', 10, 'status', 'text', 'requested, scheduled, rescheduled, completed, cancelled, no_show, converted, dismissed or other'),
    ('bookings', 11, 'provider_status', 'text', 'The provider''s own word for the status'),
    ('bookings', 12, 'customer_name', 'text', 'Who booked: name'),
    ('bookings', 13, 'customer_email', 'text', 'Who booked: e-mail address'),
    ('bookings', 14, 'customer_phone', 'text', 'Who booked: telephone number'),
    ('bookings', 15, 'starts_at', 'timestamptz', 'When it begins'),
    ('bookings', 16, 'ends_at', 'timestamptz', 'When it ends'),
    ('bookings', 17, 'timezone', 'text', 'The customer''s time zone, by its IANA name'),
    ('bookings', 18, 'owner_id', 'text', 'Whose booking it is: id'),
    ('bookings', 19, 'owner_name', 'text', 'Whose booking it is: name'),
    ('bookings', 20, 'location', 'text', 'Where it takes place'),
    ('bookings', 21, 'job_id', 'text', 'The job that was made of it'),
    ('bookings', 22, 'cancelled_at', 'timestamptz', 'When it was cancelled'),
    ('bookings', 23, 'cancel_reason', 'text', 'Why it was cancelled'),
    ('bookings', 24, 'url', 'text', 'The booking in the provider''s own pages'),
    ('bookings', 25, 'raw', 'jsonb', 'The whole record as the provider sent it');

-- What of a unified view is each provider's own: all but what the connection tells.
CREATE FUNCTION fieldmirror.unified_view(of_view text) RETURNS text
LANGUAGE sql STABLE AS $$
    WITH own AS (
        SELECT string_agg(format('%I::%s', name, type), ', ' ORDER BY position) AS columns,
               string_agg(format('NULL::%s AS %I', type, name), ', ' ORDER BY position) AS nothing
        FROM fieldmirror.unified_columns
        WHERE view = of_view AND name NOT IN ('provider', 'connection_name')
    ), shown AS (
        SELECT string_agg(CASE name WHEN 'provider' THEN 'c.provider'
                                    WHEN 'connection_name' THEN 'c.name AS connection_name'
                                    ELSE format('u.%I', name) END, ', ' ORDER BY position) AS columns
        FROM fieldmirror.unified_columns WHERE view = of_view
    ), shares AS (
        SELECT string_agg(format('SELECT %s FROM fieldmirror.%I', own.columns, viewname), ' UNION ALL ' ORDER BY viewname) AS query
        FROM pg_views, own WHERE schemaname = 'fieldmirror' AND viewname LIKE '%\_as\_' || of_view
    )
    SELECT format('SELECT %s FROM (%s) u JOIN fieldmirror.connections c ON c.id = u.connection_id', shown.columns,
                  coalesce(shares.query, format('SELECT %s WHERE false', own.nothing)))
    FROM own, shown, shares
$$;

CREATE PROCEDURE fieldmirror.make_unified_views()
LANGUAGE plpgsql AS $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT DISTINCT view FROM fieldmirror.unified_columns LOOP
        EXECUTE format('CREATE OR REPLACE VIEW mirror.%I AS %s', made.view, fieldmirror.unified_view(made.view));
        EXECUTE format('COMMENT ON VIEW mirror.%I IS %L', made.view,
            initcap(made.view) || ' of all providers in one shape; deleted ones have deleted_at set');
    END LOOP;
    FOR made IN SELECT * FROM fieldmirror.unified_columns LOOP
        EXECUTE format('COMMENT ON COLUMN mirror.%I.%I IS %L', made.view, made.name, made.comment);
    END LOOP;
END
$$;

CREATE VIEW fieldmirror.hubspot_as_tickets AS
SELECT
    t.connection_id,
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
LEFT JOIN mirror.hubspot_pipeline_stages s
    ON s.connection_id = t.connection_id AND s.id = t.pipeline_id || '/' || t.stage_id
LEFT JOIN mirror.hubspot_owners o ON o.connection_id = t.connection_id AND o.id = t.owner_id;

CALL fieldmirror.make_unified_views();

-- A sweep is a kind of walk.
ALTER TABLE fieldmirror.walks DROP CONSTRAINT walks_mode_check;
ALTER TABLE fieldmirror.walks ADD CONSTRAINT walks_mode_check
    CHECK (mode IN ('backfill', 'incremental', 'archived', 'snapshot', 'sweep'));
