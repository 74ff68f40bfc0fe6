DROP VIEW mirror.jobs;
DROP VIEW fieldmirror.jobber_as_jobs;
CALL fieldmirror.make_unified_views();
DROP TABLE mirror.jobber_clients;
DROP TABLE mirror.jobber_visits;
DROP TABLE mirror.jobber_jobs;
