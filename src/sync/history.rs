//! What a row was before a change. Pure.
//!
//! A change is told by the values that it took away: of each typed column that is another now, its previous value; and
//! under `raw` what turns the record as it is into the record as it was, as a JSON merge patch (RFC 7396). So what one
//! key of a large record was costs as much as that key.

use chrono::{DateTime, Utc};
use serde_json::{Map, Number, Value};

use crate::db::changes::{Change, Op};
use crate::db::mirror::{Held, Replaced, Row};
use crate::domain::record::Tombstone;
use crate::domain::spec::{Column, ColumnType, StreamSpec};
use crate::domain::values::{self, Cell};
use crate::providers;

/// Words of `sync.history` that are about no stream that there is.
pub fn unknown_words(words: &[String]) -> Vec<&str> {
    let is_known = |word: &str| match word.strip_prefix('-').unwrap_or(word).split_once('.') {
        None => word.trim_start_matches('-') == "*",
        Some((name, stream)) => providers::provider(name)
            .is_some_and(|provider| stream == "*" || provider.spec().stream(stream).is_some()),
    };
    words.iter().map(String::as_str).filter(|word| !is_known(word)).collect()
}

/// The change that a row makes to the one that it replaces; none where the two say the same.
pub fn of_row(spec: &StreamSpec, held: &Held, replaced: &Replaced, row: &Row) -> Option<Change> {
    let op = match (held.deleted_at.is_some(), row.deleted_at.is_some()) {
        (false, true) => Op::Delete,
        (true, false) => Op::Restore,
        _ => Op::Update,
    };
    let mut before = before(spec, &replaced.raw, &row.raw);
    if replaced.source_updated_at != row.source_updated_at {
        before.insert("source_updated_at".to_owned(), time(replaced.source_updated_at));
    }
    // A deletion takes nothing away; what was gone may be so since another time now, or by another proof.
    if held.deleted_at.is_some() && replaced.deleted_at != row.deleted_at {
        before.insert("deleted_at".to_owned(), time(replaced.deleted_at));
    }
    if held.deleted_at.is_some() && replaced.deleted_evidence != row.deleted_evidence {
        before.insert("deleted_evidence".to_owned(), replaced.deleted_evidence.clone().into());
    }
    let says_nothing = op == Op::Update && before.is_empty();
    (!says_nothing).then(|| Change {
        record_id: row.id.clone(),
        op,
        source_updated_at: row.source_updated_at,
        before,
    })
}

/// The change that a proof of deletion makes to a row, which otherwise keeps what it says. `was`: since when it was gone.
pub fn of_burial(tombstone: &Tombstone, was: Option<DateTime<Utc>>) -> Change {
    let op = if was.is_none() { Op::Delete } else { Op::Update };
    let merged = tombstone.merged_into.as_ref().map(|_| ("merged_into".to_owned(), Value::Null));
    let moved = was.is_some_and(|was| tombstone.deletion.told && tombstone.deletion.at != was);
    let moved = moved.then(|| ("deleted_at".to_owned(), time(was)));
    let before = merged.into_iter().chain(moved).collect();
    Change { record_id: tombstone.id.clone(), op, source_updated_at: None, before }
}

/// Previous values of what differs between two texts of JSON.
fn before(spec: &StreamSpec, old: &str, new: &str) -> Map<String, Value> {
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let (old, new) = (read(old), read(new));
    let mut before = Map::new();
    for column in spec.columns {
        let (was, is) = (cell(column, &old), cell(column, &new));
        if !same(&was, &is) {
            before.insert(column.name.to_owned(), was);
        }
    }
    if let Some(patch) = patch(&old, &new) {
        before.insert("raw".to_owned(), patch);
    }
    before
}

/// A column's value as JSON of its type.
fn cell(column: &Column, record: &Value) -> Value {
    match values::cell(column.kind, record, column.at) {
        Cell::Null | Cell::Misfit => Value::Null,
        Cell::Array(items) => items.into_iter().map(|item| Value::from(item.into_owned())).collect(),
        Cell::Text(text) => match column.kind {
            ColumnType::Boolean => Value::Bool(text == "true"),
            ColumnType::Numeric | ColumnType::Bigint | ColumnType::Cents => {
                text.parse::<Number>().map_or_else(|_| Value::from(text.into_owned()), Value::from)
            }
            ColumnType::Text | ColumnType::Timestamptz | ColumnType::TextArray | ColumnType::Reference => {
                Value::from(text.into_owned())
            }
        },
    }
}

fn time(time: Option<DateTime<Utc>>) -> Value {
    time.map_or(Value::Null, |time| time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into())
}

/// The merge patch from `new` to `old`; none where they are the same.
fn patch(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(was), Value::Object(is)) = (old, new) else {
        return (!same(old, new)).then(|| old.clone());
    };
    let mut changed = Map::new();
    for (key, old) in was {
        if let Some(patch) = patch(old, is.get(key).unwrap_or(&Value::Null)) {
            changed.insert(key.clone(), patch);
        }
    }
    // A merge patch takes a key away by null.
    for (key, new) in is {
        if !new.is_null() && !was.contains_key(key) {
            changed.insert(key.clone(), Value::Null);
        }
    }
    (!changed.is_empty()).then_some(Value::Object(changed))
}

/// Whether two values are one. Postgres writes numbers in its own way: `1e3` comes back as `1000`.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let exact = |number: &Number| number.to_string().len() <= f64::DIGITS as usize;
            one == other || (exact(one) && exact(other) && one.as_f64() == other.as_f64())
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::record::Deletion;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    fn spec(provider: &str, stream: &str) -> &'static StreamSpec {
        providers::provider(provider).unwrap().spec().stream(stream).unwrap()
    }

    fn held(deleted_at: Option<DateTime<Utc>>) -> Held {
        Held {
            id: "1".into(),
            source_updated_at: Some(at(10)),
            synced_at: at(10),
            content_hash: Vec::new(),
            deleted_at,
            merged: false,
            sync_run_id: None,
        }
    }

    fn row(raw: &str) -> Row {
        Row {
            id: "1".into(),
            source_created_at: None,
            source_updated_at: None,
            raw: raw.into(),
            content_hash: [0; 32],
            synced_at: at(20),
            deleted_at: None,
            deleted_evidence: None,
            cells: Vec::new(),
        }
    }

    /// The change from one record to another, of which the first was deleted or not.
    fn change(spec: &StreamSpec, old: &Value, new: &Value, was_gone: bool, is_gone: bool) -> Option<Change> {
        let gone = |gone: bool| gone.then(|| at(50));
        let held = held(gone(was_gone));
        let replaced = Replaced {
            first_seen_at: at(1),
            source_updated_at: held.source_updated_at,
            deleted_at: gone(was_gone),
            deleted_evidence: was_gone.then(|| "flag".into()),
            raw: old.to_string(),
        };
        let row = Row {
            source_updated_at: Some(at(10)),
            deleted_at: gone(is_gone),
            deleted_evidence: is_gone.then(|| "flag".into()),
            ..row(&new.to_string())
        };
        of_row(spec, &held, &replaced, &row)
    }

    #[test]
    fn columns_and_keys_that_changed_and_no_others() {
        let jobs = spec("housecallpro", "jobs");
        let old = json!({"id": "1", "total_amount": 1050, "tags": ["a", "b"], "work_status": "scheduled",
            "notes": [{"id": 1}], "schedule": {"arrival_window": 30, "scheduled_start": "2026-01-05T09:00:00Z"}});
        let new = json!({"id": "1", "total_amount": 2000, "tags": ["a"], "work_status": "scheduled",
            "extra": 1, "schedule": {"arrival_window": 30, "scheduled_start": "2026-01-06T09:00:00Z"}});
        let change = change(jobs, &old, &new, false, false).unwrap();
        assert_eq!((change.op, change.source_updated_at), (Op::Update, Some(at(10))));
        let expected: Value = serde_json::from_str(
            r#"{"total_amount": 10.50, "tags": ["a", "b"], "scheduled_start": "2026-01-05T09:00:00Z",
                "raw": {"total_amount": 1050, "tags": ["a", "b"], "notes": [{"id": 1}], "extra": null,
                        "schedule": {"scheduled_start": "2026-01-05T09:00:00Z"}}}"#,
        )
        .unwrap();
        assert_eq!(Value::Object(change.before), expected);
    }

    #[test]
    fn words_of_the_setting() {
        let words = ["*", "hubspot.*", "-hubspot.tickets", "hubspot.tickes", "acme.*", "tickets", "--x", ""];
        assert_eq!(
            unknown_words(&words.map(str::to_owned)),
            ["hubspot.tickes", "acme.*", "tickets", "--x", ""]
        );
        let keeps = |words: &[&str]| {
            let mut settings = crate::config::Settings::example().sync;
            settings.history = words.iter().map(|&word| word.to_owned()).collect();
            ["hubspot.tickets", "hubspot.owners", "jobber.jobs"].map(|stream| {
                let (provider, stream) = stream.split_once('.').unwrap();
                settings.keeps_history(provider, stream)
            })
        };
        assert_eq!(keeps(&["*"]), [true; 3]);
        assert_eq!(keeps(&[]), [false; 3]);
        assert_eq!(keeps(&["*", "-hubspot.*", "hubspot.owners"]), [false, true, true]);
        assert_eq!(keeps(&["hubspot.tickets", "-*"]), [false; 3]);
    }

    #[test]
    fn operations() {
        let tickets = spec("hubspot", "tickets");
        let (one, other) = (json!({"properties": {"subject": "a"}}), json!({"properties": {"subject": "b"}}));
        for (new, was_gone, is_gone, expected) in [
            (&one, false, false, None),
            (
                &other,
                false,
                false,
                Some(("update", json!({"subject": "a", "raw": {"properties": {"subject": "a"}}}))),
            ),
            (
                &other,
                true,
                true,
                Some(("update", json!({"subject": "a", "raw": {"properties": {"subject": "a"}}}))),
            ),
            (&one, false, true, Some(("delete", json!({})))),
            (&one, true, true, None),
            (
                &one,
                true,
                false,
                Some(("restore", json!({"deleted_at": "1970-01-01T00:00:50Z", "deleted_evidence": "flag"}))),
            ),
        ] {
            let told = change(tickets, &one, new, was_gone, is_gone);
            let told = told.map(|change| (change.op.as_str(), Value::Object(change.before)));
            assert_eq!(told, expected, "{new} {was_gone} {is_gone}");
        }
    }

    #[test]
    fn of_what_stays_gone_the_time_and_the_evidence_have_a_history() {
        let replaced = Replaced {
            first_seen_at: at(1),
            source_updated_at: None,
            deleted_at: Some(at(50)),
            deleted_evidence: Some("flag".into()),
            raw: "{}".into(),
        };
        for (since, evidence, before) in [
            (50, "flag", None),
            (40, "flag", Some(json!({"deleted_at": "1970-01-01T00:00:50Z"}))),
            (50, "list", Some(json!({"deleted_evidence": "flag"}))),
        ] {
            let row =
                Row { deleted_at: Some(at(since)), deleted_evidence: Some(evidence.into()), ..row("{}") };
            let told = of_row(spec("hubspot", "tickets"), &held(Some(at(50))), &replaced, &row);
            let told = told.map(|change| (change.op, Value::Object(change.before)));
            assert_eq!(told, before.map(|before| (Op::Update, before)), "{since} {evidence}");
        }
    }

    #[test]
    fn a_burial_takes_nothing_away_but_life() {
        let deletion = Deletion { at: at(1), told: false, evidence: "gone".into() };
        let tombstone = Tombstone { id: "1".into(), deletion, merged_into: None, sent_at: at(1) };
        let told = of_burial(&tombstone, None);
        assert_eq!((told.op, told.source_updated_at, told.before.len()), (Op::Delete, None, 0));
        let merged = Tombstone { merged_into: Some("2".into()), ..tombstone.clone() };
        let merged = of_burial(&merged, Some(at(50)));
        assert_eq!((merged.op, Value::Object(merged.before)), (Op::Update, json!({"merged_into": null})));
        let deletion = Deletion { told: true, ..tombstone.deletion.clone() };
        let dated = of_burial(&Tombstone { deletion, ..tombstone }, Some(at(50)));
        let before = json!({"deleted_at": "1970-01-01T00:00:50Z"});
        assert_eq!((dated.op, Value::Object(dated.before)), (Op::Update, before));
    }

    #[test]
    fn numbers_are_told_by_their_value() {
        let number = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        for (one, other, expected) in [
            ("1e3", "1000", true),
            ("1.0", "1.00", true),
            ("9007199254740993", "9007199254740992", false),
            ("[{\"a\":1e2}]", "[{\"a\":100}]", true),
            ("1", "\"1\"", false),
        ] {
            assert_eq!(same(&number(one), &number(other)), expected, "{one} {other}");
        }
    }

    /// RFC 7396, section 2.
    fn merged(target: &Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = target.as_object().cloned().unwrap_or_default();
        for (key, patch) in patch {
            if patch.is_null() {
                target.remove(key);
            } else {
                let merged = merged(target.get(key).unwrap_or(&Value::Null), patch);
                target.insert(key.clone(), merged);
            }
        }
        Value::Object(target)
    }

    fn without_nulls(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let kept = fields.iter().filter(|(_, value)| !value.is_null());
                Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
            }
            other => other.clone(),
        }
    }

    fn records() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), (0..3i64).prop_map(Value::from), "[ab]?".prop_map(Value::from)];
        let value = leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[abc]", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        });
        prop::collection::btree_map("[abc]", value, 0..4)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()))
    }

    proptest! {
        /// What is kept of a record leads back to it; a null and an absent key count as one.
        #[test]
        fn a_patch_leads_back(old in records(), new in records()) {
            let back = patch(&old, &new).map_or(new.clone(), |patch| merged(&new, &patch));
            prop_assert_eq!(without_nulls(&back), without_nulls(&old));
            prop_assert_eq!(patch(&old, &old), None);
        }
    }
}
