//! ServiceTitan V2, as a mirror of jobs and bookings meets it: tokens of client credentials, export feeds, lists, the
//! booking-provider paths.
//!
//! Served under `/servicetitan`, hosts of tokens and of the API alike. Not served: any write (changes come by the
//! control endpoint), contacts, invoices, job history, webhooks, reporting. The code grant of older guides is offered
//! here to apps that are registered; the fault `no_code_grant` refuses it as the vendor may do.

mod control;
mod feed;
mod kinds;
mod refusals;
mod seed;
mod table;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use chrono::TimeDelta;
use serde_json::{Value, json};

pub use control::{Change, ControlError};
pub use feed::FEED_PAGE;
pub use kinds::Kind;
pub use seed::BOOKING_PROVIDERS;

use super::faults::{FaultName, Spot};
use super::limits::RollingWindow;
use super::oauth::{AuthServer, Choice, TokenRules, consent_answer};
use super::shared::{self, Shared};
use super::{Connect, Part, StandIn, world};
use crate::domain::secret::Secret;
use feed::{Query, Sight};
use kinds::Served;
use refusals::Refusal;
use table::Table;
use tokens::{Pass, Tokens};

/// The provider's name, and the prefix of its paths.
pub const NAME: &str = "servicetitan";
/// The id of the first tenant; the others count on from here.
pub const TENANT_FIRST: u64 = 930_000_001;
/// The key of the one app; it is the same for all tenants.
pub const APP_KEY: &str = "ak1.sandbox";
/// Tenants after the first have this part of its records.
const OTHER_TENANTS_PART: usize = 10;
const CODE_LIFE: Duration = Duration::from_mins(1);
/// Calls of an app to a tenant in a second.
const SECONDLY: usize = 60;
/// Token requests of a client in a minute. The real figure is not published.
const TOKENS_MINUTELY: usize = 30;
/// How long a storm asks to wait.
const STORM_WAIT_MS: i64 = 700;
/// More pauses than these are not noted.
const PAUSES_MAX: usize = 1_000;
/// No body that a reader sends is longer.
const BODY_BYTES_MAX: usize = 64 * 1024;
const SEGMENTS_MAX: usize = 8;

/// A tenant's records.
pub struct Tenant {
    tables: BTreeMap<Kind, Table>,
    /// How many changes there were: makes the last digits of times.
    changes: i64,
}

/// What stands between an app and a tenant's records.
#[derive(Debug, Clone, Default)]
struct Door {
    disabled: bool,
    bound_to: Option<u64>,
    lost_scopes: BTreeSet<String>,
    epoch: u32,
}

/// A pause that a 429 asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    purpose: &'static str,
    since_ms: i64,
    /// How long it was to be.
    pub asked_ms: i64,
    /// How long it was until the next request of its kind.
    pub kept_ms: Option<i64>,
}

/// A tenant, whose records are made when somebody first asks for them.
#[derive(Default)]
struct Held {
    index: usize,
    door: Mutex<Door>,
    world: OnceLock<RwLock<Tenant>>,
}

/// The part of the sandbox that plays ServiceTitan.
pub struct ServiceTitan {
    shared: Arc<Shared>,
    auth: AuthServer,
    tokens: Tokens,
    tenants: BTreeMap<u64, Held>,
    secondly: RollingWindow,
    token_calls: RollingWindow,
    refusals: AtomicUsize,
    pauses: Mutex<Vec<Pause>>,
}

/// What is asked for.
#[derive(Clone, Copy)]
enum Route<'a> {
    Authorize,
    Token,
    Export { tenant: &'a str, served: &'static Served },
    List { tenant: &'a str, served: &'static Served },
    One { tenant: &'a str, served: &'static Served, id: &'a str },
    ProviderBookings { tenant: &'a str, provider: &'a str, id: Option<&'a str> },
    Unknown,
}

impl StandIn for ServiceTitan {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "ServiceTitan"
    }

    fn part(self: Arc<Self>) -> Part {
        let control = Router::new()
            .route("/accounts", get(accounts))
            .route("/accounts/{tenant}", post(change_tenant))
            .route("/accounts/{tenant}/truth", get(truth))
            .route("/expire-tokens", post(expire_tokens))
            .with_state(self.clone());
        Part { api: Router::new().fallback(serve).with_state(self), control }
    }

    fn addresses(&self) -> &'static [(&'static str, &'static str)] {
        &[("api_base", ""), ("authorize_url", "/connect/authorize"), ("token_url", "/connect/token")]
    }

    fn connects(&self) -> Vec<Connect> {
        let tenant = TENANT_FIRST;
        let (id, key) = (("tenant_id", tenant.to_string()), ("app_key", APP_KEY.to_owned()));
        let client = Connect {
            grant: "client_credentials",
            params: vec![id.clone(), ("client_id", Self::client_id(tenant))],
            secrets: vec![("client_secret", Self::client_secret(tenant)), key.clone()],
        };
        vec![client, Connect { grant: "authorization_code", params: vec![id], secrets: vec![key] }]
    }

    fn accounts(&self) -> Value {
        self.tenant_ids().into()
    }

    fn redemptions(&self) -> Value {
        self.auth.redemptions()
    }
}

impl ServiceTitan {
    /// The client of a network of tenants; it has to name the tenant in its token requests.
    pub const HUB_CLIENT_ID: &'static str = "cid.hub";
    pub const HUB_CLIENT_SECRET: &'static str = "cs1.hub";

    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let options = &shared.options;
        let tenant = |index| (TENANT_FIRST + index as u64, Held { index, ..Held::default() });
        let rules = TokenRules {
            access_life: tokens::TOKEN_LIFE,
            code_life: CODE_LIFE,
            access_bytes: 32,
            one_grant_per_account: false,
        };
        Arc::new(Self {
            auth: AuthServer::new(options.apps.clone(), rules),
            tokens: Tokens::default(),
            tenants: (0..options.accounts.max(1)).map(tenant).collect(),
            secondly: RollingWindow::new(SECONDLY, 1_000),
            token_calls: RollingWindow::new(TOKENS_MINUTELY, 60_000),
            refusals: AtomicUsize::new(0),
            pauses: Mutex::default(),
            shared: shared.clone(),
        })
    }

    pub fn auth(&self) -> &AuthServer {
        &self.auth
    }

    /// The ids of the tenants, ascending.
    pub fn tenant_ids(&self) -> Vec<u64> {
        self.tenants.keys().copied().collect()
    }

    /// The credentials of the app at a tenant.
    pub fn client_id(tenant: u64) -> String {
        format!("cid.sandbox{tenant}")
    }

    pub fn client_secret(tenant: u64) -> String {
        format!("cs1.sandbox{tenant}")
    }

    /// Every access token ends now. Returns how many did.
    pub fn expire_tokens(&self) -> usize {
        self.tokens.end(None, self.shared.now_ms())
    }

    /// Every code and token that was ever handed out, for whoever looks for them where they must not be.
    pub fn handed_out(&self) -> Vec<Secret> {
        let mut all = self.auth.handed_out();
        all.extend(self.tokens.handed_out());
        all
    }

    fn door(&self, tenant: u64) -> Door {
        let door =
            self.tenants.get(&tenant).map(|held| held.door.lock().unwrap_or_else(PoisonError::into_inner));
        door.map(|door| door.clone()).unwrap_or_default()
    }

    fn world<'a>(&self, held: &'a Held, tenant: u64) -> &'a RwLock<Tenant> {
        held.world.get_or_init(|| {
            let options = &self.shared.options;
            let first = held.index == 0;
            let count = if first { options.records } else { options.records.div_ceil(OTHER_TENANTS_PART) };
            let end = world::history_end(self.shared.now());
            let name = tenant_name(held.index);
            let (tables, _) = seed::fill(tenant, &name, count, options.seed, end);
            RwLock::new(Tenant { tables, changes: 0 })
        })
    }

    fn offers_codes(&self, spot: Spot) -> bool {
        !self.shared.faults.strikes(FaultName::NoCodeGrant, spot)
    }

    fn answer(&self, route: Route<'_>, spot: Spot, parts: &Parts, body: &[u8]) -> Response {
        let query = parts.uri.query().unwrap_or_default();
        match route {
            Route::Authorize => self.authorize(query, spot),
            Route::Token => self.token(spot, &parts.headers, body),
            Route::Unknown => Refusal::not_found().into_response(),
            _ => self.data(route, spot, &parts.headers, query).unwrap_or_else(IntoResponse::into_response),
        }
    }

    fn authorize(&self, query: &str, spot: Spot) -> Response {
        if !self.offers_codes(spot) {
            return shared::edge_page(404);
        }
        let choice = |(tenant, held): (&u64, &Held)| Choice {
            account: tenant.to_string(),
            label: tenant_name(held.index),
        };
        let choices: Vec<Choice> = self.tenants.iter().map(choice).collect();
        consent_answer(&self.auth, NAME, query, &choices, self.shared.now_ms())
    }

    /// Everything that needs a token: who is it, may they, do they ask too often, and then the answer.
    fn data(
        &self,
        route: Route<'_>,
        spot: Spot,
        headers: &HeaderMap,
        query: &str,
    ) -> Result<Response, Refusal> {
        let now_ms = self.shared.now_ms();
        let pass = self.caller(headers, spot, now_ms)?;
        let (tenant, served) = match route {
            Route::Export { tenant, served }
            | Route::List { tenant, served }
            | Route::One { tenant, served, .. } => (tenant, served),
            Route::ProviderBookings { tenant, .. } => (tenant, Kind::Bookings.served()),
            _ => return Err(Refusal::not_found()),
        };
        let tenant: u64 = tenant.parse().map_err(|_| Refusal::not_found())?;
        let held = self.tenants.get(&tenant).ok_or_else(Refusal::not_found)?;
        if tenant != pass.tenant {
            return Err(Refusal::forbidden("The tenant is not connected to this application."));
        }
        let faults = &self.shared.faults;
        let lost = faults.texts(FaultName::NoScope, spot).iter().any(|lost| lost == served.scope);
        if lost || !pass.scopes.iter().any(|scope| scope == served.scope) {
            return Err(Refusal::forbidden("Insufficient scope."));
        }
        if faults.strikes(FaultName::Http500, spot) {
            return Err(Refusal::server_error());
        }
        self.admit(&pass, spot, now_ms)?;
        let query = Query::new(query);
        let world = self.world(held, tenant).read().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.read(route, spot, &world, &self.door(tenant), &query, now_ms)?;
        Ok(shared::json_bytes(200, bytes))
    }

    /// A key that is missing or wrong is 401, as a token is that does not live.
    fn caller(&self, headers: &HeaderMap, spot: Spot, now_ms: i64) -> Result<Pass, Refusal> {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        if strikes(FaultName::ExpiredAuth) || strikes(FaultName::InvalidAuth) {
            return Err(Refusal::unauthorised());
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if text("st-app-key") != Some(APP_KEY) {
            return Err(Refusal::unauthorised());
        }
        let token = text(AUTHORIZATION.as_str()).and_then(|header| header.strip_prefix("Bearer "));
        token.and_then(|token| self.tokens.pass(token, now_ms)).ok_or_else(Refusal::unauthorised)
    }

    fn admit(&self, pass: &Pass, spot: Spot, now_ms: i64) -> Result<(), Refusal> {
        self.end_pauses(spot, now_ms);
        if self.shared.faults.strikes(FaultName::ThrottleStorm, spot) {
            return Err(self.throttled(spot, STORM_WAIT_MS, now_ms));
        }
        if !self.shared.options.throttled {
            return Ok(());
        }
        let taken = self.secondly.take(&format!("{}/{}", pass.client_id, pass.tenant), now_ms);
        taken.map(drop).map_err(|wait_ms| self.throttled(spot, wait_ms, now_ms))
    }

    /// The forms of `Retry-After` that clients report, in turn: seconds, a fraction, a date, none.
    fn throttled(&self, spot: Spot, wait_ms: i64, now_ms: i64) -> Refusal {
        let seconds = (wait_ms + 999) / 1000;
        let (retry_after, asked_ms) = match self.refusals.fetch_add(1, Ordering::Relaxed) % 4 {
            0 => (Some(seconds.to_string()), seconds * 1000),
            1 => (Some(format!("{}.{:03}", wait_ms / 1000, wait_ms % 1000)), wait_ms),
            2 => {
                let until = chrono::DateTime::from_timestamp_millis(now_ms).unwrap_or_default();
                let until = until + TimeDelta::seconds(seconds);
                let text = until.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
                (Some(text), until.timestamp() * 1000 - now_ms)
            }
            // The sentence tells.
            _ => (None, seconds * 1000),
        };
        let mut pauses = self.pauses();
        if pauses.len() < PAUSES_MAX {
            pauses.push(Pause { purpose: spot.purpose, since_ms: now_ms, asked_ms, kept_ms: None });
        }
        Refusal::throttled(wait_ms, retry_after)
    }

    /// The pauses that were asked for, in their order.
    pub fn pauses(&self) -> MutexGuard<'_, Vec<Pause>> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_pauses(&self, spot: Spot, now_ms: i64) {
        let mut pauses = self.pauses();
        for pause in pauses.iter_mut().filter(|pause| pause.purpose == spot.purpose) {
            pause.kept_ms = pause.kept_ms.or(Some(now_ms - pause.since_ms));
        }
    }

    fn read(
        &self,
        route: Route<'_>,
        spot: Spot,
        world: &Tenant,
        door: &Door,
        query: &Query,
        now_ms: i64,
    ) -> Result<Vec<u8>, Refusal> {
        let table = |kind: Kind| world.tables.get(&kind).ok_or_else(Refusal::not_found);
        let bound = || Refusal::forbidden("The application is restricted to a booking provider.");
        match route {
            Route::Export { served, .. } | Route::List { served, .. } | Route::One { served, .. }
                if served.kind == Kind::Bookings && door.bound_to.is_some() =>
            {
                Err(bound())
            }
            Route::Export { served, .. } => {
                let stuck = self.shared.faults.strikes(FaultName::StuckCursor, spot);
                let length = self.shared.options.feed_page;
                let sight = Sight { epoch: door.epoch, now_ms, stuck, length };
                feed::export(table(served.kind)?, served, query, &sight)
            }
            Route::List { served, .. } => feed::list(table(served.kind)?, served, query, None),
            Route::One { served, id, .. } => {
                let row = id.parse().ok().and_then(|id| table(served.kind).ok()?.get(id));
                Ok(row.ok_or_else(Refusal::not_found)?.listed(served.lists_active).into_bytes())
            }
            Route::ProviderBookings { provider, id, .. } => {
                let provider: u64 = provider.parse().map_err(|_| Refusal::not_found())?;
                if door.bound_to.is_some_and(|bound| bound != provider) {
                    return Err(bound());
                }
                if !BOOKING_PROVIDERS.contains(&provider) {
                    return Err(Refusal::not_found());
                }
                let (table, served) = (table(Kind::Bookings)?, Kind::Bookings.served());
                let Some(id) = id else { return feed::list(table, served, query, Some(provider)) };
                let row = id.parse().ok().and_then(|id| table.get(id));
                let row = row.filter(|row| row.value()["bookingProviderId"] == json!(provider));
                Ok(row.ok_or_else(Refusal::not_found)?.listed(false).into_bytes())
            }
            _ => Err(Refusal::not_found()),
        }
    }
}

fn tenant_name(index: usize) -> String {
    format!("Acme Home Services {}", index + 1)
}

impl<'a> Route<'a> {
    fn of(method: &Method, path: &'a str) -> Self {
        let segments: Vec<&str> =
            path.split('/').filter(|segment| !segment.is_empty()).take(SEGMENTS_MAX + 1).collect();
        let (get, post) = (method == Method::GET, method == Method::POST);
        match *segments {
            ["connect", "authorize"] if get => Self::Authorize,
            ["connect", "token"] if post => Self::Token,
            [module, "v2", "tenant", tenant, ref rest @ ..] if get => Self::of_tenant(module, tenant, rest),
            _ => Self::Unknown,
        }
    }

    fn of_tenant(module: &str, tenant: &'a str, rest: &[&'a str]) -> Self {
        let served = |path, feed: bool| {
            kinds::at(module, path)
                .filter(|served| !(if feed { served.feed } else { served.list }).is_empty())
        };
        let found = match *rest {
            ["export", path] => served(path, true).map(|served| Self::Export { tenant, served }),
            [path] => served(path, false).map(|served| Self::List { tenant, served }),
            [path, id] => served(path, false).map(|served| Self::One { tenant, served, id }),
            ["booking-provider", provider, "bookings"] if module == "crm" => {
                Some(Self::ProviderBookings { tenant, provider, id: None })
            }
            ["booking-provider", provider, "bookings", id] if module == "crm" => {
                Some(Self::ProviderBookings { tenant, provider, id: Some(id) })
            }
            _ => None,
        };
        found.unwrap_or(Self::Unknown)
    }

    /// The word under which the call is counted, and by which a fault finds it.
    fn purpose(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::Token => "token",
            Self::Export { served, .. } => served.feed,
            Self::List { served, .. } => served.list,
            Self::One { .. } => "get",
            Self::ProviderBookings { .. } => "provider_bookings",
            Self::Unknown => "unknown",
        }
    }
}

/// Every request under the provider's prefix.
async fn serve(State(titan): State<Arc<ServiceTitan>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let route = Route::of(&parts.method, parts.uri.path());
    let spot = Spot { provider: NAME, purpose: route.purpose() };
    let body = to_bytes(body, BODY_BYTES_MAX).await.ok();
    let answer = async {
        match body {
            None => shared::edge_page(413),
            Some(body) => titan.answer(route, spot, &parts, &body),
        }
    };
    titan.shared.weather(spot, answer).await
}

async fn accounts(State(titan): State<Arc<ServiceTitan>>) -> Response {
    let rows = titan.tenants.iter().map(|(tenant, held)| {
        json!({
            "account": tenant.to_string(), "name": tenant_name(held.index), "client_id": ServiceTitan::client_id(*tenant),
            "client_secret": ServiceTitan::client_secret(*tenant), "app_key": APP_KEY,
        })
    });
    shared::json(200, &json!({"accounts": rows.collect::<Vec<_>>()}))
}

async fn change_tenant(
    State(titan): State<Arc<ServiceTitan>>,
    Path(tenant): Path<u64>,
    body: Bytes,
) -> Response {
    let change = serde_json::from_slice::<Change>(&body).map_err(|error| error.to_string());
    match change.and_then(|change| titan.change(tenant, &change).map_err(|error| error.to_string())) {
        Ok(ids) => shared::json(200, &json!({"count": ids.len(), "ids": ids})),
        Err(message) => shared::json(400, &json!({"error": message})),
    }
}

async fn truth(State(titan): State<Arc<ServiceTitan>>, Path(tenant): Path<u64>) -> Response {
    match titan.truth(tenant) {
        Ok(lines) => shared::json_bytes(200, lines_of(&lines)),
        Err(error) => shared::json(400, &json!({"error": error.to_string()})),
    }
}

fn lines_of(values: &[Value]) -> String {
    values.iter().flat_map(|value| [value.to_string(), "\n".to_owned()]).collect()
}

async fn expire_tokens(State(titan): State<Arc<ServiceTitan>>) -> Response {
    shared::json(200, &json!({"expired": titan.expire_tokens()}))
}
