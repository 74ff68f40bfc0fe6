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

use std::time::Duration;

use serde_json::Value;

use super::judge::{by_status, clip, token_by_rfc, words};
use super::{Account, Clues, Limit, Provider};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::spec::{BEARER, BucketSpec, GrantKind, GrantSpec, ProviderSpec, StreamSpec};
use crate::domain::step::{Body, Facts, Method, Position, Reply, Request, Step, StepContext, Verdict};
use crate::domain::token::TokenVerdict;
use crate::domain::view::AccountView;

pub struct HubSpot;

/// Requests of one app to one account, search excluded.
const TEN_SECONDLY: &str = "ten_secondly";
/// Search requests to one account, shared with its other apps.
const SEARCH: &str = "search";

static SPEC: ProviderSpec = ProviderSpec {
    name: "hubspot",
    title: "HubSpot",
    grants: &[
        GrantSpec { kind: GrantKind::AuthorizationCode, params: &[], secrets: &[], placement: BEARER },
        GrantSpec {
            kind: GrantKind::BearerToken,
            params: &[],
            secrets: &["bearer_token"],
            placement: BEARER,
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
    token_life_default: Duration::from_mins(30),
    buckets: &[
        // 110 for public apps since 2024; newer material still says 100 in places.
        BucketSpec { name: TEN_SECONDLY, limit: 100, per: Duration::from_secs(10) },
        BucketSpec { name: SEARCH, limit: 5, per: Duration::from_secs(1) },
    ],
    // The token endpoint is limited too; no figure is published.
    token_bucket: BucketSpec { name: "token", limit: 50, per: Duration::from_secs(10) },
    page_size: 200,
    streams: &[properties::STREAM, pipelines::STREAM, owners::STREAM, tickets::STREAM],
};

impl Provider for HubSpot {
    fn spec(&self) -> &'static ProviderSpec {
        &SPEC
    }

    fn step(&self, cx: &StepContext<'_>, at: &Position, replies: &[Reply]) -> Result<Step, Failure> {
        match cx.stream.name {
            "properties" => properties::step(cx, at, replies),
            "pipeline_stages" => pipelines::step(cx, at, replies),
            "owners" => owners::step(cx, at, replies),
            "tickets" => tickets::step(cx, at, replies),
            other => Err(Failure::bug(format!("hubspot has no stream `{other}`"))),
        }
    }

    fn judge(&self, request: &Request, reply: &Reply) -> Verdict {
        match reply.status {
            429 => {
                Verdict::Throttled { bucket: throttled_bucket(request, reply), wait_ms: daily_wait(reply) }
            }
            // A cursor that is refused, or swapped with that of another list.
            400 if request.query.iter().any(|(name, _)| *name == "after") => {
                Verdict::RestartPaging { why: format!("HubSpot refused the cursor: {}", words(reply)) }
            }
            403 => Verdict::Fail(forbidden(request, reply)),
            // The account is being moved between data centres, which can take hours.
            477 => Verdict::Throttled { bucket: TEN_SECONDLY, wait_ms: Some(MOVING_WAIT_MS) },
            // The edge could not read the token at all.
            530 => Verdict::RefreshToken,
            _ => by_status(&SPEC, request, reply),
        }
    }

    fn judge_token(&self, status: u16, body: &Body) -> TokenVerdict {
        let text = |name: &str| match body {
            Body::Json(value) => value.get(name).and_then(Value::as_str).unwrap_or_default(),
            Body::Text(_) => "",
        };
        let said = clip(if text("message").is_empty() { text("error_description") } else { text("message") });
        match text("status") {
            "BAD_CLIENT_ID" | "BAD_CLIENT_SECRET" | "BAD_REDIRECT_URI" => TokenVerdict::Misconfigured(said),
            bad if bad.starts_with("BAD_") => TokenVerdict::Dead(format!("{bad}: {said}")),
            _ => token_by_rfc(status, body),
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
        })
    }

    fn account_view(&self, facts: &Facts) -> Option<AccountView> {
        properties::view(facts)
    }

    fn identity_requests(&self, api_version: &str) -> Vec<Request> {
        let path = match api_version {
            "v3" => "/account-info/v3/details".to_owned(),
            dated => format!("/account-info/{dated}/details"),
        };
        vec![get(path, "account_info", &[])]
    }

    /// `hub_id` = `portalId` is the key. No endpoint knows the account's name: its domain is the best label there is.
    fn identity(&self, clues: &Clues<'_>) -> Result<Account, Failure> {
        let details = clues.replies.first().and_then(Reply::json);
        let id = [details.and_then(|d| d.get("portalId")), clues.granted.get("hub_id")]
            .into_iter()
            .flatten()
            .find_map(id_text)
            .ok_or_else(|| Failure::changed("HubSpot's account details name no `portalId`"))?;
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

/// Which limit a 429 speaks of. Search's own comes without `policyName` at times.
fn throttled_bucket(request: &Request, reply: &Reply) -> &'static str {
    let secondly =
        reply.text_at("/policyName") == Some("SECONDLY") || words(reply).contains("secondly limit");
    let ten = words(reply).contains("ten_secondly");
    if request.purpose == "search" || (secondly && !ten) { SEARCH } else { TEN_SECONDLY }
}

fn daily_wait(reply: &Reply) -> Option<u64> {
    (reply.text_at("/policyName") == Some("DAILY")).then_some(DAILY_WAIT_MS)
}

/// 403 says that a scope or a feature is missing; the token itself is fine.
fn forbidden(request: &Request, reply: &Reply) -> Failure {
    let scope = ["requiredGranularScopes", "requiredScopes"].into_iter().find_map(|key| {
        let scopes = reply.json()?.pointer(&format!("/errors/0/context/{key}"))?.as_array()?;
        let scopes: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
        (!scopes.is_empty()).then(|| scopes.join(" "))
    });
    let message = match &scope {
        Some(scope) => format!("HubSpot does not allow `{}`: scope missing: {scope}", request.purpose),
        None => format!("HubSpot does not allow `{}`: {}", request.purpose, words(reply)),
    };
    Failure::new(FailureKind::Forbidden { scope }, message)
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
    Request { method: Method::Get, path, query, body: None, purpose, buckets: &[TEN_SECONDLY] }
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
fn results<'a>(reply: &'a Reply, purpose: &str) -> Result<&'a Vec<Value>, Failure> {
    reply
        .json()
        .and_then(|body| body.get("results")?.as_array())
        .ok_or_else(|| Failure::changed(format!("HubSpot's answer to `{purpose}` has no `results` list")))
}

/// The cursor of the next page. `link` beside it is never followed: its host comes from the answer.
fn next_after(reply: &Reply) -> Option<String> {
    reply.json()?.pointer("/paging/next/after").and_then(id_text)
}

#[cfg(test)]
mod tests;
