-- What is deleted by age, or looked for by age at every tick, is found without reading everything.
CREATE INDEX sync_runs_ended ON fieldmirror.sync_runs (ended_at) WHERE ended_at IS NOT NULL;
-- A turn looks for what a dead one left open.
CREATE INDEX sync_runs_open ON fieldmirror.sync_runs (connection_id) WHERE ended_at IS NULL;
CREATE INDEX verifications_started ON fieldmirror.verifications (started_at);
CREATE INDEX drift_last_seen ON mirror.drift (last_seen_at);
CREATE INDEX authorizations_expiry ON fieldmirror.authorizations (expires_at) WHERE closed_at IS NULL;
CREATE INDEX authorization_attempts_expiry ON fieldmirror.authorization_attempts (expires_at);
