//! What an alert says: a sentence for the log, a JSON object for the alert program. The keys of the object are a
//! contract, described in docs/ALERTS.md; they are always there, `null` when unknown.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::remedy;
use super::standstill::{Owner, Standstill};
use crate::db::alerts::{Alert, AlertKind, Condition};
use crate::domain::spec::GrantKind;

/// Moved when a key changes its meaning. New keys do not move it.
const VERSION: u32 = 1;

/// The object for the program.
pub fn object(alert: &Alert, host: &str, now: DateTime<Utc>) -> Value {
    let of = &alert.of;
    let state = match (alert.resolved_at, alert.fired_at) {
        (Some(_), _) => "resolved",
        (None, Some(_)) => "still_firing",
        (None, None) => "firing",
    };
    json!({
        "version": VERSION,
        "alert_id": alert.id.to_string(),
        "state": state,
        "kind": of.kind,
        "severity": severity(&of.kind),
        "summary": summary(of),
        "reason": of.reason,
        "connection": of.connection_name,
        "connection_id": of.connection_id,
        "provider": of.provider,
        "stream": of.stream,
        "job_id": of.job_id.map(|id| id.to_string()),
        "opened_at": alert.opened_at,
        "resolved_at": alert.resolved_at,
        "sent_at": now,
        "host": host,
        "next_action": alert.resolved_at.is_none().then(|| next_action(alert)).flatten(),
    })
}

/// `critical`: nothing more comes from an account before a person acts.
fn severity(kind: &str) -> &'static str {
    match AlertKind::parse(kind) {
        Some(
            AlertKind::NeedsReauth
            | AlertKind::ConfigurationFault
            | AlertKind::TokenUnusable
            | AlertKind::JobParked,
        ) => "critical",
        _ => "warning",
    }
}

/// One sentence without a full stop.
pub fn summary(of: &Condition) -> String {
    let provider = of.provider.as_deref().unwrap_or("no provider");
    let connection = match &of.connection_name {
        Some(name) => format!("connection `{name}` ({provider})"),
        None => "the daemon".to_owned(),
    };
    let stream = format!("stream `{}` of {connection}", of.stream.as_deref().unwrap_or("?"));
    let reason = &of.reason;
    let kind = AlertKind::parse(&of.kind);
    if let Some(standstill) = kind.and_then(Standstill::of_alert) {
        return format!("{stream} {}", standstill.says(reason));
    }
    match kind {
        Some(AlertKind::NeedsReauth) => format!("{connection} needs a new authorization: {reason}"),
        Some(AlertKind::ConfigurationFault) if of.connection_name.is_none() => {
            format!("our configuration stops {provider}: {reason}")
        }
        Some(AlertKind::ConfigurationFault) => {
            format!("the configuration of {connection} stops it: {reason}")
        }
        Some(AlertKind::TokenUnusable) => format!("the token of {connection} cannot be used: {reason}"),
        Some(AlertKind::StreamStale) => format!("{stream} is stale: {reason}"),
        Some(AlertKind::JobParked) => format!("a job of {connection} is parked: {reason}"),
        Some(AlertKind::RefreshInterrupted) => format!("a refresh of {connection} was interrupted: {reason}"),
        Some(AlertKind::SpillFault) => format!("tokens are less safe than they should be: {reason}"),
        _ => format!("{} of {}: {reason}", of.kind, of.subject),
    }
}

/// The command that helps, or that tells more.
pub fn next_action(alert: &Alert) -> Option<String> {
    let of = &alert.of;
    let (name, stream) = (of.connection_name.as_deref(), of.stream.as_deref());
    let grant = || GrantKind::parse(alert.grant_kind.as_deref()?);
    let kind = AlertKind::parse(&of.kind)?;
    if let Some(standstill) = Standstill::of_alert(kind) {
        let owner = Owner { provider: of.provider.as_deref()?, connection: name?, grant: grant()? };
        return Some(standstill.remedy(owner, stream?));
    }
    match kind {
        AlertKind::NeedsReauth => Some(remedy::reconnect(of.provider.as_deref()?, name?, grant()?)),
        AlertKind::ConfigurationFault | AlertKind::SpillFault => Some("fieldmirror doctor".to_owned()),
        AlertKind::JobParked => Some(format!("fieldmirror jobs retry {}", of.job_id?)),
        AlertKind::TokenUnusable | AlertKind::RefreshInterrupted => {
            Some(format!("fieldmirror why {}", name?))
        }
        _ => Some(format!("fieldmirror why {} {}", name?, stream?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-26T{text}Z").parse().unwrap()
    }

    /// The cells behind a kind in a table of a document.
    fn row(document: &'static str, kind: &str) -> Vec<&'static str> {
        let start = format!("| `{kind}` | ");
        let rows: Vec<_> = document.lines().filter_map(|line| line.strip_prefix(&start)).collect();
        let [row] = rows.as_slice() else { panic!("{kind}: {rows:?}") };
        row.trim_end_matches(" |").split(" | ").collect()
    }

    #[test]
    fn the_documents_know_every_kind_and_what_to_do() {
        let (alerts, operations) =
            (include_str!("../../../docs/ALERTS.md"), include_str!("../../../docs/OPERATIONS.md"));
        for kind in AlertKind::ALL.map(AlertKind::as_str) {
            let told = row(alerts, kind);
            assert_eq!((told.len(), told[0]), (2, severity(kind)), "{kind}");
            let [remedy] = row(operations, kind)[..] else { panic!("{kind}: not one remedy") };
            assert!(remedy.split_whitespace().count() >= 8, "{kind}: {remedy}");
            assert!(
                ["`fieldmirror ", "`daemon."].iter().any(|next| remedy.contains(next)),
                "{kind}: {remedy}"
            );
        }
        let chapter = alerts.split("## The kinds").nth(1).expect("a chapter of the kinds");
        let told = chapter.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(told, AlertKind::ALL.len(), "a kind that there is not");
    }

    #[test]
    fn the_keys_of_the_contract() {
        let mut alert = Alert { opened_at: at("08:00:00"), ..Alert::example(AlertKind::NeedsReauth) };
        let mut expected = json!({
            "version": 1, "alert_id": "5", "state": "firing", "kind": "needs_reauth", "severity": "critical",
            "summary": "connection `acme` (hubspot) needs a new authorization: the grant was revoked",
            "reason": "the grant was revoked", "connection": "acme", "connection_id": 7, "provider": "hubspot",
            "stream": null, "job_id": null, "opened_at": "2026-11-26T08:00:00Z", "resolved_at": null,
            "sent_at": "2026-11-26T08:00:05Z", "host": "h",
            "next_action": "fieldmirror enqueue --reconnect acme",
        });
        assert_eq!(object(&alert, "h", at("08:00:05")), expected);
        alert.fired_at = Some(at("08:00:01"));
        expected["state"] = json!("still_firing");
        assert_eq!(object(&alert, "h", at("08:00:05")), expected);
        alert.resolved_at = Some(at("08:00:04"));
        for (key, value) in [
            ("state", json!("resolved")),
            ("resolved_at", json!("2026-11-26T08:00:04Z")),
            ("next_action", Value::Null),
        ] {
            expected[key] = value;
        }
        assert_eq!(object(&alert, "h", at("08:00:05")), expected);
    }

    #[test]
    fn the_documentation_names_every_key_and_kind() {
        let page = include_str!("../../../docs/ALERTS.md");
        let object = object(&Alert::example(AlertKind::JobParked), "h", at("08:00:00"));
        let keys = object.as_object().unwrap().keys().map(String::as_str);
        for word in keys.chain(AlertKind::ALL.map(AlertKind::as_str)) {
            assert!(page.contains(&format!("`{word}`")), "`{word}` is not in docs/ALERTS.md");
        }
    }

    #[test]
    fn every_kind_says_what_to_do() {
        for kind in AlertKind::ALL {
            let mut alert = Alert::example(kind);
            alert.of.stream = Some("tickets".into());
            alert.of.job_id = Some(12);
            let next = next_action(&alert).expect("a command");
            assert!(next.starts_with("fieldmirror "), "{kind:?}: {next}");
            assert!(summary(&alert.of).ends_with("the grant was revoked"), "{kind:?}");
        }
        let mut key = Alert::example(AlertKind::NeedsReauth);
        key.grant_kind = Some("bearer_token".into());
        let next = "fieldmirror enqueue --reconnect acme --secret bearer_token=@FILE";
        assert_eq!(next_action(&key).as_deref(), Some(next));
    }
}
