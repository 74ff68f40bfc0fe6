//! What is ill, why, and what helps. Pure: it judges a snapshot by the snapshot's own clock.

use chrono::{DateTime, Utc};

use crate::auth::ACCOUNT_TAKEN;
use crate::daemon::alerts::standstill::{Owner, Standstill};
use crate::daemon::alerts::{message, remedy};
use crate::db::alerts::{Alert, AlertKind, HookTrouble};
use crate::db::connections::{Connection, ConnectionState};
use crate::db::status::{ConnectionStatus, Snapshot, StreamStatus, TokenStatus};
use crate::providers;

/// Failures in a row after which a stream that backs off counts as ill: what passes by itself has passed by then.
const FAILURES_BORNE: i32 = 3;
/// The longest wait for a provider's quota that is an ordinary one, in seconds: none of a window of minutes is longer.
const QUOTA_WAIT_BORNE_S: f64 = 30.0 * 60.0;

/// One thing that is ill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Ailment {
    /// A sentence without a full stop.
    pub(in crate::cli) reason: String,
    /// The command to run.
    pub(in crate::cli) next: Option<String>,
}

pub(super) fn healthy(snapshot: &Snapshot) -> bool {
    has_daemon(snapshot)
        && snapshot.connections.iter().all(|connection| ailments(connection).is_empty())
        && general(snapshot).is_empty()
}

pub(super) fn has_daemon(snapshot: &Snapshot) -> bool {
    snapshot.daemons.iter().any(|daemon| daemon.live)
}

/// What is ill beyond the states of connections and streams: what daemons found, and the program that should be told.
pub(super) fn general(snapshot: &Snapshot) -> Vec<Ailment> {
    let untold = |alert: &&Alert| {
        let kind = AlertKind::parse(&alert.of.kind);
        matches!(
            kind,
            Some(
                AlertKind::ConfigurationFault
                    | AlertKind::TokenUnusable
                    | AlertKind::JobParked
                    | AlertKind::StreamStale
            )
        )
    };
    let alerts = snapshot.alerts.iter().filter(untold);
    let mut found: Vec<Ailment> = alerts
        .map(|alert| Ailment { reason: message::summary(&alert.of), next: message::next_action(alert) })
        .collect();
    found.extend(snapshot.hook.as_ref().map(|trouble| {
        let HookTrouble { waiting, last_error, .. } = trouble;
        let reason = format!("the alert program fails, {waiting} untold: {last_error}");
        Ailment { reason, next: Some("fieldmirror doctor".to_owned()) }
    }));
    found
}

/// What is ill with a connection, the gravest first. Nothing of one that was disconnected on purpose is.
pub(in crate::cli) fn ailments(status: &ConnectionStatus) -> Vec<Ailment> {
    let connection = &status.connection;
    let mut found = Vec::new();
    match connection.state {
        ConnectionState::NeedsReauth | ConnectionState::Failed => {
            let reason = connection.reason.as_deref().unwrap_or("no reason is on record");
            let reason = format!("{}: {reason}{}", words(connection.state), way_out(connection));
            found.push(Ailment { reason, next: Some(mended(connection)) });
        }
        ConnectionState::Disconnected => return found,
        ConnectionState::AwaitingConsent | ConnectionState::Verifying | ConnectionState::Connected => {}
    }
    if let Some(token) = status.token.as_ref().filter(|token| token.rejected_at.is_some())
        && found.is_empty()
    {
        let said = token.last_error.as_deref().unwrap_or("the provider gave no reason");
        found
            .push(Ailment { reason: format!("the token is rejected: {said}"), next: Some(anew(connection)) });
    }
    found.extend(status.streams.iter().filter_map(|stream| stream_ailment(connection, stream)));
    found.extend(quota_waits(status, true).map(|reason| {
        let next = Some(format!("fieldmirror why {}", connection.name));
        Ailment { reason, next }
    }));
    found
}

/// Streams that the provider's limits keep from being read: for so long that somebody should know, or for a little.
pub(super) fn quota_waits(status: &ConnectionStatus, long: bool) -> Option<String> {
    let waits = |stream: &&StreamStatus| {
        stream.paused_s.is_some_and(|left| (left > QUOTA_WAIT_BORNE_S) == long)
            && stream_ailment(&status.connection, stream).is_none()
    };
    let waiting: Vec<&StreamStatus> = status.streams.iter().filter(waits).collect();
    let until = waiting.iter().filter_map(|stream| stream.paused_until).max()?;
    let names: Vec<String> = waiting.iter().map(|stream| format!("`{}`", stream.stream)).collect();
    let verb = if names.len() == 1 { "waits" } else { "wait" };
    let provider = &status.connection.provider;
    let title = providers::provider(provider).map_or(provider.as_str(), |known| known.spec().title);
    let said = waiting.iter().find_map(|stream| stream.last_error.as_deref());
    let said = said.map(|said| format!(": {said}")).unwrap_or_default();
    let until = until.format("%Y-%m-%d %H:%M:%S UTC");
    Some(format!("{} {verb} for {title}'s quota until {until}{said}", names.join(", ")))
}

fn stream_ailment(connection: &Connection, stream: &StreamStatus) -> Option<Ailment> {
    let StreamStatus { stream: name, stalled_reason, last_error, failures, .. } = stream;
    let said = [stalled_reason, last_error].into_iter().flatten().next();
    let said = said.map_or("no reason is on record", String::as_str);
    // What is only behind is read, and nothing is ill about it before it lags: an alert says so then.
    if let Some(standstill) = standstill(stream).filter(|standstill| *standstill != Standstill::Behind) {
        let owner =
            Owner { provider: &connection.provider, connection: &connection.name, grant: connection.grant };
        let reason = format!("stream `{name}` {}", standstill.says(said));
        return Some(Ailment { reason, next: Some(standstill.remedy(owner, name)) });
    }
    let ill = stream.state == "backing_off" && *failures > FAILURES_BORNE;
    ill.then(|| Ailment {
        reason: format!("stream `{name}` failed {failures} times in a row: {said}"),
        next: Some(format!("fieldmirror why {} {name}", connection.name)),
    })
}

/// What keeps its watermark where it is, whether or not a walk of it is under way.
fn standstill(stream: &StreamStatus) -> Option<Standstill> {
    let by_state = || Some(stream.state.as_str()).filter(|state| matches!(*state, "stalled" | "forbidden"));
    stream.stalled_kind.as_deref().or_else(by_state).map(Standstill::of)
}

fn words(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::NeedsReauth => "needs a new authorization",
        ConnectionState::Failed => "could not be connected",
        other => other.as_str(),
    }
}

/// What an admin does next; `None` when nothing is to be done.
pub(super) fn next_action(status: &ConnectionStatus) -> Option<String> {
    match status.connection.state {
        // The link that was given out may still be good; this makes another one.
        ConnectionState::AwaitingConsent => Some(anew(&status.connection)),
        _ => ailments(status).into_iter().find_map(|ailment| ailment.next),
    }
}

/// [`mended`], but for a connection that was ended on purpose.
pub(in crate::cli) fn anew_unless_over(connection: &Connection) -> Option<String> {
    (connection.state != ConnectionState::Disconnected).then(|| mended(connection))
}

/// [`anew`], but where no other credentials would help.
fn mended(connection: &Connection) -> String {
    if is_taken(connection) { remedy::disconnect(&connection.name) } else { anew(connection) }
}

/// An attempt whose account another connection mirrors.
fn is_taken(connection: &Connection) -> bool {
    let said = connection.reason.as_deref().is_some_and(|reason| reason.contains(ACCOUNT_TAKEN));
    never_worked(connection) && said
}

fn never_worked(connection: &Connection) -> bool {
    connection.state == ConnectionState::Failed && connection.account_id.is_none()
}

/// An attempt that is not made again stays ill until it is given up: how, where the next command is another one.
pub(in crate::cli) fn way_out(connection: &Connection) -> String {
    if !never_worked(connection) || is_taken(connection) {
        return String::new();
    }
    format!(" (`{}` gives it up)", remedy::disconnect(&connection.name))
}

/// The command for a new consent, or new credentials.
fn anew(connection: &Connection) -> String {
    let Connection { name, provider, grant, .. } = connection;
    if !connection.state.is_pending() || connection.account_id.is_some() {
        return remedy::reconnect(provider, name, *grant);
    }
    let spec = providers::provider(provider).map(providers::Provider::spec);
    let mut words = vec![format!("fieldmirror enqueue --connect {provider} --name {name}")];
    if spec.and_then(|spec| spec.grants.first()).is_none_or(|default| default.kind != *grant) {
        words.push(format!("--grant {}", grant.as_str()));
    }
    let params = connection.params.iter();
    words.extend(params.map(|(param, value)| format!("--param {param}={}", shell_word(value))));
    words.extend(remedy::secrets(provider, *grant));
    words.join(" ")
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+@:/".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// How a token stands: a word of the contract.
pub(super) fn token_state(token: Option<&TokenStatus>, now: DateTime<Utc>) -> &'static str {
    let Some(token) = token else { return "none" };
    let passed = |moment: Option<DateTime<Utc>>| moment.is_some_and(|moment| moment <= now);
    let expires = matches!(token.kind.as_str(), "oauth" | "client_credentials");
    if token.rejected_at.is_some() {
        "rejected"
    } else if passed(token.expires_at) {
        "expired"
    } else if expires && token.expires_at.is_none() {
        "unknown"
    } else if expires && passed(token.refresh_due_at) {
        "expiring"
    } else {
        "valid"
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{at, connection, snapshot, stream};
    use super::*;
    use crate::auth::Ending;
    use crate::domain::ids::ConnectionId;
    use crate::domain::spec::GrantKind;

    #[test]
    fn tokens() {
        let now = at("08:00:00");
        let check =
            |token: TokenStatus, expected| assert_eq!(token_state(Some(&token), now), expected, "{token:?}");
        let oauth = || TokenStatus::example("oauth");
        let (past, future) = (Some(at("07:00:00")), Some(at("09:00:00")));
        assert_eq!(token_state(None, now), "none");
        check(oauth(), "unknown");
        check(TokenStatus::example("client_credentials"), "unknown");
        check(TokenStatus::example("api_key"), "valid");
        // A key's due date is that of its daily probe.
        check(TokenStatus { refresh_due_at: past, ..TokenStatus::example("bearer") }, "valid");
        check(TokenStatus { expires_at: future, refresh_due_at: future, ..oauth() }, "valid");
        check(TokenStatus { expires_at: future, refresh_due_at: past, ..oauth() }, "expiring");
        check(TokenStatus { expires_at: past, refresh_due_at: past, ..oauth() }, "expired");
        check(TokenStatus { expires_at: Some(now), ..oauth() }, "expired");
        check(TokenStatus { rejected_at: past, expires_at: future, ..oauth() }, "rejected");
    }

    #[test]
    fn connections_that_are_ill() {
        use ConnectionState as S;
        for (state, next) in [
            (S::Connected, None),
            (S::Verifying, None),
            (S::Disconnected, None),
            (S::NeedsReauth, Some("fieldmirror enqueue --reconnect acme")),
        ] {
            let status = connection(state);
            assert_eq!(next_action(&status).as_deref(), next, "{state:?}");
            assert_eq!(healthy(&snapshot(vec![status])), next.is_none(), "{state:?}");
        }
        let mut failed = connection(S::Failed);
        failed.connection.account_id = None;
        failed.connection.grant = GrantKind::BearerToken;
        let next = "fieldmirror enqueue --connect hubspot --name acme --grant bearer_token --secret bearer_token=@FILE";
        assert_eq!(next_action(&failed).as_deref(), Some(next));
        let says = |status: &ConnectionStatus| ailments(status).remove(0).reason;
        assert!(says(&failed).ends_with("(`fieldmirror enqueue --disconnect acme` gives it up)"));
        failed.connection.reason =
            Some(Ending::AccountTaken { by: "once".into(), title: "OnceHub" }.message());
        assert_eq!(next_action(&failed).as_deref(), Some("fieldmirror enqueue --disconnect acme"));
        assert!(says(&failed).ends_with("as `once`"), "{}", says(&failed));
        let mut awaiting = connection(S::AwaitingConsent);
        awaiting.connection.account_id = None;
        assert!(healthy(&snapshot(vec![awaiting.clone()])), "waiting for a person is not an illness");
        assert_eq!(
            next_action(&awaiting).as_deref(),
            Some("fieldmirror enqueue --connect hubspot --name acme")
        );
    }

    #[test]
    fn streams_that_are_ill() {
        let check = |state: &str, failures, ill: bool| {
            let mut status = connection(ConnectionState::Connected);
            status.streams = vec![StreamStatus { failures, ..stream(state) }];
            assert_eq!(!ailments(&status).is_empty(), ill, "{state} {failures}");
            status.connection.state = ConnectionState::Disconnected;
            assert!(ailments(&status).is_empty(), "{state} of a connection that was disconnected");
        };
        let mut failing = connection(ConnectionState::Connected);
        failing.streams = vec![StreamStatus { failures: 9, ..stream("backing_off") }];
        assert_eq!(next_action(&failing).as_deref(), Some("fieldmirror why acme tickets"));
        for state in ["pending", "backfilling", "idle", "syncing"] {
            check(state, 9, false);
        }
        check("stalled", 0, true);
        check("forbidden", 0, true);
        check("backing_off", FAILURES_BORNE, false);
        check("backing_off", FAILURES_BORNE + 1, true);
    }

    /// A day's quota that is used up leaves the mirror behind for hours; a wait of minutes is the usual pace.
    #[test]
    fn a_long_wait_for_quota_is_told() {
        let mut status = connection(ConnectionState::Connected);
        let paused = |name: &str, hours: f64| StreamStatus {
            stream: name.to_owned(),
            last_error: Some("waits for the provider's rate limit".into()),
            paused_until: Some(at("13:00:00")),
            paused_s: Some(hours * 3_600.0),
            ..stream("backing_off")
        };
        status.streams = vec![paused("owners", 5.0), paused("tickets", 5.0)];
        let said = "`owners`, `tickets` wait for HubSpot's quota until 2026-11-21 13:00:00 UTC: waits for the provider's \
                    rate limit";
        assert_eq!(ailments(&status).remove(0).reason, said);
        assert_eq!(next_action(&status).as_deref(), Some("fieldmirror why acme"));
        assert_eq!(quota_waits(&status, false), None);
        assert!(!healthy(&snapshot(vec![status.clone()])));
        status.streams = vec![paused("owners", 0.1)];
        assert_eq!(
            quota_waits(&status, false).as_deref(),
            Some(&*said.replace("`owners`, `tickets` wait", "`owners` waits"))
        );
        assert!(healthy(&snapshot(vec![status.clone()])));
        status.connection.state = ConnectionState::Disconnected;
        status.streams = vec![paused("owners", 5.0)];
        assert!(ailments(&status).is_empty());
    }

    #[test]
    fn alerts_and_a_program_that_fails() {
        let mut snapshot = snapshot(Vec::new());
        snapshot.alerts = vec![Alert::example(AlertKind::NeedsReauth)];
        assert_eq!(general(&snapshot), [], "its connection says so");
        snapshot.alerts = vec![Alert::example(AlertKind::ConfigurationFault)];
        assert_eq!(general(&snapshot)[0].next.as_deref(), Some("fieldmirror doctor"));
        let trouble =
            HookTrouble { waiting: 2, last_error: "it ended with 1".into(), failed_at: at("07:00:00") };
        snapshot.alerts.clear();
        snapshot.hook = Some(trouble);
        assert_eq!(general(&snapshot)[0].reason, "the alert program fails, 2 untold: it ended with 1");
        assert!(!healthy(&snapshot));
    }

    #[test]
    fn held_deletions_ask_for_a_person() {
        let mut status = connection(ConnectionState::Connected);
        let held = Some("held".to_owned());
        // A walk that is under way does not end it.
        status.streams = vec![StreamStatus { stalled_kind: held, ..stream("syncing") }];
        let next = "fieldmirror enqueue --resync acme --stream tickets --full --allow-mass-delete";
        assert_eq!(next_action(&status).as_deref(), Some(next));
    }

    #[test]
    fn a_rejected_token_is_told_once() {
        let token = TokenStatus { rejected_at: Some(at("07:00:00")), ..TokenStatus::example("oauth") };
        let mut status = connection(ConnectionState::Connected);
        status.token = Some(token);
        assert_eq!(ailments(&status).len(), 1);
        status.connection.state = ConnectionState::NeedsReauth;
        assert_eq!(ailments(&status).len(), 1);
    }

    #[test]
    fn without_a_daemon_nothing_is_healthy() {
        let mut snapshot = snapshot(Vec::new());
        assert!(healthy(&snapshot));
        snapshot.daemons[0].live = false;
        assert!(!healthy(&snapshot));
        snapshot.daemons.clear();
        assert!(!healthy(&snapshot));
    }

    #[test]
    fn commands_can_be_pasted() {
        let mut status = connection(ConnectionState::Failed);
        status.connection.id = ConnectionId(1);
        status.connection.account_id = None;
        status.connection.params =
            [("tenant_id", "7"), ("odd", "a b'c")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let next = next_action(&status).unwrap();
        assert!(next.contains("--param tenant_id=7") && next.contains(r"--param odd='a b'\''c'"), "{next}");
    }
}
