//! The snapshot as a page for people: one line that says it all, what is ill, then everything in a table.

use chrono::{DateTime, Utc};
use console::Style;

use super::health::{self, Ailment};
use crate::cli::table::{Column, left, right, table};
use crate::cli::terminal::Look;
use crate::db::connections::ConnectionState;
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

/// From this width on the page says also what can be left out.
const ROOMY: usize = 100;

pub(super) fn of(snapshot: &Snapshot, look: Look) -> String {
    let mut ill: Vec<(&ConnectionStatus, Vec<Ailment>)> =
        snapshot.connections.iter().map(|status| (status, health::ailments(status))).collect();
    // A stable sort: within each half they stay in the order of their names.
    ill.sort_by_key(|(_, ailments)| ailments.is_empty());
    let unwell = ill.iter().filter(|(_, ailments)| !ailments.is_empty()).count();
    let mut lines = vec![summary(snapshot, unwell, look)];
    lines.extend(daemon_complaint(snapshot));
    lines.extend(health::general(snapshot).iter().map(|ailment| complaint("", ailment, look)));
    lines.extend(ill.iter().flat_map(|(status, ailments)| complaints(status, ailments, look)));
    lines.extend(snapshot.connections.iter().flat_map(|status| notices(status, look)));
    lines.push(String::new());
    if ill.is_empty() {
        lines.push("No connections yet".to_owned());
        lines.push("  next: fieldmirror enqueue --connect PROVIDER --name NAME".to_owned());
    } else {
        let rows: Vec<_> =
            ill.iter().flat_map(|(status, _)| connection_rows(snapshot.as_of, status, look)).collect();
        lines.push(table(&COLUMNS, &rows, look.width));
    }
    lines.join("\n")
}

fn summary(snapshot: &Snapshot, unwell: usize, look: Look) -> String {
    let word = if health::healthy(snapshot) {
        look.styled(&Style::new().green().bold(), "healthy")
    } else {
        look.styled(&Style::new().red().bold(), "ill")
    };
    let count = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    let in_brackets = |text: String| if text.is_empty() { text } else { format!(" ({text})") };
    let connections = count(snapshot.connections.len(), "connection");
    let unwell = in_brackets(if unwell == 0 { String::new() } else { format!("{unwell} ill") });
    let live: Vec<&DaemonStatus> = snapshot.daemons.iter().filter(|daemon| daemon.live).collect();
    let hosts: Vec<_> = live.iter().map(|daemon| format!("{} {}", daemon.host, daemon.version)).collect();
    let daemons = count(live.len(), "daemon") + &in_brackets(hosts.join(", "));
    look.wrapped(&format!("{word}: {connections}{unwell}, {daemons}"), 2)
}

fn daemon_complaint(snapshot: &Snapshot) -> Option<String> {
    if health::has_daemon(snapshot) {
        return None;
    }
    let last = snapshot.daemons.iter().map(|daemon| daemon.last_seen_at).max();
    let seen = last.map(|last| format!(", the last was seen {}", ago(last, snapshot.as_of)));
    Some(format!("- no daemon lives{}\n  next: fieldmirror run", seen.unwrap_or_default()))
}

fn complaints(status: &ConnectionStatus, ailments: &[Ailment], look: Look) -> Vec<String> {
    let name = look.styled(&Style::new().bold(), &status.connection.name);
    let of = format!("{name} ({}) ", status.connection.provider);
    ailments.iter().map(|ailment| complaint(&of, ailment, look)).collect()
}

/// The reason in lines that fit; the command in one, so that it can be pasted.
fn complaint(of: &str, Ailment { reason, next }: &Ailment, look: Look) -> String {
    let next = next.as_ref().map(|next| format!("\n  next: {next}"));
    look.wrapped(&format!("- {of}{reason}"), 2) + &next.unwrap_or_default()
}

/// Red for what is ill, yellow for what is on its way or waits.
fn coloured(state: &str, text: &str, look: Look) -> String {
    match state {
        "needs_reauth" | "failed" | "stalled" | "forbidden" | "rejected" | "expired" => {
            look.styled(&Style::new().red(), text)
        }
        "awaiting_consent" | "verifying" | "backing_off" | "expiring" | "unknown" => {
            look.styled(&Style::new().yellow(), text)
        }
        _ => text.to_owned(),
    }
}

/// Nothing is ill about these.
fn notices(status: &ConnectionStatus, look: Look) -> impl Iterator<Item = String> {
    let name = look.styled(&Style::new().bold(), &status.connection.name);
    let of = format!("- {name} ({}) note: ", status.connection.provider);
    let drift = status.streams.iter().filter(|stream| stream.drift > 0).map(drift_note);
    let waits = health::quota_waits(status, false)
        .filter(|_| status.connection.state != ConnectionState::Disconnected);
    let notices = status.notices.values().cloned().chain(waits).chain(drift);
    notices.map(move |sentence| look.wrapped(&format!("{of}{sentence}"), 2))
}

fn drift_note(stream: &StreamStatus) -> String {
    let things = if stream.drift == 1 { "thing" } else { "things" };
    format!(
        "{} {things} in `{}` that this release does not foresee, see mirror.drift",
        stream.drift, stream.stream
    )
}

/// The connection, and its streams below it.
fn connection_rows(now: DateTime<Utc>, status: &ConnectionStatus, look: Look) -> Vec<Vec<String>> {
    let token = health::token_state(status.token.as_ref(), now);
    let state = status.connection.state.as_str();
    let connection = &status.connection;
    let mut rows = vec![vec![
        format!("{} ({})", connection.name, connection.provider),
        coloured(state, state, look),
        coloured(token, token, look),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
    ]];
    rows.extend(status.streams.iter().map(|stream| stream_row(now, stream, look)));
    rows
}

fn stream_row(now: DateTime<Utc>, stream: &StreamStatus, look: Look) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut state = coloured(&stream.state, &stream.state, look);
    if let Some(progress) = stream.backfill_progress.filter(|_| !stream.backfill_done) {
        let end = stream.forecast_at(now).filter(|_| look.width >= ROOMY);
        let left = end.map(|at| format!(", {} left", span((at - now).num_seconds())));
        state = format!("{state} {:.0}%{}", progress * 100.0, left.unwrap_or_default());
    }
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
    use crate::cli::terminal::looks;
    use crate::db::alerts::HookTrouble;
    use crate::db::status::TokenStatus;

    const PLAIN: Look = Look { width: 100, coloured: false };

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

    /// One of everything that can be seen.
    fn crowd() -> Snapshot {
        let mut ill = samples::connection(ConnectionState::NeedsReauth);
        ill.connection.name = "zenith-heating-and-plumbing".into();
        ill.connection.reason = Some(
            "HubSpot says that the grant is dead: the user has uninstalled the app from the account".into(),
        );
        ill.token =
            Some(TokenStatus { rejected_at: Some(samples::at("07:00:00")), ..TokenStatus::example("oauth") });
        let mut well = samples::connection(ConnectionState::Connected);
        well.token =
            Some(TokenStatus { expires_at: Some(samples::at("08:20:00")), ..TokenStatus::example("oauth") });
        let next = Some(samples::at("08:02:00"));
        let first = StreamStatus {
            complete_to: Some(samples::at("07:57:00")),
            backfill_progress: Some(0.425),
            backfill_started_at: Some(samples::at("07:00:00")),
            rows: 1_204_310,
            deleted_rows: 17,
            next_due_at: next,
            ..samples::stream("backfilling")
        };
        let first = StreamStatus { drift: 2, ..first };
        let refused = StreamStatus {
            stream: "owners".into(),
            stalled_reason: Some("the grant lacks the scope crm.objects.owners.read".into()),
            ..samples::stream("forbidden")
        };
        let waiting = StreamStatus {
            stream: "properties".into(),
            rows: 412,
            next_due_at: next,
            ..samples::stream("backing_off")
        };
        well.streams = vec![first, refused, waiting];
        let mut snapshot = samples::snapshot(vec![well, ill]);
        let failed_at = samples::at("07:59:00");
        let last_error = "`/usr/local/bin/on-alert` ended with exit status: 1".to_owned();
        snapshot.hook = Some(HookTrouble { waiting: 3, last_error, failed_at });
        snapshot
    }

    #[test]
    fn the_page_in_narrow_and_wide_with_and_without_colour() {
        looks::all("status", |look| of(&crowd(), look));
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
        let page = of(&samples::snapshot(vec![well, ill]), PLAIN);
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
        let page = of(&snapshot, Look { width: 80, ..PLAIN });
        assert!(page.lines().all(|line| line.len() <= 80), "{page}");
        assert!(page.contains("no daemon lives, the last was seen 2s ago"), "{page}");
        assert!(page.contains("No connections yet"), "{page}");
    }
}
