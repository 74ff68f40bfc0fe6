//! What came back, read under a cap and made sense of: bytes to JSON where they are JSON, whatever they claim to be.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{SendError, redact};
use crate::domain::failure::FailureKind;
use crate::domain::step::{Body, Reply};

/// Characters kept of a body that is not JSON.
const TEXT_KEPT: usize = 300;
/// Bytes of such a body that are looked at: secrets are masked before it is cut.
const TEXT_READ: usize = 4096;

/// An answer whose body has not been looked at yet. It may hold tokens: it has no debug output and is wiped.
pub(super) struct Answer {
    pub(super) status: u16,
    /// Names in lower case; several values of one name are joined by commas. Cookies are dropped.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// When the request left.
    pub(super) sent_at: DateTime<Utc>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an answer with status {} and {} bytes", self.status, self.bytes.len())
    }
}

impl Answer {
    /// One that came by another way than the network.
    pub(super) fn carried(response: http::Response<Vec<u8>>, sent_at: DateTime<Utc>) -> Self {
        let (parts, bytes) = response.into_parts();
        let (status, headers) = (parts.status.as_u16(), headers(&parts.headers));
        Self { status, headers, bytes: Zeroizing::new(bytes), sent_at }
    }

    pub(super) fn into_reply(self) -> Reply {
        let body = body(&self.bytes);
        Reply { status: self.status, headers: self.headers, body, sent_at: self.sent_at }
    }
}

/// Reads the whole of `response`, at most `body_max` bytes after decompression.
pub(super) async fn read(
    mut response: reqwest::Response,
    body_max: usize,
    sent_at: DateTime<Utc>,
) -> Result<Answer, SendError> {
    let status = response.status().as_u16();
    let too_large = || SendError {
        timed_out: false,
        sent: true,
        kind: FailureKind::ProviderChanged,
        message: format!("the answer (status {status}) is larger than {body_max} bytes"),
    };
    if response.content_length().is_some_and(|length| length > body_max as u64) {
        return Err(too_large());
    }
    let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(announced));
    while let Some(chunk) = response.chunk().await.map_err(|error| {
        let timed_out = error.is_timeout();
        let cause = super::describe(error);
        let text = format!("the answer (status {status}) broke off: {cause}");
        SendError { timed_out, ..SendError::transient(true, text) }
    })? {
        if bytes.len() + chunk.len() > body_max {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Answer { status, headers: headers(response.headers()), bytes, sent_at })
}

fn headers(map: &reqwest::header::HeaderMap) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in map.iter().filter(|(name, _)| *name != reqwest::header::SET_COOKIE) {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|known| {
                known.push_str(", ");
                known.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    headers
}

/// JSON where the bytes are JSON, else a little text without secrets.
pub(super) fn body(bytes: &[u8]) -> Body {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    json(bytes).map_or_else(|| Body::Text(short_text(bytes)), Body::Json)
}

/// Reads JSON; on failure once more with invalid UTF-8 and half surrogate pairs replaced by U+FFFD. Providers that
/// cut texts in the middle of an emoji send both, and one such record must not hide its whole page.
fn json(bytes: &[u8]) -> Option<Value> {
    // UTF-8 is checked once for the whole: string by string takes longer.
    if let Some(value) = std::str::from_utf8(bytes).ok().and_then(|text| serde_json::from_str(text).ok()) {
        return Some(value);
    }
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace())?;
    if !matches!(first, b'{' | b'[') {
        return None;
    }
    serde_json::from_str(&mend_surrogates(&String::from_utf8_lossy(bytes))).ok()
}

/// Replaces `\uD800`–`\uDFFF` escapes that are not half of a pair.
fn mend_surrogates(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (kept, length) = match (surrogate(rest), surrogate(rest.get(6..).unwrap_or_default())) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (&rest[..12], 12),
            (Some(0xD800..=0xDFFF), _) => ("\\ufffd", 6),
            _ => {
                // Any other escape: the backslash and the character after it, which may be a backslash itself.
                let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                (&rest[..length], length)
            }
        };
        out.push_str(kept);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// The code unit of the `\uXXXX` escape that `text` starts with.
fn surrogate(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
}

fn short_text(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(TEXT_READ)];
    let text = String::from_utf8_lossy(start).replace('\0', "");
    redact::truncate(&redact::text(text.trim()), TEXT_KEPT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies() {
        assert_eq!(body(b"\xEF\xBB\xBF {\"a\":1}"), Body::Json(json!({"a": 1})));
        assert_eq!(body(b""), Body::Text(String::new()));
        assert_eq!(body(b" <html>busy</html>\n"), Body::Text("<html>busy</html>".to_owned()));
        assert_eq!(body(b"{\"a\":"), Body::Text("{\"a\":".to_owned()));
        let Body::Text(long) = body("ü".repeat(9000).as_bytes()) else { panic!("not JSON") };
        assert_eq!(long.chars().count(), TEXT_KEPT + 1);
        assert_eq!(body(b"oops access_token=abc"), Body::Text("oops access_token=[secret]".to_owned()));
    }

    #[test]
    fn numbers_keep_their_digits() {
        let Body::Json(value) = body(b"[123456789012345678901.250]") else { panic!("JSON") };
        assert_eq!(value[0].to_string(), "123456789012345678901.250");
    }

    #[test]
    fn half_emoji_do_not_hide_a_page() {
        for (sent, read) in [
            (r#"["cut \ud83d"]"#, "cut \u{fffd}"),
            (r#"["\ude00 tail"]"#, "\u{fffd} tail"),
            (r#"["\ud83d\ude00 \ud83d"]"#, "\u{1f600} \u{fffd}"),
            (r#"["\\ud83d \ud83d"]"#, "\\ud83d \u{fffd}"),
        ] {
            assert_eq!(body(sent.as_bytes()), Body::Json(json!([read])), "{sent}");
        }
        assert_eq!(body(b"[\"a\xF0\x9F\"]"), Body::Json(json!(["a\u{fffd}"])));
    }
}
