//! The whole daemon under attack: a flood, and codes that are somebody else's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fieldmirror::auth::ticket;
use fieldmirror::sandbox::SandboxOptions;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use url::Url;

use super::raw::{answer, exchange};
use crate::auth::rig::{Shown, state_of};
use crate::support::app::{HUB, TestApp, get, small};

const FLOOD: usize = 10_000;
/// How often `/readyz` is asked after it.
const LOOKS_AFTER: usize = 10;
/// Connections that it comes over.
const LANES: usize = 16;
/// Requests of a lane over one of them.
const EACH_CONNECTION: usize = 100;
/// What a daemon may grow by, in kB: buffers of the connections, and what the allocator keeps.
const GROWTH_MAX_KB: u64 = 48 * 1024;
/// So many times in a row the daemon may be late to say that it is ready.
const LATE_MAX: usize = 20;

fn address(app: &TestApp) -> SocketAddr {
    app.endpoint.strip_prefix("http://").and_then(|text| text.parse().ok()).expect("an address")
}

async fn visit(app: &TestApp, target: &str, cookie: Option<&str>) -> Shown {
    let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
    let text = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{cookie}\r\n");
    answer(&exchange(address(app), text.as_bytes()).await)
}

async fn ask(app: &TestApp, provider: &str, name: &str) -> Value {
    app.run(&format!("enqueue --connect {provider} --name {name} --no-wait --json")).await.done().last()
}

/// A browser follows the start link and agrees. Returns the address it is sent back to, and its cookie.
async fn agree(app: &TestApp, asked: &Value, account: impl std::fmt::Display) -> (Url, String) {
    let start = Url::parse(asked["start_url"].as_str().expect("a link was made")).unwrap();
    let started = visit(app, start.path(), None).await;
    assert_eq!(started.status, 302, "{}", started.body);
    let mut page = Url::parse(started.header("location").unwrap()).unwrap();
    page.query_pairs_mut().append_pair("auto", "approve").append_pair("account", &account.to_string());
    let (status, location, body) = get(&page).await;
    let location = location.unwrap_or_else(|| panic!("the consent page answered {status}: {body}"));
    (Url::parse(&location).unwrap(), started.cookie().unwrap().to_owned())
}

fn target(url: &Url) -> &str {
    &url[url::Position::BeforePath..url::Position::AfterQuery]
}

/// What is genuine among what is sent, and how often it came past the door.
struct Ammunition {
    /// The state of a consent at HubSpot that is under way.
    state: String,
    /// Of one that has been answered.
    used: String,
    /// Of one that is under way at Jobber.
    foreign: String,
    /// The path of a start link.
    start: String,
    replays: AtomicUsize,
    starts: AtomicUsize,
}

const REPLAYED: &[u16] = &[400, 429];
const STARTED: &[u16] = &[302, 429];

impl Ammunition {
    /// The requests of the flood by number, with the answers that each may get.
    fn hostile(&self, number: usize) -> (String, &'static [u16]) {
        let Self { state, used, foreign, start, .. } = self;
        let forged = {
            let at = number % state.len();
            let other = if &state[at..=at] == "A" { "B" } else { "A" };
            format!("{}{other}{}", &state[..at], &state[at + 1..])
        };
        match number % 11 {
            0 | 1 => (format!("GET /oauth/callback/hubspot?code=C&state={forged}"), &[400]),
            2 => {
                (format!("GET /oauth/callback/hubspot?error=access_denied&state={}", "A".repeat(96)), &[400])
            }
            3 => (format!("GET /connect/{number:A>86}"), &[400]),
            4 => (format!("GET /oauth/callback/jobber?code=C&state={state}"), &[400]),
            5 => (format!("GET /oauth/callback/hubspot?code={number}"), &[400]),
            6 => (format!("GET /{number}?{}", "x".repeat(number % 2000)), &[404]),
            7 => (format!("POST /oauth/callback/hubspot?code=C&state={state}"), &[404]),
            // What follows is genuine by its MAC.
            8 => (format!("GET /oauth/callback/hubspot?code={number}&state={used}"), REPLAYED),
            9 => (format!("GET /oauth/callback/hubspot?code={number}&state={foreign}"), &[400]),
            _ => (format!("GET {start}"), STARTED),
        }
    }

    fn note(&self, allowed: &'static [u16], status: u16) {
        match (allowed, status) {
            (REPLAYED, 400) => _ = self.replays.fetch_add(1, Ordering::Relaxed),
            (STARTED, 302) => _ = self.starts.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Whether this is counted together with what the flood uses up: one in 256 is.
    fn shares_a_limit_with(&self, text: &str) -> bool {
        let slot = |text: &str| ticket::hash(text)[0];
        let start = self.start.rsplit('/').next().expect("a ticket");
        [slot(start), slot(&self.used)].contains(&slot(text))
    }
}

/// Three consents: one under way, one that was declined, one at another provider; and a start link.
async fn ammunition(app: &TestApp, acme: &Value) -> Ammunition {
    let state = |asked: &Value| state_of(&Url::parse(asked["authorize_url"].as_str().unwrap()).unwrap());
    let used = state(&ask(app, "hubspot", "used").await);
    let declined =
        visit(app, &format!("/oauth/callback/hubspot?error=access_denied&state={used}"), None).await;
    assert_eq!(declined.status, 400);
    assert!(declined.body.contains("Access was declined"), "{}", declined.body);
    let linked = ask(app, "hubspot", "linked").await;
    let start = Url::parse(linked["start_url"].as_str().unwrap()).unwrap().path().to_owned();
    let foreign = state(&ask(app, "jobber", "foreign").await);
    Ammunition { state: state(acme), used, foreign, start, replays: 0.into(), starts: 0.into() }
}

/// Sends every `LANES`th request of the flood on one connection, one after the other; on another one now and then, for none
/// lives long enough for a slow machine.
async fn lane(to: SocketAddr, first: usize, count: usize, ammunition: Arc<Ammunition>) {
    let mut stream = BufReader::new(TcpStream::connect(to).await.unwrap());
    for (sent, number) in (first..count).step_by(LANES).enumerate() {
        if sent % EACH_CONNECTION == EACH_CONNECTION - 1 {
            stream = BufReader::new(TcpStream::connect(to).await.unwrap());
        }
        let (line, allowed) = ammunition.hostile(number);
        let text =
            format!("{line} HTTP/1.1\r\nHost: x\r\nCookie: fieldmirror_attempt_hubspot_x={number}\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let status = status_of_next(&mut stream).await;
        assert!(allowed.contains(&status), "{status}: {line}");
        ammunition.note(allowed, status);
    }
}

async fn status_of_next(stream: &mut BufReader<TcpStream>) -> u16 {
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line == "\r\n" {
            break;
        }
        status = status.or_else(|| line.split(' ').nth(1)?.parse().ok());
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    status.expect("a status line")
}

async fn flood(to: SocketAddr, count: usize, ammunition: &Arc<Ammunition>) {
    let lanes = (0..LANES).map(|first| tokio::spawn(lane(to, first, count, Arc::clone(ammunition))));
    for lane in lanes.collect::<Vec<_>>() {
        lane.await.unwrap();
    }
}

async fn flood_until(over: Arc<AtomicBool>, to: SocketAddr, ammunition: Arc<Ammunition>) {
    while !over.load(Ordering::Relaxed) {
        flood(to, FLOOD / 20, &ammunition).await;
    }
}

/// Transactions of the daemon's database so far.
async fn transactions(app: &TestApp) -> i64 {
    app.number("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
        .await
}

fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory is told");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_leaves_everything_well() {
    let app = Arc::new(TestApp::new(small(20), &[]).await);
    let mut daemon = app.spawn_daemon("");
    let pid = daemon.id().expect("it runs");
    let mut asked = ask(&app, "hubspot", "acme").await;
    let ammunition = Arc::new(ammunition(&app, &asked).await);
    let to = address(&app);
    // What a daemon does when nobody asks anything.
    let first = Instant::now();
    flood(to, FLOOD / 20, &ammunition).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = transactions(&app).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle_per_second = (transactions(&app).await - before) / 3;

    let (before, memory, began) = (transactions(&app).await, resident_kb(pid), Instant::now());
    let (over, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let looking = tokio::spawn(look(Arc::clone(&app), Arc::clone(&over), Arc::clone(&looks)));
    flood(to, FLOOD, &ammunition).await;
    let few = looks.load(Ordering::Relaxed);
    assert!(few > 0, "`/readyz` was not answered while the flood lasted");
    // What comes of it afterwards counts too.
    while looks.load(Ordering::Relaxed) < few + LOOKS_AFTER {
        assert!(!looking.is_finished(), "`/readyz` failed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    over.store(true, Ordering::Relaxed);
    looking.await.unwrap();
    let (spent, took) = (transactions(&app).await - before, began.elapsed());
    let usual = idle_per_second * i64::try_from(took.as_secs() + 1).unwrap();
    // A start link and a consent are worked on twenty times at once, and once more every three seconds.
    let (replays, starts) = (&ammunition.replays, &ammunition.starts);
    let admitted = [replays, starts].map(|count| count.load(Ordering::Relaxed));
    let admitted_max = 20 + first.elapsed().as_secs() / 3 + 1;
    let within = |count: &usize| *count > 0 && *count as u64 <= admitted_max;
    assert!(admitted.iter().all(within), "{admitted:?} replays and starts came past the door in {took:?}");
    // Each of these costs a handful of transactions at most; `/readyz` asks the database too, twice a second at most.
    let bound = usual * 2 + 5 * 2 * i64::try_from(admitted_max).unwrap() + 100;
    assert!(spent < bound, "{spent} transactions in {took:?}, {usual} were usual, {bound} would be too many");
    let grown = resident_kb(pid).saturating_sub(memory);
    assert!(grown < GROWTH_MAX_KB, "it grew by {grown} kB");
    // The rows that it wrote: one for each start of the link.
    let attempts = app.number("SELECT count(*) FROM fieldmirror.authorization_attempts").await;
    assert_eq!(attempts, 4 + i64::try_from(starts.load(Ordering::Relaxed)).unwrap());
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.tokens").await, 0);
    assert_eq!(app.asked("token_exchange"), 0, "no code was traded");

    // A consent in the midst of it.
    while ammunition.shares_a_limit_with(asked["start_url"].as_str().unwrap().rsplit('/').next().unwrap()) {
        asked = ask(&app, "hubspot", "acme").await;
    }
    let over = Arc::new(AtomicBool::new(false));
    let flooding = tokio::spawn(flood_until(Arc::clone(&over), to, Arc::clone(&ammunition)));
    let (back, cookie) = loop {
        let (back, cookie) = agree(&app, &asked, HUB).await;
        if !ammunition.shares_a_limit_with(&state_of(&back)) {
            break (back, cookie);
        }
    };
    let shown = visit(&app, target(&back), Some(&cookie)).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    over.store(true, Ordering::Relaxed);
    flooding.await.unwrap();
    app.all_read().await;
    assert_eq!(daemon.try_wait().unwrap(), None, "the daemon lives");
    let log = std::fs::read_to_string(app.folder.join("daemon.log")).unwrap();
    assert!(log.lines().count() < 200, "a flood fills no log: {} lines", log.lines().count());
    daemon.kill().await.unwrap();
}

/// Asks whether the daemon is ready until the flood is over, and counts how often it is. A machine that is short of
/// processors may be late once in a while; it always answers, and is ready again the next time.
async fn look(app: Arc<TestApp>, over: Arc<AtomicBool>, looks: Arc<AtomicUsize>) {
    let mut late = 0;
    while !over.load(Ordering::Relaxed) {
        let shown = visit(&app, "/readyz", None).await;
        late = if shown.status == 200 { 0 } else { late + 1 };
        assert!(late < LATE_MAX, "{late} times in a row: {} {}", shown.status, shown.body);
        looks.fetch_add(usize::from(late == 0), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The code of one answer with the state of another.
fn crossed(code: &Url, state: &Url) -> String {
    let part = |url: &Url, name: &str| {
        url.query_pairs().find(|(key, _)| key == name).expect("it has it").1.into_owned()
    };
    format!("{}?code={}&state={}", state.path(), part(code, "code"), part(state, "state"))
}

/// A code that was caught on its way is of no use with any other state: the proof key is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_code_connects_nothing() {
    let app = TestApp::new(SandboxOptions { accounts: 2, ..small(20) }, &[]).await;
    let daemon = app.daemon().await;
    let (victim, evil) = (ask(&app, "hubspot", "victim").await, ask(&app, "hubspot", "evil").await);
    let (theirs, their_cookie) = agree(&app, &victim, HUB).await;
    let (own, own_cookie) = agree(&app, &evil, HUB + 1).await;
    let shown = visit(&app, &crossed(&theirs, &own), Some(&own_cookie)).await;
    assert!([400, 502].contains(&shown.status), "{}", shown.body);
    // The attacker's answer, followed by the victim's browser.
    let shown = visit(&app, target(&own), Some(&their_cookie)).await;
    assert_eq!(shown.status, 400, "{}", shown.body);
    assert_eq!(app.number("SELECT count(*) FROM fieldmirror.tokens").await, 0);
    let connected = "SELECT count(*) FROM fieldmirror.connections WHERE state = 'connected'";
    assert_eq!(app.number(connected).await, 0);
    // The victim's own is still good.
    let shown = visit(&app, target(&theirs), Some(&their_cookie)).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    let account = "SELECT account_id FROM mirror.connections WHERE name = 'victim'";
    assert_eq!(app.one(account).await, HUB.to_string());
    assert_eq!(app.number(connected).await, 1);
    daemon.stop().await;
}

/// Where the provider knows no proof keys, a caught code is as good with a state of one's own. It still reaches no account
/// that is somebody's already, changes the account of no connection, and what it makes bears the account's own name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_code_without_a_proof_key_takes_nothing_over() {
    let app = TestApp::new(SandboxOptions { accounts: 2, ..small(20) }, &[]).await;
    let daemon = app.daemon().await;
    let ids = app.sandbox.control().oncehub().account_ids();
    let by_consent =
        async |what: &str| app.run(&format!("enqueue {what} --no-wait --json")).await.done().last();
    let connect = "--grant authorization_code --connect oncehub --name";
    let held =
        "SELECT jsonb_object_agg(name, account_id) FROM fieldmirror.connections WHERE state = 'connected'";

    // An account that is connected: its code makes no second connection.
    let (victim, evil) =
        (by_consent(&format!("{connect} victim")).await, by_consent(&format!("{connect} evil")).await);
    let (theirs, their_cookie) = agree(&app, &victim, &ids[0]).await;
    assert_eq!(visit(&app, target(&theirs), Some(&their_cookie)).await.status, 200);
    let again = by_consent("--reconnect victim").await;
    let (theirs, their_cookie) = agree(&app, &again, &ids[0]).await;
    let (own, own_cookie) = agree(&app, &evil, &ids[1]).await;
    let shown = visit(&app, &crossed(&theirs, &own), Some(&own_cookie)).await;
    assert_eq!(shown.status, 400, "{}", shown.body);
    assert!(shown.body.contains("connected already"), "{}", shown.body);
    assert_eq!(app.one(held).await, serde_json::json!({"victim": ids[0]}));
    // Nor does the attacker's answer in the victim's browser.
    assert_eq!(visit(&app, target(&own), Some(&their_cookie)).await.status, 400);

    // A connection keeps its account, whoever consents.
    let (own, own_cookie) = agree(&app, &evil, &ids[1]).await;
    let shown = visit(&app, target(&own), Some(&own_cookie)).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    let again = by_consent("--reconnect victim").await;
    let (mine, my_cookie) = agree(&app, &again, &ids[0]).await;
    let other = by_consent("--reconnect evil").await;
    let (own, _) = agree(&app, &other, &ids[1]).await;
    let shown = visit(&app, &crossed(&own, &mine), Some(&my_cookie)).await;
    assert_eq!(shown.status, 400, "{}", shown.body);
    assert!(shown.body.contains("another account"), "{}", shown.body);
    assert_eq!(app.one(held).await, serde_json::json!({"victim": ids[0], "evil": ids[1]}));
    daemon.stop().await;
}
