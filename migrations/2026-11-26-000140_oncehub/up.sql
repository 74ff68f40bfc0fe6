-- OnceHub's tables, and its share of the unified view of bookings.

CREATE TABLE mirror.oncehub_bookings (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    tracking_id text,
    subject text,
    status text,
    in_trash boolean,
    starting_time timestamptz,
    duration_minutes bigint,
    customer_timezone text,
    customer_name text,
    customer_email text,
    customer_phone text,
    customer_mobile_phone text,
    owner_id text,
    contact_id text,
    booking_calendar_id text,
    booking_page_id text,
    master_page_id text,
    event_type_id text,
    location_description text,
    rescheduled_booking_id text,
    cancel_reason text,
    cancel_actioned_by text,
    attendees text[],
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
CREATE INDEX oncehub_bookings_updated ON mirror.oncehub_bookings (source_updated_at);
COMMENT ON TABLE mirror.oncehub_bookings IS 'OnceHub bookings, of booking calendars and of the classic booking pages';
COMMENT ON COLUMN mirror.oncehub_bookings.tracking_id IS 'The number that people are told';
COMMENT ON COLUMN mirror.oncehub_bookings.subject IS 'What it is about';
COMMENT ON COLUMN mirror.oncehub_bookings.status IS 'requested, scheduled, rescheduled, completed, canceled, no_show, or what OnceHub adds';
COMMENT ON COLUMN mirror.oncehub_bookings.in_trash IS 'Moved to the trash: restorable for 30 days, and the meeting is not cancelled by it';
COMMENT ON COLUMN mirror.oncehub_bookings.starting_time IS 'When it begins; it ends duration_minutes later';
COMMENT ON COLUMN mirror.oncehub_bookings.duration_minutes IS 'How long it takes';
COMMENT ON COLUMN mirror.oncehub_bookings.customer_timezone IS 'The customer''s time zone, by its IANA name';
COMMENT ON COLUMN mirror.oncehub_bookings.customer_name IS 'form_submission.name';
COMMENT ON COLUMN mirror.oncehub_bookings.customer_email IS 'form_submission.email';
COMMENT ON COLUMN mirror.oncehub_bookings.customer_phone IS 'form_submission.phone';
COMMENT ON COLUMN mirror.oncehub_bookings.customer_mobile_phone IS 'form_submission.mobile_phone';
COMMENT ON COLUMN mirror.oncehub_bookings.owner_id IS 'Who accepted it first; a reassignment does not change that: mirror.oncehub_users.id';
COMMENT ON COLUMN mirror.oncehub_bookings.contact_id IS 'The contact';
COMMENT ON COLUMN mirror.oncehub_bookings.booking_calendar_id IS 'mirror.oncehub_booking_calendars.id; null in the classic product';
COMMENT ON COLUMN mirror.oncehub_bookings.booking_page_id IS 'The booking page of the classic product';
COMMENT ON COLUMN mirror.oncehub_bookings.master_page_id IS 'The master page of the classic product';
COMMENT ON COLUMN mirror.oncehub_bookings.event_type_id IS 'mirror.oncehub_event_types.id; null but in the classic product';
COMMENT ON COLUMN mirror.oncehub_bookings.location_description IS 'Where it takes place';
COMMENT ON COLUMN mirror.oncehub_bookings.rescheduled_booking_id IS 'The other booking of a reschedule; OnceHub does not say which came first';
COMMENT ON COLUMN mirror.oncehub_bookings.cancel_reason IS 'cancel_reschedule_information.reason';
COMMENT ON COLUMN mirror.oncehub_bookings.cancel_actioned_by IS 'cancel_reschedule_information.actioned_by: user or customer';
COMMENT ON COLUMN mirror.oncehub_bookings.attendees IS 'E-mail addresses of those who take part';
CALL fieldmirror.describe_mirror_table('mirror.oncehub_bookings', 'OnceHub');

CREATE TABLE mirror.oncehub_users (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    first_name text,
    last_name text,
    email text,
    status text,
    role_name text,
    timezone text,
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
COMMENT ON TABLE mirror.oncehub_users IS 'OnceHub users';
COMMENT ON COLUMN mirror.oncehub_users.first_name IS 'First name';
COMMENT ON COLUMN mirror.oncehub_users.last_name IS 'Last name';
COMMENT ON COLUMN mirror.oncehub_users.email IS 'E-mail address';
COMMENT ON COLUMN mirror.oncehub_users.status IS 'active or invited';
COMMENT ON COLUMN mirror.oncehub_users.role_name IS 'Account Owner, Administrator, Member or Team Manager';
COMMENT ON COLUMN mirror.oncehub_users.timezone IS 'Time zone, by its IANA name';
CALL fieldmirror.describe_mirror_table('mirror.oncehub_users', 'OnceHub');

CREATE TABLE mirror.oncehub_booking_calendars (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    subject text,
    host_id text,
    published boolean,
    duration_minutes bigint,
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
COMMENT ON TABLE mirror.oncehub_booking_calendars IS 'OnceHub booking calendars';
COMMENT ON COLUMN mirror.oncehub_booking_calendars.name IS 'Name';
COMMENT ON COLUMN mirror.oncehub_booking_calendars.subject IS 'Subject of the bookings made in it';
COMMENT ON COLUMN mirror.oncehub_booking_calendars.host_id IS 'Id of the user or team that hosts it';
COMMENT ON COLUMN mirror.oncehub_booking_calendars.published IS 'Whether customers can book';
COMMENT ON COLUMN mirror.oncehub_booking_calendars.duration_minutes IS 'How long a booking takes';
COMMENT ON COLUMN mirror.oncehub_booking_calendars.url IS 'Where customers book';
CALL fieldmirror.describe_mirror_table('mirror.oncehub_booking_calendars', 'OnceHub');

CREATE TABLE mirror.oncehub_event_types (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    description text,
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
COMMENT ON TABLE mirror.oncehub_event_types IS 'Event types of OnceHub''s classic product';
COMMENT ON COLUMN mirror.oncehub_event_types.name IS 'Name';
COMMENT ON COLUMN mirror.oncehub_event_types.description IS 'Description';
CALL fieldmirror.describe_mirror_table('mirror.oncehub_event_types', 'OnceHub');

CREATE VIEW fieldmirror.oncehub_as_bookings AS
SELECT
    b.connection_id,
    b.id,
    b.source_created_at AS created_at,
    b.source_updated_at AS updated_at,
    b.deleted_at,
    b.synced_at,
    coalesce(b.subject, c.subject, c.name, e.name) AS subject,
    CASE b.status
        WHEN 'requested' THEN 'requested'
        WHEN 'scheduled' THEN 'scheduled'
        WHEN 'rescheduled' THEN 'rescheduled'
        WHEN 'completed' THEN 'completed'
        WHEN 'canceled' THEN 'cancelled'
        WHEN 'no_show' THEN 'no_show'
        ELSE 'other'
    END AS status,
    b.status AS provider_status,
    b.customer_name,
    b.customer_email,
    coalesce(b.customer_mobile_phone, b.customer_phone) AS customer_phone,
    b.starting_time AS starts_at,
    b.starting_time + b.duration_minutes * interval '1 minute' AS ends_at,
    b.customer_timezone AS timezone,
    b.owner_id,
    coalesce(nullif(concat_ws(' ', u.first_name, u.last_name), ''), u.email) AS owner_name,
    b.location_description AS location,
    NULL::text AS job_id,
    -- OnceHub does not tell when a booking was cancelled.
    NULL::timestamptz AS cancelled_at,
    CASE WHEN b.status = 'canceled' THEN b.cancel_reason END AS cancel_reason,
    NULL::text AS url,
    b.raw
FROM mirror.oncehub_bookings b
LEFT JOIN mirror.oncehub_users u ON u.connection_id = b.connection_id AND u.id = b.owner_id
LEFT JOIN mirror.oncehub_booking_calendars c
    ON c.connection_id = b.connection_id AND c.id = b.booking_calendar_id
LEFT JOIN mirror.oncehub_event_types e ON e.connection_id = b.connection_id AND e.id = b.event_type_id;

CALL fieldmirror.make_unified_views();
