//! The snapshot as JSON. The keys are a contract.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{health, table};
use crate::daemon::alerts::message;
use crate::db::alerts::Alert;
use crate::db::status::{ConnectionStatus, Snapshot, StreamStatus};
use crate::db::tokens;

pub(super) fn of(snapshot: &Snapshot) -> Value {
    let daemons = snapshot.daemons.iter().map(|daemon| {
        json!({
            "id": daemon.id, "host": daemon.host, "version": daemon.version,
            "last_seen_at": daemon.last_seen_at, "live": daemon.live,
        })
    });
    let connections = snapshot.connections.iter().map(|status| connection(snapshot, status));
    json!({
        "as_of": snapshot.as_of,
        "healthy": health::healthy(snapshot),
        "daemons": daemons.collect::<Vec<_>>(),
        "connections": connections.collect::<Vec<_>>(),
        "alerts": snapshot.alerts.iter().map(alert).collect::<Vec<_>>(),
        "alert_program": snapshot.hook.as_ref().map(|trouble| json!({
            "waiting": trouble.waiting, "last_error": trouble.last_error, "failed_at": trouble.failed_at,
        })),
    })
}

fn alert(alert: &Alert) -> Value {
    let of = &alert.of;
    json!({
        "id": alert.id.to_string(),
        "kind": of.kind,
        "connection": of.connection_name,
        "connection_id": of.connection_id,
        "provider": of.provider,
        "stream": of.stream,
        "job_id": of.job_id.map(|id| id.to_string()),
        "reason": of.reason,
        "opened_at": alert.opened_at,
        "told_at": alert.fired_at,
        "next_action": message::next_action(alert),
    })
}

fn connection(snapshot: &Snapshot, status: &ConnectionStatus) -> Value {
    let connection = &status.connection;
    json!({
        "id": connection.id,
        "name": connection.name,
        "provider": connection.provider,
        "grant": connection.grant.as_str(),
        "state": connection.state.as_str(),
        "reason": connection.reason,
        "account_id": connection.account_id,
        "account_name": connection.account_name,
        "connected_at": connection.connected_at,
        "next_action": health::next_action(status),
        "notices": status.notices,
        "token": token(snapshot, status),
        "streams": status.streams.iter().map(|one| stream(snapshot.as_of, status, one)).collect::<Vec<_>>(),
    })
}

fn token(snapshot: &Snapshot, status: &ConnectionStatus) -> Value {
    let token = status.token.as_ref();
    json!({
        "kind": token.map_or(tokens::kind(status.connection.grant), |token| &token.kind),
        "state": health::token_state(token, snapshot.as_of),
        "generation": token.map(|token| token.generation),
        "expires_at": token.and_then(|token| token.expires_at),
        "refresh_due_at": token.and_then(|token| token.refresh_due_at),
        "last_refresh_at": token.and_then(|token| token.last_refresh_at),
        "failures": token.map_or(0, |token| token.failures),
        "last_error": token.and_then(|token| token.last_error.as_deref()),
    })
}

fn stream(as_of: DateTime<Utc>, status: &ConnectionStatus, stream: &StreamStatus) -> Value {
    json!({
        "name": stream.stream,
        "table": table(status, stream),
        "state": stream.state,
        "complete_to": stream.complete_to,
        "swept_to": stream.swept_to,
        "backfill_done": stream.backfill_done,
        "backfill_progress": stream.backfill_progress,
        "forecast_at": stream.forecast_at(as_of),
        "rows": stream.rows,
        "deleted_rows": stream.deleted_rows,
        "stalled_reason": stream.stalled_reason,
        "last_error": stream.last_error,
        "last_success_at": stream.last_success_at,
        "next_due_at": stream.next_due_at,
        "verified_at": stream.verified_at,
        "drift": stream.drift,
    })
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::db::alerts::AlertKind;
    use crate::db::connections::ConnectionState;
    use crate::db::status::TokenStatus;

    #[test]
    fn the_keys_of_the_contract() {
        let mut status = samples::connection(ConnectionState::Connected);
        status.token =
            Some(TokenStatus { expires_at: Some(samples::at("09:00:00")), ..TokenStatus::example("oauth") });
        status.streams = vec![samples::stream("idle")];
        status.notices = [("api_version".to_owned(), "an older one is served".to_owned())].into();
        let expected = json!({
            "as_of": "2026-11-21T08:00:00Z", "healthy": true,
            "daemons": [{
                "id": "00000000-0000-0000-0000-000000000000", "host": "h", "version": "0.1.0",
                "last_seen_at": "2026-11-21T07:59:58Z", "live": true,
            }],
            "connections": [{
                "id": 7, "name": "acme", "provider": "hubspot", "grant": "authorization_code", "state": "connected",
                "reason": null, "account_id": "1", "account_name": null, "connected_at": null, "next_action": null,
                "notices": {"api_version": "an older one is served"}, "token": {
                    "kind": "oauth", "state": "valid", "generation": 1, "expires_at": "2026-11-21T09:00:00Z",
                    "refresh_due_at": null, "last_refresh_at": null, "failures": 0, "last_error": null,
                },
                "streams": [{
                    "name": "tickets", "table": "mirror.hubspot_tickets", "state": "idle", "complete_to": null,
                    "swept_to": null, "backfill_done": false, "backfill_progress": null, "forecast_at": null, "rows": 0,
                    "deleted_rows": 0, "stalled_reason": null, "last_error": null, "last_success_at": null,
                    "next_due_at": null, "verified_at": null, "drift": 0,
                }],
            }],
            "alerts": [{
                "id": "5", "kind": "needs_reauth", "connection": "acme", "connection_id": 7, "provider": "hubspot",
                "stream": null, "job_id": null, "reason": "the grant was revoked", "opened_at": "1970-01-01T00:00:00Z",
                "told_at": null, "next_action": "fieldmirror enqueue --reconnect acme",
            }],
            "alert_program": null,
        });
        let mut snapshot = samples::snapshot(vec![status]);
        snapshot.alerts = vec![Alert::example(AlertKind::NeedsReauth)];
        assert_eq!(of(&snapshot), expected);
    }

    #[test]
    fn a_first_read_has_a_forecast() {
        let mut status = samples::connection(ConnectionState::Connected);
        let began = Some(samples::at("07:00:00"));
        let half = StreamStatus {
            backfill_progress: Some(0.5),
            backfill_started_at: began,
            ..samples::stream("backfilling")
        };
        status.streams = vec![half.clone(), StreamStatus { backfill_done: true, ..half }];
        let object = of(&samples::snapshot(vec![status]));
        let forecast = |place: usize| object["connections"][0]["streams"][place]["forecast_at"].clone();
        assert_eq!((forecast(0), forecast(1)), (json!("2026-11-21T09:00:00Z"), Value::Null));
    }

    #[test]
    fn without_a_token_the_keys_are_there() {
        let snapshot = samples::snapshot(vec![samples::connection(ConnectionState::AwaitingConsent)]);
        let token = &of(&snapshot)["connections"][0]["token"];
        let expected = json!({
            "kind": "oauth", "state": "none", "generation": null, "expires_at": null, "refresh_due_at": null,
            "last_refresh_at": null, "failures": 0, "last_error": null,
        });
        assert_eq!(token, &expected);
    }
}
