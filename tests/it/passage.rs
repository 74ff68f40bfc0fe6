//! What providers may send at any time and must never lose a record: fields and words that nobody knows yet, values that
//! are null or not there, ids that no float holds. For every record of every provider's conversations.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use fieldmirror::domain::record::Record;
use fieldmirror::domain::spec::{ColumnType, StreamSpec};
use fieldmirror::domain::values::{self, Cell};
use fieldmirror::providers::REGISTRY;
use fieldmirror::sync::extract;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::records;

/// Beyond 2^53: the next float is another number.
const BIG: &str = "9007199254740993";

/// What follows would pass over a stream without records, or a provider without streams, in silence.
#[test]
fn every_stream_of_every_provider_has_records() {
    for provider in REGISTRY {
        let with: BTreeSet<&str> = records(*provider, |_| {}).iter().map(|(stream, _)| stream.name).collect();
        let all: BTreeSet<&str> = provider.spec().streams.iter().map(|stream| stream.name).collect();
        assert_eq!(with, all, "{}", provider.spec().name);
        assert!(!all.is_empty(), "{}", provider.spec().name);
    }
    assert_eq!(REGISTRY.len(), 5);
}

#[test]
fn unknown_fields_pass() {
    for provider in REGISTRY {
        for (stream, mut record) in records(*provider, add_unknown) {
            let name = format!("{}.{} {}", provider.spec().name, stream.name, record.id);
            let named =
                extract::trim_named(stream, &mut record.raw, |raw| raw.get("not_known_yet").is_some());
            assert!(named, "{name}: unknown fields are seen");
            // Of people who work for a company nothing is kept that nobody has looked at.
            let kept = record.raw.to_string().contains("not_known_yet");
            assert_eq!(kept, stream.keep_only.is_empty(), "{name}: unknown fields are in raw");
        }
    }
}

/// Puts a field into every object.
fn add_unknown(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(add_unknown);
            fields.insert("not_known_yet".to_owned(), json!({"a": [1, null]}));
        }
        Value::Array(items) => items.iter_mut().for_each(add_unknown),
        _ => {}
    }
}

#[test]
fn every_column_takes_what_may_come() {
    for_every_record(|stream, record| {
        for (place, column) in stream.columns.iter().enumerate() {
            let name = format!("{}.{} of {}", stream.name, column.name, record.id);
            let with = |value: Value| {
                let mut changed = record.clone();
                put(&mut changed.raw, column.at, value);
                read(stream, &changed, place)
            };
            // All that a `*` gathers comes from one list.
            let whole = column.at.split("/*").next().unwrap_or_default();
            for change in [put_null, take] {
                let mut changed = record.clone();
                change(&mut changed.raw, whole);
                let (cell, misfit) = read(stream, &changed, place);
                assert!(!misfit && cell.is_none(), "{name}: what is not there is null");
            }
            let (word, number) = ("WORD_OF_TOMORROW".to_owned(), Some(BIG.to_owned()));
            match column.kind {
                ColumnType::Text | ColumnType::Reference => {
                    assert_eq!(with(json!(word)), (Some(word), false), "{name}");
                    assert_eq!(with(beyond()), (number, false), "{name} loses digits");
                }
                ColumnType::Bigint | ColumnType::Numeric => {
                    assert_eq!(with(beyond()), (number, false), "{name} loses digits");
                    assert_eq!(with(json!(word)), (None, true), "{name}");
                }
                // A word where none can be is null, and the row stays.
                ColumnType::Timestamptz | ColumnType::Boolean | ColumnType::Cents => {
                    assert_eq!(with(json!(word)), (None, true), "{name}");
                }
                ColumnType::TextArray => {
                    let within = column.at.split_once("/*").map(|(_, within)| within);
                    let listed = |elements: &[Value]| {
                        let mut changed = record.clone();
                        let element = |value: &Value| element(within.unwrap_or_default(), value.clone());
                        put(&mut changed.raw, whole, elements.iter().map(element).collect());
                        read(stream, &changed, place)
                    };
                    let both = Some(format!(r#"{{"{word}","{BIG}"}}"#));
                    assert_eq!(listed(&[json!(word), beyond()]), (both.clone(), false), "{name}");
                    assert_eq!(listed(&[json!(word), json!({})]), (None, true), "{name}: no list of texts");
                    let mut no_list = record.clone();
                    put(&mut no_list.raw, whole, json!(word));
                    assert_eq!(read(stream, &no_list, place).0, None, "{name}");
                    // One of the list is not set, or lacks what is gathered from the others.
                    let some = [json!(word), Value::Null, json!(""), beyond()];
                    assert_eq!(listed(&some), (both, false), "{name}");
                    let none = within.is_none().then(|| "{}".to_owned());
                    assert_eq!(listed(&[Value::Null]), (none, false), "{name}");
                }
            }
        }
    });
}

/// An element of a list, with `value` where the rest of a pointer leads.
fn element(within: &str, value: Value) -> Value {
    if within.is_empty() {
        return value;
    }
    let mut element = json!({});
    put(&mut element, within, value);
    element
}

fn beyond() -> Value {
    serde_json::from_str(BIG).expect("a number")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_value_costs_a_row(junk in junk()) {
        for_every_record(|stream, record| {
            let mut changed = record.clone();
            for column in stream.columns {
                put(&mut changed.raw, column.at.split("/*").next().unwrap_or_default(), junk.clone());
            }
            let (row, misfits) = extract::row(stream, &changed);
            assert_eq!(row.id, record.id);
            assert_eq!(row.cells.len(), stream.columns.len());
            assert!(misfits.len() <= stream.columns.len());
        });
    }
}

fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        "[0-9]{1,40}(\\.[0-9]{1,20})?".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("id|[a-z]{1,4}", inner, 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn for_every_record(check: impl Fn(&'static StreamSpec, &Record)) {
    static ALL: LazyLock<Vec<(&'static StreamSpec, Record)>> =
        LazyLock::new(|| REGISTRY.iter().flat_map(|provider| records(*provider, |_| {})).collect());
    assert!(!ALL.is_empty());
    ALL.iter().for_each(|(stream, record)| check(stream, record));
}

/// A column's cell, and whether its value did not fit.
fn read(stream: &'static StreamSpec, record: &Record, place: usize) -> (Option<String>, bool) {
    let column = &stream.columns[place];
    let misfit = values::cell(column.kind, &record.raw, column.at) == Cell::Misfit;
    let (row, _) = extract::row(stream, record);
    (row.cells[place].clone(), misfit)
}

/// Puts a value where a pointer leads, making the way there where a record has none.
fn put(raw: &mut Value, pointer: &str, value: Value) {
    let mut place = raw;
    for key in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[key];
    }
    *place = value;
}

fn put_null(raw: &mut Value, pointer: &str) {
    put(raw, pointer, Value::Null);
}

/// Takes away what a pointer leads to.
fn take(raw: &mut Value, pointer: &str) {
    let Some((parent, key)) = pointer.rsplit_once('/') else { return };
    if let Some(fields) = raw.pointer_mut(parent).and_then(Value::as_object_mut) {
        fields.remove(key);
    }
}
