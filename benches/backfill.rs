//! How fast a large account is read for the first time, against a plain COPY of the same rows.
//!
//! `cargo bench --bench backfill [-- RECORDS]` (100,000 unless said). It starts a Postgres of its own with fsync on, the
//! sandbox without rate limits in a process of its own, and the daemon as it is shipped; waits until the backfill of
//! the tickets has closed; ends both; and copies the same rows into a table of the same definition, alone on the
//! machine. `docs/PERFORMANCE.md` holds the figures.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text};
use fieldmirror::daemon::postgres::{PrivateServer, socket_url};
use fieldmirror::sandbox::hubspot::{HUB_ID_FIRST, Hubspot};
use fieldmirror::sandbox::{HubspotLimits, Sandbox, SandboxOptions};
use fieldmirror::vault::generate_key;
use support::{cpu, peak_mib, postgres_cpu, say};
use tokio::runtime::Runtime;

const RECORDS: usize = 100_000;
/// Requests in ten seconds that the sandbox announces: the pacer follows what it is told.
const UNTHROTTLED: usize = 10_000_000;
const COPIES: usize = 3;
const RATIO_MIN: f64 = 0.5;
const PEAK_MIB_MAX: f64 = 64.0;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_mins(15);
/// The hidden first argument of the process that plays the provider.
const SANDBOX: &str = "sandbox";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let records = args.last().and_then(|arg| arg.parse().ok()).unwrap_or(RECORDS);
    let runtime = Runtime::new().expect("a runtime");
    if args.first().is_some_and(|arg| arg == SANDBOX) {
        runtime.block_on(play(records));
        return;
    }
    let folder = PathBuf::from(format!("/tmp/fieldmirror-bench-{}", std::process::id()));
    fs::create_dir(&folder).expect("a folder below /tmp");
    let passed = runtime.block_on(async {
        let server = PrivateServer::start(&folder, None).await.expect("a server");
        let passed = measure(&folder, records);
        server.stop().await;
        passed
    });
    fs::remove_dir_all(&folder).expect("our folder");
    assert!(passed, "a limit is not kept");
}

/// The sandbox: says its address, then serves until its stdin ends.
async fn play(records: usize) {
    let limits = HubspotLimits {
        ten_secondly: UNTHROTTLED,
        searches_secondly: UNTHROTTLED,
        token_ten_secondly: UNTHROTTLED,
    };
    let options = SandboxOptions {
        records,
        accounts: 1,
        throttled: false,
        hubspot_limits: limits,
        ..SandboxOptions::default()
    };
    let running = Sandbox::new(options).start().await.expect("the sandbox serves");
    say(&running.base_url());
    let waiting = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    drop(waiting.await);
}

fn measure(folder: &Path, records: usize) -> bool {
    let sandbox = Process::sandbox(records);
    let base = sandbox.first_line();
    let config = configure(folder, &base);
    let daemon = Process::start(fieldmirror(&config).arg("run"));
    let mut database = Database::open(folder);
    let before = [cpu(daemon.0.id()), cpu(sandbox.0.id()), postgres_cpu(folder)];
    connect(&config, folder);
    let run = database.wait_for_backfill();
    let after = [cpu(daemon.0.id()), cpu(sandbox.0.id()), postgres_cpu(folder)];
    let peak = peak_mib(daemon.0.id());
    drop(daemon);
    drop(sandbox);
    let copied = database.copy();
    let (backfill, copy) = (run.rate(), rate(run.rows, copied));
    let ratio = backfill / copy;
    say(&format!("backfill: {} rows in {:.2} s, {backfill:.0} rows/s", run.rows, run.seconds));
    say(&format!("plain COPY: median of {COPIES} {copied:.2} s, {copy:.0} rows/s"));
    say(&format!("ratio: {ratio:.2} (at least {RATIO_MIN})"));
    say(&format!("daemon's peak memory: {peak:.1} MiB (at most {PEAK_MIB_MAX})"));
    say(&format!("requests: {} in {} runs of {} pages", run.requests, run.runs, run.pages));
    let [daemon, sandbox, postgres] = [0, 1, 2].map(|which| after[which] - before[which]);
    say(&format!("CPU: daemon {daemon:.1} s, sandbox {sandbox:.1} s, Postgres {postgres:.1} s"));
    ratio >= RATIO_MIN && peak <= PEAK_MIB_MAX
}

fn rate(rows: i64, seconds: f64) -> f64 {
    f64::from(u32::try_from(rows).expect("fewer than 2^32 rows")) / seconds
}

/// Settings that differ from the built-in ones by addresses alone.
fn configure(folder: &Path, sandbox: &str) -> PathBuf {
    let database = socket_url(folder);
    let text = format!(
        r#"[daemon]
state_dir = "{state_dir}"
[database]
url = "{database}"
[callback]
listen = "127.0.0.1:0"
[vault]
key = "{key}"
[providers.hubspot]
client_id = "sandbox-client"
client_secret = "sandbox-secret"
api_base = "{sandbox}/hubspot"
authorize_url = "{sandbox}/hubspot/oauth/authorize"
token_url = "{sandbox}/hubspot/oauth/2026-03/token"
revoke_url = "{sandbox}/hubspot/oauth/2026-03/token/revoke"
"#,
        state_dir = folder.join("daemon").display(),
        database = database.expose(),
        key = generate_key().expose(),
    );
    let path = folder.join("fieldmirror.toml");
    fs::write(&path, text).expect("a settings file");
    path
}

fn fieldmirror(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldmirror"));
    command.arg("--config").arg(config).arg("-q");
    command
}

/// What an admin would type.
fn connect(config: &Path, folder: &Path) {
    let token = folder.join("token");
    fs::write(&token, Hubspot::private_app_token(HUB_ID_FIRST)).expect("a file with the token");
    let secret = format!("bearer_token=@{}", token.display());
    let mut command = fieldmirror(config);
    command.args(["enqueue", "--connect", "hubspot", "--name", "bench", "--grant", "bearer_token"]);
    let output = command.args(["--secret", &secret]).output().expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A child that does not outlive us.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("a child process"))
    }

    fn sandbox(records: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("our own path"));
        command.args([SANDBOX, &records.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::start(&mut command)
    }

    fn first_line(&self) -> String {
        let stdout = self.0.stdout.as_ref().expect("a pipe");
        let fd = std::os::fd::AsFd::as_fd(stdout).try_clone_to_owned().expect("a second handle");
        let line = BufReader::new(fs::File::from(fd)).lines().next();
        line.expect("a line").expect("a line of text")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        ended.expect("the child ends");
    }
}

struct Database(PgConnection);

/// The backfill of the tickets, from the beginning of its first run to the end of its last.
#[derive(QueryableByName)]
struct Backfill {
    #[diesel(sql_type = Nullable<Text>)]
    stalled: Option<String>,
    #[diesel(sql_type = BigInt)]
    closed: i64,
    #[diesel(sql_type = BigInt)]
    runs: i64,
    #[diesel(sql_type = BigInt)]
    rows: i64,
    #[diesel(sql_type = BigInt)]
    pages: i64,
    #[diesel(sql_type = BigInt)]
    requests: i64,
    #[diesel(sql_type = Double)]
    seconds: f64,
}

impl Backfill {
    fn rate(&self) -> f64 {
        rate(self.rows, self.seconds)
    }
}

const BACKFILL: &str = "
    SELECT (SELECT string_agg(stream || ': ' || stalled_reason, '; ') FROM mirror.freshness
            WHERE stalled_reason IS NOT NULL) AS stalled,
           count(*) FILTER (WHERE outcome = 'closed') AS closed, count(*) AS runs,
           coalesce(sum(rows_written), 0)::bigint AS rows, coalesce(sum(pages), 0)::bigint AS pages,
           coalesce(sum(requests), 0)::bigint AS requests,
           coalesce(extract(epoch FROM max(ended_at) - min(started_at)), 0)::double precision AS seconds
    FROM fieldmirror.sync_runs WHERE stream = 'tickets' AND mode = 'backfill'";

impl Database {
    /// Opens it once the daemon has made the schema and signed in, which the division tells.
    fn open(folder: &Path) -> Self {
        let url = socket_url(folder);
        let mut connection = PgConnection::establish(url.expose()).expect("a session");
        let since = Instant::now();
        while connection.batch_execute("SELECT 1 / count(*) FROM fieldmirror.daemons").is_err() {
            assert!(since.elapsed() < WAIT_MAX, "the daemon did not sign in");
            std::thread::sleep(LOOK_EVERY);
        }
        Self(connection)
    }

    fn wait_for_backfill(&mut self) -> Backfill {
        let since = Instant::now();
        loop {
            let found: Backfill =
                diesel::sql_query(BACKFILL).get_result(&mut self.0).expect("the runs are told");
            if found.closed > 0 {
                return found;
            }
            assert!(found.stalled.is_none(), "{:?}", found.stalled);
            assert!(since.elapsed() < WAIT_MAX, "the backfill did not close in time");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Seconds of a plain COPY of what was mirrored, from a file of the server: the median.
    fn copy(&mut self) -> f64 {
        let mut took = Vec::new();
        self.run(
            "DO $$ BEGIN
                EXECUTE format('COPY mirror.hubspot_tickets TO %L', current_setting('data_directory') || '/bench.copy');
            END $$",
        );
        for _ in 0..COPIES {
            self.run(
                "DROP TABLE IF EXISTS plain; CREATE TABLE plain (LIKE mirror.hubspot_tickets INCLUDING ALL); CHECKPOINT",
            );
            let since = Instant::now();
            self.run(
                "DO $$ BEGIN
                    EXECUTE format('COPY plain FROM %L', current_setting('data_directory') || '/bench.copy');
                END $$",
            );
            took.push(since.elapsed().as_secs_f64());
        }
        took.sort_by(f64::total_cmp);
        took[COPIES / 2]
    }

    fn run(&mut self, sql: &str) {
        self.0.batch_execute(sql).expect("the statement runs");
    }
}
