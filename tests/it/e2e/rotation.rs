//! The vault key is changed as an admin does it: another key in the settings, a restart, one command; then the old key is
//! taken away.

use std::os::unix::fs::PermissionsExt;

use fieldmirror::vault::generate_key;
use serde_json::{Value, json};

use crate::support::app::{TestApp, small};

fn of(status: &Value, key_id: &Value) -> Value {
    let keys = status["keys"].as_array().expect("a list").iter();
    keys.clone().find(|key| key["key_id"] == *key_id).cloned().unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vault_key_is_changed_and_the_old_one_taken_away() {
    let mut app = TestApp::new(small(10), &[]).await;
    let daemon = app.daemon().await;
    app.connect("acme").await;
    let before = app.run("key status --json").await.done().last();
    let old_id = before["keys"][0]["key_id"].clone();
    assert_eq!(
        (&before["keys"][0]["active"], &before["keys"][0]["removable"]),
        (&json!(true), &json!(false))
    );
    daemon.stop().await;

    let old_file = app.folder.join("old.key");
    std::fs::write(&old_file, app.environment["FIELDMIRROR_VAULT__KEY"].as_str()).unwrap();
    std::fs::set_permissions(&old_file, PermissionsExt::from_mode(0o600)).unwrap();
    app = app.with("vault.key", generate_key().expose());
    let refused = app.run("run").await;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains(old_id.as_str().unwrap()), "{}", refused.stderr);
    assert!(refused.stderr.contains("previous_key_files"), "{}", refused.stderr);

    app = app.with("vault.previous_key_files", &old_file.display().to_string());
    let daemon = app.daemon().await;
    let new_id = app.run("key status --json").await.done().last()["daemons"][0]["seals_with"].clone();
    let rotated = app.run("key rotate --json").await.done().last();
    let request = &rotated["requests"][0];
    assert_eq!((&request["kind"], &request["outcome"]), (&json!("rotate_key"), &json!("done")), "{rotated}");
    assert_eq!((&request["connection"], &request["connection_id"]), (&Value::Null, &Value::Null));
    assert!(request["job_id"].is_string(), "{rotated}");
    let after = app.run("key status --json").await.done().last();
    assert_eq!(of(&after, &old_id)["removable"], true, "{after}");
    assert_eq!(of(&after, &new_id)["active"], true, "{after}");
    assert_eq!(of(&after, &new_id)["sealed"]["tokens"], 2, "{after}");
    let page = app.run("key status").await.done().stdout;
    assert!(page.contains("nothing uses it; its file may be removed"), "{page}");
    daemon.stop().await;

    let app = app.without("vault.previous_key_files");
    let daemon = app.daemon().await;
    app.run("enqueue --refresh acme --wait --wait-max 60s").await.done();
    daemon.stop().await;
}
