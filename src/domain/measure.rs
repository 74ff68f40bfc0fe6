//! What the daemon counts and shows to Prometheus: every name, its labels and its meaning, and the functions that those
//! call to whom something happens. `docs/METRICS.md` tells the same, docs/OPERATIONS.md what to do; a test compares them.
//!
//! Nothing is kept or shown here: until somebody installs a recorder (`daemon::metrics`), all of it does nothing. Labels
//! are bounded by what is configured: names of providers, connections, streams and our own words, never ids of accounts,
//! paths or anything else that a provider or a browser sent.

use std::time::Duration;

use metrics::Label;

use super::failure::FailureKind;
use super::spec::ProviderSpec;

/// How a metric behaves, in Prometheus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, and starts at 0 with the process.
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Metric {
    const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, labels, help }
    }

    const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind: MetricKind::Gauge, labels, help }
    }

    const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram, labels, help }
    }

    /// `values` in the order of the labels.
    fn labelled(&self, values: &[&str]) -> Vec<Label> {
        debug_assert_eq!(self.labels.len(), values.len(), "{}", self.name);
        self.labels.iter().zip(values).map(|(label, value)| Label::new(*label, (*value).to_owned())).collect()
    }

    fn add(&self, values: &[&str], by: u64) {
        metrics::counter!(self.name, self.labelled(values)).increment(by);
    }

    pub fn set(&self, values: &[&str], to: f64) {
        metrics::gauge!(self.name, self.labelled(values)).set(to);
    }

    /// Begins a series before its first event.
    fn begin(&self, values: &[&str]) {
        match self.kind {
            MetricKind::Counter => self.add(values, 0),
            MetricKind::Gauge => self.set(values, 0.0),
            MetricKind::Histogram => drop(metrics::histogram!(self.name, self.labelled(values))),
        }
    }

    /// Begins a series for each word that its last label may be.
    fn begin_each(&self, values: &[&str], words: &[&str]) {
        for word in words {
            self.begin(&[values, &[*word]].concat());
        }
    }

    fn took(&self, values: &[&str], time: Duration) {
        metrics::histogram!(self.name, self.labelled(values)).record(time.as_secs_f64());
    }

    /// Tells the recorder what it is.
    pub fn describe(&self) {
        match self.kind {
            MetricKind::Counter => metrics::describe_counter!(self.name, self.help),
            MetricKind::Gauge => metrics::describe_gauge!(self.name, self.help),
            MetricKind::Histogram => metrics::describe_histogram!(self.name, self.help),
        }
    }
}

// ---- what happens, counted in this process since its start

pub const PROVIDER_REQUESTS: Metric = Metric::counter(
    "fieldmirror_provider_requests_total",
    &["provider", "bucket"],
    "Requests sent to a provider's API, by the rate limit they count against; one that counts against two is counted in both",
);
pub const PROVIDER_REFUSALS: Metric = Metric::counter(
    "fieldmirror_provider_refusals_total",
    &["provider", "bucket"],
    "Requests that the provider refused because of a rate limit (429)",
);
pub const PROVIDER_RESPONSES: Metric = Metric::counter(
    "fieldmirror_provider_responses_total",
    &["provider", "status"],
    "Requests to a provider's API by the HTTP status of the answer; `none` where there was no whole answer",
);
pub const PROVIDER_RESPONSE_TIME: Metric = Metric::histogram(
    "fieldmirror_provider_response_duration_seconds",
    &["provider"],
    "Time from sending a request to having read its answer",
);
pub const TOKEN_REFRESHES: Metric = Metric::counter(
    "fieldmirror_token_refreshes_total",
    &["provider"],
    "Refreshes of tokens and probes of keys that ended well",
);
pub const TOKEN_REFRESH_FAILURES: Metric = Metric::counter(
    "fieldmirror_token_refresh_failures_total",
    &["provider", "kind"],
    "Refreshes of tokens and probes of keys that failed, by kind of failure",
);
pub const SYNC_TURNS: Metric = Metric::counter(
    "fieldmirror_sync_turns_total",
    &["outcome"],
    "Turns of connections: `done`, `idle` (there was nothing to do), `failed` (it could not be begun or ended)",
);
pub const SYNC_TURN_TIME: Metric = Metric::histogram(
    "fieldmirror_sync_turn_duration_seconds",
    &[],
    "Time that a turn took, waiting for rate limits included",
);
pub const SYNC_RUNS: Metric = Metric::counter(
    "fieldmirror_sync_runs_total",
    &["provider", "stream", "outcome"],
    "Runs, which are what a turn did on one walk: `closed`, `yielded` (goes on in the next turn), `failed`, `lost` (another turn has taken over)",
);
pub const SYNC_PAGES: Metric =
    Metric::counter("fieldmirror_sync_pages_total", &["provider", "stream"], "Pages written to the mirror");
pub const SYNC_RECORDS: Metric = Metric::counter(
    "fieldmirror_sync_records_total",
    &["provider", "stream"],
    "Records and deletions received, changed or not",
);
pub const SYNC_ROWS_WRITTEN: Metric = Metric::counter(
    "fieldmirror_sync_rows_written_total",
    &["provider", "stream"],
    "Rows of the mirror that were inserted or changed",
);
pub const SYNC_ROWS_DELETED: Metric = Metric::counter(
    "fieldmirror_sync_rows_deleted_total",
    &["provider", "stream"],
    "Rows of the mirror that were marked as deleted",
);
pub const SCHEDULER_TICKS: Metric = Metric::counter(
    "fieldmirror_scheduler_ticks_total",
    &["outcome"],
    "Looks at the tables for what is due: `done` or `failed`",
);
pub const JOBS: Metric = Metric::counter(
    "fieldmirror_jobs_ended_total",
    &["kind", "outcome"],
    "Runs of jobs: `done`, `again` (to be run again later), `failed`, `crashed` (panicked), `dropped` (cut off: shutdown or a lost lease)",
);
pub const CALLBACK_RESPONSES: Metric = Metric::counter(
    "fieldmirror_callback_responses_total",
    &["route", "status"],
    "Answers of the callback endpoint by route (`connect`, `callback`, `healthz`, `readyz`, `other`) and HTTP status",
);

// ---- what is, read when the page is asked for: from the tables, so that daemons agree and a restart changes nothing

pub const BUILD_INFO: Metric =
    Metric::gauge("fieldmirror_build_info", &["version"], "Always 1; the label tells which version runs");
pub const START_TIME: Metric =
    Metric::gauge("fieldmirror_start_time_seconds", &[], "When this daemon started, in seconds since 1970");
pub const DATABASE_UP: Metric = Metric::gauge(
    "fieldmirror_database_up",
    &[],
    "1 when the database answered the last look in time, else 0: then everything that is read from its tables is absent",
);
pub const POOL_CONNECTIONS: Metric = Metric::gauge(
    "fieldmirror_database_pool_connections",
    &["state"],
    "Database connections of this daemon's pool: `busy` or `idle`",
);
pub const POOL_CONNECTIONS_MAX: Metric = Metric::gauge(
    "fieldmirror_database_pool_connections_max",
    &[],
    "Database connections that this daemon's pool may have, the setting `database.pool_size`",
);
pub const JOBS_HELD: Metric =
    Metric::gauge("fieldmirror_jobs_held", &[], "Jobs that this daemon has claimed and not ended");
pub const DAEMONS: Metric = Metric::gauge(
    "fieldmirror_daemons",
    &[],
    "Daemons that share the database and have said lately that they live",
);
pub const CONNECTION_STATE: Metric = Metric::gauge(
    "fieldmirror_connection_state",
    &["connection", "provider", "state"],
    "Always 1; the label tells the state that the connection is in",
);
pub const TOKEN_AGE: Metric = Metric::gauge(
    "fieldmirror_token_age_seconds",
    &["connection", "provider"],
    "Time since the access token in use was issued",
);
pub const TOKEN_EXPIRY: Metric = Metric::gauge(
    "fieldmirror_token_expiry_seconds",
    &["connection", "provider"],
    "Time until the access token expires, negative once it has; absent where the provider does not tell",
);
pub const TOKEN_OVERDUE: Metric = Metric::gauge(
    "fieldmirror_token_refresh_overdue_seconds",
    &["connection", "provider"],
    "Time by which the next refresh or probe is overdue, 0 before it is due; absent where none is planned",
);
pub const TOKEN_FAILURES: Metric = Metric::gauge(
    "fieldmirror_token_consecutive_failures",
    &["connection", "provider"],
    "Refreshes or probes that have failed in a row",
);
pub const STREAM_STATE: Metric = Metric::gauge(
    "fieldmirror_stream_state",
    &["connection", "provider", "stream", "state"],
    "Always 1; the label tells the state that the stream is in",
);
pub const STREAM_LAG: Metric = Metric::gauge(
    "fieldmirror_stream_lag_seconds",
    &["connection", "provider", "stream"],
    "Age of `complete_to`: every change older than this is in the mirror; absent before the first read of everything is done",
);
pub const STREAM_SWEEP_LAG: Metric = Metric::gauge(
    "fieldmirror_stream_sweep_lag_seconds",
    &["connection", "provider", "stream"],
    "Age of `swept_to`: everything older than this, deletions included, is in the mirror; absent before the first complete read",
);
pub const STREAM_BACKFILL: Metric = Metric::gauge(
    "fieldmirror_stream_backfill_ratio",
    &["connection", "provider", "stream"],
    "How much of the first read of everything is done, 0 to 1; absent where the provider does not let us know",
);
pub const STREAM_ROWS: Metric = Metric::gauge(
    "fieldmirror_stream_rows",
    &["connection", "provider", "stream"],
    "Rows of the mirror that live",
);
pub const STREAM_DELETED_ROWS: Metric = Metric::gauge(
    "fieldmirror_stream_deleted_rows",
    &["connection", "provider", "stream"],
    "Rows of the mirror that are marked as deleted",
);
pub const STREAM_FAILURES: Metric = Metric::gauge(
    "fieldmirror_stream_failures",
    &["connection", "provider", "stream"],
    "Turns in a row in which the stream failed",
);
pub const QUEUE_JOBS: Metric = Metric::gauge(
    "fieldmirror_queue_jobs",
    &["kind", "state"],
    "Jobs of all daemons: `pending`, `running` or `parked`",
);
pub const QUEUE_AGE: Metric = Metric::gauge(
    "fieldmirror_queue_oldest_due_seconds",
    &["kind"],
    "Time that the job which waits longest has been due without running, 0 when none is",
);
pub const ADMIN_REQUESTS: Metric = Metric::gauge(
    "fieldmirror_admin_requests_open",
    &["kind"],
    "Requests of admins (`fieldmirror enqueue`) that are not answered yet",
);
pub const ADMIN_REQUEST_AGE: Metric = Metric::gauge(
    "fieldmirror_admin_requests_oldest_open_seconds",
    &["kind"],
    "Age of the oldest request that is not answered yet, 0 when none is",
);

/// All of them.
pub const ALL: &[&Metric] = &[
    &PROVIDER_REQUESTS,
    &PROVIDER_REFUSALS,
    &PROVIDER_RESPONSES,
    &PROVIDER_RESPONSE_TIME,
    &TOKEN_REFRESHES,
    &TOKEN_REFRESH_FAILURES,
    &SYNC_TURNS,
    &SYNC_TURN_TIME,
    &SYNC_RUNS,
    &SYNC_PAGES,
    &SYNC_RECORDS,
    &SYNC_ROWS_WRITTEN,
    &SYNC_ROWS_DELETED,
    &SCHEDULER_TICKS,
    &JOBS,
    &CALLBACK_RESPONSES,
    &BUILD_INFO,
    &START_TIME,
    &DATABASE_UP,
    &POOL_CONNECTIONS,
    &POOL_CONNECTIONS_MAX,
    &JOBS_HELD,
    &DAEMONS,
    &CONNECTION_STATE,
    &TOKEN_AGE,
    &TOKEN_EXPIRY,
    &TOKEN_OVERDUE,
    &TOKEN_FAILURES,
    &STREAM_STATE,
    &STREAM_LAG,
    &STREAM_SWEEP_LAG,
    &STREAM_BACKFILL,
    &STREAM_ROWS,
    &STREAM_DELETED_ROWS,
    &STREAM_FAILURES,
    &QUEUE_JOBS,
    &QUEUE_AGE,
    &ADMIN_REQUESTS,
    &ADMIN_REQUEST_AGE,
];

/// The words of labels that are known beforehand.
const TURN_OUTCOMES: [&str; 3] = ["done", "idle", "failed"];
const RUN_OUTCOMES: [&str; 4] = ["closed", "yielded", "failed", "lost"];
const TICK_OUTCOMES: [&str; 2] = ["done", "failed"];
const JOB_OUTCOMES: [&str; 5] = ["done", "again", "failed", "crashed", "dropped"];
const CALLBACK_SERIES: [(&str, &str); 5] =
    [("connect", "302"), ("callback", "200"), ("healthz", "200"), ("readyz", "200"), ("other", "404")];

/// Begins the series of what every daemon does.
pub fn begin_own() {
    SYNC_TURNS.begin_each(&[], &TURN_OUTCOMES);
    SYNC_TURN_TIME.begin(&[]);
    SCHEDULER_TICKS.begin_each(&[], &TICK_OUTCOMES);
    for (route, status) in CALLBACK_SERIES {
        CALLBACK_RESPONSES.begin(&[route, status]);
    }
}

/// Begins the series of a kind of job.
pub fn begin_job(kind: &str) {
    JOBS.begin_each(&[kind], &JOB_OUTCOMES);
}

/// Begins the series of a provider.
pub fn begin_provider(provider: &ProviderSpec) {
    let name = provider.name;
    for bucket in provider.buckets {
        PROVIDER_REQUESTS.begin(&[name, bucket.name]);
        PROVIDER_REFUSALS.begin(&[name, bucket.name]);
    }
    PROVIDER_RESPONSES.begin(&[name, "200"]);
    PROVIDER_RESPONSE_TIME.begin(&[name]);
    TOKEN_REFRESHES.begin(&[name]);
    TOKEN_REFRESH_FAILURES.begin_each(&[name], &FailureKind::LABELS);
    for stream in provider.streams {
        SYNC_RUNS.begin_each(&[name, stream.name], &RUN_OUTCOMES);
        for metric in [&SYNC_PAGES, &SYNC_RECORDS, &SYNC_ROWS_WRITTEN, &SYNC_ROWS_DELETED] {
            metric.begin(&[name, stream.name]);
        }
    }
}

// ---- those who count call these

/// A request leaves for a provider's API.
pub fn request(provider: &str, buckets: &[&str]) {
    for bucket in buckets {
        PROVIDER_REQUESTS.add(&[provider, bucket], 1);
    }
}

/// What became of it: the answer's status, if there was a whole answer.
pub fn response(provider: &str, status: Option<u16>, took: Duration) {
    let status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    PROVIDER_RESPONSES.add(&[provider, &status], 1);
    PROVIDER_RESPONSE_TIME.took(&[provider], took);
}

/// The provider refused a request because of a rate limit.
pub fn refusal(provider: &str, bucket: &str) {
    PROVIDER_REFUSALS.add(&[provider, bucket], 1);
}

/// A refresh or a probe has ended; `failure` says why it ended badly.
pub fn refreshed(provider: &str, failure: Option<&FailureKind>) {
    match failure {
        None => TOKEN_REFRESHES.add(&[provider], 1),
        Some(kind) => TOKEN_REFRESH_FAILURES.add(&[provider, kind.label()], 1),
    }
}

/// A turn has ended.
pub fn turn(outcome: &str, took: Duration) {
    SYNC_TURNS.add(&[outcome], 1);
    SYNC_TURN_TIME.took(&[], took);
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunCounts {
    pub pages: i64,
    pub records: i64,
    pub rows_written: i64,
    pub rows_deleted: i64,
}

/// A run has ended.
pub fn run(provider: &str, stream: &str, outcome: &str, counts: RunCounts) {
    SYNC_RUNS.add(&[provider, stream, outcome], 1);
    for (metric, count) in [
        (&SYNC_PAGES, counts.pages),
        (&SYNC_RECORDS, counts.records),
        (&SYNC_ROWS_WRITTEN, counts.rows_written),
        (&SYNC_ROWS_DELETED, counts.rows_deleted),
    ] {
        metric.add(&[provider, stream], u64::try_from(count).unwrap_or(0));
    }
}

/// The scheduler has looked at the tables, or could not.
pub fn tick(worked: bool) {
    SCHEDULER_TICKS.add(&[if worked { "done" } else { "failed" }], 1);
}

/// A job's run has ended.
pub fn job(kind: &str, outcome: &str) {
    JOBS.add(&[kind, outcome], 1);
}

/// The callback endpoint has answered a request for `path`.
pub fn callback(path: &str, status: u16) {
    CALLBACK_RESPONSES.add(&[route(path), &status.to_string()], 1);
}

fn route(path: &str) -> &'static str {
    match path {
        "/healthz" => "healthz",
        "/readyz" => "readyz",
        _ if path.starts_with("/connect/") => "connect",
        _ if path.starts_with("/oauth/callback/") => "callback",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is used twice");
        for metric in ALL {
            let name = metric.name;
            let good = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(name.starts_with("fieldmirror_") && good(name), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == MetricKind::Counter, "{name}");
            // OpenMetrics knows a counter by its name without that, and so do those who translate to it.
            assert!(name.strip_suffix("_total").is_none_or(|family| !names.contains(family)), "{name}");
            let time = metric.kind == MetricKind::Histogram;
            assert!(!time || name.ends_with("_duration_seconds"), "{name}");
            assert!(metric.labels.iter().all(|label| good(label)), "{name}");
            assert!(!metric.help.is_empty() && !metric.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn routes_are_our_words_only() {
        for (path, expected) in [
            ("/healthz", "healthz"),
            ("/readyz", "readyz"),
            ("/connect/secret-ticket", "connect"),
            ("/oauth/callback/hubspot", "callback"),
            ("/oauth/callback/no-such-thing", "callback"),
            ("/connect", "other"),
            ("/", "other"),
            ("/healthz/x", "other"),
            ("//evil.example", "other"),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
    }
}
