-- Pages of the classic product: bookings name them by id alone.
CREATE TABLE mirror.oncehub_booking_pages (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    label text,
    url text,
    active boolean,
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
COMMENT ON TABLE mirror.oncehub_booking_pages IS 'Booking pages of OnceHub''s classic product';
COMMENT ON COLUMN mirror.oncehub_booking_pages.name IS 'Name among those who work with it';
COMMENT ON COLUMN mirror.oncehub_booking_pages.label IS 'Name that customers see';
COMMENT ON COLUMN mirror.oncehub_booking_pages.url IS 'Where customers book';
COMMENT ON COLUMN mirror.oncehub_booking_pages.active IS 'Whether customers can book';
COMMENT ON COLUMN mirror.oncehub_booking_pages.timezone IS 'Time zone, by its IANA name';
CALL fieldmirror.describe_mirror_table('mirror.oncehub_booking_pages', 'OnceHub');

CREATE TABLE mirror.oncehub_master_pages (
    connection_id bigint NOT NULL,
    id text NOT NULL,
    name text,
    label text,
    url text,
    active boolean,
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
COMMENT ON TABLE mirror.oncehub_master_pages IS 'Master pages of OnceHub''s classic product: each offers several booking pages';
COMMENT ON COLUMN mirror.oncehub_master_pages.name IS 'Name among those who work with it';
COMMENT ON COLUMN mirror.oncehub_master_pages.label IS 'Name that customers see';
COMMENT ON COLUMN mirror.oncehub_master_pages.url IS 'Where customers book';
COMMENT ON COLUMN mirror.oncehub_master_pages.active IS 'Whether customers can book';
CALL fieldmirror.describe_mirror_table('mirror.oncehub_master_pages', 'OnceHub');

CREATE OR REPLACE VIEW fieldmirror.oncehub_as_bookings AS
SELECT
    b.connection_id,
    b.id,
    b.source_created_at AS created_at,
    b.source_updated_at AS updated_at,
    b.deleted_at,
    b.synced_at,
    coalesce(b.subject, c.subject, c.name, e.name, p.label, p.name, m.label, m.name) AS subject,
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
LEFT JOIN mirror.oncehub_event_types e ON e.connection_id = b.connection_id AND e.id = b.event_type_id
LEFT JOIN mirror.oncehub_booking_pages p ON p.connection_id = b.connection_id AND p.id = b.booking_page_id
LEFT JOIN mirror.oncehub_master_pages m ON m.connection_id = b.connection_id AND m.id = b.master_page_id;
