//! The client that asks a token endpoint, and how often it may.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use url::Url;

use super::Auth;
use crate::config::ProviderSettings;
use crate::db::connections::Connection;
use crate::db::rate_budget::{self, Lease};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::secret::Secret;
use crate::domain::spec::{BucketSpec, ProviderSpec, Scope};
use crate::domain::step::{Params, Request};
use crate::domain::time::delta;
use crate::http::oauth::TokenEndpoint;
use crate::providers::{Provider, TokenContext, TokenStep};

/// The longest wait for a permit of a token endpoint.
pub(super) const PERMIT_WAIT_MAX: Duration = Duration::from_secs(10);

impl Auth {
    /// What the token endpoint is asked for, as providers see it.
    pub(super) fn token_client(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        connection: &Connection,
        (step, secrets): (TokenStep, &BTreeMap<String, Secret>),
    ) -> Result<TokenClient, Failure> {
        let client = match step {
            TokenStep::ClientCredentials => TokenClient::of_account(provider, &connection.params, secrets)?,
            TokenStep::Code | TokenStep::Refresh => TokenClient::ours(provider, settings)?,
        };
        let redirect_uri = self.redirect_uri(provider.spec().name);
        let (params, options) = (&connection.params, &settings.extra);
        Ok(client.with_fields(provider, &TokenContext { step, redirect_uri: &redirect_uri, params, options }))
    }

    /// Waits until the token endpoint of `provider` may be asked once more by this client.
    pub(super) async fn take_permit(
        &self,
        provider: &'static dyn Provider,
        client_id: &str,
    ) -> Result<(), Failure> {
        let scope = permit_scope(provider, client_id);
        let bucket = provider.spec().token_bucket;
        let lease =
            self.db(move |conn| rate_budget::lease(conn, &scope, &bucket, 1, PERMIT_WAIT_MAX)).await?;
        match lease {
            Lease::Granted { wait } => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Lease::Full { wait } => Err(throttled(provider, self.clock.now(), Some(wait))),
        }
    }
}

impl Auth {
    /// Waits for the limits of the address that `request` leaves from.
    pub(super) async fn take_egress_permits(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        request: &Request,
    ) -> Result<(), Failure> {
        let scope = rate_budget::egress_scope(provider.spec().name, &self.settings.daemon.egress_group);
        let counted = |of: &BucketSpec| of.scope == Scope::Egress && request.buckets.contains(&of.name);
        for bucket in provider.buckets(&settings.extra).into_iter().filter(counted) {
            let scope = scope.clone();
            let lease =
                self.db(move |conn| rate_budget::lease(conn, &scope, &bucket, 1, PERMIT_WAIT_MAX)).await?;
            match lease {
                Lease::Granted { wait } => tokio::time::sleep(wait).await,
                Lease::Full { wait } => {
                    let until = Some(self.clock.now() + delta(wait));
                    let title = provider.spec().title;
                    return Err(Failure::new(
                        FailureKind::Throttled { until },
                        format!("{title} takes no more requests from this address for now"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whose limits a request to the token endpoint counts against.
pub(super) fn permit_scope(provider: &'static dyn Provider, client_id: &str) -> String {
    format!("{}/{client_id}", provider.spec().name)
}

/// The client that asks a token endpoint: ours, or for client credentials the account's own.
pub(super) struct TokenClient {
    pub id: String,
    pub secret: Option<Secret>,
    spec: &'static ProviderSpec,
    /// What the endpoint wants besides.
    fields: Vec<(&'static str, String)>,
}

impl TokenClient {
    /// Ours, as it is registered at the provider.
    pub(super) fn ours(
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
    ) -> Result<Self, Failure> {
        if settings.client_id.is_empty() {
            let name = provider.spec().name;
            return Err(Failure::new(
                FailureKind::Misconfigured,
                format!("`providers.{name}.client_id` is not set"),
            ));
        }
        let (id, secret) = (settings.client_id.clone(), settings.client_secret.clone());
        Ok(Self { id, secret, spec: provider.spec(), fields: Vec::new() })
    }

    /// The account's own, from what the admin gave at connect.
    pub(super) fn of_account(
        provider: &'static dyn Provider,
        params: &Params,
        secrets: &BTreeMap<String, Secret>,
    ) -> Result<Self, Failure> {
        let id = params.get("client_id").map_or("", String::as_str);
        let secret = secrets.get("client_secret");
        if id.is_empty() || secret.is_none() {
            return Err(Failure::new(
                FailureKind::Misconfigured,
                "client credentials need `--param client_id=…` and `--secret client_secret=…`",
            ));
        }
        Ok(Self { id: id.to_owned(), secret: secret.cloned(), spec: provider.spec(), fields: Vec::new() })
    }

    /// The same, sending what the provider wants with this kind of request.
    pub(super) fn with_fields(mut self, provider: &'static dyn Provider, of: &TokenContext<'_>) -> Self {
        self.fields = provider.token_fields(of);
        self
    }

    /// The endpoint at `url`, as this client calls it.
    pub(super) fn endpoint<'a>(&'a self, url: &'a Url) -> TokenEndpoint<'a> {
        TokenEndpoint {
            url,
            client_id: &self.id,
            client_secret: self.secret.as_ref(),
            extra: &self.fields,
            body: self.spec.token_body,
            reads_jwt: self.spec.reads_jwt,
        }
    }
}

pub(super) fn throttled(
    provider: &'static dyn Provider,
    now: DateTime<Utc>,
    wait: Option<Duration>,
) -> Failure {
    let until = wait.map(|wait| now + delta(wait));
    let title = provider.spec().title;
    Failure::new(
        FailureKind::Throttled { until },
        format!("the token endpoint of {title} takes no more requests for now"),
    )
}
