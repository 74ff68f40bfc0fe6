-- What has ended long ago is deleted a little at a time: it has to be found without reading everything.
CREATE INDEX requests_done ON fieldmirror.requests (done_at) WHERE done_at IS NOT NULL;
CREATE INDEX authorizations_closed ON fieldmirror.authorizations (closed_at) WHERE closed_at IS NOT NULL;
CREATE INDEX audit_log_at ON fieldmirror.audit_log (at);
