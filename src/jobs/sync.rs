//! The `sync` job: one turn for one connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Job, Lease, Outcome};
use crate::db::{queue, sync_runs};
use crate::domain::current::Current;
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;
use crate::domain::measure;
use crate::sync::{Engine, TurnEnd};

pub struct Sync;

impl Job for Sync {
    type App = Current<Engine>;
    type Subject = ConnectionId;
    const KIND: &'static str = "sync";
    /// Far beyond `sync.turn_limit`: a turn ends by itself, this only catches one that hangs.
    const TIMEOUT: Duration = Duration::from_mins(15);

    async fn run(connection: ConnectionId, lease: &Lease, engine: &Arc<Current<Engine>>) -> Outcome {
        let engine = engine.get();
        forgive(connection, lease, &engine).await;
        let (stop, began) = (CancellationToken::new(), Instant::now());
        let turn = engine.turn(connection, &stop);
        tokio::pin!(turn);
        let ended = tokio::select! {
            ended = &mut turn => ended,
            _ = lease.stopped() => {
                stop.cancel();
                turn.await
            }
        };
        measure::turn(TurnEnd::word(&ended), began.elapsed());
        super::kinds::ended(Self::KIND, connection, &engine, ended.map(drop))
    }
}

/// A turn that was cut off in the middle of its work, by a kill or a power cut, is not what parking is for: the next one
/// goes on from where it was. Only turns that die without getting any further are a series of crashes.
async fn forgive(connection: ConnectionId, lease: &Lease, engine: &Engine) {
    if lease.crashes == 0 {
        return;
    }
    let holding = lease.holding();
    let forgiven = engine.db.transaction(move |conn| {
        if sync_runs::abandoned_midway(conn, connection)? {
            queue::forgive(conn, holding)?;
        }
        Ok(())
    });
    // It only decides how many more crashes are borne.
    if let Err(error) = forgiven.await {
        warn!(connection.id = connection.0, error = %Failure::from(&error), "Could not end a series of crashes of connection {connection}");
    }
}
