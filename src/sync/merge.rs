//! Which version of a record wins. Pure.
//!
//! Versions are ordered by `(source_updated_at, request sent at)`. An older version never overwrites a newer one; an
//! unchanged one costs no write; a live one clears a deletion only if its request was sent later; a record that was
//! merged away stays so; when a record went is what the provider says of it, as soon as it does.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::domain::record::{Deletion, Tombstone};

/// What the mirror holds of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub updated_at: Option<DateTime<Utc>>,
    pub sent_at: DateTime<Utc>,
    pub hash: [u8; 32],
    pub deleted_at: Option<DateTime<Utc>>,
    pub merged: bool,
}

/// A version that came in.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    pub updated_at: Option<DateTime<Utc>>,
    pub sent_at: DateTime<Utc>,
    pub hash: [u8; 32],
    pub deletion: Option<Deletion>,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The mirror is at least as new.
    Keep,
    /// Write the row.
    Write,
    /// Mark the row that is held as gone, or as gone since another time, and leave the rest of it.
    Bury,
}

/// Decides about a version of a record.
pub fn decide(held: Option<&Held>, version: &Version) -> Decision {
    let Some(held) = held else { return Decision::Write };
    if held.merged {
        return Decision::Keep;
    }
    let newer = is_newer(version.updated_at, held.updated_at);
    let sent_later = version.sent_at >= held.sent_at;
    match (&version.deletion, held.deleted_at) {
        (Some(_), _) if newer => Decision::Write,
        // It went, and came back since: a feed may repeat that, too.
        (Some(deletion), _) if is_newer(held.updated_at, as_of(version, deletion)) => Decision::Keep,
        // What has no time of its own, or did not move it, may have changed all the same.
        (Some(_), _)
            if sent_later && version.hash != held.hash && !is_newer(held.updated_at, version.updated_at) =>
        {
            Decision::Write
        }
        (Some(deletion), known) => {
            if sent_later && known.is_none_or(|known| corrects(deletion, known)) {
                Decision::Bury
            } else {
                Decision::Keep
            }
        }
        // Also for a record that is gone: a feed may repeat what it was before it went.
        (None, _) if is_newer(held.updated_at, version.updated_at) => Decision::Keep,
        // Restoring a record need not move its modification time, so only the time of asking counts.
        (None, Some(_)) => {
            if version.sent_at > held.sent_at {
                Decision::Write
            } else {
                Decision::Keep
            }
        }
        (None, None) if !newer && !sent_later => Decision::Keep,
        (None, None) => {
            if version.hash == held.hash {
                Decision::Keep
            } else {
                Decision::Write
            }
        }
    }
}

/// As of when a record is told to be gone: a provider may leave the time of its last change as it was.
fn as_of(version: &Version, deletion: &Deletion) -> Option<DateTime<Utc>> {
    let told = deletion.told.then_some(deletion.at);
    version.updated_at.map(|updated_at| told.map_or(updated_at, |at| at.max(updated_at)))
}

/// Decides about a proof of deletion.
pub fn decide_tombstone(held: Option<&Held>, tombstone: &Tombstone) -> Decision {
    // A record that the mirror never held is not made up from its tombstone.
    let Some(held) = held else { return Decision::Keep };
    let merges = tombstone.merged_into.is_some() && !held.merged;
    let proves = held.deleted_at.is_none_or(|known| !held.merged && corrects(&tombstone.deletion, known));
    if merges || (proves && tombstone.sent_at >= held.sent_at) { Decision::Bury } else { Decision::Keep }
}

/// Whether the provider says of a record that is known to be gone when it went: what is held may be when we noticed.
fn corrects(deletion: &Deletion, known: DateTime<Utc>) -> bool {
    deletion.told && deletion.at != known
}

/// Unknown times are neither newer nor older than any.
fn is_newer(one: Option<DateTime<Utc>>, other: Option<DateTime<Utc>>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one > other)
}

/// What to write so that a page's events, in their order, are in the mirror; each record once.
#[derive(Debug, Clone, PartialEq)]
pub enum Write<R> {
    Row(R, Option<Deletion>),
    Burial(Tombstone),
}

/// Folds the events of one or more pages over what is held.
#[derive(Debug)]
pub struct Fold<R> {
    held: BTreeMap<String, Held>,
    before: BTreeMap<String, bool>,
    writes: BTreeMap<String, Write<R>>,
}

/// How the number of living and of deleted rows changes, and what is newly gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Balance {
    pub living: i64,
    pub deleted: i64,
    pub newly_deleted: i64,
}

impl<R> Fold<R> {
    pub fn new(held: BTreeMap<String, Held>) -> Self {
        let before = held.iter().map(|(id, held)| (id.clone(), held.deleted_at.is_some())).collect();
        Self { held, before, writes: BTreeMap::new() }
    }

    pub fn record(&mut self, id: &str, version: Version, row: R) {
        let decision = decide(self.held.get(id), &version);
        match (decision, version.deletion) {
            (Decision::Keep, _) => {}
            (Decision::Bury, Some(deletion)) => {
                let (sent_at, id) = (version.sent_at, id.to_owned());
                self.bury(Tombstone { id, deletion, merged_into: None, sent_at });
            }
            (_, deletion) => {
                let held = Held {
                    updated_at: version.updated_at,
                    sent_at: version.sent_at,
                    hash: version.hash,
                    deleted_at: deletion.as_ref().map(|deletion| deletion.at),
                    merged: false,
                };
                self.held.insert(id.to_owned(), held);
                self.writes.insert(id.to_owned(), Write::Row(row, deletion));
            }
        }
    }

    pub fn tombstone(&mut self, tombstone: Tombstone) {
        if decide_tombstone(self.held.get(&tombstone.id), &tombstone) == Decision::Bury {
            self.bury(tombstone);
        }
    }

    /// Both for a row that is held and for one that an earlier event of this page is about to write.
    fn bury(&mut self, mut tombstone: Tombstone) {
        let Some(held) = self.held.get_mut(&tombstone.id) else { return };
        let known = held.deleted_at.filter(|_| !tombstone.deletion.told);
        held.deleted_at = known.or(Some(tombstone.deletion.at));
        held.sent_at = held.sent_at.max(tombstone.sent_at);
        held.merged |= tombstone.merged_into.is_some();
        match self.writes.get_mut(&tombstone.id) {
            Some(Write::Row(_, deletion)) if tombstone.merged_into.is_none() => {
                *deletion = Some(tombstone.deletion);
            }
            // The row is written first and then buried: `merged_into` is no column that records bring.
            Some(Write::Row(..)) => {
                self.writes.insert(format!("{}\u{0}", tombstone.id), Write::Burial(tombstone));
            }
            Some(Write::Burial(before)) => {
                if !tombstone.deletion.told {
                    (tombstone.deletion.at, tombstone.deletion.told) =
                        (before.deletion.at, before.deletion.told);
                }
                *before = tombstone;
            }
            None => {
                self.writes.insert(tombstone.id.clone(), Write::Burial(tombstone));
            }
        }
    }

    /// What to write, and what that does to the counts.
    pub fn finish(self) -> (Vec<Write<R>>, Balance) {
        let mut balance = Balance::default();
        for (id, held) in &self.held {
            let before = self.before.get(id).copied();
            balance.living += i64::from(held.deleted_at.is_none()) - i64::from(before == Some(false));
            balance.deleted += i64::from(held.deleted_at.is_some()) - i64::from(before == Some(true));
            balance.newly_deleted += i64::from(held.deleted_at.is_some() && before == Some(false));
        }
        (self.writes.into_values().collect(), balance)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn held(updated: i64, sent: i64, hash: u8, deleted: bool) -> Held {
        Held {
            updated_at: Some(at(updated)),
            sent_at: at(sent),
            hash: [hash; 32],
            deleted_at: deleted.then(|| at(sent)),
            merged: false,
        }
    }

    fn version(updated: i64, sent: i64, hash: u8, deleted: bool) -> Version {
        let deletion = deleted.then(|| Deletion { at: at(sent), told: false, evidence: "flag".into() });
        Version { updated_at: Some(at(updated)), sent_at: at(sent), hash: [hash; 32], deletion }
    }

    #[test]
    fn versions() {
        use Decision::{Bury, Keep, Write};
        let live = held(10, 100, 1, false);
        let gone = held(10, 100, 1, true);
        for (held, version, expected) in [
            (None, version(1, 1, 1, false), Write),
            (None, version(1, 1, 1, true), Write),
            (Some(&live), version(11, 101, 2, false), Write),
            (Some(&live), version(11, 99, 2, false), Write),
            (Some(&live), version(10, 101, 1, false), Keep),
            (Some(&live), version(10, 101, 2, false), Write),
            (Some(&live), version(10, 99, 2, false), Keep),
            (Some(&live), version(9, 200, 2, false), Keep),
            (Some(&live), version(10, 101, 1, true), Bury),
            (Some(&live), version(10, 101, 2, true), Write),
            (Some(&live), version(12, 101, 2, true), Write),
            (Some(&live), version(10, 99, 2, true), Keep),
            (Some(&live), version(9, 200, 2, true), Keep),
            (Some(&gone), version(10, 101, 2, true), Write),
            (Some(&gone), version(9, 200, 2, true), Keep),
            (Some(&gone), version(10, 101, 1, false), Write),
            (Some(&gone), version(10, 100, 1, false), Keep),
            (Some(&gone), version(10, 99, 1, false), Keep),
            (Some(&gone), version(9, 200, 2, false), Keep),
            (Some(&gone), version(10, 101, 1, true), Keep),
        ] {
            assert_eq!(decide(held, &version), expected, "{held:?} {version:?}");
        }
        let merged = Held { merged: true, ..gone };
        assert_eq!(decide(Some(&merged), &version(99, 999, 9, false)), Keep);
    }

    /// A page may leave the time of a record's last change out.
    #[test]
    fn a_version_without_a_time_and_what_comes_after_it() {
        use Decision::{Bury, Keep, Write};
        for is_gone in [false, true] {
            let timed = held(10, 100, 1, is_gone);
            let bare = Held { updated_at: None, ..timed.clone() };
            for deletes in [false, true] {
                let version = |sent, hash| version(12, sent, hash, deletes);
                let untimed = |sent, hash| Version { updated_at: None, ..version(sent, hash) };
                for (held, version) in
                    [(&timed, untimed(101, 2)), (&bare, version(101, 2)), (&bare, untimed(101, 2))]
                {
                    assert_eq!(decide(Some(held), &version), Write, "{held:?} {version:?}");
                }
                let older = decide(Some(&bare), &version(99, 2));
                assert_eq!(older, Keep, "{bare:?}");
                let same = decide(Some(&bare), &untimed(101, 1));
                let expected = match (is_gone, deletes) {
                    (false, true) => Bury,
                    (true, false) => Write,
                    _ => Keep,
                };
                assert_eq!(same, expected, "{bare:?}");
            }
        }
    }

    #[test]
    fn a_deletion_is_as_new_as_the_provider_says() {
        let live = held(10, 100, 1, false);
        for (deleted_s, expected) in [(12, Decision::Bury), (9, Decision::Keep)] {
            let deletion = Deletion { at: at(deleted_s), told: true, evidence: "archived".into() };
            let version = Version { deletion: Some(deletion), ..version(8, 101, 2, false) };
            assert_eq!(decide(Some(&live), &version), expected, "{deleted_s}");
        }
    }

    #[test]
    fn an_unknown_record_is_not_made_up_from_a_tombstone() {
        let mut fold: Fold<()> = Fold::new(BTreeMap::new());
        fold.tombstone(tombstone("1", 5, None));
        assert_eq!(fold.finish(), (vec![], Balance::default()));
    }

    #[test]
    fn when_a_record_went_is_what_the_provider_says() {
        let told = |second, sent| {
            let deletion = Deletion { at: at(second), told: true, evidence: "flag".into() };
            Tombstone { deletion, ..tombstone("1", sent, None) }
        };
        let gone = held(10, 100, 1, true);
        let merged = Held { merged: true, ..gone.clone() };
        for (held, tombstone, expected) in [
            (&gone, tombstone("1", 150, None), Decision::Keep),
            (&gone, told(90, 150), Decision::Bury),
            (&gone, told(100, 150), Decision::Keep),
            (&gone, told(90, 50), Decision::Keep),
            (&merged, told(90, 150), Decision::Keep),
        ] {
            assert_eq!(decide_tombstone(Some(held), &tombstone), expected, "{held:?} {tombstone:?}");
            let version = Version { deletion: Some(tombstone.deletion), ..version(10, 0, 1, true) };
            let version = Version { sent_at: tombstone.sent_at, ..version };
            assert_eq!(decide(Some(held), &version), expected, "{held:?} {version:?}");
        }
        // What a guess says of the same page takes nothing of it away, whichever comes first.
        for events in
            [[told(90, 150), tombstone("1", 160, Some("2"))], [tombstone("1", 150, None), told(90, 160)]]
        {
            let mut fold: Fold<()> = Fold::new([("1".to_owned(), held(10, 100, 1, false))].into());
            for event in events {
                fold.tombstone(event);
            }
            assert_eq!(fold.held["1"].deleted_at, Some(at(90)));
            let (writes, balance) = fold.finish();
            assert!(matches!(&writes[..], [Write::Burial(t)] if t.deletion.at == at(90) && t.deletion.told));
            assert_eq!(balance, Balance { living: -1, deleted: 1, newly_deleted: 1 });
        }
    }

    #[test]
    fn a_row_and_its_merge_in_one_page() {
        let mut fold = Fold::new(BTreeMap::new());
        fold.record("1", version(1, 1, 1, false), "row");
        fold.tombstone(tombstone("1", 1, Some("2")));
        let (writes, balance) = fold.finish();
        assert!(matches!(writes[0], Write::Row("row", None)), "{writes:?}");
        assert!(matches!(&writes[1], Write::Burial(t) if t.merged_into.as_deref() == Some("2")));
        assert_eq!(balance, Balance { living: 0, deleted: 1, newly_deleted: 0 });
    }

    fn tombstone(id: &str, sent: i64, merged_into: Option<&str>) -> Tombstone {
        Tombstone {
            id: id.into(),
            deletion: Deletion { at: at(sent), told: false, evidence: "gone".into() },
            merged_into: merged_into.map(str::to_owned),
            sent_at: at(sent),
        }
    }

    proptest! {
        /// Whatever comes in whatever order, the newest modification is held, and the counts are those of the rows.
        #[test]
        fn the_newest_wins_in_any_order(
            events in prop::collection::vec((0u8..4, 0i64..6, 0i64..6, 0u8..3, prop::bool::ANY), 1..40)
        ) {
            let mut fold = Fold::new(BTreeMap::new());
            let mut newest: BTreeMap<String, i64> = BTreeMap::new();
            for (id, updated, sent, hash, deleted) in &events {
                let id = id.to_string();
                // Of one content there is one modification time: the hash covers it.
                let hash = u8::try_from(*updated).unwrap() * 3 + hash;
                fold.record(&id, version(*updated, *sent, hash, *deleted), ());
                let entry = newest.entry(id).or_insert(*updated);
                *entry = (*entry).max(*updated);
            }
            let living = fold.held.values().filter(|held| held.deleted_at.is_none()).count();
            for (id, held) in &fold.held {
                let wanted = at(newest[id]);
                // A live version with an older modification may win over a deletion only, by being asked for later.
                prop_assert!(held.updated_at == Some(wanted) || events.iter().any(|event| event.4));
            }
            let (_, balance) = fold.finish();
            prop_assert_eq!(balance.living, i64::try_from(living).unwrap());
        }

        /// Taking the same page twice changes nothing the second time.
        #[test]
        fn a_page_read_again_writes_nothing(
            events in prop::collection::vec((0u8..4, 0i64..6, 1i64..6, 0u8..3), 1..20)
        ) {
            let mut fold = Fold::new(BTreeMap::new());
            for (id, updated, sent, hash) in &events {
                fold.record(&id.to_string(), version(*updated, *sent, *hash, false), ());
            }
            let held = fold.held.clone();
            let mut again: Fold<()> = Fold::new(held.clone());
            for (id, held) in &held {
                let same = Version {
                    updated_at: held.updated_at, sent_at: held.sent_at, hash: held.hash, deletion: None,
                };
                again.record(id, same, ());
            }
            prop_assert_eq!(again.finish(), (vec![], Balance::default()));
        }
    }
}
