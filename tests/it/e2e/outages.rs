//! Processes that die: the daemon by `kill -9`, the database by a stop. What was written stays, what was not is read
//! again, and nobody has to do anything.

use std::path::Path;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection};
use fieldmirror::daemon::postgres::PrivateServer;
use fieldmirror::db::{Db, migrations};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use url::Url;

use super::service::{signal, terminate, under_systemd};
use crate::support::app::{PATIENCE, TestApp, free_address, get, small};
use crate::support::disk::SmallDisk;
use crate::support::postgres::{options, short_folder};
use crate::support::truth::hold_against_mirror;

const KILLS: u64 = 10;
const SEED: u64 = 20_261_121;
const RECORDS: usize = 1_500;
const PAGE: usize = 25;
/// Pages that may be read again after a kill: those that wait to be written, that which is read, that which is written.
const IN_FLIGHT: u64 = 6 + 2;

/// What the time that a killed daemon's leases and rate limits take to lapse would do.
const TIME_PASSES: &str = "UPDATE fieldmirror.jobs SET lease_until = now() WHERE state = 'running';
    UPDATE fieldmirror.connections SET pacing = '{}';
    UPDATE fieldmirror.rate_budget SET taken_until = now()";

const BACKFILLS: &str =
    "SELECT count(*) FROM mirror.sync_runs WHERE stream = 'tickets' AND mode = 'backfill'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_ten_times() {
    let app = TestApp::new(
        small(RECORDS),
        &[
            ("sync.turn_limit", "1s"),
            ("providers.hubspot.page_size", "25"),
            ("sync.archived_interval", "1h"),
            ("sync.quota_reserve", "0"),
        ],
    )
    .await;
    // The key in a file, as an admin makes it.
    let key = app.run("key generate").await.done().stdout;
    let key_file = app.folder.join("vault.key");
    std::fs::write(&key_file, key).unwrap();
    std::fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let app = app.with("vault.key_file", &key_file.display().to_string()).without("vault.key");
    app.faults(&["slow=40,on:list", "slow=40,on:batch_read"]);

    let mut dice = StdRng::seed_from_u64(SEED);
    let mut daemon = app.spawn_daemon("");
    app.connect("acme").await;
    app.wait_until("the first page", "SELECT count(*) > 0 FROM mirror.hubspot_tickets").await;
    for kill in 1..=KILLS {
        tokio::time::sleep(Duration::from_millis(dice.random_range(150..800))).await;
        daemon.kill().await.unwrap();
        let closed = "SELECT coalesce(bool_or(outcome = 'closed'), false) FROM mirror.sync_runs
            WHERE stream = 'tickets' AND mode = 'backfill'";
        let done = app.one("SELECT backfill_done FROM mirror.freshness WHERE stream = 'tickets'").await;
        assert_eq!(app.one(closed).await, done, "kill {kill}: closed is what is closed");
        app.execute(TIME_PASSES).await;
        // Three kills before anything was saved would park the job, and no test says when a page is saved.
        app.execute("UPDATE fieldmirror.jobs SET crashes = 0").await;
        app.execute("DROP TABLE IF EXISTS public.mark; CREATE TABLE public.mark AS SELECT max(id) AS run FROM mirror.sync_runs").await;
        daemon = app.spawn_daemon("");
        // On a slow machine the walk over changes has begun long before that over all.
        app.wait_until(
            "tickets are read again",
            "SELECT (SELECT count(*) > 0 FROM mirror.sync_runs, public.mark
                     WHERE id > run AND stream = 'tickets' AND (mode = 'backfill' OR backfill_done))
             FROM mirror.freshness WHERE stream = 'tickets'",
        )
        .await;
    }
    assert!(app.number(BACKFILLS).await >= 5, "it was killed while it read");
    app.all_read().await;
    app.wait_until(
        "the state is settled",
        "SELECT bool_and(state IN ('idle', 'syncing')) FROM mirror.freshness",
    )
    .await;
    daemon.kill().await.unwrap();
    hold_against_mirror(&app).await;
    let pages = u64::try_from(RECORDS.div_ceil(PAGE)).unwrap();
    // Archived tickets are read by pages of their own, after the kills.
    let archived = u64::try_from(
        app.number("SELECT coalesce(sum(requests), 0)::bigint FROM mirror.sync_runs WHERE mode = 'archived'")
            .await,
    )
    .unwrap();
    let read = app.asked("batch_read");
    assert!(read <= pages + archived + KILLS * IN_FLIGHT, "{read} batch reads for {pages} pages");
    let closed = "SELECT count(*) FROM mirror.sync_runs WHERE stream = 'tickets' AND mode = 'backfill' AND outcome = 'closed'";
    assert_eq!(app.number(closed).await, 1);
    assert_eq!(
        app.number("SELECT count(*) FROM mirror.sync_runs WHERE outcome IS NULL AND ended_at IS NOT NULL")
            .await,
        0
    );
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.jobs WHERE state = 'parked'").await, 0);
}

/// A machine that stands still in the middle of a turn, until another has taken over, wakes up with pages in its hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_was_frozen_writes_nothing_when_it_wakes() {
    // Its time is not over when it wakes, however slow the machine is.
    let settings = [("providers.hubspot.page_size", "20"), ("sync.turn_limit", "5m")];
    let app = TestApp::new(small(600), &settings).await;
    // Thirty pages: it is far from the end when it is frozen, however late that is.
    app.faults(&["slow=1000,on:batch_read"]);
    let mut frozen = app.spawn_daemon("");
    app.connect("acme").await;
    app.wait_until("it is in the middle", "SELECT count(*) > 20 FROM mirror.hubspot_tickets").await;
    signal(&frozen, "STOP").await;
    app.faults(&[]);
    app.execute("CREATE TABLE public.mark AS SELECT id AS run FROM mirror.sync_runs WHERE outcome IS NULL")
        .await;
    app.execute(TIME_PASSES).await;
    let mut elsewhere = app.environment.clone();
    elsewhere.insert("FIELDMIRROR_CALLBACK__LISTEN".to_owned(), "127.0.0.1:0".to_owned());
    let other = app.daemon_with(&elsewhere).await;
    app.all_read().await;
    assert!(
        app.number("SELECT count(*) FROM mirror.sync_runs, public.mark WHERE id = run AND outcome = 'lost'")
            .await
            > 0
    );
    let of_frozen = "SELECT count(*) FROM mirror.hubspot_tickets, public.mark WHERE sync_run_id = run";
    let before = app.number(of_frozen).await;
    signal(&frozen, "CONT").await;
    // Its runs have been ended for it; it notices by itself that they are no longer its own.
    app.wait_until(
        "it notices",
        "SELECT count(*) = 0 FROM mirror.sync_runs, public.mark
         WHERE id = run AND error = 'the turn did not come to its end'",
    )
    .await;
    assert_eq!(app.number(of_frozen).await, before, "it has written nothing");
    let others = "SELECT count(*) FROM mirror.sync_runs, public.mark WHERE id = run AND outcome <> 'lost'";
    assert_eq!(app.number(others).await, 0, "and calls nothing a success, nor anything else but lost");
    // It has seen so itself, by the number of a turn that was not its own any more.
    let fenced = app.number("SELECT max(run) FROM public.mark").await.to_string();
    let told = |log: &str| log.lines().any(|line| line.contains("lost") && line.contains(&fenced));
    logged(&app, "that it was overtaken", told).await;
    hold_against_mirror(&app).await;
    frozen.kill().await.unwrap();
    other.stop().await;
}

/// Waits until the daemon has said so: what it writes to the database may be seen before that.
async fn logged(app: &TestApp, what: &str, said: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = std::fs::read_to_string(app.folder.join("daemon.log")).expect("it says what it does");
        if said(&log) {
            return;
        }
        assert!(Instant::now() < deadline, "it does not say {what}: {log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn ready(app: &TestApp) -> u16 {
    get(&Url::parse(&format!("{}/readyz", app.endpoint)).unwrap()).await.0
}

async fn wait_for_ready(app: &TestApp, status: u16) {
    let waiting = async {
        while ready(app).await != status {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("/readyz does not come to {status}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_and_comes_back() {
    let folder = short_folder("outage");
    let start = || {
        let options = options(&folder);
        tokio::task::spawn_blocking(move || {
            PrivateServer::start_blocking(options).expect("the server starts")
        })
    };
    let server = start().await.unwrap();
    migrations::run(&server.url()).await.unwrap();
    let db = Db::connect(&server.url(), 2).unwrap();
    let metrics = free_address();
    let settings = [("providers.hubspot.page_size", "25"), ("metrics.listen", metrics.as_str())];
    let app = TestApp::over(small(1_200), &settings, server.url(), db, None).await;
    let (app, socket) = under_systemd(app);
    app.faults(&["slow=100,on:batch_read"]);
    let mut daemon = app.spawn_daemon("");
    app.connect("acme").await;
    app.wait_until("some pages", "SELECT count(*) > 100 FROM mirror.hubspot_tickets").await;
    wait_for_ready(&app, 200).await;
    server.stop().await;
    wait_for_ready(&app, 503).await;
    let status = app.run("status --json").await;
    assert_eq!(status.code, 2, "{status:?}");
    let error = status.last();
    assert!(error["error"].to_string().contains("database"), "it says what is wrong: {error}");
    app.change(json!({"do": "create", "properties": {"subject": "meanwhile"}}));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(ready(&app).await, 503);
    let began = Instant::now();
    let (status, _, page) = get(&Url::parse(&format!("http://{metrics}/metrics")).unwrap()).await;
    assert!(status == 200 && page.contains("\nfieldmirror_database_up 0\n"), "{status}: {page}");
    // A pool waits for half a minute for a database that is away, and not all of that for each question.
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "it is told without waiting for the database: {:?}",
        began.elapsed()
    );
    assert_eq!(daemon.try_wait().unwrap(), None, "the daemon waits");

    let server = start().await.unwrap();
    wait_for_ready(&app, 200).await;
    app.faults(&[]);
    app.all_read().await;
    app.wait_until(
        "what happened meanwhile",
        "SELECT count(*) = 1 FROM mirror.tickets WHERE subject = 'meanwhile'",
    )
    .await;
    hold_against_mirror(&app).await;
    assert_eq!(
        app.rows("SELECT id FROM fieldmirror.jobs WHERE state IN ('parked', 'failed')").await,
        Vec::<Value>::new()
    );
    // It ends without a database as with one.
    app.db.close();
    server.stop().await;
    let (ended, _) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
    socket.wait_for("STOPPING=1", 0, |line| line == "STOPPING=1").await;
    let _ = std::fs::remove_dir_all(folder);
}

/// A server whose processes all stand still, as on a machine that hangs: nobody is told that it is away. It goes on
/// when this is dropped.
struct Frozen(Vec<String>);

impl Frozen {
    fn freeze(state_dir: &Path) -> Self {
        let pid_file = std::fs::read_to_string(state_dir.join("postgres/data/postmaster.pid")).unwrap();
        let postmaster = pid_file.lines().next().expect("a process").to_owned();
        // First, so that no more are born.
        let mut frozen = Self(vec![postmaster.clone()]);
        frozen.tell("STOP");
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        frozen.0.extend(children.unwrap().split_whitespace().map(str::to_owned));
        frozen.tell("STOP");
        frozen
    }

    fn tell(&self, signal: &str) {
        let told = std::process::Command::new("kill").args(["-s", signal]).args(&self.0).status();
        assert!(std::thread::panicking() || told.is_ok_and(|told| told.success()), "{:?}", self.0);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.tell("CONT");
    }
}

/// Puts the mirror's largest table on a small disk of its own, where there can be one. Only one test does.
async fn on_small_disk(app: &TestApp) -> Option<SmallDisk> {
    let data = app.one("SELECT current_setting('data_directory')").await;
    let disk = SmallDisk::mount(Path::new(data.as_str().expect("a path")))?;
    let made = format!("CREATE TABLESPACE small_disk LOCATION '{}'", disk.folder.display());
    app.db.run(move |connection| Ok(connection.batch_execute(&made)?)).await.unwrap();
    app.execute("ALTER TABLE mirror.hubspot_tickets SET TABLESPACE small_disk").await;
    Some(disk)
}

/// More than the table's pages have room for.
fn much() -> Value {
    let words: Vec<String> =
        (0..1_000_u32).map(|n| format!("{:08x}", n.wrapping_mul(2_654_435_761))).collect();
    json!({"do": "bulk_create", "count": 100, "properties": {"content": words.concat()}})
}

/// What a full disk makes of every write to the mirror's largest table, where none can be had.
const DISK_FULL: &str = "CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON mirror.hubspot_tickets
        FOR EACH STATEMENT EXECUTE FUNCTION public.disk_full()";

const NO_ROOM: &str = "CREATE FUNCTION public.disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'could not extend file \"base/16385/16405\": No space left on device' USING ERRCODE = 'disk_full';
    END $$";
const NO_ROOM_FOR_ATTEMPTS: &str =
    "CREATE TRIGGER disk_full BEFORE INSERT OR UPDATE ON fieldmirror.refresh_attempts
    FOR EACH STATEMENT EXECUTE FUNCTION public.disk_full()";
const NO_ROOM_FOR_TOKENS: &str = "DROP TRIGGER disk_full ON fieldmirror.refresh_attempts;
    CREATE TRIGGER disk_full BEFORE UPDATE ON fieldmirror.tokens
        FOR EACH STATEMENT EXECUTE FUNCTION public.disk_full()";

/// Nobody waits for real: on a slow machine a stream that has failed a few times pauses for minutes.
const PAUSES_PASS: &str = "UPDATE fieldmirror.stream_state SET not_before = now() WHERE not_before > now();
    UPDATE fieldmirror.walks SET due_at = now() WHERE failures > 0 AND due_at > now()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_for_a_while() {
    let app = TestApp::new(small(300), &[("providers.hubspot.page_size", "25")]).await;
    let disk = on_small_disk(&app).await;
    app.execute(NO_ROOM).await;
    app.faults(&["slow=300,on:batch_read"]);
    let mut daemon = app.spawn_daemon("");
    app.connect("acme").await;
    app.wait_until("some pages", "SELECT count(*) > 0 FROM mirror.hubspot_tickets").await;
    match &disk {
        Some(disk) => disk.fill(),
        None => app.execute(DISK_FULL).await,
    }
    // On a slow machine everything may have been read before that.
    app.change(much());
    app.wait_until(
        "the first read has stopped, and says why",
        "SELECT bool_or(last_error LIKE 'the database''s disk is full: %') FROM fieldmirror.stream_state WHERE stream = 'tickets'",
    )
    .await;
    let status = app.run("status --json").await.last().to_string();
    assert!(status.contains("the database's disk is full"), "{status}");
    // What can be stored is stored.
    app.run("enqueue --refresh acme").await.done();
    app.wait_until("the token is refreshed", "SELECT generation = 2 FROM fieldmirror.tokens").await;
    // Without room for the attempt nobody is asked; without room for the tokens they are kept until there is some.
    app.execute(NO_ROOM_FOR_ATTEMPTS).await;
    let request = app.run("enqueue --refresh acme --wait --json").await.last();
    let said = request["requests"][0].to_string();
    assert!(said.contains("the database's disk is full"), "{request}");
    assert_eq!(app.asked("token_refresh"), 1);
    app.execute(NO_ROOM_FOR_TOKENS).await;
    app.run("enqueue --refresh acme").await.done();
    let deadline = Instant::now() + PATIENCE;
    while app.asked("token_refresh") < 2 {
        assert!(Instant::now() < deadline, "there was room for the attempt");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    app.execute("DROP TRIGGER disk_full ON fieldmirror.tokens").await;
    app.wait_until("they are written down", "SELECT generation = 3 FROM fieldmirror.tokens").await;
    assert_eq!(app.asked("token_refresh"), 2, "the provider was asked once for them");
    let rows = app.number("SELECT count(*) FROM mirror.hubspot_tickets").await;
    assert!(usize::try_from(rows).unwrap() < app.truth().await.len(), "{rows} rows");
    assert_eq!(daemon.try_wait().unwrap(), None, "the daemon waits");

    match &disk {
        Some(disk) => disk.make_room(),
        None => app.execute("DROP TRIGGER disk_full ON mirror.hubspot_tickets").await,
    }
    app.faults(&[]);
    app.execute(PAUSES_PASS).await;
    app.all_read().await;
    hold_against_mirror(&app).await;
    let parked = "SELECT id FROM fieldmirror.jobs WHERE state IN ('parked', 'failed')";
    assert_eq!(app.rows(parked).await, Vec::<Value>::new());
    daemon.kill().await.unwrap();
    if let Some(disk) = disk {
        app.execute("ALTER TABLE mirror.hubspot_tickets SET TABLESPACE pg_default").await;
        app.execute("DROP TABLESPACE small_disk").await;
        drop(disk);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_read_only_for_a_while() {
    let folder = short_folder("readonly");
    let options = options(&folder);
    let started = tokio::task::spawn_blocking(move || PrivateServer::start_blocking(options).unwrap());
    let server = started.await.unwrap();
    migrations::run(&server.url()).await.unwrap();
    let db = Db::connect(&server.url(), 2).unwrap();
    let app =
        TestApp::over(small(600), &[("providers.hubspot.page_size", "25")], server.url(), db, None).await;
    let (app, socket) = under_systemd(app);
    app.faults(&["slow=100,on:batch_read"]);
    let mut daemon = app.spawn_daemon("");
    app.connect("acme").await;
    app.wait_until("some pages", "SELECT count(*) > 0 FROM mirror.hubspot_tickets").await;
    wait_for_ready(&app, 200).await;
    // As a standby offers itself after a failover, in every session at once. A refresh falls due meanwhile.
    app.execute("ALTER SYSTEM SET default_transaction_read_only = on").await;
    app.execute("SELECT pg_reload_conf()").await;
    wait_for_ready(&app, 503).await;
    // What had begun before is written all the same.
    app.wait_until(
        "every transaction is a later one",
        "SELECT count(*) = 0 FROM pg_stat_activity
         WHERE xact_start < pg_conf_load_time() AND pid <> pg_backend_pid() AND datname = current_database()",
    )
    .await;
    app.execute("BEGIN READ WRITE; UPDATE fieldmirror.tokens SET refresh_due_at = now(); COMMIT").await;
    let rows = app.number("SELECT count(*) FROM mirror.hubspot_tickets").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(app.number("SELECT count(*) FROM mirror.hubspot_tickets").await, rows, "nothing is written");
    let due = "SELECT refresh_due_at < now() AND generation = 1 FROM fieldmirror.tokens";
    app.wait_until("a refresh is due", due).await;
    assert_eq!(app.asked("token_refresh"), 0, "no token is asked for that could not be stored");
    assert_eq!(daemon.try_wait().unwrap(), None, "the daemon waits");
    logged(&app, "why", |log| log.contains("the database is read-only")).await;

    app.execute("ALTER SYSTEM RESET default_transaction_read_only").await;
    app.execute("SELECT pg_reload_conf()").await;
    wait_for_ready(&app, 200).await;
    app.faults(&[]);
    app.wait_until("the refresh is made", "SELECT generation = 2 FROM fieldmirror.tokens").await;
    app.all_read().await;
    hold_against_mirror(&app).await;
    let parked = "SELECT id FROM fieldmirror.jobs WHERE state IN ('parked', 'failed')";
    assert_eq!(app.rows(parked).await, Vec::<Value>::new());

    // It ends in time with a database that says nothing at all, and loses no token that is granted meanwhile.
    app.faults(&["hang=1x,on:token_refresh"]);
    app.run("enqueue --refresh acme").await.done();
    app.struck("it is under way").await;
    // The new tokens come, are kept, and are about to be written down.
    let url = server.url();
    let locking = tokio::task::spawn_blocking(move || {
        let mut session = PgConnection::establish(url.expose()).unwrap();
        session.batch_execute("BEGIN; SELECT FROM fieldmirror.connections FOR UPDATE").unwrap();
        session
    });
    let locking = locking.await.unwrap();
    app.faults(&[]);
    app.wait_until("they wait to be written down", "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
        .await;
    let frozen = Frozen::freeze(&folder);
    let (ended, _) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
    socket.wait_for("STOPPING=1", 0, |line| line == "STOPPING=1").await;
    drop(frozen);
    drop(locking);
    assert_eq!(
        app.number("SELECT generation FROM fieldmirror.tokens").await,
        2,
        "it could not be written down"
    );
    let mut daemon = app.spawn_daemon("");
    app.wait_until("the new token is there", "SELECT generation = 3 FROM fieldmirror.tokens").await;
    assert_eq!(app.asked("token_refresh"), 2, "the provider was asked once");
    daemon.kill().await.unwrap();
    app.db.close();
    server.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}
