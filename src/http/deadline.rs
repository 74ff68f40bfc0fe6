//! A moment after which nothing may be sent or waited for any more, on a clock that counts suspend.
//!
//! Tokio's and std's timers stand still while the machine sleeps, so an exchange that began before a laptop was
//! closed would go on after it was opened, long after somebody else was allowed to try. This clock goes on, and no
//! change of the wall clock moves it.

use std::time::Duration;

/// How often [`Deadline::passed`] looks at the clock: the longest it can be late after a resume.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// On the boot-time clock.
    at: Duration,
}

impl Deadline {
    /// The deadline `wait` from now.
    pub fn after(wait: Duration) -> Self {
        Self { at: since_boot().saturating_add(wait) }
    }

    /// For what ends by itself.
    pub fn never() -> Self {
        Self::after(Duration::MAX)
    }

    /// The same, as it were for a process that stood still for `lost`.
    #[must_use]
    pub fn sooner(self, lost: Duration) -> Self {
        Self { at: self.at.saturating_sub(lost) }
    }

    /// What is left of it; zero when it has passed.
    pub fn left(self) -> Duration {
        self.at.saturating_sub(since_boot())
    }

    /// Returns when the deadline has passed, after a resume within a second.
    pub async fn passed(self) {
        loop {
            let left = self.left();
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
        }
    }
}

/// Time since the machine started, sleep included.
fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "std has no clock that counts suspend; the pointer is to a live local")]
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) } != 0;
    assert!(!failed, "the kernel has had CLOCK_BOOTTIME since 2.6.39");
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passes_once_and_stays_passed() {
        assert!(Deadline::after(Duration::from_mins(1)).left() > Duration::ZERO);
        let deadline = Deadline::after(Duration::from_millis(30));
        tokio::time::timeout(Duration::from_mins(1), deadline.passed()).await.expect("it passes");
        assert_eq!(deadline.left(), Duration::ZERO);
        deadline.passed().await;
    }

    #[test]
    fn a_far_deadline_does_not_overflow() {
        assert!(Deadline::after(Duration::MAX).left() > Duration::from_secs(1));
    }
}
