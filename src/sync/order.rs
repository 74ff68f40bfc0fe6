//! In which order the walks of a turn begin. Pure.
//!
//! Turns are short, and whoever comes late in one may get nothing of it. Those to whom that happened come first in the
//! next, so that none starves, however short turns are: of the walks of a stream, which go one after the other, and of the
//! streams, which share the account's limits.

use serde_json::Value;

use super::plan::Wave;
use crate::domain::spec::Mode;

/// The key beside the rate limits that one turn leaves to the next.
const KEY: &str = "unserved";
/// More are not kept: a provider has fewer walks.
const UNSERVED_MAX: usize = 128;

/// Walks that were due and have sent nothing since, those that have waited longest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unserved(Vec<String>);

impl Unserved {
    pub fn read(saved: Option<&Value>) -> Self {
        let walks = saved.and_then(|saved| saved.get(KEY)?.as_array()).into_iter().flatten();
        Self(walks.filter_map(Value::as_str).take(UNSERVED_MAX).map(str::to_owned).collect())
    }

    /// Goes beside the rate limits.
    pub fn write(&self, saved: &mut Value) {
        if let Some(saved) = saved.as_object_mut().filter(|_| !self.0.is_empty()) {
            saved.insert(KEY.to_owned(), self.0.iter().map(String::as_str).collect());
        }
    }

    /// A walk that was due has sent something, or has not.
    pub fn note(&mut self, stream: &str, mode: Mode, served: bool) {
        let name = name(stream, mode);
        if served {
            self.0.retain(|known| *known != name);
        } else if !self.0.contains(&name) && self.0.len() < UNSERVED_MAX {
            self.0.push(name);
        }
    }

    fn place(&self, stream: &str, mode: Mode) -> usize {
        let name = name(stream, mode);
        self.0.iter().position(|known| *known == name).unwrap_or(usize::MAX)
    }

    /// The streams of a wave, each with its walks. `line`: streams that wait for a limit.
    pub fn order<'a>(
        &self,
        wave: Wave,
        line: impl Iterator<Item = &'a str>,
    ) -> Vec<(&'static str, Vec<Mode>)> {
        let line: Vec<&str> = line.collect();
        let mut streams: Vec<_> = wave.into_iter().collect();
        for (stream, modes) in &mut streams {
            modes.sort_by_key(|mode| self.place(stream, *mode));
        }
        streams.sort_by_key(|(stream, modes)| {
            let waits = line.iter().position(|known| known == stream).unwrap_or(usize::MAX);
            (waits, modes.first().map_or(usize::MAX, |mode| self.place(stream, *mode)))
        });
        streams
    }
}

fn name(stream: &str, mode: Mode) -> String {
    format!("{stream}/{}", mode.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use chrono::{DateTime, TimeDelta, Utc};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::spec::BucketSpec;
    use crate::domain::time::delta;
    use crate::http::pace::Pacer;

    #[test]
    fn who_got_nothing_comes_first() {
        use Mode::{Backfill, Incremental, Sweep};
        let wave = || {
            Wave::from([
                ("clients", vec![Incremental]),
                ("jobs", vec![Incremental, Sweep]),
                ("visits", vec![Incremental, Backfill, Sweep]),
            ])
        };
        let mut unserved = Unserved::default();
        let order = |unserved: &Unserved, line: &[&str]| {
            let order = unserved.order(wave(), line.iter().copied()).into_iter();
            order.map(|(stream, modes)| (stream, modes[0], modes.len())).collect::<Vec<_>>()
        };
        let plain = [("clients", Incremental, 1), ("jobs", Incremental, 2), ("visits", Incremental, 3)];
        assert_eq!(order(&unserved, &[]), plain);
        for mode in [Sweep, Backfill, Sweep] {
            unserved.note("visits", mode, false);
        }
        let first = [("visits", Sweep, 3), ("clients", Incremental, 1), ("jobs", Incremental, 2)];
        assert_eq!(order(&unserved, &[]), first);
        let waits = [("jobs", Incremental, 2), ("visits", Sweep, 3), ("clients", Incremental, 1)];
        assert_eq!(order(&unserved, &["properties", "jobs"]), waits, "who waits for a limit comes before");
        unserved.note("visits", Sweep, true);
        assert_eq!(order(&unserved, &[])[0], ("visits", Backfill, 3));
        let mut saved = json!({"v": 1});
        unserved.write(&mut saved);
        assert_eq!(saved, json!({"v": 1, "unserved": ["visits/backfill"]}));
        assert_eq!(Unserved::read(Some(&saved)), unserved);
        for none in [None, Some(&json!({})), Some(&json!({"unserved": 7}))] {
            assert_eq!(Unserved::read(none), Unserved::default());
        }
    }

    const STREAMS: [&str; 3] = ["a", "b", "c"];
    const MODES: [Mode; 3] = [Mode::Incremental, Mode::Backfill, Mode::Sweep];
    const POINTS: BucketSpec = BucketSpec::points("points", 1_000, Duration::from_secs(20));
    const GUARD: BucketSpec = BucketSpec::requests("requests", 40, Duration::from_secs(20));
    const DEAR: [BucketSpec; 2] = [POINTS, GUARD];
    const SLOW: [BucketSpec; 1] = [BucketSpec::requests("requests", 1, Duration::from_secs(1))];

    /// What a request of a walk costs, and how many the walk has until it closes. It is due again at once.
    type Walk = (u32, u32);

    struct Play {
        buckets: &'static [BucketSpec],
        /// Streams of which so many begin before the others.
        first: usize,
        length: TimeDelta,
        takes: TimeDelta,
    }

    /// A stream with its walks, when it asks next, and whether the walk at hand has sent something.
    type Ask = (&'static str, Vec<Mode>, DateTime<Utc>, bool);

    impl Play {
        /// Plays turns; returns how many requests of each walk have left.
        fn run(&self, walks: &[Vec<Walk>], span: TimeDelta) -> BTreeMap<String, u32> {
            let start = DateTime::from_timestamp(1_000_000, 0).unwrap();
            let mut now = start;
            let mut saved = Pacer::new(self.buckets, 0.0).to_saved(now);
            let mut not_before = vec![now; walks.len()];
            let mut left: Vec<Vec<u32>> =
                walks.iter().map(|of| of.iter().map(|(_, requests)| *requests).collect()).collect();
            let mut sent = BTreeMap::new();
            while now - start < span {
                now = now.max(not_before.iter().min().copied().unwrap());
                let mut pacer = Pacer::from_saved(self.buckets, 0.0, &saved, now);
                let mut unserved = Unserved::read(Some(&saved));
                let due: Vec<usize> = (0..walks.len()).filter(|at| not_before[*at] <= now).collect();
                let end = now + self.length;
                let (first, second) = due.iter().partition::<Vec<usize>, _>(|at| **at < self.first);
                for wave in [first, second] {
                    let wave: Wave =
                        wave.iter().map(|at| (STREAMS[*at], MODES[..walks[*at].len()].to_vec())).collect();
                    pacer.come(wave.keys().copied());
                    let asks = unserved.order(wave, pacer.line()).into_iter();
                    let mut asks: Vec<Ask> =
                        asks.map(|(stream, modes)| (stream, modes, now, false)).collect();
                    while let Some(ask) =
                        asks.iter_mut().filter(|ask| !ask.1.is_empty()).min_by_key(|ask| ask.2)
                    {
                        let place = STREAMS.iter().position(|known| *known == ask.0).unwrap();
                        let name = name(ask.0, ask.1[0]);
                        let of = (&walks[place][..], &mut left[place]);
                        match self.ask(&mut pacer, &mut unserved, ask, of, end) {
                            None => {
                                *sent.entry(name).or_default() += 1;
                                // What others need to know is read once in a while.
                                if place < self.first && ask.1.is_empty() {
                                    not_before[place] = ask.2 + TimeDelta::minutes(1);
                                }
                            }
                            Some(until) => not_before[place] = until,
                        }
                    }
                    now = asks.iter().map(|(_, _, at, _)| *at).max().unwrap_or(now).max(now);
                }
                now += self.takes;
                saved = pacer.to_saved(now);
                unserved.write(&mut saved);
            }
            sent
        }

        /// One request of a stream, or a wait, or the end of its turn: not before when the next can be.
        fn ask(
            &self,
            pacer: &mut Pacer,
            unserved: &mut Unserved,
            ask: &mut Ask,
            (walks, left): (&[Walk], &mut Vec<u32>),
            end: DateTime<Utc>,
        ) -> Option<DateTime<Utc>> {
            let (stream, modes, at, served) = ask;
            let mode = modes[0];
            let walk = MODES.iter().position(|known| *known == mode).unwrap();
            let (points, buckets) = (walks[walk].0, ["points", "requests"]);
            let buckets = &buckets[2 - self.buckets.len()..];
            let wait = if *at >= end {
                pacer.wait(*at, Some(stream), buckets, points, Duration::ZERO);
                TimeDelta::zero()
            } else if let Err(wait) = pacer.take_in_line(*at, Some(stream), buckets, points) {
                delta(wait)
            } else {
                *at += self.takes;
                *served = true;
                left[walk] -= 1;
                if left[walk] == 0 {
                    left[walk] = walks[walk].1;
                    unserved.note(stream, mode, true);
                    modes.remove(0);
                    *served = false;
                }
                if modes.is_empty() {
                    pacer.go(stream, false);
                }
                return None;
            };
            if *at < end && *at + wait <= end {
                // To be asked again.
                *at += wait;
                return Some(*at - self.length);
            }
            unserved.note(stream, mode, *served);
            modes[1..].iter().for_each(|mode| unserved.note(stream, *mode, false));
            modes.clear();
            pacer.go(stream, true);
            Some(*at + wait)
        }
    }

    /// The first wave is short: what it reads is small, and three requests leave something of the shortest slow turn.
    fn short(walks: Vec<Vec<Walk>>, first: usize) -> Vec<Vec<Walk>> {
        let ends = |(points, _)| (points, 1);
        let shorten = |(at, of): (usize, Vec<Walk>)| {
            if at < first { of.into_iter().map(ends).collect() } else { of }
        };
        walks.into_iter().enumerate().map(shorten).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_walk_of_every_stream_proceeds(
            walks in proptest::collection::vec(
                proptest::collection::vec((1_u32..=1_000, prop_oneof![1_u32..4, Just(100_000)]), 1..=3),
                1..=3,
            ),
            first in 0_usize..=1,
            length_ms in 300_i64..4_000,
            takes_ms in 10_i64..250,
        ) {
            let ms = TimeDelta::milliseconds;
            let walks = short(walks, first);
            // All of them together cost 9,000 points at the most, which takes three minutes to come back.
            let play = Play { buckets: &DEAR, first, length: ms(length_ms), takes: ms(takes_ms) };
            let sent = play.run(&walks, ms(1_800_000));
            for (stream, of) in STREAMS.iter().zip(&walks) {
                for mode in &MODES[..of.len()] {
                    let requests = sent.get(&name(stream, *mode)).copied().unwrap_or(0);
                    prop_assert!(requests >= 3, "{stream}/{mode:?} has sent {requests}: {sent:?}");
                }
            }
        }

        /// One request in a second: a place of somebody who cannot go takes nothing of that.
        #[test]
        fn a_slow_limit_is_used(
            walks in proptest::collection::vec(
                proptest::collection::vec((Just(1_u32), prop_oneof![1_u32..9, Just(100_000)]), 1..=3),
                2..=3,
            ),
            first in 0_usize..=1,
            length_ms in 5_000_i64..60_000,
            takes_ms in 10_i64..250,
        ) {
            let ms = TimeDelta::milliseconds;
            let walks = short(walks, first);
            let play = Play { buckets: &SLOW, first, length: ms(length_ms), takes: ms(takes_ms) };
            let sent = play.run(&walks, ms(600_000));
            let total: u32 = sent.values().sum();
            // 540 fit, less what is lost between turns.
            prop_assert!(total >= 380, "{total} in ten minutes: {sent:?}");
            for stream in &STREAMS[first..walks.len()] {
                let of: u32 = MODES.iter().filter_map(|mode| sent.get(&name(stream, *mode))).sum();
                prop_assert!(of >= 4, "{stream} has sent {of}: {sent:?}");
            }
        }
    }
}
