//! From the start link to a connection, and every way in which that can end otherwise.

use chrono::TimeDelta;
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::requests::{RequestKind, RequestOutcome};
use fieldmirror::domain::spec::GrantKind;
use fieldmirror::domain::time::Clock as _;
use fieldmirror::http::deadline::Deadline;
use fieldmirror::jobs;
use serde_json::json;
use url::Url;

use super::fake::Answer;
use super::rig::{Rig, state_of};

#[tokio::test]
async fn a_consent_through_the_start_link_connects() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let started = rig.get(&asked.start_path(), None).await;
    assert_eq!(started.status, 302);
    let set = started.header("set-cookie").expect("a cookie names the attempt");
    assert!(
        set.contains("HttpOnly")
            && set.contains("SameSite=Lax")
            && set.contains("Path=/oauth/callback/hubspot")
    );
    let authorize_url = Url::parse(started.header("location").expect("a place to go to")).expect("a URL");
    assert!(authorize_url.query_pairs().any(|(name, _)| name == "code_challenge"));
    let shown = rig.come_back_with(&authorize_url, "code=SECRET-CODE", started.cookie()).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    assert!(shown.body.contains("hub-4711.example"), "{}", shown.body);

    let connection = rig.connection(asked.connection).await;
    assert_eq!(connection.state, ConnectionState::Connected);
    assert_eq!(connection.account_id.as_deref(), Some("4711"));
    assert_eq!(connection.account_name.as_deref(), Some("hub-4711.example"));
    let request = rig.request_row(asked.request).await;
    assert_eq!(request.outcome, Some(RequestOutcome::Done));
    let form = &rig.fake.asked()[0];
    assert_eq!(form["redirect_uri"], asked.links["redirect_uri"].as_str().expect("text"));
    assert!(form["code_verifier"].len() >= 43);
    let access = rig.auth.access_token(asked.connection).await.expect("a token");
    assert_eq!(access.credentials[0].1.expose(), "SECRET-AT-1");
    assert_eq!(access.generation, 1);
    // The link has done its work.
    assert_eq!(rig.get(&asked.start_path(), None).await.status, 400);
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn every_answer_carries_the_headers() {
    let rig = Rig::new().await;
    for (path, status) in
        [("/connect/x", 400), ("/oauth/callback/hubspot", 400), ("/", 404), ("/healthz", 200)]
    {
        let shown = rig.get(path, None).await;
        assert_eq!(shown.status, status, "{path}");
        let policy = shown.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("script"), "{policy}");
        assert_eq!(shown.header("cache-control"), Some("no-store"));
        assert_eq!(shown.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(shown.header("x-content-type-options"), Some("nosniff"));
    }
    let ready = rig.get("/readyz", None).await;
    assert_eq!(ready.status, 503);
    let body: serde_json::Value = serde_json::from_str(&ready.body).expect("JSON");
    assert_eq!(body, json!({"database": true, "key": true, "workers": false}));
    for method in ["POST", "HEAD", "PUT", "OPTIONS"] {
        let request = format!("{method} /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(rig.send(&request).await.status, 404, "{method}");
    }
    assert_eq!(rig.get(&format!("/healthz?{}", "a".repeat(9000)), None).await.status, 414);
}

#[tokio::test]
async fn a_denial_ends_the_request_and_the_link_stays_good() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let said = "error=access_denied&error_description=%3Cscript%3ESECRET%3C/script%3E";
    let shown = rig.come_back(&asked.authorize_url(), said).await;
    assert_eq!(shown.status, 400);
    assert!(!shown.body.contains("SECRET") && !shown.body.contains("script>"), "{}", shown.body);
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Denied));
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Failed);
    assert_eq!(rig.fake.asked().len(), 0);
    // The person thinks again.
    let (authorize_url, cookie) = rig.follow(&asked).await;
    assert_eq!(rig.come_back_with(&authorize_url, "code=C", Some(&cookie)).await.status, 200);
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
    rig.assert_no_secret_in_texts().await;
}

/// HubSpot says so when access is declined. The end of a Jobber consent that was declined is in `e2e/jobber.rs`.
#[tokio::test]
async fn silence_is_no_denial_where_the_provider_has_a_word_for_it() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let (authorize_url, cookie) = rig.follow(&asked).await;
    assert_eq!(rig.get("/oauth/callback/hubspot", None).await.status, 400);
    for query in ["", "?", "?state=", "?state=x", "?lang=en"] {
        let shown = rig.get(&format!("/oauth/callback/hubspot{query}"), Some(&cookie)).await;
        assert_eq!(shown.status, 400, "{query}");
    }
    assert_eq!(
        rig.get("/oauth/callback/jobber", Some(&cookie)).await.status,
        400,
        "another provider's cookie"
    );
    assert_eq!(rig.request_row(asked.request).await.done_at, None, "nobody's denial");
    assert_eq!(rig.come_back_with(&authorize_url, "code=C", Some(&cookie)).await.status, 200);
}

#[tokio::test]
async fn an_answer_without_state_is_matched_by_the_cookie() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    assert_eq!(rig.get("/oauth/callback/hubspot?error=access_denied", None).await.status, 400);
    assert_eq!(rig.request_row(asked.request).await.done_at, None, "nobody's denial");

    // An installation from the marketplace: its code proves nothing, the consent starts once more.
    let started = rig.get(&asked.start_path(), None).await;
    let first = started.cookie().expect("a cookie").to_owned();
    let again = rig.get("/oauth/callback/hubspot?code=SECRET-STRAY", Some(&first)).await;
    assert_eq!(again.status, 302);
    assert_eq!(rig.fake.asked().len(), 0, "a stray code is not redeemed");
    let round = rig.get("/oauth/callback/hubspot?code=SECRET-STRAY", Some(&first)).await;
    assert_eq!(round.status, 400, "only once");

    let second = again.cookie().expect("a cookie").to_owned();
    assert_eq!(rig.get("/oauth/callback/jobber?error=access_denied", Some(&second)).await.status, 400);
    assert_eq!(rig.request_row(asked.request).await.done_at, None, "another provider's denial");
    assert_eq!(rig.get("/oauth/callback/hubspot?error=access_denied", Some(&second)).await.status, 400);
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Denied));
}

#[tokio::test]
async fn a_browser_with_another_consent_under_way_does_not_end_this_one() {
    let rig = Rig::new().await;
    let (asked, evil) = (rig.ask("acme").await, rig.ask("evil").await);
    let (authorize_url, cookie) = rig.follow(&asked).await;
    let (_, other_links) = rig.follow(&evil).await;
    for said in ["code=C", "error=access_denied"] {
        let shown = rig.come_back_with(&authorize_url, said, Some(&other_links)).await;
        assert_eq!(shown.status, 400, "{said}");
        assert!(shown.body.contains("Another sign-in"), "{said}: {}", shown.body);
    }
    assert_eq!(rig.fake.asked().len(), 0, "no code was redeemed");
    assert_eq!(rig.request_row(asked.request).await.done_at, None);
    // Two tabs of one browser: the second has taken the place of the first one's cookie.
    let (_, second_tab) = rig.follow(&asked).await;
    assert_ne!(second_tab, cookie);
    let shown = rig.come_back_with(&authorize_url, "code=C", Some(&second_tab)).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    assert_eq!(rig.request_row(evil.request).await.done_at, None);
}

/// The link was mailed, opened in one program and finished in another; or the browser keeps no cookies.
#[tokio::test]
async fn a_browser_without_a_cookie_may_end_a_consent() {
    for cookie in [None, Some("fieldmirror_attempt_hubspot_x=forged")] {
        let rig = Rig::new().await;
        let asked = rig.ask("acme").await;
        let (authorize_url, _) = rig.follow(&asked).await;
        let shown = rig.come_back_with(&authorize_url, "code=C", cookie).await;
        assert_eq!(shown.status, 200, "{cookie:?}: {}", shown.body);
    }
}

#[tokio::test]
async fn a_pasted_answer_needs_no_browser() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let (authorize_url, _) = rig.follow(&asked).await;
    let redirect = asked.links["redirect_uri"].as_str().expect("text");
    let url = format!("{redirect}?code=C&state={}", state_of(&authorize_url));
    let request = rig.request(asked.connection, RequestKind::Callback, json!({}), Some(url)).await;
    jobs::connect::run(&rig.auth, asked.connection).await.expect("the job runs");
    assert_eq!(rig.request_row(request).await.outcome, Some(RequestOutcome::Done));
}

#[tokio::test]
async fn an_answer_is_good_once() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
    let shown = rig.come_back(&asked.authorize_url(), "code=C").await;
    assert_eq!(shown.status, 400);
    assert!(shown.body.contains("Used already"), "{}", shown.body);
    assert_eq!(rig.fake.asked().len(), 1);
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
}

#[tokio::test]
async fn an_answer_that_comes_late_is_refused() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    rig.clock.shift(TimeDelta::minutes(11));
    let shown = rig.come_back(&asked.authorize_url(), "code=C").await;
    assert_eq!(shown.status, 400);
    assert!(shown.body.contains("Too late"), "{}", shown.body);
    assert_eq!(rig.fake.asked().len(), 0);
    assert_eq!(rig.request_row(asked.request).await.done_at, None, "the link is good for another start");
}

#[tokio::test]
async fn a_start_link_expires() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let now = rig.clock.now();
    assert_eq!(rig.auth.expire_authorizations(now).await, Ok(0));
    rig.clock.shift(TimeDelta::hours(25));
    let now = rig.clock.now();
    assert_eq!(rig.auth.expire_authorizations(now).await, Ok(1));
    assert_eq!(rig.auth.expire_authorizations(now).await, Ok(0));
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Expired));
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Failed);
    assert!(rig.get(&asked.start_path(), None).await.body.contains("Too late"));
}

#[tokio::test]
async fn a_state_of_another_provider_is_refused() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let state = state_of(&asked.authorize_url());
    let shown = rig.get(&format!("/oauth/callback/jobber?code=C&state={state}"), None).await;
    assert_eq!(shown.status, 400);
    assert_eq!(rig.fake.asked().len(), 0);
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200, "not used up by that");
}

#[tokio::test]
async fn forged_states_and_tickets_do_not_reach_the_database() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let state = state_of(&asked.authorize_url());
    // A database that nobody can ask anything: what asks it, fails with 502.
    rig.test.db.close();
    let flip = |text: &str| format!("{}{}", if text.starts_with('A') { "B" } else { "A" }, &text[1..]);
    for (path, status) in [
        (format!("/oauth/callback/hubspot?code=C&state={}", flip(&state)), 400),
        ("/oauth/callback/hubspot?code=C&state=x".to_owned(), 400),
        ("/oauth/callback/hubspot?code=C".to_owned(), 400),
        (format!("/oauth/callback/hubspot?code=C&code=D&state={state}"), 400),
        (format!("/oauth/callback/hubspot?code=C&error=access_denied&state={state}"), 400),
        (format!("/connect/{}", "A".repeat(86)), 400),
        (format!("/oauth/callback/hubspot?code=C&state={state}"), 502),
        (asked.start_path(), 502),
    ] {
        assert_eq!(rig.get(&path, None).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn a_reconnect_with_another_account_leaves_the_old_grant() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let before = rig.token(id).await;
    rig.fake.be_account(2);
    let asked = rig.ask_for(id).await;
    assert_eq!(rig.connection(id).await.state, ConnectionState::Connected, "usable meanwhile");
    let shown = rig.come_back(&asked.authorize_url(), "code=C").await;
    assert_eq!(shown.status, 400);
    assert!(shown.body.contains("Another account"), "{}", shown.body);
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::WrongAccount));
    assert_eq!(rig.token(id).await, before);
    let connection = rig.connection(id).await;
    assert_eq!((connection.state, connection.account_id.as_deref()), (ConnectionState::Connected, Some("1")));
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn a_reconnect_with_the_same_account_replaces_the_grant() {
    let rig = Rig::new().await;
    let id = rig.connected("acme", 1).await;
    let before = rig.token(id).await;
    let asked = rig.ask_for(id).await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
    let after = rig.token(id).await;
    assert_ne!(after.grant_id, before.grant_id);
    assert_eq!(rig.connection(id).await.grant_id, Some(after.grant_id));
    assert_eq!(rig.auth.access_token(id).await.expect("a token").credentials[0].1.expose(), "SECRET-AT-2");
}

#[tokio::test]
async fn an_account_is_connected_once() {
    let rig = Rig::new().await;
    rig.connected("first", 1).await;
    let asked = rig.ask("second").await;
    let shown = rig.come_back(&asked.authorize_url(), "code=C").await;
    assert_eq!(shown.status, 400);
    assert!(shown.body.contains("first"), "{}", shown.body);
    let request = rig.request_row(asked.request).await;
    assert_eq!(request.outcome, Some(RequestOutcome::WrongAccount));
    assert!(request.message.expect("a reason").contains("`first`"));
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Failed);
    assert_eq!(rig.maybe_token(asked.connection).await, None);
}

#[tokio::test]
async fn a_provider_that_is_down_gives_a_502_and_a_failed_request() {
    let rig = Rig::new().await;
    for answer in [
        Answer::Status(500, json!({})),
        Answer::Lost,
        Answer::Status(
            400,
            json!({"error": "invalid_client", "error_description": "SECRET-CLIENT is wrong"}),
        ),
    ] {
        rig.fake.then([answer.clone()]);
        let asked = rig.ask("acme").await;
        let shown = rig.come_back(&asked.authorize_url(), "code=SECRET-CODE").await;
        assert_eq!(shown.status, 502, "{answer:?}: {}", shown.body);
        // A client that is refused is our configuration's fault.
        let ours = matches!(answer, Answer::Status(400, _));
        let expected = if ours { RequestOutcome::Refused } else { RequestOutcome::Failed };
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(expected), "{answer:?}");
        assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Failed);
        assert!(!shown.body.contains("SECRET"), "{}", shown.body);
    }
    assert_eq!(rig.fake.asked().len(), 3, "a code is exchanged once");
    rig.fake.refuse_details(Some(400));
    let asked = rig.ask("acme").await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 502);
    assert_eq!(rig.maybe_token(asked.connection).await, None, "no account, no connection");
}

/// An endpoint that says that it has no time has not looked at the code.
#[tokio::test]
async fn a_code_is_tried_again_where_the_endpoint_has_no_time() {
    let rig = Rig::new().await;
    let busy = || Answer::Status(503, json!({}));
    rig.fake.then([Answer::Throttle(1), busy()]);
    let asked = rig.ask("acme").await;
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done));
    assert_eq!(rig.fake.asked().len(), 3);
    // Not for ever, and not for longer than a code lives.
    for (answers, tries) in [(vec![busy(), busy(), busy(), busy()], 4), (vec![Answer::Throttle(40)], 1)] {
        let before = rig.fake.asked().len();
        rig.fake.then(answers);
        let asked = rig.ask("other").await;
        assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 502);
        assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Failed));
        assert_eq!(rig.fake.asked().len() - before, tries);
    }
}

#[tokio::test]
async fn a_later_request_supersedes_the_earlier_link() {
    let rig = Rig::new().await;
    let (first, second) = (rig.ask("acme").await, rig.ask("acme").await);
    assert_eq!(first.connection, second.connection);
    assert_eq!(rig.request_row(first.request).await.outcome, Some(RequestOutcome::Superseded));
    assert_eq!(rig.get(&first.start_path(), None).await.status, 400);
    assert_eq!(rig.come_back(&first.authorize_url(), "code=C").await.status, 400);
    assert_eq!(rig.request_row(second.request).await.done_at, None);
    // The job again, with nothing new to do.
    jobs::connect::run(&rig.auth, second.connection).await.expect("the job runs");
    assert_eq!(rig.come_back(&second.authorize_url(), "code=C").await.status, 200);
    assert_eq!(rig.request_row(second.request).await.outcome, Some(RequestOutcome::Done));
}

#[tokio::test]
async fn a_pasted_url_does_what_the_endpoint_would() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let state = state_of(&asked.authorize_url());
    let redirect = asked.links["redirect_uri"].as_str().expect("text");
    let hash = fieldmirror::auth::ticket::hash(&state);
    let found = rig.db(move |conn| fieldmirror::db::authorizations::connection_of_state(conn, &hash)).await;
    assert_eq!(found, Some(asked.connection));
    for (url, outcome) in [
        (format!("{redirect}?code=SECRET-CODE&state=forged"), RequestOutcome::Refused),
        ("SECRET-NONSENSE".to_owned(), RequestOutcome::Refused),
        (format!("{redirect}?code=SECRET-CODE&state={state}"), RequestOutcome::Done),
        (format!("{redirect}?code=SECRET-CODE&state={state}"), RequestOutcome::Refused),
    ] {
        let request =
            rig.request(asked.connection, RequestKind::Callback, json!({}), Some(url.clone())).await;
        jobs::connect::run(&rig.auth, asked.connection).await.expect("the job runs");
        let row = rig.request_row(request).await;
        assert_eq!(row.outcome, Some(outcome), "{url}: {:?}", row.message);
        assert_eq!(row.sealed, None, "wiped when done");
    }
    assert_eq!(rig.request_row(asked.request).await.outcome, Some(RequestOutcome::Done));
    rig.assert_no_secret_in_texts().await;
}

#[tokio::test]
async fn a_browser_that_is_closed_does_not_stop_the_exchange() {
    let rig = Rig::new().await;
    rig.fake.hold();
    let asked = rig.ask("acme").await;
    let url = asked.authorize_url();
    tokio::select! {
        shown = rig.come_back(&url, "code=C") => panic!("{shown:?}"),
        () = rig.fake.until_asked("authorization_code", 1) => {}
    }
    rig.fake.let_go();
    rig.auth.drained(Deadline::after(std::time::Duration::from_mins(1))).await;
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
}

#[tokio::test]
async fn a_request_without_a_reply_key_is_refused() {
    let rig = Rig::new().await;
    let id = rig.pending("acme", GrantKind::AuthorizationCode).await;
    let request = rig.request(id, RequestKind::Connect, json!({}), None).await;
    jobs::connect::run(&rig.auth, id).await.expect("the job runs");
    let row = rig.request_row(request).await;
    assert_eq!(row.outcome, Some(RequestOutcome::Refused));
    assert!(row.message.expect("a reason").contains("reply_to"));
}
