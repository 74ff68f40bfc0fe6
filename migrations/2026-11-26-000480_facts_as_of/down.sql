ALTER TABLE fieldmirror.walks DROP COLUMN facts_as_of;
