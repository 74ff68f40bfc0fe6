//! The endpoint that browsers reach: start links, and the way back from a provider's consent page.
//!
//! It parses, limits and shows; what an answer means is `auth`'s. Nothing of what a browser sends is echoed or logged.

mod limits;
pub mod pages;
mod server;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::warn;

pub use server::serve;

use crate::auth::Auth;
use crate::auth::Ending;
use crate::auth::answer::Answer;
use crate::auth::authorize::{ATTEMPT_LIFE, Refusal, Started};
use limits::Rate;
use pages::Page;

/// Characters of a request's path and query.
const URI_MAX: usize = 8 * 1024;
/// Requests that are worked on at once, the slow exchanges included.
const WORKED_ON_MAX: usize = 64;
/// How long a page waits for an exchange, which goes on when the page is gone.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(50);
/// Characters of all cookies that are looked at.
const COOKIES_MAX: usize = 4096;
const COOKIE: &str = "fieldmirror_attempt";

/// What `/readyz` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// It answers and takes writes.
    pub database: bool,
    /// The vault's key is the one that the database is sealed with.
    pub key: bool,
    /// Jobs are being worked on.
    pub workers: bool,
}

/// Asked at every `/readyz`; bounds its own time.
pub type ReadyCheck = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Ready> + Send>> + Send + Sync>;

/// What the endpoint works with.
#[derive(Clone)]
pub struct Endpoint {
    auth: Auth,
    ready: ReadyCheck,
    rate: Arc<Rate>,
    worked_on: Arc<Semaphore>,
}

impl Endpoint {
    pub fn new(auth: Auth, ready: ReadyCheck) -> Self {
        Self { auth, ready, rate: Arc::default(), worked_on: Arc::new(Semaphore::new(WORKED_ON_MAX)) }
    }
}

/// The routes, with their limits and headers.
pub fn router(endpoint: Endpoint) -> Router {
    let limited = Router::new()
        .route("/connect/{ticket}", get(connect))
        .route("/oauth/callback/{provider}", get(callback))
        .layer(middleware::from_fn_with_state(endpoint.clone(), limit));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .merge(limited)
        .fallback(|| async { shown(pages::plain(404)) })
        .layer(middleware::from_fn(guard))
        .with_state(endpoint)
}

async fn connect(State(endpoint): State<Endpoint>, Path(ticket): Path<String>) -> Response {
    match endpoint.auth.start(&ticket).await {
        Ok(Ok(started)) => redirect(&endpoint, &started),
        Ok(Err(reason)) => shown(pages::refused(reason)),
        Err(failure) => {
            warn!(failure.kind = failure.kind.label(), "A consent could not be started: {failure}");
            shown(pages::ending(&Ending::Failed(failure)))
        }
    }
}

async fn callback(
    State(endpoint): State<Endpoint>,
    Path(provider): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Ok(answer) = Answer::parse(query.as_deref().unwrap_or_default()) else {
        return shown(pages::refused(Refusal::Invalid));
    };
    let cookie = cookie(&headers);
    let concluded = endpoint.auth.conclude(&provider, answer, cookie.as_deref());
    match tokio::time::timeout(PAGE_WAIT_MAX, concluded).await {
        Ok(Ending::Restart(started)) => redirect(&endpoint, &started),
        Ok(ending) => shown(pages::ending(&ending)),
        Err(_) => shown(pages::still_working()),
    }
}

async fn readyz(State(endpoint): State<Endpoint>) -> Response {
    let Ready { database, key, workers } = (endpoint.ready)().await;
    let status = if database && key && workers { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({"database": database, "key": key, "workers": workers});
    (status, axum::Json(body)).into_response()
}

fn redirect(endpoint: &Endpoint, started: &Started) -> Response {
    let secure = if endpoint.auth.settings.callback.public_url.scheme() == "https" { "; Secure" } else { "" };
    let cookie = format!(
        "{COOKIE}={}; Path={}; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        started.cookie.expose(),
        started.cookie_path,
        ATTEMPT_LIFE.num_seconds()
    );
    let location = HeaderValue::try_from(started.authorize_url.as_str());
    let (Ok(location), Ok(mut cookie)) = (location, HeaderValue::try_from(cookie)) else {
        return shown(pages::plain(500));
    };
    cookie.set_sensitive(true);
    (StatusCode::FOUND, [(header::LOCATION, location), (header::SET_COOKIE, cookie)]).into_response()
}

fn shown(page: Page) -> Response {
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page.html).into_response()
}

/// Our cookie; none when it is sent twice.
fn cookie(headers: &HeaderMap) -> Option<String> {
    let mut ours = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .filter(|value| value.len() <= COOKIES_MAX)
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='));
    let first = ours.next()?;
    ours.next().is_none().then(|| first.to_owned())
}

/// For everything: only GET, no long addresses, and the headers that every answer carries.
async fn guard(request: Request, next: Next) -> Response {
    let length = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let mut response = if request.method() != Method::GET {
        shown(pages::plain(404))
    } else if length > URI_MAX {
        shown(pages::plain(414))
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = HeaderValue::try_from(pages::POLICY.as_str());
    headers.insert(header::CONTENT_SECURITY_POLICY, policy.expect("the policy is plain ASCII"));
    response
}

/// For what costs something: rate and number at once.
async fn limit(State(endpoint): State<Endpoint>, request: Request, next: Next) -> Response {
    if !endpoint.rate.take(Instant::now()) {
        return ([(header::RETRY_AFTER, "5")], shown(pages::plain(429))).into_response();
    }
    match endpoint.worked_on.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => ([(header::RETRY_AFTER, "5")], shown(pages::plain(503))).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &[&str], expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_str(line).expect("a header"));
        }
        assert_eq!(cookie(&headers).as_deref(), expected, "{lines:?}");
    }

    #[test]
    fn cookies() {
        check(&[], None);
        check(&["a=b; fieldmirror_attempt=x-_1; c=d"], Some("x-_1"));
        check(&["a=b", "fieldmirror_attempt=x"], Some("x"));
        check(&["fieldmirror_attempts=x; xfieldmirror_attempt=y"], None);
        check(&["fieldmirror_attempt=x; fieldmirror_attempt=y"], None);
        check(&[&format!("fieldmirror_attempt=x; pad={}", "a".repeat(COOKIES_MAX))], None);
    }
}
