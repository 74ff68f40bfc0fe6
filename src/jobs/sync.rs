//! The `sync` job: one turn for one connection.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Job, Lease, Outcome};
use crate::domain::ids::ConnectionId;
use crate::sync::Engine;

pub struct Sync;

impl Job for Sync {
    type App = Engine;
    type Subject = ConnectionId;
    const KIND: &'static str = "sync";
    /// Far beyond `sync.turn_limit`: a turn ends by itself, this only catches one that hangs.
    const TIMEOUT: Duration = Duration::from_mins(15);

    async fn run(connection: ConnectionId, lease: &Lease, engine: &Arc<Engine>) -> Outcome {
        let stop = CancellationToken::new();
        let turn = engine.turn(connection, &stop);
        tokio::pin!(turn);
        let ended = tokio::select! {
            ended = &mut turn => ended,
            _ = lease.stopped() => {
                stop.cancel();
                turn.await
            }
        };
        super::kinds::ended(Self::KIND, connection, engine, ended.map(drop))
    }
}
