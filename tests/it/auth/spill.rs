//! Replies of token endpoints outlive the daemon that got them, and the database that has lost them again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use diesel::RunQueryDsl as _;
use fieldmirror::auth::between::{Between, Step};
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::auth::{Auth, Ending};
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::requests::RequestOutcome;
use fieldmirror::db::retention;
use fieldmirror::domain::failure::FailureKind;
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::vault::{Vault, generate_key};
use serde_json::json;
use tokio::sync::Notify;

use super::fake::{Answer, Rotation};
use super::rig::{Host, Rig};
use super::stage::{at_step, dies_at, start_again};

/// The spills in a state directory, by name.
pub fn spills(state: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(state.join("spills")).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "spill"))
        .collect();
    paths.sort();
    paths
}

/// A daemon on the rig's host that dies at that step.
fn mortal(rig: &Rig, step: Step) -> Auth {
    rig.daemon_at(Host { name: "host", state: rig.state.path(), between: dies_at(step) })
}

async fn access(auth: &Auth, id: ConnectionId) -> String {
    auth.access_token(id).await.expect("a token").credentials[0].1.expose().to_owned()
}

#[tokio::test]
async fn a_reply_is_found_again_after_a_crash() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    let first = spills(rig.state.path());
    assert_eq!(first.len(), 1, "the first reply is kept as well: {first:?}");
    mortal(&rig, Step::Spilled).refresh(id, Why::Asked).await.expect_err("it died");
    assert_eq!(rig.token(id).await.generation, 1);
    // The newest is kept, the one before it has been traded.
    let kept = spills(rig.state.path());
    assert_eq!(kept.len(), 1);
    assert!(kept[0].to_str().is_some_and(|path| path.ends_with("-2.spill")), "{kept:?}");
    let text = String::from_utf8_lossy(&std::fs::read(&kept[0]).expect("there")).into_owned();
    assert!(!text.contains("SECRET"), "sealed");

    let auth = start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.token(id).await.generation, 2);
    assert_eq!(access(&auth, id).await, "SECRET-AT-2");
    assert_eq!(rig.fake.count("refresh_token"), 1, "nothing was asked again");
    assert_eq!(rig.count("SELECT count(*) AS value FROM fieldmirror.refresh_attempts").await, 0);
    assert_eq!(
        rig.count(
            "SELECT count(*) AS value FROM fieldmirror.audit_log WHERE event = 'replay' AND outcome = 'done'"
        )
        .await,
        1
    );
    // Once more: it is known already.
    start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.token(id).await.generation, 2);
    assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.fake.replays(), rig.token(id).await.generation), (0, 3));
}

/// Whichever of them is looked at first.
#[tokio::test]
async fn a_reply_that_the_database_refuses_holds_up_no_other() {
    for refused in [0, 1] {
        let rig = Rig::new().await;
        let ids = [rig.connected("acme", 1).await, rig.connected("other", 2).await];
        for (account, id) in (1..).zip(ids) {
            rig.fake.be_account(account);
            mortal(&rig, Step::Spilled).refresh(id, Why::Asked).await.expect_err("it died");
        }
        let (held, free) = (ids[refused], ids[1 - refused]);
        rig.batch(
            "CREATE TABLE public.refused (id bigint);
             CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF EXISTS (SELECT FROM public.refused WHERE id = NEW.connection_id) THEN
                     RAISE EXCEPTION 'this row is refused';
                 END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON fieldmirror.tokens
                 FOR EACH ROW EXECUTE FUNCTION public.refuse()",
        )
        .await;
        rig.db(move |conn| {
            let refusal = format!("INSERT INTO public.refused VALUES ({held})");
            Ok(diesel::sql_query(refusal).execute(conn)?)
        })
        .await;
        start_again(&rig, rig.state.path()).await;
        let generations = (rig.token(held).await.generation, rig.token(free).await.generation);
        assert_eq!(generations, (1, 2), "{refused}");
        assert_eq!(spills(rig.state.path()).len(), 2, "both are kept");
        rig.execute("DELETE FROM public.refused").await;
        let auth = start_again(&rig, rig.state.path()).await;
        assert_eq!(rig.token(held).await.generation, 2);
        assert_eq!(rig.fake.count("refresh_token"), 2, "nothing was asked again");
        access(&auth, held).await;
    }
}

#[tokio::test]
async fn a_refresher_finds_the_reply_that_nobody_replayed() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    mortal(&rig, Step::Spilled).refresh(id, Why::Asked).await.expect_err("it died");
    // Its attempt keeps others out; after that, another one of the same folder looks there first.
    let other = rig.another_daemon();
    assert!(matches!(other.refresh(id, Why::Asked).await, Ok(Refreshed::Busy { .. })));
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp()").await;
    assert_eq!(other.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.token(id).await.generation, rig.fake.count("refresh_token")), (2, 1));
    assert_eq!(access(&other, id).await, "SECRET-AT-2");
}

#[tokio::test]
async fn a_consent_is_concluded_after_a_crash() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let url = asked.authorize_url();
    let ending = rig.come_back_to(&mortal(&rig, Step::Spilled), &url, "code=C").await;
    assert!(matches!(ending, Ending::Failed(_)), "{ending:?}");
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::AwaitingConsent);
    let auth = start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done));
    assert_eq!(rig.fake.count("authorization_code"), 1);
    // Doing it again does not undo what came after.
    auth.refresh(asked.connection, Why::Asked).await.expect("it works");
    start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.token(asked.connection).await.generation, 2);
}

#[tokio::test]
async fn a_consent_whose_reply_died_with_the_daemon_can_be_given_again() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    rig.come_back_to(&mortal(&rig, Step::Replied), &asked.authorize_url(), "code=C").await;
    start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::AwaitingConsent);
    let (url, _) = rig.follow(&asked).await;
    assert_eq!(rig.come_back(&url, "code=C").await.status, 200);
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done));
}

#[tokio::test]
async fn a_consent_waits_for_the_database() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let dying = {
        let (lever, back) = (rig.test.lever(), rig.test.lever());
        let stopped: Arc<std::sync::OnceLock<Auth>> = Arc::default();
        let stops = Arc::clone(&stopped);
        let between = Between::steps(move |_, at| {
            if at == Step::Spilled {
                lever.away();
                // It stops: what is kept is not waited for.
                stops.get().expect("it is set").close_within(Duration::ZERO);
            }
            Box::pin(std::future::ready(Duration::ZERO))
        });
        let auth = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
        stopped.set(auth.clone()).ok().expect("it is set once");
        let ending = rig.come_back_to(&auth, &asked.authorize_url(), "code=C").await;
        back.back();
        ending
    };
    assert!(matches!(dying, Ending::Postponed { .. }), "{dying:?}");
    start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
}

#[tokio::test]
async fn a_consent_of_the_wrong_account_leaves_nothing_behind() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let before = spills(rig.state.path());
    rig.fake.be_account(2);
    let asked = rig.ask_for(id).await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 400);
    assert_eq!(spills(rig.state.path()), before);
    rig.fake.be_account(1);
    let asked = rig.ask_for(id).await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
    let after = spills(rig.state.path());
    assert!(after.len() == 1 && after != before, "the new grant's alone: {after:?}");
    rig.connected("other", 2).await;
    let both = spills(rig.state.path());
    rig.auth.disconnect(id, false).await.expect("it ends");
    let others: Vec<PathBuf> = both.into_iter().filter(|path| !after.contains(path)).collect();
    assert_eq!((spills(rig.state.path()), others.len()), (others, 1), "that of another connection stays");
}

#[tokio::test]
async fn what_is_of_no_use_is_reported_and_left_alone() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Strict);
    let id = rig.connected("acme", 1).await;
    let [kept] = spills(rig.state.path()).try_into().expect("one spill");
    let text = kept.display().to_string();
    let next = PathBuf::from(text.replace("-1.spill", "-2.spill"));
    let sealed = std::fs::read(&kept).expect("there");
    let grant = rig.token(id).await.grant_id;
    let foreign = {
        let vault = Vault::new(&generate_key(), &[]).expect("a key");
        vault.seal(b"{}", &fieldmirror::vault::Bound { connection: id, grant, column: "spill" })
    };
    for (bytes, said) in [
        (b"garbage".to_vec(), "cut off"),
        (sealed[..sealed.len() - 9].to_vec(), "does not open"),
        (foreign, "previous_key_files"),
        (sealed.clone(), "renamed"),
    ] {
        std::fs::write(&next, &bytes).expect("there is room");
        let auth = start_again(&rig, rig.state.path()).await;
        let fault = auth.spills.fault().expect("it is reported");
        assert!(fault.contains(said) && !fault.contains("SECRET"), "{said}: {fault}");
        assert_eq!(rig.token(id).await.generation, 1, "{said}: not used");
        assert_eq!(std::fs::read(&next).expect("it is left"), bytes);
    }
    // A refresh goes on beside it.
    let auth = start_again(&rig, rig.state.path()).await;
    assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert!(next.exists());
    std::fs::remove_file(&next).expect("a person removes it");
    assert_eq!(start_again(&rig, rig.state.path()).await.spills.fault(), None);
    assert_eq!(access(&auth, id).await, "SECRET-AT-2");
}

#[tokio::test]
async fn a_reply_on_another_machine_is_waited_for_and_then_the_old_token_is_tried_once() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Strict);
    let id = rig.connected("acme", 1).await;
    mortal(&rig, Step::Spilled).refresh(id, Why::Asked).await.expect_err("it died");
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp()").await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = rig.daemon_at(Host { name: "other", state: elsewhere.path(), between: Between::default() });
    let refreshed = other.refresh(id, Why::Asked).await.expect("no failure");
    let Refreshed::Later { wait, reason } = refreshed else { panic!("{refreshed:?}") };
    assert!(wait > Duration::from_secs(500) && wait <= Duration::from_mins(10), "{wait:?}");
    assert!(reason.message.contains("host `host`"), "{reason}");
    assert_eq!(rig.fake.count("refresh_token"), 1, "nobody was asked");
    assert_eq!(access(&other, id).await, "SECRET-AT-1", "what is still good is used");
    // The alert is derived from the same row; once the grace has passed, the provider decides.
    rig.execute(
        "UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp() - interval '601 s'",
    )
    .await;
    let failure = other.refresh(id, Why::Asked).await.expect_err("the old token is dead");
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    assert!(failure.message.contains("host `host` was interrupted"), "the true reason: {failure}");
    assert_eq!(rig.fake.count("refresh_token"), 2, "once");
    // The machine comes back, and brings what the provider still takes.
    let auth = start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!(access(&other, id).await, access(&auth, id).await);
}

#[tokio::test]
async fn a_database_that_was_restored_goes_on_with_what_was_kept() {
    for back in [1, 2, 5] {
        let rig = Rig::new().await;
        rig.fake.rotate(Rotation::Jealous);
        let id = rig.connected("acme", 1).await;
        rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
        for _ in 0..back {
            rig.auth.refresh(id, Why::Asked).await.expect("it works");
        }
        rig.execute("DELETE FROM fieldmirror.tokens").await;
        rig.execute("INSERT INTO fieldmirror.tokens SELECT * FROM public.backup").await;
        let asked = rig.fake.count("refresh_token");
        let auth = start_again(&rig, rig.state.path()).await;
        let token = rig.token(id).await;
        if back == 1 {
            assert_eq!((token.generation, rig.fake.count("refresh_token")), (2, asked), "it was all there");
        } else {
            assert_eq!((token.generation, rig.fake.count("refresh_token")), (back + 2, asked + 1));
            let told = "SELECT count(*) AS value FROM fieldmirror.audit_log WHERE detail LIKE 'the database had lost%'";
            assert_eq!(rig.count(told).await, 1);
        }
        assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
        assert_eq!((rig.fake.replays(), rig.connection(id).await.state), (0, ConnectionState::Connected));
    }
}

/// Also while a daemon runs: a failover loses the last seconds.
#[tokio::test]
async fn a_failover_that_loses_a_refresh_is_noticed_by_the_next() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
    for _ in 0..3 {
        rig.auth.refresh(id, Why::Asked).await.expect("it works");
    }
    rig.execute("DELETE FROM fieldmirror.tokens").await;
    rig.execute("INSERT INTO fieldmirror.tokens SELECT * FROM public.backup").await;
    // One that stops does not begin what it would have to leave in the middle.
    let stopping = rig.another_daemon();
    stopping.close_within(Duration::from_mins(1));
    let left = stopping.replay().await.expect("the folder and the database go along");
    stopping.follow_up(left).await;
    assert_eq!(rig.token(id).await.generation, 1);
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.token(id).await.generation, rig.fake.replays()), (5, 0));
}

#[tokio::test]
async fn a_dead_token_in_a_spill_does_not_condemn_a_grant_whose_own_token_lives() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
    for _ in 0..3 {
        rig.auth.refresh(id, Why::Asked).await.expect("it works");
    }
    rig.fake.then([super::fake::bad_refresh_token(), Answer::Grant(serde_json::json!({}))]);
    rig.batch("DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.backup")
        .await;
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    let used: Vec<_> =
        rig.fake.asked().iter().filter_map(|form| form.get("refresh_token").cloned()).collect();
    assert_eq!(used[used.len() - 2..], ["SECRET-RT-4", "SECRET-RT-1"]);
    assert_eq!(rig.token(id).await.generation, 5, "newer than anything that is kept");
}

/// Nor does a row whose refresh token does not open.
#[tokio::test]
async fn what_is_kept_is_used_where_the_row_does_not_open() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
    for _ in 0..2 {
        rig.auth.refresh(id, Why::Asked).await.expect("it works");
    }
    rig.batch(
        "DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.backup;
         UPDATE fieldmirror.tokens SET refresh_sealed = '\\x00'",
    )
    .await;
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.token(id).await.generation, rig.fake.replays()), (4, 0));
}

/// The same refresh token lies in the folder.
#[tokio::test]
async fn a_row_that_does_not_open_is_replaced_from_what_is_kept_of_it() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    rig.auth.refresh(id, Why::Asked).await.expect("it works");
    rig.execute("UPDATE fieldmirror.tokens SET refresh_sealed = '\\x00'").await;
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.token(id).await.generation, rig.fake.replays()), (3, 0));
}

/// Another daemon on the same host refreshed, and the database has lost that before this one has looked again.
#[tokio::test]
async fn what_another_daemon_has_kept_is_seen_before_a_token_is_offered() {
    for refreshes in [1, 2] {
        let rig = Rig::new().await;
        rig.fake.rotate(Rotation::Jealous);
        let id = rig.connected("acme", 1).await;
        rig.batch("CREATE TABLE public.before AS SELECT * FROM fieldmirror.tokens").await;
        let other = rig.another_daemon();
        for _ in 0..refreshes {
            other.refresh(id, Why::Asked).await.expect("it works");
        }
        rig.batch(
            "DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.before",
        )
        .await;
        assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{refreshes}");
        assert_eq!(rig.fake.replays(), 0, "{refreshes}");
        assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{refreshes}");
        assert_eq!(rig.fake.replays(), 0, "{refreshes}");
    }
}

/// A provider may say in prose what it was sent: also a token that is in no row.
#[tokio::test]
async fn a_refusal_that_quotes_a_kept_token_is_masked() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.batch("CREATE TABLE public.before AS SELECT * FROM fieldmirror.tokens").await;
    for _ in 0..2 {
        rig.auth.refresh(id, Why::Asked).await.expect("it works");
    }
    rig.batch("DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.before")
        .await;
    for token in ["SECRET-RT-3", "SECRET-RT-1"] {
        let said = json!({"status": "BAD_REFRESH_TOKEN", "message": format!("what is {token}?")});
        rig.fake.then([Answer::Status(400, said)]);
    }
    let failure = rig.auth.refresh(id, Why::Asked).await.expect_err("it is refused");
    assert!(failure.message.contains("[secret]?"), "{failure}");
    rig.assert_no_secret_in_texts().await;
}

/// The process died after the last byte and before the file had its name, and nobody has looked at the folder since.
#[tokio::test]
async fn a_refresher_finds_a_reply_that_has_no_name_yet() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    let other = rig.another_daemon();
    mortal(&rig, Step::Spilled).refresh(id, Why::Asked).await.expect_err("it died");
    let [kept] = spills(rig.state.path()).try_into().expect("one spill");
    let name = kept.file_name().expect("a name").to_string_lossy().into_owned();
    let unfinished = kept.with_file_name(format!(".{name}.{}.new", uuid::Uuid::new_v4()));
    std::fs::rename(&kept, &unfinished).expect("it is there");
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp()").await;
    assert_eq!(other.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.token(id).await.generation, rig.fake.count("refresh_token")), (2, 1));
    assert_eq!(spills(rig.state.path()), [kept]);
    assert!(!unfinished.exists());
}

/// A consent that was interrupted counts, whatever became of the grant before it meanwhile.
#[tokio::test]
async fn a_consent_that_was_interrupted_outlives_a_refresh_of_the_grant_before() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let before = rig.token(id).await.grant_id;
    let asked = rig.ask_for(id).await;
    rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = rig.daemon_at(Host { name: "other", state: elsewhere.path(), between: Between::default() });
    other.refresh(id, Why::Asked).await.expect("it works");
    start_again(&rig, rig.state.path()).await;
    assert_ne!(rig.token(id).await.grant_id, before);
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done));
}

/// The code is spent. Whatever passes after that is waited for: nobody at the customer is asked again.
#[tokio::test]
async fn a_consent_waits_for_the_provider_to_tell_whose_it_is() {
    // Also where something in between answers in its place, such as a firewall or a page about maintenance.
    for status in [503, 403, 404] {
        let rig = Rig::new().await;
        rig.fake.refuse_details(Some(status));
        let asked = rig.ask("acme").await;
        let shown = rig.come_back(&asked.authorize_url(), "code=C").await;
        assert_eq!(shown.status, 502, "{}", shown.body);
        assert!(shown.body.contains("Your consent has arrived"), "{status}: {}", shown.body);
        assert_eq!(rig.request_row(asked.request).await.done_at, None);
        let connection = rig.connection(asked.connection).await;
        assert_eq!(connection.state, ConnectionState::AwaitingConsent);
        assert!(connection.reason.expect("status says why").contains("is kept"));
        let told = "SELECT count(*) AS value FROM fieldmirror.audit_log WHERE outcome = 'postponed'";
        assert_eq!(rig.count(told).await, 1);
        // And when it is tried again.
        start_again(&rig, rig.state.path()).await;
        assert_eq!(rig.request_row(asked.request).await.done_at, None, "{status}");
        rig.fake.refuse_details(None);
        start_again(&rig, rig.state.path()).await;
        assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done));
        assert_eq!(rig.fake.count("authorization_code"), 1);
    }
}

#[tokio::test]
async fn a_consent_is_concluded_after_a_stop_in_the_middle_of_it() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let stopped: Arc<std::sync::OnceLock<Auth>> = Arc::default();
    let between = {
        let stopped = Arc::clone(&stopped);
        Between::steps(move |_, at| {
            if at == Step::Spilled {
                stopped.get().expect("it is set").close_within(Duration::ZERO);
            }
            Box::pin(std::future::ready(Duration::ZERO))
        })
    };
    let auth = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
    stopped.set(auth.clone()).ok().expect("it is set once");
    let ending = rig.come_back_to(&auth, &asked.authorize_url(), "code=C").await;
    assert!(matches!(ending, Ending::Postponed { .. }), "{ending:?}");
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::AwaitingConsent);
    start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
}

/// Nobody at the customer is asked again because the database was away until the link had expired; but a consent that an
/// admin has ended, or replaced, comes to nothing.
#[tokio::test]
async fn a_consent_that_was_given_in_time_outlives_its_link() {
    for after in ["nothing", "disconnected", "asked for anew"] {
        let rig = Rig::new().await;
        let asked = rig.ask("acme").await;
        rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
        let later = rig.clock.now() + TimeDelta::days(6);
        rig.auth.expire_authorizations(later).await.expect("links expire");
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Expired), "{after}");
        assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Failed, "{after}");
        let other = tempfile::tempdir().expect("a folder");
        let elsewhere =
            || rig.daemon_at(Host { name: "other", state: other.path(), between: Between::default() });
        let expected = match after {
            "disconnected" => {
                elsewhere().disconnect(asked.connection, false).await.expect("it ends");
                ConnectionState::Disconnected
            }
            "asked for anew" => {
                rig.ask_for(asked.connection).await;
                ConnectionState::Failed
            }
            _ => ConnectionState::Connected,
        };
        start_again(&rig, rig.state.path()).await;
        assert_eq!(rig.connection(asked.connection).await.state, expected, "{after}");
        let is_kept = !spills(rig.state.path()).is_empty();
        assert_eq!(is_kept, expected == ConnectionState::Connected, "{after}");
    }
}

/// What was handed over beside a consent is there as long as the consent may be concluded, and no longer.
#[tokio::test]
async fn secrets_beside_a_consent_outlive_its_link() {
    for concluded in [true, false] {
        let rig = Rig::new().await;
        let (grant, params) = (GrantKind::AuthorizationCode, json!({"tenant_id": "77"}));
        let id = rig.pending_at("servicetitan", "acme", grant, params).await;
        let asked = rig.ask_with(id, Some(r#"{"app_key":"SECRET-APP"}"#)).await;
        let url = asked.authorize_url();
        rig.come_back_from("servicetitan", &mortal(&rig, Step::Spilled), &url, "code=C").await;
        let later = rig.clock.now() + TimeDelta::days(6);
        rig.auth.expire_authorizations(later).await.expect("links expire");
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Expired));
        assert!(rig.request_row(asked.request).await.sealed.is_some());
        if concluded {
            start_again(&rig, rig.state.path()).await;
            let connection = rig.connection(id).await;
            assert_eq!(connection.state, ConnectionState::Connected, "{:?}", connection.reason);
        } else {
            rig.db(|conn| retention::wipe_requests(conn, SystemClock.now() + TimeDelta::days(1))).await;
        }
        assert_eq!(rig.request_row(asked.request).await.sealed, None);
    }
}

/// The access token that is kept runs out while the daemon is down: its refresh token is traded first, once.
#[tokio::test]
async fn a_consent_is_concluded_long_after_its_access_token_has_run_out() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let asked = rig.ask("acme").await;
    rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
    rig.clock.shift(TimeDelta::hours(20));
    // Whose it is, is not told at first: what was traded meanwhile is kept as well.
    rig.fake.refuse_details(Some(503));
    start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.fake.count("refresh_token"), 1);
    assert_eq!(spills(rig.state.path()).len(), 1);
    rig.fake.refuse_details(None);
    let auth = start_again(&rig, rig.state.path()).await;
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
    assert_eq!(access(&auth, asked.connection).await, "SECRET-AT-2");
    assert_eq!(rig.token(asked.connection).await.generation, 2, "written down as what they are");
    for _ in 0..2 {
        auth.refresh(asked.connection, Why::Asked).await.expect("it works");
    }
    assert_eq!((rig.fake.count("refresh_token"), rig.fake.replays()), (3, 0));
}

/// Takes all names that the reply after `kept` could get.
fn leave_no_name_after(kept: &Path) -> Vec<PathBuf> {
    let kept = kept.to_str().expect("text").strip_suffix("-1.spill").expect("the first");
    let copies = (1..16).map(|copy| format!("{kept}-2.{copy}.spill"));
    let names: Vec<PathBuf> = copies.chain([format!("{kept}-2.spill")]).map(PathBuf::from).collect();
    for name in &names {
        std::fs::write(name, "in the way").expect("there is room");
    }
    names
}

/// The same, and the new reply can be kept nowhere: it is held while the provider does not tell whose it is; and where that
/// takes too long, what was kept before stays for the next try.
#[tokio::test]
async fn what_passes_ends_no_kept_consent_whose_new_reply_cannot_be_kept() {
    for (rotation, in_time) in [(Rotation::Jealous, true), (Rotation::Never, false)] {
        let rig = Rig::new().await;
        rig.fake.rotate(rotation);
        let asked = rig.ask("acme").await;
        rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
        rig.clock.shift(TimeDelta::hours(20));
        let [kept] = spills(rig.state.path()).try_into().expect("one spill");
        let in_the_way = leave_no_name_after(&kept);
        rig.fake.refuse_details(Some(503));
        let lost = if in_time { Duration::ZERO } else { Duration::from_hours(1) };
        let between = at_step(Step::Spilled, move || std::future::ready(lost));
        let auth = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
        let details = rig.fake.details_asked();
        let passes = async {
            if in_time {
                // After more than one round of questions.
                rig.fake.until(|fake| fake.details_asked() > details + 3).await;
                rig.fake.refuse_details(None);
            }
        };
        let left = auth.replay().await.expect("the folder and the database go along");
        tokio::join!(auth.follow_up(left), passes);
        assert!(auth.spills.fault().is_some_and(|fault| fault.contains("cannot be kept")), "{rotation:?}");
        if !in_time {
            assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::AwaitingConsent);
            assert!(kept.exists(), "what is kept of the consent may be good for another try");
            rig.fake.refuse_details(None);
            for path in in_the_way {
                std::fs::remove_file(path).expect("it is there");
            }
            start_again(&rig, rig.state.path()).await;
        }
        let connection = rig.connection(asked.connection).await;
        assert_eq!(connection.state, ConnectionState::Connected, "{rotation:?}: {:?}", connection.reason);
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done));
        assert_eq!(rig.fake.replays(), 0);
    }
}

/// Numbers alone do not tell which of two replies came later: a machine that was away comes back with what it kept, and
/// what another one has got meanwhile stays.
#[tokio::test]
async fn what_a_machine_kept_before_it_was_away_takes_nobodys_place() {
    for was_restored in [false, true] {
        let (rig, elsewhere) = (Rig::new().await, tempfile::tempdir().expect("a folder"));
        let other =
            rig.daemon_at(Host { name: "other", state: elsewhere.path(), between: Between::default() });
        let id = if was_restored {
            let id = rig.connected("acme", 1).await;
            rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
            for _ in 0..2 {
                rig.auth.refresh(id, Why::Asked).await.expect("it works");
            }
            rig.batch(
                "DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.backup",
            )
            .await;
            id
        } else {
            // Renewed three times before it was known whose it is.
            rig.fake.rotate(Rotation::Jealous);
            let asked = rig.ask("acme").await;
            rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
            rig.fake.refuse_details(Some(503));
            for _ in 0..2 {
                rig.clock.shift(TimeDelta::hours(20));
                start_again(&rig, rig.state.path()).await;
            }
            rig.fake.refuse_details(None);
            start_again(&rig, rig.state.path()).await;
            assert_eq!(rig.fake.count("refresh_token"), 2);
            asked.connection
        };
        other.refresh(id, Why::Asked).await.expect("it works");
        let now = rig.token(id).await;
        let auth = start_again(&rig, rig.state.path()).await;
        assert_eq!(rig.token(id).await, now, "{was_restored}");
        assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{was_restored}");
        assert_eq!(rig.fake.replays(), 0, "{was_restored}");
        let brought = rig.fake.asked().pop().and_then(|form| form.get("refresh_token").cloned());
        assert_eq!(brought.as_deref(), Some("SECRET-RT-4"), "{was_restored}: that of the other");
    }
}

/// A token that was granted a moment ago is refused: that says nothing of the grant before a refresh has said so, too.
#[tokio::test]
async fn a_refused_access_token_alone_ends_no_consent() {
    let rig = Rig::new().await;
    for (account, name, lasts) in [(1, "once", false), (2, "always", true)] {
        rig.fake.be_account(account);
        let asked = rig.ask(name).await;
        rig.fake.refuse_details(Some(401));
        let shown = rig.come_back(&asked.authorize_url(), "code=C").await;
        assert!(shown.body.contains("Your consent has arrived"), "{}", shown.body);
        if !lasts {
            rig.fake.refuse_details(None);
        }
        for hours in [0, 0, 2] {
            rig.clock.shift(TimeDelta::hours(hours));
            start_again(&rig, rig.state.path()).await;
            let (state, outcome) = if lasts {
                (ConnectionState::AwaitingConsent, None)
            } else {
                (ConnectionState::Connected, Some(RequestOutcome::Done))
            };
            assert_eq!(rig.connection(asked.connection).await.state, state, "{name}");
            assert_eq!(rig.request_row(asked.request).await.outcome, outcome, "{name}");
        }
    }
    // The token endpoint honours the grant of the one that is refused again and again: that is asked each hour.
    assert_eq!(rig.fake.count("refresh_token"), 2);
    rig.fake.refuse_details(None);
    start_again(&rig, rig.state.path()).await;
    assert!(rig.conditions().await.is_empty());
    assert_eq!(rig.fake.replays(), 0);
}

/// What a token endpoint says once of a kept consent is told, and not believed for good: not of one, and still less of many.
#[tokio::test]
async fn a_kept_consent_that_is_called_dead_is_tried_again() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let (mut all, mut spared) = (Vec::new(), 0);
    for (account, name) in (1..).zip(["a", "b", "c"]) {
        rig.fake.be_account(account);
        let asked = rig.ask(name).await;
        rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
        all.push(asked);
    }
    rig.fake.tell_accounts_apart();
    rig.clock.shift(TimeDelta::hours(20));
    rig.fake.then(std::iter::repeat_n(super::fake::bad_refresh_token(), 3));
    let auth = start_again(&rig, rig.state.path()).await;
    assert_eq!((rig.fake.count("refresh_token"), spills(rig.state.path()).len()), (3, 3), "all are kept");
    for asked in &all {
        let connection = rig.connection(asked.connection).await;
        let reason = connection.reason.expect("status says why");
        let outcome = rig.request_row(asked.request).await.outcome;
        if connection.state == ConnectionState::Failed {
            assert!(reason.contains("BAD_REFRESH_TOKEN") && reason.contains("every 6 h"), "{reason}");
            assert_eq!(outcome, Some(RequestOutcome::Denied));
        } else {
            assert!(reason.contains("several accounts died"), "{reason}");
            assert_eq!((connection.state, outcome), (ConnectionState::AwaitingConsent, None));
            spared += 1;
        }
    }
    assert!((1..=3).contains(&spared), "the third is one too many");
    // Not every minute.
    let look = async |auth: &Auth| {
        let left = auth.replay().await.expect("the folder is looked at");
        auth.follow_up(left).await;
        rig.fake.count("refresh_token")
    };
    assert_eq!(look(&auth).await, 3);
    rig.clock.shift(TimeDelta::minutes(16));
    assert_eq!(look(&auth).await, 3 + spared, "those that were spared");
    rig.clock.shift(TimeDelta::hours(7));
    assert_eq!(look(&auth).await, 6);
    for asked in &all {
        assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
        assert_eq!(auth.refresh(asked.connection, Why::Asked).await, Ok(Refreshed::Renewed));
    }
    assert_eq!(rig.fake.replays(), 0);
}

/// In the end it is believed, and nothing is left behind.
#[tokio::test]
async fn a_kept_consent_that_stays_dead_is_written_off() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
    rig.fake.then(std::iter::repeat_n(super::fake::bad_refresh_token(), 9));
    for (days, kept) in [(1, 1), (4, 1), (1, 0)] {
        rig.clock.shift(TimeDelta::days(days));
        start_again(&rig, rig.state.path()).await;
        assert_eq!(spills(rig.state.path()).len(), kept, "{days}");
        assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Failed);
    }
    assert_eq!(rig.fake.count("refresh_token"), 3);
    rig.assert_no_secret_in_texts().await;
}

/// Two daemons on one folder have listed a consent whose access token has run out: its refresh token is traded once.
#[tokio::test]
async fn a_kept_consent_that_another_daemon_has_taken_up_is_left_to_it() {
    for is_concluded in [true, false] {
        let rig = Rig::new().await;
        rig.fake.rotate(Rotation::Jealous);
        let asked = rig.ask("acme").await;
        rig.come_back_to(&mortal(&rig, Step::Spilled), &asked.authorize_url(), "code=C").await;
        rig.clock.shift(TimeDelta::hours(20));
        let slow = rig.another_daemon();
        let listed = slow.replay().await.expect("the folder is looked at");
        rig.fake.refuse_details((!is_concluded).then_some(503));
        start_again(&rig, rig.state.path()).await;
        rig.fake.refuse_details(None);
        slow.follow_up(listed).await;
        assert_eq!((rig.fake.count("refresh_token"), rig.fake.replays()), (1, 0), "{is_concluded}");
        let auth = start_again(&rig, rig.state.path()).await;
        assert_eq!(
            rig.connection(asked.connection).await.state,
            ConnectionState::Connected,
            "{is_concluded}"
        );
        auth.refresh(asked.connection, Why::Asked).await.expect("it works");
    }
}

/// A consent that is concluded late does not take the place of one that was given after it.
#[tokio::test]
async fn the_consent_that_was_given_last_counts() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let (first, link) = (rig.ask_for(id).await, rig.auth.clone());
    // Both tabs are open; the first consent is slow to say whose it is.
    let (state, between) = (rig.state.path(), Between::default());
    let (replied, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let waits = {
        let (replied, goes_on) = (Arc::clone(&replied), Arc::clone(&goes_on));
        at_step(Step::Spilled, move || {
            let (replied, goes_on) = (Arc::clone(&replied), Arc::clone(&goes_on));
            async move {
                replied.notify_one();
                goes_on.notified().await;
                Duration::ZERO
            }
        })
    };
    let slow = rig.daemon_at(Host { name: "host", state, between: waits });
    let url = first.authorize_url();
    let (late, ()) = tokio::join!(rig.come_back_to(&slow, &url, "code=C"), async {
        replied.notified().await;
        let second = rig.ask_for(id).await;
        let quick = rig.daemon_at(Host { name: "host", state, between });
        let ending = rig.come_back_to(&quick, &second.authorize_url(), "code=C").await;
        assert!(matches!(ending, Ending::Connected { .. }), "{ending:?}");
        goes_on.notify_one();
    });
    assert!(matches!(late, Ending::Refused(_)), "{late:?}");
    assert_eq!(access(&link, id).await, "SECRET-AT-3");
    assert_eq!(spills(state).len(), 1, "that of the grant in force");
}

/// A database from before a reconnect says that the connection is disconnected: that is no reason to throw away what it
/// does not know.
#[tokio::test]
async fn a_backup_from_before_a_reconnect_costs_no_reply() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.auth.disconnect(id, false).await.expect("it ends");
    let asked = rig.ask_for(id).await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
    let kept = spills(rig.state.path());
    assert_eq!(kept.len(), 1);
    rig.batch(
        "DELETE FROM fieldmirror.tokens; DELETE FROM fieldmirror.authorization_attempts;
         UPDATE fieldmirror.connections SET state = 'disconnected', grant_id = NULL,
             connected_at = connected_at - interval '1 hour'",
    )
    .await;
    let auth = start_again(&rig, rig.state.path()).await;
    assert_eq!(spills(rig.state.path()), kept);
    assert!(auth.spills.fault().is_some_and(|fault| fault.contains("does not know the grant")));
    // It was disconnected after that reply: nobody is to have it.
    rig.execute("UPDATE fieldmirror.audit_log SET at = now() + interval '1 s' WHERE event = 'disconnect'")
        .await;
    start_again(&rig, rig.state.path()).await;
    assert_eq!(spills(rig.state.path()), Vec::<PathBuf>::new());
}

/// A database from before a reconnect knows the grant before it alone. The newer one is in the folder, and takes its place
/// when it has proved itself: it is renewed, and it opens the connection's own account.
#[tokio::test]
async fn a_grant_that_the_database_does_not_know_proves_itself() {
    for (what, account) in [("the same", 1), ("another account", 2), ("dead", 1)] {
        let rig = Rig::new().await;
        rig.fake.rotate(Rotation::Jealous);
        let id = rig.connected("acme", 1).await;
        let old = rig.token(id).await.grant_id;
        rig.batch(
            "CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens;
             CREATE TABLE public.attempts AS SELECT id FROM fieldmirror.authorization_attempts",
        )
        .await;
        let asked = rig.ask_for(id).await;
        assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
        let new = rig.token(id).await.grant_id;
        rig.batch(
            "DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.backup;
             UPDATE fieldmirror.connections c SET grant_id = t.grant_id, connected_at = connected_at - interval '1 hour'
                 FROM fieldmirror.tokens t;
             DELETE FROM fieldmirror.authorization_attempts WHERE id NOT IN (SELECT id FROM public.attempts)",
        )
        .await;
        rig.fake.be_account(account);
        match what {
            "dead" => rig.fake.then([super::fake::bad_refresh_token()]),
            "another account" => rig.fake.then([Answer::Grant(json!({"hub_id": account}))]),
            _ => {}
        }
        let auth = start_again(&rig, rig.state.path()).await;
        let token = rig.token(id).await;
        assert_eq!(rig.fake.count("refresh_token"), 1, "{what}: it has to prove itself");
        auth.replay().await.expect("the folder is looked at");
        let fault = auth.spills.fault();
        if what == "the same" {
            assert_eq!((token.grant_id, fault), (new, None));
            let told =
                "SELECT count(*) AS value FROM fieldmirror.audit_log WHERE detail LIKE '%has proved itself'";
            assert_eq!(rig.count(told).await, 1);
        } else {
            assert_eq!(token.grant_id, old, "{what}");
            let fault = fault.expect("it is reported");
            let why = if what == "dead" { "BAD_REFRESH_TOKEN" } else { "another account" };
            assert!(fault.contains("does not know the grant") && fault.contains(why), "{what}: {fault}");
            rig.fake.be_account(1);
        }
        assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{what}");
        assert_eq!((rig.fake.replays(), rig.connection(id).await.state), (0, ConnectionState::Connected));
        assert_eq!(rig.token(id).await.grant_id, if what == "the same" { new } else { old }, "{what}");
    }
}

/// The database goes away before the code is traded, and after; and is back before anybody asks again.
#[tokio::test]
async fn a_database_that_is_away_for_a_moment_costs_no_consent() {
    let rig = Rig::new().await;
    for (account, step) in (1..).zip([Step::Open, Step::Replied]) {
        rig.fake.be_account(account);
        let asked = rig.ask(&format!("acme-{account}")).await;
        let lever = rig.test.lever();
        let between = Between::steps(move |_, at| {
            if at == step {
                lever.away();
            }
            Box::pin(std::future::ready(Duration::ZERO))
        });
        let auth = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
        let ending = rig.come_back_to(&auth, &asked.authorize_url(), "code=C").await;
        let kept = matches!(ending, Ending::Postponed { .. });
        assert_eq!(kept, step == Step::Replied, "{step:?}: {ending:?}");
        rig.test.lever().back();
        assert_eq!(rig.request_row(asked.request).await.done_at, None, "{step:?}");
        if step == Step::Open {
            assert_eq!(rig.fake.count("authorization_code"), 0);
            let (url, _) = rig.follow(&asked).await;
            assert_eq!(rig.come_back(&url, "code=C").await.status, 200);
        } else {
            start_again(&rig, rig.state.path()).await;
        }
        assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected, "{step:?}");
    }
    assert_eq!(rig.fake.count("authorization_code"), 2);
}
