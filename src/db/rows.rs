//! Reading what hand-written SQL gives: single values without a struct for each.
//!
//! Rows of several columns derive `QueryableByName` where they are read; `load` of diesel does the rest.

use diesel::PgConnection;
use diesel::deserialize::{self, FromSql, QueryableByName};
use diesel::pg::Pg;
use diesel::query_dsl::methods::LoadQuery;
use diesel::row::NamedRow;
use diesel::{OptionalExtension, RunQueryDsl};

use super::error::DbError;

/// The column that [`value`], [`values`] and [`optional`] read.
const COLUMN: &str = "value";

/// One value of the SQL type `S`, selected `AS value`.
pub struct Value<S, T> {
    value: T,
    sql_type: std::marker::PhantomData<S>,
}

impl<S, T: FromSql<S, Pg>> QueryableByName<Pg> for Value<S, T> {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        let value = NamedRow::get::<S, T>(row, COLUMN)?;
        Ok(Self { value, sql_type: std::marker::PhantomData })
    }
}

/// The `value` of the only row. No row is an error.
///
/// ```no_run
/// # fn example(connection: &mut diesel::PgConnection) -> Result<i64, fieldmirror::db::DbError> {
/// use diesel::sql_types::BigInt;
/// use fieldmirror::db::rows;
/// rows::value::<BigInt, i64, _>(connection, diesel::sql_query("SELECT count(*) AS value FROM connections"))
/// # }
/// ```
pub fn value<'q, S, T, Q>(connection: &mut PgConnection, query: Q) -> Result<T, DbError>
where
    T: FromSql<S, Pg>,
    Q: RunQueryDsl<PgConnection> + LoadQuery<'q, PgConnection, Value<S, T>>,
{
    Ok(query.get_result::<Value<S, T>>(connection)?.value)
}

/// The `value` of the first row, if there is one.
pub fn optional<'q, S, T, Q>(connection: &mut PgConnection, query: Q) -> Result<Option<T>, DbError>
where
    T: FromSql<S, Pg>,
    Q: RunQueryDsl<PgConnection> + LoadQuery<'q, PgConnection, Value<S, T>>,
{
    Ok(query.get_result::<Value<S, T>>(connection).optional()?.map(|row| row.value))
}

/// The `value` of every row.
pub fn values<'q, S, T, Q>(connection: &mut PgConnection, query: Q) -> Result<Vec<T>, DbError>
where
    T: FromSql<S, Pg>,
    Q: RunQueryDsl<PgConnection> + LoadQuery<'q, PgConnection, Value<S, T>>,
{
    Ok(query.load::<Value<S, T>>(connection)?.into_iter().map(|row| row.value).collect())
}

/// Every row of a query as a JSON object, for showing tables whose shape is the query's.
pub fn objects(connection: &mut PgConnection, sql: &'static str) -> Result<Vec<serde_json::Value>, DbError> {
    let query = diesel::sql_query(format!("SELECT to_jsonb(q) AS value FROM ({sql}) q"));
    values::<diesel::sql_types::Jsonb, serde_json::Value, _>(connection, query)
}
