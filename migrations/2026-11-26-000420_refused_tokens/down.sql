ALTER TABLE fieldmirror.tokens DROP COLUMN refused_at;
