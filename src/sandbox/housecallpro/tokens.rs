//! The token endpoint: JSON in, JSON out.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Housecallpro;
use super::refusals::{self, Refusal};
use super::render::seconds;
use crate::sandbox::faults::{FaultName, Spot};
use crate::sandbox::oauth::Issued;
use crate::sandbox::shared;

/// What the vendor's examples say of a token's life at its exchange, and at a refresh.
const LIFE_EXCHANGED_S: u64 = 2_592_000;
const LIFE_REFRESHED_S: u64 = 2_629_745;
const INVALID_GRANT: &str = "The provided authorization grant is invalid, expired, revoked, does not match the \
                             redirection URI used in the authorization request, or was issued to another client.";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Asked {
    client_id: String,
    client_secret: String,
    redirect_uri: String,
    grant_type: String,
    code: String,
    code_verifier: Option<String>,
    refresh_token: String,
}

impl Asked {
    /// A form is refused: that this provider reads one is nowhere documented.
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Refusal> {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let json = kind.starts_with("application/json").then(|| serde_json::from_slice(body).ok()).flatten();
        json.ok_or_else(|| {
            Refusal::oauth(400, "invalid_request", "The request is missing a required parameter")
        })
    }

    fn is_refresh(&self) -> bool {
        self.grant_type == "refresh_token"
    }
}

impl Housecallpro {
    /// `POST /oauth/token`.
    pub(super) fn token(&self, spot: Spot, headers: &HeaderMap, body: &[u8]) -> Response {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        if strikes(FaultName::ThrottleStorm) {
            return refusals::throttled(strikes(FaultName::RetryAfter).then_some(1));
        }
        let asked = match Asked::read(headers, body) {
            Ok(asked) => asked,
            Err(refusal) => return refusal.into_response(),
        };
        match self.grant(&asked) {
            Err(mut refusal) => {
                // Old clients guard against refusals that say 200.
                refusal.status = if strikes(FaultName::ErrorInOk) { 200 } else { refusal.status };
                refusal.into_response()
            }
            // The tokens are issued, and nobody will ever read which ones.
            Ok(_) if strikes(FaultName::LostTokenReply) => shared::no_answer(),
            Ok(issued) => shared::json(200, &self.token_answer(&issued, asked.is_refresh(), spot)),
        }
    }

    fn grant(&self, asked: &Asked) -> Result<Issued, Refusal> {
        let now_ms = self.shared.now_ms();
        let client_id = asked.client_id.as_str();
        self.auth.check_app(client_id, &asked.client_secret).map_err(|_| {
            Refusal::oauth(401, "invalid_client", "Client authentication failed due to unknown client")
        })?;
        let issued = match asked.grant_type.as_str() {
            "authorization_code" => {
                let verifier = asked.code_verifier.as_deref();
                self.auth.redeem_code(client_id, &asked.code, &asked.redirect_uri, verifier, now_ms)
            }
            // Integrators send the redirect URI again; here that is a must.
            "refresh_token" if asked.redirect_uri.is_empty() => {
                let why = "The request is missing a required parameter: redirect_uri";
                return Err(Refusal::oauth(400, "invalid_request", why));
            }
            "refresh_token" => self.auth.redeem_refresh(client_id, &asked.refresh_token, true, now_ms),
            _ => {
                let why = "The authorization grant type is not supported by the authorization server.";
                return Err(Refusal::oauth(400, "unsupported_grant_type", why));
            }
        };
        issued.map_err(|_| Refusal::oauth(400, "invalid_grant", INVALID_GRANT))
    }

    fn token_answer(&self, issued: &Issued, refreshed: bool, spot: Spot) -> Value {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        let now_s = seconds(self.shared.now_ms());
        let said_s = if refreshed { LIFE_REFRESHED_S } else { LIFE_EXCHANGED_S };
        let mut answer = json!({
            "access_token": issued.access_token, "token_type": "Bearer", "refresh_token": issued.refresh_token,
            "expires_in": said_s.min(issued.lives.as_secs()), "scope": "public",
            // A number in one source, a text in another.
            "created_at": if refreshed { json!(now_s.to_string()) } else { json!(now_s) },
        });
        let fields = answer.as_object_mut().expect("made as an object above");
        if strikes(FaultName::NoExpiresIn) {
            fields.remove("expires_in");
        }
        if strikes(FaultName::NoRefreshToken) {
            fields.remove("refresh_token");
        }
        answer
    }
}
