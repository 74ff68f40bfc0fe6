//! Renewing tokens so that none is lost: one refresher per connection, whoever and wherever.
//!
//! The open *attempt row* is the mutual exclusion, the proof that the database takes writes, and the evidence after a
//! crash. It is committed before the provider is asked, keeps others out for [`BLOCKED_FOR`], and is closed in the
//! transaction that writes the outcome. Our own exchange ends after [`EXCHANGE_MAX`] on a clock that counts suspend:
//! well before anybody else may start. New tokens are committed by compare-and-swap on grant and generation.
//!
//! Keys have nothing to renew: they are probed instead, with the same exclusion.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::policy::{self, DEAD_RETRY, PROBE_EVERY, RETRY_FIRST, RETRY_MAX};
use super::{
    ACCESS_COLUMN, Auth, PERMIT_WAIT_MAX, REFRESH_COLUMN, Standing, TokenClient, is_key, live, permit_scope,
    secret_column, throttled,
};
use crate::config::ProviderSettings;
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::rate_budget::{self, Lease};
use crate::db::tokens::{self, RefreshAttempt, Renewal, Setback, Token};
use crate::db::{DbError, PgConnection, audit};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::spec::GrantKind;
use crate::domain::time::{delta, until};
use crate::domain::token::{TokenSet, TokenVerdict};
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted, TokenFailure};
use crate::http::{redact, retry};
use crate::providers::Provider;

/// How long an open refresh keeps others out, by the database's clock.
pub const BLOCKED_FOR: Duration = Duration::from_secs(60);
/// How long an exchange may take from before its attempt was opened, waiting for a permit included.
pub const EXCHANGE_MAX: Duration = Duration::from_secs(45);
/// A second try after a lost reply is made only with this much time left.
const SECOND_TRY_MIN: Duration = Duration::from_secs(5);
/// The pause before it.
const SECOND_TRY_PAUSE: Duration = Duration::from_millis(500);
/// How often new tokens are offered to a database that does not take them; with pauses of at most 5 s.
const COMMIT_TRIES: u32 = 60;
/// Characters of a provider's words in our texts.
const SAID_MAX: usize = 300;

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

/// What opening an attempt came to.
enum Begun {
    Open { connection: Connection, token: Token, attempt: RefreshAttempt, permit_in: Duration },
    Not(Refreshed),
    Throttled { wait: Duration },
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
        // Started before the attempt is opened, so that it ends before the attempt does.
        let deadline = Deadline::after(EXCHANGE_MAX);
        let (provider, settings) = self.provider(&self.standing(id).await?.connection.provider)?;
        let (connection, token, attempt, permit_in) = match self.begin(id, why, provider, settings).await? {
            Begun::Open { connection, token, attempt, permit_in } => (connection, token, attempt, permit_in),
            Begun::Not(refreshed) => return Ok(refreshed),
            Begun::Throttled { wait } => return Err(throttled(provider, self.clock.now(), Some(wait))),
        };
        tokio::time::sleep(permit_in).await;
        let work = Work {
            auth: self,
            provider,
            settings,
            connection: &connection,
            token: &token,
            attempt: &attempt,
        };
        if is_key(connection.grant) { work.probe().await } else { work.renew(deadline).await }
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
            if let Some(wait) = tokens::blocked_for(conn, id)? {
                return Ok(Begun::Not(Refreshed::Busy { wait }));
            }
            let permit_in = if is_key(connection.grant) {
                Duration::ZERO
            } else {
                let scope = permit_scope(provider, client_of(&connection, &client_id));
                match rate_budget::lease(conn, &scope, &bucket, 1, PERMIT_WAIT_MAX)? {
                    Lease::Granted { wait } => wait,
                    Lease::Full { wait } => return Ok(Begun::Throttled { wait }),
                }
            };
            let opened = tokens::open_attempt(conn, id, &token, auth.daemon, &auth.host, BLOCKED_FOR)?;
            Ok(match opened {
                Some(attempt) => Begun::Open { connection, token, attempt, permit_in },
                None => Begun::Not(Refreshed::Busy { wait: BLOCKED_FOR }),
            })
        })
        .await
    }

    /// Why there is nothing to do now, if so.
    fn not_now(&self, token: &Token, connection: &Connection, why: Why) -> Option<Refreshed> {
        let now = self.clock.now();
        let wait = token.refresh_due_at.map_or(Duration::ZERO, |due| until(due, now));
        match why {
            Why::Asked => None,
            Why::Due => (token.refresh_due_at.is_none() || !wait.is_zero()).then_some(Refreshed::Renewed),
            Why::Needed { refused } if self.is_good(token, refused) => Some(Refreshed::Renewed),
            // A failure has its pause, whoever is in a hurry.
            Why::Needed { .. } if token.failures > 0 && !wait.is_zero() => {
                Some(Refreshed::Later { wait, reason: last_failure(token, connection) })
            }
            Why::Needed { .. } => None,
        }
    }

    /// Takes deaths back that turn out to be the client's fault, not the accounts'. Returns how many.
    async fn acquit(&self, provider: &'static dyn Provider) -> Result<usize, Failure> {
        let name = provider.spec().name;
        let due = self.clock.now() + delta(RETRY_MAX);
        self.transaction(move |conn| {
            let blamed = policy::blamed_on_client(&tokens::fates(conn, name)?);
            let ids: Vec<ConnectionId> = blamed.into_iter().collect();
            tokens::acquit(conn, &ids, MASS_REASON, due)
        })
        .await
    }
}

/// What an exchange that ended well or badly is written with.
pub(super) struct Work<'a> {
    auth: &'a Auth,
    provider: &'static dyn Provider,
    settings: &'a ProviderSettings,
    connection: &'a Connection,
    token: &'a Token,
    attempt: &'a RefreshAttempt,
}

/// What a refusal or a lost exchange means.
struct Fault {
    failure: Failure,
    /// The grant is dead, says the provider.
    dead: bool,
    /// When to try again; `None`: by the number of failures.
    wait: Option<Duration>,
}

impl Work<'_> {
    async fn renew(&self, deadline: Deadline) -> Result<Refreshed, Failure> {
        let granted = match self.exchange(deadline).await {
            Ok(granted) => granted,
            Err(fault) => return self.set_back(fault, "refresh").await,
        };
        let renewal = self.renewal(&granted);
        if self.commit(renewal).await? {
            info!(connection.id = %self.connection.id, token.generation = self.token.generation + 1,
                "Refreshed the token of `{}`", self.connection.name);
        } else {
            warn!(connection.id = %self.connection.id,
                "The token of `{}` had moved on when a refresh was done: its result is dropped", self.connection.name);
        }
        Ok(Refreshed::Renewed)
    }

    /// Asks the token endpoint; once more where the reply was lost, since the old token may still be good.
    async fn exchange(&self, deadline: Deadline) -> Result<Granted, Fault> {
        let first = self.ask(deadline).await?;
        let lost = matches!(first, Err(TokenFailure::Unavailable { sent: true, .. }));
        if !lost || deadline.left() < SECOND_TRY_MIN {
            return first.map_err(|failure| self.fault(failure));
        }
        warn!(connection.id = %self.connection.id,
            "The reply to a refresh of `{}` was lost: trying once more", self.connection.name);
        tokio::time::sleep(SECOND_TRY_PAUSE).await;
        self.ask(deadline).await?.map_err(|failure| self.fault(failure))
    }

    async fn ask(&self, deadline: Deadline) -> Result<Result<Granted, TokenFailure>, Fault> {
        let auth = self.auth;
        let (http, clock) = (&auth.http, auth.clock.as_ref());
        let url = &self.settings.token_url;
        if self.connection.grant == GrantKind::ClientCredentials {
            let secrets = auth.open_secrets(self.connection.id).await.map_err(passing)?;
            let client = TokenClient::of_account(&self.connection.params, &secrets).map_err(passing)?;
            let endpoint = client.endpoint(url);
            return Ok(
                oauth::client_credentials(http, &endpoint, &self.settings.scopes, deadline, clock).await
            );
        }
        let client = TokenClient::ours(self.provider, self.settings).map_err(passing)?;
        let refresh_token = self.refresh_token().map_err(passing)?;
        Ok(oauth::refresh(http, &client.endpoint(url), &refresh_token, deadline, clock).await)
    }

    fn refresh_token(&self) -> Result<Secret, Failure> {
        let sealed = self.token.refresh_sealed.as_deref().ok_or_else(|| {
            let title = self.provider.spec().title;
            Failure::new(FailureKind::NeedsReauth, format!("{title} gave no refresh token with this grant"))
        })?;
        self.auth.open(self.connection.id, self.token.grant_id, REFRESH_COLUMN, sealed)
    }

    fn fault(&self, failure: TokenFailure) -> Fault {
        let title = self.provider.spec().title;
        match failure {
            TokenFailure::Throttled { wait } => {
                Fault { failure: throttled(self.provider, self.auth.clock.now(), wait), dead: false, wait }
            }
            TokenFailure::Unavailable { message, .. } => {
                passing(Failure::transient(format!("{title}: {message}")))
            }
            TokenFailure::Refused { status, body } => {
                let verdict = self.provider.judge_token(status, &body);
                self.judged(verdict)
            }
        }
    }

    /// What a refusal may quote of what it was sent.
    fn masked(&self, said: &str) -> String {
        let refresh_token = self.refresh_token().ok();
        let secrets: Vec<&Secret> = refresh_token.iter().chain(&self.settings.client_secret).collect();
        masked(said, &secrets)
    }

    /// For client credentials the client is the account's own: its refusal concerns nobody else.
    fn judged(&self, verdict: TokenVerdict) -> Fault {
        let title = self.provider.spec().title;
        let own_client = self.connection.grant == GrantKind::ClientCredentials;
        match verdict {
            TokenVerdict::Dead(said) => {
                dead(format!("{title} says that the grant is dead: {}", self.masked(&said)))
            }
            TokenVerdict::Misconfigured(said) if own_client => {
                dead(format!("{title} refuses these client credentials: {}", self.masked(&said)))
            }
            TokenVerdict::Misconfigured(said) => passing(Failure::new(
                FailureKind::Misconfigured,
                format!("{title} refuses our client, not the account: {}", self.masked(&said)),
            )),
            TokenVerdict::Retry(why) => {
                passing(Failure::transient(format!("{title}: {}", self.masked(&why))))
            }
        }
    }

    fn renewal(&self, granted: &Granted) -> Renewal {
        let (id, grant) = (self.connection.id, self.token.grant_id);
        let terms = terms(self.provider, &granted.tokens, granted.sent_at);
        Renewal {
            access_sealed: self.auth.seal(id, grant, ACCESS_COLUMN, &granted.tokens.access_token),
            refresh_sealed: granted
                .tokens
                .refresh_token
                .as_ref()
                .map(|token| self.auth.seal(id, grant, REFRESH_COLUMN, token)),
            scopes: granted.tokens.scopes.clone(),
            issued_at: granted.sent_at,
            expires_at: terms.expires_at,
            refresh_due_at: terms.refresh_due_at,
        }
    }

    /// Writes the new tokens down, and keeps at it: the old refresh token may be spent already.
    async fn commit(&self, renewal: Renewal) -> Result<bool, Failure> {
        let mut tries = 0;
        loop {
            let (attempt, renewal, daemon) = (self.attempt.clone(), renewal.clone(), self.auth.daemon);
            let done = self.auth.db.transaction(move |conn| {
                let connection = connections::lock(conn, attempt.connection)?;
                let swapped = tokens::renew(conn, &attempt, &renewal)?;
                if swapped {
                    revive(conn, &connection)?;
                }
                let outcome = if swapped { "done" } else { "overtaken" };
                note(conn, &attempt, "refresh", outcome, None, daemon)?;
                Ok(swapped)
            });
            let error = match done.await {
                Ok(swapped) => return Ok(swapped),
                Err(error) => error,
            };
            tries += 1;
            if !error.is_transient() || tries >= COMMIT_TRIES {
                error!(connection.id = %self.connection.id,
                    "New tokens of `{}` could not be written down: {}", self.connection.name, Failure::from(&error));
                return Err(Failure::from(&error));
            }
            let pause = retry::pause(tries, Duration::from_millis(200), Duration::from_secs(5));
            tokio::time::sleep(pause).await;
        }
    }

    /// Writes a failure down. A token that has moved on meanwhile is not touched by it.
    async fn set_back(&self, fault: Fault, event: &'static str) -> Result<Refreshed, Failure> {
        let mut fault = fault;
        let now = self.auth.clock.now();
        let name = self.provider.spec().name;
        let counts_for_client = self.connection.grant == GrantKind::AuthorizationCode;
        let (attempt, daemon) = (self.attempt.clone(), self.auth.daemon);
        let due = self.retry_at(&fault, now);
        let message = fault.failure.message.clone();
        let dead = fault.dead;
        let verdict = self
            .auth
            .transaction(move |conn| {
                connections::lock(conn, attempt.connection)?;
                let rejected_at = dead.then_some(now);
                let setback = Setback { last_error: message.clone(), refresh_due_at: due, rejected_at };
                // The one re-read: what was refused may have been renewed by somebody else.
                if !tokens::set_back(conn, &attempt, &setback)? {
                    note(conn, &attempt, event, "overtaken", Some(&message), daemon)?;
                    return Ok(Aftermath::Overtaken);
                }
                if !dead {
                    note(conn, &attempt, event, "failed", Some(&message), daemon)?;
                    return Ok(Aftermath::Counted);
                }
                let fates = if counts_for_client { tokens::fates(conn, name)? } else { Vec::new() };
                if policy::blamed_on_client(&fates).contains(&attempt.connection) {
                    tokens::postpone(conn, attempt.connection, now + delta(RETRY_MAX))?;
                    note(conn, &attempt, event, "spared", Some(&message), daemon)?;
                    return Ok(Aftermath::Spared);
                }
                connections::set_state(
                    conn,
                    attempt.connection,
                    ConnectionState::NeedsReauth,
                    Some(&message),
                )?;
                note(conn, &attempt, event, "dead", Some(&message), daemon)?;
                Ok(Aftermath::Buried)
            })
            .await?;
        match verdict {
            Aftermath::Overtaken => return Ok(Refreshed::Renewed),
            Aftermath::Spared => {
                fault.failure = Failure::new(FailureKind::Misconfigured, MASS_REASON);
            }
            Aftermath::Counted | Aftermath::Buried => {}
        }
        if fault.dead && counts_for_client {
            let acquitted = self.auth.acquit(self.provider).await?;
            if acquitted > 0 || verdict == Aftermath::Spared {
                error!(provider = name, "{}: {MASS_REASON}", self.provider.spec().title);
            }
        }
        if let (FailureKind::Throttled { .. }, Some(wait)) = (&fault.failure.kind, fault.wait) {
            self.hold_back(wait).await?;
        }
        if fault.failure.kind == FailureKind::Misconfigured && !fault.dead {
            error!(provider = name, "{}", fault.failure);
        }
        warn!(connection.id = %self.connection.id, failure.kind = fault.failure.kind.label(),
            "Refreshing the token of `{}` failed: {}", self.connection.name, fault.failure);
        Err(fault.failure)
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
        let scope = permit_scope(self.provider, client_of(self.connection, &self.settings.client_id));
        let bucket = self.provider.spec().token_bucket;
        self.auth.db(move |conn| rate_budget::refused(conn, &scope, &bucket, wait)).await
    }

    /// Looks whether a key still works. One that does not is tried again every six hours.
    async fn probe(&self) -> Result<Refreshed, Failure> {
        let key = self.auth.open(
            self.connection.id,
            self.token.grant_id,
            ACCESS_COLUMN,
            &self.token.access_sealed,
        )?;
        let proven = self.auth.prove(self.provider, self.settings, self.connection.grant, &key, None).await;
        let account = match proven {
            Ok(account) => account,
            Err(failure) if failure.kind == FailureKind::NeedsReauth => {
                return self.set_back(dead(failure.message), "probe").await;
            }
            Err(failure) => return self.set_back(passing(failure), "probe").await,
        };
        if self.connection.account_id.as_deref().is_some_and(|known| known != account.id) {
            let text = "the key now belongs to another account";
            return self.set_back(dead(text.to_owned()), "probe").await;
        }
        let (attempt, daemon) = (self.attempt.clone(), self.auth.daemon);
        let due = self.auth.clock.now() + delta(PROBE_EVERY);
        self.auth
            .transaction(move |conn| {
                let connection = connections::lock(conn, attempt.connection)?;
                if tokens::probed(conn, &attempt, due)? {
                    revive(conn, &connection)?;
                }
                note(conn, &attempt, "probe", "done", None, daemon)
            })
            .await?;
        Ok(Refreshed::Renewed)
    }
}

/// What a setback has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aftermath {
    /// The token had moved on.
    Overtaken,
    /// It is tried again later.
    Counted,
    /// The connection needs a new consent.
    Buried,
    /// The provider says dead, but of too many at once to be believed.
    Spared,
}

const MASS_REASON: &str = "several accounts died within a short time, which is taken for a fault of our client at the \
     provider: check its id, secret and registration; no account is marked dead";

/// When a token expires, as far as known, and when it is to be refreshed.
pub(super) struct Terms {
    pub expires_at: Option<DateTime<Utc>>,
    pub refresh_due_at: DateTime<Utc>,
}

/// A life that the provider does not tell is assumed for the schedule, but never taken for an expiry.
pub(super) fn terms(provider: &'static dyn Provider, tokens: &TokenSet, sent_at: DateTime<Utc>) -> Terms {
    let expires_at = tokens.expires_in.map(|life| sent_at + delta(life));
    let assumed = sent_at + delta(provider.spec().token_life_default);
    Terms {
        expires_at,
        refresh_due_at: policy::refresh_due_at(sent_at, expires_at.unwrap_or(assumed), rand::random()),
    }
}

impl Auth {
    /// The secrets that an admin gave for a connection, opened.
    pub(super) async fn open_secrets(&self, id: ConnectionId) -> Result<BTreeMap<String, Secret>, Failure> {
        self.db(move |conn| tokens::secrets(conn, id))
            .await?
            .into_iter()
            .map(|secret| {
                let column = secret_column(&secret.name);
                let plain = self.open(id, secret.grant_id, &column, &secret.sealed)?;
                Ok((secret.name, plain))
            })
            .collect()
    }

    /// Shuts refreshes of a connection out, waiting for an open one, for whoever is about to end the grant.
    pub(super) async fn shut_out(
        &self,
        id: ConnectionId,
    ) -> Result<Option<(Standing, RefreshAttempt)>, Failure> {
        let deadline = Deadline::after(BLOCKED_FOR + SECOND_TRY_MIN);
        loop {
            let auth = self.clone();
            let held = self
                .transaction(move |conn| {
                    let connection = connections::lock(conn, id)?;
                    let Some(token) = tokens::load(conn, id)? else { return Ok(Held::Nothing) };
                    let opened =
                        tokens::open_attempt(conn, id, &token, auth.daemon, &auth.host, BLOCKED_FOR)?;
                    Ok(match opened {
                        Some(attempt) => Held::Mine(Standing { connection, token: Some(token) }, attempt),
                        None => Held::Theirs,
                    })
                })
                .await?;
            match held {
                Held::Mine(standing, attempt) => return Ok(Some((standing, attempt))),
                Held::Nothing => return Ok(None),
                Held::Theirs if deadline.left().is_zero() => {
                    return Err(Failure::transient("a refresh of the connection's token does not end"));
                }
                Held::Theirs => tokio::time::sleep(super::LOOK_EVERY).await,
            }
        }
    }
}

enum Held {
    Mine(Standing, RefreshAttempt),
    Theirs,
    Nothing,
}

/// A grant that works again, or works after all.
fn revive(conn: &mut PgConnection, connection: &Connection) -> Result<(), DbError> {
    let ill = connection.state == ConnectionState::NeedsReauth
        || (connection.state == ConnectionState::Connected && connection.reason.is_some());
    if ill {
        connections::set_state(conn, connection.id, ConnectionState::Connected, None)?;
    }
    Ok(())
}

fn note(
    conn: &mut PgConnection,
    attempt: &RefreshAttempt,
    event: &'static str,
    outcome: &'static str,
    detail: Option<&str>,
    daemon: Uuid,
) -> Result<(), DbError> {
    audit::write(conn, &audit::Entry { connection: attempt.connection, event, outcome, detail, daemon })
}

/// What the last refresh of the token said.
fn last_failure(token: &Token, connection: &Connection) -> Failure {
    let said = token.last_error.as_deref().unwrap_or("the last refresh failed");
    let kind = if connection.state == ConnectionState::NeedsReauth {
        FailureKind::NeedsReauth
    } else {
        FailureKind::Transient
    };
    Failure::new(kind, format!("the token of `{}` has run out: {said}", connection.name))
}

/// The client id that a connection's token requests count against.
fn client_of<'a>(connection: &'a Connection, ours: &'a str) -> &'a str {
    let own = connection.params.get("client_id").and_then(serde_json::Value::as_str);
    match connection.grant {
        GrantKind::ClientCredentials => own.unwrap_or_default(),
        _ => ours,
    }
}

fn passing(failure: Failure) -> Fault {
    // A grant that never had a refresh token cannot be renewed by trying.
    let dead = failure.kind == FailureKind::NeedsReauth;
    Fault { failure, dead, wait: None }
}

fn dead(message: String) -> Fault {
    Fault { failure: Failure::new(FailureKind::NeedsReauth, message), dead: true, wait: None }
}

/// A provider's words, without what looks like a secret or is one of `secrets`, cut short.
pub(super) fn masked(said: &str, secrets: &[&Secret]) -> String {
    let mut said = said.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        said = said.replace(secret.expose(), "[secret]");
    }
    redact::truncate(&redact::text(&said), SAID_MAX)
}
