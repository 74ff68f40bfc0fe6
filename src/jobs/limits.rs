//! The queue's numbers.

use std::time::Duration;

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
    /// No part is silent for longer without counting as stuck, whatever its kind allows.
    pub silent_max: Duration,
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
            silent_max: Duration::MAX,
        }
    }
}

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pause after `pause` between tries while the database is away: short, because a restart takes a fraction of a second.
pub(super) fn next_pause(pause: Duration) -> Duration {
    pause.max(PAUSE_FIRST / 2).saturating_mul(2).min(PAUSE_MAX)
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
