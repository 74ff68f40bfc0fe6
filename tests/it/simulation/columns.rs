//! What a row's columns have to say, read from its `raw` by other means than the program's.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use fieldmirror::domain::spec::{ColumnType, StreamSpec};
use serde_json::{Map, Value, json};

/// The first column that says something else than `raw`; `cells` are all columns of the row as Postgres makes JSON of them.
pub fn wrong(stream: &StreamSpec, raw: &Value, cells: &Map<String, Value>) -> Option<String> {
    let base = [("source_created_at", stream.created_at), ("source_updated_at", stream.updated_at)];
    let base = base.into_iter().map(|(name, at)| (name, ColumnType::Timestamptz, at));
    let own = stream.columns.iter().map(|column| (column.name, column.kind, column.at));
    base.chain(own).find_map(|(name, kind, at)| {
        let (wanted, shown) = (wanted(kind, raw, at), shown(kind, &cells[name]));
        let same = same(kind, &wanted, &shown);
        (!same).then(|| format!("`{name}` says {shown}, and `raw` {wanted}"))
    })
}

fn same(kind: ColumnType, wanted: &Value, shown: &Value) -> bool {
    match (kind, wanted.as_i64(), shown.as_i64()) {
        // Of more than six digits Postgres rounds the last.
        (ColumnType::Timestamptz, Some(wanted), Some(shown)) => (wanted - shown).abs() <= 1,
        _ => wanted == shown,
    }
}

/// Times as microseconds since 1970, numbers with a fraction as the nearest of 64 bits.
fn shown(kind: ColumnType, cell: &Value) -> Value {
    match kind {
        ColumnType::Timestamptz => cell.as_str().and_then(micros).map_or(Value::Null, Value::from),
        ColumnType::Numeric | ColumnType::Cents => json!(cell.as_f64()),
        _ => cell.clone(),
    }
}

fn wanted(kind: ColumnType, raw: &Value, at: &str) -> Value {
    if let Some((list, of_each)) = at.split_once("/*") {
        let items = raw.pointer(list).and_then(Value::as_array).into_iter().flatten();
        let found: Vec<&Value> =
            items.filter_map(|item| item.pointer(of_each)).filter(|v| is_set(v)).collect();
        return if found.is_empty() { Value::Null } else { found.into_iter().filter_map(text).collect() };
    }
    let Some(value) = raw.pointer(at).filter(|value| is_set(value)) else { return Value::Null };
    let digits = text(value).unwrap_or_default();
    match kind {
        ColumnType::Text => json!(text(value)),
        ColumnType::Reference => json!(text(value.get("id").unwrap_or(value))),
        ColumnType::Boolean => digits.parse::<bool>().map_or(Value::Null, Value::from),
        ColumnType::Bigint => digits.parse::<i64>().map_or(Value::Null, Value::from),
        ColumnType::Numeric => digits.parse::<f64>().map_or(Value::Null, Value::from),
        ColumnType::Cents => {
            let cents = digits.parse::<i64>().ok();
            let sign = if cents.is_some_and(|cents| cents < 0) { "-" } else { "" };
            let major = cents.map(i64::abs).map(|cents| format!("{sign}{}.{:02}", cents / 100, cents % 100));
            json!(major.and_then(|major| major.parse::<f64>().ok()))
        }
        ColumnType::Timestamptz => match value {
            Value::String(text) => micros(text).map_or(Value::Null, Value::from),
            other => json!(other.as_i64().map(|millis| millis * 1_000)),
        },
        ColumnType::TextArray => match value {
            Value::Array(items) => items.iter().filter_map(text).collect(),
            _ => Value::Null,
        },
    }
}

fn is_set(value: &Value) -> bool {
    !value.is_null() && value != ""
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// A time with a zone, or without one, which is UTC; a day; or milliseconds since 1970.
fn micros(text: &str) -> Option<i64> {
    let zoned = DateTime::parse_from_rfc3339(text).map(|time| time.with_timezone(&Utc));
    let bare = || text.parse::<NaiveDateTime>().map(|time| time.and_utc());
    let day = || text.parse::<NaiveDate>().map(|day| day.and_time(chrono::NaiveTime::MIN).and_utc());
    let time = zoned.or_else(|_| bare()).or_else(|_| day());
    let millis = || text.parse::<i64>().ok().map(|millis| millis * 1_000);
    time.map(|time| time.timestamp_micros()).ok().or_else(millis)
}
