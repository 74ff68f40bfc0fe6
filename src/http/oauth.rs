//! Authorize URLs and token endpoints: the adapter around the oauth2 crate.
//!
//! The crate builds the authorize URL, PKCE, the requests and the token types. Between it and the wire stands
//! [`wire`], which sends through our own client and reads status, `Retry-After` and the providers' dialects itself:
//! left alone, the crate loses the status of an error and refuses answers that real providers give.
//!
//! It keeps no token, takes no lock and judges no refusal: those are the refresher's and the provider's.

mod answer;
mod introspect;
mod wire;

use std::time::Duration;

use chrono::{DateTime, Utc};
use oauth2::basic::BasicClient;
use oauth2::{
    AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointNotSet, EndpointSet,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RefreshToken, Scope, TokenUrl,
};
use serde_json::Value;
use url::Url;

pub use self::introspect::introspect;
use self::wire::Wire;
pub use self::wire::unavailable;
use super::deadline::Deadline;
use super::{Client, redact};
use crate::domain::secret::Secret;
use crate::domain::spec::BodyStyle;
use crate::domain::step::Body;
use crate::domain::time::Clock;
use crate::domain::token::TokenSet;

type TokenClient = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// What an authorize URL is made of.
#[derive(Debug, Clone, Copy)]
pub struct Consent<'a> {
    pub authorize_url: &'a Url,
    pub client_id: &'a str,
    /// Sent to the letter; the exchange of the code must repeat it.
    pub redirect_uri: &'a str,
    pub scopes: &'a [String],
    pub state: &'a Secret,
    /// From [`pkce_verifier`]; its S256 challenge is sent. `None`: no PKCE.
    pub pkce_verifier: Option<&'a Secret>,
    /// Further parameters, such as `optional_scope`.
    pub extra: &'a [(&'a str, &'a str)],
}

/// A consent that cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub enum BadConsent {
    #[error("the redirect URI is not a URL")]
    RedirectUri(#[source] url::ParseError),
    #[error("a PKCE verifier has 43 to 128 characters")]
    Verifier,
}

/// How a token endpoint is called. Credentials travel in the body, which all five providers expect; none documents
/// HTTP Basic.
#[derive(Debug, Clone, Copy)]
pub struct TokenEndpoint<'a> {
    pub url: &'a Url,
    pub client_id: &'a str,
    pub client_secret: Option<&'a Secret>,
    /// Further fields, such as ServiceTitan's `tenant` or, for some, `redirect_uri` on refresh.
    pub extra: &'a [(&'static str, String)],
    pub body: BodyStyle,
    /// Whether an access token may be read as a JWT when the answer does not tell its life (Jobber).
    pub reads_jwt: bool,
}

/// An endpoint granted tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Granted {
    pub tokens: TokenSet,
    /// The whole answer without the values of tokens: `hub_id`, `warning` and the like.
    pub extra: Value,
    /// What the access token says of itself where it is a JWT, not verified: for diagnoses, never for trust.
    pub claims: Option<Value>,
    /// When the request left; `tokens.expires_in` counts from here.
    pub sent_at: DateTime<Utc>,
}

/// Characters of a token endpoint's warning that are told.
const WARNING_MAX: usize = 200;

impl Granted {
    /// What the token endpoint said to be wrong though it granted: Jobber tells of a refresh token that was used twice this
    /// way, where that is not the end of it.
    pub fn warning(&self) -> Option<String> {
        let said = self.extra.get("warning")?.as_str().filter(|said| !said.is_empty())?;
        Some(redact::text(said).chars().take(WARNING_MAX).collect())
    }
}

/// An endpoint granted nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TokenFailure {
    /// The endpoint says no: a 4xx, or an `error` in a 200. What it means is for the provider's `judge_token`; secrets
    /// in the body are masked already. An empty 4xx is a refusal with an empty text.
    #[error("refused (status {status}){}", answer::said(body))]
    Refused { status: u16, body: Body },
    /// 429, or 503 with a `Retry-After`.
    #[error("asked to wait{}", answer::for_long(*wait))]
    Throttled { wait: Option<Duration> },
    /// Anything else: no answer, 5xx, a redirect, HTML, or a success without tokens. `sent` is false only when the
    /// request surely never left; otherwise the endpoint may have acted on it. `busy`: it said itself that it has no time
    /// (503).
    #[error("{message}")]
    Unavailable { sent: bool, busy: bool, message: String },
}

impl TokenFailure {
    /// Whether the endpoint said that it did not look at the request.
    pub fn is_unheard(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { busy: true, .. })
    }
}

/// A fresh PKCE verifier: 256 random bits.
pub fn pkce_verifier() -> Secret {
    let (_, verifier) = PkceCodeChallenge::new_random_sha256();
    Secret::new(verifier.secret().as_str())
}

/// The URL that the person at the customer opens.
pub fn authorize_url(consent: &Consent<'_>) -> Result<Url, BadConsent> {
    let redirect = RedirectUrl::new(consent.redirect_uri.to_owned()).map_err(BadConsent::RedirectUri)?;
    let client = BasicClient::new(ClientId::new(consent.client_id.to_owned()))
        .set_auth_uri(AuthUrl::from_url(consent.authorize_url.clone()))
        .set_redirect_uri(redirect);
    let mut request = client
        .authorize_url(|| CsrfToken::new(consent.state.expose().to_owned()))
        .add_scopes(consent.scopes.iter().cloned().map(Scope::new));
    if let Some(verifier) = consent.pkce_verifier {
        let length = verifier.expose().len();
        if !(43..=128).contains(&length) {
            return Err(BadConsent::Verifier);
        }
        let verifier = PkceCodeVerifier::new(verifier.expose().to_owned());
        request = request.set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier));
    }
    for (name, value) in consent.extra {
        request = request.add_extra_param(*name, *value);
    }
    let (mut url, _) = request.url();
    // Blanks as %20, which every reader of a query knows; a plus that was meant is %2B already.
    let query = url.query().map(|query| query.replace('+', "%20"));
    url.set_query(query.as_deref());
    Ok(url)
}

/// Trades the code of a finished consent for tokens. `redirect_uri` and the verifier are those of its [`Consent`].
pub async fn exchange_code(
    client: &Client,
    endpoint: &TokenEndpoint<'_>,
    code: &Secret,
    redirect_uri: &str,
    pkce_verifier: Option<&Secret>,
    deadline: Deadline,
    clock: &dyn Clock,
) -> Result<Granted, TokenFailure> {
    let redirect = RedirectUrl::new(redirect_uri.to_owned()).map_err(|error| TokenFailure::Unavailable {
        sent: false,
        busy: false,
        message: format!("the redirect URI is not a URL: {error}"),
    })?;
    let builder = token_client(endpoint).set_redirect_uri(redirect);
    let mut request = builder.exchange_code(AuthorizationCode::new(code.expose().to_owned()));
    if let Some(verifier) = pkce_verifier {
        request = request.set_pkce_verifier(PkceCodeVerifier::new(verifier.expose().to_owned()));
    }
    for (name, value) in endpoint.extra {
        request = request.add_extra_param(*name, value.as_str());
    }
    let wire = Wire::new(client, endpoint, deadline, clock);
    wire.granted(request.request_async(&wire)).await
}

/// Trades a refresh token for new tokens.
pub async fn refresh(
    client: &Client,
    endpoint: &TokenEndpoint<'_>,
    refresh_token: &Secret,
    deadline: Deadline,
    clock: &dyn Clock,
) -> Result<Granted, TokenFailure> {
    let builder = token_client(endpoint);
    let refresh_token = RefreshToken::new(refresh_token.expose().to_owned());
    let mut request = builder.exchange_refresh_token(&refresh_token);
    for (name, value) in endpoint.extra {
        request = request.add_extra_param(*name, value.as_str());
    }
    let wire = Wire::new(client, endpoint, deadline, clock);
    wire.granted(request.request_async(&wire)).await
}

/// Asks for an access token in the client's own name. No scope is sent when `scopes` is empty.
pub async fn client_credentials(
    client: &Client,
    endpoint: &TokenEndpoint<'_>,
    scopes: &[String],
    deadline: Deadline,
    clock: &dyn Clock,
) -> Result<Granted, TokenFailure> {
    let builder = token_client(endpoint);
    let mut request =
        builder.exchange_client_credentials().add_scopes(scopes.iter().cloned().map(Scope::new));
    for (name, value) in endpoint.extra {
        request = request.add_extra_param(*name, value.as_str());
    }
    let wire = Wire::new(client, endpoint, deadline, clock);
    wire.granted(request.request_async(&wire)).await
}

/// Tells the provider to forget `refresh_token`; `endpoint.url` is the revocation URL. Any 2xx will do.
///
/// Not through the oauth2 crate, which refuses any address but https here, loopback included.
pub async fn revoke(
    client: &Client,
    endpoint: &TokenEndpoint<'_>,
    refresh_token: &Secret,
    deadline: Deadline,
    clock: &dyn Clock,
) -> Result<(), TokenFailure> {
    let mut fields = vec![
        ("token", refresh_token.expose()),
        ("token_type_hint", "refresh_token"),
        ("client_id", endpoint.client_id),
    ];
    fields.extend(endpoint.client_secret.map(|secret| ("client_secret", secret.expose())));
    fields.extend(endpoint.extra.iter().map(|(name, value)| (*name, value.as_str())));
    Wire::new(client, endpoint, deadline, clock).revoked(&fields).await
}

fn token_client(endpoint: &TokenEndpoint<'_>) -> TokenClient {
    let mut client = BasicClient::new(ClientId::new(endpoint.client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::from_url(endpoint.url.clone()));
    if let Some(secret) = endpoint.client_secret {
        client = client.set_client_secret(ClientSecret::new(secret.expose().to_owned()));
    }
    client
}

#[cfg(test)]
mod tests;
