//! Refreshes: one at a time, none lost, and no grant condemned before its time.

use std::time::Duration;

use chrono::TimeDelta;
use diesel::sql_types::Text;
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::queue::{self, ClaimLimits};
use fieldmirror::db::refresh_attempts::{self, Exclusion, Refresher};
use fieldmirror::db::requests::{RequestKind, RequestOutcome};
use fieldmirror::db::tokens::Renewed;
use fieldmirror::db::{PgConnection, rows, tokens};
use fieldmirror::domain::failure::FailureKind;
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::time::Clock as _;
use fieldmirror::http::deadline::Deadline;
use fieldmirror::jobs;
use serde_json::json;
use uuid::Uuid;

use super::fake::{Answer, Rotation, bad_refresh_token};
use super::rig::Rig;
use super::stage::start_again;

/// Of a daemon that has no folder of spills.
const REACH: (Option<Uuid>, Duration) = (None, Duration::ZERO);
const LIFE: TimeDelta = TimeDelta::seconds(1800);

async fn open_attempts(rig: &Rig) -> i64 {
    rig.count("SELECT count(*) AS value FROM fieldmirror.refresh_attempts").await
}

#[tokio::test]
async fn a_token_is_renewed_when_its_time_has_come() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    assert_eq!(rig.auth.refresh(id, Why::Due).await, Ok(Refreshed::Renewed));
    assert_eq!(rig.fake.count("refresh_token"), 0, "not due");
    rig.clock.shift(TimeDelta::minutes(25));
    let now = rig.clock.now();
    assert_eq!(rig.db(move |conn| tokens::due(conn, &["hubspot".to_owned()], now, 10, REACH)).await, [id]);
    jobs::refresh_token::run(&rig.auth, id).await.expect("the job runs");
    let token = rig.token(id).await;
    assert_eq!((token.generation, token.failures), (2, 0));
    assert_eq!(rig.fake.asked()[1]["refresh_token"], "SECRET-RT-1");
    assert_eq!(rig.auth.access_token(id).await.expect("a token").credentials[0].1.expose(), "SECRET-AT-2");
    assert_eq!(open_attempts(&rig).await, 0);
    assert_eq!(rig.db(move |conn| tokens::due(conn, &["hubspot".to_owned()], now, 10, REACH)).await, []);
}

#[tokio::test]
async fn no_request_leaves_with_a_token_that_is_about_to_expire() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    // Half a minute is kept: twice that, and less than that, by more than a slow machine takes.
    rig.clock.shift(LIFE - TimeDelta::seconds(60));
    assert_eq!(rig.auth.access_token(id).await.expect("a token").generation, 1);
    rig.clock.shift(TimeDelta::seconds(35));
    assert_eq!(rig.auth.access_token(id).await.expect("a token").generation, 2);
}

#[tokio::test]
async fn two_daemons_make_one_exchange() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.hold();
    rig.clock.shift(LIFE);
    let (one, other) = (rig.auth.clone(), rig.another_daemon());
    let let_go = async {
        rig.fake.until_asked("refresh_token", 1).await;
        rig.fake.let_go();
    };
    let (a, b, c, ()) =
        tokio::join!(one.access_token(id), other.access_token(id), other.access_token(id), let_go);
    for access in [a, b, c] {
        assert_eq!(access.expect("a token").credentials[0].1.expose(), "SECRET-AT-2");
    }
    assert_eq!(rig.fake.count("refresh_token"), 1);
}

#[tokio::test]
async fn a_token_that_the_provider_refuses_is_replaced_once() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let access = rig.auth.access_token(id).await.expect("a token");
    let (one, other) = (rig.auth.clone(), rig.another_daemon());
    let (a, b) = tokio::join!(one.replace(id, &access), other.replace(id, &access));
    for access in [a, b] {
        assert_eq!(access.expect("a token").credentials[0].1.expose(), "SECRET-AT-2");
    }
    assert_eq!(rig.fake.count("refresh_token"), 1);
    assert_eq!(rig.auth.access_token(id).await.expect("a token").generation, 2);
}

#[tokio::test]
async fn a_result_that_was_overtaken_is_dropped() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.hold();
    let auth = rig.auth.clone();
    let refresh = tokio::spawn(async move { auth.refresh(id, Why::Asked).await });
    rig.fake.until_asked("refresh_token", 1).await;
    rig.execute("UPDATE fieldmirror.tokens SET generation = 7").await;
    rig.fake.let_go();
    assert_eq!(refresh.await.expect("no panic"), Ok(Refreshed::Renewed));
    let token = rig.token(id).await;
    assert_eq!(token.generation, 7);
    assert_eq!(open_attempts(&rig).await, 0);
    assert_eq!(rig.auth.access_token(id).await.expect("a token").credentials[0].1.expose(), "SECRET-AT-1");
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_once_more_with_the_old_token() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.then([Answer::Lost]);
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    let used: Vec<_> =
        rig.fake.asked().iter().filter_map(|form| form.get("refresh_token").cloned()).collect();
    assert_eq!(used, ["SECRET-RT-1", "SECRET-RT-1"]);
    assert_eq!(rig.token(id).await.generation, 2);

    rig.fake.then([Answer::Lost, Answer::Lost]);
    let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("twice lost is lost");
    assert_eq!(failure.kind, FailureKind::Transient);
    assert_eq!(rig.fake.count("refresh_token"), 4);
    let token = rig.token(id).await;
    assert_eq!((token.generation, token.failures), (2, 1));
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
}

#[tokio::test]
async fn a_reply_without_refresh_token_or_life_keeps_what_we_have() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.then([
        Answer::Grant(json!({"refresh_token": null, "expires_in": null, "scopes": null})),
        Answer::Grant(json!({"expires_in": 0})),
    ]);
    let sent_at = rig.clock.now();
    rig.auth.refresh(id, Why::Asked).await.expect("it works");
    let token = rig.token(id).await;
    assert_eq!(token.expires_at, None, "unknown");
    assert_eq!(token.scopes, ["oauth", "tickets"]);
    let due = token.refresh_due_at.expect("scheduled all the same");
    assert!(due > sent_at + TimeDelta::minutes(20) && due < sent_at + TimeDelta::minutes(30), "{due}");
    rig.clock.shift(TimeDelta::days(2));
    assert_eq!(rig.auth.access_token(id).await.expect("never expired").generation, 2);
    rig.auth.refresh(id, Why::Due).await.expect("it works");
    assert_eq!(rig.fake.asked()[2]["refresh_token"], "SECRET-RT-1", "the old one stays good");
    assert_eq!(rig.token(id).await.expires_at, None, "0 is unknown, too");
}

#[tokio::test]
async fn what_does_not_kill_a_grant() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    for (answers, kind) in [
        (vec![Answer::Throttle(1)], "throttled"),
        (vec![Answer::Status(500, json!("oops"))], "transient"),
        (vec![Answer::Status(400, json!({"status": "error", "message": "SECRET-RT-1 is odd"}))], "transient"),
        (vec![Answer::Status(200, json!({"nothing": true}))], "transient"),
        (
            vec![Answer::Status(
                401,
                json!({"error": "invalid_client", "error_description": "SECRET-CLIENT?"}),
            )],
            "misconfigured",
        ),
    ] {
        // What is "sent, and no use" is tried twice.
        let twice = answers.iter().chain(&answers).cloned();
        let before = rig.fake.count("refresh_token");
        rig.fake.then(twice);
        let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("it fails");
        assert_eq!(failure.kind.label(), kind, "{failure}");
        assert!(!failure.message.contains("SECRET"), "{failure}");
        if rig.fake.count("refresh_token") == before + 1 {
            // The second of the scripted answers is still there: use it up.
            let _ = rig.auth.refresh(id, Why::Asked).await.expect_err("it fails again");
        }
        assert_eq!(rig.connection(id).await.state, ConnectionState::Connected, "{kind}");
        assert_eq!(open_attempts(&rig).await, 0);
        assert_eq!(rig.auth.access_token(id).await.expect("still valid").generation, 1);
    }
    assert!(rig.token(id).await.failures >= 5);
    // An endpoint that is out of order does not acquit the client that it has refused.
    let refused = "SELECT count(*) AS value FROM fieldmirror.tokens WHERE failure_kind = 'misconfigured'";
    assert_eq!(rig.count(refused).await, 1);
    let before = rig.token(id).await;
    rig.fake.then([Answer::Status(503, json!("oops")), Answer::Status(503, json!("oops"))]);
    let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("it fails");
    assert_eq!(failure.kind, FailureKind::Transient, "{failure}");
    assert_eq!(rig.count(refused).await, 1);
    let token = rig.token(id).await;
    assert_eq!((token.failures, token.last_error), (before.failures + 1, before.last_error));
    rig.auth.refresh(id, Why::Asked).await.expect("it works again");
    assert_eq!(rig.count(refused).await, 0);
    let token = rig.token(id).await;
    assert_eq!((token.failures, token.last_error), (0, None));
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn a_failure_has_its_pause_whoever_is_in_a_hurry() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.clock.shift(LIFE);
    rig.fake.then([Answer::Status(400, json!({"message": "odd"}))]);
    assert_eq!(rig.auth.access_token(id).await.expect_err("no token").kind, FailureKind::Transient);
    for _ in 0..3 {
        let failure = rig.auth.access_token(id).await.expect_err("not yet");
        assert_eq!(failure.kind, FailureKind::Transient);
    }
    assert_eq!(rig.fake.count("refresh_token"), 1);
    rig.clock.shift(TimeDelta::minutes(16));
    let access = rig.auth.access_token(id).await.expect("a token");
    assert_eq!(access.generation, 2);
    // It has not run out, but the API refuses it.
    rig.fake.then([Answer::Status(400, json!({"message": "odd"}))]);
    rig.auth.replace(id, &access).await.expect_err("no other token");
    let failure = rig.auth.replace(id, &access).await.expect_err("not yet");
    assert!(failure.message.contains("could not be replaced"), "{failure}");
}

/// What was traded for it is spent: it is kept, and the API tells whose it is.
#[tokio::test]
async fn a_reply_that_names_another_account_costs_no_grant() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    let of_another = || Answer::Grant(json!({"hub_id": 99}));
    rig.fake.then([of_another(), of_another()]);
    rig.fake.refuse_details(Some(403));
    let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("whose it is is not known");
    assert_eq!(failure.kind, FailureKind::ProviderChanged, "{failure}");
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    rig.fake.refuse_details(None);
    rig.fake.be_account(99);
    let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("the API says the same");
    assert_eq!(failure.kind, FailureKind::NeedsReauth, "{failure}");
    let connection = rig.connection(id).await;
    assert_eq!(connection.state, ConnectionState::NeedsReauth);
    assert!(connection.reason.expect("it says why").contains("tokens of account 99, not of account 1"));
    assert_eq!(rig.token(id).await.generation, 1, "it is not used");
    // A mistake of theirs, which is over.
    rig.fake.be_account(1);
    start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    let used: Vec<_> =
        rig.fake.asked().iter().filter_map(|form| form.get("refresh_token").cloned()).collect();
    assert_eq!(used, ["SECRET-RT-1", "SECRET-RT-2", "SECRET-RT-3"]);
    assert_eq!(rig.fake.replays(), 0);
}

/// Nor does it cost the grant of the other account, and what our own token is good for is found out.
#[tokio::test]
async fn tokens_of_another_account_are_not_traded_in_the_place_of_our_own() {
    for (rotation, is_ours_too, restarts) in [
        (Rotation::Never, true, false),
        (Rotation::Never, true, true),
        (Rotation::Never, false, false),
        (Rotation::Strict, true, false),
        (Rotation::Strict, true, true),
    ] {
        let cell = format!("{rotation:?}, ours too: {is_ours_too}, restarts: {restarts}");
        let rig = Rig::new().await;
        rig.fake.rotate(rotation);
        rig.fake.tell_accounts_apart();
        let id = rig.connected("acme", 1).await;
        let other = rig.connected("other", 99).await;
        if !is_ours_too {
            rig.auth.disconnect(other, false).await.expect("it ends");
        }
        let theirs = json!({"hub_id": 99, "access_token": "SECRET-AT-2", "refresh_token": "SECRET-RT-2"});
        rig.fake.then([Answer::Grant(theirs)]);
        let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("the API says the same");
        assert_eq!(failure.kind, FailureKind::NeedsReauth, "{cell}: {failure}");
        let asked = rig.fake.count("refresh_token");
        for _ in 0..2 {
            let left = rig.auth.replay().await.expect("the folder and the database go along");
            rig.auth.follow_up(left).await;
        }
        assert_eq!(rig.fake.count("refresh_token"), asked, "{cell}: it is not tried every minute");
        let auth = if restarts { start_again(&rig, rig.state.path()).await } else { rig.auth.clone() };
        let refreshed = auth.refresh(id, Why::Asked).await;
        let is_good = rotation == Rotation::Never;
        assert_eq!(refreshed.is_ok(), is_good, "{cell}: {refreshed:?}");
        let expected = if is_good { ConnectionState::Connected } else { ConnectionState::NeedsReauth };
        assert_eq!(rig.connection(id).await.state, expected, "{cell}");
        let asked = rig.fake.asked();
        let mut used = asked.iter().filter_map(|form| form.get("refresh_token"));
        assert!(used.all(|token| token == "SECRET-RT-1"), "{cell}: {asked:?}");
        if is_ours_too {
            assert_eq!(auth.refresh(other, Why::Asked).await, Ok(Refreshed::Renewed), "{cell}");
        }
    }
}

/// That a provider gives none is known of each, and is nobody's fault.
#[tokio::test]
async fn grants_without_a_refresh_token_end_each_by_itself() {
    let rig = Rig::new().await;
    let mut ids = Vec::new();
    for (account, name) in (1..).zip(["a", "b", "c", "d"]) {
        rig.fake.then([Answer::Grant(json!({"refresh_token": null}))]);
        ids.push(rig.connected(name, account).await);
    }
    rig.clock.shift(LIFE);
    for id in ids {
        let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("it cannot be renewed");
        assert_eq!(failure.kind, FailureKind::NeedsReauth, "{failure}");
        assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);
    }
    assert_eq!(rig.fake.count("refresh_token"), 0);
    assert!(!rig.conditions().await.contains(&"configuration_fault provider hubspot".to_owned()));
}

#[tokio::test]
async fn a_dead_grant_needs_a_new_consent_and_is_tried_again() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.then([bad_refresh_token()]);
    let request = rig.request(id, RequestKind::Refresh, json!({}), None).await;
    let failure = jobs::refresh_token::run(&rig.auth, id).await.expect_err("dead");
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    assert_eq!(rig.request_row(request).await.outcome, Some(RequestOutcome::Failed));
    let connection = rig.connection(id).await;
    assert_eq!(connection.state, ConnectionState::NeedsReauth);
    assert!(connection.reason.expect("it says why").contains("BAD_REFRESH_TOKEN"));
    let token = rig.token(id).await;
    assert!(token.refresh_sealed.is_some() && token.rejected_at.is_some());
    assert_eq!(rig.auth.access_token(id).await.expect("good for its life").generation, 1);

    rig.clock.shift(TimeDelta::hours(5));
    let failure = rig.auth.access_token(id).await.expect_err("expired by now");
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    assert_eq!(rig.fake.count("refresh_token"), 1, "not before six hours have passed");
    rig.clock.shift(TimeDelta::hours(2));
    jobs::refresh_token::run(&rig.auth, id).await.expect("it has come back to life");
    let connection = rig.connection(id).await;
    assert_eq!((connection.state, connection.reason), (ConnectionState::Connected, None));
    assert_eq!(rig.token(id).await.rejected_at, None);
}

#[tokio::test]
async fn many_deaths_at_once_are_not_believed() {
    let rig = Rig::new().await;
    let mut ids: Vec<ConnectionId> = Vec::new();
    for (account, name) in (1..).zip(["a", "b", "c", "d"]) {
        ids.push(rig.connected(name, account).await);
    }
    for id in &ids {
        rig.fake.then([bad_refresh_token()]);
        let _ = rig.auth.refresh(*id, Why::Asked).await.expect_err("refused");
    }
    for id in &ids {
        let connection = rig.connection(*id).await;
        assert_eq!(connection.state, ConnectionState::Connected, "{}", connection.name);
    }
    rig.fake.then([bad_refresh_token()]);
    let failure = rig.auth.refresh(ids[0], Why::Asked).await.expect_err("refused again");
    assert_eq!(failure.kind, FailureKind::Misconfigured);
    assert_eq!(rig.connection(ids[0]).await.state, ConnectionState::Connected);
    // The fault is mended.
    for id in &ids {
        rig.auth.refresh(*id, Why::Asked).await.expect("it works again");
        let connection = rig.connection(*id).await;
        assert_eq!((connection.state, connection.reason), (ConnectionState::Connected, None));
    }
}

fn invalid_client() -> Answer {
    Answer::Status(401, json!({"error": "invalid_client", "error_description": "no such client"}))
}

#[tokio::test]
async fn a_client_that_is_refused_is_stopped_and_nobody_dies() {
    let rig = Rig::new().await;
    let ids = [rig.connected("a", 1).await, rig.connected("b", 2).await, rig.connected("c", 3).await];
    rig.clock.shift(TimeDelta::minutes(29));
    let due = async |id: ConnectionId| match rig.auth.refresh(id, Why::Due).await {
        Ok(_) => "done",
        Err(failure) => failure.kind.label(),
    };
    rig.fake.then([invalid_client()]);
    assert_eq!(
        [due(ids[0]).await, due(ids[1]).await, due(ids[2]).await],
        ["misconfigured", "throttled", "throttled"]
    );
    assert_eq!(rig.fake.count("refresh_token"), 1, "the others are not tried");
    // When its time has come, one account finds out whether it is mended.
    rig.execute("UPDATE fieldmirror.rate_budget SET taken_until = now() WHERE bucket = 'stopped'").await;
    rig.fake.then([invalid_client()]);
    assert_eq!([due(ids[1]).await, due(ids[2]).await], ["misconfigured", "throttled"]);
    assert_eq!(rig.fake.count("refresh_token"), 2);
    for id in ids {
        assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    }
    assert_eq!(rig.conditions().await, ["configuration_fault provider hubspot"]);
    // An admin who has mended it asks for one, and all others are due at once.
    rig.auth.refresh(ids[0], Why::Asked).await.expect("it works again");
    assert_eq!([due(ids[1]).await, due(ids[2]).await], ["done", "done"]);
    assert_eq!(rig.fake.count("refresh_token"), 5);
    assert_eq!(rig.conditions().await, [] as [String; 0]);
}

#[tokio::test]
async fn deaths_that_are_not_believed_stop_a_silent_client() {
    let rig = Rig::new().await;
    let mut ids = Vec::new();
    for (account, name) in (1..).zip(["a", "b", "c", "d"]) {
        ids.push(rig.connected(name, account).await);
    }
    for id in &ids[..3] {
        rig.fake.then([bad_refresh_token()]);
        let _ = rig.auth.refresh(*id, Why::Asked).await.expect_err("refused");
    }
    rig.clock.shift(TimeDelta::minutes(29));
    let asked = rig.fake.count("refresh_token");
    let failure = rig.auth.refresh(ids[3], Why::Due).await.expect_err("it is not tried");
    assert_eq!((failure.kind.label(), rig.fake.count("refresh_token")), ("throttled", asked));
    assert_eq!(rig.conditions().await, ["configuration_fault provider hubspot"]);
}

/// What requests are told of grants counts as what token endpoints say.
#[tokio::test]
async fn many_grants_that_end_at_once_are_not_believed() {
    let rig = Rig::new().await;
    let mut ids = Vec::new();
    for (account, name) in (1..).zip(["a", "b", "c", "d"]) {
        ids.push(rig.connected(name, account).await);
    }
    for id in &ids[..3] {
        let _ = rig.auth.ended(*id, 1, "the app was removed").await;
    }
    for id in &ids {
        assert_eq!(rig.connection(*id).await.state, ConnectionState::Connected);
    }
    assert_eq!(rig.conditions().await, ["configuration_fault provider hubspot"]);
    rig.clock.shift(TimeDelta::minutes(29));
    let failure = rig.auth.refresh(ids[3], Why::Due).await.expect_err("it is not tried");
    assert_eq!((failure.kind.label(), rig.fake.count("refresh_token")), ("throttled", 0));
}

/// Daemons' clocks may differ from the database's, and from each other.
#[tokio::test]
async fn deaths_are_counted_by_one_clock() {
    for hours in [-2, 2] {
        let rig = Rig::new().await;
        let mut ids = Vec::new();
        for (account, name) in (1..).zip(["a", "b", "c", "well"]) {
            ids.push(rig.connected(name, account).await);
        }
        rig.clock.shift(TimeDelta::hours(hours));
        for id in &ids[..3] {
            rig.fake.then([bad_refresh_token()]);
            let _ = rig.auth.refresh(*id, Why::Asked).await.expect_err("refused");
        }
        for id in &ids[..3] {
            assert_eq!(rig.connection(*id).await.state, ConnectionState::Connected, "{hours}");
        }
        // Others fare well an hour later: what is still dead then is dead.
        rig.execute("UPDATE fieldmirror.tokens SET rejected_at = rejected_at - interval '1 hour'").await;
        rig.auth.refresh(ids[3], Why::Asked).await.expect("it works");
        rig.fake.then([bad_refresh_token()]);
        let failure = rig.auth.refresh(ids[0], Why::Asked).await.expect_err("refused");
        assert_eq!(failure.kind, FailureKind::NeedsReauth, "{hours}");
    }
}

/// The answer to a commit may be lost: what is there already is not taken for somebody else's.
#[tokio::test]
async fn a_renewal_that_is_there_already_is_known() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let token = rig.token(id).await;
    let attempt = refresh_attempts::RefreshAttempt {
        connection: id,
        grant_id: token.grant_id,
        generation: 1,
        daemon: Uuid::new_v4(),
        started_at: rig.clock.now(),
    };
    let renewal = |sent_s: i64| tokens::Renewal {
        generation: 2,
        replaces: token.issued_at,
        begun_at: None,
        access_sealed: vec![1],
        refresh_sealed: None,
        scopes: Vec::new(),
        issued_at: token.issued_at + TimeDelta::seconds(sent_s),
        expires_at: token.expires_at,
        refresh_due_at: token.issued_at,
    };
    let (ours, another) = (renewal(1), renewal(2));
    let found = rig
        .db(move |conn| {
            let first = tokens::renew(conn, &attempt, &ours)?;
            let again = tokens::renew(conn, &attempt, &ours)?;
            let known = tokens::is_renewed(conn, &attempt, &ours)?;
            Ok((first, again, known, tokens::is_renewed(conn, &attempt, &another)?))
        })
        .await;
    assert_eq!(found, (Renewed::Done, Renewed::Overtaken, true, false));
}

/// On a server that does not wait for its disk, these do: the attempt that keeps others out, and tokens.
const WATCHED: &str = "
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$;
    SET synchronous_commit = off;
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
    CREATE TABLE public.seen (what text, durable text);
    CREATE FUNCTION public.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.seen VALUES (TG_TABLE_NAME || ' ' || TG_OP, current_setting('synchronous_commit'));
        RETURN new; END $$;
    CREATE TRIGGER see BEFORE INSERT OR UPDATE ON fieldmirror.tokens FOR EACH ROW EXECUTE FUNCTION public.see();
    CREATE TRIGGER see BEFORE INSERT ON fieldmirror.refresh_attempts FOR EACH ROW EXECUTE FUNCTION public.see();";

#[tokio::test]
async fn attempts_and_tokens_wait_for_the_disk() {
    let rig = Rig::new().await;
    rig.batch(WATCHED).await;
    let id = rig.connected("acme", 1).await;
    rig.auth.refresh(id, Why::Asked).await.expect("it works");
    let seen = "SELECT string_agg(DISTINCT what || ' ' || durable, ', ' ORDER BY what || ' ' || durable) AS value FROM public.seen";
    let seen = rig.db(move |conn| rows::value::<Text, String, _>(conn, diesel::sql_query(seen))).await;
    assert_eq!(seen, "refresh_attempts INSERT on, tokens INSERT on, tokens UPDATE on");
}

const ENDANGERED: &str = "
    INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, account_id)
    SELECT name, 'hubspot', 'authorization_code', 'connected', name FROM unnest(ARRAY[
        'dead', 'key', 'soon', 'long_ago', 'later', 'just_now', 'unknown']) name;
    INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, access_sealed, issued_at, expires_at, refresh_due_at,
        rejected_at)
    SELECT id, gen_random_uuid(), CASE name WHEN 'key' THEN 'api_key' ELSE 'oauth' END, '', now(),
        now() + CASE name WHEN 'soon' THEN interval '1 min' WHEN 'long_ago' THEN interval '-3 d'
            WHEN 'later' THEN interval '3 d' WHEN 'just_now' THEN interval '-1 s' WHEN 'dead' THEN interval '-9 d' END,
        now() - CASE name WHEN 'later' THEN interval '8 d' WHEN 'unknown' THEN interval '10 s' ELSE interval '9 d' END,
        CASE name WHEN 'dead' THEN now() END
    FROM fieldmirror.connections;";

#[tokio::test]
async fn the_most_endangered_are_refreshed_first() {
    let rig = Rig::new().await;
    rig.batch(ENDANGERED).await;
    let now = rig.clock.now();
    let due = move |conn: &mut PgConnection| tokens::due(conn, &["hubspot".to_owned()], now, 10, REACH);
    let names = async |ids: Vec<ConnectionId>| {
        let mut names = Vec::new();
        for id in ids {
            names.push(rig.connection(id).await.name);
        }
        names
    };
    let expected = ["long_ago", "unknown", "just_now", "soon", "later", "key", "dead"];
    let found = rig.db(due).await;
    assert_eq!(names(found.clone()).await, expected);
    // Jobs are handed out in that order too, and those who have one make room for the next.
    rig.db(move |conn| queue::ensure_many(conn, "refresh_token", &found)).await;
    assert_eq!(rig.db(due).await, []);
    let (limits, owner) = (ClaimLimits { lease: Duration::from_mins(1), crashes_max: 3 }, Uuid::new_v4());
    let mut claimed = Vec::new();
    for _ in expected {
        let claim = rig.db(move |conn| queue::claim(conn, "refresh_token", owner, &[], 1, limits)).await;
        claimed.extend(claim.jobs.into_iter().filter_map(|job| job.connection));
    }
    assert_eq!(names(claimed).await, expected);
}

/// Sixty of a provider that takes its time, and one of another, whose token lives longer.
const CROWDED: &str = "
    INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, account_id)
    SELECT 'c-' || n, CASE n WHEN 0 THEN 'jobber' ELSE 'hubspot' END, 'authorization_code', 'connected', n
    FROM generate_series(0, 60) n;
    INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, access_sealed, issued_at, expires_at, refresh_due_at)
    SELECT id, gen_random_uuid(), 'oauth', '', now(), now() + account_id::int * interval '-1 s' + interval '5 min', now()
    FROM fieldmirror.connections;";

#[tokio::test]
async fn a_provider_that_does_not_answer_is_in_no_other_s_way() {
    let rig = Rig::new().await;
    rig.batch(CROWDED).await;
    let now = rig.clock.now();
    let providers = ["hubspot".to_owned(), "jobber".to_owned()];
    let due = {
        let providers = providers.clone();
        move |conn: &mut PgConnection| tokens::due(conn, &providers, now, 500, REACH)
    };
    let found = rig.db(due.clone()).await;
    assert_eq!(found.len(), 41);
    assert_eq!(rig.connection(found[40]).await.provider, "jobber", "it is the least endangered");
    assert_eq!(rig.connection(found[0]).await.name, "c-60");
    rig.db(move |conn| queue::ensure_many(conn, "refresh_token", &found)).await;
    assert_eq!(rig.db(due.clone()).await, [], "their jobs wait");
    // Those that have had their turn make room, also where they are to be tried again later.
    rig.execute(
        "UPDATE fieldmirror.jobs SET run_at = now() + interval '1 min' WHERE connection_id IN (\
             SELECT id FROM fieldmirror.connections WHERE account_id::int > 50)",
    )
    .await;
    let found = rig.db(due).await;
    assert_eq!(found.len(), 10);
    assert_eq!(rig.connection(found[0]).await.name, "c-20");
}

#[tokio::test]
async fn the_attempt_of_a_dead_daemon_is_respected_until_its_time_has_passed() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let dead = Uuid::new_v4();
    rig.db(move |conn| {
        let token = tokens::load(conn, id)?.expect("a token");
        let by = Refresher { daemon: dead, host: "gone", spills: None };
        let exclusion = Exclusion { blocked_for: Duration::from_mins(1), spill_grace: Duration::ZERO };
        refresh_attempts::open(conn, id, (token.grant_id, token.generation), &by, exclusion)
    })
    .await
    .expect("nobody else is at it");
    let now = rig.auth.refresh(id, Why::Asked).await.expect("no failure");
    assert!(matches!(now, Refreshed::Busy { wait } if wait > Duration::from_secs(50)), "{now:?}");
    assert_eq!(rig.fake.count("refresh_token"), 0);
    let clock = rig.clock.now() + TimeDelta::hours(1);
    assert_eq!(
        rig.db(move |conn| tokens::due(conn, &["hubspot".to_owned()], clock, 10, REACH)).await,
        [],
        "not due while it is open"
    );
    // The database's clock is set back: it blocks no longer than it could have from now.
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = blocked_until + interval '1 hour'")
        .await;
    let listed = rig.db(move |conn| tokens::due(conn, &["hubspot".to_owned()], clock, 10, REACH)).await;
    assert_eq!(listed, [id], "somebody has to look at it");
    let now = rig.auth.refresh(id, Why::Asked).await.expect("no failure");
    assert!(matches!(now, Refreshed::Busy { wait } if wait <= Duration::from_mins(1)), "{now:?}");
    let listed = rig.db(move |conn| tokens::due(conn, &["hubspot".to_owned()], clock, 10, REACH)).await;
    assert_eq!((listed, rig.fake.count("refresh_token")), (vec![], 0), "its daemon may live");
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = blocked_until - interval '1 min'")
        .await;
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!(rig.fake.count("refresh_token"), 1);
    assert_eq!(open_attempts(&rig).await, 0);
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_stop_a_refresh() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.hold();
    tokio::select! {
        ended = rig.auth.refresh(id, Why::Asked) => panic!("{ended:?}"),
        () = rig.fake.until_asked("refresh_token", 1) => {}
    }
    rig.fake.let_go();
    rig.auth.drained(Deadline::after(Duration::from_mins(1))).await;
    assert_eq!(rig.token(id).await.generation, 2);
}

#[tokio::test]
async fn no_exchange_without_a_database_that_takes_writes() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.execute("ALTER TABLE fieldmirror.refresh_attempts RENAME TO away").await;
    let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("no attempt, no exchange");
    assert_eq!(failure.kind, FailureKind::OurBug);
    assert_eq!(rig.fake.count("refresh_token"), 0);
}
