//! Who we can mirror, and how each of them speaks. No I/O, no async, no clock: a provider is a static description
//! plus pure functions where its API is odd. The engine alone sends, waits, retries and writes.

pub mod housecallpro;
pub mod hubspot;
mod interpret;
pub mod jobber;
mod judge;
pub mod oncehub;
pub mod servicetitan;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::domain::failure::Failure;
use crate::domain::spec::{BucketSpec, Changes, GrantKind, ListSpec, ProviderSpec, Read, StreamSpec};
use crate::domain::step::{
    Body, Facts, Options, Params, Position, Presence, Reply, Request, Step, StepContext, Verdict,
};
use crate::domain::token::TokenVerdict;
use crate::domain::view::AccountView;

/// Rows that no walk is to touch: those whose `column` names one of `places`, or where they cannot be asked for by their
/// ids, nothing at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    pub column: &'static str,
    pub places: Vec<String>,
}

/// See [`Provider::wait_max`]. No limit that is published spans more than five minutes, but a day's.
pub const WAIT_MAX: Duration = Duration::from_hours(1);

/// A SaaS product. The methods are pure; the defaults say what most providers do.
pub trait Provider: Send + Sync + 'static {
    fn spec(&self) -> &'static ProviderSpec;

    /// The next step of a walk. `replies` answers the requests of the last [`Step::Send`], in their order, and is
    /// empty at the start of a walk, after a page, and when a walk is taken up again from a saved position.
    /// Only replies that [`Provider::judge`] accepts arrive here, and records are taken out of them, not copied.
    fn step(&self, cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
        interpret::step(self.spec(), cx, at, replies)
    }

    /// What an API reply means.
    fn judge(&self, request: &Request, reply: &Reply) -> Verdict {
        judge::by_status(self.spec(), request, reply)
    }

    /// What a refusal of the token endpoint means. By default RFC 6749 §5.2 decides.
    fn judge_token(&self, status: u16, body: &Body) -> TokenVerdict {
        judge::token_by_rfc(status, body)
    }

    /// What the headers of a reply say about a limit.
    fn limits(&self, request: &Request, reply: &Reply) -> Option<Limit> {
        let _ = (request, reply);
        None
    }

    /// What a reply says is left of a quota over a long span.
    fn quota(&self, request: &Request, reply: &Reply) -> Option<Quota> {
        let _ = (request, reply);
        None
    }

    /// The longest wait that is taken from this refusal: one that is longer is a mistake, and is asked about again after it.
    fn wait_max(&self, reply: &Reply) -> Duration {
        let _ = reply;
        WAIT_MAX
    }

    /// What a view of this one account shows, as far as it is known yet.
    fn account_view(&self, facts: &Facts) -> Option<AccountView> {
        let _ = facts;
        None
    }

    /// The limits of requests to one account, with settings of the provider's own.
    fn buckets(&self, options: &Options) -> Vec<BucketSpec> {
        let _ = options;
        self.spec().buckets.to_vec()
    }

    /// Requests of one connection that may be under way at once, with settings of the provider's own.
    fn in_flight_max(&self, options: &Options) -> usize {
        let _ = options;
        self.spec().in_flight_max
    }

    /// How long a change may take to become visible to a walk over `stream`, where that is longer than the settings
    /// hold back anyway.
    fn visibility_lag(&self, stream: &StreamSpec, options: &Options) -> Duration {
        let _ = (stream, options);
        Duration::ZERO
    }

    /// After a walk over everything that has not met `ids`: a request that asks for as many of them as one can, and how many these
    /// are. `None`: it has no such request for the stream, and absence from closed walks is the proof.
    fn probe(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<(Request, usize)> {
        let _ = (cx, ids);
        None
    }

    /// What the settings leave out of walks that read everything: such rows stay as they are.
    fn left_alone(&self, cx: &StepContext<'_>) -> Option<LeftAlone> {
        let _ = cx;
        None
    }

    /// The column that tells where records of the stream are, where a probe has to say that, such as a location.
    fn place_column(&self, cx: &StepContext<'_>) -> Option<&'static str> {
        let _ = cx;
        None
    }

    /// As [`Provider::probe`], for ids whose rows have `place` in that column. `None`: they cannot be asked for, and
    /// nothing is proven of them.
    fn probe_at(
        &self,
        cx: &StepContext<'_>,
        place: Option<&str>,
        ids: &[String],
    ) -> Option<(Request, usize)> {
        let _ = place;
        self.probe(cx, ids)
    }

    /// Where else a record may be that is not at `place`, such as the account's other locations: it is gone when it is at
    /// none of them.
    fn elsewhere(&self, cx: &StepContext<'_>, place: Option<&str>) -> Vec<String> {
        let _ = (cx, place);
        Vec::new()
    }

    /// What the reply to a [`Provider::probe`] for `ids` shows of each of them, in their order. Replies that
    /// [`Provider::judge`] accepts arrive here; a 404 that is an answer has to be accepted.
    fn probed(&self, cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Result<Vec<Presence>, Failure> {
        let _ = (cx, reply);
        Ok(vec![Presence::Unknown; ids.len()])
    }

    /// What the reply to a [`Provider::probe`] for `ids` teaches about asking for them, where it shows nothing else: they are
    /// asked for once more with these facts known. `None`: there is nothing to learn, or it would not help.
    fn taught(&self, cx: &StepContext<'_>, ids: &[String], reply: &Reply) -> Option<Facts> {
        let _ = (cx, ids, reply);
        None
    }

    /// Where a walk stands that reads these records whole, and nothing else: a place from which [`Provider::step`] goes
    /// on, in a walk that reads everything. `None`: they are asked for as by [`Provider::probe`].
    fn reread(&self, cx: &StepContext<'_>, ids: &[String]) -> Option<Position> {
        let _ = (cx, ids);
        None
    }

    /// How the records that changed in a span of time are read once more, from `cx.walk.from` to `cx.walk.started_at`.
    /// `None`: there is no list of changes.
    fn window(&self, cx: &StepContext<'_>) -> Option<Window> {
        let Read::List(list) = &cx.stream.read else { return None };
        let ends = match list.changes {
            Changes::None => return None,
            Changes::Window { to, .. } => to.is_some(),
            Changes::NewestFirst { .. } => false,
        };
        Some(Window { at: Position::start(), ends })
    }

    /// Whether a walk over changes is shown records that did not change, too: it then finds nothing only where there is
    /// nothing.
    fn shows_unchanged(&self, stream: &StreamSpec) -> bool {
        matches!(&stream.read, Read::List(ListSpec { changes: Changes::NewestFirst { .. }, .. }))
    }

    /// Whether a grant lives as long as it can be refreshed, whatever the API says of a token that is fresh.
    fn trusts_refresh(&self) -> bool {
        false
    }

    /// Fields that the token endpoint wants besides those of RFC 6749.
    fn token_fields(&self, of: &TokenContext<'_>) -> Vec<(&'static str, String)> {
        let _ = of;
        Vec::new()
    }

    /// What to say besides when a consent fails at the provider itself, where it offers codes to few of its apps.
    fn consent_hint(&self) -> Option<&'static str> {
        None
    }

    /// The request that ends a grant, where that is done through the API and not at a revocation endpoint.
    fn revoke_request(&self, of: &AccountContext<'_>) -> Option<Request> {
        let _ = of;
        None
    }

    /// Requests whose replies tell which account a fresh credential belongs to. They also prove that it works.
    fn identity_requests(&self, of: &AccountContext<'_>) -> Vec<Request>;

    /// One more of them, where the replies so far do not tell, such as the next page of a list.
    fn identity_next(&self, of: &AccountContext<'_>, replies: &[Reply]) -> Option<Request> {
        let _ = (of, replies);
        None
    }

    /// Which account a credential belongs to.
    fn identity(&self, clues: &Clues<'_>) -> Result<Account, Failure>;

    /// Whether the account that was `found` is the one that is `known`. `None`: an account may go by marks of several
    /// kinds, these are of two, and so nothing is proven.
    fn is_account(&self, known: &str, found: &str) -> Option<bool> {
        Some(known == found)
    }
}

/// What is known about a fresh credential.
#[derive(Debug, Clone, Copy)]
pub struct Clues<'a> {
    pub grant: GrantKind,
    /// The token endpoint's answer without its tokens; null for keys.
    pub granted: &'a Value,
    /// The answer of token introspection, where the provider has it and it answered.
    pub introspected: Option<&'a Value>,
    /// What the access token says of itself where it is a JWT: not verified, for diagnoses only.
    pub claims: Option<&'a Value>,
    pub params: &'a Params,
    pub options: &'a Options,
    /// The id of the account that the connection is of so far.
    pub known: Option<&'a str>,
    /// Replies to [`Provider::identity_requests`] and [`Provider::identity_next`], accepted ones.
    pub replies: &'a [Reply],
}

/// What requests about an account as a whole are made of.
#[derive(Debug, Clone, Copy)]
pub struct AccountContext<'a> {
    pub grant: GrantKind,
    pub api_version: &'a str,
    pub params: &'a Params,
    pub options: &'a Options,
    /// The id of the account that the connection is of so far.
    pub known: Option<&'a str>,
    pub now: DateTime<Utc>,
}

/// What a request to the token endpoint is for.
#[derive(Debug, Clone, Copy)]
pub struct TokenContext<'a> {
    pub step: TokenStep,
    pub redirect_uri: &'a str,
    pub params: &'a Params,
    pub options: &'a Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenStep {
    Code,
    Refresh,
    ClientCredentials,
}

/// A company account at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: String,
    pub name: Option<String>,
}

/// A walk over what changed in a span of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// Where it begins: [`Provider::step`] goes on from here, in an incremental walk.
    pub at: Position,
    /// Whether the list can be told where to end; otherwise it reaches to now.
    pub ends: bool,
}

/// A limit as the provider itself states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub bucket: &'static str,
    pub max: Option<u32>,
    pub remaining: Option<u32>,
    pub per_ms: Option<u64>,
    /// What the request was charged, where that may be less than what it had to have in hand.
    pub charged: Option<u32>,
}

/// A quota over a span that is too long to count, such as a day's, as the provider itself states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The bucket whose requests it lets through.
    pub bucket: &'static str,
    pub max: u32,
    pub remaining: u32,
    /// When it is used up: how long until it is worth looking again.
    pub again_ms: u64,
}

/// Every provider there is; one line each.
pub static REGISTRY: &[&dyn Provider] = &[
    &housecallpro::HousecallPro,
    &hubspot::HubSpot,
    &jobber::Jobber,
    &oncehub::OnceHub,
    &servicetitan::ServiceTitan,
];

/// The provider of that name.
pub fn provider(name: &str) -> Option<&'static dyn Provider> {
    REGISTRY.iter().copied().find(|provider| provider.spec().name == name)
}

/// Their names, for messages.
pub fn names() -> Vec<&'static str> {
    REGISTRY.iter().map(|provider| provider.spec().name).collect()
}
