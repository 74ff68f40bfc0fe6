ALTER TABLE fieldmirror.walks DROP COLUMN closed_ahead_ms;
ALTER TABLE fieldmirror.walks DROP COLUMN unread;
