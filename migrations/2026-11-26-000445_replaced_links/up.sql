-- A link that merely expired may still lead to a connection, where its consent was given in time and is kept.
ALTER TABLE fieldmirror.authorizations ADD COLUMN replaced_at timestamptz;
UPDATE fieldmirror.authorizations SET replaced_at = closed_at;
