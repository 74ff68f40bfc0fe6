//! The daemon as systemd runs it: what it tells, and how it ends.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use fieldmirror::sandbox::SandboxOptions;
use serde_json::Value;
use tokio::process::Child;
use url::Url;

use crate::support::app::{HUB, TestApp, get, small};
use crate::support::notify::NotifySocket;

/// What the unit's `WatchdogSec=` would be.
const WATCHDOG: Duration = Duration::from_secs(10);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_how_things_stand() {
    let options = SandboxOptions { accounts: 3, ..small(1_500) };
    let (app, socket) = under_systemd(TestApp::new(options, &[]).await);
    let mut daemon = app.spawn_daemon("");
    socket.wait_for("READY=1", 0, |line| line == "READY=1").await;
    let ready = get(&Url::parse(&format!("{}/readyz", app.endpoint)).unwrap()).await;
    assert_eq!(ready.0, 200, "it says so only when it serves: {}", ready.2);
    socket.wait_for("that nothing is connected", 0, |line| line == "STATUS=No connections yet").await;
    for account in 0..3 {
        connect(&app, &format!("acme-{account}"), HUB + account).await;
    }
    app.wait_until(
        "everything has been read",
        "SELECT count(*) = 12 AND bool_and(backfill_done) FROM mirror.freshness",
    )
    .await;
    socket.wait_for("the connections", 0, |line| line.starts_with("STATUS=3 connections")).await;
    socket.wait_for("the oldest freshness", 0, |line| line.contains("; oldest freshness ")).await;
    assert!(app.number("SELECT count(*) FROM mirror.hubspot_tickets").await >= 1_500);
    let (ended, _) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");

    let heard = socket.heard();
    let first = |text: &str| heard.iter().position(|(_, line)| line == text).expect(text);
    assert_eq!(socket.count("READY=1"), 1);
    assert!(first("READY=1") < first("WATCHDOG=1"));
    let stopping = first("STOPPING=1");
    assert!(heard[stopping..].iter().all(|(_, line)| line != "WATCHDOG=1" && line != "READY=1"), "{heard:?}");
    let meals: Vec<Instant> =
        heard[..stopping].iter().filter(|(_, line)| line == "WATCHDOG=1").map(|(at, _)| *at).collect();
    let gaps = meals.windows(2).map(|pair| pair[1] - pair[0]);
    let longest = gaps.max().expect("several meals");
    assert!(longest <= WATCHDOG / 2, "fed in time while three accounts were read: {longest:?}");
    let last = heard[stopping].0 - *meals.last().unwrap();
    assert!(last <= WATCHDOG / 2, "up to the end: {last:?}");
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
        eprintln!("not checked: socket activation, since there is no `systemd-socket-activate`");
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
    let (ended, _) = terminate(&mut daemon).await;
    assert!(ended.success(), "{ended}");
}
