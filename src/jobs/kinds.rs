//! The kinds of job there are, one line each, and the shells around what they do.

use std::sync::Arc;
use std::time::Duration;

use apalis_core::monitor::Monitor;
use tracing::warn;

use super::rotate_key::RotateKey;
use super::sync::Sync;
use super::{Hub, Job, Lease, Outcome, connect, disconnect, refresh_token, register};
use crate::domain::current::Current;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::time::until;
use crate::sync::Engine;

/// Refreshes at a time: they wait for providers, not for the processor. 10,000 tokens of 15 minutes are 11 a second, which
/// token endpoints that take more than a second each to answer may have as well.
const REFRESH_SLOTS: usize = 16;
/// The same for consents and what ends them.
const TOKEN_SLOTS: usize = 8;
/// Far beyond the limits of what these runs ask of a provider and of the database, and of a wait for a refresh elsewhere:
/// it only cuts a run that hangs.
const TOKEN_RUN_MAX: Duration = Duration::from_mins(10);
/// When a job that could not be finished is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A worker for every kind. `turns` is how many connections are synced at a time.
pub fn workers(hub: &Arc<Hub>, turns: usize, engine: &Arc<Current<Engine>>) -> Monitor {
    let monitor = Monitor::new();
    let monitor = register::<Sync>(monitor, hub, turns, Arc::clone(engine));
    let monitor = register::<RefreshToken>(monitor, hub, REFRESH_SLOTS, Arc::clone(engine));
    let monitor = register::<Connect>(monitor, hub, TOKEN_SLOTS, Arc::clone(engine));
    let monitor = register::<Disconnect>(monitor, hub, TOKEN_SLOTS, Arc::clone(engine));
    register::<RotateKey>(monitor, hub, 1, Arc::clone(engine))
}

struct Connect;

impl Job for Connect {
    type App = Current<Engine>;
    type Subject = ConnectionId;
    const KIND: &'static str = "connect";
    const TIMEOUT: Duration = TOKEN_RUN_MAX;

    async fn run(connection: ConnectionId, _lease: &Lease, engine: &Arc<Current<Engine>>) -> Outcome {
        let engine = engine.get();
        ended(Self::KIND, connection, &engine, connect::run(&engine.auth, connection).await)
    }
}

struct RefreshToken;

impl Job for RefreshToken {
    type App = Current<Engine>;
    type Subject = ConnectionId;
    const KIND: &'static str = "refresh_token";
    const TIMEOUT: Duration = TOKEN_RUN_MAX;

    async fn run(connection: ConnectionId, _lease: &Lease, engine: &Arc<Current<Engine>>) -> Outcome {
        let engine = engine.get();
        ended(Self::KIND, connection, &engine, refresh_token::run(&engine.auth, connection).await)
    }
}

struct Disconnect;

impl Job for Disconnect {
    type App = Current<Engine>;
    type Subject = ConnectionId;
    const KIND: &'static str = "disconnect";
    const TIMEOUT: Duration = Duration::from_mins(75);
    /// A large mirror takes a while to purge, in statements that may take as long.
    const SILENT_MAX: Duration = Duration::from_hours(1);

    async fn run(connection: ConnectionId, _lease: &Lease, engine: &Arc<Current<Engine>>) -> Outcome {
        let engine = engine.get();
        ended(Self::KIND, connection, &engine, disconnect::run(&engine.auth, connection).await)
    }
}

/// What could not be finished is tried again after a pause; what it means has been written down where it belongs.
pub(super) fn ended(
    kind: &'static str,
    connection: ConnectionId,
    engine: &Engine,
    result: Result<(), Failure>,
) -> Outcome {
    let Err(failure) = result else { return Outcome::Done };
    // A refresh that failed has been told where that was written down.
    if kind != RefreshToken::KIND {
        warn!(
            connection.id = connection.0, job.kind = kind, failure.kind = failure.kind.label(), error = %failure,
            "Could not finish `{kind}` for connection {connection}"
        );
    }
    match failure.kind {
        // What cannot go well before a known moment is left alone until then.
        FailureKind::Throttled { until: Some(then) } => {
            Outcome::RunAgainIn(until(then, engine.clock.now()).max(AGAIN))
        }
        _ => Outcome::RunAgainIn(AGAIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::SILENCE_MAX;

    /// A limit of its own that came first would end the silence of a pool that hangs, again and again.
    #[test]
    fn a_run_that_hangs_is_missed_before_it_is_cut() {
        fn check<J: Job>() {
            assert!(J::TIMEOUT > J::SILENT_MAX, "`{}` jobs are cut after {:?}", J::KIND, J::TIMEOUT);
            assert!(J::SILENT_MAX >= SILENCE_MAX, "`{}` jobs may wait for the database", J::KIND);
        }
        check::<Sync>();
        check::<RefreshToken>();
        check::<Connect>();
        check::<Disconnect>();
        check::<RotateKey>();
    }
}
