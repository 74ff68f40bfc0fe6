//! From a record as sent to a row of its table. Pure.

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::db::mirror::{Row, array_literal};
use crate::domain::drift::{self, Drift, DriftKind};
use crate::domain::record::Record;
use crate::domain::spec::{Column, ColumnType, StreamSpec};
use crate::domain::values::{self, Cell};

/// Takes out of a record what its stream is known not to keep.
fn omit(stream: &StreamSpec, raw: &mut Value) {
    stream.omit.iter().for_each(|pointer| values::omit(raw, pointer));
}

/// Takes out of a record what its stream does not keep.
pub fn trim(stream: &StreamSpec, raw: &mut Value) {
    trim_named(stream, raw, |_| {});
}

/// The same, with a look at the names of what comes besides.
pub fn trim_named<T>(stream: &StreamSpec, raw: &mut Value, look: impl FnOnce(&Value) -> T) -> T {
    omit(stream, raw);
    let looked = look(raw);
    if let Some(fields) = raw.as_object_mut().filter(|_| !stream.keep_only.is_empty()) {
        fields.retain(|name, _| stream.keep_only.contains(&name.as_str()));
    }
    looked
}

/// Puts into a record what is known of the fields that it was asked for without.
pub fn fill_in(record: &mut Record, known: &Value) {
    let Some(fields) = record.raw.as_object_mut() else { return };
    for name in &record.without {
        if let Some(value) = known.get(name).filter(|_| !fields.contains_key(name)) {
            fields.insert(name.clone(), value.clone());
        }
    }
}

/// A row, and what of it was not foreseen: values that did not fit their columns, which are null there and stay in `raw`,
/// and words that a column's list does not have.
pub fn row(stream: &StreamSpec, record: &Record) -> (Row, Vec<Drift>) {
    let mut drift = Vec::new();
    let cells = stream
        .columns
        .iter()
        .map(|column| match values::cell(column.kind, &record.raw, column.at) {
            Cell::Null => None,
            Cell::Text(text) => {
                if !column.words.is_empty() && !column.words.contains(&text.as_ref()) {
                    drift.push(unknown_word(column, &text));
                }
                Some(text.into_owned())
            }
            Cell::Array(items) => Some(array_literal(items.iter().map(|item| Some(item.as_ref())))),
            Cell::Misfit => {
                drift.push(misfit(column.name, column.kind, column.at, &record.raw));
                None
            }
        })
        .collect();
    let raw = storable_json(&record.raw);
    let content_hash = Sha256::digest(raw.as_bytes()).into();
    let mut time = |column, pointer| time(column, pointer, &record.raw, &mut drift);
    let row = Row {
        id: record.id.clone(),
        source_created_at: time("source_created_at", stream.created_at),
        source_updated_at: time("source_updated_at", stream.updated_at).map(microseconds),
        raw,
        content_hash,
        synced_at: microseconds(record.sent_at),
        deleted_at: record.deleted.as_ref().map(|deletion| deletion.at),
        deleted_evidence: record.deleted.as_ref().map(|deletion| deletion.evidence.clone()),
        cells,
    };
    (row, drift)
}

fn unknown_word(column: &Column, word: &str) -> Drift {
    Drift {
        kind: DriftKind::UnknownWord,
        field: drift::cut(column.at),
        column: Some(column.name),
        value: drift::cut(word),
        example: Some(drift::cut(word)),
    }
}

/// A moment of the record itself, where its stream has one. What two columns are read from is told once.
fn time(column: &'static str, pointer: &str, raw: &Value, drift: &mut Vec<Drift>) -> Option<DateTime<Utc>> {
    let value = values::at(raw, pointer).filter(|_| !pointer.is_empty())?;
    let time = values::timestamp(value);
    if time.is_none() && values::read(ColumnType::Timestamptz, Some(value)) == Cell::Misfit {
        let misfit = misfit(column, ColumnType::Timestamptz, pointer, raw);
        if !drift.iter().any(|told| told.kind == misfit.kind && told.field == misfit.field) {
            drift.push(misfit);
        }
    }
    time
}

/// What stands in the place of a number, a moment or a flag is told; in the place of a text it may be anybody's name, and
/// only its kind is.
fn misfit(column: &'static str, kind: ColumnType, at: &str, raw: &Value) -> Drift {
    let tell = match kind {
        ColumnType::Text | ColumnType::TextArray | ColumnType::Reference => drift::kind_of,
        ColumnType::Timestamptz
        | ColumnType::Numeric
        | ColumnType::Bigint
        | ColumnType::Boolean
        | ColumnType::Cents => drift::example,
    };
    Drift {
        kind: DriftKind::Misfit,
        field: drift::cut(at),
        column: Some(column),
        value: String::new(),
        example: values::at(raw, at).map(tell),
    }
}

/// Postgres keeps microseconds: what is compared with what it returns must have no more.
pub fn microseconds(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

/// JSON text that `jsonb` takes: U+0000 has no place there and is left out. Keys come in one order, so that the same
/// record has the same text.
fn storable_json(value: &Value) -> String {
    let text = serde_json::to_string(&Ordered(value)).expect("JSON is written as text without fail");
    if !text.contains("\\u0000") {
        return text;
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // An escape begins at a backslash that no other backslash escapes, so they are taken in pairs.
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        kept.push_str(before);
        if let Some(after) = escape.strip_prefix("\\u0000") {
            rest = after;
        } else {
            let end = escape.char_indices().nth(2).map_or(escape.len(), |(end, _)| end);
            kept.push_str(&escape[..end]);
            rest = &escape[end..];
        }
    }
    kept.push_str(rest);
    kept
}

/// Keys in the order that `jsonb` keeps them in, shorter ones first: what comes in order Postgres need not sort.
struct Ordered<'a>(&'a Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(key, _)| key.len());
                serializer.collect_map(fields.into_iter().map(|(key, value)| (key, Ordered(value))))
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Ordered)),
            other => other.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nul_goes_and_its_lookalike_stays() {
        let value = json!({"a": "x\u{0}y", "b": "\\u0000", "c": "\\\u{0}", "d": "é\n\u{0}"});
        let text = storable_json(&value);
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back, json!({"a": "xy", "b": "\\u0000", "c": "\\", "d": "é\n"}));
    }

    #[test]
    fn keys_stand_as_jsonb_keeps_them() {
        let value = json!({"aa": {"ccc": 1, "d": [{"yy": 2, "x": 3}]}, "b": null, "a": "s"});
        assert_eq!(storable_json(&value), r#"{"a":"s","b":null,"aa":{"d":[{"x":3,"yy":2}],"ccc":1}}"#);
    }

    #[test]
    fn the_same_record_has_the_same_hash() {
        let record = |raw: &str| Record {
            id: "1".into(),
            raw: serde_json::from_str(raw).unwrap(),
            sent_at: DateTime::UNIX_EPOCH,
            deleted: None,
            without: Vec::new(),
        };
        let stream = crate::providers::provider("hubspot").unwrap().spec().stream("tickets").unwrap();
        let (one, _) = row(stream, &record(r#"{"id":"1","properties":{"subject":"s","content":null}}"#));
        let (two, _) = row(stream, &record(r#"{"properties":{"content":null,"subject":"s"},"id":"1"}"#));
        assert_eq!(one.content_hash, two.content_hash);
        assert_eq!(one.cells[0].as_deref(), Some("s"));
    }

    #[test]
    fn of_people_new_fields_are_named_and_not_kept() {
        let provider = crate::providers::provider("servicetitan").unwrap();
        let mut raw = json!({"id": 1, "name": "Ana", "hourlyRate": 9, "shoeSize": 44});
        let names = trim_named(provider.spec().stream("technicians").unwrap(), &mut raw, |raw| {
            raw.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        });
        assert_eq!(names, ["id", "name", "shoeSize"]);
        assert_eq!(raw, json!({"id": 1, "name": "Ana"}));
        let mut job = json!({"id": 1, "shoeSize": 44});
        trim(provider.spec().stream("jobs").unwrap(), &mut job);
        assert_eq!(job["shoeSize"], 44, "elsewhere they are kept");
    }

    #[test]
    fn words_that_are_not_known_are_kept_and_told() {
        let stream = crate::providers::provider("oncehub").unwrap().spec().stream("bookings").unwrap();
        let record = |status: &str| Record {
            id: "1".into(),
            raw: json!({"id": "1", "status": status}),
            sent_at: DateTime::UNIX_EPOCH,
            deleted: None,
            without: Vec::new(),
        };
        assert_eq!(row(stream, &record("no_show")).1, []);
        let (row, drift) = row(stream, &record("haunted"));
        assert!(row.cells.contains(&Some("haunted".to_owned())));
        let told =
            drift.iter().map(|one| (one.kind, &*one.field, one.column, &*one.value)).collect::<Vec<_>>();
        assert_eq!(told, [(DriftKind::UnknownWord, "/status", Some("status"), "haunted")]);
    }

    #[test]
    fn what_does_not_fit_is_null_and_told() {
        let stream = crate::providers::provider("hubspot").unwrap().spec().stream("tickets").unwrap();
        let record = Record {
            id: "1".into(),
            raw: json!({"id": "1", "properties": {"closed_date": "soon", "subject": {"no": "text"}}}),
            sent_at: DateTime::UNIX_EPOCH,
            deleted: None,
            without: Vec::new(),
        };
        let (row, drift) = row(stream, &record);
        assert_eq!(row.cells[0], None);
        let told =
            drift.iter().map(|one| (one.kind, &*one.field, one.example.as_deref())).collect::<Vec<_>>();
        assert_eq!(
            told,
            [
                (DriftKind::Misfit, "/properties/subject", Some("object (no)")),
                (DriftKind::Misfit, "/properties/closed_date", Some("soon")),
            ]
        );
    }

    #[test]
    fn the_times_of_a_record_are_told_as_its_columns_are() {
        let of = |provider: &str, stream: &str, raw: Value| {
            let stream = crate::providers::provider(provider).unwrap().spec().stream(stream).unwrap();
            let record = Record {
                id: "1".into(),
                raw,
                sent_at: DateTime::UNIX_EPOCH,
                deleted: None,
                without: Vec::new(),
            };
            let (row, drift) = row(stream, &record);
            let told = drift.into_iter().map(|one| (one.kind, one.field, one.column, one.example));
            (row.source_created_at, row.source_updated_at, told.collect::<Vec<_>>())
        };
        let misfit = |field: &str, column, example: &str| {
            (DriftKind::Misfit, field.to_owned(), Some(column), Some(example.to_owned()))
        };
        let odd = json!({"id": "1", "createdAt": "first thing", "updatedAt": {"by": "Ana"}});
        let expected = vec![
            misfit("/createdAt", "source_created_at", "first thing"),
            misfit("/updatedAt", "source_updated_at", "object (by)"),
        ];
        assert_eq!(of("hubspot", "tickets", odd), (None, None, expected));
        let unset = json!({"id": "1", "createdAt": "", "updatedAt": null});
        assert_eq!(of("hubspot", "tickets", unset), (None, None, Vec::new()));
        let timeless = json!({"id": "1", "name": "Ana"});
        assert_eq!(of("oncehub", "users", timeless), (None, None, Vec::new()), "it has no times");
        let one_for_both = json!({"id": 1, "createdOn": "soon"});
        let expected = vec![misfit("/createdOn", "source_created_at", "soon")];
        assert_eq!(of("servicetitan", "job_canceled_logs", one_for_both), (None, None, expected));
    }
}
