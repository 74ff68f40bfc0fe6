//! Whole databases: asking whether a server answers, making and dropping databases. For the private server and the
//! tests; a server that an admin gave us is never administrated.

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::sql_types::{Bool, Text};

use super::error::DbError;
use super::{rows, session};
use crate::domain::secret::Secret;

/// Opens a session and closes it. Blocks for at most the `connect_timeout` of `url`.
pub fn ping(url: &Secret) -> Result<(), DbError> {
    session::open(url).map(drop)
}

/// Whether the database takes writes: it is no standby, and nobody has made it read-only.
pub fn is_writable(connection: &mut PgConnection) -> Result<bool, DbError> {
    let query = diesel::sql_query(
        "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS value",
    );
    rows::value::<Bool, bool, _>(connection, query)
}

/// Makes database `name` unless it is there. `url` leads to another database of the server.
pub fn create_if_missing(url: &Secret, name: &str) -> Result<(), DbError> {
    let mut connection = session::open(url)?;
    let query = diesel::sql_query("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS value");
    if rows::value::<Bool, bool, _>(&mut connection, query.bind::<Text, _>(name))? {
        return Ok(());
    }
    execute(&mut connection, &format!("CREATE DATABASE {}", quoted(name)))
}

/// Makes database `name` as a copy of `template`, which nobody may be connected to.
pub fn create_from(url: &Secret, name: &str, template: &str) -> Result<(), DbError> {
    let statement = format!("CREATE DATABASE {} TEMPLATE {}", quoted(name), quoted(template));
    execute(&mut session::open(url)?, &statement)
}

/// Drops database `name` and ends whoever is connected to it.
pub fn drop_database(url: &Secret, name: &str) -> Result<(), DbError> {
    execute(&mut session::open(url)?, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name)))
}

fn execute(connection: &mut PgConnection, statement: &str) -> Result<(), DbError> {
    Ok(connection.batch_execute(statement)?)
}

/// An SQL identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
