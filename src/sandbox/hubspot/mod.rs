//! HubSpot, as a mirror of tickets meets it: OAuth, tickets, search, associations, properties, pipelines, owners.
//!
//! Served under `/hubspot` in both forms of HubSpot's paths. Not served: any write (changes come by the control
//! endpoint), webhooks and their journal, histories of properties, objects other than tickets.

mod account;
mod control;
mod filter;
mod links;
mod objects;
mod properties;
mod reference;
mod refusals;
mod route;
mod search;
mod seed;
#[cfg(test)]
mod tests;
mod ticket;
mod tokens;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

pub use account::Values;
pub use control::{Change, Changed, ControlError};

use super::faults::{FaultName, Spot};
use super::limits::RollingWindow;
use super::oauth::{AuthServer, BearerFault, Choice, TokenRules, consent_answer};
use super::shared::{self, Shared};
use super::{Connect, Part, StandIn, world};
use account::Account;
use links::LinkManners;
use objects::{BatchManners, Listing, Query};
use refusals::{Policy, Refusal};
use route::Route;
use search::Sight;

/// The provider's name, and the prefix of its paths.
pub const NAME: &str = "hubspot";
/// The id of the first account; the others count on from here.
pub const HUB_ID_FIRST: u64 = 41_000_001;
/// Accounts after the first have this part of its records.
const OTHER_ACCOUNTS_PART: usize = 10;
/// How long a code can be redeemed. HubSpot says "a short window" only.
const CODE_LIFE: Duration = Duration::from_mins(1);
/// Makes access tokens of over 300 characters, as HubSpot's may be.
const ACCESS_TOKEN_BYTES: usize = 240;
/// Beyond this, the edge answers 414.
const URL_CHARS_MAX: usize = 15_000;
/// No body that a reader sends is longer.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
const TEN_SECONDS_MS: i64 = 10_000;
/// What a private app is told about its daily budget.
const DAILY_MAX: u32 = 650_000;

/// The part of the sandbox that plays HubSpot.
pub struct Hubspot {
    shared: Arc<Shared>,
    auth: AuthServer,
    accounts: BTreeMap<u64, RwLock<Account>>,
    ten_secondly: RollingWindow,
    searches: RollingWindow,
    token_calls: RollingWindow,
}

/// Who calls.
struct Caller {
    hub_id: u64,
    /// What the short window is counted by: app and account.
    window: String,
    scopes: Option<Arc<[String]>>,
}

impl StandIn for Hubspot {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "HubSpot"
    }

    fn part(self: Arc<Self>) -> Part {
        let control = Router::new()
            .route("/accounts", get(accounts))
            .route("/accounts/{hub_id}", post(change_account))
            .route("/accounts/{hub_id}/truth", get(truth))
            .route("/accounts/{hub_id}/revoke", post(revoke_account))
            .route("/expire-tokens", post(expire_tokens))
            .with_state(self.clone());
        Part { api: Router::new().fallback(serve).with_state(self), control }
    }

    fn addresses(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("api_base", ""),
            ("authorize_url", "/oauth/authorize"),
            ("token_url", "/oauth/2026-03/token"),
            ("revoke_url", "/oauth/2026-03/token/revoke"),
        ]
    }

    fn connects(&self) -> Vec<Connect> {
        let token = Self::private_app_token(self.hub_ids()[0]);
        let bearer =
            Connect { grant: "bearer_token", secrets: vec![("bearer_token", token)], ..Connect::default() };
        vec![Connect { grant: "authorization_code", ..Connect::default() }, bearer]
    }

    fn accounts(&self) -> Value {
        self.hub_ids().into()
    }

    fn redemptions(&self) -> Value {
        self.auth.redemptions()
    }
}

impl Hubspot {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let options = &shared.options;
        let end = world::history_end(shared.now());
        let accounts = (0..options.accounts.max(1)).map(|index| {
            let hub_id = HUB_ID_FIRST + index as u64;
            let mut account = Account::new(hub_id, &format!("acme-{}.example", index + 1));
            let count =
                if index == 0 { options.records } else { options.records.div_ceil(OTHER_ACCOUNTS_PART) };
            seed::fill(&mut account, count, options.seed, end);
            (hub_id, RwLock::new(account))
        });
        let rules = TokenRules {
            access_life: options.access_token_life,
            code_life: CODE_LIFE,
            access_bytes: ACCESS_TOKEN_BYTES,
            one_grant_per_account: true,
        };
        let limits = &options.hubspot_limits;
        Arc::new(Self {
            auth: AuthServer::new(options.apps.clone(), rules),
            accounts: accounts.collect(),
            ten_secondly: RollingWindow::new(limits.ten_secondly, TEN_SECONDS_MS),
            searches: RollingWindow::new(limits.searches_secondly, 1_000),
            token_calls: RollingWindow::new(limits.token_ten_secondly, TEN_SECONDS_MS),
            shared: shared.clone(),
        })
    }

    pub fn auth(&self) -> &AuthServer {
        &self.auth
    }

    /// The ids of the accounts, ascending.
    pub fn hub_ids(&self) -> Vec<u64> {
        self.accounts.keys().copied().collect()
    }

    /// The static bearer token of an account's private app; it has every scope and does not expire.
    pub fn private_app_token(hub_id: u64) -> String {
        format!("pat-na1-00000000-0000-4000-8000-{hub_id:012}")
    }

    fn account(&self, hub_id: u64) -> Result<RwLockReadGuard<'_, Account>, Refusal> {
        let account = self.accounts.get(&hub_id).ok_or_else(Refusal::invalid_authentication)?;
        Ok(account.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn domain_of(&self, hub_id: u64) -> String {
        self.account(hub_id).map(|account| account.domain.clone()).unwrap_or_default()
    }

    fn answer(&self, route: Route<'_>, spot: Spot, parts: &Parts, body: &[u8]) -> Response {
        let headers = &parts.headers;
        let answer = match route {
            Route::Authorize => Ok(self.authorize(parts.uri.query().unwrap_or_default())),
            Route::Token { terse } => Ok(self.token(terse, spot, headers, body)),
            Route::Introspect => self.introspect(headers, body),
            Route::Revoke => self.revoke(headers, body),
            Route::RevokeInPath { token } => self.revoke_in_path(token),
            Route::TokenInfo { token } => self.token_info(token),
            Route::Unknown => Err(Refusal::no_such_path()),
            _ => self.data(route, spot, parts, body),
        };
        answer.unwrap_or_else(IntoResponse::into_response)
    }

    fn authorize(&self, query: &str) -> Response {
        let choice = |hub_id: &u64| Choice { account: hub_id.to_string(), label: self.domain_of(*hub_id) };
        let choices: Vec<Choice> = self.accounts.keys().map(choice).collect();
        consent_answer(&self.auth, NAME, query, &choices, self.shared.now_ms())
    }

    /// Everything that needs a token: who is it, may they, do they ask too often, and then the answer.
    fn data(&self, route: Route<'_>, spot: Spot, parts: &Parts, body: &[u8]) -> Result<Response, Refusal> {
        let now_ms = self.shared.now_ms();
        let caller = self.caller(&parts.headers, spot, now_ms)?;
        self.check_scope(&caller, route.scope(), spot)?;
        self.misfortune(spot)?;
        let left = self.admit(&caller, route, spot, now_ms)?;
        let query = parts.uri.query().unwrap_or_default();
        let mut response = self.read(route, spot, caller.hub_id, query, body, now_ms)?;
        if let Some(left) = left {
            self.tell_budget(response.headers_mut(), left, caller.scopes.is_none());
        }
        Ok(response)
    }

    fn caller(&self, headers: &HeaderMap, spot: Spot, now_ms: i64) -> Result<Caller, Refusal> {
        if self.shared.faults.strikes(FaultName::ExpiredAuth, spot) {
            return Err(Refusal::expired(now_ms, now_ms));
        }
        if self.shared.faults.strikes(FaultName::InvalidAuth, spot) {
            return Err(Refusal::invalid_authentication());
        }
        let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|text| text.strip_prefix("Bearer "))
            .ok_or_else(Refusal::invalid_authentication)?;
        if token.starts_with("pat-") {
            let known = self.accounts.keys().find(|hub_id| Self::private_app_token(**hub_id) == token);
            let hub_id = *known.ok_or_else(Refusal::invalid_authentication)?;
            return Ok(Caller { hub_id, window: format!("private/{hub_id}"), scopes: None });
        }
        let pass = self.auth.bearer(token, now_ms).map_err(|fault| match fault {
            BearerFault::Unknown => Refusal::invalid_authentication(),
            BearerFault::Expired { at_ms } => Refusal::expired(at_ms, now_ms),
        })?;
        let window = format!("{}/{}", pass.client_id, pass.account);
        Ok(Caller { hub_id: pass.account.parse().unwrap_or(0), window, scopes: Some(pass.scopes) })
    }

    fn check_scope(&self, caller: &Caller, scope: &str, spot: Spot) -> Result<(), Refusal> {
        let granted =
            caller.scopes.as_ref().is_none_or(|scopes| scope == "oauth" || scopes.iter().any(|s| s == scope));
        let lost = self.shared.faults.texts(FaultName::NoScope, spot).iter().any(|lost| lost == scope);
        if granted && !lost { Ok(()) } else { Err(Refusal::missing_scope(scope)) }
    }

    /// Faults in HubSpot's own words.
    fn misfortune(&self, spot: Spot) -> Result<(), Refusal> {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        match () {
            () if strikes(FaultName::Http477) => Err(Refusal::moving()),
            () if strikes(FaultName::Http423) => Err(Refusal::locked()),
            () if strikes(FaultName::Http500) => Err(Refusal::server_error()),
            () if strikes(FaultName::DailyLimit) => Err(self.throttled(Policy::Daily, 3_600_000, spot)),
            () if strikes(FaultName::ThrottleStorm) => {
                Err(self.throttled(Policy::TenSecondly, TEN_SECONDS_MS, spot))
            }
            () => Ok(()),
        }
    }

    fn throttled(&self, policy: Policy, wait_ms: i64, spot: Spot) -> Refusal {
        let named = !self.shared.faults.strikes(FaultName::NoPolicyName, spot);
        let tells = self.shared.faults.strikes(FaultName::RetryAfter, spot);
        // Whole seconds, rounded up.
        Refusal::throttled(policy, named).retry_after(tells.then_some((wait_ms + 999) / 1000))
    }

    /// Takes the call out of its budget. Answers what is left of the short window, where the call is told about it.
    fn admit(
        &self,
        caller: &Caller,
        route: Route<'_>,
        spot: Spot,
        now_ms: i64,
    ) -> Result<Option<usize>, Refusal> {
        let throttled = self.shared.options.throttled;
        let left = || Ok(Some(self.ten_secondly.left(&caller.window, now_ms)));
        match route {
            // Search has a budget of its own, over all apps of the account, and its answers tell of none.
            Route::Search if throttled => {
                let taken = self.searches.take(&caller.hub_id.to_string(), now_ms);
                taken.map(|_| None).map_err(|wait_ms| self.throttled(Policy::Secondly, wait_ms, spot))
            }
            Route::Search => Ok(None),
            // Exempt from the short window.
            Route::LinksBatch { .. } => left(),
            _ if throttled => {
                let taken = self.ten_secondly.take(&caller.window, now_ms);
                taken.map(Some).map_err(|wait_ms| self.throttled(Policy::TenSecondly, wait_ms, spot))
            }
            _ => left(),
        }
    }

    fn tell_budget(&self, headers: &mut HeaderMap, left: usize, private: bool) {
        headers.insert("x-hubspot-ratelimit-max", HeaderValue::from(self.ten_secondly.max()));
        headers.insert("x-hubspot-ratelimit-remaining", HeaderValue::from(left));
        let interval = HeaderValue::from(self.ten_secondly.length_ms());
        headers.insert("x-hubspot-ratelimit-interval-milliseconds", interval);
        // Answers to OAuth apps lack these.
        if private {
            headers.insert("x-hubspot-ratelimit-daily", HeaderValue::from(DAILY_MAX));
            headers.insert("x-hubspot-ratelimit-daily-remaining", HeaderValue::from(DAILY_MAX));
        }
    }

    fn read(
        &self,
        route: Route<'_>,
        spot: Spot,
        hub_id: u64,
        query: &str,
        body: &[u8],
        now_ms: i64,
    ) -> Result<Response, Refusal> {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        let links_page = self.shared.options.links_page;
        let account = self.account(hub_id)?;
        let account = &*account;
        let manners = |kind, numeric| LinkManners {
            kind,
            numeric: numeric || strikes(FaultName::NumericIds),
            page: links_page,
        };
        let (status, bytes) = match route {
            Route::List if strikes(FaultName::RefusedCursor) && Query::new(query).get("after").is_some() => {
                return Err(Refusal::invalid("The paging cursor is not valid"));
            }
            Route::List => {
                let (stuck, empty) = (strikes(FaultName::StuckCursor), strikes(FaultName::EmptyList));
                let listing = Listing { query: Query::new(query), links_page, stuck, empty };
                (200, objects::list(account, &listing)?)
            }
            Route::One { id } => (200, objects::one(account, id, &Query::new(query), links_page)?),
            Route::BatchRead => {
                let (silent, resolves) =
                    (strikes(FaultName::SilentMissing), strikes(FaultName::ResolveMerged));
                let archived = Query::new(query).archived();
                objects::batch_read(account, archived, body, BatchManners { silent, resolves }, now_ms)?
            }
            Route::Search => {
                let less = self.shared.faults.number(FaultName::ResultsMax, spot);
                let results_max =
                    less.and_then(|less| usize::try_from(less).ok()).unwrap_or(search::RESULTS_MAX);
                (200, search::search(&Sight { account, now_ms, results_max }, body)?)
            }
            Route::LinksBatch { kind, numeric } => {
                let (status, value) = links::batch(account, body, manners(kind, numeric), now_ms)?;
                (status, value.to_string().into_bytes())
            }
            Route::LinksOfOne { id, kind, numeric } => {
                let value = links::of_one(account, id, &Query::new(query), manners(kind, numeric))?;
                (200, value.to_string().into_bytes())
            }
            _ => (200, reference_data(account, route, query)?.to_string().into_bytes()),
        };
        Ok(shared::json_bytes(status, bytes))
    }
}

/// What tickets refer to.
fn reference_data(account: &Account, route: Route<'_>, query: &str) -> Result<Value, Refusal> {
    match route {
        Route::Details => Ok(reference::details(account)),
        Route::Properties => {
            let all: Vec<Value> = account.catalogue.all().iter().map(properties::Property::to_json).collect();
            Ok(json!({"results": all}))
        }
        Route::Property { name } => {
            let index = account.catalogue.index(name).ok_or_else(Refusal::not_found)?;
            Ok(account.catalogue.get(index).to_json())
        }
        Route::Pipelines => Ok(reference::pipelines()),
        Route::Pipeline { id } => reference::pipeline_of(id).ok_or_else(Refusal::not_found),
        Route::Owners => owners(account, &Query::new(query)),
        Route::Owner { id } => {
            let archived = Query::new(query).archived();
            let found =
                reference::owner_range(archived).find(|index| reference::owner_id(*index).to_string() == id);
            found.map(|index| reference::owner(index, &account.domain)).ok_or_else(Refusal::not_found)
        }
        _ => Err(Refusal::no_such_path()),
    }
}

/// `GET …/owners`: live or archived ones, paged by owner id, or the one with an e-mail address.
fn owners(account: &Account, query: &Query<'_>) -> Result<Value, Refusal> {
    let limit = query.limit(reference::OWNERS_PAGE, reference::OWNERS_PAGE_MAX)?;
    let after = query.get("after").filter(|after| !after.is_empty());
    let after: u64 =
        after.map_or(Ok(0), str::parse).map_err(|_| Refusal::invalid("after is not a valid cursor"))?;
    let later = reference::owner_range(query.archived()).filter(|index| reference::owner_id(*index) > after);
    let mut page: Vec<Value> = later.map(|index| reference::owner(index, &account.domain)).collect();
    if let Some(email) = query.get("email") {
        page.retain(|owner| owner["email"] == email);
    }
    let more = page.len() > limit;
    page.truncate(limit);
    let last = page.last().map(|owner| owner["id"].clone());
    let mut answer = json!({"results": page});
    if let Some(last) = last.filter(|_| more) {
        answer["paging"] = json!({"next": {"after": last, "link": "https://api.hubapi.com/crm/v3/owners"}});
    }
    Ok(answer)
}

/// Every request under the provider's prefix.
async fn serve(State(hubspot): State<Arc<Hubspot>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let length = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    let route = Route::of(&parts.method, parts.uri.path());
    let body = read_body(body).await;
    let spot = Spot { provider: NAME, purpose: route.purpose(body.as_deref().unwrap_or_default()) };
    let answer = async {
        match body {
            _ if length > URL_CHARS_MAX => shared::edge_page(414),
            None => shared::edge_page(413),
            Some(body) => hubspot.answer(route, spot, &parts, &body),
        }
    };
    hubspot.shared.weather(spot, answer).await
}

async fn read_body(body: Body) -> Option<Bytes> {
    to_bytes(body, BODY_BYTES_MAX).await.ok()
}

async fn accounts(State(hubspot): State<Arc<Hubspot>>) -> Response {
    let rows = hubspot.accounts.keys().map(|hub_id| {
        json!({
            "account": hub_id.to_string(), "domain": hubspot.domain_of(*hub_id), "tickets": hubspot.counts(*hub_id),
            "private_app_token": Hubspot::private_app_token(*hub_id),
        })
    });
    shared::json(200, &json!({"accounts": rows.collect::<Vec<_>>()}))
}

async fn change_account(
    State(hubspot): State<Arc<Hubspot>>,
    Path(hub_id): Path<u64>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let change: Change = objects::read_json(&body)?;
    // Bulk changes take a while; requests of other connections go on meanwhile.
    let changed = tokio::task::spawn_blocking(move || hubspot.change(hub_id, &change)).await;
    let changed = changed.map_err(|_| Refusal::server_error())??;
    Ok(shared::json(200, &json!(changed)))
}

async fn truth(State(hubspot): State<Arc<Hubspot>>, Path(hub_id): Path<u64>) -> Result<Response, Refusal> {
    Ok(shared::json_bytes(200, hubspot.truth(hub_id)?))
}

async fn revoke_account(State(hubspot): State<Arc<Hubspot>>, Path(hub_id): Path<u64>) -> Response {
    shared::json(200, &json!({"revoked": hubspot.auth.revoke_account(&hub_id.to_string())}))
}

async fn expire_tokens(State(hubspot): State<Arc<Hubspot>>) -> Response {
    shared::json(200, &json!({"expired": hubspot.auth.expire_access_tokens(hubspot.shared.now_ms())}))
}
