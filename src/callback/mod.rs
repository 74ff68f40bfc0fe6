//! The endpoint that browsers reach: start links, and the way back from a provider's consent page.
//!
//! It parses, limits and shows; what an answer means is `auth`'s. Nothing of what a browser sends is echoed or logged.

mod connections;
mod cookie;
mod limits;
pub mod pages;
mod server;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde_json::json;
use tokio::sync::Mutex;
use tower::ServiceExt as _;
use tracing::warn;

pub use server::serve;

use crate::auth::Auth;
use crate::auth::Ending;
use crate::auth::answer::{Answer, BroughtBy};
use crate::auth::authorize::{Recognised, Refusal, Started};
use crate::domain::current::Current;
use crate::domain::measure;
use limits::{Busy, Limits};
use pages::Page;

/// Characters of a request's path and query.
const URI_MAX: usize = 8 * 1024;
/// How long a page waits for an exchange, which goes on when the page is gone.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(50);
/// How long an answer of `/readyz` is given again: it asks the database, and anybody may ask it.
const READY_FOR: Duration = Duration::from_millis(500);

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

impl Ready {
    pub fn all(self) -> bool {
        self.database && self.key && self.workers
    }
}

/// Asked for `/readyz`; bounds its own time.
pub type ReadyCheck = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Ready> + Send>> + Send + Sync>;

/// What the endpoint works with.
#[derive(Clone)]
pub struct Endpoint {
    auth: Auth,
    ready: ReadyCheck,
    /// What `ready` said, and when. Held while it is asked, so that one asks for all.
    ready_said: Arc<Mutex<Option<(Instant, Ready)>>>,
    limits: Limits,
}

impl Endpoint {
    pub fn new(auth: Auth, ready: ReadyCheck) -> Self {
        Self { auth, ready, ready_said: Arc::default(), limits: Limits::default() }
    }

    /// The same endpoint, its limits with what has been counted, under other settings.
    pub fn with_auth(&self, auth: Auth) -> Self {
        Self { auth, ..self.clone() }
    }

    /// As browsers see us.
    fn is_https(&self) -> bool {
        self.auth.settings.callback.public_url.scheme() == "https"
    }

    async fn ready(&self) -> Ready {
        let mut said = self.ready_said.lock().await;
        match *said {
            Some((at, ready)) if at.elapsed() < READY_FOR => ready,
            _ => {
                let ready = (self.ready)().await;
                *said = Some((Instant::now(), ready));
                ready
            }
        }
    }
}

/// The routes, with their limits and headers.
pub fn router(endpoint: Endpoint) -> Router {
    // `any`, since `guard` knows the methods: a router that did would tell them in a header of its own.
    Router::new()
        .route("/connect/{ticket}", any(connect))
        .route("/oauth/callback/{provider}", any(callback))
        .route("/healthz", any(|| async { "ok\n" }))
        .route("/readyz", any(readyz))
        .fallback(|| async { shown(pages::plain(404)) })
        .layer(middleware::from_fn(guard))
        .with_state(endpoint)
}

/// A router that answers as the present one does: settings may change while it serves.
pub fn present(routers: Arc<Current<Router>>) -> Router {
    Router::new().fallback_service(tower::service_fn(move |request: Request| {
        let router = routers.get();
        async move { Router::clone(&router).oneshot(request).await }
    }))
}

/// A part of a path as its text; what is no text is nothing.
type Part = Result<Path<String>, PathRejection>;

async fn connect(State(endpoint): State<Endpoint>, ticket: Part) -> Response {
    let ticket = match endpoint.auth.recognise_ticket(&text(ticket)) {
        Ok(ticket) => ticket,
        Err(reason) => return shown(pages::refused(reason)),
    };
    let _permit = match endpoint.limits.admit(ticket.known_by(), Instant::now()) {
        Ok(permit) => permit,
        Err(busy) => return wait(busy),
    };
    match endpoint.auth.start(ticket).await {
        Ok(Ok(started)) => redirect(&endpoint, &started),
        Ok(Err(reason)) => shown(pages::refused(reason)),
        Err(failure) => {
            warn!(failure.kind = failure.kind.label(), error = %failure, "A consent could not be started: {failure}");
            shown(pages::ending(&Ending::Failed(failure)))
        }
    }
}

async fn callback(
    State(endpoint): State<Endpoint>,
    provider: Part,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let recognised = match recognise(&endpoint, &text(provider), query.as_deref(), &headers) {
        Ok(recognised) => recognised,
        Err(reason) => return shown(pages::refused(reason)),
    };
    let _permit = match endpoint.limits.admit(recognised.known_by(), Instant::now()) {
        Ok(permit) => permit,
        Err(busy) => return wait(busy),
    };
    match tokio::time::timeout(PAGE_WAIT_MAX, endpoint.auth.conclude(recognised)).await {
        Ok(Ending::Restart(started)) => redirect(&endpoint, &started),
        Ok(ending) => shown(pages::ending(&ending)),
        Err(_) => shown(pages::still_working()),
    }
}

fn recognise(
    endpoint: &Endpoint,
    provider: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Recognised, Refusal> {
    let answer = Answer::parse(query.unwrap_or_default()).map_err(|_| Refusal::Invalid)?;
    let cookies = cookie::read(headers, provider, endpoint.is_https());
    endpoint.auth.recognise(provider, answer, BroughtBy::Browser { cookies: &cookies })
}

fn text(part: Part) -> String {
    part.map(|Path(text)| text).unwrap_or_default()
}

async fn readyz(State(endpoint): State<Endpoint>) -> Response {
    let ready = endpoint.ready().await;
    let Ready { database, key, workers } = ready;
    let status = if ready.all() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({"database": database, "key": key, "workers": workers});
    (status, axum::Json(body)).into_response()
}

fn redirect(endpoint: &Endpoint, started: &Started) -> Response {
    let cookie = cookie::set(started, endpoint.is_https());
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

fn wait(busy: Busy) -> Response {
    let status = match busy {
        Busy::TooOften => 429,
        Busy::TooMany => 503,
    };
    ([(header::RETRY_AFTER, "5")], shown(pages::plain(status))).into_response()
}

/// For everything: only GET, no long addresses, and the headers that every answer carries.
async fn guard(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let length = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let mut response = if request.method() != Method::GET {
        shown(pages::plain(404))
    } else if length > URI_MAX {
        shown(pages::plain(414))
    } else {
        next.run(request).await
    };
    measure::callback(&path, response.status().as_u16());
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
