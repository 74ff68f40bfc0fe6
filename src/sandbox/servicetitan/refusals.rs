//! ServiceTitan's error bodies. Those of 401, 403 and 429 are documented nowhere: they are what its gateway's kind
//! sends.

use axum::http::HeaderValue;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::sandbox::shared;

/// An answer that says no.
#[derive(Debug)]
pub struct Refusal {
    pub status: u16,
    body: Value,
    retry_after: Option<String>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = shared::json(self.status, &self.body);
        if let Some(text) = self.retry_after.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(RETRY_AFTER, text);
        }
        response
    }
}

impl Refusal {
    fn plain(status: u16, body: Value) -> Self {
        Self { status, body, retry_after: None }
    }

    /// A body as of RFC 7807, with ServiceTitan's members.
    pub fn problem(status: u16, title: &str, errors: Value) -> Self {
        let body = json!({
            "type": format!("https://example.invalid/{status}"), "title": title, "status": status,
            "traceId": "00-5a4db0c5-01", "errors": errors, "data": {},
        });
        Self::plain(status, body)
    }

    /// 400: this parameter cannot be read.
    pub fn parameter(name: &str) -> Self {
        Self::problem(400, "One or more validation errors occurred.", json!({name: ["Value is not valid."]}))
    }

    pub fn unauthorised() -> Self {
        Self::problem(401, "Unauthorized", json!({}))
    }

    pub fn forbidden(title: &str) -> Self {
        Self::problem(403, title, json!({}))
    }

    pub fn not_found() -> Self {
        Self::problem(404, "Not Found", json!({}))
    }

    pub fn server_error() -> Self {
        Self::problem(500, "An error occurred while processing your request.", json!({}))
    }

    /// 429. The sentence in the body tells whole seconds; `retry_after` says it in one of several forms, or not at all.
    pub fn throttled(wait_ms: i64, retry_after: Option<String>) -> Self {
        let seconds = (wait_ms + 999) / 1000;
        let message = format!("Rate limit is exceeded. Try again in {seconds} seconds.");
        Self { retry_after, ..Self::plain(429, json!({"statusCode": 429, "message": message})) }
    }

    /// A refusal of the token endpoint.
    pub fn oauth(error: &str) -> Self {
        Self::plain(400, json!({"error": error}))
    }
}
