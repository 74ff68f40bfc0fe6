//! Records of one kind, rendered, in the order of their ids and in that of their feed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::sandbox::world::write_iso;

/// ServiceTitan's clock ticks ten million times a second: times carry up to seven digits of a second.
pub const TICKS_PER_MS: i64 = 10_000;
const TICKS_PER_SECOND: i64 = 10_000_000;
/// Every so many rows of a seeded feed stand before their elder: order is usual there, not promised.
const DISORDER_EVERY: usize = 5;

/// One record as its feed sends it.
#[derive(Debug, Clone)]
pub struct Row {
    pub id: u64,
    /// Its place in the feed; it moves to the end with every change.
    pub place: u64,
    /// When the change was made, by the server's clock: what the feed's lag is counted from.
    pub changed_ms: i64,
    /// `modifiedOn` (`createdOn` where there is none), in ticks since 1970.
    pub modified: i64,
    pub active: bool,
    /// JSON. `active` is the last member.
    pub body: Box<str>,
}

impl Row {
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.body).expect("rows are rendered from JSON")
    }

    /// As the list sends it, which for some kinds is without `active`.
    pub fn listed(&self, with_active: bool) -> String {
        match (with_active, self.body.rfind(",\"active\":")) {
            (false, Some(at)) => format!("{}}}", &self.body[..at]),
            _ => self.body.to_string(),
        }
    }
}

#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<u64, Row>,
    feed: BTreeMap<u64, u64>,
    /// Records that are gone without a trace.
    pub removed: Vec<u64>,
}

impl Table {
    /// A table of rows whose places are still to be given.
    pub fn seeded(mut rows: Vec<Row>) -> Self {
        rows.sort_by_key(|row| (row.modified, row.id));
        for at in (DISORDER_EVERY..rows.len()).step_by(DISORDER_EVERY) {
            rows.swap(at - 1, at);
        }
        let mut table = Self::default();
        for row in rows {
            table.put(row);
        }
        table
    }

    /// Writes a record, at the end of the feed.
    pub fn put(&mut self, mut row: Row) {
        row.place = self.feed.last_key_value().map_or(1, |(place, _)| place + 1);
        self.feed.insert(row.place, row.id);
        if let Some(before) = self.rows.insert(row.id, row) {
            self.feed.remove(&before.place);
        }
    }

    pub fn get(&self, id: u64) -> Option<&Row> {
        self.rows.get(&id)
    }

    /// Removes a record without a trace. Says whether there was one.
    pub fn remove(&mut self, id: u64) -> bool {
        let Some(row) = self.rows.remove(&id) else { return false };
        self.feed.remove(&row.place);
        self.removed.push(id);
        true
    }

    pub fn last_id(&self) -> u64 {
        self.rows.last_key_value().map_or(0, |(id, _)| *id)
    }

    /// By id.
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = &Row> {
        self.rows.values()
    }

    /// By place in the feed, from `place` on.
    pub fn feed_from(&self, place: u64) -> impl Iterator<Item = &Row> {
        self.feed.range(place..).filter_map(|(_, id)| self.rows.get(id))
    }

    /// The first place of the feed whose record was modified at `ticks` or later.
    pub fn place_of(&self, ticks: i64) -> u64 {
        let first = self.feed_from(0).find(|row| row.modified >= ticks).map(|row| row.place);
        first.unwrap_or_else(|| self.feed.last_key_value().map_or(0, |(place, _)| place + 1))
    }
}

/// `2026-05-04T16:20:11.1234567Z`, without zeros at the end of the fraction.
pub fn write_ticks(ticks: i64) -> String {
    let (seconds, fraction) = (ticks.div_euclid(TICKS_PER_SECOND), ticks.rem_euclid(TICKS_PER_SECOND));
    let mut out = String::with_capacity(28);
    write_iso(&mut out, seconds * 1000);
    if fraction > 0 {
        out.pop();
        let digits = format!(".{fraction:07}");
        out.push_str(digits.trim_end_matches('0'));
        out.push('Z');
    }
    out
}

/// The other way round; dates and offsets are understood too, and what has no offset is UTC.
pub fn read_ticks(text: &str) -> Option<i64> {
    let text = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = chrono::DateTime::parse_from_rfc3339(&text)
        .or_else(|_| chrono::DateTime::parse_from_rfc3339(&format!("{text}Z")))
        .ok()?;
    Some(time.timestamp() * TICKS_PER_SECOND + i64::from(time.timestamp_subsec_nanos()) / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_seven_digits_and_come_back() {
        for (ticks, text) in [
            (17_779_104_111_234_567, "2026-05-04T16:00:11.1234567Z"),
            (17_779_104_115_000_000, "2026-05-04T16:00:11.5Z"),
            (17_779_104_110_000_000, "2026-05-04T16:00:11Z"),
        ] {
            assert_eq!(write_ticks(ticks), text);
            assert_eq!(read_ticks(text), Some(ticks));
        }
        assert_eq!(read_ticks("2026-05-04"), read_ticks("2026-05-04T00:00:00"));
        assert_eq!(read_ticks("soon"), None);
    }

    #[test]
    fn a_change_moves_to_the_end_of_the_feed() {
        let row =
            |id, modified| Row { id, place: 0, changed_ms: 0, modified, active: true, body: "{}".into() };
        let mut table = Table::seeded((1..=7).map(|id| row(id, i64::try_from(id).unwrap())).collect());
        let order = |table: &Table| table.feed_from(0).map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(order(&table), [1, 2, 3, 4, 6, 5, 7], "the order is not promised");
        table.put(row(2, 9));
        assert_eq!(order(&table), [1, 3, 4, 6, 5, 7, 2]);
        assert_eq!(table.feed_from(table.place_of(8)).map(|row| row.id).collect::<Vec<_>>(), [2]);
        assert!(table.remove(3) && !table.remove(3));
        assert_eq!(order(&table), [1, 4, 6, 5, 7, 2]);
    }
}
