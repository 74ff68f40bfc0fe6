DROP VIEW fieldmirror.servicetitan_as_jobs, fieldmirror.servicetitan_as_bookings CASCADE;
CALL fieldmirror.make_unified_views();
DROP FUNCTION fieldmirror.servicetitan_address;
DROP VIEW mirror.servicetitan_survivors;
DROP TABLE mirror.servicetitan_jobs, mirror.servicetitan_bookings, mirror.servicetitan_appointments,
    mirror.servicetitan_appointment_assignments, mirror.servicetitan_job_canceled_logs, mirror.servicetitan_customers,
    mirror.servicetitan_locations, mirror.servicetitan_technicians, mirror.servicetitan_business_units,
    mirror.servicetitan_job_types;
