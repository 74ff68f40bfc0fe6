//! What every provider's part has in common: the clock, the counters, and the weather that requests pass through.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::stream::{self, StreamExt};
use serde_json::Value;

use super::SandboxOptions;
use super::faults::{FaultName, Faults, Spot};
use super::ledger::Ledger;
use crate::domain::time::Clock;

/// How long `hang` keeps a caller waiting at most.
const HANG: Duration = Duration::from_mins(10);
/// Between the half of a torn body and the cut, so that the half is on its way.
const TORN_PAUSE: Duration = Duration::from_millis(20);
/// The longest body that a fault looks into.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One per sandbox, shared by all parts.
pub struct Shared {
    pub options: SandboxOptions,
    pub clock: Arc<dyn Clock>,
    pub faults: Faults,
    pub ledger: Ledger,
}

impl Shared {
    pub fn new(options: SandboxOptions) -> Arc<Self> {
        Arc::new(Self {
            clock: options.clock.clone(),
            faults: Faults::new(options.faults.clone(), options.seed),
            ledger: Ledger::default(),
            options,
        })
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub fn now_ms(&self) -> i64 {
        self.now().timestamp_millis()
    }

    /// Lets `answer` be given, unless a fault of the line or of the edge is in the way; counts, and dates it.
    pub async fn weather(&self, spot: Spot, answer: impl Future<Output = Response>) -> Response {
        let response = if self.faults.any() { self.stormy(spot, answer).await } else { answer.await };
        self.settle(spot, response)
    }

    /// Counts and dates an answer that no fault may touch.
    pub fn settle(&self, spot: Spot, mut response: Response) -> Response {
        let silent = response.extensions().get::<NoAnswer>().is_some();
        self.ledger.count(spot, if silent { 0 } else { response.status().as_u16() });
        let skew = self.faults.number(FaultName::DateSkew, spot).unwrap_or(0);
        let date = self.now() + TimeDelta::seconds(skew);
        let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        response.headers_mut().insert(DATE, HeaderValue::try_from(date).expect("a date is plain ASCII"));
        response
    }

    async fn stormy(&self, spot: Spot, answer: impl Future<Output = Response>) -> Response {
        let strikes = |name| self.faults.strikes(name, spot);
        if let Some(pause) = self.faults.number(FaultName::Slow, spot) {
            tokio::time::sleep(Duration::from_millis(pause.unsigned_abs())).await;
        }
        if let Some(released) = self.faults.keeps_waiting(FaultName::Hang, spot) {
            // Let go or not, the answer comes in the end.
            let _ = tokio::time::timeout(HANG, released).await;
        }
        if strikes(FaultName::Drop) {
            return no_answer();
        }
        if let Some(status) = self.edge_status(spot) {
            return edge_page(status);
        }
        let mut response = answer.await;
        for pointer in self.faults.texts(FaultName::Malformed, spot) {
            response = malform(response, &pointer).await;
        }
        if strikes(FaultName::Torn) { tear(response).await } else { response }
    }

    /// The status of an edge's error page, when one is due.
    fn edge_status(&self, spot: Spot) -> Option<u16> {
        const PAGES: [(FaultName, u16); 5] = [
            (FaultName::Http502, 502),
            (FaultName::Http503, 503),
            (FaultName::Http524, 524),
            (FaultName::Http530, 530),
            (FaultName::HtmlOk, 200),
        ];
        PAGES.iter().find(|(name, _)| self.faults.strikes(*name, spot)).map(|(_, status)| *status)
    }
}

/// Marks a response that the caller never gets to see.
#[derive(Clone, Copy)]
struct NoAnswer;

/// Closes the connection in place of an answer.
pub fn no_answer() -> Response {
    let cut = stream::once(async { Err::<Bytes, _>(io::Error::from(io::ErrorKind::ConnectionReset)) });
    let mut response = Response::new(Body::from_stream(cut));
    response.extensions_mut().insert(NoAnswer);
    response
}

/// A JSON answer of bytes that are JSON already.
pub fn json_bytes(status: u16, body: impl Into<Body>) -> Response {
    respond(status, "application/json;charset=utf-8", body)
}

pub fn json(status: u16, body: &Value) -> Response {
    json_bytes(status, body.to_string())
}

pub fn html(status: u16, body: impl Into<Body>) -> Response {
    respond(status, "text/html; charset=utf-8", body)
}

fn respond(status: u16, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).expect("statuses here are of three digits");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An error page as an edge in front of the provider shows it.
pub fn edge_page(status: u16) -> Response {
    let page = format!(
        "<!DOCTYPE html>\n<html><head><title>{status}</title></head><body><h1>Error {status}</h1>\
         <p>The edge could not get an answer for you.</p></body></html>\n"
    );
    html(status, page)
}

/// Half of the body, and then a cut connection.
async fn tear(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let whole = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let half = whole.slice(..whole.len() / 2);
    let cut = stream::once(async {
        tokio::time::sleep(TORN_PAUSE).await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    });
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(whole.len()));
    Response::from_parts(parts, Body::from_stream(stream::iter([Ok(half)]).chain(cut)))
}

/// Puts an object where the pointer leads, which is what no reader of a scalar expects.
async fn malform(response: Response, pointer: &str) -> Response {
    let (parts, body) = response.into_parts();
    let whole = to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    let Ok(mut value) = serde_json::from_slice::<Value>(&whole) else {
        return Response::from_parts(parts, Body::from(whole));
    };
    let steps: Vec<&str> = pointer.split('/').skip(1).collect();
    spoil(&mut value, &steps);
    Response::from_parts(parts, Body::from(value.to_string()))
}

fn spoil(value: &mut Value, steps: &[&str]) {
    let Some((step, rest)) = steps.split_first() else {
        *value = serde_json::json!({"unexpected": [true]});
        return;
    };
    match value {
        Value::Array(items) if *step == "*" => items.iter_mut().for_each(|item| spoil(item, rest)),
        Value::Array(items) => {
            if let Some(item) = step.parse().ok().and_then(|index: usize| items.get_mut(index)) {
                spoil(item, rest);
            }
        }
        Value::Object(fields) if *step == "*" => fields.values_mut().for_each(|field| spoil(field, rest)),
        Value::Object(fields) => {
            if let Some(field) = fields.get_mut(*step) {
                spoil(field, rest);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{malform, spoil};
    use axum::body::to_bytes;
    use serde_json::json;

    #[test]
    fn spoils_what_the_pointer_leads_to_and_nothing_else() {
        for (pointer, expected) in [
            ("/results/*/id", json!({"results": [{"id": {"unexpected": [true]}, "n": 1}], "total": 1})),
            ("/results/0/n", json!({"results": [{"id": "7", "n": {"unexpected": [true]}}], "total": 1})),
            ("/total", json!({"results": [{"id": "7", "n": 1}], "total": {"unexpected": [true]}})),
            ("/nowhere/at/all", json!({"results": [{"id": "7", "n": 1}], "total": 1})),
        ] {
            let mut value = json!({"results": [{"id": "7", "n": 1}], "total": 1});
            let steps: Vec<&str> = pointer.split('/').skip(1).collect();
            spoil(&mut value, &steps);
            assert_eq!(value, expected, "{pointer}");
        }
    }

    #[tokio::test]
    async fn what_is_not_json_passes() {
        let response = malform(super::html(502, "<p>"), "/a").await;
        assert_eq!(response.status(), 502);
        assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "<p>");
    }
}
