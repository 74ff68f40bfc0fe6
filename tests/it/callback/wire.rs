//! Requests that are malformed, oversized, slow, many at once or never read.

use std::sync::Arc;
use std::time::Duration;

use fieldmirror::callback;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::raw::{PATIENCE, answer, answers, assert_bare, assert_hardened, exchange, exchange_and_hang_up};
use crate::auth::rig::Rig;

/// More than the endpoint takes at once.
const CROWD: usize = 300;
/// Crowds that come one after the other, until one is met while it is there: on a slow machine one may be gone before.
const CROWDS: usize = 5;
/// Connects of the crowd under way: fewer than the kernel's shortest queue, which lets in late whoever finds it full.
const AT_A_TIME: usize = 4;

fn request(line: &str) -> String {
    format!("{line}\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn odd_request_lines_get_a_plain_answer() {
    let rig = Rig::new().await;
    for (line, status) in [
        ("GET /healthz HTTP/1.1", 200),
        ("GET /healthz HTTP/1.0", 200),
        ("GET http://evil.example/healthz HTTP/1.1", 200),
        ("GET http://user:pass@evil.example:1/nothing HTTP/1.1", 404),
        ("GET //evil.example/ HTTP/1.1", 404),
        ("GET /\\evil.example HTTP/1.1", 404),
        ("GET /../../etc/passwd HTTP/1.1", 404),
        ("GET /healthz/ HTTP/1.1", 404),
        ("GET /HEALTHZ HTTP/1.1", 404),
        ("GET /connect/ HTTP/1.1", 404),
        ("GET /connect/a/b HTTP/1.1", 404),
        ("GET /connect/..%2f..%2fetc%2fpasswd HTTP/1.1", 400),
        ("GET /connect/%00 HTTP/1.1", 400),
        ("GET /connect/%ff HTTP/1.1", 400),
        ("GET /connect/%c0%ae HTTP/1.1", 400),
        ("GET /connect/%zz HTTP/1.1", 400),
        ("GET /connect/% HTTP/1.1", 400),
        ("GET /oauth/callback/%ff?code=C HTTP/1.1", 400),
        ("GET /oauth/callback/hubspot%00?code=C HTTP/1.1", 400),
        ("GET /oauth/callback/hubspot? HTTP/1.1", 400),
        ("GET /oauth/callback/hubspot?&&&=&= HTTP/1.1", 400),
        ("HEAD /healthz HTTP/1.1", 404),
        ("POST /healthz HTTP/1.1", 404),
        ("OPTIONS /oauth/callback/hubspot HTTP/1.1", 404),
        ("OPTIONS * HTTP/1.1", 404),
        ("TRACE / HTTP/1.1", 404),
        ("PROPFIND / HTTP/1.1", 404),
        ("get /healthz HTTP/1.1", 404),
        ("GET * HTTP/1.1", 404),
        ("CONNECT evil.example:80 HTTP/1.1", 404),
        ("GET evil.example:80 HTTP/1.1", 404),
    ] {
        let shown = exchange(rig.endpoint, request(line).as_bytes()).await;
        // A HEAD's answer names the length of what it leaves out.
        let shown = if line.starts_with("HEAD") { without_body(&shown) } else { answer(&shown) };
        assert_eq!(shown.status, status, "{line}: {}", shown.head);
        assert_hardened(&shown);
    }
}

fn without_body(bytes: &[u8]) -> crate::auth::rig::Shown {
    let head = std::str::from_utf8(bytes).expect("text").strip_suffix("\r\n\r\n").expect("a head alone");
    let status = head[9..12].parse().expect("a status");
    crate::auth::rig::Shown { status, head: head.to_owned(), body: String::new() }
}

#[tokio::test]
async fn what_is_no_http_is_refused_without_a_word() {
    let rig = Rig::new().await;
    let long = |name: &str, length: usize| format!("{name}: {}\r\n", "a".repeat(length));
    let with = |headers: &str| format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes();
    let many = "x: 1\r\n".repeat(100);
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("half a request", b"GET /healthz HTTP/1.1\r\nHost: x\r\n".to_vec()),
        ("no version", b"GET /healthz\r\n\r\n".to_vec()),
        ("no target", b"GET  HTTP/1.1\r\n\r\n".to_vec()),
        ("a space in the target", request("GET /connect/a b HTTP/1.1").into_bytes()),
        ("a quote and a tag", request("GET /<script>\"x HTTP/1.1").into_bytes()),
        ("no slash", request("GET healthz?x HTTP/1.1").into_bytes()),
        ("version 0.9", request("GET /healthz HTTP/0.9").into_bytes()),
        ("version 3", request("GET /healthz HTTP/3.0").into_bytes()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("NUL in the target", request("GET /\0 HTTP/1.1").into_bytes()),
        ("NUL in a header", with("x: a\0b\r\n")),
        ("a bare CR in a header", with("x: a\rSet-Cookie: b\r\n")),
        ("no colon", with("nothing\r\n")),
        ("a folded header", with("x: a\r\n b\r\n")),
        ("a space before the colon", with("x : a\r\n")),
        ("two lengths", with("Content-Length: 3\r\nContent-Length: 4\r\n")),
        ("a length that is none", with("Content-Length: -1\r\n")),
        ("a length that overflows", with("Content-Length: 99999999999999999999\r\n")),
        ("many headers", with(&many)),
        ("a long header", with(&long("x", 20_000))),
        ("a long cookie", with(&long("cookie", 20_000))),
        ("a long header's name", with(&format!("{}: x\r\n", "a".repeat(70_000)))),
        ("a very long address", request(&format!("GET /{} HTTP/1.1", "a".repeat(70_000))).into_bytes()),
    ] {
        assert_bare(&exchange_and_hang_up(rig.endpoint, &bytes).await, &[400, 414, 431, 505], what);
    }
    let long = request(&format!("GET /?{} HTTP/1.1", "a".repeat(9_000)));
    let shown = answer(&exchange(rig.endpoint, long.as_bytes()).await);
    assert_eq!(shown.status, 414);
    assert_hardened(&shown);
}

/// What follows a request is its body, by its headers, and never a second request.
#[tokio::test]
async fn bodies_are_neither_read_nor_taken_for_requests() {
    let rig = Rig::new().await;
    let smuggled = "GET /connect/x HTTP/1.1\r\nHost: x\r\n\r\n";
    let chunked = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    for (headers, body) in [
        (format!("Content-Length: {}\r\n", smuggled.len()), smuggled),
        ("Content-Length: 1000000000\r\n".to_owned(), smuggled),
        ("Content-Length: 1000000000\r\nExpect: 100-continue\r\n".to_owned(), ""),
        ("Transfer-Encoding: chunked\r\n".to_owned(), &chunked),
        (format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", smuggled.len()), &chunked),
        ("Transfer-Encoding: chunked, identity\r\n".to_owned(), &chunked),
        ("Transfer-Encoding: xchunked\r\n".to_owned(), smuggled),
    ] {
        for (method, status) in [("GET", 200), ("POST", 404)] {
            let text =
                format!("{method} /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n{body}");
            let shown = answer(&exchange(rig.endpoint, text.as_bytes()).await);
            assert!([status, 400].contains(&shown.status), "{text}: {}", shown.head);
        }
    }
    // A body that never comes holds nothing up.
    let mut stream = TcpStream::connect(rig.endpoint).await.unwrap();
    stream.write_all(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1").await.unwrap();
    let mut head = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut head)).await.expect("it is answered").unwrap();
    assert_eq!(&head, b"HTTP/1.1 404");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let rig = Rig::new().await;
    let mut text = String::new();
    let mut expected = Vec::new();
    for (path, status) in [("/healthz", 200), ("/nothing", 404), ("/connect/x", 400)].iter().cycle().take(300)
    {
        text.extend(["GET ", path, " HTTP/1.1\r\nHost: x\r\n\r\n"]);
        expected.push(*status);
    }
    text.push_str(&request("GET /readyz HTTP/1.1"));
    expected.push(503);
    let found = answers(&exchange(rig.endpoint, text.as_bytes()).await);
    assert_eq!(found.iter().map(|shown| shown.status).collect::<Vec<_>>(), expected);
    found.iter().for_each(assert_hardened);
}

/// A crowd that sends a byte now and then, or nothing, keeps nobody out, and does not stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_keep_nobody_out() {
    let rig = Rig::new().await;
    let asked = rig.ask("acme").await;
    let mut beside = false;
    for _ in 0..CROWDS {
        let connects = stream::iter(0..CROWD).map(|_| TcpStream::connect(rig.endpoint));
        let connected: Vec<TcpStream> = connects.buffer_unordered(AT_A_TIME).try_collect().await.unwrap();
        let crowd: Vec<_> = connected
            .into_iter()
            .enumerate()
            .map(|(number, stream)| tokio::spawn(drip(stream, number)))
            .collect();
        for _ in 0..3 {
            assert_eq!(rig.get("/healthz", None).await.status, 200);
        }
        // Kept out, it would have come in when the slow ones were closed, which is after ten seconds in any case.
        beside = crowd.iter().filter(|slow| !slow.is_finished()).count() > CROWD / 2;
        if beside {
            let (authorize_url, cookie) = rig.follow(&asked).await;
            assert_eq!(rig.come_back_with(&authorize_url, "code=C", Some(&cookie)).await.status, 200);
        }
        let closed = async {
            for slow in crowd {
                slow.await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, closed).await.expect("every one of the crowd is closed");
        if beside {
            break;
        }
    }
    assert!(beside, "whoever comes while the crowd is there waits until it is gone");
}

/// Sends headers for ever, one byte at a time, until the endpoint has had enough.
async fn drip(mut stream: TcpStream, number: usize) {
    let sends_nothing = number.is_multiple_of(3);
    if !sends_nothing && stream.write_all(b"GET /healthz HTTP/1.1\r\nx: ").await.is_err() {
        return;
    }
    loop {
        let mut byte = [0];
        let ended = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut byte)).await;
        if ended.is_ok() || (number % 3 == 2 && stream.write_all(b"a").await.is_err()) {
            return;
        }
    }
}

/// Who asks and never reads is not read from any more: what waits to be sent is bounded by the sockets' buffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_not_listened_to() {
    let rig = Rig::new().await;
    let mut stream = TcpStream::connect(rig.endpoint).await.unwrap();
    let requests = "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    let mut sent = 0;
    let stuck = loop {
        match tokio::time::timeout(Duration::from_secs(2), stream.write_all(requests.as_bytes())).await {
            Ok(Ok(())) => sent += requests.len(),
            Ok(Err(_)) => break false,
            Err(_) => break true,
        }
        assert!(sent < 64 << 20, "it reads on and on");
    };
    assert!(stuck, "it was not closed either");
    assert_eq!(rig.get("/healthz", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_waits_for_nobody_who_does_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let (begun, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, waits) = (Arc::clone(&begun), Arc::clone(&released));
    let slow = axum::routing::get(async move || {
        begins.notify_one();
        waits.notified().await;
        "done"
    });
    let stop = CancellationToken::new();
    let router = axum::Router::new().route("/slow", slow);
    let serving = tokio::spawn(callback::serve(listener, router, stop.clone()));
    let mut idle = Vec::new();
    for number in 0..20 {
        let mut stream = TcpStream::connect(to).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /slow HT").await.unwrap();
        }
        idle.push(stream);
    }
    let under_way = tokio::spawn(async move { exchange(to, request("GET /slow HTTP/1.1").as_bytes()).await });
    begun.notified().await;
    stop.cancel();
    released.notify_one();
    // Those who do nothing would be closed after ten seconds in any case.
    tokio::time::timeout(Duration::from_secs(9), serving).await.expect("it does not wait for them").unwrap();
    assert_eq!(answer(&under_way.await.unwrap()).body, "done", "what is under way is finished");
}
