//! Owners, live ones first and then the archived, whose names old tickets still carry.
//! `hubspot_owner_id` on a ticket is the owner's `id`, not its `userId`.

use serde::{Deserialize, Serialize};

use super::{StreamSpec, crm_path, get, id_text, next_after, take_results};
use crate::domain::failure::Failure;
use crate::domain::record::Record;
use crate::domain::spec::ColumnType::{Boolean, Text};
use crate::domain::spec::{Mode, Read, col};
use crate::domain::step::{Page, Position, Reply, Step, StepContext};

pub const STREAM: StreamSpec = StreamSpec {
    name: "owners",
    table: "hubspot_owners",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/id",
    created_at: "/createdAt",
    updated_at: "/updatedAt",
    columns: &[
        col("email", Text, "/email"),
        col("first_name", Text, "/firstName"),
        col("last_name", Text, "/lastName"),
        col("type", Text, "/type"),
        col("user_id", Text, "/userId"),
        col("archived", Boolean, "/archived"),
    ],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: Read::Own,
};

/// Owners in a page (the API's maximum is 500; the documents' examples use 100).
const PAGE_SIZE: &str = "100";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct At {
    archived: bool,
    after: Option<String>,
    ended: bool,
}

pub fn step(cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
    let mut here: At = at.read();
    if here.ended {
        return Ok(Step::Done);
    }
    let Some(mut reply) = replies.into_iter().next() else {
        let archived = if here.archived { "true" } else { "false" };
        let mut query = vec![("limit", PAGE_SIZE), ("archived", archived)];
        query.extend(here.after.as_deref().map(|after| ("after", after)));
        let request = get(crm_path(cx.api_version, "owners", ""), "owners", &query);
        return Ok(Step::Send { requests: vec![request], at: at.clone() });
    };
    let mut page = Page::default();
    for owner in take_results(&mut reply, "owners")? {
        let id = owner
            .get("id")
            .and_then(id_text)
            .ok_or_else(|| Failure::changed("HubSpot lists an owner without an `id`"))?;
        page.records.push(Record {
            id,
            raw: owner,
            sent_at: reply.sent_at,
            deleted: None,
            without: Vec::new(),
        });
    }
    let next = next_after(&reply, "owners")?;
    if next.is_some() && next == here.after {
        return Err(Failure::changed("HubSpot's owner list repeats a page"));
    }
    match next {
        Some(after) => here.after = Some(after),
        None if here.archived => here.ended = true,
        None => here = At { archived: true, ..At::default() },
    }
    Ok(Step::Emit { page, at: Position::of(&here) })
}
