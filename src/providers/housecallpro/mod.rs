//! Housecall Pro: jobs, and the customers, employees and locations that make them readable. REST with numbered pages and
//! no version in the paths.
//!
//! Two things are odd. A company may have locations, and each is read on its own: [`rounds`] walks every list once for
//! each of them. And a record that a list no longer shows may live on, so a sweep asks for it by its id: [`presence`].

mod locations;
mod presence;
mod rounds;
mod streams;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::Value;

use locations::Known;

use super::{Account, AccountContext, Clues, LeftAlone, Provider, TokenContext, TokenStep, judge};
use crate::domain::failure::Failure;
use crate::domain::spec::{BEARER, BodyStyle, BucketSpec, GrantKind, GrantSpec, Placement, ProviderSpec};
use crate::domain::step::{Options, Position, Presence, Reply, Request, Step, StepContext, Verdict};

/// Housecall Pro.
pub struct HousecallPro;

/// The limit is our own: Housecall Pro publishes none, and its answers tell of none.
const PACE: &str = "requests";
const BUCKETS: &[&str] = &[PACE];
/// What setting says how many requests may leave in a minute, and how many when it does not.
const PER_MINUTE: &str = "requests_per_minute";
const PER_MINUTE_DEFAULT: u32 = 60;
/// What setting says how many requests may be under way at once.
const AT_ONCE: &str = "requests_at_once";
/// What it may say at most.
const AT_ONCE_MAX: u64 = 16;

/// "expires_in": 2592000 in the vendor's examples.
const TOKEN_LIFE: Duration = Duration::from_hours(30 * 24);

static SPEC: ProviderSpec = ProviderSpec {
    name: "housecallpro",
    title: "Housecall Pro",
    grants: &[
        // For partners that Housecall Pro has approved.
        GrantSpec {
            kind: GrantKind::AuthorizationCode,
            params: &[],
            secrets: &[],
            placement: BEARER,
            headers: &[],
        },
        // `Bearer` before a key is answered with 401.
        GrantSpec {
            kind: GrantKind::ApiKey,
            params: &[],
            secrets: &["api_key"],
            placement: Placement { header: "authorization", prefix: "Token " },
            headers: &[],
        },
    ],
    authorize_url: "https://pro.housecallpro.com/oauth/authorize",
    token_url: "https://api.housecallpro.com/oauth/token",
    revoke_url: "",
    introspect_path: "",
    api_base: "https://api.housecallpro.com",
    api_version: "",
    scopes: &["public"],
    // Not documented; the secret authenticates.
    pkce: false,
    denies_in_silence: false,
    token_body: BodyStyle::Json,
    reads_jwt: false,
    token_life_default: TOKEN_LIFE,
    buckets: &[BucketSpec::own_pace(PACE, 1, Duration::from_secs(1))],
    token_bucket: BucketSpec::requests("token", 10, Duration::from_secs(10)),
    in_flight_max: 1,
    page_size: 200,
    streams: &[streams::LOCATIONS, streams::EMPLOYEES, streams::CUSTOMERS, streams::JOBS],
};

impl Provider for HousecallPro {
    fn spec(&self) -> &'static ProviderSpec {
        &SPEC
    }

    fn step(&self, cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
        match cx.stream.name {
            streams::LOCATIONS_NAME => locations::step(cx, at, replies),
            _ => rounds::step(cx, at, replies),
        }
    }

    fn judge(&self, request: &Request, reply: &Reply) -> Verdict {
        let asked_location = request.headers.iter().any(|(name, _)| *name == rounds::LOCATION_HEADER);
        match reply.status {
            // A location that is closed to us is no matter of the others.
            403 if asked_location => Verdict::Accept,
            // What they prove of the one record is for who reads them; the other records are asked for all the same.
            400 | 403 | 404 | 410 if presence::is_probe(request.purpose) => Verdict::Accept,
            400 | 404 | 405..=407 | 410 | 422 => Verdict::Fail(Failure::bug(format!(
                "Housecall Pro refused `{}` with {}: {}",
                request.purpose,
                reply.status,
                words(reply)
            ))),
            _ => judge::by_status(&SPEC, request, reply),
        }
    }

    fn buckets(&self, options: &Options) -> Vec<BucketSpec> {
        let given = options.get(PER_MINUTE).and_then(Value::as_u64);
        let per_minute =
            given.and_then(|number| u32::try_from(number).ok()).unwrap_or(PER_MINUTE_DEFAULT).max(1);
        // Evenly up to one a second; above that so many in ten seconds, of which a reserve can be left.
        let bucket = match per_minute {
            ..=PER_MINUTE_DEFAULT => BucketSpec::own_pace(PACE, 1, Duration::from_mins(1) / per_minute),
            more => BucketSpec::own_pace(PACE, more / 6, Duration::from_secs(10)),
        };
        vec![bucket]
    }

    fn in_flight_max(&self, options: &Options) -> usize {
        let given = options.get(AT_ONCE).and_then(Value::as_u64).filter(|number| *number > 0);
        given.map_or(SPEC.in_flight_max, |number| usize::try_from(number.min(AT_ONCE_MAX)).unwrap_or(1))
    }

    fn probe(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
        presence::probe(cx, None, ids)
    }

    fn left_alone(&self, cx: &StepContext<'_>) -> Option<LeftAlone> {
        let places = Known::of(cx.facts).left(cx.options);
        (!places.is_empty() && cx.stream.name != streams::LOCATIONS_NAME)
            .then_some(LeftAlone { column: presence::PLACE, places })
    }

    fn place_column(&self, cx: &StepContext<'_>) -> Option<&'static str> {
        presence::can_ask(cx.stream.name).then_some(presence::PLACE)
    }

    fn probe_at(
        &self,
        cx: &StepContext<'_>,
        place: Option<&str>,
        ids: &[String],
    ) -> Option<(Request, usize)> {
        presence::probe(cx, place, ids)
    }

    fn elsewhere(&self, cx: &StepContext<'_>, place: Option<&str>) -> Vec<String> {
        presence::elsewhere(cx, place)
    }

    fn probed(&self, cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
        Ok(presence::probed(cx, ids, reply))
    }

    /// Integrators send it with a refresh as well.
    fn token_fields(&self, of: &TokenContext<'_>) -> Vec<(&'static str, String)> {
        match of.step {
            TokenStep::Refresh => vec![("redirect_uri", of.redirect_uri.to_owned())],
            TokenStep::Code | TokenStep::ClientCredentials => Vec::new(),
        }
    }

    /// The one endpoint that takes every kind of credential.
    fn identity_requests(&self, _: &AccountContext<'_>) -> Vec<Request> {
        vec![locations::request()]
    }

    fn identity(&self, clues: &Clues<'_>) -> Result<Account, Failure> {
        let text = |pointer| clues.replies.first().and_then(|reply: &Reply| reply.text_at(pointer));
        let id = text("/id").filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| Failure::changed("Housecall Pro does not tell the company's id"))?;
        let name = text("/name").filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(Account { id: id.to_owned(), name })
    }
}

/// The provider's own message. Refusals come in five shapes:
/// `{"message": …}`, `{"error": …}`, `{"error": {"message": …}}`, `{"errors": {field: […]}}` and
/// `{"message": …, field: […]}`. Of fields the names are told, since values may be a customer's.
fn words(reply: &Reply) -> String {
    let Some(Value::Object(body)) = reply.json() else {
        return judge::traced("no reason given".to_owned(), reply);
    };
    let texts = ["/message", "/error/message", "/error"];
    let said = texts.iter().find_map(|pointer| reply.text_at(pointer));
    let named = body.get("errors").and_then(Value::as_object).unwrap_or(body);
    let fields: Vec<&str> =
        named.iter().filter(|(_, value)| value.is_array()).map(|(name, _)| name.as_str()).collect();
    let parts = [said.unwrap_or_default(), &fields.join(", ")].map(judge::clip);
    let told: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let said = if told.is_empty() { "no reason given".to_owned() } else { told.join(": ") };
    judge::traced(said, reply)
}
