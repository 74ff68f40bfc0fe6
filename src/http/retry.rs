//! How long to pause before trying again: our own growing pauses, and what a provider's `Retry-After` asks for.

use std::time::Duration;

use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;
use chrono::{DateTime, NaiveDateTime, Utc};

use crate::domain::chance;
use crate::domain::step::Reply;
use crate::domain::time::until;

/// The longest wait that is taken from a provider. HubSpot parks accounts for hours while it moves them.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);
/// Doublings after which a pause grows no further, whatever its cap.
const ATTEMPTS_COUNTED: u32 = 32;

/// The pause before the next attempt after `attempt` failures in a row: evenly random between zero and [`longest`]. Full
/// jitter keeps many connections that failed together from coming back together.
pub fn pause(attempt: u32, base: Duration, cap: Duration) -> Duration {
    longest(attempt, base, cap).mul_f64(chance::share())
}

/// The longest pause after `attempt` failures in a row (0 counts as 1): `base`, doubled with each further failure, never
/// more than `cap`.
pub fn longest(attempt: u32, base: Duration, cap: Duration) -> Duration {
    let mut schedule: backoff::ExponentialBackoff = ExponentialBackoffBuilder::new()
        .with_initial_interval(base.min(cap))
        .with_max_interval(cap)
        .with_multiplier(2.0)
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build();
    let mut longest = Duration::ZERO;
    for _ in 0..attempt.clamp(1, ATTEMPTS_COUNTED) {
        longest = schedule.next_backoff().unwrap_or(cap);
    }
    longest.min(cap)
}

/// What a `Retry-After` header asks for: seconds, with a fraction or without, an HTTP date, or an ISO time stamp;
/// at most [`RETRY_AFTER_MAX`]. `now` should be the answer's own `Date`, so that a wrong clock does no harm.
/// Negative numbers and anything else that is not understood are `None`, times that have passed are zero.
pub fn parse_retry_after(header: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = header.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        // A plain cast of what is finite and not negative; too much is cut before it can overflow.
        let wanted = seconds.is_finite() && seconds >= 0.0;
        return wanted.then(|| Duration::from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64())));
    }
    let then = http_date(text).or_else(|| iso_time(text))?;
    Some(until(then, now).min(RETRY_AFTER_MAX))
}

/// What an answer asks for, by its own `Date`; by `now` where it has none.
pub fn retry_after(reply: &Reply, now: DateTime<Utc>) -> Option<Duration> {
    let now = reply.header("date").and_then(http_date).unwrap_or(now);
    parse_retry_after(reply.header("retry-after")?, now)
}

/// A date in any of the three forms that RFC 9110 5.6.7 asks recipients to read, such as a `Date` header.
pub fn http_date(text: &str) -> Option<DateTime<Utc>> {
    const RFC_850: &str = "%A, %d-%b-%y %H:%M:%S GMT";
    const ASCTIME: &str = "%a %b %e %H:%M:%S %Y";
    let text = text.trim();
    let naive = |form| NaiveDateTime::parse_from_str(text, form).ok().map(|time| time.and_utc());
    let fixed = || DateTime::parse_from_rfc2822(text).ok().map(|time| time.with_timezone(&Utc));
    fixed().or_else(|| naive(RFC_850)).or_else(|| naive(ASCTIME))
}

fn iso_time(text: &str) -> Option<DateTime<Utc>> {
    let spelled =
        || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S UTC").ok().map(|time| time.and_utc());
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc)).or_else(spelled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::step::Body;

    /// A provider's clock, or ours, may be wrong.
    #[test]
    fn a_date_is_taken_by_the_clock_that_wrote_it() {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let asks = header("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
        let dated = header("date", "Sun, 06 Nov 1994 08:49:34 GMT");
        let now = http_date("Sun, 06 Nov 1994 08:39:30 GMT").expect("a date");
        for (headers, wait_s) in [(vec![asks.clone(), dated], 3), (vec![asks], 607)] {
            let (headers, body) = (headers.into_iter().collect(), Body::Text(String::new()));
            let reply = Reply { status: 429, headers, body, sent_at: now };
            assert_eq!(retry_after(&reply, now), Some(Duration::from_secs(wait_s)));
        }
    }

    const BASE: Duration = Duration::from_secs(2);
    const CAP: Duration = Duration::from_mins(1);

    #[test]
    fn pauses_grow_stay_below_their_cap_and_are_spread() {
        for (attempt, most) in [(0, 2), (1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (40, 60), (u32::MAX, 60)] {
            let most = Duration::from_secs(most);
            let drawn: Vec<_> = (0..400).map(|_| pause(attempt, BASE, CAP)).collect();
            assert!(drawn.iter().all(|pause| *pause <= most), "attempt {attempt}");
            // With even jitter each of these fails once in more than 10^18 runs.
            assert!(
                drawn.iter().any(|pause| *pause > most.mul_f64(0.9)),
                "attempt {attempt} reaches its bound"
            );
            assert!(
                drawn.iter().any(|pause| *pause < most.mul_f64(0.1)),
                "attempt {attempt} is fully jittered"
            );
        }
    }

    #[test]
    fn a_base_above_the_cap_is_the_cap() {
        assert!((0..100).all(|_| pause(1, CAP * 5, CAP) <= CAP));
        assert_eq!(pause(3, Duration::ZERO, CAP), Duration::ZERO);
    }

    #[test]
    fn retry_after_in_all_forms() {
        let now = http_date("Sun, 06 Nov 1994 08:49:30 GMT").unwrap();
        let seconds = |seconds: f64| Some(Duration::from_secs_f64(seconds));
        for (header, expected) in [
            ("7", seconds(7.0)),
            (" 0 ", seconds(0.0)),
            ("1.25", seconds(1.25)),
            ("99999999999999999999", Some(RETRY_AFTER_MAX)),
            ("1e300", Some(RETRY_AFTER_MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", seconds(7.0)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", seconds(7.0)),
            ("Sun Nov  6 08:49:37 1994", seconds(7.0)),
            ("1994-11-06T08:49:37Z", seconds(7.0)),
            ("1994-11-06T10:49:37.500+02:00", seconds(7.5)),
            ("1994-11-06 08:49:37 UTC", seconds(7.0)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", seconds(0.0)),
            ("Sun, 06 Nov 2094 08:00:00 GMT", None), // a Saturday
            ("2094-11-06T08:49:37Z", Some(RETRY_AFTER_MAX)),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(header, now), expected, "{header}");
        }
    }
}
