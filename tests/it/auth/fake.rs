//! A stand-in for HubSpot's token endpoint and account details, scripted by the test.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Form, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

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
}

#[derive(Debug, Default)]
struct Script {
    answers: VecDeque<Answer>,
    /// Forms sent to the token endpoint.
    asked: Vec<BTreeMap<String, String>>,
    revoked: Vec<BTreeMap<String, String>>,
    /// The account that credentials open.
    portal: u64,
    granted: u32,
    slow: Duration,
    /// What account details answer instead of the account.
    details_status: Option<u16>,
}

#[derive(Clone)]
pub struct Fake {
    script: Arc<Mutex<Script>>,
    pub address: SocketAddr,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let script = Arc::new(Mutex::new(Script { portal: 4711, ..Script::default() }));
        let fake = Self { script, address };
        let router = Router::new()
            .route("/token", post(token))
            .route("/token/introspect", post(introspect))
            .route("/token/revoke", post(revoke))
            .route("/account-info/2026-03/details", get(details))
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

    pub fn be_slow(&self, slow: Duration) {
        self.script(|script| script.slow = slow);
    }

    pub fn refuse_details(&self, status: Option<u16>) {
        self.script(|script| script.details_status = status);
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

    pub fn revoked(&self) -> Vec<BTreeMap<String, String>> {
        self.script(|script| script.revoked.clone())
    }
}

/// The refusal that HubSpot gives for a dead grant.
pub fn bad_refresh_token() -> Answer {
    let body = json!({"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"});
    Answer::Status(400, body)
}

async fn token(State(fake): State<Fake>, Form(form): Form<BTreeMap<String, String>>) -> Response {
    let (answer, slow) = fake.script(|script| {
        script.asked.push(form);
        (script.answers.pop_front().unwrap_or(Answer::Grant(json!({}))), script.slow)
    });
    tokio::time::sleep(slow).await;
    match answer {
        Answer::Grant(changes) => Json(grant(&fake, &changes)).into_response(),
        Answer::Status(status, body) => {
            (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response()
        }
        Answer::Throttle(seconds) => {
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", seconds.to_string())], "").into_response()
        }
        Answer::Lost => {
            let broken = std::io::Error::other("cut");
            Body::from_stream(futures_util::stream::iter([Err::<String, _>(broken)])).into_response()
        }
    }
}

fn grant(fake: &Fake, changes: &Value) -> Value {
    let (number, portal) = fake.script(|script| {
        script.granted += 1;
        (script.granted, script.portal)
    });
    let mut answer = json!({
        "token_type": "bearer", "access_token": format!("SECRET-AT-{number}"),
        "refresh_token": format!("SECRET-RT-{number}"), "expires_in": 1800, "hub_id": portal,
        "scopes": ["oauth", "tickets"],
    });
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            answer.as_object_mut().expect("an object").remove(name);
        } else {
            answer[name] = value.clone();
        }
    }
    answer
}

async fn introspect(State(fake): State<Fake>, Form(form): Form<BTreeMap<String, String>>) -> Json<Value> {
    let portal = fake.script(|script| script.portal);
    Json(
        json!({"active": true, "hub_id": portal, "hub_domain": format!("hub-{portal}.example"), "token": form["token"]}),
    )
}

async fn revoke(State(fake): State<Fake>, Form(form): Form<BTreeMap<String, String>>) -> StatusCode {
    fake.script(|script| script.revoked.push(form));
    StatusCode::OK
}

async fn details(State(fake): State<Fake>, headers: HeaderMap) -> Response {
    let credential = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (portal, status) = fake.script(|script| (script.portal, script.details_status));
    match status {
        Some(status) => (StatusCode::from_u16(status).expect("a status"), Json(json!({}))).into_response(),
        None if credential.starts_with("Bearer SECRET-") => Json(json!({"portalId": portal})).into_response(),
        None => StatusCode::UNAUTHORIZED.into_response(),
    }
}
