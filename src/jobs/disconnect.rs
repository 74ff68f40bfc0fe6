//! The `disconnect` job: ends the grant of a connection, and with `args.purge` removes its mirrored rows.

use serde_json::Value;

use crate::auth::Auth;
use crate::auth::disconnect::Revoked;
use crate::db::requests::{self, RequestKind, RequestOutcome};
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;

/// Does what is to be done. Repeating it does no harm.
///
/// # Errors
/// When the database does not go along: the requests are still open then.
pub async fn run(auth: &Auth, connection: ConnectionId) -> Result<(), Failure> {
    let asked = auth
        .db
        .run(move |conn| requests::open(conn, connection, RequestKind::Disconnect))
        .await
        .map_err(|error| Failure::from(&error))?;
    if asked.is_empty() {
        return Ok(());
    }
    let purge = asked.iter().any(|request| request.args.get("purge") == Some(&Value::Bool(true)));
    let message = match auth.disconnect(connection, purge).await? {
        Revoked::Yes => "the grant was revoked and wiped".to_owned(),
        Revoked::NotPossible => "the grant was wiped; there was nothing to revoke at the provider".to_owned(),
        Revoked::Failed(why) => {
            format!(
                "the grant was wiped, but not revoked ({why}): remove the app in the provider's account settings"
            )
        }
    };
    auth.db
        .transaction(move |conn| {
            for request in asked {
                requests::finish(conn, request.id, RequestOutcome::Done, Some(&message))?;
            }
            Ok(())
        })
        .await
        .map_err(|error| Failure::from(&error))
}
