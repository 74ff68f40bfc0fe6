//! The job queue: two daemons, kills, restarts, drains, lost leases.

use std::collections::HashMap;
use std::future::pending;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use apalis_core::monitor::Monitor;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool};
use fieldmirror::daemon::postgres::PrivateServer;
use fieldmirror::daemon::service::Tell;
use fieldmirror::daemon::watchdog::Watchdog;
use fieldmirror::db::queue::{
    self, ClaimLimits, Ending, Enqueued, Holding, JobId, JobRow, JobState, Retried, SessionError,
};
use fieldmirror::db::{Db, DbError, migrations};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::secret::Secret;
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::jobs::{Hub, HubError, Job, Lease, Outcome, QueueLimits, Stop, register};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sd_notify::NotifyState;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::support::postgres::{TestDb, options, short_folder};

const KIND: &str = Probe::KIND;
/// More than anything here takes on a slow machine.
const LONG: Duration = Duration::from_mins(2);

type Act = dyn for<'a> Fn(ConnectionId, &'a Lease) -> BoxFuture<'a, Outcome> + Send + Sync;

/// What the probes' handlers do, and which runs there were.
struct Script {
    runs: Mutex<Vec<(ConnectionId, i32)>>,
    act: Box<Act>,
}

impl Script {
    fn new(
        act: impl for<'a> Fn(ConnectionId, &'a Lease) -> BoxFuture<'a, Outcome> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { runs: Mutex::default(), act: Box::new(act) })
    }

    fn done() -> Arc<Self> {
        Self::new(|_, _| async { Outcome::Done }.boxed())
    }

    fn runs(&self) -> Vec<(ConnectionId, i32)> {
        self.runs.lock().unwrap().clone()
    }

    /// Waits until a run has begun. The row says `running` earlier: the claim's answer may still be on its way to the daemon.
    async fn began(&self, connection: i64) {
        let began = || self.runs().iter().any(|(of, _)| *of == ConnectionId(connection));
        eventually(LONG, || async { began().then_some(()) }).await;
    }

    async fn run(&self, connection: ConnectionId, lease: &Lease) -> Outcome {
        self.runs.lock().unwrap().push((connection, lease.attempt));
        (self.act)(connection, lease).await
    }
}

struct Probe;

impl Job for Probe {
    type App = Script;
    type Subject = ConnectionId;
    const KIND: &'static str = "probe";
    const TIMEOUT: Duration = Duration::from_mins(1);

    async fn run(connection: ConnectionId, lease: &Lease, app: &Arc<Script>) -> Outcome {
        app.run(connection, lease).await
    }
}

struct Hasty;

impl Job for Hasty {
    type App = Script;
    type Subject = ConnectionId;
    const KIND: &'static str = "hasty";
    const TIMEOUT: Duration = Duration::from_millis(100);

    async fn run(connection: ConnectionId, lease: &Lease, app: &Arc<Script>) -> Outcome {
        app.run(connection, lease).await
    }
}

/// Tests at a time: the shared server takes 60 sessions, and time is part of most tests.
static TURNS: Semaphore = Semaphore::const_new(4);

/// A migrated database with connections 1 to `n`.
struct Base {
    db: Db,
    url: Secret,
    /// Dropped with the test, in this order.
    _own: Option<(TestDb, SemaphorePermit<'static>)>,
}

impl Base {
    async fn new(connections: i64) -> Self {
        let turn = TURNS.acquire().await.unwrap();
        let test = tokio::task::spawn_blocking(TestDb::new).await.unwrap();
        let base = Self { db: test.db.clone(), url: test.url.clone(), _own: Some((test, turn)) };
        base.connections(connections).await;
        base
    }

    /// A database that is not the test's own to drop.
    fn at(url: Secret) -> Self {
        Self { db: Db::connect(&url, 4).unwrap(), url, _own: None }
    }

    async fn connections(&self, n: i64) {
        self.sql(&format!(
            "INSERT INTO connections (name, provider, grant_kind, state)
             SELECT 'c' || i, 'hubspot', 'api_key', 'connected' FROM generate_series(1, {n}) i"
        ))
        .await;
    }

    async fn sql(&self, sql: &str) {
        let sql = sql.to_owned();
        self.db.run(move |conn| Ok(conn.batch_execute(&sql)?)).await.unwrap();
    }

    async fn enqueue(&self, connection: i64, run_at: Option<DateTime<Utc>>) -> Enqueued {
        let connection = Some(ConnectionId(connection));
        self.db.transaction(move |conn| queue::enqueue(conn, KIND, connection, run_at)).await.unwrap()
    }

    async fn jobs(&self) -> Vec<JobRow> {
        self.db.run(|conn| queue::list(conn, None, 100_000)).await.unwrap()
    }

    async fn job(&self, id: JobId) -> JobRow {
        self.jobs().await.into_iter().find(|job| job.id == id).expect("the job")
    }

    async fn until(&self, id: JobId, what: impl Fn(&JobRow) -> bool) -> JobRow {
        eventually(LONG, || async {
            let job = self.job(id).await;
            what(&job).then_some(job)
        })
        .await
    }

    async fn retry(&self, id: JobId) -> Retried {
        self.db.run(move |conn| queue::retry(conn, id)).await.unwrap()
    }

    async fn hub(&self, limits: QueueLimits) -> Arc<Hub> {
        Hub::new(self.db.clone(), self.url.clone(), Uuid::new_v4(), limits).await.unwrap()
    }

    async fn daemon(&self, limits: QueueLimits, slots: usize, app: &Arc<Script>) -> Daemon {
        let hub = self.hub(limits).await;
        let monitor = register::<Probe>(Monitor::new(), &hub, slots, Arc::clone(app));
        let monitor = register::<Hasty>(monitor, &hub, slots, Arc::clone(app));
        let (stop, stopped) = oneshot::channel::<Duration>();
        let serving = Arc::clone(&hub);
        // The grace is fixed before the signal comes, so the tests share one.
        let signal = async move { _ = stopped.await };
        let task = tokio::spawn(async move { serving.serve(monitor, signal, GRACE).await });
        Daemon { hub, stop, task }
    }
}

const GRACE: Duration = Duration::from_millis(800);

struct Daemon {
    hub: Arc<Hub>,
    stop: oneshot::Sender<Duration>,
    task: JoinHandle<Result<(), HubError>>,
}

impl Daemon {
    async fn stop(self) -> Duration {
        let asked = Instant::now();
        self.stop.send(GRACE).expect("a running daemon");
        self.task.await.unwrap().unwrap();
        asked.elapsed()
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(within: Duration, look: impl Fn() -> F) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(within, looking).await.expect("it did not come to pass in time")
}

fn quick() -> QueueLimits {
    QueueLimits {
        lease: Duration::from_secs(2),
        panic_pause: Duration::from_millis(20),
        lost_grace: Duration::from_millis(500),
        ..QueueLimits::default()
    }
}

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

fn claim_limits(lease: Duration) -> ClaimLimits {
    ClaimLimits { lease, crashes_max: 3 }
}

/// Claims one job straight from the table, as a daemon without a heartbeat would.
async fn claim_one(base: &Base, owner: Uuid, lease: Duration) -> Option<queue::Claimed> {
    let limits = claim_limits(lease);
    let claim = base.db.run(move |conn| queue::claim(conn, KIND, owner, &[], 1, limits)).await.unwrap();
    claim.jobs.into_iter().next()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_run_every_job_once() {
    const JOBS: i64 = 3_000;
    let base = Base::new(JOBS).await;
    let asked: Vec<_> = (1..=JOBS).map(|id| (Some(ConnectionId(id)), None)).collect();
    let enqueued = base.db.transaction(move |conn| queue::enqueue_many(conn, KIND, &asked)).await.unwrap();
    assert_eq!(enqueued.iter().filter(|job| job.new).count(), 3_000);

    let app = Script::done();
    // A machine that stands still must not make a lease lapse.
    let limits = QueueLimits { lease: LONG, ..quick() };
    let (first, second) = (base.daemon(limits, 16, &app).await, base.daemon(limits, 16, &app).await);
    eventually(LONG, || async {
        base.jobs().await.iter().all(|job| job.state == JobState::Done).then_some(())
    })
    .await;
    eventually(LONG, || async { (first.hub.vitals().held + second.hub.vitals().held == 0).then_some(()) })
        .await;
    first.stop().await;
    second.stop().await;

    let mut times: HashMap<ConnectionId, usize> = HashMap::new();
    for (connection, _) in app.runs() {
        *times.entry(connection).or_default() += 1;
    }
    assert_eq!(times.len(), 3_000, "every job ran");
    assert!(times.values().all(|times| *times == 1), "no job ran twice");
    assert!(base.jobs().await.iter().all(|job| job.attempt == 1 && job.crashes == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_live_job_per_kind_and_connection() {
    let base = Base::new(2).await;
    let later = now() + TimeDelta::hours(1);
    let first = base.enqueue(1, Some(later)).await;
    assert!(first.new);
    let same = base.enqueue(1, Some(later + TimeDelta::hours(1))).await;
    assert_eq!((same.job_id, same.new), (first.job_id, false));
    let run_at = base.job(first.job_id).await.run_at;
    assert!((run_at - later).abs() < TimeDelta::milliseconds(1), "a later time does not move it");
    base.enqueue(1, None).await;
    assert!(base.job(first.job_id).await.run_at < later, "the earlier time wins");
    assert_ne!(base.enqueue(2, None).await.job_id, first.job_id);

    let unbound = |conn: &mut PgConnection| queue::enqueue(conn, KIND, None, None);
    let one = base.db.run(unbound).await.unwrap();
    assert_eq!(base.db.run(unbound).await.unwrap().job_id, one.job_id, "no connection counts as one");

    let twice = vec![(Some(ConnectionId(1)), None), (Some(ConnectionId(1)), Some(later)), (None, None)];
    let many = base.db.run(move |conn| queue::enqueue_many(conn, "other", &twice)).await.unwrap();
    assert_eq!(many.len(), 2);
    assert!(many.iter().all(|job| job.new), "another kind is another job");
    let early = base.jobs().await.into_iter().find(|job| job.id == many[0].job_id).unwrap();
    assert!(early.run_at < later);
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_belongs_to_the_callers_transaction() {
    let base = Base::new(1).await;
    let undone: Result<(), DbError> = base
        .db
        .transaction(|conn| {
            queue::enqueue(conn, KIND, Some(ConnectionId(1)), None)?;
            Err(diesel::result::Error::RollbackTransaction.into())
        })
        .await;
    assert!(undone.is_err());
    assert_eq!(base.jobs().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_left_alone_and_not_held_up() {
    let base = Base::new(1).await;
    let app = Script::new(|_, lease| {
        async {
            lease.stopped().await;
            Outcome::Done
        }
        .boxed()
    });
    let daemon = base.daemon(quick(), 1, &app).await;
    let job = base.enqueue(1, None).await.job_id;
    let before = base.until(job, |job| job.state == JobState::Running).await;

    // A caller that sits on its transaction for longer than the lease.
    let url = base.url.clone();
    let slow = tokio::task::spawn_blocking(move || {
        let mut conn = PgConnection::establish(url.expose()).unwrap();
        conn.transaction::<_, DbError, _>(|conn| {
            let found = queue::enqueue(conn, KIND, Some(ConnectionId(1)), None)?;
            thread::sleep(Duration::from_secs(3));
            Ok(found)
        })
        .unwrap()
    });
    let found = slow.await.unwrap();
    assert_eq!((found.job_id, found.new, found.state), (job, false, JobState::Running));
    // Heartbeats go on.
    let after = base.until(job, |job| job.lease_until > before.lease_until).await;
    assert_eq!((after.attempt, after.run_at), (1, before.run_at));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_when_they_are_due() {
    let base = Base::new(2).await;
    let app = Script::done();
    let daemon = base.daemon(quick(), 2, &app).await;
    eventually(LONG, || async { daemon.hub.vitals().claimed_at }).await;
    let run_at = now() + TimeDelta::milliseconds(700);
    let job = base.enqueue(1, Some(run_at)).await.job_id;
    let ended = base.until(job, |job| job.state == JobState::Done).await;
    assert!(ended.started_at.unwrap() >= run_at, "not before its time");

    let again = Script::new(move |connection, lease| {
        let soon = Duration::from_millis(50);
        let again = connection == ConnectionId(2) && lease.attempt < 4;
        async move { if again { Outcome::RunAgainIn(soon) } else { Outcome::Done } }.boxed()
    });
    daemon.stop().await;
    let daemon = base.daemon(quick(), 2, &again).await;
    let job = base.enqueue(2, None).await.job_id;
    assert_eq!(base.until(job, |job| job.state == JobState::Done).await.attempt, 4, "one row, four runs");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_schedulers_and_waiters_are_told() {
    let base = Base::new(2).await;
    let app = Script::new(|_, lease| {
        let again = lease.attempt < 3;
        async move { if again { Outcome::RunAgainIn(Duration::ZERO) } else { Outcome::Done } }.boxed()
    });
    // So that only a notification can start a job in time.
    let limits = QueueLimits { poll: LONG * 10, ..quick() };
    let daemon = base.daemon(limits, 1, &app).await;
    eventually(LONG, || async { daemon.hub.vitals().claimed_at }).await;
    sleep(Duration::from_millis(200)).await;
    let mut ticks = daemon.hub.ticks();
    ticks.mark_unchanged();
    let mut waiter = PgConnection::establish(base.url.expose()).unwrap();
    waiter.batch_execute("LISTEN fieldmirror_done").unwrap();

    let job = base.enqueue(1, None).await.job_id;
    timeout(LONG, ticks.changed()).await.expect("a tick").unwrap();
    let ended = base.until(job, |job| job.state == JobState::Done).await;
    assert_eq!(ended.attempt, 3, "a run again is told as well");
    // Who listens is told right after the commit that shows it.
    let (waiter, told) = (Mutex::new(waiter), Mutex::new(Vec::new()));
    let hear = || async {
        let mut waiter = waiter.lock().unwrap();
        waiter.batch_execute("SELECT 1").unwrap();
        let mut told = told.lock().unwrap();
        told.extend(waiter.notifications_iter().map(|notice| notice.unwrap().payload));
        (told.len() >= 3).then_some(())
    };
    eventually(LONG, hear).await;
    assert_eq!(*told.lock().unwrap(), vec![job.to_string(); 3]);

    let later = base.enqueue(2, Some(now() + TimeDelta::hours(1))).await.job_id;
    assert_eq!(base.retry(later).await, Retried::Due);
    base.until(later, |job| job.state == JobState::Done).await;
    daemon.stop().await;
}

/// Stands in front of the server as a transaction pooler does for a session that listens: everything passes, except what the
/// server says unasked. The address of the same database through it.
pub fn pooler_before(url: &Secret) -> Secret {
    let (database, parameters) = url.expose().split_once('?').unwrap();
    let folder = parameters.split('&').find_map(|pair| pair.strip_prefix("host=")).unwrap();
    let socket = format!("{folder}/.s.PGSQL.5432");
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = front.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in front.incoming().map_while(Result::ok) {
            let server = UnixStream::connect(&socket).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || _ = std::io::copy(&mut from, &mut to));
            thread::spawn(move || _ = without_notifications(server, client));
        }
    });
    let rest = "user=fieldmirror&sslmode=disable&gssencmode=disable";
    Secret::new(format!("{database}?host=127.0.0.1&port={port}&{rest}"))
}

/// Messages of the protocol: a byte for the kind, four for the length of the rest, themselves included.
fn without_notifications(mut server: UnixStream, mut client: TcpStream) -> std::io::Result<()> {
    const NOTIFICATION: u8 = b'A';
    loop {
        let mut head = [0; 5];
        server.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; length as usize - 4];
        server.read_exact(&mut body)?;
        if head[0] != NOTIFICATION {
            client.write_all(&head)?;
            client.write_all(&body)?;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_pooler_is_refused_with_the_reason() {
    let base = Base::new(1).await;
    let pooler = pooler_before(&base.url);
    let through = Db::connect(&pooler, 1).unwrap();
    assert_eq!(through.run(|conn| queue::list(conn, None, 1)).await.unwrap(), [], "queries pass");
    let refused = Hub::new(base.db.clone(), pooler, Uuid::new_v4(), quick()).await.err().expect("no hub");
    assert!(matches!(refused, HubError::Listen(SessionError::Pooler)), "{refused:?}");

    let nowhere = Secret::new("postgresql://127.0.0.1:1/nowhere");
    let refused = Hub::new(base.db.clone(), nowhere, Uuid::new_v4(), quick()).await.err().expect("no hub");
    assert!(matches!(refused, HubError::Listen(SessionError::Database(_))), "{refused:?}");
}

/// Not a test of its own: what `a_killed_daemons_job_runs_again` starts in another process.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_never_ends_its_job() {
    let Some(url) = child_url() else { return };
    let base = Base::at(url);
    let app = Script::new(|_, _| {
        let mut out = std::io::stdout();
        writeln!(out, "started").and_then(|()| out.flush()).unwrap();
        pending().boxed()
    });
    let _daemon = base.daemon(QueueLimits::default(), 1, &app).await;
    sleep(Duration::from_mins(1)).await;
}

#[expect(clippy::disallowed_methods, reason = "the parent process hands the URL over")]
fn child_url() -> Option<Secret> {
    std::env::var("QUEUE_CHILD_URL").ok().map(Secret::new)
}

fn spawn_child(url: &Secret) -> Child {
    use std::io::BufRead as _;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["queue::child_that_never_ends_its_job", "--exact", "--nocapture"])
        .env("QUEUE_CHILD_URL", url.expose())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let started = lines.map_while(Result::ok).any(|line| line.contains("started"));
    assert!(started, "the child took the job");
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemons_job_runs_again_within_ten_seconds() {
    let base = Base::new(1).await;
    let job = base.enqueue(1, None).await.job_id;
    let url = base.url.clone();
    let mut child = tokio::task::spawn_blocking(move || spawn_child(&url)).await.unwrap();
    assert_eq!(base.job(job).await.state, JobState::Running);
    let daemon = base.daemon(QueueLimits::default(), 1, &Script::done()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    // The database's clock, which counts: how long a slow machine takes to look is no part of it.
    let lapses = "SELECT coalesce(lease_until - clock_timestamp() < interval '10 s', true) AS holds FROM fieldmirror.jobs";
    let lapses = base.db.run(move |conn| Ok(diesel::sql_query(lapses).get_result::<Fact>(conn)?));
    assert!(lapses.await.unwrap().holds, "its lease is not kept for longer");
    let left = base.job(job).await;
    let ended = base.until(job, |job| job.state == JobState::Done).await;
    assert_eq!(ended.attempt, 2);
    assert!(left.attempt == 2 || ended.started_at >= left.lease_until, "not before that: {left:?} {ended:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_crashes_park_a_job() {
    let base = Base::new(1).await;
    let job = base.enqueue(1, None).await.job_id;
    for crashes in 0..3 {
        let claimed = claim_one(&base, Uuid::new_v4(), Duration::ZERO).await.expect("a lapsed job is due");
        assert_eq!((claimed.parked, claimed.crashes, claimed.attempt), (false, crashes, crashes + 1));
    }
    assert!(claim_one(&base, Uuid::new_v4(), Duration::ZERO).await.unwrap().parked);
    let parked = base.job(job).await;
    assert_eq!((parked.state, parked.crashes, parked.attempt), (JobState::Parked, 3, 3));
    assert!(parked.last_error.unwrap().contains("lapsed"));
    let found = base.enqueue(1, None).await;
    assert_eq!((found.job_id, found.new, found.state), (job, false, JobState::Parked));
    assert!(claim_one(&base, Uuid::new_v4(), LONG).await.is_none(), "a parked job is not due");

    assert_eq!(base.retry(job).await, Retried::Due);
    let claimed = claim_one(&base, Uuid::new_v4(), LONG).await.unwrap();
    assert_eq!((claimed.parked, claimed.crashes), (false, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_its_own_daemon_forgot_is_no_crash() {
    let base = Base::new(1).await;
    base.enqueue(1, None).await;
    let owner = Uuid::new_v4();
    for _ in 0..5 {
        assert_eq!(claim_one(&base, owner, Duration::ZERO).await.unwrap().crashes, 0);
    }
    let held = claim_one(&base, owner, Duration::ZERO).await.unwrap().job;
    let limits = claim_limits(LONG);
    let claim = base.db.run(move |conn| queue::claim(conn, KIND, owner, &[held], 1, limits)).await.unwrap();
    assert_eq!(claim.jobs.len(), 0, "what it holds it does not take from itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_contained_and_counts_as_a_crash() {
    let base = Base::new(2).await;
    let app = Script::new(|connection, _| {
        async move {
            assert_ne!(connection, ConnectionId(1), "boom");
            Outcome::Done
        }
        .boxed()
    });
    let daemon = base.daemon(quick(), 1, &app).await;
    let poison = base.enqueue(1, None).await.job_id;
    let parked = base.until(poison, |job| job.state == JobState::Parked).await;
    assert!(parked.last_error.unwrap().contains("boom"));
    assert_eq!((parked.attempt, parked.crashes), (3, 3));
    let good = base.enqueue(2, None).await.job_id;
    base.until(good, |job| job.state == JobState::Done).await;
    // Let go of after its end was written.
    eventually(LONG, || async { (daemon.hub.vitals().held == 0).then_some(()) }).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_takes_too_long_has_failed() {
    let base = Base::new(1).await;
    let daemon = base.daemon(quick(), 1, &Script::new(|_, _| pending().boxed())).await;
    let job =
        base.db.run(|conn| queue::enqueue(conn, Hasty::KIND, Some(ConnectionId(1)), None)).await.unwrap();
    let failed = base.until(job.job_id, |job| job.state == JobState::Failed).await;
    assert_eq!(failed.last_error.as_deref(), Some("took longer than it may"));
    let wrong = base.db.run(|conn| queue::enqueue(conn, KIND, None, None)).await.unwrap();
    base.until(wrong.job_id, |job| job.state == JobState::Failed).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_postgres_is_survived() {
    let folder = short_folder("queue");
    let start = {
        let options = options(&folder);
        move || PrivateServer::start_blocking(options.clone()).unwrap()
    };
    let start_again = start.clone();
    let server = tokio::task::spawn_blocking(start).await.unwrap();
    migrations::run(&server.url()).await.unwrap();
    let base = Base::at(server.url());
    base.connections(3).await;
    let app = Script::new(|connection, _| {
        async move {
            let pause = if connection == ConnectionId(1) { 1_500 } else { 0 };
            sleep(Duration::from_millis(pause)).await;
            Outcome::Done
        }
        .boxed()
    });
    let daemon = base.daemon(quick(), 2, &app).await;
    let in_flight = base.enqueue(1, None).await.job_id;
    let waiting = base.enqueue(2, Some(now() + TimeDelta::seconds(2))).await.job_id;
    app.began(1).await;
    server.stop().await;
    sleep(Duration::from_secs(3)).await;
    let server = tokio::task::spawn_blocking(start_again).await.unwrap();
    let ended = base.until(in_flight, |job| job.state == JobState::Done).await;
    assert_eq!(
        (ended.attempt, ended.crashes),
        (1, 0),
        "it ended while the database was away, and once: {ended:?}"
    );
    base.until(waiting, |job| job.state == JobState::Done).await;
    let next = base.enqueue(3, None).await.job_id;
    base.until(next, |job| job.state == JobState::Done).await;
    assert_eq!(app.runs().len(), 3);
    daemon.stop().await;
    server.stop().await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_nothing() {
    let base = Base::new(3).await;
    // 1 stops when it is asked to, 2 does not listen.
    let app = Script::new(|connection, lease| {
        async move {
            assert_eq!(lease.stopped().await, Stop::Draining);
            if connection == ConnectionId(1) { Outcome::RunAgainIn(Duration::ZERO) } else { pending().await }
        }
        .boxed()
    });
    let daemon = base.daemon(quick(), 2, &app).await;
    let mut jobs = Vec::new();
    for connection in 1..=2 {
        let job = base.enqueue(connection, None).await.job_id;
        app.began(connection).await;
        jobs.push(job);
    }
    jobs.push(base.enqueue(3, None).await.job_id);
    let took = daemon.stop().await;
    assert!(took >= GRACE, "it waited for the one that does not listen: {took:?}");
    assert!(took < GRACE + LONG, "and not for ever: {took:?}");
    for (job, attempt) in jobs.into_iter().zip([1, 1, 0]) {
        let job = base.job(job).await;
        assert_eq!((job.state, job.attempt, job.crashes), (JobState::Pending, attempt, 0), "{job:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_started_goes_back_as_it_was() {
    let base = Base::new(1).await;
    let job = base.enqueue(1, None).await.job_id;
    let owner = Uuid::new_v4();
    let claimed = claim_one(&base, owner, LONG).await.unwrap();
    let holding = Holding { job, owner, attempt: claimed.attempt };
    let stranger = Holding { owner: Uuid::new_v4(), ..holding };
    assert!(!base.db.run(move |conn| queue::give_back(conn, stranger, false)).await.unwrap());
    assert!(base.db.run(move |conn| queue::give_back(conn, holding, false)).await.unwrap());
    let back = base.job(job).await;
    assert_eq!((back.state, back.attempt, back.crashes, back.owner), (JobState::Pending, 0, 0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_lease_is_told_and_its_outcome_refused() {
    let base = Base::new(2).await;
    let told: Arc<Mutex<Vec<ConnectionId>>> = Arc::default();
    let tell = Arc::clone(&told);
    let app = Script::new(move |connection, lease| {
        let tell = Arc::clone(&tell);
        async move {
            assert_eq!(lease.stopped().await, Stop::Lost);
            tell.lock().unwrap().push(connection);
            Outcome::Done
        }
        .boxed()
    });
    // Each ends when it is told.
    let daemon = base.daemon(QueueLimits { lost_grace: LONG, ..quick() }, 2, &app).await;
    let stolen = base.enqueue(1, None).await.job_id;
    base.enqueue(2, None).await;
    app.began(1).await;
    app.began(2).await;
    let thief = Uuid::new_v4();
    base.sql(&format!(
        "UPDATE fieldmirror.jobs SET owner = '{thief}', attempt = 2, lease_until = now() + interval '1 hour' WHERE id = {stolen};
         DELETE FROM fieldmirror.connections WHERE id = 2"
    ))
    .await;
    eventually(LONG, || async { (daemon.hub.vitals().held == 0).then_some(()) }).await;
    let mut told = told.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, [ConnectionId(1), ConnectionId(2)]);
    let job = base.job(stolen).await;
    assert_eq!((job.state, job.owner, job.attempt), (JobState::Running, Some(thief), 2), "the thief's still");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_of_this_run_ends_a_job() {
    let base = Base::new(1).await;
    let job = base.enqueue(1, None).await.job_id;
    let owner = Uuid::new_v4();
    claim_one(&base, owner, Duration::ZERO).await.unwrap();
    let second = claim_one(&base, owner, LONG).await.unwrap();
    assert_eq!(second.attempt, 2);
    let cases = [
        (Holding { job, owner, attempt: 1 }, None),
        (Holding { job, owner: Uuid::new_v4(), attempt: 2 }, None),
        (Holding { job: JobId(job.0 + 1), owner, attempt: 2 }, None),
        (Holding { job, owner, attempt: 2 }, Some(JobState::Failed)),
        (Holding { job, owner, attempt: 2 }, None),
    ];
    for (holding, expected) in cases {
        let ending = Ending::Failed("no".to_owned());
        let ended = base.db.run(move |conn| queue::finish(conn, holding, &ending)).await.unwrap();
        assert_eq!(ended, expected, "{holding:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_runs_a_job_again() {
    let base = Base::new(1).await;
    assert_eq!(base.retry(JobId(999)).await, Retried::Unknown);
    let failed = base.enqueue(1, Some(now() + TimeDelta::hours(1))).await.job_id;
    assert_eq!(base.retry(failed).await, Retried::Due, "a pending job is due at once");
    let owner = Uuid::new_v4();
    let claimed = claim_one(&base, owner, LONG).await.expect("due now");
    assert_eq!(base.retry(failed).await, Retried::Refused(JobState::Running));
    let holding = Holding { job: failed, owner, attempt: claimed.attempt };
    base.db.run(move |conn| queue::finish(conn, holding, &Ending::Failed("no".to_owned()))).await.unwrap();
    let live = base.enqueue(1, None).await.job_id;
    assert_ne!(live, failed);
    assert_eq!(base.retry(failed).await, Retried::Replaced(live));
    base.sql(&format!("DELETE FROM fieldmirror.jobs WHERE id = {live}")).await;
    assert_eq!(base.retry(failed).await, Retried::Due);
    let job = base.job(failed).await;
    assert_eq!((job.state, job.ended_at), (JobState::Pending, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_counted_and_pruned() {
    let base = Base::new(3).await;
    for connection in 1..=3 {
        base.enqueue(connection, None).await;
    }
    let owner = Uuid::new_v4();
    let claimed = claim_one(&base, owner, LONG).await.unwrap();
    let holding = Holding { job: claimed.job, owner, attempt: claimed.attempt };
    base.db.run(move |conn| queue::finish(conn, holding, &Ending::Done)).await.unwrap();
    let pending = base.db.run(|conn| queue::list(conn, Some(JobState::Pending), 10)).await.unwrap();
    let names: Vec<_> = pending.iter().map(|job| job.connection_name.as_deref()).collect();
    assert_eq!(names, [Some("c3"), Some("c2")]);
    base.sql("UPDATE fieldmirror.jobs SET run_at = now() - interval '90 seconds' WHERE connection_id = 3")
        .await;
    let depth = base.db.run(queue::depth).await.unwrap();
    assert_eq!(depth.len(), 1);
    assert_eq!((depth[0].state, depth[0].jobs), (JobState::Pending, 2));
    assert!((90..90 + LONG.as_secs()).contains(&depth[0].oldest.as_secs()), "{:?}", depth[0].oldest);

    let keep = Duration::from_mins(1);
    assert_eq!(base.db.run(move |conn| queue::prune(conn, keep, 10)).await.unwrap(), 0);
    base.sql("UPDATE fieldmirror.jobs SET ended_at = now() - interval '61 seconds' WHERE state = 'done'")
        .await;
    assert_eq!(base.db.run(move |conn| queue::prune(conn, keep, 10)).await.unwrap(), 1);
    assert_eq!(base.jobs().await.len(), 2);
}

#[derive(QueryableByName)]
struct Fact {
    #[diesel(sql_type = Bool)]
    holds: bool,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_itself_refuses_a_second_live_job() {
    let base = Base::new(1).await;
    base.enqueue(1, None).await;
    let second = base
        .db
        .run(|conn| {
            Ok(conn.batch_execute("INSERT INTO fieldmirror.jobs (kind, connection_id) VALUES ('probe', 1)")?)
        })
        .await;
    assert!(second.is_err_and(|error| error.is_unique_violation("jobs_one_live")));
    let count: Count = base
        .db
        .run(|conn| Ok(diesel::sql_query("SELECT count(*) FROM fieldmirror.jobs").get_result(conn)?))
        .await
        .unwrap();
    assert_eq!(count.count, 1);
    let down = include_str!("../../migrations/2026-11-21-000002_queue/down.sql");
    base.sql(down).await;
    let gone: Fact = base
        .db
        .run(|conn| {
            Ok(diesel::sql_query("SELECT to_regclass('fieldmirror.jobs') IS NULL AS holds")
                .get_result(conn)?)
        })
        .await
        .unwrap();
    assert!(gone.holds);
}

/// As a kind whose runs may be silent for a second.
struct Quiet;

impl Job for Quiet {
    type App = Script;
    type Subject = ConnectionId;
    const KIND: &'static str = "quiet";
    const TIMEOUT: Duration = Duration::from_mins(1);
    const SILENT_MAX: Duration = Duration::from_secs(1);

    async fn run(connection: ConnectionId, lease: &Lease, app: &Arc<Script>) -> Outcome {
        app.run(connection, lease).await
    }
}

/// Feeds no systemd, but counts the meals.
fn watchdog(hub: &Arc<Hub>) -> (Watchdog, Arc<AtomicUsize>) {
    let meals: Arc<AtomicUsize> = Arc::default();
    let (counted, hub) = (Arc::clone(&meals), Arc::clone(hub));
    let tell: Tell = Arc::new(move |states: &[NotifyState<'_>]| {
        let fed = states.iter().filter(|state| state.to_string() == "WATCHDOG=1").count();
        counted.fetch_add(fed, Ordering::SeqCst);
    });
    (Watchdog::start(Duration::from_millis(500), move || hub.signs(), tell).unwrap(), meals)
}

/// Whether it is fed within some meals' time.
async fn is_fed(meals: &AtomicUsize) -> bool {
    let before = meals.load(Ordering::SeqCst);
    sleep(Duration::from_millis(600)).await;
    meals.load(Ordering::SeqCst) > before
}

/// Waits until it is fed, or is not any more.
async fn becomes(fed: bool, meals: &AtomicUsize, why: &str) {
    for _ in 0..100 {
        if is_fed(meals).await == fed {
            return;
        }
    }
    panic!("{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_all_hang_starve_the_watchdog() {
    let base = Base::new(3).await;
    let hub = base.hub(quick()).await;
    // The first connection's run waits for what comes; the others' wait for what never comes.
    let script = Script::new(|connection, _| {
        async move {
            match connection {
                ConnectionId(1) => sleep(Duration::from_millis(200)).await,
                _ => pending::<()>().await,
            }
            Outcome::Done
        }
        .boxed()
    });
    let monitor = register::<Quiet>(Monitor::new(), &hub, 2, script);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = Arc::clone(&hub);
    let signal = async move { _ = stopped.await };
    let task = tokio::spawn(async move { serving.serve(monitor, signal, GRACE).await });
    let (_watchdog, meals) = watchdog(&hub);
    let enqueue = |connection| {
        let connection = Some(ConnectionId(connection));
        base.db.transaction(move |conn| queue::enqueue(conn, Quiet::KIND, connection, None))
    };
    let quiet_max = Quiet::SILENT_MAX + Duration::from_millis(500);
    sleep(quiet_max).await;
    becomes(true, &meals, "nothing to do is no reason to be restarted").await;
    enqueue(2).await.unwrap();
    sleep(quiet_max).await;
    becomes(true, &meals, "the other slot is free").await;
    enqueue(1).await.unwrap();
    sleep(quiet_max).await;
    becomes(true, &meals, "the other slot has worked").await;
    enqueue(3).await.unwrap();
    sleep(quiet_max).await;
    becomes(false, &meals, "all hang").await;
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}

/// As a kind whose runs are cut long before their silence is missed.
struct Brief;

impl Job for Brief {
    type App = Script;
    type Subject = ConnectionId;
    const KIND: &'static str = "brief";
    const TIMEOUT: Duration = Duration::from_millis(300);
    const SILENT_MAX: Duration = Duration::from_secs(1);

    async fn run(connection: ConnectionId, lease: &Lease, app: &Arc<Script>) -> Outcome {
        app.run(connection, lease).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_are_cut_one_after_the_other_starve_the_watchdog() {
    let base = Base::new(3).await;
    let hub = base.hub(quick()).await;
    let script = Script::new(|connection, _| {
        async move {
            if connection != ConnectionId(1) {
                pending::<()>().await;
            }
            Outcome::Done
        }
        .boxed()
    });
    let monitor = register::<Brief>(Monitor::new(), &hub, 2, script);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = Arc::clone(&hub);
    let signal = async move { _ = stopped.await };
    let task = tokio::spawn(async move { serving.serve(monitor, signal, GRACE).await });
    let (_watchdog, meals) = watchdog(&hub);
    let ran = async |connection| {
        let connection = Some(ConnectionId(connection));
        let enqueue = move |conn: &mut PgConnection| queue::enqueue(conn, Brief::KIND, connection, None);
        let job = base.db.transaction(enqueue).await.unwrap().job_id;
        base.until(job, |job| matches!(job.state, JobState::Done | JobState::Failed)).await.state
    };
    for _ in 0..6 {
        assert_eq!(ran(2).await, JobState::Failed);
        assert_eq!(ran(1).await, JobState::Done);
    }
    becomes(true, &meals, "the runs of another connection end by themselves").await;
    let mut cuts = 0;
    while is_fed(&meals).await {
        assert_eq!((ran(2).await, ran(3).await), (JobState::Failed, JobState::Failed));
        cuts += 2;
        assert!(cuts < 60, "all are cut, and it is fed");
    }
    assert_eq!(ran(1).await, JobState::Done);
    becomes(true, &meals, "one ends by itself again").await;
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_starves_no_watchdog() {
    let folder = short_folder("watchdog");
    let options = options(&folder);
    let started = tokio::task::spawn_blocking(move || PrivateServer::start_blocking(options).unwrap());
    let server = started.await.unwrap();
    migrations::run(&server.url()).await.unwrap();
    let base = Base::at(server.url());
    base.connections(1).await;
    let hub = base.hub(quick()).await;
    // What ended cannot be written down, and holds its slot.
    let script = Script::new(|_, _| {
        async {
            sleep(Duration::from_secs(2)).await;
            Outcome::Done
        }
        .boxed()
    });
    let monitor = register::<Quiet>(Monitor::new(), &hub, 1, script);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = Arc::clone(&hub);
    let signal = async move { _ = stopped.await };
    let task = tokio::spawn(async move { serving.serve(monitor, signal, GRACE).await });
    let (_watchdog, meals) = watchdog(&hub);
    let enqueued =
        base.db.transaction(|conn| queue::enqueue(conn, Quiet::KIND, Some(ConnectionId(1)), None)).await;
    enqueued.unwrap();
    sleep(Duration::from_millis(500)).await;
    server.stop().await;
    sleep(Duration::from_secs(6)).await;
    becomes(true, &meals, "it is the database that is away").await;
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
    base.db.close();
    let _ = std::fs::remove_dir_all(folder);
}
