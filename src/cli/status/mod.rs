//! `fieldmirror status`: daemons, connections, tokens and streams as of one moment; what is ill first, with the reason
//! and the command that helps.

pub(super) mod health;
mod object;
mod page;

use clap::Args;

use super::context::{Context, DAEMON_LIVES, find};
use super::report::{Error, Exit};
use super::terminal::Look;
use crate::db::status::{self, ConnectionStatus, Snapshot, StreamStatus};
use crate::providers;

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this connection: its name or id
    connection: Option<String>,
    /// Exit with 1 when something is ill
    #[arg(long)]
    check: bool,
}

pub async fn run(cx: &Context, args: StatusArgs) -> Result<Exit, Error> {
    let db = cx.db().await?;
    let only = match &args.connection {
        Some(word) => Some(find(&db, word).await?.id),
        None => None,
    };
    let snapshot = db.run(move |conn| status::read(conn, only, DAEMON_LIVES)).await?;
    let snapshot = with_all_streams(snapshot);
    cx.terminal.result(|| object::of(&snapshot), || page::of(&snapshot, Look::of_stdout()))?;
    let ill = args.check && !health::healthy(&snapshot);
    Ok(if ill { Exit::Wrong } else { Exit::Done })
}

/// Streams in the order of the provider's description, those that have not begun included: whoever waits for all of them
/// to be complete must not take none for all.
fn with_all_streams(mut snapshot: Snapshot) -> Snapshot {
    for status in &mut snapshot.connections {
        let Some(provider) = providers::provider(&status.connection.provider) else { continue };
        let id = status.connection.id;
        let mut found = std::mem::take(&mut status.streams);
        for spec in provider.spec().streams {
            let at = found.iter().position(|stream| stream.stream == spec.name);
            let stream = at.map(|at| found.remove(at));
            status.streams.push(stream.unwrap_or_else(|| StreamStatus::not_begun(id, spec.name)));
        }
        status.streams.append(&mut found);
    }
    snapshot
}

/// The stream's table with its schema; `None` for a stream that this program does not know.
fn table(status: &ConnectionStatus, stream: &StreamStatus) -> Option<String> {
    let spec = providers::provider(&status.connection.provider)?.spec();
    spec.stream(&stream.stream).map(|stream| format!("mirror.{}", stream.table))
}

#[cfg(test)]
pub(in crate::cli) mod samples {
    use std::collections::BTreeMap;

    use super::*;
    use crate::db::connections::{Connection, ConnectionState};
    use crate::db::status::DaemonStatus;
    use crate::domain::ids::ConnectionId;
    use crate::domain::spec::GrantKind;
    use crate::domain::step::Params;

    pub(in crate::cli) fn at(text: &str) -> chrono::DateTime<chrono::Utc> {
        format!("2026-11-21T{text}Z").parse().unwrap()
    }

    pub(in crate::cli) fn connection(state: ConnectionState) -> ConnectionStatus {
        let connection = Connection {
            id: ConnectionId(7),
            name: "acme".into(),
            provider: "hubspot".into(),
            grant: GrantKind::AuthorizationCode,
            grant_id: None,
            state,
            reason: None,
            account_id: Some("1".into()),
            account_name: None,
            params: Params::new(),
            connected_at: None,
        };
        ConnectionStatus { connection, token: None, streams: Vec::new(), notices: BTreeMap::new() }
    }

    pub(in crate::cli) fn stream(state: &str) -> StreamStatus {
        StreamStatus { state: state.to_owned(), ..StreamStatus::not_begun(ConnectionId(7), "tickets") }
    }

    pub(in crate::cli) fn snapshot(connections: Vec<ConnectionStatus>) -> Snapshot {
        let daemon = DaemonStatus {
            id: uuid::Uuid::nil(),
            host: "h".into(),
            version: "0.1.0".into(),
            last_seen_at: at("07:59:58"),
            live: true,
        };
        let (alerts, hook) = (Vec::new(), None);
        Snapshot { as_of: at("08:00:00"), daemons: vec![daemon], connections, alerts, hook }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::connections::ConnectionState;

    #[test]
    fn no_stream_is_left_out() {
        let mut connection = samples::connection(ConnectionState::Connected);
        connection.streams = vec![samples::stream("idle")];
        let snapshot = with_all_streams(samples::snapshot(vec![connection]));
        let streams = &snapshot.connections[0].streams;
        let spec = providers::provider("hubspot").unwrap().spec();
        let names: Vec<_> = streams.iter().map(|stream| stream.stream.as_str()).collect();
        assert_eq!(names, spec.streams.iter().map(|stream| stream.name).collect::<Vec<_>>());
        let states: Vec<_> =
            streams.iter().map(|stream| (stream.stream.as_str(), stream.state.as_str())).collect();
        assert!(states.contains(&("tickets", "idle")) && states.contains(&("owners", "pending")));
        assert_eq!(
            table(&snapshot.connections[0], streams.last().unwrap()).unwrap(),
            "mirror.hubspot_tickets"
        );
    }
}
