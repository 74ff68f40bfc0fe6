//! Jobber, as a mirror of jobs meets it: OAuth with rotating refresh tokens, one GraphQL endpoint with its budget of
//! points, and answers that say 200 to everything.
//!
//! Served under `/jobber/api`. Not served: any write but `appDisconnect` (changes come by the control endpoint),
//! webhooks, and the parts of the schema that no reader of jobs asks for.

mod account;
mod budget;
mod control;
mod query;
mod seed;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};
use url::{Url, form_urlencoded};

pub use control::{Change, ControlError};

use super::faults::{FaultName, Spot};
use super::limits::RollingWindow;
use super::oauth::{AuthServer, BearerFault, Choice, TokenRules, consent_answer};
use super::shared::{self, Shared};
use super::world;
use super::{Connect, Part, StandIn};
use crate::domain::graphql::{self, Operation};
use account::Account;
use budget::{Budget, Left};
use query::{Manners, Query};

/// The provider's name, and the prefix of its paths.
pub const NAME: &str = "jobber";
/// The number of the first account; the others count on from here.
const ACCOUNT_FIRST: u64 = 310_001;
/// Accounts after the first have this part of its records.
const OTHER_ACCOUNTS_PART: usize = 10;
const CODE_LIFE: Duration = Duration::from_mins(1);
const ACCESS_TOKEN_BYTES: usize = 48;
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Requests to one account in five minutes, before anything else is looked at.
const GUARD_MAX: usize = 2_500;
const GUARD_MS: i64 = 300_000;
const POINTS_MAX: i64 = 10_000;
const POINTS_SECONDLY: i64 = 500;
/// The oldest version that is still served, and the newest there is.
const VERSION_OLDEST: &str = "2025-04-16";
const VERSION_NEWEST: &str = "2026-05-12";

/// The part of the sandbox that plays Jobber.
pub struct Jobber {
    shared: Arc<Shared>,
    auth: AuthServer,
    /// By id, as the API sends it.
    accounts: BTreeMap<String, RwLock<Account>>,
    /// Accounts whose owner, or whose app, has ended the connection.
    disconnected: Mutex<BTreeSet<String>>,
    guard: RollingWindow,
    budget: Budget,
}

/// Who calls.
struct Caller {
    account: String,
    /// What limits are counted by: app and account.
    key: String,
}

impl StandIn for Jobber {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "Jobber"
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
        &[("api_base", "/api"), ("authorize_url", "/api/oauth/authorize"), ("token_url", "/api/oauth/token")]
    }

    fn connects(&self) -> Vec<Connect> {
        vec![Connect { grant: "authorization_code", ..Connect::default() }]
    }

    fn accounts(&self) -> Value {
        self.account_ids().into()
    }

    fn redemptions(&self) -> Value {
        self.auth.redemptions()
    }
}

impl Jobber {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let options = &shared.options;
        let end = world::history_end(shared.now());
        let accounts = (0..options.accounts.max(1)).map(|index| {
            let count =
                if index == 0 { options.records } else { options.records.div_ceil(OTHER_ACCOUNTS_PART) };
            let name = format!("Acme Field Services {}", index + 1);
            let account = seed::account(ACCOUNT_FIRST + index as u64, name, count, options.seed, end);
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
            disconnected: Mutex::default(),
            guard: RollingWindow::new(GUARD_MAX, GUARD_MS),
            budget: Budget::new(POINTS_MAX, POINTS_SECONDLY),
            shared: shared.clone(),
        })
    }

    pub fn auth(&self) -> &AuthServer {
        &self.auth
    }

    /// How many asked again before the points could be there that they lacked.
    pub fn came_early(&self) -> u64 {
        self.budget.came_early()
    }

    /// The points that all accounts have spent.
    pub fn points_spent(&self) -> i64 {
        self.budget.spent()
    }

    /// The ids of the accounts.
    pub fn account_ids(&self) -> Vec<String> {
        self.accounts.keys().cloned().collect()
    }

    /// What an account's admin does with Disconnect: all tokens die at once. Returns how many grants died.
    pub fn disconnect(&self, account: &str) -> usize {
        self.disconnected.lock().unwrap_or_else(PoisonError::into_inner).insert(account.to_owned());
        self.auth.revoke_account(account)
    }

    /// Neither `scope` nor anything else but the app decides what is granted. A refusal leads back without a word;
    /// `auto=marketplace` leads back as the marketplace's Connect button does, without `state`.
    fn authorize(&self, query: &str) -> Response {
        let fields: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .filter(|(name, _)| name != "scope")
            .collect();
        let auto = fields.iter().find(|(name, _)| name == "auto").map_or("", |(_, value)| value.as_str());
        let from_marketplace = auto == "marketplace";
        let asked =
            fields.iter().filter(|(name, _)| !(from_marketplace && name == "state")).map(|(name, value)| {
                (name.as_str(), if name == "auto" && from_marketplace { "approve" } else { value.as_str() })
            });
        let asked = form_urlencoded::Serializer::new(String::new()).extend_pairs(asked).finish();
        let choices: Vec<Choice> = self
            .accounts
            .iter()
            .map(|(id, account)| Choice {
                account: id.clone(),
                label: account.read().unwrap_or_else(PoisonError::into_inner).name.clone(),
            })
            .collect();
        let mut response = consent_answer(&self.auth, NAME, &asked, &choices, self.shared.now_ms());
        if auto == "deny"
            && let Some(bare) = bare_redirect(&response)
        {
            response.headers_mut().insert(LOCATION, bare);
        }
        response
    }

    /// `POST /api/graphql`.
    fn graphql(&self, spot: Spot, headers: &HeaderMap, body: &[u8], asked: Option<&Asked>) -> Response {
        let now_ms = self.shared.now_ms();
        let caller = match self.caller(headers, spot, now_ms) {
            Ok(caller) => caller,
            Err((status, body)) => return shared::json(status, &body),
        };
        if let Some(response) = self.misfortune(spot, &caller, now_ms) {
            return response;
        }
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let Some(asked) = asked.filter(|_| kind.starts_with("application/json")) else {
            let message = if body.is_empty() { "No query string was present" } else { "Parse error" };
            return shared::json(400, &json!({"errors": [{"message": message}]}));
        };
        let manners = self.manners(spot, now_ms);
        let query = Query { operation: &asked.operation, variables: &asked.variables, manners: &manners };
        let answer = self.admitted(&query, &caller, spot);
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(mut refusal) => {
                refusal["extensions"]["versioning"] = self.version(headers, spot);
                return shared::json(200, &refusal);
            }
        };
        answer["extensions"]["versioning"] = self.version(headers, spot);
        if query.operation.kind == "mutation" {
            self.disconnect(&caller.account);
        }
        shared::json(200, &answer)
    }

    fn admitted(&self, query: &Query<'_>, caller: &Caller, spot: Spot) -> Result<Value, Value> {
        query.check().map_err(|error| json!({"errors": [error]}))?;
        if let Some(error) = query.hidden() {
            return Err(json!({"data": null, "errors": [error]}));
        }
        let now_ms = query.manners.now_ms;
        let max = self.shared.faults.number(FaultName::PointsMax, spot);
        let requested = query.requested();
        let left = self.budget.left(&caller.key, max, now_ms);
        self.budget.asks(&caller.key, spot.purpose, now_ms);
        let stormy = self.shared.faults.strikes(FaultName::ThrottleStorm, spot);
        let fits = i64::try_from(requested).is_ok_and(|points| points <= left.points);
        if stormy || (self.shared.options.throttled && !fits) {
            let left = if stormy { Left { points: 0, ..left } } else { left };
            self.budget.refused(&caller.key, spot.purpose, requested, left, now_ms);
            return Err(throttled(requested, left));
        }
        let account = self.accounts.get(&caller.account).expect("a caller's account is one of ours");
        let account = account.read().unwrap_or_else(PoisonError::into_inner);
        let (mut data, actual) =
            query.answer(&account).map_err(|error| json!({"errors": [error], "data": null}))?;
        let left = self.budget.charge(&caller.key, max, i64::try_from(actual).unwrap_or(0), now_ms);
        let cost = json!({
            "requestedQueryCost": requested, "actualQueryCost": actual, "throttleStatus": left.to_json(),
        });
        let mut answer = json!({"extensions": {"cost": cost}});
        if self.shared.faults.strikes(FaultName::PartialData, spot) {
            let path = spoil_one(&mut data);
            answer["errors"] = json!([{"message": "An unexpected error occurred", "path": path}]);
        }
        answer["data"] = data;
        Ok(answer)
    }

    fn caller(&self, headers: &HeaderMap, spot: Spot, now_ms: i64) -> Result<Caller, No> {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        let expired = || (401, json!({"message": "Access token expired"}));
        let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
        if strikes(FaultName::ExpiredAuth) {
            return Err(expired());
        }
        if strikes(FaultName::InvalidAuth) {
            return Err(unauthenticated());
        }
        let pass = self.auth.bearer(tokens::known(token), now_ms).map_err(|fault| match fault {
            BearerFault::Expired { .. } => expired(),
            BearerFault::Unknown => {
                let ended = self.disconnected.lock().unwrap_or_else(PoisonError::into_inner);
                match tokens::account_of(token).filter(|account| ended.contains(account)) {
                    Some(_) => (401, json!({"message": DISCONNECTED})),
                    None => unauthenticated(),
                }
            }
        })?;
        Ok(Caller { key: format!("{}/{}", pass.client_id, pass.account), account: pass.account })
    }

    /// What is in the way before the query is looked at.
    fn misfortune(&self, spot: Spot, caller: &Caller, now_ms: i64) -> Option<Response> {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        let guard = || self.shared.options.throttled && self.guard.take(&caller.key, now_ms).is_err();
        if strikes(FaultName::Inactive) {
            return Some(shared::json(200, &json!({"error": {"message": "This account is not active"}})));
        }
        if strikes(FaultName::Unavailable) {
            return Some(shared::json(200, &json!({"message": "Service temporarily unavailable"})));
        }
        if strikes(FaultName::Http500) {
            return Some(shared::json(500, &json!({"message": "Internal server error"})));
        }
        (strikes(FaultName::DailyLimit) || guard()).then(|| shared::html(429, "Too Many Requests"))
    }

    fn manners(&self, spot: Spot, now_ms: i64) -> Manners {
        let strikes = |name| self.shared.faults.strikes(name, spot);
        Manners {
            unknown: self.shared.faults.texts(FaultName::UnknownField, spot),
            hidden: self.shared.faults.texts(FaultName::HiddenField, spot),
            stuck: strikes(FaultName::StuckCursor),
            refused: strikes(FaultName::RefusedCursor),
            empty: strikes(FaultName::EmptyList),
            unsorted: strikes(FaultName::Unsorted),
            by_record: strikes(FaultName::RecordCursors),
            now_ms,
        }
    }

    /// The version that is served, with a warning when it is not the one asked for or on its way out.
    fn version(&self, headers: &HeaderMap, spot: Spot) -> Value {
        let asked = headers.get("x-jobber-graphql-version").and_then(|value| value.to_str().ok());
        let warning =
            "The version of the API that you ask for is no longer supported, or will not be for long";
        match asked.unwrap_or_default() {
            _ if self.shared.faults.strikes(FaultName::OldVersion, spot) => {
                json!({"version": VERSION_NEWEST, "warning": warning})
            }
            asked if asked < VERSION_OLDEST => json!({"version": VERSION_OLDEST, "warning": warning}),
            asked => json!({"version": asked.min(VERSION_NEWEST)}),
        }
    }
}

const DISCONNECTED: &str = "User has disconnected this app from their account. Please delete this token";

/// Status and body of a refusal.
type No = (u16, Value);

fn unauthenticated() -> No {
    let error = json!({"message": "You are not authenticated", "extensions": {"code": "UNAUTHENTICATED"}});
    (200, json!({"data": {"account": null}, "errors": [error]}))
}

fn throttled(requested: u64, left: Left) -> Value {
    let documentation = "https://developer.getjobber.com/docs/using_jobbers_api/api_rate_limits";
    json!({
        "errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED", "documentation": documentation}}],
        "extensions": {"cost": {
            "requestedQueryCost": requested, "actualQueryCost": 0, "throttleStatus": left.to_json(),
        }},
    })
}

/// Takes an object out of the first node of a list. Returns its path.
fn spoil_one(data: &mut Value) -> Vec<Value> {
    let lists = data.as_object_mut().into_iter().flatten();
    for (root, list) in lists {
        let Some(node) = list.pointer_mut("/nodes/0").and_then(Value::as_object_mut) else { continue };
        if let Some((name, value)) = node.iter_mut().find(|(_, value)| value.is_object()) {
            *value = Value::Null;
            return vec![json!(root), json!("nodes"), json!(0), json!(name)];
        }
    }
    Vec::new()
}

fn bare_redirect(response: &Response) -> Option<HeaderValue> {
    let mut url = Url::parse(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    url.set_query(None);
    HeaderValue::try_from(url.as_str()).ok()
}

/// A body that can be read.
struct Asked {
    operation: Operation,
    variables: Value,
}

impl Asked {
    fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let operation = graphql::parse(body.get("query")?.as_str()?).ok()?;
        Some(Self { operation, variables: body.get("variables").cloned().unwrap_or_default() })
    }

    /// What is asked for first, the account aside.
    fn purpose(&self) -> &'static str {
        const ROOTS: [(&str, &str); 6] = [
            ("visits", "visits"),
            ("jobs", "jobs"),
            ("job", "probe"),
            ("visit", "probe"),
            ("clients", "clients"),
            ("appDisconnect", "disconnect"),
        ];
        if self.operation.name == "People" {
            return "people";
        }
        let asked = |root: &str| self.operation.fields.iter().any(|field| field.name == root);
        ROOTS.iter().find(|(root, _)| asked(root)).map_or("account", |(_, purpose)| purpose)
    }
}

/// Every request under the provider's prefix.
async fn serve(State(jobber): State<Arc<Jobber>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = to_bytes(body, BODY_BYTES_MAX).await;
    let asked = body.as_deref().ok().and_then(Asked::read);
    let purpose = match path.as_str() {
        "/api/oauth/authorize" => "authorize",
        "/api/oauth/token" if is_refresh(body.as_deref().unwrap_or_default()) => "token_refresh",
        "/api/oauth/token" => "token_exchange",
        "/api/graphql" => asked.as_ref().map_or("unknown", Asked::purpose),
        _ => "unknown",
    };
    let spot = Spot { provider: NAME, purpose };
    let answer = async {
        let Ok(body) = body else { return shared::edge_page(413) };
        match (parts.method.as_str(), path.as_str()) {
            ("GET", "/api/oauth/authorize") => jobber.authorize(parts.uri.query().unwrap_or_default()),
            ("POST", "/api/oauth/token") => jobber.token(spot, &parts.headers, &body),
            ("POST", "/api/graphql") => jobber.graphql(spot, &parts.headers, &body, asked.as_ref()),
            _ => shared::html(404, "<h1>Not found</h1>"),
        }
    };
    jobber.shared.weather(spot, answer).await
}

fn is_refresh(body: &[u8]) -> bool {
    let fields = form_urlencoded::parse(body);
    fields.into_iter().any(|(name, value)| name == "grant_type" && value == "refresh_token")
}

async fn accounts(State(jobber): State<Arc<Jobber>>) -> Response {
    let rows = jobber.accounts.iter().map(|(id, account)| {
        let account = account.read().unwrap_or_else(PoisonError::into_inner);
        json!({"account": id, "name": account.name, "jobs": account.by_update.len()})
    });
    shared::json(200, &json!({"accounts": rows.collect::<Vec<_>>()}))
}

async fn change_account(
    State(jobber): State<Arc<Jobber>>,
    Path(account): Path<String>,
    body: Bytes,
) -> Response {
    let change: Result<Change, _> = serde_json::from_slice(&body);
    let done = change
        .map_err(|error| error.to_string())
        .and_then(|change| jobber.change(&account, &change).map_err(|error| error.to_string()));
    match done {
        Ok(id) => shared::json(200, &json!({"ids": [id], "count": 1})),
        Err(message) => shared::json(400, &json!({"error": message})),
    }
}

async fn truth(State(jobber): State<Arc<Jobber>>, Path(account): Path<String>) -> Response {
    match jobber.truth(&account) {
        Ok(lines) => {
            let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
            shared::json_bytes(200, lines.join("\n"))
        }
        Err(error) => shared::json(404, &json!({"error": error.to_string()})),
    }
}

async fn revoke_account(State(jobber): State<Arc<Jobber>>, Path(account): Path<String>) -> Response {
    shared::json(200, &json!({"revoked": jobber.disconnect(&account)}))
}

async fn expire_tokens(State(jobber): State<Arc<Jobber>>) -> Response {
    shared::json(200, &json!({"expired": jobber.auth.expire_access_tokens(jobber.shared.now_ms())}))
}
