//! Feeds systemd's watchdog, as long as every part of the daemon gets on with its work.
//!
//! A thread of its own: a runtime that hangs must be seen, and a busy one must not cost a meal. What counts as work is
//! told by [`crate::jobs::Pulse`]: a database or a provider that is away silences nobody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sd_notify::NotifyState;
use tracing::{error, info};

use super::service::Tell;
use crate::jobs::Sign;

/// Meals in the time that systemd allows between two.
const MEALS: u32 = 5;
/// The longest pause between two looks.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// Looks after the parts until it is dropped.
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    /// `None`: it has been waited for.
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// `limit` is what systemd allows between two meals.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        limit: Duration,
        signs: impl Fn() -> Vec<Sign> + Send + 'static,
        tell: Tell,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let pause = (limit / MEALS).min(LOOK_MAX);
        let watch = move || {
            let mut stuck = None;
            while !stopped.load(Ordering::SeqCst) {
                stuck = look(&signs(), stuck, &tell);
                thread::park_timeout(pause);
            }
        };
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(watch)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    /// Returns when nothing more is said: a look that is under way ends first.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// One look: feeds, or says once which part is stuck. Returns that part.
fn look(signs: &[Sign], before: Option<String>, tell: &Tell) -> Option<String> {
    let Some(sign) = signs.iter().find(|sign| sign.is_stuck()) else {
        if let Some(part) = before {
            info!("{part} is back: systemd's watchdog is fed again");
        }
        tell(&[NotifyState::Watchdog]);
        return None;
    };
    if before.is_none() {
        let silent = humantime::format_duration(Duration::from_secs(sign.silent_for.as_secs()));
        let text = format!("Stuck: {} did nothing for {silent}", sign.part);
        error!("{text}; systemd's watchdog is not fed any more, and will restart the daemon");
        tell(&[NotifyState::Status(&text)]);
    }
    Some(sign.part.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn feeds_unless_a_part_is_stuck() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let tell: Tell = Arc::new(move |states: &[NotifyState<'_>]| {
            heard.lock().unwrap().extend(states.iter().map(ToString::to_string));
        });
        let sign = |part: &str, silent: u64| Sign {
            part: part.to_owned(),
            silent_for: Duration::from_secs(silent),
            allowed: Duration::from_mins(1),
        };
        assert_eq!(look(&[sign("a", 0), sign("b", 60)], None, &tell), None);
        let stuck = look(&[sign("a", 0), sign("b", 61)], None, &tell);
        assert_eq!(stuck.as_deref(), Some("b"));
        let stuck = look(&[sign("a", 0), sign("b", 66)], stuck, &tell);
        assert_eq!(look(&[sign("a", 0), sign("b", 1)], stuck, &tell), None);
        let told = told.lock().unwrap();
        assert_eq!(*told, ["WATCHDOG=1", "STATUS=Stuck: b did nothing for 1m 1s", "WATCHDOG=1"]);
    }
}
