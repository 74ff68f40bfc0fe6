//! Whatever happens to a grant leaves one line in the audit log.

use chrono::TimeDelta;
use diesel::sql_types::Text;
use fieldmirror::auth::refresh::Why;
use fieldmirror::db::requests::RequestKind;
use fieldmirror::db::rows;
use fieldmirror::domain::failure::FailureKind;
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::domain::time::Clock as _;
use fieldmirror::jobs;
use serde_json::json;

use super::fake::{Answer, bad_refresh_token};
use super::rig::Rig;

/// The new lines, as event and outcome.
async fn lines(rig: &Rig) -> Vec<String> {
    rig.db(|conn| {
        let query = "WITH gone AS (DELETE FROM fieldmirror.audit_log RETURNING *) \
             SELECT coalesce(connection_name, '-') || ' ' || event || ' ' || outcome AS value FROM gone ORDER BY id";
        rows::values::<Text, String, _>(conn, diesel::sql_query(query))
    })
    .await
}

#[tokio::test]
async fn each_event_leaves_one_line() {
    let rig = Rig::new().await;
    let id = rig.connected("a", 1).await;
    assert_eq!(lines(&rig).await, ["a connect done"]);
    rig.auth.refresh(id, Why::Asked).await.expect("a refresh");
    assert_eq!(lines(&rig).await, ["a refresh done"]);
    rig.fake.then([Answer::Status(429, json!({}))]);
    rig.auth.refresh(id, Why::Asked).await.expect_err("a failure");
    assert_eq!(lines(&rig).await, ["a refresh failed"]);
    rig.fake.then([bad_refresh_token()]);
    rig.auth.refresh(id, Why::Asked).await.expect_err("dead");
    assert_eq!(lines(&rig).await, ["a refresh dead"]);
    rig.auth.refresh(id, Why::Asked).await.expect("it lives after all");
    assert_eq!(lines(&rig).await, ["a refresh done"]);
    let generation = rig.token(id).await.generation;
    let failure = rig.auth.ended(id, generation, "the owner removed the app").await;
    assert_eq!(failure.kind, FailureKind::NeedsReauth);
    assert_eq!(lines(&rig).await, ["a request dead"]);

    let asked = rig.ask("b").await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "error=access_denied").await.status, 400);
    assert_eq!(lines(&rig).await, ["b connect denied"]);
    let first = rig.ask("c").await;
    rig.ask_for(first.connection).await;
    assert_eq!(lines(&rig).await, ["c connect superseded"]);
    let later = rig.clock.now() + TimeDelta::days(2);
    rig.auth.expire_authorizations(later).await.expect("links expire");
    assert_eq!(lines(&rig).await, ["c connect expired"]);

    rig.fake.be_account(9);
    let keyed = rig.pending("k", GrantKind::BearerToken).await;
    for (key, outcome) in [("WRONG", "denied"), ("SECRET-KEY", "done")] {
        let secrets = json!({ "bearer_token": key }).to_string();
        rig.request(keyed, RequestKind::Connect, json!({}), Some(secrets)).await;
        jobs::connect::run(&rig.auth, keyed).await.expect("the job runs");
        assert_eq!(lines(&rig).await, [format!("k connect {outcome}")]);
    }
    rig.clock.shift(TimeDelta::hours(25));
    jobs::refresh_token::run(&rig.auth, keyed).await.expect("it works");
    assert_eq!(lines(&rig).await, ["k probe done"]);
    rig.fake.refuse_details(Some(401));
    rig.clock.shift(TimeDelta::hours(25));
    jobs::refresh_token::run(&rig.auth, keyed).await.expect_err("it does not");
    assert_eq!(lines(&rig).await, ["k probe dead"]);

    rig.auth.disconnect(id, false).await.expect("it ends");
    assert_eq!(lines(&rig).await, ["a disconnect done"]);
    rig.auth.disconnect(id, true).await.expect("it ends");
    assert_eq!(lines(&rig).await, ["a disconnect done"], "the purge is an event of its own");
    rig.assert_no_secret_in_texts().await;
}
