//! What a 401 of a provider's API means that a fresh token meets: the credential is refused, or only what was asked for.
//! The provider is asked whose account the token opens, which every credential may know.

use super::Standing;
use super::proof::{Credential, Turnstile};
use super::refresh::{Refreshed, last_failure};
use super::renewal::{Work, note, revive, terms_of};
use super::setback::Condemned;
use super::{ACCESS_COLUMN, Access, Auth, grant_spec, live};
use crate::config::ProviderSettings;
use crate::db::connections::{self, Connection};
use crate::db::refresh_attempts::RefreshAttempt;
use crate::db::tokens::{self, Token};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::spec::GrantKind;
use crate::providers::Provider;

/// What became of a doubt about a token that is fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// The provider takes it: what it refuses is the request.
    Unfounded,
    /// Another one has taken its place meanwhile.
    Replaced,
}

impl Auth {
    /// Finds out whether the provider still takes the token `refused`, which it issued a moment ago. Where it does not, the
    /// grant has ended, and that is written down. Questions wait at `gate`.
    ///
    /// # Errors
    /// `NeedsReauth`: the credential is refused. `Transient`: it could not be found out, or too many are refused at once
    /// for it to be believed.
    pub async fn doubt(
        &self,
        id: ConnectionId,
        refused: &Access,
        gate: &dyn Turnstile,
    ) -> Result<Doubt, Failure> {
        let Standing { connection, token } = self.standing(id).await?;
        let token = live(&connection, token)?;
        if (token.grant_id, token.generation) != (refused.grant, refused.generation) {
            return Ok(Doubt::Replaced);
        }
        if token.refused_at.is_some() {
            return Err(last_failure(&token, &connection, self.clock.now()));
        }
        let (provider, settings) = self.provider(&connection.provider)?;
        match self.refused_by_api(provider, settings, &connection, &token, gate).await? {
            None => Ok(Doubt::Unfounded),
            Some(why) if connection.grant == GrantKind::AuthorizationCode && provider.trusts_refresh() => {
                Err(Failure::transient(why))
            }
            Some(why) => Err(self.ended(id, token.generation, &why).await),
        }
    }

    /// Why the API does not take the token, if so.
    async fn refused_by_api(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        token: &Token,
        gate: &dyn Turnstile,
    ) -> Result<Option<String>, Failure> {
        let access = self.open(connection.id, token.grant_id, ACCESS_COLUMN, &token.access_sealed)?;
        let secrets = match grant_spec(connection)?.headers {
            [] => std::collections::BTreeMap::new(),
            _ => self.open_secrets(connection.id).await?,
        };
        let credential = Credential { token: &access, secrets: &secrets };
        match self.prove_within(provider, settings, connection, &credential, gate).await {
            Err(failure) if failure.kind == FailureKind::NeedsReauth => {
                let title = provider.spec().title;
                let said = failure.message.trim_start_matches(title).trim_start_matches(": ");
                Ok(Some(format!("{title} answers 401 although the credential is fresh: {said}")))
            }
            Err(failure @ Failure { kind: FailureKind::Transient | FailureKind::Throttled { .. }, .. }) => {
                Err(failure)
            }
            // Whatever else it says, it has let the credential in.
            Ok(_) | Err(_) => Ok(None),
        }
    }
}

impl Work<'_> {
    /// After a refresh of a token that the API has refused: the grant lives again once the API takes the new one.
    pub(super) async fn look_again(&self) -> Result<Refreshed, Failure> {
        let Standing { connection, token } = self.auth.standing(self.connection.id).await?;
        let Some(token) = token.filter(|token| token.refused_at.is_some()) else {
            return Ok(Refreshed::Renewed);
        };
        let (id, grant, generation) = (connection.id, token.grant_id, token.generation);
        let of = RefreshAttempt { grant_id: grant, generation, ..self.attempt.clone() };
        let gate = self.auth.unused(self.provider, self.settings);
        let looked =
            self.auth.refused_by_api(self.provider, self.settings, &connection, &token, &gate).await?;
        if let Some(why) = looked {
            let (provider, settings) = (self.provider, self.settings);
            let condemned =
                Condemned { connection: &connection, provider, settings, event: "look", why: &why };
            return Err(self.auth.condemn(condemned, of).await);
        }
        let daemon = self.auth.daemon;
        let due = terms_of(self.provider, token.issued_at, token.expires_at).refresh_due_at;
        self.auth
            .transaction(move |conn| {
                let connection = connections::lock(conn, id)?;
                if tokens::taken(conn, id, (grant, generation), due)? {
                    revive(conn, &connection)?;
                    note(conn, &of, "look", "done", None, daemon)?;
                }
                Ok(())
            })
            .await?;
        Ok(Refreshed::Renewed)
    }
}
