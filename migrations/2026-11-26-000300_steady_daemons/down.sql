ALTER TABLE fieldmirror.alerts DROP COLUMN failed_by;
ALTER TABLE fieldmirror.daemons DROP COLUMN steady_since;
