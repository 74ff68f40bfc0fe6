//! The cookie that ties a consent to the browser that began it.
//!
//! Behind `https` its name has the prefix `__Host-`, so that no other host, not even one below the same domain, can put
//! one of its own in its place. The prefix wants the path `/`, so the name tells the providers apart.

use axum::http::header::{self, HeaderMap};

use crate::auth::authorize::{ATTEMPT_LIFE, Started};

const NAME: &str = "fieldmirror_attempt";

/// What the cookie for consents at `provider` is called.
pub(super) fn name(provider: &str, is_https: bool) -> String {
    if is_https { format!("__Host-{NAME}_{provider}") } else { NAME.to_owned() }
}

/// The header that sets it.
pub(super) fn set(started: &Started, is_https: bool) -> String {
    let (path, secure) = if is_https { ("/", "; Secure") } else { (started.cookie_path.as_str(), "") };
    format!(
        "{}={}; Path={path}; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        name(started.provider, is_https),
        started.cookie.expose(),
        ATTEMPT_LIFE.num_seconds()
    )
}

/// The cookie of that name; none when it is sent twice.
pub(super) fn read<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut ours = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='));
    let first = ours.next()?;
    ours.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use url::Url;

    use super::*;

    #[test]
    fn reading() {
        let check = |lines: &[&str], expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::COOKIE, HeaderValue::from_str(line).expect("a header"));
            }
            assert_eq!(read(&headers, NAME), expected, "{lines:?}");
        };
        check(&[], None);
        check(&["a=b; fieldmirror_attempt=x-_1; c=d"], Some("x-_1"));
        check(&["a=b", "fieldmirror_attempt=x"], Some("x"));
        check(&["fieldmirror_attempts=x; xfieldmirror_attempt=y; __Host-fieldmirror_attempt=z"], None);
        check(&["fieldmirror_attempt=x; fieldmirror_attempt=y"], None);
        check(&["fieldmirror_attempt=x", "fieldmirror_attempt=x"], None);
    }

    #[test]
    fn setting() {
        let started = Started {
            authorize_url: Url::parse("https://provider.example/").expect("a URL"),
            cookie: "x".into(),
            cookie_path: "/sub/oauth/callback/hubspot".to_owned(),
            provider: "hubspot",
        };
        let plain =
            "fieldmirror_attempt=x; Path=/sub/oauth/callback/hubspot; Max-Age=600; HttpOnly; SameSite=Lax";
        assert_eq!(set(&started, false), plain);
        let https =
            "__Host-fieldmirror_attempt_hubspot=x; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure";
        assert_eq!(set(&started, true), https);
    }
}
