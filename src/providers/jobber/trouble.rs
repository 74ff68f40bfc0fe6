//! What is wrong with an answer. Jobber says 200 to nearly everything; what it means stands in the body.

use serde_json::Value;

use crate::domain::step::Reply;
use crate::providers::judge::clip;

/// The longest wait that is reckoned from a budget.
const WAIT_MS_MAX: u64 = 5 * 60 * 1000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The app was removed, or the account was closed: a person has to connect again.
    Ended(&'static str),
    /// "Service temporarily unavailable".
    Unavailable,
    /// No token, or none that is taken.
    Unauthenticated,
    /// The budget has too little left for now.
    Throttled { wait_ms: Option<u64> },
    /// The budget never has as much.
    TooDear { requested: u64, max: u64 },
    /// The schema, or the app's scopes, do not have a part of the query.
    Refused(Refused),
    /// The cursor is not taken.
    Cursor(String),
    /// Any other error: nothing that stands beside it is believed.
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// What the error names: the field first, then the steps of its path.
    pub(super) names: Vec<String>,
    pub(super) flaw: Flaw,
    pub(super) said: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Not to be seen by this app, or this user.
    Hidden,
    /// The schema has no such field.
    Lacking,
    /// What it is asked with is not taken.
    Argument,
    /// Anything else that is wrong with the query.
    Shape,
}

/// What is wrong with an answer, whatever its status.
pub(super) fn of(reply: &Reply) -> Option<Trouble> {
    let body = reply.json()?;
    if let Some(ended) = body_alone(body) {
        return Some(ended);
    }
    let errors = body.get("errors")?.as_array()?;
    let first = errors.first()?;
    let code = |error: &Value| error.pointer("/extensions/code").and_then(Value::as_str).map(str::to_owned);
    // The gravest of several decides.
    let with_code = |wanted: &str| errors.iter().find(|error| code(error).as_deref() == Some(wanted));
    if with_code("UNAUTHENTICATED").is_some() {
        return Some(Trouble::Unauthenticated);
    }
    if with_code("THROTTLED").is_some() || errors.iter().any(|error| message(error) == "Throttled") {
        return Some(throttled(body));
    }
    let refused = errors.iter().find_map(refused);
    Some(refused.unwrap_or_else(|| Trouble::Other(clip(message(first)))))
}

/// Answers that are not GraphQL's.
fn body_alone(body: &Value) -> Option<Trouble> {
    let said = [body.get("message"), body.pointer("/error/message"), body.get("error")];
    let said = said.into_iter().flatten().find_map(Value::as_str)?;
    match said {
        _ if said.contains("has disconnected this app") => {
            Some(Trouble::Ended("the account's owner has disconnected the app"))
        }
        _ if said.contains("account is not active") => Some(Trouble::Ended("the account is not active")),
        _ if said.contains("temporarily unavailable") => Some(Trouble::Unavailable),
        _ => None,
    }
}

fn message(error: &Value) -> &str {
    error.get("message").and_then(Value::as_str).unwrap_or("no reason given")
}

/// A query is admitted by what it asks for at most: it waits until that much is there, or for ever.
fn throttled(body: &Value) -> Trouble {
    let cost = |pointer: &str| {
        let value = body.pointer("/extensions/cost")?.pointer(pointer)?;
        value.as_u64().or_else(|| value.as_f64().and_then(whole))
    };
    let Some(requested) = cost("/requestedQueryCost") else { return Trouble::Throttled { wait_ms: None } };
    let max = cost("/throttleStatus/maximumAvailable");
    if let Some(max) = max.filter(|max| requested > *max) {
        return Trouble::TooDear { requested, max };
    }
    let wait_ms = cost("/throttleStatus/currentlyAvailable")
        .zip(cost("/throttleStatus/restoreRate"))
        .and_then(|(left, secondly)| (requested.saturating_sub(left) * 1000).checked_div(secondly));
    // A second more: what is left was told a moment ago.
    Trouble::Throttled { wait_ms: wait_ms.map(|wait| (wait + 1000).min(WAIT_MS_MAX)) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut at both ends")]
fn whole(number: f64) -> Option<u64> {
    number.is_finite().then_some(number.clamp(0.0, 1e15).ceil() as u64)
}

fn refused(error: &Value) -> Option<Trouble> {
    let text = message(error);
    let said = clip(text);
    let named = || {
        let path = error.get("path").and_then(Value::as_array).into_iter().flatten();
        let path = path.filter_map(Value::as_str).map(str::to_owned);
        let field = error.pointer("/extensions/fieldName").and_then(Value::as_str).map(str::to_owned);
        field.or_else(|| named_in(text)).into_iter().chain(path).collect()
    };
    let code = error.pointer("/extensions/code").and_then(Value::as_str).unwrap_or_default();
    if text.contains("hidden due to permissions") {
        return Some(Trouble::Refused(Refused { names: named(), flaw: Flaw::Hidden, said }));
    }
    if text.to_lowercase().contains("cursor") {
        return Some(Trouble::Cursor(said));
    }
    let not_taken = ["was provided invalid value", "doesn't accept argument", "has an invalid value"];
    let flaw = if code == "undefinedField" || text.contains("doesn't exist on") {
        Flaw::Lacking
    } else if error.pointer("/extensions/problems").is_some()
        || code == "argumentNotAccepted"
        || not_taken.iter().any(|words| text.contains(words))
    {
        Flaw::Argument
    } else if code == "selectionMismatch" || code.starts_with("missingRequired") {
        Flaw::Shape
    } else {
        return None;
    };
    Some(Trouble::Refused(Refused { names: named(), flaw, said }))
}

/// The field of "The field X on an object of type Y …" and "Field 'x' doesn't exist on type 'Y'".
fn named_in(text: &str) -> Option<String> {
    let mut words = text.split([' ', '\'']).filter(|word| !word.is_empty());
    words.by_ref().find(|word| word.eq_ignore_ascii_case("field"))?;
    words.next().map(str::to_owned)
}
