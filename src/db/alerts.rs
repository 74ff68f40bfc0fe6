//! Alerts: conditions that need a person, from when they were first seen until they were gone, and what of it the alert
//! program has taken.
//!
//! Alerts are derived, never raised: [`reconcile`] compares what holds now with what is open in the table. Any number of
//! daemons may do that at any time. What a message says, and how it is sent, is not known here.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use uuid::Uuid;

use super::error::DbError;
use super::rows;

/// How long a daemon may have been silent and still count as at work.
const SILENT_MAX: Duration = Duration::from_mins(1);
/// A stream that was open as stale is so until it lags by less than this share of the limit: one that swings about the
/// limit is one alert.
const STALE_ENDS_BELOW: f64 = 0.75;

/// One daemon at a time compares; the others have nothing to add. `fmalerts` in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"fmalerts");

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlertKind {
    /// A connection needs a new consent, or new credentials.
    NeedsReauth,
    /// Our client or our settings are at fault: a provider takes no refresh of any account.
    ConfigurationFault,
    /// What is sealed of a token does not open in its row, or a rule of ours was broken with it.
    TokenUnusable,
    /// A stream stands still, since an answer was not understood or a rule was broken.
    StreamStalled,
    /// A stream is off, since the grant does not allow it.
    StreamForbidden,
    /// A stream lags by more than the limit, or its first read gets nowhere.
    StreamStale,
    /// A complete read would mark more rows as gone than passes without being asked.
    MassDeleteHeld,
    /// A job crashed too often and is not run any more.
    JobParked,
    /// A daemon died in a refresh, and the reply may be on its disk.
    RefreshInterrupted,
    /// A daemon cannot keep replies of token endpoints, or keeps some that are of no use.
    SpillFault,
}

impl AlertKind {
    pub const ALL: [Self; 10] = [
        Self::NeedsReauth,
        Self::ConfigurationFault,
        Self::TokenUnusable,
        Self::StreamStalled,
        Self::StreamForbidden,
        Self::StreamStale,
        Self::MassDeleteHeld,
        Self::JobParked,
        Self::RefreshInterrupted,
        Self::SpillFault,
    ];

    /// The word in the table and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeedsReauth => "needs_reauth",
            Self::ConfigurationFault => "configuration_fault",
            Self::TokenUnusable => "token_unusable",
            Self::StreamStalled => "stream_stalled",
            Self::StreamForbidden => "stream_forbidden",
            Self::StreamStale => "stream_stale",
            Self::MassDeleteHeld => "mass_delete_held",
            Self::JobParked => "job_parked",
            Self::RefreshInterrupted => "refresh_interrupted",
            Self::SpillFault => "spill_fault",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A provider whose connections are looked at, and how far their streams may fall behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub provider: String,
    pub stale_after: Duration,
    /// For how long daemons have to be at work before a stream can be called stale: they may have to catch up.
    pub catch_up: Duration,
}

/// Something that holds now.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Condition {
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// What it is about; with the kind it names the condition.
    #[diesel(sql_type = Text)]
    pub subject: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub connection_id: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    pub connection_name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub provider: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub stream: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub job_id: Option<i64>,
    /// A sentence without secrets and customer data.
    #[diesel(sql_type = Text)]
    pub reason: String,
}

/// A row of `alerts`.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct Alert {
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    #[diesel(embed)]
    pub of: Condition,
    /// How the connection was authorised; `None` when it is gone, or there is none.
    #[diesel(sql_type = Nullable<Text>)]
    pub grant_kind: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    pub opened_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub resolved_at: Option<DateTime<Utc>>,
    /// When the program last took it.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub fired_at: Option<DateTime<Utc>>,
    /// Times in a row that the program did not take it.
    #[diesel(sql_type = Integer)]
    pub failures: i32,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub failed_at: Option<DateTime<Utc>>,
}

const COLUMNS: &str = "a.id, a.kind, a.subject, a.connection_id, a.connection_name, a.provider, a.stream, a.job_id, a.reason, \
     (SELECT c.grant_kind FROM fieldmirror.connections c WHERE c.id = a.connection_id) AS grant_kind, \
     a.opened_at, a.resolved_at, a.fired_at, a.failures, a.last_error, a.failed_at";

// What is said of a stream that stands still says more than that it lags; and one whose connection needs a person lags for
// a reason that is told already. One that is read and not relied upon yet is told of once it lags: what it waits for may be
// told of before. After a time without daemons everything lags, and comes back by itself. A first read that goes on is late
// by nature: it is stale when it brings nothing. A panic's text may hold anything, so the last error of a job is not quoted.
const CONDITIONS: &str = "
    WITH served AS (
        SELECT c.*, make_interval(secs => l.limit_s) AS stale_after, make_interval(secs => l.catch_up_s) AS catch_up
        FROM fieldmirror.connections c
        JOIN unnest($1::text[], $2::float8[], $3::float8[]) AS l (provider, limit_s, catch_up_s) ON l.provider = c.provider
        WHERE c.state IN ('connected', 'needs_reauth')
    ), steady AS (
        SELECT coalesce(min(steady_since), '-infinity') AS since
        FROM fieldmirror.daemons WHERE last_seen_at > now() - make_interval(secs => $4)
    ), still AS (
        SELECT DISTINCT ON (s.connection_id, s.stream) s.connection_id, s.stream, s.stalled_reason,
            CASE WHEN s.failure_kind = 'held' THEN 'mass_delete_held'
                 WHEN coalesce(s.failure_kind, s.state) = 'forbidden' THEN 'stream_forbidden'
                 ELSE 'stream_stalled' END AS kind
        FROM fieldmirror.stream_state s JOIN served c ON c.id = s.connection_id
        WHERE s.stalled_reason IS NOT NULL AND s.failure_kind IS DISTINCT FROM 'behind'
        ORDER BY s.connection_id, s.stream, (s.failure_kind = 'held') DESC NULLS LAST, s.partition
    ), stale AS (
        SELECT s.connection_id, s.stream, max(s.stalled_reason) AS said,
            CASE WHEN bool_and(s.complete_to IS NOT NULL) THEN min(s.complete_to) END AS complete_to
        FROM fieldmirror.stream_state s JOIN served c ON c.id = s.connection_id CROSS JOIN steady
        LEFT JOIN fieldmirror.alerts o ON o.kind = 'stream_stale' AND o.resolved_at IS NULL
            AND (o.connection_id, o.stream) = (s.connection_id, s.stream)
        WHERE c.state = 'connected' AND c.connected_at < now() - c.stale_after
          AND (s.stalled_reason IS NULL OR s.failure_kind = 'behind')
          AND (o.id IS NOT NULL OR steady.since < now() - c.catch_up) AND CASE
            WHEN s.backfill_done THEN
                coalesce(s.complete_to, '-infinity') < now() - c.stale_after * CASE WHEN o.id IS NULL THEN 1 ELSE $5 END
            ELSE NOT EXISTS (
                SELECT FROM fieldmirror.sync_runs r
                WHERE r.connection_id = s.connection_id AND r.stream = s.stream AND r.pages > 0
                  AND coalesce(r.ended_at, now()) > now() - c.stale_after)
            END
        GROUP BY s.connection_id, s.stream
    ), live AS (
        SELECT * FROM fieldmirror.daemons WHERE last_seen_at > now() - interval '30 s'
    ), faults AS (
        SELECT DISTINCT ON (c.provider, nullif(c.grant_kind, 'authorization_code'), own.id)
            c.provider, own.id, own.name, coalesce(c.reason, t.last_error, 'the provider refuses our client') AS reason
        FROM fieldmirror.tokens t JOIN served c ON c.id = t.connection_id
        LEFT JOIN served own ON own.id = c.id AND own.grant_kind <> 'authorization_code'
        WHERE t.failure_kind = 'misconfigured'
        ORDER BY c.provider, nullif(c.grant_kind, 'authorization_code'), own.id, c.id
    )
    SELECT 'needs_reauth' AS kind, 'connection ' || id AS subject, id AS connection_id, name AS connection_name, provider,
        NULL AS stream, NULL::bigint AS job_id, coalesce(reason, 'no reason is on record') AS reason
    FROM served WHERE state = 'needs_reauth'
    UNION ALL
    SELECT 'configuration_fault', coalesce('connection ' || id, 'provider ' || provider), id, name, provider, NULL, NULL, reason
    FROM faults
    UNION ALL
    SELECT 'token_unusable', 'connection ' || c.id, c.id, c.name, c.provider, NULL, NULL, coalesce(t.last_error, 'no reason is on record')
    FROM fieldmirror.tokens t JOIN served c ON c.id = t.connection_id WHERE t.failure_kind = 'our_bug'
    UNION ALL
    SELECT f.kind, 'connection ' || c.id || ' stream ' || f.stream, c.id, c.name, c.provider, f.stream, NULL, f.stalled_reason
    FROM still f JOIN served c ON c.id = f.connection_id
    UNION ALL
    SELECT 'stream_stale', 'connection ' || c.id || ' stream ' || f.stream, c.id, c.name, c.provider, f.stream, NULL,
        coalesce('complete up to ' || to_char(f.complete_to AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') || ' only',
            'its first read brings nothing') || coalesce(': ' || f.said, '')
    FROM stale f JOIN served c ON c.id = f.connection_id
    WHERE NOT EXISTS (SELECT FROM still WHERE (still.connection_id, still.stream) = (f.connection_id, f.stream))
    UNION ALL
    SELECT 'job_parked', 'job ' || j.id, j.connection_id, c.name, c.provider, NULL, j.id,
        'job ' || j.id || ' (' || j.kind || ') crashed ' || j.crashes || ' times in a row'
    FROM fieldmirror.jobs j LEFT JOIN fieldmirror.connections c ON c.id = j.connection_id WHERE j.state = 'parked'
    UNION ALL
    SELECT 'refresh_interrupted', 'connection ' || c.id, c.id, c.name, c.provider, NULL, NULL,
        'the daemon on host `' || a.host || '` died in a refresh that began at '
            || to_char(a.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
            || '; its reply may be on that host''s disk, and is found when a daemon is started there'
    FROM fieldmirror.refresh_attempts a JOIN served c ON c.id = a.connection_id
    WHERE a.blocked_until <= now() AND NOT EXISTS (
        SELECT FROM live WHERE live.spills = a.spills) AND a.spills IS NOT NULL
    UNION ALL
    SELECT DISTINCT ON (host) 'spill_fault', 'host ' || host, NULL, NULL, NULL, NULL, NULL, 'on host `' || host || '` ' || spill_fault
    FROM live WHERE spill_fault IS NOT NULL";

/// Everything that holds now.
pub fn conditions(conn: &mut PgConnection, served: &[Served]) -> Result<Vec<Condition>, DbError> {
    let providers: Vec<&str> = served.iter().map(|served| served.provider.as_str()).collect();
    let limits: Vec<f64> = served.iter().map(|served| served.stale_after.as_secs_f64()).collect();
    let catch_up: Vec<f64> = served.iter().map(|served| served.catch_up.as_secs_f64()).collect();
    let query = sql_query(CONDITIONS)
        .bind::<Array<Text>, _>(providers)
        .bind::<Array<Double>, _>(limits)
        .bind::<Array<Double>, _>(catch_up)
        .bind::<Double, _>(SILENT_MAX.as_secs_f64())
        .bind::<Double, _>(STALE_ENDS_BELOW);
    Ok(query.load(conn)?)
}

/// What [`reconcile`] has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    pub opened: Vec<Condition>,
    pub resolved: Vec<Alert>,
}

/// Opens alerts for what holds and has none, and resolves those that hold no more, in the caller's transaction. Does
/// nothing while another daemon does the same.
pub fn reconcile(conn: &mut PgConnection, served: &[Served]) -> Result<Changes, DbError> {
    let lock = sql_query("SELECT pg_try_advisory_xact_lock($1) AS value").bind::<BigInt, _>(LOCK);
    if !rows::value::<Bool, bool, _>(conn, lock)? {
        return Ok(Changes::default());
    }
    let holding = conditions(conn, served)?;
    let difference = compare(open(conn)?, holding);
    for (id, reason) in &difference.reworded {
        sql_query("UPDATE fieldmirror.alerts SET reason = $2 WHERE id = $1")
            .bind::<BigInt, _>(*id)
            .bind::<Text, _>(reason)
            .execute(conn)?;
    }
    for alert in &difference.changes.resolved {
        sql_query("UPDATE fieldmirror.alerts SET resolved_at = now() WHERE id = $1")
            .bind::<BigInt, _>(alert.id)
            .execute(conn)?;
    }
    difference.changes.opened.iter().try_for_each(|condition| insert(conn, condition))?;
    Ok(difference.changes)
}

fn insert(conn: &mut PgConnection, of: &Condition) -> Result<(), DbError> {
    sql_query(
        "INSERT INTO fieldmirror.alerts (kind, subject, connection_id, connection_name, provider, stream, job_id, reason) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind::<Text, _>(&of.kind)
    .bind::<Text, _>(&of.subject)
    .bind::<Nullable<BigInt>, _>(of.connection_id)
    .bind::<Nullable<Text>, _>(of.connection_name.as_deref())
    .bind::<Nullable<Text>, _>(of.provider.as_deref())
    .bind::<Nullable<Text>, _>(of.stream.as_deref())
    .bind::<Nullable<BigInt>, _>(of.job_id)
    .bind::<Text, _>(&of.reason)
    .execute(conn)?;
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    changes: Changes,
    /// Open alerts whose reason reads otherwise by now. That is no news.
    reworded: Vec<(i64, String)>,
}

/// What has to be done so that what is open is what holds.
fn compare(open: Vec<Alert>, holding: Vec<Condition>) -> Difference {
    let mut difference = Difference::default();
    let name = |of: &Condition| (of.kind.clone(), of.subject.clone());
    let mut holding: HashMap<_, _> = holding.into_iter().map(|of| (name(&of), of)).collect();
    for alert in open {
        match holding.remove(&name(&alert.of)) {
            Some(of) if of.reason != alert.of.reason => difference.reworded.push((alert.id, of.reason)),
            Some(_) => {}
            None => difference.changes.resolved.push(alert),
        }
    }
    difference.changes.opened = holding.into_values().collect();
    difference.changes.opened.sort_by(|a, b| (&a.kind, &a.subject).cmp(&(&b.kind, &b.subject)));
    difference
}

/// Alerts that hold, oldest first.
pub fn open(conn: &mut PgConnection) -> Result<Vec<Alert>, DbError> {
    let query =
        format!("SELECT {COLUMNS} FROM fieldmirror.alerts a WHERE a.resolved_at IS NULL ORDER BY a.id");
    Ok(sql_query(query).load(conn)?)
}

/// What the program has not taken yet: alerts that it was never told, or not for longer than `repeat_after` (`$1`, null
/// for once), and the ends of those that it was told. What came and went untold is not news any more.
const UNTOLD: &str = "CASE WHEN a.resolved_at IS NULL
         THEN a.fired_at IS NULL OR coalesce(a.fired_at <= now() - make_interval(secs => $1), false)
         ELSE a.fired_at IS NOT NULL AND a.resolution_told_at IS NULL END";

/// Takes one alert that is to be told, for at most `hold`: meanwhile nobody else tells it.
pub fn claim(
    conn: &mut PgConnection,
    daemon: Uuid,
    hold: Duration,
    repeat_after: Option<Duration>,
) -> Result<Option<Alert>, DbError> {
    let query = format!(
        "UPDATE fieldmirror.alerts a SET teller = $2, telling_until = now() + make_interval(secs => $3) \
         WHERE a.id = (SELECT a.id FROM fieldmirror.alerts a \
             WHERE coalesce(a.telling_until, '-infinity') <= now() AND {UNTOLD} \
             ORDER BY coalesce(a.failed_at, a.opened_at), a.id LIMIT 1 FOR UPDATE SKIP LOCKED) \
         RETURNING {COLUMNS}"
    );
    Ok(sql_query(query)
        .bind::<Nullable<Double>, _>(repeat_after.map(|after| after.as_secs_f64()))
        .bind::<SqlUuid, _>(daemon)
        .bind::<Double, _>(hold.as_secs_f64())
        .get_result(conn)
        .optional()?)
}

/// The program took an alert, as it was claimed.
pub fn told(conn: &mut PgConnection, daemon: Uuid, alert: &Alert) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.alerts SET teller = NULL, telling_until = NULL, failures = 0, last_error = NULL, failed_at = NULL, \
             fired_at = CASE WHEN $3 THEN fired_at ELSE now() END, \
             resolution_told_at = CASE WHEN $3 THEN now() END \
         WHERE id = $1 AND teller = $2",
    )
    .bind::<BigInt, _>(alert.id)
    .bind::<SqlUuid, _>(daemon)
    .bind::<Bool, _>(alert.resolved_at.is_some())
    .execute(conn)?;
    Ok(())
}

/// The program did not take it; anybody may try again.
pub fn not_told(conn: &mut PgConnection, daemon: Uuid, alert: i64, error: &str) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.alerts SET teller = NULL, telling_until = NULL, failures = failures + 1, last_error = $3, \
             failed_at = now(), failed_by = $2 WHERE id = $1 AND teller = $2",
    )
    .bind::<BigInt, _>(alert)
    .bind::<SqlUuid, _>(daemon)
    .bind::<Text, _>(error)
    .execute(conn)?;
    Ok(())
}

/// Puts a claimed alert back as it was.
pub fn give_back(conn: &mut PgConnection, daemon: Uuid, alert: i64) -> Result<(), DbError> {
    sql_query(
        "UPDATE fieldmirror.alerts SET teller = NULL, telling_until = NULL WHERE id = $1 AND teller = $2",
    )
    .bind::<BigInt, _>(alert)
    .bind::<SqlUuid, _>(daemon)
    .execute(conn)?;
    Ok(())
}

/// An alert program that does not do its work.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
pub struct HookTrouble {
    /// Messages that wait for it.
    #[diesel(sql_type = BigInt)]
    pub waiting: i64,
    #[diesel(sql_type = Text)]
    pub last_error: String,
    #[diesel(sql_type = Timestamptz)]
    pub failed_at: DateTime<Utc>,
}

/// Whether messages wait because the program failed, as far as a daemon that was seen within `live_window` says so. What
/// another one met before it was stopped, or was given another program or none, is over.
pub fn hook_trouble(conn: &mut PgConnection, live_window: Duration) -> Result<Option<HookTrouble>, DbError> {
    let query = format!(
        "SELECT count(*) OVER () AS waiting, a.last_error, a.failed_at FROM fieldmirror.alerts a \
         WHERE a.last_error IS NOT NULL AND a.failed_at IS NOT NULL AND {UNTOLD} AND a.failed_by IN \
             (SELECT id FROM fieldmirror.daemons WHERE last_seen_at > now() - make_interval(secs => $2)) \
         ORDER BY a.failed_at DESC LIMIT 1"
    );
    // A repetition that failed counts until it succeeds, whatever the interval: any failure is recent enough.
    Ok(sql_query(query)
        .bind::<Nullable<Double>, _>(Some(0.0))
        .bind::<Double, _>(live_window.as_secs_f64())
        .get_result(conn)
        .optional()?)
}

/// Deletes alerts that were resolved more than `keep` ago.
pub fn prune(conn: &mut PgConnection, keep: Duration) -> Result<usize, DbError> {
    Ok(sql_query("DELETE FROM fieldmirror.alerts WHERE resolved_at < now() - make_interval(secs => $1)")
        .bind::<Double, _>(keep.as_secs_f64())
        .execute(conn)?)
}

impl Alert {
    /// For tests of those who tell it.
    pub fn example(kind: AlertKind) -> Self {
        Self {
            id: 5,
            of: Condition {
                kind: kind.as_str().to_owned(),
                subject: "connection 7".to_owned(),
                connection_id: Some(7),
                connection_name: Some("acme".to_owned()),
                provider: Some("hubspot".to_owned()),
                stream: None,
                job_id: None,
                reason: "the grant was revoked".to_owned(),
            },
            grant_kind: Some("authorization_code".to_owned()),
            opened_at: DateTime::UNIX_EPOCH,
            resolved_at: None,
            fired_at: None,
            failures: 0,
            last_error: None,
            failed_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(subject: &str) -> Alert {
        let mut alert = Alert::example(AlertKind::NeedsReauth);
        subject.clone_into(&mut alert.of.subject);
        alert
    }

    #[test]
    fn words_can_be_read_back() {
        for kind in AlertKind::ALL {
            assert_eq!(AlertKind::parse(kind.as_str()), Some(kind));
        }
    }

    #[test]
    fn what_holds_is_open_and_nothing_else() {
        let reworded = Condition { reason: "another".into(), ..about("b").of };
        let stalled = Condition { kind: "stream_stalled".into(), ..about("a").of };
        let open = vec![about("a"), about("b"), about("c")];
        let holding = vec![about("a").of, reworded, stalled.clone(), about("d").of];
        let expected = Difference {
            changes: Changes { opened: vec![about("d").of, stalled], resolved: vec![about("c")] },
            reworded: vec![(5, "another".into())],
        };
        assert_eq!(compare(open.clone(), holding), expected);
        let same = open.iter().map(|alert| alert.of.clone()).collect();
        assert_eq!(compare(open, same), Difference::default());
    }
}
