//! `fieldmirror verify`: has the daemon compare a part of the mirror with the provider, and shows what came of it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use console::Style;
use serde::Deserialize as _;
use serde_json::{Value, json};
use uuid::Uuid;

use super::context::{Context, DAEMON_LIVES, find};
use super::report::{Error, Exit, Kind};
use super::terminal::{self, Look};
use super::wait::{Waited, wait};
use crate::db::Db;
use crate::db::asks;
use crate::db::connections::{Connection, ConnectionState};
use crate::db::requests::{self, NewRequest, Request, RequestKind, RequestOutcome};
use crate::db::status::{self, StreamStatus};
use crate::db::verifications::{self, Ended};
use crate::domain::verification::{Difference, Part, Report, SAMPLE, SAMPLE_MAX};
use crate::providers;

/// How long a comparison is waited for: it has to do with what the walks leave it.
const WAIT_MAX: Duration = Duration::from_hours(1);

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The connection: its name or id
    connection: String,
    /// Only this stream (repeatable)
    #[arg(long, value_name = "S")]
    stream: Vec<String>,
    /// Rows of each stream that are drawn at random and asked for by id
    #[arg(long, value_name = "N", default_value_t = SAMPLE, value_parser = clap::value_parser!(u32).range(1..=i64::from(SAMPLE_MAX)))]
    sample: u32,
    /// The longest wait, such as `10m`
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait_max: Option<Duration>,
}

pub async fn run(cx: &Context, args: VerifyArgs) -> Result<Exit, Error> {
    let db = cx.db_of_daemon().await?;
    let connection = find(&db, &args.connection).await?;
    fit(&connection)?;
    let streams = chosen(&db, &connection, &args.stream).await?;
    cx.wait_for_daemon(&db).await?;
    let request_args = json!({ "streams": streams, "sample": args.sample });
    let (kind, of) = (RequestKind::Verify, connection.id);
    let new = NewRequest { connection: of, kind, args: request_args, sealed: None };
    let asked = db.transaction(move |conn| asks::ask(conn, &new, "sync")).await?;
    if asked.parked {
        let name = &connection.name;
        cx.terminal.note(&format!(
            "warning: the job for `{name}` is parked after crashing; `fieldmirror jobs retry {}` runs it again",
            asked.job
        ));
    }
    let ended = ended(cx, &db, asked.request, args.wait_max.unwrap_or(WAIT_MAX)).await?;
    let id = asked.request;
    let compared = db.run(move |conn| verifications::ended(conn, id)).await?;
    let shown = Shown { connection: &connection, compared: &compared };
    let failure = failure(&connection, &ended);
    if cx.terminal.json {
        let mut object = shown.object();
        if let Some(error) = &failure {
            object["error"] = error.json();
        }
        terminal::print_object(&object)?;
    } else if !compared.is_empty() {
        terminal::line(&shown.text(Look::of_stdout()))?;
    }
    match failure {
        Some(error) => Err(error.told()),
        None if shown.agrees() == Some(false) => Ok(Exit::Wrong),
        None => Ok(Exit::Done),
    }
}

fn fit(connection: &Connection) -> Result<(), Error> {
    let Connection { name, provider, state, .. } = connection;
    if matches!(state, ConnectionState::Connected | ConnectionState::NeedsReauth) {
        return Ok(());
    }
    let message = format!("connection `{name}` ({provider}) is not connected: it is {}", state.as_str());
    Err(Error::bad_request(message).hint(format!("`fieldmirror status {name}` shows what it waits for")))
}

/// The streams to compare: those that were named, or all that have been read as a whole.
async fn chosen(db: &Db, connection: &Connection, named: &[String]) -> Result<Vec<String>, Error> {
    let (provider, name, id) = (&connection.provider, &connection.name, connection.id);
    let spec = providers::provider(provider).map(providers::Provider::spec);
    let unknown = |stream: &&String| spec.is_some_and(|spec| spec.stream(stream).is_none());
    if let Some(stream) = named.iter().find(unknown) {
        let known = spec.map(|spec| spec.streams.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>());
        return Err(Error::new(Kind::UnknownName, format!("{provider} has no stream `{stream}`"))
            .hint(format!("its streams are {}", known.unwrap_or_default().join(", "))));
    }
    let snapshot = db.run(move |conn| status::read(conn, Some(id), DAEMON_LIVES)).await?;
    let streams: Vec<&StreamStatus> = snapshot.connections.iter().flat_map(|one| &one.streams).collect();
    let is_read = |stream: &str| {
        streams.iter().any(|one| one.stream == stream && one.backfill_done && one.complete_to.is_some())
    };
    let not_yet = |what: String| {
        Err(Error::bad_request(format!(
            "{what} has not been read as a whole yet: there is nothing to compare"
        ))
        .hint(format!("`fieldmirror status {name}` shows how far it is")))
    };
    if let Some(stream) = named.iter().find(|stream| !is_read(stream)) {
        return not_yet(format!("`{stream}`"));
    }
    let all = spec.into_iter().flat_map(|spec| spec.streams).map(|stream| stream.name.to_owned());
    let chosen: Vec<String> =
        all.filter(|stream| (named.is_empty() || named.contains(stream)) && is_read(stream)).collect();
    if chosen.is_empty() { not_yet(format!("connection `{name}`")) } else { Ok(chosen) }
}

async fn ended(cx: &Context, db: &Db, request: Uuid, limit: Duration) -> Result<Request, Error> {
    let spinner =
        cx.terminal.spinner("the daemon compares, with what its walks leave of the provider's limits");
    let waited = wait(db, limit, move |conn| {
        let request = requests::get(conn, request)?;
        Ok(request.done_at.is_some().then_some(request))
    });
    let waited = waited.await?;
    spinner.finish_and_clear();
    let hint = "the request stands: `fieldmirror why` and `fieldmirror status` show what came of it";
    match waited {
        Waited::Got(request) => Ok(request),
        Waited::Over => Err(Error::new(Kind::WaitOver, "not done yet, and the wait is over").hint(hint)),
        Waited::Interrupted => Err(Error::new(Kind::Interrupted, "interrupted while waiting").hint(hint)),
    }
}

fn failure(connection: &Connection, request: &Request) -> Option<Error> {
    let kind = match request.outcome? {
        RequestOutcome::Done => return None,
        RequestOutcome::Superseded => Kind::Superseded,
        RequestOutcome::Refused => Kind::BadRequest,
        _ => Kind::Failed,
    };
    let why = request.message.as_deref().unwrap_or("no reason is on record");
    let message = format!("could not compare all of `{}`: {why}", connection.name);
    Some(Error::new(kind, message).hint(format!("see `fieldmirror why {}`", connection.name)))
}

/// What came of it.
struct Shown<'a> {
    connection: &'a Connection,
    compared: &'a [Ended],
}

impl Shown<'_> {
    /// `None`: nothing could be compared.
    fn agrees(&self) -> Option<bool> {
        let all: Vec<bool> = self.compared.iter().filter_map(|one| one.agrees).collect();
        (!all.is_empty()).then(|| all.iter().all(|agrees| *agrees))
    }

    fn title(&self) -> &str {
        let provider = &self.connection.provider;
        providers::provider(provider).map_or(provider.as_str(), |provider| provider.spec().title)
    }

    fn object(&self) -> Value {
        let spec = providers::provider(&self.connection.provider).map(providers::Provider::spec);
        let stream = |one: &Ended| {
            let report = report(one);
            let table =
                spec.and_then(|spec| spec.stream(&one.stream)).map(|of| format!("mirror.{}", of.table));
            json!({
                "name": one.stream, "table": table, "agrees": one.agrees, "verified_at": one.ended_at,
                "complete_to": report.complete_to, "deletions_to": report.deletions_to,
                "sample": report.sample, "window": report.window, "differing": report.differing,
                "differences": report.differences, "reread": report.reread, "error": one.error,
            })
        };
        json!({
            "connection": self.connection.name,
            "connection_id": self.connection.id,
            "provider": self.connection.provider,
            "agrees": self.agrees(),
            "streams": self.compared.iter().map(stream).collect::<Vec<_>>(),
        })
    }

    fn text(&self, look: Look) -> String {
        let mut lines = vec![format!("{}, compared with {}", self.connection.name, self.title())];
        for one in self.compared {
            lines.push(String::new());
            self.stream(one, look, &mut lines);
        }
        lines.join("\n")
    }

    fn stream(&self, one: &Ended, look: Look, lines: &mut Vec<String>) {
        let report = report(one);
        let standing = match (one.agrees, &one.error) {
            (Some(true), _) => look.styled(&Style::new().green(), "agrees"),
            (Some(false), _) if report.differing == 1 => look.styled(&Style::new().red(), "1 row differs"),
            (Some(false), _) => {
                look.styled(&Style::new().red(), &format!("{} rows differ", report.differing))
            }
            (None, Some(_)) => look.styled(&Style::new().red(), "could not be compared"),
            (None, None) => look.styled(&Style::new().yellow(), "nothing could be compared"),
        };
        let known = report.complete_to.map(|at| format!(", complete up to {}", moment(at)));
        lines.push(format!("{}: {standing}{}", one.stream, known.unwrap_or_default()));
        if let Some(error) = &one.error {
            lines.push(indented(look, error, 2));
            return;
        }
        lines.push(indented(look, &format!("by id: {}", said(&report.sample)), 4));
        let list = match (report.window.from, report.window.to) {
            (Some(from), Some(to)) => format!("changed between {} and {}", moment(from), moment(to)),
            _ if report.window.rows == 0 && report.window.note.is_some() => "by changes".to_owned(),
            _ => "the whole list".to_owned(),
        };
        lines.push(indented(look, &format!("{list}: {}", said(&report.window)), 4));
        for difference in &report.differences {
            lines.push(indented(look, &format!("- {}", self.difference(difference)), 4));
        }
        if let Some(reread) = &report.reread {
            lines.push(format!("  read again: {reread}"));
        }
    }

    fn difference(&self, of: &Difference) -> String {
        let value =
            |value: &Option<String>| value.as_ref().map_or("nothing".to_owned(), |text| format!("`{text}`"));
        let (mirror, provider) = (value(&of.mirror), value(&of.provider));
        format!("{} {}: {mirror} in the mirror, {provider} at {}", of.id, of.column, self.title())
    }
}

/// A line that begins behind two spaces, and those that follow behind more.
fn indented(look: Look, text: &str, rest: usize) -> String {
    format!("  {}", Look { width: look.width.saturating_sub(2), ..look }.wrapped(text, rest))
}

fn report(of: &Ended) -> Report {
    of.report.as_ref().and_then(|report| Report::deserialize(report).ok()).unwrap_or_default()
}

fn said(part: &Part) -> String {
    let counts = [
        (part.agree, "agree"),
        (part.changed_since, "changed since"),
        (part.unknown, "cannot be told"),
        (part.differ, "differ"),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let counts = match counts.as_slice() {
        [] => None,
        counts => Some(format!("{} rows, of which {}", part.rows, counts.join(", "))),
    };
    match (counts, &part.note) {
        (Some(counts), Some(note)) => format!("{counts} ({note})"),
        (Some(counts), None) => counts,
        (None, Some(note)) => note.clone(),
        (None, None) => "0 rows".to_owned(),
    }
}

fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ConnectionId;
    use crate::domain::spec::GrantKind;
    use crate::domain::step::Params;

    fn connection() -> Connection {
        Connection {
            id: ConnectionId(7),
            name: "acme".into(),
            provider: "hubspot".into(),
            grant: GrantKind::BearerToken,
            grant_id: None,
            state: ConnectionState::Connected,
            reason: None,
            account_id: None,
            account_name: None,
            params: Params::new(),
            connected_at: None,
        }
    }

    fn compared() -> Vec<Ended> {
        let at = |text: &str| format!("2026-11-26T{text}Z").parse::<DateTime<Utc>>().unwrap();
        let difference = |id: &str, mirror: Option<&str>| Difference {
            id: id.into(),
            column: "subject".into(),
            mirror: mirror.map(Into::into),
            provider: Some("leak".into()),
        };
        let report = Report {
            complete_to: Some(at("09:00:00")),
            sample: Part { rows: 50, agree: 47, changed_since: 1, differ: 2, ..Part::default() },
            window: Part {
                note: Some("stopped after 5000 rows".into()),
                rows: 9,
                agree: 9,
                ..Part::default()
            },
            differing: 2,
            differences: vec![difference("1", Some("tap")), difference("2", None)],
            reread: Some("changes since 2026-11-25T00:00:00Z".into()),
            ..Report::default()
        };
        let good = Report { window: Part { rows: 3, agree: 3, ..Part::default() }, ..Report::default() };
        let ended = |stream: &str, report: Option<Report>, error: Option<&str>| Ended {
            stream: stream.into(),
            ended_at: at("09:30:00"),
            agrees: report.as_ref().and_then(Report::agrees),
            error: error.map(Into::into),
            report: report.map(|report| serde_json::to_value(report).unwrap()),
        };
        vec![
            ended("owners", Some(good), None),
            ended("tickets", Some(report), None),
            ended("properties", None, Some("HubSpot answered 500, 5 times")),
        ]
    }

    #[test]
    fn as_people_read_it() {
        let (connection, compared) = (connection(), compared());
        let shown = Shown { connection: &connection, compared: &compared };
        assert_eq!(shown.agrees(), Some(false));
        let expected = "\
acme, compared with HubSpot

owners: agrees
  by id: 0 rows
  the whole list: 3 rows, of which 3 agree

tickets: 2 rows differ, complete up to 2026-11-26 09:00:00 UTC
  by id: 50 rows, of which 47 agree, 1 changed since, 2 differ
  the whole list: 9 rows, of which 9 agree (stopped after 5000 rows)
  - 1 subject: `tap` in the mirror, `leak` at HubSpot
  - 2 subject: nothing in the mirror, `leak` at HubSpot
  read again: changes since 2026-11-25T00:00:00Z

properties: could not be compared
  HubSpot answered 500, 5 times";
        assert_eq!(shown.text(Look { width: 100, coloured: false }), expected);
    }

    #[test]
    fn as_programs_read_it() {
        let (connection, compared) = (connection(), compared());
        let object = Shown { connection: &connection, compared: &compared }.object();
        assert_eq!(object["agrees"], false);
        let tickets = &object["streams"][1];
        assert_eq!(tickets["table"], "mirror.hubspot_tickets");
        assert_eq!(tickets["sample"]["differ"], 2);
        let difference = json!({"id": "2", "column": "subject", "mirror": null, "provider": "leak"});
        assert_eq!(tickets["differences"][1], difference);
        assert_eq!(object["streams"][2]["agrees"], Value::Null);
        assert_eq!(object["streams"][2]["error"], "HubSpot answered 500, 5 times");
    }
}
