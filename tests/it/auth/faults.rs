//! The fault matrix: whatever goes wrong in a refresh or in the exchange of a code, the grant is kept wherever the
//! provider still honours a token that outlived it, and otherwise the connection says why it needs a new consent.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use fieldmirror::auth::Ending;
use fieldmirror::auth::between::{Between, Step};
use fieldmirror::auth::refresh::{EXCHANGE_MAX, Refreshed, Why};
use fieldmirror::daemon::postgres::PrivateServer;
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::migrations;
use fieldmirror::db::requests::RequestOutcome;
use fieldmirror::domain::ids::ConnectionId;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::Notify;

use super::fake::{Answer, Rotation};
use super::rig::{Host, Rig};
use super::stage::{
    self, Crash, Frozen, Reply, at_step, dies_at, dies_when_seen, let_attempts_pass, start_again,
};
use crate::support::disk::SmallDisk;
use crate::support::postgres::{self, TestDb, short_folder};

const ROTATIONS: [Rotation; 4] = [Rotation::Never, Rotation::Strict, Rotation::Graceful, Rotation::Jealous];

/// The process dies at every step, for every way in which refresh tokens rotate, with the reply lost or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_dies_in_a_refresh() {
    let lanes = ROTATIONS.map(|rotation| async move {
        let rig = Rig::new().await;
        rig.fake.rotate(rotation);
        let mut wrong = Vec::new();
        let mut account = 0;
        for step in Step::ALL {
            for reply in Reply::ALL {
                account += 1;
                let crash = Crash { step, rotation, reply };
                let id = rig.connected(&format!("acme-{account}"), account).await;
                if let Err(what) = stage::crash(&rig, id, crash).await {
                    wrong.push(format!("{crash}: {what}"));
                }
                stage::put_away(&rig, id).await;
            }
        }
        rig.assert_no_secret_in_texts().await;
        wrong
    });
    let wrong: Vec<String> = join_all(lanes).await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// That the matrix can fail: each outcome is expected of some cell, whatever the provider does.
#[test]
fn the_matrix_knows_both_outcomes() {
    let all = |rotation| {
        let steps = Step::ALL.into_iter();
        let cells = steps.flat_map(move |step| Reply::ALL.map(|reply| Crash { step, rotation, reply }));
        cells.filter(|crash| crash.survives()).count()
    };
    assert_eq!(ROTATIONS.map(all), [21, 11, 21, 11]);
}

/// The process dies at every step of the exchange of a code.
#[tokio::test]
async fn a_process_dies_in_a_consent() {
    let rig = Rig::new().await;
    for (account, step) in (1..).zip([Step::Open, Step::Sent, Step::Replied, Step::Spilled, Step::Committed])
    {
        rig.fake.be_account(account);
        let asked = rig.ask(&format!("acme-{account}")).await;
        let dying = rig.daemon_at(Host { name: "host", state: rig.state.path(), between: dies_at(step) });
        let ending = rig.come_back_to(&dying, &asked.authorize_url(), "code=C").await;
        assert!(matches!(ending, Ending::Failed(_)), "{step:?}: {ending:?}");
        let auth = start_again(&rig, rig.state.path()).await;
        let state = rig.connection(asked.connection).await.state;
        if step >= Step::Spilled {
            assert_eq!(state, ConnectionState::Connected, "{step:?}: the reply was kept");
        } else {
            assert_eq!(state, ConnectionState::AwaitingConsent, "{step:?}");
            // The start link is good for another try.
            let (url, _) = rig.follow(&asked).await;
            assert_eq!(rig.come_back(&url, "code=C").await.status, 200, "{step:?}");
        }
        assert_eq!(auth.refresh(asked.connection, Why::Asked).await, Ok(Refreshed::Renewed), "{step:?}");
    }
}

/// The daemon does not come back, and another one elsewhere takes over; then it does come back.
#[tokio::test]
async fn a_process_dies_and_another_machine_goes_on() {
    let rig = Rig::new().await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut account = 0;
    for rotation in [Rotation::Never, Rotation::Strict] {
        rig.fake.rotate(rotation);
        for step in [Step::Open, Step::Sent, Step::Replied, Step::Spilled, Step::Committed] {
            account += 1;
            let cell = format!("{step:?}, {rotation:?}");
            let id = rig.connected(&format!("acme-{account}"), account).await;
            rig.fake.forget_answers();
            let asked = rig.fake.count("refresh_token");
            let between = dies_when_seen(&rig.fake, step);
            let dying = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
            dying.refresh(id, Why::Asked).await.expect_err("it died");
            let acted = rig.fake.count("refresh_token") - asked;
            let_attempts_pass(&rig).await;
            let other =
                rig.daemon_at(Host { name: "other", state: elsewhere.path(), between: Between::default() });
            let early = other.refresh(id, Why::Asked).await.expect("no failure");
            if step == Step::Committed {
                assert_eq!(early, Refreshed::Renewed, "{cell}: nothing was left open");
                continue;
            }
            assert!(matches!(early, Refreshed::Later { .. }), "{cell}: {early:?}");
            assert_eq!(rig.fake.count("refresh_token"), asked + acted, "{cell}: nobody is asked");
            rig.execute(
                "UPDATE fieldmirror.refresh_attempts SET blocked_until = clock_timestamp() - interval '601 s'",
            )
            .await;
            let late = other.refresh(id, Why::Asked).await;
            let lost = rotation == Rotation::Strict && acted > 0;
            assert_eq!(late.is_err(), lost, "{cell}: {late:?}");
            let connection = rig.connection(id).await;
            if lost {
                let reason = connection.reason.unwrap_or_default();
                assert_eq!(connection.state, ConnectionState::NeedsReauth, "{cell}");
                assert!(
                    reason.contains("dead") && reason.contains("host `host` was interrupted"),
                    "{reason}"
                );
            }
            let auth = start_again(&rig, rig.state.path()).await;
            let kept = !lost || step == Step::Spilled;
            let expected = if kept { ConnectionState::Connected } else { ConnectionState::NeedsReauth };
            assert_eq!(rig.connection(id).await.state, expected, "{cell}: it is back");
            assert_eq!(auth.refresh(id, Why::Asked).await.is_ok(), kept, "{cell}");
            stage::put_away(&rig, id).await;
        }
    }
}

/// Takes the database away at a step, and tells that it has come to that.
fn away_at(rig: &Rig, step: Step) -> (Between, Arc<Notify>) {
    let (lever, gone) = (rig.test.lever(), Arc::new(Notify::new()));
    let told = Arc::clone(&gone);
    let between = at_step(step, move || {
        lever.away();
        told.notify_one();
        std::future::ready(Duration::ZERO)
    });
    (between, gone)
}

/// The database goes away at each moment in which it is needed, and comes back; and does not come back before the
/// daemon has been stopped and started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_goes_away() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    let daemon = |step| {
        let (between, gone) = away_at(&rig, step);
        (rig.daemon_at(Host { name: "host", state: rig.state.path(), between }), gone)
    };
    // Before anything is on record: nobody is asked.
    let (auth, _) = daemon(Step::Beginning);
    auth.refresh(id, Why::Asked).await.expect_err("no attempt, no exchange");
    assert_eq!(rig.fake.count("refresh_token"), 0);
    rig.test.lever().back();
    for (step, stopped) in
        [(Step::Open, false), (Step::Replied, false), (Step::Replied, true), (Step::Spilled, true)]
    {
        let before = rig.token(id).await.generation;
        let (auth, gone) = daemon(step);
        let refreshing = tokio::spawn({
            let auth = auth.clone();
            async move { auth.refresh(id, Why::Asked).await }
        });
        gone.notified().await;
        if stopped {
            auth.close_within(Duration::ZERO);
            refreshing.await.expect("no panic").expect_err("what is kept is not waited for");
            rig.test.lever().back();
            start_again(&rig, rig.state.path()).await;
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            rig.test.lever().back();
            assert_eq!(refreshing.await.expect("no panic"), Ok(Refreshed::Renewed), "{step:?}");
        }
        assert_eq!(rig.token(id).await.generation, before + 1, "{step:?}, stopped: {stopped}");
    }
    // While a failure is to be written down: it is not, and the next daemon tries again.
    rig.fake.then([Answer::Status(400, json!({"message": "odd"}))]);
    let (auth, _) = daemon(Step::Open);
    auth.refresh(id, Why::Asked).await.expect_err("it fails");
    rig.test.lever().back();
    let_attempts_pass(&rig).await;
    assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.fake.replays(), rig.connection(id).await.state), (0, ConnectionState::Connected));
}

/// Nothing can be written to the folder of spills: alone, and together with a database that is away. Where a disk can be
/// had for it that is full, it is; elsewhere a file is in its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_is_full() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(folder.path());
    let full = disk.as_ref().map_or(folder.path(), |disk| disk.folder.as_path());
    let in_the_way = full.join("spills");
    match &disk {
        Some(disk) => disk.fill(),
        None => std::fs::write(&in_the_way, "").expect("there is room"),
    }
    let auth = rig.daemon_at(Host { name: "host", state: full, between: Between::default() });
    assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    let fault = auth.spills.fault().expect("it is told");
    assert!(disk.is_none() || fault.contains("No space left on device"), "{fault}");
    let consents = codes_on_a_full_disk(&rig, full).await;
    for (step, room_is_made) in [(Step::Replied, false), (Step::Spilled, false), (Step::Replied, true)] {
        let before = rig.token(id).await.generation;
        let (between, gone) = away_at(&rig, step);
        let auth = rig.daemon_at(Host { name: "host", state: full, between });
        let refreshing = tokio::spawn({
            let auth = auth.clone();
            async move { auth.refresh(id, Why::Asked).await }
        });
        gone.notified().await;
        auth.close_within(Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!refreshing.is_finished(), "{step:?}: the reply is in this process alone");
        if room_is_made {
            match &disk {
                Some(disk) => disk.make_room(),
                None => std::fs::remove_file(&in_the_way).expect("it is there"),
            }
            refreshing.await.expect("no panic").expect_err("it is kept, and not waited for any more");
            rig.test.lever().back();
            let auth = start_again(&rig, full).await;
            assert_eq!(auth.spills.fault(), None);
            for id in &consents {
                assert_eq!(auth.refresh(*id, Why::Asked).await, Ok(Refreshed::Renewed));
            }
        } else {
            rig.test.lever().back();
            assert_eq!(refreshing.await.expect("no panic"), Ok(Refreshed::Renewed), "{step:?}");
        }
        assert_eq!(rig.token(id).await.generation, before + 1, "{step:?}");
    }
    assert_eq!(rig.fake.replays(), 0);
    assert_eq!(auth.spills.id(), None);
    auth.replay().await.expect("there is room");
    assert!(auth.spills.id().is_some(), "from now on others know where its replies are");
}

/// The exchange of a code, where its reply cannot be kept: alone, with a database that is away, and with a provider that does
/// not tell whose it is. Nobody is asked again. Returns the connections.
async fn codes_on_a_full_disk(rig: &Rig, full: &Path) -> Vec<ConnectionId> {
    let mut ids = Vec::new();
    for (account, what) in (2..).zip(["alone", "database", "provider", "token"]) {
        rig.fake.be_account(account);
        let asked = rig.ask(&format!("acme-{account}")).await;
        let (between, gone) = match what {
            "database" => away_at(rig, Step::Replied),
            _ => (Between::default(), Arc::new(Notify::new())),
        };
        let auth = rig.daemon_at(Host { name: "host", state: full, between });
        let details = rig.fake.details_asked();
        let url = asked.authorize_url();
        let passes = async {
            match what {
                "database" => {
                    gone.notified().await;
                    auth.close_within(Duration::ZERO);
                    rig.test.lever().back();
                }
                "provider" | "token" => {
                    // After more than one round of questions: of one that finds out nothing, and of one that is refused.
                    let round = if what == "provider" { 3 } else { 1 };
                    rig.fake.until(|fake| fake.details_asked() > details + round).await;
                    rig.fake.refuse_details(None);
                }
                _ => {}
            }
        };
        match what {
            "provider" => rig.fake.refuse_details(Some(503)),
            "token" => rig.fake.refuse_details(Some(401)),
            _ => {}
        }
        let (ending, ()) = tokio::join!(rig.come_back_to(&auth, &url, "code=C"), passes);
        assert!(matches!(ending, Ending::Connected { .. }), "{what}: {ending:?}");
        assert!(auth.spills.fault().is_some(), "{what}: the disk is full");
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done), "{what}");
        ids.push(asked.connection);
    }
    assert_eq!(rig.fake.count("authorization_code"), 5, "each code was traded once");
    ids
}

/// Nor is one let go that names another account and can be kept nowhere, before the API has said whose it is; not even where the
/// daemon stops meanwhile.
#[tokio::test]
async fn the_disk_is_full_and_a_reply_names_another_account() {
    for stops in [false, true] {
        let rig = Rig::new().await;
        rig.fake.rotate(Rotation::Jealous);
        let id = rig.connected("acme", 1).await;
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("spills"), "in the way").expect("there is room");
        let auth = rig.daemon_at(Host { name: "host", state: folder.path(), between: Between::default() });
        rig.fake.then([Answer::Grant(json!({"hub_id": 99}))]);
        rig.fake.refuse_details(Some(503));
        let details = rig.fake.details_asked();
        let passes = async {
            if stops {
                rig.fake.until(|fake| fake.details_asked() > details).await;
                auth.close_within(Duration::ZERO);
            }
            // After more than one round of questions.
            rig.fake.until(|fake| fake.details_asked() > details + 3).await;
            rig.fake.refuse_details(None);
        };
        let (refreshed, ()) = tokio::join!(auth.refresh(id, Why::Asked), passes);
        assert_eq!(refreshed, Ok(Refreshed::Renewed), "{stops}");
        assert!(auth.spills.fault().is_some(), "{stops}: it was in this process alone");
        assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{stops}");
        assert_eq!((rig.fake.count("refresh_token"), rig.fake.replays()), (2, 0), "{stops}");
    }
}

/// Two and four daemons, with one folder and with one each: one exchange, and nobody is left without a token.
#[tokio::test]
async fn many_daemons_share_a_database() {
    for (daemons, shared) in [(2, true), (2, false), (4, true), (4, false)] {
        let rig = Rig::new().await;
        rig.fake.rotate(Rotation::Jealous);
        let id = rig.connected("acme", 1).await;
        let folders: Vec<_> = (0..daemons).map(|_| tempfile::tempdir().expect("a folder")).collect();
        let all: Vec<_> = (folders.iter())
            .map(|own| {
                let state = if shared { rig.state.path() } else { own.path() };
                rig.daemon_at(Host { name: "host", state, between: Between::default() })
            })
            .collect();
        for round in 1..=3 {
            rig.clock.shift(TimeDelta::minutes(30));
            rig.fake.hold();
            let let_go = async {
                rig.fake.until_asked("refresh_token", usize::try_from(round).expect("small")).await;
                rig.fake.let_go();
            };
            let (tokens, ()) = tokio::join!(join_all(all.iter().map(|auth| auth.access_token(id))), let_go);
            for token in tokens {
                assert_eq!(token.expect("a token").generation, round + 1, "{daemons} {shared}");
            }
            assert_eq!(rig.fake.count("refresh_token"), usize::try_from(round).expect("small"));
        }
        assert_eq!(rig.fake.replays(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_restarted_in_the_middle_of_an_exchange() {
    let folder = short_folder("faults");
    let start = {
        let options = postgres::options(&folder);
        move || PrivateServer::start_blocking(options.clone()).expect("a private server starts")
    };
    let server = tokio::task::spawn_blocking(start.clone()).await.expect("no panic");
    let url = server.url();
    migrations::run(&url).await.expect("migrations apply");
    let rig = Rig::over(TestDb::over(url)).await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    let server = Arc::new(std::sync::Mutex::new(Some(server)));
    for (step, generation) in [(Step::Open, 2), (Step::Replied, 3)] {
        let (server, start) = (Arc::clone(&server), start.clone());
        let between = at_step(step, move || {
            let (server, start) = (Arc::clone(&server), start.clone());
            let restart = move || {
                let mut server = server.lock().expect("nobody panics with it");
                server.take().expect("it runs").stop_blocking();
                *server = Some(start());
            };
            async move {
                tokio::task::spawn_blocking(restart).await.expect("no panic");
                Duration::ZERO
            }
        });
        let auth = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
        assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{step:?}");
        assert_eq!(rig.token(id).await.generation, generation, "{step:?}");
    }
    assert_eq!(rig.fake.replays(), 0);
    drop(rig);
    let server = server.lock().expect("nobody panics with it").take().expect("it runs");
    tokio::task::spawn_blocking(move || server.stop_blocking()).await.expect("no panic");
    let _ = std::fs::remove_dir_all(folder);
}

/// A daemon stands still for two minutes, while its attempt runs out and another one takes over.
#[tokio::test]
async fn a_daemon_freezes() {
    let rig = Rig::new().await;
    let mut account = 0;
    for rotation in ROTATIONS {
        for step in [Step::Open, Step::Sent, Step::Replied, Step::Spilled] {
            account += 1;
            rig.fake.rotate(rotation);
            let id = rig.connected(&format!("acme-{account}"), account).await;
            let asked = rig.fake.count("refresh_token");
            let ice = Frozen::default();
            let between = ice.at(&rig.fake, step, ("refresh_token", Duration::from_mins(2)));
            let frozen = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
            let refreshing = tokio::spawn(async move { frozen.refresh(id, Why::Asked).await });
            ice.until_it_stands_still().await;
            let_attempts_pass(&rig).await;
            let other = rig.another_daemon();
            let taken_over = other.refresh(id, Why::Asked).await;
            if (step, rotation) == (Step::Sent, Rotation::Strict) {
                let reason = rig.connection(id).await.reason.unwrap_or_default();
                assert!(reason.contains("dead") && reason.contains("was interrupted"), "{reason}");
            }
            ice.go_on();
            let thawed = refreshing.await.expect("no panic");
            let cell = format!("{step:?}, {rotation:?}: {taken_over:?}, {thawed:?}");
            // What came back to one that stood still is written down where the other one got nothing.
            assert_eq!(thawed, Ok(Refreshed::Renewed), "{cell}");
            assert_eq!(rig.connection(id).await.state, ConnectionState::Connected, "{cell}");
            assert_eq!(rig.token(id).await.generation, 2, "{cell}");
            let exchanges = rig.fake.count("refresh_token") - asked;
            let traded_unseen = matches!(step, Step::Sent | Step::Replied);
            assert_eq!(exchanges, if traded_unseen { 2 } else { 1 }, "{cell}");
            // The one case where somebody else has used up what the frozen one came back with.
            let revoked = traded_unseen && rotation == Rotation::Jealous;
            assert_eq!(other.refresh(id, Why::Asked).await.is_ok(), !revoked, "{cell}");
            if revoked {
                let connection = rig.connection(id).await;
                assert_eq!(connection.state, ConnectionState::NeedsReauth, "{cell}");
                assert!(connection.reason.is_some_and(|reason| reason.contains("grant is dead")), "{cell}");
            }
            assert_eq!(rig.fake.honoured(account).is_empty(), revoked, "{cell}");
            stage::put_away(&rig, id).await;
        }
    }
}

/// A daemon stands still after its request has left, beyond its own deadline, and nobody has begun meanwhile: the reply waits
/// in the socket.
#[tokio::test]
async fn a_reply_that_waited_for_a_frozen_daemon_is_taken() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let id = rig.connected("acme", 1).await;
    let ice = Frozen::default();
    let between = ice.at(&rig.fake, Step::Sent, ("refresh_token", Duration::from_mins(2)));
    let frozen = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
    ice.go_on();
    assert_eq!(frozen.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    assert_eq!((rig.token(id).await.generation, rig.fake.replays()), (2, 0));
}

/// A daemon stands still in the exchange of a code, while another one looks at the same folder: the code is traded once, and
/// what it brought is used.
#[tokio::test]
async fn a_daemon_freezes_in_a_consent() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    for (account, step) in (1..).zip([Step::Open, Step::Sent, Step::Replied, Step::Spilled, Step::Committed])
    {
        rig.fake.be_account(account);
        let asked = rig.ask(&format!("acme-{account}")).await;
        let ice = Frozen::default();
        let between = ice.at(&rig.fake, step, ("authorization_code", Duration::from_mins(2)));
        let frozen = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
        let url = asked.authorize_url();
        let (ending, other) = tokio::join!(rig.come_back_to(&frozen, &url, "code=C"), async {
            ice.until_it_stands_still().await;
            let other = start_again(&rig, rig.state.path()).await;
            let state = rig.connection(asked.connection).await.state;
            assert_eq!(state == ConnectionState::Connected, step >= Step::Spilled, "{step:?}");
            ice.go_on();
            other
        });
        assert!(matches!(ending, Ending::Connected { .. }), "{step:?}: {ending:?}");
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done), "{step:?}");
        assert_eq!(other.refresh(asked.connection, Why::Asked).await, Ok(Refreshed::Renewed), "{step:?}");
        assert_eq!(
            rig.fake.count("authorization_code"),
            usize::try_from(account).expect("small"),
            "{step:?}"
        );
    }
    assert_eq!(rig.fake.replays(), 0);
}

/// The database's clock is set forward in mid-exchange, and the attempt seems to have run out: the process knows better.
#[tokio::test]
async fn a_process_does_not_renew_a_token_twice_at_once() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    rig.fake.hold();
    let auth = rig.auth.clone();
    let refreshing = tokio::spawn(async move { auth.refresh(id, Why::Asked).await });
    rig.fake.until_asked("refresh_token", 1).await;
    rig.execute("UPDATE fieldmirror.refresh_attempts SET blocked_until = blocked_until - interval '1 hour'")
        .await;
    let second = rig.auth.refresh(id, Why::Asked).await;
    assert!(matches!(second, Ok(Refreshed::Busy { .. })), "{second:?}");
    rig.fake.let_go();
    assert_eq!(refreshing.await.expect("no panic"), Ok(Refreshed::Renewed));
    assert_eq!((rig.fake.count("refresh_token"), rig.token(id).await.generation), (1, 2));
}

#[tokio::test]
async fn the_clock_jumps() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Jealous);
    let mut account = 0;
    for step in [Step::Open, Step::Replied, Step::Spilled, Step::Committed] {
        for hours in [1, -1] {
            account += 1;
            let id = rig.connected(&format!("acme-{account}"), account).await;
            let clock = Arc::clone(&rig.clock);
            let between = at_step(step, move || {
                clock.shift(TimeDelta::hours(hours));
                std::future::ready(Duration::ZERO)
            });
            let auth = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
            let asked = rig.fake.count("refresh_token");
            assert_eq!(auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{step:?} {hours}");
            // A token whose expiry has become unbelievable is renewed once, and that is all.
            for _ in 0..3 {
                rig.auth.access_token(id).await.expect("a token");
            }
            let expected = if step == Step::Open { 1 } else { 2 };
            assert_eq!(rig.fake.count("refresh_token") - asked, expected, "{step:?} {hours}");
            start_again(&rig, rig.state.path()).await;
            assert_eq!(rig.auth.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed), "{step:?} {hours}");
            assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
        }
    }
    assert_eq!(rig.fake.replays(), 0);
}

/// What a token endpoint may answer.
#[derive(Clone, Copy)]
enum Meaning {
    /// What the failure is called, and whether the provider has acted all the same.
    Fails(&'static str, bool),
    /// Whether the expiry is known.
    Renews(bool),
}

fn odd_answers() -> Vec<(Answer, Meaning)> {
    use Meaning::{Fails, Renews};
    let grants = |changes| Answer::Grant(changes);
    vec![
        (Answer::Throttle(1), Fails("throttled", false)),
        (Answer::Status(500, json!("oops")), Fails("transient", false)),
        (Answer::Status(502, json!({})), Fails("transient", false)),
        (Answer::Text("text/html", "<html>Sign in</html>"), Fails("transient", true)),
        (Answer::Text("application/json", ""), Fails("transient", true)),
        (Answer::Text("application/json", "[]"), Fails("transient", true)),
        (Answer::Lost, Fails("transient", true)),
        (Answer::Unseen, Fails("transient", false)),
        (grants(json!({"access_token": null})), Fails("transient", true)),
        (grants(json!({"expires_in": null})), Renews(false)),
        (grants(json!({"expires_in": 0})), Renews(false)),
        (grants(json!({"expires_in": "1800"})), Renews(true)),
        (grants(json!({"refresh_token": null})), Renews(true)),
        (grants(json!({"refresh_token": ""})), Renews(true)),
    ]
}

/// Where the token before stays good, an answer that is of no use costs nothing. Where it does not, and the provider has
/// acted, nobody has what it honours: then the connection says what has become of it.
#[tokio::test]
async fn the_token_endpoint_answers_oddly() {
    join_all(ROTATIONS.map(endpoint_answers_oddly)).await;
}

async fn endpoint_answers_oddly(rotation: Rotation) {
    let rig = Rig::new().await;
    rig.fake.rotate(rotation);
    for (account, (answer, meaning)) in (1..).zip(odd_answers()) {
        let cell = format!("{rotation:?}, {answer:?}");
        let id = rig.connected(&format!("acme-{account}"), account).await;
        let first = rig.fake.honoured(account);
        // What counts as lost is tried once more.
        rig.fake.then([answer.clone(), answer.clone()]);
        let refreshed = rig.auth.refresh(id, Why::Asked).await;
        rig.fake.forget_answers();
        let token = rig.token(id).await;
        let mut is_lost = false;
        match meaning {
            Meaning::Fails(kind, acts) => {
                is_lost = acts && matches!(rotation, Rotation::Strict | Rotation::Jealous);
                let failure = refreshed.expect_err("it fails");
                // Tried again, what was lost with the first answer may be told at once.
                let dead_already = is_lost && failure.kind.label() == "needs_reauth";
                assert!(failure.kind.label() == kind || dead_already, "{cell}: {failure}");
                assert_eq!((token.generation, token.rejected_at.is_some()), (1, dead_already), "{cell}");
                assert_eq!(rig.auth.access_token(id).await.expect("still good").generation, 1);
            }
            Meaning::Renews(expires) => {
                assert_eq!(refreshed, Ok(Refreshed::Renewed), "{cell}");
                assert_eq!((token.generation, token.expires_at.is_some()), (2, expires), "{cell}");
            }
        }
        let again = rig.auth.refresh(id, Why::Asked).await;
        let connection = rig.connection(id).await;
        let reason = connection.reason.unwrap_or_default();
        let expected = if is_lost { ConnectionState::NeedsReauth } else { ConnectionState::Connected };
        assert_eq!((connection.state, again.is_ok()), (expected, !is_lost), "{cell}: {again:?}");
        if is_lost {
            let honoured = rig.fake.honoured(account);
            assert!(honoured.iter().all(|token| !first.contains(token)), "{cell}: the old one is good still");
            let told = reason.contains("grant is dead") && reason.contains("before it");
            assert!(told, "{cell}: {reason}");
        }
        stage::put_away(&rig, id).await;
    }
    rig.assert_no_secret_in_texts().await;
}

/// A code is good for one exchange: what was no answer costs it, and the start link is good for another try.
#[tokio::test]
async fn the_token_endpoint_answers_a_code_oddly() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Strict);
    for (account, (answer, meaning)) in (1..).zip(odd_answers()) {
        // One that is throttled is tried again.
        if matches!(meaning, Meaning::Fails("throttled", _)) {
            continue;
        }
        rig.fake.be_account(account);
        let asked = rig.ask(&format!("acme-{account}")).await;
        rig.fake.then([answer.clone()]);
        let mut ending = rig.come_back_to(&rig.auth, &asked.authorize_url(), "code=C").await;
        let id = asked.connection;
        let mut expires = true;
        match meaning {
            Meaning::Fails(kind, _) => {
                let Ending::Failed(failure) = &ending else { panic!("{answer:?}: {ending:?}") };
                assert_eq!(failure.kind.label(), kind, "{answer:?}: {failure}");
                assert_eq!(rig.connection(id).await.state, ConnectionState::Failed, "{answer:?}");
                let (url, _) = rig.follow(&asked).await;
                ending = rig.come_back_to(&rig.auth, &url, "code=C").await;
            }
            Meaning::Renews(known) => expires = known,
        }
        assert!(matches!(ending, Ending::Connected { .. }), "{answer:?}: {ending:?}");
        let token = rig.token(id).await;
        assert_eq!(token.expires_at.is_some(), expires, "{answer:?}");
        let again = rig.auth.refresh(id, Why::Asked).await;
        assert_eq!(again.is_ok(), token.refresh_sealed.is_some(), "{answer:?}: {again:?}");
        if let Err(failure) = again {
            assert!(failure.message.contains("gave no refresh token"), "{answer:?}: {failure}");
            assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth, "{answer:?}");
        }
    }
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn the_provider_is_slower_than_the_deadline() {
    tokio::join!(join_all(ROTATIONS.map(slower_than_the_deadline)), a_code_slower_than_its_deadline());
}

/// At [`Step::Sent`]: the provider has the request, the deadline passes, and its answer does not come.
fn passes_when_seen(rig: &Rig, grant_type: &'static str) -> Between {
    let (fake, before) = (rig.fake.clone(), rig.fake.count(grant_type));
    rig.fake.hold();
    at_step(Step::Sent, move || {
        let fake = fake.clone();
        async move {
            fake.until_asked(grant_type, before + 1).await;
            EXCHANGE_MAX
        }
    })
}

async fn slower_than_the_deadline(rotation: Rotation) {
    let rig = Rig::new().await;
    rig.fake.rotate(rotation);
    let id = rig.connected("acme", 1).await;
    // Too late before it began: nobody is asked.
    let between = at_step(Step::Open, || std::future::ready(EXCHANGE_MAX));
    let late = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
    late.refresh(id, Why::Asked).await.expect_err("too late");
    assert_eq!(rig.fake.count("refresh_token"), 0);
    // Nothing is left for a second try.
    let between = passes_when_seen(&rig, "refresh_token");
    let late = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
    let failure = late.refresh(id, Why::Asked).await.expect_err("too late");
    assert_eq!(failure.kind.label(), "transient", "{rotation:?}: {failure}");
    assert_eq!(rig.fake.count("refresh_token"), 1);
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected, "{rotation:?}");
    rig.fake.let_go();
    let is_lost = matches!(rotation, Rotation::Strict | Rotation::Jealous);
    let again = rig.auth.refresh(id, Why::Asked).await;
    assert_eq!(again.is_ok(), !is_lost, "{rotation:?}: {again:?}");
    let connection = rig.connection(id).await;
    if is_lost {
        let reason = connection.reason.unwrap_or_default();
        assert_eq!(connection.state, ConnectionState::NeedsReauth, "{rotation:?}");
        assert!(reason.contains("grant is dead") && reason.contains("did not answer in time"), "{reason}");
    } else {
        assert_eq!(connection.state, ConnectionState::Connected, "{rotation:?}");
    }
}

async fn a_code_slower_than_its_deadline() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Strict);
    let asked = rig.ask("acme").await;
    let between = passes_when_seen(&rig, "authorization_code");
    let late = rig.daemon_at(Host { name: "host", state: rig.state.path(), between });
    let ending = rig.come_back_to(&late, &asked.authorize_url(), "code=C").await;
    let Ending::Failed(failure) = ending else { panic!("{ending:?}") };
    assert!(failure.message.contains("did not answer in time"), "{failure}");
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Failed));
    rig.fake.let_go();
    let (url, _) = rig.follow(&asked).await;
    assert_eq!(rig.come_back(&url, "code=C").await.status, 200);
}

/// An older backup is restored, with the folder of spills and without it.
#[tokio::test]
async fn an_older_backup_is_restored() {
    let rig = Rig::new().await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
    let mut account = 0;
    for rotation in ROTATIONS {
        for lost in [1, 3] {
            for has_folder in [true, false] {
                account += 1;
                rig.fake.rotate(rotation);
                let id: ConnectionId = rig.connected(&format!("acme-{account}"), account).await;
                rig.execute("DELETE FROM public.backup").await;
                rig.execute("INSERT INTO public.backup SELECT * FROM fieldmirror.tokens").await;
                for _ in 0..lost {
                    rig.auth.refresh(id, Why::Asked).await.expect("it works");
                }
                rig.execute("DELETE FROM fieldmirror.tokens").await;
                rig.execute("INSERT INTO fieldmirror.tokens SELECT * FROM public.backup").await;
                let state = if has_folder { rig.state.path() } else { elsewhere.path() };
                let auth = start_again(&rig, state).await;
                // The old one is good where nothing rotates, or until the one after it is used.
                let old_is_good = match rotation {
                    Rotation::Never => true,
                    Rotation::Graceful => lost == 1,
                    Rotation::Strict | Rotation::Jealous => false,
                };
                let kept = has_folder || old_is_good;
                let refreshed = auth.refresh(id, Why::Asked).await;
                assert_eq!(refreshed.is_ok(), kept, "{rotation:?}, {lost}, {has_folder}: {refreshed:?}");
                let expected = if kept { ConnectionState::Connected } else { ConnectionState::NeedsReauth };
                assert_eq!(rig.connection(id).await.state, expected, "{rotation:?}, {lost}, {has_folder}");
                stage::put_away(&rig, id).await;
            }
        }
    }
}

/// Two machines have kept replies of a database that was restored, and the one with the older ones comes first: it is told
/// that the grant is dead. The other one knows better, and does not wait for its turn.
#[tokio::test]
async fn an_older_backup_is_restored_and_two_machines_have_kept_replies() {
    let rig = Rig::new().await;
    rig.fake.rotate(Rotation::Strict);
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = rig.daemon_at(Host { name: "other", state: elsewhere.path(), between: Between::default() });
    let id = rig.connected("acme", 1).await;
    rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
    for auth in [&rig.auth, &other, &other] {
        auth.refresh(id, Why::Asked).await.expect("it works");
    }
    rig.batch("DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.backup")
        .await;
    let first = start_again(&rig, rig.state.path()).await;
    first.refresh(id, Why::Asked).await.expect_err("what it has is spent");
    assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);
    assert_eq!(rig.token(id).await.generation, 2);
    let second = start_again(&rig, elsewhere.path()).await;
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
    assert_eq!((rig.token(id).await.generation, rig.fake.count("refresh_token")), (5, 5));
    assert_eq!(second.refresh(id, Why::Asked).await, Ok(Refreshed::Renewed));
    // A death of what is kept here is believed: it is not tried again every minute.
    rig.batch("DELETE FROM fieldmirror.tokens; INSERT INTO fieldmirror.tokens SELECT * FROM public.backup")
        .await;
    rig.fake.then(std::iter::repeat_n(super::fake::bad_refresh_token(), 3));
    let auth = start_again(&rig, elsewhere.path()).await;
    assert_eq!(rig.connection(id).await.state, ConnectionState::NeedsReauth);
    let asked = rig.fake.count("refresh_token");
    let left = auth.replay().await.expect("the folder and the database go along");
    auth.follow_up(left).await;
    assert_eq!(rig.fake.count("refresh_token"), asked);
}
