//! Grants without a consent: API keys, bearer tokens and client credentials. They are verified by asking the provider
//! whose account they open, before they count.
//!
//! What an admin handed over arrives sealed to the daemon's public key, is opened here, and is sealed again for its
//! row.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::Ending;
use super::exchange::{AsWhat, By, Proven};
use super::patience::Patience;
use super::policy::PROBE_EVERY;
use super::proof::{Credential, Shown};
use super::{ACCESS_COLUMN, Auth, is_key, secret_column, text, unopened};
use crate::config::ProviderSettings;
use crate::db::audit;
use crate::db::connections::{self, Connection};
use crate::db::requests::{self, Request};
use crate::db::secrets::{self, SealedSecret};
use crate::db::tokens::NewToken;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::spec::{GrantKind, GrantSpec};
use crate::domain::time::delta;
use crate::http::deadline::Deadline;
use crate::http::oauth;
use crate::providers::{Provider, TokenStep};
use crate::vault::HandedOver;

/// How long the token endpoint may take.
const EXCHANGE_MAX: Duration = Duration::from_secs(25);
/// Secrets of one connection.
const SECRETS_MAX: usize = 16;

impl Auth {
    /// Verifies the credentials that came with an open `connect` request, and ends the request. A connection that is
    /// in force stays as it is when they are not good.
    ///
    /// # Errors
    /// When nothing could be written down: the request is still open then, and the job is to be run again.
    pub(crate) async fn verify_keys(
        &self,
        request: &Request,
        connection: &Connection,
    ) -> Result<(), Failure> {
        let (auth, request, connection) = (self.clone(), request.clone(), connection.clone());
        self.detached(async move {
            let ending = match auth.try_keys(&request, &connection).await {
                Ok(Ending::Connected { .. }) => return Ok(()),
                Ok(ending) => ending,
                Err(failure) => Ending::Failed(failure),
            };
            auth.reject(&request, &connection, &ending).await
        })
        .await
    }

    async fn try_keys(&self, request: &Request, connection: &Connection) -> Result<Ending, Failure> {
        let (provider, settings) = self.provider(&connection.provider)?;
        let spec = provider.spec().grant(connection.grant).ok_or_else(|| {
            bad(format!("{} takes no grant `{}`", provider.spec().title, connection.grant.as_str()))
        })?;
        let secrets = self.handed_over(request)?;
        demand(spec, connection, &secrets)?;
        let grant_id = Uuid::new_v4();
        let mut patience = Patience::with_keys();
        let proven = loop {
            let tried = match connection.grant {
                GrantKind::ClientCredentials => {
                    self.try_client(provider, settings, connection, &secrets, grant_id).await
                }
                _ => self.try_key(provider, settings, connection, (spec, &secrets), grant_id).await,
            };
            match tried {
                Ok(proven) => break proven,
                Err(failure) => self.bear_with(&mut patience, failure).await?,
            }
        };
        let as_what = AsWhat {
            name: connection.name.clone(),
            title: provider.spec().title,
            grant: connection.grant,
            by: By::Request(request.id),
            daemon: self.daemon,
        };
        self.establish(provider, connection.id, proven, as_what, None).await
    }

    async fn try_key(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        (spec, secrets): (&GrantSpec, &BTreeMap<String, Secret>),
        grant_id: Uuid,
    ) -> Result<Proven, Failure> {
        let name = spec.secrets.first().copied().unwrap_or_default();
        let key = secrets.get(name).ok_or_else(|| bad(format!("`--secret {name}=…` is missing")))?;
        let credential = Credential { token: key, secrets };
        let Shown { account, pacing } = self.prove(provider, settings, connection, &credential, None).await?;
        let now = self.clock.now();
        let token = NewToken {
            connection: connection.id,
            grant_id,
            generation: 1,
            access_sealed: self.seal(connection.id, grant_id, ACCESS_COLUMN, key),
            refresh_sealed: None,
            scopes: Vec::new(),
            issued_at: now,
            expires_at: None,
            refresh_due_at: Some(now + delta(PROBE_EVERY)),
        };
        Ok(Proven {
            account,
            pacing,
            grant_id,
            token,
            secrets: Some(self.sealed(connection, grant_id, secrets)),
        })
    }

    async fn try_client(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        secrets: &BTreeMap<String, Secret>,
        grant_id: Uuid,
    ) -> Result<Proven, Failure> {
        let of = (TokenStep::ClientCredentials, secrets);
        let client = self.token_client(provider, settings, connection, of)?;
        self.take_permit(provider, &client.id).await?;
        let endpoint = client.endpoint(&settings.token_url);
        let asked = oauth::client_credentials(
            &self.http,
            &endpoint,
            &settings.scopes,
            Deadline::after(EXCHANGE_MAX),
            self.clock.as_ref(),
        );
        let granted = match self.answered(asked).await? {
            Ok(granted) => granted,
            Err(failure) => return Err(self.no_tokens(provider, &client, failure, &[]).await?),
        };
        let credential = Credential { token: &granted.tokens.access_token, secrets };
        let Shown { account, pacing } =
            self.prove(provider, settings, connection, &credential, Some(&granted)).await?;
        let token = self.first_token(provider, connection, (grant_id, 1), &granted);
        Ok(Proven {
            account,
            pacing,
            grant_id,
            token,
            secrets: Some(self.sealed(connection, grant_id, secrets)),
        })
    }

    /// The secrets that an admin gave for a connection, opened.
    pub(super) async fn open_secrets(&self, id: ConnectionId) -> Result<BTreeMap<String, Secret>, Failure> {
        self.db(move |conn| secrets::list(conn, id))
            .await?
            .into_iter()
            .map(|secret| {
                let column = secret_column(&secret.name);
                let plain = self.open(id, secret.grant_id, &column, &secret.sealed)?;
                Ok((secret.name, plain))
            })
            .collect()
    }

    /// The secrets of a request: names to values.
    fn handed_over(&self, request: &Request) -> Result<BTreeMap<String, Secret>, Failure> {
        let sealed =
            request.sealed.as_deref().ok_or_else(|| bad("the request carries no secrets".to_owned()))?;
        let with = HandedOver { connection: request.connection, request: request.id };
        let plain = text(self.vault.open_box(sealed, &with).map_err(unopened)?)?;
        // The parser's own texts quote what they read.
        let secrets: BTreeMap<String, Secret> = serde_json::from_str(plain.expose())
            .map_err(|_| bad("the secrets of the request cannot be read".to_owned()))?;
        if secrets.len() > SECRETS_MAX {
            return Err(bad(format!("a connection has at most {SECRETS_MAX} secrets")));
        }
        Ok(secrets)
    }

    /// Secrets that came with the request for a consent, if any did.
    pub(super) async fn secrets_beside(
        &self,
        request: Uuid,
    ) -> Result<Option<BTreeMap<String, Secret>>, Failure> {
        let request = self.db(move |conn| requests::get(conn, request)).await?;
        if request.sealed.is_none() {
            return Ok(None);
        }
        self.handed_over(&request).map(Some)
    }

    /// Whether a request for a consent brings what the grant needs besides. A reconnect may rely on what is there.
    pub(super) fn demand_beside(
        &self,
        provider: &'static dyn Provider,
        connection: &Connection,
        request: &Request,
    ) -> Result<(), Failure> {
        match provider.spec().grant(connection.grant) {
            Some(_) if request.sealed.is_none() && connection.account_id.is_some() => Ok(()),
            Some(spec) if spec.params.is_empty() && spec.secrets.is_empty() => Ok(()),
            Some(spec) => demand(spec, connection, &self.handed_over(request)?),
            None => Err(bad(format!("{} takes no such grant", provider.spec().title))),
        }
    }

    pub(super) fn sealed(
        &self,
        connection: &Connection,
        grant_id: Uuid,
        secrets: &BTreeMap<String, Secret>,
    ) -> Vec<SealedSecret> {
        // A key is the token itself and needs no second place.
        let keep = |name: &str| !is_key(connection.grant) || !is_credential(connection, name);
        secrets
            .iter()
            .filter(|(name, _)| keep(name))
            .map(|(name, secret)| SealedSecret {
                name: name.clone(),
                grant_id,
                sealed: self.seal(connection.id, grant_id, &secret_column(name), secret),
            })
            .collect()
    }

    /// Ends a request whose credentials are not good.
    async fn reject(
        &self,
        request: &Request,
        connection: &Connection,
        ending: &Ending,
    ) -> Result<(), Failure> {
        let (id, request, daemon) = (connection.id, request.id, self.daemon);
        let (outcome, message) = (ending.outcome(), ending.message());
        self.transaction(move |conn| {
            connections::lock(conn, id)?;
            connections::fail_pending(conn, id, &message)?;
            requests::finish(conn, request, outcome, Some(&message))?;
            let detail = Some(message.as_str());
            let outcome = outcome.as_str();
            audit::write(
                conn,
                &audit::Entry { connection: Some(id), event: "connect", outcome, detail, daemon },
            )
        })
        .await
    }
}

fn is_credential(connection: &Connection, name: &str) -> bool {
    crate::providers::provider(&connection.provider)
        .and_then(|provider| provider.spec().grant(connection.grant))
        .and_then(|spec| spec.secrets.first())
        .is_some_and(|first| *first == name)
}

/// Whatever the grant needs was given.
fn demand(
    spec: &GrantSpec,
    connection: &Connection,
    secrets: &BTreeMap<String, Secret>,
) -> Result<(), Failure> {
    let given = |name: &str| connection.params.get(name).is_some_and(|text| !text.is_empty());
    if let Some(missing) = spec.params.iter().find(|name| !given(name)) {
        return Err(bad(format!("`--param {missing}=…` is missing")));
    }
    let handed = |name: &str| secrets.get(name).is_some_and(|secret| !secret.is_empty());
    match spec.secrets.iter().find(|name| !handed(name)) {
        Some(missing) => Err(bad(format!("`--secret {missing}=…` is missing"))),
        None => Ok(()),
    }
}

fn bad(message: String) -> Failure {
    Failure::new(FailureKind::Misconfigured, message)
}
