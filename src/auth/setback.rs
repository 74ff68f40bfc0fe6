//! What a failed refresh does: it is counted, has its pause, and only the provider's verdict makes a grant dead; and not
//! even that when it falls on too many accounts at once.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{error, warn};

use super::policy::{self, CLIENT_STOP, DEAD_RETRY, RETRY_FIRST, RETRY_MAX};
use super::refresh::{Refreshed, client_of};
use super::renewal::{Fault, Work, note};
use super::{Auth, Standing, permit_scope};
use crate::config::ProviderSettings;
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::refresh_attempts::RefreshAttempt;
use crate::db::tokens::{self, Fate, Setback};
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

/// Which part of a provider says that a grant is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// Accounts share our client there.
    TokenEndpoint,
    /// Accounts share nothing there but the provider itself and what it knows our app by.
    Api,
    /// Nobody there was asked: we see that the grant cannot go on, and that says nothing of other accounts.
    Ours,
}

/// What may be to blame when many grants die at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Common {
    provider: &'static str,
    witness: Witness,
}

impl Common {
    /// `None`: the client is the account's own, or none was asked, and the death is the account's own.
    fn of(witness: Witness, provider: &'static dyn Provider, grant: GrantKind) -> Option<Self> {
        let shared = match witness {
            Witness::Api => true,
            Witness::TokenEndpoint => grant == GrantKind::AuthorizationCode,
            Witness::Ours => false,
        };
        shared.then_some(Self { provider: provider.spec().name, witness })
    }

    fn fates(self, conn: &mut PgConnection) -> Result<Vec<Fate>, DbError> {
        match self.witness {
            Witness::TokenEndpoint | Witness::Ours => tokens::fates(conn, self.provider),
            Witness::Api => tokens::fates_at_api(conn, self.provider),
        }
    }

    fn reason(self) -> &'static str {
        match self.witness {
            Witness::TokenEndpoint | Witness::Ours => MASS_REASON,
            Witness::Api => MASS_REFUSAL,
        }
    }
}

/// A grant that the API has ended.
pub(super) struct Condemned<'a> {
    pub connection: &'a Connection,
    pub provider: &'static dyn Provider,
    pub settings: &'a ProviderSettings,
    pub event: &'static str,
    pub why: &'a str,
}

/// The event of an API's answer that ends a grant.
const REQUEST: &str = "request";
const MASS_REFUSAL: &str = "the API refuses several accounts within a short time, which is taken for an outage of the \
     provider or for a fault of our registration there (such as an app key that is no longer good); no account is marked dead";
pub(super) const MASS_REASON: &str = "several accounts died within a short time, which is taken for a fault of our client at the \
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
    /// What may be to blame instead of the account.
    common: Option<Common>,
    /// Of a token of which this is known, nothing new is written.
    once: bool,
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
        let common = fault.dead.and_then(|witness| self.common(witness));
        let silent = match common {
            Some(common) => self.auth.look_at_others(common, aftermath).await?,
            None => false,
        };
        // A client that is refused, or that too many accounts die of, is not asked again at once for another account.
        if silent || fault.failure.kind == FailureKind::Misconfigured {
            self.auth.stop_client(self.provider, &self.connection, self.settings).await?;
        }
        if let (FailureKind::Throttled { .. }, Some(wait)) = (&fault.failure.kind, fault.wait) {
            self.hold_back(wait).await?;
        }
        let failure = match aftermath {
            Aftermath::Spared => {
                Failure::new(FailureKind::Misconfigured, common.map_or(MASS_REASON, Common::reason))
            }
            _ => fault.failure,
        };
        self.tell(&failure);
        Err(failure)
    }

    fn common(&self, witness: Witness) -> Option<Common> {
        Common::of(witness, self.provider, self.connection.grant)
    }

    async fn record(&self, fault: &Fault, event: &'static str) -> Result<Aftermath, Failure> {
        let now = self.auth.clock.now();
        let report = Report {
            event,
            setback: Setback {
                last_error: fault.failure.message.clone(),
                kind: fault.failure.kind.label(),
                refresh_due_at: self.retry_at(fault, now),
                is_dead: fault.dead.is_some(),
                by_api: fault.dead == Some(Witness::Api),
            },
            common: fault.dead.and_then(|witness| self.common(witness)),
            once: false,
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
        if fault.dead.is_some() {
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
    /// consent. The token is kept and tried again as after any such verdict; one that has moved on since `generation`, or
    /// of which this is known, is not touched. Returns what that means for whoever has asked.
    pub async fn ended(&self, id: ConnectionId, generation: i64, why: &str) -> Failure {
        let standing = match self.standing(id).await {
            Ok(standing) => standing,
            Err(failure) => return failure,
        };
        let Standing { connection, token } = standing;
        let Some(token) = token.filter(|token| token.generation == generation) else {
            return Failure::transient(replaced(&connection));
        };
        let (provider, settings) = match self.provider(&connection.provider) {
            Ok(provider) => provider,
            Err(failure) => return failure,
        };
        // Which token it is about. No refresh was begun, so there is none to close.
        let (grant_id, daemon, started_at) = (token.grant_id, self.daemon, self.clock.now());
        let of = RefreshAttempt { connection: id, grant_id, generation, daemon, started_at };
        self.condemn(Condemned { connection: &connection, provider, settings, event: REQUEST, why }, of).await
    }

    /// Writes down that the API has ended a grant, unless it is too many at once that it ends.
    pub(super) async fn condemn(&self, condemned: Condemned<'_>, of: RefreshAttempt) -> Failure {
        let Condemned { connection, provider, settings, event, why } = condemned;
        let now = self.clock.now();
        let common = Common { provider: provider.spec().name, witness: Witness::Api };
        let report = Report {
            event,
            setback: Setback {
                last_error: why.to_owned(),
                kind: FailureKind::NeedsReauth.label(),
                refresh_due_at: now + delta(DEAD_RETRY),
                is_dead: true,
                by_api: true,
            },
            common: Some(common),
            once: event == REQUEST,
            spared_until: now + delta(RETRY_MAX),
            daemon: self.daemon,
        };
        let written = async {
            let aftermath = self.transaction(move |conn| write_down(conn, &of, &report)).await?;
            if self.look_at_others(common, aftermath).await? {
                self.stop_client(provider, connection, settings).await?;
            }
            Ok(aftermath)
        };
        let aftermath = match written.await {
            Ok(aftermath) => aftermath,
            Err(failure) => return failure,
        };
        warn!(connection.id = %connection.id, outcome = aftermath.word(), "The grant of `{}` has ended: {why}", connection.name);
        match aftermath {
            Aftermath::Dead => Failure::new(FailureKind::NeedsReauth, why),
            Aftermath::Spared => Failure::transient(format!("{why}; {MASS_REFUSAL}")),
            Aftermath::Overtaken | Aftermath::Counted => Failure::transient(replaced(connection)),
        }
    }

    /// After a death: those that were marked before it was clear that there are too many are acquitted. Returns whether
    /// there are, and nobody fares well.
    async fn look_at_others(&self, common: Common, aftermath: Aftermath) -> Result<bool, Failure> {
        let Acquitted { count, silent } = self.acquit(common).await?;
        let many = count > 0 || aftermath == Aftermath::Spared;
        if many {
            let (provider, reason) = (common.provider, common.reason());
            error!(provider, error = reason, "Many grants at {provider} failed: {reason}");
        }
        Ok(many && silent)
    }

    /// Asks nothing for a while in the name of the client that the connection shares with others, if it does.
    async fn stop_client(
        &self,
        provider: &'static dyn Provider,
        connection: &Connection,
        settings: &ProviderSettings,
    ) -> Result<(), Failure> {
        if connection.grant != GrantKind::AuthorizationCode {
            return Ok(());
        }
        let client = permit_scope(provider, client_of(connection, &settings.client_id));
        self.db(move |conn| rate_budget::stop(conn, &client, CLIENT_STOP)).await
    }

    /// Takes deaths back that turn out not to be the accounts' own.
    async fn acquit(&self, common: Common) -> Result<Acquitted, Failure> {
        let due = self.clock.now() + delta(RETRY_MAX);
        let daemon = self.daemon;
        self.transaction(move |conn| {
            let fates = common.fates(conn)?;
            let blamed = policy::blamed_on_client(&fates);
            let silent = policy::is_silent(&fates, &blamed);
            let ids: Vec<ConnectionId> = blamed.into_iter().collect();
            let acquitted = tokens::acquit(conn, &ids, common.reason(), due)?;
            for id in &acquitted {
                let (event, outcome, detail) = ("refresh", "acquitted", Some(common.reason()));
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
    if report.once && tokens::load(conn, id)?.is_some_and(|token| token.rejected_at.is_some()) {
        let dead = connection.state == ConnectionState::NeedsReauth;
        return Ok(if dead { Aftermath::Dead } else { Aftermath::Spared });
    }
    let message = report.setback.last_error.as_str();
    // The one re-read: what was refused may have been renewed by somebody else.
    let aftermath = if !tokens::set_back(conn, attempt, &report.setback)? {
        Aftermath::Overtaken
    } else if !report.setback.is_dead {
        Aftermath::Counted
    } else if is_common_fault(conn, id, report.common)? {
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

fn replaced(connection: &Connection) -> String {
    format!("the token of `{}` was replaced meanwhile", connection.name)
}

fn is_common_fault(
    conn: &mut PgConnection,
    id: ConnectionId,
    common: Option<Common>,
) -> Result<bool, DbError> {
    match common {
        Some(common) => Ok(policy::blamed_on_client(&common.fates(conn)?).contains(&id)),
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
