//! From the browser's return to a connection: the code is exchanged, the account asked for, the tokens sealed, and all
//! of it written in one transaction.
//!
//! The endpoint and `callback URL` share [`Auth::conclude`]. It runs in a task of its own: a browser that is closed, a
//! cancelled job or a shutdown does not stop it halfway.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Ending;
use super::answer::Said;
use super::authorize::{Key, Recognised, Redeemed, Refusal};
use super::between::Step;
use super::patience::Patience;
use super::proof::{Credential, Shown};
use super::renewal::{masked, terms};
use super::spill::InHand;
use super::{ACCESS_COLUMN, Auth, REFRESH_COLUMN, TokenClient, permit_scope, throttled};
use crate::config::ProviderSettings;
use crate::db::authorizations;
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::requests;
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
/// How long a reply is held that is in this process alone because it cannot be kept, while the provider does not tell whose
/// it is.
pub(super) const ALONE_MAX: Duration = Duration::from_mins(4);
/// How often a new grant that is kept is offered to a database that does not take it.
const ESTABLISH_TRIES: u32 = 20;
/// The first pause between two tries.
const ESTABLISH_PAUSE: Duration = Duration::from_millis(500);
const FROM_FOLDER: &str = "the database did not know this grant: what was kept of it has proved itself";

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
        let mut in_hand = None;
        let ending = match said {
            Said::Code(code) => {
                match self.connect_with(provider, &redeemed, &code, &mut in_hand).await {
                    Ok(ending) => ending,
                    // What is kept is tried again without anybody's help, so the consent has not failed.
                    Err(Unfinished::Postponed(failure)) => {
                        return Ok(self.postponed(&redeemed, Ending::Postponed { title, failure }).await);
                    }
                    Err(Unfinished::Failed(failure)) => Ending::Failed(failure),
                }
            }
            Said::Denied | Said::Nothing => Ending::Denied { title },
            Said::Error(word) => {
                let text = hinted(provider, format!("{title} broke the consent off: `{word}`"));
                Ending::Failed(Failure::new(FailureKind::Misconfigured, text))
            }
        };
        if !matches!(ending, Ending::Connected { .. }) {
            self.write_off(&redeemed, &ending).await?;
            if let Some(in_hand) = &mut in_hand {
                in_hand.discard().await;
            }
        }
        Ok(ending)
    }

    /// Trades the code, and makes the connection. What came for the code is left `in_hand`.
    async fn connect_with(
        &self,
        provider: &'static dyn Provider,
        redeemed: &Redeemed,
        code: &Secret,
        in_hand: &mut Option<InHand>,
    ) -> Result<Ending, Unfinished> {
        let id = redeemed.connection.id;
        let (_, settings) = self.provider(&redeemed.connection.provider).map_err(Unfinished::Failed)?;
        self.between.at(id, Step::Open).await;
        let granted = self.exchange_code(provider, settings, redeemed, code).await;
        let granted = granted.map_err(Unfinished::Failed)?;
        self.between.at(id, Step::Replied).await;
        // The code is spent: from here on the reply outlives us.
        let in_hand = in_hand.insert(self.in_hand(id, redeemed.attempt.id, 1, &granted, None));
        in_hand.keep().await;
        let ended = self.connect_alone(provider, &redeemed.claim(), (1, &granted), in_hand).await;
        let ending = ended.map_err(|unfinished| match unfinished {
            // A token that was granted a moment ago may not be known everywhere yet, and its refusal says nothing of the
            // grant: that is found out by a refresh.
            Unfinished::Failed(failure)
                if failure.kind == FailureKind::NeedsReauth
                    && in_hand.is_safe()
                    && granted.tokens.refresh_token.is_some() =>
            {
                Unfinished::Postponed(failure)
            }
            unfinished => unfinished,
        })?;
        self.between.at(id, Step::Committed).await;
        Ok(ending)
    }

    /// [`Auth::connect_as`], once a reply is kept. What is in this process alone is not let go because of something that passes.
    pub(super) async fn connect_alone(
        &self,
        provider: &'static dyn Provider,
        claim: &Claim<'_>,
        (generation, granted): (i64, &Granted),
        in_hand: &mut InHand,
    ) -> Result<Ending, Unfinished> {
        let stood_still = self.between.at(claim.connection.id, Step::Spilled).await;
        let (deadline, mut tries) = (Deadline::after(ALONE_MAX).sooner(stood_still), 0);
        loop {
            let ended = self.connect_as(provider, claim, (generation, granted), in_hand).await;
            let Err(Unfinished::Failed(failure)) = &ended else { return ended };
            // A token that was granted a moment ago may not be known everywhere yet.
            let is_new = failure.kind == FailureKind::NeedsReauth && granted.tokens.refresh_token.is_some();
            if in_hand.is_safe() || !(passes(failure) || is_new) || deadline.left().is_zero() {
                return ended;
            }
            tries += 1;
            let (id, name) = (claim.connection.id, &claim.connection.name);
            warn!(connection.id = id.0, connection.name = name, error = %failure,
                "The new grant of `{name}` is in this process alone, and waits: {failure}");
            tokio::time::sleep(retry::pause(tries, ESTABLISH_PAUSE, ESTABLISH_PAUSE * 4)).await;
            in_hand.keep().await;
        }
    }

    /// Makes the connection with what was granted for its code, or for the refresh tokens that followed from it.
    pub(super) async fn connect_as(
        &self,
        provider: &'static dyn Provider,
        claim: &Claim<'_>,
        (generation, granted): (i64, &Granted),
        in_hand: &mut InHand,
    ) -> Result<Ending, Unfinished> {
        let Claim { connection, grant, by } = *claim;
        let found = self.provider(&connection.provider);
        let (_, settings) = found.map_err(|failure| in_hand.put_off(failure))?;
        let beside = match by {
            By::Request(request) => self.secrets_beside(request).await,
            By::Folder { .. } => Ok(None),
        };
        let beside = beside.map_err(|failure| in_hand.put_off(failure))?;
        let kept = match &beside {
            Some(_) => BTreeMap::new(),
            None => self.open_secrets(connection.id).await.map_err(|failure| in_hand.put_off(failure))?,
        };
        let access_token = &granted.tokens.access_token;
        let credential = Credential { token: access_token, secrets: beside.as_ref().unwrap_or(&kept) };
        let shown = if in_hand.is_safe() {
            self.prove(provider, settings, connection, &credential, Some(granted)).await
        } else {
            self.prove_anyhow(provider, settings, connection, &credential, Some(granted)).await
        };
        let Shown { account, pacing } = shown.map_err(|failure| in_hand.unfinished(failure))?;
        let token = self.first_token(provider, connection, (grant, generation), granted);
        let secrets = beside.map(|beside| self.sealed(connection, grant, &beside));
        let proven = Proven { account, pacing, grant_id: grant, token, secrets };
        let as_what = AsWhat {
            name: connection.name.clone(),
            title: provider.spec().title,
            grant: GrantKind::AuthorizationCode,
            by,
            daemon: self.daemon,
        };
        let written = self.establish(provider, connection.id, proven, as_what, Some(in_hand)).await;
        let ending = written.map_err(|failure| in_hand.unfinished(failure))?;
        if matches!(ending, Ending::Connected { .. }) {
            self.forget_other_grants(connection.id, grant).await;
        }
        Ok(ending)
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
        let mut patience = Patience::with_code();
        loop {
            self.take_permit(provider, &client.id).await?;
            let failure = match self.trade_code(settings, &client, redeemed, code).await? {
                Ok(granted) => return Ok(granted),
                Err(failure) => failure,
            };
            // A code is good for one exchange: a lost reply is not asked for again.
            let is_spent = !failure.is_unheard();
            let failure = match failure {
                // No answer to a code, or one that is none, such as a page of HTML.
                TokenFailure::Unavailable { sent: true, message, .. } => {
                    let title = provider.spec().title;
                    Failure::transient(hinted(provider, format!("{title}: {message}")))
                }
                failure => self.no_tokens(provider, &client, failure, &[code]).await?,
            };
            if is_spent {
                return Err(failure);
            }
            self.bear_with(&mut patience, failure).await?;
        }
    }

    async fn trade_code(
        &self,
        settings: &ProviderSettings,
        client: &TokenClient,
        redeemed: &Redeemed,
        code: &Secret,
    ) -> Result<Result<Granted, TokenFailure>, Failure> {
        let endpoint = client.endpoint(&settings.token_url);
        let mut deadline = Deadline::after(EXCHANGE_MAX);
        let asked = oauth::exchange_code(
            &self.http,
            &endpoint,
            code,
            &redeemed.attempt.redirect_uri,
            redeemed.verifier.as_ref(),
            Deadline::never(),
            self.clock.as_ref(),
        );
        // Nobody else has the code.
        let hold_on = std::future::ready(());
        self.answered(self.in_time(redeemed.connection.id, asked, &mut deadline, hold_on)).await
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
        (grant_id, generation): (Uuid, i64),
        granted: &Granted,
    ) -> NewToken {
        let (id, tokens) = (connection.id, &granted.tokens);
        let terms = terms(provider, tokens, granted.sent_at);
        NewToken {
            connection: id,
            grant_id,
            generation,
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
        proven: Proven,
        as_what: AsWhat,
        mut in_hand: Option<&mut InHand>,
    ) -> Result<Ending, Failure> {
        let (name, title) = (as_what.name.as_str(), as_what.title);
        let mut tries = 0;
        let ending = loop {
            let (proven, as_what) = (proven.clone(), as_what.clone());
            let written = self.db.transaction(move |conn| {
                let connection = connections::lock(conn, id)?;
                write_down(conn, &connection, provider, proven, as_what)
            });
            tries += 1;
            match written.await {
                Ok(ending) => break ending,
                // The code is spent and cannot be exchanged again: the tokens in hand are all there is.
                Err(error) => {
                    if let Some(in_hand) = &mut in_hand {
                        in_hand.keep().await;
                    }
                    let is_safe = in_hand.as_ref().is_none_or(|in_hand| in_hand.is_safe());
                    let enough = !error.is_transient() || tries >= ESTABLISH_TRIES || self.is_over();
                    if is_safe && enough {
                        return Err(Failure::from(&error));
                    }
                    warn!(
                        connection.id = id.0,
                        connection.name = name,
                        error = chain(&error),
                        "The new grant of `{name}` could not be written down yet"
                    );
                    tokio::time::sleep(retry::pause(tries, ESTABLISH_PAUSE, ESTABLISH_PAUSE * 4)).await;
                }
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

    /// Says that a consent waits. It may be the database that is waited for: then there is only the log.
    async fn postponed(&self, redeemed: &Redeemed, ending: Ending) -> Ending {
        let (id, daemon, message) = (redeemed.connection.id, self.daemon, ending.message());
        let (name, text) = (&redeemed.connection.name, message.clone());
        warn!(
            connection.id = id.0,
            connection.name = name,
            error = text,
            "`{name}` is not connected yet: {text}"
        );
        let noted = self.transaction(move |conn| {
            connections::lock(conn, id)?;
            connections::note_pending(conn, id, &message)?;
            record(conn, id, "postponed", Some(&message), daemon)
        });
        if let Err(failure) = noted.await {
            debug!(connection.id = id.0, error = %failure, "Nor could that be written down: {failure}");
        }
        ending
    }

    /// Writes down that a consent did not lead to a connection. The start link stays good for another try; a connection
    /// that is in force stays as it is.
    pub(super) async fn write_off(&self, redeemed: &Redeemed, ending: &Ending) -> Result<(), Failure> {
        let (id, request) = (redeemed.connection.id, redeemed.authorization.request_id);
        let (outcome, message, daemon) = (ending.outcome(), ending.message(), self.daemon);
        self.transaction(move |conn| {
            connections::lock(conn, id)?;
            connections::fail_pending(conn, id, &message)?;
            requests::finish(conn, request, outcome, Some(&message))?;
            // Of one that had expired before.
            requests::wipe(conn, request)?;
            record(conn, id, outcome.as_str(), Some(&message), daemon)
        })
        .await
    }
}

/// Why a code has not led to an ending yet.
pub(super) enum Unfinished {
    /// Something is in the way that says nothing of the grant, such as the database, a firewall before the provider, or a
    /// key that is missing; or the daemon stops. What was granted is kept, and tried again later.
    Postponed(Failure),
    Failed(Failure),
}

impl InHand {
    /// What a failure means for the reply.
    fn unfinished(&self, failure: Failure) -> Unfinished {
        if self.is_safe() && passes(&failure) {
            Unfinished::Postponed(failure)
        } else {
            Unfinished::Failed(failure)
        }
    }

    /// Something of ours is in the way, such as a key that is missing: that says nothing of the grant.
    fn put_off(&self, failure: Failure) -> Unfinished {
        if self.is_safe() { Unfinished::Postponed(failure) } else { Unfinished::Failed(failure) }
    }
}

/// Whether it is not the provider itself that says no, nor whose account it is that contradicts what the admin gave: any
/// other 4xx may be the page of a firewall or about maintenance.
pub(super) fn passes(failure: &Failure) -> bool {
    use FailureKind::{Forbidden, Misconfigured, NeedsReauth};
    !matches!(failure.kind, NeedsReauth | Misconfigured | Forbidden { scope: Some(_) })
}

/// What a new grant is for.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    pub connection: &'a Connection,
    pub grant: Uuid,
    pub by: By,
}

/// What brought a new grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The consent, or the keys, that this request asked for.
    Request(Uuid),
    /// A reply that was kept of a consent that the database does not know. It takes the place of this grant alone.
    Folder { instead_of: Option<Uuid> },
}

/// What a new grant is written down as.
#[derive(Clone)]
pub(super) struct AsWhat {
    pub name: String,
    pub title: &'static str,
    pub grant: GrantKind,
    pub by: By,
    pub daemon: Uuid,
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
    provider: &'static dyn Provider,
    proven: Proven,
    AsWhat { name, title, grant, by, daemon }: AsWhat,
) -> Result<Ending, DbError> {
    let Account { id: account_id, name: account_name } = &proven.account;
    let account = account_name.clone().unwrap_or_else(|| account_id.clone());
    // By another daemon, which found the spill.
    let in_force = tokens::load(conn, connection.id)?.map(|token| token.grant_id);
    if in_force == Some(proven.grant_id) {
        return Ok(Ending::Connected { name, title, account });
    }
    let same = connection.account_id.as_deref().map(|known| (known, provider.is_account(known, account_id)));
    match same {
        None | Some((_, Some(true))) => {}
        Some((_, Some(false))) => return Ok(Ending::WrongAccount { name, title }),
        // Rows of two accounts could never be told apart again.
        Some((known, None)) => {
            return Ok(Ending::Failed(Failure::changed(format!(
                "{title} names the account `{account_id}`, and `{name}` is of `{known}`: whether that is the same one cannot \
                 be told. If it is, connect it under a new name after `fieldmirror enqueue --disconnect {name}`"
            ))));
        }
    }
    // Disconnected, or asked for anew, while the code was exchanged. What is connected keeps the newest grant instead.
    let is_late = match (by, in_force) {
        (By::Folder { instead_of }, in_force) => {
            in_force != instead_of || connection.state == ConnectionState::Disconnected
        }
        (By::Request(_), Some(in_force)) if connection.state == ConnectionState::Connected => {
            authorizations::came_later(conn, in_force, proven.grant_id)?
        }
        (By::Request(request), _) => authorizations::is_replaced(conn, request)?,
    };
    if is_late {
        return Ok(Ending::Refused(Refusal::Closed));
    }
    let id = connection.id;
    let done = connections::complete(conn, id, account_id, account_name.as_deref(), proven.grant_id)?;
    if let Err(taken) = done {
        return Ok(Ending::AccountTaken { by: taken.by, title });
    }
    // What ran with the grant before must not write any more.
    streams::bump(conn, id)?;
    turns::leave_pacing(conn, id, &proven.pacing)?;
    turns::forget_learned(conn, id)?;
    streams::try_again(conn, id)?;
    tokens::store_first(conn, &proven.token, grant)?;
    if let Some(secrets) = &proven.secrets {
        secrets::replace(conn, id, secrets)?;
    }
    let ending = Ending::Connected { name, title, account };
    end_requests(conn, id, (by, daemon), &ending)?;
    let unknown = matches!(by, By::Folder { .. }).then_some(FROM_FOLDER);
    record(conn, id, "done", unknown, daemon)?;
    requests::wake(conn)?;
    Ok(ending)
}

/// The request that led here is done; others that wait for a consent to the same connection have nothing to wait for.
fn end_requests(
    conn: &mut PgConnection,
    id: ConnectionId,
    (by, daemon): (By, Uuid),
    ending: &Ending,
) -> Result<(), DbError> {
    let message = ending.message();
    if let By::Request(request) = by {
        requests::finish(conn, request, ending.outcome(), Some(&message))?;
    }
    requests::supersede_connects(conn, id, None, &message, daemon)?;
    authorizations::close_all(conn, id)
}

pub(super) fn record(
    conn: &mut PgConnection,
    connection: ConnectionId,
    outcome: &'static str,
    detail: Option<&str>,
    daemon: Uuid,
) -> Result<(), DbError> {
    audit::write(
        conn,
        &audit::Entry { connection: Some(connection), event: "connect", outcome, detail, daemon },
    )
}
