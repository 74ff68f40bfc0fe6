//! Nothing that a browser sends comes back: not in a page, not in a header, not as a place to go to.

use serde_json::json;
use url::form_urlencoded::{byte_serialize, parse};

use super::raw::{answer, answers, assert_hardened, exchange};
use crate::auth::fake::Answer;
use crate::auth::rig::{Asked, Rig, Shown, state_of};

/// In every payload, and in nothing of ours.
pub(super) const MARK: &str = "zqmark";

const PAYLOADS: [&str; 12] = [
    "<script>zqmark</script>",
    "\"><img src=x onerror=zqmark>",
    "'-zqmark-'",
    "</style><style>zqmark",
    "a\r\nSet-Cookie: zqmark=1",
    "a\r\n\r\n<html>zqmark",
    "a\nLocation: http://zqmark.example/",
    "javascript:zqmark",
    "//zqmark.example/",
    "http://zqmark.example/",
    "\0zqmark",
    "\u{202E}zqmark\u{2028}",
];
/// As they are sent: what has no text of its own, and what tricks decoders.
const ENCODED: [&str; 8] = [
    "%c0%bcscript%c0%bezqmark",
    "%e0%80%bczqmark",
    "%ff%fezqmark",
    "%253cscript%253ezqmark",
    "%u003cscript%u003ezqmark",
    "%0d%0aX-Zqmark:%201",
    "%E5%98%8D%E5%98%8AX-Zqmark:1",
    "%zzzqmark%",
];

/// Every payload, encoded for an address.
pub(super) fn payloads() -> Vec<String> {
    let encoded = PAYLOADS.iter().map(|payload| byte_serialize(payload.as_bytes()).collect());
    encoded.chain(ENCODED.iter().map(ToString::to_string)).collect()
}

#[track_caller]
fn assert_silent(shown: &Shown, sent: &str) {
    let all = format!("{}{}", shown.head, shown.body).to_ascii_lowercase();
    assert!(!all.contains(MARK), "sent {sent}\ngot {all}");
    assert_hardened(shown);
}

async fn get(rig: &Rig, target: &str, headers: &str) -> Shown {
    let text = format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    let shown = answer(&exchange(rig.endpoint, text.as_bytes()).await);
    assert_silent(&shown, &text);
    shown
}

#[tokio::test]
async fn nothing_in_an_address_is_told_back() {
    let rig = Rig::new().await;
    for payload in payloads() {
        for (target, status) in [
            (format!("/connect/{payload}"), 400),
            (format!("/oauth/callback/{payload}?code=C&state=s"), 400),
            (format!("/{payload}"), 404),
            (format!("/?{payload}"), 404),
            (format!("/oauth/callback/hubspot?code={payload}"), 400),
            (format!("/oauth/callback/hubspot?state={payload}&code=C"), 400),
            (format!("/oauth/callback/hubspot?state={payload}&error=access_denied"), 400),
            (format!("/oauth/callback/hubspot?error={payload}&state=s"), 400),
            (format!("/oauth/callback/hubspot?error=server_error&error_description={payload}"), 400),
            (format!("/oauth/callback/hubspot?{payload}={payload}&code=C"), 400),
            (format!("/oauth/callback/hubspot?code=C&returnUrl={payload}&next={payload}"), 400),
        ] {
            // A path with an encoded slash is one part, and a path with a bare one is another page.
            let shown = get(&rig, &target, "Host: localhost\r\n").await;
            assert_eq!(shown.status, status, "{target}");
        }
    }
}

/// Also where the rest of the answer is genuine, so that it is taken.
#[tokio::test]
async fn nothing_in_a_genuine_answer_is_told_back_or_kept() {
    let rig = Rig::new().await;
    let mut count = 0;
    for payload in payloads() {
        for (said, is_answer) in [
            // A code has visible characters and blanks alone.
            (format!("code={payload}"), is_code(&payload)),
            (format!("code={payload}&scope={payload}&{payload}={payload}"), is_code(&payload)),
            (format!("error={payload}"), true),
            (format!("error=access_denied&error_description={payload}&error_uri={payload}"), true),
            (format!("error=server_error&error_description={payload}&{payload}=1"), true),
            (format!("code=C&error={payload}"), false),
            (format!("code=C&state={payload}"), false),
        ] {
            count += 1;
            let asked = rig.ask(&format!("acme-{count}")).await;
            // The provider quotes what it refuses.
            let quoted: String = parse(format!("q={payload}").as_bytes()).map(|(_, value)| value).collect();
            let refusal = json!({"error": "invalid_grant", "status": "BAD_AUTH_CODE", "message": quoted});
            rig.fake.forget_answers();
            rig.fake.then([Answer::Status(400, refusal)]);
            let target = format!("/oauth/callback/hubspot?{said}&state={}", state_of(&asked.authorize_url()));
            let shown = get(&rig, &target, "Host: x\r\n").await;
            assert!([400, 502].contains(&shown.status), "{said}: {}", shown.head);
            let row = rig.request_row(asked.request).await;
            assert_eq!(row.done_at.is_some(), is_answer, "{said}");
            assert!(!row.message.unwrap_or_default().to_ascii_lowercase().contains(MARK), "{said}");
        }
    }
    let kept = "SELECT (SELECT count(*) FROM fieldmirror.connections c WHERE c::text ILIKE '%zqmark%')
        + (SELECT count(*) FROM fieldmirror.audit_log l WHERE l::text ILIKE '%zqmark%')
        + (SELECT count(*) FROM fieldmirror.requests r WHERE r::text ILIKE '%zqmark%')
        + (SELECT count(*) FROM fieldmirror.authorization_attempts a WHERE a::text ILIKE '%zqmark%') AS value";
    assert_eq!(rig.count(kept).await, 0);
}

/// RFC 6749, appendix A.11.
fn is_code(payload: &str) -> bool {
    let code: String = parse(format!("q={payload}").as_bytes()).map(|(_, value)| value).collect();
    code.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Names of headers that a server, a proxy or a program behind one may believe.
const HEADERS: [&str; 14] = [
    "Host",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-For",
    "X-Forwarded-Prefix",
    "X-Real-IP",
    "Forwarded",
    "X-Original-URL",
    "Referer",
    "User-Agent",
    "Origin",
    "Accept-Language",
    "Cookie",
    "X-Request-Id",
];

/// Every payload in every header: alone with an answer that is none of ours, and in all of them with a start link and an
/// answer that are genuine.
#[tokio::test]
async fn nothing_in_a_header_is_told_back_or_followed() {
    let rig = Rig::new().await;
    // As it is where a header can hold it, and encoded.
    let raw = PAYLOADS.iter().filter(|payload| !payload.contains(char::is_control)).map(ToString::to_string);
    for (number, payload) in raw.chain(payloads()).enumerate() {
        let in_address: String = byte_serialize(payload.as_bytes()).collect();
        let lines = HEADERS.map(|name| format!("{name}: {payload}\r\n"));
        for line in &lines {
            let host = if line.starts_with("Host") { "" } else { "Host: x\r\n" };
            let headers = format!("{host}{line}");
            assert_eq!(get(&rig, "/oauth/callback/hubspot?code=C&state=s", &headers).await.status, 400);
        }
        let cookies =
            format!("Cookie: fieldmirror_attempt_hubspot_{payload}={payload}; {payload}={payload}\r\n");
        let all = format!("{}{cookies}", lines.concat());
        assert_eq!(get(&rig, "/oauth/callback/hubspot?code=C", &all).await.status, 400);
        assert_eq!(get(&rig, "/healthz", &all).await.status, 200);
        let asked = rig.ask(&format!("acme-{number}")).await;
        let target = format!("{}?{in_address}={in_address}", asked.start_path());
        let started = get(&rig, &target, &all).await;
        assert_eq!(started.status, 302, "{payload}");
        assert_leads_to_consent(&started, &asked);
        let state = state_of(&asked.authorize_url());
        let below = format!("/oauth/callback/hubspot/{in_address}?error=access_denied&state={state}");
        assert_eq!(get(&rig, &below, &all).await.status, 404);
        let denied = format!("/oauth/callback/hubspot?error=access_denied&state={state}");
        let shown = get(&rig, &denied, &all).await;
        assert!(shown.body.contains("Access was declined"), "{}", shown.body);
    }
}

/// Where a start link leads is the provider's page and back to us, whatever came with the request.
#[track_caller]
fn assert_leads_to_consent(started: &Shown, asked: &Asked) {
    let provider = asked.authorize_url();
    let to = url::Url::parse(started.header("location").expect("a place to go to")).expect("a URL");
    assert_eq!((to.origin(), to.path()), (provider.origin(), provider.path()));
    let redirect_uri = to.query_pairs().find(|(name, _)| name == "redirect_uri").expect("a way back").1;
    assert_eq!(redirect_uri, asked.links["redirect_uri"].as_str().expect("text"));
    let cookie = started.header("set-cookie").expect("a cookie");
    assert!(!cookie.to_ascii_lowercase().contains("domain"), "{cookie}");
}

#[tokio::test]
async fn headers_lead_nowhere() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    for (number, headers) in [
        "Host: zqmark.example\r\n",
        "Host: localhost\r\nX-Forwarded-Host: zqmark.example\r\nX-Forwarded-Proto: zqmark\r\n",
        "Host: localhost\r\nForwarded: host=zqmark.example;proto=http\r\nX-Forwarded-Prefix: /zqmark\r\n",
        "Host: localhost\r\nX-Original-URL: /zqmark\r\nX-Rewrite-URL: /zqmark\r\n",
        "Host: localhost\r\nReferer: http://zqmark.example/\r\nUser-Agent: <script>zqmark</script>\r\n",
        "Host: localhost\r\nOrigin: http://zqmark.example\r\nAccept-Language: zqmark\r\n",
        "Host: localhost\r\nCookie: fieldmirror_attempt=zqmark; zqmark=<script>\r\n",
        "Host: localhost\r\nCookie: fieldmirror_attempt=\"zqmark\\\"\r\nX-HTTP-Method-Override: DELETE\r\n",
        "Host: a\r\nHost: zqmark.example\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        for target in ["/", "/healthz", "/readyz", "/oauth/callback/hubspot?code=C", "/connect/x"] {
            get(&rig, target, headers).await;
            get(&rig, &format!("http://zqmark.example{target}"), headers).await;
        }
        let started = get(&rig, &asked.start_path(), headers).await;
        assert_eq!(started.status, 302, "{number}");
        assert_leads_to_consent(&started, &asked);
    }
}

/// An answer that a cache or a proxy could take for two.
#[tokio::test]
async fn an_answer_is_one_answer() {
    let rig = Rig::new().await;
    for payload in payloads() {
        let target =
            format!("/oauth/callback/hubspot?error={payload}&error_description={payload}&state={payload}");
        let text = format!(
            "GET {target} HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"
        );
        let found = answers(&exchange(rig.endpoint, text.as_bytes()).await);
        assert_eq!(found.iter().map(|shown| shown.status).collect::<Vec<_>>(), [400, 200], "{target}");
    }
}
