//! The Prometheus page, on a listener of its own: what `domain::measure` counts in this process, and what the tables say.
//!
//! What the tables say is read when the page is asked for, so that all daemons tell the same and a restart forgets
//! nothing. It is kept for a moment, so that neither many askers nor a slow database cost more than one look.

mod tables;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use chrono::{DateTime, Utc};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::db::gauges::{self, Gauges};
use crate::domain::measure::{self, MetricKind};
use crate::jobs::Hub;
use crate::providers;

/// How long one look at the tables counts.
const FRESH_FOR: Duration = Duration::from_secs(5);
/// The longest that a look may take, waiting for a connection included, and the longest of one question in it.
const LOOK_MAX: Duration = Duration::from_secs(2);
const QUESTION_MAX: Duration = Duration::from_secs(1);
/// Daemons that have been silent for longer do not count as live: some beats may be late.
const LIVES_FOR: Duration = Duration::from_secs(15);
/// How often counted times are put into their buckets, asked for or not: until then each takes its own memory.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Upper bounds of the buckets that times are counted in, in seconds.
const TIME_BUCKETS: [f64; 12] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// The text format of Prometheus.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the page is made of.
pub struct Page {
    db: Db,
    hub: Arc<Hub>,
    /// Providers that the settings in force enable: a reload may have changed them.
    providers: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    started_at: DateTime<Utc>,
    last: Mutex<Option<Look>>,
}

/// A look at the tables.
#[derive(Clone)]
struct Look {
    at: Instant,
    /// None: the database did not answer in time.
    found: Option<Arc<Gauges>>,
}

impl Page {
    pub fn new(
        db: Db,
        hub: Arc<Hub>,
        providers: impl Fn() -> Vec<String> + Send + Sync + 'static,
        started_at: DateTime<Utc>,
    ) -> Arc<Self> {
        recorded();
        Arc::new(Self { db, hub, providers: Box::new(providers), started_at, last: Mutex::default() })
    }

    /// The whole page.
    async fn text(&self) -> String {
        let look = self.look().await;
        self.begin_series();
        let mut text = recorded().render();
        text.push_str(&tables::text(self, look.found.as_deref()));
        text
    }

    /// The last look, or another when that has been a while. Those who ask meanwhile wait for the same.
    async fn look(&self) -> Look {
        let mut last = self.last.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.at.elapsed() < FRESH_FOR) {
            return look.clone();
        }
        let reading = self.db.run(|connection| gauges::read(connection, LIVES_FOR, QUESTION_MAX));
        let found = match tokio::time::timeout(LOOK_MAX, reading).await {
            Ok(Ok(found)) => Some(Arc::new(found)),
            Ok(Err(_)) | Err(_) => None,
        };
        last.insert(Look { at: Instant::now(), found }).clone()
    }

    /// Begins the series whose labels are known, so that their first event is seen as a rise.
    fn begin_series(&self) {
        let enabled = (self.providers)();
        let specs = enabled.iter().filter_map(|name| Some(providers::provider(name)?.spec()));
        specs.for_each(measure::begin_provider);
        self.hub.kinds().into_iter().for_each(measure::begin_job);
        measure::begin_own();
    }
}

/// Counts what is counted from now on: once in a process, for all daemons in it.
fn recorded() -> &'static PrometheusHandle {
    static RECORDED: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDED.get_or_init(|| {
        let recorder =
            PrometheusBuilder::new().set_buckets(&TIME_BUCKETS).expect("there are buckets").build_recorder();
        let handle = recorder.handle();
        // A program that has installed another recorder gets to see what we count there.
        drop(metrics::set_global_recorder(recorder));
        measure::ALL
            .iter()
            .filter(|metric| metric.kind != MetricKind::Gauge)
            .for_each(|metric| metric.describe());
        handle
    })
}

/// Keeps what is counted small until `stop`, also where nobody asks for the page.
pub async fn upkeep(stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_EVERY) => recorded().run_upkeep(),
            () = stop.cancelled() => return,
        }
    }
}

/// `GET /metrics`, and nothing else.
pub fn router(page: Arc<Page>) -> Router {
    let absent = || async { StatusCode::NOT_FOUND };
    Router::new()
        .route("/metrics", get(metrics_page))
        .method_not_allowed_fallback(absent)
        .fallback(absent)
        .with_state(page)
}

async fn metrics_page(State(page): State<Arc<Page>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")], page.text().await)
}
