-- No list has shown the record, and asking for it proved nothing: it stays, and the walk does not count as complete.
ALTER TABLE fieldmirror.walk_seen ADD COLUMN unproven boolean NOT NULL DEFAULT false;
