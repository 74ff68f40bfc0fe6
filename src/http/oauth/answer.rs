//! Reads a token endpoint's answer, and translates the providers' dialects into what RFC 6749 says.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::TokenFailure;
use super::wire::unavailable;
use crate::domain::step::Body;
use crate::domain::time::until;
use crate::domain::values;
use crate::http::answer::{Answer, body};
use crate::http::{redact, retry};

/// A longer life of an access token is not believed.
const LIFE_MAX: Duration = Duration::from_hours(10 * 365 * 24);
/// Characters of a provider's own words.
const SAID_MAX: usize = 300;
/// Epoch numbers from here on are milliseconds: as seconds they are past the year 5000.
const EPOCH_MS_MIN: f64 = 100_000_000_000.0;

/// A grant as the oauth2 crate reads it.
pub(super) struct Plain {
    /// RFC 6749 5.1, to the letter.
    pub(super) body: Vec<u8>,
    /// The answer without the values of tokens.
    pub(super) extra: Value,
}

/// The grant in an answer, or why there is none.
pub(super) fn plain(answer: &Answer, reads_jwt: bool) -> Result<Plain, TokenFailure> {
    let Body::Json(Value::Object(fields)) = success(answer)? else {
        return Err(unavailable(true, format!("an answer without tokens (status {})", answer.status)));
    };
    let Some(access_token) = filled(&fields, "access_token") else {
        return Err(unavailable(
            true,
            format!("an answer without `access_token` (status {})", answer.status),
        ));
    };
    let mut plain = json!({"access_token": access_token, "token_type": "bearer"});
    if let Some(refresh_token) = filled(&fields, "refresh_token") {
        plain["refresh_token"] = refresh_token.into();
    }
    if let Some(life) = life(&fields, server_time(answer), reads_jwt) {
        plain["expires_in"] = life.as_secs().into();
    }
    let scopes = scopes(&fields);
    if !scopes.is_empty() {
        plain["scope"] = scopes.join(" ").into();
    }
    Ok(Plain { body: plain.to_string().into_bytes(), extra: without_tokens(&Value::Object(fields)) })
}

/// Whether the endpoint took the request, whatever else it says.
pub(super) fn accepted(answer: &Answer) -> Result<(), TokenFailure> {
    success(answer).map(drop)
}

/// What the endpoint knows about a token, without the values of tokens.
pub(super) fn known(answer: &Answer) -> Result<Value, TokenFailure> {
    match success(answer)? {
        Body::Json(value @ Value::Object(_)) => Ok(without_tokens(&value)),
        _ => Err(unavailable(true, format!("an answer that is not an object (status {})", answer.status))),
    }
}

/// The body of a success.
fn success(answer: &Answer) -> Result<Body, TokenFailure> {
    let status = answer.status;
    let asked = answer.headers.get("retry-after");
    let wait = asked.and_then(|header| retry::parse_retry_after(header, server_time(answer)));
    match status {
        429 => return Err(TokenFailure::Throttled { wait }),
        503 if wait.is_some() => return Err(TokenFailure::Throttled { wait }),
        200..=299 | 400..=407 | 409..=424 | 426..=499 => {}
        300..=399 => {
            return Err(unavailable(true, format!("a redirect (status {status}), which is not followed")));
        }
        _ => {
            let message = format!("the token endpoint failed (status {status})");
            return Err(TokenFailure::Unavailable { sent: true, busy: status == 503, message });
        }
    }
    let body = body(&answer.bytes);
    if is_html(answer, &body) {
        return Err(unavailable(true, format!("an HTML page instead of an answer (status {status})")));
    }
    if status < 300 && !names_an_error(&body) {
        return Ok(body);
    }
    let body = match body {
        Body::Json(value) => Body::Json(redact::json(&value)),
        text @ Body::Text(_) => text,
    };
    Err(TokenFailure::Refused { status, body })
}

fn is_html(answer: &Answer, body: &Body) -> bool {
    let Body::Text(text) = body else { return false };
    let claims = answer.headers.get("content-type").is_some_and(|kind| kind.contains("html"));
    text.starts_with('<') || (claims && !text.is_empty())
}

/// An `error` in a success: some servers say 200 to everything.
fn names_an_error(body: &Body) -> bool {
    let Body::Json(value) = body else { return false };
    !matches!(value.get("error"), None | Some(Value::Null | Value::Bool(false)))
        && value["error"].as_str() != Some("")
}

fn filled<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// How long the access token lives: `expires_in`, less the token's age where `created_at` tells it (Housecall Pro), else
/// `expires_at`, else the JWT's `exp`. Zero, negative and absurd values mean unknown.
fn life(fields: &Map<String, Value>, now: DateTime<Utc>, reads_jwt: bool) -> Option<Duration> {
    let told = fields.get("expires_in").and_then(seconds);
    let age = fields.get("created_at").and_then(moment).map(|created_at| until(now, created_at));
    let told = told.map(|told| age.and_then(|age| told.checked_sub(age)).unwrap_or(told));
    let dated = || Some(until(moment(fields.get("expires_at")?)?, now));
    let claimed = || Some(until(moment(claims(filled(fields, "access_token")?)?.get("exp")?)?, now));
    told.and_then(believable)
        .or_else(|| dated().and_then(believable))
        .or_else(|| if reads_jwt { claimed().and_then(believable) } else { None })
}

fn believable(life: Duration) -> Option<Duration> {
    (life >= Duration::from_secs(1) && life <= LIFE_MAX).then_some(life)
}

/// A number of seconds, as number or text, with a fraction or without.
fn seconds(value: &Value) -> Option<Duration> {
    Duration::try_from_secs_f64(float(value)?).ok()
}

/// A point in time: any spelling that record values have, and epoch seconds.
fn moment(value: &Value) -> Option<DateTime<Utc>> {
    match float(value) {
        Some(epoch) if epoch < EPOCH_MS_MIN => values::timestamp(&json!(epoch * 1000.0)),
        _ => values::timestamp(value),
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// The claims of a JWT, read without verifying. Anything else has none.
pub(super) fn claims(token: &str) -> Option<Value> {
    let claims = token.split('.').nth(1)?;
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Value>(&decoded).ok().filter(Value::is_object)
}

/// HubSpot sends an array `scopes`, the RFC says a text `scope` with blanks, some put commas.
fn scopes(fields: &Map<String, Value>) -> Vec<String> {
    let words =
        |text: &str| text.split([' ', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let read = |value: &Value| -> Vec<String> {
        match value {
            Value::String(text) => words(text),
            Value::Array(items) => items.iter().filter_map(Value::as_str).flat_map(words).collect(),
            _ => Vec::new(),
        }
    };
    ["scopes", "scope"]
        .iter()
        .filter_map(|name| fields.get(*name))
        .map(read)
        .find(|list| !list.is_empty())
        .unwrap_or_default()
}

/// The provider's own clock where it tells, else the moment of sending: what its dates are counted from.
fn server_time(answer: &Answer) -> DateTime<Utc> {
    answer.headers.get("date").and_then(|date| retry::http_date(date)).unwrap_or(answer.sent_at)
}

/// The value without any field that holds a token; other texts are masked where they look like one.
fn without_tokens(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, value)| !redact::holds_secret(key, value));
            Value::Object(kept.map(|(key, value)| (key.clone(), without_tokens(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_tokens).collect(),
        plain => redact::json(plain),
    }
}

/// `: ` and the provider's own words about a refusal, or nothing.
pub(super) fn said(body: &Body) -> String {
    let words = match body {
        Body::Text(text) => redact::text(text),
        Body::Json(value) => {
            let mut words: Vec<&str> = ["error", "error_description", "message", "status"]
                .iter()
                .filter_map(|name| value.get(name)?.as_str())
                .filter(|word| !word.is_empty())
                .collect();
            words.dedup();
            redact::text(&words.join(", "))
        }
    };
    if words.is_empty() { words } else { format!(": {}", redact::truncate(&words, SAID_MAX)) }
}

/// ` for 10s`, or nothing.
pub(super) fn for_long(wait: Option<Duration>) -> String {
    wait.map(|wait| format!(" for {}", humantime::format_duration(wait))).unwrap_or_default()
}
