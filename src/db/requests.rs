//! What an admin asked for. An open row is work to be done; `--wait` waits for its end.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Bytea, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use serde_json::Value;
use uuid::Uuid;

use super::audit;
use super::error::DbError;
use crate::domain::ids::ConnectionId;
use crate::domain::time::delta;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    Connect,
    Callback,
    Refresh,
    Sync,
    Verify,
    Disconnect,
}

impl RequestKind {
    pub const ALL: [Self; 6] =
        [Self::Connect, Self::Callback, Self::Refresh, Self::Sync, Self::Verify, Self::Disconnect];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Callback => "callback",
            Self::Refresh => "refresh",
            Self::Sync => "sync",
            Self::Verify => "verify",
            Self::Disconnect => "disconnect",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    Done,
    Denied,
    Expired,
    WrongAccount,
    Superseded,
    /// What was asked for, or our configuration, was wrong.
    Refused,
    /// The provider, or we, failed.
    Failed,
}

impl RequestOutcome {
    pub const ALL: [Self; 7] = [
        Self::Done,
        Self::Denied,
        Self::Expired,
        Self::WrongAccount,
        Self::Superseded,
        Self::Refused,
        Self::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::WrongAccount => "wrong_account",
            Self::Superseded => "superseded",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }
}

/// A row of `requests`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub id: Uuid,
    pub connection: ConnectionId,
    pub kind: RequestKind,
    pub args: Value,
    /// Sealed to the daemon's public key.
    pub sealed: Option<Vec<u8>>,
    /// Sealed to the key in `args.reply_to`.
    pub reply_sealed: Option<Vec<u8>>,
    pub job_id: Option<i64>,
    pub requested_at: DateTime<Utc>,
    pub done_at: Option<DateTime<Utc>>,
    pub outcome: Option<RequestOutcome>,
    pub message: Option<String>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    connection_id: i64,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Jsonb)]
    args: Value,
    #[diesel(sql_type = Nullable<Bytea>)]
    sealed: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Bytea>)]
    reply_sealed: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<BigInt>)]
    job_id: Option<i64>,
    #[diesel(sql_type = Timestamptz)]
    requested_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    done_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    outcome: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    message: Option<String>,
}

impl TryFrom<Row> for Request {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        let unknown = |what: &str| DbError::Row(format!("request {}: {what}", row.id));
        Ok(Self {
            kind: RequestKind::parse(&row.kind).ok_or_else(|| unknown("kind"))?,
            outcome: match &row.outcome {
                Some(word) => Some(RequestOutcome::parse(word).ok_or_else(|| unknown("outcome"))?),
                None => None,
            },
            id: row.id,
            connection: ConnectionId(row.connection_id),
            args: row.args,
            sealed: row.sealed,
            reply_sealed: row.reply_sealed,
            job_id: row.job_id,
            requested_at: row.requested_at,
            done_at: row.done_at,
            message: row.message,
        })
    }
}

/// What a request for a consent ends with that another one has overtaken.
pub const SUPERSEDED: &str = "a later request for the same connection took its place";

const COLUMNS: &str = "SELECT id, connection_id, kind, args, sealed, reply_sealed, job_id, requested_at, done_at, \
     outcome, message FROM fieldmirror.requests";

/// What is handed over with a request that is not on record yet: sealed to the daemon's public key, for this request alone.
#[derive(Debug, Clone)]
pub struct Boxed {
    /// What the request's id is to be.
    pub request: Uuid,
    pub sealed: Vec<u8>,
}

/// A request that is made.
#[derive(Debug, Clone)]
pub struct NewRequest {
    pub connection: ConnectionId,
    pub kind: RequestKind,
    /// An object without secrets.
    pub args: Value,
    /// Secrets and pasted codes.
    pub sealed: Option<Boxed>,
}

/// Puts a request on record and wakes the schedulers.
pub fn create(conn: &mut PgConnection, new: &NewRequest) -> Result<Uuid, DbError> {
    let (id, sealed) = match &new.sealed {
        Some(Boxed { request, sealed }) => (*request, Some(sealed.as_slice())),
        None => (Uuid::now_v7(), None),
    };
    sql_query(
        "INSERT INTO fieldmirror.requests (id, connection_id, kind, args, sealed, sealed_to) VALUES ($1, $2, $3, $4, $5, \
             CASE WHEN $5 IS NOT NULL THEN \
                 (SELECT key_id FROM fieldmirror.vault_keys ORDER BY published_at DESC LIMIT 1) END)",
    )
    .bind::<SqlUuid, _>(id)
    .bind::<BigInt, _>(new.connection.0)
    .bind::<Text, _>(new.kind.as_str())
    .bind::<Jsonb, _>(&new.args)
    .bind::<Nullable<Bytea>, _>(sealed)
    .execute(conn)?;
    wake(conn)?;
    Ok(id)
}

/// Asks the schedulers to look, once the transaction is committed.
pub fn wake(conn: &mut PgConnection) -> Result<(), DbError> {
    sql_query("SELECT pg_notify('fieldmirror_tick', '')").execute(conn)?;
    Ok(())
}

/// The request of that id; its absence is an error.
pub fn get(conn: &mut PgConnection, id: Uuid) -> Result<Request, DbError> {
    sql_query(format!("{COLUMNS} WHERE id = $1")).bind::<SqlUuid, _>(id).get_result::<Row>(conn)?.try_into()
}

/// Open requests of one kind for one connection, oldest first.
pub fn open(
    conn: &mut PgConnection,
    connection: ConnectionId,
    kind: RequestKind,
) -> Result<Vec<Request>, DbError> {
    // Ids are UUIDs of version 7: within one moment they still order by creation.
    sql_query(format!(
        "{COLUMNS} WHERE connection_id = $1 AND kind = $2 AND done_at IS NULL ORDER BY requested_at, id"
    ))
    .bind::<BigInt, _>(connection.0)
    .bind::<Text, _>(kind.as_str())
    .load::<Row>(conn)?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

#[derive(QueryableByName)]
struct Work {
    #[diesel(sql_type = BigInt)]
    connection_id: i64,
    #[diesel(sql_type = Text)]
    kind: String,
}

/// How long a sync that walks were made due for is left to their own times before a turn looks whether it is over: they
/// may have to wait for hours. A comparison that has begun goes on as often.
const APPLIED_LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where open requests wait for a job: each connection and kind once. A consent that only waits for a person is not
/// among them, nor a sync whose walks have been made due and looked at a moment ago. What the mirror asks of itself has a turn
/// soon; if none could be had, it is for the next that comes about anyway.
pub fn waiting(
    conn: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<Vec<(ConnectionId, RequestKind)>, DbError> {
    let rows = sql_query(
        "SELECT DISTINCT r.connection_id, r.kind FROM fieldmirror.requests r \
         JOIN fieldmirror.connections c ON c.id = r.connection_id \
         WHERE r.done_at IS NULL AND NOT (r.kind = 'connect' AND r.reply_sealed IS NOT NULL) \
         AND NOT (r.kind IN ('sync', 'verify') AND r.applied_at IS NOT NULL AND coalesce(c.pacing_at, '-infinity') > $1 AND c.pacing_at <= $1 + interval '1 minute') \
         AND NOT (r.args @> '{\"own\": true}' AND (r.applied_at IS NOT NULL OR r.requested_at < now() - interval '10 minutes')) \
         ORDER BY r.connection_id",
    )
    .bind::<Timestamptz, _>(now - delta(APPLIED_LOOK_EVERY))
    .load::<Work>(conn)?;
    rows.into_iter()
        .map(|row| match RequestKind::parse(&row.kind) {
            Some(kind) => Ok((ConnectionId(row.connection_id), kind)),
            None => Err(DbError::Row(format!("a request of kind `{}`", row.kind))),
        })
        .collect()
}

/// Leaves what the asker may read before the end, and tells it.
pub fn reply(conn: &mut PgConnection, id: Uuid, reply_sealed: &[u8]) -> Result<(), DbError> {
    sql_query("UPDATE fieldmirror.requests SET reply_sealed = $2 WHERE id = $1 AND done_at IS NULL")
        .bind::<SqlUuid, _>(id)
        .bind::<Bytea, _>(reply_sealed)
        .execute(conn)?;
    tell(conn, id)
}

/// Ends a request, wipes what was sealed in it, and tells the asker. A link that expires keeps it: a consent that was given in
/// time may still be concluded; see [`super::retention::wipe_requests`]. A request that has ended stays as it is; returns
/// whether this was the end. `message` is a sentence for people, without secrets.
pub fn finish(
    conn: &mut PgConnection,
    id: Uuid,
    outcome: RequestOutcome,
    message: Option<&str>,
) -> Result<bool, DbError> {
    end(conn, id, (outcome, message), outcome == RequestOutcome::Expired)
}

/// [`finish`], for a consent that may come to a better end yet: what was sealed in the request stays for that.
pub fn finish_for_now(
    conn: &mut PgConnection,
    id: Uuid,
    outcome: RequestOutcome,
    message: &str,
) -> Result<bool, DbError> {
    end(conn, id, (outcome, Some(message)), true)
}

fn end(
    conn: &mut PgConnection,
    id: Uuid,
    (outcome, message): (RequestOutcome, Option<&str>),
    may_be_concluded: bool,
) -> Result<bool, DbError> {
    let ended = sql_query(
        "UPDATE fieldmirror.requests SET done_at = now(), outcome = $2, message = $3, \
             sealed = CASE WHEN $4 AND kind = 'connect' THEN sealed END \
         WHERE id = $1 AND done_at IS NULL",
    )
    .bind::<SqlUuid, _>(id)
    .bind::<Text, _>(outcome.as_str())
    .bind::<Nullable<Text>, _>(message)
    .bind::<Bool, _>(may_be_concluded)
    .execute(conn)?;
    if ended > 0 {
        tell(conn, id)?;
    }
    Ok(ended > 0)
}

/// Wipes what was sealed in a request that has ended.
pub fn wipe(conn: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    sql_query("UPDATE fieldmirror.requests SET sealed = NULL WHERE id = $1 AND done_at IS NOT NULL")
        .bind::<SqlUuid, _>(id)
        .execute(conn)?;
    Ok(())
}

/// Ends the open requests for a consent to a connection, those before `newest` or all, and says so in the audit log.
pub fn supersede_connects(
    conn: &mut PgConnection,
    connection: ConnectionId,
    newest: Option<Uuid>,
    message: &str,
    daemon: Uuid,
) -> Result<(), DbError> {
    let outcome = RequestOutcome::Superseded;
    for request in open(conn, connection, RequestKind::Connect)? {
        let is_earlier = newest.is_none_or(|newest| request.id < newest);
        if is_earlier && finish(conn, request.id, outcome, Some(message))? {
            let (event, outcome) = ("connect", outcome.as_str());
            let entry =
                audit::Entry { connection: Some(connection), event, outcome, detail: Some(message), daemon };
            audit::write(conn, &entry)?;
        }
    }
    Ok(())
}

/// Ends every open request of one kind for one connection, but those that the mirror makes of itself: they stay until they are
/// done. Returns how many.
pub fn finish_open(
    conn: &mut PgConnection,
    connection: ConnectionId,
    kind: RequestKind,
    outcome: RequestOutcome,
    message: Option<&str>,
) -> Result<usize, DbError> {
    let mut ended = 0;
    for request in open(conn, connection, kind)?.into_iter().filter(|request| request.args["own"] != true) {
        ended += usize::from(finish(conn, request.id, outcome, message)?);
    }
    Ok(ended)
}

fn tell(conn: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    sql_query("SELECT pg_notify('fieldmirror_done', $1)").bind::<Text, _>(id.to_string()).execute(conn)?;
    Ok(())
}
