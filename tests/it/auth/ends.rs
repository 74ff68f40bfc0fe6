//! The end of a grant, and the budget that token endpoints share.

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use fieldmirror::auth::between::Step;
use fieldmirror::auth::disconnect::Revoked;
use fieldmirror::auth::refresh::Why;
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::rate_budget::{self, Lease};
use fieldmirror::db::requests::{RequestKind, RequestOutcome};
use fieldmirror::db::{daemons, vault_keys, vault_use};
use fieldmirror::domain::failure::FailureKind;
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::spec::BucketSpec;
use fieldmirror::jobs;
use serde_json::json;
use uuid::Uuid;

use super::rig::{Host, Rig};
use super::spill::spills;
use super::stage::dies_at;

#[tokio::test]
async fn a_disconnect_revokes_and_wipes() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.execute("INSERT INTO fieldmirror.stream_state (connection_id, stream, turn_epoch) SELECT id, 'tickets', 4 FROM fieldmirror.connections").await;
    let waiting = rig.request(id, RequestKind::Sync, json!({}), None).await;
    let request = rig.request(id, RequestKind::Disconnect, json!({}), None).await;
    jobs::disconnect::run(&rig.auth, id).await.expect("the job runs");
    assert_eq!(rig.request_row(request).await.outcome, Some(RequestOutcome::Done));
    assert_eq!(rig.request_row(waiting).await.outcome, Some(RequestOutcome::Superseded));
    let revoked = rig.fake.revoked();
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0]["token"], "SECRET-RT-1");
    let connection = rig.connection(id).await;
    assert_eq!((connection.state, connection.grant_id), (ConnectionState::Disconnected, None));
    assert_eq!(connection.account_id.as_deref(), Some("1"), "a reconnect must be to the same account");
    assert_eq!(rig.maybe_token(id).await, None);
    assert_eq!(rig.db(vault_use::counts).await, vault_use::Counts::new(), "nothing sealed is left");
    assert_eq!(rig.count("SELECT count(*) AS value FROM fieldmirror.refresh_attempts").await, 0);
    let bumped = "SELECT count(*) AS value FROM fieldmirror.stream_state WHERE turn_epoch > 4";
    assert_eq!(rig.count(bumped).await, 1, "turns are shut out");
    let failure = rig.auth.access_token(id).await.expect_err("no grant");
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    rig.auth.disconnect(id, false).await.expect("repeating it does no harm");
    assert_eq!(rig.fake.revoked().len(), 1);

    let asked = rig.ask_for(id).await;
    let learned = r#"UPDATE fieldmirror.connections SET facts = '{"learned.jobs": {"without": ["total"]}, "account": "1"}'"#;
    rig.execute(learned).await;
    assert_eq!(rig.connection(id).await.state, ConnectionState::Disconnected, "until the consent");
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    let kept = r#"SELECT count(*) AS value FROM fieldmirror.connections WHERE facts = '{"account": "1"}'"#;
    assert_eq!(rig.count(kept).await, 1, "another grant may see what this one could not");
    rig.assert_no_secret_in_texts().await;
}

/// The first try has been acted on, and its answer was lost: to the second the token is unknown.
#[tokio::test]
async fn a_token_that_is_unknown_once_it_was_revoked_is_revoked() {
    let rig = Rig::new().await;
    for (account, statuses, is_revoked) in [(1, vec![502, 400], true), (2, vec![400], false)] {
        let id = rig.connected(&format!("acme-{account}"), account).await;
        rig.fake.then_revoking(statuses);
        let revoked = rig.auth.disconnect(id, false).await.expect("it ends");
        assert_eq!(revoked == Revoked::Yes, is_revoked, "{revoked:?}");
    }
}

#[tokio::test]
async fn a_disconnect_waits_for_a_refresh_and_revokes_what_it_brought() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.hold();
    let auth = rig.auth.clone();
    let refresh = tokio::spawn(async move { auth.refresh(id, Why::Asked).await });
    rig.fake.until_asked("refresh_token", 1).await;
    let mut disconnecting = pin!(rig.auth.disconnect(id, false));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut disconnecting).await;
    assert!(early.is_err(), "{early:?}");
    rig.fake.let_go();
    disconnecting.await.expect("it ends");
    refresh.await.expect("no panic").expect("the refresh was let end");
    assert_eq!(rig.fake.revoked()[0]["token"], "SECRET-RT-2");
    assert_eq!(rig.maybe_token(id).await, None);
}

/// The database knows an older token only: revoking that one would leave the grant alive at the provider.
#[tokio::test]
async fn a_disconnect_revokes_what_is_kept_of_an_interrupted_refresh() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let mortal =
        rig.daemon_at(Host { name: "host", state: rig.state.path(), between: dies_at(Step::Spilled) });
    mortal.refresh(id, Why::Asked).await.expect_err("it died");
    assert_eq!(rig.token(id).await.generation, 1);
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp()").await;
    rig.auth.disconnect(id, false).await.expect("it ends");
    assert_eq!(rig.fake.revoked()[0]["token"], "SECRET-RT-2");
    assert_eq!(spills(rig.state.path()), Vec::<PathBuf>::new());
}

/// Beside the grant in force, and where there is none: the spill is gone afterwards, and with it the only way to revoke.
#[tokio::test]
async fn a_disconnect_revokes_a_consent_that_was_kept() {
    for is_connected in [true, false] {
        let rig = Rig::new().await;
        let id = if is_connected { rig.connected("acme", 1).await } else { rig.ask("acme").await.connection };
        let asked = rig.ask_for(id).await;
        let mortal =
            rig.daemon_at(Host { name: "host", state: rig.state.path(), between: dies_at(Step::Spilled) });
        rig.come_back_to(&mortal, &asked.authorize_url(), "code=C").await;
        rig.auth.replay().await.expect("the folder is looked at");
        let revoked = rig.auth.disconnect(id, false).await.expect("it ends");
        assert_eq!(revoked, Revoked::Yes);
        let tokens: Vec<_> = rig.fake.revoked().iter().map(|form| form["token"].clone()).collect();
        let expected: &[&str] = if is_connected { &["SECRET-RT-1", "SECRET-RT-2"] } else { &["SECRET-RT-1"] };
        assert_eq!(tokens, expected, "{is_connected}");
        assert_eq!(spills(rig.state.path()), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn a_disconnect_is_not_undone_by_a_consent_that_was_under_way() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let exchanged = rig.fake.count("authorization_code");
    let asked = rig.ask_for(id).await;
    rig.fake.hold();
    let url = asked.authorize_url();
    let (shown, ()) = tokio::join!(rig.come_back(&url, "code=C"), async {
        rig.fake.until_asked("authorization_code", exchanged + 1).await;
        rig.auth.disconnect(id, false).await.expect("it ends");
        rig.fake.let_go();
    });
    assert_eq!(shown.status, 400, "{}", shown.body);
    assert!(shown.body.contains("No longer in use"), "{}", shown.body);
    assert_eq!(rig.connection(id).await.state, ConnectionState::Disconnected);
    assert_eq!(rig.maybe_token(id).await, None);
}

#[tokio::test]
async fn a_purge_removes_rows_and_forgets_the_account() {
    let rig = Rig::new().await;
    let (id, other) = (rig.connected("acme", 1).await, rig.connected("other", 2).await);
    rig.execute(
        "INSERT INTO mirror.hubspot_tickets (connection_id, id, raw, first_seen_at, synced_at, content_hash) \
         SELECT id, 'x', '{}', now(), now(), '' FROM fieldmirror.connections",
    )
    .await;
    rig.auth.disconnect(id, false).await.expect("it ends");
    assert_eq!(rig.count("SELECT count(*) AS value FROM mirror.hubspot_tickets").await, 2, "rows are kept");
    // What an analyst has built on the account's own view is no reason to keep anything.
    assert_eq!(id, ConnectionId(1));
    rig.execute("CREATE VIEW mirror.hubspot_tickets_c1 AS SELECT id FROM mirror.hubspot_tickets").await;
    rig.execute("CREATE VIEW public.report AS SELECT id FROM mirror.hubspot_tickets_c1").await;
    rig.auth.disconnect(id, true).await.expect("it ends");
    assert_eq!(rig.count("SELECT count(*) AS value FROM mirror.hubspot_tickets").await, 1);
    assert_eq!(rig.connection(id).await.account_id, None);
    assert_eq!(rig.connection(other).await.state, ConnectionState::Connected);
}

#[tokio::test]
async fn a_budget_is_shared_by_all_who_ask() {
    let rig = Rig::new().await;
    let bucket = BucketSpec::requests("token", 10, Duration::from_secs(90));
    let began = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..4 {
        let lease = rig
            .db(move |conn| rate_budget::lease(conn, "x/client", &bucket, 1, Duration::from_secs(20)))
            .await;
        waits.push(lease);
    }
    // One at once, then one every ten seconds, and nothing that is more than twenty seconds away. What the test takes itself
    // is waited for no more.
    let near = |lease: &Lease, seconds: f64| match lease {
        Lease::Granted { wait } => {
            let early = seconds - wait.as_secs_f64();
            early > -5.0 && early < 5.0 + began.elapsed().as_secs_f64()
        }
        Lease::Full { .. } => false,
    };
    assert!(near(&waits[0], 0.0) && near(&waits[1], 10.0) && near(&waits[2], 20.0), "{waits:?}");
    assert!(matches!(waits[3], Lease::Full { wait } if wait > Duration::from_secs(20)), "{waits:?}");
    // The clock was set back, and what is taken with it: by nobody is an hour waited for that never was taken.
    rig.execute(
        "UPDATE fieldmirror.rate_budget SET taken_until = taken_until + interval '1 hour', \
         touched_at = touched_at + interval '1 hour'",
    )
    .await;
    let after =
        rig.db(move |conn| rate_budget::lease(conn, "x/client", &bucket, 1, Duration::from_mins(1))).await;
    assert!(near(&after, 30.0), "{after:?}");
    let free = rig.db(move |conn| rate_budget::lease(conn, "x/other", &bucket, 1, Duration::ZERO)).await;
    assert!(near(&free, 0.0), "another scope");
    rig.db(move |conn| rate_budget::refused(conn, "x/other", &bucket, Duration::from_mins(1))).await;
    let held =
        rig.db(move |conn| rate_budget::lease(conn, "x/other", &bucket, 1, Duration::from_secs(5))).await;
    assert!(matches!(held, Lease::Full { wait } if wait > Duration::from_secs(30)), "{held:?}");
}

#[tokio::test]
async fn daemons_and_keys_are_on_record() {
    let rig = Rig::new().await;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    for id in [one, other, one] {
        rig.db(move |conn| daemons::beat(conn, id, "host", 1, "0.1.0")).await;
    }
    rig.execute(
        "UPDATE fieldmirror.daemons SET last_seen_at = now() - interval '1 hour' WHERE host = 'host'",
    )
    .await;
    rig.db(move |conn| daemons::beat(conn, one, "host", 1, "0.1.0")).await;
    let live = rig.db(|conn| daemons::live(conn, Duration::from_secs(30))).await;
    assert_eq!(live.iter().map(|daemon| daemon.id).collect::<Vec<_>>(), [one]);
    assert_eq!(rig.db(|conn| daemons::forget_lost(conn, Duration::from_secs(30))).await, 1);

    assert_eq!(rig.db(vault_keys::latest).await, None);
    assert!(rig.db(|conn| vault_keys::publish(conn, "old", &[1; 32])).await);
    assert!(rig.db(|conn| vault_keys::publish(conn, "new", &[2; 32])).await);
    assert!(!rig.db(|conn| vault_keys::publish(conn, "new", &[2; 32])).await, "no news");
    assert_eq!(rig.db(vault_keys::latest).await, Some([2; 32]));
    assert!(rig.db(|conn| vault_keys::publish(conn, "old", &[1; 32])).await, "it is the latest again");
    assert_eq!(rig.db(vault_keys::latest_id).await.as_deref(), Some("old"));
    rig.db(|conn| vault_keys::withdraw_others(conn, "new")).await;
    assert_eq!(rig.db(vault_keys::latest).await, Some([2; 32]));
}
