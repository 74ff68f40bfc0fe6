//! People who are assigned to a visit, beyond those that come along with it: they are a list within a record.

use serde_json::Value;

use super::TITLE;
use super::list::id_of;
use crate::domain::failure::Failure;
use crate::domain::step::Reply;

/// People of one visit; more are taken to be a list without an end.
const PEOPLE_MAX: usize = 2_000;

/// The id of a visit that has more people than are in it, and the cursor behind them.
pub(super) fn open(node: &Value) -> Option<(&str, &str)> {
    let info = node.pointer("/assignedUsers/pageInfo")?;
    let more = info.get("hasNextPage")?.as_bool()?;
    let cursor = info.get("endCursor").and_then(Value::as_str).unwrap_or_default();
    more.then_some((node.get("id")?.as_str()?, cursor))
}

/// The visits of a page, with the people that `reply` names, as `r0`, `r1` and so on, for the first of those that lack
/// some. A visit that is no more is left out.
pub(super) fn joined(nodes: Vec<Value>, reply: &Reply) -> Result<Vec<Value>, Failure> {
    let (mut joined, mut place) = (Vec::with_capacity(nodes.len()), 0);
    for mut node in nodes {
        let shown = reply.json().and_then(|body| body.pointer(&format!("/data/r{place}")));
        let Some(shown) = shown.filter(|_| open(&node).is_some()) else {
            joined.push(node);
            continue;
        };
        place += 1;
        if !shown.is_null() {
            join(&mut node, shown)?;
            joined.push(node);
        }
    }
    if place == 0 {
        return Err(Failure::changed(format!("{TITLE}'s answer has none of the visits that were asked for")));
    }
    Ok(joined)
}

fn join(node: &mut Value, shown: &Value) -> Result<(), Failure> {
    let id = id_of(node)?;
    let changed = |what: &str| Failure::changed(format!("{TITLE} {what} the people of the visit {id}"));
    if id_of(shown)? != id {
        return Err(changed("answers about another visit instead of"));
    }
    let more = shown.pointer("/assignedUsers/nodes").and_then(Value::as_array);
    let more = more.ok_or_else(|| changed("does not list"))?;
    let before = node.pointer("/assignedUsers/pageInfo").cloned();
    let info = shown.pointer("/assignedUsers/pageInfo").cloned();
    if info.is_none() || (open(shown).is_some() && info == before) {
        return Err(changed("does not come to an end with"));
    }
    let known = node.pointer_mut("/assignedUsers/nodes").and_then(Value::as_array_mut);
    let known = known.ok_or_else(|| changed("does not list"))?;
    // A list that moves meanwhile may show one of them twice.
    let news: Vec<Value> = more.iter().filter(|one| !known.contains(one)).cloned().collect();
    known.extend(news);
    if known.len() > PEOPLE_MAX {
        return Err(changed("does not come to an end with"));
    }
    node["assignedUsers"]["pageInfo"] = info.unwrap_or_default();
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;

    use super::*;
    use crate::domain::step::Body;

    fn visit(id: &str, people: &[u32], more: bool, cursor: &str) -> Value {
        let people: Vec<Value> = people.iter().map(|n| json!({"id": n.to_string()})).collect();
        let info = json!({"hasNextPage": more, "endCursor": cursor});
        json!({"id": id, "assignedUsers": {"nodes": people, "pageInfo": info}})
    }

    fn told(data: Value) -> Reply {
        let body = Body::Json(json!({"data": data}));
        Reply { status: 200, headers: [].into(), body, sent_at: DateTime::UNIX_EPOCH }
    }

    #[test]
    fn everybody_is_joined_to_their_visit() {
        let page = || {
            vec![
                visit("V1", &[1, 2], true, "a"),
                visit("V2", &[1], false, "a"),
                visit("V3", &[1, 2], true, "b"),
                visit("V4", &[7, 8], true, "c"),
            ]
        };
        let reply = told(json!({"r0": visit("V1", &[2, 3], true, "d"), "r1": null}));
        let joined = joined(page(), &reply).unwrap();
        let ids: Vec<&str> = joined.iter().map(|node| node["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["V1", "V2", "V4"], "the third is no more; the fourth was not asked for");
        assert_eq!(open(&joined[0]), Some(("V1", "d")));
        let people = |node: &Value| node["assignedUsers"]["nodes"].as_array().unwrap().len();
        assert_eq!([people(&joined[0]), people(&joined[1]), people(&joined[2])], [3, 1, 2]);
    }

    #[test]
    fn what_is_no_answer_fails() {
        let page = || vec![visit("V1", &[1, 2], true, "a")];
        for (data, why) in [
            (json!({}), "none of the visits"),
            (json!({"r0": {"id": "V1"}}), "does not list"),
            (json!({"r0": visit("V2", &[3], false, "b")}), "another visit"),
            (json!({"r0": visit("V1", &[3], true, "a")}), "come to an end"),
            (json!({"r0": {"id": "V1", "assignedUsers": {"nodes": []}}}), "come to an end"),
        ] {
            let failure = joined(page(), &told(data.clone())).unwrap_err();
            assert!(failure.message.contains(why), "{data}: {}", failure.message);
        }
    }
}
