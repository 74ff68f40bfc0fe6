-- Turns in a row that answers without JSON have ended, beside those that 401 has ended; a page that was read ends both rows.
ALTER TABLE fieldmirror.walks ADD COLUMN unread integer NOT NULL DEFAULT 0;
-- By how much our clock ran ahead of the provider's in the walk that closed last: `ahead_ms` is of the one that is open.
ALTER TABLE fieldmirror.walks ADD COLUMN closed_ahead_ms bigint;
UPDATE fieldmirror.walks SET closed_ahead_ms = ahead_ms WHERE closed_started_at IS NOT NULL AND started_at IS NULL;

-- Tickets may lack values of properties that were listed only after they had been read: they are read again, once.
INSERT INTO fieldmirror.requests (id, connection_id, kind, args)
SELECT gen_random_uuid(), c.id, 'sync', '{"streams": ["tickets"], "full": true, "own": true}'
FROM fieldmirror.connections c
WHERE c.provider = 'hubspot' AND c.state = 'connected'
  AND EXISTS (SELECT FROM fieldmirror.stream_state s
              WHERE s.connection_id = c.id AND s.stream = 'tickets' AND s.backfill_done);
