//! Comparing the mirror with what a provider shows: what is drawn, how it stands, and what came of it.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::error::DbError;
use super::mirror::Row;
use super::rows;
use crate::domain::ids::ConnectionId;
use crate::domain::spec::{ColumnType, StreamSpec};
use crate::domain::verification::Report;

/// A comparison of one stream that has not ended.
#[derive(Debug, Clone, QueryableByName)]
pub struct Open {
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Timestamptz)]
    pub started_at: DateTime<Utc>,
    #[diesel(sql_type = Jsonb)]
    pub progress: Value,
}

/// Begins the comparison of a stream for a request, once.
pub fn begin(
    connection: &mut PgConnection,
    of: ConnectionId,
    stream: &str,
    request: Uuid,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    diesel::sql_query(
        "INSERT INTO verifications (connection_id, stream, request_id, started_at, progress)
         VALUES ($1, $2, $3, $4, '{}') ON CONFLICT DO NOTHING",
    )
    .bind::<BigInt, _>(of.0)
    .bind::<Text, _>(stream)
    .bind::<SqlUuid, _>(request)
    .bind::<Timestamptz, _>(now)
    .execute(connection)?;
    Ok(())
}

/// Those of a request that have not ended.
pub fn open(connection: &mut PgConnection, request: Uuid) -> Result<Vec<Open>, DbError> {
    Ok(diesel::sql_query(
        "SELECT id, stream, started_at, progress FROM verifications
         WHERE request_id = $1 AND ended_at IS NULL ORDER BY id",
    )
    .bind::<SqlUuid, _>(request)
    .load(connection)?)
}

pub fn save(connection: &mut PgConnection, id: i64, progress: &Value) -> Result<(), DbError> {
    diesel::sql_query("UPDATE verifications SET progress = $2 WHERE id = $1")
        .bind::<BigInt, _>(id)
        .bind::<Jsonb, _>(progress)
        .execute(connection)?;
    Ok(())
}

/// Ends a comparison: with what it found, or with why it could not be made.
pub fn end(
    connection: &mut PgConnection,
    id: i64,
    outcome: Result<&Report, &str>,
    now: DateTime<Utc>,
) -> Result<(), DbError> {
    let report = outcome.ok().map(serde_json::to_value).transpose();
    let report = report.map_err(|error| DbError::Row(error.to_string()))?;
    diesel::sql_query(
        "UPDATE verifications SET progress = NULL, ended_at = $2, agrees = $3, error = $4, report = $5 WHERE id = $1",
    )
    .bind::<BigInt, _>(id)
    .bind::<Timestamptz, _>(now)
    .bind::<Nullable<Bool>, _>(outcome.ok().and_then(Report::agrees))
    .bind::<Nullable<Text>, _>(outcome.err())
    .bind::<Nullable<Jsonb>, _>(report)
    .execute(connection)?;
    Ok(())
}

/// A comparison that has ended.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct Ended {
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Timestamptz)]
    pub ended_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Bool>)]
    pub agrees: Option<bool>,
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub report: Option<Value>,
}

/// What came of a request.
pub fn ended(connection: &mut PgConnection, request: Uuid) -> Result<Vec<Ended>, DbError> {
    Ok(diesel::sql_query(
        "SELECT stream, ended_at, agrees, error, report FROM verifications
         WHERE request_id = $1 AND ended_at IS NOT NULL ORDER BY id",
    )
    .bind::<SqlUuid, _>(request)
    .load(connection)?)
}

/// The last comparison of a stream, and when one last agreed.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct Last {
    #[diesel(sql_type = BigInt)]
    pub connection_id: i64,
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Timestamptz)]
    pub ended_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    pub agrees: bool,
    #[diesel(sql_type = BigInt)]
    pub compared: i64,
    #[diesel(sql_type = BigInt)]
    pub differing: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub agreed_at: Option<DateTime<Utc>>,
}

/// Of every stream that has been compared, or of those of one connection.
pub fn last(connection: &mut PgConnection, only: Option<ConnectionId>) -> Result<Vec<Last>, DbError> {
    Ok(diesel::sql_query(
        "SELECT DISTINCT ON (v.connection_id, v.stream) v.connection_id, v.stream, v.ended_at, v.agrees,
                (SELECT sum((part ->> 'agree')::bigint + (part ->> 'changed_since')::bigint + (part ->> 'differ')::bigint)
                 FROM unnest(ARRAY[v.report -> 'sample', v.report -> 'window']) AS part)::bigint AS compared,
                (v.report ->> 'differing')::bigint AS differing,
                max(v.ended_at) FILTER (WHERE v.agrees) OVER (PARTITION BY v.connection_id, v.stream) AS agreed_at
         FROM fieldmirror.verifications v
         WHERE v.agrees IS NOT NULL AND ($1 IS NULL OR v.connection_id = $1)
         ORDER BY v.connection_id, v.stream, v.ended_at DESC",
    )
    .bind::<Nullable<BigInt>, _>(only.map(|id| id.0))
    .load(connection)?)
}

/// Deletes comparisons that began before `before`, but for the last of each stream and the last that agreed.
pub fn prune(connection: &mut PgConnection, before: DateTime<Utc>) -> Result<usize, DbError> {
    Ok(diesel::sql_query(
        "DELETE FROM verifications v WHERE v.started_at < $1 AND EXISTS (
             SELECT FROM verifications later
             WHERE (later.connection_id, later.stream) = (v.connection_id, v.stream) AND later.id > v.id
               AND later.agrees IS NOT NULL AND (later.agrees OR v.agrees IS DISTINCT FROM true))",
    )
    .bind::<Timestamptz, _>(before)
    .execute(connection)?)
}

/// Draws rows at random, living ones and some that are gone.
pub fn draw(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    living: i64,
    gone: i64,
) -> Result<Vec<String>, DbError> {
    let query = format!(
        "(SELECT id AS value FROM mirror.{table} WHERE connection_id = $1 AND deleted_at IS NULL ORDER BY random() LIMIT $2)
         UNION ALL
         (SELECT id FROM mirror.{table} WHERE connection_id = $1 AND deleted_at IS NOT NULL ORDER BY random() LIMIT $3)",
        table = stream.table
    );
    let query =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<BigInt, _>(living).bind::<BigInt, _>(gone);
    rows::values::<Text, String, _>(connection, query)
}

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, QueryableByName)]
pub struct Span {
    /// Both ends are outside.
    #[diesel(sql_type = Timestamptz)]
    pub from: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    pub to: DateTime<Utc>,
}

/// Draws a span of time in which about `count` rows changed last, before `complete_to`: anywhere, or such that it ends
/// there. `None` when no row has a time.
pub fn draw_span(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    count: i64,
    complete_to: DateTime<Utc>,
    at_end: bool,
) -> Result<Option<Span>, DbError> {
    let dated = format!(
        "SELECT source_updated_at AS at, row_number() OVER (ORDER BY source_updated_at) AS place, count(*) OVER () AS rows
         FROM mirror.{} WHERE connection_id = $1 AND source_updated_at < $2",
        stream.table
    );
    let start = if at_end {
        "SELECT greatest(1, max(rows) - floor(random() * $3)::bigint) AS place FROM dated"
    } else {
        "SELECT 1 + floor(random() * max(rows))::bigint AS place FROM dated"
    };
    let end = if at_end {
        "NULL::timestamptz"
    } else {
        "min(dated.at) FILTER (WHERE dated.place >= start.place + $3)"
    };
    let query = format!(
        "WITH dated AS MATERIALIZED ({dated}), start AS MATERIALIZED ({start})
         SELECT min(dated.at) FILTER (WHERE dated.place >= start.place) - interval '1 second' AS \"from\",
                coalesce({end}, $2) AS \"to\"
         FROM dated, start HAVING count(*) > 0"
    );
    let found = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Timestamptz, _>(complete_to)
        .bind::<BigInt, _>(count)
        .get_result::<Span>(connection)
        .optional()?;
    Ok(found)
}

/// Living rows that changed last within a span; all living rows without one.
pub fn living_within(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    span: Option<Span>,
    limit: i64,
) -> Result<Vec<String>, DbError> {
    let query = format!(
        "SELECT id AS value FROM mirror.{} WHERE connection_id = $1 AND deleted_at IS NULL
           AND ($2 IS NULL OR source_updated_at > $2 AND source_updated_at < $3) ORDER BY id LIMIT $4",
        stream.table
    );
    let query = diesel::sql_query(query)
        .bind::<BigInt, _>(of.0)
        .bind::<Nullable<Timestamptz>, _>(span.map(|span| span.from))
        .bind::<Nullable<Timestamptz>, _>(span.map(|span| span.to))
        .bind::<BigInt, _>(limit);
    rows::values::<Text, String, _>(connection, query)
}

/// Up to where deletions are known: by the last sweep, or by the provider's own list of them.
pub fn deletions_to(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
) -> Result<Option<DateTime<Utc>>, DbError> {
    let query = diesel::sql_query(
        "SELECT greatest(s.swept_to, (SELECT w.covered_to FROM walks w WHERE (w.connection_id, w.stream, w.partition) =
                (s.connection_id, s.stream, s.partition) AND w.mode = 'archived')) AS value
         FROM stream_state s WHERE s.connection_id = $1 AND s.stream = $2 AND s.partition = ''",
    );
    let query = query.bind::<BigInt, _>(of.0).bind::<Text, _>(stream.name);
    let found = rows::optional::<Nullable<Timestamptz>, Option<DateTime<Utc>>, _>(connection, query)?;
    Ok(found.flatten())
}

/// What the mirror holds of a record, and in which columns that differs from what the provider shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    pub held: bool,
    pub deleted_at: Option<DateTime<Utc>>,
    /// Name, the mirror's value, the provider's.
    pub columns: Vec<(String, Option<String>, Option<String>)>,
    /// The mirror's record, where it is another.
    pub raw: Option<Value>,
}

#[derive(QueryableByName)]
struct ComparedRow {
    #[diesel(sql_type = Text)]
    asked: String,
    #[diesel(sql_type = Bool)]
    held: bool,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    deleted_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    columns: Option<Value>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    raw: Option<Value>,
}

/// Compares rows, as they would be written, with what is held. In the server, so that a value is equal however its type
/// writes it.
pub fn compare(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    shown: &[Row],
) -> Result<Vec<(String, Compared)>, DbError> {
    let shown = shown.iter().map(as_json).collect::<Result<Vec<_>, _>>()?;
    let found: Vec<ComparedRow> = diesel::sql_query(comparison(stream))
        .bind::<BigInt, _>(of.0)
        .bind::<Jsonb, _>(Value::Array(shown))
        .load(connection)?;
    let columns = |found: Option<Value>| {
        let found = found.as_ref().and_then(Value::as_array).into_iter().flatten();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        found.map(|one| (text(&one[0]).unwrap_or_default(), text(&one[1]), text(&one[2]))).collect()
    };
    let compared = |row: ComparedRow| {
        let of = Compared {
            held: row.held,
            deleted_at: row.deleted_at,
            columns: columns(row.columns),
            raw: row.raw,
        };
        (row.asked, of)
    };
    Ok(found.into_iter().map(compared).collect())
}

fn as_json(row: &Row) -> Result<Value, DbError> {
    let raw: Value = serde_json::from_str(&row.raw).map_err(|error| DbError::Row(error.to_string()))?;
    let mut object = Map::new();
    object.insert("id".to_owned(), json!(row.id));
    object.insert("raw".to_owned(), raw);
    // As they are written to the tables.
    let time =
        |time: Option<DateTime<Utc>>| time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true));
    object.insert("created".to_owned(), json!(time(row.source_created_at)));
    object.insert("updated".to_owned(), json!(time(row.source_updated_at)));
    for (place, cell) in row.cells.iter().enumerate() {
        object.insert(format!("c{place}"), json!(cell));
    }
    Ok(Value::Object(object))
}

fn comparison(stream: &StreamSpec) -> String {
    let own = stream.columns.iter().enumerate();
    let (mut asked, mut pairs) = (String::new(), String::new());
    for (place, column) in own {
        let (name, sql_type) = (column.name, sql_type(column.kind));
        // Writing to a text does not fail.
        let _ = write!(asked, ", c{place} text");
        let _ = write!(
            pairs,
            ", ('{name}', row.{name} IS DISTINCT FROM shown.c{place}::{sql_type}, row.{name}::text, \
             (shown.c{place}::{sql_type})::text)"
        );
    }
    format!(
        "SELECT shown.id AS asked, row.id IS NOT NULL AS held, row.deleted_at,
                CASE WHEN row.raw IS DISTINCT FROM shown.raw THEN row.raw END AS raw,
                (SELECT jsonb_agg(jsonb_build_array(pair.name, pair.mirror, pair.provider))
                 FROM (VALUES
                     ('source_created_at', row.source_created_at IS DISTINCT FROM shown.created,
                      row.source_created_at::text, shown.created::text),
                     ('source_updated_at', row.source_updated_at IS DISTINCT FROM shown.updated,
                      row.source_updated_at::text, shown.updated::text){pairs}
                 ) AS pair (name, differs, mirror, provider) WHERE pair.differs AND row.id IS NOT NULL) AS columns
         FROM jsonb_to_recordset($2) AS shown (id text, raw jsonb, created timestamptz, updated timestamptz{asked})
         LEFT JOIN mirror.{table} row ON row.connection_id = $1 AND row.id = shown.id",
        table = stream.table
    )
}

fn sql_type(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Text | ColumnType::Reference => "text",
        ColumnType::Timestamptz => "timestamptz",
        ColumnType::Numeric | ColumnType::Cents => "numeric",
        ColumnType::Bigint => "bigint",
        ColumnType::Boolean => "boolean",
        ColumnType::TextArray => "text[]",
    }
}

/// What the mirror holds of records of which the provider shows no row.
pub fn held(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    ids: &[&str],
) -> Result<Vec<(String, Compared)>, DbError> {
    #[derive(QueryableByName)]
    struct HeldRow {
        #[diesel(sql_type = Text)]
        asked: String,
        #[diesel(sql_type = Bool)]
        held: bool,
        #[diesel(sql_type = Nullable<Timestamptz>)]
        deleted_at: Option<DateTime<Utc>>,
    }
    let query = format!(
        "SELECT asked.id AS asked, row.id IS NOT NULL AS held, row.deleted_at FROM unnest($2) AS asked (id)
         LEFT JOIN mirror.{} row ON row.connection_id = $1 AND row.id = asked.id",
        stream.table
    );
    let found: Vec<HeldRow> =
        diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).load(connection)?;
    let held = |row: HeldRow| {
        let of = Compared { held: row.held, deleted_at: row.deleted_at, columns: Vec::new(), raw: None };
        (row.asked, of)
    };
    Ok(found.into_iter().map(held).collect())
}

/// Forgets what rows held when they were last read, so that the next read of them is written whatever it says.
pub fn forget_hashes(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    ids: &[&str],
) -> Result<(), DbError> {
    let query = format!(
        "UPDATE mirror.{} SET content_hash = '' WHERE connection_id = $1 AND id = ANY ($2) AND content_hash <> ''",
        stream.table
    );
    diesel::sql_query(query).bind::<BigInt, _>(of.0).bind::<Array<Text>, _>(ids).execute(connection)?;
    Ok(())
}
