-- A clock that is set back must not leave permits taken until a time that is far ahead.
ALTER TABLE fieldmirror.rate_budget ADD COLUMN touched_at timestamptz NOT NULL DEFAULT clock_timestamp();
