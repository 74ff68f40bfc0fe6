//! What a turn does next. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::spec::{Mode, StreamSpec};
use crate::domain::step::Facts;

/// What is known of a walk.
#[derive(Debug, Clone, PartialEq)]
pub struct WalkState {
    pub mode: Mode,
    pub covered_to: Option<DateTime<Utc>>,
    pub due_at: Option<DateTime<Utc>>,
}

/// What is known of a stream.
#[derive(Debug, Clone)]
pub struct StreamPlan {
    pub spec: &'static StreamSpec,
    pub not_before: Option<DateTime<Utc>>,
    pub walks: Vec<WalkState>,
}

/// Streams that can be read now, each with its walks in order.
pub type Wave = BTreeMap<&'static str, Vec<Mode>>;

/// The walks that are due, in two waves: the second needs facts that the first learns.
/// Within a stream changes come first, for freshness, then the first read of everything, then archived records, then
/// sweeps.
pub fn plan(streams: &[StreamPlan], facts: &Facts, now: DateTime<Utc>) -> [Wave; 2] {
    let mut waves = [Wave::new(), Wave::new()];
    for stream in streams {
        if stream.not_before.is_some_and(|not_before| not_before > now) {
            continue;
        }
        let due: Vec<Mode> = ORDER
            .into_iter()
            .filter(|mode| stream.walks.iter().any(|walk| walk.mode == *mode && is_due(walk, now)))
            .collect();
        if due.is_empty() {
            continue;
        }
        let known = stream.spec.needs_facts.iter().all(|fact| facts.contains_key(*fact));
        waves[usize::from(!known)].insert(stream.spec.name, due);
    }
    waves
}

const ORDER: [Mode; 5] = [Mode::Snapshot, Mode::Incremental, Mode::Backfill, Mode::Archived, Mode::Sweep];

/// Changes have no lower bound before the first read of everything has begun; until then there is nothing to walk.
fn is_due(walk: &WalkState, now: DateTime<Utc>) -> bool {
    let bounded = walk.mode != Mode::Incremental || walk.covered_to.is_some();
    bounded && (walk.due_at.is_some_and(|due_at| due_at <= now) || is_misled(walk, now))
}

/// The clock that set the watermark ran ahead, and so it did when it set the time of the next walk.
fn is_misled(walk: &WalkState, now: DateTime<Utc>) -> bool {
    const FUTURE: TimeDelta = TimeDelta::hours(1);
    walk.mode == Mode::Incremental && walk.covered_to.is_some_and(|covered_to| covered_to > now + FUTURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn stream(
        name: &str,
        walks: Vec<(Mode, Option<i64>, Option<i64>)>,
        not_before: Option<i64>,
    ) -> StreamPlan {
        let spec = crate::providers::provider("hubspot").unwrap().spec().stream(name).unwrap();
        let walks = walks
            .into_iter()
            .map(|(mode, covered_to, due_at)| WalkState {
                mode,
                covered_to: covered_to.map(at),
                due_at: due_at.map(at),
            })
            .collect();
        StreamPlan { spec, not_before: not_before.map(at), walks }
    }

    #[test]
    fn orders_walks_and_waits_for_facts() {
        let streams = [
            stream("properties", vec![(Mode::Snapshot, None, Some(0))], None),
            stream(
                "tickets",
                vec![
                    (Mode::Archived, None, Some(0)),
                    (Mode::Backfill, None, Some(0)),
                    (Mode::Incremental, None, Some(0)),
                ],
                None,
            ),
            stream("owners", vec![(Mode::Snapshot, None, Some(0))], Some(99)),
        ];
        let [first, second] = plan(&streams, &Facts::new(), at(10));
        assert_eq!(first, Wave::from([("properties", vec![Mode::Snapshot])]));
        assert_eq!(second, Wave::from([("tickets", vec![Mode::Backfill, Mode::Archived])]));
    }

    #[test]
    fn changes_come_first_once_they_have_a_bound() {
        let facts = Facts::from([("ticket_properties".to_owned(), serde_json::json!([]))]);
        let walks = vec![
            (Mode::Backfill, None, Some(0)),
            (Mode::Incremental, Some(3), Some(0)),
            (Mode::Archived, None, Some(11)),
        ];
        let [first, second] = plan(&[stream("tickets", walks, None)], &facts, at(10));
        assert_eq!(first, Wave::from([("tickets", vec![Mode::Incremental, Mode::Backfill])]));
        assert!(second.is_empty());
    }

    #[test]
    fn a_watermark_in_the_future_does_not_wait_for_its_time() {
        let facts = Facts::from([("ticket_properties".to_owned(), serde_json::json!([]))]);
        for (covered_to, due) in [(3_610, false), (3_611, true)] {
            let walks = vec![(Mode::Incremental, Some(covered_to), Some(90_000))];
            let [first, _] = plan(&[stream("tickets", walks, None)], &facts, at(10));
            assert_eq!(first.contains_key("tickets"), due, "{covered_to}");
        }
    }
}
