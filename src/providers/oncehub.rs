//! OnceHub bookings, with the users, calendars and event types that make them readable.
//!
//! Sources: OnceHub's public developer documentation and its OpenAPI documents (2026). What shapes this file:
//! - there is no public OAuth: an account's API key goes into the header `API-Key` as it is. The authorization-code flow
//!   is kept for private arrangements; its addresses are those of a third party's article and unverified;
//! - two limits hold at once: 5 requests a second for an account, and 200 in five minutes for the address that they come
//!   from, all accounts together;
//! - lists are newest first, by an undocumented time, and page by the id of their last record;
//! - a deleted object may be shown as `{"id", "object", "deleted": true}`, in lists and when asked for by id.

use std::time::Duration;

use serde_json::Value;

use super::judge::{by_status, words};
use super::{Account, AccountContext, Clues, Provider, interpret};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::record::{Deletion, Record, Tombstone};
use crate::domain::spec::ColumnType::{Bigint, Boolean, Reference, Text, TextArray, Timestamptz};
use crate::domain::spec::{
    BEARER, BodyStyle, BucketSpec, Changes, GrantKind, GrantSpec, ListSpec, Mode, Paging, Placement,
    ProviderSpec, Read, StreamSpec, col,
};
use crate::domain::step::{Page, Position, Presence, Reply, Request, Step, StepContext, Verdict};
use crate::domain::values;

pub struct OnceHub;

/// Requests for one account.
const ACCOUNT: &str = "account";
/// Requests from one address, for all accounts together: the tighter one of the two.
const ADDRESS: &str = "address";
const BUCKETS: &[&str] = &[ACCOUNT, ADDRESS];

/// How a list tells its next page. The address in its `Link` header lacks `/v2` in OnceHub's own documents, and is never
/// followed.
const BY_LAST_ID: Paging = Paging::LastId { param: "after", more: "/has_more" };

const fn reference_list(path: &'static str) -> Read {
    Read::List(ListSpec {
        path,
        records: "/data",
        query: &[],
        paging: BY_LAST_ID,
        size: "limit",
        changes: Changes::None,
        buckets: BUCKETS,
    })
}

static SPEC: ProviderSpec = ProviderSpec {
    name: "oncehub",
    title: "OnceHub",
    grants: &[
        GrantSpec {
            kind: GrantKind::ApiKey,
            params: &[],
            secrets: &["api_key"],
            placement: Placement { header: "api-key", prefix: "" },
            headers: &[],
        },
        GrantSpec {
            kind: GrantKind::AuthorizationCode,
            params: &[],
            secrets: &[],
            placement: BEARER,
            headers: &[],
        },
    ],
    authorize_url: "https://app.oncehub.com/oauth/authorize",
    token_url: "https://app.oncehub.com/oauth/token",
    revoke_url: "",
    introspect_path: "",
    api_base: "https://api.oncehub.com/v2",
    api_version: "",
    scopes: &[],
    pkce: false,
    denies_in_silence: false,
    token_body: BodyStyle::Json,
    reads_jwt: false,
    token_life_default: Duration::from_hours(1),
    buckets: &[
        BucketSpec::requests(ACCOUNT, 5, Duration::from_secs(1)),
        BucketSpec::egress(ADDRESS, 200, Duration::from_mins(5)),
    ],
    token_bucket: BucketSpec::requests("token", 10, Duration::from_secs(10)),
    in_flight_max: 2,
    page_size: PAGE_SIZE_MAX,
    streams: &[BOOKINGS, USERS, BOOKING_CALENDARS, BOOKING_PAGES, MASTER_PAGES, EVENT_TYPES],
};

/// More is refused.
const PAGE_SIZE_MAX: u32 = 100;

const BOOKINGS: StreamSpec = StreamSpec {
    name: "bookings",
    table: "oncehub_bookings",
    modes: &[Mode::Incremental, Mode::Backfill, Mode::Sweep],
    needs_facts: &[],
    id: "/id",
    created_at: "/creation_time",
    updated_at: "/last_updated_time",
    columns: &[
        col("tracking_id", Text, "/tracking_id"),
        col("subject", Text, "/subject"),
        col("status", Text, "/status").one_of(&[
            "requested",
            "scheduled",
            "rescheduled",
            "completed",
            "canceled",
            "no_show",
        ]),
        col("in_trash", Boolean, "/in_trash"),
        col("starting_time", Timestamptz, "/starting_time"),
        col("duration_minutes", Bigint, "/duration_minutes"),
        col("customer_timezone", Text, "/customer_timezone"),
        col("customer_name", Text, "/form_submission/name"),
        col("customer_email", Text, "/form_submission/email"),
        col("customer_phone", Text, "/form_submission/phone"),
        col("customer_mobile_phone", Text, "/form_submission/mobile_phone"),
        col("owner_id", Reference, "/owner"),
        col("contact_id", Reference, "/contact"),
        col("booking_calendar_id", Reference, "/booking_calendar"),
        col("booking_page_id", Reference, "/booking_page"),
        col("master_page_id", Reference, "/master_page"),
        col("event_type_id", Reference, "/event_type"),
        col("location_description", Text, "/location_description"),
        col("rescheduled_booking_id", Text, "/rescheduled_booking_id"),
        col("cancel_reason", Text, "/cancel_reschedule_information/reason"),
        col("cancel_actioned_by", Text, "/cancel_reschedule_information/actioned_by"),
        col("attendees", TextArray, "/attendees"),
    ],
    merges: false,
    // Whoever has one of these can cancel, move or join the meeting.
    keep_only: &[],
    omit: &[
        "/cancel_url",
        "/reschedule_url",
        "/cancel_reschedule_url",
        "/ics_url",
        "/virtual_conferencing/join_url",
    ],
    read: Read::List(ListSpec {
        path: "/bookings",
        records: "/data",
        query: &[],
        paging: BY_LAST_ID,
        size: "limit",
        changes: Changes::Window { from: "last_updated_time.gt", to: Some("last_updated_time.lt") },
        buckets: BUCKETS,
    }),
};

const USERS: StreamSpec = StreamSpec {
    name: "users",
    table: "oncehub_users",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/id",
    created_at: "",
    updated_at: "",
    columns: &[
        col("first_name", Text, "/first_name"),
        col("last_name", Text, "/last_name"),
        col("email", Text, "/email"),
        col("status", Text, "/status"),
        col("role_name", Text, "/role_name"),
        col("timezone", Text, "/timezone"),
    ],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: reference_list("/users"),
};

const BOOKING_CALENDARS: StreamSpec = StreamSpec {
    name: "booking_calendars",
    table: "oncehub_booking_calendars",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/id",
    created_at: "",
    updated_at: "",
    columns: &[
        col("name", Text, "/name"),
        col("subject", Text, "/subject"),
        col("host_id", Reference, "/host"),
        col("published", Boolean, "/published"),
        col("duration_minutes", Bigint, "/duration_minutes"),
        col("url", Text, "/url"),
    ],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: reference_list("/booking-calendars"),
};

const BOOKING_PAGES: StreamSpec = StreamSpec {
    name: "booking_pages",
    table: "oncehub_booking_pages",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/id",
    created_at: "",
    updated_at: "",
    columns: &[
        col("name", Text, "/name"),
        col("label", Text, "/label"),
        col("url", Text, "/url"),
        col("active", Boolean, "/active"),
        col("timezone", Text, "/timezone"),
    ],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: reference_list("/booking-pages"),
};

const MASTER_PAGES: StreamSpec = StreamSpec {
    name: "master_pages",
    table: "oncehub_master_pages",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/id",
    created_at: "",
    updated_at: "",
    columns: &[
        col("name", Text, "/name"),
        col("label", Text, "/label"),
        col("url", Text, "/url"),
        col("active", Boolean, "/active"),
    ],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: reference_list("/master-pages"),
};

const EVENT_TYPES: StreamSpec = StreamSpec {
    name: "event_types",
    table: "oncehub_event_types",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/id",
    created_at: "",
    updated_at: "",
    columns: &[col("name", Text, "/name"), col("description", Text, "/description")],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: reference_list("/event-types"),
};

impl Provider for OnceHub {
    fn spec(&self) -> &'static ProviderSpec {
        &SPEC
    }

    fn step(&self, cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
        let cx = StepContext { page_size: cx.page_size.min(PAGE_SIZE_MAX), ..*cx };
        Ok(match interpret::step(&SPEC, &cx, at, replies)? {
            Step::Send { requests, at } => {
                Step::Send { requests: requests.into_iter().map(typed).collect(), at }
            }
            Step::Emit { page, at } => Step::Emit { page: bury_redacted(page), at },
            other => other,
        })
    }

    fn judge(&self, request: &Request, reply: &Reply) -> Verdict {
        let continues = request.query.iter().any(|(name, _)| *name == "after");
        match reply.status {
            // A fault on the way, or whoever stands there: every account has users.
            200..=299 if request.purpose == OWNER && reply.json().is_some() && users_on(reply).is_none() => {
                let why = "OnceHub's answer about the account's users has no list `data`".to_owned();
                Verdict::Retry { wait_ms: None, why }
            }
            400 | 404 if request.purpose == OWNER && continues => Verdict::Retry {
                wait_ms: None,
                why: format!("OnceHub refused the cursor of the account's users: {}", words(reply)),
            },
            // What becomes of a cursor whose record is deleted meanwhile is not documented.
            400 | 404 if continues => {
                Verdict::RestartPaging { why: format!("OnceHub refused the cursor: {}", words(reply)) }
            }
            404 if request.purpose == PROBE => Verdict::Accept,
            // The plan has no access to the API. The key is fine.
            402 | 403 => Verdict::Fail(Failure::new(
                FailureKind::Forbidden { scope: None },
                format!(
                    "OnceHub does not allow `{}`, which is a matter of the plan, not of the key: {}",
                    request.purpose,
                    words(reply)
                ),
            )),
            // It does not say which of the two limits it was; the longer one is what survives a short pause.
            429 => Verdict::Throttled { bucket: ADDRESS, wait_ms: None },
            _ => by_status(&SPEC, request, reply),
        }
    }

    fn probe(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
        let id: String = url::form_urlencoded::byte_serialize(ids.first()?.as_bytes()).collect();
        (cx.stream.name == BOOKINGS.name)
            .then(|| (typed(Request::get(format!("/bookings/{id}"), PROBE, BUCKETS)), 1))
    }

    /// Whether a booking that is deleted for good answers 404 or redacted is not documented: both prove it. A 404 of anything
    /// that stands before the API, such as a proxy, proves nothing.
    fn probed(&self, _cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
        let Some(id) = ids.first() else { return Ok(Vec::new()) };
        let body = reply.json().filter(|body| body.get("id").and_then(Value::as_str) == Some(id.as_str()));
        Ok(vec![match body {
            _ if reply.status == 404 && names_no_object(reply) => {
                Presence::Gone { evidence: "OnceHub answers 404 for its id".to_owned() }
            }
            _ if reply.status == 404 => Presence::Unknown,
            Some(body) if is_redacted(body) => Presence::Gone { evidence: REDACTED.to_owned() },
            Some(body) => {
                let (id, sent_at) = (id.clone(), reply.sent_at);
                Presence::Here(Some(Box::new(Record {
                    id,
                    raw: body.clone(),
                    sent_at,
                    deleted: None,
                    without: Vec::new(),
                })))
            }
            None => Presence::Unknown,
        }])
    }

    fn identity_requests(&self, _of: &AccountContext<'_>) -> Vec<Request> {
        vec![typed(Request::get("/test".to_owned(), "test", BUCKETS)), users_after(None)]
    }

    /// Users come newest first, and the owner of an account is its first.
    fn identity_next(&self, of: &AccountContext<'_>, replies: &[Reply]) -> Option<Request> {
        let marks = Marks::of(replies);
        let is_found = of.known.map_or(marks.owner.is_some(), |known| marks.has(known));
        if is_found || marks.pages.len() >= OWNER_PAGES_MAX {
            return None;
        }
        let last = *marks.pages.last()?;
        let more = last.json()?.get("has_more").and_then(Value::as_bool).unwrap_or(false)
            || last.header("link").is_some_and(|link| link.contains("rel=\"next\""));
        let end = |page: &Reply| users_on(page)?.last().and_then(|user| text(user, "/id")).map(str::to_owned);
        let before = marks.pages.iter().rev().nth(1).and_then(|page| end(page));
        end(last).filter(|end| more && before.as_ref() != Some(end)).map(|end| users_after(Some(end)))
    }

    /// No endpoint tells the account, and no object carries its id. The user who owns it is the best mark there is; the
    /// e-mail address in the probe's sentence is the next best. A mark that it is known by is good for as long as it is
    /// found: accounts change hands.
    fn identity(&self, clues: &Clues<'_>) -> Result<Account, Failure> {
        let marks = Marks::of(clues.replies);
        let email = marks.owner.and_then(|owner| text(owner, "/email")).or(marks.address);
        let owner = marks.owner.and_then(|owner| text(owner, "/id"));
        let known = clues.known.filter(|known| marks.has(known));
        let id = known.or(owner).or(marks.address).ok_or_else(|| {
            Failure::changed(
                "OnceHub names neither an account owner nor the e-mail address of the key's account",
            )
        })?;
        Ok(Account { id: id.to_owned(), name: email.map(str::to_owned) })
    }

    /// An address and the id of a user may be of the same account.
    fn is_account(&self, known: &str, found: &str) -> Option<bool> {
        (known.contains('@') == found.contains('@')).then_some(known == found)
    }
}

/// Purpose of the requests for the users among whom the account's owner is.
const OWNER: &str = "owner";
/// Pages of users that the owner is looked for on.
const OWNER_PAGES_MAX: usize = 20;

/// OnceHub asks for the header on every request, also where there is no body that it could be about.
fn typed(mut request: Request) -> Request {
    request.headers.push(("content-type", "application/json".to_owned()));
    request
}

fn users_after(id: Option<String>) -> Request {
    let mut request = typed(Request::get("/users".to_owned(), OWNER, BUCKETS));
    request.query.push(("limit", PAGE_SIZE_MAX.to_string()));
    request.query.extend(id.map(|id| ("after", id)));
    request
}

fn users_on(page: &Reply) -> Option<&Vec<Value>> {
    page.json()?.get("data")?.as_array()
}

/// What an account may be known by.
struct Marks<'a> {
    address: Option<&'a str>,
    owner: Option<&'a Value>,
    pages: Vec<&'a Reply>,
}

impl<'a> Marks<'a> {
    fn of(replies: &'a [Reply]) -> Self {
        let said = replies.first().and_then(|reply| reply.text_at("/message"));
        let address = said.and_then(|said| said.split_whitespace().find(|word| word.contains('@')));
        let address = address.map(|word| word.trim_matches(['.', ',', '<', '>', '"', '\'']));
        let pages: Vec<&Reply> = replies.iter().skip(1).collect();
        let mut users = pages.iter().filter_map(|page| users_on(page)).flatten();
        let owner = users.find(|user| text(user, "/role_name") == Some("Account Owner"));
        Self { address, owner, pages }
    }

    /// Whether one of them is `mark`.
    fn has(&self, mark: &str) -> bool {
        let mut users = self.pages.iter().filter_map(|page| users_on(page)).flatten();
        self.address == Some(mark) || users.any(|user| text(user, "/id") == Some(mark))
    }
}

/// Purpose of a request for one booking.
const PROBE: &str = "probe";

const REDACTED: &str = "OnceHub shows it as `deleted`";

/// Takes deleted objects out of the records of a page: nothing is left of them but their ids.
fn bury_redacted(mut page: Page) -> Page {
    let (redacted, living): (Vec<Record>, Vec<Record>) =
        page.records.into_iter().partition(|record| is_redacted(&record.raw));
    page.records = living;
    page.tombstones.extend(redacted.into_iter().map(|record| Tombstone {
        id: record.id,
        deletion: Deletion { at: record.sent_at, told: false, evidence: REDACTED.to_owned() },
        merged_into: None,
        sent_at: record.sent_at,
    }));
    page
}

/// The API's own way of saying that there is no object of this id.
fn names_no_object(reply: &Reply) -> bool {
    reply.text_at("/type") == Some("invalid_request_error") && reply.text_at("/param") == Some("id")
}

fn is_redacted(object: &Value) -> bool {
    object.get("deleted").and_then(Value::as_bool) == Some(true)
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    values::at(object, pointer)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
