-- By how many milliseconds our clock ran ahead of the provider's, at the most that the open walk has seen: what a walk
-- covers counts from its beginning, and the run that closes it may have begun long after.
ALTER TABLE fieldmirror.walks ADD COLUMN ahead_ms bigint NOT NULL DEFAULT 0;
