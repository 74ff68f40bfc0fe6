//! The properties that a ticket has: HubSpot's own (a good part of them) and an account's custom ones of every type.

use std::borrow::Cow;
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

/// Group of HubSpot's own properties.
const OWN: &str = "ticketinformation";
/// Group of an account's custom properties.
const CUSTOM: &str = "field_service";

/// `(name, label, type, fieldType, group)`, sorted by name.
#[rustfmt::skip]
const BUILT_IN: &[(&str, &str, &str, &str, &str)] = &[
    ("affected_systems", "Affected systems", "enumeration", "checkbox", CUSTOM),
    ("callback_number", "Callback number", "phone_number", "phonenumber", CUSTOM),
    ("closed_date", "Close date", "datetime", "date", OWN),
    ("content", "Ticket description", "string", "textarea", OWN),
    ("created_by", "Created by", "number", "number", OWN),
    ("createdate", "Create date", "datetime", "date", OWN),
    ("first_agent_reply_date", "First agent email response date", "datetime", "date", OWN),
    ("hs_all_owner_ids", "All owner IDs", "enumeration", "checkbox", OWN),
    ("hs_all_team_ids", "All team IDs", "enumeration", "checkbox", OWN),
    ("hs_created_by_user_id", "Created by user ID", "number", "number", OWN),
    ("hs_file_upload", "File upload", "string", "file", OWN),
    ("hs_is_visible_in_help_desk", "Visible in help desk", "bool", "booleancheckbox", OWN),
    ("hs_last_message_received_at", "Date of last message received", "datetime", "date", OWN),
    ("hs_lastactivitydate", "Last activity date", "datetime", "date", OWN),
    ("hs_lastmodifieddate", "Last modified date", "datetime", "date", OWN),
    ("hs_merged_object_ids", "Merged ticket IDs", "enumeration", "checkbox", OWN),
    ("hs_num_times_contacted", "Number of times contacted", "number", "number", OWN),
    ("hs_object_id", "Record ID", "number", "number", OWN),
    ("hs_object_source", "Record creation source", "string", "text", OWN),
    ("hs_object_source_id", "Record creation source ID", "string", "text", OWN),
    ("hs_object_source_label", "Record source", "enumeration", "select", OWN),
    ("hs_pipeline", "Pipeline", "enumeration", "select", OWN),
    ("hs_pipeline_stage", "Ticket status", "enumeration", "select", OWN),
    ("hs_read_only", "Read only object", "bool", "booleancheckbox", OWN),
    ("hs_resolution", "Resolution", "enumeration", "select", OWN),
    ("hs_ticket_category", "Category", "enumeration", "checkbox", OWN),
    ("hs_ticket_id", "Ticket ID", "number", "number", OWN),
    ("hs_ticket_priority", "Priority", "enumeration", "select", OWN),
    ("hs_ticket_reopened_at", "Reopened at", "datetime", "date", OWN),
    ("hs_unique_creation_key", "Unique creation key", "string", "text", OWN),
    ("hs_updated_by_user_id", "Updated by user ID", "number", "number", OWN),
    ("hs_user_ids_of_all_owners", "User IDs of all owners", "enumeration", "checkbox", OWN),
    ("hs_v2_date_entered_1", "Date entered \"New\"", "datetime", "date", OWN),
    ("hs_v2_date_entered_4", "Date entered \"Closed\"", "datetime", "date", OWN),
    ("hs_was_imported", "Performed in an import", "bool", "booleancheckbox", OWN),
    ("hubspot_owner_assigneddate", "Owner assigned date", "datetime", "date", OWN),
    ("hubspot_owner_id", "Ticket owner", "enumeration", "select", OWN),
    ("hubspot_team_id", "HubSpot team", "enumeration", "select", OWN),
    ("last_reply_date", "Last customer reply date", "datetime", "date", OWN),
    ("meter_reading", "Meter reading", "number", "number", CUSTOM),
    ("notes_last_updated", "Last activity", "datetime", "date", OWN),
    ("nps_score", "Conversation NPS score", "number", "number", OWN),
    ("num_notes", "Number of sales activities", "number", "number", OWN),
    ("preferred_date", "Preferred date", "date", "date", CUSTOM),
    ("promised_by", "Promised by", "datetime", "date", CUSTOM),
    ("quoted_amount", "Quoted amount", "number", "number", CUSTOM),
    ("second_visit_2024", "Second visit?", "enumeration", "radio", CUSTOM),
    ("site_address", "Site address", "string", "text", CUSTOM),
    ("source_type", "Source", "enumeration", "select", OWN),
    ("subject", "Ticket name", "string", "text", OWN),
    ("time_to_close", "Time to close", "number", "number", OWN),
    ("time_to_first_agent_reply", "Time to first agent email reply", "number", "number", OWN),
    ("under_warranty", "Under warranty", "bool", "booleancheckbox", CUSTOM),
];

/// What is answered when no properties are asked for.
pub const DEFAULTS: &[&str] =
    &["content", "hs_pipeline", "hs_pipeline_stage", "hs_ticket_category", "hs_ticket_priority", "subject"];
/// What is answered in any case.
pub const ALWAYS: &[&str] = &["createdate", "hs_lastmodifieddate", "hs_object_id"];

pub const CATEGORIES: &[&str] = &["PRODUCT_ISSUE", "BILLING_ISSUE", "FEATURE_REQUEST", "GENERAL_INQUIRY"];
pub const PRIORITIES: &[&str] = &["LOW", "MEDIUM", "HIGH", "URGENT"];
pub const SOURCES: &[&str] = &["CHAT", "EMAIL", "FORM", "PHONE"];
pub const RESOLUTIONS: &[&str] = &["ISSUE_FIXED", "CUSTOMER_NO_RESPONSE", "DUPLICATE"];
pub const SYSTEMS: &[&str] = &["heating", "cooling", "water", "power", "drainage"];

/// 15 January 2024, 8 o'clock.
const BUILT_IN_SINCE: i64 = 1_705_305_600;

/// One property's definition.
#[derive(Debug, Clone)]
pub struct Property {
    pub name: String,
    pub label: String,
    pub kind: String,
    pub field: String,
    pub group: &'static str,
    pub created_at: DateTime<Utc>,
}

impl Property {
    /// Whether values are compared as numbers; dates are numbers of milliseconds.
    pub fn is_numeric(&self) -> bool {
        matches!(self.kind.as_str(), "number" | "date" | "datetime")
    }

    /// As `/crm/properties/…/tickets` tells it.
    pub fn to_json(&self) -> Value {
        let options = options(&self.name).iter().enumerate().map(|(order, value)| {
            json!({"label": value, "value": value, "displayOrder": order, "hidden": false, "description": ""})
        });
        let own = self.group == OWN;
        let calculated = self.name.starts_with("time_to_") || self.name.starts_with("hs_v2_");
        json!({
            "name": self.name, "label": self.label, "type": self.kind, "fieldType": self.field,
            "description": "", "groupName": self.group, "options": options.collect::<Vec<_>>(),
            "displayOrder": -1, "calculated": calculated, "hubspotDefined": own, "hidden": false,
            "externalOptions": matches!(self.name.as_str(), "hubspot_owner_id" | "hs_merged_object_ids"),
            "hasUniqueValue": self.name == "hs_object_id", "formField": !own, "archived": false,
            "dataSensitivity": "non_sensitive", "createdAt": self.created_at, "updatedAt": self.created_at,
            "modificationMetadata": {"archivable": !own, "readOnlyDefinition": own, "readOnlyValue": calculated},
        })
    }
}

fn options(name: &str) -> &'static [&'static str] {
    match name {
        "hs_ticket_category" => CATEGORIES,
        "hs_ticket_priority" => PRIORITIES,
        "source_type" => SOURCES,
        "hs_resolution" => RESOLUTIONS,
        "affected_systems" => SYSTEMS,
        "second_visit_2024" => &["yes", "no"],
        _ => &[],
    }
}

/// An account's properties, each with a number by which rendered tickets find its value.
pub struct Catalogue {
    list: Vec<Property>,
    by_name: HashMap<String, usize>,
}

/// Which properties an answer is to carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    All,
    /// By number, ascending.
    Some(Vec<usize>),
}

impl Catalogue {
    pub fn new() -> Self {
        let mut catalogue = Self { list: Vec::new(), by_name: HashMap::new() };
        for &(name, label, kind, field, group) in BUILT_IN {
            catalogue.push(Property {
                name: name.to_owned(),
                label: label.to_owned(),
                kind: kind.to_owned(),
                field: field.to_owned(),
                group,
                created_at: DateTime::from_timestamp(BUILT_IN_SINCE, 0).expect("a time"),
            });
        }
        catalogue
    }

    fn push(&mut self, property: Property) {
        self.by_name.insert(property.name.clone(), self.list.len());
        self.list.push(property);
    }

    /// A new custom property, as an admin makes one. Says whether the name was free.
    pub fn add(&mut self, name: &str, kind: &str, created_at: DateTime<Utc>) -> bool {
        let free = self.index(name).is_none();
        if free {
            let (label, field) =
                (name.replace('_', " "), if kind == "bool" { "booleancheckbox" } else { "text" });
            let (name, kind, field) = (name.to_owned(), kind.to_owned(), field.to_owned());
            self.push(Property { name, label, kind, field, group: CUSTOM, created_at });
        }
        free
    }

    pub fn all(&self) -> &[Property] {
        &self.list
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn get(&self, index: usize) -> &Property {
        &self.list[index]
    }

    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// What is answered when these are asked for; unknown names are ignored, no names mean the defaults.
    pub fn select<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Selection {
        let mut wanted: Vec<usize> =
            names.into_iter().filter(|n| !n.is_empty()).filter_map(|n| self.index(n)).collect();
        if wanted.is_empty() {
            wanted = DEFAULTS.iter().filter_map(|name| self.index(name)).collect();
        }
        wanted.extend(ALWAYS.iter().filter_map(|name| self.index(name)));
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.len() == self.list.len() { Selection::All } else { Selection::Some(wanted) }
    }
}

/// A ticket's values before they are rendered: text, or nothing.
#[derive(Debug, Clone)]
pub struct Draft {
    pub values: Vec<Option<Cow<'static, str>>>,
    /// Where the values are rendered before they are kept. Drafts are used again and again while a world is made:
    /// a buffer per ticket, shrunk to fit, would leave a hole in memory each time.
    pub scratch: Vec<u8>,
}

impl Draft {
    pub fn empty(catalogue: &Catalogue) -> Self {
        Self { values: vec![None; catalogue.len()], scratch: Vec::new() }
    }

    /// Unsets everything.
    pub fn clear(&mut self) {
        self.values.fill(None);
    }

    /// Sets a property that the catalogue is known to have.
    pub fn set(&mut self, catalogue: &Catalogue, name: &str, value: impl Into<Cow<'static, str>>) {
        let index = catalogue.index(name).expect("only properties of the built-in list are set by name");
        self.values[index] = Some(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::{BUILT_IN, Catalogue, Selection};

    #[test]
    fn the_list_is_sorted_and_has_every_type() {
        assert!(BUILT_IN.is_sorted_by(|a, b| a.0 < b.0));
        for kind in ["string", "number", "bool", "date", "datetime", "enumeration", "phone_number"] {
            assert!(BUILT_IN.iter().any(|row| row.2 == kind), "{kind}");
        }
    }

    #[test]
    fn selections() {
        let mut catalogue = Catalogue::new();
        let names = |selection: &Selection, catalogue: &Catalogue| match selection {
            Selection::All => vec!["(all)".to_owned()],
            Selection::Some(list) => list.iter().map(|&index| catalogue.get(index).name.clone()).collect(),
        };
        let chosen = catalogue.select(["subject", "no_such", "subject"]);
        let expected = ["createdate", "hs_lastmodifieddate", "hs_object_id", "subject"];
        assert_eq!(names(&chosen, &catalogue), expected);
        assert_eq!(names(&catalogue.select([]), &catalogue).len(), 9);
        let every: Vec<String> = catalogue.all().iter().map(|property| property.name.clone()).collect();
        assert_eq!(catalogue.select(every.iter().map(String::as_str)), Selection::All);
        let now = chrono::DateTime::UNIX_EPOCH;
        assert!(catalogue.add("roof_pitch", "number", now));
        assert!(!catalogue.add("roof_pitch", "number", now));
        assert_ne!(catalogue.select(every.iter().map(String::as_str)), Selection::All);
    }
}
