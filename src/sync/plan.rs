//! What a turn does next. Pure.

use std::collections::{BTreeMap, BTreeSet};

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

/// The walks that are due, in two waves: the first learns what others of them need to know, as it is now. Within a stream
/// changes come first, for freshness, then the first read of everything, then archived records, then sweeps.
pub fn plan(streams: &[StreamPlan], now: DateTime<Utc>) -> [Wave; 2] {
    let ready = streams.iter().filter(|stream| stream.not_before.is_none_or(|not_before| not_before <= now));
    let due = ready.map(|stream| (stream.spec, due(stream, now))).filter(|(_, modes)| !modes.is_empty());
    let due: Vec<(&'static StreamSpec, Vec<Mode>)> = due.collect();
    let needed = due.iter().flat_map(|(spec, _)| spec.needs_facts).map(|fact| fact.taught_by);
    let needed: BTreeSet<&str> = needed.collect();
    let mut waves = [Wave::new(), Wave::new()];
    for (spec, modes) in due {
        waves[usize::from(!needed.contains(spec.name))].insert(spec.name, modes);
    }
    waves
}

/// Which of these streams lack what another should have learned.
pub fn unlearned(streams: &[StreamPlan], wave: &mut Wave, facts: &Facts) -> Wave {
    let lacks = |name: &str| {
        let spec = streams.iter().map(|stream| stream.spec).find(|spec| spec.name == name);
        spec.is_some_and(|spec| spec.needs_facts.iter().any(|fact| !facts.contains_key(fact.name)))
    };
    wave.extract_if(.., |name, _| lacks(name)).collect()
}

fn due(stream: &StreamPlan, now: DateTime<Utc>) -> Vec<Mode> {
    let is_due = |mode: &Mode| stream.walks.iter().any(|walk| walk.mode == *mode && is_due(walk, now));
    ORDER.into_iter().filter(is_due).collect()
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
        let [first, mut second] = plan(&streams, at(10));
        assert_eq!(first, Wave::from([("properties", vec![Mode::Snapshot])]));
        let tickets = Wave::from([("tickets", vec![Mode::Backfill, Mode::Archived])]);
        assert_eq!(second, tickets);
        let known = Facts::from([("ticket_properties".to_owned(), serde_json::json!([]))]);
        assert_eq!(unlearned(&streams, &mut second, &known), Wave::new());
        assert_eq!(unlearned(&streams, &mut second, &Facts::new()), tickets);
        assert_eq!(second, Wave::new());
    }

    #[test]
    fn what_is_known_is_read_again_before_what_needs_it() {
        let tickets = |due| stream("tickets", vec![(Mode::Incremental, Some(3), Some(due))], None);
        let owners = || stream("owners", vec![(Mode::Snapshot, None, Some(0))], None);
        let check = |streams: &[StreamPlan], first: &[&str], second: &[&str]| {
            let waves = plan(streams, at(10)).map(|wave| wave.into_keys().collect::<Vec<_>>());
            assert_eq!(waves, [first, second]);
        };
        let properties =
            |due, not_before| stream("properties", vec![(Mode::Snapshot, None, Some(due))], not_before);
        check(&[properties(0, None), tickets(0), owners()], &["properties"], &["owners", "tickets"]);
        check(&[properties(11, None), tickets(0), owners()], &[], &["owners", "tickets"]);
        check(&[properties(0, Some(11)), tickets(0)], &[], &["tickets"]);
        check(&[properties(0, None), tickets(11), owners()], &[], &["owners", "properties"]);
    }

    #[test]
    fn changes_come_first_once_they_have_a_bound() {
        let walks = vec![
            (Mode::Backfill, None, Some(0)),
            (Mode::Incremental, Some(3), Some(0)),
            (Mode::Archived, None, Some(11)),
        ];
        let [first, second] = plan(&[stream("tickets", walks, None)], at(10));
        assert!(first.is_empty());
        assert_eq!(second, Wave::from([("tickets", vec![Mode::Incremental, Mode::Backfill])]));
    }

    #[test]
    fn a_watermark_in_the_future_does_not_wait_for_its_time() {
        for (covered_to, due) in [(3_610, false), (3_611, true)] {
            let walks = vec![(Mode::Incremental, Some(covered_to), Some(90_000))];
            let [_, second] = plan(&[stream("tickets", walks, None)], at(10));
            assert_eq!(second.contains_key("tickets"), due, "{covered_to}");
        }
    }
}
