//! The jobs in this process' hands, and what its workers share.
//!
//! One hub a process. The map of held jobs is the truth about what this process may still end; a slot of a lane is free again
//! when its job leaves the map.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use apalis_core::monitor::{Monitor, MonitorError};
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::keeper;
use super::lane::Lane;
use super::lease::Lease;
use crate::db::queue::{self, Claim, ClaimLimits, Claimed, Ending, Holding, JobId, JobState, SessionError};
use crate::db::{Db, DbError};
use crate::domain::failure::FailureKind;
use crate::domain::secret::Secret;

/// The queue's numbers. The default is what the daemon runs with; tests make time shorter.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// How long a killed process keeps its jobs. Heartbeats come every quarter of it.
    pub lease: Duration,
    /// Runs in a row without an outcome before a job is parked.
    pub crashes_max: u32,
    /// How long a job that panicked waits, times its crashes.
    pub panic_pause: Duration,
    /// How often a worker looks without having been told.
    pub poll: Duration,
    /// How often the keeper looks for notifications: what a notified job waits at most.
    pub listen_tick: Duration,
    /// How long jobs that ended are kept.
    pub keep: Duration,
    /// How often, and how many at most, jobs that ended are deleted.
    pub prune_every: Duration,
    pub prune_max: u32,
    /// How long a run that lost its lease may go on before it is dropped.
    pub lost_grace: Duration,
    /// How long closing waits for runs to be dropped and given back.
    pub close_wait: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_mins(1);
        Self {
            lease: Duration::from_secs(8),
            crashes_max: 3,
            panic_pause: Duration::from_secs(5),
            poll: Duration::from_millis(500),
            listen_tick: Duration::from_millis(5),
            keep: 7 * 24 * 60 * MINUTE,
            prune_every: MINUTE,
            prune_max: 5_000,
            lost_grace: Duration::from_secs(2),
            close_wait: Duration::from_secs(5),
        }
    }
}

/// Why the queue did not start, or how it ended.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("opening the session that listens for jobs")]
    Listen(#[from] SessionError),
    #[error("starting the thread that keeps the leases")]
    Thread(#[source] io::Error),
    #[error("running the workers")]
    Workers(#[from] MonitorError),
}

/// Signs of life, for readiness.
#[derive(Debug, Clone, Copy)]
pub struct Vitals {
    /// When the database last answered a worker that looked for jobs (whether or not there were any).
    pub claimed_at: Option<Instant>,
    /// When the database last answered a heartbeat. Older than a lease: our jobs may be run by others.
    pub beat_at: Option<Instant>,
    /// How many jobs this process holds.
    pub held: usize,
}

struct Held {
    lease: Arc<Lease>,
    /// Free when this is dropped.
    _slot: OwnedSemaphorePermit,
}

/// What the keeper's thread sees. It must not own the pool: pooled connections cannot be dropped outside the runtime.
pub(super) struct Shared {
    pub(super) owner: Uuid,
    pub(super) limits: QueueLimits,
    pub(super) draining: CancellationToken,
    pub(super) closing: CancellationToken,
    pub(super) keeper_stop: AtomicBool,
    pub(super) tick: watch::Sender<u64>,
    held: Mutex<HashMap<JobId, Held>>,
    released: Notify,
    lanes: Mutex<HashMap<&'static str, Arc<Lane>>>,
    claimed_at: Mutex<Option<Instant>>,
    beat_at: Mutex<Option<Instant>>,
}

/// A lock that a panicking thread left behind guards plain maps and instants: they are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(owner: Uuid, limits: QueueLimits) -> Arc<Self> {
        Arc::new(Self {
            owner,
            limits,
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            keeper_stop: AtomicBool::new(false),
            tick: watch::Sender::new(0),
            held: Mutex::default(),
            released: Notify::new(),
            lanes: Mutex::default(),
            claimed_at: Mutex::default(),
            beat_at: Mutex::default(),
        })
    }

    pub(super) fn holdings(&self) -> Vec<Holding> {
        lock(&self.held).values().map(|held| held.lease.holding()).collect()
    }

    pub(super) fn lease_of(&self, job: JobId) -> Option<Arc<Lease>> {
        lock(&self.held).get(&job).map(|held| Arc::clone(&held.lease))
    }

    pub(super) fn saw_heartbeat(&self) {
        *lock(&self.beat_at) = Some(Instant::now());
    }

    pub(super) fn wake(&self, kind: &str) {
        if let Some(lane) = lock(&self.lanes).get(kind) {
            lane.wake();
        }
    }

    pub(super) fn wake_all(&self) {
        lock(&self.lanes).values().for_each(|lane| lane.wake());
    }
}

/// The queue in this process. Dropped without [`Hub::close`], it stops its heartbeats, and its jobs look crashed.
pub struct Hub {
    db: Db,
    pub(super) shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Hub {
    /// Proves that notifications arrive over `listen_url` (a direct session: see [`SessionError::Pooler`]) and starts the
    /// keeper. `owner` is new for every start of a process.
    pub async fn new(
        db: Db,
        listen_url: Secret,
        owner: Uuid,
        limits: QueueLimits,
    ) -> Result<Arc<Self>, HubError> {
        let url = listen_url.clone();
        let proof = tokio::task::spawn_blocking(move || queue::prove_listening(&url)).await;
        proof.map_err(|error| HubError::Thread(io::Error::other(error)))??;
        let shared = Shared::new(owner, limits);
        let keeper = keeper::start(Arc::clone(&shared), listen_url).map_err(HubError::Thread)?;
        Ok(Arc::new(Self { db, shared, keeper: Mutex::new(Some(keeper)) }))
    }

    /// The lane of a kind, made on the first call; it outlives the workers, so that a restarted one keeps the limit.
    pub(super) fn lane(&self, kind: &'static str, slots: usize) -> Arc<Lane> {
        Arc::clone(lock(&self.shared.lanes).entry(kind).or_insert_with(|| Arc::new(Lane::new(kind, slots))))
    }

    /// Changes whenever the scheduler should look at the tables, and when notifications may have been missed.
    pub fn ticks(&self) -> watch::Receiver<u64> {
        self.shared.tick.subscribe()
    }

    pub fn vitals(&self) -> Vitals {
        Vitals {
            claimed_at: *lock(&self.shared.claimed_at),
            beat_at: *lock(&self.shared.beat_at),
            held: lock(&self.shared.held).len(),
        }
    }

    /// Runs the workers until `signal`; then nothing new starts, runs are asked to stop and have `grace` to do so, and what
    /// outlives it is dropped and given back without a crash counted.
    pub async fn serve(
        self: &Arc<Self>,
        monitor: Monitor,
        signal: impl Future<Output = ()> + Send,
        grace: Duration,
    ) -> Result<(), HubError> {
        // apalis' own `shutdown_timeout` starts its clock when it is set, not when the shutdown starts.
        let monitor =
            monitor.should_restart(|_, _| true).with_terminator(async move { time::sleep(grace).await });
        let drain = async {
            signal.await;
            info!("Draining the queue: nothing new starts");
            self.shared.draining.cancel();
            Ok(())
        };
        let ended = monitor.run_with_signal(drain).await;
        self.close().await;
        Ok(ended?)
    }

    /// Drops what still runs and gives it back, then ends the heartbeats.
    pub async fn close(&self) {
        self.shared.draining.cancel();
        self.shared.closing.cancel();
        if time::timeout(self.shared.limits.close_wait, self.runs_released()).await.is_err() {
            warn!("Closing the queue without having given back every job; their leases will lapse");
        }
        for lease in self.waiting() {
            self.return_unstarted(&lease).await;
        }
        self.stop_keeper();
    }

    async fn runs_released(&self) {
        loop {
            let released = self.shared.released.notified();
            if lock(&self.shared.held).values().all(|held| held.lease.is_waiting()) {
                return;
            }
            released.await;
        }
    }

    fn waiting(&self) -> Vec<Arc<Lease>> {
        let held = lock(&self.shared.held);
        held.values().filter(|held| held.lease.is_waiting()).map(|held| Arc::clone(&held.lease)).collect()
    }

    fn stop_keeper(&self) {
        self.shared.keeper_stop.store(true, std::sync::atomic::Ordering::SeqCst);
        if let Some(keeper) = lock(&self.keeper).take() {
            keeper.thread().unpark();
        }
    }

    /// Claims at most as many jobs as there are `slots`, and holds them.
    pub(super) async fn claim(
        &self,
        kind: &'static str,
        mut slots: Vec<OwnedSemaphorePermit>,
    ) -> Result<(Vec<Arc<Lease>>, Option<Duration>), DbError> {
        let (owner, limits, count) = (self.shared.owner, self.shared.limits, slots.len());
        let ours: Vec<JobId> = lock(&self.shared.held).keys().copied().collect();
        let claim_limits = ClaimLimits { lease: limits.lease, crashes_max: limits.crashes_max };
        let claim =
            self.db.run(move |conn| queue::claim(conn, kind, owner, &ours, count, claim_limits)).await?;
        *lock(&self.shared.claimed_at) = Some(Instant::now());
        let Claim { jobs, next_in } = claim;
        let (parked, taken): (Vec<Claimed>, Vec<Claimed>) = jobs.into_iter().partition(|job| job.parked);
        for job in parked {
            log_parked(kind, job.job, job.connection.map(|id| id.0), job.crashes);
        }
        let hold = |claimed: Claimed| {
            // A claim brings no more jobs than it was asked for, and it was asked for as many as there are slots.
            let slot = slots.pop()?;
            let lease = Lease::new(kind, claimed, owner, &self.shared.draining);
            lock(&self.shared.held).insert(lease.job, Held { lease: Arc::clone(&lease), _slot: slot });
            Some(lease)
        };
        Ok((taken.into_iter().filter_map(hold).collect(), next_in))
    }

    /// Lets go of a job: its slot is free.
    fn release(&self, job: JobId) {
        lock(&self.shared.held).remove(&job);
        self.shared.released.notify_waiters();
    }

    /// Writes how a run ended, trying again until the database answers, and lets go of the job.
    pub(super) async fn finish(&self, lease: &Lease, ending: Ending) {
        let holding = lease.holding();
        let write = || {
            let ending = ending.clone();
            self.db.run(move |conn| queue::finish(conn, holding, &ending))
        };
        match self.until_answered(lease, "writing the end", write).await {
            Some(None) => warn!(
                job.id = %lease.job, job.kind = lease.kind, job.attempt = lease.attempt,
                "The outcome of `{}` job {} is refused: it is no longer ours", lease.kind, lease.job
            ),
            Some(Some(JobState::Parked)) => {
                log_parked(lease.kind, lease.job, lease.connection.map(|id| id.0), lease.crashes + 1);
            }
            Some(Some(_)) | None => {}
        }
        self.release(lease.job);
    }

    /// Gives a job back that was claimed and not started.
    pub(super) async fn return_unstarted(&self, lease: &Lease) {
        self.return_job(lease, false).await;
    }

    /// Gives a job back whose run was dropped.
    pub(super) async fn return_dropped(&self, lease: &Lease) {
        self.return_job(lease, true).await;
    }

    async fn return_job(&self, lease: &Lease, started: bool) {
        lease.set_ending();
        let holding = lease.holding();
        let write = || self.db.run(move |conn| queue::give_back(conn, holding, started));
        if self.until_answered(lease, "giving back", write).await == Some(true) {
            info!(job.id = %lease.job, job.kind = lease.kind, "Gave back `{}` job {}", lease.kind, lease.job);
        }
        self.release(lease.job);
    }

    /// Tries until the database answers, or until closing has waited long enough; meanwhile heartbeats go on. None: given up,
    /// and the lease will lapse.
    async fn until_answered<T, F>(
        &self,
        lease: &Lease,
        what: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        let mut pause = PAUSE_FIRST;
        let mut closing_since: Option<Instant> = None;
        loop {
            let error = match attempt().await {
                Ok(answer) => return Some(answer),
                Err(error) => error,
            };
            if self.shared.closing.is_cancelled() {
                closing_since.get_or_insert_with(Instant::now);
            }
            let late = closing_since.is_some_and(|since| since.elapsed() >= self.shared.limits.close_wait);
            if late || error.kind() != FailureKind::Transient {
                error!(job.id = %lease.job, job.kind = lease.kind, error = chain(&error), "Gave up {what} of job {}", lease.job);
                return None;
            }
            if pause == PAUSE_FIRST {
                warn!(job.id = %lease.job, job.kind = lease.kind, error = chain(&error), "Still {what} of job {}", lease.job);
            }
            time::sleep(pause).await;
            pause = next_pause(pause);
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop_keeper();
    }
}

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pauses between tries while the database is away: short, because a restart takes a fraction of a second.
pub(super) fn next_pause(pause: Duration) -> Duration {
    pause.max(PAUSE_FIRST / 2).saturating_mul(2).min(PAUSE_MAX)
}

/// An error with its causes, for the log.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn log_parked(kind: &str, job: JobId, connection: Option<i64>, crashes: i32) {
    let whose = connection.map_or_else(String::new, |id| format!(" of connection {id}"));
    error!(
        job.id = %job, job.kind = kind, connection.id = connection, job.crashes = crashes,
        "Parked `{kind}` job {job}{whose} after {crashes} crashes; `fieldmirror jobs retry {job}` runs it again"
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PAUSE_FIRST, PAUSE_MAX, QueueLimits, next_pause};

    #[test]
    fn pauses_grow_to_their_limit() {
        let mut pause = Duration::ZERO;
        let mut seen = Vec::new();
        for _ in 0..8 {
            pause = next_pause(pause);
            seen.push(pause);
        }
        assert_eq!(seen[0], PAUSE_FIRST);
        assert!(seen.is_sorted());
        assert_eq!(seen[7], PAUSE_MAX);
    }

    #[test]
    fn a_killed_process_is_noticed_within_ten_seconds() {
        let limits = QueueLimits::default();
        assert!(limits.lease + limits.poll < Duration::from_secs(10));
    }
}
