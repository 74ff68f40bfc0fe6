//! What a server says of itself, as far as it matters to us.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text, Timestamptz};

use super::error::DbError;

#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct ServerFacts {
    /// Such as `15.18`.
    #[diesel(sql_type = Text)]
    pub version: String,
    #[diesel(sql_type = Text)]
    pub encoding: String,
    /// Sessions that it takes of others than superusers.
    #[diesel(sql_type = BigInt)]
    pub sessions_max: i64,
    /// Whether it survives a crash of its machine with what it said was committed.
    #[diesel(sql_type = Bool)]
    pub durable: bool,
    #[diesel(sql_type = Timestamptz)]
    pub clock: DateTime<Utc>,
}

pub fn facts(conn: &mut PgConnection) -> Result<ServerFacts, DbError> {
    Ok(sql_query(
        "SELECT split_part(current_setting('server_version'), ' ', 1) AS version, \
             current_setting('server_encoding') AS encoding, \
             current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint \
                 AS sessions_max, \
             current_setting('fsync')::bool AND current_setting('full_page_writes')::bool AS durable, \
             clock_timestamp() AS clock",
    )
    .get_result(conn)?)
}
