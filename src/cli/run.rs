//! `fieldmirror run`: the daemon, until it is told to stop.

use super::Globals;
use super::context::Context;
use super::report::{Error, Exit, Kind};
use crate::config::{self, Purpose};
use crate::daemon::telemetry::Verbosity;

pub async fn run(globals: &Globals) -> Result<Exit, Error> {
    let loaded = config::load(&Context::sources(globals, Purpose::Daemon, Vec::new()))?;
    let ended = crate::daemon::run(loaded.settings, verbosity(globals)).await;
    // The whole chain: the last line of a log that ends here is what an admin has.
    ended.map_err(|error| Error::new(Kind::Failed, format!("{error:#}")))?;
    Ok(Exit::Done)
}

/// `-v` says more, `-q` less; together they cancel out.
pub(super) fn verbosity(globals: &Globals) -> Verbosity {
    let level = i16::from(globals.verbose) - i16::from(globals.quiet);
    Verbosity(i8::try_from(level).unwrap_or(if level > 0 { i8::MAX } else { i8::MIN }))
}
