-- Where the reply to an open refresh may be found when its daemon has died.

-- The folder of spills that the refresher writes to; null when it has none. Daemons that share the folder share the value.
ALTER TABLE fieldmirror.refresh_attempts ADD COLUMN spills uuid;
-- The same of a daemon, and what is wrong with it; null when nothing is.
ALTER TABLE fieldmirror.daemons ADD COLUMN spills uuid;
ALTER TABLE fieldmirror.daemons ADD COLUMN spill_fault text;
