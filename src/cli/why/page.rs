//! The causes as a page for people: each a paragraph, what it rests on below it, the command that helps last.

use chrono::{DateTime, Utc};
use console::Style;

use super::chain::{Cause, View};
use crate::cli::terminal::Look;

pub(super) fn of(view: &View<'_>, causes: &[Cause], look: Look) -> String {
    let connection = &view.evidence.connection;
    let of = view.stream.map(|stream| format!("stream `{stream}` of ")).unwrap_or_default();
    let name = look.styled(&Style::new().bold(), &connection.name);
    let as_of = moment(view.evidence.as_of);
    let heading =
        format!("{of}{name} ({}), {}, as of {as_of}", connection.provider, connection.state.as_str());
    let mut lines = vec![look.wrapped(&heading, 2)];
    if causes.is_empty() {
        lines.push("Nothing stands in its way".to_owned());
    }
    let blank = " ".repeat(as_of.len());
    for (place, cause) in causes.iter().enumerate() {
        lines.push(String::new());
        lines.extend(paragraph(place + 1, cause, &blank, look));
    }
    lines.join("\n")
}

/// The command is in one line, so that it can be pasted.
fn paragraph(place: usize, cause: &Cause, no_time: &str, look: Look) -> Vec<String> {
    let ill = if cause.ill { look.styled(&Style::new().red().bold(), "ill") + ": " } else { String::new() };
    let mut lines = vec![look.hanging(&format!("{place}. "), &format!("{ill}{}", cause.summary))];
    let times = [("since", cause.since), ("until", cause.until)];
    let times: Vec<_> =
        times.into_iter().filter_map(|(word, at)| at.map(|at| format!("{word} {}", moment(at)))).collect();
    if !times.is_empty() {
        lines.push(look.hanging("   ", &times.join(", ")));
    }
    lines.extend(cause.proofs.iter().map(|proof| {
        let dim = |at| look.styled(&Style::new().dim(), &moment(at));
        let at = proof.at.map_or_else(|| no_time.to_owned(), dim);
        look.hanging(&format!("   {at}  "), &format!("{}: {}", proof.source, proof.text))
    }));
    lines.extend(cause.next.iter().map(|next| format!("   next: {next}")));
    lines
}

fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::samples::{at, connection};
    use crate::cli::terminal::looks;
    use crate::cli::why::tests::evidence;
    use crate::db::connections::ConnectionState;
    use crate::db::evidence::{AuditLine, Evidence, RunEvidence, StreamEvidence};
    use crate::db::queue::{JobId, JobRow, JobState};
    use crate::providers::{self, Provider};

    fn stream(name: &str, state: &str, failure_kind: Option<&str>, said: Option<&str>) -> StreamEvidence {
        let stands = matches!(state, "stalled" | "forbidden");
        StreamEvidence {
            state: state.to_owned(),
            failure_kind: failure_kind.map(str::to_owned),
            stalled_reason: said.filter(|_| stands).map(str::to_owned),
            last_error: said.map(str::to_owned),
            not_before: failure_kind.map(|_| at("09:00:00")),
            complete_to: Some(at("07:00:00")),
            ..evidence::stream(name)
        }
    }

    fn run(id: i64, stream: &str, throttled: i64, error: &str) -> RunEvidence {
        RunEvidence {
            id,
            stream: stream.to_owned(),
            mode: "incremental".to_owned(),
            started_at: at("07:10:00"),
            ended_at: Some(at("07:11:00")),
            outcome: Some("failed".to_owned()),
            requests: 12,
            throttled,
            error: Some(error.to_owned()),
        }
    }

    /// A refused token, and every way in which a stream waits.
    fn crowd() -> Evidence {
        let mut refused = connection(ConnectionState::NeedsReauth).connection;
        refused.name = "zenith-heating-and-plumbing".into();
        refused.reason = Some("the user has uninstalled the app from the account (BAD_REFRESH_TOKEN)".into());
        let line = |time, outcome: &str, detail: Option<&str>| AuditLine {
            at: at(time),
            event: "refresh".to_owned(),
            outcome: outcome.to_owned(),
            detail: detail.map(str::to_owned),
        };
        let parked = JobRow {
            id: JobId(12),
            kind: "sync".to_owned(),
            connection: None,
            connection_name: None,
            state: JobState::Parked,
            run_at: at("07:00:00"),
            owner: None,
            lease_until: None,
            attempt: 4,
            crashes: 3,
            created_at: at("07:00:00"),
            started_at: Some(at("07:05:00")),
            ended_at: None,
            last_error: Some("the lease of daemon 018f lapsed".to_owned()),
        };
        let scope = "the grant lacks the scope crm.objects.owners.read";
        let shape = "`/results` is missing in an answer of `GET /crm/objects/2026-03/contacts`";
        let limit = "DAILY_LIMIT: the account may ask again tomorrow";
        let brake = "90 of 100 rows would be marked as gone";
        Evidence {
            connection: refused,
            audit: vec![
                line("07:30:00", "dead", Some("BAD_REFRESH_TOKEN")),
                line("07:00:00", "failed", Some("502 from the token endpoint")),
                line("06:30:00", "done", None),
                line("06:00:00", "done", None),
            ],
            streams: vec![
                stream("contacts", "stalled", Some("provider_changed"), Some(shape)),
                stream("owners", "forbidden", Some("forbidden"), Some(scope)),
                stream("pipelines", "idle", None, None),
                stream("properties", "stalled", Some("held"), Some(brake)),
                stream("tickets", "backing_off", Some("throttled"), Some(limit)),
            ],
            runs: vec![run(41, "tickets", 3, limit), run(40, "contacts", 0, shape)],
            jobs: vec![parked],
            ..evidence::of(connection(ConnectionState::NeedsReauth).connection)
        }
    }

    #[test]
    fn the_page_in_narrow_and_wide_with_and_without_colour() {
        let evidence = crowd();
        let spec = providers::provider("hubspot").map(Provider::spec);
        let view = View { evidence: &evidence, spec, stream: None };
        let causes = view.causes();
        let kinds: Vec<_> = causes.iter().map(|cause| cause.kind).collect();
        let all = [
            "token_refused",
            "job_parked",
            "stream_stalled",
            "stream_forbidden",
            "mass_delete_held",
            "waits_for_quota",
        ];
        assert_eq!(kinds, all);
        looks::all("why", |look| of(&view, &causes, look));

        let view = View { stream: Some("pipelines"), ..view };
        let plain = of(&view, &view.causes(), Look { width: 80, coloured: false });
        assert!(plain.starts_with("stream `pipelines` of zenith-heating-and-plumbing (hubspot)"), "{plain}");
        let view =
            View { evidence: &evidence::of(connection(ConnectionState::Connected).connection), ..view };
        let well = of(&View { stream: None, ..view }, &[], Look { width: 80, coloured: false });
        assert!(well.ends_with("\nNothing stands in its way"), "{well}");
    }
}
