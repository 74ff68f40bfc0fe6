-- What alerts have to know about daemons: since when one has been at work without a gap, and which one an alert program
-- failed for.

-- Since when it has been seen without a gap: a daemon that was suspended, or could not reach us, has to catch up first.
ALTER TABLE fieldmirror.daemons ADD COLUMN steady_since timestamptz NOT NULL DEFAULT now();
UPDATE fieldmirror.daemons SET steady_since = started_at;

-- The daemon whose program did not take the alert. No foreign key: a daemon that stops takes its row along.
ALTER TABLE fieldmirror.alerts ADD COLUMN failed_by uuid;
