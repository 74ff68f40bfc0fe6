//! How long connecting bears with a provider that has no time: whoever asked is still there, and would have to hand
//! secrets over again, or consent again. Refreshes have a schedule of their own.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Auth;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::time::until;
use crate::http::deadline::Deadline;
use crate::http::retry;

/// How often a provider is asked in all.
const TRIES: u32 = 4;
/// Pauses where the provider names none.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The longest pause that is waited for where the provider names one.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// No try begins later: keys are good for as long as they are.
const WITH_KEYS: Duration = Duration::from_secs(90);
/// Codes live for a minute or so, some for thirty seconds.
const WITH_CODE: Duration = Duration::from_secs(20);

/// What is left of it.
pub(super) struct Patience {
    tries: u32,
    deadline: Deadline,
}

impl Patience {
    pub(super) fn with_keys() -> Self {
        Self { tries: 0, deadline: Deadline::after(WITH_KEYS) }
    }

    pub(super) fn with_code() -> Self {
        Self { tries: 0, deadline: Deadline::after(WITH_CODE) }
    }

    /// How long to wait after a failure, before the next try; `None`: it is final.
    fn pause(&mut self, failure: &Failure, now: DateTime<Utc>) -> Option<Duration> {
        self.tries += 1;
        let asked = match failure.kind {
            FailureKind::Throttled { until: end } => end.map(|end| until(end, now)),
            FailureKind::Transient => None,
            _ => return None,
        };
        let pause = asked.unwrap_or_else(|| retry::pause(self.tries, PAUSE_FIRST, PAUSE_MAX));
        (self.tries < TRIES && pause <= WAIT_MAX && pause < self.deadline.left()).then_some(pause)
    }
}

impl Auth {
    /// Waits before the next try.
    ///
    /// # Errors
    /// There is none: it has failed.
    pub(super) async fn bear_with(&self, patience: &mut Patience, failure: Failure) -> Result<(), Failure> {
        let Some(pause) = patience.pause(&failure, self.clock.now()) else { return Err(failure) };
        // The daemon's end is not waited for in vain.
        self.answered(tokio::time::sleep(pause)).await.map_err(|_| failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_borne_with() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let throttled = |wait_ms: i64| {
            let until = Some(now + chrono::TimeDelta::milliseconds(wait_ms));
            Failure::new(FailureKind::Throttled { until }, "429")
        };
        let pause = |mut patience: Patience, failure| patience.pause(&failure, now);
        let milliseconds = |wait_ms| Some(Duration::from_millis(wait_ms));
        assert_eq!(pause(Patience::with_keys(), throttled(2_500)), milliseconds(2_500));
        assert_eq!(pause(Patience::with_keys(), throttled(30_000)), milliseconds(30_000));
        assert_eq!(pause(Patience::with_keys(), throttled(31_000)), None);
        assert_eq!(pause(Patience::with_code(), throttled(2_500)), milliseconds(2_500));
        assert_eq!(pause(Patience::with_code(), throttled(21_000)), None, "the code would have died");
        for kind in [FailureKind::NeedsReauth, FailureKind::Misconfigured, FailureKind::ProviderChanged] {
            assert_eq!(pause(Patience::with_keys(), Failure::new(kind, "no")), None);
        }
        let mut patience = Patience::with_keys();
        let borne = (0..9).take_while(|_| patience.pause(&Failure::transient("503"), now).is_some());
        assert_eq!(borne.count(), 3);
    }
}
