//! When a token is used, refreshed and given up. Plain rules: the time and the dice are handed in.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::db::tokens::Fate;
use crate::domain::ids::ConnectionId;
use crate::domain::time::delta;

const DAY: TimeDelta = TimeDelta::days(1);
/// A token is refreshed when this much of its life is left, or a quarter of it, whichever is less.
const REFRESH_MARGIN_MAX: TimeDelta = TimeDelta::minutes(10);
/// From here on a life counts as long.
const LONG_LIFE_MIN: TimeDelta = TimeDelta::days(7);
/// No request leaves with less than this left, or a fifth of the life, whichever is less.
const USE_MARGIN_MAX: TimeDelta = TimeDelta::seconds(30);
/// By how much the clocks of two daemons may differ.
const CLOCKS_APART_MAX: TimeDelta = TimeDelta::minutes(1);
/// How much earlier jitter may put a refresh, as a share of the margin: tokens that were granted together drift apart.
const JITTER_SHARE: f64 = 0.2;
/// The first pause after a refresh that failed; doubled with each further failure.
pub const RETRY_FIRST: Duration = Duration::from_secs(15);
/// The longest pause between refreshes that fail for passing reasons.
pub const RETRY_MAX: Duration = Duration::from_mins(15);
/// The least pause between refreshes that fail.
const RETRY_MIN: Duration = Duration::from_secs(5);
/// How often a grant that the provider called dead is tried again: some come back to life.
pub const DEAD_RETRY: Duration = Duration::from_hours(6);
/// How often a key is looked at.
pub const PROBE_EVERY: Duration = Duration::from_hours(24);
/// How long nothing is asked in the name of a client that is refused as such, before one account tries again.
pub const CLIENT_STOP: Duration = Duration::from_mins(1);
/// So many accounts of one client do not die together by chance.
const MASS_MIN: usize = 3;
/// What together means: the life of a common access token, over which refreshes are spread.
const MASS_WINDOW: TimeDelta = TimeDelta::minutes(30);

/// When a token is to be refreshed. `jitter` is evenly drawn from 0 to 1.
pub fn refresh_due_at(issued_at: DateTime<Utc>, expires_at: DateTime<Utc>, jitter: f64) -> DateTime<Utc> {
    let life = (expires_at - issued_at).max(TimeDelta::zero());
    let margin = if life >= LONG_LIFE_MIN { life / 5 } else { (life / 4).min(REFRESH_MARGIN_MAX) };
    let earlier = scaled(margin, JITTER_SHARE * jitter.clamp(0.0, 1.0)).min(DAY);
    (expires_at - margin - earlier).max(issued_at)
}

/// Until when a request may leave with the token.
pub fn usable_until(issued_at: DateTime<Utc>, expires_at: DateTime<Utc>) -> DateTime<Utc> {
    let life = (expires_at - issued_at).max(TimeDelta::zero());
    expires_at - (life / 5).min(USE_MARGIN_MAX)
}

/// Whether a request may leave now. An expiry that is not known never forbids it. A token that seems to be of the future was
/// issued before the clock was set back: how long it lives still is not known.
pub fn is_usable(issued_at: DateTime<Utc>, expires_at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    expires_at.is_none_or(|expires_at| {
        issued_at <= now + CLOCKS_APART_MAX && now < usable_until(issued_at, expires_at)
    })
}

/// When a refresh is tried again after `pause`, which full jitter may have made very small.
pub fn retry_at(now: DateTime<Utc>, pause: Duration) -> DateTime<Utc> {
    now + delta(pause.clamp(RETRY_MIN, RETRY_MAX))
}

/// Which deaths among the tokens of one client are to be blamed on the client, not on the accounts.
///
/// Three or more that were first reported within [`MASS_WINDOW`] of each other are a fault of configuration: a client
/// secret that was replaced, a registration that is gone, requests that are malformed. It stays one until another
/// account of the client has been refreshed after that window, which proves that the client is in order. The same goes for
/// the refusals of an API, which may be out of order for all, where a walk of another account is the proof.
pub fn blamed_on_client(fates: &[Fate]) -> BTreeSet<ConnectionId> {
    let proven_at =
        fates.iter().filter(|fate| fate.rejected_at.is_none()).filter_map(|fate| fate.last_refresh_at).max();
    let dead: Vec<(ConnectionId, DateTime<Utc>)> =
        fates.iter().filter_map(|fate| Some((fate.connection(), fate.rejected_at?))).collect();
    let together =
        |at: DateTime<Utc>| dead.iter().filter(|(_, other)| (*other - at).abs() <= MASS_WINDOW).count();
    dead.iter()
        .filter(|(_, at)| together(*at) >= MASS_MIN)
        .filter(|(_, at)| proven_at.is_none_or(|proven_at| proven_at <= *at + MASS_WINDOW))
        .map(|(id, _)| *id)
        .collect()
}

/// Whether nobody has been refreshed since the first of the deaths that are blamed on the client: then it is not asked
/// about other accounts either. Where others fare well meanwhile, they are let go on.
pub fn is_silent(fates: &[Fate], blamed: &BTreeSet<ConnectionId>) -> bool {
    let first = fates
        .iter()
        .filter(|fate| blamed.contains(&fate.connection()))
        .filter_map(|fate| fate.rejected_at)
        .min();
    let lives = |since: DateTime<Utc>| {
        let alive = fates.iter().filter(|fate| fate.rejected_at.is_none());
        alive.filter_map(|fate| fate.last_refresh_at).any(|at| at > since)
    };
    first.is_some_and(|first| !lives(first))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a share of a span of days")]
fn scaled(span: TimeDelta, share: f64) -> TimeDelta {
    TimeDelta::milliseconds((span.num_milliseconds() as f64 * share) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time in this century")
    }

    #[test]
    fn refreshes_fall_due() {
        const DAYS: i64 = 24 * 3600;
        for (life_s, jitter, due_s) in [
            (1800, 0.0, 1800 - 450),
            (1800, 1.0, 1800 - 450 - 90),
            (3600, 0.0, 3600 - 600),
            (86_400, 0.0, 86_400 - 600),
            (60, 0.0, 45),
            (4, 0.0, 3),
            (0, 1.0, 0),
            (-5, 0.0, 0),
            (30 * DAYS, 0.0, 24 * DAYS),
            (30 * DAYS, 1.0, 23 * DAYS),
            (7 * DAYS, 0.0, 7 * DAYS * 4 / 5),
        ] {
            assert_eq!(refresh_due_at(at(0), at(life_s), jitter), at(due_s), "{life_s} {jitter}");
        }
    }

    #[test]
    fn a_refresh_is_due_before_the_token_becomes_unusable() {
        for life_s in [1, 5, 20, 60, 100, 150, 600, 1800, 3600, 86_400, 2_592_000] {
            for jitter in [0.0, 0.5, 1.0] {
                let due = refresh_due_at(at(0), at(life_s), jitter);
                assert!(due <= usable_until(at(0), at(life_s)), "{life_s} {jitter}");
            }
        }
    }

    #[test]
    fn no_request_leaves_with_too_little_left() {
        for (life_s, now_s, usable) in [
            (1800, 0, true),
            (1800, 1769, true),
            (1800, 1770, false),
            (1800, -60, true),
            (1800, -61, false),
            (60, 47, true),
            (60, 48, false),
            (10, 8, false),
            (0, 0, false),
        ] {
            assert_eq!(is_usable(at(0), Some(at(life_s)), at(now_s)), usable, "{life_s} {now_s}");
        }
        assert!(is_usable(at(0), None, at(1_000_000)), "unknown is not expired");
    }

    #[test]
    fn retries_are_neither_at_once_nor_never() {
        for (pause_s, expected_s) in [(0, 5), (7, 7), (4000, 900)] {
            assert_eq!(retry_at(at(0), Duration::from_secs(pause_s)), at(expected_s));
        }
    }

    #[track_caller]
    fn check(fates: &[(Option<i64>, Option<i64>)], blamed: &[i64]) {
        let fates: Vec<Fate> = (1..)
            .zip(fates)
            .map(|(id, (rejected_s, refreshed_s))| {
                Fate::new(ConnectionId(id), rejected_s.map(at), refreshed_s.map(at))
            })
            .collect();
        let expected: BTreeSet<ConnectionId> = blamed.iter().copied().map(ConnectionId).collect();
        assert_eq!(blamed_on_client(&fates), expected, "{fates:?}");
    }

    #[test]
    fn a_client_is_silent_when_nobody_fares_well() {
        let check = |refreshed_s: Option<i64>, expected: bool| {
            let mut fates: Vec<Fate> =
                (1..=3).map(|id| Fate::new(ConnectionId(id), Some(at(id * 10)), None)).collect();
            fates.push(Fate::new(ConnectionId(4), None, refreshed_s.map(at)));
            assert_eq!(is_silent(&fates, &blamed_on_client(&fates)), expected, "{refreshed_s:?}");
        };
        check(None, true);
        check(Some(5), true);
        check(Some(15), false);
        assert!(!is_silent(&[], &BTreeSet::new()));
    }

    #[test]
    fn deaths_together_are_the_clients() {
        check(&[], &[]);
        check(&[(Some(0), None), (Some(60), None)], &[]);
        check(&[(Some(0), None), (Some(60), None), (Some(120), None)], &[1, 2, 3]);
        // A healthy account that was refreshed before or among them proves nothing yet.
        check(&[(Some(0), None), (Some(60), None), (Some(120), None), (None, Some(100))], &[1, 2, 3]);
        // One that was refreshed well after them does.
        check(&[(Some(0), None), (Some(60), None), (Some(120), None), (None, Some(2000))], &[]);
        // Days apart: each of its own.
        check(&[(Some(0), None), (Some(90_000), None), (Some(180_000), None)], &[]);
        // A loner beside a cluster.
        check(&[(Some(0), None), (Some(9), None), (Some(19), None), (Some(90_000), None)], &[1, 2, 3]);
    }
}
