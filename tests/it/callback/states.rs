//! Answers with a state that is not theirs: forged, altered, doubled, replayed, late, another consent's.

use chrono::TimeDelta;
use fieldmirror::auth::ticket;
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::db::requests::RequestOutcome;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::raw::assert_hardened;
use crate::auth::rig::{Asked, Rig, state_of};

#[tokio::test]
async fn an_altered_state_is_no_state() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let state = state_of(&asked.authorize_url());
    assert_eq!(state.len(), 96, "256 random bits, the time, a MAC of 256 bits");
    let mut altered: Vec<String> = (0..state.len())
        .map(|at| {
            let other = if &state[at..=at] == "A" { "B" } else { "A" };
            format!("{}{other}{}", &state[..at], &state[at + 1..])
        })
        .collect();
    altered.extend([
        state.to_ascii_uppercase(),
        state[1..].to_owned(),
        format!("{state}A"),
        format!("{state}%3D"),
        format!("{state}%00"),
        format!("%20{state}"),
        format!("{state}%0A"),
        "A".repeat(96),
        String::new(),
    ]);
    for text in altered {
        let shown = rig.get(&format!("/oauth/callback/hubspot?code=C&state={text}"), None).await;
        assert_eq!(shown.status, 400, "{text}");
        assert_hardened(&shown);
    }
    for query in [
        format!("code=C&code=C&state={state}"),
        format!("code=C&state={state}&state={state}"),
        format!("code=C&state=x&state={state}"),
        format!("code=C&error=access_denied&state={state}"),
        format!("code=%00&state={state}"),
        format!("code=C&State={state}"),
        format!("code[]=C&state={state}"),
        format!("code=C;state={state}"),
        format!("code=C&state={state}&{}", "a=1&".repeat(50)),
        format!("code={}&state={state}", "C".repeat(5000)),
    ] {
        assert_eq!(rig.get(&format!("/oauth/callback/hubspot?{query}"), None).await.status, 400, "{query}");
    }
    assert_eq!(rig.fake.asked().len(), 0, "no code was redeemed");
    // None of it has used the state up.
    assert_eq!(rig.come_back(&asked.authorize_url(), "code=C").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_is_taken() {
    let rig = Rig::new().await;
    rig.fake.hold();
    let asked = rig.ask("acme").await;
    let url = asked.authorize_url();
    // The one that was taken is answered once the others have been sent away.
    let mut crowd: FuturesUnordered<_> = (0..12).map(|_| rig.come_back(&url, "code=C")).collect();
    let mut statuses = Vec::new();
    while let Some(shown) = crowd.next().await {
        statuses.push(shown.status);
        if statuses.len() == 11 {
            rig.fake.let_go();
        }
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [[200].as_slice(), &[400; 11]].concat());
    assert_eq!(rig.fake.asked().len(), 1);
    assert_eq!(rig.connection(asked.connection).await.state, ConnectionState::Connected);
}

#[tokio::test]
async fn a_late_answer_is_refused_whatever_it_says() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let (url, cookie) = rig.follow(&asked).await;
    rig.clock.shift(TimeDelta::seconds(10 * 60 - 2));
    let (still_good, _) = rig.follow(&asked).await;
    assert_ne!(state_of(&url), state_of(&still_good));
    rig.clock.shift(TimeDelta::seconds(2));
    for said in ["code=C", "error=access_denied", "error=server_error"] {
        let shown = rig.come_back_with(&url, said, Some(&cookie)).await;
        assert_eq!(shown.status, 400, "{said}");
        assert!(shown.body.contains("Too late"), "{said}: {}", shown.body);
        // The cookie has the same time.
        assert_eq!(rig.get(&format!("/oauth/callback/hubspot?{said}"), Some(&cookie)).await.status, 400);
    }
    assert_eq!(rig.request_row(asked.request).await.done_at, None);
    assert_eq!(rig.fake.asked().len(), 0);
}

/// What another host below the same domain has put beside ours, or a second consent of the same browser.
#[tokio::test]
async fn without_a_state_two_cookies_tell_nothing() {
    let rig = Rig::new().await;
    let (asked, evil) = (rig.ask("acme").await, rig.ask("evil").await);
    let (url, ours) = rig.follow(&asked).await;
    let (_, theirs) = rig.follow(&evil).await;
    for both in [format!("{ours}; {theirs}"), format!("{theirs}; {ours}"), format!("{ours}; {ours}")] {
        for said in ["code=C", "error=access_denied"] {
            let shown = rig.get(&format!("/oauth/callback/hubspot?{said}"), Some(&both)).await;
            assert_eq!(shown.status, 400, "{both}");
        }
    }
    assert_eq!(rig.request_row(evil.request).await.done_at, None);
    assert_eq!(rig.request_row(asked.request).await.done_at, None);
    assert_eq!(rig.come_back_with(&url, "code=C", Some(&ours)).await.status, 200);
}

/// Two links for two accounts at one provider, followed in one browser: each comes to its own end.
#[tokio::test]
async fn two_consents_of_one_browser_do_not_meet() {
    let rig = Rig::new().await;
    let (first, second) = (rig.ask("first").await, rig.ask("second").await);
    let (first_url, first_cookie) = rig.follow(&first).await;
    let (second_url, second_cookie) = rig.follow(&second).await;
    assert_ne!(first_cookie.split_once('=').unwrap().0, second_cookie.split_once('=').unwrap().0);
    let both = format!("{first_cookie}; {second_cookie}");
    let shown = rig.come_back_with(&first_url, "code=C", Some(&both)).await;
    assert_eq!(shown.status, 200, "{}", shown.body);
    assert_eq!(rig.request_row(second.request).await.done_at, None);
    // The first has ended: a denial without a state can only be the second's.
    let shown = rig.get("/oauth/callback/hubspot?error=access_denied", Some(&both)).await;
    assert!(shown.body.contains("Access was declined"), "{}", shown.body);
    assert_eq!(rig.request_row(second.request).await.outcome, Some(RequestOutcome::Denied));
    assert_eq!(rig.come_back_with(&second_url, "code=C", Some(&both)).await.status, 400, "it was used");
    // A third that was begun elsewhere comes to a browser that has brought its own to an end.
    let third = rig.ask("third").await;
    let (third_url, _) = rig.follow(&third).await;
    let shown = rig.come_back_with(&third_url, "error=access_denied", Some(&both)).await;
    assert!(shown.body.contains("Access was declined"), "{}", shown.body);
}

/// Who has a link may not start consents without end, and takes nobody else's place.
#[tokio::test]
async fn a_link_is_followed_so_often() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    // One in 256 would be counted with it.
    let counted = |asked: &Asked| {
        let path = asked.start_path();
        ticket::hash(path.rsplit('/').next().expect("a ticket"))[0]
    };
    let (mut other, mut asks) = (rig.ask("other").await, 2);
    while counted(&other) == counted(&asked) {
        (other, asks) = (rig.ask("other").await, asks + 1);
    }
    let (began, mut statuses) = (std::time::Instant::now(), Vec::new());
    for _ in 0..40 {
        statuses.push(rig.get(&asked.start_path(), None).await.status);
    }
    // One more every three seconds, which pass on a slow machine.
    let more = began.elapsed().as_secs() / 3 + 1;
    assert_eq!(statuses[..20], [302; 20]);
    let followed = statuses.iter().filter(|status| **status == 302).count() as u64;
    assert!(followed <= 20 + more, "{followed} in {:?}", began.elapsed());
    assert!(statuses.iter().all(|status| [302, 429].contains(status)), "{statuses:?}");
    let attempts = rig.count("SELECT count(*) AS value FROM fieldmirror.authorization_attempts").await;
    // Whoever asks has one already.
    assert_eq!(u64::try_from(attempts).unwrap(), asks + followed);
    let (url, cookie) = rig.follow(&other).await;
    assert_eq!(rig.come_back_with(&url, "code=C", Some(&cookie)).await.status, 200);
}
