//! One refresh, from the open attempt to the committed tokens; or one probe of a key.
//!
//! What a failure does to the connection is written by [`super::setback`].

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::time::Duration;

use tracing::{error, info, warn};
use uuid::Uuid;

use super::between::Step;
use super::exchange::ALONE_MAX;
use super::late::LATE_MAX;
use super::policy::{self, PROBE_EVERY};
use super::proof::Credential;
use super::refresh::{BLOCKED_FOR, Refreshed, client_of};
use super::setback::Witness;
use super::spill::{InHand, Kept, Name, Order, Recorded, Traded};
use super::{ACCESS_COLUMN, Auth, REFRESH_COLUMN, TokenClient, permit_scope, throttled};
use crate::config::ProviderSettings;
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::refresh_attempts::{self, RefreshAttempt, Standing};
use crate::db::tokens::{self, Renewal, Renewed, Token};
use crate::db::{DbError, PgConnection, audit, rate_budget};
use crate::domain::chance;
use crate::domain::failure::{Failure, FailureKind, chain};
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::spec::GrantKind;
use crate::domain::time::delta;
use crate::domain::token::{TokenSet, TokenVerdict};
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted, TokenFailure};
use crate::http::{redact, retry};
use crate::providers::{Clues, Provider, TokenStep};
use chrono::{DateTime, Utc};

/// A second try after a lost reply is made only with this much time left.
const SECOND_TRY_MIN: Duration = Duration::from_secs(5);
/// The pause before it.
const SECOND_TRY_PAUSE: Duration = Duration::from_millis(500);
/// Refresh tokens that one refresh tries.
const OFFERS_MAX: usize = 4;
/// How often new tokens that are kept are offered to a database that does not take them; with pauses of at most 5 s.
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
    /// An earlier refresh of the same token, whose daemon never said what came of it.
    pub left_open: Option<Standing>,
}

/// What a refusal or a lost exchange means.
pub(super) struct Fault {
    pub failure: Failure,
    /// The grant is dead, says the provider: this part of it.
    pub dead: Option<Witness>,
    /// When to try again; `None`: by the number of failures.
    pub wait: Option<Duration>,
}

impl Fault {
    /// What came before a death, and may be its cause.
    fn after(mut self, what: &str) -> Self {
        if self.dead.is_some() {
            self.failure.message = format!("{}; {what}", self.failure.message);
        }
        self
    }
}

/// A refresh token that may be traded.
struct Offer {
    /// `None` for grants that have none.
    refresh_token: Option<Secret>,
    /// The spill that it was found in, and when it was issued; `None`: it is the database's.
    spill: Option<(Name, DateTime<Utc>)>,
}

impl Work<'_> {
    pub(super) async fn renew(&self, deadline: Deadline) -> Result<Refreshed, Failure> {
        let mut kept = self.kept().await;
        // What is granted now gets a number of its own, also beside replies that came before what is on record.
        let newest = kept.first().map_or(self.token.generation, |(name, _)| name.generation);
        kept.retain(|(name, kept)| self.order(*name, kept) != Order::Known);
        if let Some((_, kept)) = kept.first().filter(|(name, kept)| self.order(*name, kept) == Order::Next)
            && self.names_another_account(&kept.granted).is_none()
        {
            return self.catch_up(kept).await;
        }
        let exchanged = self.auth.answered(Box::pin(self.exchange(kept, deadline))).await;
        let (granted, spill) = match exchanged.map_err(passing).flatten() {
            Ok(traded) => traded,
            Err(fault) => return self.set_back(fault, "refresh").await,
        };
        let (spill, from) = (spill.map(|(name, _)| name), self.traded(spill));
        self.auth.between.at(self.connection.id, Step::Replied).await;
        let mut in_hand = match self.connection.grant {
            GrantKind::AuthorizationCode => {
                self.auth.in_hand(self.connection.id, self.token.grant_id, newest + 1, &granted, Some(from))
            }
            _ => self.auth.nothing_to_lose(),
        };
        in_hand.keep().await;
        let stood_still = self.auth.between.at(self.connection.id, Step::Spilled).await;
        // The token that was traded is spent: what came for it stays in the folder, whatever comes of it.
        if let Some(other) = self.names_another_account(&granted)
            && let Err(fault) = self
                .confirm_alone(&granted, &other, &mut in_hand, Deadline::after(ALONE_MAX).sooner(stood_still))
                .await
        {
            if fault.dead.is_some() {
                in_hand.set_foreign();
            }
            return self.set_back(fault, "refresh").await;
        }
        self.pass_on_warning(&granted);
        let written = self.commit(self.renewal(&granted, newest + 1), in_hand, spill).await?;
        self.auth.between.at(self.connection.id, Step::Committed).await;
        self.tell_of(written, newest + 1);
        if written == Swap::Doubtful { self.look_again().await } else { Ok(Refreshed::Renewed) }
    }

    fn order(&self, name: Name, kept: &Kept) -> Order {
        kept.order(name.generation, Recorded::from(&self.token))
    }

    /// The token that was traded: that of a spill, issued at that time, or the database's.
    fn traded(&self, spill: Option<(Name, DateTime<Utc>)>) -> Traded {
        let (generation, issued_at) = match spill {
            Some((name, issued_at)) => (name.generation, issued_at),
            None => (self.token.generation, self.token.issued_at),
        };
        Traded { generation, issued_at, begun_at: self.attempt.started_at }
    }

    fn names_another_account(&self, granted: &Granted) -> Option<Other> {
        names_another_account(self.provider, self.settings, &self.connection, granted)
    }

    /// [`Work::confirm`]. What is in this process alone is not let go because of something that passes.
    async fn confirm_alone(
        &self,
        granted: &Granted,
        other: &Other,
        in_hand: &mut InHand,
        deadline: Deadline,
    ) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            if in_hand.is_safe() {
                return self.confirm(granted, other, true).await;
            }
            let confirmed = self.held_open(self.confirm(granted, other, false)).await;
            let Err(fault) = &confirmed else { return confirmed };
            if fault.dead.is_some() || deadline.left().is_zero() {
                return confirmed;
            }
            tries += 1;
            let (id, name) = (self.connection.id, &self.connection.name);
            warn!(connection.id = id.0, connection.name = name, error = %fault.failure,
                "New tokens of `{name}` are in this process alone, and wait: {}", fault.failure);
            let pause = retry::pause(tries, COMMIT_PAUSE_FIRST, COMMIT_PAUSE_MAX);
            self.held_open(tokio::time::sleep(pause)).await;
            in_hand.keep().await;
        }
    }

    /// Keeps others out of the refresh meanwhile.
    async fn held_open<T>(&self, deed: impl Future<Output = T>) -> T {
        let mut deed = pin!(deed);
        loop {
            let _ = tokio::time::timeout(LATE_MAX, self.hold_on(BLOCKED_FOR)).await;
            if let Ok(done) = tokio::time::timeout(BLOCKED_FOR / 2, &mut deed).await {
                return done;
            }
        }
    }

    /// Has the API confirm that a token is ours whose reply names another account: rows of two accounts under one connection
    /// could never be told apart again. The daemon's end is in the way of that where the reply `is_safe`.
    async fn confirm(&self, granted: &Granted, other: &Other, is_safe: bool) -> Result<(), Fault> {
        let (auth, ours) = (self.auth, self.connection.account_id.as_deref().unwrap_or_default());
        let secrets = auth.open_secrets(self.connection.id).await.map_err(passing)?;
        let credential = Credential { token: &granted.tokens.access_token, secrets: &secrets };
        let (provider, settings, connection) = (self.provider, self.settings, &self.connection);
        let shown = if is_safe {
            auth.prove(provider, settings, connection, &credential, None).await
        } else {
            auth.prove_anyhow(provider, settings, connection, &credential, None).await
        };
        let title = self.provider.spec().title;
        let text = |found: &str| {
            format!(
                "{title} answered with tokens of {other}, not of account {ours}, {found}: they are not used"
            )
        };
        match shown {
            Ok(shown) if self.provider.is_account(ours, &shown.account.id) != Some(false) => Ok(()),
            Ok(_) => Err(dead(text("and its API says the same"), Witness::Ours)),
            Err(failure) if failure.kind == FailureKind::Misconfigured => {
                Err(dead(text("and its API says the same"), Witness::Ours))
            }
            Err(failure) => {
                let found = format!("and its API did not say whose they are ({failure})");
                Err(passing(Failure::changed(text(&found))))
            }
        }
    }

    fn pass_on_warning(&self, granted: &Granted) {
        let Some(said) = granted.warning() else { return };
        let (title, name) = (self.provider.spec().title, &self.connection.name);
        warn!(
            connection.id = self.connection.id.0,
            connection.name = name,
            provider = self.provider.spec().name,
            token.warning = said,
            "{title} granted a token for `{name}` with a warning: {said}"
        );
    }

    fn tell_of(&self, written: Swap, generation: i64) {
        match written {
            Swap::Done | Swap::Before | Swap::Doubtful => info!(
                connection.id = self.connection.id.0,
                connection.name = self.connection.name,
                provider = self.provider.spec().name,
                token.generation = generation,
                "Refreshed the token of `{}`",
                self.connection.name
            ),
            Swap::Overtaken => warn!(
                connection.id = self.connection.id.0,
                connection.name = self.connection.name,
                "The token of `{}` had moved on when a refresh was done: its result is dropped",
                self.connection.name
            ),
        }
    }

    /// Writes a reply down that was kept when it could not be written.
    async fn catch_up(&self, kept: &Kept) -> Result<Refreshed, Failure> {
        let generation = self.token.generation + 1;
        let begun_at = kept.from.map(|from| from.begun_at);
        let renewal = Renewal { begun_at, ..self.renewal(&kept.granted, generation) };
        let written = self.commit(renewal, self.auth.nothing_to_lose(), None).await?;
        info!(
            connection.id = self.connection.id.0,
            connection.name = self.connection.name,
            token.generation = generation,
            "A reply that was kept for `{}` is written down",
            self.connection.name
        );
        self.tell_of(written, generation);
        if written == Swap::Doubtful { self.look_again().await } else { Ok(Refreshed::Renewed) }
    }

    /// The replies that are kept under later generations than the database's, the newest first.
    async fn kept(&self) -> Vec<(Name, Kept)> {
        if self.connection.grant != GrantKind::AuthorizationCode {
            return Vec::new();
        }
        let (id, grant, from) = (self.connection.id, self.token.grant_id, self.token.generation + 1);
        // A daemon that shares the folder may have written one since the last look, in a database that has lost it since.
        let anew = self.left_open.is_some() || self.auth.spills.has_unseen(id, grant, from);
        self.auth.kept_replies(id, grant, from, anew).await
    }

    /// Trades the newest refresh token that there is; an older one where the provider calls that dead. Returns the spill
    /// that the traded one was found in, besides what was granted, in which the refresh token to be used from now on
    /// stands.
    async fn exchange(
        &self,
        kept: Vec<(Name, Kept)>,
        deadline: Deadline,
    ) -> Result<(Granted, Option<(Name, DateTime<Utc>)>), Fault> {
        let kept = self.without_held(kept).await.map_err(passing)?;
        let mut offers = match self.offers(kept) {
            Ok(offers) => offers,
            // What the row holds does not open: the folder may have the same.
            Err(failure) => match self.last_offers(&[]).await.map_err(passing)? {
                kept if kept.is_empty() => return Err(passing(failure)),
                kept => kept,
            },
        };
        let mut tried: Vec<Secret> = Vec::new();
        loop {
            let offer = offers.remove(0);
            let fault = match self.trade(&offer, deadline).await {
                Ok(granted) => return Ok((granted, offer.spill)),
                Err(fault) => fault,
            };
            tried.extend(offer.refresh_token);
            if fault.dead.is_some() && offers.is_empty() {
                offers = self.last_offers(&tried).await.map_err(passing)?;
            }
            if fault.dead.is_none() || offers.is_empty() || tried.len() >= OFFERS_MAX {
                return Err(self.explained(fault));
            }
            warn!(
                connection.id = self.connection.id.0,
                connection.name = self.connection.name,
                error = %fault.failure,
                "A refresh token of `{}` is dead, another one that is kept is tried",
                self.connection.name
            );
        }
    }

    /// Without replies that name an account which another connection of ours holds: who trades their tokens takes that one's
    /// grant, and gets nothing of this one.
    async fn without_held(&self, kept: Vec<(Name, Kept)>) -> Result<Vec<(Name, Kept)>, Failure> {
        let mut ours = Vec::new();
        for (name, kept) in kept {
            let id = self.connection.id;
            if let Some(account) = self.names_another_account(&kept.granted).and_then(|other| other.account)
                && let Some(holder) =
                    self.auth.db(move |conn| connections::holder(conn, id, &account)).await?
            {
                warn!(
                    connection.id = id.0,
                    connection.name = self.connection.name,
                    "The reply `{name}`, kept for `{}`, is of the account of `{holder}`, and is not used",
                    self.connection.name
                );
                continue;
            }
            ours.push((name, kept));
        }
        Ok(ours)
    }

    fn offers(&self, kept: Vec<(Name, Kept)>) -> Result<Vec<Offer>, Failure> {
        let mut offers: Vec<Offer> = Vec::new();
        if self.connection.grant == GrantKind::AuthorizationCode {
            // What is of another account takes our own token's place only where that is dead.
            let (foreign, kept) = kept.into_iter().partition(|(name, _)| self.auth.spills.is_foreign(*name));
            offers = from_spills(kept, &[]);
            if let Some((name, _)) = offers.first().and_then(|offer| offer.spill) {
                warn!(
                    connection.id = self.connection.id.0,
                    connection.name = self.connection.name,
                    token.generation = self.token.generation,
                    "The database has lost refreshes of `{}` up to generation {}: going on with what was kept",
                    self.connection.name,
                    name.generation
                );
            }
            match self.refresh_token() {
                Ok(ours) if offers.iter().all(|offer| offer.refresh_token.as_ref() != Some(&ours)) => {
                    offers.push(Offer { refresh_token: Some(ours), spill: None });
                }
                // What is kept is newer: a row that does not open is no reason to leave it.
                Err(failure) if offers.is_empty() && foreign.is_empty() => return Err(failure),
                Ok(_) | Err(_) => {}
            }
            let before: Vec<Secret> = offers.iter().filter_map(|offer| offer.refresh_token.clone()).collect();
            offers.extend(from_spills(foreign, &before));
        } else {
            offers.push(Offer { refresh_token: None, spill: None });
        }
        Ok(offers)
    }

    /// What may be left in the folder of spills when everything else is dead, another daemon's last word included.
    async fn last_offers(&self, tried: &[Secret]) -> Result<Vec<Offer>, Failure> {
        if self.connection.grant != GrantKind::AuthorizationCode {
            return Ok(Vec::new());
        }
        let from = self.token.generation;
        let kept = self.auth.kept_replies(self.connection.id, self.token.grant_id, from, true).await;
        Ok(from_spills(self.without_held(kept).await?, tried))
    }

    /// A death whose cause may be an interruption, or a reply that was lost before, says so.
    fn explained(&self, fault: Fault) -> Fault {
        match (&self.left_open, &self.token) {
            (Some(Standing { host, started_at, .. }), _) => fault.after(&format!(
                "the daemon on host `{host}` was interrupted in a refresh that began at {}, and its reply was not found",
                started_at.format("%Y-%m-%dT%H:%M:%SZ")
            )),
            (None, Token { failures: 1.., rejected_at: None, last_error: Some(said), .. }) => {
                fault.after(&format!("the refresh before it had failed ({said})"))
            }
            _ => fault,
        }
    }

    /// Asks the token endpoint; once more where the reply was lost, since the old token may still be good.
    async fn trade(&self, offer: &Offer, mut deadline: Deadline) -> Result<Granted, Fault> {
        let (first, sent) = self.ask(offer, &mut deadline).await?;
        let lost = matches!(first, Err(TokenFailure::Unavailable { sent: true, .. }));
        if !lost || deadline.left() < SECOND_TRY_MIN {
            return first.map_err(|failure| self.fault(failure, &sent));
        }
        warn!(
            connection.id = self.connection.id.0,
            connection.name = self.connection.name,
            "The reply to a refresh of `{}` was lost: trying once more",
            self.connection.name
        );
        tokio::time::sleep(SECOND_TRY_PAUSE).await;
        let (again, sent) = self.ask(offer, &mut deadline).await?;
        again.map_err(|failure| {
            self.fault(failure, &sent)
                .after("the reply to the try before it was lost, and perhaps a new token with it")
        })
    }

    /// Returns the secrets that were sent as well: a refusal may quote them.
    async fn ask(
        &self,
        offer: &Offer,
        deadline: &mut Deadline,
    ) -> Result<(Result<Granted, TokenFailure>, Vec<Secret>), Fault> {
        let auth = self.auth;
        let (http, clock) = (&auth.http, auth.clock.as_ref());
        let url = &self.settings.token_url;
        let Some(refresh_token) = &offer.refresh_token else {
            let secrets = auth.open_secrets(self.connection.id).await.map_err(passing)?;
            let client = self.client(TokenStep::ClientCredentials, &secrets).map_err(passing)?;
            let endpoint = client.endpoint(url);
            let asked =
                oauth::client_credentials(http, &endpoint, &self.settings.scopes, *deadline, clock).await;
            return Ok((asked, secrets.into_values().collect()));
        };
        let client = self.client(TokenStep::Refresh, &BTreeMap::new()).map_err(passing)?;
        let endpoint = client.endpoint(url);
        let asked = oauth::refresh(http, &endpoint, refresh_token, Deadline::never(), clock);
        let asked = auth.in_time(self.connection.id, asked, deadline, self.hold_on(LATE_MAX * 2)).await;
        let asked = asked.map(|mut granted| {
            // What is kept of the reply must be enough to go on with.
            granted.tokens.refresh_token.get_or_insert_with(|| refresh_token.clone());
            granted
        });
        Ok((asked, client.secret.into_iter().chain([refresh_token.clone()]).collect()))
    }

    /// Keeps others out for so much more, where nobody has begun yet.
    async fn hold_on(&self, more: Duration) {
        let attempt = self.attempt.clone();
        let held = self.auth.transaction(move |conn| refresh_attempts::hold(conn, &attempt, more));
        let (id, name) = (self.connection.id, &self.connection.name);
        if let Err(failure) = held.await {
            warn!(connection.id = id.0, connection.name = name, error = %failure,
                "Others could not be kept out of a refresh of `{name}` that takes long: {failure}");
        }
    }

    /// The client that other connections use too, by the scope of its permits.
    pub(super) fn shared_client(&self) -> Option<String> {
        let shared = self.connection.grant == GrantKind::AuthorizationCode;
        shared.then(|| permit_scope(self.provider, client_of(&self.connection, &self.settings.client_id)))
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

    /// What a refusal means. It may quote what was `sent`.
    fn fault(&self, failure: TokenFailure, sent: &[Secret]) -> Fault {
        let title = self.provider.spec().title;
        match failure {
            TokenFailure::Throttled { wait } => {
                Fault { failure: throttled(self.provider, self.auth.clock.now(), wait), dead: None, wait }
            }
            TokenFailure::Unavailable { message, .. } => {
                passing(Failure::transient(format!("{title}: {message}")))
            }
            TokenFailure::Refused { status, body } => {
                let verdict = self.provider.judge_token(status, &body);
                self.judged(verdict, &sent.iter().collect::<Vec<_>>())
            }
        }
    }

    /// For client credentials the client is the account's own: its refusal concerns nobody else.
    fn judged(&self, verdict: TokenVerdict, sent: &[&Secret]) -> Fault {
        let title = self.provider.spec().title;
        let own_client = self.connection.grant == GrantKind::ClientCredentials;
        match verdict {
            TokenVerdict::Dead(said) => {
                let text = format!("{title} says that the grant is dead: {}", masked(&said, sent));
                dead(text, Witness::TokenEndpoint)
            }
            TokenVerdict::Misconfigured(said) if own_client => {
                let text = format!("{title} refuses these client credentials: {}", masked(&said, sent));
                dead(text, Witness::TokenEndpoint)
            }
            TokenVerdict::Misconfigured(said) => passing(Failure::new(
                FailureKind::Misconfigured,
                format!("{title} refuses our client, not the account: {}", masked(&said, sent)),
            )),
            TokenVerdict::Retry(why) => {
                passing(Failure::transient(format!("{title}: {}", masked(&why, sent))))
            }
        }
    }

    fn renewal(&self, granted: &Granted, generation: i64) -> Renewal {
        let of = (self.connection.id, self.token.grant_id, generation);
        renewal(self.auth, self.provider, of, granted, self.token.issued_at)
    }

    /// Writes the new tokens down, and keeps at it: the old refresh token may be spent already. A reply that could not
    /// be kept is in this process alone, which neither gives up nor ends before it is written somewhere.
    async fn commit(
        &self,
        renewal: Renewal,
        mut in_hand: InHand,
        from: Option<Name>,
    ) -> Result<Swap, Failure> {
        let mut tries = 0;
        loop {
            let (attempt, renewal, daemon) = (self.attempt.clone(), renewal.clone(), self.auth.daemon);
            let (scope, provider) = (self.shared_client(), self.provider.spec().name);
            let now = self.auth.clock.now();
            let detail = from.map(|name| {
                format!(
                    "the database had lost generations {} to {}: what was kept of them was traded",
                    attempt.generation + 1,
                    name.generation
                )
            });
            let done = self.auth.db.transaction(move |conn| {
                let connection = connections::lock(conn, attempt.connection)?;
                let swap = swap(conn, &connection, &attempt, &renewal)?;
                if swap != Swap::Overtaken
                    && let Some(scope) = &scope
                    && rate_budget::go_on(conn, scope)?
                {
                    tokens::retry_blamed(conn, provider, now)?;
                }
                if swap != Swap::Before {
                    note(conn, &attempt, "refresh", swap.word(), detail.as_deref(), daemon)?;
                }
                Ok(swap)
            });
            let error = match done.await {
                Ok(swap) => return Ok(swap),
                Err(error) => error,
            };
            tries += 1;
            in_hand.keep().await;
            let enough = !error.is_transient() || tries >= COMMIT_TRIES || self.auth.is_over();
            if tries == 1 || enough {
                error!(
                    connection.id = self.connection.id.0,
                    connection.name = self.connection.name,
                    error = chain(&error),
                    "New tokens of `{}` could not be written down{}",
                    self.connection.name,
                    if in_hand.is_safe() { "" } else { ", and are in this process alone" }
                );
            }
            if enough && in_hand.is_safe() {
                return Err(Failure::from(&error));
            }
            let pause = retry::pause(tries.min(COMMIT_TRIES), COMMIT_PAUSE_FIRST, COMMIT_PAUSE_MAX);
            tokio::time::sleep(pause).await;
        }
    }

    async fn opened_key(&self) -> Result<(Secret, BTreeMap<String, Secret>), Failure> {
        let sealed = &self.token.access_sealed;
        let key = self.auth.open(self.connection.id, self.token.grant_id, ACCESS_COLUMN, sealed)?;
        Ok((key, self.auth.open_secrets(self.connection.id).await?))
    }

    /// Looks whether a key still works. One that does not is tried again every six hours.
    pub(super) async fn probe(&self) -> Result<Refreshed, Failure> {
        let (key, secrets) = match self.opened_key().await {
            Ok(opened) => opened,
            // Counted like any other failure: the attempt is closed, and the reason is on record.
            Err(failure) => return self.set_back(passing(failure), "probe").await,
        };
        let credential = Credential { token: &key, secrets: &secrets };
        let proven = self.auth.prove(self.provider, self.settings, &self.connection, &credential, None).await;
        let account = match proven {
            Ok(shown) => shown.account,
            Err(failure) if failure.kind == FailureKind::NeedsReauth => {
                return self.set_back(dead(failure.message, Witness::Api), "probe").await;
            }
            Err(failure) => return self.set_back(passing(failure), "probe").await,
        };
        let known = self.connection.account_id.as_deref();
        if known.is_some_and(|known| self.provider.is_account(known, &account.id) == Some(false)) {
            let text = "the key now belongs to another account";
            return self.set_back(dead(text.to_owned(), Witness::TokenEndpoint), "probe").await;
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

/// Another account than the connection's.
pub(super) struct Other {
    /// Its id, where that is told.
    account: Option<String>,
    said: String,
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

/// The account that a reply names, where it names one and that is not the connection's.
pub(super) fn names_another_account(
    provider: &'static dyn Provider,
    settings: &ProviderSettings,
    connection: &Connection,
    granted: &Granted,
) -> Option<Other> {
    let ours = connection.account_id.as_deref()?;
    let named = provider.identity(&Clues {
        grant: connection.grant,
        granted: &granted.extra,
        introspected: None,
        claims: granted.claims.as_ref(),
        params: &connection.params,
        options: &settings.extra,
        known: Some(ours),
        replies: &[],
    });
    match named {
        Ok(account) => {
            let is_other = provider.is_account(ours, &account.id) == Some(false);
            let said = format!("account {}", account.id);
            is_other.then_some(Other { account: Some(account.id), said })
        }
        // What names none is no proof, but one that contradicts what the connection was made with is.
        Err(failure) if failure.kind == FailureKind::Misconfigured => {
            Some(Other { account: None, said: format!("another account ({failure})") })
        }
        Err(_) => None,
    }
}

/// What a reply is written to the database as.
pub(super) fn renewal(
    auth: &Auth,
    provider: &'static dyn Provider,
    (id, grant, generation): (ConnectionId, Uuid, i64),
    granted: &Granted,
    replaces: DateTime<Utc>,
) -> Renewal {
    let terms = terms(provider, &granted.tokens, granted.sent_at);
    Renewal {
        generation,
        replaces,
        begun_at: None,
        access_sealed: auth.seal(id, grant, ACCESS_COLUMN, &granted.tokens.access_token),
        refresh_sealed: granted
            .tokens
            .refresh_token
            .as_ref()
            .map(|token| auth.seal(id, grant, REFRESH_COLUMN, token)),
        scopes: granted.tokens.scopes.clone(),
        issued_at: granted.sent_at,
        expires_at: terms.expires_at,
        refresh_due_at: terms.refresh_due_at,
    }
}

/// What became of new tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swap {
    Done,
    /// By an earlier try, whose commit was not answered, or by a daemon that found the spill. That has left its line in the
    /// audit log.
    Before,
    /// The API has refused the tokens before these, and the connection stays as it is until it takes them.
    Doubtful,
    /// The token had moved on.
    Overtaken,
}

impl Swap {
    /// The word in the audit log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Done | Self::Before | Self::Doubtful => "done",
            Self::Overtaken => "overtaken",
        }
    }
}

/// Puts new tokens in the place of those that the attempt set out from, under the lock of the connection.
pub(super) fn swap(
    conn: &mut PgConnection,
    connection: &Connection,
    attempt: &RefreshAttempt,
    renewal: &Renewal,
) -> Result<Swap, DbError> {
    match tokens::renew(conn, attempt, renewal)? {
        Renewed::Done => revive(conn, connection).map(|()| Swap::Done),
        Renewed::Doubtful => Ok(Swap::Doubtful),
        Renewed::Overtaken if tokens::is_renewed(conn, attempt, renewal)? => Ok(Swap::Before),
        Renewed::Overtaken => Ok(Swap::Overtaken),
    }
}

/// The refresh tokens of spills, without those that were tried.
fn from_spills(kept: Vec<(Name, Kept)>, tried: &[Secret]) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    for (name, Kept { granted, .. }) in kept {
        let refresh_token = granted.tokens.refresh_token;
        let is_new = |token: &Secret| !tried.contains(token);
        let is_here = offers.iter().any(|offer| offer.refresh_token == refresh_token);
        if refresh_token.as_ref().is_some_and(is_new) && !is_here {
            offers.push(Offer { refresh_token, spill: Some((name, granted.sent_at)) });
        }
    }
    offers
}

/// When a token expires, as far as known, and when it is to be refreshed.
pub(super) struct Terms {
    pub expires_at: Option<DateTime<Utc>>,
    pub refresh_due_at: DateTime<Utc>,
}

/// A life that the provider does not tell is assumed for the schedule, but never taken for an expiry.
pub(super) fn terms(provider: &'static dyn Provider, tokens: &TokenSet, sent_at: DateTime<Utc>) -> Terms {
    terms_of(provider, sent_at, tokens.expires_in.map(|life| sent_at + delta(life)))
}

pub(super) fn terms_of(
    provider: &'static dyn Provider,
    sent_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
) -> Terms {
    let assumed = sent_at + delta(provider.spec().token_life_default);
    Terms {
        expires_at,
        refresh_due_at: policy::refresh_due_at(sent_at, expires_at.unwrap_or(assumed), chance::share()),
    }
}

/// A grant that works again, or works after all.
pub(super) fn revive(conn: &mut PgConnection, connection: &Connection) -> Result<(), DbError> {
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
    audit::write(conn, &audit::Entry { connection: Some(attempt.connection), event, outcome, detail, daemon })
}

fn passing(failure: Failure) -> Fault {
    // A grant that never had a refresh token cannot be renewed by trying.
    let dead = (failure.kind == FailureKind::NeedsReauth).then_some(Witness::Ours);
    Fault { failure, dead, wait: None }
}

fn dead(message: String, witness: Witness) -> Fault {
    Fault { failure: Failure::new(FailureKind::NeedsReauth, message), dead: Some(witness), wait: None }
}

/// A provider's words, without what looks like a secret or is one of `secrets`, cut short.
pub(super) fn masked(said: &str, secrets: &[&Secret]) -> String {
    let said = redact::values(said.to_owned(), secrets.iter().copied());
    redact::truncate(&redact::text(&said), SAID_MAX)
}
