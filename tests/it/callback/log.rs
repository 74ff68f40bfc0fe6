//! What browsers and providers send makes no line of the log, and does nothing to the terminal of whoever reads it.

use std::time::{Duration, Instant};

use chrono::DateTime;
use serde_json::json;
use url::Url;

use super::injection::{MARK, payloads};
use crate::auth::fake::{Answer, Fake};
use crate::auth::rig::state_of;
use crate::support::app::{PATIENCE, TestApp, get, small};

/// What a provider may say for once.
const FORGED: &str =
    "busy\n2026-11-26T00:00:00.000000Z  INFO forged\r\n\u{1b}[2K\u{9b}1Aforged\u{2028}forged";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_from_outside_looks_like_a_line_of_ours() {
    let app = TestApp::new(small(20), &[]).await;
    let mut daemon = app.spawn_daemon("");
    app.mirrored("acme").await;
    daemon.kill().await.unwrap();
    // From now on another endpoint answers, and quotes.
    let fake = Fake::start().await;
    let app = app.with("providers.hubspot.token_url", &format!("http://{}/token", fake.address));
    let refusal = json!({"status": "BAD_REFRESH_TOKEN", "error": "invalid_grant", "message": FORGED});
    let mut daemon = app.spawn_daemon("");
    fake.then([Answer::Status(400, refusal.clone())]);
    app.run("enqueue --refresh acme --wait").await;
    app.wait_until("the grant is dead", "SELECT state = 'needs_reauth' FROM mirror.connections").await;

    for (name, said) in
        [("declines", "error=~&error_description=~&error_uri=~"), ("agrees", "code=~&scope=~&~=~")]
    {
        let asked =
            app.run(&format!("enqueue --connect hubspot --name {name} --no-wait --json")).await.done().last();
        let start = Url::parse(asked["start_url"].as_str().unwrap()).unwrap();
        for payload in payloads() {
            let said = said.replace('~', &payload);
            let (status, location, body) = patiently(&start).await;
            assert_eq!(status, 302, "{body}");
            let state = state_of(&Url::parse(&location.unwrap()).unwrap());
            fake.forget_answers();
            fake.then([Answer::Status(400, refusal.clone())]);
            let back = format!("{}/oauth/callback/hubspot?{said}&state={state}", app.endpoint);
            let (status, _, body) = patiently(&Url::parse(&back).unwrap()).await;
            assert!([400, 502].contains(&status), "{said}: {status} {body}");
        }
    }
    daemon.kill().await.unwrap();

    let log = std::fs::read_to_string(app.folder.join("daemon.log")).unwrap();
    assert!(log.contains("INFO forged"), "what the provider says is told: {log}");
    for line in log.lines() {
        let (at, said) = line.split_once(' ').unwrap_or_else(|| panic!("no line of ours: {line:?}"));
        assert!(DateTime::parse_from_rfc3339(at).is_ok(), "{line:?}");
        assert!(
            ["ERROR ", "WARN ", "INFO "].iter().any(|level| said.trim_start().starts_with(level)),
            "{line:?}"
        );
        assert!(!line.contains(|c: char| c.is_control() || c == '\u{2028}'), "{line:?}");
        assert!(!line.to_ascii_lowercase().contains(MARK), "a browser's words: {line:?}");
    }
}

/// One GET, and again as long as there were too many before it.
async fn patiently(url: &Url) -> (u16, Option<String>, String) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let got = get(url).await;
        if got.0 != 429 || Instant::now() > deadline {
            return got;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
