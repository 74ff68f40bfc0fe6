//! Housecall Pro's error bodies, of which there are five shapes, and one more at the token endpoint.

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
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        shared::json(self.status, &self.body)
    }
}

impl Refusal {
    /// 401, whatever is wrong with the credential.
    pub fn unauthorized() -> Self {
        Self { status: 401, body: json!({"message": "Unauthorized"}) }
    }

    pub fn archived() -> Self {
        Self { status: 400, body: json!({"error": {"message": "Archived job"}}) }
    }

    pub fn not_found() -> Self {
        Self { status: 404, body: json!({"error": "not found"}) }
    }

    /// 403 of a location that the caller may not look into. The body is not documented.
    pub fn no_location() -> Self {
        Self { status: 403, body: json!({"error": "You do not have access to this location"}) }
    }

    /// A parameter with a value that it cannot have.
    pub fn invalid(parameter: &str) -> Self {
        Self { status: 422, body: json!({"errors": {parameter: ["is invalid"]}}) }
    }

    /// A parameter that cannot be read at all.
    pub fn bad_request(parameter: &str) -> Self {
        Self { status: 400, body: json!({"message": "Bad request", parameter: ["is invalid"]}) }
    }

    pub fn server_error() -> Self {
        Self { status: 500, body: json!({"message": "Internal Server Error"}) }
    }

    pub fn oauth(status: u16, error: &str, description: &str) -> Self {
        Self { status, body: json!({"error": error, "error_description": description}) }
    }

    /// The body of a control request that cannot be done.
    pub fn control(why: &str) -> Self {
        Self { status: 400, body: json!({"error": why}) }
    }
}

/// 429. What its body looks like is not documented: here it is no JSON.
pub fn throttled(retry_after_s: Option<u32>) -> Response {
    let mut response = shared::html(429, "Retry later\n");
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
