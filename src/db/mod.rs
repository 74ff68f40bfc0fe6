//! Postgres: the pool, and every statement that we send.

pub mod queue;

use deadpool_diesel::postgres::{Manager, Pool, Runtime};
use diesel::PgConnection;

use crate::domain::failure::FailureKind;
use crate::domain::secret::Secret;

/// A pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
}

/// What can go wrong between us and Postgres.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("taking a database connection from the pool")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("asking the database")]
    Query(#[from] diesel::result::Error),
    #[error("a database call panicked")]
    Panicked,
}

impl DbError {
    pub fn kind(&self) -> FailureKind {
        use diesel::result::{DatabaseErrorKind, Error};
        match self {
            Self::Connect(_)
            | Self::Query(Error::DatabaseError(
                DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::SerializationFailure
                | DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::ReadOnlyTransaction
                | DatabaseErrorKind::Unknown,
                _,
            )) => FailureKind::Transient,
            Self::Query(_) | Self::Panicked => FailureKind::OurBug,
        }
    }
}

impl Db {
    pub fn connect(url: &Secret, pool_size: usize) -> Result<Self, DbError> {
        let pool = Pool::builder(Manager::new(url.expose(), Runtime::Tokio1))
            .max_size(pool_size)
            .build()
            .map_err(|error| DbError::Connect(Box::new(error)))?;
        Ok(Self { pool })
    }

    /// Runs `work` on one pooled connection, off the async threads.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let connection = self.pool.get().await.map_err(|error| DbError::Connect(Box::new(error)))?;
        connection.interact(work).await.map_err(|_| DbError::Panicked)?
    }

    /// As [`Db::run`], inside a transaction.
    pub async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut PgConnection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        self.run(|connection| diesel::Connection::transaction(connection, work)).await
    }
}
