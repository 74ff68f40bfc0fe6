//! Search: filters, one sort, pages by offset, ten thousand results and no more, and an index that lags.

use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Account;
use super::filter::{Field, Group, Test, field_of, understand};
use super::objects::{close_results, read_json};
use super::properties::Catalogue;
use super::refusals::Refusal;
use super::ticket::{Standing, Ticket, Version};

/// The most results on a page, and how many without a limit.
const PAGE_MAX: usize = 200;
const PAGE_DEFAULT: usize = 10;
/// Paging does not reach beyond this result.
pub const RESULTS_MAX: usize = 10_000;
/// The longest body, in characters.
const BODY_CHARS_MAX: usize = 3_000;
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    #[serde(default)]
    filter_groups: Vec<Group>,
    #[serde(default)]
    sorts: Vec<Value>,
    #[serde(default)]
    properties: Vec<String>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    after: Value,
    #[serde(default)]
    query: Option<String>,
}

/// What search shows at a moment.
pub struct Sight<'a> {
    pub account: &'a Account,
    pub now_ms: i64,
    /// [`RESULTS_MAX`], or less on purpose.
    pub results_max: usize,
}

/// `POST …/tickets/search`.
pub fn search(sight: &Sight<'_>, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    if body.len() > BODY_CHARS_MAX && String::from_utf8_lossy(body).chars().count() > BODY_CHARS_MAX {
        return Err(Refusal::invalid(&format!(
            "The request body is longer than {BODY_CHARS_MAX} characters"
        )));
    }
    let asked: Asked = read_json(body)?;
    let catalogue = &sight.account.catalogue;
    let groups = understand(catalogue, &asked.filter_groups)?;
    let sort = sort_of(catalogue, &asked.sorts)?;
    let limit = asked.limit.unwrap_or(PAGE_DEFAULT);
    let offset = read_offset(&asked.after)?;
    if limit > PAGE_MAX {
        return Err(Refusal::invalid(&format!(
            "Invalid input: limit must be at most {PAGE_MAX}, was {limit}"
        )));
    }
    let results_max = sight.results_max;
    if offset + limit > results_max {
        return Err(Refusal::invalid(&format!(
            "Paging beyond {results_max} results is not possible, after was {offset}"
        )));
    }
    let phrase = asked.query.as_deref().filter(|phrase| !phrase.is_empty()).map(str::to_lowercase);
    let mut hits = hits(sight, &groups, phrase.as_deref());
    order(&mut hits, sort);
    Ok(answer(sight.account, &hits, &asked.properties, offset, limit))
}

/// Search's cursor is a number in text; the list's cursor is none.
fn read_offset(after: &Value) -> Result<usize, Refusal> {
    let text = match after {
        Value::Null => return Ok(0),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        let message =
            format!("Cannot deserialize value of type `int` from String \"{text}\": not a valid `int` value");
        Refusal::invalid(&message)
    })
}

/// The one sort: `{"propertyName": …, "direction": …}`, or a name with `-` before it to descend.
fn sort_of(catalogue: &Catalogue, sorts: &[Value]) -> Result<(Field, bool), Refusal> {
    let (name, descending) = match sorts {
        // Without a wish, the oldest come first.
        [] => return Ok((Field::Created, false)),
        [Value::String(name)] => (name.trim_start_matches('-'), name.starts_with('-')),
        [Value::Object(sort)] => {
            let name = sort.get("propertyName").and_then(Value::as_str).unwrap_or_default();
            (name, sort.get("direction").and_then(Value::as_str) == Some("DESCENDING"))
        }
        _ => return Err(Refusal::invalid("Only one sort is allowed")),
    };
    Ok((field_of(catalogue, name)?, descending))
}

type Hit<'a> = (&'a Ticket, &'a Version);

/// The tickets that fit one of the groups, by id; archived ones are never among them.
fn hits<'a>(sight: &Sight<'a>, groups: &[Vec<Test>], phrase: Option<&str>) -> Vec<Hit<'a>> {
    let seen = sight.account.tickets.iter().filter_map(|ticket| {
        let version = sight.account.indexed(ticket, sight.now_ms)?.as_ref();
        (version.standing == Standing::Live).then_some((ticket, version))
    });
    let fits = |&(ticket, version): &Hit<'a>| {
        let all = |group: &Vec<Test>| group.iter().all(|test| test.holds(ticket, version));
        (groups.is_empty() || groups.iter().any(all)) && says(sight.account, version, phrase)
    };
    seen.filter(fits).collect()
}

fn says(account: &Account, version: &Version, phrase: Option<&str>) -> bool {
    let Some(phrase) = phrase else { return true };
    let text = |name| account.catalogue.index(name).and_then(|index| version.text(index));
    ["subject", "content"].into_iter().filter_map(text).any(|text| text.to_lowercase().contains(phrase))
}

/// The hits are by id already; those without a value come last.
fn order(hits: &mut [Hit<'_>], (field, descending): (Field, bool)) {
    if field == Field::Id {
        if descending {
            hits.reverse();
        }
        return;
    }
    let key = |&(ticket, version): &Hit<'_>| field.value(ticket, version);
    hits.sort_by(|a, b| match (key(a), key(b)) {
        (Some(a), Some(b)) => {
            let order = a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal);
            if descending { order.reverse() } else { order }
        }
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
}

fn answer(
    account: &Account,
    hits: &[Hit<'_>],
    properties: &[String],
    offset: usize,
    limit: usize,
) -> Vec<u8> {
    let selection = account.catalogue.select(properties.iter().map(String::as_str));
    let end = (offset + limit).min(hits.len());
    let mut out = format!("{{\"total\":{},\"results\":[", hits.len()).into_bytes();
    for (_, version) in hits.get(offset..end).unwrap_or_default() {
        version.write(&mut out, &account.catalogue, &selection);
        out.extend_from_slice(b"},");
    }
    close_results(&mut out);
    if end < hits.len() && offset < end {
        let next = json!({"next": {"after": end.to_string()}});
        out.extend_from_slice(format!(",\"paging\":{next}").as_bytes());
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::hubspot::account::{Moment, Values};

    const AT: Moment = Moment { now_ms: 1_767_603_600_000, seen_ms: 1_767_603_600_000 };

    /// Five tickets around the id that gets a digit more, a second apart.
    fn account() -> Account {
        let mut account = Account::new(1, "x.example");
        account.next_id = 9_999_999_998;
        for (index, subject) in ["alpha", "Beta two", "gamma", "delta", ""].iter().enumerate() {
            let values = Values::from([
                ("subject".to_owned(), Some((*subject).to_owned())),
                ("nps_score".to_owned(), (index > 0).then(|| (index * 5).to_string())),
                ("meter_reading".to_owned(), (index == 2).then(|| "n/a".to_owned())),
            ]);
            let when = AT.now_ms + 1000 * i64::try_from(index).unwrap();
            account.create(None, &values, Some(when), AT).unwrap();
        }
        account
    }

    fn run(account: &Account, body: &Value) -> Result<Value, u16> {
        let sight = Sight { account, now_ms: i64::MAX, results_max: RESULTS_MAX };
        let bytes = search(&sight, body.to_string().as_bytes()).map_err(|refusal| refusal.status)?;
        Ok(serde_json::from_slice(&bytes).unwrap())
    }

    fn found(account: &Account, filter: Value) -> Vec<usize> {
        let body = json!({"filterGroups": [{"filters": [filter]}]});
        let answer = run(account, &body).unwrap();
        let ids = answer["results"].as_array().unwrap().iter();
        ids.map(|row| account.position(row["id"].as_str().unwrap().parse().unwrap()).unwrap()).collect()
    }

    #[test]
    fn operators() {
        let account = account();
        let filter = |property: &str, operator: &str, value: &str| json!({"propertyName": property, "operator": operator, "value": value});
        for (filter, expected) in [
            // As text, 9999999999 would be above 10000000000.
            (filter("hs_object_id", "GT", "9999999999"), vec![2, 3, 4]),
            (filter("hs_object_id", "LTE", "9999999999"), vec![0, 1]),
            (filter("hs_lastmodifieddate", "GTE", "1767603602000"), vec![2, 3, 4]),
            (filter("hs_lastmodifieddate", "LT", "2026-01-05T09:00:02Z"), vec![0, 1]),
            (filter("hs_lastmodifieddate", "EQ", "1767603603000"), vec![3]),
            (filter("createdate", "GT", "2026-01-05"), vec![0, 1, 2, 3, 4]),
            (filter("nps_score", "GT", "9"), vec![2, 3, 4]),
            (filter("subject", "EQ", "gamma"), vec![2]),
            (filter("subject", "NEQ", "gamma"), vec![0, 1, 3]),
            (filter("subject", "CONTAINS_TOKEN", "beta"), vec![1]),
            (filter("subject", "NOT_CONTAINS_TOKEN", "beta"), vec![0, 2, 3]),
            (filter("subject", "HAS_PROPERTY", ""), vec![0, 1, 2, 3]),
            (filter("subject", "NOT_HAS_PROPERTY", ""), vec![4]),
            (filter("nps_score", "NOT_HAS_PROPERTY", ""), vec![0]),
            (filter("meter_reading", "HAS_PROPERTY", ""), vec![2]),
            (filter("meter_reading", "GTE", "0"), vec![]),
            (
                json!({"propertyName": "nps_score", "operator": "BETWEEN", "value": "5", "highValue": "10"}),
                vec![1, 2],
            ),
            (json!({"propertyName": "subject", "operator": "IN", "values": ["alpha", "delta"]}), vec![0, 3]),
            (
                json!({"propertyName": "subject", "operator": "NOT_IN", "values": ["alpha", "delta"]}),
                vec![1, 2],
            ),
        ] {
            assert_eq!(found(&account, filter.clone()), expected, "{filter}");
        }
    }

    #[test]
    fn groups_are_alternatives_sorts_hold_and_pages_follow() {
        let account = account();
        let group =
            |subject| json!({"filters": [{"propertyName": "subject", "operator": "EQ", "value": subject}]});
        let body = json!({
            "filterGroups": [group("alpha"), group("gamma"), group("delta")], "limit": 2,
            "sorts": [{"propertyName": "hs_object_id", "direction": "DESCENDING"}], "properties": ["subject"],
        });
        let first = run(&account, &body).unwrap();
        assert_eq!((&first["total"], &first["paging"]["next"]["after"]), (&json!(3), &json!("2")));
        assert_eq!(first["results"][0]["properties"]["subject"], "delta");
        let mut rest = body.clone();
        rest["after"] = json!("2");
        let rest = run(&account, &rest).unwrap();
        assert_eq!((rest["results"].as_array().unwrap().len(), rest.get("paging")), (1, None));
        let by_score = run(&account, &json!({"sorts": ["-nps_score"]})).unwrap();
        let scores: Vec<&Value> =
            by_score["results"].as_array().unwrap().iter().map(|row| &row["id"]).collect();
        assert_eq!(scores.first(), Some(&&json!(account.tickets[4].id.to_string())));
        assert_eq!(scores.last(), Some(&&json!(account.tickets[0].id.to_string())), "without a value: last");
    }

    #[test]
    fn what_is_refused() {
        let account = account();
        let filter = json!({"propertyName": "subject", "operator": "EQ", "value": "x"});
        for (body, what) in [
            (json!({"after": "dGlja2V0c3wx"}), "the list's cursor"),
            (json!({"after": "9900", "limit": 200}), "beyond ten thousand"),
            (json!({"limit": 201}), "too long a page"),
            (json!({"sorts": ["subject", "content"]}), "two sorts"),
            (json!({"filterGroups": [{"filters": vec![filter.clone(); 7]}]}), "seven filters"),
            (json!({"filterGroups": vec![json!({"filters": [filter]}); 6]}), "six groups"),
            (json!({"query": "x".repeat(3000)}), "too long a body"),
            (
                json!({"filterGroups": [{"filters": [{"propertyName": "no", "operator": "EQ", "value": "1"}]}]}),
                "no property",
            ),
            (
                json!({"filterGroups": [{"filters": [{"propertyName": "subject", "operator": "EQ"}]}]}),
                "no value",
            ),
            (
                json!({"filterGroups": [{"filters": [{"propertyName": "createdate", "operator": "GT", "value": "x"}]}]}),
                "no date",
            ),
        ] {
            assert_eq!(run(&account, &body), Err(400), "{what}");
        }
        assert!(run(&account, &json!({"after": "9800", "limit": 200})).is_ok());
        let few = Sight { account: &account, now_ms: i64::MAX, results_max: 3 };
        let page = |after: &str| search(&few, json!({"after": after, "limit": 2}).to_string().as_bytes());
        assert_eq!((page("1").is_ok(), page("2").map_err(|refusal| refusal.status).err()), (true, Some(400)));
    }
}
