//! Alerts: what needs a person is found in the tables, and the alert program is told of it.
//!
//! Two loops that share nothing but the table: one compares what holds with what is open ([`crate::db::alerts`]), the
//! other runs the program. A program that hangs or fails keeps no alert from being found, and every message is tried
//! until it is taken: at least once, and by one daemon at a time.

pub mod hook;
pub mod message;
pub mod remedy;
pub mod standstill;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::config::Settings;
use crate::db::alerts::{self, Alert, Served};
use crate::db::{Db, DbError};
use crate::domain::failure::chain;
use crate::domain::time::Clock;
use hook::HookError;

/// How often the tables are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The first pause after the program failed, and the longest; doubled in between. Kept by each daemon for itself: the
/// program of another host may work.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_mins(15);
/// How much longer than the program may take an alert stays with the daemon that tells it.
const HOLD_MARGIN: Duration = Duration::from_mins(1);
/// How long a daemon that was away has to catch up before a stream can be called stale, unless its limit is lower.
const CATCH_UP: Duration = Duration::from_mins(30);
/// How often old alerts are deleted, and how old they get.
const PRUNE_EVERY: Duration = Duration::from_hours(1);
const KEPT: Duration = Duration::from_hours(90 * 24);

/// Looks after alerts until `stop`.
pub struct Watch {
    pub db: Db,
    pub clock: Arc<dyn Clock>,
    /// Those of the start: what the program is and how it is told.
    pub settings: Arc<Settings>,
    /// Those in force: a reload may have put others in the place of the first.
    pub in_force: Box<dyn Fn() -> Arc<Settings> + Send + Sync>,
    pub daemon: Uuid,
    pub host: String,
}

/// Says once that alerts cannot be looked after. An outage of the database is the beat's to report.
fn report(error: Option<&DbError>, said: bool) -> bool {
    match error {
        Some(error) if error.is_transient() => said,
        Some(error) => {
            if !said {
                warn!(error = %chain(error), "Alerts cannot be looked after: {}", chain(error));
            }
            true
        }
        None => false,
    }
}

impl Watch {
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.compare(&stop), self.tell(&stop));
    }

    /// Finds what has begun and what has ended.
    async fn compare(&self, stop: &CancellationToken) {
        let mut failing = false;
        let mut pruned: Option<Instant> = None;
        loop {
            let of = served(&(self.in_force)());
            let found = self.db.transaction(move |conn| alerts::reconcile(conn, &of)).await;
            failing = report(found.as_ref().err(), failing);
            if let Ok(changes) = found {
                for of in &changes.opened {
                    warn!(
                        alert.kind = of.kind,
                        alert.subject = of.subject,
                        "Alert: {}",
                        message::summary(of)
                    );
                }
                for Alert { of, .. } in &changes.resolved {
                    info!(
                        alert.kind = of.kind,
                        alert.subject = of.subject,
                        "Resolved: {}",
                        message::summary(of)
                    );
                }
            }
            if pruned.is_none_or(|at| at.elapsed() > PRUNE_EVERY) {
                pruned = Some(Instant::now());
                let _ = self.db.run(|conn| alerts::prune(conn, KEPT)).await;
            }
            if pause(LOOK_EVERY, stop).await.is_none() {
                return;
            }
        }
    }

    /// Tells the program what it has not taken yet.
    async fn tell(&self, stop: &CancellationToken) {
        if self.settings.alerts.exec.is_empty() {
            return;
        }
        let (mut failures, mut lost) = (0, false);
        loop {
            let wait = match self.tell_next(stop).await {
                Ok(Told::One) => {
                    if std::mem::take(&mut failures) > 0 {
                        info!("The alert program works again");
                    }
                    Duration::ZERO
                }
                Ok(Told::Failed(error)) => {
                    failures += 1;
                    if failures == 1 {
                        warn!(error = %chain(&error), "The alert program failed: {}", chain(&error));
                    }
                    retry_in(failures)
                }
                Ok(Told::Nothing) => LOOK_EVERY,
                Err(error) => {
                    lost = report(Some(&error), lost);
                    LOOK_EVERY
                }
            };
            if pause(wait, stop).await.is_none() {
                return;
            }
        }
    }

    async fn tell_next(&self, stop: &CancellationToken) -> Result<Told, DbError> {
        let (daemon, settings) = (self.daemon, &self.settings.alerts);
        let (hold, repeat_after) = (settings.timeout + HOLD_MARGIN, settings.repeat_after);
        let claimed = self.db.run(move |conn| alerts::claim(conn, daemon, hold, repeat_after)).await?;
        let Some(alert) = claimed else { return Ok(Told::Nothing) };
        let object = message::object(&alert, &self.host, self.clock.now());
        let id = alert.id;
        match hook::run(settings, &object, stop).await {
            Ok(()) => {
                self.db.run(move |conn| alerts::told(conn, daemon, &alert)).await?;
                Ok(Told::One)
            }
            Err(HookError::Stopped) => {
                self.db.run(move |conn| alerts::give_back(conn, daemon, id)).await?;
                Ok(Told::Nothing)
            }
            Err(error) => {
                let text = chain(&error);
                self.db.run(move |conn| alerts::not_told(conn, daemon, id, &text)).await?;
                Ok(Told::Failed(error))
            }
        }
    }
}

/// What became of the next message.
enum Told {
    Nothing,
    One,
    Failed(HookError),
}

/// Which providers are looked at, and when their streams are stale: never while they only keep to their interval, nor
/// while daemons that were away catch up.
pub fn served(settings: &Settings) -> Vec<Served> {
    let enabled = settings.providers.iter().filter(|(_, provider)| provider.enabled);
    enabled
        .map(|(name, provider)| {
            let poll_interval = provider.poll_interval.unwrap_or(settings.sync.poll_interval);
            let usual = poll_interval * 2 + settings.sync.hold_back;
            let stale_after = settings.alerts.stale_after.max(usual);
            Served { provider: name.clone(), stale_after, catch_up: stale_after.min(CATCH_UP.max(usual)) }
        })
        .collect()
}

fn retry_in(failures: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_MAX)
}

/// `None` when the daemon stops meanwhile.
async fn pause(wait: Duration, stop: &CancellationToken) -> Option<()> {
    tokio::select! {
        () = tokio::time::sleep(wait) => Some(()),
        () = stop.cancelled() => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_after_failures_grow() {
        let pauses = [1, 2, 3, 8, 9, 60].map(|failures| retry_in(failures).as_secs());
        assert_eq!(pauses, [5, 10, 20, 640, 900, 900]);
    }

    #[test]
    fn a_stream_that_keeps_to_its_interval_is_not_stale() {
        let mut settings = Settings::example();
        let hubspot = |served: &Served| served.provider == "hubspot";
        let limit = |settings: &Settings| served(settings).into_iter().find(hubspot).unwrap().stale_after;
        assert_eq!(limit(&settings), Duration::from_hours(1));
        settings.sync.poll_interval = Duration::from_hours(2);
        assert_eq!(limit(&settings), Duration::from_hours(4) + settings.sync.hold_back);
        let catch_up = |settings: &Settings| served(settings).into_iter().find(hubspot).unwrap().catch_up;
        assert_eq!(catch_up(&settings), limit(&settings), "its first turn may be that late");
        settings.sync.poll_interval = Duration::from_mins(5);
        assert_eq!((catch_up(&settings), limit(&settings)), (CATCH_UP, Duration::from_hours(1)));
        settings.alerts.stale_after = Duration::from_mins(20);
        assert_eq!(catch_up(&settings), Duration::from_mins(20));
        for provider in settings.providers.values_mut() {
            provider.enabled = false;
        }
        assert_eq!(served(&settings), []);
    }
}
