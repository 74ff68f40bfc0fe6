//! What a query costs before it is sent, by Jobber's own rules ("API rate limits", query cost): 1 for each field,
//! objects included, nothing for `nodes`, `edges` and `node`; a connection costs its fields as often as its `first`
//! says, nested ones multiply, and one without `first` counts as if it said 100.

use serde_json::Value;

use crate::domain::graphql::{self, Field};

const FIRST_DEFAULT: u32 = 100;

/// The cost of a document that is ours, with these variables.
pub(super) fn points(document: &str, variables: &Value) -> u32 {
    let operation = graphql::parse(document).expect("our own documents can be read; a test reads each");
    sum(&operation.fields, variables)
}

fn sum(fields: &[Field], variables: &Value) -> u32 {
    fields.iter().map(|field| of(field, variables)).fold(0, u32::saturating_add)
}

fn of(field: &Field, variables: &Value) -> u32 {
    let inside = || sum(&field.fields, variables);
    match field.name.as_str() {
        "nodes" | "edges" | "node" => inside(),
        _ if ["nodes", "edges"].iter().any(|list| field.field(list).is_some()) => {
            let first = field.argument("first").map(|first| first.value(variables));
            let first = first.and_then(|first| u32::try_from(first.as_u64()?).ok()).unwrap_or(FIRST_DEFAULT);
            let page = field.field("pageInfo").map_or(0, |page| of(page, variables));
            (inside() - page).saturating_mul(first).saturating_add(page).saturating_add(1)
        }
        _ => inside().saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::points;

    #[test]
    fn by_the_rules_of_the_documentation() {
        for (document, expected) in [
            ("{ account { id name } }", 3),
            ("{ jobs(first: 100) { nodes { id } } }", 101),
            ("{ jobs { edges { node { id } } } }", 101),
            ("{ jobs(first: $n) { nodes { id client { id } } pageInfo { endCursor } } }", 1 + 50 * 3 + 2),
            (
                "{ jobs(first: 50) { nodes { id visits(first: 10) { nodes { id title } } } } }",
                1 + 50 * (1 + 1 + 20),
            ),
            ("{ jobs(first: 4000000000) { nodes { visits { nodes { id } } } } }", u32::MAX),
        ] {
            assert_eq!(points(document, &json!({"n": 50})), expected, "{document}");
        }
    }
}
