-- Housecall Pro's tables, and its jobs as the unified view shows them.

CREATE TABLE mirror.housecallpro_jobs (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    invoice_number text,
    description text,
    work_status text,
    customer_id text,
    customer_first_name text,
    customer_last_name text,
    customer_company text,
    street text,
    street_line_2 text,
    city text,
    state text,
    zip text,
    country text,
    scheduled_start timestamptz,
    scheduled_end timestamptz,
    arrival_window_minutes bigint,
    on_my_way_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    total_amount numeric,
    outstanding_balance numeric,
    subtotal numeric,
    employee_ids text[],
    tags text[],
    lead_source text,
    job_type text,
    business_unit text,
    original_estimate_id text,
    recurrence_number bigint,
    recurrence_rule text,
    company_id text,
    company_name text,
    canceled_at timestamptz,
    source_deleted_at timestamptz,
    locked_at timestamptz,
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
CREATE INDEX housecallpro_jobs_updated ON mirror.housecallpro_jobs (source_updated_at);
COMMENT ON TABLE mirror.housecallpro_jobs IS 'Housecall Pro jobs of all locations that are read, cancelled ones included';
COMMENT ON COLUMN mirror.housecallpro_jobs.invoice_number IS 'The number that people see; no id, and unique within a company only';
COMMENT ON COLUMN mirror.housecallpro_jobs.description IS 'What is to be done; may be empty';
COMMENT ON COLUMN mirror.housecallpro_jobs.work_status IS 'As answers spell it: needs scheduling, scheduled, in progress, complete rated, complete unrated, user canceled, pro canceled';
COMMENT ON COLUMN mirror.housecallpro_jobs.customer_id IS 'customer.id: mirror.housecallpro_customers.id';
COMMENT ON COLUMN mirror.housecallpro_jobs.customer_first_name IS 'customer.first_name, when the job was read';
COMMENT ON COLUMN mirror.housecallpro_jobs.customer_last_name IS 'customer.last_name, when the job was read';
COMMENT ON COLUMN mirror.housecallpro_jobs.customer_company IS 'customer.company, when the job was read';
COMMENT ON COLUMN mirror.housecallpro_jobs.street IS 'address.street';
COMMENT ON COLUMN mirror.housecallpro_jobs.street_line_2 IS 'address.street_line_2';
COMMENT ON COLUMN mirror.housecallpro_jobs.city IS 'address.city';
COMMENT ON COLUMN mirror.housecallpro_jobs.state IS 'address.state';
COMMENT ON COLUMN mirror.housecallpro_jobs.zip IS 'address.zip';
COMMENT ON COLUMN mirror.housecallpro_jobs.country IS 'address.country';
COMMENT ON COLUMN mirror.housecallpro_jobs.scheduled_start IS 'schedule.scheduled_start; null while unscheduled';
COMMENT ON COLUMN mirror.housecallpro_jobs.scheduled_end IS 'schedule.scheduled_end';
COMMENT ON COLUMN mirror.housecallpro_jobs.arrival_window_minutes IS 'schedule.arrival_window: minutes after the start within which the crew may come';
COMMENT ON COLUMN mirror.housecallpro_jobs.on_my_way_at IS 'work_timestamps.on_my_way_at';
COMMENT ON COLUMN mirror.housecallpro_jobs.started_at IS 'work_timestamps.started_at';
COMMENT ON COLUMN mirror.housecallpro_jobs.completed_at IS 'work_timestamps.completed_at';
COMMENT ON COLUMN mirror.housecallpro_jobs.total_amount IS 'total_amount, sent in cents, in major units';
COMMENT ON COLUMN mirror.housecallpro_jobs.outstanding_balance IS 'outstanding_balance, sent in cents, in major units';
COMMENT ON COLUMN mirror.housecallpro_jobs.subtotal IS 'subtotal, sent in cents, in major units';
COMMENT ON COLUMN mirror.housecallpro_jobs.employee_ids IS 'assigned_employees: mirror.housecallpro_employees.id';
COMMENT ON COLUMN mirror.housecallpro_jobs.tags IS 'tags';
COMMENT ON COLUMN mirror.housecallpro_jobs.lead_source IS 'lead_source';
COMMENT ON COLUMN mirror.housecallpro_jobs.job_type IS 'job_fields.job_type.name';
COMMENT ON COLUMN mirror.housecallpro_jobs.business_unit IS 'job_fields.business_unit.name';
COMMENT ON COLUMN mirror.housecallpro_jobs.original_estimate_id IS 'The estimate that it was made from';
COMMENT ON COLUMN mirror.housecallpro_jobs.recurrence_number IS 'Which of a series it is';
COMMENT ON COLUMN mirror.housecallpro_jobs.recurrence_rule IS 'The series as an iCalendar RRULE';
COMMENT ON COLUMN mirror.housecallpro_jobs.company_id IS 'The location that it belongs to: mirror.housecallpro_locations.id';
COMMENT ON COLUMN mirror.housecallpro_jobs.company_name IS 'The location''s name, when the job was read';
COMMENT ON COLUMN mirror.housecallpro_jobs.canceled_at IS 'canceled_at: when the customer cancelled it';
COMMENT ON COLUMN mirror.housecallpro_jobs.source_deleted_at IS 'deleted_at: when the company cancelled or deleted it; no proof that it is gone';
COMMENT ON COLUMN mirror.housecallpro_jobs.locked_at IS 'locked_at';
CALL fieldmirror.describe_mirror_table('mirror.housecallpro_jobs', 'Housecall Pro');
COMMENT ON COLUMN mirror.housecallpro_jobs.deleted_at IS 'When it was found to be gone: absent from a read of everything, and from a read by its id; null while it is there';
COMMENT ON COLUMN mirror.housecallpro_jobs.raw IS 'The whole record as Housecall Pro sent it, without what employees'' records say besides ids and names';

CREATE TABLE mirror.housecallpro_customers (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    first_name text,
    last_name text,
    company text,
    email text,
    company_id text,
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
COMMENT ON TABLE mirror.housecallpro_customers IS 'Housecall Pro customers';
COMMENT ON COLUMN mirror.housecallpro_customers.first_name IS 'First name; firms may have none';
COMMENT ON COLUMN mirror.housecallpro_customers.last_name IS 'Last name; firms may have none';
COMMENT ON COLUMN mirror.housecallpro_customers.company IS 'The customer''s own firm';
COMMENT ON COLUMN mirror.housecallpro_customers.email IS 'E-mail address';
COMMENT ON COLUMN mirror.housecallpro_customers.company_id IS 'The location that has the customer: mirror.housecallpro_locations.id';
CALL fieldmirror.describe_mirror_table('mirror.housecallpro_customers', 'Housecall Pro');

CREATE TABLE mirror.housecallpro_employees (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    first_name text,
    last_name text,
    company_id text,
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
COMMENT ON TABLE mirror.housecallpro_employees IS 'Housecall Pro employees: ids and names, nothing else is kept';
COMMENT ON COLUMN mirror.housecallpro_employees.first_name IS 'First name';
COMMENT ON COLUMN mirror.housecallpro_employees.last_name IS 'Last name';
COMMENT ON COLUMN mirror.housecallpro_employees.company_id IS 'The location that they work for: mirror.housecallpro_locations.id';
CALL fieldmirror.describe_mirror_table('mirror.housecallpro_employees', 'Housecall Pro');
COMMENT ON COLUMN mirror.housecallpro_employees.deleted_at IS 'When they were found to be deactivated: only active employees are listed';

CREATE TABLE mirror.housecallpro_locations (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    time_zone text,
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
COMMENT ON TABLE mirror.housecallpro_locations IS 'The connected Housecall Pro company and the locations below it';
COMMENT ON COLUMN mirror.housecallpro_locations.name IS 'Name';
COMMENT ON COLUMN mirror.housecallpro_locations.time_zone IS 'Time zone, by its IANA name';
CALL fieldmirror.describe_mirror_table('mirror.housecallpro_locations', 'Housecall Pro');

CREATE VIEW fieldmirror.housecallpro_as_jobs AS
SELECT
    j.connection_id,
    j.id,
    j.source_created_at AS created_at,
    j.source_updated_at AS updated_at,
    j.deleted_at,
    j.synced_at,
    j.invoice_number AS number,
    nullif(j.description, '') AS title,
    CASE
        WHEN j.work_status IN ('user canceled', 'pro canceled') THEN 'cancelled'
        -- One of the two dates alone says so as well, whatever the status was before.
        WHEN j.canceled_at IS NOT NULL OR j.source_deleted_at IS NOT NULL THEN 'cancelled'
        WHEN j.work_status = 'needs scheduling' THEN 'unscheduled'
        WHEN j.work_status = 'scheduled' THEN 'scheduled'
        WHEN j.work_status = 'in progress' THEN 'in_progress'
        WHEN j.work_status IN ('complete rated', 'complete unrated') THEN 'completed'
        ELSE 'other'
    END AS status,
    j.work_status AS provider_status,
    j.customer_id,
    -- The customer's own record is the fresher one: renaming a customer does not change the job.
    coalesce(
        nullif(concat_ws(' ', nullif(k.first_name, ''), nullif(k.last_name, '')), ''), nullif(k.company, ''),
        nullif(concat_ws(' ', nullif(j.customer_first_name, ''), nullif(j.customer_last_name, '')), ''),
        nullif(j.customer_company, '')
    ) AS customer_name,
    nullif(concat_ws(', ', nullif(j.street, ''), nullif(j.street_line_2, ''), nullif(j.city, ''),
        nullif(concat_ws(' ', nullif(j.state, ''), nullif(j.zip, '')), '')), '') AS address,
    j.scheduled_start,
    j.scheduled_end,
    j.started_at,
    j.completed_at,
    coalesce(j.canceled_at, j.source_deleted_at) AS cancelled_at,
    j.total_amount,
    j.outstanding_balance AS outstanding_amount,
    (
        SELECT array_agg(coalesce(nullif(concat_ws(' ', nullif(e.one ->> 'first_name', ''),
            nullif(e.one ->> 'last_name', '')), ''), e.one ->> 'id') ORDER BY e.place)
        FROM jsonb_array_elements(CASE WHEN jsonb_typeof(j.raw -> 'assigned_employees') = 'array'
            THEN j.raw -> 'assigned_employees' END) WITH ORDINALITY AS e (one, place)
    ) AS assigned_to,
    NULL::text AS url,
    j.raw
FROM mirror.housecallpro_jobs j
LEFT JOIN mirror.housecallpro_customers k ON k.connection_id = j.connection_id AND k.id = j.customer_id;

CALL fieldmirror.make_unified_views();
