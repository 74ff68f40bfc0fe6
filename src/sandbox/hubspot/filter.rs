//! Search's filters: what they may be, what they compare, and whether a ticket fits.

use serde::Deserialize;

use super::properties::Catalogue;
use super::refusals::Refusal;
use super::ticket::{Ticket, Version};

/// HubSpot has told three different limits over the years; these are the tightest.
const GROUPS_MAX: usize = 5;
const FILTERS_PER_GROUP_MAX: usize = 6;
const FILTERS_MAX: usize = 18;

/// Filters that must all hold. Of several groups, one must.
#[derive(Deserialize)]
pub struct Group {
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    property_name: String,
    operator: Operator,
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    high_value: Option<String>,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Operator {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
    Between,
    In,
    NotIn,
    HasProperty,
    NotHasProperty,
    ContainsToken,
    NotContainsToken,
}

/// Where a filter or a sort finds what it compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Id,
    Created,
    Updated,
    Number(usize),
    Text(usize),
}

/// What is compared. Numbers stand before text.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub enum Operand {
    Number(f64),
    Text(String),
}

/// A filter that has been understood.
pub struct Test {
    field: Field,
    operator: Operator,
    operands: Vec<Operand>,
}

/// Checks the number of filters, and makes tests of them.
pub fn understand(catalogue: &Catalogue, groups: &[Group]) -> Result<Vec<Vec<Test>>, Refusal> {
    let filters: usize = groups.iter().map(|group| group.filters.len()).sum();
    let widest = groups.iter().map(|group| group.filters.len()).max().unwrap_or(0);
    if groups.len() > GROUPS_MAX || widest > FILTERS_PER_GROUP_MAX || filters > FILTERS_MAX {
        return Err(Refusal::invalid("There are too many filter groups or filters"));
    }
    let tests = |group: &Group| group.filters.iter().map(|filter| Test::of(catalogue, filter)).collect();
    groups.iter().map(tests).collect()
}

/// Where a property is found; one that does not exist is refused.
pub fn field_of(catalogue: &Catalogue, name: &str) -> Result<Field, Refusal> {
    let index = catalogue.index(name);
    let index =
        index.ok_or_else(|| Refusal::invalid(&format!("Property {name} does not exist on TICKET")))?;
    Ok(match name {
        "hs_object_id" => Field::Id,
        "createdate" => Field::Created,
        "hs_lastmodifieddate" => Field::Updated,
        _ if catalogue.get(index).is_numeric() => Field::Number(index),
        _ => Field::Text(index),
    })
}

/// A number, or a date as milliseconds: written as a number, or as ISO 8601 with or without a time.
fn number(text: &str) -> Option<f64> {
    let date =
        || Some(text.parse::<chrono::NaiveDate>().ok()?.and_hms_opt(0, 0, 0)?.and_utc().timestamp_millis());
    let time = || Some(chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis());
    #[expect(clippy::cast_precision_loss, reason = "milliseconds and ids of this sandbox are below 2^53")]
    let millis = |ms: i64| ms as f64;
    text.parse().ok().or_else(|| time().or_else(date).map(millis))
}

impl Test {
    fn of(catalogue: &Catalogue, filter: &Filter) -> Result<Self, Refusal> {
        let field = field_of(catalogue, &filter.property_name)?;
        let given: Vec<&String> = match filter.operator {
            Operator::In | Operator::NotIn => filter.values.iter().collect(),
            Operator::HasProperty | Operator::NotHasProperty => Vec::new(),
            Operator::Between => filter.value.iter().chain(&filter.high_value).collect(),
            _ => filter.value.iter().collect(),
        };
        let expected = match filter.operator {
            Operator::In | Operator::NotIn => given.len().max(1),
            Operator::HasProperty | Operator::NotHasProperty => 0,
            Operator::Between => 2,
            _ => 1,
        };
        if given.len() != expected {
            let message =
                format!("operator {:?} lacks a value for {}", filter.operator, filter.property_name);
            return Err(Refusal::invalid(&message));
        }
        let operands = given.into_iter().map(|text| field.operand(text)).collect::<Result<_, _>>()?;
        Ok(Self { field, operator: filter.operator, operands })
    }

    /// A record without a value fits no filter but `NOT_HAS_PROPERTY`. HubSpot does not say how its negations take
    /// such records; a reader should not lean on it.
    pub fn holds(&self, ticket: &Ticket, version: &Version) -> bool {
        match self.operator {
            Operator::HasProperty => self.field.is_set(version),
            Operator::NotHasProperty => !self.field.is_set(version),
            _ => self.field.value(ticket, version).is_some_and(|value| self.compare(&value)),
        }
    }

    fn compare(&self, value: &Operand) -> bool {
        let first = self.operands.first();
        let at_least = |operand: Option<&Operand>| operand.is_some_and(|operand| value >= operand);
        let at_most = |operand: Option<&Operand>| operand.is_some_and(|operand| value <= operand);
        match self.operator {
            Operator::HasProperty | Operator::NotHasProperty => true,
            Operator::Eq => Some(value) == first,
            Operator::Neq => Some(value) != first,
            Operator::Lt => !at_least(first),
            Operator::Lte => at_most(first),
            Operator::Gt => !at_most(first),
            Operator::Gte => at_least(first),
            Operator::Between => at_least(first) && at_most(self.operands.get(1)),
            Operator::In => self.operands.contains(value),
            Operator::NotIn => !self.operands.contains(value),
            Operator::ContainsToken => contains_token(value, first),
            Operator::NotContainsToken => !contains_token(value, first),
        }
    }
}

fn contains_token(value: &Operand, token: Option<&Operand>) -> bool {
    let (Operand::Text(text), Some(Operand::Text(token))) = (value, token) else { return false };
    let token = token.to_lowercase();
    text.to_lowercase().split(|c: char| !c.is_alphanumeric()).any(|word| word == token.trim_matches('*'))
}

impl Field {
    fn operand(self, text: &str) -> Result<Operand, Refusal> {
        match self {
            Self::Text(_) => Ok(Operand::Text(text.to_owned())),
            _ => number(text)
                .map(Operand::Number)
                .ok_or_else(|| Refusal::invalid(&format!("\"{text}\" is not a number or a date"))),
        }
    }

    /// Whether there is a value, be it one that is no number in a property of numbers.
    fn is_set(self, version: &Version) -> bool {
        match self {
            Self::Number(index) | Self::Text(index) => version.text(index).is_some(),
            Self::Id | Self::Created | Self::Updated => true,
        }
    }

    /// What is compared; nothing when there is no value or, in a property of numbers, none that is a number.
    pub fn value(self, ticket: &Ticket, version: &Version) -> Option<Operand> {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds and ids of this sandbox are below 2^53")]
        match self {
            Self::Id => Some(Operand::Number(ticket.id as f64)),
            Self::Created => Some(Operand::Number(version.created_ms as f64)),
            Self::Updated => Some(Operand::Number(version.updated_ms as f64)),
            Self::Number(index) => number(&version.text(index)?).map(Operand::Number),
            Self::Text(index) => Some(Operand::Text(version.text(index)?.into_owned())),
        }
    }
}
