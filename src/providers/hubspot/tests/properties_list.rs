//! What a list of properties that has grown means for tickets.

use serde_json::json;

use super::*;
use crate::domain::spec::Mode;
use crate::domain::step::Walk;

/// Which streams the list of these properties renews, where `subject` was known before, as of noon.
fn renewed(facts: &Facts, listed: &Value) -> Vec<&'static str> {
    let noon = "2026-11-26T12:00:00Z".parse().unwrap();
    let walk = Walk { mode: Mode::Snapshot, started_at: noon, from: None, facts_as_of: Some(noon) };
    let cx = StepContext { facts, ..StepContext::bare(&properties::STREAM, &walk) };
    let replies = vec![reply(200, json(json!({"results": listed})))];
    match properties::step(&cx, &Position::start(), replies).unwrap() {
        Step::Emit { page, .. } => {
            assert!(page.facts.contains_key(properties::TICKET_PROPERTIES));
            page.renews
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn tickets_are_read_again_where_a_property_that_is_new_to_us_may_have_values_already() {
    let known = Facts::from([(properties::TICKET_PROPERTIES.to_owned(), json!([["subject", "string"]]))]);
    let with = |property: Value| json!([{"name": "subject", "createdAt": "2020-01-01T00:00:00Z"}, property]);
    for (property, renews) in [
        (json!({"name": "subject"}), false),
        // Created since: whoever sets it moves the ticket's own time.
        (json!({"name": "roof", "createdAt": "2026-11-26T12:00:00Z"}), false),
        // Archived until now, or not to be seen by this app.
        (json!({"name": "roof", "createdAt": "2026-11-26T11:59:59.999Z"}), true),
        (json!({"name": "hs_roof"}), true),
        (json!({"name": "roof", "createdAt": "yesterday"}), true),
    ] {
        let expected: &[&str] = if renews { &["tickets"] } else { &[] };
        assert_eq!(renewed(&known, &with(property.clone())), expected, "{property}");
        assert_eq!(renewed(&Facts::new(), &with(property)), Vec::<&str>::new(), "nothing was read yet");
    }
    let fewer = json!([{"name": "createdate"}]);
    let known = json!([["subject", "string"], ["createdate", "datetime"]]);
    let known = Facts::from([(properties::TICKET_PROPERTIES.to_owned(), known)]);
    assert_eq!(renewed(&known, &fewer), Vec::<&str>::new());
}
