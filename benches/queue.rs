//! What the queue does, in figures: one line each. `cargo bench --bench queue` starts a Postgres of its own, with fsync on.
//!
//! `docs/decisions/0001-own-queue-backend.md` rests on these: run it again when the stock backend moves on.

use std::collections::HashSet;
use std::future::pending;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use apalis_core::monitor::Monitor;
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use fieldmirror::daemon::postgres::PrivateServer;
use fieldmirror::db::queue::{self, JobState};
use fieldmirror::db::{Db, admin, migrations};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::secret::Secret;
use fieldmirror::jobs::{Hub, Job, Lease, Outcome, QueueLimits, register};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LATENCIES: i64 = 500;
const JOBS: i64 = 5_000;
const JOBS_OF_TWO: i64 = 20_000;
/// As the daemon's default.
const POOL_SIZE: usize = 8;
const WAIT_MAX: Duration = Duration::from_mins(2);

/// What a run does besides ending well.
enum App {
    /// Says when it started.
    Report(UnboundedSender<(ConnectionId, Instant)>),
    /// Says so on stdout, and never ends.
    Hold,
    /// Writes a row.
    Record(Db),
}

struct Probe;

impl Job for Probe {
    type App = App;
    type Subject = ConnectionId;
    const KIND: &'static str = "probe";
    const TIMEOUT: Duration = Duration::from_mins(10);

    async fn run(connection: ConnectionId, _: &Lease, app: &Arc<App>) -> Outcome {
        match app.as_ref() {
            App::Report(to) => _ = to.send((connection, Instant::now())),
            App::Hold => {
                say("started");
                pending::<()>().await;
            }
            App::Record(db) => {
                let row = format!("INSERT INTO runs VALUES ({connection})");
                if db.run(move |conn| Ok(conn.batch_execute(&row)?)).await.is_err() {
                    return Outcome::Failed("no row".to_owned());
                }
            }
        }
        Outcome::Done
    }
}

fn main() {
    let runtime = Runtime::new().expect("a runtime");
    if let Some((role, url)) = child_role() {
        runtime.block_on(child(&role, url));
        return;
    }
    let folder = PathBuf::from(format!("/tmp/fieldmirror-bench-{}", std::process::id()));
    std::fs::create_dir(&folder).expect("a folder below /tmp");
    runtime.block_on(async {
        let server = PrivateServer::start(&folder, None).await.expect("a server");
        latency(&server).await;
        throughput(&server, 1).await;
        throughput(&server, 16).await;
        recovery(&server).await;
        two_processes(&server).await;
        server.stop().await;
    });
    std::fs::remove_dir_all(&folder).expect("our folder");
}

async fn latency(server: &PrivateServer) {
    let base = Base::new(server, LATENCIES).await;
    let mut runs = base.serve(1).await;
    let mut took = Vec::new();
    for connection in 1..=LATENCIES {
        sleep(Duration::from_millis(7 + u64::try_from(connection % 5).unwrap_or(0))).await;
        let asked = Instant::now();
        let connection = Some(ConnectionId(connection));
        base.db
            .transaction(move |conn| queue::enqueue(conn, Probe::KIND, connection, None))
            .await
            .expect("enqueue");
        let (_, started) = runs.recv().await.expect("a run");
        took.push(started.duration_since(asked));
    }
    took.sort();
    let at = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1e3;
    say(&format!("enqueue to start, idle: p50 {:.1} ms, p99 {:.1} ms (n {LATENCIES})", at(50), at(99)));
    base.close().await;
}

async fn throughput(server: &PrivateServer, slots: usize) {
    let base = Base::new(server, JOBS).await;
    let filled = base.fill(JOBS).await;
    let since = Instant::now();
    let mut runs = base.serve(slots).await;
    for _ in 0..JOBS {
        runs.recv().await.expect("a run");
    }
    base.drained().await;
    let rate = |elapsed: Duration| f64::from(u32::try_from(JOBS).expect("few")) / elapsed.as_secs_f64();
    say(&format!(
        "trivial jobs, concurrency {slots}: {:.0}/s (enqueued in one transaction: {:.0}/s)",
        rate(since.elapsed()),
        rate(filled)
    ));
    base.close().await;
}

async fn recovery(server: &PrivateServer) {
    let base = Base::new(server, 1).await;
    base.fill(1).await;
    let mut child = base.child("hold");
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "started"), "the child took the job");
    let mut runs = base.serve(1).await;
    sleep(Duration::from_secs(3)).await;
    child.kill().expect("killing");
    let killed = Instant::now();
    runs.recv().await.expect("a run");
    say(&format!("kill -9, another process up: runs again after {:.1} s", killed.elapsed().as_secs_f64()));
    child.wait().expect("waiting");
    base.close().await;
}

async fn two_processes(server: &PrivateServer) {
    let base = Base::new(server, JOBS_OF_TWO).await;
    base.sql("CREATE TABLE runs (connection bigint)").await;
    base.fill(JOBS_OF_TWO).await;
    let since = Instant::now();
    let mut children = [base.child("work"), base.child("work")];
    base.drained().await;
    let elapsed = since.elapsed();
    for child in &mut children {
        child.kill().and_then(|()| child.wait()).expect("killing");
    }
    let runs: Vec<Run> = base
        .db
        .run(|conn| Ok(diesel::sql_query("SELECT connection FROM runs").load(conn)?))
        .await
        .expect("runs");
    let distinct: HashSet<i64> = runs.iter().map(|run| run.connection).collect();
    let rate = f64::from(u32::try_from(JOBS_OF_TWO).expect("few")) / elapsed.as_secs_f64();
    say(&format!(
        "two processes, {JOBS_OF_TWO} jobs: {} runs of {} jobs, {} twice, {rate:.0}/s with a row written by each",
        runs.len(),
        distinct.len(),
        runs.len() - distinct.len()
    ));
    base.close().await;
}

#[derive(QueryableByName)]
struct Run {
    #[diesel(sql_type = BigInt)]
    connection: i64,
}

struct Base {
    db: Db,
    url: Secret,
    served: Mutex<Option<Served>>,
}

impl Base {
    async fn new(server: &PrivateServer, connections: i64) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (at, url) = (server.url(), server.url_of(&name));
        let made = tokio::task::spawn_blocking(move || admin::create_if_missing(&at, &name)).await;
        made.expect("a blocking task").expect("a database");
        migrations::run(&url).await.expect("the schema");
        let base = Self { db: Db::connect(&url, POOL_SIZE).expect("a pool"), url, served: Mutex::default() };
        base.sql(&format!(
            "INSERT INTO fieldmirror.connections (name, provider, grant_kind, state)
             SELECT 'c' || i, 'hubspot', 'api_key', 'connected' FROM generate_series(1, {connections}) i; ANALYZE"
        ))
        .await;
        base
    }

    async fn sql(&self, sql: &str) {
        let sql = sql.to_owned();
        self.db.run(move |conn| Ok(conn.batch_execute(&sql)?)).await.expect("sql");
    }

    async fn fill(&self, jobs: i64) -> Duration {
        let asked: Vec<_> = (1..=jobs).map(|id| (Some(ConnectionId(id)), None)).collect();
        let since = Instant::now();
        self.db
            .transaction(move |conn| queue::enqueue_many(conn, Probe::KIND, &asked))
            .await
            .expect("enqueue");
        since.elapsed()
    }

    async fn serve(&self, slots: usize) -> UnboundedReceiver<(ConnectionId, Instant)> {
        let (to, runs) = mpsc::unbounded_channel();
        let served = serve(&self.db, &self.url, slots, App::Report(to)).await;
        *self.served.lock().expect("what is served") = Some(served);
        runs
    }

    /// Ends the workers and the pool: the server takes 60 sessions.
    async fn close(self) {
        let served = self.served.lock().expect("what is served").take();
        if let Some(Served { stop, task }) = served {
            stop.cancel();
            task.await.expect("the workers' task");
        }
        self.db.close();
    }

    async fn drained(&self) {
        let since = Instant::now();
        while !self.db.run(queue::depth).await.expect("depth").is_empty() {
            assert!(since.elapsed() < WAIT_MAX, "the jobs were not done in time");
            sleep(Duration::from_millis(50)).await;
        }
        let failed = self.db.run(|conn| queue::list(conn, Some(JobState::Failed), 1)).await.expect("list");
        assert!(failed.is_empty(), "{failed:?}");
    }

    fn child(&self, role: &str) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("our own path"));
        command.env("QUEUE_BENCH_ROLE", role).env("QUEUE_BENCH_URL", self.url.expose());
        command.stdout(Stdio::piped()).spawn().expect("a child")
    }
}

struct Served {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn serve(db: &Db, url: &Secret, slots: usize, app: App) -> Served {
    let hub = Hub::new(db.clone(), url.clone(), Uuid::new_v4(), QueueLimits::default()).await.expect("a hub");
    let monitor = register::<Probe>(Monitor::new(), &hub, slots, Arc::new(app));
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let task = tokio::spawn(async move {
        hub.serve(monitor, stopped, Duration::from_secs(5)).await.expect("the workers");
    });
    Served { stop, task }
}

#[expect(clippy::disallowed_methods, reason = "the parent process says what to do")]
fn child_role() -> Option<(String, Secret)> {
    let url = std::env::var("QUEUE_BENCH_URL").ok()?;
    Some((std::env::var("QUEUE_BENCH_ROLE").ok()?, Secret::new(url)))
}

async fn child(role: &str, url: Secret) {
    let db = Db::connect(&url, POOL_SIZE).expect("a pool");
    let app = if role == "hold" { App::Hold } else { App::Record(db.clone()) };
    let _served = serve(&db, &url, 16, app).await;
    sleep(WAIT_MAX).await;
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout");
}
