//! Limits that cross connections or daemons: permits leased on the database's clock.
//!
//! GCRA (RFC-less, but old: ITU-T I.371): a row holds the moment until which the permits already taken reach. Taking
//! one moves it by the time that one permit is worth. A small part of the limit may go at once, the rest is spread, so
//! that no span of the limit's length ever holds more than the limit. [`Spread`] decides, the row remembers.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Double, Text};

use super::error::DbError;
use super::rows;
use crate::domain::spec::{BucketSpec, PAUSE_DOUBTED};

/// What asking for permits came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// They are taken, and may be used once this time has passed.
    Granted { wait: Duration },
    /// They would be further away than the asker would wait; nothing was taken.
    Full { wait: Duration },
}

/// What may go at once is lost to the spread for good: a twentieth of the limit, of small limits up to a tenth.
const AT_ONCE_SHARE: u32 = 20;
const AT_ONCE_SHARE_SMALL: u32 = 10;
const AT_ONCE_SMALL: u32 = 5;

/// Permits of a limit, spread in time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// What one permit is worth, in seconds.
    each_s: f64,
    /// How far ahead of an even spread the taker may be, in seconds.
    ahead_s: f64,
}

impl Spread {
    pub fn of(bucket: &BucketSpec) -> Self {
        let small = (bucket.limit / AT_ONCE_SHARE_SMALL).min(AT_ONCE_SMALL);
        let at_once = (bucket.limit / AT_ONCE_SHARE).max(small).max(1);
        let spread = bucket.limit.saturating_sub(at_once).max(1);
        let each_s = bucket.per.as_secs_f64() / f64::from(spread);
        Self { each_s, ahead_s: each_s * f64::from(at_once - 1) }
    }

    /// Asks for `permits` when those that are taken reach `lead_s` beyond now (or fall short of it, below zero). Returns
    /// by how much further they reach after that.
    pub fn lease(&self, lead_s: f64, permits: u32, wait_max: Duration) -> (f64, Lease) {
        // The first of several permits is what has to be waited for.
        let wait_s = lead_s.max(0.0) - self.ahead_s;
        if wait_s > wait_max.as_secs_f64() {
            return (0.0, Lease::Full { wait: seconds(wait_s) });
        }
        let reach_s = lead_s.max(0.0) + self.each_s * f64::from(permits.max(1));
        (reach_s - lead_s, Lease::Granted { wait: seconds(wait_s) })
    }
}

/// Whose permits the limits of an address are: all daemons' that leave from it.
pub fn egress_scope(provider: &str, group: &str) -> String {
    format!("{provider}/egress/{group}")
}

/// Takes `permits` of `bucket` within `scope`, when they are to be had within `wait_max`.
pub fn lease(
    connection: &mut PgConnection,
    scope: &str,
    bucket: &BucketSpec,
    permits: u32,
    wait_max: Duration,
) -> Result<Lease, DbError> {
    connection.transaction(|connection| {
        // The row is locked before the clock is read: waiting for others must not count as time that is free. A clock that
        // was set back since the last time takes what is taken back with it.
        let query = sql_query(
            "INSERT INTO fieldmirror.rate_budget AS budget (scope, bucket, taken_until) \
             VALUES ($1, $2, clock_timestamp()) \
             ON CONFLICT (scope, bucket) DO UPDATE SET touched_at = clock_timestamp(), \
                 taken_until = budget.taken_until - greatest(budget.touched_at - clock_timestamp(), interval '0') \
             RETURNING extract(epoch FROM taken_until - clock_timestamp())::float8 AS value",
        )
        .bind::<Text, _>(scope)
        .bind::<Text, _>(bucket.name);
        let lead_s = rows::value::<Double, f64, _>(connection, query)?;
        let (further_s, lease) = Spread::of(bucket).lease(lead_s, permits, wait_max);
        if let Lease::Granted { .. } = lease {
            sql_query(
                "UPDATE fieldmirror.rate_budget SET taken_until = taken_until + make_interval(secs => $3) \
                 WHERE scope = $1 AND bucket = $2",
            )
            .bind::<Text, _>(scope)
            .bind::<Text, _>(bucket.name)
            .bind::<Double, _>(further_s)
            .execute(connection)?;
        }
        Ok(lease)
    })
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
         ON CONFLICT (scope, bucket) DO UPDATE SET touched_at = clock_timestamp(), taken_until = greatest( \
             budget.taken_until - greatest(budget.touched_at - clock_timestamp(), interval '0'), excluded.taken_until)",
    )
    .bind::<Text, _>(scope)
    .bind::<Text, _>(bucket.name)
    .bind::<Double, _>(wait.as_secs_f64() + Spread::of(bucket).ahead_s)
    .execute(conn)?;
    Ok(())
}

/// Somebody doubts that a pause of more than [`PAUSE_DOUBTED`] is still right: it lasts no longer than the limit's own span
/// from now.
pub fn question_pause(conn: &mut PgConnection, scope: &str, bucket: &BucketSpec) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.rate_budget SET taken_until = clock_timestamp() + make_interval(secs => $3) \
         WHERE scope = $1 AND bucket = $2 AND taken_until > clock_timestamp() + make_interval(secs => $3 + $4)",
    )
    .bind::<Text, _>(scope)
    .bind::<Text, _>(bucket.name)
    .bind::<Double, _>(bucket.per.as_secs_f64() + Spread::of(bucket).ahead_s)
    .bind::<Double, _>(PAUSE_DOUBTED.as_secs_f64())
    .execute(conn)?;
    Ok(())
}

/// The row that stops a client: its owner is tried again once that moment has come, by one asker.
const STOPPED: &str = "stopped";

/// Nothing is asked within `scope` for `wait`, whatever permits there are; then one asker at a time is let through, until
/// [`go_on`].
pub fn stop(conn: &mut PgConnection, scope: &str, wait: Duration) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.rate_budget (scope, bucket, taken_until) \
         VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) \
         ON CONFLICT (scope, bucket) DO UPDATE SET taken_until = excluded.taken_until",
    )
    .bind::<Text, _>(scope)
    .bind::<Text, _>(STOPPED)
    .bind::<Double, _>(wait.as_secs_f64())
    .execute(conn)?;
    Ok(())
}

/// How long the asker has to wait where `scope` was stopped; `None`: it may go on. Where the time has come, whoever asks
/// first may, and all others wait for `wait` more.
pub fn stopped_for(
    conn: &mut PgConnection,
    scope: &str,
    wait: Duration,
) -> Result<Option<Duration>, DbError> {
    let query = sql_query(
        "SELECT extract(epoch FROM taken_until - clock_timestamp())::float8 AS value \
         FROM fieldmirror.rate_budget WHERE scope = $1 AND bucket = $2 FOR UPDATE",
    );
    let left = rows::optional::<Double, f64, _>(conn, query.bind::<Text, _>(scope).bind::<Text, _>(STOPPED))?;
    match left.map(seconds) {
        Some(left) if left.is_zero() => stop(conn, scope, wait).map(|()| None),
        left => Ok(left),
    }
}

/// What may have been stopped is in order. Returns whether it was stopped.
pub fn go_on(conn: &mut PgConnection, scope: &str) -> Result<bool, DbError> {
    let stopped = sql_query("DELETE FROM fieldmirror.rate_budget WHERE scope = $1 AND bucket = $2")
        .bind::<Text, _>(scope)
        .bind::<Text, _>(STOPPED)
        .execute(conn)?;
    Ok(stopped > 0)
}

/// Whatever was stopped may be tried at once: the settings may have been mended.
pub fn all_go_on(conn: &mut PgConnection) -> Result<(), DbError> {
    sql_query("DELETE FROM fieldmirror.rate_budget WHERE bucket = $1")
        .bind::<Text, _>(STOPPED)
        .execute(conn)?;
    Ok(())
}

/// A permit that lies in the past is to be had now.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_span_holds_more_than_the_limit() {
        for limit in [1, 2, 5, 9, 50, 180, 250_000] {
            let per = Duration::from_secs(10);
            let spread = Spread::of(&BucketSpec::requests("b", limit, per));
            // At most what may go at once, and what is spread over the span.
            let most = (spread.ahead_s / spread.each_s).round() + 1.0 + (10.0 / spread.each_s).round();
            assert!(most <= f64::from(limit.max(2)), "{limit}: {most}");
        }
    }

    #[test]
    fn permits_are_waited_for_or_refused() {
        // Two at once, and one in every half second.
        let spread = Spread::of(&BucketSpec::requests("b", 20, Duration::from_secs(9)));
        let granted = |wait_ms| Lease::Granted { wait: Duration::from_millis(wait_ms) };
        let full = |wait_ms| Lease::Full { wait: Duration::from_millis(wait_ms) };
        for (lead_s, permits, expected) in [
            (-60.0, 1, (60.5, granted(0))),
            (0.0, 1, (0.5, granted(0))),
            (0.5, 1, (0.5, granted(0))),
            (1.0, 1, (0.5, granted(500))),
            (1.0, 3, (1.5, granted(500))),
            (1.5, 1, (0.5, granted(1000))),
            (1.75, 1, (0.0, full(1250))),
        ] {
            assert_eq!(spread.lease(lead_s, permits, Duration::from_secs(1)), expected, "{lead_s} {permits}");
        }
    }
}
