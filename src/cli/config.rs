//! `fieldmirror config`: the settings in force and where each comes from. Secrets are masked where they are read.

use super::context::Context;
use super::report::{Error, Exit};
use super::table::{left, table};
use super::{Globals, terminal};
use crate::config::{self, Loaded, Purpose};

pub fn run(globals: &Globals) -> Result<Exit, Error> {
    let loaded = config::load(&Context::sources(globals, Purpose::Command, Vec::new()))?;
    globals.terminal().result(|| config::report(&loaded), || text(&loaded))?;
    Ok(Exit::Done)
}

fn text(loaded: &Loaded) -> String {
    let rows: Vec<Vec<String>> = loaded
        .rows()
        .iter()
        .map(|row| vec![format!("{}.{}", row.section, row.key), row.text(), row.origin.clone()])
        .collect();
    table(&[left("SETTING"), left("VALUE"), left("FROM")], &rows, terminal::width())
}
