ALTER TABLE fieldmirror.walk_seen DROP COLUMN unproven;
