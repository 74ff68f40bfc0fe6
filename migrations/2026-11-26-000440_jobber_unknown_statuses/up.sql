-- Jobs whose status is a word that nobody knows are `other`, as those of the other providers are.
CREATE OR REPLACE VIEW fieldmirror.jobber_as_jobs AS
SELECT
    j.connection_id,
    j.id,
    j.source_created_at AS created_at,
    j.source_updated_at AS updated_at,
    j.deleted_at,
    j.synced_at,
    j.job_number AS number,
    j.title,
    -- Nothing here depends on what time it is: of the buckets, only archived and COMPLETED stay once they are reached.
    CASE
        WHEN j.completed_at IS NOT NULL THEN 'completed'
        WHEN j.job_status = 'archived' THEN 'archived'
        -- A word that Jobber has added may stand for anything.
        WHEN coalesce(j.job_status, '') NOT IN (
            'requires_invoicing', 'late', 'today', 'upcoming', 'action_required', 'on_hold', 'unscheduled', 'active',
            'expiring_within_30_days'
        ) THEN 'other'
        WHEN v.any_completed THEN 'in_progress'
        WHEN coalesce(j.start_at, v.starts) IS NOT NULL THEN 'scheduled'
        ELSE 'unscheduled'
    END AS status,
    j.job_status AS provider_status,
    j.client_id AS customer_id,
    coalesce(nullif(k.name, ''), nullif(j.client_name, '')) AS customer_name,
    nullif(concat_ws(', ', nullif(j.street, ''), nullif(j.city, ''), nullif(j.province, ''),
        nullif(j.postal_code, ''), nullif(j.country, '')), '') AS address,
    coalesce(j.start_at, v.starts) AS scheduled_start,
    coalesce(j.end_at, v.ends) AS scheduled_end,
    NULL::timestamptz AS started_at,
    j.completed_at,
    NULL::timestamptz AS cancelled_at,
    j.total AS total_amount,
    j.outstanding AS outstanding_amount,
    v.assigned_to,
    j.url,
    j.raw
FROM mirror.jobber_jobs j
LEFT JOIN mirror.jobber_clients k ON k.connection_id = j.connection_id AND k.id = j.client_id
LEFT JOIN LATERAL (
    SELECT min(visit.start_at) AS starts, max(visit.end_at) AS ends, bool_or(visit.visit_status = 'COMPLETED') AS any_completed,
        (SELECT array_agg(DISTINCT named.name ORDER BY named.name)
         FROM mirror.jobber_visits other CROSS JOIN unnest(other.assigned_names) AS named (name)
         WHERE other.connection_id = j.connection_id AND other.job_id = j.id AND other.deleted_at IS NULL) AS assigned_to
    FROM mirror.jobber_visits visit
    WHERE visit.connection_id = j.connection_id AND visit.job_id = j.id AND visit.deleted_at IS NULL
) v ON true;
