//! From what is on record to what it comes to. Pure: it judges the evidence by the evidence's own clock.
//!
//! The causes come in the order in which they cause each other: no daemon, no consent, no token, no job, no stream.

use chrono::{DateTime, Utc};

use crate::cli::status::health;
use crate::db::connections::ConnectionState;
use crate::db::evidence::{AuditLine, Evidence};
use crate::db::queue::JobState;
use crate::domain::spec::ProviderSpec;

/// Lines of evidence shown for one cause.
const PROOFS_MAX: usize = 6;

/// Why something is as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    /// A word for programs.
    pub(super) kind: &'static str,
    /// Something is wrong, rather than waiting its turn.
    pub(super) ill: bool,
    pub(super) stream: Option<String>,
    /// A sentence without a full stop.
    pub(super) summary: String,
    pub(super) since: Option<DateTime<Utc>>,
    /// When it is tried again, or passes.
    pub(super) until: Option<DateTime<Utc>>,
    /// The command that helps.
    pub(super) next: Option<String>,
    pub(super) proofs: Vec<Proof>,
}

/// A decision that was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) at: Option<DateTime<Utc>>,
    /// The table that holds it.
    pub(super) source: &'static str,
    pub(super) text: String,
}

impl Cause {
    pub(super) fn new(kind: &'static str, ill: bool, summary: impl Into<String>) -> Self {
        let summary = summary.into();
        Self { kind, ill, summary, stream: None, since: None, until: None, next: None, proofs: Vec::new() }
    }
}

impl Proof {
    pub(super) fn new(at: Option<DateTime<Utc>>, source: &'static str, text: impl Into<String>) -> Self {
        Self { at, source, text: text.into() }
    }
}

/// The evidence, and what is known without it.
pub(super) struct View<'a> {
    pub(super) evidence: &'a Evidence,
    pub(super) spec: Option<&'static ProviderSpec>,
    /// The stream that is asked about.
    pub(super) stream: Option<&'a str>,
}

impl View<'_> {
    pub(super) fn causes(&self) -> Vec<Cause> {
        let mut causes = Vec::new();
        causes.extend(self.no_daemon());
        causes.extend(self.connection());
        causes.extend(self.token());
        causes.extend(self.parked_jobs());
        causes.extend(self.provider_alerts());
        causes.extend(self.streams());
        causes.extend(self.requests());
        for cause in &mut causes {
            cause.proofs.truncate(PROOFS_MAX);
        }
        causes
    }

    pub(super) fn title(&self) -> &str {
        self.spec.map_or(self.evidence.connection.provider.as_str(), |spec| spec.title)
    }

    pub(super) fn later(&self, at: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
        at.filter(|at| *at > self.evidence.as_of)
    }

    fn no_daemon(&self) -> Option<Cause> {
        let cause = Cause::new("no_daemon", true, "no daemon lives: nothing is read or refreshed");
        let next = Some("fieldmirror run".to_owned());
        let proofs = vec![Proof::new(None, "daemons", "none was seen within 15 s")];
        (!self.evidence.daemon_lives).then_some(Cause { next, proofs, ..cause })
    }

    fn connection(&self) -> Option<Cause> {
        let connection = &self.evidence.connection;
        let reason = connection.reason.as_deref().unwrap_or("no reason is on record");
        let token = self.evidence.token.as_ref();
        let cause = match connection.state {
            ConnectionState::Connected => return None,
            ConnectionState::NeedsReauth => Cause {
                until: self.later(token.and_then(|token| token.refresh_due_at)),
                ..Cause::new("token_refused", true, format!("{} refused the token: {reason}", self.title()))
            },
            ConnectionState::Failed => {
                let way_out = health::way_out(connection);
                Cause::new("connect_failed", true, format!("it could not be connected: {reason}{way_out}"))
            }
            ConnectionState::AwaitingConsent => {
                Cause::new("awaiting_consent", false, "the account's owner has not consented yet")
            }
            ConnectionState::Verifying => {
                Cause::new("verifying", false, "its credentials have not been tried yet")
            }
            ConnectionState::Disconnected => {
                Cause::new("disconnected", false, "it was disconnected, which keeps its rows")
            }
        };
        let lines = self.since_success(|_| true);
        let since = lines.iter().rev().find(|line| line.outcome != "done").map(|line| line.at);
        Some(Cause {
            since: since.or_else(|| lines.last().map(|line| line.at)),
            next: health::anew_unless_over(connection),
            proofs: lines.into_iter().map(audit_proof).collect(),
            ..cause
        })
    }

    /// Lines of the audit log back to the last that went well, that one included, newest first.
    fn since_success(&self, about: impl Fn(&AuditLine) -> bool) -> Vec<&AuditLine> {
        let mut lines = Vec::new();
        for line in self.evidence.audit.iter().filter(|line| about(line)) {
            lines.push(line);
            if line.outcome == "done" {
                break;
            }
        }
        lines
    }

    /// A token whose refresh fails, though its connection stands.
    fn token(&self) -> Option<Cause> {
        let evidence = self.evidence;
        let token = evidence.token.as_ref()?;
        if evidence.connection.state != ConnectionState::Connected {
            return None;
        }
        let kind = evidence.token_failure_kind.as_deref();
        let unusable = kind == Some("our_bug");
        if token.failures == 0 && !unusable {
            return self.refresh_waits();
        }
        let said = token.last_error.as_deref().unwrap_or("no reason is on record");
        let anew = health::anew_unless_over(&evidence.connection).unwrap_or_default();
        let (word, summary, next) = match kind {
            Some("misconfigured") => {
                let reason = evidence.connection.reason.as_deref().unwrap_or(said);
                (
                    "configuration_fault",
                    format!("our configuration is at fault: {reason}"),
                    "fieldmirror doctor",
                )
            }
            Some("our_bug") => ("token_unusable", format!("the token cannot be used: {said}"), anew.as_str()),
            Some("throttled") => ("token_quota", format!("the token endpoint is at its limit: {said}"), ""),
            _ => ("refresh_failing", format!("the token could not be refreshed: {said}"), ""),
        };
        let lines = self.since_success(|line| ["refresh", "probe", "open"].contains(&line.event.as_str()));
        let mut proofs = vec![Proof::new(
            token.last_refresh_at,
            "tokens",
            format!("the last success; {} failures in a row since", token.failures),
        )];
        proofs.extend(lines.iter().map(|line| audit_proof(line)));
        Some(Cause {
            since: lines.iter().rev().find(|line| line.outcome != "done").map(|line| line.at),
            until: self.later(token.refresh_due_at),
            next: (!next.is_empty()).then(|| next.to_owned()),
            proofs,
            ..Cause::new(word, true, summary)
        })
    }

    /// A refresh that is due and has not ended yet.
    fn refresh_waits(&self) -> Option<Cause> {
        let evidence = self.evidence;
        let due = evidence.token.as_ref()?.refresh_due_at.filter(|due| *due <= evidence.as_of)?;
        if let Some(open) = evidence.refresh.as_ref().filter(|open| open.blocked_until > evidence.as_of) {
            let summary = format!("a refresh of its token is under way on `{}`", open.host);
            let proofs = vec![Proof::new(
                Some(open.started_at),
                "refresh_attempts",
                format!("opened by `{}`", open.host),
            )];
            let until = Some(open.blocked_until);
            return Some(Cause {
                since: Some(due),
                until,
                proofs,
                ..Cause::new("refresh_open", false, summary)
            });
        }
        let until = self.later(evidence.token_permits_at)?;
        let summary = format!(
            "its token is due for a refresh, and the token endpoint of {} is at its limit",
            self.title()
        );
        let proofs = vec![Proof::new(Some(until), "rate_budget", "permits are taken until then")];
        Some(Cause {
            since: Some(due),
            until: Some(until),
            proofs,
            ..Cause::new("token_quota", false, summary)
        })
    }

    fn parked_jobs(&self) -> Vec<Cause> {
        let parked = self.evidence.jobs.iter().filter(|job| job.state == JobState::Parked);
        let cause = parked.map(|job| {
            let summary = format!(
                "job {} ({}) is parked: it crashed {} times in a row and is left alone",
                job.id, job.kind, job.crashes
            );
            let last = job.last_error.as_deref().unwrap_or("no error is on record").replace('\n', " ");
            Cause {
                since: self.alert_of(|alert| alert.of.job_id == Some(job.id.0)).or(job.started_at),
                next: Some(format!("fieldmirror jobs retry {}", job.id)),
                proofs: vec![
                    Proof::new(job.started_at, "jobs", format!("attempt {} began", job.attempt)),
                    Proof::new(None, "jobs", format!("the last crash: {last}")),
                ],
                ..Cause::new("job_parked", true, summary)
            }
        });
        cause.collect()
    }

    /// When the open alert of that description was opened.
    pub(super) fn alert_of(
        &self,
        about: impl Fn(&crate::db::alerts::Alert) -> bool,
    ) -> Option<DateTime<Utc>> {
        self.evidence.alerts.iter().find(|alert| about(alert)).map(|alert| alert.opened_at)
    }

    /// What stops the provider as a whole, where this connection's own token does not say so.
    fn provider_alerts(&self) -> Vec<Cause> {
        let own = self.evidence.token_failure_kind.as_deref() == Some("misconfigured");
        let alerts = self.evidence.alerts.iter().filter(|alert| alert.of.connection_id.is_none() && !own);
        let cause = alerts.map(|alert| Cause {
            since: Some(alert.opened_at),
            next: Some("fieldmirror doctor".to_owned()),
            proofs: vec![Proof::new(Some(alert.opened_at), "alerts", alert.of.reason.clone())],
            ..Cause::new("configuration_fault", true, "the provider refuses our client for other accounts")
        });
        cause.collect()
    }

    /// What was asked for and is not done, or did not work.
    fn requests(&self) -> Vec<Cause> {
        let of = |request: &crate::db::evidence::RequestEvidence| match request.done_at {
            None => Cause {
                since: Some(request.requested_at),
                proofs: vec![Proof::new(Some(request.requested_at), "requests", "asked for, still open")],
                ..Cause::new("request_open", false, format!("a request to {} is under way", request.kind))
            },
            Some(done_at) => {
                let outcome = request.outcome.as_deref().unwrap_or("failed");
                let message = request.message.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
                Cause {
                    since: Some(done_at),
                    proofs: vec![Proof::new(Some(done_at), "requests", format!("{outcome}{message}"))],
                    ..Cause::new(
                        "request_ended",
                        false,
                        format!("the last request to {} ended as {outcome}", request.kind),
                    )
                }
            }
        };
        self.evidence.requests.iter().map(of).collect()
    }
}

fn audit_proof(line: &AuditLine) -> Proof {
    let detail = line.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    Proof::new(Some(line.at), "audit_log", format!("{} {}{detail}", line.event, line.outcome))
}
