ALTER TABLE fieldmirror.daemons DROP COLUMN spill_fault;
ALTER TABLE fieldmirror.daemons DROP COLUMN spills;
ALTER TABLE fieldmirror.refresh_attempts DROP COLUMN spills;
