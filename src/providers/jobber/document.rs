//! The queries, and what of them is asked for.
//!
//! A fragment's first line of fields is needed; each line after the comment is one part that a query can do without,
//! named by its first word, which is the field of the record that it fills.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::list::id_of;
use crate::domain::failure::Failure;
use crate::domain::record::Record;

pub(super) const ACCOUNT: &str = include_str!("account.graphql");
pub(super) const DISCONNECT: &str = include_str!("disconnect.graphql");
pub(super) const CHANGED_JOBS: &str = include_str!("changed.graphql");

const RECENT: &str = include_str!("recent.graphql");
/// The second list of [`Records::recent`].
pub(super) const CREATED: &str = "created";

/// The list within a visit, and how many of it come along.
const PEOPLE: &str = "assignedUsers";
const PEOPLE_FIRST: &str = "first: 10";

/// How the records of a stream are asked for.
#[derive(Debug)]
pub(super) struct Records {
    /// The list's field, and that of one record.
    pub(super) list: &'static str,
    pub(super) one: &'static str,
    query: &'static str,
    fields: &'static str,
    /// The scope that shows them, where its name is known.
    pub(super) scope: Option<&'static str>,
}

pub(super) static JOBS: Records = Records {
    list: "jobs",
    one: "job",
    query: include_str!("jobs.graphql"),
    fields: include_str!("job.graphql"),
    scope: Some("read_jobs"),
};
pub(super) static VISITS: Records = Records {
    list: "visits",
    one: "visit",
    query: include_str!("visits.graphql"),
    fields: include_str!("visit.graphql"),
    scope: None,
};
pub(super) static CLIENTS: Records = Records {
    list: "clients",
    one: "client",
    query: include_str!("clients.graphql"),
    fields: include_str!("client.graphql"),
    scope: Some("read_clients"),
};

impl Records {
    /// The query for a page, without some of its parts. `filter` is an object in GraphQL's own writing: a literal
    /// needs no name of a type, and the types of filters are named differently from version to version.
    pub(super) fn page(&self, without: &[String], filter: Option<&str>) -> String {
        let filter = filter.map_or_else(String::new, |filter| format!("filter: {filter},"));
        format!("{}\n{}", self.query.replace("# filter", &filter), self.fields_without(without))
    }

    /// The query for the first pages of changed jobs and of two lists of visits at once: by either filter.
    pub(super) fn recent(&self, without: &[String], window: &str, created: &str) -> String {
        let query = RECENT.replace("# window", &format!("filter: {window},"));
        let query = query.replace("# created", &format!("filter: {created},"));
        format!("{query}\n{}", self.fields_without(without))
    }

    /// The query for the further people of some visits, as `r0`, `r1` and so on: ids, and the cursors behind those known.
    pub(super) fn people(&self, of: &[(&str, &str)]) -> String {
        let line = self.parts().find(|(name, _)| *name == PEOPLE).map_or("", |(_, line)| line.trim());
        let one = |(place, (id, after)): (usize, &(&str, &str))| {
            let people = line.replace(PEOPLE_FIRST, &format!("first: $people, after: {}", quoted(after)));
            format!("  r{place}: {}(id: {}) {{ id {people} }}\n", self.one, quoted(id))
        };
        let ones: String = of.iter().enumerate().map(one).collect();
        format!("query People($people: Int!) {{\n  account {{ id }}\n{ones}}}\n")
    }

    /// The query for some records by their ids, as `r0`, `r1` and so on.
    pub(super) fn some(&self, ids: &[String], without: &[String]) -> String {
        let one = |(place, id): (usize, &String)| {
            format!("  r{place}: {}(id: {}) {{ ...Fields }}\n", self.one, quoted(id))
        };
        let ones: String = ids.iter().enumerate().map(one).collect();
        format!("query Probe {{\n  account {{ id }}\n{ones}}}\n{}", self.fields_without(without))
    }

    /// The parts that a query can do without: name and line.
    fn parts(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let optional = self.fields.lines().skip_while(|line| !line.contains('#')).skip(1);
        optional.filter_map(|line| {
            let name = line.trim().split(|c: char| !c.is_alphanumeric()).next()?;
            (!name.is_empty()).then_some((name, line))
        })
    }

    fn fields_without(&self, without: &[String]) -> String {
        let kept = self.fields.lines().filter(|line| !line.contains('#')).filter(|line| {
            let dropped =
                |(name, part): (&str, &str)| part == *line && without.iter().any(|gone| gone == name);
            !self.parts().any(dropped)
        });
        kept.flat_map(|line| [line, "\n"]).collect()
    }

    /// The parts to do without from now on, when a query without `without` was refused for what `names` says: the one
    /// that is named or holds what is named, and all that is left where nothing is named that is asked for. Empty: leaving
    /// out does not help.
    pub(super) fn also_without(&self, names: &[String], without: &[String]) -> Vec<String> {
        if let Some(part) = self.part_of(names, without) {
            return vec![part.to_owned()];
        }
        let needed = self.fields.lines().take_while(|line| !line.contains('#'));
        let mut asked = needed.chain(self.query.lines()).chain([self.one]);
        if names.first().is_some_and(|name| asked.any(|line| holds(line, name))) {
            return Vec::new();
        }
        self.left(without).map(|(part, _)| part.to_owned()).collect()
    }

    /// The part that a refusal names, or that holds what it names.
    pub(super) fn part_of(&self, names: &[String], without: &[String]) -> Option<&'static str> {
        let by_name = self.left(without).find(|(part, _)| names.iter().any(|name| name == part));
        let within =
            || self.left(without).find(|(_, line)| names.first().is_some_and(|name| holds(line, name)));
        by_name.or_else(within).map(|(part, _)| part)
    }

    /// The parts that are asked for still.
    fn left(&self, without: &[String]) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.parts().filter(|(name, _)| !without.iter().any(|gone| gone == name))
    }

    /// A record as it was answered to a query without some parts.
    pub(super) fn record(
        &self,
        node: &Value,
        sent_at: DateTime<Utc>,
        without: &[String],
    ) -> Result<Record, Failure> {
        let lacks = self.parts().map(|(name, _)| name).filter(|part| without.iter().any(|gone| gone == part));
        let without = lacks.map(str::to_owned).collect();
        Ok(Record { id: id_of(node)?, raw: node.clone(), sent_at, deleted: None, without })
    }
}

fn holds(line: &str, name: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric()).any(|word| word == name)
}

/// A text as a literal; GraphQL escapes as JSON does.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::graphql;

    #[test]
    fn every_document_can_be_read() {
        for document in [ACCOUNT, DISCONNECT, CHANGED_JOBS] {
            graphql::parse(document).unwrap();
        }
        for (records, parts) in [(&JOBS, 8), (&VISITS, 3), (&CLIENTS, 6)] {
            assert_eq!(records.parts().count(), parts, "{}", records.list);
            let all: Vec<String> = records.parts().map(|(name, _)| name.to_owned()).collect();
            for without in [&all[..0], &all[..1], &all] {
                let page = records.page(without, Some("{createdAt: {after: \"x\"}}"));
                let operation = graphql::parse(&page).unwrap();
                let list = operation.fields.iter().find(|field| field.name == records.list).unwrap();
                assert_eq!(list.argument("filter").is_some(), records.query.contains("# filter"), "{page}");
                let nodes = list.field("nodes").unwrap();
                assert!(without.iter().all(|part| nodes.field(part).is_none()), "{page}");
                assert_eq!(nodes.field(&all[2]).is_some(), without.len() < 3, "{page}");
                assert!(nodes.field("id").is_some(), "{page}");
                let some = records.some(&["a\"b".to_owned(), "c".to_owned()], without);
                let roots = graphql::parse(&some).unwrap().fields.into_iter().map(|field| field.name);
                assert_eq!(roots.collect::<Vec<_>>(), ["account", records.one, records.one], "{some}");
            }
        }
    }

    #[test]
    fn people_are_asked_for_behind_those_that_are_known() {
        let document = VISITS.people(&[("V\"1", "c1"), ("V2", "c2")]);
        let fields = graphql::parse(&document).unwrap().fields;
        assert_eq!(fields.iter().map(graphql::Field::key).collect::<Vec<_>>(), ["account", "r0", "r1"]);
        let people = fields[2].field(PEOPLE).unwrap();
        let given = |name: &str| people.argument(name).unwrap().value(&serde_json::json!({"people": 50}));
        assert_eq!((given("first"), given("after")), (50.into(), "c2".into()), "{document}");
        assert!(VISITS.fields.contains(PEOPLE_FIRST) && people.field("pageInfo").is_some(), "{document}");
    }

    #[test]
    fn two_lists_of_visits_are_told_apart() {
        let both = VISITS.recent(
            &["assignedUsers".to_owned()],
            "{startAt: {after: \"x\"}}",
            "{createdAt: {after: \"y\"}}",
        );
        let fields = graphql::parse(&both).unwrap().fields;
        assert_eq!(
            fields.iter().map(graphql::Field::key).collect::<Vec<_>>(),
            ["account", "jobs", "visits", CREATED]
        );
        assert!(
            fields[2..].iter().all(|list| list.name == "visits" && list.argument("filter").is_some()),
            "{both}"
        );
        assert!(fields[3].field("nodes").unwrap().field("assignedUsers").is_none(), "{both}");
    }

    #[test]
    fn what_is_refused_is_left_out() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (refused, without, expected) in [
            (&["total"][..], &[][..], &["total"][..]),
            (&["name", "jobs", "nodes", "client", "name"], &[], &["client"]),
            (&["outstandingAmount"], &[], &["jobBalanceTotals"]),
            (&["street"], &["client"], &["property"]),
            // What is needed cannot be left out, and all else stays.
            (&["startAt"], &[], &[]),
            (&["jobs"], &[], &[]),
            // The name is of nothing that is asked for: all is left out, once.
            (
                &["mystery"],
                &["client", "property", "total", "jobType", "billingType", "instructions"],
                &["jobberWebUri", "jobBalanceTotals"],
            ),
        ] {
            assert_eq!(JOBS.also_without(&names(refused), &names(without)), expected, "{refused:?}");
        }
        let all: Vec<String> = JOBS.parts().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(JOBS.also_without(&[], &[]), all);
        assert!(JOBS.also_without(&names(&["mystery"]), &all).is_empty());
    }
}
