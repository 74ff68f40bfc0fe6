//! `doctor` against set-ups that are wrong on purpose: each is found, and the remedy is named.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use diesel::connection::SimpleConnection as _;
use fieldmirror::callback::pages::POLICY;
use fieldmirror::config::host_name;
use fieldmirror::db::{daemons, vault_keys};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::secret::Secret;
use fieldmirror::vault::{Bound, Vault, generate_key};
use serde_json::Value;
use uuid::Uuid;

use crate::queue::pooler_before;
use crate::support::not_checked;
use crate::support::postgres::{TestDb, short_folder};

/// A set-up with nothing wrong, and what a test changes about it.
struct Site {
    database: TestDb,
    folder: PathBuf,
    key: Secret,
    environment: Vec<(String, String)>,
    /// Who examines it; `None`: whoever runs the tests.
    user: Option<u32>,
    /// Stands for the daemon's endpoint.
    _endpoint: TcpListener,
}

/// A listener that answers every request with 200 and that head.
fn answering(head: &'static str) -> TcpListener {
    serving(move |_| format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 3\r\n\r\nok\n"))
}

/// What a daemon's endpoints answer, that of browsers and that of metrics.
fn daemons() -> TcpListener {
    serving(|path| {
        let (status, body) = match path {
            "/healthz" => ("200 OK", "ok"),
            "/metrics" => ("200 OK", "# TYPE fieldmirror_build_info gauge"),
            _ => return proxied(path),
        };
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    })
}

/// What is left of it behind a reverse proxy.
fn proxied(path: &str) -> String {
    let head = if path.starts_with("/connect/") {
        format!("HTTP/1.1 400 Bad Request\r\nContent-Security-Policy: {}\r\n", *POLICY)
    } else {
        "HTTP/1.1 404 Not Found\r\n".to_owned()
    };
    format!("{head}Content-Length: 0\r\n\r\n")
}

fn serving(answer: impl Fn(&str) -> String + Send + 'static) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let served = listener.try_clone().unwrap();
    std::thread::spawn(move || {
        for stream in served.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let _ = stream.write_all(answer(path).as_bytes());
        }
    });
    listener
}

impl Site {
    fn new() -> Self {
        Self::over(TestDb::new())
    }

    fn over(database: TestDb) -> Self {
        let folder = short_folder("doctor");
        let key = generate_key();
        let (endpoint, metrics) = (daemons(), daemons());
        let address = endpoint.local_addr().unwrap();
        std::fs::create_dir(folder.join("state")).unwrap();
        std::fs::set_permissions(folder.join("state"), PermissionsExt::from_mode(0o700)).unwrap();
        let mut site = Self {
            database,
            folder,
            key: key.clone(),
            environment: Vec::new(),
            user: None,
            _endpoint: endpoint,
        };
        site.set("DATABASE__URL", site.database.url.expose().to_owned());
        site.set("DATABASE__POOL_SIZE", "4");
        site.set("DAEMON__STATE_DIR", site.folder.join("state").display().to_string());
        site.set("VAULT__KEY_FILE", site.file("key", key.expose(), 0o600));
        site.set("CALLBACK__LISTEN", address.to_string());
        site.set("CALLBACK__PUBLIC_URL", format!("http://{address}"));
        site.set("METRICS__LISTEN", metrics.local_addr().unwrap().to_string());
        // No test asks the real one.
        site.set("PROVIDERS__HUBSPOT__API_BASE", format!("http://{address}"));
        site.set("PROVIDERS__HUBSPOT__TOKEN_URL", format!("http://{address}/token"));
        site
    }

    fn set(&mut self, key: &str, value: impl Into<String>) {
        let name = format!("FIELDMIRROR_{key}");
        self.environment.retain(|(other, _)| *other != name);
        self.environment.push((name, value.into()));
    }

    fn file(&self, name: &str, content: &str, mode: u32) -> String {
        let path = self.folder.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path.display().to_string()
    }

    async fn sql(&self, statements: impl Into<String>) {
        let statements = statements.into();
        self.database.db.run(move |conn| Ok(conn.batch_execute(&statements)?)).await.unwrap();
    }

    /// A daemon of ours on this host, which has published its key.
    async fn daemon(&self) -> Vault {
        let vault = Vault::new(&self.key, &[]).unwrap();
        let (key_id, public_key) = (vault.key_id().to_owned(), vault.public_key());
        let beat = self.database.db.run(move |conn| {
            daemons::beat(conn, Uuid::now_v7(), &host_name(), 1, env!("CARGO_PKG_VERSION"))?;
            // It does not beat again, and counts as alive however long the test takes.
            conn.batch_execute("UPDATE fieldmirror.daemons SET last_seen_at = now() + interval '1 hour'")?;
            vault_keys::publish(conn, &key_id, &public_key)
        });
        beat.await.unwrap();
        vault
    }

    fn examine(&self, flags: &str) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldmirror"));
        command.env_clear().env("HOME", &self.folder).env("PATH", "/usr/bin:/bin");
        command.envs(self.environment.iter().cloned()).arg("doctor").args(flags.split_whitespace());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let output = command.stdin(Stdio::null()).output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program prints UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        for secret in [self.key.expose(), "hunter2"] {
            assert!(!format!("{stdout}{stderr}").contains(secret), "a secret was printed");
        }
        (output.status.code().expect("it ends by itself"), stdout)
    }

    fn findings(&self) -> (i32, Vec<Value>) {
        let (code, stdout) = self.examine("--json");
        let object: Value = serde_json::from_str(stdout.lines().last().expect("an object")).unwrap();
        assert_eq!(object["healthy"], code == 0, "{object:#}");
        (code, object["findings"].as_array().expect("a list").clone())
    }

    /// That exactly this is ill, and that the remedy names what helps.
    #[track_caller]
    fn ill(&self, check: &str, found: &str, remedy: &str) {
        let (code, findings) = self.findings();
        let ill: Vec<_> = findings.iter().filter(|finding| finding["level"] == "ill").collect();
        assert_eq!((code, ill.len()), (1, 1), "{findings:#?}");
        let text = |key: &str| ill[0][key].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("check"), check, "{ill:#?}");
        assert!(text("found").contains(found), "`{found}` is not in {ill:#?}");
        assert!(text("remedy").contains(remedy), "`{remedy}` is not in {ill:#?}");
    }

    #[track_caller]
    fn says(&self, check: &str, level: &str, found: &str) {
        let (_, findings) = self.findings();
        let said = findings.iter().any(|finding| {
            finding["check"] == check
                && finding["level"] == level
                && finding["found"].as_str().unwrap_or_default().contains(found)
        });
        assert!(said, "{check} {level} `{found}`: {findings:#?}");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const CONNECTED: &str = "
    INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, account_id, connected_at)
    VALUES ('acme', 'hubspot', 'authorization_code', 'connected', '1', now());";

#[tokio::test]
async fn nothing_is_wrong() {
    let site = Site::new();
    site.daemon().await;
    let (code, text) = site.examine("");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("vault_key_in_use: the key in hand opens what is stored"), "{text}");
    assert!(text.contains("callback_endpoint: it answers on"), "{text}");
}

#[tokio::test]
async fn settings_that_cannot_be_read() {
    let mut site = Site::new();
    site.daemon().await;
    site.set("SYNC__POL_INTERVAL", "1m");
    site.ill(
        "configuration",
        "FIELDMIRROR_SYNC__POL_INTERVAL",
        "did you mean `FIELDMIRROR_SYNC__POLL_INTERVAL`?",
    );

    // All at once, and the rest is not guessed at.
    site.set("SYNC__OVERLAP", "often");
    site.set("DAEMON__WORKERS", "0");
    let (code, findings) = site.findings();
    let ill: Vec<_> = findings.iter().filter(|finding| finding["level"] == "ill").collect();
    assert_eq!((code, ill.len()), (1, 3), "{findings:#?}");
    assert!(ill.iter().all(|finding| finding["remedy"].is_string()), "{ill:#?}");
    site.says("everything_else", "unknown", "before the settings can be read");
}

#[tokio::test]
async fn a_settings_file_that_is_no_toml() {
    let site = Site::new();
    let file = site.file("bad.toml", "[sync\n", 0o600);
    let (code, text) = site.examine(&format!("--config {file} --config /nonexistent.toml"));
    assert_eq!(code, 1);
    assert!(text.contains("remedy: look at line 1"), "{text}");
    assert!(
        text.contains("`/nonexistent.toml`") && text.contains("check its path and permissions"),
        "{text}"
    );
}

/// `nobody`, who may do nothing anywhere.
const NOBODY: u32 = 65_534;

/// What only the daemon's user may look at is no fault, and is not called well either.
#[tokio::test]
async fn what_this_user_may_not_look_at_is_unknown() {
    let mut site = Site::new();
    site.daemon().await;
    site.file("key", site.key.expose(), 0o000);
    let closed = site.folder.join("closed");
    std::fs::create_dir_all(closed.join("state")).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    site.set("DAEMON__STATE_DIR", closed.join("state").display().to_string());
    // Root may look at everything.
    if std::fs::metadata(&site.folder).unwrap().uid() == 0 {
        let program = env!("CARGO_BIN_EXE_fieldmirror");
        let reached = Command::new(program).arg("--version").uid(NOBODY).gid(NOBODY).output();
        if !reached.is_ok_and(|ran| ran.status.success()) {
            not_checked("doctor for a user without rights, who cannot run the program where it was built");
            return;
        }
        site.user = Some(NOBODY);
    }
    // A server of the tests' own may let nobody else in, which is another matter.
    let is_ours = |finding: &&Value| finding["check"] != "database";
    let (_, findings) = site.findings();
    let ill: Vec<_> = findings.iter().filter(is_ours).filter(|finding| finding["level"] == "ill").collect();
    assert!(ill.is_empty(), "{ill:#?}");
    site.says("configuration", "unknown", "cannot be read by this user; the daemon's user may");
    site.says("vault_key", "unknown", "the secrets could not be read as a whole");
    site.says("state_dir", "unknown", "may not be looked at by this user");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn vault_keys() {
    let mut site = Site::new();
    let vault = site.daemon().await;
    let path = site.file("key", site.key.expose(), 0o644);
    site.ill("configuration", "others may use (mode 0644)", &format!("chmod 600 {path}"));
    // What needs no secret is looked at all the same, and the key that daemons use is named.
    site.says("schema", "ok", "");
    site.says("vault_key_in_use", "unknown", vault.key_id());

    site.file("key", &site.key.expose()[..20], 0o600);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    site.ill("configuration", "15 bytes after base64 decoding", "put the right key back");

    std::fs::remove_file(&path).unwrap();
    site.ill("configuration", "No such file", "check its path");

    site.set("VAULT__KEY_FILE", "");
    site.ill("vault_key", "there is no vault key", "fieldmirror key generate");
}

#[tokio::test]
async fn the_wrong_vault_key() {
    let site = Site::new();
    let vault = site.daemon().await;
    site.sql(CONNECTED).await;
    let bound = Bound { connection: ConnectionId(1), grant: Uuid::nil(), column: "tokens.access_sealed" };
    let other = Vault::new(&generate_key(), &[]).unwrap();
    let sealed: String =
        other.seal(b"t", &bound).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    site.sql(format!(
        "UPDATE fieldmirror.connections SET grant_kind = 'bearer_token';
         INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, access_sealed, issued_at)
         VALUES (1, gen_random_uuid(), 'bearer', '\\x{sealed}', now())"
    ))
    .await;
    site.ill("vault_key_in_use", other.key_id(), "previous_key_files");
    site.says("vault_key_in_use", "ill", vault.key_id());
}

/// Nothing is sealed yet, but the daemons of one database would not open each other's.
#[tokio::test]
async fn another_key_than_that_of_the_daemons() {
    let mut site = Site::new();
    let vault = site.daemon().await;
    let other = generate_key();
    site.set("VAULT__KEY_FILE", site.file("other", other.expose(), 0o600));
    site.says("vault_key_in_use", "warning", &format!("daemons seal with key `{}`", vault.key_id()));
}

#[tokio::test]
async fn databases_that_do_not_answer() {
    let mut site = Site::new();
    let url = site.database.url.expose().to_owned();
    site.set("DATABASE__URL", "postgresql:///x?host=/nowhere");
    site.ill("database", "No such file", "see that Postgres runs");
    site.set("DATABASE__URL", "postgresql://u:hunter2@no-such-host.invalid/x");
    site.ill("database", "no-such-host.invalid", "correct the host in `database.url`");
    let name = url.split(['/', '?']).nth(3).unwrap().to_owned();
    site.set("DATABASE__URL", url.replacen(&name, "no_such_database", 1));
    site.ill("database", "no_such_database", "createdb");
    site.set("DATABASE__URL", url.replace("user=fieldmirror", "user=nobody_here"));
    site.ill("database", "nobody_here", "createuser");
    site.set("DATABASE__URL", "");
    site.ill("database", "no private server runs", "fieldmirror run");
    site.set("DATABASE__PG_BIN", "/nonexistent");
    let (_, findings) = site.findings();
    let private = findings.iter().find(|finding| finding["check"] == "private_postgres").unwrap();
    assert!(private["remedy"].as_str().unwrap().contains("`database.pg_bin`"), "{private:#}");
}

#[tokio::test]
async fn databases_that_do_not_fit() {
    let behind = Site::over(TestDb::empty());
    behind.ill("schema", "lacks schema version", "run `fieldmirror migrate`");

    let mut site = Site::new();
    site.daemon().await;
    site.set("DATABASE__POOL_SIZE", "100");
    site.ill("database_sessions", "want up to 102 sessions", "lower `database.pool_size`");
    site.set("DATABASE__POOL_SIZE", "4");
    site.sql("INSERT INTO fieldmirror.__diesel_schema_migrations (version) VALUES ('29991231000000')").await;
    site.ill("schema", "29991231000000", "install the newer fieldmirror");
}

#[tokio::test]
async fn a_database_that_takes_no_writes() {
    let site = Site::new();
    site.daemon().await;
    site.sql(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$",
    )
    .await;
    site.ill("database_writable", "read-only", "default_transaction_read_only");
}

/// Queries pass, and notifications do not.
#[tokio::test]
async fn a_transaction_pooler() {
    let mut site = Site::new();
    site.daemon().await;
    site.set("DATABASE__URL", pooler_before(&site.database.url).expose());
    site.ill("database_session", "a pooler that works by transactions", "lead to Postgres itself");
}

#[tokio::test]
async fn state_directories() {
    let mut site = Site::new();
    site.daemon().await;
    let state = site.folder.join("state");
    std::fs::set_permissions(&state, PermissionsExt::from_mode(0o777)).unwrap();
    site.ill("state_dir", "others than its owner may write", "chmod 700");
    let file = site.file("plain", "", 0o600);
    site.set("DAEMON__STATE_DIR", file);
    site.ill("state_dir", "is no directory", "install -d -m 0700");
}

#[tokio::test]
async fn endpoints() {
    let mut site = Site::new();
    site.daemon().await;
    site.says("metrics_endpoint", "ok", "/metrics` answers");
    site.set("CALLBACK__PUBLIC_URL", "http://127.0.0.1:9");
    site.ill("public_url", "browsers are sent to port 9", "`callback.public_url`");
    // A proxy on this machine may stand where they are sent.
    let proxy = serving(proxied);
    let public = format!("http://localhost:{}", proxy.local_addr().unwrap().port());
    site.set("CALLBACK__PUBLIC_URL", public.as_str());
    assert_eq!(site.findings().0, 0);
    site.says("public_url", "ok", &public);
    site.set("CALLBACK__PUBLIC_URL", format!("http://{}", answering("").local_addr().unwrap()));
    site.ill("public_url", "where no daemon is found", "reverse proxy");
    site.set("CALLBACK__LISTEN", "127.0.0.1:9");
    site.set("CALLBACK__PUBLIC_URL", "http://127.0.0.1:9");
    site.ill("callback_endpoint", "nothing of ours answers", "`callback.listen`");
}

#[tokio::test]
async fn public_addresses() {
    let mut site = Site::new();
    site.daemon().await;
    site.set("CALLBACK__PUBLIC_URL", "http://sync.example.com");
    site.ill("configuration", "expected an https URL", "correct it");
    site.set("CALLBACK__PUBLIC_URL", "https://no-such-host.invalid");
    site.says(
        "redirect_uri",
        "ok",
        "`https://no-such-host.invalid/oauth/callback/PROVIDER`, to be registered",
    );
    site.says("public_url", "warning", "does not lead to the daemon, seen from this host");
}

#[tokio::test]
async fn no_certificates() {
    let mut site = Site::new();
    site.daemon().await;
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        site.environment.push((variable.to_owned(), "/nonexistent".to_owned()));
    }
    site.ill("https", "certificate", "ca-certificates");
}

#[tokio::test]
async fn metrics_that_are_not_there() {
    let mut site = Site::new();
    site.daemon().await;
    let other = answering("");
    site.set("METRICS__LISTEN", other.local_addr().unwrap().to_string());
    site.says("metrics_endpoint", "warning", "no metrics of ours");
    assert_eq!(site.findings().0, 0);
}

/// The address has changed, and owners still have links with the old one.
#[tokio::test]
async fn start_links_that_lead_elsewhere() {
    let site = Site::new();
    site.daemon().await;
    site.sql(CONNECTED).await;
    site.sql(
        "INSERT INTO fieldmirror.authorizations (id, connection_id, request_id, ticket_hash, redirect_uri, expires_at, closed_at)
         SELECT gen_random_uuid(), id, gen_random_uuid(), '\\x01', 'https://old.example.com/oauth/callback/hubspot',
             now() + interval '1 h', now() FROM fieldmirror.connections",
    )
    .await;
    let told = |findings: &[Value]| findings.iter().any(|finding| finding["check"] == "start_links");
    assert!(!told(&site.findings().1), "it is closed");
    site.sql("UPDATE fieldmirror.authorizations SET closed_at = NULL").await;
    site.says("start_links", "warning", "`https://old.example.com/oauth/callback/hubspot`: those of `acme`");
    let address = site.environment.iter().find(|(name, _)| name.ends_with("PUBLIC_URL")).unwrap().1.clone();
    site.sql(format!(
        "UPDATE fieldmirror.authorizations SET redirect_uri = '{address}/oauth/callback/hubspot'"
    ))
    .await;
    assert!(!told(&site.findings().1), "it leads here");
}

#[tokio::test]
async fn no_daemon_lives() {
    Site::new().ill("daemons", "no daemon lives", "fieldmirror run");
}

#[tokio::test]
async fn clients_of_providers() {
    let mut site = Site::new();
    site.daemon().await;
    site.sql(CONNECTED).await;
    site.ill("provider", "1 connections of `hubspot` need our client", "`providers.hubspot.client_id`");

    let answering = answering("");
    let base = format!("http://{}", answering.local_addr().unwrap());
    site.set("PROVIDERS__HUBSPOT__CLIENT_ID", "id");
    site.set("PROVIDERS__HUBSPOT__API_BASE", base.as_str());
    site.set("PROVIDERS__HUBSPOT__TOKEN_URL", format!("{base}/token"));
    site.ill("provider", "an id and no secret", "`providers.hubspot.client_secret_file`");

    site.set("PROVIDERS__HUBSPOT__CLIENT_SECRET", "hunter2");
    assert_eq!(site.findings().0, 0);
    site.sql(
        "INSERT INTO fieldmirror.alerts (kind, subject, provider, reason)
              VALUES ('configuration_fault', 'provider hubspot', 'hubspot', 'invalid_client')",
    )
    .await;
    site.ill(
        "client",
        "our configuration stops hubspot: invalid_client",
        "`providers.hubspot.client_id` and its secret",
    );

    site.sql("DELETE FROM fieldmirror.alerts").await;
    site.set("PROVIDERS__HUBSPOT__ENABLED", "false");
    site.says("provider", "warning", "`hubspot` is disabled, and 1 connections wait");
}

#[tokio::test]
async fn providers_that_are_not_reached_and_clocks() {
    let mut site = Site::new();
    site.daemon().await;
    let late = answering("Date: Thu, 01 Jan 2015 00:00:00 GMT\r\n");
    let base = format!("http://{}", late.local_addr().unwrap());
    site.set("PROVIDERS__HUBSPOT__CLIENT_ID", "id");
    site.set("PROVIDERS__HUBSPOT__CLIENT_SECRET", "hunter2");
    site.set("PROVIDERS__HUBSPOT__API_BASE", base.as_str());
    site.set("PROVIDERS__HUBSPOT__TOKEN_URL", format!("{base}/token"));
    site.ill("clock", "this machine's clock is", "timedatectl set-ntp true");
    site.set("PROVIDERS__HUBSPOT__API_BASE", "http://127.0.0.1:9");
    site.set("PROVIDERS__HUBSPOT__TOKEN_URL", "http://127.0.0.1:9/token");
    site.ill("reachability", "`http://127.0.0.1:9` cannot be reached", "firewall");

    // Who is connected by a key needs no client of ours, and no token endpoint.
    site.set("PROVIDERS__HUBSPOT__CLIENT_ID", "");
    site.set("PROVIDERS__HUBSPOT__CLIENT_SECRET", "");
    assert_eq!(site.findings().0, 0, "nobody uses it");
    site.sql(CONNECTED.replace("authorization_code", "bearer_token")).await;
    site.ill("reachability", "cannot be reached", "the settings providers.hubspot.api_base");
    let well = answering("");
    site.set("PROVIDERS__HUBSPOT__API_BASE", format!("http://{}", well.local_addr().unwrap()));
    assert_eq!(site.findings().0, 0);
}

#[tokio::test]
async fn alert_programs() {
    let mut site = Site::new();
    site.daemon().await;
    let hook = site.file("hook", "#!/bin/sh\n", 0o600);
    site.set("ALERTS__EXEC", hook.as_str());
    // Root may run only what somebody may run, so this holds for every user.
    site.ill("alert_program", "no program that this user may run", &format!("chmod +x {hook}"));
    site.set("ALERTS__EXEC", "/nonexistent/hook");
    site.ill("alert_program", "/nonexistent/hook", "correct `alerts.exec`");
    site.set("ALERTS__EXEC", "");
    site.sql(
        "INSERT INTO fieldmirror.alerts (kind, subject, reason, failures, last_error, failed_at, failed_by)
         SELECT 'needs_reauth', 'connection 1', 'x', 3, 'it ended with exit status: 1', now(), id FROM fieldmirror.daemons",
    )
    .await;
    site.ill("alert_program", "1 alerts are untold", "must end with 0");
}

#[tokio::test]
async fn parked_jobs() {
    let site = Site::new();
    site.daemon().await;
    site.sql(
        "INSERT INTO fieldmirror.alerts (kind, subject, job_id, reason) VALUES ('job_parked', 'job 4', 4, 'job 4 crashed')",
    )
    .await;
    site.ill("jobs", "job 4 crashed", "fieldmirror jobs retry 4");
}

#[tokio::test]
async fn replies_that_cannot_be_kept() {
    let site = Site::new();
    site.daemon().await;
    site.sql(
        "INSERT INTO fieldmirror.alerts (kind, subject, reason) VALUES ('spill_fault', 'host a', 'the disk is full')",
    )
    .await;
    site.ill("spills", "less safe than they should be: the disk is full", "`vault.previous_key_files`");
}

/// Every word of a finding has been seen in a test, here or beside the code, and stands in docs/DIAGNOSIS.md.
#[test]
fn every_check_is_tested_and_documented() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/doctor");
    let (mut code, mut tests) = (String::new(), include_str!("doctor.rs").to_owned());
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let (before, after) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
        code += before;
        tests += after;
    }
    let leads =
        ["const CHECK: &str =", "Finding::ok(", "Finding::ill(", "Finding::warning(", "Finding::unknown("];
    let behind = leads.iter().flat_map(|lead| code.split(lead).skip(1));
    let word =
        |rest: &str| rest.trim_start().strip_prefix('"')?.split_once('"').map(|(word, _)| word.to_owned());
    let checks: std::collections::BTreeSet<String> = behind.filter_map(word).collect();
    assert!(checks.len() > 25, "{checks:?}");
    let (_, documented) =
        include_str!("../../docs/DIAGNOSIS.md").split_once("prints no secret.").expect("a list of checks");
    for check in &checks {
        assert!(tests.contains(&format!("\"{check}\"")), "no test meets `{check}`");
        assert!(documented.contains(&format!("`{check}`")), "`{check}` is not in docs/DIAGNOSIS.md");
    }
    let told = documented.split('`').skip(1).step_by(2).filter(|word| !checks.contains(*word));
    assert_eq!(told.collect::<Vec<_>>(), Vec::<&str>::new(), "documented, and never said");
}
