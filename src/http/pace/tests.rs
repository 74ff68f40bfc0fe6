use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::*;

const TEN: BucketSpec = BucketSpec::requests("ten_secondly", 110, Duration::from_secs(10));
const ONE: BucketSpec = BucketSpec::requests("secondly", 5, Duration::from_secs(1));
const RESERVE: f64 = 0.1;

fn at(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_767_603_600_000 + ms).unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Takes as many permits as there are at one moment.
fn burst(pacer: &mut Pacer, now: DateTime<Utc>, buckets: &[&str]) -> usize {
    (0..10_000).take_while(|_| pacer.take(now, buckets, 1).is_ok()).count()
}

#[test]
fn a_burst_ends_at_the_limit_less_the_reserve() {
    for (limit, reserve, expected) in [
        (110, 0.1, 99),
        (5, 0.1, 4),
        (1, 0.5, 1),
        (0, 0.0, 1),
        (10, 1.0, 1),
        (10, 7.0, 1),
        (10, -1.0, 10),
        (10, f64::NAN, 1),
    ] {
        let mut pacer = Pacer::new(&[BucketSpec { limit, ..ONE }], reserve);
        assert_eq!(burst(&mut pacer, at(0), &["ten_secondly"]), expected, "{limit} less {reserve}");
    }
}

#[test]
fn a_full_bucket_waits_for_its_span_and_the_margin() {
    let mut pacer = Pacer::new(&[TEN, ONE], RESERVE);
    assert_eq!(burst(&mut pacer, at(0), &["secondly"]), 4);
    assert_eq!(pacer.ready_in(at(0), &["secondly"], 1), ms(1075));
    assert_eq!(pacer.take(at(600), &["secondly"], 1), Err(ms(475)));
    assert_eq!(pacer.ready_in(at(1075), &["secondly"], 1), ms(0));
    assert_eq!(burst(&mut pacer, at(1075), &["secondly"]), 4);
}

#[test]
fn without_a_reserve_the_margin_is_wider() {
    let own = BucketSpec::own_pace("own", 5, Duration::from_secs(1));
    for (spec, reserve, window) in
        [(ONE, RESERVE, 1075), (ONE, 0.0, 1110), (own, 0.0, 1075), (TEN, 0.0, 10_500)]
    {
        assert_eq!(Bucket::new(spec, reserve).window(), ms(window), "{} less {reserve}", spec.name);
    }
}

#[test]
fn several_buckets_are_taken_together_or_not_at_all() {
    let mut pacer = Pacer::new(&[TEN, ONE], RESERVE);
    assert_eq!(burst(&mut pacer, at(0), &["secondly"]), 4);
    assert!(pacer.take(at(0), &["ten_secondly", "secondly"], 1).is_err());
    assert_eq!(burst(&mut pacer, at(0), &["ten_secondly"]), 99, "the refused one took nothing");
}

#[test]
fn unknown_buckets_are_the_first() {
    let mut pacer = Pacer::new(&[ONE, TEN], RESERVE);
    assert!(pacer.take(at(0), &["ten_secondly"], 1).is_ok());
    assert!(pacer.take(at(0), &["no such"], 1).is_ok());
    assert!(pacer.take(at(0), &["no such", "secondly"], 1).is_ok(), "taken from once");
    assert_eq!(burst(&mut pacer, at(0), &["secondly"]), 2);
    assert_eq!(burst(&mut pacer, at(0), &[]), 10_000, "what names no bucket is not paced");
    assert_eq!(Pacer::new(&[], RESERVE).take(at(0), &["any"], 1), Ok(()), "no limits are none");
}

#[test]
fn an_account_pauses_as_a_whole_until_that_is_doubted() {
    let mut pacer = Pacer::new(&[TEN, ONE], RESERVE);
    assert_eq!(pacer.refused(at(0), EVERY_BUCKET, Some(Duration::from_hours(3))), Duration::from_hours(3));
    for bucket in ["ten_secondly", "secondly"] {
        assert_eq!(pacer.ready_in(at(0), &[bucket], 1), Duration::from_hours(3), "{bucket}");
    }
    pacer.question_pauses(at(0));
    assert_eq!(pacer.ready_in(at(0), &["ten_secondly"], 1), ms(10_500));
    assert_eq!(pacer.ready_in(at(0), &["secondly"], 1), ms(1_075));
    pacer.question_pauses(at(10_000));
    assert_eq!(pacer.ready_in(at(10_000), &["ten_secondly"], 1), ms(500), "no longer than it was");
    // What was asked for a moment ago is over soon, and is not doubted.
    pacer.refused(at(10_000), "secondly", Some(ms(60_000)));
    pacer.question_pauses(at(10_000));
    assert_eq!(pacer.ready_in(at(10_000), &["secondly"], 1), ms(60_000));
}

#[test]
fn pauses_double_where_no_limit_is_published() {
    let mut pacer = Pacer::new(&[BucketSpec::own_pace("own", 1, Duration::from_secs(1))], 0.1);
    let mut now = 0;
    for expected_s in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        assert_eq!(pacer.refused(at(now), "own", None), Duration::from_secs(expected_s));
        now += i64::try_from(expected_s).unwrap() * 1000 + 50;
    }
    assert_eq!(
        pacer.refused(at(now), "own", Some(Duration::from_secs(7))),
        Duration::from_secs(7),
        "as asked"
    );
    pacer.succeeded(at(now + 7_050), &["own"]);
    assert_eq!(pacer.refused(at(now + 8_000), "own", None), Duration::from_secs(1), "the first again");
}

#[test]
fn refusals_pause_longer_each_time() {
    let mut pacer = Pacer::new(&[TEN, ONE], RESERVE);
    let mut now = 0;
    for expected_s in [10, 20, 30] {
        assert_eq!(pacer.refused(at(now), "ten_secondly", None), Duration::from_secs(expected_s));
        assert_eq!(
            pacer.refused(at(now + 50), "ten_secondly", None),
            Duration::from_secs(expected_s),
            "same burst"
        );
        now += i64::try_from(expected_s).unwrap() * 1000 + 50;
    }
    assert_eq!(pacer.ready_in(at(now), &["secondly"], 1), ms(0), "the other bucket is free");
    assert_eq!(pacer.refused(at(now), "secondly", None), Duration::from_secs(1));
    for _ in 0..200 {
        now += 3_600_000;
        assert!(pacer.refused(at(now), "ten_secondly", None) <= Duration::from_mins(15));
    }
    pacer.succeeded(at(now), &["ten_secondly"]);
    now += 3_600_000;
    assert_eq!(
        pacer.refused(at(now), "ten_secondly", None),
        Duration::from_mins(15),
        "answered while pausing"
    );
    now += 3_600_000;
    pacer.succeeded(at(now), &["ten_secondly"]);
    assert_eq!(pacer.refused(at(now), "ten_secondly", None), Duration::from_secs(10));
}

#[test]
fn a_told_wait_is_kept_within_bounds() {
    for (told, kept) in [
        (Duration::from_secs(7), Duration::from_secs(7)),
        (Duration::ZERO, Duration::from_secs(1)),
        (Duration::from_hours(3), Duration::from_hours(3)),
        (Duration::MAX, Duration::from_hours(24)),
    ] {
        let mut pacer = Pacer::new(&[TEN], RESERVE);
        assert_eq!(pacer.refused(at(0), "ten_secondly", Some(told)), kept);
        assert_eq!(pacer.ready_in(at(0), &["ten_secondly"], 1), kept);
    }
}

#[test]
fn headers_say_what_the_account_allows() {
    let told = |limit| Observed { limit: Some(limit), per: Some(TEN.per), remaining: Some(3), unspent: 0 };
    for (limit, expected) in [(50, 45), (0, 1), (190, 171)] {
        let mut pacer = Pacer::new(&[TEN], RESERVE);
        pacer.observe(at(0), "ten_secondly", told(20));
        pacer.observe(at(0), "ten_secondly", told(limit));
        assert_eq!(burst(&mut pacer, at(0), &["ten_secondly"]), expected, "{limit}");
    }
    let mut pacer = Pacer::new(&[TEN], RESERVE);
    pacer.observe(at(0), "ten_secondly", Observed { per: Some(ms(1000)), ..told(5) });
    assert_eq!(
        burst(&mut pacer, at(0), &["ten_secondly"]),
        99,
        "a limit of another interval says nothing about this one"
    );
    pacer.observe(at(0), "ten_secondly", told(50));
    assert_eq!(pacer.ready_in(at(9000), &["ten_secondly"], 1), ms(1500), "lowered under a full log");
}

#[test]
fn nothing_remaining_waits_for_the_interval() {
    let mut pacer = Pacer::new(&[TEN], RESERVE);
    pacer.observe(
        at(0),
        "ten_secondly",
        Observed { remaining: Some(0), per: Some(ms(4000)), limit: None, unspent: 0 },
    );
    assert_eq!(pacer.ready_in(at(1000), &["ten_secondly"], 1), ms(3000));
    pacer.observe(at(5000), "ten_secondly", Observed { remaining: Some(0), ..Observed::default() });
    assert_eq!(pacer.ready_in(at(5000), &["ten_secondly"], 1), TEN.per);
}

#[test]
fn a_quota_keeps_its_reserve() {
    let hour = Duration::from_hours(1);
    for (reserve, max, remaining, waits) in [
        (0.1, 250_000, 25_001, ms(0)),
        (0.1, 250_000, 25_000, hour),
        (0.0, 250_000, 33, ms(0)),
        (0.0, 250_000, 32, hour),
        (0.0, 0, 0, hour),
    ] {
        let mut pacer = Pacer::new(&[TEN, ONE], reserve);
        pacer.quota(at(0), "ten_secondly", max, remaining, hour);
        assert_eq!(pacer.ready_in(at(0), &["ten_secondly"], 1), waits, "{remaining} of {max}");
        assert_eq!(pacer.ready_in(at(0), &["secondly"], 1), ms(0));
    }
}

#[test]
fn after_a_crash_nothing_is_left() {
    let daily = BucketSpec::requests("daily", 250_000, Duration::from_hours(24));
    let mut pacer = Pacer::new(&[TEN, ONE, daily], RESERVE);
    pacer.assume_spent(at(0));
    assert_eq!(pacer.ready_in(at(0), &["secondly"], 1), ms(1075));
    assert_eq!(pacer.ready_in(at(0), &["ten_secondly", "secondly"], 1), ms(10_500));
    assert_eq!(pacer.ready_in(at(0), &["daily"], 1), Duration::from_mins(5));
    assert_eq!(burst(&mut pacer, at(10_500), &["ten_secondly"]), 99);
}

#[test]
fn what_is_saved_comes_back() {
    let mut pacer = Pacer::new(&[TEN, ONE], RESERVE);
    for sent in [0, 5000, 5001] {
        pacer.take(at(sent), &["ten_secondly"], 1).unwrap();
    }
    pacer.observe(at(9000), "ten_secondly", Observed { limit: Some(50), ..Observed::default() });
    pacer.refused(at(9000), "secondly", None);
    let saved = pacer.to_saved(at(10_800));
    assert_eq!(
        saved,
        json!({"v": 1, "at": 1_767_603_610_801_i64, "buckets": {
            "ten_secondly": {"sent": [5800, 5799], "told": 50}, "secondly": {"refusals": 1}}})
    );
    let mut back = Pacer::from_saved(&[TEN, ONE], RESERVE, &saved, at(11_000));
    assert_eq!(burst(&mut back, at(11_000), &["ten_secondly"]), 43, "45 less the two that still count");
    assert_eq!(back.refused(at(11_000), "secondly", None), Duration::from_secs(2));
    let paused = back.to_saved(at(11_000));
    let mut back = Pacer::from_saved(&[ONE], RESERVE, &paused, at(11_500));
    assert!(back.ready_in(at(11_500), &["ten_secondly"], 1) >= ms(1500));
}

#[test]
fn what_is_waited_for_is_told() {
    let mut pacer = Pacer::new(&[TEN, ONE], RESERVE);
    let told =
        |pacer: &mut Pacer, now| pacer.in_the_way(at(now), None, &["ten_secondly", "secondly"], 1).unwrap();
    burst(&mut pacer, at(0), &["ten_secondly"]);
    assert_eq!(told(&mut pacer, 0), "`ten_secondly` (110 in 10s, 99 of them ours), which is used up");
    pacer.refused(at(0), "secondly", Some(ms(60_000)));
    assert!(told(&mut pacer, 0).ends_with(", which pauses, refused with 429 1 times in a row"));
    pacer.hold(at(0), "ten_secondly", ms(90_000));
    assert!(told(&mut pacer, 0).ends_with(", which is used up, as the provider says"));
    pacer.refused(at(0), EVERY_BUCKET, Some(Duration::from_hours(1)));
    assert!(
        told(&mut pacer, 0)
            .ends_with(", which rests for long, as the provider wants it, such as for a day's quota")
    );
}

#[test]
fn what_cannot_be_read_counts_as_spent() {
    let huge =
        json!({"v": 1, "at": 1_767_603_600_000_i64, "buckets": {"secondly": {"sent": vec![1; 50_000]}}});
    assert_eq!(Pacer::from_saved(&[ONE], RESERVE, &huge, at(0)).buckets[0].sent.len(), 5);
    for saved in [
        json!(null),
        json!({}),
        json!({"v": 2, "at": 0, "buckets": {}}),
        json!({"v": 1, "at": i64::MIN, "buckets": {}}),
        json!({"v": 1, "at": 0, "buckets": {"secondly": {"sent": [-1]}}}),
    ] {
        let mut pacer = Pacer::from_saved(&[ONE], RESERVE, &saved, at(0));
        assert_eq!(pacer.ready_in(at(0), &["ten_secondly"], 1), ms(1075), "{saved}");
    }
}

#[test]
fn a_clock_set_back_neither_waits_for_ever_nor_bursts() {
    let mut pacer = Pacer::new(&[TEN], RESERVE);
    assert_eq!(burst(&mut pacer, at(0), &["ten_secondly"]), 99);
    let hour = 3_600_000;
    assert_eq!(pacer.ready_in(at(1000 - hour), &["ten_secondly"], 1), ms(10_500), "as if no time had passed");
    assert_eq!(burst(&mut pacer, at(11_500 - hour), &["ten_secondly"]), 99);
    pacer.refused(at(12_000 - hour), "ten_secondly", Some(ms(60_000)));
    assert_eq!(pacer.ready_in(at(-2 * hour), &["ten_secondly"], 1), ms(60_000), "pauses move as well");

    let saved = Pacer::new(&[TEN], RESERVE).to_saved(at(hour));
    let mut pacer = Pacer::from_saved(&[TEN], RESERVE, &saved, at(0));
    assert_eq!(pacer.ready_in(at(0), &["ten_secondly"], 1), ms(0));
}

/// The provider's side: it counts arrivals over a rolling span, and over fixed windows of any phase.
fn accepts(arrivals: &[i64], spec: &BucketSpec, limit: usize) -> bool {
    let per = i64::try_from(spec.per.as_millis()).unwrap();
    let mut sorted = arrivals.to_vec();
    sorted.sort_unstable();
    // Any window, rolling or fixed, that held more than `limit` would begin at some arrival.
    sorted.windows(limit + 1).all(|span| span[limit] - span[0] >= per)
}

#[test]
fn a_strict_provider_never_refuses_and_the_budget_is_used() {
    const RUN_MS: i64 = 120_000;
    let five_minutely = BucketSpec::requests("five_minutely", 250, Duration::from_secs(30));
    for (spec, reserve, jitter_ms) in [
        (TEN, RESERVE, 500),
        (TEN, 0.0, 500),
        (ONE, RESERVE, 75),
        (ONE, 0.0, 110),
        (five_minutely, RESERVE, 500),
    ] {
        let mut random = StdRng::seed_from_u64(7);
        let mut pacer = Pacer::new(&[spec], reserve);
        let allowed = pacer.buckets[0].allowed();
        let (mut now, mut arrivals) = (0, Vec::new());
        while now < RUN_MS {
            match pacer.take(at(now), &["ten_secondly"], 1) {
                Ok(()) => arrivals.push(now + random.random_range(0..=jitter_ms)),
                Err(wait) => now += i64::try_from(wait.as_millis()).unwrap().max(1),
            }
        }
        assert!(accepts(&arrivals, &spec, allowed), "{} with reserve {reserve}", spec.name);
        let spans = RUN_MS / i64::try_from(spec.per.as_millis()).unwrap();
        let possible = usize::try_from(spans).unwrap() * allowed;
        assert!(arrivals.len() * 10 >= possible * 9, "{} of {possible}, {}", arrivals.len(), spec.name);
    }
}

proptest! {
    /// In real time, whatever the wall clock does going back, no span of the provider's holds more than is allowed,
    /// and nobody ever waits for more than a window.
    #[test]
    fn never_over_the_limit(
        limit in 1_u32..15,
        per_ms in 200_u64..8000,
        reserve in 0.0..0.9,
        steps in prop::collection::vec((0_i64..3000, 0_usize..6, prop::option::weighted(0.1, 1_i64..100_000)), 1..150),
    ) {
        let spec = BucketSpec::requests("b", limit, ms(per_ms));
        let mut pacer = Pacer::new(&[spec], reserve);
        let (allowed, window) = (pacer.buckets[0].allowed(), pacer.buckets[0].window());
        let (mut real, mut offset, mut sent) = (0, 0, Vec::new());
        for (advance, tries, back) in steps {
            real += advance;
            offset -= back.unwrap_or(0);
            for _ in 0..tries {
                let wait = pacer.ready_in(at(real + offset), &["b"], 1);
                prop_assert!(wait <= window, "{wait:?}");
                match pacer.take(at(real + offset), &["b"], 1) {
                    Ok(()) => { prop_assert!(wait.is_zero()); sent.push(real) }
                    Err(told) => prop_assert_eq!(told, wait),
                }
            }
            if back.is_some() {
                let saved = pacer.to_saved(at(real + offset));
                pacer = Pacer::from_saved(&[spec], reserve, &saved, at(real + offset));
            }
        }
        prop_assert!(accepts(&sent, &spec, allowed), "{sent:?}");
    }

    /// Waiting as long as one is told to is enough, when the clock runs as it should.
    #[test]
    fn a_wait_that_was_told_is_enough(limit in 1_u32..15, per_ms in 1_u64..8000, gaps in prop::collection::vec(0_i64..500, 1..60)) {
        let mut pacer = Pacer::new(&[BucketSpec::requests("b", limit, ms(per_ms))], 0.0);
        let mut now = at(0);
        for gap in gaps {
            now += TimeDelta::milliseconds(gap);
            if let Err(wait) = pacer.take(now, &["ten_secondly"], 1) {
                now += crate::domain::time::delta(wait);
                prop_assert_eq!(pacer.take(now, &["ten_secondly"], 1), Ok(()));
            }
        }
    }
}

/// A budget of 100 points that comes back in ten seconds, all of it ours.
fn points() -> Pacer {
    Pacer::new(&[BucketSpec::points("points", 100, ms(10_000))], 0.0)
}

#[test]
fn points_come_back_evenly() {
    let mut pacer = points();
    assert_eq!(pacer.take(at(0), &["points"], 60), Ok(()));
    assert_eq!(pacer.take(at(0), &["points"], 40), Ok(()));
    assert_eq!(pacer.take(at(0), &["points"], 10), Err(ms(1000)));
    assert_eq!(pacer.take(at(1000), &["points"], 10), Ok(()));
    // A request that is dearer than the whole budget leaves when all of it is there.
    assert_eq!(pacer.take(at(1000), &["points"], 500), Err(ms(10_000)));
    assert_eq!(pacer.take(at(11_000), &["points"], 500), Ok(()));
}

#[test]
fn what_was_not_charged_comes_back_and_what_others_spent_counts() {
    let mut pacer = points();
    pacer.take(at(0), &["points"], 100).unwrap();
    let told = Observed { limit: Some(100), remaining: Some(70), per: Some(ms(10_000)), unspent: 70 };
    pacer.observe(at(0), "points", told);
    assert_eq!(pacer.take(at(0), &["points"], 70), Ok(()));
    // Somebody else has spent what we thought was there.
    let mut pacer = points();
    pacer.observe(at(0), "points", Observed { remaining: Some(5), ..Observed::default() });
    assert_eq!(pacer.take(at(0), &["points"], 15), Err(ms(1000)));
    // The account's plan allows ten times as much.
    pacer.observe(
        at(0),
        "points",
        Observed { limit: Some(1000), per: Some(ms(1000)), ..Observed::default() },
    );
    assert_eq!(pacer.take(at(0), &["points"], 900), Ok(()));
}

/// Otherwise what was spent of the large budget would come back at the pace of the small one.
#[test]
fn a_budget_that_shrinks_lacks_no_more_than_it_holds() {
    let mut pacer = points();
    pacer.take(at(0), &["points"], 90).unwrap();
    let told = Observed { limit: Some(10), remaining: Some(10), per: Some(ms(10_000)), unspent: 0 };
    pacer.observe(at(0), "points", told);
    assert_eq!(pacer.take(at(0), &["points"], 50), Err(ms(10_000)));
    assert_eq!(pacer.take(at(10_000), &["points"], 50), Ok(()));
}

#[test]
fn the_reserve_is_left_and_spent_points_are_remembered() {
    let spec = [BucketSpec::points("points", 100, ms(10_000))];
    let mut pacer = Pacer::new(&spec, 0.1);
    assert_eq!(pacer.take(at(0), &["points"], 90), Ok(()));
    let saved = pacer.to_saved(at(0));
    let mut later = Pacer::from_saved(&spec, 0.1, &saved, at(1000));
    // Nine points a second, less what rounding up costs.
    assert!(later.take(at(1000), &["points"], 8).is_ok());
    assert!(later.take(at(1000), &["points"], 8).is_err());
}

proptest! {
    /// A provider's leaky bucket never overflows when requests leave as the pacer lets them.
    #[test]
    fn points_never_exceed_the_providers_bucket(costs in prop::collection::vec((1_u32..60, 0_i64..400), 1..200)) {
        let mut pacer = points();
        let (mut now, mut level, mut seen) = (0_i64, 0.0_f64, 0_i64);
        for (cost, pause) in costs {
            now += pause;
            while let Err(wait) = pacer.take(at(now), &["points"], cost) {
                now += i64::try_from(wait.as_millis()).unwrap().max(1);
            }
            #[expect(clippy::cast_precision_loss, reason = "a test of some seconds")]
            let passed = (now - seen) as f64 / 100.0;
            level = (level - passed).max(0.0) + f64::from(cost);
            seen = now;
            prop_assert!(level <= 100.1, "{level} points at {now} ms");
        }
    }
}

/// Spec in points: 1,000, of which 50 come back each second.
const POINTS: BucketSpec = BucketSpec::points("points", 1_000, Duration::from_secs(20));

#[test]
fn who_came_first_goes_first() {
    let mut pacer = Pacer::new(&[POINTS, ONE], 0.0);
    pacer.come(["dear", "cheap", "other"].into_iter());
    assert_eq!(pacer.take(at(0), &["points"], 900), Ok(()));
    assert_eq!(pacer.take_in_line(at(0), Some("dear"), &["points"], 400), Err(ms(6_000)));
    assert_eq!(
        pacer.take_in_line(at(0), Some("cheap"), &["points"], 50),
        Err(ms(7_000)),
        "behind the dear one"
    );
    assert_eq!(
        pacer.take_in_line(at(0), None, &["points"], 50),
        Err(ms(8_000)),
        "who has no name comes last"
    );
    assert_eq!(pacer.take_in_line(at(0), Some("other"), &["secondly"], 1), Ok(()), "another limit");
    // The next turn.
    let saved = pacer.to_saved(at(1_000));
    let mut pacer = Pacer::from_saved(&[POINTS, ONE], 0.0, &saved, at(5_000));
    assert_eq!(pacer.line().collect::<Vec<_>>(), ["dear", "cheap"]);
    pacer.come(["dear", "cheap"].into_iter());
    assert!(pacer.take_in_line(at(5_000), Some("cheap"), &["points"], 50).is_err());
    assert_eq!(pacer.take_in_line(at(6_002), Some("dear"), &["points"], 400), Ok(()));
    assert!(pacer.take_in_line(at(6_002), Some("dear"), &["points"], 1).is_err(), "it is at the end again");
    assert_eq!(pacer.line().collect::<Vec<_>>(), ["cheap", "dear"]);
    assert_eq!(pacer.take_in_line(at(7_003), Some("cheap"), &["points"], 50), Ok(()));
    assert!(
        pacer.take(at(7_100), &["points"], 1).is_ok(),
        "what is outside of the line does not wait for it"
    );
}

#[test]
fn requests_leave_permits_to_those_ahead() {
    let mut pacer = Pacer::new(&[ONE], RESERVE);
    pacer.come(["a", "b", "c", "d", "e", "f"].into_iter());
    assert_eq!(burst(&mut pacer, at(0), &["secondly"]), 4);
    for (of, wait) in [("a", 1_075), ("b", 1_075), ("a", 1_075)] {
        assert_eq!(pacer.take_in_line(at(0), Some(of), &["secondly"], 1), Err(ms(wait)), "{of}");
    }
    // Two of four permits are for those ahead.
    for (of, may) in [("c", true), ("d", true), ("e", false), ("b", true), ("a", true), ("f", false)] {
        assert_eq!(pacer.take_in_line(at(1_075), Some(of), &["secondly"], 1).is_ok(), may, "{of}");
    }
}

#[test]
fn what_those_ahead_could_have_had_is_everybodys() {
    for (bucket, points, free) in [("secondly", 1, 1_110), ("points", 600, 12_000)] {
        let mut pacer = Pacer::new(&[BucketSpec { limit: 1, ..ONE }, POINTS], 0.0);
        pacer.come(["a", "b"].into_iter());
        pacer.take(at(0), &[bucket], points).unwrap();
        assert_eq!(pacer.take_in_line(at(0), Some("a"), &[bucket], 1_000), Err(ms(free)), "{bucket}");
        assert_eq!(pacer.take_in_line(at(0), Some("b"), &[bucket], 1), Err(ms(free + 1_000)), "behind it");
        let late = pacer.take_in_line(at(13_001), Some("b"), &[bucket], 1);
        assert_eq!(late, Ok(()), "{bucket}: it has not come");
    }
}

#[test]
fn who_cannot_go_holds_nobody_up() {
    let two = [BucketSpec { limit: 2, ..ONE }];
    let waiting = || {
        let mut pacer = Pacer::new(&two, 0.0);
        pacer.come(["a", "b"].into_iter());
        pacer.take(at(0), &["secondly"], 1).unwrap();
        pacer.wait(at(0), Some("a"), &["secondly"], 1, ms(2_000));
        pacer
    };
    let may = |pacer: &mut Pacer| pacer.take_in_line(at(10), Some("b"), &["secondly"], 1).is_ok();
    assert!(!may(&mut waiting()));
    // It is not among those whose turn it is, its turn is over, or it has nothing to ask any more.
    let mut other_wave = waiting();
    other_wave.come(["b"].into_iter());
    assert!(may(&mut other_wave));
    for waits in [true, false] {
        let mut pacer = waiting();
        pacer.go("a", waits);
        assert!(may(&mut pacer), "{waits}");
        assert_eq!(pacer.line().count(), usize::from(waits), "what it is for is there still");
    }
    let saved = waiting().to_saved(at(0));
    assert!(may(&mut Pacer::from_saved(&two, 0.0, &saved, at(10))), "the next turn");
}

#[test]
fn a_place_is_kept_for_so_long() {
    for (asked, saved_for, kept) in
        [(5_999, true, true), (6_002, false, true), (60_999, false, true), (61_002, false, false)]
    {
        let mut pacer = Pacer::new(&[POINTS], 0.0);
        pacer.wait(at(0), Some("gone"), &["points"], 1_000, ms(1_000));
        let saved = pacer.to_saved(at(10));
        let mut pacer = Pacer::from_saved(&[POINTS], 0.0, &saved, at(asked));
        pacer.take(at(asked), &["points"], 500).unwrap();
        assert_eq!(pacer.take_in_line(at(asked), Some("b"), &["points"], 1).is_err(), saved_for, "{asked}");
        assert_eq!(pacer.line().any(|of| of == "gone"), kept, "{asked}");
    }
    let mut pacer = Pacer::new(&[POINTS], 0.0);
    pacer.wait(at(0), Some("gone"), &["points"], 1_000, Duration::ZERO);
    // The clock is set back by an hour.
    for (after, kept) in [(0, true), (6_000, false)] {
        let now = at(after - 3_600_000);
        pacer.take(now, &["points"], 500).unwrap();
        assert_eq!(pacer.take_in_line(now, Some("b"), &["points"], 1).is_err(), kept, "{after}");
    }
    (0..200).for_each(|of| pacer.wait(at(0), Some(&of.to_string()), &["points"], 1, ms(1)));
    assert!(pacer.line().count() <= 65, "places are few");
}
