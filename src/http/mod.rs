//! Talks HTTP to providers: one client with its limits, the token endpoint's adapter, pacing, pauses and masking.
//!
//! It sends one request and tells what came back. It does not retry, follow redirects, keep cookies, judge an answer
//! or know a provider: the engine does the first, provider descriptions the last. The environment's proxy
//! variables are not looked at: what changes where our requests go comes through the configuration or not at all.

mod address;
mod answer;
pub mod carrier;
pub mod deadline;
pub mod oauth;
pub mod pace;
pub mod redact;
pub mod retry;

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use self::answer::Answer;
use self::carrier::Carrier;
use crate::domain::failure::FailureKind;
use crate::domain::secret::Secret;
use crate::domain::spec::Placement;
use crate::domain::step::{Method, Reply, Request};
use crate::domain::time::Clock;

/// Idle connections kept for each host.
const IDLE_MAX: usize = 16;
/// Shorter than the 60 s after which common load balancers close an idle connection: a request on a connection that
/// is just being closed fails, and nobody knows whether it arrived.
const IDLE_FOR: Duration = Duration::from_secs(50);
/// Characters of an error's text.
const MESSAGE_MAX: usize = 500;

/// How long and how large an exchange may be.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Name lookup, TCP and TLS.
    pub connect: Duration,
    /// Silence within an exchange, longer than `connect`, or a slow connect could not be told from a slow
    /// answer. ServiceTitan thinks for up to 100 s before the first byte.
    pub read: Duration,
    /// The whole exchange.
    pub total: Duration,
    /// Bytes of a body, after decompression.
    pub body_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(110),
            total: Duration::from_mins(3),
            body_max: 32 * 1024 * 1024,
        }
    }
}

/// Exchanges of tokens end by deadlines on a clock of their own: a process that stood still must find the reply that came
/// meanwhile, not a timer that says that it is too late.
const TOKEN_MAX: Duration = Duration::from_hours(1);

/// The client could not be built.
#[derive(Debug, thiserror::Error)]
#[error("building the HTTP client")]
pub struct HttpError(#[source] reqwest::Error);

/// No answer, or none that could be read whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SendError {
    /// False only when the request surely never left: it was not well formed, or no connection came about.
    pub sent: bool,
    /// It may have been answered had we waited longer.
    pub timed_out: bool,
    /// Transient, but for a request that is wrong in itself and an answer that is too large.
    pub kind: FailureKind,
    /// Without address, header or secret.
    pub message: String,
}

impl SendError {
    /// Passing trouble. `sent`: whether the request may have left.
    pub fn transient(sent: bool, message: impl Into<String>) -> Self {
        Self { sent, timed_out: false, kind: FailureKind::Transient, message: message.into() }
    }

    fn bug(message: impl Into<String>) -> Self {
        Self { sent: false, timed_out: false, kind: FailureKind::OurBug, message: message.into() }
    }
}

/// The one client. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    /// For APIs: connections are kept.
    api: reqwest::Client,
    /// For token endpoints: a fresh connection each time. On a kept one that the server is just closing, a refresh
    /// token could be spent, or not, and nobody would know.
    token: reqwest::Client,
    /// Takes the place of both.
    carrier: Option<Arc<dyn Carrier>>,
    body_max: usize,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("by_network", &self.carrier.is_none()).finish_non_exhaustive()
    }
}

impl Client {
    /// Fails when the system's trusted certificates cannot be read.
    pub fn new(limits: &HttpLimits) -> Result<Self, HttpError> {
        install_tls();
        Ok(Self {
            api: build(limits, IDLE_MAX).map_err(HttpError)?,
            token: build(&HttpLimits { read: TOKEN_MAX, total: TOKEN_MAX, ..limits.clone() }, 0)
                .map_err(HttpError)?,
            carrier: None,
            body_max: limits.body_max,
        })
    }

    /// A client whose requests leave by `carrier`.
    pub fn carried_by(self, carrier: Arc<dyn Carrier>) -> Self {
        Self { carrier: Some(carrier), ..self }
    }

    /// Sends `request` below `api_base` and returns whatever was answered, error statuses and redirects included.
    ///
    /// `credentials` are the secrets that it carries and where each goes. The reply's `sent_at` is `clock`'s time right
    /// before sending.
    pub async fn send(
        &self,
        api_base: &Url,
        request: &Request,
        credentials: &[(Placement, Secret)],
        clock: &dyn Clock,
    ) -> Result<Reply, SendError> {
        let url = address::join(api_base, &request.path, &request.query)
            .map_err(|error| SendError::bug(error.to_string()))?;
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
        };
        let mut outgoing = self.api.request(method, url);
        for (name, value) in &request.headers {
            outgoing = outgoing.header(*name, value);
        }
        for (placement, secret) in credentials {
            let (name, value) = credential(*placement, secret)?;
            outgoing = outgoing.header(name, value);
        }
        if let Some(body) = &request.body {
            outgoing = outgoing.json(body);
        }
        let outgoing = outgoing.build().map_err(|error| SendError::bug(describe(error)))?;
        let answer = self.exchange(&self.api, outgoing, self.body_max, clock).await?;
        Ok(answer.into_reply())
    }

    /// Sends `request` and reads the answer whole.
    async fn exchange(
        &self,
        network: &reqwest::Client,
        request: reqwest::Request,
        body_max: usize,
        clock: &dyn Clock,
    ) -> Result<Answer, SendError> {
        let sent_at = clock.now();
        if let Some(carrier) = &self.carrier {
            return Ok(Answer::carried(carrier.carry(plain(request)?).await?, sent_at));
        }
        let response = network.execute(request).await.map_err(|error| {
            let sent = !(error.is_connect() || error.is_builder());
            SendError { timed_out: sent && error.is_timeout(), ..SendError::transient(sent, describe(error)) }
        })?;
        answer::read(response, body_max, sent_at).await
    }
}

/// The request with its body as bytes.
fn plain(request: reqwest::Request) -> Result<::http::Request<Vec<u8>>, SendError> {
    let request = ::http::Request::try_from(request).map_err(|error| SendError::bug(describe(error)))?;
    Ok(request.map(|body: reqwest::Body| body.as_bytes().unwrap_or_default().to_vec()))
}

/// Makes ring the process's TLS provider. Called by [`Client::new`]; harmless when called again.
pub fn install_tls() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error says that there is a default already: somebody else's choice stands, and works as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[expect(clippy::disallowed_methods, reason = "this is the one home of the client")]
fn build(limits: &HttpLimits, idle_max: usize) -> reqwest::Result<reqwest::Client> {
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
    reqwest::Client::builder()
        .user_agent(concat!("fieldmirror/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // Every request is counted by a pacer, so none may be repeated behind its back.
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(limits.connect)
        .read_timeout(limits.read)
        .timeout(limits.total)
        .tcp_keepalive(Duration::from_secs(30))
        .pool_max_idle_per_host(idle_max)
        .pool_idle_timeout(IDLE_FOR)
        .build()
}

/// The header that carries a credential, marked so that no library prints it.
fn credential(placement: Placement, secret: &Secret) -> Result<(HeaderName, HeaderValue), SendError> {
    let name = HeaderName::try_from(placement.header)
        .map_err(|_| SendError::bug(format!("`{}` is not the name of a header", placement.header)))?;
    let text = zeroize::Zeroizing::new(format!("{}{}", placement.prefix, secret.expose()));
    let mut value = HeaderValue::try_from(text.as_str())
        .map_err(|_| SendError::bug("the credential holds characters that no header can carry"))?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// The error and its causes in one line, without the address, whose query may hold secrets.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = next.source();
    }
    redact::truncate(&redact::text(&message), MESSAGE_MAX)
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
