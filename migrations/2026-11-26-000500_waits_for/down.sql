ALTER TABLE fieldmirror.stream_state DROP COLUMN waits_for;
