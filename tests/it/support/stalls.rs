//! Whether the machine stood still meanwhile: what left in good time arrives late then, and nobody is to blame.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::not_checked;

const TICK: Duration = Duration::from_millis(20);
/// Shorter pauses are forgiven by the margins of what is tested.
const FORGIVEN: Duration = Duration::from_millis(100);
/// What can be held up at once.
const FEW: u64 = 10;

/// Ticks until it is dropped, and takes note of how late it ever was.
pub struct Metronome {
    late_ms: Arc<AtomicU64>,
}

impl Metronome {
    pub fn start() -> Self {
        let late_ms: Arc<AtomicU64> = Arc::default();
        let ticking = Arc::downgrade(&late_ms);
        std::thread::spawn(move || {
            while let Some(late_ms) = ticking.upgrade() {
                let began = Instant::now();
                std::thread::sleep(TICK);
                let late = began.elapsed().saturating_sub(TICK).as_millis();
                late_ms.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { late_ms }
    }

    /// That none went wrong. A few may, which is said, where the machine stood still: what was on its way was held up.
    #[track_caller]
    pub fn none(&self, what: &str, wrong: u64) {
        let late = Duration::from_millis(self.late_ms.load(Ordering::Relaxed));
        if (1..=FEW).contains(&wrong) && late > FORGIVEN {
            not_checked(&format!(
                "that none is {what} ({wrong} were), since the machine stood still for {late:?}"
            ));
            return;
        }
        assert_eq!(wrong, 0, "{what}");
    }
}
