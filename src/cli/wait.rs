//! Waiting for what a daemon does: look at the tables until it is there, the time is over, or Ctrl-C.
//!
//! It looks again and again instead of listening: a listener needs a session of its own, misses what is said while that
//! session is away, and so would have to look in any case.

use std::time::Duration;

use tokio::time::Instant;

use super::report::Error;
use crate::db::{Db, DbError, PgConnection};

/// How long the database may be away before a wait gives up.
const AWAY_MAX: Duration = Duration::from_mins(1);

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited<T> {
    Got(T),
    /// The limit has passed.
    Over,
    /// Ctrl-C.
    Interrupted,
}

/// Looks until `look` gives something, for at most `limit`. A database that is away for a moment is borne.
pub async fn wait<T, L>(db: &Db, limit: Duration, look: L) -> Result<Waited<T>, Error>
where
    T: Send + 'static,
    L: Fn(&mut PgConnection) -> Result<Option<T>, DbError> + Clone + Send + 'static,
{
    tokio::select! {
        got = looking(db, limit, look) => got,
        interrupt = tokio::signal::ctrl_c() => match interrupt {
            Ok(()) => Ok(Waited::Interrupted),
            Err(error) => Err(Error::io("listening for Ctrl-C", &error)),
        },
    }
}

async fn looking<T, L>(db: &Db, limit: Duration, look: L) -> Result<Waited<T>, Error>
where
    T: Send + 'static,
    L: Fn(&mut PgConnection) -> Result<Option<T>, DbError> + Clone + Send + 'static,
{
    let started = Instant::now();
    let mut answered = started;
    loop {
        match db.run(look.clone()).await {
            Ok(Some(got)) => return Ok(Waited::Got(got)),
            Ok(None) => answered = Instant::now(),
            Err(error) if error.is_transient() && answered.elapsed() < AWAY_MAX => {}
            Err(error) => return Err(error.into()),
        }
        let waited = started.elapsed();
        if waited >= limit {
            return Ok(Waited::Over);
        }
        tokio::time::sleep(pause(waited).min(limit.saturating_sub(waited))).await;
    }
}

/// Between two looks: short while an answer is a matter of moments, longer while somebody reads a consent page.
fn pause(waited: Duration) -> Duration {
    match waited.as_secs() {
        0..10 => Duration::from_millis(100),
        10..120 => Duration::from_millis(500),
        _ => Duration::from_secs(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow() {
        let pauses = [0, 9, 10, 119, 120, 86_400].map(|s| pause(Duration::from_secs(s)).as_millis());
        assert_eq!(pauses, [100, 100, 500, 500, 2_000, 2_000]);
    }

    #[tokio::test]
    async fn a_database_that_is_not_there_is_not_waited_for_without_end() {
        let db = Db::connect(&"postgresql:///x?host=/nonexistent/fieldmirror".into(), 1).unwrap();
        let limit = Duration::from_millis(250);
        let waited = wait(&db, limit, |_| Ok(None::<()>)).await.unwrap();
        assert_eq!(waited, Waited::Over);
    }
}
