//! Consents that were interrupted after their code had been traded: what is kept of the reply still makes the connection,
//! as long as the consent's attempt is on record. An access token that has run out meanwhile is renewed first.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::authorize::Redeemed;
use super::exchange::Unfinished;
use super::refresh::{BLOCKED_FOR, EXCHANGE_MAX};
use super::spill::{self, InHand, Name};
use super::{Auth, Ending, policy};
use crate::db::refresh_attempts::{self, Exclusion, RefreshAttempt};
use crate::db::{audit, authorizations, connections, tokens};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::secret::Secret;
use crate::domain::spec::GrantKind;
use crate::domain::time::delta;
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted};
use crate::providers::TokenStep;

/// How soon an access token of a kept consent that the API refuses is renewed again.
const RENEWED_AGAIN_AFTER: TimeDelta = TimeDelta::hours(1);

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
    /// What is in the way will pass: the reply stays where it is.
    pub(super) async fn conclude_kept(
        &self,
        name: Name,
        granted: &Granted,
        redeemed: &Redeemed,
    ) -> Result<(), Failure> {
        let (provider, _) = self.provider(&redeemed.connection.provider)?;
        let mut in_hand = self.nothing_to_lose();
        let mut ended = if self.is_fresh(granted) {
            self.connect_as(provider, redeemed, granted, &mut in_hand).await
        } else {
            Err(Unfinished::Failed(Failure::new(
                FailureKind::NeedsReauth,
                "the kept access token has run out",
            )))
        };
        // What the access token is refused for says nothing of the grant.
        if let (Err(Unfinished::Failed(failure)), Some(refresh_token)) =
            (&ended, &granted.tokens.refresh_token)
            && failure.kind == FailureKind::NeedsReauth
        {
            if self.was_renewed_lately(name, granted) {
                return Err(failure.clone());
            }
            ended = match self.renew_kept(name, refresh_token, redeemed).await {
                Ok((renewed, kept)) => {
                    in_hand = kept;
                    let ended = self.connect_as(provider, redeemed, &renewed, &mut in_hand).await;
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
                Err(unfinished) => Err(unfinished),
            };
        }
        let ending = match ended {
            Ok(ending) => ending,
            Err(Unfinished::Postponed(failure)) => return Err(failure),
            Err(Unfinished::Failed(failure)) => Ending::Failed(failure),
        };
        if !matches!(ending, Ending::Connected { .. }) {
            self.write_off(redeemed, &ending).await?;
            in_hand.discard().await;
            spill::remove(&self.spills, name).await;
        }
        let daemon = self.daemon;
        let (connection, outcome) = (name.connection, ending.outcome().as_str());
        self.db(move |conn| {
            let entry =
                audit::Entry { connection: Some(connection), event: "replay", outcome, detail: None, daemon };
            audit::write(conn, &entry)
        })
        .await
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
        name: Name,
        refresh_token: &Secret,
        redeemed: &Redeemed,
    ) -> Result<(Granted, InHand), Unfinished> {
        let id = name.connection;
        let elsewhere = || Failure::transient("the kept consent is being concluded elsewhere");
        let Some(_ours) = self.renewing.begin(id) else { return Err(Unfinished::Postponed(elsewhere())) };
        let deadline = Deadline::after(EXCHANGE_MAX);
        let (auth, request) = (self.clone(), redeemed.authorization.request_id);
        let opened = self.transaction(move |conn| {
            connections::lock(conn, id)?;
            // It was listed a while ago: another daemon may have concluded it since.
            let on_record = tokens::load(conn, id)?;
            if on_record.is_some_and(|token| token.grant_id == name.grant)
                || authorizations::is_replaced(conn, request)?
            {
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
        let traded = self.trade_kept(refresh_token, redeemed, deadline).await;
        let renewed = match traded {
            Ok(granted) => {
                let mut in_hand = self.in_hand(id, name.grant, name.generation + 1, &granted);
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
        redeemed: &Redeemed,
        deadline: Deadline,
    ) -> Result<Granted, Failure> {
        let connection = &redeemed.connection;
        let (provider, settings) = self.provider(&connection.provider)?;
        let client =
            self.token_client(provider, settings, connection, (TokenStep::Refresh, &BTreeMap::new()))?;
        self.take_permit(provider, &client.id).await?;
        let endpoint = client.endpoint(&settings.token_url);
        let asked = oauth::refresh(&self.http, &endpoint, refresh_token, deadline, self.clock.as_ref());
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
