//! The `rotate_key` job: seals everything that is stored anew with the present vault key, when an admin asked for it.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::{Job, Lease, Outcome};
use crate::db::rotations;
use crate::domain::current::Current;
use crate::sync::Engine;

/// When a rotation that could not be finished is tried again: daemons show themselves every few seconds.
const AGAIN: Duration = Duration::from_secs(2);

pub struct RotateKey;

impl Job for RotateKey {
    type App = Current<Engine>;
    type Subject = ();
    const KIND: &'static str = rotations::KIND;
    /// A minute is enough for ten thousand connections.
    const TIMEOUT: Duration = Duration::from_hours(1);

    async fn run((): (), _lease: &Lease, engine: &Arc<Current<Engine>>) -> Outcome {
        let engine = engine.get();
        match engine.auth.rotate_key().await {
            Ok(()) => Outcome::Done,
            Err(failure) => {
                warn!(job.kind = Self::KIND, failure.kind = failure.kind.label(), error = %failure,
                    "The vault key is not rotated yet: {failure}");
                Outcome::RunAgainIn(AGAIN)
            }
        }
    }
}
