//! The command line as scripts meet it: the real program, its exit codes, and what it prints. Where a daemon is needed,
//! the test itself plays it, over the tables.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use diesel::RunQueryDsl as _;
use diesel::connection::SimpleConnection as _;
use fieldmirror::db::requests::{Request, RequestKind, RequestOutcome};
use fieldmirror::db::{DbError, PgConnection, connections, daemons, requests, vault_keys};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::vault::{HandedOver, Vault, generate_key, seal_to};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::not_checked;
use crate::support::postgres::{TestDb, short_folder};

/// More than any of these commands takes.
const PATIENCE: Duration = Duration::from_mins(3);

/// A database, and the program with settings that lead to it.
struct Site {
    database: TestDb,
    folder: PathBuf,
}

impl Site {
    fn new() -> Self {
        Self::over(TestDb::new())
    }

    fn over(database: TestDb) -> Self {
        Self { database, folder: short_folder("cli") }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = program(&self.folder, line);
        command.env("FIELDMIRROR_DATABASE__URL", self.database.url.expose());
        command
    }

    fn run(&self, line: &str) -> Ran {
        Ran::of(self.command(line).output().expect("the program starts"))
    }

    fn start(&self, line: &str) -> Child {
        let mut command = self.command(line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    async fn db<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> T {
        self.database.db.run(work).await.unwrap()
    }

    async fn sql(&self, statements: &'static str) {
        self.db(move |conn| Ok(conn.batch_execute(statements)?)).await;
    }

    /// A daemon that has published its key, and does nothing by itself.
    async fn daemon(&self) -> Vault {
        let vault = Vault::new(&generate_key(), &[]).unwrap();
        let (key_id, public_key) = (vault.key_id().to_owned(), vault.public_key());
        self.db(move |conn| {
            daemons::beat(conn, Uuid::now_v7(), "testhost", 1, "0.1.0")?;
            // It does not beat again, and counts as alive however long the test takes.
            conn.batch_execute("UPDATE fieldmirror.daemons SET last_seen_at = now() + interval '1 hour'")?;
            vault_keys::publish(conn, &key_id, &public_key)
        })
        .await;
        vault
    }

    /// The next open request of that kind.
    async fn request(&self, kind: RequestKind) -> Request {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let waiting = self.db(|conn| requests::waiting(conn, SystemClock.now())).await;
            if let Some((connection, _)) = waiting.iter().find(|(_, waits)| *waits == kind) {
                let connection = *connection;
                return self.db(move |conn| requests::open(conn, connection, kind)).await.remove(0);
            }
            assert!(Instant::now() < deadline, "no {kind:?} request came");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn finish(&self, request: &Request, outcome: RequestOutcome, message: Option<&'static str>) {
        let id = request.id;
        assert!(self.db(move |conn| requests::finish(conn, id, outcome, message)).await);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The program with an environment of its own. Waits for daemons are cut short.
fn program(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldmirror"));
    command.env_clear().env("HOME", folder).env("FIELDMIRROR_DAEMON__STATE_DIR", folder.join("state"));
    command.args(line.split_whitespace()).args(["--daemon-wait", "300ms"]).stdin(Stdio::null());
    command
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints UTF-8");
        Self {
            code: output.status.code().expect("the program ends by itself"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// The objects on stdout; the last is the result.
    fn objects(&self) -> Vec<Value> {
        let parsed =
            self.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON object per line"));
        parsed.collect()
    }

    fn last(&self) -> Value {
        self.objects().pop().unwrap_or_else(|| panic!("nothing on stdout; stderr: {}", self.stderr))
    }

    /// That it ended with that code, and said so as JSON.
    fn refused(&self, code: i32, kind: &str) -> String {
        let error = &self.last()["error"];
        assert_eq!(
            (self.code, error["kind"].as_str()),
            (code, Some(kind)),
            "{} {}",
            self.stdout,
            self.stderr
        );
        error["message"].as_str().expect("a message").to_owned()
    }

    fn done(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {} stderr: {}", self.stdout, self.stderr);
        self
    }
}

fn ended(child: Child) -> Ran {
    Ran::of(child.wait_with_output().expect("the program ends"))
}

const CONNECTED: &str = "
    INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, account_id, account_name, connected_at)
    VALUES ('acme', 'hubspot', 'authorization_code', 'connected', '1', 'acme.test', '2026-11-20T00:00:00Z');
    INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, generation, access_sealed, refresh_sealed, issued_at,
        expires_at, refresh_due_at)
    SELECT id, gen_random_uuid(), 'oauth', 3, '\\x01', '\\x01', now(), now() + interval '1 hour', now() + interval '30 min'
    FROM fieldmirror.connections;
    INSERT INTO fieldmirror.stream_state (connection_id, stream, state, complete_to, backfill_done, backfill_progress, rows,
        deleted_rows, last_success_at)
    SELECT id, 'tickets', 'idle', '2026-11-21T00:00:00Z', true, 1, 12, 2, '2026-11-21T00:00:00Z'
    FROM fieldmirror.connections;
    INSERT INTO fieldmirror.walks (connection_id, stream, mode, due_at)
    SELECT id, 'tickets', 'incremental', '2026-11-21T00:05:00Z' FROM fieldmirror.connections;";

#[tokio::test]
async fn help_and_lines_that_cannot_be_understood() {
    let folder = short_folder("cli-usage");
    let run = |line: &str| Ran::of(program(&folder, line).output().unwrap());
    assert!(run("--help").done().stdout.contains("enqueue"));
    assert!(run("--version").done().stdout.starts_with("fieldmirror "));
    let unknown = run("stauts");
    assert_eq!((unknown.code, unknown.stdout.as_str()), (1, ""));
    assert!(unknown.stderr.starts_with("error: "), "{}", unknown.stderr);
    run("stauts --json").refused(1, "bad_request");
    run("enqueue --json").refused(1, "bad_request");
    run("jobs --state odd --json").refused(1, "bad_request");
    let _ = std::fs::remove_dir_all(folder);
}

#[tokio::test]
async fn settings_and_keys_need_no_database() {
    let folder = short_folder("cli-settings");
    let run = |line: &str| Ran::of(program(&folder, line).output().unwrap());
    let settings = run("config --json").done().last();
    let state_dir = &settings["settings"]["daemon"]["state_dir"];
    assert_eq!(state_dir["value"], folder.join("state").display().to_string());
    assert!(state_dir["origin"].as_str().unwrap().contains("FIELDMIRROR_DAEMON__STATE_DIR"));
    let secret =
        program(&folder, "config").env("FIELDMIRROR_DATABASE__URL", "postgresql://u:hunter2@h/d").output();
    let shown = Ran::of(secret.unwrap()).done();
    assert!(shown.stdout.contains("database.url") && !shown.stdout.contains("hunter2"), "{}", shown.stdout);
    let wrong = program(&folder, "config --json").env("FIELDMIRROR_DAEMON__WORKERS", "none").output();
    assert!(Ran::of(wrong.unwrap()).refused(1, "configuration").contains("daemon.workers"));

    let (one, other) = (run("key generate").done().stdout, run("key generate").done().stdout);
    assert_ne!(one, other);
    assert!(Vault::new(&one.trim_end().into(), &[]).is_ok() && one.ends_with('\n'), "{one:?}");

    // No database is set, and no daemon has made a private one.
    let message = run("status --json").refused(2, "no_daemon");
    assert!(message.contains("no daemon runs with state_dir"), "{message}");
    let _ = std::fs::remove_dir_all(folder);
}

#[tokio::test]
async fn migrating() {
    let site = Site::over(TestDb::empty());
    let message = site.run("status --json").refused(1, "configuration");
    assert!(message.contains("run `fieldmirror migrate`"), "{message}");
    let first = site.run("migrate --json").done().last();
    assert!(first["applied"].as_array().unwrap().len() > 1, "{first}");
    assert!(first["version"].is_string(), "{first}");
    let again = site.run("migrate --json").done().last();
    assert_eq!((&again["applied"], &again["version"]), (&json!([]), &first["version"]));
    assert!(site.run("migrate").done().stdout.contains("up to date"));
}

#[tokio::test]
async fn the_status_of_nothing_and_of_something() {
    let site = Site::new();
    let nothing = site.run("status --json").done().last();
    assert_eq!((&nothing["healthy"], &nothing["connections"]), (&json!(false), &json!([])));
    assert_eq!(site.run("status --check").code, 1, "no daemon lives");
    site.daemon().await;
    site.run("status --check").done();

    site.sql(CONNECTED).await;
    let status = site.run("status --json").done().last();
    assert_eq!(status["healthy"], true, "{status}");
    assert_eq!(status["daemons"][0]["host"], "testhost");
    let acme = &status["connections"][0];
    assert_eq!(
        (&acme["name"], &acme["state"], &acme["next_action"]),
        (&json!("acme"), &json!("connected"), &Value::Null)
    );
    let token = &acme["token"];
    assert_eq!(
        (&token["kind"], &token["state"], &token["generation"]),
        (&json!("oauth"), &json!("valid"), &json!(3))
    );
    let streams = acme["streams"].as_array().unwrap();
    assert_eq!(streams.len(), 4, "those that have not begun are there: {streams:?}");
    let tickets = streams.iter().find(|stream| stream["name"] == "tickets").unwrap();
    let expected = json!({
        "name": "tickets", "table": "mirror.hubspot_tickets", "state": "idle", "complete_to": "2026-11-21T00:00:00Z",
        "swept_to": null, "backfill_done": true, "backfill_progress": 1.0, "forecast_at": null, "rows": 12,
        "deleted_rows": 2, "stalled_reason": null, "last_error": null, "last_success_at": "2026-11-21T00:00:00Z",
        "next_due_at": "2026-11-21T00:05:00Z", "verified_at": null, "drift": 0,
    });
    assert_eq!(tickets, &expected);

    let by_id = format!("status {} --json", acme["id"]);
    assert_eq!(site.run(&by_id).done().last()["connections"][0]["name"], "acme");
    assert!(site.run("status acne --json").last()["error"]["hint"].as_str().unwrap().contains("`acme`"));
    site.run("status acne --json").refused(1, "unknown_name");

    site.sql("UPDATE fieldmirror.connections SET state = 'needs_reauth', reason = 'the grant was revoked'")
        .await;
    let ill = site.run("status --check");
    assert_eq!(ill.code, 1);
    assert!(ill.stdout.contains("the grant was revoked"), "{}", ill.stdout);
    assert!(ill.stdout.contains("next: fieldmirror enqueue --reconnect acme"), "{}", ill.stdout);
    assert!(!ill.stdout.contains('\u{1b}'), "colour only on a terminal: {}", ill.stdout);
}

/// A stream of several partitions has reached what all of them have.
#[tokio::test]
async fn partitions_are_taken_together() {
    let site = Site::new();
    site.sql(CONNECTED).await;
    site.sql(
        "INSERT INTO fieldmirror.stream_state (connection_id, stream, partition, state, complete_to, backfill_progress, rows)
         SELECT id, 'tickets', 'west', 'stalled', NULL, 0.5, 3 FROM fieldmirror.connections",
    )
    .await;
    let status = site.run("status acme --json").done().last();
    let tickets = status["connections"][0]["streams"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&tickets["state"], &tickets["complete_to"]), (&json!("stalled"), &Value::Null));
    assert_eq!((&tickets["rows"], &tickets["backfill_progress"]), (&json!(15), &json!(0.75)));
    assert_eq!(tickets["backfill_done"], false);
}

#[tokio::test]
async fn without_a_daemon_nothing_is_requested() {
    let site = Site::new();
    site.sql(CONNECTED).await;
    let lines = [
        "enqueue --connect hubspot --name new --json",
        "enqueue --reconnect acme --json",
        "enqueue --resync acme --json",
        "enqueue --refresh acme --json",
        "enqueue --disconnect acme --json",
    ];
    for line in lines {
        let began = Instant::now();
        site.run(line).refused(2, "no_daemon");
        assert!(began.elapsed() < PATIENCE, "{line}");
    }
    assert!(site.db(|conn| requests::waiting(conn, SystemClock.now())).await.is_empty());
    assert_eq!(site.db(connections::list).await.len(), 1);
}

#[tokio::test]
async fn requests_that_make_no_sense() {
    let site = Site::new();
    site.sql(CONNECTED).await;
    let secret = site.run(
        "enqueue --connect hubspot --name new --grant bearer_token --secret bearer_token=hunter2 --json",
    );
    assert!(secret.refused(1, "bad_request").contains("process list"));
    let slip =
        site.run("enqueue --connect hubspot --name new --sercet bearer_token=hunter2 api_key=hunter2 --json");
    slip.refused(1, "bad_request");
    for ran in [&secret, &slip] {
        assert!(
            !format!("{}{}", ran.stdout, ran.stderr).contains("hunter2"),
            "{} {}",
            ran.stdout,
            ran.stderr
        );
    }
    site.run("enqueue --connect hubpsot --name new --json").refused(1, "unknown_name");
    site.run("enqueue --connect hubspot --name New --json").refused(1, "bad_request");
    site.run("enqueue --connect hubspot --name new --grant api_key --json").refused(1, "bad_request");
    site.run("enqueue --resync nobody --json").refused(1, "unknown_name");
    site.run("enqueue --resync acme --stream visits --json").refused(1, "unknown_name");
    site.run("enqueue --resync acme --since 2999-01-01T00:00:00Z --json").refused(1, "bad_request");
    site.run("jobs retry 99 --json").refused(1, "unknown_name");
    site.daemon().await;
    let taken = site.run("enqueue --connect hubspot --name acme --json").refused(1, "bad_request");
    assert!(taken.contains("belongs to a connection already"), "{taken}");
    let away = site
        .command("status --json")
        .env("FIELDMIRROR_DATABASE__URL", "postgresql:///x?host=/nowhere")
        .output();
    Ran::of(away.unwrap()).refused(2, "database");
}

#[tokio::test]
async fn a_consent_from_request_to_connection() {
    let site = Site::new();
    let vault = site.daemon().await;
    let child = site.start("enqueue --connect hubspot --name acme --json");
    let request = site.request(RequestKind::Connect).await;
    assert_eq!((request.sealed.as_deref(), &request.args["grant"]), (None, &json!("authorization_code")));
    let reply_to =
        BASE64_STANDARD.decode(request.args["reply_to"].as_str().unwrap()).unwrap().try_into().unwrap();
    let links = json!({
        "start_url": "http://127.0.0.1:8787/connect/T", "authorize_url": "https://provider.test/authorize",
        "redirect_uri": "http://127.0.0.1:8787/oauth/callback/hubspot", "expires_at": "2999-01-01T00:00:00Z",
    });
    let (id, reply) = (request.id, seal_to(&reply_to, links.to_string().as_bytes()));
    site.db(move |conn| requests::reply(conn, id, &reply)).await;
    let (id, grant) = (request.connection, Uuid::now_v7());
    let completed =
        site.db(move |conn| connections::complete(conn, id, "42", Some("acme.test"), grant)).await;
    completed.expect("nobody else has the account");
    site.finish(&request, RequestOutcome::Done, None).await;

    let ran = ended(child).done();
    let [first, last] = ran.objects().try_into().expect("two objects");
    for key in ["start_url", "authorize_url", "redirect_uri", "expires_at"] {
        assert_eq!((&first[key], &last[key]), (&links[key], &links[key]));
    }
    assert_eq!((&first["state"], &first["account_id"]), (&json!("awaiting_consent"), &Value::Null));
    assert_eq!(first["job_id"], request.job_id.expect("a job is linked").to_string());
    assert_eq!((&last["state"], &last["account_id"]), (&json!("connected"), &json!("42")));
    assert_eq!((&last["account_name"], &last["outcome"]), (&json!("acme.test"), &json!("done")));
    let jobs = site.run("jobs --state pending --json").done().last();
    assert_eq!(
        (&jobs["jobs"][0]["kind"], &jobs["jobs"][0]["connection"]),
        (&json!("connect"), &json!("acme"))
    );
    drop(vault);
}

#[tokio::test]
async fn a_consent_that_is_denied_or_not_waited_for() {
    let site = Site::new();
    site.daemon().await;
    let child = site.start("enqueue --connect hubspot --name acme --json");
    let request = site.request(RequestKind::Connect).await;
    site.finish(&request, RequestOutcome::Denied, Some("the owner pressed `Cancel`")).await;
    let ran = ended(child);
    let message = ran.refused(1, "denied");
    assert!(message.contains("the owner pressed `Cancel`"), "{message}");
    assert_eq!(ran.last()["outcome"], "denied");

    // One that never began is told at once.
    let child = site.start("enqueue --connect hubspot --name acme --no-wait --json");
    let request = site.request(RequestKind::Connect).await;
    site.finish(&request, RequestOutcome::Failed, Some("`client_id` is not set")).await;
    let ran = ended(child);
    assert!(ran.refused(2, "failed").contains("`client_id` is not set"));

    // The name is still pending: it may be asked for again.
    let child = site.start("enqueue --connect hubspot --name acme --no-wait");
    let request = site.request(RequestKind::Connect).await;
    let reply_to =
        BASE64_STANDARD.decode(request.args["reply_to"].as_str().unwrap()).unwrap().try_into().unwrap();
    let links = r#"{"start_url":"http://h/connect/T","authorize_url":"https://p/a","redirect_uri":"http://h/cb",
        "expires_at":"2999-01-01T00:00:00Z"}"#;
    let (id, reply) = (request.id, seal_to(&reply_to, links.as_bytes()));
    site.db(move |conn| requests::reply(conn, id, &reply)).await;
    let ran = ended(child).done();
    assert!(ran.stdout.lines().any(|line| line.trim() == "http://h/connect/T"), "{}", ran.stdout);
    assert!(ran.stdout.contains("https://p/a") && ran.stderr.is_empty(), "{}", ran.stderr);
}

#[tokio::test]
async fn a_key_travels_sealed_and_is_verified() {
    let site = Site::new();
    let vault = site.daemon().await;
    let file = site.file("token", "pat-hunter2\n");
    let line = format!(
        "enqueue --connect hubspot --name acme --grant bearer_token --secret bearer_token=@{file} --json"
    );
    let child = site.start(&line);
    let request = site.request(RequestKind::Connect).await;
    let with = HandedOver { connection: request.connection, request: request.id };
    let opened = vault.open_box(request.sealed.as_deref().expect("a sealed secret"), &with).unwrap();
    assert_eq!(opened.as_slice(), br#"{"bearer_token":"pat-hunter2"}"#);
    assert!(!request.args.to_string().contains("hunter2"));
    site.finish(&request, RequestOutcome::Failed, Some("HubSpot refuses the token")).await;
    let ran = ended(child);
    ran.refused(2, "failed");
    let first = &ran.objects()[0];
    assert_eq!((&first["state"], &first["start_url"]), (&json!("verifying"), &Value::Null));
    assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("hunter2"));
}

#[tokio::test]
async fn a_pasted_address_finds_its_connection() {
    let site = Site::new();
    let vault = site.daemon().await;
    site.sql(CONNECTED).await;
    site.sql(
        "INSERT INTO fieldmirror.authorizations (id, connection_id, request_id, ticket_hash, redirect_uri, expires_at)
         SELECT gen_random_uuid(), id, gen_random_uuid(), '\\x00', 'http://h/cb', now() + interval '1 day'
         FROM fieldmirror.connections;
         INSERT INTO fieldmirror.authorization_attempts (id, authorization_id, provider, state_hash, redirect_uri, expires_at)
         SELECT gen_random_uuid(), id, 'hubspot', sha256('STATE'), 'http://h/cb', now() + interval '10 min'
         FROM fieldmirror.authorizations",
    )
    .await;
    let address = "http://127.0.0.1:8787/oauth/callback/hubspot?code=hunter2&state=STATE";
    let mut command = site.command("callback - --json");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), format!("{address}\n").as_bytes()).unwrap();
    let request = site.request(RequestKind::Callback).await;
    let with = HandedOver { connection: request.connection, request: request.id };
    let opened = vault.open_box(request.sealed.as_deref().unwrap(), &with).unwrap();
    assert_eq!(opened.as_slice(), address.as_bytes());
    site.finish(&request, RequestOutcome::Done, None).await;
    let ran = ended(child).done();
    assert_eq!((&ran.last()["connection"], &ran.last()["state"]), (&json!("acme"), &json!("connected")));
    assert!(!ran.stdout.contains("hunter2"));

    let other = site.run("callback http://h/cb?code=hunter2&state=OTHER --json");
    other.refused(1, "unknown_name");
    assert!(!other.stdout.contains("hunter2"), "{}", other.stdout);
    site.run("callback http://h/cb?code=hunter2 --json").refused(1, "bad_request");
}

#[tokio::test]
async fn requests_for_one_and_for_all() {
    let site = Site::new();
    site.daemon().await;
    site.sql(CONNECTED).await;
    site.sql(
        "INSERT INTO fieldmirror.connections (name, provider, grant_kind, state)
         VALUES ('pending', 'hubspot', 'authorization_code', 'awaiting_consent')",
    )
    .await;
    let ran = site.run("enqueue --resync --all --stream tickets --full --allow-mass-delete --json").done();
    let requests = ran.last()["requests"].clone();
    assert_eq!(requests.as_array().unwrap().len(), 1, "those that are connected only: {requests}");
    let one = &requests[0];
    assert_eq!(
        (&one["connection"], &one["kind"], &one["outcome"]),
        (&json!("acme"), &json!("sync"), &Value::Null)
    );
    let request = site.request(RequestKind::Sync).await;
    assert_eq!(one["request_id"], request.id.to_string());
    assert_eq!(one["job_id"], request.job_id.unwrap().to_string());
    let args = json!({ "streams": ["tickets"], "full": true, "since": null, "allow_mass_delete": true });
    assert_eq!(request.args, args);
    site.finish(&request, RequestOutcome::Done, None).await;

    let child = site.start("enqueue --disconnect acme --purge --wait --json");
    let request = site.request(RequestKind::Disconnect).await;
    assert_eq!(request.args, json!({ "purge": true }));
    site.finish(&request, RequestOutcome::Done, None).await;
    let ran = ended(child).done();
    assert_eq!(ran.objects().len(), 2);
    assert_eq!(ran.last()["requests"][0]["outcome"], "done");

    let child = site.start("enqueue --refresh acme --wait --json");
    let request = site.request(RequestKind::Refresh).await;
    site.finish(&request, RequestOutcome::Failed, Some("the provider is away")).await;
    assert!(ended(child).refused(2, "failed").contains("the provider is away"));

    let over = site.run("enqueue --refresh acme --wait --wait-max 200ms --json");
    over.refused(2, "wait_over");
    assert_eq!(over.objects().len(), 2, "the request is shown before: {}", over.stdout);
}

#[tokio::test]
async fn which_keys_are_in_use() {
    let site = Site::new();
    assert!(site.run("key status").done().stdout.contains("No key has been published"));
    let vault = site.daemon().await;
    site.sql(CONNECTED).await;
    let bound =
        fieldmirror::vault::Bound { connection: ConnectionId(1), grant: Uuid::nil(), column: "access_token" };
    let old = Vault::new(&generate_key(), &[]).unwrap();
    let (new_sealed, old_sealed) = (vault.seal(b"t", &bound), old.seal(b"r", &bound));
    site.db(move |conn| {
        diesel::sql_query("UPDATE fieldmirror.tokens SET access_sealed = $1, refresh_sealed = $2")
            .bind::<diesel::sql_types::Bytea, _>(new_sealed)
            .bind::<diesel::sql_types::Bytea, _>(old_sealed)
            .execute(conn)?;
        conn.batch_execute(
            "INSERT INTO fieldmirror.secrets (connection_id, name, grant_id, sealed)
             SELECT id, 'k', gen_random_uuid(), 'odd' FROM fieldmirror.connections",
        )?;
        Ok(())
    })
    .await;
    let keys = site.run("key status --json").done().last()["keys"].clone();
    let find = |id: Value| keys.as_array().unwrap().iter().find(|key| key["key_id"] == id).unwrap().clone();
    let active = find(json!(vault.key_id()));
    assert_eq!((&active["active"], &active["sealed"]["tokens"]), (&json!(true), &json!(1)));
    let gone = find(json!(old.key_id()));
    assert_eq!(
        (&gone["active"], &gone["published_at"], &gone["sealed"]["tokens"]),
        (&json!(false), &Value::Null, &json!(1))
    );
    assert_eq!(find(Value::Null)["sealed"]["secrets"], 1, "what is no sealed value is told");
}

#[tokio::test]
async fn a_reader_that_leaves_is_no_error() {
    let site = Site::new();
    let mut child = site.start("status");
    drop(child.stdout.take());
    let ran = ended(child);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[cfg(feature = "sandbox")]
#[tokio::test]
async fn the_sandbox_says_where_it_is() {
    use std::io::BufRead as _;
    let folder = short_folder("cli-sandbox");
    let mut command = program(&folder, "sandbox --listen 127.0.0.1:0 --records 3 --json");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let object: Value = serde_json::from_str(&line).unwrap();
    let base = object["base_url"].as_str().unwrap().to_owned();
    assert!(std::net::TcpStream::connect(base.strip_prefix("http://").unwrap()).is_ok());
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success() && child.wait().unwrap().success());
    let refused =
        Ran::of(program(&folder, "sandbox --listen 127.0.0.1:0 --fault odd --json").output().unwrap());
    refused.refused(1, "bad_request");
    let _ = std::fs::remove_dir_all(folder);
}

/// Accounts of all providers are connected, read whole and shown, and how to ask further is told.
#[cfg(feature = "sandbox")]
#[test]
fn the_demo_mirrors_every_provider() {
    let folder = short_folder("cli-demo");
    let ran = Ran::of(program(&folder, "demo --once --records 12 --json").output().unwrap()).done();
    let shown = ran.last();
    assert!(shown["psql"].as_str().unwrap().starts_with("psql -h "), "{shown}");
    let providers = |view: &str| -> Vec<String> {
        let of_view = |table: &&Value| table["title"].as_str().unwrap().contains(view);
        let table = shown["tables"].as_array().unwrap().iter().find(of_view).unwrap();
        let rows = table["rows"].as_array().unwrap().iter();
        let mut providers: Vec<String> =
            rows.map(|row| row["provider"].as_str().unwrap_or("hubspot").to_owned()).collect();
        providers.dedup();
        providers
    };
    assert_eq!(providers("mirror.tickets"), ["hubspot"]);
    assert_eq!(providers("mirror.jobs"), ["housecallpro", "jobber", "servicetitan"]);
    assert_eq!(providers("mirror.bookings"), ["oncehub", "servicetitan"]);
    let all = ["housecallpro", "hubspot", "jobber", "oncehub", "servicetitan"];
    assert_eq!(providers("mirror.freshness"), all);
    let _ = std::fs::remove_dir_all(folder);
}

/// What a shell is offered after `line`, by the real one: bash, fish or zsh. None where it is not installed.
fn offered_by(shell: &str, site: &Site, line: &[&str]) -> Option<Vec<String>> {
    let program = Path::new(env!("CARGO_BIN_EXE_fieldmirror"));
    let (flags, script): (&[&str], &str) = match shell {
        "bash" => (
            &["--norc", "-c"],
            r#"
            eval "$(fieldmirror completions bash)"
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            _fieldmirror_dynamic fieldmirror "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}""#,
        ),
        "fish" => (
            &["--no-config", "-c"],
            r#"
            fieldmirror completions fish | source
            complete -C "$(string join ' ' -- $argv[2..])" | string replace -r '\t.*' ''"#,
        ),
        // As zsh's own functions call it: below a subcommand the words begin with it.
        "zsh" => (
            &["-f", "-c"],
            r#"
            compdef() { }
            compadd() { print -l -- ${(P)@[-1]} }
            source =(fieldmirror completions zsh)
            shift
            words=("$@") CURRENT=$#
            [[ $words[CURRENT-1] == (why|--resync) ]] && _fieldmirror_names_of_connections || _fieldmirror_names_of_streams"#,
        ),
        other => panic!("{other}"),
    };
    let mut command = Command::new(shell);
    command.args(flags).args([script, shell]).args(line).env_clear();
    command.env("PATH", format!("{}:/usr/bin:/bin", program.parent().unwrap().display()));
    command.env("HOME", &site.folder).env("FIELDMIRROR_DAEMON__STATE_DIR", site.folder.join("state"));
    command.env("FIELDMIRROR_DATABASE__URL", site.database.url.expose());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            not_checked(&format!("completions for {shell}, which is not installed"));
            return None;
        }
        Err(error) => panic!("{shell}: {error}"),
    };
    let ran = Ran::of(output);
    assert_eq!(ran.stderr, "", "nothing disturbs a person who types");
    Some(ran.stdout.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// The same as long as that is not `good`: who types is not kept waiting for a database, and a slow machine is late.
fn offered_at_last(
    shell: &str,
    site: &Site,
    line: &[&str],
    good: impl Fn(&[String]) -> bool,
) -> Option<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let offered = offered_by(shell, site, line)?;
        if good(&offered) || Instant::now() > deadline {
            return Some(offered);
        }
    }
}

#[track_caller]
fn assert_offered(site: &Site, line: &[&str], expected: &[&str]) {
    let offered = offered_at_last("bash", site, line, |offered| offered == expected);
    assert_eq!(offered.expect("bash is installed"), expected, "{line:?}");
}

fn offered(site: &Site, line: &[&str]) -> Vec<String> {
    offered_by("bash", site, line).expect("bash is installed")
}

#[tokio::test]
async fn completions_know_connections_and_streams() {
    let site = Site::new();
    site.sql(CONNECTED).await;
    site.sql(
        "INSERT INTO fieldmirror.connections (name, provider, grant_kind, state)
         VALUES ('apex', 'hubspot', 'authorization_code', 'awaiting_consent')",
    )
    .await;
    assert_offered(&site, &["fieldmirror", "why", "ac"], &["acme"]);
    assert_offered(&site, &["fieldmirror", "status", ""], &["acme", "apex"]);
    assert_offered(&site, &["fieldmirror", "enqueue", "--resync", "ap"], &["apex"]);
    assert_offered(&site, &["fieldmirror", "why", "acme", "ti"], &["tickets"]);
    assert_offered(&site, &["fieldmirror", "enqueue", "--resync", "acme", "--stream", "own"], &["owners"]);
    assert!(offered(&site, &["fieldmirror", "enqueue", "--connect", ""]).contains(&"hubspot".to_owned()));
    assert_eq!(offered(&site, &["fieldmirror", "doc"]), ["doctor"]);
    assert!(
        offered(&site, &["fieldmirror", ""]).iter().all(|word| word != "names"),
        "what is hidden is not offered"
    );
    // The streams of the connection that the line names, and of no other provider.
    for shell in ["bash", "fish", "zsh"] {
        for line in [["enqueue", "--resync", "acme", "--stream", ""].as_slice(), &["why", "acme", ""]] {
            let line: Vec<&str> = ["fieldmirror"].iter().chain(line).copied().collect();
            let good = |offered: &[String]| offered.iter().any(|word| word == "tickets");
            let Some(streams) = offered_at_last(shell, &site, &line, good) else { continue };
            assert!(streams.contains(&"tickets".to_owned()), "{shell} {line:?}: {streams:?}");
            assert!(!streams.contains(&"jobs".to_owned()), "{shell} {line:?}: {streams:?}");
        }
        let good = |offered: &[String]| offered.iter().any(|word| word == "apex");
        let Some(names) = offered_at_last(shell, &site, &["fieldmirror", "why", ""], good) else { continue };
        let mut names: Vec<_> = names.into_iter().filter(|name| !name.starts_with('-')).collect();
        names.sort();
        assert_eq!(names, ["acme", "apex"], "{shell}");
    }
}

#[tokio::test]
async fn names_are_quick_and_silent_when_the_database_is_away() {
    let folder = short_folder("cli-names");
    for url in ["postgresql:///x?host=/nowhere", "postgresql://192.0.2.1/x", "nonsense"] {
        let began = Instant::now();
        let mut command = program(&folder, "names connections");
        let ran = Ran::of(command.env("FIELDMIRROR_DATABASE__URL", url).output().unwrap()).done();
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""), "{url}");
        // A connection is waited for half a minute elsewhere.
        assert!(began.elapsed() < Duration::from_secs(20), "{url}: {:?}", began.elapsed());
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn manual_pages() {
    let folder = short_folder("cli-man");
    let run = |line: &str| Ran::of(program(&folder, line).output().unwrap());
    assert!(run("man").done().stdout.contains(".TH fieldmirror 1"));
    assert!(run("man enqueue").done().stdout.contains("fieldmirror-enqueue"));
    run("man nothing --json").refused(1, "unknown_name");
    let pages = folder.join("pages");
    run(&format!("man --out {}", pages.display())).done();
    let names: Vec<_> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    for name in ["fieldmirror.1", "fieldmirror-enqueue.1", "fieldmirror-key-status.1"] {
        assert!(names.contains(&name.to_owned()), "{name} is not among {names:?}");
    }
    let _ = std::fs::remove_dir_all(folder);
}
