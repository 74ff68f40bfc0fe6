-- Turns in a row that 401 has ended although the token was good; a page that was read ends the row.
ALTER TABLE fieldmirror.walks ADD COLUMN refusals integer NOT NULL DEFAULT 0;
