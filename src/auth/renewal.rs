//! One refresh, from the open attempt to the committed tokens; or one probe of a key.
//!
//! What a failure does to the connection is written by [`super::setback`].

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{error, info, warn};
use uuid::Uuid;

use super::policy::{self, PROBE_EVERY};
use super::proof::Credential;
use super::refresh::Refreshed;
use super::{ACCESS_COLUMN, Auth, REFRESH_COLUMN, TokenClient, throttled};
use crate::config::ProviderSettings;
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::refresh_attempts::RefreshAttempt;
use crate::db::tokens::{self, Renewal, Token};
use crate::db::{DbError, PgConnection, audit};
use crate::domain::failure::{Failure, FailureKind, chain};
use crate::domain::secret::Secret;
use crate::domain::spec::GrantKind;
use crate::domain::time::delta;
use crate::domain::token::{TokenSet, TokenVerdict};
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted, TokenFailure};
use crate::http::{redact, retry};
use crate::providers::{Provider, TokenStep};
use chrono::{DateTime, Utc};

/// A second try after a lost reply is made only with this much time left.
const SECOND_TRY_MIN: Duration = Duration::from_secs(5);
/// The pause before it.
const SECOND_TRY_PAUSE: Duration = Duration::from_millis(500);
/// How often new tokens are offered to a database that does not take them; with pauses of at most 5 s.
const COMMIT_TRIES: u32 = 60;
const COMMIT_PAUSE_FIRST: Duration = Duration::from_millis(200);
const COMMIT_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Characters of a provider's words in our texts.
const SAID_MAX: usize = 300;

/// What an exchange that ended well or badly is written with.
pub(super) struct Work<'a> {
    pub auth: &'a Auth,
    pub provider: &'static dyn Provider,
    pub settings: &'a ProviderSettings,
    pub connection: Connection,
    pub token: Token,
    pub attempt: RefreshAttempt,
}

/// What a refusal or a lost exchange means.
pub(super) struct Fault {
    pub failure: Failure,
    /// The grant is dead, says the provider.
    pub dead: bool,
    /// When to try again; `None`: by the number of failures.
    pub wait: Option<Duration>,
}

impl Work<'_> {
    pub(super) async fn renew(&self, deadline: Deadline) -> Result<Refreshed, Failure> {
        let exchanged = self.auth.answered(Box::pin(self.exchange(deadline))).await;
        let granted = match exchanged.map_err(passing).flatten() {
            Ok(granted) => granted,
            Err(fault) => return self.set_back(fault, "refresh").await,
        };
        let renewal = self.renewal(&granted);
        if self.commit(renewal).await? {
            info!(
                connection.id = self.connection.id.0,
                connection.name = self.connection.name,
                provider = self.provider.spec().name,
                token.generation = self.token.generation + 1,
                "Refreshed the token of `{}`",
                self.connection.name
            );
        } else {
            warn!(
                connection.id = self.connection.id.0,
                connection.name = self.connection.name,
                "The token of `{}` had moved on when a refresh was done: its result is dropped",
                self.connection.name
            );
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
        warn!(
            connection.id = self.connection.id.0,
            connection.name = self.connection.name,
            "The reply to a refresh of `{}` was lost: trying once more",
            self.connection.name
        );
        tokio::time::sleep(SECOND_TRY_PAUSE).await;
        self.ask(deadline).await?.map_err(|failure| self.fault(failure))
    }

    async fn ask(&self, deadline: Deadline) -> Result<Result<Granted, TokenFailure>, Fault> {
        let auth = self.auth;
        let (http, clock) = (&auth.http, auth.clock.as_ref());
        let url = &self.settings.token_url;
        if self.connection.grant == GrantKind::ClientCredentials {
            let secrets = auth.open_secrets(self.connection.id).await.map_err(passing)?;
            let client = self.client(TokenStep::ClientCredentials, &secrets).map_err(passing)?;
            let endpoint = client.endpoint(url);
            return Ok(
                oauth::client_credentials(http, &endpoint, &self.settings.scopes, deadline, clock).await
            );
        }
        let client = self.client(TokenStep::Refresh, &BTreeMap::new()).map_err(passing)?;
        let refresh_token = self.refresh_token().map_err(passing)?;
        Ok(oauth::refresh(http, &client.endpoint(url), &refresh_token, deadline, clock).await)
    }

    fn client(&self, step: TokenStep, secrets: &BTreeMap<String, Secret>) -> Result<TokenClient, Failure> {
        self.auth.token_client(self.provider, self.settings, &self.connection, (step, secrets))
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
                error!(
                    connection.id = self.connection.id.0,
                    connection.name = self.connection.name,
                    error = chain(&error),
                    "New tokens of `{}` could not be written down",
                    self.connection.name
                );
                return Err(Failure::from(&error));
            }
            let pause = retry::pause(tries, COMMIT_PAUSE_FIRST, COMMIT_PAUSE_MAX);
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks whether a key still works. One that does not is tried again every six hours.
    pub(super) async fn probe(&self) -> Result<Refreshed, Failure> {
        let key = self.auth.open(
            self.connection.id,
            self.token.grant_id,
            ACCESS_COLUMN,
            &self.token.access_sealed,
        )?;
        let secrets = self.auth.open_secrets(self.connection.id).await?;
        let credential = Credential { token: &key, secrets: &secrets };
        let proven = self.auth.prove(self.provider, self.settings, &self.connection, &credential, None).await;
        let account = match proven {
            Ok(shown) => shown.account,
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

/// A grant that works again, or works after all.
fn revive(conn: &mut PgConnection, connection: &Connection) -> Result<(), DbError> {
    let ill = connection.state == ConnectionState::NeedsReauth
        || (connection.state == ConnectionState::Connected && connection.reason.is_some());
    if ill {
        connections::set_state(conn, connection.id, ConnectionState::Connected, None)?;
    }
    Ok(())
}

/// A line in the audit log.
pub(super) fn note(
    conn: &mut PgConnection,
    attempt: &RefreshAttempt,
    event: &'static str,
    outcome: &'static str,
    detail: Option<&str>,
    daemon: Uuid,
) -> Result<(), DbError> {
    audit::write(conn, &audit::Entry { connection: attempt.connection, event, outcome, detail, daemon })
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
