//! HubSpot's error bodies.

use axum::http::HeaderValue;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::sandbox::oauth::{AppFault, GrantFault};
use crate::sandbox::shared;
use crate::sandbox::world::iso;

/// An answer that says no.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    body: Value,
    retry_after_s: Option<i64>,
}

impl IntoResponse for Refusal {
    fn into_response(mut self) -> Response {
        self.body["correlationId"] = json!(Uuid::new_v4());
        let mut response = shared::json(self.status, &self.body);
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl Refusal {
    fn new(status: u16, body: Value) -> Self {
        Self { status, body, retry_after_s: None }
    }

    pub fn retry_after(mut self, seconds: Option<i64>) -> Self {
        self.retry_after_s = seconds;
        self
    }

    fn plain(status: u16, category: &str, message: &str) -> Self {
        Self::new(status, json!({"status": "error", "message": message, "category": category}))
    }

    /// 400: the request breaks a rule.
    pub fn invalid(message: &str) -> Self {
        Self::plain(400, "VALIDATION_ERROR", message)
    }

    pub fn not_found() -> Self {
        Self::plain(404, "OBJECT_NOT_FOUND", "resource not found")
    }

    /// 404 of a path that does not exist.
    pub fn no_such_path() -> Self {
        Self::new(404, json!({"status": "error", "message": "No endpoint at this path"}))
    }

    pub fn expired(at_ms: i64, now_ms: i64) -> Self {
        let minutes = (now_ms - at_ms) / 60_000;
        let message = format!("The OAuth token used to make this call expired {minutes} minute(s) ago.");
        let mut refusal = Self::plain(401, "EXPIRED_AUTHENTICATION", &message);
        refusal.body["context"] = json!({"expire time": [iso(at_ms)]});
        refusal
    }

    pub fn invalid_authentication() -> Self {
        let message = "Authentication credentials not found. This API supports OAuth 2.0 authentication and you can \
                       find more details at https://developers.hubspot.com/docs/methods/auth/oauth-overview";
        Self::plain(401, "INVALID_AUTHENTICATION", message)
    }

    pub fn missing_scope(scope: &str) -> Self {
        let message = "This app hasn't been granted all required scopes to make this call. Read more about required \
                       scopes here: https://developers.hubspot.com/scopes.";
        let mut refusal = Self::plain(403, "MISSING_SCOPES", message);
        refusal.body["links"] = json!({"scopes": "https://developers.hubspot.com/scopes"});
        refusal.body["errors"] = json!([{
            "message": "One or more of the following scopes are required.",
            "context": {"requiredGranularScopes": [scope]},
        }]);
        refusal
    }

    pub fn locked() -> Self {
        Self::plain(423, "OBJECT_LOCKED", "The resource is locked. Please wait at least 2 seconds.")
    }

    /// 477: HubSpot moves the account to another data centre.
    pub fn moving() -> Self {
        let message = "This portal is currently being migrated between data hosting locations.";
        Self::plain(477, "MIGRATION_IN_PROGRESS", message).retry_after(Some(3600))
    }

    pub fn server_error() -> Self {
        Self::new(500, json!({"status": "error", "message": "internal error"}))
    }

    pub fn throttled(policy: Policy, named: bool) -> Self {
        let message = format!("You have reached your {} limit.", policy.word());
        let mut body = json!({
            "status": "error", "message": message, "errorType": "RATE_LIMIT", "category": "RATE_LIMITS",
            "requestId": Uuid::new_v4(),
        });
        if named {
            body["policyName"] = json!(policy.name());
        }
        Self::new(429, body)
    }

    /// 400 of the token endpoint. `rfc`: with the fields of RFC 6749 too.
    pub fn oauth(status: &str, error: &str, message: &str, rfc: bool) -> Self {
        let mut body = json!({"status": status, "message": message});
        if rfc {
            body["error"] = json!(error);
            body["error_description"] = json!(message);
        }
        Self::new(400, body)
    }

    pub fn app(fault: AppFault, rfc: bool) -> Self {
        match fault {
            AppFault::Unknown => {
                Self::oauth("BAD_CLIENT_ID", "invalid_client", "missing or unknown client id", rfc)
            }
            AppFault::WrongSecret => {
                Self::oauth("BAD_CLIENT_SECRET", "invalid_client", "missing or invalid client secret", rfc)
            }
        }
    }

    /// Why a code was not taken.
    pub fn code(fault: GrantFault, rfc: bool) -> Self {
        let (status, message) = match fault {
            GrantFault::OtherRedirect => {
                ("BAD_REDIRECT_URI", "redirect uri does not match the one of the auth code")
            }
            GrantFault::WrongVerifier => ("BAD_AUTH_CODE", "code verifier does not match the code challenge"),
            _ => ("BAD_AUTH_CODE", "missing or unknown auth code"),
        };
        Self::oauth(status, "invalid_grant", message, rfc)
    }

    /// Why a refresh token was not taken.
    pub fn refresh(fault: GrantFault, rfc: bool) -> Self {
        let message = match fault {
            GrantFault::OtherApp => "refresh token was not issued to this client",
            _ => "missing or invalid refresh token",
        };
        Self::oauth("BAD_REFRESH_TOKEN", "invalid_grant", message, rfc)
    }
}

/// The rate limits that HubSpot names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    TenSecondly,
    Secondly,
    Daily,
}

impl Policy {
    fn name(self) -> &'static str {
        match self {
            Self::TenSecondly => "TEN_SECONDLY_ROLLING",
            Self::Secondly => "SECONDLY",
            Self::Daily => "DAILY",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::TenSecondly => "ten_secondly_rolling",
            Self::Secondly => "secondly",
            Self::Daily => "daily",
        }
    }
}
