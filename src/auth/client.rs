//! The client that asks a token endpoint, and how often it may.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use url::Url;

use super::Auth;
use crate::config::ProviderSettings;
use crate::db::rate_budget::{self, Lease};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::secret::Secret;
use crate::domain::time::delta;
use crate::http::oauth::{BodyStyle, TokenEndpoint};
use crate::providers::Provider;

/// The longest wait for a permit of a token endpoint.
pub(super) const PERMIT_WAIT_MAX: Duration = Duration::from_secs(10);

impl Auth {
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

/// Whose limits a request to the token endpoint counts against.
pub(super) fn permit_scope(provider: &'static dyn Provider, client_id: &str) -> String {
    format!("{}/{client_id}", provider.spec().name)
}

/// The client that asks a token endpoint: ours, or for client credentials the account's own.
pub(super) struct TokenClient {
    pub id: String,
    pub secret: Option<Secret>,
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
        Ok(Self { id: settings.client_id.clone(), secret: settings.client_secret.clone() })
    }

    /// The account's own, from what the admin gave at connect.
    pub(super) fn of_account(params: &Value, secrets: &BTreeMap<String, Secret>) -> Result<Self, Failure> {
        let id = params.get("client_id").and_then(Value::as_str).unwrap_or_default();
        let secret = secrets.get("client_secret");
        if id.is_empty() || secret.is_none() {
            return Err(Failure::new(
                FailureKind::Misconfigured,
                "client credentials need `--param client_id=…` and `--secret client_secret=…`",
            ));
        }
        Ok(Self { id: id.to_owned(), secret: secret.cloned() })
    }

    /// The endpoint at `url`, as this client calls it.
    pub(super) fn endpoint<'a>(&'a self, url: &'a Url) -> TokenEndpoint<'a> {
        TokenEndpoint {
            url,
            client_id: &self.id,
            client_secret: self.secret.as_ref(),
            extra: &[],
            body: BodyStyle::Form,
            reads_jwt: false,
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
