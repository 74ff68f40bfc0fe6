//! HubSpot tickets, with what makes them readable: pipeline stages, owners and the account's own properties.
//!
//! Sources: HubSpot's published OpenAPI collection and changelog (2026), and what integrators report where those are
//! silent. Quirks that shape this file:
//! - hundreds of property names overflow a URL, so lists and searches bring ids and `batch/read` (POST) the records;
//! - search ends at 10,000 hits whatever the paging, so it is walked by id, never by offset;
//! - archiving does not move `hs_lastmodifieddate`, so archived tickets have a walk of their own;
//! - every property value is a string or null.

mod owners;
mod pipelines;
mod properties;
mod tickets;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::judge::{by_status, clip, is_trouble, token_by_rfc, words};
use super::{Account, AccountContext, Clues, Limit, Provider, Quota, WAIT_MAX, Window};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::spec::{
    BEARER, BodyStyle, BucketSpec, EVERY_BUCKET, GrantKind, GrantSpec, ProviderSpec, StreamSpec,
};
use crate::domain::step::{Body, Facts, Position, Presence, Reply, Request, Step, StepContext, Verdict};
use crate::domain::token::TokenVerdict;
use crate::domain::view::AccountView;

pub struct HubSpot;

/// Requests of one app to one account, search excluded.
const TEN_SECONDLY: &str = "ten_secondly";
/// Search requests to one account, shared with its other apps.
const SEARCH: &str = "search";
/// Batch reads of associations: the specification exempts them from the ten-second limit. They have a bucket all the
/// same, since a request without one would not wait after a refusal.
const ASSOCIATIONS: &str = "associations";

static SPEC: ProviderSpec = ProviderSpec {
    name: "hubspot",
    title: "HubSpot",
    grants: &[
        GrantSpec {
            kind: GrantKind::AuthorizationCode,
            params: &[],
            secrets: &[],
            placement: BEARER,
            headers: &[],
        },
        GrantSpec {
            kind: GrantKind::BearerToken,
            params: &[],
            secrets: &["bearer_token"],
            placement: BEARER,
            headers: &[],
        },
    ],
    authorize_url: "https://app.hubspot.com/oauth/authorize",
    token_url: "https://api.hubapi.com/oauth/2026-03/token",
    revoke_url: "https://api.hubapi.com/oauth/2026-03/token/revoke",
    introspect_path: "/introspect",
    api_base: "https://api.hubapi.com",
    api_version: "2026-03",
    scopes: &[
        "oauth",
        "tickets",
        "crm.objects.owners.read",
        "crm.objects.contacts.read",
        "crm.objects.companies.read",
    ],
    pkce: true,
    denies_in_silence: false,
    token_body: BodyStyle::Form,
    reads_jwt: false,
    token_life_default: Duration::from_mins(30),
    buckets: &[
        // 110 for public apps since 2024; newer material still says 100 in places.
        BucketSpec::requests(TEN_SECONDLY, 100, Duration::from_secs(10)),
        BucketSpec::requests(SEARCH, 5, Duration::from_secs(1)),
        // No figure is published. Two go out beside each batch read, which paces them; this only bounds them.
        BucketSpec::requests(ASSOCIATIONS, 10_000, Duration::from_secs(10)),
    ],
    // The token endpoint is limited too; no figure is published. This is what ten thousand accounts need, and some.
    token_bucket: BucketSpec::requests("token", 200, Duration::from_secs(10)),
    in_flight_max: 16,
    page_size: 200,
    streams: &[properties::STREAM, pipelines::STREAM, owners::STREAM, tickets::STREAM],
};

impl Provider for HubSpot {
    fn spec(&self) -> &'static ProviderSpec {
        &SPEC
    }

    fn step(&self, cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
        match cx.stream.name {
            "properties" => properties::step(cx, at, replies),
            "pipeline_stages" => pipelines::step(cx, at, replies),
            "owners" => owners::step(cx, at, replies),
            "tickets" => tickets::step(cx, at, replies),
            other => Err(Failure::bug(format!("hubspot has no stream `{other}`"))),
        }
    }

    fn probe(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
        (cx.stream.name == "tickets").then(|| tickets::probe(cx, ids))
    }

    fn probed(&self, _cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
        tickets::probed(ids, reply)
    }

    fn reread(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<Position> {
        (cx.stream.name == "tickets").then(|| tickets::reread(ids))
    }

    fn window(&self, cx: &StepContext<'_>) -> Option<Window> {
        (cx.stream.name == "tickets").then(|| Window { at: Position::start(), ends: true })
    }

    fn judge(&self, request: &Request, reply: &Reply) -> Verdict {
        match reply.status {
            429 if is_daily(reply) => {
                Verdict::Throttled { bucket: EVERY_BUCKET, wait_ms: Some(DAILY_WAIT_MS) }
            }
            429 => Verdict::Throttled { bucket: own_bucket(request), wait_ms: None },
            // A cursor that is refused, or swapped with that of another list.
            400 if request.query.iter().any(|(name, _)| *name == "after") => {
                Verdict::RestartPaging { why: format!("HubSpot refused the cursor: {}", words(reply)) }
            }
            403 => Verdict::Fail(forbidden(request, reply)),
            // The account is being moved between data centres, which can take hours.
            477 => Verdict::Throttled { bucket: EVERY_BUCKET, wait_ms: Some(MOVING_WAIT_MS) },
            423 => Verdict::Retry { wait_ms: Some(LOCKED_WAIT_MS), why: "HubSpot answered 423".to_owned() },
            // The edge could not read the token at all.
            530 => Verdict::RefreshToken,
            _ => by_status(&SPEC, request, reply),
        }
    }

    /// A day's limit ends at midnight, and moving an account takes hours; all else ends within seconds.
    fn wait_max(&self, reply: &Reply) -> Duration {
        if reply.status == 477 || is_daily(reply) { Duration::from_hours(24) } else { WAIT_MAX }
    }

    fn judge_token(&self, status: u16, body: &Body) -> TokenVerdict {
        let text = |name: &str| match body {
            Body::Json(value) => value.get(name).and_then(Value::as_str).unwrap_or_default(),
            Body::Text(_) => "",
        };
        let said = clip(if text("message").is_empty() { text("error_description") } else { text("message") });
        let by_rfc = token_by_rfc(status, body);
        // Trouble of the endpoint itself proves nothing, and an error that names the client concerns every account;
        // HubSpot has answered BAD_REFRESH_TOKEN to requests that were wrong in themselves.
        if is_trouble(status) || matches!(by_rfc, TokenVerdict::Misconfigured(_)) {
            return by_rfc;
        }
        match text("status") {
            bad @ ("BAD_CLIENT_ID" | "BAD_CLIENT_SECRET" | "BAD_REDIRECT_URI" | "BAD_GRANT_TYPE") => {
                TokenVerdict::Misconfigured(format!("{bad}: {said}"))
            }
            bad if bad.starts_with("BAD_") => TokenVerdict::Dead(format!("{bad}: {said}")),
            _ => by_rfc,
        }
    }

    fn limits(&self, request: &Request, reply: &Reply) -> Option<Limit> {
        let number = |name: &str| reply.header(name)?.parse::<u64>().ok();
        let small = |name: &str| number(name).and_then(|n| u32::try_from(n).ok());
        if !request.buckets.contains(&TEN_SECONDLY) {
            return None;
        }
        let max = small("x-hubspot-ratelimit-max")?;
        Some(Limit {
            bucket: TEN_SECONDLY,
            max: Some(max),
            remaining: small("x-hubspot-ratelimit-remaining"),
            per_ms: number("x-hubspot-ratelimit-interval-milliseconds"),
            charged: None,
        })
    }

    /// Answers to OAuth apps lack these headers, and so do those of search.
    fn quota(&self, _: &Request, reply: &Reply) -> Option<Quota> {
        let number = |name: &str| reply.header(name)?.parse::<u32>().ok();
        let max = number("x-hubspot-ratelimit-daily").filter(|max| *max > 0)?;
        let remaining = number("x-hubspot-ratelimit-daily-remaining")?;
        Some(Quota { bucket: EVERY_BUCKET, max, remaining, again_ms: DAILY_WAIT_MS })
    }

    fn account_view(&self, facts: &Facts) -> Option<AccountView> {
        properties::view(facts)
    }

    /// A 401 is by itself no valid sign of anything, says HubSpot: only the token endpoint ends a grant.
    fn trusts_refresh(&self) -> bool {
        true
    }

    fn identity_requests(&self, of: &AccountContext<'_>) -> Vec<Request> {
        let path = match of.api_version {
            "v3" => "/account-info/v3/details".to_owned(),
            dated => format!("/account-info/{dated}/details"),
        };
        vec![get(path, "account_info", &[])]
    }

    /// `hub_id` = `portalId` is the key, and whoever names it must name the same: rows of two accounts under one
    /// connection could never be told apart again. No endpoint knows the account's name: its domain is the best label
    /// there is.
    fn identity(&self, clues: &Clues<'_>) -> Result<Account, Failure> {
        let details = clues.replies.first().and_then(Reply::json);
        let named = [
            details.and_then(|details| details.get("portalId")),
            clues.granted.get("hub_id"),
            clues.introspected.and_then(|answer| answer.get("hub_id")),
        ];
        let mut ids = named.into_iter().flatten().filter_map(id_text);
        let id =
            ids.next().ok_or_else(|| Failure::changed("HubSpot's account details name no `portalId`"))?;
        if let Some(other) = ids.find(|other| *other != id) {
            return Err(Failure::changed(format!(
                "HubSpot names two accounts for one credential: {id} and {other}"
            )));
        }
        let name = [clues.introspected, Some(clues.granted)]
            .into_iter()
            .flatten()
            .find_map(|answer| answer.get("hub_domain")?.as_str())
            .filter(|domain| !domain.is_empty())
            .map(str::to_owned);
        Ok(Account { id, name })
    }
}

/// How long an account that is being moved is left alone when HubSpot does not say.
const MOVING_WAIT_MS: u64 = 10 * 60 * 1000;
/// A daily limit resets at midnight in the account's own time zone; it is looked at again once an hour until then.
const DAILY_WAIT_MS: u64 = 60 * 60 * 1000;

/// HubSpot asks for two seconds at least before a locked record is asked for again.
const LOCKED_WAIT_MS: u64 = 2_000;

/// The bucket that a refusal pauses: the one that the request takes from, whatever policy the body names (search's own
/// comes without `policyName` at times). A pause of any other would not keep this request from being sent again.
fn own_bucket(request: &Request) -> &'static str {
    request.buckets.first().copied().unwrap_or(TEN_SECONDLY)
}

/// The day's limit is one for all that is asked of the account. `policyName` in older bodies; newer ones say it in `message`
/// alone.
fn is_daily(reply: &Reply) -> bool {
    reply.text_at("/policyName") == Some("DAILY") || words(reply).contains("daily limit")
}

/// 403 says that a scope or a feature is missing; the token itself is fine.
fn forbidden(request: &Request, reply: &Reply) -> Failure {
    let scope = missing_scopes(reply);
    let message = match &scope {
        Some(scope) => format!("HubSpot does not allow `{}`: scope missing: {scope}", request.purpose),
        None => format!("HubSpot does not allow `{}`: {}", request.purpose, words(reply)),
    };
    Failure::new(FailureKind::Forbidden { scope }, message)
}

/// The scopes that a refusal names, in the context of its errors or of itself, separated by spaces.
fn missing_scopes(reply: &Reply) -> Option<String> {
    let body = reply.json()?;
    let errors = body.get("errors").and_then(Value::as_array).into_iter().flatten();
    let contexts: Vec<&Value> = errors.chain([body]).filter_map(|part| part.get("context")).collect();
    ["requiredGranularScopes", "requiredScopes"].into_iter().find_map(|key| {
        let scopes = contexts.iter().filter_map(|context| context.get(key)?.as_array()).flatten();
        let scopes: BTreeSet<&str> = scopes.filter_map(Value::as_str).collect();
        (!scopes.is_empty()).then(|| scopes.into_iter().collect::<Vec<_>>().join(" "))
    })
}

/// `/crm/{area}/{version}/{rest}`, or `/crm/v3/{area}/{rest}` as it was before versions were dates.
fn crm_path(api_version: &str, area: &str, rest: &str) -> String {
    let rest = if rest.is_empty() { String::new() } else { format!("/{rest}") };
    match api_version {
        // Associations had a version of their own in that scheme.
        "v3" if area == "associations" => format!("/crm/v4/{area}{rest}"),
        "v3" => format!("/crm/v3/{area}{rest}"),
        dated => format!("/crm/{area}/{dated}{rest}"),
    }
}

fn get(path: String, purpose: &'static str, query: &[(&'static str, &str)]) -> Request {
    let query = query.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Request { query, ..Request::get(path, purpose, &[TEN_SECONDLY]) }
}

/// Ids are decimal strings in lists and numbers in some older answers.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The array that every list answer carries.
///
/// A batch that is not `COMPLETE` lacks what it has not come to. A 207 names in `errors` what it leaves out. What is not
/// there is reported as not found; any other reason (a shard that did not answer, a missing right) makes the answer
/// incomplete, and nothing may be concluded from what is missing.
fn results<'a>(reply: &'a Reply, purpose: &str) -> Result<&'a Vec<Value>, Failure> {
    let body = reply.json();
    let errors = body.and_then(|body| body.get("errors")?.as_array()).into_iter().flatten();
    if let Some(other) = errors.into_iter().find(|error| !tells_absence(error)) {
        let category = clip(other.get("category").and_then(Value::as_str).unwrap_or("no reason given"));
        return Err(Failure::transient(format!("HubSpot answered `{purpose}` in part only: {category}")));
    }
    if let Some(status) = reply.text_at("/status").filter(|status| *status != "COMPLETE") {
        let status = clip(status);
        return Err(Failure::transient(format!("HubSpot answered `{purpose}` in part only: {status}")));
    }
    body.and_then(|body| body.get("results")?.as_array())
        .ok_or_else(|| Failure::changed(format!("HubSpot's answer to `{purpose}` has no `results` list")))
}

/// The same list, taken out of the reply.
fn take_results(reply: &mut Reply, purpose: &str) -> Result<Vec<Value>, Failure> {
    results(reply, purpose)?;
    let Body::Json(body) = &mut reply.body else { return Ok(Vec::new()) };
    let list = body.get_mut("results").and_then(Value::as_array_mut);
    Ok(list.map(std::mem::take).unwrap_or_default())
}

/// `OBJECT_NOT_FOUND`, or `crm.associations.NO_ASSOCIATIONS_FOUND` as subcategory. An error without a category says
/// nothing else either.
fn tells_absence(error: &Value) -> bool {
    let word = |key: &str| error.get(key).and_then(Value::as_str);
    word("category").is_none()
        || ["category", "subCategory"].into_iter().filter_map(word).any(|w| w.ends_with("_FOUND"))
}

/// The cursor of the next page; the last page has none. `link` beside it is never followed: its host comes from the answer.
/// Paging of another shape is not taken for the end: what follows would never be read.
fn next_after(reply: &Reply, what: &str) -> Result<Option<String>, Failure> {
    let filled = |value: &&Value| !value.is_null();
    let Some(paging) = reply.json().and_then(|body| body.get("paging")).filter(filled) else {
        return Ok(None);
    };
    let next = paging.get("next").filter(filled);
    let after = next.and_then(|next| next.get("after")).and_then(id_text);
    let ends = next.is_none()
        && paging.as_object().is_some_and(|of| of.keys().all(|key| matches!(key.as_str(), "next" | "prev")));
    if after.is_none() && !ends {
        return Err(Failure::changed(format!(
            "HubSpot's `{what}` names its next page in a way that is not known"
        )));
    }
    Ok(after)
}

#[cfg(test)]
mod tests;
