//! The daemon as systemd runs it: what it tells, and how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection};
use fieldmirror::daemon::service::{self, Manager, Order, Tell};
use fieldmirror::daemon::{Daemon, Options};
use fieldmirror::jobs::QueueLimits;
use fieldmirror::sandbox::SandboxOptions;
use futures_util::future::join_all;
use sd_notify::NotifyState;
use serde_json::{Value, json};
use tokio::process::Child;
use url::Url;

use crate::support::app::{HUB, PATIENCE, TestApp, free_address, get, loaded, small};
use crate::support::not_checked;
use crate::support::notify::NotifySocket;

/// What the unit's `WatchdogSec=` would be.
const WATCHDOG: Duration = Duration::from_secs(6);
/// A daemon ends within this, whatever is under way.
const END_MAX: Duration = Duration::from_secs(30);

pub fn under_systemd(app: TestApp) -> (TestApp, NotifySocket) {
    let socket = NotifySocket::bind(&app.folder);
    let mut app = app;
    app.environment.insert("NOTIFY_SOCKET".to_owned(), socket.path.display().to_string());
    app.environment.insert("WATCHDOG_USEC".to_owned(), WATCHDOG.as_micros().to_string());
    (app, socket)
}

/// Sends a signal as `kill` does.
pub async fn signal(daemon: &Child, name: &str) {
    let pid = daemon.id().expect("it runs").to_string();
    let sent = tokio::process::Command::new("kill").args(["-s", name, &pid]).status().await.unwrap();
    assert!(sent.success());
}

pub async fn terminate(daemon: &mut Child) -> (ExitStatus, Duration) {
    let asked = Instant::now();
    signal(daemon, "TERM").await;
    let ended = tokio::time::timeout(END_MAX, daemon.wait()).await.expect("it ends in time").unwrap();
    (ended, asked.elapsed())
}

/// Connects one account of several.
async fn connect(app: &TestApp, name: &str, account: u64) {
    let asked = app.run(&format!("enqueue --connect hubspot --name {name} --no-wait --json")).await.done();
    let mut page = Url::parse(asked.last()["authorize_url"].as_str().unwrap()).unwrap();
    page.query_pairs_mut().append_pair("auto", "approve").append_pair("account", &account.to_string());
    let (status, location, body) = get(&page).await;
    let back = location.unwrap_or_else(|| panic!("the consent page answered {status}: {body}"));
    assert_eq!(get(&Url::parse(&back).unwrap()).await.0, 200);
}

/// Connections that are being read: more than there are workers, and as many as there are slots for refreshes, so that all
/// of these are busy.
const ACCOUNTS: u64 = 16;
/// `daemon.workers`.
const WORKERS: i64 = 4;
const BUSY: &str = "SELECT count(*) FROM fieldmirror.jobs
    WHERE kind = 'sync' AND state = 'running' AND lease_until > clock_timestamp()";
const ALL_BUSY: &str = "SELECT count(*) = 4 FROM fieldmirror.jobs
    WHERE kind = 'sync' AND state = 'running' AND lease_until > clock_timestamp()";
const ROWS: &str = "SELECT count(*) FROM mirror.hubspot_tickets";

/// Waits until every worker has been at work for `span` without a moment's rest. Returns from when to when.
async fn all_busy_for(app: &TestApp, span: Duration) -> (Instant, Instant) {
    let deadline = Instant::now() + PATIENCE;
    let mut since = None;
    loop {
        let looked_at = Instant::now();
        since = if app.number(BUSY).await == WORKERS { since.or(Some(looked_at)) } else { None };
        let Some(began) = since.filter(|since| looked_at - *since > span) else {
            assert!(looked_at < deadline, "the workers are not all busy");
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        return (began, looked_at);
    }
}

/// That it was fed twice as often as systemd asks within a span, its ends included. What this end missed because the
/// machine stood still was not the daemon's fault.
#[track_caller]
fn fed_in_time(socket: &NotifySocket, (from, to): (Instant, Instant), when: &str) {
    let heard = socket.heard();
    let meals = heard.iter().filter(|(_, line)| line == "WATCHDOG=1").map(|(at, _)| *at);
    let within: Vec<Instant> = meals.filter(|at| (from..=to).contains(at)).collect();
    let points: Vec<Instant> = [&[from], within.as_slice(), &[to]].concat();
    let gap = points.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    let stood_still = socket.stood_still((from, to));
    assert!(
        gap <= WATCHDOG / 2 + stood_still,
        "fed in time {when}: {gap:?}, {stood_still:?} of it were ours"
    );
}

/// Waits until the daemon says that it can do its work. `false`: it says that its workers cannot.
async fn serves(app: &TestApp) -> bool {
    let readyz = Url::parse(&format!("{}/readyz", app.endpoint)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, _, body) = get(&readyz).await;
        let told: Value = serde_json::from_str(&body).unwrap_or_default();
        // It asks the database anew, which may be busy for a moment.
        if status == 200 || told["workers"] == false {
            return status == 200;
        }
        assert!(Instant::now() < deadline, "{status}: {body}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Asks the daemon to end while answers are held back, sees that it waits for them, and lets go.
async fn waits_for_answers(
    app: &TestApp,
    socket: &NotifySocket,
    daemon: &mut Child,
    faults: &[&str],
) -> ExitStatus {
    let before = socket.heard().len();
    signal(daemon, "TERM").await;
    socket.wait_for("STOPPING=1", before, |line| line == "STOPPING=1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(daemon.try_wait().unwrap(), None, "it waits for the answer");
    app.faults(faults);
    tokio::time::timeout(END_MAX, daemon.wait()).await.expect("it ends in time").unwrap()
}

/// What reading everything costs a processor at the least.
const BUSY_MIN: Duration = Duration::from_millis(500);

/// What a process has used so far, of all processors.
fn processor_time(of: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", of.id().expect("it runs"))).unwrap();
    // After the name, which may hold anything: the state is the third field, the times are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    // The kernel counts hundredths for programs, whatever its own clock is.
    Duration::from_millis(ticks * 10)
}

/// Under full load: every worker reads an account, every slot for tokens is in the middle of an exchange.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_how_things_stand_under_full_load() {
    let options = SandboxOptions { accounts: usize::try_from(ACCOUNTS).unwrap(), ..small(750) };
    let metrics = free_address();
    // Turns that end one by one would leave a worker without work for a moment.
    let settings = [
        ("providers.hubspot.page_size", "2"),
        ("sync.turn_limit", "5m"),
        ("metrics.listen", metrics.as_str()),
    ];
    let (app, socket) = under_systemd(TestApp::new(options, &settings).await);
    let mut daemon = app.spawn_daemon("");
    socket.wait_for("READY=1", 0, |line| line == "READY=1").await;
    assert!(serves(&app).await, "it says so only when it serves");
    socket.wait_for("that nothing is connected", 0, |line| line == "STATUS=No connections yet").await;
    let reading = ["slow=1000,on:search", "slow=1000,on:batch_read"];
    app.faults(&reading);
    let names: Vec<String> = (0..ACCOUNTS).map(|account| format!("acme-{account}")).collect();
    join_all((0..ACCOUNTS).zip(&names).map(|(account, name)| connect(&app, name, HUB + account))).await;

    all_busy_for(&app, Duration::ZERO).await;
    let rows = app.number(ROWS).await;
    let span = all_busy_for(&app, WATCHDOG + WATCHDOG / 4).await;
    assert!(app.number(ROWS).await > rows, "and get on with it");
    fed_in_time(&socket, span, "while all workers were busy");
    let fits = |line: &str| {
        line.starts_with("STATUS=16 connections; `") && line.ends_with(" is being read for the first time")
    };
    socket.wait_for("how they stand", 0, fits).await;

    // The slots for tokens too: every token falls due at once, and the provider takes its time.
    app.faults(&[&reading[..], &["hang=16x,on:token_refresh"]].concat());
    app.execute("UPDATE fieldmirror.tokens SET refresh_due_at = now() - interval '1 s'").await;
    app.struck("all exchanges are under way").await;
    // A worker between two turns holds nothing for a moment.
    let page = Url::parse(&format!("http://{metrics}/metrics")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = get(&page).await.2;
        let held = page.lines().find_map(|line| line.strip_prefix("fieldmirror_jobs_held "));
        if held == Some("20") {
            break;
        }
        assert!(Instant::now() < deadline, "not four workers and sixteen slots for refreshes: {held:?}");
    }
    app.wait_until("all workers are busy", ALL_BUSY).await;
    let ended = waits_for_answers(&app, &socket, &mut daemon, &reading).await;
    assert!(ended.success(), "{ended}");
    nothing_is_lost(&app).await;

    let heard = socket.heard();
    let first = |text: &str| heard.iter().position(|(_, line)| line == text).expect(text);
    assert_eq!(socket.count("READY=1"), 1);
    assert!(first("READY=1") < first("WATCHDOG=1"));
    let stopping = first("STOPPING=1");
    assert!(heard[stopping..].iter().all(|(_, line)| line != "WATCHDOG=1" && line != "READY=1"), "{heard:?}");
    fed_in_time(&socket, (heard[first("WATCHDOG=1")].0, heard[stopping].0), "from the beginning to the end");

    // What was held is taken up again, and comes to its end.
    app.faults(&[]);
    let app = app.with("providers.hubspot.page_size", "100");
    let before = socket.heard().len();
    let mut daemon = app.spawn_daemon("");
    socket.wait_for("READY=1 again", before, |line| line == "READY=1").await;
    let (began, used) = (Instant::now(), processor_time(&daemon));
    let done = "SELECT count(*) = 64 AND bool_and(backfill_done) FROM mirror.freshness";
    app.wait_until("everything has been read", done).await;
    // Nothing keeps it waiting now: it does what a processor gives.
    let (ended, used) = (Instant::now(), processor_time(&daemon).saturating_sub(used));
    assert!(used > BUSY_MIN, "it had something to do: {used:?}");
    fed_in_time(&socket, (began, ended), "while it was busy");
    let mirrored = app.rows(LIVE_ROWS).await;
    for account in (0..ACCOUNTS).map(|number| HUB + number) {
        let truth = app.truth_of(account).await;
        let live = truth.iter().filter(|ticket| ticket["state"] == "live").count();
        let row = json!({"account_id": account.to_string(), "live": live});
        assert!(mirrored.contains(&row), "{row} is not in {mirrored:?}");
    }
    terminate(&mut daemon).await;
    assert_eq!(socket.count("READY=1"), 2);
}

/// A kind's runs that are silent for so long count as stuck, in place of minutes.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// As systemd's own watchdog would have it: the daemon's parts as `service::run` puts them together, one worker, and an
/// answer that keeps it waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_hangs_starves_the_daemons_own_watchdog() {
    let app = TestApp::new(small(30), &[("daemon.workers", "1")]).await;
    let socket = NotifySocket::bind(&app.folder);
    let (systemd, path) = (UnixDatagram::unbound().unwrap(), socket.path.clone());
    let tell: Tell = Arc::new(move |states: &[NotifyState<'_>]| {
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        systemd.send_to(lines.join("\n").as_bytes(), &path).unwrap();
    });
    let manager = Manager { tell: Some(tell), watchdog: Some(Duration::from_millis(500)) };
    let queue = QueueLimits { silent_max: SILENT_MAX, ..QueueLimits::default() };
    let options = Options { queue, ..Options::default() };
    let (order, orders) = tokio::sync::mpsc::channel(1);
    let (settings, again) = (loaded(&app.environment), loaded(&app.environment));
    let serving = service::run(settings, Box::new(move || Ok(again.clone())), options, manager, orders);
    let looking = async {
        app.mirrored("acme").await;
        socket.wait_for("that it works", 0, |line| line == "WATCHDOG=1").await;
        // A machine that stands still may have been told of before.
        let calm = socket.heard().len();
        app.faults(&["hang=1x"]);
        let stuck = |line: &str| line.starts_with("STATUS=Stuck: the workers for `sync` jobs did nothing");
        socket.wait_for("that they hang", calm, stuck).await;
        let heard = socket.heard();
        let before = heard.iter().rposition(|(_, line)| stuck(line)).unwrap();
        tokio::time::sleep(SILENT_MAX).await;
        let meals = |of: &[(Instant, String)]| of.iter().filter(|(_, line)| line == "WATCHDOG=1").count();
        let heard = socket.heard();
        assert_eq!(meals(&heard[before..]), 0, "starved as long as they hang: {heard:?}");
        app.faults(&[]);
        socket.wait_for("that they work again", heard.len(), |line| line == "WATCHDOG=1").await;
        order.send(Order::Stop).await.unwrap();
    };
    tokio::join!(async { serving.await.unwrap() }, looking);

    every_part_comes_round(&app.daemon().await).await;
}

/// That each of the parts is looked at, and gets on with its work.
async fn every_part_comes_round(daemon: &Daemon) {
    let (mut before, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let deadline = Instant::now() + PATIENCE;
    let expected: BTreeSet<String> = [
        "the runtime",
        "the scheduler",
        "the keeper of the queue",
        "the workers for `sync` jobs",
        "the workers for `refresh_token` jobs",
        "the workers for `connect` jobs",
        "the workers for `disconnect` jobs",
        "the workers for `rotate_key` jobs",
    ]
    .map(str::to_owned)
    .into();
    while seen != expected {
        for sign in daemon.signs() {
            let was = before.insert(sign.part.clone(), sign.silent_for);
            if was.is_some_and(|was| sign.silent_for < was) {
                seen.insert(sign.part);
            }
        }
        assert!(Instant::now() < deadline, "{seen:?} of {before:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(before.into_keys().collect::<BTreeSet<_>>(), expected);
}

const LIVE_ROWS: &str = "SELECT c.account_id, count(*) FILTER (WHERE t.deleted_at IS NULL) AS live
    FROM mirror.connections c JOIN mirror.hubspot_tickets t ON t.connection_id = c.id GROUP BY 1";

/// After a daemon that was stopped with all its hands full: every exchange has been seen through, every turn has saved its
/// place, every job is due again.
async fn nothing_is_lost(app: &TestApp) {
    for (what, sql) in [
        ("every new token is stored", "SELECT count(*) = 16 AND bool_and(generation = 2) FROM fieldmirror.tokens"),
        ("no exchange is open", "SELECT count(*) = 0 FROM fieldmirror.refresh_attempts"),
        ("it signed off", "SELECT count(*) = 0 FROM fieldmirror.daemons"),
        (
            "no job was left, dropped or given up",
            "SELECT bool_and(state IN ('pending', 'done') AND crashes = 0) FROM fieldmirror.jobs",
        ),
        (
            "no run was left, and none failed",
            "SELECT bool_and(outcome IN ('closed', 'yielded')) FROM mirror.sync_runs",
        ),
        (
            "the turns that were cut short had begun to read",
            "SELECT count(*) >= 4 FROM mirror.sync_runs WHERE outcome = 'yielded' AND pages > 0",
        ),
        (
            "every page is there with its place and its counts",
            "SELECT bool_and(f.rows = (SELECT count(*) FROM mirror.hubspot_tickets t JOIN mirror.connections c
                 ON c.id = t.connection_id WHERE c.name = f.connection_name AND t.deleted_at IS NULL))
             FROM mirror.freshness f WHERE f.stream = 'tickets'",
        ),
    ] {
        assert_eq!(app.one(sql).await, true, "{what}: {:#?}", app.rows(LEFT).await);
    }
    assert_eq!(app.asked("token_refresh"), ACCOUNTS, "each was asked for once");
}

const LEFT: &str =
    "SELECT r.connection_id, r.stream, r.mode, r.outcome, r.pages, r.error, t.generation, t.last_error
    FROM mirror.sync_runs r LEFT JOIN fieldmirror.tokens t USING (connection_id) ORDER BY r.id DESC LIMIT 40";

/// What keeps a daemon from serving keeps `READY=1` back; what takes long at its start is given time, and ends when it is
/// told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_is_told_of_no_daemon_that_does_not_serve() {
    let (app, socket) = under_systemd(TestApp::new(small(1), &[]).await);
    // Somebody else migrates, and takes long.
    let url = app.environment["FIELDMIRROR_DATABASE__URL"].clone();
    let migrating = tokio::task::spawn_blocking(move || {
        let mut session = PgConnection::establish(&url).unwrap();
        let lock = i64::from_be_bytes(*b"fieldmir");
        session.batch_execute(&format!("SELECT pg_advisory_lock({lock})")).unwrap();
        session
    });
    let migrating = migrating.await.unwrap();
    let mut daemon = app.spawn_daemon("");
    socket.wait_for("more time is asked for", 0, |line| line.starts_with("EXTEND_TIMEOUT_USEC=")).await;
    assert!(socket.heard()[0].1.starts_with("STATUS=Starting"), "{:?}", socket.heard());
    let (ended, _) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
    socket.wait_for("STOPPING=1", 0, |line| line == "STOPPING=1").await;
    assert_eq!(socket.count("READY=1"), 0);

    let mut daemon = app.spawn_daemon("");
    let before = socket.heard().len();
    socket.wait_for("it starts", before, |line| line.starts_with("STATUS=Starting")).await;
    assert_eq!(socket.count("READY=1"), 0);
    drop(migrating);
    socket.wait_for("READY=1", before, |line| line == "READY=1").await;
    socket.wait_for("its first meal", before, |line| line == "WATCHDOG=1").await;
    terminate(&mut daemon).await;

    // The database is well and migrated, and has sessions to spare; only the workers cannot begin.
    let app = app.with("database.pool_size", "16");
    let url = app.environment["FIELDMIRROR_DATABASE__URL"].clone();
    let locking = tokio::task::spawn_blocking(move || {
        let mut session = PgConnection::establish(&url).unwrap();
        session.batch_execute("BEGIN; LOCK TABLE fieldmirror.jobs IN ACCESS EXCLUSIVE MODE").unwrap();
        session
    });
    let locking = locking.await.unwrap();
    let before = socket.heard().len();
    let mut daemon = app.spawn_daemon("");
    let readyz = Url::parse(&format!("{}/readyz", app.endpoint)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // Asked for a while: it is not about to say so.
    let mut asked = 0;
    while asked < 10 {
        assert!(Instant::now() < deadline, "the endpoint does not answer");
        let (status, _, body) = get(&readyz).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        if status == 0 {
            continue;
        }
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &told["workers"]), (503, &json!(false)), "{body}");
        assert!(socket.heard()[before..].iter().all(|(_, line)| line != "READY=1"));
        // The database may be busy for a moment.
        asked += usize::from(told["database"] == true);
    }
    drop(locking);
    socket.wait_for("READY=1 after all", before, |line| line == "READY=1").await;
    // What was answered a moment ago is answered again, and the database may be busy for a moment.
    let ready = async {
        while get(&readyz).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("it serves");
    terminate(&mut daemon).await;

    // A database that takes no writes, and none at all.
    app.execute(
        "DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
         END $$",
    )
    .await;
    let ran = app.run("run --json").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.last()["error"].to_string().contains("read-only"), "{ran:?}");
    let app = app.with("database.url", "postgres://127.0.0.1:9/nothing");
    let ran = app.run("run --json").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!((socket.count("READY=1"), socket.count("WATCHDOG=1") > 0), (2, true), "of those that served");
}

const OPEN: &str = "SELECT count(*) = 1 FROM fieldmirror.refresh_attempts";
const GENERATION: &str = "SELECT generation FROM fieldmirror.tokens";

/// A daemon that has been asked for a refresh whose answer is held back.
async fn in_mid_exchange() -> (TestApp, NotifySocket, Child) {
    let (app, socket) = under_systemd(TestApp::new(small(30), &[]).await);
    let daemon = app.spawn_daemon("");
    app.mirrored("acme").await;
    socket.wait_for("READY=1", 0, |line| line == "READY=1").await;
    app.faults(&["hang=1x,on:token_refresh"]);
    assert_eq!(app.number(GENERATION).await, 1);
    app.run("enqueue --refresh acme").await.done();
    app.struck("the refresh is under way").await;
    assert_eq!(app.one(OPEN).await, true);
    (app, socket, daemon)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_under_way_is_waited_for() {
    let (app, socket, mut daemon) = in_mid_exchange().await;
    let ended = waits_for_answers(&app, &socket, &mut daemon, &[]).await;
    assert!(ended.success(), "{ended}");
    assert_eq!(app.number(GENERATION).await, 2, "the new token is stored");
    assert_eq!(app.one(OPEN).await, false);
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.daemons").await, 0, "it signed off");
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.jobs WHERE state = 'running'").await, 0);
    in_mid_consent(&app, &socket).await;
}

/// An owner whose consent is under way sees how it ends, and it counts.
async fn in_mid_consent(app: &TestApp, socket: &NotifySocket) {
    let before = socket.heard().len();
    let mut daemon = app.spawn_daemon("");
    socket.wait_for("READY=1", before, |line| line == "READY=1").await;
    app.faults(&["hang=1x,on:token_exchange"]);
    let asked = app.run("enqueue --reconnect acme --no-wait --json").await.done().last();
    let back = app.approve(&asked).await;
    let browser = tokio::spawn(async move { get(&back).await });
    app.struck("the code is being traded").await;
    let ended = waits_for_answers(app, socket, &mut daemon, &[]).await;
    assert!(ended.success(), "{ended}");
    let (status, _, page) = browser.await.unwrap();
    assert_eq!(status, 200, "{page}");
    let outcome =
        "SELECT outcome FROM fieldmirror.requests WHERE kind = 'connect' ORDER BY requested_at DESC LIMIT 1";
    assert_eq!(app.one(outcome).await, "done");
    assert_eq!(app.number(GENERATION).await, 1, "of the new grant");
    assert_eq!(app.one("SELECT state FROM mirror.connections").await, "connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_without_an_answer_does_not_hold_up_the_end() {
    let (app, _socket, mut daemon) = in_mid_exchange().await;
    let (ended, took) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended} after {took:?}");
    assert_eq!(app.number(GENERATION).await, 1);
    assert_eq!(app.one(OPEN).await, false, "the attempt is closed");
    let said = app.one("SELECT last_error FROM fieldmirror.tokens").await;
    assert!(
        said.as_str().is_some_and(|said| said.contains("stopped before the provider answered")),
        "{said}"
    );
    app.faults(&[]);
    let mut daemon = app.spawn_daemon("");
    app.wait_until("the next daemon refreshes", "SELECT generation = 2 FROM fieldmirror.tokens").await;
    terminate(&mut daemon).await;
    let parked = "SELECT id FROM fieldmirror.jobs WHERE state IN ('parked', 'failed')";
    assert_eq!(app.rows(parked).await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_gets_no_private_server() {
    let (app, socket) = under_systemd(TestApp::new(small(1), &[]).await);
    let ran = app.without("database.url").run("run --json").await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let error = ran.last()["error"].to_string();
    assert!(error.contains("LoadCredential=database.url:"), "{error}");
    assert_eq!(socket.heard().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_may_hold_the_socket() {
    let app = TestApp::new(small(1), &[]).await;
    let address = app.endpoint.trim_start_matches("http://").to_owned();
    // The setting names another address, which nobody is to listen on.
    let app = app.with("callback.listen", "127.0.0.1:9");
    let mut activate = tokio::process::Command::new("systemd-socket-activate");
    activate.env_clear().env("HOME", &app.folder).envs(&app.environment);
    for name in app.environment.keys() {
        activate.args(["-E", name]);
    }
    activate.args(["-l", &address, env!("CARGO_BIN_EXE_fieldmirror"), "run", "-q"]);
    let Ok(mut daemon) = activate.kill_on_drop(true).spawn() else {
        not_checked("socket activation, since there is no `systemd-socket-activate`");
        return;
    };
    // The first one to connect starts the daemon, and waits for it.
    let health = Url::parse(&format!("{}/healthz", app.endpoint)).unwrap();
    let answered = async {
        while get(&health).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("the daemon serves on systemd's socket");
    let (ended, _) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reloads_what_can_be_reloaded() {
    let (app, socket) = under_systemd(TestApp::new(small(30), &[]).await);
    let app = app.without("sync.poll_interval").without("daemon.workers").without("metrics.listen");
    let file = app.folder.join("settings.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(
        "[sync]\npoll_interval = \"24h\"\n[daemon]\nworkers = 4\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
         [providers.oncehub]\nenabled = false\n",
    );
    let mut daemon = app.spawn_daemon(&format!("--config {}", file.display()));
    app.mirrored("acme").await;
    socket.wait_for("READY=1", 0, |line| line == "READY=1").await;
    let log = || std::fs::read_to_string(app.folder.join("daemon.log")).unwrap();
    let metrics = {
        let said = log();
        let (_, after) = said.split_once("metrics on ").expect("where the metrics are");
        let address = after.split_whitespace().next().expect("an address");
        Url::parse(&format!("http://{address}/metrics")).unwrap()
    };
    let counted = async || get(&metrics).await.2.contains("provider=\"oncehub\"");
    assert!(!counted().await, "a provider that is off has no series");

    // A mistake changes nothing.
    write("[sync]\npoll_intervall = \"1s\"\n");
    let before = socket.heard().len();
    signal(&daemon, "HUP").await;
    socket.wait_for("RELOADING=1", before, |line| line == "RELOADING=1").await;
    socket.wait_for("since when", before, |line| line.starts_with("MONOTONIC_USEC=")).await;
    socket.wait_for("READY=1 again", before, |line| line == "READY=1").await;
    assert!(log().contains("did you mean `sync.poll_interval`?"), "{}", log());

    write(
        "[sync]\npoll_interval = \"23h\"\n[daemon]\nworkers = 5\n[metrics]\nlisten = \"127.0.0.1:1\"\n\
         [providers.oncehub]\nenabled = true\n[providers.hubspot]\npoll_interval = \"1s\"\n",
    );
    let before = socket.heard().len();
    signal(&daemon, "HUP").await;
    socket.wait_for("READY=1 again", before, |line| line == "READY=1").await;
    let said = log();
    let taken = ["sync.poll_interval", "providers.oncehub.enabled", "providers.hubspot.poll_interval"];
    for setting in taken {
        assert!(said.contains(&format!("Reloaded `{setting}`")), "{setting}: {said}");
    }
    for setting in ["daemon.workers", "metrics.listen"] {
        let waits = format!("`{setting}` has changed, which takes effect when the daemon is restarted");
        assert!(said.contains(&waits) && !said.contains(&format!("Reloaded `{setting}`")), "{said}");
    }
    assert!(counted().await, "its series begin before anything happens to it");
    app.run("enqueue --resync acme").await.done();
    app.wait_until(
        "it is polled as often as the new settings say",
        "SELECT count(*) > 4 FROM mirror.sync_runs WHERE stream = 'owners' AND outcome = 'closed'",
    )
    .await;
    let oldest = |line: &str| line.starts_with("STATUS=1 connection; oldest freshness ");
    socket.wait_for("the oldest freshness", 0, oldest).await;
    let (ended, _) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
}
