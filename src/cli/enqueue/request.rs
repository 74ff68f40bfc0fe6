//! `enqueue --resync`, `--refresh` and `--disconnect`: one request for each connection, and the wait for all of them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use uuid::Uuid;

use super::args::{Request, What};
use crate::cli::context::{Context, find};
use crate::cli::report::{Error, Exit, Kind};
use crate::cli::terminal;
use crate::cli::wait::{Waited, wait};
use crate::db::asks::{self, Asked, Ended};
use crate::db::connections::{self, Connection, ConnectionState};
use crate::db::requests::{NewRequest, RequestKind, RequestOutcome};
use crate::db::{Db, DbError, PgConnection};
use crate::domain::forecast::forecast;
use crate::domain::ids::ConnectionId;
use crate::domain::time::{Clock as _, SystemClock};
use crate::providers;

/// Steps of the progress bar for each request.
const STEPS: u64 = 1_000;

pub(super) async fn run(cx: &Context, asked: Request) -> Result<Exit, Error> {
    if let What::Sync { since: Some(since), .. } = asked.what
        && since > SystemClock.now()
    {
        return Err(Error::bad_request(format!("`--since {since}` lies in the future")));
    }
    let db = cx.db_of_daemon().await?;
    let connections = match &asked.connection {
        Some(word) => vec![find(&db, word).await?],
        None => db.run(connections::list).await?,
    };
    let chosen = choose(connections, &asked)?;
    cx.wait_for_daemon(&db).await?;
    let what = asked.what.clone();
    let placed = db.transaction(move |conn| {
        let place = |connection: Connection| {
            let what = known_to(&connection, &what).unwrap_or_else(|| what.clone());
            place(conn, connection, &what)
        };
        chosen.into_iter().map(place).collect::<Result<Vec<_>, _>>()
    });
    let mut lines = placed.await?;
    for line in lines.iter().filter(|line| line.asked.parked) {
        cx.terminal.note(&parked(&line.connection.name, &line.asked));
    }
    show(cx, &lines)?;
    if asked.wait && !lines.is_empty() {
        await_all(cx, &db, &mut lines, asked.wait_max).await?;
        conclude(cx, &lines)?;
    }
    Ok(Exit::Done)
}

/// A request that is on record.
#[derive(Debug, Clone)]
struct Line {
    connection: Connection,
    kind: RequestKind,
    asked: Asked,
    ended: Option<Ended>,
}

impl Line {
    fn json(&self) -> Value {
        let ended = self.ended.as_ref();
        json!({
            "request_id": self.asked.request,
            "job_id": self.asked.job.to_string(),
            "connection": self.connection.name,
            "connection_id": self.connection.id,
            "kind": self.kind.as_str(),
            "outcome": ended.map(|ended| ended.outcome.as_str()),
            "message": ended.and_then(|ended| ended.message.as_deref()),
        })
    }
}

/// The connections that the request is for. One that is named must be fit for it; of all, those that are.
fn choose(connections: Vec<Connection>, asked: &Request) -> Result<Vec<Connection>, Error> {
    if asked.connection.is_some() {
        connections.iter().try_for_each(|connection| check(connection, &asked.what))?;
        return Ok(connections);
    }
    if let What::Sync { streams, .. } = &asked.what {
        let known = |stream: &&String| {
            providers::REGISTRY.iter().any(|provider| provider.spec().stream(stream).is_some())
        };
        if let Some(unknown) = streams.iter().find(|stream| !known(stream)) {
            return Err(Error::new(Kind::UnknownName, format!("no provider has a stream `{unknown}`")));
        }
    }
    let fit = |connection: &Connection| check(connection, &known_to(connection, &asked.what)?).ok();
    let mut chosen: Vec<_> = connections.into_iter().filter(|connection| fit(connection).is_some()).collect();
    // In the order of ids, as every other caller takes them: two of them cannot wait for each other's rows.
    chosen.sort_by_key(|connection| connection.id);
    Ok(chosen)
}

/// What is asked of one of several connections: the streams that its provider has. `None`: it has none of those named.
fn known_to(connection: &Connection, what: &What) -> Option<What> {
    let What::Sync { streams, full, since, allow_mass_delete } = what else { return Some(what.clone()) };
    let spec = providers::provider(&connection.provider).map(providers::Provider::spec)?;
    let known: Vec<String> = streams.iter().filter(|stream| spec.stream(stream).is_some()).cloned().collect();
    let has_some = streams.is_empty() || !known.is_empty();
    let (full, since, allow_mass_delete) = (*full, *since, *allow_mass_delete);
    has_some.then_some(What::Sync { streams: known, full, since, allow_mass_delete })
}

/// Whether the request makes sense for the connection.
fn check(connection: &Connection, what: &What) -> Result<(), Error> {
    let Connection { name, provider, state, .. } = connection;
    if let What::Sync { streams, .. } = what {
        let spec = providers::provider(provider).map(providers::Provider::spec);
        let of = |stream: &str| spec.is_some_and(|spec| spec.stream(stream).is_some());
        if let Some(unknown) = streams.iter().find(|stream| !of(stream)) {
            let known =
                spec.map(|spec| spec.streams.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>());
            return Err(Error::new(Kind::UnknownName, format!("{provider} has no stream `{unknown}`"))
                .hint(format!("its streams are {}", known.unwrap_or_default().join(", "))));
        }
    }
    let lives = matches!(state, ConnectionState::Connected | ConnectionState::NeedsReauth);
    match what {
        What::Sync { .. } | What::Refresh if !lives => {
            let message =
                format!("connection `{name}` ({provider}) is not connected: it is {}", state.as_str());
            let hint = if state.is_pending() {
                format!("`fieldmirror status {name}` shows what it waits for")
            } else {
                format!("run `fieldmirror enqueue --reconnect {name}` first")
            };
            Err(Error::bad_request(message).hint(hint))
        }
        _ => Ok(()),
    }
}

fn place(conn: &mut PgConnection, connection: Connection, what: &What) -> Result<Line, DbError> {
    let (kind, job, args) = match what {
        What::Refresh => (RequestKind::Refresh, "refresh_token", json!({})),
        What::Disconnect { purge } => (RequestKind::Disconnect, "disconnect", json!({ "purge": purge })),
        What::Sync { streams, full, since, allow_mass_delete } => {
            let streams = (!streams.is_empty()).then_some(streams);
            let args = json!({
                "streams": streams, "full": full, "since": since, "allow_mass_delete": allow_mass_delete,
            });
            (RequestKind::Sync, "sync", args)
        }
    };
    let new = NewRequest { connection: connection.id, kind, args, sealed: None };
    let asked = asks::ask(conn, &new, job)?;
    Ok(Line { connection, kind, asked, ended: None })
}

/// Why nothing will happen by itself.
pub(super) fn parked(name: &str, asked: &Asked) -> String {
    format!(
        "warning: the job for `{name}` is parked after crashing; `fieldmirror jobs retry {}` runs it again",
        asked.job
    )
}

fn show(cx: &Context, lines: &[Line]) -> Result<(), Error> {
    cx.terminal.result(
        || json!({ "requests": lines.iter().map(Line::json).collect::<Vec<_>>() }),
        || match lines {
            [] => "No connection is connected: nothing was requested".to_owned(),
            lines => {
                let said = lines
                    .iter()
                    .map(|line| format!("Requested {} of `{}`", line.kind.as_str(), line.connection.name));
                said.collect::<Vec<_>>().join("\n")
            }
        },
    )
}

/// Waits until every request has ended, and notes how.
async fn await_all(cx: &Context, db: &Db, lines: &mut [Line], limit: Duration) -> Result<(), Error> {
    let ids: Vec<Uuid> = lines.iter().map(|line| line.asked.request).collect();
    let connections: Vec<ConnectionId> = lines.iter().map(|line| line.connection.id).collect();
    let bar = cx.terminal.progress(STEPS * lines.len() as u64);
    let shown = bar.clone();
    let first: Arc<OnceLock<(DateTime<Utc>, f64)>> = Arc::default();
    let waited = wait(db, limit, move |conn| {
        // In this order: what ends in between is among those that have ended. Those that have ended are not counted, for
        // a purged connection takes its requests with it.
        let open = asks::open(conn, &ids)?;
        let ended = asks::ended(conn, &ids)?;
        if !shown.is_hidden() {
            let progress = asks::progress(conn, &connections)?;
            let now = SystemClock.now();
            let (began, from) = *first.get_or_init(|| (now, progress.share));
            draw(
                &shown,
                ended.len(),
                progress,
                forecast(began, from, now, progress.share).map(|at| (at, now)),
            );
        }
        Ok((open == 0).then_some(ended))
    });
    let waited = waited.await?;
    bar.finish_and_clear();
    match waited {
        Waited::Got(ended) => {
            let mut ended: HashMap<Uuid, Ended> = ended.into_iter().map(|e| (e.request, e)).collect();
            for line in lines {
                line.ended = Some(ended.remove(&line.asked.request).unwrap_or_else(|| gone(line)));
            }
            Ok(())
        }
        Waited::Over => Err(Error::new(Kind::WaitOver, "not done yet, and the wait is over")
            .hint("the requests stand: `fieldmirror status` shows how it goes")),
        Waited::Interrupted => Err(Error::new(Kind::Interrupted, "interrupted while waiting")
            .hint("the requests stand: `fieldmirror status` shows how it goes")),
    }
}

/// `end` is when it is expected to be done, and the time by the same clock.
fn draw(
    bar: &ProgressBar,
    ended: usize,
    progress: asks::Progress,
    end: Option<(DateTime<Utc>, DateTime<Utc>)>,
) {
    let total = bar.length().unwrap_or(STEPS);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a bar"
    )]
    let reached = (progress.share.clamp(0.0, 1.0) * total as f64) as u64;
    // A bar that is full while something is still open would lie.
    bar.set_position(reached.max(ended as u64 * STEPS).min(total.saturating_sub(1)));
    bar.set_message(said(progress.rows, end));
}

/// Rows so far, and the estimated end.
fn said(rows: i64, end: Option<(DateTime<Utc>, DateTime<Utc>)>) -> String {
    let end = end.map(|(at, now)| {
        let left = Duration::from_secs(u64::try_from((at - now).num_seconds()).unwrap_or(0));
        format!(", done in about {} ({} UTC)", humantime::format_duration(left), at.format("%H:%M:%S"))
    });
    format!("{rows} rows{}", end.unwrap_or_default())
}

/// How a request ended that is no longer there: with its connection, which is what a purge may do.
fn gone(line: &Line) -> Ended {
    let outcome = match line.kind {
        RequestKind::Disconnect => RequestOutcome::Done,
        _ => RequestOutcome::Superseded,
    };
    Ended { request: line.asked.request, outcome, message: Some("the connection was removed".to_owned()) }
}

/// Shows how everything ended. The worst outcome decides the exit code.
fn conclude(cx: &Context, lines: &[Line]) -> Result<(), Error> {
    let error = failure(lines);
    if cx.terminal.json {
        let mut object = json!({ "requests": lines.iter().map(Line::json).collect::<Vec<_>>() });
        if let Some(error) = &error {
            object["error"] = error.json();
        }
        terminal::print_object(&object)?;
    } else {
        for line in lines {
            terminal::line(&outcome(line))?;
        }
    }
    error.map_or(Ok(()), |error| Err(error.told()))
}

fn outcome(line: &Line) -> String {
    let ended = line.ended.as_ref();
    let word = ended.map_or("open", |ended| ended.outcome.as_str());
    let message = ended.and_then(|ended| ended.message.as_deref()).map(|said| format!(": {said}"));
    format!("{} of `{}` {word}{}", line.kind.as_str(), line.connection.name, message.unwrap_or_default())
}

fn failure(lines: &[Line]) -> Option<Error> {
    let kind = |line: &Line| match line.ended.as_ref()?.outcome {
        RequestOutcome::Done => None,
        RequestOutcome::Denied => Some(Kind::Denied),
        RequestOutcome::Expired => Some(Kind::Expired),
        RequestOutcome::WrongAccount => Some(Kind::WrongAccount),
        RequestOutcome::Superseded => Some(Kind::Superseded),
        RequestOutcome::Refused => Some(Kind::BadRequest),
        RequestOutcome::Failed => Some(Kind::Failed),
    };
    let failed: Vec<_> = lines.iter().filter_map(|line| Some((kind(line)?, line))).collect();
    let (worst, first) = failed.iter().max_by_key(|(kind, _)| kind.exit().code())?;
    let message = match failed.len() {
        1 => outcome(first),
        count => format!("{count} of {} requests did not succeed, such as {}", lines.len(), outcome(first)),
    };
    Some(Error::new(*worst, message).hint(format!("see `fieldmirror status {}`", first.connection.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::queue::JobId;
    use crate::domain::spec::GrantKind;
    use crate::domain::step::Params;

    fn connection(id: i64, state: ConnectionState) -> Connection {
        Connection {
            id: ConnectionId(id),
            name: format!("c{id}"),
            provider: "hubspot".into(),
            grant: GrantKind::BearerToken,
            grant_id: None,
            state,
            reason: None,
            account_id: None,
            account_name: None,
            params: Params::new(),
            connected_at: None,
        }
    }

    fn sync(streams: &[&str]) -> What {
        let streams = streams.iter().map(|s| (*s).to_owned()).collect();
        What::Sync { streams, full: false, since: None, allow_mass_delete: false }
    }

    fn request(connection: Option<&str>, what: What) -> Request {
        Request { connection: connection.map(Into::into), what, wait: false, wait_max: Duration::ZERO }
    }

    #[test]
    fn a_named_connection_must_be_fit() {
        use ConnectionState as S;
        let check = |state, what: What, fits: bool| {
            let chosen = choose(vec![connection(1, state)], &request(Some("c1"), what.clone()));
            assert_eq!(chosen.is_ok(), fits, "{state:?} {what:?}");
        };
        check(S::Connected, sync(&[]), true);
        check(S::Connected, sync(&["tickets"]), true);
        check(S::Connected, sync(&["visits"]), false);
        check(S::NeedsReauth, What::Refresh, true);
        check(S::AwaitingConsent, sync(&[]), false);
        check(S::Disconnected, What::Refresh, false);
        check(S::Disconnected, What::Disconnect { purge: true }, true);
        check(S::AwaitingConsent, What::Disconnect { purge: false }, true);
    }

    #[test]
    fn of_all_those_that_are_fit() {
        use ConnectionState as S;
        let all =
            vec![connection(3, S::Connected), connection(2, S::Disconnected), connection(1, S::NeedsReauth)];
        let chosen = choose(all.clone(), &request(None, sync(&[]))).unwrap();
        assert_eq!(chosen.iter().map(|c| c.id.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(choose(all, &request(None, sync(&["sprockets"]))).unwrap_err().kind, Kind::UnknownName);
        // Of several streams each connection is asked for those that it has.
        let (hubspot, both) = (connection(1, S::Connected), sync(&["jobs", "tickets"]));
        let jobber = Connection { provider: "jobber".into(), ..connection(2, S::Connected) };
        let oncehub = Connection { provider: "oncehub".into(), ..connection(3, S::Connected) };
        let chosen =
            choose(vec![jobber.clone(), hubspot.clone(), oncehub], &request(None, both.clone())).unwrap();
        assert_eq!(chosen.iter().map(|c| c.id.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(known_to(&hubspot, &both), Some(sync(&["tickets"])));
        assert_eq!(known_to(&jobber, &both), Some(sync(&["jobs"])));
    }

    fn line(outcome: Option<RequestOutcome>) -> Line {
        let asked = Asked { request: Uuid::nil(), job: JobId(5), parked: false };
        let ended = outcome.map(|outcome| Ended { request: Uuid::nil(), outcome, message: None });
        Line { connection: connection(7, ConnectionState::Connected), kind: RequestKind::Sync, asked, ended }
    }

    #[test]
    fn as_programs_read_it() {
        let expected = json!({
            "request_id": Uuid::nil(), "job_id": "5", "connection": "c7", "connection_id": 7, "kind": "sync",
            "outcome": null, "message": null,
        });
        assert_eq!(line(None).json(), expected);
        assert_eq!(line(Some(RequestOutcome::Done)).json()["outcome"], "done");
    }

    #[test]
    fn what_the_bar_says() {
        let at = |text: &str| format!("2026-11-26T{text}Z").parse::<DateTime<Utc>>().unwrap();
        assert_eq!(said(12, None), "12 rows");
        let end = Some((at("08:03:20"), at("08:00:00")));
        assert_eq!(said(12, end), "12 rows, done in about 3m 20s (08:03:20 UTC)");
    }

    #[test]
    fn the_worst_outcome_decides() {
        use RequestOutcome::{Done, Failed, Superseded};
        let kind = |outcomes: &[RequestOutcome]| {
            let lines: Vec<_> = outcomes.iter().map(|outcome| line(Some(*outcome))).collect();
            failure(&lines).map(|error| error.kind)
        };
        assert_eq!(kind(&[Done, Done]), None);
        assert_eq!(kind(&[Done, Superseded]), Some(Kind::Superseded));
        assert_eq!(kind(&[Superseded, Failed, Done]), Some(Kind::Failed));
    }
}
