//! The token endpoint and its neighbours: exchange, refresh, introspect, revoke.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::Hubspot;
use super::refusals::{Policy, Refusal};
use crate::sandbox::faults::{FaultName, Spot};
use crate::sandbox::oauth::{GrantFault, Issued, Pass};
use crate::sandbox::shared;

/// The id of the app, as account owners see it.
const APP_ID: u64 = 2_200_001;
/// The user who consents.
const USER_ID: u64 = 701;
const USER: &str = "owner@sandbox.example";

/// A form body's fields.
struct Form(Vec<(String, String)>);

impl Form {
    /// Anything but a form is refused, JSON included.
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Refusal> {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/x-www-form-urlencoded") {
            let message = "the body must be application/x-www-form-urlencoded";
            return Err(Refusal::oauth("BAD_REQUEST", "invalid_request", message, true));
        }
        Ok(Self(form_urlencoded::parse(body).into_owned().collect()))
    }

    fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    fn optional(&self, name: &str) -> Option<&str> {
        Some(self.get(name)).filter(|value| !value.is_empty())
    }
}

impl Hubspot {
    /// `POST /oauth/…/token`.
    pub(super) fn token(&self, terse: bool, spot: Spot, headers: &HeaderMap, body: &[u8]) -> Response {
        match self.grant(spot, headers, body) {
            Err(refusal) => refusal.into_response(),
            // The tokens are issued, and nobody will ever read which ones.
            Ok(_) if self.shared.faults.strikes(FaultName::LostTokenReply, spot) => shared::no_answer(),
            Ok(issued) => shared::json(200, &self.token_answer(&issued, terse, spot)),
        }
    }

    fn grant(&self, spot: Spot, headers: &HeaderMap, body: &[u8]) -> Result<Issued, Refusal> {
        let now_ms = self.shared.now_ms();
        let rfc = !self.shared.faults.strikes(FaultName::PlainOauthErrors, spot);
        let form = Form::read(headers, body)?;
        let client_id = form.get("client_id");
        self.admit_token_call(client_id, spot, now_ms)?;
        self.auth
            .check_app(client_id, form.get("client_secret"))
            .map_err(|fault| Refusal::app(fault, rfc))?;
        match form.get("grant_type") {
            "authorization_code" => {
                let (code, redirect_uri) = (form.get("code"), form.get("redirect_uri"));
                let verifier = form.optional("code_verifier");
                let issued = self.auth.redeem_code(client_id, code, redirect_uri, verifier, now_ms);
                issued.map_err(|fault| Refusal::code(fault, rfc))
            }
            "refresh_token" => {
                let rotate = self.shared.faults.strikes(FaultName::Rotate, spot);
                let refresh_token = form.get("refresh_token");
                let issued = self.auth.redeem_refresh(client_id, refresh_token, rotate, now_ms);
                if matches!(issued, Err(GrantFault::Replaced))
                    && self.shared.faults.strikes(FaultName::RevokeReplayed, spot)
                {
                    self.auth.revoke_replayed(refresh_token);
                }
                issued.map_err(|fault| Refusal::refresh(fault, rfc))
            }
            _ => {
                let message = "grant_type is missing or not supported";
                Err(Refusal::oauth("BAD_GRANT_TYPE", "unsupported_grant_type", message, rfc))
            }
        }
    }

    /// The token endpoint has a limit of its own.
    fn admit_token_call(&self, client_id: &str, spot: Spot, now_ms: i64) -> Result<(), Refusal> {
        let stormy = self.shared.faults.strikes(FaultName::ThrottleStorm, spot);
        if !stormy && !self.shared.options.throttled {
            return Ok(());
        }
        let taken = if stormy { Err(10_000) } else { self.token_calls.take(client_id, now_ms) };
        taken.map(drop).map_err(|wait_ms| self.throttled(Policy::TenSecondly, wait_ms, spot))
    }

    fn token_answer(&self, issued: &Issued, terse: bool, spot: Spot) -> Value {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        let mut answer = json!({
            "token_type": "bearer", "access_token": issued.access_token, "refresh_token": issued.refresh_token,
            "expires_in": issued.lives.as_secs(),
        });
        if !terse {
            let wrong = u64::from(strikes(FaultName::WrongAccount));
            answer["hub_id"] = json!(issued.account.parse::<u64>().unwrap_or(0) + wrong);
            answer["user_id"] = json!(USER_ID);
            answer["scopes"] = json!(*issued.scopes);
            answer["token_use"] = json!("access_token");
        }
        let fields = answer.as_object_mut().expect("made as an object above");
        if strikes(FaultName::NoExpiresIn) {
            fields.remove("expires_in");
        }
        if strikes(FaultName::NoRefreshToken) {
            fields.remove("refresh_token");
        }
        answer
    }

    /// `POST /oauth/…/token/introspect`.
    pub(super) fn introspect(&self, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refusal> {
        let form = Form::read(headers, body)?;
        let client_id = form.get("client_id");
        self.auth
            .check_app(client_id, form.get("client_secret"))
            .map_err(|fault| Refusal::app(fault, true))?;
        let (token, now_ms) = (form.get("token"), self.shared.now_ms());
        if let Ok(pass) = self.auth.bearer(token, now_ms) {
            let mut answer = self.identity(&pass, now_ms);
            answer["token_use"] = json!("access_token");
            answer["token"] = json!(token);
            return Ok(shared::json(200, &answer));
        }
        let Some((account, scopes)) = self.auth.refresh_token_owner(client_id, token) else {
            return Ok(shared::json(200, &json!({"active": false})));
        };
        let pass = Pass { client_id: client_id.to_owned(), account, scopes, expires_at_ms: now_ms };
        let mut answer = self.identity(&pass, now_ms);
        answer["token_use"] = json!("refresh_token");
        answer["token"] = json!(token);
        answer.as_object_mut().expect("made as an object").remove("expires_in");
        Ok(shared::json(200, &answer))
    }

    /// `GET /oauth/v1/access-tokens/{token}`.
    pub(super) fn token_info(&self, token: &str) -> Result<Response, Refusal> {
        let now_ms = self.shared.now_ms();
        let pass = self.auth.bearer(token, now_ms).map_err(|_| Refusal::not_found())?;
        Ok(shared::json(200, &self.identity(&pass, now_ms)))
    }

    fn identity(&self, pass: &Pass, now_ms: i64) -> Value {
        let hub_id: u64 = pass.account.parse().unwrap_or(0);
        json!({
            "active": true, "token_type": "bearer", "hub_id": hub_id, "hub_domain": self.domain_of(hub_id),
            "user": USER, "user_id": USER_ID, "app_id": APP_ID, "client_id": pass.client_id, "scopes": *pass.scopes,
            "expires_in": (pass.expires_at_ms - now_ms) / 1000, "is_private_distribution": false,
        })
    }

    /// `POST /oauth/…/token/revoke`: 204, also for a token that is dead already.
    pub(super) fn revoke(&self, headers: &HeaderMap, body: &[u8]) -> Result<Response, Refusal> {
        let form = Form::read(headers, body)?;
        let client_id = form.get("client_id");
        self.auth
            .check_app(client_id, form.get("client_secret"))
            .map_err(|fault| Refusal::app(fault, true))?;
        self.auth.revoke_refresh_token(client_id, form.get("token"));
        Ok(shared::json_bytes(204, ""))
    }

    /// `DELETE /oauth/v1/refresh-tokens/{token}`: whoever holds the token may end it.
    pub(super) fn revoke_in_path(&self, token: &str) -> Result<Response, Refusal> {
        let apps = self.shared.options.apps.iter();
        let ended = apps.filter(|app| self.auth.revoke_refresh_token(&app.client_id, token)).count();
        if ended > 0 { Ok(shared::json_bytes(204, "")) } else { Err(Refusal::not_found()) }
    }
}
