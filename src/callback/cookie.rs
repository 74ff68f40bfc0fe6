//! The cookies that tie consents to the browser that began them: one for each start link, so that two consents at one
//! provider do not take each other's.
//!
//! Behind `https` the name has the prefix `__Host-`, so that no other host, not even one below the same domain, can put
//! one of its own in its place. The prefix wants the path `/`, so the name tells the providers apart.

use axum::http::header::{self, HeaderMap};

use crate::auth::authorize::{ATTEMPT_LIFE, Started};

const NAME: &str = "fieldmirror_attempt";
/// Consents at one provider that a browser may have under way at once. It sends the newest cookies last (RFC 6265, 5.4).
const COOKIES_MAX: usize = 32;

/// What the names of the cookies for consents at `provider` begin with.
fn stem(provider: &str, is_https: bool) -> String {
    format!("{}{NAME}_{provider}_", if is_https { "__Host-" } else { "" })
}

/// The header that sets it.
pub(super) fn set(started: &Started, is_https: bool) -> String {
    let (path, secure) = if is_https { ("/", "; Secure") } else { (started.cookie_path.as_str(), "") };
    format!(
        "{}{}={}; Path={path}; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        stem(started.provider, is_https),
        started.link,
        started.cookie.expose(),
        ATTEMPT_LIFE.num_seconds()
    )
}

/// The cookies for consents at `provider`. Of one that is sent twice neither counts: one of the two is somebody else's.
pub(super) fn read<'a>(headers: &'a HeaderMap, provider: &str, is_https: bool) -> Vec<&'a str> {
    let stem = stem(provider, is_https);
    let ours = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().strip_prefix(stem.as_str())?.split_once('='));
    let ours: Vec<(&str, &str)> = ours.collect();
    let is_alone = |link: &str| ours.iter().filter(|(other, _)| *other == link).count() == 1;
    let newest = ours.iter().skip(ours.len().saturating_sub(COOKIES_MAX));
    newest.filter(|(link, _)| is_alone(link)).map(|(_, value)| *value).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use url::Url;

    use super::*;

    #[test]
    fn reading() {
        let check = |lines: &[&str], expected: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::COOKIE, HeaderValue::from_str(line).expect("a header"));
            }
            assert_eq!(read(&headers, "hubspot", false), expected, "{lines:?}");
        };
        check(&[], &[]);
        check(&["a=b; fieldmirror_attempt_hubspot_1=x-_1; c=d"], &["x-_1"]);
        check(&["a=b", "fieldmirror_attempt_hubspot_1=x"], &["x"]);
        check(&["fieldmirror_attempt_hubspot_1=x; fieldmirror_attempt_hubspot_2=y"], &["x", "y"]);
        check(
            &["fieldmirror_attempt_jobber_1=x; xfieldmirror_attempt_hubspot_1=y; fieldmirror_attempt=z"],
            &[],
        );
        check(&["__Host-fieldmirror_attempt_hubspot_1=x"], &[]);
        let (once, again) = ("fieldmirror_attempt_hubspot_1=x", "fieldmirror_attempt_hubspot_1=y");
        check(&[&format!("{once}; {again}; fieldmirror_attempt_hubspot_2=z")], &["z"]);
        check(&[once, once], &[]);
    }

    #[test]
    fn setting() {
        let started = Started {
            authorize_url: Url::parse("https://provider.example/").expect("a URL"),
            cookie: "x".into(),
            cookie_path: "/sub/oauth/callback/hubspot".to_owned(),
            link: "8a7f".to_owned(),
            provider: "hubspot",
        };
        let plain = "fieldmirror_attempt_hubspot_8a7f=x; Path=/sub/oauth/callback/hubspot; Max-Age=600; HttpOnly; \
                     SameSite=Lax";
        assert_eq!(set(&started, false), plain);
        let https =
            "__Host-fieldmirror_attempt_hubspot_8a7f=x; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure";
        assert_eq!(set(&started, true), https);
    }
}
