//! A pacer's memory as JSON: `{"v":1,"at":EPOCH_MS,"buckets":{"NAME":{"sent":[AGE_MS…],"paused":MS,"refusals":N,
//! "told":N,"spent":N}},"line":[{"of":"NAME","buckets":["NAME"…],"points":N,"kept":MS}…]}`. Times are milliseconds before
//! (`sent`) or after (`paused`, `kept`) `at`, rounded so that nothing seems older than it is. Absent keys mean nothing to tell.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::PAUSE_MAX;
use super::bucket::Bucket;
use super::line::{KEPT, Line, PLACES_MAX, Place};
use crate::domain::time::delta;

const VERSION: u32 = 1;
const YEAR_9999_MS: i64 = 253_402_300_799_000;

#[derive(Serialize, Deserialize)]
struct Saved {
    v: u32,
    at: i64,
    buckets: BTreeMap<String, SavedBucket>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    line: Vec<SavedPlace>,
}

#[derive(Serialize, Deserialize)]
struct SavedPlace {
    of: String,
    buckets: Vec<String>,
    points: u32,
    kept: u64,
}

#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct SavedBucket {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sent: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    refusals: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<u32>,
    /// Points, rounded up.
    #[serde(skip_serializing_if = "is_zero")]
    spent: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "never negative, and cut at u32::MAX"
)]
fn points(spent: f64) -> u32 {
    spent.ceil() as u32
}

fn whole_ms(span: TimeDelta) -> u64 {
    u64::try_from(span.num_milliseconds()).unwrap_or(0)
}

pub(super) fn write(buckets: &mut [Bucket], line: &Line, now: DateTime<Utc>) -> Value {
    let described = buckets.iter_mut().map(|bucket| {
        bucket.forget(now);
        let saved = SavedBucket {
            sent: bucket.sent.iter().map(|sent| whole_ms(now - *sent)).collect(),
            paused: bucket.paused_until.map(|then| whole_ms(then - now) + 1),
            refusals: bucket.refusals,
            told: bucket.told,
            spent: points(bucket.spent),
        };
        (bucket.name().to_owned(), saved)
    });
    let buckets = described.filter(|(_, saved)| *saved != SavedBucket::default()).collect();
    let waits = |place: &Place| SavedPlace {
        of: place.of.clone(),
        buckets: place.buckets.clone(),
        points: place.points,
        kept: whole_ms(place.kept_until - now),
    };
    let line = line.places.iter().map(waits).collect();
    // A millisecond up: ages are cut to whole ones as well.
    let saved = Saved { v: VERSION, at: now.timestamp_millis() + 1, buckets, line };
    serde_json::to_value(saved).unwrap_or(Value::Null)
}

/// Fills `buckets` and returns when it was saved; `None` when `value` is not of this kind or cannot be true.
pub(super) fn read(buckets: &mut [Bucket], line: &mut Line, value: &Value) -> Option<DateTime<Utc>> {
    let mut saved: Saved = serde_json::from_value(value.clone()).ok()?;
    let plausible = saved.v == VERSION && (0..=YEAR_9999_MS).contains(&saved.at);
    let at = DateTime::from_timestamp_millis(saved.at).filter(|_| plausible)?;
    let kept = |ms: u64| at + delta(std::time::Duration::from_millis(ms).min(PAUSE_MAX + KEPT));
    let place =
        |SavedPlace { of, buckets, points, kept: ms }| Place { of, buckets, points, kept_until: kept(ms) };
    line.places = saved.line.into_iter().take(PLACES_MAX).map(place).collect();
    for bucket in buckets {
        let Some(SavedBucket { sent, paused, refusals, told, spent }) = saved.buckets.remove(bucket.name())
        else {
            continue;
        };
        bucket.told = told;
        let window = bucket.window().as_millis();
        let mut ages: Vec<u64> = sent.into_iter().filter(|age| u128::from(*age) < window).collect();
        ages.sort_unstable_by_key(|age| std::cmp::Reverse(*age));
        let surplus = ages.len().saturating_sub(bucket.sent_max());
        ages.drain(..surplus);
        let past = |ms: u64| at - TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX));
        bucket.sent = ages.into_iter().map(past).collect();
        let paused = paused.map(std::time::Duration::from_millis);
        bucket.paused_until = paused.map(|wait| at + delta(wait.min(PAUSE_MAX)));
        bucket.refusals = refusals;
        (bucket.spent, bucket.spent_at) = (f64::from(spent), at);
    }
    Some(at)
}
