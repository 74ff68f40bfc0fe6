//! Signs that the parts of this process get on with their work, for the watchdog.
//!
//! A part beats whenever it comes round, with or without success: a database that is away, a provider that does not
//! answer and an idle night are no reason to be silent, since every wait in between has a limit. Silence beyond the
//! longest of those waits means that the part hangs.
//!
//! A run that is cut by its time limit has come round by no doing of its own: see [`Cuts`].

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

/// Runs that were cut by their time limit since one last ended by itself: a pool whose runs all hang comes round at each
/// cut, and gets nothing done. A provider that is slow cuts none, for every request has a limit of its own.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    in_a_row: usize,
    /// When the first of them began, and the last was cut.
    span: Option<(Instant, Instant)>,
}

impl Cuts {
    /// The least that count as more than one run's trouble.
    const FEW: usize = 2;

    pub(super) fn cut(&mut self, began: Instant, at: Instant) {
        self.in_a_row += 1;
        self.span = Some((self.span.map_or(began, |(first, _)| first.min(began)), at));
    }

    pub(super) fn ended(&mut self) {
        *self = Self::default();
    }

    /// For how long nothing was done but cutting, once there were enough cuts for every one of the `slots`.
    pub(super) fn silent_for(&self, slots: usize) -> Duration {
        let span = self.span.filter(|_| self.in_a_row >= slots.max(Self::FEW));
        span.map_or(Duration::ZERO, |(first, last)| last.saturating_duration_since(first))
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

    #[test]
    fn cuts_are_silence_until_a_run_ends_by_itself() {
        let (start, minute) = (Instant::now(), Duration::from_mins(1));
        let mut cuts = Cuts::default();
        for round in 0..4 {
            cuts.cut(start + minute * 2 * round, start + minute * 2 * (round + 1));
        }
        assert_eq!(cuts.silent_for(4), minute * 8);
        assert_eq!(cuts.silent_for(5), Duration::ZERO, "one slot may have worked all the time");
        cuts.ended();
        cuts.cut(start, start + minute * 60);
        assert_eq!(cuts.silent_for(1), Duration::ZERO, "one run's trouble");
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
