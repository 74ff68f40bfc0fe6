//! Grants that need no consent.

use std::time::Duration;

use chrono::TimeDelta;
use fieldmirror::auth::between::Step;
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::requests::{RequestKind, RequestOutcome};
use fieldmirror::db::tokens;
use fieldmirror::domain::failure::FailureKind;
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::domain::time::Clock as _;
use fieldmirror::jobs;
use serde_json::json;
use uuid::Uuid;

use super::rig::{Host, Rig};
use super::stage::{dies_at, let_attempts_pass};

async fn hand_over(rig: &Rig, secrets: &str) -> (ConnectionId, Uuid) {
    let id = rig.pending("acme", GrantKind::BearerToken).await;
    let request = rig.request(id, RequestKind::Connect, json!({}), Some(secrets.to_owned())).await;
    jobs::connect::run(&rig.auth, id).await.expect("the job runs");
    (id, request)
}

#[tokio::test]
async fn a_key_counts_once_it_is_verified() {
    let rig = Rig::new().await;
    let (id, request) = hand_over(&rig, r#"{"bearer_token":"SECRET-KEY"}"#).await;
    let row = rig.request_row(request).await;
    assert_eq!(row.outcome, Some(RequestOutcome::Done), "{:?}", row.message);
    assert_eq!(row.sealed, None);
    let connection = rig.connection(id).await;
    assert_eq!(
        (connection.state, connection.account_id.as_deref()),
        (ConnectionState::Connected, Some("4711"))
    );
    rig.clock.shift(TimeDelta::days(400));
    let access = rig.auth.access_token(id).await.expect("keys do not expire");
    assert_eq!((access.credentials[0].1.expose(), access.expires_at), ("SECRET-KEY", None));
    assert_eq!(rig.fake.asked().len(), 0, "no token endpoint");
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn keys_that_are_no_good_do_not_count() {
    let rig = Rig::new().await;
    for secrets in [r#"{"bearer_token":"WRONG"}"#, "{}", r#"{"bearer_token":""}"#, "SECRET, not JSON", "[]"] {
        let (id, request) = hand_over(&rig, secrets).await;
        let row = rig.request_row(request).await;
        // The provider denies the first; the others are no keys at all.
        let expected =
            if secrets.contains("WRONG") { RequestOutcome::Denied } else { RequestOutcome::Refused };
        assert_eq!(row.outcome, Some(expected), "{secrets}");
        assert_eq!(rig.connection(id).await.state, ConnectionState::Failed, "{secrets}");
        assert_eq!(rig.maybe_token(id).await, None, "{secrets}");
    }
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn a_key_is_probed_and_may_come_back() {
    let rig = Rig::new().await;
    let (id, _) = hand_over(&rig, r#"{"bearer_token":"SECRET-KEY"}"#).await;
    let access = rig.auth.access_token(id).await.expect("a token");
    rig.fake.refuse_details(Some(401));
    let failure = rig.auth.replace(id, &access).await.expect_err("refused");
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);
    rig.fake.refuse_details(None);
    rig.clock.shift(TimeDelta::hours(7));
    jobs::refresh_token::run(&rig.auth, id).await.expect("it works again");
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    // A refusal that is about the request: the key itself is fine.
    assert_eq!(rig.auth.replace(id, &access).await.expect("the same").generation, 1);
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
}

#[tokio::test]
async fn a_key_is_probed_every_day() {
    let rig = Rig::new().await;
    let (id, _) = hand_over(&rig, r#"{"bearer_token":"SECRET-KEY"}"#).await;
    for day in 1..=3 {
        let due = |hours: i64| {
            let now = rig.clock.now() + TimeDelta::hours(hours);
            rig.db(move |conn| tokens::due(conn, &["hubspot".to_owned()], now, 10, (None, Duration::ZERO)))
        };
        assert_eq!((due(23).await, due(25).await), (vec![], vec![id]), "day {day}");
        rig.clock.shift(TimeDelta::hours(25));
        jobs::refresh_token::run(&rig.auth, id).await.expect("it works");
        let probes =
            rig.count("SELECT count(*) AS value FROM fieldmirror.audit_log WHERE event = 'probe'").await;
        assert_eq!(probes, day, "one a day");
    }
    // One that cannot be opened counts as a failure, and is in nobody's way.
    rig.execute("UPDATE fieldmirror.tokens SET access_sealed = '\\x00'").await;
    rig.clock.shift(TimeDelta::hours(25));
    let failure = jobs::refresh_token::run(&rig.auth, id).await.expect_err("it does not open");
    assert_eq!(failure.kind, FailureKind::OurBug);
    assert_eq!(rig.token(id).await.failures, 1);
    assert_eq!(rig.count("SELECT count(*) AS value FROM fieldmirror.refresh_attempts").await, 0);
}

#[tokio::test]
async fn a_key_that_opens_another_account_is_not_used() {
    let rig = Rig::new().await;
    let (id, _) = hand_over(&rig, r#"{"bearer_token":"SECRET-KEY"}"#).await;
    rig.fake.be_account(99);
    rig.clock.shift(TimeDelta::hours(25));
    let failure = jobs::refresh_token::run(&rig.auth, id).await.expect_err("another account");
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);
}

/// There is no reply of a probe that could be on another machine's disk.
#[tokio::test]
async fn a_probe_that_was_interrupted_elsewhere_is_not_waited_for() {
    let rig = Rig::new().await;
    let (id, _) = hand_over(&rig, r#"{"bearer_token":"SECRET-KEY"}"#).await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let dying = rig.daemon_at(Host { name: "gone", state: elsewhere.path(), between: dies_at(Step::Open) });
    dying.refresh(id, Why::Asked).await.expect_err("it died");
    let_attempts_pass(&rig).await;
    assert_eq!(rig.conditions().await, [] as [String; 0], "nobody has to start that machine");
    let due = rig.clock.now() + TimeDelta::hours(25);
    let reach = (rig.auth.spills.id(), Duration::from_mins(10));
    assert_eq!(rig.db(move |conn| tokens::due(conn, &["hubspot".to_owned()], due, 10, reach)).await, [id]);
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
}
