//! When something that has come so far will be done, if it goes on at the same pace. Pure.

use chrono::{DateTime, TimeDelta, Utc};

/// Less than this says nothing about a pace.
const SHARE_MIN: f64 = 0.005;
const TIME_MIN: TimeDelta = TimeDelta::seconds(2);
/// What lies further ahead is no forecast.
const AHEAD_MAX_S: f64 = 30.0 * 24.0 * 3600.0;

/// What had come to the share `from` (of 1) at `began`, and has come to `share` by `now`. `None` while there is no pace
/// to be seen, and when it is done.
pub fn forecast(began: DateTime<Utc>, from: f64, now: DateTime<Utc>, share: f64) -> Option<DateTime<Utc>> {
    let (gained, left) = (share - from, 1.0 - share);
    let elapsed = now - began;
    if !(gained >= SHARE_MIN && left > 0.0) || elapsed < TIME_MIN {
        return None;
    }
    let ahead_s = elapsed.as_seconds_f64() * left / gained;
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds of at most thirty days")]
    (ahead_s <= AHEAD_MAX_S).then(|| now + TimeDelta::seconds(ahead_s.ceil() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    #[test]
    fn the_pace_goes_on() {
        for (from, elapsed_s, share, expected_s) in [
            (0.0, 100, 0.5, Some(200)),
            (0.0, 100, 0.25, Some(400)),
            (0.0, 90, 0.9, Some(100)),
            (0.5, 100, 0.75, Some(200)),
            (0.0, 7, 0.3, Some(7 + 17)),
            // No pace yet.
            (0.0, 1, 0.5, None),
            (0.0, 100, 0.0, None),
            (0.0, 100, 0.004, None),
            (0.4, 100, 0.4, None),
            (0.4, 100, 0.3, None),
            // Done, or nonsense.
            (0.0, 100, 1.0, None),
            (0.0, 100, 1.5, None),
            (0.0, 100, f64::NAN, None),
            (0.0, -5, 0.5, None),
            // Too far ahead to mean anything.
            (0.0, 10 * 24 * 3600, 0.01, None),
        ] {
            let found = forecast(at(0), from, at(elapsed_s), share);
            assert_eq!(found, expected_s.map(at), "{from} {elapsed_s} {share}");
        }
    }
}
