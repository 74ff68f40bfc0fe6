//! RFC 7662: what an endpoint knows about a token.

use serde_json::Value;

use super::wire::Wire;
use super::{Client, Deadline, TokenEndpoint, TokenFailure};
use crate::domain::secret::Secret;
use crate::domain::time::Clock;

/// Asks what the endpoint knows about `access_token`; `endpoint.url` is the introspection URL. Returned without the
/// values of tokens: the answer echoes what it was asked about.
pub async fn introspect(
    client: &Client,
    endpoint: &TokenEndpoint<'_>,
    access_token: &Secret,
    deadline: Deadline,
    clock: &dyn Clock,
) -> Result<Value, TokenFailure> {
    let mut fields = vec![
        ("token", access_token.expose()),
        ("token_type_hint", "access_token"),
        ("client_id", endpoint.client_id),
    ];
    fields.extend(endpoint.client_secret.map(|secret| ("client_secret", secret.expose())));
    fields.extend(endpoint.extra.iter().map(|(name, value)| (*name, value.as_str())));
    Wire::new(client, endpoint, deadline, clock).introspected(&fields).await
}
