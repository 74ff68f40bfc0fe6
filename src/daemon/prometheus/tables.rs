//! The gauges: what is at this moment. They are made anew for every page, so that what is gone leaves no series behind.

use chrono::{DateTime, Utc};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::Page;
use crate::db::connections::ConnectionState;
use crate::db::gauges::Gauges;
use crate::db::requests::RequestKind;
use crate::db::status::{ConnectionStatus, StreamStatus, TokenStatus};
use crate::domain::measure::{self, MetricKind};

/// This part of the page. `found` is what the tables say; none where the database did not answer.
pub(super) fn text(page: &Page, found: Option<&Gauges>) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        measure::ALL
            .iter()
            .filter(|metric| metric.kind == MetricKind::Gauge)
            .for_each(|metric| metric.describe());
        of_daemon(page);
        measure::DATABASE_UP.set(&[], if found.is_some() { 1.0 } else { 0.0 });
        if let Some(found) = found {
            of_tables(page, found);
        }
    });
    recorder.handle().render()
}

fn of_daemon(page: &Page) {
    measure::BUILD_INFO.set(&[env!("CARGO_PKG_VERSION")], 1.0);
    measure::START_TIME.set(&[], seconds(page.started_at - DateTime::UNIX_EPOCH));
    let (busy, open, max) = page.db.usage();
    measure::POOL_CONNECTIONS.set(&["busy"], float(busy));
    measure::POOL_CONNECTIONS.set(&["idle"], float(open.saturating_sub(busy)));
    measure::POOL_CONNECTIONS_MAX.set(&[], float(max));
    measure::JOBS_HELD.set(&[], float(page.hub.vitals().held));
}

fn of_tables(page: &Page, found: &Gauges) {
    let snapshot = &found.snapshot;
    measure::DAEMONS.set(&[], float(snapshot.daemons.iter().filter(|daemon| daemon.live).count()));
    for status in &snapshot.connections {
        of_connection(status, snapshot.as_of);
    }
    for kind in page.hub.kinds() {
        of_queue(kind, [0, 0, 0], 0.0);
    }
    for depth in &found.queue {
        of_queue(&depth.kind, [depth.pending, depth.running, depth.parked], depth.oldest_due_seconds);
    }
    for kind in RequestKind::ALL {
        let open = found.requests.iter().find(|open| open.kind == kind.as_str());
        measure::ADMIN_REQUESTS.set(&[kind.as_str()], open.map_or(0.0, |open| float(open.open)));
        measure::ADMIN_REQUEST_AGE.set(&[kind.as_str()], open.map_or(0.0, |open| open.oldest_seconds));
    }
}

fn of_queue(kind: &str, jobs: [i64; 3], oldest_due_seconds: f64) {
    for (state, jobs) in ["pending", "running", "parked"].into_iter().zip(jobs) {
        measure::QUEUE_JOBS.set(&[kind, state], float(jobs));
    }
    measure::QUEUE_AGE.set(&[kind], oldest_due_seconds);
}

fn of_connection(status: &ConnectionStatus, now: DateTime<Utc>) {
    let connection = &status.connection;
    let labels = [connection.name.as_str(), connection.provider.as_str()];
    measure::CONNECTION_STATE.set(&[labels[0], labels[1], connection.state.as_str()], 1.0);
    // What is no longer read falls behind for ever, and that is as it should be.
    if !matches!(connection.state, ConnectionState::Connected | ConnectionState::NeedsReauth) {
        return;
    }
    if let Some(token) = &status.token {
        of_token(&labels, token, now);
    }
    for stream in &status.streams {
        of_stream(&[labels[0], labels[1], stream.stream.as_str()], stream, now);
    }
}

fn of_token(labels: &[&str], token: &TokenStatus, now: DateTime<Utc>) {
    measure::TOKEN_AGE.set(labels, seconds(now - token.issued_at));
    measure::TOKEN_FAILURES.set(labels, f64::from(token.failures));
    if let Some(expires_at) = token.expires_at {
        measure::TOKEN_EXPIRY.set(labels, seconds(expires_at - now));
    }
    if let Some(due_at) = token.refresh_due_at {
        measure::TOKEN_OVERDUE.set(labels, seconds(now - due_at).max(0.0));
    }
}

fn of_stream(labels: &[&str; 3], stream: &StreamStatus, now: DateTime<Utc>) {
    measure::STREAM_STATE.set(&[labels[0], labels[1], labels[2], &stream.state], 1.0);
    measure::STREAM_ROWS.set(labels, float(stream.rows));
    measure::STREAM_DELETED_ROWS.set(labels, float(stream.deleted_rows));
    measure::STREAM_FAILURES.set(labels, f64::from(stream.failures));
    if let Some(complete_to) = stream.complete_to {
        measure::STREAM_LAG.set(labels, seconds(now - complete_to));
    }
    if let Some(swept_to) = stream.swept_to {
        measure::STREAM_SWEEP_LAG.set(labels, seconds(now - swept_to));
    }
    if let Some(progress) = stream.backfill_progress {
        measure::STREAM_BACKFILL.set(labels, progress);
    }
}

fn seconds(time: chrono::TimeDelta) -> f64 {
    time.as_seconds_f64()
}

#[expect(clippy::cast_precision_loss, reason = "a page of metrics holds floats, exact up to 2^53")]
fn float<N: TryInto<i64>>(number: N) -> f64 {
    number.try_into().unwrap_or(i64::MAX) as f64
}
