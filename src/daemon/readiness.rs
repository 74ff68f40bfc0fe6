//! Whether the daemon can do its work: asked by `/readyz`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::Auth;
use crate::callback::{Ready, ReadyCheck};
use crate::db::{Db, admin, tokens};
use crate::jobs::Hub;
use crate::vault::{Vault, key_id_of};

/// The longest that the database may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The oldest sign of life of workers that count as alive: jobs that are held for longer may be run by others.
const SIGN_MAX: Duration = Duration::from_secs(10);

/// What the endpoint asks.
pub fn check(db: Db, auth: Auth, hub: Arc<Hub>) -> ReadyCheck {
    Arc::new(move || {
        let (db, auth, hub) = (db.clone(), auth.clone(), Arc::clone(&hub));
        Box::pin(async move {
            let asked = db
                .run(|connection| Ok((admin::is_writable(connection)?, tokens::newest_sealed(connection)?)));
            let answer = tokio::time::timeout(ANSWER_MAX, asked).await;
            let (database, key) = match answer {
                Ok(Ok((writable, newest))) => {
                    (writable, newest.is_none_or(|sealed| opens(&auth.vault, &sealed)))
                }
                _ => (false, false),
            };
            Ready { database, key, workers: works(hub.vitals().claimed_at, hub.vitals().beat_at) }
        })
    })
}

/// Whether the vault has the key that tokens are sealed with.
pub fn opens(vault: &Vault, sealed: &[u8]) -> bool {
    key_id_of(sealed).is_some_and(|key| key == vault.key_id() || vault.previous_key_ids().any(|id| id == key))
}

/// Workers look for jobs even where there are none; the keeper beats while jobs are held.
fn works(claimed_at: Option<Instant>, beat_at: Option<Instant>) -> bool {
    [claimed_at, beat_at].into_iter().flatten().any(|sign| sign.elapsed() < SIGN_MAX)
}
