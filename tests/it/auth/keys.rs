//! Grants that need no consent.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use fieldmirror::auth::between::Step;
use fieldmirror::auth::doubt::Doubt;
use fieldmirror::auth::proof::Turnstile;
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::requests::{RequestKind, RequestOutcome};
use fieldmirror::db::tokens;
use fieldmirror::domain::failure::{Failure, FailureKind};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::domain::step::{Reply, Request};
use fieldmirror::domain::time::Clock as _;
use fieldmirror::jobs;
use futures_util::future::BoxFuture;
use serde_json::json;
use uuid::Uuid;

use super::fake::Answer;
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

/// Who has handed secrets over does not have to do so again because the token endpoint had no time.
#[tokio::test]
async fn client_credentials_are_tried_again_where_the_endpoint_has_no_time() {
    let rig = Rig::new().await;
    let grant = GrantKind::ClientCredentials;
    let params = json!({"tenant_id": "77", "client_id": "C"});
    let id = rig.pending_at("servicetitan", "acme", grant, params).await;
    let secrets = r#"{"client_secret":"SECRET-CLIENT","app_key":"SECRET-APP"}"#;
    let ask = || rig.request(id, RequestKind::Connect, json!({}), Some(secrets.to_owned()));
    // It names a time for which nobody waits.
    rig.fake.then([Answer::Throttle(3_600)]);
    let request = ask().await;
    jobs::connect::run(&rig.auth, id).await.expect("the job runs");
    assert_eq!(rig.request_row(request).await.outcome, Some(RequestOutcome::Failed));
    assert_eq!(rig.fake.asked().len(), 1);
    rig.execute("DELETE FROM fieldmirror.rate_budget").await;
    rig.fake.then([Answer::Throttle(1), Answer::Status(503, json!("busy"))]);
    let request = ask().await;
    jobs::connect::run(&rig.auth, id).await.expect("the job runs");
    let row = rig.request_row(request).await;
    assert_eq!(row.outcome, Some(RequestOutcome::Done), "{:?}", row.message);
    assert_eq!(rig.fake.count("client_credentials"), 4);
    assert_eq!(rig.connection(id).await.account_id.as_deref(), Some("77"));
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

/// An API that refuses everybody is out of order, or refuses our app; what it says of one account among others is believed.
#[tokio::test]
async fn keys_that_are_refused_together_are_not_condemned() {
    let rig = Rig::new().await;
    let mut ids = Vec::new();
    for (account, name) in (1..).zip(["a", "b", "c", "d"]) {
        rig.fake.be_account(account);
        let id = rig.pending(name, GrantKind::BearerToken).await;
        let secret = format!(r#"{{"bearer_token":"SECRET-KEY-{name}"}}"#);
        rig.request(id, RequestKind::Connect, json!({}), Some(secret)).await;
        jobs::connect::run(&rig.auth, id).await.expect("the job runs");
        ids.push(id);
    }
    rig.execute(
        "INSERT INTO fieldmirror.stream_state (connection_id, stream, last_success_at)
         SELECT id, 'tickets', now() FROM fieldmirror.connections WHERE name = 'd'",
    )
    .await;
    rig.fake.refuse_details(Some(401));
    for id in &ids[..3] {
        let access = rig.auth.access_token(*id).await.expect("a key");
        rig.auth.replace(*id, &access).await.expect_err("refused");
    }
    for id in &ids[..3] {
        assert_eq!(rig.connection(*id).await.state, ConnectionState::Connected, "it may be the provider");
    }
    assert_eq!(rig.conditions().await.len(), 3, "each is told: {:?}", rig.conditions().await);
    let kind = |failure: Failure| failure.kind;
    // Another account goes on well after that, and these three are still refused: so it is they.
    // (The times of walks are a daemon's: one whose clock is ahead proves nothing.)
    rig.execute("UPDATE fieldmirror.stream_state SET last_success_at = now() + interval '1 day'").await;
    assert_eq!(rig.auth.refresh(ids[0], Why::Asked).await.map_err(kind), Err(FailureKind::Misconfigured));
    rig.execute("UPDATE fieldmirror.tokens SET refused_at = refused_at - interval '40 minutes'").await;
    rig.clock.shift(TimeDelta::minutes(40));
    for id in &ids[..3] {
        assert_eq!(rig.auth.refresh(*id, Why::Due).await.map_err(kind), Err(FailureKind::NeedsReauth));
        assert_eq!(rig.connection(*id).await.state, ConnectionState::NeedsReauth);
    }
    rig.fake.refuse_details(None);
    rig.fake.be_account(1);
    rig.clock.shift(TimeDelta::hours(7));
    rig.auth.refresh(ids[0], Why::Due).await.expect("it works again");
    assert_eq!(rig.connection(ids[0]).await.state, ConnectionState::Connected);
}

/// Counts what would leave, and what came back as too many.
#[derive(Default)]
struct Gate {
    passed: AtomicUsize,
    refused: AtomicUsize,
    shut: AtomicBool,
}

impl Turnstile for Gate {
    fn pass<'a>(&'a self, _: &'a Request) -> BoxFuture<'a, Result<(), Failure>> {
        self.passed.fetch_add(1, Ordering::Relaxed);
        let shut = self.shut.load(Ordering::Relaxed);
        Box::pin(async move { if shut { Err(Failure::transient("shut")) } else { Ok(()) } })
    }

    fn answered(&self, _: &Request, _: &Reply) {}

    fn refused(&self, _: &'static str, wait: Option<Duration>) -> Duration {
        self.refused.fetch_add(1, Ordering::Relaxed);
        wait.unwrap_or_default()
    }
}

/// Whoever asks because of a 401 keeps to the account's limits, however often the question is repeated.
#[tokio::test]
async fn a_doubt_waits_for_the_limits_of_its_account() {
    let rig = Rig::new().await;
    let (id, _) = hand_over(&rig, r#"{"bearer_token":"SECRET-KEY"}"#).await;
    let access = rig.auth.access_token(id).await.expect("a key");
    let gate = Gate::default();
    assert_eq!(rig.auth.doubt(id, &access, &gate).await, Ok(Doubt::Unfounded));
    assert_eq!(gate.passed.load(Ordering::Relaxed), 1);
    rig.fake.refuse_details(Some(429));
    let failure = rig.auth.doubt(id, &access, &gate).await.expect_err("no answer");
    assert!(matches!(failure.kind, FailureKind::Throttled { .. }), "{failure}");
    let (passed, refused) = (gate.passed.load(Ordering::Relaxed), gate.refused.load(Ordering::Relaxed));
    assert!(refused > 0 && passed == 1 + refused, "{passed} left, {refused} were too many");
    // Where nothing may leave, nothing does, and nothing is found out.
    gate.shut.store(true, Ordering::Relaxed);
    rig.fake.refuse_details(Some(401));
    assert_eq!(rig.auth.doubt(id, &access, &gate).await.expect_err("shut").kind, FailureKind::Transient);
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
}

/// A 401 is asked about before it counts, and a token that another has replaced meanwhile is none to ask about.
#[tokio::test]
async fn a_refusal_is_about_the_request_or_about_the_credential() {
    let rig = Rig::new().await;
    let (id, _) = hand_over(&rig, r#"{"bearer_token":"SECRET-KEY"}"#).await;
    let access = rig.auth.access_token(id).await.expect("a key");
    assert_eq!(rig.auth.doubt(id, &access, &Gate::default()).await, Ok(Doubt::Unfounded));
    rig.fake.refuse_details(Some(503));
    assert_eq!(
        rig.auth.doubt(id, &access, &Gate::default()).await.expect_err("no answer").kind,
        FailureKind::Transient
    );
    rig.fake.refuse_details(Some(403));
    assert_eq!(rig.auth.doubt(id, &access, &Gate::default()).await, Ok(Doubt::Unfounded), "it was let in");
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    rig.fake.refuse_details(Some(401));
    let gate = Gate::default();
    let (one, other) = tokio::join!(rig.auth.doubt(id, &access, &gate), rig.auth.doubt(id, &access, &gate));
    for failure in [one.expect_err("refused"), other.expect_err("refused")] {
        assert_eq!(failure.kind, FailureKind::NeedsReauth, "{failure}");
    }
    assert_eq!(rig.token(id).await.failures, 1, "told once");
    assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);

    // HubSpot calls a 401 no sign of anything: there only the token endpoint ends a grant.
    rig.fake.refuse_details(None);
    let oauth = rig.connected("oauth", 7).await;
    let old = rig.auth.access_token(oauth).await.expect("a token");
    rig.fake.refuse_details(Some(401));
    assert_eq!(
        rig.auth.doubt(oauth, &old, &Gate::default()).await.expect_err("refused").kind,
        FailureKind::Transient
    );
    assert_eq!(rig.connection(oauth).await.state, ConnectionState::Connected);
    rig.auth.refresh(oauth, Why::Asked).await.expect("the token endpoint is well");
    assert_eq!(rig.auth.doubt(oauth, &old, &Gate::default()).await, Ok(Doubt::Replaced));
}

/// Where the API has refused a token, a new one from the token endpoint revives nothing by itself.
#[tokio::test]
async fn a_refreshed_token_is_shown_to_the_api_that_refused_the_last() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let generation = rig.token(id).await.generation;
    rig.auth.ended(id, generation, "the app was disconnected").await;
    assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);
    rig.fake.refuse_details(Some(401));
    let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("still refused");
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);
    let token = rig.token(id).await;
    assert_eq!((token.generation, token.failures), (2, 2), "it is kept all the same");
    rig.fake.refuse_details(Some(503));
    assert_eq!(rig.auth.refresh(id, Why::Asked).await.expect_err("unknown").kind, FailureKind::Transient);
    let token = rig.token(id).await;
    let due = token.refresh_due_at.expect("soon");
    assert!(token.rejected_at.is_some() && due < rig.clock.now() + TimeDelta::minutes(16), "{due}");
    rig.fake.refuse_details(None);
    rig.auth.refresh(id, Why::Asked).await.expect("taken");
    let connection = rig.connection(id).await;
    assert_eq!((connection.state, connection.reason), (ConnectionState::Connected, None));
    let token = rig.token(id).await;
    assert_eq!((token.generation, token.failures, token.rejected_at, token.refused_at), (4, 0, None, None));
    rig.assert_no_secret_in_texts().await;
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
