//! The snapshot as a page for people: one line that says it all, what is ill, then everything in a table.

use chrono::{DateTime, Utc};
use console::Style;

use super::health::{self, Ailment};
use crate::cli::table::{Column, left, right, table};
use crate::cli::terminal;
use crate::db::status::{ConnectionStatus, DaemonStatus, Snapshot, StreamStatus};

const COLUMNS: [Column; 7] = [
    left("NAME"),
    left("STATE"),
    left("TOKEN"),
    right("UP TO"),
    right("ROWS"),
    right("DELETED"),
    right("NEXT"),
];

pub(super) fn of(snapshot: &Snapshot) -> String {
    let mut ill: Vec<(&ConnectionStatus, Vec<Ailment>)> =
        snapshot.connections.iter().map(|status| (status, health::ailments(status))).collect();
    // A stable sort: within each half they stay in the order of their names.
    ill.sort_by_key(|(_, ailments)| ailments.is_empty());
    let unwell = ill.iter().filter(|(_, ailments)| !ailments.is_empty()).count();
    let mut lines = vec![summary(snapshot, unwell)];
    lines.extend(daemon_complaint(snapshot));
    lines.extend(health::general(snapshot).iter().map(|ailment| complaint("", ailment)));
    lines.extend(ill.iter().flat_map(|(status, ailments)| complaints(status, ailments)));
    lines.extend(snapshot.connections.iter().flat_map(notices));
    lines.push(String::new());
    if ill.is_empty() {
        lines.push(
            "No connections yet: `fieldmirror enqueue --connect PROVIDER --name NAME` makes one".to_owned(),
        );
    } else {
        let rows: Vec<_> =
            ill.iter().flat_map(|(status, _)| connection_rows(snapshot.as_of, status)).collect();
        lines.push(table(&COLUMNS, &rows, terminal::width()));
    }
    lines.join("\n")
}

fn summary(snapshot: &Snapshot, unwell: usize) -> String {
    let word = if health::healthy(snapshot) {
        terminal::styled(&Style::new().green().bold(), "healthy")
    } else {
        terminal::styled(&Style::new().red().bold(), "ill")
    };
    let count = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let in_brackets = |text: String| if text.is_empty() { text } else { format!(" ({text})") };
    let connections = count(snapshot.connections.len(), "connection");
    let unwell = in_brackets(if unwell == 0 { String::new() } else { format!("{unwell} ill") });
    let live: Vec<&DaemonStatus> = snapshot.daemons.iter().filter(|daemon| daemon.live).collect();
    let hosts: Vec<_> = live.iter().map(|daemon| format!("{} {}", daemon.host, daemon.version)).collect();
    let daemons = count(live.len(), "daemon") + &in_brackets(hosts.join(", "));
    format!("{word}: {connections}{unwell}, {daemons}")
}

fn daemon_complaint(snapshot: &Snapshot) -> Option<String> {
    if health::has_daemon(snapshot) {
        return None;
    }
    let last = snapshot.daemons.iter().map(|daemon| daemon.last_seen_at).max();
    let seen = last.map(|last| format!(", the last was seen {}", ago(last, snapshot.as_of)));
    Some(format!("- no daemon lives{}\n  next: fieldmirror run", seen.unwrap_or_default()))
}

fn complaints(status: &ConnectionStatus, ailments: &[Ailment]) -> Vec<String> {
    let name = terminal::styled(&Style::new().bold(), &status.connection.name);
    let provider = &status.connection.provider;
    let of = format!("{name} ({provider}) ");
    ailments.iter().map(|ailment| complaint(&of, ailment)).collect()
}

fn complaint(of: &str, Ailment { reason, next }: &Ailment) -> String {
    let next = next.as_ref().map(|next| format!("\n  next: {next}"));
    format!("- {of}{reason}{}", next.unwrap_or_default())
}

/// Nothing is ill about these.
fn notices(status: &ConnectionStatus) -> impl Iterator<Item = String> {
    let name = terminal::styled(&Style::new().bold(), &status.connection.name);
    let provider = &status.connection.provider;
    status.notices.values().map(move |sentence| format!("- {name} ({provider}) note: {sentence}"))
}

/// The connection, and its streams below it.
fn connection_rows(now: DateTime<Utc>, status: &ConnectionStatus) -> Vec<Vec<String>> {
    let connection = &status.connection;
    let mut rows = vec![vec![
        format!("{} ({})", connection.name, connection.provider),
        connection.state.as_str().to_owned(),
        health::token_state(status.token.as_ref(), now).to_owned(),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
    ]];
    rows.extend(status.streams.iter().map(|stream| stream_row(now, stream)));
    rows
}

fn stream_row(now: DateTime<Utc>, stream: &StreamStatus) -> Vec<String> {
    let dash = || "-".to_owned();
    let state = match stream.backfill_progress {
        Some(progress) if !stream.backfill_done => format!("{} {:.0}%", stream.state, progress * 100.0),
        _ => stream.state.clone(),
    };
    vec![
        format!("  {}", stream.stream),
        state,
        String::new(),
        stream.complete_to.map_or_else(dash, |at| ago(at, now)),
        stream.rows.to_string(),
        stream.deleted_rows.to_string(),
        stream.next_due_at.map_or_else(dash, |at| ahead(at, now)),
    ]
}

fn ago(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} ago", span((now - then).num_seconds()))
}

fn ahead(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    if then <= now { "due".to_owned() } else { format!("in {}", span((then - now).num_seconds())) }
}

/// A length of time in its largest unit.
fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::db::connections::ConnectionState;

    #[test]
    fn spans() {
        for (seconds, expected) in
            [(-5, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (7_200, "2h"), (172_800, "2d")]
        {
            assert_eq!(span(seconds), expected);
        }
        let now = samples::at("08:00:00");
        assert_eq!(ago(samples::at("07:00:00"), now), "60m ago");
        assert_eq!((ahead(now, now), ahead(samples::at("08:00:30"), now)), ("due".into(), "in 30s".into()));
    }

    #[test]
    fn what_is_ill_comes_first() {
        let mut ill = samples::connection(ConnectionState::NeedsReauth);
        ill.connection.name = "zenith".into();
        ill.connection.reason = Some("the grant was revoked".into());
        let mut well = samples::connection(ConnectionState::Connected);
        well.notices = [("api_version".to_owned(), "an older one is served".to_owned())].into();
        well.streams = vec![StreamStatus {
            complete_to: Some(samples::at("07:57:00")),
            backfill_progress: Some(0.425),
            rows: 12,
            next_due_at: Some(samples::at("08:02:00")),
            ..samples::stream("backfilling")
        }];
        let page = of(&samples::snapshot(vec![well, ill]));
        let page = console::strip_ansi_codes(&page);
        assert_eq!(
            page,
            "ill: 2 connections (1 ill), 1 daemon (h 0.1.0)\n\
             - zenith (hubspot) needs a new authorization: the grant was revoked\n  \
               next: fieldmirror enqueue --reconnect zenith\n\
             - acme (hubspot) note: an older one is served\n\
             \n\
             NAME              STATE            TOKEN   UP TO  ROWS  DELETED   NEXT\n\
             zenith (hubspot)  needs_reauth     none\n\
             acme (hubspot)    connected        none\n  \
               tickets         backfilling 42%         3m ago    12        0  in 2m\n"
        );
    }

    #[test]
    fn without_connections_and_daemons() {
        let mut snapshot = samples::snapshot(Vec::new());
        snapshot.daemons[0].live = false;
        let page = of(&snapshot);
        let page = console::strip_ansi_codes(&page);
        assert!(page.contains("no daemon lives, the last was seen 2s ago"), "{page}");
        assert!(page.contains("No connections yet"), "{page}");
    }
}
