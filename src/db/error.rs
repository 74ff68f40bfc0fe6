//! What can go wrong with the database, and what kind of failure it is.
//!
//! Diesel hands out no SQLSTATE but for a few kinds, so the rest is told by the server's words. They are English wherever
//! [`super::session`] could ask for that; where it could not, an unknown text counts as ours to look at.

use deadpool_diesel::postgres::{HookError, PoolError, TimeoutType};
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error};

use crate::domain::failure::{Failure, FailureKind, chain};

/// A database operation that did not work. The text names the attempt; the source says what happened.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The payload says why, and holds nothing of the address.
    #[error("reading `database.url`: {0}")]
    Address(&'static str),
    #[error("connecting to Postgres: {0}")]
    Connect(String),
    #[error("setting up a Postgres session")]
    Session(#[source] Error),
    #[error("waiting {seconds} s for a database connection: {what}")]
    Busy { what: &'static str, seconds: u64 },
    #[error("taking a database connection: the pool is closed")]
    Closed,
    #[error("asking the database")]
    Query(#[from] Error),
    /// A row holds what this program never wrote.
    #[error("reading a row: {0}")]
    Row(String),
    #[error("Postgres {found} is too old: fieldmirror needs Postgres {needed} or newer")]
    ServerTooOld { found: String, needed: u32 },
    #[error(
        "the database holds schema version {version}, which this fieldmirror does not know: upgrade fieldmirror"
    )]
    SchemaNewer { version: String },
    #[error("the database lacks schema version {version}: run `fieldmirror migrate`, or start the daemon")]
    SchemaBehind { version: String },
    #[error("waiting {seconds} s for another process to finish migrating the database")]
    MigrationLock { seconds: u64 },
    #[error("migrating the database to version {version}: {message}")]
    Migrate { version: String, message: String, kind: FailureKind },
}

impl DbError {
    /// Decides retry, exit code and metric label.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Address(_)
            | Self::ServerTooOld { .. }
            | Self::SchemaNewer { .. }
            | Self::SchemaBehind { .. } => FailureKind::Misconfigured,
            Self::Connect(text) => kind_of_text(text).unwrap_or(FailureKind::Transient),
            Self::Session(error) | Self::Query(error) => kind_of_query(error),
            Self::Busy { .. } | Self::Closed | Self::MigrationLock { .. } => FailureKind::Transient,
            Self::Row(_) => FailureKind::OurBug,
            Self::Migrate { kind, .. } => kind.clone(),
        }
    }

    pub fn is_transient(&self) -> bool {
        self.kind() == FailureKind::Transient
    }

    /// Whether the unique constraint or index of this name refused a row.
    pub fn is_unique_violation(&self, constraint: &str) -> bool {
        matches!(self, Self::Query(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, info))
            if info.constraint_name() == Some(constraint))
    }

    /// Whether a query that must find a row found none.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Query(Error::NotFound))
    }

    pub(super) fn connect(error: ConnectionError) -> Self {
        match error {
            ConnectionError::BadConnection(text) => Self::Connect(presentable(&text)),
            ConnectionError::CouldntSetupConfiguration(error) => Self::Session(error),
            _ => Self::Address("libpq does not take it for an address"),
        }
    }

    pub(super) fn pool(error: PoolError, limits: PoolLimits) -> Self {
        use deadpool_diesel::Error as Backend;
        match error {
            PoolError::Timeout(TimeoutType::Wait) => {
                Self::Busy { what: "all of `database.pool_size` are in use", seconds: limits.wait }
            }
            PoolError::Timeout(_) => {
                Self::Busy { what: "the server does not answer", seconds: limits.create }
            }
            PoolError::Backend(Backend::Connection(error)) => Self::connect(error),
            PoolError::Backend(Backend::Ping(error))
            | PoolError::PostCreateHook(HookError::Backend(Backend::Ping(error))) => Self::Session(error),
            PoolError::Backend(Backend::BrokenTransactionManger) => {
                Self::Session(Error::BrokenTransactionManager)
            }
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => Self::Closed,
        }
    }
}

impl From<&DbError> for Failure {
    /// The whole chain in one line.
    fn from(error: &DbError) -> Self {
        let message = chain(error);
        let message = match cause(&message) {
            Some(cause) => format!("{cause}: {message}"),
            None => message,
        };
        Self::new(error.kind(), message)
    }
}

/// What an operator has to see to, where the server's own words do not say it plainly.
fn cause(message: &str) -> Option<&'static str> {
    const CAUSES: [(&str, &str); 4] = [
        ("No space left on device", "the database's disk is full"),
        ("could not extend file", "the database's disk is full"),
        ("in a read-only transaction", "the database is read-only"),
        ("recovery is in progress", "the database is a standby, which is read-only"),
    ];
    CAUSES.iter().find(|(words, _)| message.contains(words)).map(|(_, cause)| *cause)
}

/// Seconds, for the text of [`DbError::Busy`].
#[derive(Clone, Copy)]
pub(super) struct PoolLimits {
    pub(super) wait: u64,
    pub(super) create: u64,
}

/// libpq's account of a failed connection names host, port, user and database. What it says of an address that it could
/// not read may quote a piece of the password, and is not passed on.
fn presentable(text: &str) -> String {
    const SAFE: [&str; 3] = ["connection to server", "could not translate host name", "timeout expired"];
    if SAFE.iter().any(|start| text.starts_with(start)) {
        text.trim_end().to_owned()
    } else {
        "libpq refuses `database.url`; see that its parameters exist and are percent-encoded".to_owned()
    }
}

fn kind_of_query(error: &Error) -> FailureKind {
    match error {
        Error::DatabaseError(kind, info) => match kind {
            // A read-only transaction is what a standby offers while a failover is going on.
            DatabaseErrorKind::ClosedConnection
            | DatabaseErrorKind::SerializationFailure
            | DatabaseErrorKind::UnableToSendCommand
            | DatabaseErrorKind::ReadOnlyTransaction => FailureKind::Transient,
            _ => kind_of_text(info.message()).unwrap_or(FailureKind::OurBug),
        },
        Error::BrokenTransactionManager => FailureKind::Transient,
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            let commit = kind_of_query(commit_error);
            if commit == FailureKind::Transient { commit } else { kind_of_query(rollback_error) }
        }
        _ => FailureKind::OurBug,
    }
}

/// Texts of the server and of libpq, from their message catalogues.
pub(super) fn kind_of_text(text: &str) -> Option<FailureKind> {
    const MISCONFIGURED: [&str; 9] = [
        "authentication failed",
        "no password supplied",
        "no pg_hba.conf entry",
        "permission denied",
        "must be owner",
        "role \"",
        "database \"",
        "is not permitted to log in",
        "libpq refuses",
    ];
    const TRANSIENT: [&str; 24] = [
        "server closed the connection",
        "connection to server",
        "terminating connection",
        "connection not open",
        "no connection to the server",
        "could not receive data",
        "could not send data",
        "could not connect",
        "could not translate host name",
        "Connection refused",
        "timed out",
        "timeout expired",
        "SSL ",
        "the database system is",
        "too many connections",
        "too many clients",
        "remaining connection slots",
        "deadlock detected",
        "could not serialize",
        "canceling statement due to",
        "out of memory",
        "out of shared memory",
        "No space left on device",
        "could not extend file",
    ];
    // `role "x" does not exist` is a setting that is wrong; `database "x" is being accessed` is not.
    let named = |phrase: &&&str| !phrase.ends_with('"') || text.contains("does not exist");
    if MISCONFIGURED.iter().filter(named).any(|phrase| text.contains(phrase)) {
        Some(FailureKind::Misconfigured)
    } else if TRANSIENT.iter().any(|phrase| text.contains(phrase)) {
        Some(FailureKind::Transient)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(kind: DatabaseErrorKind, text: &str) -> DbError {
        DbError::Query(Error::DatabaseError(kind, Box::new(text.to_owned())))
    }

    #[test]
    fn kinds() {
        use DatabaseErrorKind as K;
        use FailureKind::{Misconfigured, OurBug, Transient};
        let socket = "connection to server on socket \"/x/.s.PGSQL.5432\" failed: ";
        for (error, expected) in [
            (query(K::ClosedConnection, "x"), Transient),
            (query(K::SerializationFailure, "x"), Transient),
            (query(K::Unknown, "terminating connection due to administrator command"), Transient),
            (query(K::Unknown, "deadlock detected"), Transient),
            (query(K::Unknown, "canceling statement due to statement timeout"), Transient),
            (query(K::Unknown, "permission denied for schema mirror"), Misconfigured),
            (query(K::Unknown, "relation \"nothing\" does not exist"), OurBug),
            (query(K::UniqueViolation, "duplicate key value"), OurBug),
            (DbError::Connect(format!("{socket}FATAL:  sorry, too many clients already")), Transient),
            (DbError::Connect(format!("{socket}No such file or directory")), Transient),
            (DbError::Connect(format!("{socket}FATAL:  database \"x\" does not exist")), Misconfigured),
            (DbError::Connect(format!("{socket}FATAL:  password authentication failed")), Misconfigured),
            (DbError::Busy { what: "x", seconds: 1 }, Transient),
            (DbError::SchemaNewer { version: "9".into() }, Misconfigured),
            (DbError::Query(Error::BrokenTransactionManager), Transient),
        ] {
            assert_eq!(error.kind(), expected, "{error:?}");
        }
    }

    #[test]
    fn libpq_quotes_no_password() {
        let quoting = ConnectionError::BadConnection("invalid URI query parameter: \"hunter2\"".into());
        assert!(!DbError::connect(quoting).to_string().contains("hunter2"));
        let plain = ConnectionError::BadConnection("connection to server at \"h\" failed: x\n".into());
        assert_eq!(
            DbError::connect(plain).to_string(),
            "connecting to Postgres: connection to server at \"h\" failed: x"
        );
    }

    #[test]
    fn what_an_operator_has_to_see_to_comes_first() {
        let full = query(
            DatabaseErrorKind::Unknown,
            "could not extend file \"base/16385/16405\": No space left on device",
        );
        let failure = Failure::from(&full);
        assert_eq!(failure.kind, FailureKind::Transient);
        assert!(
            failure.message.starts_with("the database's disk is full: asking the database: "),
            "{failure}"
        );
        let standby =
            query(DatabaseErrorKind::ReadOnlyTransaction, "cannot execute INSERT in a read-only transaction");
        let failure = Failure::from(&standby);
        assert_eq!(failure.kind, FailureKind::Transient);
        assert!(failure.message.starts_with("the database is read-only: "), "{failure}");
    }

    #[test]
    fn a_failure_tells_the_whole_chain_once() {
        let failure = Failure::from(&query(DatabaseErrorKind::Unknown, "deadlock detected"));
        assert_eq!(failure, Failure::transient("asking the database: deadlock detected"));
    }
}
