//! What a provider sends and the description of its stream does not foresee.

use serde_json::Value;

/// Characters of what stands in `mirror.drift`: fields, words, examples.
pub const TEXT_MAX: usize = 100;
/// Keys of an object that a description names.
const KEYS_SHOWN_MAX: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftKind {
    /// A key that no record had before.
    NewField,
    /// A key that nearly every record had, and none has any more.
    VanishedField,
    /// A value that is not of its column's type.
    Misfit,
    /// A word that its column's list does not have.
    UnknownWord,
}

impl DriftKind {
    /// The word in `mirror.drift`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NewField => "new_field",
            Self::VanishedField => "vanished_field",
            Self::Misfit => "misfit",
            Self::UnknownWord => "unknown_value",
        }
    }
}

/// One thing that was not foreseen, in one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    pub kind: DriftKind,
    /// Where in `raw`: a JSON pointer.
    pub field: String,
    pub column: Option<&'static str>,
    /// The word that is not known; otherwise empty.
    pub value: String,
    pub example: Option<String>,
}

/// A value that is a column's: numbers, flags and words of a list say nothing of a person.
pub fn example(value: &Value) -> String {
    match value {
        Value::Object(_) | Value::Array(_) => kind_of(value),
        Value::String(text) => cut(text),
        other => cut(&other.to_string()),
    }
}

/// What sort of value it is. Of a field that nobody knows, the value itself may be anybody's name.
pub fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "boolean".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "text".to_owned(),
        Value::Array(items) => match items.first() {
            Some(first) => cut(&format!("array of {}", kind_of(first))),
            None => "array".to_owned(),
        },
        Value::Object(fields) => {
            let keys: Vec<&str> = fields.keys().map(String::as_str).take(KEYS_SHOWN_MAX).collect();
            let more = if fields.len() > KEYS_SHOWN_MAX { ", …" } else { "" };
            cut(&format!("object ({}{more})", keys.join(", ")))
        }
    }
}

/// At most [`TEXT_MAX`] characters that Postgres can store.
pub fn cut(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_tell_no_values() {
        for (value, expected) in [
            (json!(null), "null"),
            (json!("Ana Ruiz"), "text"),
            (json!(1.5), "number"),
            (json!(true), "boolean"),
            (json!([]), "array"),
            (json!([{"id": 7, "name": "Ana"}]), "array of object (id, name)"),
            (json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}), "object (a, b, c, d, e, …)"),
        ] {
            assert_eq!(kind_of(&value), expected);
        }
        assert_eq!(example(&json!("soon\0")), "soon");
        assert_eq!(example(&json!(12)), "12");
        assert_eq!(example(&json!({"at": "Ana"})), "object (at)");
        assert_eq!(cut(&"ü".repeat(300)).chars().count(), TEXT_MAX);
    }
}
