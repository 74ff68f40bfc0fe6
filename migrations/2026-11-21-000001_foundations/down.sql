DROP SCHEMA mirror CASCADE;
DROP TABLE fieldmirror.audit_log, fieldmirror.rate_budget, fieldmirror.vault_keys, fieldmirror.daemons,
    fieldmirror.sync_runs, fieldmirror.walk_seen, fieldmirror.walks, fieldmirror.stream_state, fieldmirror.requests,
    fieldmirror.authorization_attempts, fieldmirror.authorizations, fieldmirror.refresh_attempts, fieldmirror.tokens,
    fieldmirror.secrets, fieldmirror.connections;
