//! From the browser's return to a connection: the code is exchanged, the account asked for, the tokens sealed, and all
//! of it written in one transaction.
//!
//! The endpoint and `callback URL` share [`Auth::conclude`]. It runs in a task of its own: a browser that is closed, a
//! cancelled job or a shutdown does not stop it halfway.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};
use uuid::Uuid;

use super::Ending;
use super::answer::Said;
use super::authorize::{Key, Recognised, Redeemed, Refusal};
use super::proof::{Credential, Shown};
use super::renewal::{masked, terms};
use super::{ACCESS_COLUMN, Auth, REFRESH_COLUMN, TokenClient, permit_scope, throttled};
use crate::config::ProviderSettings;
use crate::db::authorizations;
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::requests::{self, RequestKind, RequestOutcome};
use crate::db::secrets::{self, SealedSecret};
use crate::db::tokens::{self, NewToken};
use crate::db::{DbError, PgConnection, audit, rate_budget, streams, turns};
use crate::domain::failure::{Failure, FailureKind, chain};
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::spec::GrantKind;
use crate::domain::token::TokenVerdict;
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted, TokenFailure};
use crate::http::retry;
use crate::providers::{Account, Provider, TokenStep};

/// How long the exchange of a code may take. Codes live for a minute or so.
const EXCHANGE_MAX: Duration = Duration::from_secs(25);
/// How often a new grant is offered to a database that does not take it.
const ESTABLISH_TRIES: u32 = 20;
/// The first pause between two tries.
const ESTABLISH_PAUSE: Duration = Duration::from_millis(500);

/// What makes a connection.
#[derive(Clone)]
pub(super) struct Proven {
    pub account: Account,
    /// What is used of the account's limits already.
    pub pacing: Value,
    pub grant_id: Uuid,
    pub token: NewToken,
    /// `None`: those that are there stay.
    pub secrets: Option<Vec<SealedSecret>>,
}

impl Auth {
    /// Brings a consent to its end with what the provider sent back.
    pub async fn conclude(&self, recognised: Recognised) -> Ending {
        let auth = self.clone();
        let done = self.detached(async move { auth.conclude_here(recognised).await });
        done.await.unwrap_or_else(|failure| {
            warn!(failure.kind = failure.kind.label(), error = %failure, "A consent could not be concluded: {failure}");
            Ending::Failed(failure)
        })
    }

    async fn conclude_here(&self, recognised: Recognised) -> Result<Ending, Failure> {
        if let (Key::Cookies(kept), Said::Code(_)) = (&recognised.key, &recognised.said) {
            return Ok(match self.restart(recognised.provider, kept.clone()).await? {
                Ok(started) => Ending::Restart(Box::new(started)),
                Err(refusal) => Ending::Refused(refusal),
            });
        }
        let redeemed = match self.redeem(&recognised).await? {
            Ok(redeemed) => redeemed,
            Err(refusal) => return Ok(Ending::Refused(refusal)),
        };
        let Recognised { provider, said, .. } = recognised;
        let title = provider.spec().title;
        let ending = match said {
            Said::Code(code) => match self.connect_with(provider, &redeemed, &code).await {
                Ok(ending) => ending,
                Err(failure) => Ending::Failed(failure),
            },
            Said::Denied | Said::Nothing => Ending::Denied { title },
            Said::Error(word) => {
                let text = hinted(provider, format!("{title} broke the consent off: `{word}`"));
                Ending::Failed(Failure::new(FailureKind::Misconfigured, text))
            }
        };
        if !matches!(ending, Ending::Connected { .. }) {
            self.write_off(&redeemed, &ending).await?;
        }
        Ok(ending)
    }

    async fn connect_with(
        &self,
        provider: &'static dyn Provider,
        redeemed: &Redeemed,
        code: &Secret,
    ) -> Result<Ending, Failure> {
        let (_, settings) = self.provider(&redeemed.connection.provider)?;
        let granted = self.exchange_code(provider, settings, redeemed, code).await?;
        let grant = GrantKind::AuthorizationCode;
        let access_token = &granted.tokens.access_token;
        let (connection, request) = (&redeemed.connection, redeemed.authorization.request_id);
        let beside = self.secrets_beside(request).await?;
        let kept = match &beside {
            Some(_) => BTreeMap::new(),
            None => self.open_secrets(connection.id).await?,
        };
        let credential = Credential { token: access_token, secrets: beside.as_ref().unwrap_or(&kept) };
        let Shown { account, pacing } =
            self.prove(provider, settings, connection, &credential, Some(&granted)).await?;
        let token = self.first_token(provider, connection, redeemed.attempt.id, &granted);
        let secrets = beside.map(|beside| self.sealed(connection, redeemed.attempt.id, &beside));
        let proven = Proven { account, pacing, grant_id: redeemed.attempt.id, token, secrets };
        let name = redeemed.connection.name.clone();
        self.establish(provider, redeemed.connection.id, name, grant, proven, request).await
    }

    async fn exchange_code(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        redeemed: &Redeemed,
        code: &Secret,
    ) -> Result<Granted, Failure> {
        let of = (TokenStep::Code, &BTreeMap::new());
        let client = self.token_client(provider, settings, &redeemed.connection, of)?;
        self.take_permit(provider, &client.id).await?;
        let endpoint = client.endpoint(&settings.token_url);
        // A code is good for one exchange: a lost reply is not asked for again.
        let asked = oauth::exchange_code(
            &self.http,
            &endpoint,
            code,
            &redeemed.attempt.redirect_uri,
            redeemed.verifier.as_ref(),
            Deadline::after(EXCHANGE_MAX),
            self.clock.as_ref(),
        );
        match self.answered(asked).await? {
            Ok(granted) => Ok(granted),
            // No answer to a code, or one that is none, such as a page of HTML.
            Err(TokenFailure::Unavailable { sent: true, message }) => {
                let title = provider.spec().title;
                Err(Failure::transient(hinted(provider, format!("{title}: {message}"))))
            }
            Err(failure) => Err(self.no_tokens(provider, &client, failure, &[code]).await?),
        }
    }

    /// What it means that a token endpoint granted nothing, at connect. A refusal may quote what was `sent`.
    pub(super) async fn no_tokens(
        &self,
        provider: &'static dyn Provider,
        client: &TokenClient,
        failure: TokenFailure,
        sent: &[&Secret],
    ) -> Result<Failure, Failure> {
        let secrets: Vec<&Secret> = sent.iter().copied().chain(&client.secret).collect();
        let secrets = secrets.as_slice();
        let title = provider.spec().title;
        Ok(match failure {
            TokenFailure::Throttled { wait } => {
                if let Some(wait) = wait {
                    let (scope, bucket) = (permit_scope(provider, &client.id), provider.spec().token_bucket);
                    self.db(move |conn| rate_budget::refused(conn, &scope, &bucket, wait)).await?;
                }
                throttled(provider, self.clock.now(), wait)
            }
            TokenFailure::Unavailable { message, .. } => Failure::transient(format!("{title}: {message}")),
            TokenFailure::Refused { status, body } => match provider.judge_token(status, &body) {
                TokenVerdict::Dead(said) => Failure::new(
                    FailureKind::NeedsReauth,
                    format!("{title} did not accept the authorization: {}", masked(&said, secrets)),
                ),
                TokenVerdict::Misconfigured(said) => Failure::new(
                    FailureKind::Misconfigured,
                    format!("{title} refuses the client: {}", masked(&said, secrets)),
                ),
                TokenVerdict::Retry(why) => Failure::transient(format!("{title}: {}", masked(&why, secrets))),
            },
        })
    }

    /// The granted tokens, sealed for their row.
    pub(super) fn first_token(
        &self,
        provider: &'static dyn Provider,
        connection: &Connection,
        grant_id: Uuid,
        granted: &Granted,
    ) -> NewToken {
        let (id, tokens) = (connection.id, &granted.tokens);
        let terms = terms(provider, tokens, granted.sent_at);
        NewToken {
            connection: id,
            grant_id,
            access_sealed: self.seal(id, grant_id, ACCESS_COLUMN, &tokens.access_token),
            refresh_sealed: tokens
                .refresh_token
                .as_ref()
                .map(|token| self.seal(id, grant_id, REFRESH_COLUMN, token)),
            scopes: tokens.scopes.clone(),
            issued_at: granted.sent_at,
            expires_at: terms.expires_at,
            refresh_due_at: Some(terms.refresh_due_at),
        }
    }

    /// Makes the connection: account, tokens, end of the request and of the start link, in one transaction. An account
    /// that is not the connection's own, or another connection's, is refused, and nothing is touched.
    pub(super) async fn establish(
        &self,
        provider: &'static dyn Provider,
        id: ConnectionId,
        name: String,
        grant: GrantKind,
        proven: Proven,
        request: Uuid,
    ) -> Result<Ending, Failure> {
        let title = provider.spec().title;
        let mut tries = 0;
        let ending = loop {
            let (called, proven, daemon) = (name.clone(), proven.clone(), self.daemon);
            let written = self.db.transaction(move |conn| {
                let connection = connections::lock(conn, id)?;
                let as_what = AsWhat { name: called, title, grant, request, daemon };
                write_down(conn, &connection, proven, as_what)
            });
            tries += 1;
            match written.await {
                Ok(ending) => break ending,
                // The code is spent and cannot be exchanged again: the tokens in hand are all there is.
                Err(error) if error.is_transient() && tries < ESTABLISH_TRIES => {
                    warn!(
                        connection.id = id.0,
                        connection.name = name,
                        error = chain(&error),
                        "The new grant of `{name}` could not be written down yet"
                    );
                    tokio::time::sleep(retry::pause(tries, ESTABLISH_PAUSE, ESTABLISH_PAUSE * 4)).await;
                }
                Err(error) => return Err(Failure::from(&error)),
            }
        };
        if let Ending::Connected { name, .. } = &ending {
            info!(
                connection.id = id.0,
                connection.name = name,
                provider = provider.spec().name,
                "Connected `{name}` at {title}"
            );
        }
        Ok(ending)
    }

    /// Writes down that a consent did not lead to a connection. The start link stays good for another try; a connection
    /// that is in force stays as it is.
    async fn write_off(&self, redeemed: &Redeemed, ending: &Ending) -> Result<(), Failure> {
        let (id, request) = (redeemed.connection.id, redeemed.authorization.request_id);
        let (outcome, message, daemon) = (ending.outcome(), ending.message(), self.daemon);
        self.transaction(move |conn| {
            connections::lock(conn, id)?;
            connections::fail_pending(conn, id, &message)?;
            requests::finish(conn, request, outcome, Some(&message))?;
            record(conn, id, outcome.as_str(), Some(&message), daemon)
        })
        .await
    }
}

/// What a new grant is written down as.
struct AsWhat {
    name: String,
    title: &'static str,
    grant: GrantKind,
    request: Uuid,
    daemon: Uuid,
}

/// With what the provider's description says about consents that fail.
fn hinted(provider: &dyn Provider, text: String) -> String {
    match provider.consent_hint() {
        Some(hint) => format!("{text}: {hint}"),
        None => text,
    }
}

fn write_down(
    conn: &mut PgConnection,
    connection: &Connection,
    proven: Proven,
    AsWhat { name, title, grant, request, daemon }: AsWhat,
) -> Result<Ending, DbError> {
    if connection.account_id.as_deref().is_some_and(|known| known != proven.account.id) {
        return Ok(Ending::WrongAccount { name, title });
    }
    // Disconnected, or asked for anew, while the code was exchanged. What is connected keeps the newest grant instead.
    if connection.state != ConnectionState::Connected && authorizations::is_closed(conn, request)? {
        return Ok(Ending::Refused(Refusal::Closed));
    }
    let Account { id: account_id, name: account_name } = &proven.account;
    let id = connection.id;
    let done = connections::complete(conn, id, account_id, account_name.as_deref(), proven.grant_id)?;
    if let Err(taken) = done {
        return Ok(Ending::AccountTaken { by: taken.by, title });
    }
    // What ran with the grant before must not write any more.
    streams::bump(conn, id)?;
    turns::leave_pacing(conn, id, &proven.pacing)?;
    tokens::store_first(conn, &proven.token, grant)?;
    if let Some(secrets) = &proven.secrets {
        secrets::replace(conn, id, secrets)?;
    }
    let account = account_name.clone().unwrap_or_else(|| account_id.clone());
    let ending = Ending::Connected { name, title, account };
    end_requests(conn, id, request, &ending)?;
    record(conn, id, "done", None, daemon)?;
    requests::wake(conn)?;
    Ok(ending)
}

/// The request that led here is done; others that wait for a consent to the same connection have nothing to wait for.
fn end_requests(
    conn: &mut PgConnection,
    id: ConnectionId,
    request: Uuid,
    ending: &Ending,
) -> Result<(), DbError> {
    let message = ending.message();
    requests::finish(conn, request, ending.outcome(), Some(&message))?;
    requests::finish_open(conn, id, RequestKind::Connect, RequestOutcome::Superseded, Some(&message))?;
    authorizations::close_all(conn, id)
}

fn record(
    conn: &mut PgConnection,
    connection: ConnectionId,
    outcome: &'static str,
    detail: Option<&str>,
    daemon: Uuid,
) -> Result<(), DbError> {
    audit::write(conn, &audit::Entry { connection, event: "connect", outcome, detail, daemon })
}
