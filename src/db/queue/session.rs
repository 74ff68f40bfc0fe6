//! A direct session of its own for the thread that listens and sends heartbeats.
//!
//! Not pooled: LISTEN belongs to one server session. For the same reason a pooler that hands out server sessions per
//! transaction must not stand in between; [`prove_listening`] finds out.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Double, Integer, Text, Uuid as SqlUuid};
use uuid::Uuid;

use super::{CHANNEL_JOBS, CHANNEL_TICK, Holding, JobId};
use crate::db::{DbError, session};
use crate::domain::secret::Secret;

/// How long a proof waits for its own notification.
const PROOF_WAIT: Duration = Duration::from_secs(2);
/// How often a waiting proof looks.
const PROOF_LOOK: Duration = Duration::from_millis(5);
/// The most notifications taken in one look; what is left is taken by the next.
const NOTICES_MAX: usize = 10_000;

/// Limits for a session that must notice a vanished peer before its leases lapse: tighter than those of other sessions.
/// Milliseconds for `tcp_user_timeout`, else seconds. What the URL says itself stays.
const LIMITS: [(&str, &str); 5] = [
    ("connect_timeout", "5"),
    ("keepalives_idle", "5"),
    ("keepalives_interval", "2"),
    ("keepalives_count", "2"),
    ("tcp_user_timeout", "4000"),
];

/// Why there is no session, or why it is no longer good.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("keeping the session that listens for jobs")]
    Database(#[from] DbError),
    #[error(
        "notifications do not arrive over `database.url`, most likely because a connection pooler in transaction mode \
         stands in between: give a direct address, or a pooler in session mode"
    )]
    Pooler,
}

impl From<diesel::result::Error> for SessionError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Database(error.into())
    }
}

/// What was heard since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The kinds that have become due.
    pub kinds: HashSet<String>,
    /// The schedulers should look at the tables.
    pub tick: bool,
}

/// The session. It listens from the moment it is open.
pub struct Session {
    conn: PgConnection,
}

impl Session {
    pub fn open(url: &Secret) -> Result<Self, SessionError> {
        let mut conn = open(url)?;
        conn.batch_execute(&format!(
            "SET application_name = 'fieldmirror queue'; SET statement_timeout = '4s'; SET lock_timeout = '4s';
             LISTEN {CHANNEL_JOBS}; LISTEN {CHANNEL_TICK}"
        ))?;
        Ok(Self { conn })
    }

    /// Takes what has arrived; never waits.
    pub fn heard(&mut self) -> Result<Heard, SessionError> {
        let mut heard = Heard::default();
        for notice in self.conn.notifications_iter().take(NOTICES_MAX) {
            let notice = notice?;
            match notice.channel.as_str() {
                CHANNEL_JOBS => _ = heard.kinds.insert(notice.payload),
                CHANNEL_TICK => heard.tick = true,
                _ => {}
            }
        }
        Ok(heard)
    }

    /// Extends the leases of `held` jobs, and says which of them are still `owner`'s.
    ///
    /// A row that somebody has locked keeps the lease it has: waiting for one lock would let all other leases lapse, and a
    /// claim does not take a locked row either.
    pub fn beat(
        &mut self,
        owner: Uuid,
        held: &[Holding],
        lease: Duration,
    ) -> Result<HashSet<JobId>, SessionError> {
        let jobs: Vec<i64> = held.iter().map(|holding| holding.job.0).collect();
        let attempts: Vec<i32> = held.iter().map(|holding| holding.attempt).collect();
        let rows: Vec<IdRow> = sql_query(BEAT)
            .bind::<Array<BigInt>, _>(jobs)
            .bind::<Array<Integer>, _>(attempts)
            .bind::<SqlUuid, _>(owner)
            .bind::<Double, _>(lease.as_secs_f64())
            .load(&mut self.conn)?;
        Ok(rows.into_iter().map(|row| JobId(row.id)).collect())
    }

    /// [`super::prune`] over this session.
    pub fn prune(&mut self, keep: Duration, limit: u32) -> Result<usize, SessionError> {
        Ok(super::prune(&mut self.conn, keep, limit)?)
    }
}

const BEAT: &str = "
    WITH mine AS (
        SELECT j.id FROM fieldmirror.jobs j JOIN unnest($1, $2) AS h (id, attempt) USING (id, attempt)
        WHERE j.owner = $3 AND j.state = 'running'
    ), free AS (
        SELECT j.id FROM fieldmirror.jobs j JOIN unnest($1, $2) AS h (id, attempt) USING (id, attempt)
        WHERE j.owner = $3 AND j.state = 'running' FOR UPDATE OF j SKIP LOCKED
    ), extended AS (
        UPDATE fieldmirror.jobs j SET lease_until = now() + make_interval(secs => $4) FROM free WHERE j.id = free.id
    )
    SELECT id FROM mine";

#[derive(QueryableByName)]
struct IdRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// Proves that what one session says reaches another over this URL. A transaction pooler fails it: it parks the listener's
/// server session as soon as LISTEN is done, and nothing can arrive.
pub fn prove_listening(url: &Secret) -> Result<(), SessionError> {
    let channel = format!("fieldmirror_proof_{}", Uuid::new_v4().simple());
    let mut listener = open(url)?;
    listener.batch_execute(&format!("LISTEN {channel}"))?;
    let mut speaker = open(url)?;
    sql_query("SELECT pg_notify($1, '')").bind::<Text, _>(&channel).execute(&mut speaker)?;
    let deadline = Instant::now() + PROOF_WAIT;
    while Instant::now() < deadline {
        if listener.notifications_iter().next().transpose()?.is_some() {
            return Ok(());
        }
        thread::sleep(PROOF_LOOK);
    }
    Err(SessionError::Pooler)
}

fn open(url: &Secret) -> Result<PgConnection, DbError> {
    session::open(&Secret::new(with_limits(url.expose())))
}

/// The URL with [`LIMITS`] added where it does not set them.
fn with_limits(url: &str) -> String {
    let mut text = url.to_owned();
    for (key, value) in LIMITS.into_iter().filter(|(key, _)| !url.contains(&format!("{key}="))) {
        text.push(if text.contains('?') { '&' } else { '?' });
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::with_limits;

    #[test]
    fn limits_are_added_and_the_urls_own_stay() {
        let rest = "keepalives_interval=2&keepalives_count=2&tcp_user_timeout=4000";
        let cases = [
            ("postgres://h/d", format!("postgres://h/d?connect_timeout=5&keepalives_idle=5&{rest}")),
            (
                "postgres:///d?host=/run&connect_timeout=9",
                format!("postgres:///d?host=/run&connect_timeout=9&keepalives_idle=5&{rest}"),
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(with_limits(given), expected);
        }
    }
}
