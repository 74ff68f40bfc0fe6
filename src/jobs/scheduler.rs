//! What is due, derived from tables. A lost or doubled enqueue, a missed tick, a crash: the next tick repairs it.
//!
//! Several daemons may tick at once: a table constraint allows one live job for a kind and a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::Pulse;
use crate::db::requests::RequestKind;
use crate::db::{
    Db, DbError, PgConnection, authorizations, changes, drift, queue, requests, retention, rotations,
    streams, sync_runs, tokens, verifications,
};
use crate::domain::current::Current;
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;
use crate::domain::measure;
use crate::domain::spec::Rhythm;
use crate::domain::time::{Clock, delta, until};
use crate::sync::Engine;

/// The longest pause between two looks at the tables, whether or not anybody gave notice.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The shortest: notices come in bursts.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// How much longer than a look the pause after it is, at least: with many connections looks are dear, and no more than
/// a third of one session's time goes into them.
const PAUSE_TIMES: u32 = 2;
/// After a database failure.
const PAUSE_FAILED: Duration = Duration::from_secs(2);
/// Tokens that one tick makes jobs for; the most endangered come first.
const TOKENS_MAX: u32 = 500;
/// How often old rows are deleted, and how old runs get.
const PRUNE_EVERY: Duration = Duration::from_mins(1);
const RUNS_KEPT: Duration = Duration::from_hours(30 * 24);

/// Derives jobs from the tables until `stop`.
pub struct Scheduler {
    pub db: Db,
    pub engine: Arc<Current<Engine>>,
    pub clock: Arc<dyn Clock>,
    pub pulse: Arc<Pulse>,
}

impl Scheduler {
    /// Ticks at every notice, when something falls due, and in any case once a second.
    pub async fn run(self, mut notices: watch::Receiver<u64>, stop: CancellationToken) {
        let mut failing = false;
        let mut pruned_at = self.clock.now();
        loop {
            self.pulse.beat();
            let (now, began) = (self.clock.now(), Instant::now());
            let ticked = self.tick(now).await;
            let pause_min = (began.elapsed() * PAUSE_TIMES).clamp(PAUSE_MIN, PAUSE_MAX);
            measure::tick(ticked.is_ok());
            let pause = match ticked {
                Ok(next) => {
                    if std::mem::take(&mut failing) {
                        info!("The scheduler reaches the database again");
                    }
                    next.map_or(PAUSE_MAX, |next| until(next, self.clock.now())).clamp(pause_min, PAUSE_MAX)
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "The scheduler cannot reach the database");
                    }
                    PAUSE_FAILED
                }
            };
            if now - pruned_at > delta(PRUNE_EVERY) && !failing {
                pruned_at = now;
                self.prune(now).await;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = notices.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause_min).await;
                }
                () = stop.cancelled() => return,
            }
        }
    }

    /// One look at the tables. Returns when the next thing falls due, as far as is known.
    async fn tick(&self, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>, Failure> {
        let engine = self.engine.get();
        engine.auth.expire_authorizations(now).await?;
        let rhythms = engine.settings.rhythms();
        let reach = (engine.auth.spills.id(), engine.settings.daemon.spill_grace);
        let derived = self.db.transaction(move |connection| derive(connection, &rhythms, now, reach)).await;
        derived.map_err(|error| Failure::from(&error))
    }

    /// Deletes what is old. Each statement may take its time, which the watchdog must not count as one silence.
    async fn prune(&self, now: DateTime<Utc>) {
        let settings = Arc::clone(&self.engine.get().settings);
        let pulse = Arc::clone(&self.pulse);
        let pruned = self.db.run(move |connection| {
            let before = |kept: Duration| now - delta(kept);
            pulse.beat();
            sync_runs::prune(connection, before(RUNS_KEPT))?;
            pulse.beat();
            verifications::prune(connection, before(RUNS_KEPT))?;
            pulse.beat();
            retention::wipe_requests(connection, now - authorizations::ATTEMPTS_KEPT)?;
            retention::prune_requests(connection, before(settings.daemon.requests_kept))?;
            pulse.beat();
            retention::prune_audit_log(connection, before(settings.daemon.audit_log_kept))?;
            if let Some(kept) = settings.sync.history_kept {
                pulse.beat();
                changes::prune(connection, kept)?;
                pulse.beat();
                drift::prune(connection, kept)?;
            }
            Ok(())
        });
        if let Err(error) = pruned.await {
            warn!(error = %Failure::from(&error), "Could not delete old runs, requests, changes and lines of the audit log");
        }
    }
}

/// Makes jobs of what is due. `reach`: the folder of spills that can be looked into, and how long what is in others is
/// waited for.
fn derive(
    connection: &mut PgConnection,
    rhythms: &[(String, Rhythm)],
    now: DateTime<Utc>,
    reach: (Option<Uuid>, Duration),
) -> Result<Option<DateTime<Utc>>, DbError> {
    let providers: Vec<String> = rhythms.iter().map(|(provider, _)| provider.clone()).collect();
    let providers = providers.as_slice();
    let refreshes = tokens::due(connection, providers, now, TOKENS_MAX, reach)?;
    enqueue(connection, "refresh_token", &refreshes)?;
    let due = streams::due(connection, rhythms, now)?;
    enqueue(connection, "sync", &due)?;
    for (of, kind) in requests::waiting(connection, now)? {
        enqueue(connection, job_for(kind), &[of])?;
    }
    if !rotations::open(connection)?.is_empty() {
        queue::ensure(connection, rotations::KIND)?;
    }
    Ok([tokens::next_due(connection, providers, now)?, streams::next_due(connection, providers, now)?]
        .into_iter()
        .flatten()
        .min())
}

fn enqueue(connection: &mut PgConnection, kind: &str, of: &[ConnectionId]) -> Result<(), DbError> {
    if of.is_empty() {
        return Ok(());
    }
    queue::ensure_many(connection, kind, of)?;
    Ok(())
}

/// The job that works off requests of a kind.
pub fn job_for(kind: RequestKind) -> &'static str {
    match kind {
        RequestKind::Connect | RequestKind::Callback => "connect",
        RequestKind::Refresh => "refresh_token",
        RequestKind::Sync | RequestKind::Verify => "sync",
        RequestKind::Disconnect => "disconnect",
    }
}
