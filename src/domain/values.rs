//! Lenient reading of JSON values into typed columns. A value that does not fit is reported, never guessed.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};
use serde_json::Value;

use super::spec::ColumnType;

/// Characters of a number.
const DIGITS_MAX: usize = 400;

/// A value of a column, as text that Postgres reads without fail; or why it has none.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    Null,
    Text(Cow<'a, str>),
    Array(Vec<Cow<'a, str>>),
    /// The value is there but is not of the column's type.
    Misfit,
}

/// Reads `value` as `kind`. Absent, null and the empty string are all "unset"
/// (HubSpot sends `""` for a cleared property; others send null or leave the key out).
pub fn read(kind: ColumnType, value: Option<&Value>) -> Cell<'_> {
    let value = match value {
        None | Some(Value::Null) => return Cell::Null,
        Some(Value::String(text)) if text.is_empty() => return Cell::Null,
        Some(value) => value,
    };
    match kind {
        ColumnType::Text => text(value).map_or(Cell::Misfit, Cell::Text),
        ColumnType::Timestamptz => match timestamp(value) {
            Some(time) => Cell::Text(time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into()),
            None => Cell::Misfit,
        },
        ColumnType::Numeric => number(value).map_or(Cell::Misfit, Cell::Text),
        ColumnType::Bigint => integer(value).map_or(Cell::Misfit, |n| Cell::Text(n.to_string().into())),
        ColumnType::Boolean => match boolean(value) {
            Some(flag) => Cell::Text(if flag { "true" } else { "false" }.into()),
            None => Cell::Misfit,
        },
        ColumnType::TextArray => match value {
            Value::Array(items) => array(items),
            _ => Cell::Misfit,
        },
        ColumnType::Cents => cents(value).map_or(Cell::Misfit, |major| Cell::Text(major.into())),
        ColumnType::Reference => match value {
            Value::Object(fields) => read(ColumnType::Text, fields.get("id")),
            plain => text(plain).map_or(Cell::Misfit, Cell::Text),
        },
    }
}

/// Reads the column at `pointer` of a record. `*` in the pointer of an array stands for every element.
pub fn cell<'a>(kind: ColumnType, record: &'a Value, pointer: &str) -> Cell<'a> {
    if kind != ColumnType::TextArray || !pointer.contains('*') {
        return read(kind, at(record, pointer));
    }
    match array(all(record, pointer)) {
        Cell::Array(items) if items.is_empty() => Cell::Null,
        other => other,
    }
}

/// Elements that are not set are left out: they say nothing of the others.
fn array<'a>(items: impl IntoIterator<Item = &'a Value>) -> Cell<'a> {
    let is_set = |value: &&Value| !value.is_null() && value.as_str() != Some("");
    let set = items.into_iter().filter(is_set).map(text);
    set.collect::<Option<Vec<_>>>().map_or(Cell::Misfit, Cell::Array)
}

/// All that a pointer with `*` leads to, in order.
fn all<'a>(value: &'a Value, pointer: &str) -> Vec<&'a Value> {
    let Some((before, after)) = pointer.split_once("/*") else {
        return at(value, pointer).into_iter().collect();
    };
    let items = at(value, before).and_then(Value::as_array);
    items.into_iter().flatten().flat_map(|item| all(item, after)).collect()
}

/// Takes what `pointer` leads to out of a record; `*` stands for every element of an array.
pub fn omit(value: &mut Value, pointer: &str) {
    let (parent, key) = match pointer.split_once("/*") {
        Some((before, after)) => {
            if let Some(Value::Array(items)) = value.pointer_mut(before) {
                for item in items {
                    omit(item, after);
                }
            }
            return;
        }
        None => pointer.rsplit_once('/').unwrap_or(("", pointer)),
    };
    if let Some(Value::Object(fields)) = value.pointer_mut(parent) {
        fields.remove(key);
    }
}

/// What a JSON pointer leads to: `Value::pointer`, without a copy of each of its parts.
pub fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    if pointer.contains('~') {
        return value.pointer(pointer);
    }
    let mut parts = pointer.split('/');
    if parts.next() != Some("") {
        return None;
    }
    parts.try_fold(value, |value, part| match value {
        Value::Object(fields) => fields.get(part),
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Scalars as text: strings as they are, numbers in the digits that were sent, booleans as words. Objects and arrays
/// do not fit. U+0000, which Postgres cannot store, is dropped.
pub fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) if text.contains('\0') => Some(text.replace('\0', "").into()),
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(flag) => Some(if *flag { "true" } else { "false" }.into()),
        _ => None,
    }
}

/// RFC 3339 with any fraction, a bare date (midnight UTC), `YYYY-MM-DD HH:MM:SS UTC`, or epoch milliseconds as number
/// or text (float text included).
pub fn timestamp(value: &Value) -> Option<DateTime<Utc>> {
    match value {
        Value::String(text) => timestamp_text(text.trim()),
        Value::Number(number) => epoch_ms(number.as_f64()?),
        _ => None,
    }
}

fn timestamp_text(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return storable(time.with_timezone(&Utc));
    }
    // Jobber's tokens; and times without a zone, which Housecall Pro and ServiceTitan send now and then and mean UTC.
    for form in ["%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%dT%H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, form) {
            return storable(time.and_utc());
        }
    }
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return storable(date.and_hms_opt(0, 0, 0)?.and_utc());
    }
    epoch_ms(text.parse().ok()?)
}

#[expect(clippy::cast_possible_truncation, reason = "bounded by the check before the cast")]
fn epoch_ms(ms: f64) -> Option<DateTime<Utc>> {
    const YEAR_9999_MS: f64 = 253_402_300_799_000.0;
    if !(ms.is_finite() && ms.abs() <= YEAR_9999_MS) {
        return None;
    }
    storable(DateTime::from_timestamp_millis(ms as i64)?)
}

/// Years 1 to 9999: what RFC 3339 text and Postgres agree on.
fn storable(time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    use chrono::Datelike;
    (1..=9999).contains(&time.year()).then_some(time)
}

/// Decimal digits with sign, fraction and exponent, kept as they were sent.
pub fn number(value: &Value) -> Option<Cow<'_, str>> {
    let text: Cow<'_, str> = match value {
        Value::Number(number) => number.to_string().into(),
        Value::String(text) => text.trim().into(),
        _ => return None,
    };
    let decimal = text.len() <= DIGITS_MAX
        && text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'))
        && text.parse::<f64>().is_ok_and(f64::is_finite);
    // Postgres takes no more than 16,383 digits behind the point: an exponent beyond three digits is none of money.
    let exponent = text.find(['e', 'E']).map_or("", |at| &text[at + 1..]);
    (decimal && exponent.trim_start_matches(['+', '-', '0']).len() <= 3).then_some(text)
}

/// A whole number of hundredths, in major units.
fn cents(value: &Value) -> Option<String> {
    let digits = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        _ => return None,
    };
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let padded = format!("{digits:0>3}");
    let (whole, hundredths) = padded.split_at(padded.len() - 2);
    Some(format!("{sign}{whole}.{hundredths}"))
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(kind: ColumnType, value: Value, expected: Option<&str>) {
        let cell = read(kind, Some(&value));
        let got = match &cell {
            Cell::Text(text) => Some(text.as_ref()),
            Cell::Null | Cell::Misfit | Cell::Array(_) => None,
        };
        assert_eq!(got, expected, "{kind:?} {value}");
    }

    #[test]
    fn pointers_lead_where_those_of_serde_json_do() {
        let value = json!({"a": {"b": [1, {"c": "d"}], "": 2}, "~": {"/": 3}, "n": null});
        let pointers =
            ["", "/", "a", "/a", "/a/b/1/c", "/a/b/2", "/a/b/c", "/a/", "/~0/~1", "/n", "/n/x", "/a/b/0/x"];
        for pointer in pointers {
            assert_eq!(at(&value, pointer), value.pointer(pointer), "{pointer}");
        }
    }

    #[test]
    fn timestamps() {
        let t = ColumnType::Timestamptz;
        check(t, json!("2026-01-05T09:00:01.123Z"), Some("2026-01-05T09:00:01.123Z"));
        check(t, json!("2026-01-05T09:00:01+02:00"), Some("2026-01-05T07:00:01Z"));
        check(t, json!("2026-01-05T09:00:01.1234567Z"), Some("2026-01-05T09:00:01.123456700Z"));
        check(t, json!("2026-01-05T09:00:01"), Some("2026-01-05T09:00:01Z"));
        check(t, json!("2026-01-05T09:00:01.25"), Some("2026-01-05T09:00:01.250Z"));
        check(t, json!("2026-01-05"), Some("2026-01-05T00:00:00Z"));
        check(t, json!("2024-04-09 21:04:31 UTC"), Some("2024-04-09T21:04:31Z"));
        check(t, json!("1767603600000"), Some("2026-01-05T09:00:00Z"));
        check(t, json!("1767603600000.0"), Some("2026-01-05T09:00:00Z"));
        check(t, json!(1_767_603_600_000_i64), Some("2026-01-05T09:00:00Z"));
        check(t, json!("soon"), None);
        check(t, json!("99999999999999999"), None);
        check(t, json!({"at": 1}), None);
    }

    #[test]
    fn numbers_keep_their_digits() {
        let n = ColumnType::Numeric;
        check(n, json!("1.10"), Some("1.10"));
        check(n, serde_json::from_str("123456789012345678901.25").unwrap(), Some("123456789012345678901.25"));
        check(n, json!("12 apples"), None);
        check(n, json!("NaN"), None);
        check(n, json!("1e999"), None);
        check(n, json!("1e-99999"), None);
        check(n, json!("1e-0007"), Some("1e-0007"));
        check(n, json!("-"), None);
        check(
            ColumnType::Bigint,
            serde_json::from_str("9007199254740993").unwrap(),
            Some("9007199254740993"),
        );
        check(ColumnType::Bigint, json!("1.5"), None);
    }

    #[test]
    fn cents_become_major_units() {
        for (value, expected) in [
            (json!(12345), Some("123.45")),
            (json!(5), Some("0.05")),
            (json!(0), Some("0.00")),
            (json!(-250), Some("-2.50")),
            (json!("1999"), Some("19.99")),
            (serde_json::from_str("900719925474099312").unwrap(), Some("9007199254740993.12")),
            (json!(1.5), None),
            (json!("-"), None),
            (json!([1]), None),
        ] {
            check(ColumnType::Cents, value, expected);
        }
    }

    #[test]
    fn references_come_as_ids_or_as_objects() {
        check(ColumnType::Reference, json!("USR-1"), Some("USR-1"));
        check(ColumnType::Reference, json!(7), Some("7"));
        check(ColumnType::Reference, json!({"object": "user", "id": "USR-1"}), Some("USR-1"));
        check(ColumnType::Reference, json!({"object": "user"}), None);
        check(ColumnType::Reference, json!(["USR-1"]), None);
    }

    #[test]
    fn stars_gather_and_omit() {
        let mut record =
            json!({"staff": [{"id": 1, "pay": 9}, {"id": "b"}, {"id": null}, {"pay": 1}], "url": "u"});
        let texts = |cell: Cell<'_>| match cell {
            Cell::Array(items) => Some(items.into_iter().map(Cow::into_owned).collect::<Vec<_>>()),
            _ => None,
        };
        let kind = ColumnType::TextArray;
        assert_eq!(texts(cell(kind, &record, "/staff/*/id")), Some(vec!["1".into(), "b".into()]));
        assert_eq!(cell(kind, &record, "/none/*/id"), Cell::Null);
        assert_eq!(cell(kind, &json!({"staff": [{"id": {}}]}), "/staff/*/id"), Cell::Misfit);
        for pointer in ["/staff/*/pay", "/url", "/none/*/x", "/staff/0/none"] {
            omit(&mut record, pointer);
        }
        assert_eq!(record, json!({"staff": [{"id": 1}, {"id": "b"}, {"id": null}, {}]}));
    }

    #[test]
    fn unset_has_three_spellings() {
        for value in [None, Some(json!(null)), Some(json!(""))] {
            assert_eq!(read(ColumnType::Text, value.as_ref()), Cell::Null);
        }
    }

    #[test]
    fn text_and_flags() {
        check(ColumnType::Text, json!("a\u{0}b"), Some("ab"));
        check(ColumnType::Text, json!(7), Some("7"));
        check(ColumnType::Text, json!([1]), None);
        check(ColumnType::Boolean, json!("TRUE"), Some("true"));
        check(ColumnType::Boolean, json!("yes"), None);
        let value = json!(["1", null, 2, ""]);
        assert_eq!(read(ColumnType::TextArray, Some(&value)), Cell::Array(vec!["1".into(), "2".into()]));
        assert_eq!(read(ColumnType::TextArray, Some(&json!([]))), Cell::Array(Vec::new()));
        assert_eq!(read(ColumnType::TextArray, Some(&json!(["1", {}]))), Cell::Misfit);
    }
}
