//! Where a request goes: the configured base, the path below it, the query. A path never leaves the base.

use url::Url;

/// A path that is not plainly below the base.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path `{0}` is not a plain path below the API base")]
pub(super) struct BadPath(String);

/// `base` with `path` appended and `query` set. The base keeps a path of its own (`http://127.0.0.1:9000/hubspot`).
///
/// The path is empty or begins with `/`; segments that are empty or mean "here" or "up", a query, a fragment and
/// backslashes are refused rather than repaired: whoever built it meant something else.
pub(super) fn join(base: &Url, path: &str, query: &[(&'static str, String)]) -> Result<Url, BadPath> {
    if !plain(path) {
        return Err(BadPath(super::redact::truncate(&super::redact::text(path), 200)));
    }
    let mut url = base.clone();
    if !path.is_empty() {
        url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    }
    url.set_fragment(None);
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    Ok(url)
}

fn plain(path: &str) -> bool {
    let Some(below) = path.strip_prefix('/') else { return path.is_empty() };
    let harmless = |c: char| !c.is_control() && !c.is_whitespace() && !"?#\\".contains(c);
    below.chars().all(harmless)
        && (below.is_empty() || below.trim_end_matches('/').split('/').all(|segment| !is_dots(segment)))
        && !below.ends_with("//")
}

/// Empty, `.` or `..`, in any spelling of the dots.
fn is_dots(segment: &str) -> bool {
    let decoded = segment.to_ascii_lowercase().replace("%2e", ".");
    matches!(decoded.as_str(), "" | "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(base: &str, path: &str, query: &[(&'static str, String)]) -> Result<String, BadPath> {
        join(&Url::parse(base).unwrap(), path, query).map(Into::into)
    }

    #[test]
    fn paths_stay_below_the_base() {
        for (base, path, expected) in [
            ("https://api.example", "/v1/jobs", "https://api.example/v1/jobs"),
            ("http://127.0.0.1:9000/hubspot", "/crm/v3", "http://127.0.0.1:9000/hubspot/crm/v3"),
            ("http://127.0.0.1:9000/hubspot/", "/crm/v3", "http://127.0.0.1:9000/hubspot/crm/v3"),
            ("http://127.0.0.1:9000/a/b/", "/c/", "http://127.0.0.1:9000/a/b/c/"),
            ("https://api.example/base", "", "https://api.example/base"),
            ("https://api.example", "/jobs/a%2Fb", "https://api.example/jobs/a%2Fb"),
            ("https://api.example", "/jobs/ü", "https://api.example/jobs/%C3%BC"),
            ("https://api.example", "/@evil.example/x", "https://api.example/@evil.example/x"),
        ] {
            assert_eq!(joined(base, path, &[]).as_deref(), Ok(expected), "{base} + {path}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for path in [
            "jobs",
            "//evil.example/x",
            "/../x",
            "/a/%2e%2E/x",
            "/a/./b",
            "/a//b",
            "/a?b=c",
            "/a#b",
            "/a\\..\\b",
            "/a b",
            "/a\nb",
            "https://evil.example/",
            "/a//",
            "//",
        ] {
            assert!(joined("https://api.example/base", path, &[]).is_err(), "{path}");
        }
    }

    #[test]
    fn queries_are_encoded_and_added() {
        let query = [("after", "a+b/c=&d".to_owned()), ("ids[]", "1".to_owned())];
        assert_eq!(
            joined("https://api.example/?tenant=7", "/x", &query).as_deref(),
            Ok("https://api.example/x?tenant=7&after=a%2Bb%2Fc%3D%26d&ids%5B%5D=1")
        );
    }
}
