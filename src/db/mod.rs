//! Postgres: the pool, sessions, migrations and errors. The only folder that names diesel and its pool.
//!
//! Diesel is synchronous: [`Db::run`] moves a closure and a pooled connection to a blocking thread. Nothing here retries;
//! [`DbError::kind`] tells callers what is worth trying again.

use std::fmt;
use std::time::Duration;

use deadpool_diesel::postgres::{Hook, HookError, Manager, Pool};
use deadpool_diesel::{ManagerConfig, RecyclingMethod, Runtime};
use diesel::Connection;

use crate::domain::secret::Secret;
use error::PoolLimits;

mod address;
pub mod admin;
pub mod alerts;
pub mod analysts;
pub mod asks;
pub mod audit;
pub mod authorizations;
pub mod changes;
pub mod connections;
mod copy;
pub mod daemons;
pub mod drift;
pub mod error;
pub mod evidence;
pub mod gauges;
pub mod glance;
pub mod migrations;
pub mod mirror;
pub mod queue;
pub mod rate_budget;
pub mod refresh_attempts;
pub mod requests;
pub mod retention;
pub mod rotations;
pub mod rows;
pub mod sealed;
pub mod secrets;
pub mod server;
pub mod session;
pub mod status;
pub mod streams;
pub mod sync_runs;
pub mod tokens;
pub mod turns;
pub mod vault_keys;
pub mod vault_use;
pub mod verifications;
pub mod views;

pub use diesel::PgConnection;
pub use error::DbError;

/// The longest wait for a pooled connection to become free.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The longest wait for a new session: libpq's own limit of 10 s per host, for two hosts, and some.
const CREATE_MAX: Duration = Duration::from_secs(25);
/// The longest wait for the answer to the question whether a pooled session still lives.
const RECYCLE_MAX: Duration = Duration::from_secs(5);

/// The pool. Clones share it. The last one is to be dropped inside the runtime: sessions are closed on its blocking
/// threads.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
}

impl fmt::Debug for Db {
    /// Not derived: the pool's own debug output holds the address with its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.pool.status();
        f.debug_struct("Db").field("size", &status.size).field("available", &status.available).finish()
    }
}

impl Db {
    /// A pool of at most `pool_size` sessions. None is opened yet: the first [`Db::run`] tells whether the server is there.
    ///
    /// # Errors
    /// [`DbError::Address`] when `url` has not the shape of a Postgres URL.
    pub fn connect(url: &Secret, pool_size: usize) -> Result<Self, DbError> {
        let address = address::complete(url).map_err(DbError::Address)?;
        let manager = Manager::from_config(
            address.expose(),
            Runtime::Tokio1,
            ManagerConfig { recycling_method: RecyclingMethod::Verified },
        );
        let prepare = Hook::async_fn(|connection: &mut deadpool_diesel::Connection<PgConnection>, _| {
            Box::pin(async move {
                match connection.interact(session::prepare).await {
                    Ok(prepared) => prepared.map_err(|error| HookError::Backend(error.into())),
                    Err(_) => Err(HookError::message("setting up the session was broken off")),
                }
            })
        });
        let pool = Pool::builder(manager)
            .max_size(pool_size.max(1))
            .wait_timeout(Some(WAIT_MAX))
            .create_timeout(Some(CREATE_MAX))
            .recycle_timeout(Some(RECYCLE_MAX))
            .runtime(Runtime::Tokio1)
            .post_create(prepare)
            .build()
            .expect("a pool that is given its runtime can be built");
        Ok(Self { pool })
    }

    /// Runs `work` with one pooled connection on a blocking thread.
    ///
    /// The connection belongs to the closure until it ends: when the caller is cancelled meanwhile, `work` still runs to
    /// its end, and only then does the connection go back. A panic in `work` goes on in the caller, and its connection is
    /// thrown away.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let limits = PoolLimits { wait: WAIT_MAX.as_secs(), create: CREATE_MAX.as_secs() };
        let pooled = self.pool.get().await.map_err(|error| DbError::pool(error, limits))?;
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = pooled.lock().map_err(|_| DbError::Closed)?;
            work(&mut connection)
        });
        match done.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Blocking tasks are cancelled only while the runtime shuts down.
                Err(_) => Err(DbError::Closed),
            },
        }
    }

    /// [`Db::run`] inside a transaction: committed when `work` is `Ok`, rolled back when it is not.
    pub async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        self.run(|connection| connection.transaction(work)).await
    }

    /// Sessions in use, sessions open, and the most there may be: for metrics.
    pub fn usage(&self) -> (usize, usize, usize) {
        let status = self.pool.status();
        (status.size.saturating_sub(status.available), status.size, status.max_size)
    }

    /// Lets no more work begin. What runs ends by itself.
    pub fn close(&self) {
        self.pool.close();
    }
}
