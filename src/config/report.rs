//! What `fieldmirror config` shows: every setting in force and where it came from, secrets masked.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Loaded;
use super::reader::InForce;

/// One setting in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Such as `sync` or `providers.hubspot`.
    pub section: String,
    pub key: String,
    /// As written in a settings file; a secret is `"[secret]"` when it is set and null when not.
    pub value: Value,
    /// `default`, `file PATH`, `environment NAME`, `credential NAME` or `flag --NAME`. For a secret from a file it is
    /// that file.
    pub origin: String,
}

impl Row {
    /// The value for a text table: texts without quotes, `-` for what is not set.
    pub fn text(&self) -> String {
        match &self.value {
            Value::Null => "-".to_owned(),
            Value::String(text) if text.is_empty() => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }
}

/// `{"settings":{"section":{"key":{"value":…,"origin":"…"}}}}`
pub fn report(loaded: &Loaded) -> Value {
    let mut sections = Map::new();
    for row in loaded.rows() {
        let entry = json!({ "value": row.value, "origin": row.origin });
        let section = sections.entry(row.section.clone()).or_insert_with(|| Map::new().into());
        section[row.key.as_str()] = entry;
    }
    json!({ "settings": sections })
}

pub(super) fn rows(in_force: BTreeMap<String, InForce>) -> Vec<Row> {
    in_force
        .into_iter()
        .map(|(path, InForce { value, origin })| {
            let (section, key) = path.rsplit_once('.').unwrap_or(("", &path));
            Row { section: section.to_owned(), key: key.to_owned(), value, origin }
        })
        .collect()
}
