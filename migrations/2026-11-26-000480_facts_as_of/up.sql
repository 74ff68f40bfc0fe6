-- As of when the facts of the account are known: those that an open walk needs (none: as of its beginning), or those that
-- the last snapshot has taught.
ALTER TABLE fieldmirror.walks ADD COLUMN facts_as_of timestamptz;
UPDATE fieldmirror.walks SET facts_as_of = closed_started_at WHERE mode = 'snapshot';
