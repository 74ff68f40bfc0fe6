//! Consents that were interrupted after their code had been traded: what is kept of the reply still makes the connection,
//! as long as the consent's attempt is on record. An access token that has run out meanwhile is renewed first. One that is
//! not on record, since the database was restored, has to prove itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::authorize::Redeemed;
use super::exchange::{By, Claim, Unfinished, passes, record};
use super::policy::{self, DEAD_RETRY, RETRY_MAX};
use super::refresh::{BLOCKED_FOR, EXCHANGE_MAX};
use super::setback::MASS_REASON;
use super::spill::{self, InHand, Name, PutOff, Traded};
use super::{Auth, Ending};
use crate::db::connections::{self, Connection};
use crate::db::refresh_attempts::{self, Exclusion, RefreshAttempt};
use crate::db::requests::{self, RequestOutcome};
use crate::db::tokens::{self, Fate};
use crate::db::{audit, authorizations, session};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::secret::Secret;
use crate::domain::spec::GrantKind;
use crate::domain::time::delta;
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted};
use crate::providers::TokenStep;

/// How soon an access token of a kept consent that the API refuses is renewed again.
const RENEWED_AGAIN_AFTER: TimeDelta = TimeDelta::hours(1);
/// How long after a consent its kept reply is tried again where the provider calls the grant dead: shorter than its attempt is
/// on record.
const DOUBTED_FOR: TimeDelta = TimeDelta::days(6);

/// A consent whose code was traded, and that has not led to a connection.
pub(super) enum Interrupted {
    /// It can still be concluded: it was given in time, even where its link has expired since.
    Waits(Box<Redeemed>),
    Replaced,
}

impl Auth {
    /// The consent that a kept reply belongs to.
    pub(super) async fn interrupted(&self, name: Name) -> Result<Option<Interrupted>, Failure> {
        let now = self.clock.now();
        self.transaction(move |conn| {
            let Some(attempt) = authorizations::attempt(conn, name.grant)? else { return Ok(None) };
            let authorization = authorizations::get(conn, attempt.authorization_id, now)?;
            let Some(authorization) = authorization.filter(|of| of.connection() == name.connection) else {
                return Ok(None);
            };
            if authorizations::is_replaced(conn, authorization.request_id)? {
                return Ok(Some(Interrupted::Replaced));
            }
            let connection = connections::get(conn, name.connection)?;
            let redeemed = Redeemed { attempt, authorization, connection, verifier: None };
            Ok(Some(Interrupted::Waits(Box::new(redeemed))))
        })
        .await
    }

    /// Brings such a consent to its end.
    ///
    /// # Errors
    /// What is in the way will pass, or may: the reply stays where it is.
    pub(super) async fn conclude_kept(
        &self,
        name: Name,
        granted: &Granted,
        redeemed: &Redeemed,
    ) -> Result<(), Failure> {
        let mut in_hand = self.nothing_to_lose();
        let ending = match self.use_kept(name, granted, &redeemed.claim(), &mut in_hand).await {
            Ok(ending) => ending,
            Err(Unfinished::Postponed(failure)) => return Err(failure),
            // The new reply could be kept nowhere, and what is in the way outlasted it: what was kept before may still be good.
            Err(Unfinished::Failed(failure)) if passes(&failure) => return Err(failure),
            Err(Unfinished::Failed(failure))
                if failure.kind == FailureKind::NeedsReauth && self.may_revive(granted, redeemed) =>
            {
                return Err(self.doubt_kept(name, redeemed, failure).await?);
            }
            Err(Unfinished::Failed(failure)) => Ending::Failed(failure),
        };
        if !matches!(ending, Ending::Connected { .. }) {
            self.write_off(redeemed, &ending).await?;
            in_hand.discard().await;
            spill::remove(&self.spills, name).await;
        }
        self.spills.forget_put_off(name.grant);
        self.note_replay(name, ending.outcome().as_str()).await
    }

    /// Puts a kept reply of a consent that the database does not know, since it was restored, in the place of the grant
    /// that it does know. It proves itself first: the provider renews it, and it opens the connection's own account.
    ///
    /// # Errors
    /// Why that was not to be: the reply stays where it is.
    pub(super) async fn adopt(
        &self,
        name: Name,
        granted: &Granted,
        instead_of: Option<Uuid>,
    ) -> Result<(), Failure> {
        let connection = self.db(move |conn| connections::get(conn, name.connection)).await?;
        let claim = Claim { connection: &connection, grant: name.grant, by: By::Folder { instead_of } };
        let mut in_hand = self.nothing_to_lose();
        let used = match connection.account_id {
            Some(_) => self.use_kept(name, granted, &claim, &mut in_hand).await,
            None => Err(Unfinished::Failed(Failure::bug("the connection has no account to compare it with"))),
        };
        let failure = match used {
            Ok(ending @ Ending::Connected { .. }) => {
                self.spills.forget_put_off(name.grant);
                return self.note_replay(name, ending.outcome().as_str()).await;
            }
            Ok(ending) => Failure::new(FailureKind::Misconfigured, ending.message()),
            Err(Unfinished::Postponed(failure)) => return Err(failure),
            Err(Unfinished::Failed(failure)) => failure,
        };
        let put_off = PutOff {
            connection: connection.id,
            provider: connection.provider,
            died_at: None,
            until: self.clock.now() + delta(DEAD_RETRY),
            why: failure.message.clone(),
        };
        self.spills.put_off(name.grant, put_off);
        Err(failure)
    }

    async fn note_replay(&self, name: Name, outcome: &'static str) -> Result<(), Failure> {
        let (connection, daemon) = (name.connection, self.daemon);
        self.db(move |conn| {
            let entry =
                audit::Entry { connection: Some(connection), event: "replay", outcome, detail: None, daemon };
            audit::write(conn, &entry)
        })
        .await
    }

    /// Makes the connection with a kept reply, or with what its refresh token is traded for: where the access token has run
    /// out or is refused, and where nothing else proves that it is any good.
    async fn use_kept(
        &self,
        name: Name,
        granted: &Granted,
        claim: &Claim<'_>,
        in_hand: &mut InHand,
    ) -> Result<Ending, Unfinished> {
        let (provider, _) = self.provider(&claim.connection.provider).map_err(Unfinished::Postponed)?;
        let lately = self.was_renewed_lately(name, granted);
        let refused = if lately || matches!(claim.by, By::Request(_)) && self.is_fresh(granted) {
            match self.connect_as(provider, claim, (name.generation, granted), in_hand).await {
                Err(Unfinished::Failed(failure)) if failure.kind == FailureKind::NeedsReauth => failure,
                ended => return ended,
            }
        } else {
            Failure::new(FailureKind::NeedsReauth, "the kept access token has run out")
        };
        // What the access token is refused for says nothing of the grant.
        let Some(refresh_token) = &granted.tokens.refresh_token else {
            return Err(Unfinished::Failed(refused));
        };
        if lately {
            return Err(Unfinished::Postponed(refused));
        }
        let (renewed, kept) = self.renew_kept((name, granted.sent_at), refresh_token, claim).await?;
        *in_hand = kept;
        let ended = self.connect_alone(provider, claim, (name.generation + 1, &renewed), in_hand).await;
        // The token endpoint has honoured the grant a moment ago.
        ended.map_err(|unfinished| match unfinished {
            Unfinished::Failed(failure)
                if failure.kind == FailureKind::NeedsReauth && provider.trusts_refresh() =>
            {
                Unfinished::Postponed(failure)
            }
            unfinished => unfinished,
        })
    }

    /// Whether a kept reply whose grant is called dead is tried again.
    fn may_revive(&self, granted: &Granted, redeemed: &Redeemed) -> bool {
        let given_at = redeemed.attempt.used_at;
        granted.tokens.refresh_token.is_some()
            && given_at.is_some_and(|given_at| self.clock.now() < given_at + DOUBTED_FOR)
    }

    /// The provider calls the grant of a kept reply dead: that is told, so that somebody may consent anew, and tried again as
    /// with any other grant. Nothing is told where it says so of too many at once. Returns what is in the way.
    async fn doubt_kept(
        &self,
        name: Name,
        redeemed: &Redeemed,
        failure: Failure,
    ) -> Result<Failure, Failure> {
        let (id, request) = (redeemed.connection.id, redeemed.authorization.request_id);
        let text = format!(
            "{}; what is kept of the consent is tried again every 6 h until another one takes its place",
            failure.message
        );
        let put_off = PutOff {
            connection: id,
            provider: redeemed.connection.provider.clone(),
            died_at: None,
            until: self.clock.now() + delta(DEAD_RETRY),
            why: text.clone(),
        };
        let (spills, told, daemon) = (Arc::clone(&self.spills), text.clone(), self.daemon);
        let doubted = self.transaction(move |conn| {
            connections::lock(conn, id)?;
            // On record before others are looked at: of several that die at once the last sees all.
            let died_at = Some(session::now(conn)?);
            let provider = put_off.provider.clone();
            spills.put_off(name.grant, PutOff { died_at, ..put_off });
            let deaths = spills.all_put_off().into_values().filter(|of| of.provider == provider);
            let mut fates = tokens::fates(conn, &provider)?;
            fates.extend(deaths.map(|of| Fate::new(of.connection, of.died_at, None)));
            let is_common = policy::blamed_on_client(&fates).contains(&id);
            if is_common {
                connections::note_pending(conn, id, MASS_REASON)?;
                record(conn, id, "spared", Some(&told), daemon)?;
            } else {
                connections::fail_pending(conn, id, &told)?;
                requests::finish_for_now(conn, request, RequestOutcome::Denied, &told)?;
                record(conn, id, "denied", Some(&told), daemon)?;
            }
            Ok(is_common)
        });
        let is_common = match doubted.await {
            Ok(is_common) => is_common,
            Err(error) => {
                self.spills.forget_put_off(name.grant);
                return Err(error);
            }
        };
        if is_common {
            self.spills.try_again(name.grant, self.clock.now() + delta(RETRY_MAX));
        }
        Ok(Failure::new(failure.kind, if is_common { MASS_REASON.to_owned() } else { text }))
    }

    /// Whether the reply is of a renewal, and so recent that another would bring nothing new.
    fn was_renewed_lately(&self, name: Name, granted: &Granted) -> bool {
        name.generation > 1
            && self.is_fresh(granted)
            && self.clock.now() < granted.sent_at + RENEWED_AGAIN_AFTER
    }

    fn is_fresh(&self, granted: &Granted) -> bool {
        let expires_at = granted.tokens.expires_in.map(|life| granted.sent_at + delta(life));
        policy::is_usable(granted.sent_at, expires_at, self.clock.now())
    }

    /// Trades the refresh token of a reply that is in no row yet, as a refresh does: with an attempt on record that keeps
    /// others out, and with the new reply kept before anything else is done.
    async fn renew_kept(
        &self,
        (name, sent_at): (Name, DateTime<Utc>),
        refresh_token: &Secret,
        claim: &Claim<'_>,
    ) -> Result<(Granted, InHand), Unfinished> {
        let id = name.connection;
        let elsewhere = || Failure::transient("the kept consent is being concluded elsewhere");
        let Some(_ours) = self.renewing.begin(id) else { return Err(Unfinished::Postponed(elsewhere())) };
        let deadline = Deadline::after(EXCHANGE_MAX);
        let (auth, by) = (self.clone(), claim.by);
        let opened = self.transaction(move |conn| {
            connections::lock(conn, id)?;
            // It was listed a while ago: another daemon may have concluded it since.
            let on_record = tokens::load(conn, id)?;
            let in_force = on_record.as_ref().map(|token| token.grant_id);
            let is_over = match by {
                By::Request(request) => authorizations::is_replaced(conn, request)?,
                By::Folder { instead_of } => {
                    in_force != instead_of || on_record.is_some_and(|token| token.issued_at > sent_at)
                }
            };
            if in_force == Some(name.grant) || is_over {
                return Ok(None);
            }
            let exclusion = Exclusion { blocked_for: BLOCKED_FOR, spill_grace: auth.spill_grace() };
            let by = auth.refresher(GrantKind::AuthorizationCode);
            refresh_attempts::open(conn, id, (name.grant, name.generation), &by, exclusion)
        });
        let attempt = match opened.await {
            Ok(Some(attempt)) => attempt,
            Ok(None) => return Err(Unfinished::Postponed(elsewhere())),
            Err(failure) => return Err(Unfinished::Postponed(failure)),
        };
        // Or it has traded this token, and kept what it got.
        if !self.kept_replies(id, name.grant, name.generation + 1, true).await.is_empty() {
            self.close_kept(attempt).await;
            return Err(Unfinished::Postponed(elsewhere()));
        }
        let traded = self.trade_kept(refresh_token, claim.connection, deadline).await;
        let renewed = match traded {
            Ok(granted) => {
                let (generation, begun_at) = (name.generation, attempt.started_at);
                let from = Some(Traded { generation, issued_at: sent_at, begun_at });
                let mut in_hand = self.in_hand(id, name.grant, generation + 1, &granted, from);
                in_hand.keep().await;
                Ok((granted, in_hand))
            }
            Err(failure) if failure.kind == FailureKind::NeedsReauth => Err(Unfinished::Failed(failure)),
            Err(failure) => Err(Unfinished::Postponed(failure)),
        };
        self.close_kept(attempt).await;
        renewed
    }

    async fn trade_kept(
        &self,
        refresh_token: &Secret,
        connection: &Connection,
        mut deadline: Deadline,
    ) -> Result<Granted, Failure> {
        let (provider, settings) = self.provider(&connection.provider)?;
        let client =
            self.token_client(provider, settings, connection, (TokenStep::Refresh, &BTreeMap::new()))?;
        self.take_permit(provider, &client.id).await?;
        let endpoint = client.endpoint(&settings.token_url);
        let asked =
            oauth::refresh(&self.http, &endpoint, refresh_token, Deadline::never(), self.clock.as_ref());
        // What waits in the socket of a process that stood still is read.
        let asked = self.in_time(connection.id, asked, &mut deadline, std::future::ready(()));
        match self.answered(asked).await? {
            Ok(mut granted) => {
                granted.tokens.refresh_token.get_or_insert_with(|| refresh_token.clone());
                Ok(granted)
            }
            Err(failure) => Err(self.no_tokens(provider, &client, failure, &[refresh_token]).await?),
        }
    }

    /// An attempt that stays open keeps others out for a while, and does no other harm.
    async fn close_kept(&self, attempt: RefreshAttempt) {
        let closed = self.db(move |conn| refresh_attempts::close(conn, &attempt)).await;
        if let Err(failure) = closed {
            tracing::debug!(error = %failure, "An attempt could not be closed: {failure}");
        }
    }
}
