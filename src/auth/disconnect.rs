//! The end of a grant: revoked where the provider can, wiped in any case. Mirrored rows stay unless a purge is asked
//! for.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};
use uuid::Uuid;

use super::proof::account_context;
use super::renewal::masked;
use super::spill::{Kept, Name, Order};
use super::{Auth, REFRESH_COLUMN, Standing, TokenClient};
use crate::db::connections::{self, Connection};
use crate::db::requests::{self, RequestKind, RequestOutcome};
use crate::db::tokens::{self, Token};
use crate::db::{audit, authorizations, streams};
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::spec::GrantKind;
use crate::domain::token::TokenVerdict;
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, TokenFailure};
use crate::http::retry;
use crate::providers;

/// How long revoking may take, all tries together. An attempt row keeps refreshes out for longer.
const REVOKE_MAX: Duration = Duration::from_secs(30);
const REVOKE_TRIES: u32 = 3;
const REVOKE_PAUSE: Duration = Duration::from_secs(1);
/// Tables of the mirror that hold rows of every stream.
const SHARED_TABLES: [&str; 2] = ["changes", "drift"];

/// What became of the grant at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    Yes,
    /// There was nothing to revoke, or the provider has no way.
    NotPossible,
    /// It was tried, and the account's owner had better remove the app by hand. The text is masked.
    Failed(String),
}

impl Revoked {
    /// What became of two grants together: whoever has to act is told.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed(why), _) | (_, Self::Failed(why)) => Self::Failed(why),
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::NotPossible, Self::NotPossible) => Self::NotPossible,
        }
    }
}

impl Auth {
    /// Ends the grant of a connection: turns and refreshes are shut out first, then the grant is revoked, then all that
    /// is sealed is wiped, spills included. Open requests end. Repeating it does no harm.
    ///
    /// # Errors
    /// When the database does not go along; the grant may have been revoked by then.
    pub async fn disconnect(&self, connection: ConnectionId, purge: bool) -> Result<Revoked, Failure> {
        let auth = self.clone();
        self.detached(async move { auth.disconnect_here(connection, purge).await }).await
    }

    async fn disconnect_here(&self, id: ConnectionId, purge: bool) -> Result<Revoked, Failure> {
        self.transaction(move |conn| {
            connections::lock(conn, id)?;
            streams::bump(conn, id)
        })
        .await?;
        // Needs an access token that lives, so it comes before refreshes are shut out.
        let by_request = self.answered(Box::pin(self.revoke_by_request(id))).await??;
        // A refresh that is under way may be about to bring another token: it is waited for.
        let held = self.shut_out(id).await?;
        let in_force =
            held.as_ref().and_then(|(standing, _)| standing.token.as_ref()).map(|token| token.grant_id);
        let revoked = match (by_request, held) {
            (Some(revoked), _) => revoked,
            (None, Some((Standing { connection, token: Some(token) }, _))) => {
                let refresh_token = self.newest_refresh_token(&connection, &token).await;
                let asked = self.answered(Box::pin(self.revoke(&connection, refresh_token))).await;
                asked.unwrap_or_else(|failure| Revoked::Failed(failure.message))
            }
            (None, _) => Revoked::NotPossible,
        };
        let revoked = revoked.and(self.revoke_kept(id, in_force).await?);
        let connection = self.wipe(id, purge, revoked.clone()).await?;
        // What cannot be removed now is removed by the next look at the folder.
        if let Err(failure) = self.forget_spills(id).await {
            warn!(connection.id = id.0, connection.name = connection.name, error = %failure,
                "Disconnecting `{}`: {failure}", connection.name);
        }
        if let Revoked::Failed(why) = &revoked {
            warn!(
                connection.id = id.0,
                connection.name = connection.name,
                error = why,
                "The grant of `{}` could not be revoked: {why}",
                connection.name
            );
        }
        info!(connection.id = id.0, connection.name = connection.name, "Disconnected `{}`", connection.name);
        Ok(revoked)
    }

    /// Revokes what is kept of consents that have not led to a connection: nobody could do so once the spills are gone.
    async fn revoke_kept(&self, id: ConnectionId, in_force: Option<Uuid>) -> Result<Revoked, Failure> {
        let Standing { connection, .. } = self.standing(id).await?;
        let kept = self.spills.of(id).into_iter().map(|name| name.grant);
        let kept: BTreeSet<Uuid> = kept.filter(|grant| Some(*grant) != in_force).collect();
        let mut revoked = Revoked::NotPossible;
        for grant in kept {
            let replies = self.kept_replies(id, grant, 0, false).await;
            let newest = replies.into_iter().find_map(|(_, kept)| kept.granted.tokens.refresh_token);
            let asked = self.answered(Box::pin(self.revoke(&connection, Ok(newest)))).await;
            let asked = asked.unwrap_or_else(|failure| Revoked::Failed(failure.message));
            revoked = revoked.and(match asked {
                Revoked::NotPossible if self.ends_by_request(&connection) => Revoked::Failed(
                    "a consent that had not led to a connection yet could not be ended".to_owned(),
                ),
                asked => asked,
            });
        }
        Ok(revoked)
    }

    /// Whether the provider's way to end a grant is a request of its API.
    fn ends_by_request(&self, connection: &Connection) -> bool {
        let provider = self.provider(&connection.provider);
        provider.is_ok_and(|(of, settings)| {
            of.revoke_request(&account_context(settings, connection, self.clock.now())).is_some()
        })
    }

    /// Ends the grant by a request of the API, where that is the provider's way.
    async fn revoke_by_request(&self, id: ConnectionId) -> Result<Option<Revoked>, Failure> {
        let Standing { connection, token } = self.standing(id).await?;
        let Ok((provider, settings)) = self.provider(&connection.provider) else { return Ok(None) };
        let request = provider.revoke_request(&account_context(settings, &connection, self.clock.now()));
        let (Some(request), Some(_)) = (request, token) else { return Ok(None) };
        let asked = async {
            let access = self.access_token(id).await?;
            let gate = self.unused(provider, settings);
            self.question(provider, settings, &access.credentials, &request, &gate).await
        };
        Ok(Some(match asked.await {
            Ok(_) => Revoked::Yes,
            Err(failure) => Revoked::Failed(failure.message),
        }))
    }

    /// The refresh token that the provider honours: one that is kept, and that the database does not know (yet, or any
    /// more), comes before the database's.
    async fn newest_refresh_token(
        &self,
        connection: &Connection,
        token: &Token,
    ) -> Result<Option<Secret>, Failure> {
        let kept = self.kept_replies(connection.id, token.grant_id, token.generation + 1, true).await;
        let later = |(name, kept): &(Name, Kept)| kept.order(name.generation, token.into()) != Order::Known;
        let mut kept = kept.into_iter().filter(later);
        if let Some(kept) = kept.find_map(|(_, kept)| kept.granted.tokens.refresh_token) {
            return Ok(Some(kept));
        }
        let sealed = token.refresh_sealed.as_deref();
        sealed.map(|sealed| self.open(connection.id, token.grant_id, REFRESH_COLUMN, sealed)).transpose()
    }

    async fn revoke(
        &self,
        connection: &Connection,
        refresh_token: Result<Option<Secret>, Failure>,
    ) -> Revoked {
        let Some(provider) = providers::provider(&connection.provider) else { return Revoked::NotPossible };
        let Some(settings) = self.settings.providers.get(&connection.provider) else {
            return Revoked::NotPossible;
        };
        let Some(url) =
            settings.revoke_url.as_ref().filter(|_| connection.grant == GrantKind::AuthorizationCode)
        else {
            return Revoked::NotPossible;
        };
        let (refresh_token, client) = match (refresh_token, TokenClient::ours(provider, settings)) {
            (Ok(Some(refresh_token)), Ok(client)) => (refresh_token, client),
            (Ok(None), _) => return Revoked::NotPossible,
            (Err(failure), _) | (_, Err(failure)) => return Revoked::Failed(failure.message),
        };
        let deadline = Deadline::after(REVOKE_MAX);
        let endpoint = client.endpoint(url);
        let (mut tries, mut may_be_done) = (0, false);
        loop {
            tries += 1;
            let asked = oauth::revoke(&self.http, &endpoint, &refresh_token, deadline, self.clock.as_ref());
            let failure = match asked.await {
                Ok(()) => return Revoked::Yes,
                Err(failure) => failure,
            };
            // What was revoked by a try whose answer was lost is no longer known; a refusal of our client says nothing of it.
            let is_unknown = matches!(&failure, TokenFailure::Refused { status: status @ (400 | 404), body }
                if !matches!(provider.judge_token(*status, body), TokenVerdict::Misconfigured(_)));
            if may_be_done && is_unknown {
                return Revoked::Yes;
            }
            may_be_done |= matches!(failure, TokenFailure::Unavailable { sent: true, busy: false, .. });
            let passes = matches!(failure, TokenFailure::Unavailable { .. } | TokenFailure::Throttled { .. });
            if !passes || tries >= REVOKE_TRIES {
                let title = provider.spec().title;
                let secrets: Vec<&Secret> = client.secret.iter().chain([&refresh_token]).collect();
                return Revoked::Failed(format!("{title}: {}", masked(&failure.to_string(), &secrets)));
            }
            tokio::time::sleep(retry::pause(tries, REVOKE_PAUSE, REVOKE_PAUSE * 4)).await;
        }
    }

    async fn wipe(&self, id: ConnectionId, purge: bool, revoked: Revoked) -> Result<Connection, Failure> {
        let daemon = self.daemon;
        self.transaction(move |conn| {
            let connection = connections::lock(conn, id)?;
            streams::bump(conn, id)?;
            tokens::wipe(conn, id)?;
            authorizations::close_all(conn, id)?;
            for kind in RequestKind::ALL.into_iter().filter(|kind| *kind != RequestKind::Disconnect) {
                requests::finish_open(
                    conn,
                    id,
                    kind,
                    RequestOutcome::Superseded,
                    Some("the connection was disconnected"),
                )?;
            }
            if purge {
                connections::purge(conn, id, &tables(&connection))?;
            }
            connections::disconnect(conn, id, purge)?;
            let detail = match &revoked {
                Revoked::Yes => "revoked",
                Revoked::NotPossible => "nothing to revoke",
                Revoked::Failed(why) => why,
            };
            let entry = audit::Entry {
                connection: Some(id),
                event: "disconnect",
                outcome: "done",
                detail: Some(detail),
                daemon,
            };
            audit::write(conn, &entry)?;
            Ok(connection)
        })
        .await
    }
}

/// The tables of the mirror that may hold rows of the connection.
fn tables(connection: &Connection) -> Vec<&'static str> {
    let streams =
        providers::provider(&connection.provider).map_or(&[][..], |provider| provider.spec().streams);
    streams.iter().map(|stream| stream.table).chain(SHARED_TABLES).collect()
}
