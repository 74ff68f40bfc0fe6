//! The queue in this process: its start, its workers' claims, its drain and its end.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use apalis_core::monitor::{Monitor, MonitorError};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time;
use tracing::{info, warn};
use uuid::Uuid;

use super::ends::log_parked;
use super::held::{Shared, lock};
use super::keeper;
use super::lease::Lease;
use super::limits::QueueLimits;
use super::pulse::Sign;
use crate::db::queue::{self, ClaimLimits, Claimed, SessionError};
use crate::db::{Db, DbError};
use crate::domain::secret::Secret;

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

/// The queue in this process. Dropped without [`Hub::close`], it stops its heartbeats, and its jobs look crashed.
pub struct Hub {
    pub(super) db: Db,
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

    /// Changes whenever the scheduler should look at the tables, and when notifications may have been missed.
    pub fn ticks(&self) -> watch::Receiver<u64> {
        self.shared.tick.subscribe()
    }

    pub fn vitals(&self) -> Vitals {
        Vitals {
            claimed_at: *lock(&self.shared.claimed_at),
            beat_at: *lock(&self.shared.beat_at),
            held: self.shared.held_jobs().len(),
        }
    }

    /// The kinds of job that this process works on.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.shared.kinds()
    }

    /// How the keeper and the workers are doing, for the watchdog.
    pub fn signs(&self) -> Vec<Sign> {
        self.shared.signs()
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
        let returned = async {
            self.runs_released().await;
            for lease in self.shared.waiting() {
                self.return_unstarted(&lease).await;
            }
        };
        if time::timeout(self.shared.limits.close_wait, returned).await.is_err() {
            warn!("Closing the queue without having given back every job; their leases will lapse");
        }
        self.stop_keeper();
    }

    async fn runs_released(&self) {
        loop {
            let released = self.shared.released.notified();
            if self.shared.runs_none() {
                return;
            }
            released.await;
        }
    }

    fn stop_keeper(&self) {
        self.shared.keeper_stop.store(true, Ordering::SeqCst);
        if let Some(keeper) = lock(&self.keeper).take() {
            keeper.thread().unpark();
        }
    }

    /// Claims at most as many jobs as there are `slots`, and holds them. With them: how long until the next is due.
    pub(super) async fn claim(
        &self,
        kind: &'static str,
        slots: Vec<OwnedSemaphorePermit>,
    ) -> Result<(Vec<Arc<Lease>>, Option<Duration>), DbError> {
        let (owner, limits, count) = (self.shared.owner, self.shared.limits, slots.len());
        let ours = self.shared.held_jobs();
        let limits = ClaimLimits { lease: limits.lease, crashes_max: limits.crashes_max };
        let claim = self.db.run(move |conn| queue::claim(conn, kind, owner, &ours, count, limits)).await?;
        *lock(&self.shared.claimed_at) = Some(Instant::now());
        let (parked, taken): (Vec<Claimed>, Vec<Claimed>) =
            claim.jobs.into_iter().partition(|job| job.parked);
        for job in parked {
            log_parked(kind, job.job, job.connection, job.crashes);
        }
        // A claim brings at most as many jobs as there are slots, so none is left without one.
        let hold = |(claimed, slot)| {
            let lease = Lease::new(kind, claimed, owner, &self.shared.draining);
            self.shared.hold(&lease, slot);
            lease
        };
        Ok((taken.into_iter().zip(slots).map(hold).collect(), claim.next_in))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop_keeper();
    }
}
