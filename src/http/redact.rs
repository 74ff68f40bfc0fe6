//! Takes secrets out of text, JSON and addresses before they reach a log, an error or a person.
//!
//! It is a net under the real rule, which is never to put a secret into text in the first place: what is built from
//! [`Secret`] prints nothing. Providers, however, echo tokens in their answers, and
//! libraries put addresses into their errors. It errs on the side of masking too much, except for plain prose
//! ("the refresh token is not valid"), which verdicts are read from.

mod scan;

use serde_json::Value;
use url::Url;

use crate::domain::secret::Secret;

use self::scan::{Opener, Separator, run, separator, value_length};

/// What stands where a secret was.
pub const MASK: &str = "[secret]";

/// So many bytes of a secret tell something of it.
const TOLD_MIN: usize = 4;

/// Endings of names whose value is a secret, whatever stands before (`signed_access_token`, `oauthToken`).
const SECRET_ENDINGS: &[&str] = &[
    "token",
    "secret",
    "password",
    "passwd",
    "apikey",
    "api_key",
    "app_key",
    "authorization",
    "code_verifier",
    "codeverifier",
    "assertion",
    "cookie",
    "sig",
    "signature",
];

/// Names that are secrets in addresses and forms, but often mean something harmless in JSON (`"code": "not_found"`).
const SECRET_NAMES: &[&str] = &["code", "state", "key", "auth", "pat"];

/// Words of the `Authorization` header that a credential follows.
const SCHEMES: &[&str] = &["bearer", "token", "basic"];

/// `text` with everything token-like masked: values of telling names (as JSON, form or header, plain, percent-encoded
/// or escaped), credentials after `Bearer`, `Token` or `Basic`, JWTs, and HubSpot's `pat-…` tokens.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(next) = text[at..].chars().next() {
        let rest = &text[at..];
        let word = &rest[..run(rest, is_word)];
        if word.is_empty() {
            out.push(next);
            at += next.len_utf8();
        } else if let Some(length) = bare_secret(rest) {
            out.push_str(MASK);
            at += length;
        } else if let Some((kept, masked)) = named_secret(&text[..at], word, rest) {
            out.push_str(&rest[..kept]);
            out.push_str(MASK);
            at += kept + masked;
        } else {
            out.push_str(word);
            at += word.len();
        }
    }
    out
}

/// `text` without these very values, nor the beginning of one where it was cut short.
pub fn values<'a>(text: String, secrets: impl IntoIterator<Item = &'a Secret>) -> String {
    let secrets = secrets.into_iter().map(Secret::expose).filter(|secret| !secret.is_empty());
    secrets.fold(text, |text, secret| {
        let text = text.replace(secret, MASK);
        let beginnings = secret.char_indices().map(|(end, _)| &secret[..end]).rev();
        let told = beginnings.take_while(|begun| begun.len() >= TOLD_MIN);
        match told.map(|begun| format!("{begun}…")).find(|cut| text.contains(cut)) {
            Some(cut) => text.replace(&cut, &format!("{MASK}…")),
            None => text,
        }
    })
}

/// The address for people: scheme, host and path as they are, secret query values masked, user and fragment gone.
pub fn url(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = url.host_str().unwrap_or_default();
    let query: Vec<String> = url
        .query_pairs()
        .map(|(name, value)| {
            let shown = if is_secret_name(&name) { MASK.to_owned() } else { text(&value) };
            format!("{name}={shown}")
        })
        .collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{}://{host}{port}{}{mark}{}", url.scheme(), text(url.path()), query.join("&"))
}

/// A copy of `value` in which the values of telling keys are masked and every other text has gone through [`text`].
/// Short names such as `code` are masked only where the value looks random, because error answers use them too.
pub fn json(value: &Value) -> Value {
    match value {
        Value::String(plain) => Value::String(text(plain)),
        Value::Array(items) => items.iter().map(json).collect(),
        Value::Object(fields) => {
            let masked = fields.iter().map(|(key, value)| {
                let value =
                    if holds_secret(key, value) { Value::String(MASK.to_owned()) } else { json(value) };
                (key.clone(), value)
            });
            Value::Object(masked.collect())
        }
        plain => plain.clone(),
    }
}

/// Whether a JSON field holds a secret. Objects, nulls, flags and empty texts under a telling name do not.
pub fn holds_secret(key: &str, value: &Value) -> bool {
    match value {
        Value::String(text) if is_short_name(key) => looks_random(text),
        Value::String(text) => !text.is_empty() && has_secret_ending(key),
        Value::Number(_) => has_secret_ending(key),
        _ => false,
    }
}

/// The first `limit` characters of `text`, with `…` where something was cut.
pub fn truncate(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn is_secret_name(name: &str) -> bool {
    has_secret_ending(name) || is_short_name(name)
}

fn has_secret_ending(name: &str) -> bool {
    let name = plain_name(name);
    SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn is_short_name(name: &str) -> bool {
    SECRET_NAMES.contains(&plain_name(name).as_str())
}

fn plain_name(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

/// Long, of letters and digits mixed, and in one word: a code or token rather than a word of an error.
fn looks_random(text: &str) -> bool {
    text.len() >= 12
        && !text.contains(char::is_whitespace)
        && text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().any(|b| b.is_ascii_alphabetic())
}

/// The length of a secret at the start of `rest` that needs no name to be recognised.
fn bare_secret(rest: &str) -> Option<usize> {
    let jwt = run(rest, |c| is_word(c) || c == '.');
    if rest.starts_with("eyJ") && jwt >= 20 {
        return Some(jwt);
    }
    let word = run(rest, is_word);
    (rest.starts_with("pat-") && word >= 12).then_some(word)
}

/// If `word`, which `rest` starts with, announces a secret: how much of `rest` to keep, and how much to mask.
fn named_secret(before: &str, word: &str, rest: &str) -> Option<(usize, usize)> {
    let names = name_readings(before, word);
    if let Some(masked) = credential_after_scheme(word, &rest[word.len()..]) {
        return Some((word.len() + 1, masked));
    }
    let telling = names.iter().any(|name| is_secret_name(name));
    if !telling {
        return None;
    }
    let Separator { length, spaced_colon, opener } = separator(&rest[word.len()..])?;
    let kept = word.len() + length;
    let value = &rest[kept..];
    let masked = value_length(value, opener, is_authorization(word));
    let prose =
        spaced_colon && opener == Opener::None && !word.contains(['_', '-']) && !is_authorization(word);
    let worth_masking = masked > 0
        && !value.starts_with(MASK)
        && (!prose || looks_random(&value[..masked]) || word.eq_ignore_ascii_case("password"));
    worth_masking.then_some((kept, masked))
}

fn is_authorization(word: &str) -> bool {
    plain_name(word).ends_with("authorization")
}

/// A word right after `%` begins with the digits of an escape, one after `\` with its letter: read it without, too.
fn name_readings<'a>(before: &str, word: &'a str) -> [&'a str; 2] {
    let skip = match before.chars().next_back() {
        Some('%') => 2,
        Some('\\') => 1,
        _ => 0,
    };
    [word, word.get(skip..).unwrap_or(word)]
}

/// `Bearer abc…`: the length of what follows the blank, if it looks like a credential rather than prose.
fn credential_after_scheme(word: &str, after: &str) -> Option<usize> {
    if !SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme)) {
        return None;
    }
    let value = after.strip_prefix([' ', '+'])?;
    let length = run(value, |c| c.is_ascii_alphanumeric() || "-._~+/=%".contains(c));
    let credential = &value[..length];
    let likely = length >= 20 || (length >= 6 && credential.bytes().any(|b| b.is_ascii_digit()));
    likely.then_some(length)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

#[cfg(test)]
mod tests {
    use serde_json::json as j;

    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        assert_eq!(text(input), expected, "{input}");
    }

    #[test]
    fn named_values_in_every_dress() {
        check(
            r#"{"access_token":"AT-1","expires_in":1800}"#,
            r#"{"access_token":"[secret]","expires_in":1800}"#,
        );
        check(r#"{"password": "a, \"b\" c", "x": 1}"#, r#"{"password": "[secret]", "x": 1}"#);
        check(r#"{\"refresh_token\":\"RT\",\"a\":1}"#, r#"{\"refresh_token\":\"[secret]\",\"a\":1}"#);
        check(r#"{\\\"id_token\\\":\\\"x\\\"}"#, r#"{\\\"id_token\\\":\\\"[secret]\\\"}"#);
        check("code=abc&state=xyz&grant_type=a", "code=[secret]&state=[secret]&grant_type=a");
        check("https://h/cb?code=a%2Bb#frag", "https://h/cb?code=[secret]");
        check("%22access_token%22%3A%22A%2BB%22%2C%22x%22", "%22access_token%22%3A%22[secret]%22%2C%22x%22");
        check("client_secret%3Dabc%26scope%3Dx", "client_secret%3D[secret]%26scope%3Dx");
        check("X-Api-Key: k", "X-Api-Key: [secret]");
        check("{'token': 'a b'}", "{'token': '[secret]'}");
        check("accessToken=abc oauthToken: a1b2c3d4e5f6", "accessToken=[secret] oauthToken: [secret]");
        check(r"line\ncode=abc", r"line\ncode=[secret]");
        check(r#""token":"cut off in the mid"#, r#""token":"[secret]"#);
        check("code_verifier => \"v\"", "code_verifier => \"[secret]\"");
    }

    #[test]
    fn headers_and_bare_tokens() {
        check("authorization: Bearer abc.def, accept: */*", "authorization: [secret], accept: */*");
        check("sent Bearer abc123def", "sent Bearer [secret]");
        check("Token 0123456789abcdef!", "Token [secret]!");
        check("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.sig_-x.", "got [secret]");
        check("key pat-na1-1234-5678 refused", "key [secret] refused");
    }

    #[test]
    fn prose_is_left_alone() {
        for plain in [
            "The provided refresh token is not valid.",
            "Invalid refresh token: not known here",
            "bearer token expired",
            "missing or invalid refresh token",
            r#"{"token_type":"bearer","error":"invalid_grant"}"#,
            "état: ünïcode — done",
            "",
        ] {
            check(plain, plain);
        }
    }

    #[test]
    fn is_stable() {
        let once = text("access_token=abc&x=1 authorization: Bearer q1w2e3r4");
        assert_eq!(text(&once), once);
    }

    #[test]
    fn addresses() {
        let shown = |input: &str| url(&Url::parse(input).unwrap());
        assert_eq!(
            shown("https://me:pw@h.example:8443/a/b?code=1&page=2&access_token=x#f"),
            "https://h.example:8443/a/b?code=[secret]&page=2&access_token=[secret]"
        );
        assert_eq!(shown("http://127.0.0.1:9000/hubspot"), "http://127.0.0.1:9000/hubspot");
    }

    #[test]
    fn json_keeps_what_verdicts_need() {
        let body = j!({"error": "invalid_grant", "code": "not_found", "token": "abc", "status": "BAD_REFRESH_TOKEN",
            "deep": [{"refresh_token": "r", "code": "a1b2c3d4e5f6g7"}], "token_type": "bearer", "token_id": null,
            "message": "refresh_token=abc was refused"});
        let expected = j!({"error": "invalid_grant", "code": "not_found", "token": "[secret]",
            "status": "BAD_REFRESH_TOKEN", "deep": [{"refresh_token": "[secret]", "code": "[secret]"}],
            "token_type": "bearer", "token_id": null, "message": "refresh_token=[secret] was refused"});
        assert_eq!(json(&body), expected);
    }

    #[test]
    fn truncation_keeps_characters_whole() {
        assert_eq!(truncate("äöü", 2), "äö…");
        assert_eq!(truncate("äöü", 3), "äöü");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_to_its_end(
            input in r#"([a-z%\\"'{}:=& ]{0,8}(token|code|Bearer|%22|eyJ|ä|\u{1f600})){0,8}"#,
        ) {
            let once = text(&input);
            proptest::prop_assert_eq!(text(&once), once);
        }

        #[test]
        fn no_dress_lets_a_secret_through(
            secret in "[A-Za-z0-9_.~-]{8,40}",
            dress in 0_usize..9,
        ) {
            let dressed = match dress {
                0 => format!("{{\"access_token\":\"{secret}\"}}"),
                1 => format!("{{\\\"refresh_token\\\" : \\\"{secret}\\\"}}"),
                2 => format!("a=1&client_secret={secret}&b=2"),
                3 => format!("https://h.example/cb?code={secret}&x=1"),
                4 => format!("%22id_token%22%3A%22{secret}%22"),
                5 => format!("state%3D{secret}%26x%3D1"),
                6 => format!("Authorization: Token {secret}\r\nX: y"),
                7 => format!("password: {secret}"),
                _ => format!("'api_key' => '{secret}'"),
            };
            proptest::prop_assert!(!text(&dressed).contains(&secret), "{}", text(&dressed));
        }
    }
}
