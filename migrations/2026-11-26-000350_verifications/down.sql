DROP TABLE fieldmirror.verifications;
DELETE FROM fieldmirror.requests WHERE kind = 'verify';
ALTER TABLE fieldmirror.requests DROP CONSTRAINT requests_kind_check;
ALTER TABLE fieldmirror.requests ADD CONSTRAINT requests_kind_check
    CHECK (kind IN ('connect', 'callback', 'refresh', 'sync', 'disconnect'));
