DROP INDEX fieldmirror.authorization_attempts_expiry;
DROP INDEX fieldmirror.authorizations_expiry;
DROP INDEX mirror.drift_last_seen;
DROP INDEX fieldmirror.verifications_started;
DROP INDEX fieldmirror.sync_runs_open;
DROP INDEX fieldmirror.sync_runs_ended;
