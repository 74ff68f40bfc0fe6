//! Changing the vault key while everything goes on, and sealed values that are not where they belong.

use std::collections::BTreeSet;
use std::time::Duration;

use fieldmirror::auth::Ending;
use fieldmirror::auth::refresh::Why;
use fieldmirror::db::asks::Asked;
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::daemons::{self, SpillFolder};
use fieldmirror::db::requests::{RequestKind, RequestOutcome};
use fieldmirror::db::secrets::{self, SealedSecret};
use fieldmirror::db::vault_use::{KeyUse, KeysInUse};
use fieldmirror::db::{rotations, vault_keys, vault_use};
use fieldmirror::domain::failure::FailureKind;
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::jobs;
use fieldmirror::vault::{Bound, Vault, generate_key, key_id_of};
use serde_json::json;
use uuid::Uuid;

use super::rig::{Rig, state_of};

async fn ask(rig: &Rig) -> Asked {
    let test = &rig.test;
    test.db.transaction(rotations::ask).await.expect("the database does it")
}

/// A daemon that lives and has these keys.
async fn on_record(rig: &Rig, host: &'static str, vault: &Vault) {
    let (seals_with, opens_with) = (vault.key_id().to_owned(), vault.key_ids());
    rig.db(move |conn| {
        let id = Uuid::new_v4();
        daemons::beat(conn, id, host, 1, "0.1.0")?;
        daemons::tell_spills(conn, id, &SpillFolder { keys: Some(Vec::new()), ..SpillFolder::default() })?;
        daemons::tell_keys(conn, id, &seals_with, &opens_with)
    })
    .await;
}

async fn in_use(rig: &Rig) -> KeysInUse {
    rig.db(|conn| vault_use::keys(conn, Duration::from_secs(15))).await
}

/// The keys that have sealed what is kept on disk, and how many files there are.
fn spill_keys(rig: &Rig) -> (BTreeSet<String>, usize) {
    let files = std::fs::read_dir(rig.auth.spills.folder())
        .expect("a folder")
        .map(|file| file.expect("a file").path());
    let keys: Vec<String> =
        files.filter_map(|path| key_id_of(&std::fs::read(path).expect("it can be read"))).collect();
    (keys.iter().cloned().collect(), keys.len())
}

/// How many stored values a key has sealed.
async fn sealed_with(rig: &Rig, key_id: &str) -> i64 {
    let in_use = in_use(rig).await;
    in_use.keys.iter().filter(|key| key.key_id.as_deref() == Some(key_id)).map(KeyUse::total).sum()
}

/// A value in every column that holds sealed ones, and a box that waits. Returns the connections with a token.
async fn one_of_each(rig: &Rig) -> (Vec<ConnectionId>, ConnectionId) {
    let (key_id, public_key) = (rig.vault.key_id().to_owned(), rig.vault.public_key());
    rig.db(move |conn| vault_keys::publish(conn, &key_id, &public_key)).await;
    let ids = vec![rig.connected("a", 1).await, rig.connected("b", 2).await, rig.connected("c", 3).await];
    let (id, grant) = (ids[0], Uuid::new_v4());
    let bound = Bound { connection: id, grant, column: "secrets.sealed/k" };
    let secret =
        SealedSecret { name: "k".into(), grant_id: grant, sealed: rig.vault.seal(b"SECRET-K", &bound) };
    rig.db(move |conn| secrets::replace(conn, id, &[secret])).await;
    // Its verifier waits for the browser.
    rig.ask("d").await;
    let keyed = rig.pending("e", GrantKind::BearerToken).await;
    let secrets = r#"{"bearer_token":"SECRET-KEY"}"#.to_owned();
    rig.request(keyed, RequestKind::Connect, json!({}), Some(secrets)).await;
    (ids, keyed)
}

#[tokio::test]
async fn a_rotation_seals_everything_anew_while_refreshes_go_on() {
    let rig = Rig::new().await;
    let (ids, keyed) = one_of_each(&rig).await;
    let old = rig.vault.key_id().to_owned();
    let before = sealed_with(&rig, &old).await;
    assert_eq!(before, 3 * 2 + 1 + 1 + 1, "tokens, a secret, a verifier, a box");
    assert_eq!(spill_keys(&rig), (BTreeSet::from([old.clone()]), 3), "a kept reply for each grant");
    let new_key = generate_key();
    let daemon = rig.daemon_with_key(&new_key, true);
    on_record(&rig, "h", &daemon.vault).await;
    let asked = ask(&rig).await;
    let refreshes = async {
        for id in ids.iter().cycle().take(9) {
            daemon.refresh(*id, Why::Asked).await.expect("refreshes go on");
        }
    };
    let (rotated, ()) = tokio::join!(daemon.rotate_key(), refreshes);
    rotated.expect("it is rotated");
    let request = rig.request_outcome(asked.request).await;
    assert_eq!(request.0, Some(RequestOutcome::Done), "{:?}", request.1);
    assert!(request.1.expect("what was done").contains("none with another key"));
    assert_eq!(sealed_with(&rig, &old).await, 0);
    assert_eq!(sealed_with(&rig, daemon.vault.key_id()).await, before);
    assert_eq!(rig.db(vault_keys::latest).await, Some(daemon.vault.public_key()), "commands seal to it");
    let used = in_use(&rig).await;
    let old_key =
        used.keys.iter().find(|key| key.key_id.as_deref() == Some(&old)).expect("it is known still");
    // A link that was given out before is vouched for by the old key.
    assert!(used.needs(old_key).iter().all(|need| need.contains("start links")), "{:?}", used.needs(old_key));

    assert_eq!(spill_keys(&rig).0, BTreeSet::from([daemon.vault.key_id().to_owned()]), "on disk too");

    // Without the old key everything opens.
    let only_new = rig.daemon_with_key(&new_key, false);
    for id in &ids {
        only_new.access_token(*id).await.expect("a token");
        only_new.refresh(*id, Why::Asked).await.expect("the refresh token opens too");
    }
    rig.fake.be_account(4);
    jobs::connect::run(&only_new, keyed).await.expect("the job runs");
    only_new.access_token(keyed).await.expect("what was handed over before the rotation opens");
    let audited = "SELECT count(*) AS value FROM fieldmirror.audit_log \
         WHERE event = 'rotate_key' AND outcome = 'done' AND connection_id IS NULL AND detail IS NOT NULL";
    assert_eq!(rig.count(audited).await, 1);
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn a_rotation_waits_for_all_daemons_to_have_the_key() {
    let rig = Rig::new().await;
    let id = rig.connected("a", 1).await;
    let old = rig.vault.key_id().to_owned();
    let daemon = rig.daemon_with_key(&generate_key(), true);
    on_record(&rig, "new", &daemon.vault).await;
    on_record(&rig, "behind", &rig.vault).await;
    let asked = ask(&rig).await;
    // Not seen since: it may have ended.
    let failure = daemon.rotate_key().await.expect_err("it is left open");
    assert_eq!(failure.kind, FailureKind::Transient);
    assert_eq!(rig.request_outcome(asked.request).await.0, None);
    rig.execute("UPDATE fieldmirror.daemons SET last_seen_at = now() WHERE host = 'behind'").await;
    daemon.rotate_key().await.expect("it is answered");
    let (outcome, message) = rig.request_outcome(asked.request).await;
    let message = message.expect("a reason");
    assert_eq!(outcome, Some(RequestOutcome::Refused), "{message}");
    for words in ["`behind`", &format!("seals with `{old}`, and lacks that one"), "previous_key_files"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(sealed_with(&rig, &old).await, 2, "nothing was touched");

    let asked = ask(&rig).await;
    rig.execute("DELETE FROM fieldmirror.daemons WHERE host = 'behind'").await;
    daemon.rotate_key().await.expect("it is rotated");
    assert_eq!(rig.request_outcome(asked.request).await.0, Some(RequestOutcome::Done));
    daemon.access_token(id).await.expect("a token");
}

#[tokio::test]
async fn a_value_that_was_moved_is_told_and_never_used() {
    let rig = Rig::new().await;
    let (one, other) = (rig.connected("a", 1).await, rig.connected("b", 2).await);
    let swap = "UPDATE fieldmirror.tokens t SET access_sealed = o.access_sealed, refresh_sealed = o.refresh_sealed, \
         grant_id = o.grant_id FROM fieldmirror.tokens o WHERE o.connection_id <> t.connection_id";
    rig.execute(swap).await;
    let asked_before = rig.fake.asked().len();
    for _ in 0..2 {
        let failure = rig.auth.access_token(one).await.expect_err("it is not used");
        assert_eq!(failure.kind, FailureKind::OurBug);
        assert!(failure.message.contains("sealed for another row"), "{failure}");
    }
    rig.auth.refresh(other, Why::Asked).await.expect_err("nor is the refresh token");
    assert_eq!(rig.fake.asked().len(), asked_before, "nothing was sent");
    for id in [one, other] {
        let said = rig.token(id).await.last_error.expect("status says why");
        assert!(said.contains("does not open"), "{said}");
    }
    let told =
        "SELECT count(*) AS value FROM fieldmirror.audit_log WHERE event = 'open' AND outcome = 'refused'";
    assert_eq!(rig.count(told).await, 1, "once for a token");
    let conditions = rig.conditions().await;
    assert_eq!(conditions, ["token_unusable connection 1", "token_unusable connection 2"]);

    let daemon = rig.daemon_with_key(&generate_key(), true);
    on_record(&rig, "h", &daemon.vault).await;
    let asked = ask(&rig).await;
    daemon.rotate_key().await.expect("it ends");
    let (outcome, message) = rig.request_outcome(asked.request).await;
    assert_eq!(outcome, Some(RequestOutcome::Failed));
    let message = message.expect("a reason");
    assert!(message.contains("4 values are still sealed") && message.contains("does not open"), "{message}");

    // Put back, both are as good as before.
    rig.execute(swap).await;
    for id in [one, other] {
        daemon.refresh(id, Why::Asked).await.expect("it opens again");
        daemon.access_token(id).await.expect("a token");
    }
    assert_eq!(rig.conditions().await, [] as [String; 0]);
    rig.assert_no_secret_in_texts().await;
}

/// Two connections, each with a client of its own, whose secrets change places: that of the one is never shown for the other.
#[tokio::test]
async fn a_secret_that_was_moved_is_told_and_never_used() {
    let rig = Rig::new().await;
    let mut ids = Vec::new();
    for (name, tenant) in [("a", "77"), ("b", "88")] {
        let params = json!({"tenant_id": tenant, "client_id": name});
        let id = rig.pending_at("servicetitan", name, GrantKind::ClientCredentials, params).await;
        let secrets = format!(r#"{{"client_secret":"SECRET-CLIENT-{name}","app_key":"SECRET-APP-{name}"}}"#);
        rig.request(id, RequestKind::Connect, json!({}), Some(secrets)).await;
        jobs::connect::run(&rig.auth, id).await.expect("the job runs");
        assert_eq!(rig.connection(id).await.state, ConnectionState::Connected);
        ids.push(id);
    }
    rig.execute(
        "UPDATE fieldmirror.secrets s SET sealed = o.sealed, grant_id = o.grant_id FROM fieldmirror.secrets o \
         WHERE o.connection_id <> s.connection_id AND o.name = s.name",
    )
    .await;
    let asked = rig.fake.asked().len();
    for id in &ids {
        let failure = rig.auth.access_token(*id).await.expect_err("its app key is another's");
        assert!(failure.message.contains("sealed for another row"), "{failure}");
        let failure = rig.auth.refresh(*id, Why::Asked).await.expect_err("so is its client secret");
        assert!(failure.message.contains("`secrets.sealed/"), "{failure}");
    }
    assert_eq!(rig.fake.asked().len(), asked, "nothing was sent");
    for id in ids {
        let said = rig.token(id).await.last_error.expect("status says why");
        assert!(said.contains("does not open"), "{said}");
    }
    let told =
        "SELECT count(*) AS value FROM fieldmirror.audit_log WHERE event = 'open' AND outcome = 'refused'";
    assert_eq!(rig.count(told).await, 2);
    rig.assert_no_secret_in_texts().await;
}

/// What was handed over with one request is of no use to another, nor to the same one of another connection.
#[tokio::test]
async fn what_was_handed_over_is_told_and_never_used_where_it_was_moved() {
    let rig = Rig::new().await;
    let grant = GrantKind::BearerToken;
    let (one, other) = (rig.pending("a", grant).await, rig.pending("b", grant).await);
    let mut requests = Vec::new();
    for (id, name) in [(one, "a"), (other, "b")] {
        let secrets = format!(r#"{{"bearer_token":"SECRET-KEY-{name}"}}"#);
        requests.push(rig.request(id, RequestKind::Connect, json!({}), Some(secrets)).await);
    }
    rig.execute(
        "UPDATE fieldmirror.requests r SET sealed = o.sealed FROM fieldmirror.requests o WHERE o.id <> r.id",
    )
    .await;
    // A key that is rotated meanwhile does not make it good.
    let daemon = rig.daemon_with_key(&generate_key(), true);
    on_record(&rig, "h", &daemon.vault).await;
    ask(&rig).await;
    daemon.rotate_key().await.expect("it ends");
    for (id, request) in [(one, requests[0]), (other, requests[1])] {
        jobs::connect::run(&daemon, id).await.expect("the job runs");
        let row = rig.request_row(request).await;
        let message = row.message.expect("a reason");
        assert!(message.contains("sealed for another request") && message.contains("again"), "{message}");
        assert_eq!((row.outcome, row.sealed), (Some(RequestOutcome::Failed), None));
        assert_eq!(
            (rig.connection(id).await.state, rig.maybe_token(id).await),
            (ConnectionState::Failed, None)
        );
    }
    let told = "SELECT count(*) AS value FROM fieldmirror.audit_log WHERE detail LIKE '%another request%'";
    assert_eq!(rig.count(told).await, 2);

    // A pasted address, and a secret beside a consent.
    let asked = [rig.ask("c").await, rig.ask("d").await];
    let mut pasted = Vec::new();
    for asked in &asked {
        let url = format!(
            "{}?code=C&state={}",
            asked.links["redirect_uri"].as_str().expect("text"),
            state_of(&asked.authorize_url())
        );
        pasted.push(rig.request(asked.connection, RequestKind::Callback, json!({}), Some(url)).await);
    }
    rig.execute(
        "UPDATE fieldmirror.requests r SET connection_id = o.connection_id FROM fieldmirror.requests o \
         WHERE o.id <> r.id AND r.kind = 'callback' AND o.kind = 'callback'",
    )
    .await;
    for asked in &asked {
        jobs::connect::run(&rig.auth, asked.connection).await.expect("the job runs");
    }
    for request in pasted {
        let row = rig.request_row(request).await;
        assert_eq!(row.outcome, Some(RequestOutcome::Refused), "{:?}", row.message);
        assert!(row.message.expect("a reason").contains("sealed for another request"));
    }
    assert_eq!(rig.fake.asked().len(), 0, "no code was traded");
    rig.assert_no_secret_in_texts().await;
}

/// The verifier of one consent is no use in another.
#[tokio::test]
async fn a_verifier_that_was_moved_is_told_and_never_used() {
    let rig = Rig::new().await;
    let (one, other) = (rig.ask("a").await, rig.ask("b").await);
    let swap = "UPDATE fieldmirror.authorization_attempts t SET verifier_sealed = o.verifier_sealed \
         FROM fieldmirror.authorization_attempts o WHERE o.id <> t.id AND o.verifier_sealed IS NOT NULL";
    rig.execute(swap).await;
    for asked in [&one, &other] {
        let ending = rig.come_back_to(&rig.auth, &asked.authorize_url(), "code=C").await;
        let Ending::Failed(failure) = ending else { panic!("{ending:?}") };
        assert!(failure.message.contains("`authorization_attempts.verifier_sealed`"), "{failure}");
        assert!(failure.message.contains("sealed for another row"), "{failure}");
    }
    assert_eq!(rig.fake.asked().len(), 0, "no code was traded");
    // The start link is good for another try.
    let (url, _) = rig.follow(&one).await;
    assert_eq!(rig.come_back(&url, "code=C").await.status, 200);
}
