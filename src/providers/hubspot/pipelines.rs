//! Pipelines and their stages, one row a stage: stage ids are unique within an account by convention only.
//! `GET /pipelines/tickets` is not paged.

use serde_json::{Value, json};

use super::{StreamSpec, crm_path, get, id_text, results};
use crate::domain::failure::Failure;
use crate::domain::record::Record;
use crate::domain::spec::ColumnType::{Bigint, Boolean, Text};
use crate::domain::spec::{Mode, Read, col};
use crate::domain::step::{Page, Position, Reply, Step, StepContext};

pub const STREAM: StreamSpec = StreamSpec {
    name: "pipeline_stages",
    table: "hubspot_pipeline_stages",
    modes: &[Mode::Snapshot],
    needs_facts: &[],
    id: "/key",
    created_at: "/createdAt",
    updated_at: "/updatedAt",
    columns: &[
        col("pipeline_id", Text, "/pipeline/id"),
        col("pipeline_label", Text, "/pipeline/label"),
        col("stage_id", Text, "/id"),
        col("label", Text, "/label"),
        col("ticket_state", Text, "/metadata/ticketState").one_of(&["OPEN", "CLOSED"]),
        col("is_closed", Boolean, "/metadata/isClosed"),
        col("display_order", Bigint, "/displayOrder"),
        col("archived", Boolean, "/archived"),
    ],
    merges: false,
    keep_only: &[],
    omit: &[],
    read: Read::Own,
};

pub fn step(cx: &StepContext<'_>, at: &Position, replies: Vec<Reply>) -> Result<Step, Failure> {
    if at.at == json!("read") {
        return Ok(Step::Done);
    }
    let Some(reply) = replies.first() else {
        let request = get(crm_path(cx.api_version, "pipelines", "tickets"), "pipelines", &[]);
        return Ok(Step::Send { requests: vec![request], at: at.clone() });
    };
    let mut page = Page { progress: Some(1.0), ..Page::default() };
    for pipeline in results(reply, "pipelines")? {
        for stage in stages(pipeline)? {
            page.records.push(stage_record(pipeline, stage, reply)?);
        }
    }
    Ok(Step::Emit { page, at: Position { at: json!("read"), ..at.clone() } })
}

fn stages(pipeline: &Value) -> Result<&Vec<Value>, Failure> {
    pipeline
        .get("stages")
        .and_then(Value::as_array)
        .ok_or_else(|| Failure::changed("HubSpot lists a ticket pipeline without `stages`"))
}

/// The stage as sent, plus its key and the pipeline without its other stages.
fn stage_record(pipeline: &Value, stage: &Value, reply: &Reply) -> Result<Record, Failure> {
    let ids = (pipeline.get("id").and_then(id_text), stage.get("id").and_then(id_text));
    let (Some(pipeline_id), Some(stage_id)) = ids else {
        return Err(Failure::changed("HubSpot lists a ticket pipeline or stage without an `id`"));
    };
    let id = format!("{pipeline_id}/{stage_id}");
    let mut parent = pipeline.clone();
    if let Some(fields) = parent.as_object_mut() {
        fields.remove("stages");
    }
    let mut raw = stage.clone();
    if let Some(fields) = raw.as_object_mut() {
        fields.insert("pipeline".to_owned(), parent);
        fields.insert("key".to_owned(), Value::String(id.clone()));
    }
    Ok(Record { id, raw, sent_at: reply.sent_at, deleted: None, without: Vec::new() })
}
