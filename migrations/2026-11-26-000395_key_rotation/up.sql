-- The rotation of the vault key: a request that concerns no connection, and what tells when an old key may go.

-- One kind concerns no connection, and all others do. New kinds come with new programs: their words are not listed here.
ALTER TABLE fieldmirror.requests ALTER COLUMN connection_id DROP NOT NULL;
ALTER TABLE fieldmirror.requests DROP CONSTRAINT requests_kind_check;
ALTER TABLE fieldmirror.requests ADD CONSTRAINT requests_kind_check CHECK (kind ~ '^[a-z][a-z0-9_]{0,62}$');
ALTER TABLE fieldmirror.requests ADD CONSTRAINT requests_subject
    CHECK ((connection_id IS NULL) = (kind = 'rotate_key'));
-- The vault key whose public half `sealed` was sealed to; null where none is, or that was not noted.
ALTER TABLE fieldmirror.requests ADD COLUMN sealed_to text;

-- The vault key that a daemon seals with, and all that it opens with; null for a program that does not say.
ALTER TABLE fieldmirror.daemons ADD COLUMN seals_with text;
ALTER TABLE fieldmirror.daemons ADD COLUMN opens_with text[];
-- The keys that its spills are sealed with; null before it has looked.
ALTER TABLE fieldmirror.daemons ADD COLUMN spill_keys text[];
