//! What comes and was not foreseen: fields that are new or have vanished. Pure.
//!
//! The fields of a stream are the top-level keys of its records, and those deeper ones that fill a column (by their
//! pointers), learned while everything is read for the first time; so an optional field that most records lack is no news.
//! Only versions that are written count: an unchanged record that is read again and again says nothing new.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::drift::{Drift, DriftKind, cut, kind_of};
use crate::domain::spec::StreamSpec;
use crate::domain::values;

/// Versions that teach which fields there are, at least: a small account's first record with a rarer field is no news.
const LEARNED_MIN: u64 = 200;
/// Versions in a row that lack a field before it counts as vanished, and versions before them that show it was regular.
const LACKING_MIN: u64 = 200;
/// Of a hundred versions, those that have a regular field.
const REGULAR_PERCENT: u64 = 95;
/// Fields of a stream that are kept in mind. Further ones are neither learned nor listed: keys of such a stream are data.
const FIELDS_MAX: usize = 500;

/// Which fields records of a page have. Most have the same ones, so a record only names its set.
#[derive(Debug, Default)]
pub struct Shapes(Vec<Vec<Field>>);

#[derive(Debug)]
struct Field {
    name: String,
    /// What sort of value the first record has there.
    kind: String,
}

impl Shapes {
    /// The number of the set of fields that the record has.
    pub fn of(&mut self, spec: &StreamSpec, record: &Value) -> usize {
        let Some(fields) = record.as_object() else { return usize::MAX };
        let tops = fields.iter().map(|(name, value)| (name.as_str(), value));
        let pointers = spec.columns.iter().map(|column| column.at).filter(|pointer| is_deep(pointer));
        let deep = pointers.filter_map(|pointer| Some((pointer, values::at(record, pointer)?)));
        let all: Vec<(&str, &Value)> = tops.chain(deep).collect();
        let names = || all.iter().map(|(name, _)| *name);
        if let Some(number) =
            self.0.iter().position(|shape| shape.iter().map(|field| &*field.name).eq(names()))
        {
            return number;
        }
        let field = |(name, value): &(&str, &Value)| Field { name: (*name).to_owned(), kind: kind_of(value) };
        self.0.push(all.iter().map(field).collect());
        self.0.len() - 1
    }

    /// Adds those of another page. Returns what its numbers grow by.
    pub fn append(&mut self, mut other: Self) -> usize {
        let before = self.0.len();
        self.0.append(&mut other.0);
        before
    }
}

/// What is known of a stream's fields, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Versions written.
    written: u64,
    fields: BTreeMap<String, Seen>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// Versions that had the field.
    had: u64,
    /// Versions that lack it and came after the last page that had it.
    lacking: u64,
}

/// What a page has shown of the fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// How often, what, and in which record.
    pub drift: Vec<(u64, Drift, String)>,
    /// Fields that had vanished and are back.
    pub returned: Vec<String>,
}

impl Known {
    /// Takes in versions that were written: the numbers of their shapes, and the ids of their records.
    /// `learning`: something is read for the first time.
    pub fn take(
        &mut self,
        spec: &StreamSpec,
        shapes: &Shapes,
        written: &[(usize, &str)],
        learning: bool,
    ) -> News {
        let learning = learning || self.written < LEARNED_MIN;
        let vanished = self.vanished();
        let mut versions: BTreeMap<usize, (u64, &str)> = BTreeMap::new();
        for &(number, id) in written.iter().filter(|(number, _)| *number < shapes.0.len()) {
            versions.entry(number).or_insert((0, id)).0 += 1;
        }
        let mut had: BTreeMap<&str, (u64, &str, &str)> = BTreeMap::new();
        for (number, (count, id)) in &versions {
            for field in &shapes.0[*number] {
                had.entry(&field.name).or_insert((0, &field.kind, id)).0 += count;
            }
        }
        let total: u64 = versions.values().map(|(count, _)| count).sum();
        self.written += total;
        for (name, seen) in &mut self.fields {
            match had.remove(name.as_str()) {
                Some((count, ..)) => *seen = Seen { had: seen.had + count, lacking: 0 },
                None => seen.lacking += total,
            }
        }
        let mut news = News::default();
        for (name, (count, kind, id)) in had {
            if self.fields.len() >= FIELDS_MAX {
                break;
            }
            self.fields.insert(name.to_owned(), Seen { had: count, lacking: 0 });
            if !learning && !is_foreseen(spec, name) {
                let new = drift(DriftKind::NewField, name, Some(kind.to_owned()));
                news.drift.push((count, new, id.to_owned()));
            }
        }
        let now = self.vanished();
        let last = written.last().map_or("", |(_, id)| id);
        for name in &now {
            let lacking = self.fields[name].lacking;
            news.drift.push((lacking, drift(DriftKind::VanishedField, name, None), last.to_owned()));
        }
        let back = vanished.difference(&now).filter(|name| self.fields[*name].lacking < LACKING_MIN);
        news.returned = back.map(|name| pointer(name)).collect();
        news
    }

    fn vanished(&self) -> BTreeSet<String> {
        let is_vanished = |seen: &Seen| {
            let before = self.written - seen.lacking.min(self.written);
            seen.lacking >= LACKING_MIN && before >= LACKING_MIN && seen.had * 100 >= before * REGULAR_PERCENT
        };
        self.fields.iter().filter(|(_, seen)| is_vanished(seen)).map(|(name, _)| name.clone()).collect()
    }
}

fn drift(kind: DriftKind, name: &str, example: Option<String>) -> Drift {
    Drift { kind, field: pointer(name), column: None, value: String::new(), example }
}

/// A pointer to one value below the top of a record.
fn is_deep(pointer: &str) -> bool {
    pointer.starts_with('/') && pointer[1..].contains('/') && !pointer.contains('*')
}

fn pointer(name: &str) -> String {
    if is_deep(name) {
        return cut(name);
    }
    cut(&format!("/{}", name.replace('~', "~0").replace('/', "~1")))
}

/// Whether the stream's description reads the field, keeps it, or leaves it out on purpose.
fn is_foreseen(spec: &StreamSpec, name: &str) -> bool {
    let own = [spec.id, spec.created_at, spec.updated_at];
    let columns = spec.columns.iter().map(|column| column.at);
    let mut pointers = own.into_iter().chain(columns).chain(spec.omit.iter().copied());
    spec.keep_only.contains(&name)
        || pointers.any(|pointer| pointer == name || pointer.split('/').nth(1) == Some(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> &'static StreamSpec {
        crate::providers::provider("oncehub").unwrap().spec().stream("bookings").unwrap()
    }

    /// Takes in `count` versions of one record.
    fn take(known: &mut Known, count: usize, record: &Value, learning: bool) -> News {
        let mut shapes = Shapes::default();
        let number = shapes.of(spec(), record);
        known.take(spec(), &shapes, &vec![(number, "BKNG-1"); count], learning)
    }

    fn kinds(news: &News) -> Vec<(u64, &str, &str)> {
        news.drift.iter().map(|(count, drift, _)| (*count, drift.kind.as_str(), &*drift.field)).collect()
    }

    #[test]
    fn a_field_is_new_once_and_only_after_learning() {
        let mut known = Known::default();
        let (plain, odd) = (json!({"id": 1}), json!({"id": 1, "mood": {"of": "Ana"}}));
        assert_eq!(take(&mut known, 300, &plain, true), News::default());
        assert_eq!(take(&mut known, 1, &json!({"id": 1, "rare": 1}), true), News::default());
        let news = take(&mut known, 3, &odd, false);
        assert_eq!(kinds(&news), [(3, "new_field", "/mood")]);
        assert_eq!(news.drift[0].1.example.as_deref(), Some("object (of)"));
        assert_eq!(take(&mut known, 3, &odd, false), News::default(), "it is known now");
        assert_eq!(take(&mut known, 3, &json!({"id": 1, "rare": 2}), false), News::default());
        let foreseen = json!({"id": 1, "in_trash": true, "cancel_url": "x", "last_updated_time": null});
        assert_eq!(take(&mut known, 1, &foreseen, false), News::default(), "the description names them");
    }

    #[test]
    fn a_small_account_goes_on_learning() {
        let mut known = Known::default();
        take(&mut known, 3, &json!({"id": 1}), true);
        assert_eq!(take(&mut known, 1, &json!({"id": 1, "rare": 1}), false), News::default());
        take(&mut known, 200, &json!({"id": 1}), false);
        assert_eq!(
            kinds(&take(&mut known, 1, &json!({"id": 1, "a/b~": 1}), false)),
            [(1, "new_field", "/a~1b~0")]
        );
    }

    #[test]
    fn a_regular_field_vanishes_and_may_return() {
        let mut known = Known::default();
        let (whole, less) = (json!({"id": 1, "mood": 1}), json!({"id": 1}));
        take(&mut known, 190, &whole, true);
        take(&mut known, 10, &less, true);
        take(&mut known, 10, &whole, true);
        assert_eq!(take(&mut known, 199, &less, false), News::default());
        assert_eq!(kinds(&take(&mut known, 1, &less, false)), [(200, "vanished_field", "/mood")]);
        assert_eq!(kinds(&take(&mut known, 5, &less, false)), [(205, "vanished_field", "/mood")]);
        let back = take(&mut known, 1, &whole, false);
        assert_eq!((back.drift.len(), back.returned), (0, vec!["/mood".to_owned()]));
    }

    #[test]
    fn a_deeper_field_that_fills_a_column_vanishes_and_may_return() {
        let mut known = Known::default();
        let whole = json!({"id": 1, "form_submission": {"name": "Ana", "email": null, "mood": 1}});
        let less = json!({"id": 1, "form_submission": {"name": "Ana"}});
        take(&mut known, 210, &whole, true);
        assert_eq!(take(&mut known, 199, &less, false), News::default());
        let gone = [(200, "vanished_field", "/form_submission/email")];
        assert_eq!(kinds(&take(&mut known, 1, &less, false)), gone);
        let back = take(&mut known, 1, &whole, false);
        assert_eq!((back.drift.len(), back.returned), (0, vec!["/form_submission/email".to_owned()]));
        let mut known = Known::default();
        take(&mut known, 300, &json!({"id": 1, "form_submission": null}), true);
        assert_eq!(take(&mut known, 1, &whole, false), News::default(), "a column is no news");
    }

    #[test]
    fn an_optional_field_never_vanishes() {
        let mut known = Known::default();
        take(&mut known, 500, &json!({"id": 1}), true);
        take(&mut known, 500, &json!({"id": 1, "note": 1}), true);
        assert_eq!(take(&mut known, 1_000, &json!({"id": 1}), false), News::default());
    }

    #[test]
    fn keys_that_are_data_are_neither_kept_nor_listed_without_end() {
        let mut known = Known::default();
        take(&mut known, 300, &json!({"id": 1}), true);
        for number in 0..2_000 {
            take(&mut known, 1, &json!({"id": 1, format!("k{number}"): 1}), false);
        }
        assert_eq!(known.fields.len(), FIELDS_MAX);
    }

    #[test]
    fn shapes_are_told_apart_and_joined() {
        let (mut one, mut other) = (Shapes::default(), Shapes::default());
        let mut of = |record: Value| one.of(spec(), &record);
        assert_eq!([of(json!({"a": 1})), of(json!({"b": 1})), of(json!({"a": 2}))], [0, 1, 0]);
        other.of(spec(), &json!({"c": 1}));
        assert_eq!(one.append(other), 2);
        assert_eq!(one.0[2][0].name, "c");
        assert_eq!(one.of(spec(), &json!("no object")), usize::MAX);
    }
}
