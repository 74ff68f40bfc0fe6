//! Pages of Jobber's lists, and where a walk stands in one.
//!
//! What a cursor means is not documented: it may stand for a record or for a number of places. In the second case a record
//! that is deleted while the list is read moves the rest up, and the next page would begin behind one that nobody has
//! seen. So each page but the first begins at the last record of the page before, and one that does not show it tells
//! that the list has shifted.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TITLE;
use crate::domain::failure::Failure;
use crate::domain::step::Reply;

/// Ids of a page that are kept to be met again.
const TAIL: usize = 5;
/// Shifts of a list after which it is read as it comes, and what was read of it is no longer the whole. So many that a long
/// read of a busy account ends as one of everything, and yet it ends.
const SHIFTS_MAX: u32 = 192;
/// What beginning anew counts as.
const ANEW: u32 = 16;

/// Where a list stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Place {
    /// The cursor behind which the next page begins; none: the list begins, or has come to its end.
    pub(super) after: Option<String>,
    /// That of the page before.
    back: Option<String>,
    /// The last ids of the page before: the next one shows some of them.
    tail: Vec<String>,
    /// How often the list has shifted.
    shifts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The page follows the one before.
    Follows,
    /// Something may lie between the two: the place is further up again.
    Shifted,
}

impl Place {
    /// Takes a page in.
    pub(super) fn take(&mut self, list: &Listed, name: &str) -> Result<Taken, Failure> {
        let next = list.overlap.as_ref().or(list.end.as_ref());
        if list.more && self.after.is_some() && [list.end.as_ref(), next].contains(&self.after.as_ref()) {
            return Err(Failure::changed(format!(
                "a page of {TITLE}'s `{name}` names itself as the next one"
            )));
        }
        let shows = |id: &String| list.nodes.iter().any(|node| id_of(node).is_ok_and(|shown| shown == *id));
        if !self.tail.is_empty() && self.shifts < SHIFTS_MAX && !self.tail.iter().any(shows) {
            self.step_back();
            return Ok(Taken::Shifted);
        }
        let ids = list.nodes.iter().map(id_of).collect::<Result<Vec<_>, _>>()?;
        self.back = self.after.take();
        self.after = next.filter(|_| list.more).cloned();
        let kept = if list.overlap.is_some() && list.more { TAIL.min(ids.len()) } else { 0 };
        self.tail = ids[ids.len() - kept..].to_vec();
        Ok(Taken::Follows)
    }

    /// The list has shifted so often that it was read as it came: something may lie between its pages.
    pub(super) fn is_unsteady(&self) -> bool {
        self.shifts >= SHIFTS_MAX
    }

    /// To the page before, and from there to the start.
    fn step_back(&mut self) {
        self.shifts += 1;
        self.after = self.back.take();
        if self.after.is_none() {
            self.tail = Vec::new();
            self.shifts += ANEW - 1;
        }
    }
}

/// A page of a connection.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) nodes: Vec<Value>,
    more: bool,
    /// The cursor of the last record, and the last that is another one.
    end: Option<String>,
    overlap: Option<String>,
}

impl Listed {
    pub(super) fn read(reply: &Reply, name: &str) -> Result<Self, Failure> {
        let list = reply.json().and_then(|body| body.pointer("/data")?.get(name));
        let lacks = |what: &str| Failure::changed(format!("{TITLE}'s answer to `{name}` has no {what}"));
        let nodes =
            list.and_then(|list| list.get("nodes")?.as_array()).ok_or_else(|| lacks("`nodes` list"))?;
        let info = list.and_then(|list| list.get("pageInfo"));
        let more = info.and_then(|info| info.get("hasNextPage")?.as_bool());
        let more = more.ok_or_else(|| lacks("`pageInfo.hasNextPage`"))?;
        let filled = |cursor: &Value| cursor.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let end = info.and_then(|info| filled(info.get("endCursor")?));
        if more && end.is_none() {
            return Err(lacks("`endCursor`"));
        }
        // A record may come twice, with its edge or without. A cursor further up only shows more again; where records are
        // missing, the last of them need not be the one that the next page would begin with.
        let edges = list.and_then(|list| list.get("edges")?.as_array());
        let edges = edges.filter(|edges| edges.len() <= nodes.len());
        let overlap = edges.and_then(|edges| {
            let mut cursors = edges.iter().rev().skip(1).filter_map(|edge| filled(edge.get("cursor")?));
            cursors.find(|cursor| Some(cursor) != end.as_ref())
        });
        Ok(Self { nodes: nodes.clone(), more, end, overlap })
    }
}

/// Ids are kept as they were sent: some are padded, some are not.
pub(super) fn id_of(node: &Value) -> Result<String, Failure> {
    let id = node.get("id").and_then(Value::as_str).filter(|id| !id.is_empty());
    id.map(str::to_owned).ok_or_else(|| Failure::changed(format!("{TITLE} sent a record without an id")))
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;

    use super::*;
    use crate::domain::step::Body;

    /// What a cursor stands for.
    #[derive(Clone, Copy, PartialEq)]
    enum Cursors {
        Places,
        Records,
    }

    /// A page of `ids`, of which the first is at the place `from`.
    fn page(cursors: Cursors, ids: &[&str], from: usize, more: bool) -> Listed {
        messed_page(cursors, ids, from, more, &|_| {})
    }

    fn messed_page(
        cursors: Cursors,
        ids: &[&str],
        from: usize,
        more: bool,
        mess: &dyn Fn(&mut Value),
    ) -> Listed {
        let cursor = |(index, id): (usize, &&str)| match cursors {
            Cursors::Places => (from + index + 1).to_string(),
            Cursors::Records => (*id).to_owned(),
        };
        let nodes: Vec<Value> = ids.iter().map(|id| json!({"id": id})).collect();
        let edges: Vec<Value> = ids.iter().enumerate().map(|one| json!({"cursor": cursor(one)})).collect();
        let end = ids.iter().enumerate().next_back().map(cursor);
        let info = json!({"hasNextPage": more, "endCursor": end});
        let mut jobs = json!({"nodes": nodes, "edges": edges, "pageInfo": info});
        mess(&mut jobs);
        let body = json!({"data": {"jobs": jobs}});
        let reply =
            Reply { status: 200, headers: [].into(), body: Body::Json(body), sent_at: DateTime::UNIX_EPOCH };
        Listed::read(&reply, "jobs").unwrap()
    }

    /// Reads a list of numbers, three at a time; before each page `happens` may change it. Returns what was met, and the
    /// requests it took.
    fn walk(
        cursors: Cursors,
        list: Vec<u32>,
        happens: impl FnMut(usize, &mut Vec<u32>),
    ) -> (Vec<u32>, usize, bool) {
        walk_in_mess(cursors, list, happens, &|_| {})
    }

    fn walk_in_mess(
        cursors: Cursors,
        mut list: Vec<u32>,
        mut happens: impl FnMut(usize, &mut Vec<u32>),
        mess: &dyn Fn(&mut Value),
    ) -> (Vec<u32>, usize, bool) {
        let (mut place, mut met) = (Place::default(), Vec::new());
        for request in 0..1_000 {
            happens(request, &mut list);
            let known = |after: &String| list.iter().position(|one| one.to_string() == *after);
            let from = match (&place.after, cursors) {
                (None, _) => Some(0),
                (Some(after), Cursors::Places) => Some(after.parse::<usize>().unwrap().min(list.len())),
                (Some(after), Cursors::Records) => known(after).map(|place| place + 1),
            };
            let Some(from) = from else {
                // Refused: the walk starts again.
                place = Place::default();
                continue;
            };
            let rest = &list[from..];
            let ids: Vec<String> = rest.iter().take(3).map(ToString::to_string).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let page = messed_page(cursors, &ids, from, rest.len() > 3, mess);
            if place.take(&page, "jobs").unwrap() == Taken::Shifted {
                continue;
            }
            met.extend(rest.iter().take(3));
            if place.after.is_none() {
                return (met, request + 1, place.is_unsteady());
            }
        }
        panic!("no end")
    }

    #[test]
    fn what_is_deleted_while_a_list_is_read_hides_nothing() {
        let all: Vec<u32> = (0..20).collect();
        for cursors in [Cursors::Places, Cursors::Records] {
            let (met, requests, _) = walk(cursors, all.clone(), |_, _| {});
            assert_eq!(requests, 10, "two new ones a page, and one that is known");
            assert!(all.iter().all(|one| met.contains(one)));
            // One, two, and more than a page of them go, at every moment and at every place.
            for (gone, first, at) in (1..=7).flat_map(|gone| {
                (0..20 - gone).flat_map(move |first| (1..9).map(move |at| (gone, first, at)))
            }) {
                let go = |list: &mut Vec<u32>| list.drain(first..first + gone).count();
                let mut left = all.clone();
                go(&mut left);
                let (met, requests, unsteady) = walk(cursors, all.clone(), |request, list| {
                    if request == at {
                        go(list);
                    }
                });
                assert!(left.iter().all(|one| met.contains(one)), "{gone} from {first} at {at}: {met:?}");
                assert!(requests < 30 && !unsteady, "{gone} from {first} at {at}: {requests}");
            }
            // What comes in at the top shows some records twice.
            let (met, ..) = walk(cursors, all.clone(), |request, list| {
                list.insert(0, 100 + u32::try_from(request).unwrap());
            });
            assert!(all.iter().all(|one| met.contains(one)));
        }
    }

    /// Its first or its last record comes twice.
    fn double(page: &mut Value, lists: &[&str], last: bool) {
        for list in lists {
            let rows = page[*list].as_array_mut().unwrap();
            let at = if last { rows.len().saturating_sub(1) } else { 0 };
            if let Some(again) = rows.get(at).cloned() {
                rows.insert(at, again);
            }
        }
    }

    #[test]
    fn what_comes_twice_in_a_page_hides_nothing_either() {
        let all: Vec<u32> = (0..20).collect();
        let nodes: &[&str] = &["nodes"];
        let both: &[&str] = &["nodes", "edges"];
        for (cursors, lists, last) in [
            (Cursors::Places, nodes, false),
            (Cursors::Places, nodes, true),
            (Cursors::Places, both, true),
            (Cursors::Records, nodes, true),
            (Cursors::Records, both, false),
            (Cursors::Records, both, true),
        ] {
            for (first, at) in (0..20).flat_map(|first| (1..9).map(move |at| (first, at))) {
                let mut left = all.clone();
                left.remove(first);
                let go = |request: usize, list: &mut Vec<u32>| {
                    if request == at {
                        list.remove(first);
                    }
                };
                let mess = |page: &mut Value| double(page, lists, last);
                let (met, requests, unsteady) = walk_in_mess(cursors, all.clone(), go, &mess);
                assert!(
                    left.iter().all(|one| met.contains(one)),
                    "{lists:?} {last} {first} at {at}: {met:?}"
                );
                assert!(requests < 30 && !unsteady, "{lists:?} {last} {first} at {at}: {requests}");
            }
        }
    }

    #[test]
    fn a_list_that_never_holds_still_comes_to_an_end() {
        let (_, requests, unsteady) = walk(Cursors::Places, (0..400).collect(), |_, list| {
            list.drain(..list.len().min(1));
        });
        assert!(requests < 400 && unsteady, "{requests}");
    }

    #[test]
    fn a_page_without_cursors_of_its_own_is_followed_by_the_next() {
        let mut place = Place::default();
        let mut first = page(Cursors::Places, &["1", "2"], 0, true);
        first.overlap = None;
        assert_eq!(place.take(&first, "jobs").unwrap(), Taken::Follows);
        assert_eq!((place.after.as_deref(), place.tail.len()), (Some("2"), 0));
        assert_eq!(place.take(&page(Cursors::Places, &["3"], 2, false), "jobs").unwrap(), Taken::Follows);
        assert_eq!(place.after, None);
    }

    #[test]
    fn a_page_that_names_itself_is_refused() {
        for after in ["2", "1"] {
            // The next page would begin behind its last record, or behind the one before.
            let mut place = Place { after: Some(after.to_owned()), ..Place::default() };
            assert!(place.take(&page(Cursors::Places, &["1", "2"], 0, true), "jobs").is_err(), "{after}");
        }
    }
}
