//! A token endpoint as the one article about it tells: JSON in, JSON out, and no refresh token with a refresh.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::OnceHub;
use crate::sandbox::faults::{FaultName, Spot};
use crate::sandbox::oauth::Issued;
use crate::sandbox::shared;

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

impl OnceHub {
    /// `POST /oauth/token`.
    pub(super) fn token(&self, spot: Spot, headers: &HeaderMap, body: &[u8]) -> Response {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        if strikes(FaultName::ThrottleStorm) {
            return shared::json(429, &json!({"error": "slow_down"}));
        }
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let asked: Option<Asked> =
            kind.starts_with("application/json").then(|| serde_json::from_slice(body).ok()).flatten();
        let Some(asked) = asked else { return shared::json(400, &json!({"error": "invalid_request"})) };
        match self.grant(&asked) {
            Err((status, error)) => shared::json(status, &json!({"error": error})),
            Ok(_) if strikes(FaultName::LostTokenReply) => shared::no_answer(),
            Ok(issued) => {
                let mut answer = json!({
                    "access_token": issued.access_token, "token_type": "Bearer", "expires_in": issued.lives.as_secs(),
                });
                if asked.grant_type == "authorization_code" {
                    answer["refresh_token"] = json!(issued.refresh_token);
                }
                shared::json(200, &answer)
            }
        }
    }

    fn grant(&self, asked: &Asked) -> Result<Issued, (u16, &'static str)> {
        let now_ms = self.shared.now_ms();
        let client_id = asked.client_id.as_str();
        self.auth.check_app(client_id, &asked.client_secret).map_err(|_| (401, "invalid_client"))?;
        let issued = match asked.grant_type.as_str() {
            "authorization_code" => {
                let verifier = asked.code_verifier.as_deref();
                self.auth.redeem_code(client_id, &asked.code, &asked.redirect_uri, verifier, now_ms)
            }
            "refresh_token" => self.auth.redeem_refresh(client_id, &asked.refresh_token, false, now_ms),
            _ => return Err((400, "unsupported_grant_type")),
        };
        issued.map_err(|_| (400, "invalid_grant"))
    }
}
