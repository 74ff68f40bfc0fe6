//! A daemon's grants without the daemon: database, provider, endpoint.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use diesel::QueryableByName;
use diesel::RunQueryDsl as _;
use diesel::connection::SimpleConnection as _;
use diesel::sql_types::{BigInt, Text};
use fieldmirror::auth::answer::{Answer, BroughtBy};
use fieldmirror::auth::between::Between;
use fieldmirror::auth::spill::Spills;
use fieldmirror::auth::{Auth, Ending, Parts};
use fieldmirror::callback::{self, Endpoint, Ready};
use fieldmirror::config::Settings;
use fieldmirror::db::Db;
use fieldmirror::db::alerts::{self, Served};
use fieldmirror::db::asks;
use fieldmirror::db::connections::{self, Connection, NewConnection, Pending};
use fieldmirror::db::requests::{self, Boxed, NewRequest, Request, RequestKind, RequestOutcome};
use fieldmirror::db::tokens::{self, Token};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::secret::Secret;
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::domain::time::ShiftedClock;
use fieldmirror::http::{Client, HttpLimits};
use fieldmirror::jobs;
use fieldmirror::vault::{HandedOver, ReplyKey, Vault, generate_key};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;
use uuid::Uuid;

use super::fake::Fake;
use crate::support::postgres::TestDb;

pub struct Rig {
    pub fake: Fake,
    pub auth: Auth,
    pub clock: Arc<ShiftedClock>,
    pub vault: Arc<Vault>,
    key: Secret,
    settings: Arc<Settings>,
    http: Client,
    pub endpoint: SocketAddr,
    stop: CancellationToken,
    pub test: TestDb,
    /// The state directory of the daemon.
    pub state: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Where a daemon runs.
pub struct Host<'a> {
    pub name: &'a str,
    /// Its state directory.
    pub state: &'a Path,
    pub between: Between,
}

/// What a browser got.
#[derive(Debug)]
pub struct Shown {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Shown {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Name and value of the cookie that was set.
    pub fn cookie(&self) -> Option<&str> {
        self.header("set-cookie")?.split(';').next()
    }
}

/// A consent that was asked for.
pub struct Asked {
    pub connection: ConnectionId,
    pub request: Uuid,
    pub links: Value,
}

impl Asked {
    pub fn authorize_url(&self) -> Url {
        Url::parse(self.links["authorize_url"].as_str().expect("text")).expect("a URL")
    }

    pub fn start_path(&self) -> String {
        let url = Url::parse(self.links["start_url"].as_str().expect("text")).expect("a URL");
        url.path().to_owned()
    }
}

pub fn state_of(authorize_url: &Url) -> String {
    let state = authorize_url.query_pairs().find(|(name, _)| name == "state");
    state.expect("an authorize URL has a state").1.into_owned()
}

impl Rig {
    pub async fn new() -> Self {
        Self::over(TestDb::new()).await
    }

    pub async fn over(test: TestDb) -> Self {
        let fake = Fake::start().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = listener.local_addr().expect("a bound listener has an address");
        let settings = Arc::new(settings(&fake, endpoint));
        let key = generate_key();
        let vault = Arc::new(Vault::new(&key, &[]).expect("a generated key fits"));
        let clock = Arc::new(ShiftedClock::default());
        let state = tempfile::tempdir().expect("a folder");
        let at = Host { name: "host", state: state.path(), between: Between::default() };
        let http = Client::new(&HttpLimits::default()).expect("a client can be built");
        let auth = auth(&test.db, &settings, &vault, &clock, &http, at);
        let ready = Arc::new(|| {
            let ready = Ready { database: true, key: true, workers: false };
            Box::pin(std::future::ready(ready)) as _
        });
        let (stop, router) = (CancellationToken::new(), callback::router(Endpoint::new(auth.clone(), ready)));
        tokio::spawn(callback::serve(listener, router, stop.clone()));
        Self { fake, auth, clock, vault, key, settings, http, endpoint, stop, test, state }
    }

    /// The grants as a daemon with other vault keys sees them, with the same state directory. The rig's own key is among
    /// them where `ours` says so.
    pub fn daemon_with_key(&self, key: &Secret, ours: bool) -> Auth {
        let previous = if ours { std::slice::from_ref(&self.key) } else { &[] };
        let vault = Arc::new(Vault::new(key, previous).expect("good keys"));
        let at = Host { name: "host", state: self.state.path(), between: Between::default() };
        auth(&self.test.db, &self.settings, &vault, &self.clock, &self.http, at)
    }

    /// The grants as another daemon with the same database and state directory sees them.
    pub fn another_daemon(&self) -> Auth {
        self.daemon_at(Host { name: "host", state: self.state.path(), between: Between::default() })
    }

    /// The grants as another daemon on the same database sees them.
    pub fn daemon_at(&self, at: Host<'_>) -> Auth {
        auth(&self.test.db, &self.settings, &self.vault, &self.clock, &self.http, at)
    }

    /// `enqueue --connect`: the row, the request, and what the job answers.
    pub async fn ask(&self, name: &str) -> Asked {
        let connection = self.pending(name, GrantKind::AuthorizationCode).await;
        self.ask_for(connection).await
    }

    pub async fn pending(&self, name: &str, grant: GrantKind) -> ConnectionId {
        self.pending_at("hubspot", name, grant, json!({})).await
    }

    pub async fn pending_at(
        &self,
        provider: &str,
        name: &str,
        grant: GrantKind,
        params: Value,
    ) -> ConnectionId {
        let (name, provider) = (name.parse().expect("a name"), provider.to_owned());
        let new = NewConnection { name, provider, grant, params };
        let pending = self.db(move |conn| connections::create_pending(conn, &new)).await;
        match pending {
            Pending::Created(connection) | Pending::Renewed(connection) => connection.id,
            Pending::Taken(connection) => panic!("{connection:?}"),
        }
    }

    /// Also `enqueue --reconnect`.
    pub async fn ask_for(&self, connection: ConnectionId) -> Asked {
        self.ask_with(connection, None).await
    }

    /// The same, with secrets that the grant needs beside the consent.
    pub async fn ask_with(&self, connection: ConnectionId, secrets: Option<&str>) -> Asked {
        let key = ReplyKey::generate();
        let args = json!({"reply_to": BASE64_STANDARD.encode(key.public())});
        let request = self.request(connection, RequestKind::Connect, args, secrets.map(str::to_owned)).await;
        jobs::connect::run(&self.auth, connection).await.expect("the job runs");
        let row = self.request_row(request).await;
        let sealed = row.reply_sealed.unwrap_or_else(|| panic!("{:?}", row.message));
        let links = serde_json::from_slice(&key.open(&sealed).expect("sealed to us")).expect("JSON");
        Asked { connection, request, links }
    }

    pub async fn request(
        &self,
        connection: ConnectionId,
        kind: RequestKind,
        args: Value,
        plain: Option<String>,
    ) -> Uuid {
        let with = HandedOver { connection, request: Uuid::now_v7() };
        let sealed = plain.map(|plain| with.seal(&self.vault.public_key(), plain.as_bytes()));
        let sealed = sealed.map(|sealed| Boxed { request: with.request, sealed });
        let new = NewRequest { connection, kind, args, sealed };
        self.db(move |conn| requests::create(conn, &new)).await
    }

    /// A connection that has been consented to.
    pub async fn connected(&self, name: &str, account: u64) -> ConnectionId {
        self.fake.be_account(account);
        let asked = self.ask(name).await;
        let shown = self.come_back(&asked.authorize_url(), "code=C").await;
        assert_eq!(shown.status, 200, "{}", shown.body);
        asked.connection
    }

    /// A browser follows the start link. Returns where it is sent, and the cookie that it keeps.
    pub async fn follow(&self, asked: &Asked) -> (Url, String) {
        let started = self.get(&asked.start_path(), None).await;
        assert_eq!(started.status, 302, "{}", started.body);
        let location = Url::parse(started.header("location").expect("a place to go to")).expect("a URL");
        (location, started.cookie().expect("a cookie names the attempt").to_owned())
    }

    /// The provider sends the browser back to a consent that began with `authorize_url`.
    pub async fn come_back(&self, authorize_url: &Url, said: &str) -> Shown {
        self.come_back_with(authorize_url, said, None).await
    }

    /// The same, while another daemon than the rig's own has the endpoint.
    pub async fn come_back_to(&self, auth: &Auth, authorize_url: &Url, said: &str) -> Ending {
        self.come_back_from("hubspot", auth, authorize_url, said).await
    }

    pub async fn come_back_from(
        &self,
        provider: &str,
        auth: &Auth,
        authorize_url: &Url,
        said: &str,
    ) -> Ending {
        let answer = Answer::parse(&format!("{said}&state={}", state_of(authorize_url))).expect("an answer");
        let recognised = auth.recognise(provider, answer, BroughtBy::Browser { cookies: &[] });
        auth.conclude(recognised.expect("it is ours")).await
    }

    /// The same, with the cookie that the browser kept.
    pub async fn come_back_with(&self, authorize_url: &Url, said: &str, cookie: Option<&str>) -> Shown {
        let state = state_of(authorize_url);
        self.get(&format!("/oauth/callback/hubspot?{said}&state={state}"), cookie).await
    }

    pub async fn get(&self, path: &str, cookie: Option<&str>) -> Shown {
        let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{cookie}\r\n"))
            .await
    }

    pub async fn send(&self, request: &str) -> Shown {
        let mut stream = tokio::net::TcpStream::connect(self.endpoint).await.expect("the endpoint listens");
        stream.write_all(request.as_bytes()).await.expect("it takes a request");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("it answers");
        let text = String::from_utf8(bytes).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        Shown { status, head: head.to_owned(), body: body.to_owned() }
    }

    pub async fn db<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut diesel::PgConnection) -> Result<T, fieldmirror::db::DbError> + Send + 'static,
    ) -> T {
        self.test.db.run(work).await.expect("the database does it")
    }

    pub async fn request_row(&self, id: Uuid) -> Request {
        self.db(move |conn| requests::get(conn, id)).await
    }

    /// How a request of whatever kind has ended.
    pub async fn request_outcome(&self, id: Uuid) -> (Option<RequestOutcome>, Option<String>) {
        let ended = self.db(move |conn| asks::ended(conn, &[id])).await.pop();
        ended.map_or((None, None), |ended| (Some(ended.outcome), ended.message))
    }

    /// What holds now that needs a person: kinds and subjects.
    pub async fn conditions(&self) -> Vec<String> {
        let (stale_after, catch_up) = (Duration::from_hours(1), Duration::from_mins(30));
        let served = [Served { provider: "hubspot".to_owned(), stale_after, catch_up }];
        let holding = self.db(move |conn| alerts::conditions(conn, &served)).await;
        let mut names: Vec<String> =
            holding.into_iter().map(|of| format!("{} {}", of.kind, of.subject)).collect();
        names.sort();
        names
    }

    pub async fn connection(&self, id: ConnectionId) -> Connection {
        self.db(move |conn| connections::get(conn, id)).await
    }

    pub async fn token(&self, id: ConnectionId) -> Token {
        self.maybe_token(id).await.expect("there is a token")
    }

    pub async fn maybe_token(&self, id: ConnectionId) -> Option<Token> {
        self.db(move |conn| tokens::load(conn, id)).await
    }

    pub async fn execute(&self, sql: &'static str) {
        self.db(move |conn| Ok(diesel::sql_query(sql).execute(conn)?)).await;
    }

    pub async fn batch(&self, statements: &'static str) {
        self.db(move |conn| Ok(conn.batch_execute(statements)?)).await;
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        self.db(move |conn| Ok(diesel::sql_query(sql).get_result::<Count>(conn)?.value)).await
    }

    /// No text that we keep for people, in any table, holds a token or code.
    pub async fn assert_no_secret_in_texts(&self) {
        let texts = self
            .db(|conn| {
                Ok(diesel::sql_query(
                    "SELECT coalesce(message, '') AS value FROM fieldmirror.requests \
                     UNION ALL SELECT coalesce(reason, '') FROM fieldmirror.connections \
                     UNION ALL SELECT coalesce(last_error, '') FROM fieldmirror.tokens \
                     UNION ALL SELECT coalesce(detail, '') FROM fieldmirror.audit_log \
                     UNION ALL SELECT args::text FROM fieldmirror.requests",
                )
                .load::<Words>(conn)?)
            })
            .await;
        for Words { value } in texts {
            assert!(!value.contains("SECRET"), "{value}");
        }
    }
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    value: i64,
}

#[derive(QueryableByName)]
struct Words {
    #[diesel(sql_type = Text)]
    value: String,
}

fn settings(fake: &Fake, endpoint: SocketAddr) -> Settings {
    let mut settings = Settings::example();
    let url = |path: &str| Url::parse(&format!("http://{}{path}", fake.address)).expect("a URL");
    settings.callback.public_url = Url::parse(&format!("http://{endpoint}")).expect("a URL");
    let hubspot = settings.providers.get_mut("hubspot").expect("HubSpot has settings");
    hubspot.enabled = true;
    hubspot.client_id.push_str("client");
    hubspot.client_secret = Some("SECRET-CLIENT".into());
    hubspot.authorize_url = url("/authorize");
    hubspot.token_url = url("/token");
    hubspot.revoke_url = Some(url("/token/revoke"));
    hubspot.api_base = url("");
    let servicetitan = settings.providers.get_mut("servicetitan").expect("ServiceTitan has settings");
    servicetitan.enabled = true;
    servicetitan.client_id.push_str("client");
    servicetitan.client_secret = Some("SECRET-CLIENT".into());
    servicetitan.authorize_url = url("/authorize");
    servicetitan.token_url = url("/token");
    servicetitan.api_base = url("");
    settings
}

fn auth(
    db: &Db,
    settings: &Arc<Settings>,
    vault: &Arc<Vault>,
    clock: &Arc<ShiftedClock>,
    http: &Client,
    Host { name, state, between }: Host<'_>,
) -> Auth {
    let clock: Arc<dyn fieldmirror::domain::time::Clock> = Arc::<ShiftedClock>::clone(clock);
    let spills = Arc::new(Spills::below(state));
    // One that cannot be used is a fault like others.
    let _ = spills.prepare();
    Auth::new(Parts {
        db: db.clone(),
        vault: Arc::clone(vault),
        http: http.clone(),
        settings: Arc::clone(settings),
        clock,
        daemon: Uuid::new_v4(),
        host: name.to_owned(),
        tasks: TaskTracker::new(),
        spills,
        between,
    })
}
