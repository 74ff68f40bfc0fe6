//! Signs that the parts of this process get on with their work, for the watchdog.
//!
//! A part beats whenever it comes round, with or without success: a database that is away, a provider that does not
//! answer and an idle night are no reason to be silent, since every wait in between has a limit. Silence beyond the
//! longest of those waits means that the part hangs.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The longest that a part is silent while it waits for the database: a statement may take five minutes, and a session
/// is waited for, and opened, before it.
pub const SILENCE_MAX: Duration = Duration::from_mins(7);

/// When a part last came round.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Milliseconds on our own clock; 0: not yet.
    beat_at: AtomicU64,
}

impl Pulse {
    pub fn beat(&self) {
        self.beat_at.store(milliseconds(), Ordering::Relaxed);
    }

    /// How long it has been silent; zero for a part that has not begun.
    pub fn silent_for(&self) -> Duration {
        match self.beat_at.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            at => Duration::from_millis(milliseconds().saturating_sub(at)),
        }
    }
}

/// Since the first call, and never 0.
fn milliseconds() -> u64 {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    let since = BEGINNING.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// How a part is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sign {
    /// For people, such as "the scheduler".
    pub part: String,
    pub silent_for: Duration,
    pub allowed: Duration,
}

impl Sign {
    pub fn of(part: impl Into<String>, pulse: &Pulse, allowed: Duration) -> Self {
        Self { part: part.into(), silent_for: pulse.silent_for(), allowed }
    }

    pub fn is_stuck(&self) -> bool {
        self.silent_for > self.allowed
    }
}

/// A future that beats whenever it is polled: what waits for something that comes is woken, what hangs is not.
pub(super) struct Beating<F> {
    pub(super) pulse: Arc<Pulse>,
    pub(super) inner: Pin<Box<F>>,
}

impl<F: Future> Future for Beating<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.pulse.beat();
        self.inner.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_first_beat() {
        let pulse = Pulse::default();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(pulse.silent_for(), Duration::ZERO, "it has not begun");
        pulse.beat();
        std::thread::sleep(Duration::from_millis(20));
        let sign = Sign::of("it", &pulse, Duration::from_millis(10));
        assert!(sign.is_stuck(), "{sign:?}");
        pulse.beat();
        assert!(!Sign::of("it", &pulse, Duration::from_secs(10)).is_stuck());
    }

    #[tokio::test]
    async fn a_future_that_is_woken_beats() {
        let pulse = Arc::new(Pulse::default());
        let waits = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            pulse.silent_for()
        };
        let silent = Beating { pulse: Arc::clone(&pulse), inner: Box::pin(waits) }.await;
        assert!(silent < Duration::from_millis(900), "{silent:?}");
    }
}
