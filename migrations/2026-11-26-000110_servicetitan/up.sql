-- ServiceTitan's tables, and its share of the unified views of jobs and bookings.

-- What every mirror table ends with. It goes when the tables are made.
CREATE TABLE fieldmirror.ends_with (
    source_created_at timestamptz,
    source_updated_at timestamptz,
    raw jsonb NOT NULL,
    first_seen_at timestamptz NOT NULL,
    synced_at timestamptz NOT NULL,
    deleted_at timestamptz,
    deleted_evidence text,
    content_hash bytea NOT NULL,
    sync_run_id bigint
);

CREATE TABLE mirror.servicetitan_jobs (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    job_number text,
    status text,
    priority text,
    summary text,
    customer_id text,
    location_id text,
    business_unit_id text,
    job_type_id text,
    campaign_id text,
    project_id text,
    booking_id text,
    invoice_id text,
    recall_for_id text,
    sold_by_id text,
    created_by_id text,
    appointment_count bigint,
    first_appointment_id text,
    last_appointment_id text,
    completed_at timestamptz,
    total numeric,
    no_charge boolean,
    customer_po text,
    tag_type_ids text[],
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_jobs IS 'ServiceTitan: jobs, cancelled and deactivated ones included; their schedule is that of their appointments';
COMMENT ON COLUMN mirror.servicetitan_jobs.job_number IS 'jobNumber: the number that people use';
COMMENT ON COLUMN mirror.servicetitan_jobs.status IS 'jobStatus: Scheduled, Dispatched, InProgress, Hold, Completed, Canceled, or a word that is newer';
COMMENT ON COLUMN mirror.servicetitan_jobs.priority IS 'priority: Low, Normal, High, Urgent';
COMMENT ON COLUMN mirror.servicetitan_jobs.summary IS 'summary: HTML';
COMMENT ON COLUMN mirror.servicetitan_jobs.customer_id IS 'customerId: mirror.servicetitan_customers.id';
COMMENT ON COLUMN mirror.servicetitan_jobs.location_id IS 'locationId: mirror.servicetitan_locations.id';
COMMENT ON COLUMN mirror.servicetitan_jobs.business_unit_id IS 'businessUnitId: mirror.servicetitan_business_units.id';
COMMENT ON COLUMN mirror.servicetitan_jobs.job_type_id IS 'jobTypeId: mirror.servicetitan_job_types.id';
COMMENT ON COLUMN mirror.servicetitan_jobs.campaign_id IS 'campaignId';
COMMENT ON COLUMN mirror.servicetitan_jobs.project_id IS 'projectId';
COMMENT ON COLUMN mirror.servicetitan_jobs.booking_id IS 'bookingId: mirror.servicetitan_bookings.id, where the job was made from a booking';
COMMENT ON COLUMN mirror.servicetitan_jobs.invoice_id IS 'invoiceId';
COMMENT ON COLUMN mirror.servicetitan_jobs.recall_for_id IS 'recallForId: the job that this one makes good';
COMMENT ON COLUMN mirror.servicetitan_jobs.sold_by_id IS 'soldById: mirror.servicetitan_technicians.id';
COMMENT ON COLUMN mirror.servicetitan_jobs.created_by_id IS 'createdById: a user, not a technician (mirror.servicetitan_technicians.user_id)';
COMMENT ON COLUMN mirror.servicetitan_jobs.appointment_count IS 'appointmentCount';
COMMENT ON COLUMN mirror.servicetitan_jobs.first_appointment_id IS 'firstAppointmentId: mirror.servicetitan_appointments.id';
COMMENT ON COLUMN mirror.servicetitan_jobs.last_appointment_id IS 'lastAppointmentId: mirror.servicetitan_appointments.id';
COMMENT ON COLUMN mirror.servicetitan_jobs.completed_at IS 'completedOn';
COMMENT ON COLUMN mirror.servicetitan_jobs.total IS 'total, in the currency of the business unit';
COMMENT ON COLUMN mirror.servicetitan_jobs.no_charge IS 'noCharge';
COMMENT ON COLUMN mirror.servicetitan_jobs.customer_po IS 'customerPo';
COMMENT ON COLUMN mirror.servicetitan_jobs.tag_type_ids IS 'tagTypeIds';
COMMENT ON COLUMN mirror.servicetitan_jobs.active IS 'active: false is how ServiceTitan deletes';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_jobs', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_bookings (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    source text,
    name text,
    status text,
    summary text,
    starts_at timestamptz,
    customer_type text,
    street text,
    unit text,
    city text,
    state text,
    zip text,
    country text,
    is_first_time_client boolean,
    business_unit_id text,
    job_type_id text,
    campaign_id text,
    priority text,
    dismissing_reason_id text,
    job_id text,
    external_id text,
    booking_provider_id text,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_bookings IS 'ServiceTitan: bookings: incoming requests that become a job or are dismissed';
COMMENT ON COLUMN mirror.servicetitan_bookings.source IS 'source';
COMMENT ON COLUMN mirror.servicetitan_bookings.name IS 'name: the customers';
COMMENT ON COLUMN mirror.servicetitan_bookings.status IS 'status: New, Accepted, Converted, Dismissed, or a word that is newer';
COMMENT ON COLUMN mirror.servicetitan_bookings.summary IS 'summary';
COMMENT ON COLUMN mirror.servicetitan_bookings.starts_at IS 'start: the time that is asked for';
COMMENT ON COLUMN mirror.servicetitan_bookings.customer_type IS 'customerType: Residential or Commercial';
COMMENT ON COLUMN mirror.servicetitan_bookings.street IS 'address.street';
COMMENT ON COLUMN mirror.servicetitan_bookings.unit IS 'address.unit';
COMMENT ON COLUMN mirror.servicetitan_bookings.city IS 'address.city';
COMMENT ON COLUMN mirror.servicetitan_bookings.state IS 'address.state';
COMMENT ON COLUMN mirror.servicetitan_bookings.zip IS 'address.zip';
COMMENT ON COLUMN mirror.servicetitan_bookings.country IS 'address.country';
COMMENT ON COLUMN mirror.servicetitan_bookings.is_first_time_client IS 'isFirstTimeClient';
COMMENT ON COLUMN mirror.servicetitan_bookings.business_unit_id IS 'businessUnitId: mirror.servicetitan_business_units.id';
COMMENT ON COLUMN mirror.servicetitan_bookings.job_type_id IS 'jobTypeId: mirror.servicetitan_job_types.id';
COMMENT ON COLUMN mirror.servicetitan_bookings.campaign_id IS 'campaignId';
COMMENT ON COLUMN mirror.servicetitan_bookings.priority IS 'priority: Low, Normal, High, Urgent';
COMMENT ON COLUMN mirror.servicetitan_bookings.dismissing_reason_id IS 'dismissingReasonId';
COMMENT ON COLUMN mirror.servicetitan_bookings.job_id IS 'jobId: mirror.servicetitan_jobs.id, the job made from it';
COMMENT ON COLUMN mirror.servicetitan_bookings.external_id IS 'externalId: the id at the booking provider';
COMMENT ON COLUMN mirror.servicetitan_bookings.booking_provider_id IS 'bookingProviderId: the booking providers tag';
COMMENT ON COLUMN mirror.servicetitan_bookings.active IS 'active, which only the export feed tells: null with providers.servicetitan.booking_provider_ids';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_bookings', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_appointments (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    job_id text,
    number text,
    status text,
    starts_at timestamptz,
    ends_at timestamptz,
    arrival_window_start timestamptz,
    arrival_window_end timestamptz,
    customer_id text,
    is_confirmed boolean,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_appointments IS 'ServiceTitan: appointments: when the work of a job is to be done';
COMMENT ON COLUMN mirror.servicetitan_appointments.job_id IS 'jobId: mirror.servicetitan_jobs.id';
COMMENT ON COLUMN mirror.servicetitan_appointments.number IS 'appointmentNumber';
COMMENT ON COLUMN mirror.servicetitan_appointments.status IS 'status: Scheduled, Dispatched, Working, Hold, Done, Canceled';
COMMENT ON COLUMN mirror.servicetitan_appointments.starts_at IS 'start';
COMMENT ON COLUMN mirror.servicetitan_appointments.ends_at IS 'end';
COMMENT ON COLUMN mirror.servicetitan_appointments.arrival_window_start IS 'arrivalWindowStart';
COMMENT ON COLUMN mirror.servicetitan_appointments.arrival_window_end IS 'arrivalWindowEnd';
COMMENT ON COLUMN mirror.servicetitan_appointments.customer_id IS 'customerId: mirror.servicetitan_customers.id';
COMMENT ON COLUMN mirror.servicetitan_appointments.is_confirmed IS 'isConfirmed';
COMMENT ON COLUMN mirror.servicetitan_appointments.active IS 'active: appointments are deleted by its being false';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_appointments', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_appointment_assignments (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    job_id text,
    appointment_id text,
    technician_id text,
    technician_name text,
    status text,
    assigned_at timestamptz,
    is_paused boolean,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_appointment_assignments IS 'ServiceTitan: who was sent to which appointment';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.job_id IS 'jobId: mirror.servicetitan_jobs.id';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.appointment_id IS 'appointmentId: mirror.servicetitan_appointments.id';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.technician_id IS 'technicianId: mirror.servicetitan_technicians.id';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.technician_name IS 'technicianName, as it was';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.status IS 'status: Scheduled, Dispatched, Working, Done';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.assigned_at IS 'assignedOn';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.is_paused IS 'isPaused';
COMMENT ON COLUMN mirror.servicetitan_appointment_assignments.active IS 'active: false when the technician was taken off';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_appointment_assignments', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_job_canceled_logs (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    job_id text,
    reason_id text,
    memo text,
    created_by_id text,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_job_canceled_logs IS 'ServiceTitan: when jobs were cancelled, and why';
COMMENT ON COLUMN mirror.servicetitan_job_canceled_logs.job_id IS 'jobId: mirror.servicetitan_jobs.id';
COMMENT ON COLUMN mirror.servicetitan_job_canceled_logs.reason_id IS 'reasonId';
COMMENT ON COLUMN mirror.servicetitan_job_canceled_logs.memo IS 'memo';
COMMENT ON COLUMN mirror.servicetitan_job_canceled_logs.created_by_id IS 'createdById: a user';
COMMENT ON COLUMN mirror.servicetitan_job_canceled_logs.active IS 'active';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_job_canceled_logs', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_customers (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    type text,
    balance numeric,
    merged_to_id text,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_customers IS 'ServiceTitan: customers; one that was merged into another is gone and names it';
COMMENT ON COLUMN mirror.servicetitan_customers.name IS 'name';
COMMENT ON COLUMN mirror.servicetitan_customers.type IS 'type: Residential or Commercial';
COMMENT ON COLUMN mirror.servicetitan_customers.balance IS 'balance';
COMMENT ON COLUMN mirror.servicetitan_customers.merged_to_id IS 'mergedToId: who goes on for it; mirror.servicetitan_survivors follows the chain';
COMMENT ON COLUMN mirror.servicetitan_customers.active IS 'active';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_customers', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_locations (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    customer_id text,
    name text,
    street text,
    unit text,
    city text,
    state text,
    zip text,
    country text,
    merged_to_id text,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_locations IS 'ServiceTitan: locations: where work is done';
COMMENT ON COLUMN mirror.servicetitan_locations.customer_id IS 'customerId: mirror.servicetitan_customers.id';
COMMENT ON COLUMN mirror.servicetitan_locations.name IS 'name';
COMMENT ON COLUMN mirror.servicetitan_locations.street IS 'address.street';
COMMENT ON COLUMN mirror.servicetitan_locations.unit IS 'address.unit';
COMMENT ON COLUMN mirror.servicetitan_locations.city IS 'address.city';
COMMENT ON COLUMN mirror.servicetitan_locations.state IS 'address.state';
COMMENT ON COLUMN mirror.servicetitan_locations.zip IS 'address.zip';
COMMENT ON COLUMN mirror.servicetitan_locations.country IS 'address.country';
COMMENT ON COLUMN mirror.servicetitan_locations.merged_to_id IS 'mergedToId: the location that goes on for it';
COMMENT ON COLUMN mirror.servicetitan_locations.active IS 'active';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_locations', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_technicians (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    user_id text,
    email text,
    business_unit_id text,
    team text,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_technicians IS 'ServiceTitan: technicians, without pay, home address and whereabouts';
COMMENT ON COLUMN mirror.servicetitan_technicians.name IS 'name';
COMMENT ON COLUMN mirror.servicetitan_technicians.user_id IS 'userId, which createdById of other records means';
COMMENT ON COLUMN mirror.servicetitan_technicians.email IS 'email';
COMMENT ON COLUMN mirror.servicetitan_technicians.business_unit_id IS 'businessUnitId: mirror.servicetitan_business_units.id';
COMMENT ON COLUMN mirror.servicetitan_technicians.team IS 'team';
COMMENT ON COLUMN mirror.servicetitan_technicians.active IS 'active';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_technicians', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_business_units (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    official_name text,
    trade text,
    division text,
    currency text,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_business_units IS 'ServiceTitan: business units';
COMMENT ON COLUMN mirror.servicetitan_business_units.name IS 'name';
COMMENT ON COLUMN mirror.servicetitan_business_units.official_name IS 'officialName';
COMMENT ON COLUMN mirror.servicetitan_business_units.trade IS 'trade.name';
COMMENT ON COLUMN mirror.servicetitan_business_units.division IS 'division.name';
COMMENT ON COLUMN mirror.servicetitan_business_units.currency IS 'currency: the only currency code that ServiceTitan names';
COMMENT ON COLUMN mirror.servicetitan_business_units.active IS 'active';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_business_units', 'ServiceTitan');

CREATE TABLE mirror.servicetitan_job_types (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    active boolean,
    LIKE fieldmirror.ends_with,
    PRIMARY KEY (connection_id, id)
);
COMMENT ON TABLE mirror.servicetitan_job_types IS 'ServiceTitan: job types, the kinds of work';
COMMENT ON COLUMN mirror.servicetitan_job_types.name IS 'name';
COMMENT ON COLUMN mirror.servicetitan_job_types.active IS 'active';
CALL fieldmirror.describe_mirror_table('mirror.servicetitan_job_types', 'ServiceTitan');

DROP TABLE fieldmirror.ends_with;
CREATE INDEX servicetitan_jobs_updated ON mirror.servicetitan_jobs (source_updated_at);
CREATE INDEX servicetitan_bookings_updated ON mirror.servicetitan_bookings (source_updated_at);
CREATE INDEX servicetitan_appointments_job ON mirror.servicetitan_appointments (connection_id, job_id);
CREATE INDEX servicetitan_assignments_job ON mirror.servicetitan_appointment_assignments (connection_id, job_id);
CREATE INDEX servicetitan_canceled_job ON mirror.servicetitan_job_canceled_logs (connection_id, job_id);
CREATE INDEX servicetitan_customers_merged ON mirror.servicetitan_customers (connection_id)
    WHERE merged_to_id IS NOT NULL;
-- Customers are merged in ServiceTitan's own pages, one after the other, and can be merged in a circle.
CREATE VIEW mirror.servicetitan_survivors AS
WITH RECURSIVE steps AS (
    SELECT connection_id, id, merged_to_id AS survivor_id, ARRAY[id] AS passed
    FROM mirror.servicetitan_customers WHERE merged_to_id IS NOT NULL
    UNION ALL
    SELECT s.connection_id, s.id, c.merged_to_id, s.passed || s.survivor_id
    FROM steps s
    JOIN mirror.servicetitan_customers c ON c.connection_id = s.connection_id AND c.id = s.survivor_id
    WHERE c.merged_to_id IS NOT NULL AND s.survivor_id <> ALL (s.passed) AND cardinality(s.passed) < 50
)
SELECT s.connection_id, s.id, s.survivor_id
FROM steps s
WHERE s.survivor_id <> ALL (s.passed) AND NOT EXISTS (
    SELECT FROM mirror.servicetitan_customers c
    WHERE c.connection_id = s.connection_id AND c.id = s.survivor_id AND c.merged_to_id IS NOT NULL);
COMMENT ON VIEW mirror.servicetitan_survivors IS 'ServiceTitan: who goes on for a customer that was merged, at the end of the chain; customers merged in a circle are not in it';
COMMENT ON COLUMN mirror.servicetitan_survivors.connection_id IS 'mirror.connections.id';
COMMENT ON COLUMN mirror.servicetitan_survivors.id IS 'The customer that was merged: mirror.servicetitan_customers.id';
COMMENT ON COLUMN mirror.servicetitan_survivors.survivor_id IS 'The customer that goes on';

CREATE FUNCTION fieldmirror.servicetitan_address(street text, unit text, city text, state text, zip text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN nullif(concat_ws(', ', nullif(street, ''), nullif(unit, ''), nullif(city, ''),
    nullif(concat_ws(' ', nullif(state, ''), nullif(zip, '')), '')), '');

-- A job has no time of its own: it begins with its first appointment that is still there and ends with its last.
CREATE VIEW fieldmirror.servicetitan_as_jobs AS
SELECT
    j.connection_id,
    j.id,
    j.source_created_at AS created_at,
    j.source_updated_at AS updated_at,
    j.deleted_at,
    j.synced_at,
    j.job_number AS number,
    t.name AS title,
    CASE j.status
        WHEN 'Scheduled' THEN CASE WHEN j.appointment_count = 0 THEN 'unscheduled' ELSE 'scheduled' END
        WHEN 'Dispatched' THEN 'scheduled'
        WHEN 'InProgress' THEN 'in_progress'
        -- Begun, and waiting for parts or people.
        WHEN 'Hold' THEN 'in_progress'
        WHEN 'Completed' THEN 'completed'
        WHEN 'Canceled' THEN 'cancelled'
        ELSE 'other'
    END AS status,
    j.status AS provider_status,
    coalesce(s.survivor_id, j.customer_id) AS customer_id,
    coalesce(p.name, m.name) AS customer_name,
    fieldmirror.servicetitan_address(l.street, l.unit, l.city, l.state, l.zip) AS address,
    a.starts_at AS scheduled_start,
    a.ends_at AS scheduled_end,
    NULL::timestamptz AS started_at,
    j.completed_at,
    CASE WHEN j.status = 'Canceled' THEN x.cancelled_at END AS cancelled_at,
    j.total AS total_amount,
    NULL::numeric AS outstanding_amount,
    w.names AS assigned_to,
    NULL::text AS url,
    j.raw
FROM mirror.servicetitan_jobs j
LEFT JOIN mirror.servicetitan_job_types t ON t.connection_id = j.connection_id AND t.id = j.job_type_id
LEFT JOIN mirror.servicetitan_survivors s ON s.connection_id = j.connection_id AND s.id = j.customer_id
LEFT JOIN mirror.servicetitan_customers m ON m.connection_id = j.connection_id AND m.id = j.customer_id
LEFT JOIN mirror.servicetitan_customers p ON p.connection_id = j.connection_id AND p.id = s.survivor_id
LEFT JOIN mirror.servicetitan_locations l ON l.connection_id = j.connection_id AND l.id = j.location_id
LEFT JOIN LATERAL (
    SELECT min(starts_at) AS starts_at, max(ends_at) AS ends_at FROM mirror.servicetitan_appointments
    WHERE connection_id = j.connection_id AND job_id = j.id AND deleted_at IS NULL
) a ON true
LEFT JOIN LATERAL (
    SELECT max(source_created_at) AS cancelled_at FROM mirror.servicetitan_job_canceled_logs
    WHERE connection_id = j.connection_id AND job_id = j.id AND deleted_at IS NULL
) x ON true
LEFT JOIN LATERAL (
    SELECT array_agg(DISTINCT coalesce(h.name, g.technician_name)) AS names
    FROM mirror.servicetitan_appointment_assignments g
    LEFT JOIN mirror.servicetitan_technicians h ON h.connection_id = g.connection_id AND h.id = g.technician_id
    LEFT JOIN mirror.servicetitan_appointments v ON v.connection_id = g.connection_id AND v.id = g.appointment_id
    WHERE g.connection_id = j.connection_id AND g.job_id = j.id AND g.deleted_at IS NULL AND v.deleted_at IS NULL
      AND coalesce(h.name, g.technician_name) IS NOT NULL
) w ON true;

CREATE VIEW fieldmirror.servicetitan_as_bookings AS
SELECT
    b.connection_id,
    b.id,
    b.source_created_at AS created_at,
    b.source_updated_at AS updated_at,
    b.deleted_at,
    b.synced_at,
    b.summary AS subject,
    CASE b.status
        WHEN 'New' THEN 'requested'
        WHEN 'Accepted' THEN 'scheduled'
        WHEN 'Converted' THEN 'converted'
        WHEN 'Dismissed' THEN 'dismissed'
        ELSE 'other'
    END AS status,
    b.status AS provider_status,
    b.name AS customer_name,
    NULL::text AS customer_email,
    NULL::text AS customer_phone,
    b.starts_at,
    NULL::timestamptz AS ends_at,
    c.facts ->> 'timezone' AS timezone,
    NULL::text AS owner_id,
    NULL::text AS owner_name,
    fieldmirror.servicetitan_address(b.street, b.unit, b.city, b.state, b.zip) AS location,
    b.job_id,
    NULL::timestamptz AS cancelled_at,
    NULL::text AS cancel_reason,
    NULL::text AS url,
    b.raw
FROM mirror.servicetitan_bookings b
JOIN fieldmirror.connections c ON c.id = b.connection_id;

CALL fieldmirror.make_unified_views();
