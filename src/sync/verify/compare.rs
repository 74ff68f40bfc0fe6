//! Whether a row of the mirror and what the provider shows are the same. Pure.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;

use crate::domain::verification::Difference;

/// Values of a difference are cut to so many characters.
const VALUE_CHARS_MAX: usize = 200;
/// Differences of one row that are told.
const ROW_DIFFERENCES_MAX: usize = 20;

/// What the provider shows of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shown {
    /// The record, with its time of modification.
    Record(Option<DateTime<Utc>>),
    /// That it is gone, and since when where that is told.
    Gone(Option<DateTime<Utc>>),
    /// The same, by the modification that the provider shows among its changes.
    MarkedGone(DateTime<Utc>),
    /// That it is there, and no more.
    Present,
    /// Nothing that proves anything.
    Nothing,
}

/// What the mirror holds of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Held {
    Absent,
    Gone(DateTime<Utc>),
    /// With what differs from the record that the provider shows.
    Living(Vec<Difference>),
}

/// Up to where the mirror is to know changes and deletions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    pub complete_to: DateTime<Utc>,
    pub deletions_to: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    Agrees,
    ChangedSince,
    Unknown,
    Differs(Vec<Difference>),
    /// The mirror has it and the provider has not.
    Gone(Difference),
}

/// Judges one record. A deletion without a time may be older or younger than what the mirror is to know: it counts, since
/// otherwise one that was missed would never be found.
pub fn judge(id: &str, held: Held, shown: Shown, known: Known) -> Finding {
    let one = |column: &str, mirror: Option<String>, provider: Option<&str>| {
        let provider = provider.map(str::to_owned);
        Difference { id: id.to_owned(), column: column.to_owned(), mirror, provider }
    };
    match (held, shown) {
        (_, Shown::Record(Some(updated_at))) if updated_at > known.complete_to => Finding::ChangedSince,
        (Held::Living(_), Shown::Gone(Some(at))) if known.deletions_to.is_none_or(|to| at > to) => {
            Finding::ChangedSince
        }
        (_, Shown::MarkedGone(at)) if at > known.complete_to => Finding::ChangedSince,
        (Held::Living(_), Shown::Gone(_) | Shown::MarkedGone(_)) => {
            Finding::Gone(one("deleted_at", None, Some("gone")))
        }
        (Held::Absent | Held::Gone(_), Shown::Gone(_) | Shown::MarkedGone(_))
        | (Held::Living(_), Shown::Present) => Finding::Agrees,
        (Held::Absent, Shown::Record(_) | Shown::Present) => {
            Finding::Differs(vec![one("row", None, Some("there"))])
        }
        (Held::Gone(at), Shown::Record(_)) => {
            Finding::Differs(vec![one("deleted_at", Some(moment(at)), None)])
        }
        (Held::Living(differences), Shown::Record(_)) if differences.is_empty() => Finding::Agrees,
        (Held::Living(differences), Shown::Record(_)) => Finding::Differs(differences),
        // What is there for a list by ids may be inactive all the same.
        (Held::Gone(_), Shown::Present) | (_, Shown::Nothing) => Finding::Unknown,
    }
}

/// A row that the provider's list of changes should have named and did not.
pub fn not_listed(id: &str) -> Finding {
    let (column, mirror) = ("row".to_owned(), Some("there".to_owned()));
    Finding::Gone(Difference { id: id.to_owned(), column, mirror, provider: Some("not listed".to_owned()) })
}

/// What differs of a row: its columns, and values of the record that no such column shows.
pub fn differences(
    id: &str,
    columns: Vec<(String, Option<String>, Option<String>)>,
    raws: Option<(&Value, &Value)>,
    told_by: impl Fn(&str) -> Option<&'static str>,
) -> Vec<Difference> {
    let told: Vec<&'static str> = columns.iter().filter_map(|(column, ..)| told_by(column)).collect();
    let difference = |(column, mirror, provider): (String, Option<String>, Option<String>)| Difference {
        id: id.to_owned(),
        column,
        mirror: mirror.as_deref().map(cut),
        provider: provider.as_deref().map(cut),
    };
    let mut found: Vec<Difference> = columns.into_iter().map(difference).collect();
    if let Some((mirror, provider)) = raws {
        let mut leaves = Vec::new();
        leaf_differences(String::new(), Some(mirror), Some(provider), &mut leaves);
        let untold = leaves.into_iter().filter(|(path, ..)| !told.contains(&path.as_str()));
        found.extend(
            untold.map(|(path, mirror, provider)| difference((format!("raw{path}"), mirror, provider))),
        );
    }
    found.truncate(ROW_DIFFERENCES_MAX);
    found
}

type Leaf = (String, Option<String>, Option<String>);

/// Pointers at which two values differ. Lists are compared as a whole: their elements have no names.
fn leaf_differences(path: String, mirror: Option<&Value>, provider: Option<&Value>, found: &mut Vec<Leaf>) {
    if found.len() > ROW_DIFFERENCES_MAX || mirror == provider {
        return;
    }
    if let (Some(Value::Object(ours)), Some(Value::Object(theirs))) = (mirror, provider) {
        let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let escaped = name.replace('~', "~0").replace('/', "~1");
            leaf_differences(format!("{path}/{escaped}"), ours.get(name), theirs.get(name), found);
        }
        return;
    }
    found.push((path, mirror.map(text), provider.map(text)));
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn difference(column: &str) -> Difference {
        Difference {
            id: "7".into(),
            column: column.into(),
            mirror: Some("a".into()),
            provider: Some("b".into()),
        }
    }

    #[test]
    fn what_counts() {
        use Finding::{Agrees, ChangedSince, Unknown};
        let known = Known { complete_to: at(100), deletions_to: Some(at(50)) };
        let living = || Held::Living(Vec::new());
        let changed = || Held::Living(vec![difference("subject")]);
        for (held, shown, expected) in [
            (living(), Shown::Record(Some(at(100))), Some(Agrees)),
            (living(), Shown::Record(None), Some(Agrees)),
            (changed(), Shown::Record(Some(at(100))), None),
            (changed(), Shown::Record(None), None),
            (changed(), Shown::Record(Some(at(101))), Some(ChangedSince)),
            (Held::Absent, Shown::Record(Some(at(101))), Some(ChangedSince)),
            (Held::Absent, Shown::Record(Some(at(99))), None),
            (Held::Absent, Shown::Present, None),
            (Held::Absent, Shown::Gone(None), Some(Agrees)),
            (Held::Gone(at(1)), Shown::Record(Some(at(99))), None),
            (Held::Gone(at(1)), Shown::Record(Some(at(101))), Some(ChangedSince)),
            (Held::Gone(at(1)), Shown::Gone(None), Some(Agrees)),
            (Held::Gone(at(1)), Shown::Present, Some(Unknown)),
            (living(), Shown::Gone(None), None),
            (living(), Shown::Gone(Some(at(50))), None),
            (living(), Shown::Gone(Some(at(51))), Some(ChangedSince)),
            (living(), Shown::MarkedGone(at(100)), None),
            (living(), Shown::MarkedGone(at(101)), Some(ChangedSince)),
            (Held::Gone(at(1)), Shown::MarkedGone(at(99)), Some(Agrees)),
            (living(), Shown::Present, Some(Agrees)),
            (living(), Shown::Nothing, Some(Unknown)),
        ] {
            let found = judge("7", held.clone(), shown, known);
            match expected {
                Some(expected) => assert_eq!(found, expected, "{held:?} {shown:?}"),
                None if matches!(shown, Shown::Gone(_) | Shown::MarkedGone(_)) => {
                    assert!(matches!(&found, Finding::Gone(_)), "{held:?} {shown:?}");
                }
                None => assert!(matches!(&found, Finding::Differs(d) if d.len() == 1), "{held:?} {shown:?}"),
            }
        }
        let never_swept = Known { deletions_to: None, ..known };
        assert_eq!(judge("7", living(), Shown::Gone(Some(at(1))), never_swept), ChangedSince);
    }

    #[test]
    fn a_value_is_told_once_and_by_its_place() {
        let mirror = json!({"id": "7", "p": {"subject": "a", "x/y": 1, "list": [1, 2]}, "old": null});
        let provider =
            json!({"id": "7", "p": {"subject": "b", "x/y": 2, "list": [1, 3]}, "new": "n".repeat(300)});
        let columns = vec![("subject".to_owned(), Some("a".to_owned()), Some("b".to_owned()))];
        let pointer = |column: &str| (column == "subject").then_some("/p/subject");
        let found = differences("7", columns, Some((&mirror, &provider)), pointer);
        let places: Vec<&str> = found.iter().map(|one| one.column.as_str()).collect();
        assert_eq!(places, ["subject", "raw/new", "raw/old", "raw/p/list", "raw/p/x~1y"]);
        assert_eq!(found[3].provider.as_deref(), Some("[1,3]"));
        assert_eq!((found[1].mirror.as_deref(), found[2].provider.as_deref()), (None, None));
        assert_eq!(found[1].provider.as_ref().unwrap().chars().count(), VALUE_CHARS_MAX + 1);
        // A value that only the record tells otherwise is not hidden by its column.
        let found = differences("7", Vec::new(), Some((&mirror, &provider)), pointer);
        assert!(found.iter().any(|one| one.column == "raw/p/subject"), "{found:?}");
    }
}
