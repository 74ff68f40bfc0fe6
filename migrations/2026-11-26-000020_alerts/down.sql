DROP TABLE fieldmirror.alerts;
ALTER TABLE fieldmirror.stream_state DROP COLUMN failure_kind;
ALTER TABLE fieldmirror.tokens DROP COLUMN failure_kind;
