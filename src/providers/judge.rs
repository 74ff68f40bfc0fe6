//! The common readings of replies: what a status means when a provider says nothing else about it.

use crate::domain::failure::{Failure, FailureKind};
use crate::domain::spec::ProviderSpec;
use crate::domain::step::{Body, Reply, Request, Verdict};
use crate::domain::text::is_invisible;
use crate::domain::token::TokenVerdict;

/// The most of a provider's own words that goes into one of our sentences.
const WORDS_MAX: usize = 200;

/// OnceHub's header, and Housecall Pro's.
const REQUEST_ID: [&str; 2] = ["request-id", "x-request-id"];

/// Reads an API reply by its status alone.
pub fn by_status(spec: &ProviderSpec, request: &Request, reply: &Reply) -> Verdict {
    let title = spec.title;
    match reply.status {
        200..=299 if reply.json().is_some() => Verdict::Accept,
        // A page of an edge, or a body that was cut.
        200..=299 => Verdict::Retry {
            wait_ms: None,
            why: format!("{title} answered `{}` with {} and no JSON", request.purpose, reply.status),
        },
        401 => Verdict::RefreshToken,
        403 => Verdict::Fail(Failure::new(
            FailureKind::Forbidden { scope: None },
            format!("{title} does not allow `{}`: {}", request.purpose, words(reply)),
        )),
        408 | 423 | 425 | 500..=599 => {
            Verdict::Retry { wait_ms: None, why: traced(format!("{title} answered {}", reply.status), reply) }
        }
        429 => Verdict::Throttled {
            bucket: request.buckets.first().copied().unwrap_or(spec.buckets[0].name),
            wait_ms: None,
        },
        300..=399 => Verdict::Fail(Failure::changed(format!(
            "{title} redirects `{}`, which is never followed",
            request.purpose
        ))),
        status => Verdict::Fail(Failure::bug(format!(
            "{title} refused `{}` with {status}: {}",
            request.purpose,
            words(reply)
        ))),
    }
}

/// Whether a status speaks of the endpoint's own trouble, whatever the body says.
pub fn is_trouble(status: u16) -> bool {
    status == 429 || status >= 500
}

/// RFC 6749 §5.2: `invalid_grant` is the death of a grant; errors about the client concern every account; all else
/// passes, and so does the endpoint's own trouble.
pub fn token_by_rfc(status: u16, body: &Body) -> TokenVerdict {
    let text = |name: &str| match body {
        Body::Json(value) => value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default(),
        Body::Text(_) => "",
    };
    let error = text("error");
    let said = if text("error_description").is_empty() { error } else { text("error_description") };
    let said = clip(said);
    match error {
        _ if is_trouble(status) => TokenVerdict::Retry(format!("the token endpoint answered {status}")),
        "invalid_grant" => TokenVerdict::Dead(said),
        "invalid_client" | "unauthorized_client" | "unsupported_grant_type" | "invalid_scope" => {
            TokenVerdict::Misconfigured(said)
        }
        _ => TokenVerdict::Retry(format!("the token endpoint answered {status}")),
    }
}

/// The provider's own message, cut short; customer data does not stand in messages about whole requests.
pub fn words(reply: &Reply) -> String {
    let said = reply.text_at("/message").or_else(|| reply.text_at("/error")).unwrap_or("no reason given");
    traced(clip(said), reply)
}

/// What is said of an answer, with the id by which the provider's support finds the request, where a header tells one.
pub fn traced(said: String, reply: &Reply) -> String {
    match REQUEST_ID.iter().find_map(|name| reply.header(name)) {
        Some(id) => format!("{said} (request {})", clip(id)),
        None => said,
    }
}

/// One line of it, without what would do something to a terminal.
pub fn clip(text: &str) -> String {
    let shown = |c: char| if c.is_control() || is_invisible(c) { ' ' } else { c };
    let mut kept: String = text.chars().take(WORDS_MAX).map(shown).collect();
    if text.chars().nth(WORDS_MAX).is_some() {
        kept.push('…');
    }
    kept
}
