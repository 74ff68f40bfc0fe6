DROP INDEX fieldmirror.audit_log_at;
DROP INDEX fieldmirror.authorizations_closed;
DROP INDEX fieldmirror.requests_done;
