DELETE FROM fieldmirror.walks WHERE mode = 'sweep';
ALTER TABLE fieldmirror.walks DROP CONSTRAINT walks_mode_check;
ALTER TABLE fieldmirror.walks ADD CONSTRAINT walks_mode_check
    CHECK (mode IN ('backfill', 'incremental', 'archived', 'snapshot'));

DROP VIEW mirror.jobs;
DROP VIEW mirror.bookings;
CREATE OR REPLACE VIEW mirror.tickets AS
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
DROP VIEW fieldmirror.hubspot_as_tickets;
DROP PROCEDURE fieldmirror.make_unified_views();
DROP FUNCTION fieldmirror.unified_view(text);
DROP TABLE fieldmirror.unified_columns;
