//! What goes wrong on purpose: named faults, as text on a command line and as dice at run time.
//!
//! A fault is written `NAME`, `NAME=PART` or `NAME=PART,PART…`. The parts are, in any order:
//!
//! - for faults that carry a value (such as `slow`, `no_scope` or `malformed`) the value, first;
//! - a chance: a decimal between 0 and 1, for example `0.05` (without one: every time);
//! - a count: `3x`, after which the fault is over;
//! - a place: `on:PURPOSE`, `on:PROVIDER` or `on:PROVIDER.PURPOSE`, for example `on:search`.
//!
//! `http_502=0.05,on:search` makes every twentieth search fail. This file decides *whether* a fault strikes;
//! what it looks like is the business of the code that asks.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

/// The kinds of fault. [`FaultName::all`] has their names on the command line and what each one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultName {
    Slow,
    Hang,
    Drop,
    Torn,
    Malformed,
    DateSkew,
    Http500,
    Http502,
    Http503,
    Http524,
    Http530,
    HtmlOk,
    Http423,
    Http477,
    ThrottleStorm,
    DailyLimit,
    RetryAfter,
    NoPolicyName,
    ExpiredAuth,
    InvalidAuth,
    NoScope,
    LostTokenReply,
    Rotate,
    RevokeReplayed,
    NoExpiresIn,
    NoRefreshToken,
    PlainOauthErrors,
    NoCodeGrant,
    ErrorInOk,
    WrongAccount,
    SearchLag,
    ResultsMax,
    SilentMissing,
    ResolveMerged,
    NumericIds,
    EmptyList,
    StuckCursor,
    ShuffledTies,
    RefusedCursor,
    RecordCursors,
    HiddenField,
    UnknownField,
    PartialData,
    PointsMax,
    OldVersion,
    Unsorted,
    Inactive,
    Unavailable,
    ExpiresAt,
    OpaqueTokens,
}

/// What a fault takes after its `=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument {
    Nothing,
    /// A whole number, of either sign.
    Number,
    Text,
}

type Entry = (FaultName, &'static str, Argument, &'static str);

impl FaultName {
    /// Every fault with its name and one sentence for the help text.
    #[rustfmt::skip]
    const TABLE: &'static [Entry] = &[
        (Self::Slow, "slow", Argument::Number, "answers wait this many milliseconds"),
        (Self::Hang, "hang", Argument::Nothing, "no answer comes within any sane time-out"),
        (Self::Drop, "drop", Argument::Nothing, "the connection is closed without an answer"),
        (Self::Torn, "torn", Argument::Nothing, "the connection is cut in the middle of the body"),
        (Self::Malformed, "malformed", Argument::Text, "the value at this JSON pointer (`*` = every element) has another type"),
        (Self::DateSkew, "date_skew", Argument::Number, "the Date header is this many seconds off"),
        (Self::Http500, "http_500", Argument::Nothing, "500 with a JSON body"),
        (Self::Http502, "http_502", Argument::Nothing, "502 with an HTML page of the edge"),
        (Self::Http503, "http_503", Argument::Nothing, "503 with an HTML page of the edge"),
        (Self::Http524, "http_524", Argument::Nothing, "524 with an HTML page of the edge"),
        (Self::Http530, "http_530", Argument::Nothing, "530, as for a token that the edge cannot read"),
        (Self::HtmlOk, "html_ok", Argument::Nothing, "200 with an HTML page in place of JSON"),
        (Self::Http423, "http_423", Argument::Nothing, "423 Locked"),
        (Self::Http477, "http_477", Argument::Nothing, "477: the account is moving between data centres"),
        (Self::ThrottleStorm, "throttle_storm", Argument::Nothing, "429 of the short window, whatever the budget"),
        (Self::DailyLimit, "daily_limit", Argument::Nothing, "429 of the daily quota"),
        (Self::RetryAfter, "retry_after", Argument::Nothing, "429 answers carry Retry-After"),
        (Self::NoPolicyName, "no_policy_name", Argument::Nothing, "429 bodies do not say which policy it was"),
        (Self::ExpiredAuth, "expired_auth", Argument::Nothing, "401 saying that a good token has expired"),
        (Self::InvalidAuth, "invalid_auth", Argument::Nothing, "401 saying that a good token is unknown"),
        (Self::NoScope, "no_scope", Argument::Text, "the grant lacks this scope"),
        (Self::LostTokenReply, "lost_token_reply", Argument::Nothing, "tokens are issued, and the reply is lost"),
        (Self::Rotate, "rotate", Argument::Nothing, "a refresh gives a new refresh token, and the old one dies at once"),
        (Self::RevokeReplayed, "revoke_replayed", Argument::Nothing, "a refresh token that is used again after its end ends the grant"),
        (Self::NoExpiresIn, "no_expires_in", Argument::Nothing, "token answers do not say how long the token lives"),
        (Self::NoRefreshToken, "no_refresh_token", Argument::Nothing, "refresh answers carry no refresh token"),
        (Self::PlainOauthErrors, "plain_oauth_errors", Argument::Nothing, "token errors lack the fields of RFC 6749"),
        (Self::ErrorInOk, "error_in_ok", Argument::Nothing, "token errors come with status 200"),
        (Self::NoCodeGrant, "no_code_grant", Argument::Nothing, "ServiceTitan offers no authorization codes: a page of HTML, or `unauthorized_client`"),
        (Self::WrongAccount, "wrong_account", Argument::Nothing, "a refresh answer names another account"),
        (Self::SearchLag, "search_lag", Argument::Number, "search sees changes this many milliseconds late"),
        (Self::ResultsMax, "results_max", Argument::Number, "pages of HubSpot's search reach no further than this many results"),
        (Self::SilentMissing, "silent_missing", Argument::Nothing, "batch reads leave out unknown ids without a word"),
        (Self::ResolveMerged, "resolve_merged", Argument::Nothing, "batch reads answer a merged-away id with its survivor"),
        (Self::NumericIds, "numeric_ids", Argument::Nothing, "associated ids are numbers on the dated paths too"),
        (Self::EmptyList, "empty_list", Argument::Nothing, "lists answer that there is nothing"),
        (Self::StuckCursor, "stuck_cursor", Argument::Nothing, "a list page points to itself as the next one"),
        (Self::ShuffledTies, "shuffled_ties", Argument::Nothing, "Housecall Pro's lists show records of one second in another order at every request"),
        (Self::RefusedCursor, "refused_cursor", Argument::Nothing, "a cursor that was given out is not known any more"),
        (Self::RecordCursors, "record_cursors", Argument::Nothing, "Jobber's cursors stand for records, and not for places in a list"),
        (Self::HiddenField, "hidden_field", Argument::Text, "Jobber hides this field, written Type.field, due to permissions"),
        (Self::UnknownField, "unknown_field", Argument::Text, "Jobber's schema lacks this field, written Type.field, or filter, written jobs.filter.ids"),
        (Self::PartialData, "partial_data", Argument::Nothing, "Jobber answers errors beside data, with a null where a value is"),
        (Self::PointsMax, "points_max", Argument::Number, "Jobber's budget holds this many points"),
        (Self::OldVersion, "old_version", Argument::Nothing, "Jobber serves another version than asked for, with a warning"),
        (Self::Unsorted, "unsorted", Argument::Nothing, "lists ignore the order that they are asked for in"),
        (Self::Inactive, "inactive", Argument::Nothing, "Jobber says that the account is not active"),
        (Self::Unavailable, "unavailable", Argument::Nothing, "Jobber says that the service is unavailable, with 200"),
        (Self::ExpiresAt, "expires_at", Argument::Nothing, "Jobber's token answers name the end of the token, as text and not in RFC 3339"),
        (Self::OpaqueTokens, "opaque_tokens", Argument::Nothing, "Jobber's access tokens are no JWTs"),
    ];

    fn entry(self) -> &'static Entry {
        let found = Self::TABLE.iter().find(|entry| entry.0 == self);
        found.expect("the table has a row for every fault; a test holds it to that")
    }

    pub fn as_str(self) -> &'static str {
        self.entry().1
    }

    /// `(name, what it does)` of every fault, for help texts.
    pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
        Self::TABLE.iter().map(|entry| (entry.1, entry.3))
    }
}

/// One fault as asked for. Its text form is described at the top of this file.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub name: FaultName,
    pub value: Option<String>,
    /// From 0 (never) to 1 (always).
    pub chance: f64,
    /// How often it still strikes; `None`: without end.
    pub left: Option<u32>,
    /// A purpose, a provider, or both with a dot between; `None`: everywhere.
    pub on: Option<String>,
}

/// A text that names no fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadFault {
    #[error("there is no fault `{0}`")]
    Unknown(String),
    #[error("the fault `{0}` needs a value: `{0}=…`")]
    NoValue(&'static str),
    #[error(
        "`{part}` says nothing about the fault `{name}`: expected a chance (`0.05`), a count (`3x`) or a place (`on:search`)"
    )]
    Part { name: &'static str, part: String },
}

impl Fault {
    /// A fault that strikes every time and everywhere.
    pub fn always(name: FaultName) -> Self {
        Self { name, value: None, chance: 1.0, left: None, on: None }
    }

    fn is_at(&self, spot: Spot) -> bool {
        self.on.as_deref().is_none_or(|on| {
            on == spot.purpose
                || on == spot.provider
                || on.split_once('.') == Some((spot.provider, spot.purpose))
        })
    }

    /// The fault's value (empty when it carries none) if it strikes here and now.
    fn strike(&mut self, dice: &mut StdRng, name: FaultName, spot: Spot) -> Option<String> {
        if self.name != name || self.left == Some(0) || !self.is_at(spot) {
            return None;
        }
        if self.chance < 1.0 && !dice.random_bool(self.chance) {
            return None;
        }
        self.left = self.left.map(|left| left - 1);
        Some(self.value.clone().unwrap_or_default())
    }

    fn read_part(&mut self, part: &str) -> Result<(), BadFault> {
        let bad = || BadFault::Part { name: self.name.as_str(), part: part.to_owned() };
        if let Some(place) = part.strip_prefix("on:") {
            self.on = Some(place.to_owned());
        } else if let Some(count) = part.strip_suffix('x') {
            self.left = Some(count.parse().map_err(|_| bad())?);
        } else {
            let chance: f64 = part.parse().map_err(|_| bad())?;
            self.chance = if (0.0..=1.0).contains(&chance) { chance } else { return Err(bad()) };
        }
        Ok(())
    }
}

impl FromStr for Fault {
    type Err = BadFault;

    fn from_str(text: &str) -> Result<Self, BadFault> {
        let (name, parts) = text.split_once('=').unwrap_or((text, ""));
        let entry = FaultName::TABLE.iter().find(|entry| entry.1 == name);
        let &(kind, name, argument, _) = entry.ok_or_else(|| BadFault::Unknown(name.to_owned()))?;
        let mut fault = Self::always(kind);
        let mut parts = parts.split(',').filter(|part| !part.is_empty());
        if argument != Argument::Nothing {
            let value = parts.next().ok_or(BadFault::NoValue(name))?;
            if argument == Argument::Number && value.parse::<i64>().is_err() {
                return Err(BadFault::NoValue(name));
            }
            fault.value = Some(value.to_owned());
        }
        parts.try_for_each(|part| fault.read_part(part))?;
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.value.iter().cloned().collect();
        if self.chance < 1.0 {
            parts.push(self.chance.to_string());
        }
        parts.extend(self.left.map(|left| format!("{left}x")));
        parts.extend(self.on.as_ref().map(|on| format!("on:{on}")));
        let sign = if parts.is_empty() { "" } else { "=" };
        write!(f, "{}{sign}{}", self.name.as_str(), parts.join(","))
    }
}

/// Where a request arrived: whose stand-in, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pub provider: &'static str,
    pub purpose: &'static str,
}

/// The faults in force. Asking costs one atomic load while there are none.
pub struct Faults {
    any: AtomicBool,
    inner: Mutex<Inner>,
    /// Whom a fault keeps waiting hears here that he may go on.
    released: Notify,
}

struct Inner {
    list: Vec<Fault>,
    dice: StdRng,
}

impl Faults {
    pub fn new(list: Vec<Fault>, seed: u64) -> Self {
        Self {
            any: AtomicBool::new(!list.is_empty()),
            inner: Mutex::new(Inner { list, dice: StdRng::seed_from_u64(seed) }),
            released: Notify::new(),
        }
    }

    /// Puts these in force in place of those there were.
    pub fn set(&self, list: Vec<Fault>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(!list.is_empty(), Ordering::Release);
        inner.list = list;
    }

    /// Lets all go on that [`Self::keeps_waiting`].
    pub fn release(&self) {
        self.released.notify_waiters();
    }

    /// As [`Self::strikes`]; then with what resolves at the next [`Self::release`].
    pub fn keeps_waiting(&self, name: FaultName, spot: Spot) -> Option<impl Future<Output = ()>> {
        // It hears what is told from now on: whoever sees that the fault has struck may release it.
        let released = self.released.notified();
        self.strikes(name, spot).then_some(released)
    }

    pub fn list(&self) -> Vec<Fault> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).list.clone()
    }

    /// Whether there is any fault at all.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Rolls the dice; a fault that strikes uses up one of its counted times.
    pub fn strikes(&self, name: FaultName, spot: Spot) -> bool {
        self.roll(name, spot).is_some()
    }

    /// As [`Self::strikes`], with the fault's number (0 when it carries none).
    pub fn number(&self, name: FaultName, spot: Spot) -> Option<i64> {
        let value = self.roll(name, spot)?;
        Some(value.parse().unwrap_or(0))
    }

    /// As [`Self::strikes`], with the values of *all* faults of this name that strike.
    pub fn texts(&self, name: FaultName, spot: Spot) -> Vec<String> {
        if !self.any() {
            return Vec::new();
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { list, dice } = &mut *inner;
        list.iter_mut().filter_map(|fault| fault.strike(dice, name, spot)).collect()
    }

    /// The value of the first fault of this name that strikes; empty when it carries none.
    fn roll(&self, name: FaultName, spot: Spot) -> Option<String> {
        if !self.any() {
            return None;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { list, dice } = &mut *inner;
        list.iter_mut().find_map(|fault| fault.strike(dice, name, spot))
    }
}

#[cfg(test)]
mod tests {
    use super::{BadFault, Fault, FaultName, Faults, Spot};

    const SEARCH: Spot = Spot { provider: "hubspot", purpose: "search" };
    const LIST: Spot = Spot { provider: "hubspot", purpose: "list" };

    #[test]
    fn texts_come_back_as_written() {
        let texts = [
            "http_502",
            "http_502=0.05",
            "http_502=3x",
            "http_502=0.5,2x,on:hubspot.search",
            "slow=250",
            "slow=250,0.1",
            "date_skew=-7200",
            "no_scope=crm.objects.owners.read",
            "malformed=/results/*/updatedAt,1x",
        ];
        for text in texts {
            let fault: Fault = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(fault.to_string(), text);
        }
        for (name, _) in FaultName::all() {
            let text = if name.parse::<Fault>().is_ok() { name.to_owned() } else { format!("{name}=1") };
            assert!(text.parse::<Fault>().is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        let part = |name, part: &str| BadFault::Part { name, part: part.into() };
        for (text, expected) in [
            ("http_599", BadFault::Unknown("http_599".into())),
            ("slow", BadFault::NoValue("slow")),
            ("slow=fast", BadFault::NoValue("slow")),
            ("torn=1.5", part("torn", "1.5")),
            ("torn=-1x", part("torn", "-1x")),
            ("torn=often", part("torn", "often")),
        ] {
            assert_eq!(text.parse::<Fault>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn counts_run_out_and_places_are_kept() {
        let faults = Faults::new(vec!["torn=2x,on:search".parse().unwrap()], 1);
        let struck: Vec<bool> =
            [LIST, SEARCH, SEARCH, SEARCH].map(|spot| faults.strikes(FaultName::Torn, spot)).into();
        assert_eq!(struck, [false, true, true, false]);
        assert!(!faults.strikes(FaultName::Drop, SEARCH));
    }

    #[test]
    fn chance_is_a_share_and_the_same_for_the_same_seed() {
        let count = |seed| {
            let faults = Faults::new(vec!["http_502=0.1".parse().unwrap()], seed);
            (0..1000).filter(|_| faults.strikes(FaultName::Http502, LIST)).count()
        };
        assert!((60..140).contains(&count(7)), "{}", count(7));
        assert_eq!(count(7), count(7));
    }

    #[tokio::test]
    async fn who_is_kept_waiting_goes_on_when_let_go() {
        let faults = Faults::new(vec!["hang=1x".parse().unwrap()], 1);
        let released = faults.keeps_waiting(FaultName::Hang, LIST).expect("it strikes");
        assert_eq!(faults.list()[0].left, Some(0), "that can be seen");
        faults.release();
        released.await;
        assert!(faults.keeps_waiting(FaultName::Hang, LIST).is_none());
    }

    #[test]
    fn setting_replaces_and_all_values_are_found() {
        let faults = Faults::new(vec![Fault::always(FaultName::Drop)], 1);
        faults.set(vec!["no_scope=a".parse().unwrap(), "no_scope=b".parse().unwrap()]);
        assert!(!faults.strikes(FaultName::Drop, LIST));
        assert_eq!(faults.texts(FaultName::NoScope, LIST), ["a", "b"]);
        faults.set(Vec::new());
        assert!(!faults.any());
    }
}
