//! The view of an account's own properties.

use serde_json::json;

use super::*;
use crate::domain::view::{ViewColumn, ViewType};

fn columns(properties: Value) -> Vec<ViewColumn> {
    let facts = Facts::from([(properties::TICKET_PROPERTIES.to_owned(), properties)]);
    HubSpot.account_view(&facts).expect("properties are known").columns
}

#[test]
fn types() {
    for (word, kind) in [
        ("string", ViewType::Text),
        ("enumeration", ViewType::Text),
        ("phone_number", ViewType::Text),
        ("json", ViewType::Text),
        ("object_coordinates", ViewType::Text),
        ("of tomorrow", ViewType::Text),
        ("number", ViewType::Numeric),
        ("bool", ViewType::Boolean),
        ("datetime", ViewType::Timestamptz),
        ("date", ViewType::Date),
    ] {
        let column = columns(json!([["p", word]])).remove(0);
        assert_eq!(column.kind, kind, "{word}");
    }
}

#[test]
fn names_are_kept_as_they_are() {
    for name in ["subject", "Odd \"Name\"", "with/slash~", "ünïcode", &"p".repeat(70)] {
        let column = columns(json!([[name, "string"]])).remove(0);
        assert_eq!(
            (column.name.as_str(), column.path),
            (name, vec!["properties".to_owned(), name.to_owned()])
        );
    }
}

#[test]
fn what_is_no_property_is_left_out() {
    assert_eq!(HubSpot.account_view(&Facts::new()), None);
    assert_eq!(columns(json!([["a", "string"], [], ["b"], "c", null, [1, "string"]])).len(), 1);
}
