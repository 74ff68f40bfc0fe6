ALTER TABLE fieldmirror.authorizations DROP COLUMN replaced_at;
