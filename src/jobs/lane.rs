//! A lane per kind: how many jobs run at a time, and the task that fetches them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::held::lock;
use super::hub::Hub;
use super::lease::Lease;
use super::limits::next_pause;
use super::pulse::{Cuts, Pulse, Sign};
use crate::domain::failure::chain;

/// The most jobs that one claim takes.
const CLAIM_MAX: usize = 64;
/// The least pause after a look that found nothing: a due row that a rival has locked must not make us spin.
const IDLE_PAUSE_MIN: Duration = Duration::from_millis(10);

/// The slots of a kind, and its wake-up.
pub(super) struct Lane {
    pub(super) kind: &'static str,
    pub(super) slots_max: usize,
    slots: Arc<Semaphore>,
    woken: Notify,
    /// Beats when the fetcher comes round, and when a run is woken.
    pub(super) pulse: Arc<Pulse>,
    pub(super) cuts: Mutex<Cuts>,
    silent_max: Duration,
}

impl Lane {
    pub(super) fn new(kind: &'static str, slots: usize, silent_max: Duration) -> Self {
        let slots_max = slots.max(1);
        Self {
            kind,
            slots_max,
            slots: Arc::new(Semaphore::new(slots_max)),
            woken: Notify::new(),
            pulse: Arc::default(),
            cuts: Mutex::default(),
            silent_max,
        }
    }

    /// A job of the kind may have become due.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    pub(super) fn sign(&self) -> Sign {
        let silent = Sign::of(format!("the workers for `{}` jobs", self.kind), &self.pulse, self.silent_max);
        let cut_for = lock(&self.cuts).silent_for(self.slots_max);
        Sign { silent_for: silent.silent_for.max(cut_for), ..silent }
    }

    /// Waits for a free slot, and takes all that are free.
    async fn free_slots(&self) -> Vec<OwnedSemaphorePermit> {
        let first = Arc::clone(&self.slots).acquire_owned().await;
        let more = std::iter::from_fn(|| Arc::clone(&self.slots).try_acquire_owned().ok());
        first.ok().into_iter().chain(more.take(CLAIM_MAX - 1)).collect()
    }
}

/// Claims jobs into `out` while there are slots, until `stop`. Never cancelled in the middle: what a claim took is either
/// handed over or given back.
pub(super) async fn fetch(
    hub: Arc<Hub>,
    lane: Arc<Lane>,
    out: mpsc::Sender<Arc<Lease>>,
    stop: CancellationToken,
) {
    let mut outage = None;
    loop {
        lane.pulse.beat();
        let slots = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            slots = lane.free_slots() => slots,
        };
        let pause = match hub.claim(lane.kind, slots).await {
            Ok((leases, next_in)) => {
                let idle = leases.is_empty();
                if outage.take().is_some() {
                    info!(
                        job.kind = lane.kind,
                        "The database answers again: looking for `{}` jobs", lane.kind
                    );
                }
                for lease in leases {
                    if let Err(refused) = out.send(lease).await {
                        hub.return_unstarted(&refused.0).await;
                    }
                }
                let next = next_in.map_or(hub.shared.limits.poll, |next| next.min(hub.shared.limits.poll));
                if idle { next.max(IDLE_PAUSE_MIN) } else { next }
            }
            Err(error) => {
                if outage.is_none() {
                    warn!(
                        job.kind = lane.kind,
                        error = chain(&error),
                        "Looking for `{}` jobs failed",
                        lane.kind
                    );
                }
                *outage.insert(next_pause(outage.unwrap_or_default()))
            }
        };
        rest(&lane, pause, &stop).await;
    }
}

/// Waits for a wake-up, at most `pause`; not at all when more is due, for then the slots are the limit.
async fn rest(lane: &Lane, pause: Duration, stop: &CancellationToken) {
    if pause.is_zero() {
        return;
    }
    tokio::select! {
        () = stop.cancelled() => {}
        () = lane.woken.notified() => {}
        () = time::sleep(pause) => {}
    }
}
