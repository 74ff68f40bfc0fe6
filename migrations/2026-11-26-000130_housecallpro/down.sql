DROP VIEW mirror.jobs;
DROP VIEW fieldmirror.housecallpro_as_jobs;
CALL fieldmirror.make_unified_views();
DROP TABLE mirror.housecallpro_jobs, mirror.housecallpro_customers, mirror.housecallpro_employees,
    mirror.housecallpro_locations;
