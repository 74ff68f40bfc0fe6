use std::io::Write;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use url::Url;

use super::testing::{Says, Server, response};
use super::{Client, HttpLimits, SendError};
use crate::domain::failure::FailureKind;
use crate::domain::secret::Secret;
use crate::domain::spec::{BEARER, Placement};
use crate::domain::step::{Body, Method, Reply, Request};
use crate::domain::time::SystemClock;

const SECRET: &str = "AT-sEcReT-0123456789";

/// Nobody is in a hurry but where that is tested: a machine may stand still for seconds.
fn limits() -> HttpLimits {
    HttpLimits { body_max: 10_000, ..HttpLimits::default() }
}

fn client() -> Client {
    Client::new(&limits()).expect("it builds")
}

fn get(path: &str) -> Request {
    Request { query: vec![("token", SECRET.to_owned())], ..Request::get(path.to_owned(), "list", &[]) }
}

async fn send(base: &Url, request: &Request) -> Result<Reply, SendError> {
    client().send(base, request, &[(BEARER, Secret::new(SECRET))], &SystemClock).await
}

/// The error of a request that was expected to fail, after a look for leaks.
async fn failure(base: &Url, path: &str) -> SendError {
    failure_within(limits(), base, path).await
}

async fn failure_within(limits: HttpLimits, base: &Url, path: &str) -> SendError {
    let client = Client::new(&limits).expect("it builds");
    let secret = [(BEARER, Secret::new(SECRET))];
    let error = client.send(base, &get(path), &secret, &SystemClock).await.expect_err("no usable answer");
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains("sEcReT") && !shown.contains("token="), "{shown}");
    }
    error
}

/// ServiceTitan gives an answer 100 seconds before it gives up itself; nobody documents more.
#[test]
fn the_slowest_answer_that_is_documented_is_waited_for() {
    let HttpLimits { connect, read, total, .. } = HttpLimits::default();
    assert!(read > Duration::from_secs(100) && total > connect + Duration::from_secs(100));
}

#[tokio::test]
async fn a_request_carries_what_it_should() {
    let server =
        Server::answering("201 Created", "X-Some: A\r\nset-cookie: s=1\r\nlink: <a>\r\nlink: <b>\r\n", "{}")
            .await;
    let base = server.url.join("/prefix/").unwrap();
    let mut request = get("/crm/v3/search");
    request.method = Method::Post;
    request.body = Some(json!({"limit": 100}));
    let reply = send(&base, &request).await.unwrap();

    assert_eq!((reply.status, &reply.body), (201, &Body::Json(json!({}))));
    assert_eq!(reply.header("x-some"), Some("A"));
    assert_eq!(reply.header("link"), Some("<a>, <b>"));
    assert_eq!(reply.header("set-cookie"), None);
    let heard = server.heard().remove(0);
    let agent = format!("user-agent: fieldmirror/{}", env!("CARGO_PKG_VERSION"));
    for expected in [
        &format!("POST /prefix/crm/v3/search?token={SECRET} HTTP/1.1"),
        &format!("authorization: Bearer {SECRET}"),
        "content-type: application/json",
        "accept: application/json",
        "accept-encoding: gzip",
        &agent,
        "{\"limit\":100}",
    ] {
        assert!(heard.contains(expected), "{expected} in {heard}");
    }
}

#[tokio::test]
async fn a_bare_key_goes_into_its_own_header() {
    let server = Server::answering("200 OK", "", "{}").await;
    let placement = Placement { header: "API-Key", prefix: "" };
    client().send(&server.url, &get("/x"), &[(placement, Secret::new("k1"))], &SystemClock).await.unwrap();
    assert!(server.heard()[0].contains("\r\napi-key: k1\r\n"));
}

#[tokio::test]
async fn a_redirect_is_an_answer_like_any_other() {
    let target = Server::answering("200 OK", "", "{}").await;
    let server = Server::answering("302 Found", &format!("location: {}\r\n", target.url), "").await;
    let reply = send(&server.url, &get("/x")).await.unwrap();
    assert_eq!((reply.status, reply.body), (302, Body::Text(String::new())));
    assert!(target.heard().is_empty());
}

#[tokio::test]
async fn html_and_lying_content_types() {
    let page = "<html>gateway busy</html>";
    let server = Server::answering("502 Bad Gateway", "content-type: application/json\r\n", page).await;
    assert_eq!(send(&server.url, &get("/x")).await.unwrap().body, Body::Text(page.to_owned()));
    let server = Server::answering("200 OK", "content-type: text/html\r\n", "{\"a\":1}").await;
    assert_eq!(send(&server.url, &get("/x")).await.unwrap().body, Body::Json(json!({"a": 1})));
}

#[tokio::test]
async fn gzip_is_read_and_a_bomb_is_not() {
    let packed = |plain: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    };
    let server = Server::answering("200 OK", "content-encoding: gzip\r\n", packed(b"{\"a\":1}")).await;
    assert_eq!(send(&server.url, &get("/x")).await.unwrap().body, Body::Json(json!({"a": 1})));

    let bomb = packed(&vec![b' '; 5_000_000]);
    assert!(bomb.len() < 10_000, "its packed size passes the cap");
    let server = Server::answering("200 OK", "content-encoding: gzip\r\n", bomb).await;
    let error = failure(&server.url, "/x").await;
    assert_eq!((error.sent, error.kind), (true, FailureKind::ProviderChanged));
}

#[tokio::test]
async fn a_body_over_the_cap_is_not_read() {
    let told = Server::answering("200 OK", "", vec![b'1'; 10_001]).await;
    assert!(failure(&told.url, "/x").await.message.contains("larger than 10000 bytes"));
    let mut untold = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
    untold.extend(vec![b'1'; 20_000]);
    let untold = Server::start(Says::Bytes(untold)).await;
    assert!(failure(&untold.url, "/x").await.message.contains("larger than 10000 bytes"));
    let just = Server::answering("200 OK", "", vec![b'1'; 10_000]).await;
    assert!(send(&just.url, &get("/x")).await.is_ok());
}

#[tokio::test]
async fn a_torn_body_is_no_answer() {
    let whole = response("200 OK", "", b"{\"results\":[]}");
    let server = Server::start(Says::Bytes(whole[..whole.len() - 3].to_vec())).await;
    let error = failure(&server.url, "/x").await;
    assert_eq!((error.sent, &error.kind), (true, &FailureKind::Transient));
    assert!(error.message.contains("broke off"), "{error}");
}

#[tokio::test]
async fn silence_before_and_within_an_answer_ends_in_time() {
    let whole = response("200 OK", "", b"{\"results\":[]}");
    for bytes in [Vec::new(), whole[..20].to_vec(), whole[..whole.len() - 3].to_vec()] {
        let server = Server::start(Says::BytesThenSilence(bytes)).await;
        let begun = tokio::time::Instant::now();
        let hasty = HttpLimits { read: Duration::from_millis(400), ..limits() };
        let error = failure_within(hasty, &server.url, "/x").await;
        // The server is silent for a minute.
        assert!(error.sent && begun.elapsed() < Duration::from_secs(50), "{error}");
    }
}

#[tokio::test]
async fn only_what_surely_never_left_counts_as_unsent() {
    // A port that nobody listens on.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let refused = Url::parse(&format!("http://{closed}/")).unwrap();
    assert!(!failure(&refused, "/x").await.sent);
    // A server that lets the TLS handshake hang, and one that answers it with something else.
    let silent = Server::answering("200 OK", "", "{}").await;
    let babbling = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = babbling.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = babbling.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    });
    for port in [silent.url.port().unwrap(), port] {
        let tls = Url::parse(&format!("https://127.0.0.1:{port}/")).unwrap();
        let hasty = HttpLimits { connect: Duration::from_millis(250), ..limits() };
        let error = failure_within(hasty, &tls, "/x").await;
        assert!(!error.sent, "{error}");
    }
    // A name that does not exist, by definition (RFC 6761).
    let unknown = Url::parse("http://nowhere.invalid/").unwrap();
    assert!(!failure(&unknown, "/x").await.sent);
    // One that hangs up after reading: it may have acted.
    let rude = Server::start(Says::Bytes(Vec::new())).await;
    assert!(failure(&rude.url, "/x").await.sent);
}

#[tokio::test]
async fn a_request_that_is_wrong_in_itself_is_our_bug() {
    let server = Server::answering("200 OK", "", "{}").await;
    let error = failure(&server.url, "//evil.example/x").await;
    assert_eq!((error.sent, error.kind), (false, FailureKind::OurBug));
    let secret = Secret::new("line\nbreak");
    let error = client()
        .send(&server.url, &get("/x"), &[(BEARER, secret.clone())], &SystemClock)
        .await
        .expect_err("no header");
    assert_eq!((error.sent, error.kind.clone()), (false, FailureKind::OurBug));
    assert!(!error.message.contains("break"));
    assert!(server.heard().is_empty());
}
