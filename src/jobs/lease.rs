//! What a run holds while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::db::queue::{Claimed, Holding, JobId};
use crate::domain::ids::ConnectionId;

/// Why a run should stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The job belongs to somebody else now, or is gone. Nothing that the run still writes about it counts.
    Lost,
    /// The daemon drains: save the place and end. The outcome counts.
    Draining,
}

/// A job in the hands of this process.
#[derive(Debug)]
pub struct Lease {
    pub job: JobId,
    pub kind: &'static str,
    pub connection: Option<ConnectionId>,
    /// Which run of the job this is, from 1.
    pub attempt: i32,
    /// Runs in a row before this one that ended in a lapsed lease or a panic.
    pub crashes: i32,
    owner: Uuid,
    stage: AtomicU8,
    since: Instant,
    lost: CancellationToken,
    draining: CancellationToken,
}

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const ENDING: u8 = 2;

impl Lease {
    pub(super) fn new(
        kind: &'static str,
        claimed: Claimed,
        owner: Uuid,
        draining: &CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            job: claimed.job,
            kind,
            connection: claimed.connection,
            attempt: claimed.attempt,
            crashes: claimed.crashes,
            owner,
            stage: AtomicU8::new(WAITING),
            since: Instant::now(),
            lost: CancellationToken::new(),
            draining: draining.clone(),
        })
    }

    /// Resolves when the lease is known to be lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// True once the lease is known to be lost. Until then it may be in doubt: what matters is fenced by its own table.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Resolves when the run should stop, with the reason.
    pub async fn stopped(&self) -> Stop {
        tokio::select! {
            biased;
            () = self.lost.cancelled() => Stop::Lost,
            () = self.draining.cancelled() => Stop::Draining,
        }
    }

    /// The reason to stop, if there is one by now.
    pub fn stop(&self) -> Option<Stop> {
        if self.is_lost() { Some(Stop::Lost) } else { self.draining.is_cancelled().then_some(Stop::Draining) }
    }

    pub(super) fn holding(&self) -> Holding {
        Holding { job: self.job, owner: self.owner, attempt: self.attempt }
    }

    pub(super) fn set_started(&self) {
        self.stage.store(STARTED, Ordering::SeqCst);
    }

    /// When it was claimed.
    pub(super) fn began(&self) -> Instant {
        self.since
    }

    pub(super) fn held_for(&self) -> Duration {
        self.since.elapsed()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.stage.load(Ordering::SeqCst) == WAITING
    }

    /// From here on the row may stop being ours because we ended it: a heartbeat that misses it means nothing.
    pub(super) fn set_ending(&self) {
        self.stage.store(ENDING, Ordering::SeqCst);
    }

    /// Tells the run that the job is no longer its own. False when the run is ending, or knows already.
    pub(super) fn lose(&self) -> bool {
        let news = self.stage.load(Ordering::SeqCst) != ENDING && !self.lost.is_cancelled();
        if news {
            self.lost.cancel();
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::{Lease, Stop};
    use crate::db::queue::{Claimed, JobId};

    fn lease(draining: &CancellationToken) -> std::sync::Arc<Lease> {
        let claimed = Claimed { job: JobId(1), connection: None, attempt: 1, crashes: 0, parked: false };
        Lease::new("sync", claimed, Uuid::nil(), draining)
    }

    #[test]
    fn a_lost_lease_outweighs_a_drain() {
        let draining = CancellationToken::new();
        let lease = lease(&draining);
        assert_eq!(lease.stop(), None);
        draining.cancel();
        assert_eq!(lease.stop(), Some(Stop::Draining));
        assert!(lease.lose());
        assert_eq!(lease.stop(), Some(Stop::Lost));
        assert!(!lease.lose(), "it is told once");
    }

    #[test]
    fn an_ending_run_is_not_told_that_it_lost() {
        let lease = lease(&CancellationToken::new());
        lease.set_ending();
        assert!(!lease.lose());
        assert!(!lease.is_lost());
    }
}
