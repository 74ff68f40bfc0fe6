ALTER TABLE fieldmirror.walks DROP COLUMN refusals;
