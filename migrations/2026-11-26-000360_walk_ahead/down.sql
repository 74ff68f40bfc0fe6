ALTER TABLE fieldmirror.walks DROP COLUMN ahead_ms;
