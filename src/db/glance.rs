//! What an operator sees at a glance: how many connections there are, and how old the oldest stream is.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Double, Nullable, Text};

use super::admin;
use super::error::DbError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// Whether the database takes writes.
    pub writable: bool,
    /// Those that were not disconnected.
    pub connections: i64,
    pub needing_consent: i64,
    /// Streams.
    pub stalled: i64,
    /// The stream that is furthest behind, of connections that are read and streams that are allowed.
    pub oldest: Option<Oldest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    pub connection: String,
    pub stream: String,
    /// `None`: it has not been read to its end once.
    pub age: Option<Duration>,
}

#[derive(QueryableByName)]
struct Counts {
    #[diesel(sql_type = BigInt)]
    connections: i64,
    #[diesel(sql_type = BigInt)]
    needing_consent: i64,
    #[diesel(sql_type = BigInt)]
    stalled: i64,
}

#[derive(QueryableByName)]
struct Furthest {
    #[diesel(sql_type = Text)]
    connection: String,
    #[diesel(sql_type = Text)]
    stream: String,
    #[diesel(sql_type = Bool)]
    read_once: bool,
    #[diesel(sql_type = Nullable<Double>)]
    age: Option<f64>,
}

const COUNTS: &str = "
    SELECT count(*) FILTER (WHERE state <> 'disconnected') AS connections,
        count(*) FILTER (WHERE state = 'needs_reauth') AS needing_consent,
        (SELECT count(*) FROM fieldmirror.stream_state s JOIN fieldmirror.connections c ON c.id = s.connection_id
            WHERE s.state = 'stalled' AND c.state IN ('connected', 'needs_reauth')) AS stalled
    FROM fieldmirror.connections";

const FURTHEST: &str = "
    SELECT c.name AS connection, s.stream, s.backfill_done AS read_once,
        extract(epoch FROM now() - s.complete_to)::float8 AS age
    FROM fieldmirror.stream_state s JOIN fieldmirror.connections c ON c.id = s.connection_id
    WHERE c.state IN ('connected', 'needs_reauth') AND s.state <> 'forbidden'
    ORDER BY s.backfill_done, s.complete_to NULLS FIRST LIMIT 1";

pub fn look(conn: &mut PgConnection) -> Result<Glance, DbError> {
    let writable = admin::is_writable(conn)?;
    let Counts { connections, needing_consent, stalled } = sql_query(COUNTS).get_result(conn)?;
    let furthest: Option<Furthest> = sql_query(FURTHEST).get_result(conn).optional()?;
    let oldest = furthest.map(|Furthest { connection, stream, read_once, age }| Oldest {
        connection,
        stream,
        age: age.filter(|_| read_once).map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()),
    });
    Ok(Glance { writable, connections, needing_consent, stalled, oldest })
}
