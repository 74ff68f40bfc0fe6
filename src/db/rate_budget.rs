//! Limits that cross connections or daemons: permits leased on the database's clock.
//!
//! GCRA (RFC-less, but old: ITU-T I.371): a row holds the moment until which the permits already taken reach. Taking
//! one moves it by the time that one permit is worth. A tenth of the limit may go at once, the rest is spread, so that
//! no span of the limit's length ever holds more than the limit.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Double, Text};

use super::error::DbError;
use super::rows;
use crate::domain::spec::BucketSpec;

/// What asking for permits came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// They are taken, and may be used once this time has passed.
    Granted { wait: Duration },
    /// They would be further away than the asker would wait; nothing was taken.
    Full { wait: Duration },
}

/// Permits of a limit, spread in time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    /// What one permit is worth, in seconds.
    each_s: f64,
    /// How far ahead of an even spread the taker may be, in seconds.
    ahead_s: f64,
}

fn shape(bucket: &BucketSpec) -> Shape {
    let at_once = (bucket.limit / 10).max(1);
    let spread = bucket.limit.saturating_sub(at_once).max(1);
    let each_s = bucket.per.as_secs_f64() / f64::from(spread);
    Shape { each_s, ahead_s: each_s * f64::from(at_once - 1) }
}

/// Whose permits the limits of an address are: all daemons' that leave from it.
pub fn egress_scope(provider: &str, group: &str) -> String {
    format!("{provider}/egress/{group}")
}

/// Takes `permits` of `bucket` within `scope`, when they are to be had within `wait_max`.
pub fn lease(
    conn: &mut PgConnection,
    scope: &str,
    bucket: &BucketSpec,
    permits: u32,
    wait_max: Duration,
) -> Result<Lease, DbError> {
    let Shape { each_s, ahead_s } = shape(bucket);
    let cost_s = each_s * f64::from(permits.max(1));
    // The first of several permits is what has to be waited for; `clock_timestamp` because the lock may take a while.
    let query = sql_query(
        "INSERT INTO fieldmirror.rate_budget AS budget (scope, bucket, taken_until) \
         VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) \
         ON CONFLICT (scope, bucket) DO UPDATE SET taken_until = \
             greatest(budget.taken_until, clock_timestamp()) + make_interval(secs => $3) \
         WHERE budget.taken_until <= clock_timestamp() + make_interval(secs => $4 + $5) \
         RETURNING extract(epoch FROM taken_until - clock_timestamp())::float8 - $3 - $4 AS value",
    )
    .bind::<Text, _>(scope)
    .bind::<Text, _>(bucket.name)
    .bind::<Double, _>(cost_s)
    .bind::<Double, _>(ahead_s)
    .bind::<Double, _>(wait_max.as_secs_f64());
    if let Some(wait_s) = rows::optional::<Double, f64, _>(conn, query)? {
        return Ok(Lease::Granted { wait: seconds(wait_s) });
    }
    let query = sql_query(
        "SELECT extract(epoch FROM taken_until - clock_timestamp())::float8 - $3 AS value \
         FROM fieldmirror.rate_budget WHERE scope = $1 AND bucket = $2",
    )
    .bind::<Text, _>(scope)
    .bind::<Text, _>(bucket.name)
    .bind::<Double, _>(ahead_s);
    Ok(Lease::Full { wait: seconds(rows::optional::<Double, f64, _>(conn, query)?.unwrap_or(0.0)) })
}

/// The limit was hit all the same: nothing more is leased before `wait` has passed.
pub fn refused(
    conn: &mut PgConnection,
    scope: &str,
    bucket: &BucketSpec,
    wait: Duration,
) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.rate_budget AS budget (scope, bucket, taken_until) \
         VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) \
         ON CONFLICT (scope, bucket) DO UPDATE SET taken_until = greatest(budget.taken_until, excluded.taken_until)",
    )
    .bind::<Text, _>(scope)
    .bind::<Text, _>(bucket.name)
    .bind::<Double, _>(wait.as_secs_f64() + shape(bucket).ahead_s)
    .execute(conn)?;
    Ok(())
}

/// What the database computed; a permit that lies in the past is to be had now.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_span_holds_more_than_the_limit() {
        for limit in [1, 2, 5, 9, 50, 250_000] {
            let per = Duration::from_secs(10);
            let shape = shape(&BucketSpec::requests("b", limit, per));
            // At most what may go at once, and what is spread over the span.
            let most = (shape.ahead_s / shape.each_s).round() + 1.0 + (10.0 / shape.each_s).round();
            assert!(most <= f64::from(limit.max(2)), "{limit}: {most}");
        }
    }
}
