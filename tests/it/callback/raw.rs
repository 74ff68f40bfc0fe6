//! What a hostile client sends, byte by byte, and what comes back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::auth::rig::Shown;

/// More than any answer here takes, and half of what a connection may live.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// Sends `bytes` on a connection of its own and reads until the endpoint closes it. What cannot be sent any more, or is
/// reset, ends the reading.
pub async fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    talk(to, bytes, false).await
}

/// The same, and closes its own half as soon as it has sent all.
pub async fn exchange_and_hang_up(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    talk(to, bytes, true).await
}

async fn talk(to: SocketAddr, bytes: &[u8], hangs_up: bool) -> Vec<u8> {
    let (mut reader, mut writer) = TcpStream::connect(to).await.expect("it listens").into_split();
    let sending = async {
        let _ = writer.write_all(bytes).await;
        if hangs_up {
            let _ = writer.shutdown().await;
        }
    };
    let reading = async {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
        answer
    };
    let both = async { tokio::join!(sending, reading).1 };
    tokio::time::timeout(PATIENCE, both).await.expect("the endpoint answers and closes")
}

/// The answers in what was read, by their lengths. Nothing may be left over.
pub fn answers(bytes: &[u8]) -> Vec<Shown> {
    let text = std::str::from_utf8(bytes).expect("answers are text");
    let (mut rest, mut found) = (text, Vec::new());
    while !rest.is_empty() {
        let (head, after) = rest.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {rest:?}"));
        let status = head.strip_prefix("HTTP/1.").and_then(|line| line.get(2..5)?.parse().ok());
        let mut shown = Shown {
            status: status.unwrap_or_else(|| panic!("no status: {head:?}")),
            head: head.to_owned(),
            body: String::new(),
        };
        let length = shown.header("content-length").map_or(0, |text| text.parse().expect("a length"));
        let (body, after) = after.split_at(length);
        shown.body.push_str(body);
        found.push(shown);
        rest = after;
    }
    found
}

/// The only answer.
#[track_caller]
pub fn answer(bytes: &[u8]) -> Shown {
    let mut found = answers(bytes);
    assert_eq!(found.len(), 1, "{}", String::from_utf8_lossy(bytes));
    found.remove(0)
}

/// Headers that an answer of ours may have.
const HEADERS: [&str; 13] = [
    "cache-control",
    "connection",
    "content-length",
    "content-security-policy",
    "content-type",
    "cross-origin-opener-policy",
    "date",
    "location",
    "referrer-policy",
    "retry-after",
    "set-cookie",
    "x-content-type-options",
    "x-frame-options",
];

/// An answer of ours has the headers that protect its reader, each once, and no other than ours.
#[track_caller]
pub fn assert_hardened(shown: &Shown) {
    let names: Vec<String> = shown
        .head
        .lines()
        .skip(1)
        .map(|line| line.split_once(':').expect("a name and a value").0.to_ascii_lowercase())
        .collect();
    for (index, name) in names.iter().enumerate() {
        assert!(HEADERS.contains(&name.as_str()), "`{name}` is none of ours: {}", shown.head);
        assert!(!names[..index].contains(name), "`{name}` twice: {}", shown.head);
    }
    let policy = shown.header("content-security-policy").unwrap_or_default();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{}", shown.head);
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("script"), "{policy}");
    for (name, value) in [
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ] {
        assert_eq!(shown.header(name), Some(value), "{}", shown.head);
    }
    assert_eq!(shown.header("location").is_some(), shown.status == 302, "{}", shown.head);
    let body = shown.body.to_ascii_lowercase();
    for tag in ["<script", "<img", "<iframe", "<form", "<link", "javascript:", " on"] {
        let inside_tag = body.split('<').any(|part| part.split('>').next().unwrap_or_default().contains(tag));
        assert!(!inside_tag, "`{tag}` in {body}");
    }
}

/// The refusal of what is no HTTP, which is hyper's own: it has no body that could be misread and tells nothing.
#[track_caller]
pub fn assert_bare(bytes: &[u8], statuses: &[u16], what: &str) {
    if bytes.is_empty() {
        return;
    }
    let shown = answer(bytes);
    assert!(statuses.contains(&shown.status), "{what}: {}", shown.head);
    assert_eq!(shown.body, "", "{what}");
    for line in shown.head.lines().skip(1) {
        let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
        assert!(["connection", "content-length", "date"].contains(&name.as_str()), "{what}: {line}");
    }
}
