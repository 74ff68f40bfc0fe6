//! The Prometheus page of a running daemon, and the document about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use fieldmirror::domain::measure;
use url::Url;

use crate::support::app::{HUB, PATIENCE, TestApp, get, send, small};

const DOCUMENT: &str = include_str!("../../docs/METRICS.md");
const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");
const RECORDS: usize = 60;

/// A page, read as Prometheus reads it.
#[derive(Debug, Default)]
struct Page {
    types: BTreeMap<String, String>,
    help: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Page {
    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let described = line.strip_prefix("# ").map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>());
            match described.as_deref() {
                Some(["TYPE", name, kind]) => {
                    let twice = page.types.insert((*name).to_owned(), (*kind).to_owned());
                    assert_eq!(twice, None, "`{name}` stands in two places");
                }
                Some(["HELP", name, help]) => {
                    page.help.insert((*name).to_owned(), (*help).to_owned());
                }
                Some(other) => panic!("{other:?}"),
                None => page.samples.push(Sample::parse(line)),
            }
        }
        page
    }

    /// The sum of the samples of `name` that carry `labels`; none where there is no such sample.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let carries = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
        };
        let found: Vec<f64> = self.samples.iter().filter(carries).map(|sample| sample.value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    #[track_caller]
    fn at_least(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        let value = self.value(name, labels);
        assert!(value.is_some_and(|value| value >= least), "{name} {labels:?}: {value:?}, not {least}");
    }
}

impl Sample {
    /// `name{label="value",…} number`. No value of a label in these tests holds a quote.
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
        let labels = labels.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
            let (label, value) = pair.split_once('=').unwrap_or_else(|| panic!("{line}"));
            (label.to_owned(), value.trim_matches('"').to_owned())
        });
        Self { name: name.to_owned(), labels: labels.collect(), value }
    }
}

async fn page(address: SocketAddr) -> String {
    let (status, _, body) = get(&Url::parse(&format!("http://{address}/metrics")).unwrap()).await;
    assert_eq!(status, 200, "{body}");
    body
}

/// Asks until the page is as it should be: a look at the tables counts for some seconds.
async fn page_with(address: SocketAddr, what: &str, good: impl Fn(&Page) -> bool) -> Page {
    let began = Instant::now();
    loop {
        let text = page(address).await;
        let parsed = Page::parse(&text);
        if good(&parsed) {
            return parsed;
        }
        assert!(began.elapsed() < PATIENCE, "not in time: {what}\n{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The tables of a document: a row for each metric.
fn documented(document: &'static str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let rows = document.lines().filter(|line| line.starts_with("| `fieldmirror_"));
    let cells = rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>());
    let mut found = BTreeMap::new();
    for cells in cells {
        let [name, rest @ ..] = cells.as_slice() else { continue };
        assert_eq!(found.insert(name.trim_matches('`'), rest.to_vec()), None, "{name} twice");
    }
    found
}

#[test]
fn the_document_names_what_there_is() {
    let (remedies, documented) = (documented(OPERATIONS), documented(DOCUMENT));
    let names: BTreeSet<&str> = measure::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), names);
    assert_eq!(remedies.keys().copied().collect::<BTreeSet<_>>(), names);
    for metric in measure::ALL {
        let [kind, labels, meaning, off] = documented[metric.name].as_slice() else {
            panic!("{}: not five columns", metric.name)
        };
        let [remedy] = remedies[metric.name].as_slice() else { panic!("{}: not two columns", metric.name) };
        let told: Vec<&str> = labels.split_whitespace().map(|label| label.trim_matches('`')).collect();
        assert_eq!((*kind, told.as_slice()), (metric.kind.as_str(), metric.labels), "{}", metric.name);
        assert_eq!(*meaning, metric.help, "{}", metric.name);
        check_expressions(metric.name, off);
        check_remedy(metric.name, remedy);
    }
}

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The first expression is one for an alert: it compares this metric, with metrics and labels that there are.
fn check_expressions(name: &str, off: &str) {
    let first = quoted(off).next().unwrap_or_else(|| panic!("{name}: no expression in {off}"));
    assert!(first.contains(name) && first.contains([' ', '=', '<', '>']), "{name}: {first}");
    assert!(
        [" > ", " < ", " == ", " >= "].iter().any(|compares| first.contains(compares)),
        "{name}: {first}"
    );
    for open in ["()", "[]", "{}"] {
        let count = |at: usize| first.matches(&open[at..=at]).count();
        assert_eq!(count(0), count(1), "{name}: {open} in {first}");
    }
    let word = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    for (at, _) in first.match_indices("fieldmirror_") {
        let rest = &first[at..];
        let end = rest.find(|letter| !word(letter)).unwrap_or(rest.len());
        let (found, after) = rest.split_at(end);
        let metric = measure::ALL.iter().find(|metric| {
            found == metric.name
                || metric.kind.as_str() == "histogram" && found == format!("{}_bucket", metric.name)
        });
        let metric = metric.unwrap_or_else(|| panic!("{name}: there is no `{found}`: {first}"));
        let Some((matchers, _)) = after.strip_prefix('{').and_then(|after| after.split_once('}')) else {
            continue;
        };
        for matcher in matchers.split(',') {
            let label = matcher.split(['=', '!']).next().unwrap_or_default();
            assert!(metric.labels.contains(&label), "{name}: `{found}` has no label `{label}`");
        }
    }
}

/// A sentence that names where to go next: a command, a setting, a table, another metric.
fn check_remedy(name: &str, remedy: &str) {
    assert!(remedy.split_whitespace().count() >= 8, "{name}: {remedy}");
    let leads = ["fieldmirror ", "journalctl ", "systemctl ", "mirror.", "providers."];
    let sections = ["daemon.", "database.", "sync.", "alerts.", "callback."];
    let is_next = |quote: &str| leads.iter().chain(&sections).any(|start| quote.starts_with(start));
    assert!(quoted(remedy).any(is_next), "{name}: what next? {remedy}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_daemon_shows_every_metric_that_is_documented_and_no_other() {
    let app = TestApp::new(small(RECORDS), &[]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    let requested = app.run("enqueue --refresh acme --wait --json").await.done().last();
    assert_eq!(requested["requests"][0]["outcome"], "done", "{requested}");
    let rows = app.number("SELECT rows FROM mirror.freshness WHERE stream = 'tickets'").await;
    let tickets = [("connection", "acme"), ("stream", "tickets")];
    #[expect(clippy::cast_precision_loss, reason = "some dozens of rows")]
    let rows = rows as f64;
    let shown = page_with(daemon.metrics_addr, "all rows", |page| {
        // A turn is counted when it has ended, which is after its last page can be seen.
        let turns = page.value("fieldmirror_sync_turns_total", &[("outcome", "done")]);
        let jobs = page.value("fieldmirror_jobs_ended_total", &[("kind", "sync"), ("outcome", "done")]);
        page.value("fieldmirror_stream_rows", &tickets) == Some(rows)
            && page.value("fieldmirror_token_consecutive_failures", &[]) == Some(0.0)
            && turns > Some(0.0)
            && jobs > Some(0.0)
    })
    .await;

    let documented = documented(DOCUMENT);
    let types: BTreeMap<&str, &str> =
        shown.types.iter().map(|(name, kind)| (name.as_str(), kind.as_str())).collect();
    assert_eq!(types, documented.iter().map(|(name, cells)| (*name, cells[0])).collect());
    for metric in measure::ALL {
        assert_eq!(shown.help.get(metric.name).map(String::as_str), Some(metric.help), "{}", metric.name);
    }
    for sample in &shown.samples {
        let suffixes = ["_bucket", "_sum", "_count"];
        let base = suffixes.iter().find_map(|suffix| sample.name.strip_suffix(suffix));
        let name = base.filter(|base| documented.contains_key(base)).unwrap_or(&sample.name);
        let cells = documented.get(name).unwrap_or_else(|| panic!("{sample:?}"));
        let labels: BTreeSet<&str> =
            cells[1].split_whitespace().map(|label| label.trim_matches('`')).collect();
        let carried = sample.labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
        assert_eq!(labels, carried, "{sample:?}");
        let account = HUB.to_string();
        assert!(sample.labels.values().all(|value| !value.contains(&account)), "{sample:?}");
    }

    // What was done has been counted. Other tests count in the same process, so there may be more.
    let hubspot = ("provider", "hubspot");
    shown.at_least("fieldmirror_provider_requests_total", &[hubspot], 4.0);
    shown.at_least("fieldmirror_provider_responses_total", &[hubspot, ("status", "200")], 4.0);
    shown.at_least("fieldmirror_provider_response_duration_seconds_count", &[hubspot], 4.0);
    shown.at_least("fieldmirror_token_refreshes_total", &[hubspot], 1.0);
    shown.at_least("fieldmirror_sync_turns_total", &[("outcome", "done")], 1.0);
    shown.at_least("fieldmirror_sync_turn_duration_seconds_count", &[], 1.0);
    shown.at_least("fieldmirror_sync_runs_total", &[("stream", "tickets"), ("outcome", "closed")], 1.0);
    shown.at_least("fieldmirror_sync_pages_total", &[("stream", "tickets")], 1.0);
    shown.at_least("fieldmirror_sync_rows_written_total", &[("stream", "tickets")], rows);
    shown.at_least("fieldmirror_sync_records_total", &[("stream", "tickets")], rows);
    shown.at_least("fieldmirror_jobs_ended_total", &[("kind", "sync"), ("outcome", "done")], 1.0);
    shown.at_least("fieldmirror_scheduler_ticks_total", &[("outcome", "done")], 1.0);
    shown.at_least("fieldmirror_callback_responses_total", &[("route", "callback"), ("status", "200")], 1.0);

    // What is, is this database's alone.
    let is = |name: &str, labels: &[(&str, &str)]| shown.value(name, labels);
    assert_eq!(is("fieldmirror_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    assert_eq!(is("fieldmirror_database_up", &[]), Some(1.0));
    assert_eq!(is("fieldmirror_daemons", &[]), Some(1.0));
    assert_eq!(is("fieldmirror_database_pool_connections_max", &[]), Some(4.0));
    assert_eq!(is("fieldmirror_connection_state", &[("connection", "acme")]), Some(1.0));
    assert_eq!(is("fieldmirror_connection_state", &[("state", "connected")]), Some(1.0));
    assert_eq!(is("fieldmirror_stream_backfill_ratio", &tickets), Some(1.0));
    assert_eq!(is("fieldmirror_queue_jobs", &[("state", "parked")]), Some(0.0));
    let lag = is("fieldmirror_stream_lag_seconds", &tickets).expect("a lag");
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&lag), "{lag}");
    let age = is("fieldmirror_token_age_seconds", &[]).expect("an age");
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&age), "{age}");
    let expiry = is("fieldmirror_token_expiry_seconds", &[]).expect("an expiry");
    assert!((60.0..1_801.0).contains(&expiry), "{expiry}");
    assert_eq!(is("fieldmirror_token_refresh_overdue_seconds", &[]), Some(0.0));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_failures_are_counted() {
    let app = TestApp::new(small(RECORDS), &[]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    let before = Page::parse(&page(daemon.metrics_addr).await);
    let before = |name: &str, labels: &[(&str, &str)]| before.value(name, labels).unwrap_or(0.0);
    let refusals = before("fieldmirror_provider_refusals_total", &[("provider", "hubspot")]);
    let failed = [("provider", "hubspot"), ("kind", "transient")];
    let failures = before("fieldmirror_token_refresh_failures_total", &failed);
    app.faults(&["throttle_storm=on:search", "http_503=on:token_refresh"]);
    app.run("enqueue --refresh acme --json").await;
    app.run("enqueue --resync acme").await;
    page_with(daemon.metrics_addr, "a refusal and a failed refresh", |page| {
        page.value("fieldmirror_provider_refusals_total", &[("provider", "hubspot")]) > Some(refusals)
            && page.value("fieldmirror_provider_responses_total", &[("status", "429")]) > Some(0.0)
            && page.value("fieldmirror_token_refresh_failures_total", &failed) > Some(failures)
            && page.value("fieldmirror_token_consecutive_failures", &[("connection", "acme")]) > Some(0.0)
    })
    .await;
    daemon.stop().await;
}

/// A job that nobody runs, one that is parked, and requests that nobody answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_shown_as_the_tables_have_it() {
    let app = TestApp::new(small(RECORDS), &[]).await;
    let daemon = app.daemon().await;
    app.execute(
        "INSERT INTO fieldmirror.jobs (kind, run_at) VALUES ('nobodys', now() - interval '5 min');
         INSERT INTO fieldmirror.jobs (kind, state, run_at) VALUES ('wreck', 'parked', now() - interval '1 h')",
    )
    .await;
    app.run("enqueue --connect hubspot --name late --no-wait --json").await.done();
    let shown = page_with(daemon.metrics_addr, "the jobs", |page| {
        page.value("fieldmirror_queue_jobs", &[("kind", "wreck"), ("state", "parked")]) == Some(1.0)
            && page.value("fieldmirror_connection_state", &[("state", "awaiting_consent")]) == Some(1.0)
    })
    .await;
    assert_eq!(
        shown.value("fieldmirror_queue_jobs", &[("kind", "nobodys"), ("state", "pending")]),
        Some(1.0)
    );
    let age = shown.value("fieldmirror_queue_oldest_due_seconds", &[("kind", "nobodys")]).expect("an age");
    assert!((300.0..300.0 + PATIENCE.as_secs_f64()).contains(&age), "{age}");
    assert_eq!(shown.value("fieldmirror_queue_oldest_due_seconds", &[("kind", "wreck")]), Some(0.0));
    assert_eq!(shown.value("fieldmirror_admin_requests_open", &[("kind", "connect")]), Some(1.0));
    assert_eq!(shown.value("fieldmirror_token_age_seconds", &[]), None, "there is no token");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_is_told_at_once() {
    const ASKERS: u32 = 60;
    const LOOK: Duration = Duration::from_secs(2);
    let app = TestApp::new(small(RECORDS), &[]).await;
    let daemon = app.daemon().await;
    page_with(daemon.metrics_addr, "it answers", |page| {
        page.value("fieldmirror_database_up", &[]) == Some(1.0)
    })
    .await;
    let (held, release) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let holder = app.db.clone();
    let holding = tokio::spawn(async move {
        let held_by = holder.transaction(move |connection| {
            connection.batch_execute("LOCK TABLE fieldmirror.connections IN ACCESS EXCLUSIVE MODE")?;
            held.0.send(()).unwrap();
            release.1.recv_timeout(PATIENCE).unwrap();
            Ok(())
        });
        held_by.await.unwrap();
    });
    held.1.recv_timeout(PATIENCE).unwrap();
    let away = page_with(daemon.metrics_addr, "it does not answer", |page| {
        page.value("fieldmirror_database_up", &[]) == Some(0.0)
    })
    .await;
    assert_eq!(away.value("fieldmirror_queue_jobs", &[]), None);
    assert_eq!(away.value("fieldmirror_build_info", &[]), Some(1.0), "the daemon's own stays");
    // Many who ask wait for one look, of which each takes two seconds now.
    let began = Instant::now();
    let askers = (0..ASKERS).map(|_| page(daemon.metrics_addr));
    futures_util::future::join_all(askers).await;
    assert!(began.elapsed() < LOOK * ASKERS, "{:?}", began.elapsed());
    release.0.send(()).unwrap();
    holding.await.unwrap();
    page_with(daemon.metrics_addr, "it answers again", |page| {
        page.value("fieldmirror_database_up", &[]) == Some(1.0)
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_else_is_served_there() {
    let app = TestApp::new(small(RECORDS), &[]).await;
    let daemon = app.daemon().await;
    let at = daemon.metrics_addr.to_string();
    let asked = |line: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        let at = at.clone();
        async move { send(&at, &request).await }
    };
    let page = asked("GET /metrics").await;
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    assert!(page.to_lowercase().contains("\r\ncontent-type: text/plain; version=0.0.4"), "{page}");
    for line in
        ["GET /", "GET /metrics/", "GET /healthz", "POST /metrics", "DELETE /metrics", "GET /connect/x"]
    {
        let answer = asked(line).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{line}: {answer}");
    }
    let (status, _, _) = get(&Url::parse(&format!("{}/metrics", app.endpoint)).unwrap()).await;
    assert_eq!(status, 404, "not where browsers come");
    daemon.stop().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_by_its_key() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let app = TestApp::new(small(1), &[("metrics.listen", &address)]).await;
    let ran = app.run("run").await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains(&format!("listening on {address}, the setting `metrics.listen`")), "{ran:?}");
}
