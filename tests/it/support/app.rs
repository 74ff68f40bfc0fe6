//! The whole product for a test: the sandbox in this process, a database, and the daemon, either in this process or as
//! the program that admins run. Whatever goes between them goes over the wire, and what an admin would type is typed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use fieldmirror::config::{self, Loaded, Purpose, Sources};
use fieldmirror::daemon::{Daemon, Options};
use fieldmirror::db::{Db, rows};
use fieldmirror::domain::secret::Secret;
use fieldmirror::sandbox::{Running, Sandbox, SandboxOptions};
use fieldmirror::vault::generate_key;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use url::Url;

use super::postgres::{TestDb, short_folder};
use super::stalls::Metronome;

/// More than anything here takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_mins(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The first account of the sandbox.
pub const HUB: u64 = fieldmirror::sandbox::hubspot::HUB_ID_FIRST;

pub struct TestApp {
    pub sandbox: Running,
    pub db: Db,
    /// Settings as the daemon's environment; commands get them too.
    pub environment: BTreeMap<String, String>,
    pub folder: PathBuf,
    /// Where the callback endpoint is, for example `http://127.0.0.1:20123`.
    pub endpoint: String,
    pub metronome: Metronome,
    _database: Option<TestDb>,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The last object on stdout: the result.
    #[track_caller]
    pub fn last(&self) -> Value {
        let line = self.stdout.lines().last().unwrap_or_else(|| panic!("nothing on stdout: {}", self.stderr));
        serde_json::from_str(line).expect("a JSON object per line")
    }
}

/// A small world that is read in a moment.
pub fn small(records: usize) -> SandboxOptions {
    SandboxOptions { records, accounts: 1, ..SandboxOptions::default() }
}

impl TestApp {
    pub async fn new(options: SandboxOptions, settings: &[(&str, &str)]) -> Self {
        let database = TestDb::new();
        let (url, db) = (database.url.clone(), database.db.clone());
        Self::over(options, settings, url, db, Some(database)).await
    }

    /// Over a database that the test looks after itself.
    pub async fn over(
        options: SandboxOptions,
        settings: &[(&str, &str)],
        url: Secret,
        db: Db,
        database: Option<TestDb>,
    ) -> Self {
        let sandbox = tokio::task::spawn_blocking(|| Sandbox::new(options)).await.unwrap();
        let sandbox = sandbox.start().await.unwrap();
        let (folder, address) = (short_folder("e2e"), free_address());
        let endpoint = format!("http://{address}");
        let own = [
            ("database.url", url.expose().to_owned()),
            ("database.pool_size", "4".to_owned()),
            ("daemon.state_dir", folder.join("state").display().to_string()),
            ("daemon.workers", "4".to_owned()),
            ("callback.listen", address),
            ("metrics.listen", "127.0.0.1:0".to_owned()),
            ("callback.public_url", endpoint.clone()),
            ("vault.key", generate_key().expose().to_owned()),
            ("sync.poll_interval", "1s".to_owned()),
            ("sync.archived_interval", "2s".to_owned()),
            ("sync.hold_back", "0s".to_owned()),
            ("sync.overlap", "1s".to_owned()),
        ];
        let stand_ins = sandbox.control().settings(&sandbox.base_url()).into_iter();
        let stand_ins =
            stand_ins.map(|(provider, key, value)| (format!("providers.{provider}.{key}"), value));
        let given = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let own = own.into_iter().map(|(key, value)| (key.to_owned(), value));
        let all = own.chain(stand_ins).chain(given);
        let environment = all.map(|(key, value)| (variable(&key), value)).collect();
        let metronome = Metronome::start();
        Self { sandbox, db, environment, folder, endpoint, metronome, _database: database }
    }

    /// With one more setting.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(variable(key), value.to_owned());
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.environment.remove(&variable(key));
        self
    }

    // ---- the daemon and the commands

    /// The daemon in this process.
    pub async fn daemon(&self) -> Daemon {
        self.daemon_with(&self.environment).await
    }

    /// The daemon in this process, with other settings.
    pub async fn daemon_with(&self, environment: &BTreeMap<String, String>) -> Daemon {
        let settings = loaded(environment).settings;
        Daemon::start(settings, Options::default()).await.expect("the daemon starts")
    }

    /// The program, with our settings and nothing else in its environment.
    pub fn program(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldmirror"));
        command.env_clear().env("HOME", &self.folder).envs(&self.environment);
        command.args(line.split_whitespace()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// The daemon as a process of its own. What it says goes to `daemon.log` in our folder.
    pub fn spawn_daemon(&self, flags: &str) -> Child {
        let log = self.folder.join("daemon.log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = self.program(&format!("run {flags}"));
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("the program starts")
    }

    pub async fn run(&self, line: &str) -> Ran {
        let output = self.program(line).output().await.expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints UTF-8");
        Ran {
            code: output.status.code().expect("the program ends by itself"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    // ---- connecting

    /// Asks for a connection as an admin does and agrees as an owner does. Returns what the command printed.
    pub async fn connect(&self, name: &str) -> Value {
        self.consent(&format!("enqueue --connect hubspot --name {name}")).await
    }

    /// Connects the first account of everything that the sandbox plays; each bears its provider's name.
    pub async fn connect_all(&self) {
        for stand_in in self.sandbox.control().stand_ins() {
            let (name, connect) = (stand_in.name(), stand_in.connects().remove(0));
            let mut line = format!("enqueue --connect {name} --name {name}");
            for (param, value) in &connect.params {
                line.extend([" --param ", param, "=", value]);
            }
            for (secret, value) in &connect.secrets {
                let file = self.folder.join(format!("{name}.{secret}"));
                std::fs::write(&file, value).unwrap();
                line.extend([" --secret ", secret, "=@", &file.display().to_string()]);
            }
            if connect.grant == "authorization_code" {
                self.consent(&line).await;
            } else {
                self.run(&format!("{line} --no-wait --json")).await.done();
            }
        }
    }

    /// Runs a command that asks for a consent, and gives it.
    pub async fn consent(&self, line: &str) -> Value {
        let asked = self.run(&format!("{line} --no-wait --json")).await.done().last();
        self.agree(asked).await
    }

    /// The same, where the owner has several accounts.
    pub async fn consent_for(&self, line: &str, account: u64) -> Value {
        let mut asked = self.run(&format!("{line} --no-wait --json")).await.done().last();
        let page = asked["authorize_url"].as_str().expect("a link was made");
        asked["authorize_url"] = format!("{page}&account={account}").into();
        self.agree(asked).await
    }

    async fn agree(&self, asked: Value) -> Value {
        let back = self.approve(&asked).await;
        let (status, _, page) = get(&back).await;
        assert_eq!(status, 200, "the endpoint's page: {page}");
        asked
    }

    /// Agrees on the sandbox's page. Returns where the browser is sent.
    pub async fn approve(&self, asked: &Value) -> Url {
        let mut page = Url::parse(asked["authorize_url"].as_str().expect("a link was made")).unwrap();
        page.query_pairs_mut().append_pair("auto", "approve");
        let (status, location, body) = get(&page).await;
        let location = location.unwrap_or_else(|| panic!("the consent page answered {status}: {body}"));
        Url::parse(&location).unwrap()
    }

    /// Connects, and waits until everything has been read once, archived tickets included.
    pub async fn mirrored(&self, name: &str) -> Value {
        let asked = self.connect(name).await;
        self.all_read().await;
        asked
    }

    pub async fn all_read(&self) {
        self.wait_until("everything has been read once", ALL_READ).await;
    }

    // ---- looking

    pub async fn rows(&self, sql: &'static str) -> Vec<Value> {
        self.db.run(move |connection| rows::objects(connection, sql)).await.unwrap()
    }

    /// The only column of the only row.
    pub async fn one(&self, sql: &'static str) -> Value {
        let rows = self.rows(sql).await;
        let [row] = rows.as_slice() else { panic!("not one row: {rows:?}") };
        row.as_object().and_then(|row| row.values().next()).expect("a column").clone()
    }

    pub async fn number(&self, sql: &'static str) -> i64 {
        let found = self.one(sql).await;
        found.as_i64().unwrap_or_else(|| panic!("no whole number: {found}"))
    }

    pub async fn execute(&self, statements: &'static str) {
        self.db.run(move |connection| Ok(connection.batch_execute(statements)?)).await.unwrap();
    }

    /// Waits until the query's only value is `true`, and tells how long that took.
    pub async fn wait_until(&self, what: &str, sql: &'static str) -> Duration {
        let began = Instant::now();
        loop {
            let found = self.db.run(move |connection| rows::objects(connection, sql)).await;
            let found = found.ok().and_then(|rows| rows.first()?.as_object()?.values().next().cloned());
            if found == Some(Value::Bool(true)) {
                return began.elapsed();
            }
            let standing = if began.elapsed() > PATIENCE { Some(self.standing().await) } else { None };
            assert!(standing.is_none(), "not in time: {what} ({found:?})\n{}", standing.unwrap_or_default());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// For the texts of failures.
    async fn standing(&self) -> String {
        let mut text = String::new();
        for sql in STANDING {
            let found = self.db.run(move |connection| rows::objects(connection, sql)).await;
            for row in found.unwrap_or_default() {
                text.push_str(&row.to_string());
                text.push('\n');
            }
        }
        format!("{text}{}", self.sandbox.control().counters())
    }

    /// Answers of one purpose that the sandbox has given.
    pub fn asked(&self, purpose: &str) -> u64 {
        self.sandbox.control().ledger().of_purpose(purpose)
    }

    /// No request had to be refused with that status, by what left when.
    #[track_caller]
    pub fn none_refused(&self, status: u16) {
        let refused = self.sandbox.control().ledger().of_status(status);
        self.metronome.none(&format!("refused with {status}"), refused);
    }

    /// Puts these faults in force in place of those there were. Answers that these have held back come now.
    pub fn faults(&self, texts: &[&str]) {
        let faults = texts.iter().map(|text| text.parse().expect("a fault"));
        self.sandbox.control().set_faults(faults.collect());
        self.sandbox.control().release();
    }

    /// Waits until every fault that is counted has struck as often as it may.
    pub async fn struck(&self, what: &str) {
        let began = Instant::now();
        while self.sandbox.control().faults().iter().any(|fault| fault.left.is_some_and(|left| left > 0)) {
            assert!(began.elapsed() < PATIENCE, "not in time: {what}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Every ticket there is or was.
    pub async fn truth(&self) -> Vec<Value> {
        self.truth_of(HUB).await
    }

    pub async fn truth_of(&self, account: u64) -> Vec<Value> {
        let body = self.sandbox.control().hubspot().truth(account).unwrap();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parsed).collect()
    }

    /// Makes something happen to the account, written as for the control endpoint. Returns the ids.
    #[track_caller]
    pub fn change(&self, change: Value) -> Vec<u64> {
        let change = serde_json::from_value(change).expect("a change");
        self.sandbox.control().hubspot().change(HUB, &change).unwrap().ids
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The settings that a daemon with such an environment works with.
pub fn loaded(environment: &BTreeMap<String, String>) -> Loaded {
    let environment = environment.iter().map(|(name, value)| (name.clone(), value.into())).collect();
    let sources = Sources { purpose: Purpose::Daemon, environment, ..Sources::none() };
    config::load(&sources).expect("the test's settings are good")
}

fn variable(key: &str) -> String {
    format!("FIELDMIRROR_{}", key.to_uppercase().replace('.', "__"))
}

fn parsed(line: &[u8]) -> Value {
    serde_json::from_slice(line).expect("a JSON object per line")
}

const ALL_READ: &str = "SELECT count(*) = 4 AND bool_and(f.backfill_done AND f.state = 'idle')
       AND (SELECT bool_and(w.closed_at IS NOT NULL) FROM fieldmirror.walks w WHERE w.mode = 'archived') AS done
     FROM mirror.freshness f";

const STANDING: [&str; 5] = [
    "SELECT * FROM mirror.freshness",
    "SELECT stream, state, failures, failure_kind, last_error, not_before FROM fieldmirror.stream_state WHERE last_error IS NOT NULL",
    "SELECT name, state, reason FROM mirror.connections c JOIN fieldmirror.connections d USING (id, name, state)",
    "SELECT id, kind, state, crashes, last_error, run_at FROM fieldmirror.jobs ORDER BY id DESC LIMIT 8",
    "SELECT * FROM (SELECT * FROM mirror.sync_runs ORDER BY id DESC LIMIT 12) r ORDER BY id",
];

/// A loopback address that nobody listens on, below the ports that the system gives to outgoing connections.
pub fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 100).unwrap_or(0) * 100;
    loop {
        let port = 20_000 + (own + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let address = format!("127.0.0.1:{port}");
        if std::net::TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// One GET on loopback: the status (0: no answer), where a redirect leads, the body.
pub async fn get(url: &Url) -> (u16, Option<String>, String) {
    let Got { status, location, body, .. } = get_with_cookie(url, None).await;
    (status, location, body)
}

/// What came back to a browser.
#[derive(Debug, Default)]
pub struct Got {
    /// 0: no answer.
    pub status: u16,
    pub location: Option<String>,
    /// A cookie that was set, as it is sent back.
    pub cookie: Option<String>,
    pub body: String,
}

/// One GET on loopback, with a cookie.
pub async fn get_with_cookie(url: &Url, cookie: Option<&str>) -> Got {
    let host = format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(80));
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{cookie}Connection: close\r\n\r\n");
    let answer = send(&host, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let header = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    Got {
        status: head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0),
        location: header("location"),
        cookie: header("set-cookie").and_then(|set| Some(set.split_once(';')?.0.to_owned())),
        body: body.to_owned(),
    }
}

/// One request as it is written. The whole answer; empty where there is none.
pub async fn send(host: &str, request: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(host).await else { return String::new() };
    let mut answer = Vec::new();
    let asked = stream.write_all(request.as_bytes()).await;
    if asked.is_err() || stream.read_to_end(&mut answer).await.is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&answer).into_owned()
}
