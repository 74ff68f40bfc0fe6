//! The token endpoint, and access tokens as JWTs: what says when a token expires, since the answer does not.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::Jobber;
use crate::sandbox::faults::{FaultName, Spot};
use crate::sandbox::oauth::{GrantFault, Issued};
use crate::sandbox::shared;

/// The fields of a form, or of the JSON object that some integrators post in its place.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/json") {
            return Self(form_urlencoded::parse(body).into_owned().collect());
        }
        let object: Value = serde_json::from_slice(body).unwrap_or_default();
        let fields = object.as_object().into_iter().flatten();
        Self(fields.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// Jobber publishes the texts of its refusals, not their bodies.
struct Refused(u16, &'static str);

impl Jobber {
    /// `POST /api/oauth/token`.
    pub(super) fn token(&self, spot: Spot, headers: &HeaderMap, body: &[u8]) -> Response {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        if strikes(FaultName::ThrottleStorm) {
            return shared::json(429, &json!({"message": "Too Many Requests"}));
        }
        match self.grant(&Fields::read(headers, body)) {
            Err(Refused(status, message)) => shared::json(status, &json!({"message": message})),
            // The tokens are issued, and nobody will ever read which ones.
            Ok(_) if strikes(FaultName::LostTokenReply) => shared::no_answer(),
            Ok(issued) => shared::json(200, &self.token_answer(&issued, spot)),
        }
    }

    fn grant(&self, fields: &Fields) -> Result<Issued, Refused> {
        let (client_id, now_ms) = (fields.get("client_id"), self.shared.now_ms());
        self.auth
            .check_app(client_id, fields.get("client_secret"))
            .map_err(|_| Refused(401, "The client credentials are not valid."))?;
        match fields.get("grant_type") {
            "authorization_code" => {
                let (code, redirect_uri) = (fields.get("code"), fields.get("redirect_uri"));
                let verifier = Some(fields.get("code_verifier")).filter(|verifier| !verifier.is_empty());
                let issued = self.auth.redeem_code(client_id, code, redirect_uri, verifier, now_ms);
                issued.map_err(|_| Refused(400, "The provided authorization code is not valid."))
            }
            // Rotation is on, and the old token dies at once.
            "refresh_token" => self
                .auth
                .redeem_refresh(client_id, fields.get("refresh_token"), true, now_ms)
                .map_err(|fault: GrantFault| match fault {
                    GrantFault::OtherApp => Refused(403, "The provided refresh token is not valid."),
                    _ => Refused(401, "The provided refresh token is not valid."),
                }),
            _ => Err(Refused(400, "The grant type is not supported.")),
        }
    }

    /// Neither `token_type` nor `expires_in`.
    fn token_answer(&self, issued: &Issued, spot: Spot) -> Value {
        let expires_at = self.shared.now_ms() / 1000 + i64::try_from(issued.lives.as_secs()).unwrap_or(0);
        let opaque = self.shared.faults.strikes(FaultName::OpaqueTokens, spot);
        let access = if opaque { issued.access_token.clone() } else { jwt(issued, expires_at) };
        let mut answer = json!({"access_token": access, "refresh_token": issued.refresh_token});
        if self.shared.faults.strikes(FaultName::ExpiresAt, spot) {
            let at = DateTime::from_timestamp(expires_at, 0).unwrap_or_default();
            answer["expires_at"] = json!(at.format("%Y-%m-%d %H:%M:%S UTC").to_string());
            answer["warning"] = json!("This refresh token was redeemed in an unexpected way.");
        }
        answer
    }
}

/// The token that the server knows stands in the place of the signature.
fn jwt(issued: &Issued, expires_at: i64) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"sub": issued.account, "iss": "https://api.getjobber.com", "exp": expires_at});
    format!("{}.{}.{}", part(&json!({"alg": "HS256", "typ": "JWT"})), part(&claims), issued.access_token)
}

/// The part of an access token that the server knows.
pub(super) fn known(access_token: &str) -> &str {
    access_token.rsplit('.').next().unwrap_or(access_token)
}

/// The account that an access token is for, whether it is still good or not.
pub(super) fn account_of(access_token: &str) -> Option<String> {
    let claims = access_token.split('.').nth(1)?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    claims.get("sub")?.as_str().map(str::to_owned)
}
