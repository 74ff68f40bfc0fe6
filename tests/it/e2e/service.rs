//! The daemon as systemd runs it: what it tells, and how it ends.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, PgConnection};
use fieldmirror::sandbox::SandboxOptions;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::process::Child;
use url::Url;

use crate::support::app::{HUB, PATIENCE, TestApp, free_address, get, small};
use crate::support::not_checked;
use crate::support::notify::NotifySocket;

/// What the unit's `WatchdogSec=` would be.
const WATCHDOG: Duration = Duration::from_secs(6);
/// A daemon ends within this, whatever is under way.
const END_MAX: Duration = Duration::from_secs(30);

fn under_systemd(app: TestApp) -> (TestApp, NotifySocket) {
    let socket = NotifySocket::bind(&app.folder);
    let mut app = app;
    app.environment.insert("NOTIFY_SOCKET".to_owned(), socket.path.display().to_string());
    app.environment.insert("WATCHDOG_USEC".to_owned(), WATCHDOG.as_micros().to_string());
    (app, socket)
}

/// Sends a signal as `kill` does.
async fn signal(daemon: &Child, name: &str) {
    let pid = daemon.id().expect("it runs").to_string();
    let sent = tokio::process::Command::new("kill").args(["-s", name, &pid]).status().await.unwrap();
    assert!(sent.success());
}

async fn terminate(daemon: &mut Child) -> (ExitStatus, Duration) {
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

/// Connections that are being read: more than there are workers, so that all of these are busy.
const ACCOUNTS: u64 = 8;
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

/// The longest pause between two meals within a span, its ends included.
fn longest_gap(heard: &[(Instant, String)], (from, to): (Instant, Instant)) -> Duration {
    let meals = heard.iter().filter(|(_, line)| line == "WATCHDOG=1").map(|(at, _)| *at);
    let within: Vec<Instant> = meals.filter(|at| (from..=to).contains(at)).collect();
    let points: Vec<Instant> = [&[from], within.as_slice(), &[to]].concat();
    points.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Under full load: every worker reads an account, every slot for tokens is in the middle of an exchange.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_how_things_stand_under_full_load() {
    let options = SandboxOptions { accounts: usize::try_from(ACCOUNTS).unwrap(), ..small(600) };
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
    let ready = get(&Url::parse(&format!("{}/readyz", app.endpoint)).unwrap()).await;
    assert_eq!(ready.0, 200, "it says so only when it serves: {}", ready.2);
    socket.wait_for("that nothing is connected", 0, |line| line == "STATUS=No connections yet").await;
    let reading = ["slow=1000,on:search", "slow=1000,on:batch_read"];
    app.faults(&reading);
    let names: Vec<String> = (0..ACCOUNTS).map(|account| format!("acme-{account}")).collect();
    join_all((0..ACCOUNTS).zip(&names).map(|(account, name)| connect(&app, name, HUB + account))).await;

    all_busy_for(&app, Duration::ZERO).await;
    let rows = app.number(ROWS).await;
    let span = all_busy_for(&app, WATCHDOG + WATCHDOG / 4).await;
    assert!(app.number(ROWS).await > rows, "and get on with it");
    let gap = longest_gap(&socket.heard(), span);
    assert!(gap <= WATCHDOG / 2, "fed in time while all workers were busy: {gap:?}");
    let fits = |line: &str| {
        line.starts_with("STATUS=8 connections; `") && line.ends_with(" is being read for the first time")
    };
    socket.wait_for("how they stand", 0, fits).await;

    // The slots for tokens too: every token falls due at once, and the provider takes its time.
    app.faults(&[&reading[..], &["slow=12000,on:token_refresh"]].concat());
    app.execute("UPDATE fieldmirror.tokens SET refresh_due_at = now() - interval '1 s'").await;
    app.wait_until("all exchanges are under way", "SELECT count(*) = 8 FROM fieldmirror.refresh_attempts")
        .await;
    // The attempt is opened right before the question is sent.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let page = get(&Url::parse(&format!("http://{metrics}/metrics")).unwrap()).await.2;
    let held = page.lines().find_map(|line| line.strip_prefix("fieldmirror_jobs_held "));
    assert_eq!(held, Some("12"), "four workers and eight slots for tokens");
    app.wait_until("all workers are busy", ALL_BUSY).await;
    let (ended, took) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
    assert!(took > Duration::from_secs(1), "it waited for the answers: {took:?}");
    nothing_is_lost(&app).await;

    let heard = socket.heard();
    let first = |text: &str| heard.iter().position(|(_, line)| line == text).expect(text);
    assert_eq!(socket.count("READY=1"), 1);
    assert!(first("READY=1") < first("WATCHDOG=1"));
    let stopping = first("STOPPING=1");
    assert!(heard[stopping..].iter().all(|(_, line)| line != "WATCHDOG=1" && line != "READY=1"), "{heard:?}");
    let gap = longest_gap(&heard[..stopping], (heard[first("WATCHDOG=1")].0, heard[stopping].0));
    assert!(gap <= WATCHDOG / 2, "fed in time from the beginning to the end: {gap:?}");

    // What was held is taken up again, and comes to its end.
    app.faults(&[]);
    let app = app.with("providers.hubspot.page_size", "100");
    let mut daemon = app.spawn_daemon("");
    let done = "SELECT count(*) = 32 AND bool_and(backfill_done) FROM mirror.freshness";
    app.wait_until("everything has been read", done).await;
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

const LIVE_ROWS: &str = "SELECT c.account_id, count(*) FILTER (WHERE t.deleted_at IS NULL) AS live
    FROM mirror.connections c JOIN mirror.hubspot_tickets t ON t.connection_id = c.id GROUP BY 1";

/// After a daemon that was stopped with all its hands full: every exchange has been seen through, every turn has saved its
/// place, every job is due again.
async fn nothing_is_lost(app: &TestApp) {
    for (what, sql) in [
        ("every new token is stored", "SELECT count(*) = 8 AND bool_and(generation = 2) FROM fieldmirror.tokens"),
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
    assert_eq!(
        (socket.count("READY=1"), socket.count("WATCHDOG=1") > 0),
        (1, true),
        "of the one that served"
    );
}

const OPEN: &str = "SELECT count(*) = 1 FROM fieldmirror.refresh_attempts";
const GENERATION: &str = "SELECT generation FROM fieldmirror.tokens";

/// A daemon that has been asked for a refresh whose answer is late.
async fn in_mid_exchange(fault: &str) -> (TestApp, Child) {
    let (app, socket) = under_systemd(TestApp::new(small(30), &[]).await);
    let daemon = app.spawn_daemon("");
    app.mirrored("acme").await;
    socket.wait_for("READY=1", 0, |line| line == "READY=1").await;
    app.faults(&[fault]);
    assert_eq!(app.number(GENERATION).await, 1);
    app.run("enqueue --refresh acme").await.done();
    app.wait_until("the refresh is under way", OPEN).await;
    // The attempt is opened right before the question is sent.
    tokio::time::sleep(Duration::from_secs(1)).await;
    (app, daemon)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_under_way_is_waited_for() {
    let (app, mut daemon) = in_mid_exchange("slow=8000,on:token_refresh").await;
    let (ended, took) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
    assert!(took > Duration::from_secs(1), "it waited for the answer: {took:?}");
    assert_eq!(app.number(GENERATION).await, 2, "the new token is stored");
    assert_eq!(app.one(OPEN).await, false);
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.daemons").await, 0, "it signed off");
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.jobs WHERE state = 'running'").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_without_an_answer_does_not_hold_up_the_end() {
    let (app, mut daemon) = in_mid_exchange("hang=on:token_refresh").await;
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
    tokio::time::timeout(END_MAX, answered).await.expect("the daemon serves on systemd's socket");
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
