//! The token endpoint: client credentials of a tenant, and the code grant of older guides, for apps that are
//! registered. A token is a JWT that nobody signed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::ServiceTitan;
use super::kinds::SERVED;
use super::refusals::Refusal;
use crate::domain::secret::Secret;
use crate::sandbox::faults::{FaultName, Spot};
use crate::sandbox::oauth::GrantFault;
use crate::sandbox::shared;

/// How long every access token lives.
pub const TOKEN_LIFE: Duration = Duration::from_mins(15);
/// Asking for this scope brings a refresh token, as servers of this family do it.
const OFFLINE: &str = "offline_access";
/// Expired tokens are forgotten once there are more than this.
const TOKENS_MAX: usize = 10_000;

/// What a good access token stands for.
#[derive(Debug, Clone)]
pub struct Pass {
    pub tenant: u64,
    pub client_id: String,
    pub scopes: Arc<[String]>,
    expires_at_ms: i64,
}

/// The tokens that were handed out.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, Pass>>);

impl Tokens {
    fn issue(&self, pass: Pass, now_ms: i64) -> String {
        let mut signature = [0; 64];
        rand::rng().fill(signature.as_mut_slice());
        let header = json!({"alg": "RS256", "kid": "sandbox", "typ": "at+jwt", "x5t": "sandbox"});
        let (now, ends) = (now_ms.div_euclid(1000), pass.expires_at_ms.div_euclid(1000));
        let claims = json!({
            "nbf": now, "exp": ends, "iss": "https://auth.sandbox.example", "client_id": pass.client_id,
            "tenant": pass.tenant.to_string(), "jti": URL_SAFE_NO_PAD.encode(&signature[..12]), "iat": now,
            "scope": *pass.scopes,
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let token = format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature));
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, pass| pass.expires_at_ms > now_ms);
        }
        tokens.insert(token.clone(), pass);
        token
    }

    pub fn pass(&self, token: &str, now_ms: i64) -> Option<Pass> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(token).filter(|pass| pass.expires_at_ms > now_ms).cloned()
    }

    /// The tokens of one tenant, or all, end now. Returns how many did.
    pub fn end(&self, tenant: Option<u64>, now_ms: i64) -> usize {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = tokens.values_mut().filter(|pass| pass.expires_at_ms > now_ms);
        let ended = live.filter(|pass| tenant.is_none_or(|tenant| pass.tenant == tenant));
        ended.map(|pass| pass.expires_at_ms = now_ms).count()
    }

    pub fn handed_out(&self) -> Vec<Secret> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.keys().map(|token| Secret::from(token.as_str())).collect()
    }
}

/// A form body's fields.
struct Form(Vec<(String, String)>);

impl Form {
    /// Credentials go into the form's body; HTTP Basic is documented nowhere, and is refused here.
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Refusal> {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/x-www-form-urlencoded") || headers.contains_key(AUTHORIZATION) {
            return Err(Refusal::oauth("invalid_request"));
        }
        Ok(Self(form_urlencoded::parse(body).into_owned().collect()))
    }

    fn get(&self, name: &str) -> &str {
        self.optional(name).unwrap_or_default()
    }

    fn optional(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What is granted.
struct Grant {
    pass: Pass,
    refresh_token: Option<String>,
}

impl ServiceTitan {
    /// `POST /connect/token`.
    pub(super) fn token(&self, spot: Spot, headers: &HeaderMap, body: &[u8]) -> Response {
        let now_ms = self.shared.now_ms();
        match self.grant(spot, headers, body, now_ms) {
            Err(refusal) => refusal.into_response(),
            Ok(_) if self.shared.faults.strikes(FaultName::LostTokenReply, spot) => shared::no_answer(),
            Ok(grant) => {
                let scope = grant.pass.scopes.join(" ");
                let mut answer = json!({
                    "access_token": self.tokens.issue(grant.pass, now_ms), "expires_in": TOKEN_LIFE.as_secs(),
                    "token_type": "Bearer", "scope": scope,
                });
                if let Some(refresh_token) = grant.refresh_token {
                    answer["refresh_token"] = json!(refresh_token);
                }
                if self.shared.faults.strikes(FaultName::NoExpiresIn, spot) {
                    answer.as_object_mut().expect("made as an object above").remove("expires_in");
                }
                shared::json(200, &answer)
            }
        }
    }

    fn grant(&self, spot: Spot, headers: &HeaderMap, body: &[u8], now_ms: i64) -> Result<Grant, Refusal> {
        let form = Form::read(headers, body)?;
        let client_id = form.get("client_id");
        self.admit_token_call(client_id, spot, now_ms)?;
        match form.get("grant_type") {
            "client_credentials" => self.client_credentials(&form, now_ms),
            "authorization_code" | "refresh_token" if !self.offers_codes(spot) => {
                Err(Refusal::oauth("unauthorized_client"))
            }
            "authorization_code" => {
                self.check_app(&form)?;
                let (code, redirect_uri) = (form.get("code"), form.get("redirect_uri"));
                let verifier = form.optional("code_verifier");
                let issued = self.auth.redeem_code(client_id, code, redirect_uri, verifier, now_ms);
                let issued = issued.map_err(refused)?;
                let offline = issued.scopes.iter().any(|scope| scope == OFFLINE);
                let refresh_token = offline.then_some(issued.refresh_token);
                Ok(Grant {
                    pass: self.pass(&issued.account, client_id, issued.scopes, now_ms)?,
                    refresh_token,
                })
            }
            "refresh_token" => {
                self.check_app(&form)?;
                let issued = self.auth.redeem_refresh(client_id, form.get("refresh_token"), true, now_ms);
                let issued = issued.map_err(refused)?;
                let pass = self.pass(&issued.account, client_id, issued.scopes, now_ms)?;
                Ok(Grant { pass, refresh_token: Some(issued.refresh_token) })
            }
            _ => Err(Refusal::oauth("unsupported_grant_type")),
        }
    }

    fn admit_token_call(&self, client_id: &str, spot: Spot, now_ms: i64) -> Result<(), Refusal> {
        if self.shared.faults.strikes(FaultName::ThrottleStorm, spot) {
            return Err(self.throttled(spot, 1_000, now_ms));
        }
        if !self.shared.options.throttled {
            return Ok(());
        }
        let taken = self.token_calls.take(client_id, now_ms);
        taken.map(drop).map_err(|wait_ms| self.throttled(spot, wait_ms, now_ms))
    }

    fn client_credentials(&self, form: &Form, now_ms: i64) -> Result<Grant, Refusal> {
        let (client_id, secret) = (form.get("client_id"), form.get("client_secret"));
        let known =
            |tenant: &u64| Self::client_id(*tenant) == client_id && Self::client_secret(*tenant) == secret;
        let own = self.tenants.keys().copied().find(known);
        let hub = client_id == Self::HUB_CLIENT_ID && secret == Self::HUB_CLIENT_SECRET;
        let named = form.optional("tenant").map(|text| text.parse::<u64>().ok());
        let tenant = match (own, named) {
            (Some(own), None) => own,
            (Some(own), Some(named)) if named == Some(own) => own,
            (None, Some(Some(named))) if hub && self.tenants.contains_key(&named) => named,
            // The client of a network of tenants has to say for which of them it asks.
            (None, None) if hub => return Err(Refusal::oauth("invalid_request")),
            _ => return Err(Refusal::oauth("invalid_client")),
        };
        if self.door(tenant).disabled {
            return Err(Refusal::oauth("invalid_client"));
        }
        let scopes: Vec<String> = SERVED.iter().map(|served| served.scope.to_owned()).collect();
        Ok(Grant {
            pass: self.pass(&tenant.to_string(), client_id, scopes.into(), now_ms)?,
            refresh_token: None,
        })
    }

    fn check_app(&self, form: &Form) -> Result<(), Refusal> {
        let checked = self.auth.check_app(form.get("client_id"), form.get("client_secret"));
        checked.map_err(|_| Refusal::oauth("invalid_client"))
    }

    /// A token has no scope that the tenant's admin took from the app.
    fn pass(
        &self,
        tenant: &str,
        client_id: &str,
        scopes: Arc<[String]>,
        now_ms: i64,
    ) -> Result<Pass, Refusal> {
        let tenant: u64 = tenant.parse().map_err(|_| Refusal::oauth("invalid_grant"))?;
        let lost = self.door(tenant).lost_scopes;
        let scopes = scopes.iter().filter(|scope| !lost.contains(*scope)).cloned().collect();
        let life = i64::try_from(TOKEN_LIFE.as_millis()).unwrap_or(i64::MAX);
        Ok(Pass { tenant, client_id: client_id.to_owned(), scopes, expires_at_ms: now_ms + life })
    }
}

fn refused(fault: GrantFault) -> Refusal {
    match fault {
        GrantFault::OtherApp => Refusal::oauth("invalid_client"),
        _ => Refusal::oauth("invalid_grant"),
    }
}
