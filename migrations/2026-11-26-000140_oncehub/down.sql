-- The unified views show the rest once they are made again.
DROP VIEW fieldmirror.oncehub_as_bookings CASCADE;
CALL fieldmirror.make_unified_views();
DROP TABLE mirror.oncehub_event_types, mirror.oncehub_booking_calendars, mirror.oncehub_users, mirror.oncehub_bookings;
