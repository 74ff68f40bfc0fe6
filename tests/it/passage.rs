//! What providers may send at any time and must never lose a record: fields and words that nobody knows yet, values that
//! are null or not there, ids that no float holds. For every record of every provider's conversations.

mod tables;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::LazyLock;

use fieldmirror::domain::record::Record;
use fieldmirror::domain::spec::{ColumnType, Mode, StreamSpec};
use fieldmirror::domain::values::{self, Cell};
use fieldmirror::providers::REGISTRY;
use fieldmirror::sync::extract;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{Spoken, Told, records};
use crate::support::pages::each_record;

/// Beyond 2^53: the next float is another number.
const BIG: &str = "9007199254740993";

const BEYOND: u128 = 9_007_199_254_740_993;

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

/// What decides about a record or a walk by not being there: by the beginnings of tables and fields. These are in
/// conversations of their own, and in the tables' test.
const DECIDES: [(&str, &[Mode], &str); 6] = [
    // What is shown as redacted and says nothing of that is a record.
    ("oncehub_bookings", &Mode::ALL, "/deleted"),
    ("servicetitan_", &Mode::ALL, "/active"),
    // Whether a ticket is archived, and since when: what does not say so is read, and lives.
    ("hubspot_tickets", &Mode::ALL, "/archived"),
    // A page without a time is not known to be below the bound: the walk goes on.
    ("housecallpro_", &[Mode::Incremental], "/updated_at"),
    ("jobber_", &[Mode::Incremental], "/updatedAt"),
    // A list within the record, with pages of its own.
    ("jobber_visits", &[Mode::Backfill], "/assignedUsers"),
];

/// Pages as providers would send them: one field of every record, and then all of them, is null, or is not there. All is
/// asked as before, no record is lost, and its row says what it said but for that.
#[test]
fn every_field_may_be_null_or_absent_in_what_is_sent() {
    let mut seen = BTreeSet::new();
    for provider in REGISTRY {
        let mut all = Spoken::all(*provider);
        // What a short conversation has shown need not be shown by a long one.
        all.sort_by_cached_key(|spoken| {
            spoken.clone().words().map(|word| word.to_string().len()).sum::<usize>()
        });
        for mut spoken in all {
            let (stream, mode) = (spoken.stream, spoken.mode);
            let mut fields = BTreeSet::new();
            spoken
                .words()
                .for_each(|word| each_record(word, &mut |record| fields_of(record, "", &mut fields)));
            fields.retain(|field| !is_identity(stream, field) && !decides(stream, mode, field));
            let plain = spoken.told();
            let one = |field: &String| {
                seen.insert((stream.table, mode, field.clone())).then(|| vec![field.clone()])
            };
            let each: Vec<Vec<String>> = fields.iter().filter_map(one).collect();
            for lacking in each.iter().chain([&fields.into_iter().collect()]) {
                for change in [put_null_there, take] {
                    lacks(&spoken, &plain, lacking, change);
                }
            }
        }
    }
    assert!(seen.len() > 500, "{}", seen.len());
}

fn decides(stream: &StreamSpec, mode: Mode, field: &str) -> bool {
    DECIDES.iter().any(|(table, modes, name)| {
        stream.table.starts_with(table) && modes.contains(&mode) && field.starts_with(name)
    })
}

/// Nothing is a record without its id; a stage's key is made of two.
fn is_identity(stream: &StreamSpec, field: &str) -> bool {
    field == if stream.id == "/key" { "/id" } else { stream.id }
}

fn fields_of(value: &Value, before: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let field = format!("{before}/{name}");
                fields_of(value, &field, found);
                found.insert(field);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields_of(item, &format!("{before}/*"), found)),
        _ => {}
    }
}

fn lacks(spoken: &Spoken, plain: &Told, fields: &[String], change: Change) {
    let name = &format!("{} without {}", spoken.folder.display(), fields.join(", "));
    let _in_hand = InHand(name);
    let change = |record: &mut Value| fields.iter().for_each(|field| each(record, field, change));
    let told = spoken.changed(|body| each_record(body, &mut |record| change(record))).told();
    assert_eq!((told.asked, &told.end), (plain.asked, &plain.end), "{name}");
    assert_eq!(told.records.len(), plain.records.len(), "{name}");
    let stream = spoken.stream;
    for (plain, told) in plain.records.iter().zip(&told.records) {
        let mut expected = plain.clone();
        change(&mut expected.raw);
        expected.raw.get_mut("pipeline").into_iter().for_each(change);
        assert_eq!((&told.id, &told.raw), (&expected.id, &expected.raw), "{name}");
        assert_eq!(told.deleted.is_some(), plain.deleted.is_some(), "{name}");
        let ((was, _), (is, _)) = (extract::row(stream, plain), extract::row(stream, told));
        for (place, column) in stream.columns.iter().enumerate() {
            let at = column.at.strip_prefix("/pipeline").unwrap_or(column.at);
            let within = |field: &String| at == field || at.starts_with(&format!("{field}/"));
            let lacks = fields.iter().any(|field| within(field) || format!("{at}/id") == *field);
            let wanted = if lacks && told.raw != plain.raw { None } else { was.cells[place].clone() };
            assert_eq!(is.cells[place], wanted, "{name}: {}", column.name);
        }
    }
}

/// Names what was at hand when a conversation took another way.
struct InHand<'a>(&'a str);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

type Change = fn(&mut Value, &str);

/// Does something wherever a pointer leads; `*` stands for every element.
fn each(value: &mut Value, field: &str, change: Change) {
    match field.split_once("/*") {
        Some((list, of_each)) => {
            for item in value.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                each(item, of_each, change);
            }
        }
        None => change(value, field),
    }
}

fn put_null_there(raw: &mut Value, pointer: &str) {
    if let Some(there) = raw.pointer_mut(pointer) {
        *there = Value::Null;
    }
}

/// Pages in which every id is beyond 2^53, the records' own and those of others: a number where it was one, digits where it
/// was a text.
#[test]
fn every_id_may_be_beyond_what_a_float_holds() {
    // Properties are known by their names.
    let has_ids = |stream: &StreamSpec| stream.id != "/name";
    for provider in REGISTRY {
        let mut with = BTreeSet::new();
        for mut spoken in Spoken::all(*provider).into_iter().filter(|spoken| has_ids(spoken.stream)) {
            let plain = spoken.told();
            spoken.words().for_each(enlarge);
            let told = spoken.told();
            let name = spoken.folder.display();
            assert_eq!(told.asked, plain.asked, "{name}");
            assert_eq!(told.records.len(), plain.records.len(), "{name}");
            for (plain, told) in plain.records.iter().zip(&told.records) {
                let mut expected = plain.clone();
                enlarge(&mut expected.raw);
                assert_eq!((&told.id, &told.raw), (&large(&plain.id), &expected.raw), "{name}");
                let (row, _) = extract::row(spoken.stream, told);
                assert!(told.id.len() >= BIG.len() && row.id == told.id, "{name}: {}", told.id);
                with.insert(spoken.stream.name);
            }
        }
        let all = provider.spec().streams.iter().filter(|stream| has_ids(stream));
        assert_eq!(with.len(), all.count(), "{}", provider.spec().name);
    }
}

/// Makes large what its name says is an id.
pub fn enlarge(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if is_id(name) {
                    enlarge_id(value);
                } else if name != "account" {
                    enlarge(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(enlarge),
        _ => {}
    }
}

/// A type is no record; what a ticket belongs to stands under the name of the kind.
fn is_id(name: &str) -> bool {
    let is = ["id", "ids", "key", "companies", "contacts"].contains(&name);
    is || (["Id", "_id", "_ids"].iter().any(|end| name.ends_with(end)) && name != "typeId")
}

fn enlarge_id(value: &mut Value) {
    match value {
        Value::Number(number) => {
            *value = serde_json::from_str(&large(&number.to_string())).expect("a number");
        }
        Value::String(text) => *text = large(text),
        Value::Array(items) => items.iter_mut().for_each(enlarge_id),
        other => enlarge(other),
    }
}

/// Digits grow, in their order; another word becomes digits.
pub fn large(id: &str) -> String {
    let more = |word: &str| {
        let number = word.parse::<u128>().unwrap_or_else(|_| {
            let mut hasher = DefaultHasher::new();
            word.hash(&mut hasher);
            u128::from(hasher.finish() >> 32)
        });
        if word.is_empty() { String::new() } else { (number + BEYOND).to_string() }
    };
    let parts = id.split_inclusive(['/', ';']);
    let parts = parts.map(|part| match part.strip_suffix(['/', ';']) {
        Some(word) => format!("{}{}", more(word), &part[word.len()..]),
        None => more(part),
    });
    parts.collect()
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
