ALTER TABLE fieldmirror.daemons DROP COLUMN spill_keys, DROP COLUMN opens_with, DROP COLUMN seals_with;
ALTER TABLE fieldmirror.requests DROP COLUMN sealed_to;
DELETE FROM fieldmirror.requests WHERE connection_id IS NULL;
ALTER TABLE fieldmirror.requests DROP CONSTRAINT requests_subject;
ALTER TABLE fieldmirror.requests DROP CONSTRAINT requests_kind_check;
ALTER TABLE fieldmirror.requests ADD CONSTRAINT requests_kind_check
    CHECK (kind IN ('connect', 'callback', 'refresh', 'sync', 'verify', 'disconnect'));
ALTER TABLE fieldmirror.requests ALTER COLUMN connection_id SET NOT NULL;
