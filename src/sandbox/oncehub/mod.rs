//! OnceHub, as a mirror of bookings meets it: API keys, the two limits, lists by last id, bookings, users, booking
//! calendars, event types; and, beside what OnceHub documents, OAuth.
//!
//! Served under `/oncehub`, the API under `/oncehub/v2`. Not served: any write (changes come by the control endpoint),
//! webhooks, contacts, `expand`, other filters than those on `last_updated_time`.
//!
//! # Control
//! | request | does |
//! | --- | --- |
//! | `GET /control/oncehub/accounts` | the accounts with their API keys |
//! | `POST /control/oncehub/accounts/ID` | one [`Change`]; answers `{"ids": […]}` |
//! | `GET /control/oncehub/accounts/ID/truth` | every booking there is or was, as JSON lines |
//! | `POST /control/oncehub/accounts/ID/revoke` | the key is deleted, grants and all their tokens die |
//! | `POST /control/oncehub/expire-tokens` | every access token expires now |

mod account;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, LINK};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};
use url::form_urlencoded;

pub use account::Change;

use super::faults::{FaultName, Spot};
use super::limits::RollingWindow;
use super::oauth::{AuthServer, Choice, TokenRules, consent_answer};
use super::shared::{self, Shared};
use super::{Connect, Part, StandIn, world};
use account::{Account, Kind, Standing};

/// The provider's name, and the prefix of its paths.
pub const NAME: &str = "oncehub";
/// Accounts after the first have this part of its records.
const OTHER_ACCOUNTS_PART: usize = 10;
const CODE_LIFE: Duration = Duration::from_mins(10);
const ACCESS_TOKEN_BYTES: usize = 32;
/// No body that a reader sends is longer.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Requests for one account in a second, and from one address in five minutes.
const SECONDLY: usize = 5;
const FIVE_MINUTELY: usize = 200;
const FIVE_MINUTES_MS: i64 = 5 * 60 * 1000;
/// Every caller of the sandbox has this address.
const ADDRESS: &str = "address";
const LIMIT_DEFAULT: usize = 10;
const LIMIT_MAX: usize = 100;

/// The part of the sandbox that plays OnceHub.
pub struct OnceHub {
    shared: Arc<Shared>,
    auth: AuthServer,
    accounts: BTreeMap<String, RwLock<Account>>,
    secondly: RollingWindow,
    five_minutely: RollingWindow,
}

/// An answer that is none: status and OnceHub's one shape of errors.
struct Refusal {
    status: u16,
    kind: &'static str,
    message: String,
    param: Option<&'static str>,
}

impl Refusal {
    fn new(status: u16, kind: &'static str, message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self { status, kind, message: message.into(), param }
    }

    fn invalid(message: impl Into<String>, param: &'static str) -> Self {
        Self::new(400, "invalid_request_error", message, Some(param))
    }

    fn not_found() -> Self {
        Self::new(404, "invalid_request_error", "No such object", Some("id"))
    }

    fn answer(&self) -> Response {
        let mut body = json!({"type": self.kind, "message": self.message});
        if let Some(param) = self.param {
            body["param"] = param.into();
        }
        shared::json(self.status, &body)
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route<'a> {
    Authorize,
    Token,
    Test,
    List(Kind),
    One(Kind, &'a str),
    Unknown,
}

impl<'a> Route<'a> {
    fn of(method: &str, path: &'a str) -> Self {
        let steps: Vec<&str> = path.split('/').skip(1).collect();
        match (method, steps.as_slice()) {
            ("GET", ["oauth", "authorize"]) => Self::Authorize,
            ("POST", ["oauth", "token"]) => Self::Token,
            ("GET", ["v2", "test"]) => Self::Test,
            ("GET", ["v2", list]) => Kind::of(list).map_or(Self::Unknown, Self::List),
            ("GET", ["v2", list, id]) => Kind::of(list).map_or(Self::Unknown, |kind| Self::One(kind, id)),
            _ => Self::Unknown,
        }
    }

    fn purpose(self, body: &[u8]) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::Token if body.windows(15).any(|part| part == b"\"refresh_token\"") => "token_refresh",
            Self::Token => "token_exchange",
            Self::Test => "test",
            Self::List(kind) => kind.purpose(),
            Self::One(..) => "one",
            Self::Unknown => "unknown",
        }
    }
}

impl OnceHub {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let options = &shared.options;
        let end = world::history_end(shared.now());
        let accounts = (0..options.accounts.max(1)).map(|index| {
            let part = if index == 0 { 1 } else { OTHER_ACCOUNTS_PART };
            let account = Account::new(index as u64 + 1, options.records.div_ceil(part), options.seed, end);
            (account.id(), RwLock::new(account))
        });
        let rules = TokenRules {
            access_life: options.access_token_life,
            code_life: CODE_LIFE,
            access_bytes: ACCESS_TOKEN_BYTES,
            one_grant_per_account: false,
        };
        Arc::new(Self {
            auth: AuthServer::new(options.apps.clone(), rules),
            accounts: accounts.collect(),
            secondly: RollingWindow::new(SECONDLY, 1_000),
            five_minutely: RollingWindow::new(FIVE_MINUTELY, FIVE_MINUTES_MS),
            shared: shared.clone(),
        })
    }

    pub fn auth(&self) -> &AuthServer {
        &self.auth
    }

    /// The ids of the accounts, which are those of their owners.
    pub fn account_ids(&self) -> Vec<String> {
        self.accounts.keys().cloned().collect()
    }

    /// The API key of an account.
    pub fn api_key(account: &str) -> String {
        format!("ohk_{}", account.to_ascii_lowercase().replace('-', ""))
    }

    /// Changes an account. Returns the ids of what it concerned; `None`: there is no such account or object.
    pub fn change(&self, account: &str, change: &Change) -> Option<Vec<String>> {
        let mut account = self.accounts.get(account)?.write().unwrap_or_else(PoisonError::into_inner);
        account.change(change, self.shared.now_ms())
    }

    /// Every booking that there is or was: `{"id", "deleted", "booking"}`.
    pub fn truth(&self, account: &str) -> Option<Vec<Value>> {
        Some(self.accounts.get(account)?.read().unwrap_or_else(PoisonError::into_inner).truth())
    }

    /// What bookings refer to, and did: `{"kind", "deleted", "record"}` with the names of streams.
    pub fn reference(&self, account: &str) -> Option<Vec<Value>> {
        Some(self.accounts.get(account)?.read().unwrap_or_else(PoisonError::into_inner).reference())
    }

    /// The users of an account.
    pub fn users(&self, account: &str) -> Option<Vec<Value>> {
        Some(self.accounts.get(account)?.read().unwrap_or_else(PoisonError::into_inner).users())
    }

    /// The key is deleted, grants and all their tokens die. Returns how many grants died.
    pub fn revoke(&self, account: &str) -> usize {
        if let Some(account) = self.accounts.get(account) {
            account.write().unwrap_or_else(PoisonError::into_inner).key_dead = true;
        }
        self.auth.revoke_account(account)
    }

    fn answer(&self, route: Route<'_>, spot: Spot, parts: &Parts, body: &[u8]) -> Response {
        let query = parts.uri.query().unwrap_or_default();
        let mut response = match route {
            Route::Authorize => self.authorize(query),
            Route::Token => self.token(spot, &parts.headers, body),
            _ => self.data(route, spot, &parts.headers, query).unwrap_or_else(|refusal| refusal.answer()),
        };
        response.headers_mut().insert("request-id", HeaderValue::from_static("req_sandbox"));
        response
    }

    fn authorize(&self, query: &str) -> Response {
        let choices: Vec<Choice> = self
            .accounts
            .iter()
            .map(|(id, account)| {
                let label = account.read().unwrap_or_else(PoisonError::into_inner).address();
                Choice { account: id.clone(), label }
            })
            .collect();
        consent_answer(&self.auth, NAME, query, &choices, self.shared.now_ms())
    }

    /// Everything that needs a credential.
    fn data(
        &self,
        route: Route<'_>,
        spot: Spot,
        headers: &HeaderMap,
        query: &str,
    ) -> Result<Response, Refusal> {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        let unauthorised = || Refusal::new(401, "authentication_error", "Invalid API key.", None);
        if strikes(FaultName::ExpiredAuth) || strikes(FaultName::InvalidAuth) {
            return Err(unauthorised());
        }
        let id = self.caller(headers).ok_or_else(unauthorised)?;
        self.spend(&id, strikes(FaultName::ThrottleStorm))?;
        if strikes(FaultName::Http500) {
            return Err(Refusal::new(500, "api_error", "Something went wrong", None));
        }
        if strikes(FaultName::NoScope) {
            let text = "Your plan has no access to the API. Please upgrade.";
            return Err(Refusal::new(403, "authentication_error", text, None));
        }
        let account = self.accounts.get(&id).ok_or_else(unauthorised)?;
        let account = &*account.read().unwrap_or_else(PoisonError::into_inner);
        match route {
            Route::Test => {
                let message = format!("The API key is valid for account: {}", account.address());
                Ok(shared::json(200, &json!({"message": message})))
            }
            Route::List(_) if strikes(FaultName::EmptyList) => {
                Ok(shared::json(200, &json!({"object": "list", "data": [], "has_more": false})))
            }
            Route::List(_) if strikes(FaultName::RefusedCursor) && Query::read(query)?.after.is_some() => {
                Err(Refusal::invalid("Invalid cursor", "after"))
            }
            Route::List(kind) => list(account, kind, &Query::read(query)?, strikes(FaultName::StuckCursor)),
            Route::One(kind, id) => one(account, kind, id),
            Route::Authorize | Route::Token | Route::Unknown => Err(Refusal::not_found()),
        }
    }

    /// Both limits hold at once, and a refused request counts against neither.
    fn spend(&self, account: &str, storm: bool) -> Result<(), Refusal> {
        let refused = || Refusal::new(429, "rate_limit_error", "Request rate limit exceeded", None);
        if storm {
            return Err(refused());
        }
        if !self.shared.options.throttled {
            return Ok(());
        }
        let now_ms = self.shared.now_ms();
        if self.five_minutely.left(ADDRESS, now_ms) == 0 {
            return Err(refused());
        }
        self.secondly.take(account, now_ms).map_err(|_| refused())?;
        self.five_minutely.take(ADDRESS, now_ms).map(drop).map_err(|_| refused())
    }

    fn caller(&self, headers: &HeaderMap) -> Option<String> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        if let Some(key) = text("api-key") {
            let (id, account) = self.accounts.iter().find(|(id, _)| Self::api_key(id) == key)?;
            let dead = account.read().unwrap_or_else(PoisonError::into_inner).key_dead;
            return (!dead).then(|| id.clone());
        }
        let token = text(AUTHORIZATION.as_str())?.strip_prefix("Bearer ")?;
        Some(self.auth.bearer(token, self.shared.now_ms()).ok()?.account)
    }
}

/// What a list is asked with.
struct Query {
    limit: usize,
    after: Option<String>,
    since_ms: Option<i64>,
    until_ms: Option<i64>,
}

impl Query {
    fn read(query: &str) -> Result<Self, Refusal> {
        let fields: BTreeMap<String, String> =
            form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let limit = match fields.get("limit") {
            None => LIMIT_DEFAULT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                .ok_or_else(|| Refusal::invalid(format!("Invalid limit: {text}"), "limit"))?,
        };
        if fields.contains_key("after") && fields.contains_key("before") {
            return Err(Refusal::invalid("Only one of after and before", "after"));
        }
        let time = |name: &'static str| match fields.get(name) {
            None => Ok(None),
            Some(text) => chrono::DateTime::parse_from_rfc3339(text)
                .map(|time| Some(time.timestamp_millis()))
                .map_err(|_| Refusal::invalid(format!("Invalid date: {text}"), name)),
        };
        let (since_ms, until_ms) = (time("last_updated_time.gt")?, time("last_updated_time.lt")?);
        if since_ms.zip(until_ms).is_some_and(|(since, until)| since > until) {
            return Err(Refusal::invalid("The window is empty", "last_updated_time.gt"));
        }
        Ok(Self { limit, after: fields.get("after").cloned(), since_ms, until_ms })
    }

    /// Strictly within.
    fn covers(&self, updated_ms: i64) -> bool {
        self.since_ms.is_none_or(|since| updated_ms > since)
            && self.until_ms.is_none_or(|until| updated_ms < until)
    }
}

/// One page, newest first.
fn list(account: &Account, kind: Kind, query: &Query, stuck: bool) -> Result<Response, Refusal> {
    let table = account.table(kind);
    let start = match query.after.as_deref().filter(|_| !stuck) {
        None => 0,
        Some(id) => {
            let known = table.iter().position(|object| object.id == id);
            known.map(|at| at + 1).ok_or_else(|| Refusal::invalid("Invalid cursor", "after"))?
        }
    };
    let shown = |object: &&account::Object| {
        object.standing == Standing::Listed && (kind != Kind::Booking || query.covers(object.updated_ms))
    };
    let mut rest = table[start..].iter().filter(shown);
    let page: Vec<&account::Object> = rest.by_ref().take(query.limit).collect();
    let more = rest.next().is_some();
    let data: Vec<&Value> = page.iter().map(|object| &object.value).collect();
    let mut response = shared::json(200, &json!({"object": "list", "data": data, "has_more": more}));
    if let Some(last) = page.last().filter(|_| more) {
        // As in OnceHub's own documents: without `/v2`, and at its real host.
        let link = format!("<https://api.oncehub.com/{}?after={}>; rel=\"next\"", kind.path(), last.id);
        response.headers_mut().insert(LINK, HeaderValue::try_from(link).expect("ids are plain ASCII"));
    }
    Ok(response)
}

fn one(account: &Account, kind: Kind, id: &str) -> Result<Response, Refusal> {
    let object = account.table(kind).iter().find(|object| object.id == id).ok_or_else(Refusal::not_found)?;
    match object.standing {
        Standing::Listed => Ok(shared::json(200, &object.value)),
        Standing::Redacted => {
            let redacted = json!({"id": id, "object": object.value["object"], "deleted": true});
            Ok(shared::json(200, &redacted))
        }
        Standing::Gone => Err(Refusal::not_found()),
    }
}

impl StandIn for OnceHub {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "OnceHub"
    }

    fn part(self: Arc<Self>) -> Part {
        let control = Router::new()
            .route("/accounts", get(accounts))
            .route("/accounts/{account}", post(change_account))
            .route("/accounts/{account}/truth", get(truth))
            .route("/accounts/{account}/revoke", post(revoke_account))
            .route("/expire-tokens", post(expire_tokens))
            .with_state(self.clone());
        Part { api: Router::new().fallback(serve).with_state(self), control }
    }

    fn addresses(&self) -> &'static [(&'static str, &'static str)] {
        &[("api_base", "/v2"), ("authorize_url", "/oauth/authorize"), ("token_url", "/oauth/token")]
    }

    fn connects(&self) -> Vec<Connect> {
        let key = Self::api_key(&self.account_ids()[0]);
        let by_key = Connect { grant: "api_key", secrets: vec![("api_key", key)], ..Connect::default() };
        vec![by_key, Connect { grant: "authorization_code", ..Connect::default() }]
    }

    fn accounts(&self) -> Value {
        self.account_ids().into()
    }

    fn redemptions(&self) -> Value {
        self.auth.redemptions()
    }
}

/// Every request under the provider's prefix.
async fn serve(State(oncehub): State<Arc<OnceHub>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let route = Route::of(parts.method.as_str(), parts.uri.path());
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else { return shared::edge_page(413) };
    let spot = Spot { provider: NAME, purpose: route.purpose(&body) };
    let answer = async { oncehub.answer(route, spot, &parts, &body) };
    oncehub.shared.weather(spot, answer).await
}

async fn accounts(State(oncehub): State<Arc<OnceHub>>) -> Response {
    let row = |id: &String| json!({"id": id, "api_key": OnceHub::api_key(id)});
    let rows: Vec<Value> = oncehub.accounts.keys().map(row).collect();
    shared::json(200, &json!({"accounts": rows}))
}

async fn change_account(
    State(oncehub): State<Arc<OnceHub>>,
    Path(account): Path<String>,
    body: Bytes,
) -> Response {
    let change: Change = match serde_json::from_slice(&body) {
        Ok(change) => change,
        Err(error) => return shared::json(400, &json!({"error": error.to_string()})),
    };
    match oncehub.change(&account, &change) {
        Some(ids) => shared::json(200, &json!({"ids": ids})),
        None => shared::json(404, &json!({"error": "no such account or booking"})),
    }
}

async fn truth(State(oncehub): State<Arc<OnceHub>>, Path(account): Path<String>) -> Response {
    let Some(lines) = oncehub.truth(&account) else {
        return shared::json(404, &json!({"error": "no such account"}));
    };
    let text = lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n");
    shared::json_bytes(200, text)
}

async fn revoke_account(State(oncehub): State<Arc<OnceHub>>, Path(account): Path<String>) -> Response {
    shared::json(200, &json!({"revoked": oncehub.revoke(&account)}))
}

async fn expire_tokens(State(oncehub): State<Arc<OnceHub>>) -> Response {
    let expired = oncehub.auth.expire_access_tokens(oncehub.shared.now_ms());
    shared::json(200, &json!({"expired": expired}))
}
