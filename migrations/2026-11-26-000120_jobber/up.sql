-- Jobber's tables, and its part of the unified view of jobs.

CREATE TABLE mirror.jobber_jobs (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    job_number text,
    title text,
    instructions text,
    job_status text,
    job_type text,
    billing_type text,
    start_at timestamptz,
    end_at timestamptz,
    completed_at timestamptz,
    total numeric,
    outstanding numeric,
    client_id text,
    client_name text,
    property_id text,
    street text,
    city text,
    province text,
    postal_code text,
    country text,
    url text,
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
CREATE INDEX jobber_jobs_updated ON mirror.jobber_jobs (source_updated_at);
COMMENT ON TABLE mirror.jobber_jobs IS 'Jobber jobs';
COMMENT ON COLUMN mirror.jobber_jobs.job_number IS 'jobNumber: the number that people use';
COMMENT ON COLUMN mirror.jobber_jobs.title IS 'title';
COMMENT ON COLUMN mirror.jobber_jobs.instructions IS 'instructions: what is to be done';
COMMENT ON COLUMN mirror.jobber_jobs.job_status IS 'jobStatus as it was at synced_at: a bucket of the dashboard that moves with the clock (today, late, upcoming, …); status in mirror.jobs does not';
COMMENT ON COLUMN mirror.jobber_jobs.job_type IS 'jobType: ONE_OFF or RECURRING';
COMMENT ON COLUMN mirror.jobber_jobs.billing_type IS 'billingType: FIXED_PRICE or VISIT_BASED';
COMMENT ON COLUMN mirror.jobber_jobs.start_at IS 'startAt';
COMMENT ON COLUMN mirror.jobber_jobs.end_at IS 'endAt';
COMMENT ON COLUMN mirror.jobber_jobs.completed_at IS 'completedAt';
COMMENT ON COLUMN mirror.jobber_jobs.total IS 'total, in the currency of the account';
COMMENT ON COLUMN mirror.jobber_jobs.outstanding IS 'jobBalanceTotals.outstandingAmount, in the currency of the account';
COMMENT ON COLUMN mirror.jobber_jobs.client_id IS 'client.id: mirror.jobber_clients.id';
COMMENT ON COLUMN mirror.jobber_jobs.client_name IS 'client.name when the job was read; mirror.jobber_clients has the present one';
COMMENT ON COLUMN mirror.jobber_jobs.property_id IS 'property.id: the place of the work';
COMMENT ON COLUMN mirror.jobber_jobs.street IS 'property.address.street';
COMMENT ON COLUMN mirror.jobber_jobs.city IS 'property.address.city';
COMMENT ON COLUMN mirror.jobber_jobs.province IS 'property.address.province: province or state';
COMMENT ON COLUMN mirror.jobber_jobs.postal_code IS 'property.address.postalCode';
COMMENT ON COLUMN mirror.jobber_jobs.country IS 'property.address.country';
COMMENT ON COLUMN mirror.jobber_jobs.url IS 'jobberWebUri: the job in Jobber''s own pages';
CALL fieldmirror.describe_mirror_table('mirror.jobber_jobs', 'Jobber');
COMMENT ON COLUMN mirror.jobber_jobs.source_updated_at IS 'updatedAt: "changed in a meaningful way", so not every change moves it';

CREATE TABLE mirror.jobber_visits (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    job_id text,
    title text,
    visit_status text,
    start_at timestamptz,
    end_at timestamptz,
    assigned_ids text[],
    assigned_names text[],
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
CREATE INDEX jobber_visits_job ON mirror.jobber_visits (connection_id, job_id);
COMMENT ON TABLE mirror.jobber_visits IS 'Visits of Jobber jobs: when somebody goes there, and who';
COMMENT ON COLUMN mirror.jobber_visits.job_id IS 'job.id: mirror.jobber_jobs.id';
COMMENT ON COLUMN mirror.jobber_visits.title IS 'title';
COMMENT ON COLUMN mirror.jobber_visits.visit_status IS 'visitStatus as it was at synced_at: moves with the clock but for COMPLETED';
COMMENT ON COLUMN mirror.jobber_visits.start_at IS 'startAt; null: unscheduled';
COMMENT ON COLUMN mirror.jobber_visits.end_at IS 'endAt';
COMMENT ON COLUMN mirror.jobber_visits.assigned_ids IS 'assignedUsers: ids, at most ten';
COMMENT ON COLUMN mirror.jobber_visits.assigned_names IS 'assignedUsers: full names, at most ten';
CALL fieldmirror.describe_mirror_table('mirror.jobber_visits', 'Jobber');
COMMENT ON COLUMN mirror.jobber_visits.source_updated_at IS 'Always null: Jobber does not tell when a visit was modified';

CREATE TABLE mirror.jobber_clients (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    first_name text,
    last_name text,
    company_name text,
    is_company boolean,
    is_lead boolean,
    is_archived boolean,
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
COMMENT ON TABLE mirror.jobber_clients IS 'Jobber clients, by name only';
COMMENT ON COLUMN mirror.jobber_clients.name IS 'name, as Jobber shows the client';
COMMENT ON COLUMN mirror.jobber_clients.first_name IS 'firstName';
COMMENT ON COLUMN mirror.jobber_clients.last_name IS 'lastName';
COMMENT ON COLUMN mirror.jobber_clients.company_name IS 'companyName';
COMMENT ON COLUMN mirror.jobber_clients.is_company IS 'isCompany';
COMMENT ON COLUMN mirror.jobber_clients.is_lead IS 'isLead: no job yet';
COMMENT ON COLUMN mirror.jobber_clients.is_archived IS 'isArchived, which is no deletion';
CALL fieldmirror.describe_mirror_table('mirror.jobber_clients', 'Jobber');

CREATE VIEW fieldmirror.jobber_as_jobs AS
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

CALL fieldmirror.make_unified_views();
