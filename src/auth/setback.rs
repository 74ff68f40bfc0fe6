//! What a failed refresh does: it is counted, has its pause, and only the provider's verdict makes a grant dead; and not
//! even that when it falls on too many accounts at once.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{error, warn};

use super::policy::{self, CLIENT_STOP, DEAD_RETRY, RETRY_FIRST, RETRY_MAX};
use super::refresh::{Refreshed, client_of};
use super::renewal::{Fault, Work, note};
use super::{Auth, Standing, permit_scope};
use crate::db::connections::{self, ConnectionState};
use crate::db::refresh_attempts::RefreshAttempt;
use crate::db::tokens::{self, Setback, Token};
use crate::db::{DbError, PgConnection, audit, rate_budget};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::spec::GrantKind;
use crate::domain::time::delta;
use crate::http::retry;
use crate::providers::Provider;
use uuid::Uuid;

/// What a setback has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aftermath {
    /// The token had moved on.
    Overtaken,
    /// It is tried again later.
    Counted,
    /// The connection needs a new consent.
    Dead,
    /// The provider says dead, but of too many at once to be believed.
    Spared,
}

const MASS_REASON: &str = "several accounts died within a short time, which is taken for a fault of our client at the \
     provider: check its id, secret and registration; no account is marked dead";

/// What taking deaths back came to.
struct Acquitted {
    count: usize,
    /// No account of the client has fared well since.
    silent: bool,
}

/// A failure, ready to be written down.
struct Report {
    event: &'static str,
    setback: Setback,
    /// The provider whose client may be to blame; `None`: the client is the account's own.
    client_of: Option<&'static str>,
    spared_until: DateTime<Utc>,
    daemon: Uuid,
}

impl Work<'_> {
    /// Writes a failure down, and returns it. A token that has moved on meanwhile is not touched by it.
    pub(super) async fn set_back(&self, fault: Fault, event: &'static str) -> Result<Refreshed, Failure> {
        let aftermath = self.record(&fault, event).await?;
        if aftermath == Aftermath::Overtaken {
            return Ok(Refreshed::Renewed);
        }
        if let Some(client) = self.shared_client() {
            self.look_at_client(&fault, aftermath, client).await?;
        }
        if let (FailureKind::Throttled { .. }, Some(wait)) = (&fault.failure.kind, fault.wait) {
            self.hold_back(wait).await?;
        }
        let failure = match aftermath {
            Aftermath::Spared => Failure::new(FailureKind::Misconfigured, MASS_REASON),
            _ => fault.failure,
        };
        self.tell(&failure);
        Err(failure)
    }

    /// A client that is refused, or that too many accounts die of, is not asked again at once for another account.
    async fn look_at_client(
        &self,
        fault: &Fault,
        aftermath: Aftermath,
        client: String,
    ) -> Result<(), Failure> {
        let mut stop = fault.failure.kind == FailureKind::Misconfigured;
        if fault.dead
            && let Some(silent) = self.auth.are_too_many(self.provider, aftermath).await?
        {
            stop = silent;
        }
        if stop {
            self.auth.stop_client(client).await?;
        }
        Ok(())
    }

    async fn record(&self, fault: &Fault, event: &'static str) -> Result<Aftermath, Failure> {
        let now = self.auth.clock.now();
        let report = Report {
            event,
            setback: Setback {
                last_error: fault.failure.message.clone(),
                kind: fault.failure.kind.label(),
                refresh_due_at: self.retry_at(fault, now),
                is_dead: fault.dead,
            },
            client_of: (self.connection.grant == GrantKind::AuthorizationCode)
                .then_some(self.provider.spec().name),
            spared_until: now + delta(RETRY_MAX),
            daemon: self.auth.daemon,
        };
        let attempt = self.attempt.clone();
        self.auth.transaction(move |conn| write_down(conn, &attempt, &report)).await
    }

    fn tell(&self, failure: &Failure) {
        if failure.kind == FailureKind::Misconfigured {
            error!(connection.id = self.connection.id.0, connection.name = self.connection.name,
                provider = self.provider.spec().name, failure.kind = failure.kind.label(), error = %failure,
                "Refreshing the token of `{}` failed: {failure}", self.connection.name);
        } else {
            warn!(connection.id = self.connection.id.0, connection.name = self.connection.name,
                provider = self.provider.spec().name, failure.kind = failure.kind.label(), error = %failure,
                "Refreshing the token of `{}` failed: {failure}", self.connection.name);
        }
    }

    fn retry_at(&self, fault: &Fault, now: DateTime<Utc>) -> DateTime<Utc> {
        if fault.dead {
            return now + delta(DEAD_RETRY);
        }
        let failures = u32::try_from(self.token.failures).unwrap_or(0).saturating_add(1);
        match fault.wait {
            Some(wait) => now + delta(wait.max(RETRY_FIRST)),
            None => policy::retry_at(now, retry::pause(failures, RETRY_FIRST, RETRY_MAX)),
        }
    }

    /// Nobody asks this endpoint for this client before `wait` has passed.
    async fn hold_back(&self, wait: Duration) -> Result<(), Failure> {
        let scope = permit_scope(self.provider, client_of(&self.connection, &self.settings.client_id));
        let bucket = self.provider.spec().token_bucket;
        self.auth.db(move |conn| rate_budget::refused(conn, &scope, &bucket, wait)).await
    }
}

impl Auth {
    /// The provider's API says that a grant has ended, such as by the account's owner: the connection needs a new
    /// consent. The token is kept and tried again as after any such verdict; one that has moved on since `generation` is
    /// not touched.
    ///
    /// # Errors
    /// When the database does not go along.
    pub async fn ended(&self, id: ConnectionId, generation: i64, why: &str) -> Result<(), Failure> {
        let Standing { connection, token } = self.standing(id).await?;
        let lives = |token: &Token| token.generation == generation && token.rejected_at.is_none();
        let Some(token) = token.filter(lives) else { return Ok(()) };
        let (provider, settings) = self.provider(&connection.provider)?;
        let now = self.clock.now();
        let setback = Setback {
            last_error: why.to_owned(),
            kind: FailureKind::NeedsReauth.label(),
            refresh_due_at: now + delta(DEAD_RETRY),
            is_dead: true,
        };
        let shares_client = connection.grant == GrantKind::AuthorizationCode;
        let report = Report {
            event: "request",
            setback,
            client_of: shares_client.then_some(provider.spec().name),
            spared_until: now + delta(RETRY_MAX),
            daemon: self.daemon,
        };
        // Which token it is about. No refresh was begun, so there is none to close.
        let (grant_id, daemon) = (token.grant_id, self.daemon);
        let about = RefreshAttempt { connection: id, grant_id, generation, daemon, started_at: now };
        let aftermath = self.transaction(move |conn| write_down(conn, &about, &report)).await?;
        if shares_client
            && aftermath != Aftermath::Overtaken
            && self.are_too_many(provider, aftermath).await? == Some(true)
        {
            self.stop_client(permit_scope(provider, client_of(&connection, &settings.client_id))).await?;
        }
        warn!(connection.id = %id, outcome = aftermath.word(), "The grant of `{}` has ended: {why}", connection.name);
        Ok(())
    }

    /// Whether there were too many deaths to be believed, and if so, whether no account of the client has fared well
    /// since. Takes those back that were marked before that was clear.
    async fn are_too_many(
        &self,
        provider: &'static dyn Provider,
        aftermath: Aftermath,
    ) -> Result<Option<bool>, Failure> {
        let Acquitted { count, silent } = self.acquit(provider).await?;
        if count == 0 && aftermath != Aftermath::Spared {
            return Ok(None);
        }
        error!(
            provider = provider.spec().name,
            error = MASS_REASON,
            "Many grants at {} were called dead: {MASS_REASON}",
            provider.spec().title
        );
        Ok(Some(silent))
    }

    async fn stop_client(&self, client: String) -> Result<(), Failure> {
        self.db(move |conn| rate_budget::stop(conn, &client, CLIENT_STOP)).await
    }

    /// Takes deaths back that turn out to be the client's fault, not the accounts'.
    async fn acquit(&self, provider: &'static dyn Provider) -> Result<Acquitted, Failure> {
        let name = provider.spec().name;
        let due = self.clock.now() + delta(RETRY_MAX);
        let daemon = self.daemon;
        self.transaction(move |conn| {
            let fates = tokens::fates(conn, name)?;
            let blamed = policy::blamed_on_client(&fates);
            let silent = policy::is_silent(&fates, &blamed);
            let ids: Vec<ConnectionId> = blamed.into_iter().collect();
            let acquitted = tokens::acquit(conn, &ids, MASS_REASON, due)?;
            for id in &acquitted {
                let (event, outcome, detail) = ("refresh", "acquitted", Some(MASS_REASON));
                let entry = audit::Entry { connection: Some(*id), event, outcome, detail, daemon };
                audit::write(conn, &entry)?;
            }
            Ok(Acquitted { count: acquitted.len(), silent })
        })
        .await
    }
}

fn write_down(
    conn: &mut PgConnection,
    attempt: &RefreshAttempt,
    report: &Report,
) -> Result<Aftermath, DbError> {
    let id = attempt.connection;
    let connection = connections::lock(conn, id)?;
    let message = report.setback.last_error.as_str();
    // The one re-read: what was refused may have been renewed by somebody else.
    let aftermath = if !tokens::set_back(conn, attempt, &report.setback)? {
        Aftermath::Overtaken
    } else if !report.setback.is_dead {
        Aftermath::Counted
    } else if is_clients_fault(conn, id, report.client_of)? {
        tokens::blame_client(conn, id, report.spared_until)?;
        Aftermath::Spared
    } else {
        // What it died of stays on record; later tries can only tell that it is dead.
        if connection.state != ConnectionState::NeedsReauth {
            connections::set_state(conn, id, ConnectionState::NeedsReauth, Some(message))?;
        }
        Aftermath::Dead
    };
    note(conn, attempt, report.event, aftermath.word(), Some(message), report.daemon)?;
    Ok(aftermath)
}

fn is_clients_fault(
    conn: &mut PgConnection,
    id: ConnectionId,
    provider: Option<&str>,
) -> Result<bool, DbError> {
    match provider {
        Some(provider) => Ok(policy::blamed_on_client(&tokens::fates(conn, provider)?).contains(&id)),
        None => Ok(false),
    }
}

impl Aftermath {
    /// The word in the audit log.
    fn word(self) -> &'static str {
        match self {
            Self::Overtaken => "overtaken",
            Self::Counted => "failed",
            Self::Dead => "dead",
            Self::Spared => "spared",
        }
    }
}
