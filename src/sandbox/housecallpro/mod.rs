//! Housecall Pro, as a mirror of jobs meets it: OAuth and API keys, the company and its locations, jobs, customers,
//! employees.
//!
//! Served under `/housecallpro`, without a version in the paths. Not served: any write (changes come by the control
//! endpoint), webhooks, other lists, filters of lists other than `work_status`, sorting jobs by text. No rate limit is
//! enforced, since none is documented; `throttle_storm` refuses without one.
//!
//! # Control
//! | request | does |
//! | --- | --- |
//! | `GET /control/housecallpro/accounts` | the accounts, their locations and API keys, how many requests of each were ever under way at once |
//! | `POST /control/housecallpro/accounts/ID` | one [`Change`]; answers `{"ids": […]}` |
//! | `GET /control/housecallpro/accounts/ID/truth` | everything there is or was, as JSON lines |
//! | `POST /control/housecallpro/accounts/ID/revoke` | the grants and all their tokens die, and the API key is deleted |
//! | `POST /control/housecallpro/expire-tokens` | every access token expires now |

mod account;
mod control;
mod list;
mod refusals;
mod render;
mod seed;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

pub use control::{By, Change, ControlError, Left};

use super::faults::{FaultName, Spot};
use super::oauth::{AuthServer, Choice, TokenRules, consent_answer};
use super::shared::{self, Shared};
use super::{Connect, Part, StandIn, world};
use account::{Account, Kind, Standing};
use list::{Manners, Query};
use refusals::Refusal;

/// The provider's name, and the prefix of its paths.
pub const NAME: &str = "housecallpro";
/// Locations below the first account's company. The others have none.
const LOCATIONS: usize = 2;
/// Accounts after the first have this part of its records.
const OTHER_ACCOUNTS_PART: usize = 10;
/// A month, as a refreshed token is said to live.
const TOKEN_LIFE: Duration = Duration::from_secs(2_629_745);
const CODE_LIFE: Duration = Duration::from_mins(10);
/// Makes access tokens of 64 characters.
const ACCESS_TOKEN_BYTES: usize = 48;
/// No body that a reader sends is longer.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// By how much two clocks may differ over a pause.
const CLOCKS_DIFFER_MS: i64 = 20;
/// How long a 429 says to wait, where it says so.
const THROTTLED_S: u32 = 2;

/// The part of the sandbox that plays Housecall Pro.
pub struct Housecallpro {
    shared: Arc<Shared>,
    auth: AuthServer,
    accounts: Vec<(String, RwLock<Account>)>,
    /// By account.
    traffic: Mutex<BTreeMap<String, Traffic>>,
    /// Lists that were shown in an order of their own.
    shuffles: AtomicU64,
}

/// How an account's requests came.
#[derive(Default)]
struct Traffic {
    under_way: usize,
    /// The most that were ever under way at once.
    most: usize,
    /// When the pause is over that a 429 asked for.
    quiet_until_ms: i64,
    /// Requests that came before that.
    early: u64,
}

/// Who calls.
struct Caller {
    account: String,
    /// A key of a company; partners have tokens.
    by_key: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route<'a> {
    Authorize,
    Token,
    Company,
    Application,
    List(Kind),
    One(Kind, &'a str),
    Unknown,
}

impl<'a> Route<'a> {
    fn of(method: &Method, path: &'a str) -> Self {
        let steps: Vec<&str> = path.split('/').skip(1).collect();
        match (method.as_str(), steps.as_slice()) {
            ("GET", ["oauth", "authorize"]) => Self::Authorize,
            ("POST", ["oauth", "token"]) => Self::Token,
            ("GET", ["company"]) => Self::Company,
            ("GET", ["application"]) => Self::Application,
            ("GET", ["jobs"]) => Self::List(Kind::Job),
            ("GET", ["customers"]) => Self::List(Kind::Customer),
            ("GET", ["employees"]) => Self::List(Kind::Employee),
            ("GET", ["jobs", id]) => Self::One(Kind::Job, id),
            // Employees cannot be read by id.
            ("GET", ["customers", id]) => Self::One(Kind::Customer, id),
            _ => Self::Unknown,
        }
    }

    fn purpose(self, body: &[u8]) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::Token if body.windows(15).any(|part| part == b"\"refresh_token\"") => "token_refresh",
            Self::Token => "token_exchange",
            Self::Company => "company",
            Self::Application => "application",
            Self::List(kind) => kind.plural(),
            Self::One(Kind::Job, _) => "job",
            Self::One(..) => "customer",
            Self::Unknown => "unknown",
        }
    }
}

impl StandIn for Housecallpro {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "Housecall Pro"
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
        &[("api_base", ""), ("authorize_url", "/oauth/authorize"), ("token_url", "/oauth/token")]
    }

    /// There is no limit here, and none of the vendor's that our own pace would have to stay below.
    fn settings(&self) -> &'static [(&'static str, &'static str)] {
        &[("requests_per_minute", "6000")]
    }

    fn connects(&self) -> Vec<Connect> {
        let key = Self::api_key(&self.account_ids()[0]);
        let by_key = Connect { grant: "api_key", secrets: vec![("api_key", key)], ..Connect::default() };
        vec![Connect { grant: "authorization_code", ..Connect::default() }, by_key]
    }

    fn accounts(&self) -> Value {
        self.account_ids().into()
    }

    fn redemptions(&self) -> Value {
        self.auth.redemptions()
    }
}

impl Housecallpro {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let options = &shared.options;
        let end = world::history_end(shared.now());
        let accounts = (0..options.accounts.max(1)).map(|index| {
            let (locations, part) = if index == 0 { (LOCATIONS, 1) } else { (0, OTHER_ACCOUNTS_PART) };
            let mut account = Account::new(index as u64 + 1, locations, options.seed);
            seed::fill(&mut account, options.records.div_ceil(part), end);
            (account.id(), RwLock::new(account))
        });
        let rules = TokenRules {
            access_life: TOKEN_LIFE,
            code_life: CODE_LIFE,
            access_bytes: ACCESS_TOKEN_BYTES,
            one_grant_per_account: false,
        };
        Arc::new(Self {
            auth: AuthServer::new(options.apps.clone(), rules),
            accounts: accounts.collect(),
            traffic: Mutex::default(),
            shuffles: AtomicU64::new(0),
            shared: shared.clone(),
        })
    }

    pub fn auth(&self) -> &AuthServer {
        &self.auth
    }

    /// The ids of the accounts, which are those of their companies.
    pub fn account_ids(&self) -> Vec<String> {
        self.accounts.iter().map(|(id, _)| id.clone()).collect()
    }

    /// The ids of the locations below an account's company.
    pub fn locations(&self, account: &str) -> Vec<String> {
        let Some(account) = self.account(account) else { return Vec::new() };
        let account = account.read().unwrap_or_else(PoisonError::into_inner);
        account.companies.iter().skip(1).map(|company| company.id.to_string()).collect()
    }

    /// The company API key of an account. It does not expire.
    pub fn api_key(account: &str) -> String {
        format!("hcp-{}", account.replace('-', ""))
    }

    fn account(&self, id: &str) -> Option<&RwLock<Account>> {
        self.accounts.iter().find(|(known, _)| known == id).map(|(_, account)| account)
    }

    /// Grants and tokens die, and the key is deleted. Returns how many grants died.
    pub fn revoke(&self, account: &str) -> usize {
        if let Some(account) = self.account(account) {
            account.write().unwrap_or_else(PoisonError::into_inner).key_dead = true;
        }
        self.auth.revoke_account(account)
    }

    /// The most requests of an account that were ever under way at the same time.
    pub fn most_at_once(&self, account: &str) -> usize {
        self.traffic().get(account).map_or(0, |traffic| traffic.most)
    }

    /// Requests of an account that came before the pause was over that a 429 asked for.
    pub fn came_early(&self, account: &str) -> u64 {
        self.traffic().get(account).map_or(0, |traffic| traffic.early)
    }

    fn traffic(&self) -> MutexGuard<'_, BTreeMap<String, Traffic>> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 429, with or without the time to wait.
    fn throttle(&self, headers: &HeaderMap, spot: Spot) -> Response {
        let tells = self.shared.faults.strikes(FaultName::RetryAfter, spot);
        if let Some(caller) = self.caller(headers).filter(|_| tells) {
            let quiet_until_ms = self.shared.now_ms() + i64::from(THROTTLED_S) * 1000;
            self.traffic().entry(caller.account).or_default().quiet_until_ms = quiet_until_ms;
        }
        refusals::throttled(tells.then_some(THROTTLED_S))
    }

    fn answer(&self, route: Route<'_>, spot: Spot, parts: &Parts, body: &[u8]) -> Response {
        let query = parts.uri.query().unwrap_or_default();
        match route {
            Route::Authorize => self.authorize(query),
            Route::Token => self.token(spot, &parts.headers, body),
            _ if self.shared.faults.strikes(FaultName::ThrottleStorm, spot) => {
                self.throttle(&parts.headers, spot)
            }
            _ => match self.data(route, spot, parts, query) {
                Ok(value) => shared::json(200, &value),
                Err(refusal) => refusal.into_response(),
            },
        }
    }

    fn authorize(&self, query: &str) -> Response {
        let choice = |(id, account): &(String, RwLock<Account>)| {
            let account = account.read().unwrap_or_else(PoisonError::into_inner);
            Choice { account: id.clone(), label: account.companies[0].name.clone() }
        };
        let choices: Vec<Choice> = self.accounts.iter().map(choice).collect();
        consent_answer(&self.auth, NAME, query, &choices, self.shared.now_ms())
    }

    /// Everything that needs a credential.
    fn data(&self, route: Route<'_>, spot: Spot, parts: &Parts, query: &str) -> Result<Value, Refusal> {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        if strikes(FaultName::ExpiredAuth) || strikes(FaultName::InvalidAuth) {
            return Err(Refusal::unauthorized());
        }
        let caller = self.caller(&parts.headers).ok_or_else(Refusal::unauthorized)?;
        if strikes(FaultName::Http500) {
            return Err(Refusal::server_error());
        }
        let account = self.account(&caller.account).ok_or_else(Refusal::unauthorized)?;
        let account = &*account.read().unwrap_or_else(PoisonError::into_inner);
        let query = &Query::new(query);
        let places = places(account, &parts.headers, query)?;
        match route {
            Route::Company => Ok(company(account, &places)),
            // Keys of companies are refused here.
            Route::Application if caller.by_key => Err(Refusal::unauthorized()),
            Route::Application => {
                Ok(json!({"name": "Sandbox", "state": "enabled", "organization_id": account.id()}))
            }
            Route::List(kind) => {
                let (stuck, empty) = (strikes(FaultName::StuckCursor), strikes(FaultName::EmptyList));
                let shuffle =
                    strikes(FaultName::ShuffledTies).then(|| self.shuffles.fetch_add(1, Ordering::Relaxed));
                list::list(account, kind, &places, query, Manners { stuck, empty, shuffle })
            }
            Route::One(kind, id) => one(account, kind, id, &places, query),
            Route::Authorize | Route::Token | Route::Unknown => Err(Refusal::not_found()),
        }
    }

    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
        if let Some(token) = header.strip_prefix("Bearer ") {
            let pass = self.auth.bearer(token, self.shared.now_ms()).ok()?;
            return Some(Caller { account: pass.account, by_key: false });
        }
        let key = header.strip_prefix("Token ")?;
        let (id, account) = self.accounts.iter().find(|(id, _)| Self::api_key(id) == key)?;
        let dead = account.read().unwrap_or_else(PoisonError::into_inner).key_dead;
        (!dead).then(|| Caller { account: id.clone(), by_key: true })
    }
}

/// Which locations a request is about: the header's, else those of `location_ids[]`, else the company itself.
fn places(account: &Account, headers: &HeaderMap, query: &Query) -> Result<Vec<usize>, Refusal> {
    let header = headers.get("x-company-id").and_then(|value| value.to_str().ok());
    let asked = header.map_or_else(|| query.all("location_ids"), |id| vec![id]);
    if asked.is_empty() {
        return Ok(vec![0]);
    }
    let seen = |id: &str| {
        let index = account.location(id).filter(|index| !account.companies[*index].lost);
        index.ok_or_else(Refusal::no_location)
    };
    asked.into_iter().map(seen).collect()
}

/// `GET /company`: the one that was asked for, and the locations below the company.
fn company(account: &Account, places: &[usize]) -> Value {
    let index = places.first().copied().unwrap_or(0);
    let mut shown = render::company(&account.companies[index]);
    let below = account.companies.iter().skip(1).filter(|place| index == 0 && !place.lost);
    shown["locations"] = below.map(render::company).collect();
    shown
}

/// A read by id is about the same locations as a list: what another has is not found.
fn one(account: &Account, kind: Kind, id: &str, places: &[usize], query: &Query) -> Result<Value, Refusal> {
    let (found, index) = account.find(id).ok_or_else(Refusal::not_found)?;
    let record = &account.table(found)[index];
    match record.standing {
        _ if found != kind || !places.contains(&record.company) => Err(Refusal::not_found()),
        Standing::Gone => Err(Refusal::not_found()),
        Standing::Archived => Err(Refusal::archived()),
        Standing::Listed | Standing::Hidden => {
            Ok(render::record(account, kind, record, query.expands("appointments")))
        }
    }
}

/// A request that is under way, until it is dropped.
struct UnderWay<'a> {
    of: &'a Housecallpro,
    account: Option<String>,
}

impl<'a> UnderWay<'a> {
    fn begin(of: &'a Housecallpro, headers: &HeaderMap) -> Self {
        let account = of.caller(headers).map(|caller| caller.account);
        if let Some(account) = &account {
            let now_ms = of.shared.now_ms();
            let mut all = of.traffic();
            let traffic = all.entry(account.clone()).or_default();
            traffic.under_way += 1;
            traffic.most = traffic.most.max(traffic.under_way);
            traffic.early += u64::from(now_ms + CLOCKS_DIFFER_MS < traffic.quiet_until_ms);
        }
        Self { of, account }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(account) = &self.account
            && let Some(traffic) = self.of.traffic().get_mut(account)
        {
            traffic.under_way -= 1;
        }
    }
}

/// Every request under the provider's prefix.
async fn serve(State(housecallpro): State<Arc<Housecallpro>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let route = Route::of(&parts.method, parts.uri.path());
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else { return shared::edge_page(413) };
    let spot = Spot { provider: NAME, purpose: route.purpose(&body) };
    let _under_way = UnderWay::begin(&housecallpro, &parts.headers);
    let answer = async { housecallpro.answer(route, spot, &parts, &body) };
    housecallpro.shared.weather(spot, answer).await
}

async fn accounts(State(housecallpro): State<Arc<Housecallpro>>) -> Response {
    let rows = housecallpro
        .accounts
        .iter()
        .map(|(_, account)| housecallpro.describe(&account.read().unwrap_or_else(PoisonError::into_inner)));
    shared::json(200, &json!({"accounts": rows.collect::<Vec<_>>()}))
}

async fn change_account(
    State(housecallpro): State<Arc<Housecallpro>>,
    Path(account): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let change: Change =
        serde_json::from_slice(&body).map_err(|error| Refusal::control(&error.to_string()))?;
    let ids = housecallpro.change(&account, &change)?;
    Ok(shared::json(200, &json!({"ids": ids})))
}

async fn truth(
    State(housecallpro): State<Arc<Housecallpro>>,
    Path(account): Path<String>,
) -> Result<Response, Refusal> {
    let lines = housecallpro.truth(&account)?;
    let text = lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n");
    Ok(shared::json_bytes(200, text))
}

async fn revoke_account(
    State(housecallpro): State<Arc<Housecallpro>>,
    Path(account): Path<String>,
) -> Response {
    shared::json(200, &json!({"revoked": housecallpro.revoke(&account)}))
}

async fn expire_tokens(State(housecallpro): State<Arc<Housecallpro>>) -> Response {
    let expired = housecallpro.auth.expire_access_tokens(housecallpro.shared.now_ms());
    shared::json(200, &json!({"expired": expired}))
}
