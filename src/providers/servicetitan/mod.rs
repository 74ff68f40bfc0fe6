//! ServiceTitan jobs and bookings, with the appointments, people and places that make them readable.
//!
//! Sources: ServiceTitan's OpenAPI documents (May 2026) and developer portal, and what integrators report where those
//! are silent. Quirks that shape this file:
//! - a connection is four values that an admin types; the only grant that the vendor documents is client credentials;
//! - jobs and bookings tell only on their export feeds whether they are active, so the feeds are read, not the lists;
//! - an app that a tenant has bound to one booking provider may not read the tenant's bookings, only the provider's;
//! - 401 is the answer to a token that is dead and to an app key that is wrong.

mod booking_provider;
mod feed;
mod streams;

use std::time::Duration;

use serde_json::Value;

use super::judge::{by_status, clip, is_trouble, token_by_rfc};
use super::{Account, AccountContext, Clues, Provider, TokenContext, TokenStep, Window, interpret};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::spec::{
    BEARER, BodyStyle, BucketSpec, GrantKind, GrantSpec, ProviderSpec, Read, StreamSpec,
};
use crate::domain::step::{
    Body, Options, Params, Position, Presence, Reply, Request, Step, StepContext, Verdict,
};
use crate::domain::token::TokenVerdict;
use crate::domain::values;

pub struct ServiceTitan;

/// Calls of one app to one tenant, all APIs but reporting.
const SECONDLY: &str = "secondly";
const BUCKETS: &[&str] = &[SECONDLY];
/// What setting says how many these are, and how many when it does not.
const PER_SECOND: &str = "requests_per_second";
const PER_SECOND_DEFAULT: u32 = 60;
const APP_KEY: &[(&str, &str)] = &[("st-app-key", "app_key")];
/// How late the export feeds show a change, unless they are asked for recent ones.
const FEED_LAG: Duration = Duration::from_mins(15);

/// What the first questions to an account are for.
const WHO: &str = "identity";
const BOOKINGS_ACCESS: &str = "bookings_access";

static SPEC: ProviderSpec = ProviderSpec {
    name: "servicetitan",
    title: "ServiceTitan",
    grants: &[
        GrantSpec {
            kind: GrantKind::ClientCredentials,
            params: &["tenant_id", "client_id"],
            secrets: &["client_secret", "app_key"],
            placement: BEARER,
            headers: APP_KEY,
        },
        GrantSpec {
            kind: GrantKind::AuthorizationCode,
            params: &["tenant_id"],
            secrets: &["app_key"],
            placement: BEARER,
            headers: APP_KEY,
        },
    ],
    authorize_url: "https://auth.servicetitan.io/connect/authorize",
    token_url: "https://auth.servicetitan.io/connect/token",
    revoke_url: "",
    introspect_path: "",
    api_base: "https://api.servicetitan.io",
    api_version: "",
    // Client credentials get what the tenant's admin allowed; whether they may name scopes is not documented.
    scopes: &[],
    pkce: true,
    denies_in_silence: false,
    token_body: BodyStyle::Form,
    reads_jwt: true,
    token_life_default: Duration::from_mins(15),
    buckets: &[BucketSpec::requests(SECONDLY, PER_SECOND_DEFAULT, Duration::from_secs(1))],
    // The token endpoint is limited too; no figure is published.
    token_bucket: BucketSpec::requests("token", 20, Duration::from_mins(1)),
    // A feed takes one request at a time; some endpoints are reported to mind more than two.
    in_flight_max: 4,
    page_size: 500,
    streams: streams::ALL,
};

impl Provider for ServiceTitan {
    fn spec(&self) -> &'static ProviderSpec {
        &SPEC
    }

    fn step(&self, cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
        let cx = StepContext { page_size: cx.page_size.min(streams::PAGE_SIZE_MAX), ..*cx };
        match cx.stream.read {
            Read::List(_) => interpret::step(&SPEC, &cx, at, replies),
            Read::Own if of_booking_providers(&cx) => booking_provider::step(&cx, at, replies),
            Read::Own => feed::step(&cx, at, replies),
        }
    }

    fn judge(&self, request: &Request, reply: &Reply) -> Verdict {
        match reply.status {
            // A place that a feed does not know any more: the walk goes on from a date.
            400 if feed::is_feed(request.purpose)
                && request.query.iter().any(|(name, _)| *name == "from") =>
            {
                Verdict::Accept
            }
            400 => Verdict::Fail(Failure::bug(format!(
                "ServiceTitan refused `{}`: {}",
                request.purpose,
                said(reply)
            ))),
            401 if matches!(request.purpose, WHO | BOOKINGS_ACCESS) => {
                Verdict::Fail(Failure::new(FailureKind::NeedsReauth, NOT_ACCEPTED))
            }
            // What these mean is for those who asked to say.
            403 | 404 if matches!(request.purpose, WHO | BOOKINGS_ACCESS | booking_provider::PURPOSE) => {
                Verdict::Accept
            }
            403 | 404 if request.purpose == "bookings" => {
                Verdict::Fail(Failure::new(FailureKind::Forbidden { scope: None }, bookings_refused(reply)))
            }
            403 => Verdict::Fail(forbidden(request, reply)),
            404 => Verdict::Fail(Failure::new(
                FailureKind::Misconfigured,
                format!(
                    "ServiceTitan knows no `{}` of this tenant: check `tenant_id` and `environment` ({})",
                    request.purpose,
                    said(reply)
                ),
            )),
            // The server gives up after 100 s; a page of a list with fewer records takes less.
            408 | 504 | 524 if is_list(request) && interpret::may_shrink(request, streams::PAGE_SIZE) => {
                Verdict::Accept
            }
            409 | 500..=599 => Verdict::Retry {
                wait_ms: None,
                why: format!("ServiceTitan answered {}: {}", reply.status, said(reply)),
            },
            429 => Verdict::Throttled { bucket: SECONDLY, wait_ms: wait_in_words(reply) },
            _ => by_status(&SPEC, request, reply),
        }
    }

    /// Production credentials at the integration host, or the reverse, are refused in the same words as a secret that was
    /// rotated and an app that the tenant's admin has disabled.
    fn judge_token(&self, status: u16, body: &Body) -> TokenVerdict {
        let hint = match oauth_error(body) {
            "invalid_client" => WRONG_CLIENT,
            "unauthorized_client" | "unsupported_grant_type" | "unsupported_response_type" => NO_SUCH_GRANT,
            _ => return token_by_rfc(status, body),
        };
        if is_trouble(status) {
            return token_by_rfc(status, body);
        }
        TokenVerdict::Misconfigured(format!("`{}`: {hint}", oauth_error(body)))
    }

    fn buckets(&self, options: &Options) -> Vec<BucketSpec> {
        let given =
            options.get(PER_SECOND).and_then(Value::as_u64).and_then(|given| u32::try_from(given).ok());
        let limit = given.unwrap_or(PER_SECOND_DEFAULT).max(1);
        vec![BucketSpec::requests(SECONDLY, limit, Duration::from_secs(1))]
    }

    fn visibility_lag(&self, stream: &StreamSpec, options: &Options) -> Duration {
        let shows_late = feed::is_feed(stream.name) && !flag(options, "include_recent_changes");
        let listed = stream.name == "bookings" && !booking_provider::ids(options).is_empty();
        if shows_late && !listed { FEED_LAG } else { Duration::ZERO }
    }

    /// A row that no feed or list told of is asked for by its id. 404 for one id proves nothing (a wrong tenant looks
    /// alike), so it is the list that is asked.
    fn probe(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
        self.probe_at(cx, None, ids)
    }

    fn place_column(&self, cx: &StepContext<'_>) -> Option<&'static str> {
        of_booking_providers(cx).then_some(booking_provider::PLACE)
    }

    fn probe_at(
        &self,
        cx: &StepContext<'_>,
        place: Option<&str>,
        ids: &[String],
    ) -> Option<(Request, usize)> {
        if of_booking_providers(cx) { booking_provider::probe(cx, place, ids) } else { feed::probe(cx, ids) }
    }

    fn probed(&self, cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
        feed::probed(cx, ids, reply)
    }

    fn window(&self, cx: &StepContext<'_>) -> Option<Window> {
        match cx.stream.read {
            Read::List(_) => None,
            Read::Own if of_booking_providers(cx) => Some(Window { at: Position::start(), ends: false }),
            Read::Own => Some(Window { at: feed::since(cx), ends: false }),
        }
    }

    /// The client of a network of tenants has to say for which of them it asks.
    fn token_fields(&self, of: &TokenContext<'_>) -> Vec<(&'static str, String)> {
        let named = of.step == TokenStep::ClientCredentials && flag(of.options, "token_tenant_param");
        let tenant = of.params.get("tenant_id").filter(|_| named);
        tenant.map(|tenant| ("tenant", tenant.clone())).into_iter().collect()
    }

    fn consent_hint(&self) -> Option<&'static str> {
        Some(NO_SUCH_GRANT)
    }

    fn identity_requests(&self, of: &AccountContext<'_>) -> Vec<Request> {
        // What is no number finds no tenant, and `identity` says so.
        let tenant = tenant(of.params).unwrap_or("0");
        let mut who = Request::get(format!("/settings/v2/tenant/{tenant}/business-units"), WHO, BUCKETS);
        who.query.extend([("page", "1".to_owned()), ("pageSize", "1".to_owned())]);
        let mut requests = vec![who];
        if booking_provider::ids(of.options).is_empty() {
            let path = format!("/crm/v2/tenant/{tenant}/export/bookings");
            let mut access = Request::get(path, BOOKINGS_ACCESS, BUCKETS);
            // From now on, so that there is nothing to show: a feed's first page takes its time.
            access.query.push(("from", feed::date(of.now)));
            requests.push(access);
        }
        requests
    }

    /// The tenant is what the admin typed; the token, where it can be read, and the business units must say the same.
    fn identity(&self, clues: &Clues<'_>) -> Result<Account, Failure> {
        let tenant = tenant(clues.params)?;
        let claimed = clues.claims.and_then(|claims| claims.get("tenant")).and_then(values::text);
        let who = clues.replies.first();
        let unit = who.and_then(Reply::json).and_then(|body| body.pointer("/data/0/tenant"));
        let owner = unit.and_then(|tenant| tenant.get("id")).and_then(values::text);
        if let Some(other) =
            [claimed.as_deref(), owner.as_deref()].into_iter().flatten().find(|id| *id != tenant)
        {
            return Err(misconfigured(format!(
                "these credentials are of tenant {other}, not of tenant {tenant}"
            )));
        }
        match who.map(|reply| reply.status) {
            // Without the scope for business units the token alone says whose it is.
            Some(403) if claimed.is_some() => {}
            Some(status @ (403 | 404)) => {
                let text = format!(
                    "ServiceTitan answered {status} about tenant {tenant}: check `tenant_id`, `environment` and whether \
                     the tenant's admin has connected the app"
                );
                return Err(misconfigured(text));
            }
            _ => {}
        }
        check_bookings(clues)?;
        let name = unit.and_then(|tenant| tenant.get("name")).and_then(Value::as_str);
        Ok(Account { id: tenant.to_owned(), name: name.filter(|name| !name.is_empty()).map(str::to_owned) })
    }
}

const NOT_ACCEPTED: &str = "ServiceTitan does not accept the token or the app key: check `app_key` (developer portal, My \
     Apps) and that `environment` is the one that the credentials are of";
const WRONG_CLIENT: &str = "check the client id and secret (Settings, Integrations, API Application Access), that \
     `environment` is the one that they are of, and that the tenant's admin has not disabled the app";
const NO_SUCH_GRANT: &str = "ServiceTitan V2 apps normally connect with client credentials: use `--grant \
     client_credentials`";

fn misconfigured(text: String) -> Failure {
    Failure::new(FailureKind::Misconfigured, text)
}

/// Whether a request is for a page of a list.
fn is_list(request: &Request) -> bool {
    let listed = |stream: &StreamSpec| matches!(stream.read, Read::List(_));
    request.purpose == booking_provider::PURPOSE || SPEC.stream(request.purpose).is_some_and(listed)
}

/// Whether the bookings of this walk are read from the lists of booking providers.
fn of_booking_providers(cx: &StepContext<'_>) -> bool {
    cx.stream.name == "bookings" && !booking_provider::ids(cx.options).is_empty()
}

/// The tenant's number, which stands in every path.
fn tenant(params: &Params) -> Result<&str, Failure> {
    let tenant = params.get("tenant_id").map_or("", String::as_str);
    let number = !tenant.is_empty() && tenant.len() <= 19 && tenant.bytes().all(|byte| byte.is_ascii_digit());
    if number {
        Ok(tenant)
    } else {
        Err(misconfigured("`tenant_id` is the tenant's number, digits only".to_owned()))
    }
}

fn flag(options: &Options, name: &str) -> bool {
    options.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn oauth_error(body: &Body) -> &str {
    match body {
        Body::Json(value) => value.get("error").and_then(Value::as_str).unwrap_or_default(),
        Body::Text(_) => "",
    }
}

/// An app that may read bookings and is refused the tenant's is bound to one booking provider. Better said now than
/// found out later.
fn check_bookings(clues: &Clues<'_>) -> Result<(), Failure> {
    let Some(reply) = clues.replies.get(1).filter(|reply| matches!(reply.status, 403 | 404)) else {
        return Ok(());
    };
    let told = clues.claims.and_then(|claims| claims.get("scope")).or_else(|| clues.granted.get("scope"));
    if told.is_none_or(|told| names_scope(told, streams::BOOKINGS_SCOPE)) {
        return Err(misconfigured(bookings_refused(reply)));
    }
    // Bookings were never granted: their stream says so, and the others go on.
    Ok(())
}

/// Scopes are an array, or words with blanks between on older tokens.
fn names_scope(told: &Value, scope: &str) -> bool {
    match told {
        Value::Array(items) => items.iter().any(|item| item == scope),
        Value::String(words) => words.split_whitespace().any(|word| word == scope),
        _ => false,
    }
}

fn bookings_refused(reply: &Reply) -> String {
    format!(
        "ServiceTitan does not let the app read the tenant's bookings ({}). If it is bound to a booking provider, ask \
         the tenant's admin to reconnect it with \"No Restriction\", or name the provider in \
         `providers.servicetitan.booking_provider_ids`; if it lacks the scope {}, have it added and accepted",
        said(reply),
        streams::BOOKINGS_SCOPE
    )
}

fn forbidden(request: &Request, reply: &Reply) -> Failure {
    let scope = SPEC.stream(request.purpose).and_then(|stream| streams::scope(stream.name));
    let wanted = scope.map(|scope| format!(" (scope {scope})")).unwrap_or_default();
    Failure::new(
        FailureKind::Forbidden { scope: scope.map(str::to_owned) },
        format!("ServiceTitan does not allow `{}`{wanted}: {}", request.purpose, said(reply)),
    )
}

/// Parameters of ours that a refusal may name.
const ASKED_WITH: [&str; 8] =
    ["from", "includeRecentChanges", "ids", "page", "pageSize", "sort", "active", "modifiedOnOrAfter"];

/// The title of a refusal and the id by which ServiceTitan's support finds it.
fn said(reply: &Reply) -> String {
    let title = reply.text_at("/title").or_else(|| reply.text_at("/message"));
    let errors = reply.json().and_then(|body| body.get("errors")).and_then(Value::as_object);
    let fields =
        ASKED_WITH.into_iter().filter(|name| errors.is_some_and(|errors| errors.contains_key(*name)));
    let fields = fields.collect::<Vec<_>>().join(", ");
    let parts = [
        Some(format!("status {}", reply.status)),
        title.map(clip),
        Some(format!("about {fields}")).filter(|_| !fields.is_empty()),
        reply.text_at("/traceId").map(|trace| format!("trace {}", clip(trace))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The gateway's sentence, `Rate limit is exceeded. Try again in 7 seconds.`, for replies without `Retry-After`.
fn wait_in_words(reply: &Reply) -> Option<u64> {
    let (_, after) = reply.text_at("/message")?.split_once("Try again in ")?;
    let seconds: u64 = after.split_whitespace().next()?.parse().ok()?;
    seconds.checked_mul(1000)
}

#[cfg(test)]
mod tests;
