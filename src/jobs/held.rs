//! The jobs in this process' hands, as its workers and the keeper's thread share them.
//!
//! The map of held jobs is the truth about what this process may still end; a slot of a lane is free again when its job leaves
//! the map.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::lane::Lane;
use super::lease::Lease;
use super::limits::QueueLimits;
use super::pulse::{Pulse, SILENCE_MAX, Sign};
use crate::db::queue::{Holding, JobId};

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
    pub(super) claimed_at: Mutex<Option<Instant>>,
    pub(super) beat_at: Mutex<Option<Instant>>,
    pub(super) released: Notify,
    pub(super) keeper_pulse: Pulse,
    held: Mutex<HashMap<JobId, Held>>,
    lanes: Mutex<HashMap<&'static str, Arc<Lane>>>,
}

/// A lock that a panicking thread left behind guards plain maps and instants: they are whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(owner: Uuid, limits: QueueLimits) -> Arc<Self> {
        Arc::new(Self {
            owner,
            limits,
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            keeper_stop: AtomicBool::new(false),
            tick: watch::Sender::new(0),
            held: Mutex::default(),
            released: Notify::new(),
            keeper_pulse: Pulse::default(),
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

    /// The lane of a kind, made on the first call; it outlives the workers, so that a restarted one keeps the limit.
    pub(super) fn lane(&self, kind: &'static str, slots: usize, silent_max: Duration) -> Arc<Lane> {
        let new = || Arc::new(Lane::new(kind, slots, silent_max.min(self.limits.silent_max)));
        Arc::clone(lock(&self.lanes).entry(kind).or_insert_with(new))
    }

    pub(super) fn kinds(&self) -> Vec<&'static str> {
        lock(&self.lanes).keys().copied().collect()
    }

    pub(super) fn hold(&self, lease: &Arc<Lease>, slot: OwnedSemaphorePermit) {
        lock(&self.held).insert(lease.job, Held { lease: Arc::clone(lease), _slot: slot });
    }

    /// Lets go of a job: its slot is free.
    pub(super) fn release(&self, job: JobId) {
        lock(&self.held).remove(&job);
        self.released.notify_waiters();
    }

    pub(super) fn held_jobs(&self) -> Vec<JobId> {
        lock(&self.held).keys().copied().collect()
    }

    /// What runs of this kind beat on.
    pub(super) fn pulse_of(&self, kind: &str) -> Option<Arc<Pulse>> {
        lock(&self.lanes).get(kind).map(|lane| Arc::clone(&lane.pulse))
    }

    /// Takes down how a run of this kind came to its end. One that was cut while the database gave no answer hung there.
    pub(super) fn saw_end(&self, lease: &Lease, cut: bool) {
        let Some(lane) = lock(&self.lanes).get(lease.kind).map(Arc::clone) else { return };
        let now = Instant::now();
        if !cut {
            lock(&lane.cuts).ended();
        } else if lock(&self.beat_at).is_some_and(|at| now.duration_since(at) < self.limits.lease) {
            lock(&lane.cuts).cut(lease.began(), now);
        }
    }

    /// How the keeper and the workers are doing. A claimed job whose run does not begin is a worker that takes none.
    pub(super) fn signs(&self) -> Vec<Sign> {
        let allowed = SILENCE_MAX.min(self.limits.silent_max);
        let mut signs = vec![Sign::of("the keeper of the queue", &self.keeper_pulse, allowed)];
        let lanes: Vec<Arc<Lane>> = lock(&self.lanes).values().map(Arc::clone).collect();
        signs.extend(lanes.iter().map(|lane| lane.sign()));
        let untaken = self.waiting().into_iter().map(|lease| Sign {
            part: format!("the worker that should take `{}` job {}", lease.kind, lease.job),
            silent_for: lease.held_for(),
            allowed,
        });
        signs.extend(untaken);
        signs
    }

    /// The leases of jobs whose run has not begun.
    pub(super) fn waiting(&self) -> Vec<Arc<Lease>> {
        let held = lock(&self.held);
        held.values().filter(|held| held.lease.is_waiting()).map(|held| Arc::clone(&held.lease)).collect()
    }

    pub(super) fn runs_none(&self) -> bool {
        lock(&self.held).values().all(|held| held.lease.is_waiting())
    }
}
