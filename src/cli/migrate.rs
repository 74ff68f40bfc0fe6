//! `fieldmirror migrate`: applies pending migrations, for those who want that apart from the start of the daemon.

use serde_json::json;

use super::context::Context;
use super::report::{Error, Exit};
use crate::db::migrations;

pub async fn run(cx: &Context) -> Result<Exit, Error> {
    let url = cx.database_url();
    let spinner = cx.terminal.spinner("migrating");
    let applied = migrations::run(&url).await;
    spinner.finish_and_clear();
    let applied = applied.map_err(|error| cx.database_error(error))?;
    let versions = migrations::status(&url).await?;
    let version = versions.iter().rev().find(|version| version.applied).map(|version| &version.version);
    cx.terminal.result(
        || json!({ "applied": applied, "version": version }),
        || match applied.as_slice() {
            [] => "Nothing to do: the database is up to date".to_owned(),
            applied => format!("Applied {}", applied.join("\nApplied ")),
        },
    )?;
    Ok(Exit::Done)
}
