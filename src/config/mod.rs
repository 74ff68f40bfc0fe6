//! Settings: read from all their layers once, checked, and handed on as types.
//!
//! `config/default.toml` is the lowest layer, the list of what can be set and the reference; a key that is not in it
//! is an error. All problems are told at once. Secrets are read here, wherever they are given, and never shown.
//!
//! This module does not know what the settings are for: it opens no database and no vault. A new provider is a new
//! section in `config/default.toml`; the keys that only it has arrive in [`ProviderSettings::extra`].

mod layers;
mod problems;
mod reader;
mod report;
mod secrets;
mod settings;
mod sources;
mod suggest;
mod validate;

pub use layers::DEFAULT_TOML;
pub use problems::{Problem, Problems};
pub use report::{Row, report};
pub use secrets::MASK;
pub use settings::{
    AlertSettings, CallbackSettings, DaemonSettings, DatabaseSettings, LogFormat, MetricsSettings,
    ProviderSettings, Settings, SyncSettings, VaultSettings,
};
pub use sources::{ENVIRONMENT_PREFIX, Flag, Purpose, SYSTEM_FILE, Sources, host_name};

use layers::Layers;
use reader::Reader;

/// Settings without a problem, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Settings,
    rows: Vec<Row>,
}

impl Loaded {
    /// Every setting in force with its origin, by section and key; secrets masked.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// Reads the settings from all sources.
///
/// # Errors
/// [`Problems`]: everything that is wrong, none of it with the value of a secret.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    load_over(DEFAULT_TOML, sources)
}

fn load_over(schema: &str, sources: &Sources) -> Result<Loaded, Problems> {
    let (layers, problems) = Layers::read(schema, sources);
    let mut reader = Reader::new(&layers, sources, problems);
    let settings = Settings::read(&mut reader);
    if reader.problems.is_empty() {
        validate::combinations(&settings, &mut reader);
    }
    let Reader { problems, in_force, .. } = reader;
    if problems.is_empty() {
        Ok(Loaded { settings, rows: report::rows(in_force) })
    } else {
        Err(Problems(problems))
    }
}

#[cfg(test)]
mod tests;
