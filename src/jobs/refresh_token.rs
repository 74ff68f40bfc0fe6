//! The `refresh_token` job: renews the token of a connection when its time has come, or when an admin asked.

use std::time::Duration;

use crate::auth::Auth;
use crate::auth::refresh::{Refreshed, Why};
use crate::db::requests::{self, RequestKind, RequestOutcome};
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;

/// How long the job waits for a refresh that somebody else has open, and how often it looks.
const BUSY_LOOKS_MAX: u32 = 65;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Does what is to be done. Repeating it does no harm.
///
/// # Errors
/// The refresh's failure, which has been written down already; or the database's.
pub async fn run(auth: &Auth, connection: ConnectionId) -> Result<(), Failure> {
    let asked = auth
        .db
        .run(move |conn| requests::open(conn, connection, RequestKind::Refresh))
        .await
        .map_err(|error| Failure::from(&error))?;
    if asked.is_empty() {
        // Somebody else's open refresh does what is due.
        return auth.refresh(connection, Why::Due).await.map(drop);
    }
    let refreshed = forced(auth, connection).await;
    let (outcome, message) = match &refreshed {
        Ok(()) => (RequestOutcome::Done, None),
        Err(failure) => (RequestOutcome::Failed, Some(failure.message.clone())),
    };
    auth.db
        .transaction(move |conn| {
            for request in asked {
                requests::finish(conn, request.id, outcome, message.as_deref())?;
            }
            Ok(())
        })
        .await
        .map_err(|error| Failure::from(&error))?;
    refreshed
}

async fn forced(auth: &Auth, connection: ConnectionId) -> Result<(), Failure> {
    for _ in 0..BUSY_LOOKS_MAX {
        match auth.refresh(connection, Why::Asked).await? {
            Refreshed::Renewed => return Ok(()),
            Refreshed::Later { reason, .. } => return Err(reason),
            Refreshed::Busy { .. } => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
    Err(Failure::transient("another refresh of the same token does not end"))
}
