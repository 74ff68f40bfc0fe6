//! Ten thousand connections with tokens of fifteen minutes on one daemon: is each refreshed once a period, in time, at a
//! pace that the token endpoint bears, and the most endangered first after days of absence?
//!
//! `cargo bench --bench tokens [-- CONNECTIONS [SECONDS [SECONDS_AFTER_ABSENCE]]]` (10,000, 180 and 90 unless said). It
//! starts a Postgres of its own with fsync on, and the daemon as it is shipped; this process plays HubSpot's token
//! endpoint, which rotates refresh tokens and knows one that was used before. The tokens are seeded in the middle of
//! their lives, so that refreshes fall due as in an installation that has run for hours: nothing is compressed, the load
//! is that of the whole period. Then the daemon is stopped, all tokens are put three days into the past, and it is
//! started again. `docs/PERFORMANCE.md` holds the figures.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Form, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::connection::SimpleConnection as _;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bytea, Double, Text, Timestamptz, Uuid as SqlUuid};
use fieldmirror::auth::policy;
use fieldmirror::daemon::postgres::{PrivateServer, socket_url};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::secret::Secret;
use fieldmirror::domain::spec::StreamSpec;
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::providers;
use fieldmirror::vault::{Bound, Vault, generate_key};
use serde_json::{Value, json};
use support::{cpu, peak_mib, postgres_cpu, say};
use tokio::runtime::Runtime;
use uuid::Uuid;

const CONNECTIONS: usize = 10_000;
const STEADY: Duration = Duration::from_mins(3);
const AFTER_ABSENCE: Duration = Duration::from_secs(90);
/// The life of an access token.
const LIFE_S: i64 = 900;
/// How long the endpoint takes to answer.
const ANSWER_IN: Duration = Duration::from_millis(100);
const ABSENT_DAYS: i64 = 3;
/// The pace that HubSpot's description sets: so many requests in ten seconds.
const TEN_SECONDLY_MAX: usize = 200;
/// Refreshes that may overtake a more endangered one: those that are under way at once, and a few that waited.
const DISPLACED_MAX: usize = 60;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_mins(2);
/// Rows in one statement of the seed.
const BATCH: usize = 1_000;

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let seconds = |index: usize, default: Duration| {
        args.get(index).map_or(default, |seconds| Duration::from_secs(*seconds as u64))
    };
    let connections = args.first().copied().unwrap_or(CONNECTIONS);
    let (steady, after) = (seconds(1, STEADY), seconds(2, AFTER_ABSENCE));
    let folder = PathBuf::from(format!("/tmp/fieldmirror-bench-{}", std::process::id()));
    fs::create_dir(&folder).expect("a folder below /tmp");
    let runtime = Runtime::new().expect("a runtime");
    let passed = runtime.block_on(async {
        let server = PrivateServer::start(&folder, None).await.expect("a server");
        let endpoint = Endpoint::start().await;
        let passed = {
            let (folder, endpoint) = (folder.clone(), endpoint.clone());
            tokio::task::spawn_blocking(move || measure(&folder, &endpoint, connections, steady, after))
                .await
                .expect("the measurement ends")
        };
        server.stop().await;
        passed
    });
    fs::remove_dir_all(&folder).expect("our folder");
    assert!(passed, "a limit is not kept");
}

/// A refresh, as the endpoint saw it.
#[derive(Debug, Clone, Copy)]
struct Refresh {
    connection: usize,
    at: DateTime<Utc>,
    /// When the access token that it replaces ends.
    old_expires_at: DateTime<Utc>,
}

#[derive(Debug, Default)]
struct Book {
    /// Of each connection: how many tokens it was given, and when the last one ends.
    tokens: HashMap<usize, (u64, DateTime<Utc>)>,
    refreshes: Vec<Refresh>,
    /// Refresh tokens that had been used before, or were never given.
    replays: usize,
}

/// The token endpoint.
#[derive(Clone)]
struct Endpoint {
    book: Arc<Mutex<Book>>,
    base: String,
}

impl Endpoint {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("a bound listener has an address"));
        let endpoint = Self { book: Arc::default(), base };
        let router = Router::new().route("/token", post(token)).with_state(endpoint.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        endpoint
    }

    fn book<T>(&self, with: impl FnOnce(&mut Book) -> T) -> T {
        with(&mut self.book.lock().expect("nobody panics while holding the book"))
    }

    /// The refresh token of that connection and generation.
    fn refresh_token(connection: usize, given: u64) -> String {
        format!("refresh-{connection}-{given}-{}", "x".repeat(60))
    }
}

async fn token(
    State(endpoint): State<Endpoint>,
    Form(form): Form<HashMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    let now = SystemClock.now();
    let presented = form.get("refresh_token").cloned().unwrap_or_default();
    let connection = presented.split('-').nth(1).and_then(|number| number.parse().ok()).unwrap_or(usize::MAX);
    let given = endpoint.book(|book| {
        let Some((given, expires_at)) = book.tokens.get_mut(&connection) else {
            book.replays += 1;
            return None;
        };
        if presented != Endpoint::refresh_token(connection, *given) {
            book.replays += 1;
            return None;
        }
        *given += 1;
        let old_expires_at = std::mem::replace(expires_at, now + TimeDelta::seconds(LIFE_S));
        let given = *given;
        book.refreshes.push(Refresh { connection, at: now, old_expires_at });
        Some(given)
    });
    tokio::time::sleep(ANSWER_IN).await;
    match given {
        Some(given) => {
            let answer = json!({
                "token_type": "bearer", "expires_in": LIFE_S, "hub_id": connection, "scopes": ["oauth", "tickets"],
                "access_token": format!("access-{connection}-{given}-{}", "y".repeat(200)),
                "refresh_token": Endpoint::refresh_token(connection, given),
            });
            (StatusCode::OK, Json(answer))
        }
        None => {
            (StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN"})))
        }
    }
}

fn measure(
    folder: &Path,
    endpoint: &Endpoint,
    connections: usize,
    steady: Duration,
    after: Duration,
) -> bool {
    let key = generate_key();
    let config = configure(folder, &endpoint.base, &key);
    let migrated = fieldmirror(&config).arg("migrate").status().expect("the command runs");
    assert!(migrated.success(), "the schema is made");
    let mut database = Database::open(folder);
    database.seed(endpoint, &Vault::new(&key, &[]).expect("a good key"), connections);
    let kept = run_steadily(folder, &config, endpoint, &mut database, steady);
    run_after_absence(&config, endpoint, &mut database, after) && kept
}

/// A period in the middle of life.
fn run_steadily(
    folder: &Path,
    config: &Path,
    endpoint: &Endpoint,
    database: &mut Database,
    steady: Duration,
) -> bool {
    let daemon = Process::start(fieldmirror(config).arg("run"));
    database.wait_for_daemon();
    let before = [cpu(daemon.0.id()), postgres_cpu(folder)];
    let (began, mut expired, mut least_left) = (Instant::now(), 0, f64::INFINITY);
    while began.elapsed() < steady {
        std::thread::sleep(SAMPLE_EVERY);
        let sample = database.sample();
        expired = expired.max(sample.expired);
        least_left = least_left.min(sample.least_left_s);
    }
    let took = began.elapsed().as_secs_f64();
    let after = [cpu(daemon.0.id()), postgres_cpu(folder)];
    let peak = peak_mib(daemon.0.id());
    drop(daemon);
    let (refreshes, replays) = endpoint.book(|book| (book.refreshes.clone(), book.replays));
    let mut left: Vec<f64> = refreshes.iter().map(left_s).collect();
    left.sort_by(f64::total_cmp);
    let mut times = HashMap::new();
    for of in &refreshes {
        *times.entry(of.connection).or_insert(0_u32) += 1;
    }
    let doubled = times.values().filter(|count| **count > 1).count();
    let busiest = busiest(&refreshes, 10);
    let rate = count(refreshes.len()) / took;
    say(&format!("refreshes: {} in {took:.0} s, {rate:.1}/s", refreshes.len()));
    say(&format!(
        "most in 10 s: {busiest} (at most {TEN_SECONDLY_MAX}); most in 1 s: {}",
        self::busiest(&refreshes, 1)
    ));
    say(&format!(
        "time left at refresh: least {:.0} s, p1 {:.0} s, p50 {:.0} s, p99 {:.0} s of {LIFE_S} s",
        share(&left, 0.0),
        share(&left, 0.01),
        share(&left, 0.5),
        share(&left, 0.99)
    ));
    say(&format!("least time left of any token at any second: {least_left:.0} s; expired: {expired}"));
    say(&format!("refreshed twice within the time: {doubled}; refresh tokens used twice: {replays}"));
    let [daemon, postgres] = [0, 1].map(|which| (after[which] - before[which]) / took);
    say(&format!(
        "daemon: peak {peak:.1} MiB, {:.1} % of a core; Postgres {:.1} %",
        daemon * 100.0,
        postgres * 100.0
    ));
    expired == 0 && replays == 0 && doubled == 0 && busiest <= TEN_SECONDLY_MAX && !refreshes.is_empty()
}

/// All tokens ran out days ago.
fn run_after_absence(config: &Path, endpoint: &Endpoint, database: &mut Database, time: Duration) -> bool {
    database.age(endpoint);
    endpoint.book(|book| book.refreshes.clear());
    let mut order: Vec<(DateTime<Utc>, usize)> =
        endpoint.book(|book| book.tokens.iter().map(|(id, (_, expires_at))| (*expires_at, *id)).collect());
    order.sort_unstable();
    let place: HashMap<usize, usize> =
        order.into_iter().enumerate().map(|(place, (_, connection))| (connection, place)).collect();
    let daemon = Process::start(fieldmirror(config).arg("run"));
    database.wait_for_daemon();
    std::thread::sleep(time);
    let (refreshes, replays) = endpoint.book(|book| (book.refreshes.clone(), book.replays));
    drop(daemon);
    let displaced = refreshes
        .iter()
        .enumerate()
        .map(|(index, of)| place[&of.connection].abs_diff(index))
        .max()
        .unwrap_or(0);
    let (busiest, rate) = (busiest(&refreshes, 10), count(refreshes.len()) / time.as_secs_f64());
    say(&format!(
        "after {ABSENT_DAYS} days of absence: {} refreshes, {rate:.1}/s, most in 10 s: {busiest}",
        refreshes.len()
    ));
    say(&format!("furthest from the order of endangerment: {displaced} places (at most {DISPLACED_MAX})"));
    say(&format!("refresh tokens used twice: {replays}"));
    displaced <= DISPLACED_MAX && replays == 0 && busiest <= TEN_SECONDLY_MAX && !refreshes.is_empty()
}

fn left_s(of: &Refresh) -> f64 {
    seconds(of.old_expires_at - of.at)
}

fn seconds(span: TimeDelta) -> f64 {
    span.as_seconds_f64()
}

fn count(of: usize) -> f64 {
    f64::from(u32::try_from(of).expect("fewer than 2^32"))
}

fn share(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = (count(sorted.len().saturating_sub(1)) * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// The most refreshes within a span of so many seconds.
fn busiest(refreshes: &[Refresh], span_s: i64) -> usize {
    let (mut most, mut first) = (0, 0);
    for (index, of) in refreshes.iter().enumerate() {
        while of.at - refreshes[first].at >= TimeDelta::seconds(span_s) {
            first += 1;
        }
        most = most.max(index + 1 - first);
    }
    most
}

fn configure(folder: &Path, endpoint: &str, key: &Secret) -> PathBuf {
    let database = socket_url(folder);
    let text = format!(
        r#"[daemon]
state_dir = "{state_dir}"
[database]
url = "{database}"
[callback]
listen = "127.0.0.1:0"
[metrics]
listen = "127.0.0.1:0"
[vault]
key = "{key}"
[providers.hubspot]
client_id = "bench-client"
client_secret = "bench-secret"
api_base = "{endpoint}"
token_url = "{endpoint}/token"

[sync]
poll_interval = "1h"
archived_interval = "1h"
"#,
        state_dir = folder.join("daemon").display(),
        database = database.expose(),
        key = key.expose(),
    );
    let path = folder.join("fieldmirror.toml");
    fs::write(&path, text).expect("a settings file");
    path
}

fn fieldmirror(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldmirror"));
    command.arg("--config").arg(config).arg("-qq");
    command
}

/// A child that does not outlive us.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("a child process"))
    }
}

impl Drop for Process {
    /// A daemon that is asked to stop ends its exchanges first, which a kill would not let it.
    fn drop(&mut self) {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status();
        assert!(asked.is_ok_and(|status| status.success()), "the child is asked to end");
        self.0.wait().expect("the child ends");
    }
}

#[derive(Debug, QueryableByName)]
struct Sample {
    #[diesel(sql_type = BigInt)]
    expired: i64,
    #[diesel(sql_type = Double)]
    least_left_s: f64,
}

#[derive(Debug, QueryableByName)]
struct Id {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

struct Database(PgConnection);

const SEED: &str = "
    INSERT INTO fieldmirror.connections (name, provider, grant_kind, grant_id, state, account_id, connected_at)
    SELECT 'bench-' || n, 'hubspot', 'authorization_code', gen_random_uuid(), 'connected', n::text, now()
    FROM generate_series(0, $1 - 1) n ORDER BY n";
/// All walks of all streams, none of which is due, so that the scheduler has as many to look at as it would have.
const STREAMS: &str = "
    INSERT INTO fieldmirror.stream_state (connection_id, stream, state, backfill_done, complete_to)
    SELECT id, stream, 'idle', true, now() FROM fieldmirror.connections, unnest($1) stream";
const WALKS: &str = "
    INSERT INTO fieldmirror.walks (connection_id, stream, mode, closed_at, due_at)
    SELECT id, w.stream, w.mode, now(), now() + interval '50 min'
    FROM fieldmirror.connections, unnest($1, $2) AS w (stream, mode)";
const TOKENS: &str = "
    INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, access_sealed, refresh_sealed, issued_at, expires_at,
        refresh_due_at, last_refresh_at)
    SELECT c, g, 'oauth', a, r, i, e, d, i FROM unnest($1, $2, $3, $4, $5, $6, $7) AS t (c, g, a, r, i, e, d)";

impl Database {
    fn open(folder: &Path) -> Self {
        Self(PgConnection::establish(socket_url(folder).expose()).expect("a session"))
    }

    /// Tokens of every age between fresh and due.
    fn seed(&mut self, endpoint: &Endpoint, vault: &Vault, connections: usize) {
        let number = i64::try_from(connections).expect("fewer than 2^63");
        diesel::sql_query(SEED).bind::<BigInt, _>(number).execute(&mut self.0).expect("connections");
        let spec = providers::provider("hubspot").expect("a provider of ours").spec();
        let streams: Vec<&str> = spec.streams.iter().map(|stream| stream.name).collect();
        diesel::sql_query(STREAMS).bind::<Array<Text>, _>(&streams).execute(&mut self.0).expect("streams");
        let of = |stream: &'static StreamSpec| stream.modes.iter().map(|mode| (stream.name, mode.as_str()));
        let (streams, modes): (Vec<&str>, Vec<&str>) = spec.streams.iter().flat_map(of).unzip();
        let walks = diesel::sql_query(WALKS).bind::<Array<Text>, _>(&streams).bind::<Array<Text>, _>(&modes);
        walks.execute(&mut self.0).expect("walks");
        self.0.batch_execute("ANALYZE").expect("statistics");
        let rows: Vec<Id> =
            diesel::sql_query("SELECT id FROM fieldmirror.connections ORDER BY account_id::bigint")
                .load(&mut self.0)
                .expect("ids");
        let now = SystemClock.now();
        // From the issue to the refresh at the latest; the jitter of the rule does the rest.
        let span_s = count(usize::try_from(LIFE_S).expect("positive")) * 0.75;
        let numbered: Vec<(usize, i64)> = rows.into_iter().map(|row| row.id).enumerate().collect();
        for batch in numbered.chunks(BATCH) {
            let mut columns = Columns::default();
            for (number, id) in batch {
                // Spread evenly, in an order that has nothing to do with that of the ids.
                let place = count((number * 7_919) % connections) / count(connections);
                #[expect(clippy::cast_possible_truncation, reason = "fewer than a million")]
                let age_ms = (place * span_s * 1000.0) as i64;
                let issued_at = now - TimeDelta::milliseconds(age_ms);
                columns.push(vault, endpoint, (*number, *id), issued_at);
            }
            columns.insert(&mut self.0);
        }
        self.0.batch_execute("ANALYZE").expect("statistics");
    }

    fn wait_for_daemon(&mut self) {
        let since = Instant::now();
        let live = "SELECT 1 / count(*) FROM fieldmirror.daemons";
        while self.0.batch_execute(live).is_err() {
            assert!(since.elapsed() < WAIT_MAX, "the daemon did not sign in");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn sample(&mut self) -> Sample {
        diesel::sql_query(
            "SELECT count(*) FILTER (WHERE expires_at <= now()) AS expired, \
             extract(epoch FROM min(expires_at) - now())::float8 AS least_left_s FROM fieldmirror.tokens",
        )
        .get_result(&mut self.0)
        .expect("the tokens are told")
    }

    /// Puts all tokens into the past. Jobs of before the absence, which have their own order, are taken away.
    fn age(&mut self, endpoint: &Endpoint) {
        self.0
            .batch_execute(&format!(
                "DELETE FROM fieldmirror.jobs; UPDATE fieldmirror.tokens SET issued_at = issued_at - interval '{ABSENT_DAYS} d', \
                 expires_at = expires_at - interval '{ABSENT_DAYS} d', refresh_due_at = refresh_due_at - interval '{ABSENT_DAYS} d'"
            ))
            .expect("tokens age");
        endpoint.book(|book| {
            for (_, expires_at) in book.tokens.values_mut() {
                *expires_at -= TimeDelta::days(ABSENT_DAYS);
            }
        });
    }
}

#[derive(Default)]
struct Columns {
    connections: Vec<i64>,
    grants: Vec<Uuid>,
    access: Vec<Vec<u8>>,
    refresh: Vec<Vec<u8>>,
    issued_at: Vec<DateTime<Utc>>,
    expires_at: Vec<DateTime<Utc>>,
    due_at: Vec<DateTime<Utc>>,
}

impl Columns {
    fn push(
        &mut self,
        vault: &Vault,
        endpoint: &Endpoint,
        (number, id): (usize, i64),
        issued_at: DateTime<Utc>,
    ) {
        let grant = Uuid::new_v4();
        let seal = |column, text: &str| {
            vault.seal(text.as_bytes(), &Bound { connection: ConnectionId(id), grant, column })
        };
        let expires_at = issued_at + TimeDelta::seconds(LIFE_S);
        let jitter = count((number * 31) % 100) / 100.0;
        self.connections.push(id);
        self.grants.push(grant);
        self.access.push(seal("tokens.access_sealed", &format!("access-{number}-0-{}", "y".repeat(200))));
        self.refresh.push(seal("tokens.refresh_sealed", &Endpoint::refresh_token(number, 0)));
        self.issued_at.push(issued_at);
        self.expires_at.push(expires_at);
        self.due_at.push(policy::refresh_due_at(issued_at, expires_at, jitter));
        endpoint.book(|book| book.tokens.insert(number, (0, expires_at)));
    }

    fn insert(self, conn: &mut PgConnection) {
        diesel::sql_query(TOKENS)
            .bind::<Array<BigInt>, _>(self.connections)
            .bind::<Array<SqlUuid>, _>(self.grants)
            .bind::<Array<Bytea>, _>(self.access)
            .bind::<Array<Bytea>, _>(self.refresh)
            .bind::<Array<Timestamptz>, _>(self.issued_at)
            .bind::<Array<Timestamptz>, _>(self.expires_at)
            .bind::<Array<Timestamptz>, _>(self.due_at)
            .execute(conn)
            .expect("tokens");
    }
}
