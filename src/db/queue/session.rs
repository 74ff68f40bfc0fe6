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
use crate::domain::secret::Secret;

/// How long a proof waits for its own notification.
const PROOF_WAIT: Duration = Duration::from_secs(2);
/// How often a waiting proof looks.
const PROOF_LOOK: Duration = Duration::from_millis(5);
/// The most notifications taken in one look; what is left is taken by the next.
const NOTICES_MAX: usize = 10_000;

/// libpq's limits for a session that must notice a dead peer before its leases lapse. What the URL says itself stays.
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
    #[error("connecting to the database to listen for jobs: {0}")]
    Connect(String),
    #[error("asking the database on the session that listens for jobs")]
    Query(#[from] diesel::result::Error),
    #[error(
        "notifications do not arrive over this database URL, most likely because a connection pooler in transaction mode \
         stands in between; give a direct URL, or a pooler in session mode"
    )]
    Pooler,
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
        let mut conn = establish(url)?;
        conn.batch_execute(&format!(
            "SET application_name = 'fieldmirror queue'; SET statement_timeout = '4s'; SET TimeZone = 'UTC';
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
        use crate::db::DbError;
        super::prune(&mut self.conn, keep, limit).map_err(|error| match error {
            DbError::Query(error) => SessionError::Query(error),
            other => SessionError::Connect(other.to_string()),
        })
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
    let mut listener = establish(url)?;
    listener.batch_execute(&format!("LISTEN {channel}"))?;
    let mut speaker = establish(url)?;
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

fn establish(url: &Secret) -> Result<PgConnection, SessionError> {
    let limited = Secret::new(with_limits(url.expose()));
    PgConnection::establish(limited.expose()).map_err(|error| SessionError::Connect(plain(&error)))
}

/// libpq quotes what it cannot parse, and that may be the password; a server's refusal never holds it.
fn plain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::BadConnection(text)
            if !text.contains("connection info string") && !text.contains("URI") =>
        {
            text.trim().to_owned()
        }
        _ => "the database URL is malformed".to_owned(),
    }
}

/// The URL, or the `key=value` string, with [`LIMITS`] added where it does not set them.
fn with_limits(url: &str) -> String {
    let mut text = url.to_owned();
    let is_url = url.contains("://");
    for (key, value) in LIMITS {
        if url.contains(&format!("{key}=")) {
            continue;
        }
        let separator = match (is_url, text.contains('?')) {
            (true, false) => '?',
            (true, true) => '&',
            (false, _) => ' ',
        };
        text.push(separator);
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    text
}

#[cfg(test)]
mod tests {
    use diesel::ConnectionError;

    use super::{plain, with_limits};

    #[test]
    fn limits_are_added_and_the_urls_own_stay() {
        let rest = "keepalives_interval=2&keepalives_count=2&tcp_user_timeout=4000";
        let cases = [
            (
                "postgres://h/d".to_owned(),
                format!("postgres://h/d?connect_timeout=5&keepalives_idle=5&{rest}"),
            ),
            (
                "postgres:///d?host=/run&connect_timeout=9".to_owned(),
                format!("postgres:///d?host=/run&connect_timeout=9&keepalives_idle=5&{rest}"),
            ),
            (
                "host=/run dbname=d keepalives_idle=1".to_owned(),
                format!("host=/run dbname=d keepalives_idle=1 connect_timeout=5 {}", rest.replace('&', " ")),
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(with_limits(&given), expected);
        }
    }

    #[test]
    fn a_url_that_libpq_quotes_is_not_repeated() {
        let quoted = "missing \"=\" after \"postgre:/me:hunter2@h/d\" in connection info string\n";
        assert_eq!(
            plain(&ConnectionError::BadConnection(quoted.to_owned())),
            "the database URL is malformed"
        );
        let refused = "connection to server at \"h\" failed: Connection refused\n";
        assert_eq!(plain(&ConnectionError::BadConnection(refused.to_owned())), refused.trim());
    }
}
