//! What a turn does next. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::domain::spec::{AHEAD_MAX, Mode, PAUSE_MAX, Rhythm, StreamSpec};
use crate::domain::step::Facts;
use crate::domain::time::delta;

/// What is known of a walk.
#[derive(Debug, Clone, PartialEq)]
pub struct WalkState {
    pub mode: Mode,
    pub covered_to: Option<DateTime<Utc>>,
    pub due_at: Option<DateTime<Utc>>,
    /// It did not close the last time.
    pub fails: bool,
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
pub fn plan(streams: &[StreamPlan], rhythm: Rhythm, now: DateTime<Utc>) -> [Wave; 2] {
    let longest = delta(PAUSE_MAX + AHEAD_MAX);
    // A pause that is longer than any was set by a clock that ran ahead.
    let is_past = |until: DateTime<Utc>| until <= now || until > now + longest;
    let ready = streams.iter().filter(|stream| stream.not_before.is_none_or(is_past));
    let due =
        ready.map(|stream| (stream.spec, due(stream, rhythm, now))).filter(|(_, modes)| !modes.is_empty());
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

fn due(stream: &StreamPlan, rhythm: Rhythm, now: DateTime<Utc>) -> Vec<Mode> {
    let is_due =
        |mode: &Mode| stream.walks.iter().any(|walk| walk.mode == *mode && is_due(walk, rhythm, now));
    ORDER.into_iter().filter(is_due).collect()
}

const ORDER: [Mode; 5] = [Mode::Snapshot, Mode::Incremental, Mode::Backfill, Mode::Archived, Mode::Sweep];

/// Changes have no lower bound before the first read of everything has begun; until then there is nothing to walk.
fn is_due(walk: &WalkState, rhythm: Rhythm, now: DateTime<Utc>) -> bool {
    let bounded = walk.mode != Mode::Incremental || walk.covered_to.is_some();
    bounded && (walk.due_at.is_some_and(|due_at| due_at <= now) || is_misled(walk, rhythm, now))
}

/// The clock that set the watermark or the time of the next walk ran ahead. `db::streams::due` says the same.
fn is_misled(walk: &WalkState, rhythm: Rhythm, now: DateTime<Utc>) -> bool {
    let lies_ahead = |at: Option<DateTime<Utc>>, by: Duration| at.is_some_and(|at| at > now + delta(by));
    let watermark = matches!(walk.mode, Mode::Incremental | Mode::Snapshot);
    (watermark && lies_ahead(walk.covered_to, AHEAD_MAX))
        || lies_ahead(walk.due_at, rhythm.due_within(walk.mode, walk.fails))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    const RHYTHM: Rhythm = Rhythm {
        poll: Duration::from_mins(5),
        archived: Duration::from_hours(1),
        sweep: Duration::from_hours(48),
    };

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
                fails: false,
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
        let [first, mut second] = plan(&streams, RHYTHM, at(10));
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
            let waves = plan(streams, RHYTHM, at(10)).map(|wave| wave.into_keys().collect::<Vec<_>>());
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
        let [first, second] = plan(&[stream("tickets", walks, None)], RHYTHM, at(10));
        assert!(first.is_empty());
        assert_eq!(second, Wave::from([("tickets", vec![Mode::Incremental, Mode::Backfill])]));
    }

    #[test]
    fn a_time_that_a_clock_set_which_ran_ahead_is_not_waited_for() {
        const DAY: i64 = 86_400;
        for (mode, covered_to, due_at, fails, due) in [
            (Mode::Incremental, 3_610, 90, false, false),
            (Mode::Incremental, 3_611, 90, false, true),
            (Mode::Snapshot, 3_611, 90, false, true),
            // The others are read from elsewhere, or close later than they began.
            (Mode::Sweep, 3_611, 90, false, false),
            (Mode::Archived, 3_611, 90, false, false),
            (Mode::Snapshot, 3, 10 + 3_600 + 300, false, false),
            (Mode::Snapshot, 3, 11 + 3_600 + 300, false, true),
            (Mode::Archived, 3, 10 + 3_600 + 3_600, false, false),
            (Mode::Archived, 3, 11 + 3_600 + 3_600, false, true),
            (Mode::Sweep, 3, 10 + 3_600 + 2 * DAY, false, false),
            (Mode::Sweep, 3, 11 + 3_600 + 2 * DAY, false, true),
            (Mode::Backfill, 3, 10 + 3_600 + DAY, true, false),
            (Mode::Backfill, 3, 11 + 3_600 + DAY, true, true),
            (Mode::Snapshot, 3, 10 + 3_600 + DAY, true, false),
        ] {
            let mut stream = stream("tickets", vec![(mode, Some(covered_to), Some(due_at))], None);
            stream.walks[0].fails = fails;
            let [_, second] = plan(&[stream], RHYTHM, at(10));
            assert_eq!(second.contains_key("tickets"), due, "{mode:?} {covered_to} {due_at}");
        }
        for (not_before, due) in
            [(10, true), (11, false), (10 + 3_600 + DAY, false), (11 + 3_600 + DAY, true)]
        {
            let walks = vec![(Mode::Incremental, Some(3), Some(3))];
            let [_, second] = plan(&[stream("tickets", walks, Some(not_before))], RHYTHM, at(10));
            assert_eq!(second.contains_key("tickets"), due, "{not_before}");
        }
    }
}
