//! Jobber: jobs over its GraphQL API, with the visits and clients that give them a schedule, people and names.
//!
//! Written to Jobber's developer documentation as of October 2025 and to what its integrators measured since. All
//! requests go to one address; a query is paid for in points ([`cost`]) and answered with 200 whatever it says
//! ([`trouble`]).

mod cost;
mod document;
mod learned;
mod list;
mod people;
mod presence;
#[cfg(test)]
mod tests;
mod trouble;
mod walk;

use std::time::Duration;

use serde_json::{Value, json};

use super::judge::{by_status, clip, is_trouble, token_by_rfc};
use super::{Account, AccountContext, Clues, Limit, Provider, Window};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::spec::ColumnType::{Boolean, Numeric, Text, TextArray, Timestamptz};
use crate::domain::spec::{
    BEARER, BodyStyle, BucketSpec, GrantKind, GrantSpec, Mode, ProviderSpec, Read, StreamSpec, col,
};
use crate::domain::step::{
    Body, Facts, Options, Position, Presence, Reply, Request, Step, StepContext, Verdict,
};
use crate::domain::token::TokenVerdict;
use trouble::{Flaw, Trouble};

pub struct Jobber;

const TITLE: &str = "Jobber";
/// "DDoS protection": 2,500 requests in five minutes for one app and account; then 429 without a word more.
const GUARD: &str = "requests";
/// Query cost: 10,000 points, of which 500 come back each second.
const POINTS: &str = "points";
const BUCKETS: &[&str] = &[GUARD, POINTS];
/// "Service temporarily unavailable" may last.
const UNAVAILABLE_WAIT_MS: u64 = 60_000;
/// The version that is asked for where nothing is set.
const VERSION: &str = "2025-04-16";
/// Buckets of the dashboard: most of them follow from the clock, not from what somebody did.
const JOB_STATUSES: &[&str] = &[
    "requires_invoicing",
    "archived",
    "late",
    "today",
    "upcoming",
    "action_required",
    "on_hold",
    "unscheduled",
    "active",
    "expiring_within_30_days",
];
const VISIT_STATUSES: &[&str] = &["ACTIVE", "COMPLETED", "LATE", "TODAY", "UNSCHEDULED", "UPCOMING"];
const FULL: &[Mode] = &[Mode::Incremental, Mode::Backfill, Mode::Sweep];

static SPEC: ProviderSpec = ProviderSpec {
    name: "jobber",
    title: TITLE,
    grants: &[GrantSpec {
        kind: GrantKind::AuthorizationCode,
        params: &[],
        secrets: &[],
        placement: BEARER,
        headers: &[],
    }],
    authorize_url: "https://api.getjobber.com/api/oauth/authorize",
    token_url: "https://api.getjobber.com/api/oauth/token",
    // The address that some programs use is of an API that is no more; `appDisconnect` is the documented way.
    revoke_url: "",
    introspect_path: "",
    api_base: "https://api.getjobber.com/api",
    api_version: "",
    // Set on the app in the Developer Center; the authorize URL takes none.
    scopes: &[],
    pkce: true,
    denies_in_silence: true,
    token_body: BodyStyle::Form,
    reads_jwt: true,
    token_life_default: Duration::from_hours(1),
    buckets: &[
        BucketSpec::requests(GUARD, 2_500, Duration::from_mins(5)),
        BucketSpec::points(POINTS, learned::POINTS_MAX, Duration::from_secs(20)),
    ],
    // No figure is published.
    token_bucket: BucketSpec::requests("token", 20, Duration::from_secs(10)),
    in_flight_max: 2,
    page_size: 50,
    streams: &[
        StreamSpec {
            name: "jobs",
            table: "jobber_jobs",
            modes: FULL,
            needs_facts: &[],
            id: "/id",
            created_at: "/createdAt",
            updated_at: "/updatedAt",
            columns: &[
                col("job_number", Text, "/jobNumber"),
                col("title", Text, "/title"),
                col("instructions", Text, "/instructions"),
                col("job_status", Text, "/jobStatus").one_of(JOB_STATUSES),
                col("job_type", Text, "/jobType"),
                col("billing_type", Text, "/billingType"),
                col("start_at", Timestamptz, "/startAt"),
                col("end_at", Timestamptz, "/endAt"),
                col("completed_at", Timestamptz, "/completedAt"),
                col("total", Numeric, "/total"),
                col("outstanding", Numeric, "/jobBalanceTotals/outstandingAmount"),
                col("client_id", Text, "/client/id"),
                col("client_name", Text, "/client/name"),
                col("property_id", Text, "/property/id"),
                col("street", Text, "/property/address/street"),
                col("city", Text, "/property/address/city"),
                col("province", Text, "/property/address/province"),
                col("postal_code", Text, "/property/address/postalCode"),
                col("country", Text, "/property/address/country"),
                col("url", Text, "/jobberWebUri"),
            ],
            merges: false,
            keep_only: &[],
            omit: &[],
            read: Read::Own,
        },
        StreamSpec {
            name: "visits",
            table: "jobber_visits",
            modes: FULL,
            needs_facts: &[],
            id: "/id",
            created_at: "/createdAt",
            // Visits tell none.
            updated_at: "/updatedAt",
            columns: &[
                col("job_id", Text, "/job/id"),
                col("title", Text, "/title"),
                col("visit_status", Text, "/visitStatus").one_of(VISIT_STATUSES),
                col("start_at", Timestamptz, "/startAt"),
                col("end_at", Timestamptz, "/endAt"),
                col("assigned_ids", TextArray, "/assignedUsers/nodes/*/id"),
                col("assigned_names", TextArray, "/assignedUsers/nodes/*/name/full"),
            ],
            merges: false,
            keep_only: &[],
            // Cursors are of one answer alone.
            omit: &["/assignedUsers/pageInfo"],
            read: Read::Own,
        },
        StreamSpec {
            name: "clients",
            table: "jobber_clients",
            modes: FULL,
            needs_facts: &[],
            id: "/id",
            created_at: "/createdAt",
            updated_at: "/updatedAt",
            columns: &[
                col("name", Text, "/name"),
                col("first_name", Text, "/firstName"),
                col("last_name", Text, "/lastName"),
                col("company_name", Text, "/companyName"),
                col("is_company", Boolean, "/isCompany"),
                col("is_lead", Boolean, "/isLead"),
                col("is_archived", Boolean, "/isArchived"),
            ],
            merges: false,
            keep_only: &[],
            omit: &[],
            read: Read::Own,
        },
    ],
};

impl Provider for Jobber {
    fn spec(&self) -> &'static ProviderSpec {
        &SPEC
    }

    fn step(&self, cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
        walk::step(cx, at, &replies)
    }

    fn judge(&self, request: &Request, reply: &Reply) -> Verdict {
        let fails = |kind, message| Verdict::Fail(Failure::new(kind, message));
        match trouble::of(reply) {
            // Before the status: which one comes with this is not documented.
            Some(Trouble::Ended(why)) => fails(FailureKind::NeedsReauth, format!("{TITLE}: {why}")),
            Some(Trouble::Unavailable) => Verdict::Retry {
                wait_ms: Some(UNAVAILABLE_WAIT_MS),
                why: format!("{TITLE} says that the service is unavailable"),
            },
            Some(Trouble::Unauthenticated) => Verdict::RefreshToken,
            Some(Trouble::Throttled { wait_ms }) => Verdict::Throttled { bucket: POINTS, wait_ms },
            // A walk can ask for less; the same query sent again would be refused for ever.
            Some(Trouble::TooDear { .. }) if is_of_walk(request) => Verdict::Accept,
            Some(Trouble::TooDear { requested, max }) => fails(
                FailureKind::ProviderChanged,
                format!("`{}` costs {requested} points, and the budget holds {max}", request.purpose),
            ),
            _ if reply.status == 429 => Verdict::Throttled { bucket: GUARD, wait_ms: None },
            Some(Trouble::Cursor(said)) if asks_after(request) => {
                Verdict::RestartPaging { why: format!("{TITLE} refused the cursor: {said}") }
            }
            _ if reply.status >= 300 => by_status(&SPEC, request, reply),
            // A walk can ask for less.
            // A walk can do without.
            Some(Trouble::Refused(_)) if is_of_walk(request) => Verdict::Accept,
            Some(Trouble::Refused(refused)) if refused.flaw == Flaw::Hidden => {
                fails(FailureKind::Forbidden { scope: None }, format!("{TITLE}: {}", refused.said))
            }
            Some(Trouble::Refused(refused)) => fails(
                FailureKind::ProviderChanged,
                format!("{TITLE} does not take the query for `{}`: {}", request.purpose, refused.said),
            ),
            Some(Trouble::Cursor(said) | Trouble::Other(said)) => Verdict::Retry {
                wait_ms: None,
                why: format!("{TITLE} answered `{}` with an error: {said}", request.purpose),
            },
            None => not_refused(request, reply),
        }
    }

    /// The status alone decides: the bodies are not documented, and every one of these means that a person has to
    /// connect again. Only errors that name the client by RFC 6749 concern every account.
    fn judge_token(&self, status: u16, body: &Body) -> TokenVerdict {
        let text = |name: &str| match body {
            Body::Json(value) => value.get(name).and_then(Value::as_str).unwrap_or_default(),
            Body::Text(text) => text,
        };
        let by_rfc = token_by_rfc(status, body);
        if is_trouble(status) || matches!(by_rfc, TokenVerdict::Misconfigured(_)) {
            return by_rfc;
        }
        let said =
            ["message", "error_description", "error"].into_iter().map(text).find(|text| !text.is_empty());
        match status {
            400 | 401 | 403 => TokenVerdict::Dead(clip(said.unwrap_or("no reason given"))),
            _ => by_rfc,
        }
    }

    fn limits(&self, _: &Request, reply: &Reply) -> Option<Limit> {
        let cost = reply.json()?.pointer("/extensions/cost")?;
        let status = cost.get("throttleStatus")?;
        // Admission goes by what is asked for at most, the budget by what it came to.
        let charged = cost.get("actualQueryCost").and_then(Value::as_f64).filter(|cost| *cost >= 0.0);
        let number = |name: &str| status.get(name)?.as_f64().filter(|number| *number >= 0.0);
        let (max, secondly) = (number("maximumAvailable")?, number("restoreRate"));
        Some(Limit {
            bucket: POINTS,
            max: Some(points(max)),
            remaining: number("currentlyAvailable").map(points),
            charged: charged.map(points),
            per_ms: secondly.filter(|rate| *rate > 0.0).map(|rate| u64::from(points(max * 1000.0 / rate))),
        })
    }

    fn probe(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
        presence::probe(cx, ids)
    }

    fn taught(&self, cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Option<Facts> {
        presence::taught(cx, ids, reply)
    }

    fn probed(&self, cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
        presence::probed(cx, ids, reply)
    }

    /// Of jobs the newest changes come first, of clients one can ask for those since a moment; visits tell no change.
    fn window(&self, cx: &StepContext<'_>) -> Option<Window> {
        (cx.stream.name != "visits").then(|| Window { at: Position::start(), ends: false })
    }

    fn shows_unchanged(&self, stream: &StreamSpec) -> bool {
        stream.name == "jobs"
    }

    fn revoke_request(&self, of: &AccountContext<'_>) -> Option<Request> {
        Some(ask(of.options, "disconnect", document::DISCONNECT.to_owned(), json!({})))
    }

    /// Available to every app whatever its scopes.
    fn identity_requests(&self, of: &AccountContext<'_>) -> Vec<Request> {
        vec![ask(of.options, "account", document::ACCOUNT.to_owned(), json!({}))]
    }

    fn identity(&self, clues: &Clues<'_>) -> Result<Account, Failure> {
        let account = clues.replies.first().and_then(|reply| reply.json()?.pointer("/data/account"));
        let text = |name: &str| {
            let text = account.and_then(|account| account.get(name)?.as_str());
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let id = text("id").ok_or_else(|| Failure::changed("Jobber's answer names no `account.id`"))?;
        Ok(Account { id, name: text("name") })
    }
}

/// An answer without errors.
fn not_refused(request: &Request, reply: &Reply) -> Verdict {
    let Some(body) = reply.json() else { return by_status(&SPEC, request, reply) };
    if !body.get("data").is_some_and(Value::is_object) {
        let said = clip(body.get("message").and_then(Value::as_str).unwrap_or("no reason given"));
        let message = format!("{TITLE} answered `{}` without `data`: {said}", request.purpose);
        return Verdict::Fail(Failure::changed(message));
    }
    let denied = body.pointer("/data/appDisconnect/userErrors/0/message").and_then(Value::as_str);
    match denied {
        Some(said) => Verdict::Fail(Failure::changed(format!("{TITLE} did not disconnect: {}", clip(said)))),
        None => Verdict::Accept,
    }
}

fn is_of_walk(request: &Request) -> bool {
    !matches!(request.purpose, "account" | "disconnect")
}

fn asks_after(request: &Request) -> bool {
    let after = request.body.as_ref().and_then(|body| body.pointer("/variables/after"));
    after.is_some_and(Value::is_string)
}

/// The version that the admin has set.
fn version(options: &Options) -> &str {
    options.get("graphql_version").and_then(Value::as_str).filter(|set| !set.is_empty()).unwrap_or(VERSION)
}

fn ask(options: &Options, purpose: &'static str, document: String, variables: Value) -> Request {
    let points = cost::points(&document, &variables);
    let body = json!({"query": document, "variables": variables});
    let headers = vec![("x-jobber-graphql-version", version(options).to_owned())];
    Request { headers, points, ..Request::post("/graphql".to_owned(), body, purpose, BUCKETS) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut at both ends")]
fn points(number: f64) -> u32 {
    number.clamp(0.0, f64::from(u32::MAX)) as u32
}
