//! `fieldmirror run`: the daemon, until it is told to stop.

use std::error::Error as _;

use super::context::Context;
use super::report::{Error, Exit, Kind};
use super::{Globals, terminal};
use crate::config::{self, Purpose};
use crate::daemon::service::{self, Manager};
use crate::daemon::telemetry::{self, Verbosity};
use crate::daemon::{Options, StartError};

pub async fn run(globals: &Globals) -> Result<Exit, Error> {
    // Heard from the beginning: none of them is to end the process in its own way.
    let orders = terminal::orders();
    let sources = Context::sources(globals, Purpose::Daemon, Vec::new());
    let loaded = config::load(&sources)?;
    log(globals, loaded.settings.daemon.log_format)?;
    let manager = Manager::systemd(sources.under_systemd());
    let listener = service::handed_over().map_err(|error| {
        Error::io("listening on the socket that systemd handed over, which should be a TCP socket", &error)
    })?;
    let options = Options { listener, ..Options::default() };
    let load = Box::new(move || config::load(&sources));
    service::run(loaded, load, options, manager, orders).await.map_err(not_started)?;
    Ok(Exit::Done)
}

/// Starts the log as the flags ask for it.
pub fn log(globals: &Globals, format: config::LogFormat) -> Result<(), Error> {
    let steps = i16::from(globals.verbose) - i16::from(globals.quiet);
    let verbosity = Verbosity(i8::try_from(steps).unwrap_or(i8::MAX));
    telemetry::start(format, verbosity).map_err(|error| {
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        Error::new(Kind::Configuration, format!("{error}: {source}"))
    })
}

/// A daemon that did not start, with its whole chain.
pub fn not_started(error: StartError) -> Error {
    let kind = if error.is_wrong_settings() { Kind::Configuration } else { Kind::Failed };
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    match error.remedy() {
        Some(remedy) => Error::new(kind, message).hint(remedy),
        None => Error::new(kind, message),
    }
}
