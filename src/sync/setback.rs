//! What becomes of a stream when a walk of it halts.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::send::Halt;
use crate::db::streams::{Needs, Setback, Strange, StreamKey};
use crate::db::{DbError, PgConnection, streams};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::spec::{Mode, PAUSE_MAX, StreamSpec};
use crate::domain::time::delta;
use crate::http::retry;

/// Pauses between turns after passing trouble grow from here up to the cap.
const TRANSIENT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(10));
/// The same after an answer that was not understood: nothing gets better by asking often.
const STALLED: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));
/// When everything is read again after a read of everything would have marked too much as gone, and nobody has agreed.
const HELD_BACKFILL: Duration = PAUSE_MAX;
/// How often a stream that is not allowed is looked at again.
const FORBIDDEN: Duration = PAUSE_MAX;
/// Turns in a row that 401 has to end, although the token is good, before the stream counts as not allowed: a provider in
/// trouble answers it as well.
const REFUSALS_MAX: u32 = 3;
/// Turns in a row that answers without JSON have to end before the stream stands still: edges answer so in minutes of
/// trouble, and an address that is not the API's does for ever.
const UNREAD_MAX: u32 = 8;
/// A wait for permits that is longer than this shows as `backing_off`; shorter ones are the usual pace.
const THROTTLED_SHOWS: Duration = Duration::from_secs(30);
/// How old what a stream needs to know may be in any case, however often it is read: turns take their time.
const BEHIND_LEAST: Duration = Duration::from_mins(5);
/// The pause after a 429 that names no end.
const THROTTLED: Duration = Duration::from_secs(10);

/// How the turns before have ended for a walk, and what its stream needs of another.
#[derive(Debug, Clone, Default)]
pub struct Before {
    /// How many in a row have failed.
    pub failures: i32,
    /// How many in a row were refused with 401 although the token was good.
    pub refusals: i32,
    /// How many in a row were answered without JSON.
    pub unread: i32,
    pub needs: Option<Needs>,
}

/// What is to be said of a stream when what it needs to know of the account is older than two times as long as it takes
/// to be read again, and than passing trouble lasts.
pub fn needs(spec: &StreamSpec, poll_interval: Duration) -> Option<Needs> {
    let mut teachers: Vec<String> =
        spec.needs_facts.iter().map(|fact| format!("`{}`", fact.taught_by)).collect();
    teachers.dedup();
    let teachers = Some(teachers.join(", ")).filter(|teachers| !teachers.is_empty())?;
    let said = format!(
        "changes are read, and no later ones are relied upon: {teachers}, which tells what to ask for, was last read at "
    );
    Some(Needs { age_max: poll_interval.saturating_mul(2).max(BEHIND_LEAST), said })
}

/// Records how a stream stands after the walks of a turn. `mode` is the walk that came last, if one was begun; `chance`,
/// from 0 to 1, says where in its span a pause ends.
pub fn record(
    connection: &mut PgConnection,
    key: StreamKey,
    mode: Option<Mode>,
    result: &Result<(), Halt>,
    before: &Before,
    now: DateTime<Utc>,
    chance: f64,
) -> Result<(), DbError> {
    let count = |number: i32| u32::try_from(number).unwrap_or(0);
    let failures = count(before.failures);
    let _owned = match result {
        Ok(()) => streams::settle(connection, key, before.needs.as_ref())?,
        Err(Halt::Waits { until, what }) => {
            let throttled = *until - now > delta(THROTTLED_SHOWS);
            streams::postpone(connection, key, *until, what, throttled)?
        }
        // Nothing is wrong: the walk goes on in the next turn, or in the turn that has taken over.
        Err(Halt::TurnOver | Halt::Stopped | Halt::Restart(_) | Halt::Lost) => return Ok(()),
        Err(Halt::Partial { why, due_at }) => {
            streams::set_back(connection, key, mode, &partial(why, *due_at))?
        }
        Err(halt @ (Halt::Refused(why) | Halt::Unread(why))) => {
            let (counted, turns) = match halt {
                Halt::Unread(_) => (Strange::Unread, before.unread),
                _ => (Strange::Refused, before.refusals),
            };
            let failure = Failure::new(strange(counted, count(turns) + 1), why.clone());
            let setback =
                Setback { strange: Some(counted), ..setback(&failure, mode, failures, now, chance) };
            streams::set_back(connection, key, mode, &setback)?
        }
        Err(Halt::Failed(failure)) => {
            streams::set_back(connection, key, mode, &setback(failure, mode, failures, now, chance))?
        }
    };
    Ok(())
}

/// What an answer means that may be passing trouble, after so many turns in a row.
fn strange(counted: Strange, turns: u32) -> FailureKind {
    match counted {
        Strange::Refused if turns >= REFUSALS_MAX => FailureKind::Forbidden { scope: None },
        Strange::Unread if turns >= UNREAD_MAX => FailureKind::ProviderChanged,
        _ => FailureKind::Transient,
    }
}

/// A walk that has read what it could: what is missing is said until a walk of its kind has read everything.
fn partial(why: &str, due_at: DateTime<Utc>) -> Setback {
    Setback {
        state: "stalled",
        kind: "partial",
        stalled_reason: Some(why.to_owned()),
        last_error: Some(why.to_owned()),
        not_before: Some(due_at),
        whole_stream: false,
        strange: None,
    }
}

/// What a failure means for its stream.
fn setback(failure: &Failure, mode: Option<Mode>, failures: u32, now: DateTime<Utc>, chance: f64) -> Setback {
    // Changes are what keeps a mirror fresh: they go on while a walk of another mode fails.
    let whole_stream = !matches!(mode, Some(Mode::Backfill | Mode::Archived | Mode::Sweep))
        || matches!(failure.kind, FailureKind::Forbidden { .. } | FailureKind::NeedsReauth);
    let attempt = failures.min(16) + 1;
    // Half of the pause at the least: full jitter alone could mean at once, again and again.
    let growing = |(base, cap): (Duration, Duration)| {
        let longest = base.saturating_mul(1 << attempt.min(12)).min(cap);
        now + delta(longest / 2 + retry::longest(attempt, base, cap).mul_f64(chance).min(longest / 2))
    };
    let (state, stalled, not_before) = match &failure.kind {
        // The token's own schedule decides when a dead grant is tried again; the stream waits with it.
        FailureKind::Transient | FailureKind::NeedsReauth => ("backing_off", false, growing(TRANSIENT)),
        FailureKind::Throttled { until } => {
            ("backing_off", false, until.unwrap_or_else(|| now + delta(THROTTLED)))
        }
        FailureKind::Forbidden { .. } => ("forbidden", true, now + delta(FORBIDDEN)),
        FailureKind::Held if mode == Some(Mode::Backfill) => ("stalled", true, now + delta(HELD_BACKFILL)),
        FailureKind::ProviderChanged
        | FailureKind::OurBug
        | FailureKind::Misconfigured
        | FailureKind::Held => ("stalled", true, growing(STALLED)),
    };
    Setback {
        state,
        kind: failure.kind.label(),
        stalled_reason: stalled.then(|| failure.message.clone()),
        last_error: Some(failure.message.clone()),
        not_before: Some(not_before),
        whole_stream,
        strange: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_by_itself_has_to_stay() {
        let kind = |counted, turns| strange(counted, turns).label();
        assert_eq!((kind(Strange::Refused, 2), kind(Strange::Refused, 3)), ("transient", "forbidden"));
        assert_eq!((kind(Strange::Unread, 7), kind(Strange::Unread, 8)), ("transient", "provider_changed"));
    }

    #[test]
    fn what_a_stream_needs_may_be_two_intervals_old() {
        let of = |provider: &str, stream: &str, minutes| {
            let spec = crate::providers::provider(provider).unwrap().spec().stream(stream).unwrap();
            needs(spec, Duration::from_mins(minutes))
        };
        let tickets = of("hubspot", "tickets", 10).unwrap();
        assert_eq!(tickets.age_max, Duration::from_mins(20));
        assert!(tickets.said.contains("`properties`"), "{}", tickets.said);
        assert_eq!(of("housecallpro", "employees", 1).unwrap().age_max, BEHIND_LEAST);
        assert_eq!(of("hubspot", "properties", 10), None);
    }

    #[test]
    fn kinds_decide() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let check = |kind: FailureKind, failures: u32, state: &str, least: u64, most: u64| {
            let setback = setback(&Failure::new(kind, "m"), None, failures, now, 0.5);
            let wait = u64::try_from((setback.not_before.unwrap() - now).num_seconds()).unwrap();
            assert_eq!(setback.state, state);
            assert!((least..=most).contains(&wait), "{state}: {wait}");
        };
        check(FailureKind::Transient, 0, "backing_off", 1, 10);
        check(FailureKind::Transient, 60, "backing_off", 300, 600);
        check(FailureKind::ProviderChanged, 0, "stalled", 60, 120);
        check(FailureKind::Held, 0, "stalled", 60, 120);
        check(FailureKind::Forbidden { scope: None }, 3, "forbidden", 86_400, 86_400);
        check(
            FailureKind::Throttled { until: Some(now + delta(Duration::from_secs(7))) },
            0,
            "backing_off",
            7,
            7,
        );
    }
}
