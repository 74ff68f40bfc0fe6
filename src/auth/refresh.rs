//! Renewing tokens so that none is lost: one refresher per connection, whoever and wherever.
//!
//! The open *attempt row* is the mutual exclusion, the proof that the database takes writes, and the evidence after a
//! crash. It is committed before the provider is asked, keeps others out for [`BLOCKED_FOR`], and is closed in the
//! transaction that writes the outcome. Our own exchange ends after [`EXCHANGE_MAX`] on a clock that counts suspend:
//! well before anybody else may start. New tokens are committed by compare-and-swap on grant and generation.
//!
//! An attempt that its daemon never closed is taken over once its time has passed; by one that cannot look into that
//! daemon's folder of spills only after `daemon.spill_grace`, since the reply may be there. What is kept of replies is
//! looked at before the provider is asked: a database that was restored knows less than the folder does.
//!
//! Keys have nothing to renew: they are probed instead, with the same exclusion.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::between::Step;
use super::policy::{self, CLIENT_STOP, DEAD_RETRY};
use super::renewal::Work;
use super::{Auth, LOOK_EVERY, PERMIT_WAIT_MAX, Standing, is_key, live, permit_scope, throttled};
use crate::config::ProviderSettings;
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::rate_budget::{self, Lease};
use crate::db::refresh_attempts::{self, Exclusion, RefreshAttempt, Refresher};
use crate::db::tokens::{self, Token};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::measure;
use crate::domain::spec::GrantKind;
use crate::domain::time::{delta, until};
use crate::http::deadline::Deadline;
use crate::providers::Provider;

pub use crate::db::refresh_attempts::BLOCKED_FOR;

/// How long an exchange may take from before its attempt was opened, waiting for a permit included.
pub const EXCHANGE_MAX: Duration = Duration::from_secs(45);

/// The longest wait for an open refresh to end.
const SHUT_OUT_WAIT_MAX: Duration = Duration::from_secs(65);

/// Why a refresh is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its time may have come.
    Due,
    /// Somebody needs a better token than the present one; `refused` is what the provider did not take.
    Needed { refused: Option<i64> },
    /// An admin wants it.
    Asked,
}

/// What a refresh came to, where it did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// The token is new, whoever renewed it; or it was not due. For keys: it works.
    Renewed,
    /// Another refresh is open, at most for this long.
    Busy { wait: Duration },
    /// The last refresh failed, for this reason, and its pause is not over.
    Later { wait: Duration, reason: Failure },
}

/// The connections whose tokens this process is renewing. The attempts in the database exclude all others, but by a clock
/// that may be set, and in rows that a failover may lose.
#[derive(Clone, Default)]
pub(super) struct Renewing(Arc<Mutex<BTreeSet<ConnectionId>>>);

/// One of them, until it is dropped.
pub(super) struct Ours {
    all: Renewing,
    id: ConnectionId,
}

impl Renewing {
    pub fn begin(&self, id: ConnectionId) -> Option<Ours> {
        self.ids().insert(id).then(|| Ours { all: self.clone(), id })
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<ConnectionId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.all.ids().remove(&self.id);
    }
}

/// An attempt that was opened.
struct Opened {
    connection: Connection,
    token: Token,
    attempt: RefreshAttempt,
    permit_in: Duration,
    /// An earlier refresh of the same token, whose daemon never said what came of it.
    left_open: Option<refresh_attempts::Standing>,
}

/// What opening an attempt came to.
enum Begun {
    Open(Box<Opened>),
    Not(Refreshed),
    Throttled {
        wait: Duration,
    },
    /// The client is refused, and another account of it tries first.
    Stopped {
        wait: Duration,
    },
}

impl Auth {
    /// Renews the token of a connection, or finds out why not. Goes on when the caller is gone.
    ///
    /// # Errors
    /// What the failure means for the connection has been written down when this returns.
    pub async fn refresh(&self, connection: ConnectionId, why: Why) -> Result<Refreshed, Failure> {
        let auth = self.clone();
        self.detached(async move { auth.refresh_here(connection, why).await }).await
    }

    async fn refresh_here(&self, id: ConnectionId, why: Why) -> Result<Refreshed, Failure> {
        let Some(_ours) = self.renewing.begin(id) else { return Ok(Refreshed::Busy { wait: LOOK_EVERY }) };
        // Started before the attempt is opened, so that it ends before the attempt does.
        let deadline = Deadline::after(EXCHANGE_MAX);
        let (provider, settings) = self.provider(&self.standing(id).await?.connection.provider)?;
        self.between.at(id, Step::Beginning).await;
        let opened = match self.begin(id, why, provider, settings).await? {
            Begun::Open(opened) => opened,
            Begun::Not(refreshed) => return Ok(refreshed),
            Begun::Throttled { wait } => return Err(throttled(provider, self.clock.now(), Some(wait))),
            Begun::Stopped { wait } => return Err(stopped(provider, self.clock.now(), wait)),
        };
        let deadline = deadline.sooner(self.between.at(id, Step::Open).await);
        tokio::time::sleep(opened.permit_in).await;
        let Opened { connection, token, attempt, left_open, .. } = *opened;
        let work = Work { auth: self, provider, settings, connection, token, attempt, left_open };
        let ended =
            if is_key(work.connection.grant) { work.probe().await } else { work.renew(deadline).await };
        measure::refreshed(provider.spec().name, ended.as_ref().err().map(|failure| &failure.kind));
        ended
    }

    /// Opens the attempt, unless there is nothing to do or somebody else is at it. Everything is read again under the
    /// connection's lock: what was true a moment ago may be somebody else's past.
    async fn begin(
        &self,
        id: ConnectionId,
        why: Why,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
    ) -> Result<Begun, Failure> {
        let (auth, bucket) = (self.clone(), provider.spec().token_bucket);
        let client_id = settings.client_id.clone();
        self.transaction(move |conn| {
            let connection = connections::lock(conn, id)?;
            let token = tokens::load(conn, id)?;
            let token = match live(&connection, token) {
                Ok(token) => token,
                Err(reason) => return Ok(Begun::Not(Refreshed::Later { wait: DEAD_RETRY, reason })),
            };
            if let Some(refreshed) = auth.not_now(&token, &connection, why) {
                return Ok(Begun::Not(refreshed));
            }
            let left_open = refresh_attempts::standing(conn, id, auth.spills.id(), auth.spill_grace())?;
            if let Some(refreshed) = left_open.as_ref().and_then(|open| in_the_way(open, &connection)) {
                return Ok(Begun::Not(refreshed));
            }
            let permit_in = if is_key(connection.grant) {
                Duration::ZERO
            } else {
                let scope = permit_scope(provider, client_of(&connection, &client_id));
                // An admin who asks has perhaps just mended the client.
                if why != Why::Asked
                    && let Some(wait) = rate_budget::stopped_for(conn, &scope, CLIENT_STOP)?
                {
                    return Ok(Begun::Stopped { wait });
                }
                match rate_budget::lease(conn, &scope, &bucket, 1, PERMIT_WAIT_MAX)? {
                    Lease::Granted { wait } => wait,
                    Lease::Full { wait } => return Ok(Begun::Throttled { wait }),
                }
            };
            let exclusion = Exclusion { blocked_for: BLOCKED_FOR, spill_grace: auth.spill_grace() };
            let left_open = left_open
                .filter(|open| (open.grant_id, open.generation) == (token.grant_id, token.generation));
            let by = auth.refresher(connection.grant);
            let opened =
                refresh_attempts::open(conn, id, (token.grant_id, token.generation), &by, exclusion)?;
            Ok(match opened {
                Some(attempt) => {
                    Begun::Open(Box::new(Opened { connection, token, attempt, permit_in, left_open }))
                }
                None => Begun::Not(Refreshed::Busy { wait: BLOCKED_FOR }),
            })
        })
        .await
    }

    /// Who we are to others. What can simply be asked for again is in no folder that anybody would have to wait for.
    pub(super) fn refresher(&self, grant: GrantKind) -> Refresher<'_> {
        let spills = self.spills.id().filter(|_| grant == GrantKind::AuthorizationCode);
        Refresher { daemon: self.daemon, host: &self.host, spills }
    }

    /// How long a reply is waited for that may be on another machine.
    pub(crate) fn spill_grace(&self) -> Duration {
        self.settings.daemon.spill_grace
    }

    /// Why there is nothing to do now, if so.
    fn not_now(&self, token: &Token, connection: &Connection, why: Why) -> Option<Refreshed> {
        let now = self.clock.now();
        let wait = token.refresh_due_at.map_or(Duration::ZERO, |due| until(due, now));
        match why {
            Why::Due => (token.refresh_due_at.is_none() || !wait.is_zero()).then_some(Refreshed::Renewed),
            Why::Needed { refused } if self.is_good(token, refused) => Some(Refreshed::Renewed),
            // A failure has its pause, whoever is in a hurry.
            Why::Needed { .. } if token.failures > 0 && !wait.is_zero() => {
                Some(Refreshed::Later { wait, reason: last_failure(token, connection, now) })
            }
            Why::Needed { .. } | Why::Asked => None,
        }
    }
}

impl Auth {
    /// Shuts refreshes of a connection out, waiting for an open one, for whoever is about to end the grant.
    pub(super) async fn shut_out(
        &self,
        id: ConnectionId,
    ) -> Result<Option<(Standing, RefreshAttempt)>, Failure> {
        let deadline = Deadline::after(SHUT_OUT_WAIT_MAX);
        loop {
            let auth = self.clone();
            let held = self
                .transaction(move |conn| {
                    let connection = connections::lock(conn, id)?;
                    let Some(token) = tokens::load(conn, id)? else { return Ok(Held::Nothing) };
                    // The grant ends: a reply on another machine is not waited for.
                    let exclusion = Exclusion { blocked_for: BLOCKED_FOR, spill_grace: Duration::ZERO };
                    let by = auth.refresher(connection.grant);
                    let opened =
                        refresh_attempts::open(conn, id, (token.grant_id, token.generation), &by, exclusion)?;
                    Ok(match opened {
                        Some(attempt) => {
                            Held::Mine(Box::new((Standing { connection, token: Some(token) }, attempt)))
                        }
                        None => Held::Theirs,
                    })
                })
                .await?;
            match held {
                Held::Mine(held) => return Ok(Some(*held)),
                Held::Nothing => return Ok(None),
                Held::Theirs if deadline.left().is_zero() || self.is_closing() => {
                    return Err(Failure::transient("a refresh of the connection's token does not end"));
                }
                Held::Theirs => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }
}

enum Held {
    Mine(Box<(Standing, RefreshAttempt)>),
    Theirs,
    Nothing,
}

fn stopped(provider: &'static dyn Provider, now: DateTime<Utc>, wait: Duration) -> Failure {
    let title = provider.spec().title;
    Failure::new(
        FailureKind::Throttled { until: Some(now + delta(wait)) },
        format!("{title} refuses our client: one account at a time tries again until that is mended"),
    )
}

/// What a refresh that is not closed leads to, while its time has not passed.
fn in_the_way(open: &refresh_attempts::Standing, connection: &Connection) -> Option<Refreshed> {
    if let Some(wait) = open.blocked_for() {
        return Some(Refreshed::Busy { wait });
    }
    let wait = open.grace()?;
    let (host, name) = (&open.host, &connection.name);
    let reason = Failure::transient(format!(
        "the daemon on host `{host}` was interrupted in a refresh of `{name}`, and its reply may be on that host's disk: \
         start it again, or wait for another {} s until the old token is tried",
        wait.as_secs()
    ));
    Some(Refreshed::Later { wait, reason })
}

/// What the last refresh of the token said.
pub(super) fn last_failure(token: &Token, connection: &Connection, now: DateTime<Utc>) -> Failure {
    let said = token.last_error.as_deref().unwrap_or("the last refresh failed");
    let kind = if connection.state == ConnectionState::NeedsReauth {
        FailureKind::NeedsReauth
    } else {
        FailureKind::Transient
    };
    let what = if token.refused_at.is_some() {
        "is refused"
    } else if policy::is_usable(token.issued_at, token.expires_at, now) {
        "could not be replaced"
    } else if token.issued_at > now {
        "was issued before the clock was set back, and could not be replaced"
    } else {
        "has run out"
    };
    Failure::new(kind, format!("the token of `{}` {what}: {said}", connection.name))
}

/// The client id that a connection's token requests count against.
pub(super) fn client_of<'a>(connection: &'a Connection, ours: &'a str) -> &'a str {
    match connection.grant {
        GrantKind::ClientCredentials => connection.params.get("client_id").map_or("", String::as_str),
        _ => ours,
    }
}
