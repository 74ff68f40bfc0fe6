//! What a provider sends back with the browser: the query of the redirect URL, read strictly.
//!
//! Everything in it comes from outside. Nothing of it but a known `error` word is ever shown or logged.

use url::{Url, form_urlencoded};

use crate::domain::secret::Secret;

/// Characters of a parameter. Codes of several hundred are common; JWTs as codes exist.
const VALUE_MAX: usize = 4096;
/// Parameters of any name.
const PARAMETERS_MAX: usize = 40;

/// Who brings an answer.
#[derive(Debug, Clone, Copy)]
pub enum BroughtBy<'a> {
    /// A browser, with what it kept of ours: one for each consent that it began.
    Browser { cookies: &'a [&'a str] },
    /// An admin who pasted the address: the database's password has proved more than a cookie could.
    Admin,
}

/// The query of a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub state: Option<Secret>,
    pub said: Said,
}

/// What the provider says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Code(Secret),
    /// The person said no.
    Denied,
    /// Nothing at all. Of some providers that is a denial.
    Nothing,
    /// An error of the provider's, as one of the words that RFC 6749 4.1.2.1 knows, or `error`.
    Error(&'static str),
}

/// A query that is not an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    #[error("it names a parameter twice")]
    Duplicate,
    #[error("it has neither a code nor an error")]
    Nothing,
    #[error("it has both a code and an error")]
    Both,
    #[error("it is too long")]
    TooLong,
    /// RFC 6749, appendix A.11: codes are of visible ASCII characters and spaces.
    #[error("its code has characters that no code has")]
    Unreadable,
    #[error("it is not the address that the provider led back to")]
    NotRedirect,
}

impl Answer {
    /// Reads the query of a redirect URL. A parameter that is named twice is refused, whatever its values; empty ones
    /// count as absent.
    pub fn parse(query: &str) -> Result<Self, BadAnswer> {
        let (mut code, mut state, mut error) = (None, None, None);
        let mut seen = std::collections::BTreeSet::new();
        for (count, (name, value)) in form_urlencoded::parse(query.as_bytes()).enumerate() {
            if count >= PARAMETERS_MAX || value.len() > VALUE_MAX || name.len() > VALUE_MAX {
                return Err(BadAnswer::TooLong);
            }
            let slot = match &*name {
                "code" => &mut code,
                "state" => &mut state,
                "error" => &mut error,
                _ => &mut None,
            };
            *slot = Some(value.into_owned()).filter(|value| !value.is_empty());
            if !seen.insert(name.into_owned()) {
                return Err(BadAnswer::Duplicate);
            }
        }
        let said = match (code, error) {
            (Some(_), Some(_)) => return Err(BadAnswer::Both),
            (Some(code), None) if !code.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
                return Err(BadAnswer::Unreadable);
            }
            (Some(code), None) => Said::Code(Secret::new(code)),
            (None, Some(word)) => known(&word),
            // Without a state only the cookie tells which consent it is.
            (None, None) if state.is_none() => Said::Nothing,
            (None, None) => return Err(BadAnswer::Nothing),
        };
        Ok(Self { state: state.map(Secret::new), said })
    }

    /// Reads a pasted redirect URL: the provider that its path names, and its answer.
    pub fn of_url(text: &str) -> Result<(String, Self), BadAnswer> {
        let url = Url::parse(text.trim()).map_err(|_| BadAnswer::NotRedirect)?;
        let mut segments = url.path_segments().ok_or(BadAnswer::NotRedirect)?.rev();
        let provider = segments.next().filter(|name| !name.is_empty()).ok_or(BadAnswer::NotRedirect)?;
        if (segments.next(), segments.next()) != (Some("callback"), Some("oauth")) {
            return Err(BadAnswer::NotRedirect);
        }
        // A pasted address has no cookie beside it that would tell whose silence this is.
        let query = url.query().filter(|query| !query.is_empty()).ok_or(BadAnswer::Nothing)?;
        Ok((provider.to_owned(), Self::parse(query)?))
    }
}

/// The word as one of ours, so that nothing from outside is passed on.
fn known(word: &str) -> Said {
    const ERRORS: [&str; 6] = [
        "invalid_request",
        "unauthorized_client",
        "unsupported_response_type",
        "invalid_scope",
        "server_error",
        "temporarily_unavailable",
    ];
    match word {
        "access_denied" => Said::Denied,
        _ => Said::Error(ERRORS.into_iter().find(|known| *known == word).unwrap_or("error")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, expected: Result<(Option<&str>, Said), BadAnswer>) {
        let got = Answer::parse(query);
        let expected = expected.map(|(state, said)| Answer { state: state.map(Secret::from), said });
        assert_eq!(got, expected, "{query}");
    }

    #[test]
    fn queries() {
        let code = |text: &str| Said::Code(Secret::from(text));
        check("code=a%2Bb&state=s", Ok((Some("s"), code("a+b"))));
        check("code=c&state=s&scope=x&session_state=y", Ok((Some("s"), code("c"))));
        check("code=c", Ok((None, code("c"))));
        check("code=c&error=&state=s", Ok((Some("s"), code("c"))));
        check("error=access_denied&state=s&error_description=<b>", Ok((Some("s"), Said::Denied)));
        check("error=server_error", Ok((None, Said::Error("server_error"))));
        check("error=<script>", Ok((None, Said::Error("error"))));
        check("", Ok((None, Said::Nothing)));
        check("state=", Ok((None, Said::Nothing)));
        check("state=s", Err(BadAnswer::Nothing));
        check("code=&state=s", Err(BadAnswer::Nothing));
        check("code=c&error=access_denied", Err(BadAnswer::Both));
        for query in ["code=a&code=b", "code=a&code=a", "state=&state=s&code=c", "code=c&x=1&x=2"] {
            check(query, Err(BadAnswer::Duplicate));
        }
        for code in ["%00", "a%0D%0Ab", "%c0%ae", "%ff", "%C3%BC", "a%7F"] {
            check(&format!("code={code}&state=s"), Err(BadAnswer::Unreadable));
        }
        check(&format!("code={}", "a".repeat(VALUE_MAX + 1)), Err(BadAnswer::TooLong));
        let many: Vec<String> = (0..=PARAMETERS_MAX).map(|i| format!("p{i}=1")).collect();
        check(&many.join("&"), Err(BadAnswer::TooLong));
    }

    #[test]
    fn pasted_urls() {
        let read = |text: &str| Answer::of_url(text).map(|(provider, _)| provider);
        assert_eq!(
            read("http://127.0.0.1:8787/oauth/callback/hubspot?code=c&state=s\n"),
            Ok("hubspot".into())
        );
        assert_eq!(read("https://h.example/sub/oauth/callback/jobber?code=c"), Ok("jobber".into()));
        for bad in ["", "code=c", "https://h.example/?code=c", "https://h.example/oauth/callback/?code=c"] {
            assert_eq!(read(bad), Err(BadAnswer::NotRedirect), "{bad}");
        }
        assert_eq!(read("https://h.example/oauth/callback/hubspot"), Err(BadAnswer::Nothing));
    }
}
