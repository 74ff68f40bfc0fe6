ALTER TABLE fieldmirror.rate_budget DROP COLUMN touched_at;
