//! A stand-in for HubSpot's token endpoint and account details, scripted by the test; and for as much of ServiceTitan as
//! tells whose account it is.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What the token endpoint does next.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Fresh tokens, with these members set or, where null, left out.
    Grant(Value),
    /// A refusal, or whatever else.
    Status(u16, Value),
    /// 429 with this `Retry-After`.
    Throttle(u64),
    /// Acts, but its answer breaks off.
    Lost,
    /// Does not act, and its answer breaks off.
    Unseen,
    /// Success, with this text of that type in place of tokens. Acts.
    Text(&'static str, &'static str),
}

/// What becomes of a refresh token that is traded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// It stays good.
    Never,
    /// It is dead, and another takes its place.
    Strict,
    /// Another takes its place, but it stays good until that one is used.
    Graceful,
    /// As `Strict`, and who brings a dead one loses the grant.
    Jealous,
}

/// Which refresh tokens are good: the provider's own account of it.
#[derive(Debug)]
struct Book {
    rotation: Rotation,
    /// Refresh token to grant.
    issued: BTreeMap<String, u32>,
    grants: BTreeMap<u32, Granted>,
}

#[derive(Debug, Default)]
struct Granted {
    portal: u64,
    current: String,
    previous: Option<String>,
    revoked: bool,
    replays: u32,
}

impl Granted {
    fn honours(&self, token: &str) -> bool {
        !self.revoked && (self.current == token || self.previous.as_deref() == Some(token))
    }
}

impl Book {
    /// Takes note of a trade. The refresh token to be handed out, which is the one that was brought where none is; `None`:
    /// what was brought is dead.
    fn trade(&mut self, brought: &str, new: Option<String>) -> Option<(String, u64)> {
        let number = *self.issued.get(brought)?;
        let grant = self.grants.get_mut(&number)?;
        if !grant.honours(brought) {
            grant.replays += u32::from(!grant.revoked);
            grant.revoked |= self.rotation == Rotation::Jealous;
            return None;
        }
        let Some(new) = new.filter(|_| self.rotation != Rotation::Never) else {
            return Some((grant.current.clone(), grant.portal));
        };
        if self.rotation == Rotation::Graceful && grant.current == brought {
            grant.previous = Some(brought.to_owned());
        }
        grant.current.clone_from(&new);
        self.issued.insert(new.clone(), number);
        Some((new, grant.portal))
    }

    fn begin(&mut self, number: u32, portal: u64, token: String) {
        self.issued.insert(token.clone(), number);
        self.grants.insert(number, Granted { portal, current: token, ..Granted::default() });
    }
}

#[derive(Debug, Default)]
struct Script {
    answers: VecDeque<Answer>,
    /// Forms sent to the token endpoint.
    asked: Vec<BTreeMap<String, String>>,
    revoked: Vec<BTreeMap<String, String>>,
    /// Statuses of the next revocations; then success again.
    revocations: VecDeque<u16>,
    /// The account that credentials open.
    portal: u64,
    granted: u32,
    /// So many of the next answers of the token endpoint are held back.
    held: usize,
    details_asked: usize,
    /// What account details answer instead of the account.
    details_status: Option<u16>,
    /// `None`: any refresh token is good.
    book: Option<Book>,
    /// The accounts of refresh tokens, and of access tokens.
    owners: BTreeMap<String, u64>,
    /// Each access token opens the account that it was granted for, and not that which is told last.
    tells_apart: bool,
    /// Seconds that access tokens live; 0 for half an hour.
    life: u32,
}

impl Script {
    /// The account that a credential opens.
    fn opens(&self, credential: &str) -> u64 {
        let own = self.owners.get(credential).filter(|_| self.tells_apart);
        own.copied().unwrap_or(self.portal)
    }
}

/// How long a test waits for what is sure to come.
const COMES_WITHIN: Duration = Duration::from_mins(2);

#[derive(Clone)]
pub struct Fake {
    script: Arc<Mutex<Script>>,
    /// Lets go what is held back.
    lever: Arc<watch::Sender<()>>,
    pub address: SocketAddr,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let script = Arc::new(Mutex::new(Script { portal: 4711, ..Script::default() }));
        let fake = Self { script, lever: Arc::default(), address };
        let router = Router::new()
            .route("/token", post(token))
            .route("/token/introspect", post(introspect))
            .route("/token/revoke", post(revoke))
            .route("/account-info/2026-03/details", get(details))
            .route("/settings/v2/tenant/{tenant}/business-units", get(business_units))
            .route("/crm/v2/tenant/{tenant}/export/bookings", get(|| async { Json(json!({})) }))
            .with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        fake
    }

    fn script<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.script.lock().expect("no test panics while it holds the script"))
    }

    /// The answers to the next token requests; then fresh tokens again.
    pub fn then(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script(|script| script.answers.extend(answers));
    }

    pub fn be_account(&self, portal: u64) {
        self.script(|script| script.portal = portal);
    }

    /// The token endpoint acts as ever, and its answers come when they are let go.
    pub fn hold(&self) {
        self.script(|script| script.held = usize::MAX);
    }

    /// The same, for the next answer alone.
    pub fn hold_one(&self) {
        self.script(|script| script.held = 1);
    }

    pub fn let_go(&self) {
        self.script(|script| {
            script.held = 0;
            self.lever.send_replace(());
        });
    }

    /// Returns once so many token requests of that grant type have come.
    pub async fn until_asked(&self, grant_type: &str, count: usize) {
        self.until(|fake| fake.count(grant_type) >= count).await;
    }

    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(COMES_WITHIN, waiting).await.expect("it comes to that");
    }

    pub fn tell_accounts_apart(&self) {
        self.script(|script| script.tells_apart = true);
    }

    pub fn details_asked(&self) -> usize {
        self.script(|script| script.details_asked)
    }

    #[allow(dead_code, reason = "only the torture has no time")]
    pub fn be_short_lived(&self, seconds: u32) {
        self.script(|script| script.life = seconds);
    }

    pub fn refuse_details(&self, status: Option<u16>) {
        self.script(|script| script.details_status = status);
    }

    /// Keeps account of refresh tokens from now on.
    pub fn rotate(&self, rotation: Rotation) {
        let book = |book: Option<Book>| match book {
            Some(book) => Book { rotation, ..book },
            None => Book { rotation, issued: BTreeMap::new(), grants: BTreeMap::new() },
        };
        self.script(|script| script.book = Some(book(script.book.take())));
    }

    /// The refresh tokens of an account that would be taken now, of all its grants.
    pub fn honoured(&self, portal: u64) -> Vec<String> {
        self.script(|script| {
            let grants = script.book.iter().flat_map(|book| book.grants.values());
            let alive = grants.filter(|grant| grant.portal == portal && !grant.revoked);
            alive.flat_map(|grant| grant.previous.iter().chain([&grant.current]).cloned()).collect()
        })
    }

    /// How often a dead refresh token was brought for a grant that was alive.
    pub fn replays(&self) -> u32 {
        self.script(|script| {
            script.book.iter().flat_map(|book| book.grants.values()).map(|grant| grant.replays).sum()
        })
    }

    /// Answers that were scripted and not given.
    pub fn forget_answers(&self) {
        self.script(|script| script.answers.clear());
    }

    pub fn asked(&self) -> Vec<BTreeMap<String, String>> {
        self.script(|script| script.asked.clone())
    }

    /// Token requests of that grant type.
    pub fn count(&self, grant_type: &str) -> usize {
        self.asked()
            .iter()
            .filter(|form| form.get("grant_type").is_some_and(|kind| kind == grant_type))
            .count()
    }

    #[allow(dead_code, reason = "the torture disconnects nothing")]
    pub fn then_revoking(&self, statuses: impl IntoIterator<Item = u16>) {
        self.script(|script| script.revocations.extend(statuses));
    }

    pub fn revoked(&self) -> Vec<BTreeMap<String, String>> {
        self.script(|script| script.revoked.clone())
    }
}

/// The refusal that HubSpot gives for a dead grant.
pub fn bad_refresh_token() -> Answer {
    Answer::Status(400, refusal_of_dead())
}

fn refusal_of_dead() -> Value {
    json!({"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"})
}

async fn token(State(fake): State<Fake>, Form(form): Form<BTreeMap<String, String>>) -> Response {
    let (answer, held) = fake.script(|script| {
        script.asked.push(form.clone());
        let held = (script.held > 0).then(|| fake.lever.subscribe());
        script.held = script.held.saturating_sub(1);
        (script.answers.pop_front().unwrap_or(Answer::Grant(json!({}))), held)
    });
    let refusal = || respond(400, refusal_of_dead());
    // It acts whether or not somebody waits for the answer.
    let answer = match answer {
        Answer::Grant(changes) => {
            grant(&fake, &form, &changes).map_or_else(refusal, |body| Json(body).into_response())
        }
        Answer::Status(status, body) => respond(status, body),
        Answer::Throttle(seconds) => {
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", seconds.to_string())], "").into_response()
        }
        Answer::Lost => {
            let _ = grant(&fake, &form, &json!({}));
            cut()
        }
        Answer::Unseen => cut(),
        Answer::Text(content_type, text) => {
            let _ = grant(&fake, &form, &json!({}));
            ([("content-type", content_type)], text).into_response()
        }
    };
    if let Some(mut held) = held {
        // An error: the test is over.
        let _ = held.changed().await;
    }
    answer
}

fn respond(status: u16, body: Value) -> Response {
    (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response()
}

fn cut() -> Response {
    let broken = std::io::Error::other("cut");
    Body::from_stream(futures_util::stream::iter([Err::<String, _>(broken)])).into_response()
}

/// What is granted for `form`; `None`: its refresh token is dead.
fn grant(fake: &Fake, form: &BTreeMap<String, String>, changes: &Value) -> Option<Value> {
    let brought = form.get("refresh_token");
    let hands_out = !matches!(changes.get("refresh_token").map(Value::as_str), Some(None | Some("")));
    let (number, refresh_token, portal, life) = fake.script(|script| {
        script.granted += 1;
        let number = script.granted;
        let owner = brought.and_then(|brought| script.owners.get(brought));
        let (new, portal) = (format!("SECRET-RT-{number}"), owner.copied().unwrap_or(script.portal));
        let (token, portal) = match (&mut script.book, brought) {
            // Who hands out no new one lets the old one be.
            (Some(book), Some(brought)) => book.trade(brought, hands_out.then_some(new))?,
            (Some(book), None) => {
                book.begin(number, portal, new.clone());
                (new, portal)
            }
            (None, _) => (new, portal),
        };
        script.owners.insert(token.clone(), portal);
        script.owners.insert(format!("SECRET-AT-{number}"), portal);
        Some((number, token, portal, if script.life == 0 { 1800 } else { script.life }))
    })?;
    let mut answer = json!({
        "token_type": "bearer", "access_token": format!("SECRET-AT-{number}"),
        "refresh_token": refresh_token, "expires_in": life, "hub_id": portal,
        "scopes": ["oauth", "tickets"],
    });
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            answer.as_object_mut().expect("an object").remove(name);
        } else {
            answer[name] = value.clone();
        }
    }
    Some(answer)
}

async fn introspect(State(fake): State<Fake>, Form(form): Form<BTreeMap<String, String>>) -> Json<Value> {
    let portal = fake.script(|script| script.opens(&form["token"]));
    Json(
        json!({"active": true, "hub_id": portal, "hub_domain": format!("hub-{portal}.example"), "token": form["token"]}),
    )
}

async fn revoke(State(fake): State<Fake>, Form(form): Form<BTreeMap<String, String>>) -> StatusCode {
    let status = fake.script(|script| {
        script.revoked.push(form);
        script.revocations.pop_front().unwrap_or(200)
    });
    StatusCode::from_u16(status).expect("a status")
}

async fn business_units(Path(tenant): Path<u64>) -> Json<Value> {
    Json(json!({"data": [{"tenant": {"id": tenant, "name": "Acme"}}]}))
}

async fn details(State(fake): State<Fake>, headers: HeaderMap) -> Response {
    let credential = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (portal, status) = fake.script(|script| {
        script.details_asked += 1;
        (script.opens(credential.trim_start_matches("Bearer ")), script.details_status)
    });
    match status {
        Some(status) => (StatusCode::from_u16(status).expect("a status"), Json(json!({}))).into_response(),
        None if credential.starts_with("Bearer SECRET-") => Json(json!({"portalId": portal})).into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}
