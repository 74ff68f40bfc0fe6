//! Carries one token request to its endpoint and back, within a deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use oauth2::basic::{BasicErrorResponse, BasicTokenResponse};
use oauth2::{AsyncHttpClient, HttpRequest, HttpResponse, RequestTokenError, TokenResponse};
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde_json::Value;
use url::form_urlencoded;

use super::answer::{self, Plain};
use super::{Client, Deadline, Granted, TokenEndpoint, TokenFailure};
use crate::domain::secret::Secret;
use crate::domain::spec::BodyStyle;
use crate::domain::time::Clock;
use crate::domain::token::TokenSet;
use crate::http::{answer::Answer, describe};

/// Bytes of a token endpoint's answer: tokens of a few KB and claims, never a list.
const BODY_MAX: usize = 256 * 1024;

/// One exchange with a token endpoint.
pub(super) struct Wire<'a> {
    client: &'a Client,
    endpoint: &'a TokenEndpoint<'a>,
    deadline: Deadline,
    clock: &'a dyn Clock,
    /// Whether the request may have left: what a deadline in the middle has to tell.
    begun: AtomicBool,
    /// What the oauth2 crate has no place for: the rest of the answer, and when the request left.
    aside: Mutex<Option<(Value, DateTime<Utc>)>>,
}

type Parsed = Result<BasicTokenResponse, RequestTokenError<TokenFailure, BasicErrorResponse>>;

impl<'a> Wire<'a> {
    pub(super) fn new(
        client: &'a Client,
        endpoint: &'a TokenEndpoint<'a>,
        deadline: Deadline,
        clock: &'a dyn Clock,
    ) -> Self {
        Self { client, endpoint, deadline, clock, begun: AtomicBool::new(false), aside: Mutex::new(None) }
    }

    /// Sends what the oauth2 crate prepared, and makes of the answer one that the crate can read.
    async fn carry(&self, outgoing: HttpRequest) -> Result<HttpResponse, TokenFailure> {
        let answer = self.send(styled(outgoing, self.endpoint.body)).await?;
        let Plain { body, extra } = answer::plain(&answer, self.endpoint.reads_jwt)?;
        *self.aside.lock().unwrap_or_else(PoisonError::into_inner) = Some((extra, answer.sent_at));
        Ok(HttpResponse::new(body))
    }

    /// Waits for a whole exchange of the oauth2 crate and puts together what was granted.
    pub(super) async fn granted(
        &self,
        parsed: impl Future<Output = Parsed>,
    ) -> Result<Granted, TokenFailure> {
        let response = self.in_time(parsed).await?.map_err(|error| match error {
            RequestTokenError::Request(failure) => failure,
            // The crate's own texts quote the answer.
            RequestTokenError::Other(_) => unavailable(false, "the token request could not be written"),
            RequestTokenError::ServerResponse(_) | RequestTokenError::Parse(..) => {
                unavailable(true, "the answer of the token endpoint could not be read")
            }
        })?;
        let aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (extra, sent_at) = aside.ok_or_else(|| unavailable(false, "no token request was sent"))?;
        let tokens = tokens(&response);
        let claims = answer::claims(tokens.access_token.expose());
        Ok(Granted { tokens, extra, claims, sent_at })
    }

    /// Posts `fields` to an endpoint whose success has no content worth reading.
    pub(super) async fn revoked(&self, fields: &[(&str, &str)]) -> Result<(), TokenFailure> {
        answer::accepted(&self.posted(fields).await?)
    }

    /// Posts `fields` to an endpoint that answers what it knows about a token.
    pub(super) async fn introspected(&self, fields: &[(&str, &str)]) -> Result<Value, TokenFailure> {
        answer::known(&self.posted(fields).await?)
    }

    async fn posted(&self, fields: &[(&str, &str)]) -> Result<Answer, TokenFailure> {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish().into_bytes();
        let mut outgoing = HttpRequest::new(body);
        *outgoing.method_mut() = ::http::Method::POST;
        *outgoing.uri_mut() = self
            .endpoint
            .url
            .as_str()
            .parse()
            .map_err(|_| unavailable(false, "the URL is not an address"))?;
        outgoing
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        self.in_time(self.send(styled(outgoing, self.endpoint.body))).await?
    }

    async fn send(&self, outgoing: HttpRequest) -> Result<Answer, TokenFailure> {
        let request =
            reqwest::Request::try_from(outgoing).map_err(|error| unavailable(false, describe(error)))?;
        if self.deadline.left().is_zero() {
            return Err(unavailable(false, "the time for the token exchange had passed before it was sent"));
        }
        self.begun.store(true, Ordering::SeqCst);
        self.client
            .exchange(&self.client.token, request, BODY_MAX, self.clock)
            .await
            .map_err(|error| unavailable(error.sent, error.message))
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, TokenFailure> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.deadline.passed() => {
                let sent = self.begun.load(Ordering::SeqCst);
                Err(unavailable(sent, "the token endpoint did not answer in time"))
            }
        }
    }
}

/// By hand and boxed: with a closure, the compiler cannot see that the exchange may run in a task of its own.
impl<'c> AsyncHttpClient<'c> for Wire<'_> {
    type Error = TokenFailure;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, TokenFailure>> + Send + 'c>>;

    fn call(&'c self, outgoing: HttpRequest) -> Self::Future {
        Box::pin(self.carry(outgoing))
    }
}

/// No answer. `sent`: the request may have left.
pub fn unavailable(sent: bool, message: impl Into<String>) -> TokenFailure {
    TokenFailure::Unavailable { sent, busy: false, message: message.into() }
}

/// The same fields, as the endpoint wants them written.
fn styled(mut outgoing: HttpRequest, style: BodyStyle) -> HttpRequest {
    if style == BodyStyle::Json {
        let fields: serde_json::Map<String, Value> = form_urlencoded::parse(outgoing.body())
            .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
            .collect();
        *outgoing.body_mut() = Value::Object(fields).to_string().into_bytes();
        outgoing.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    outgoing
}

fn tokens(response: &BasicTokenResponse) -> TokenSet {
    TokenSet {
        access_token: Secret::new(response.access_token().secret().as_str()),
        refresh_token: response.refresh_token().map(|token| Secret::new(token.secret().as_str())),
        expires_in: response.expires_in(),
        scopes: response.scopes().into_iter().flatten().map(|scope| scope.to_string()).collect(),
    }
}
