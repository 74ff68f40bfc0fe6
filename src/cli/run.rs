//! `fieldmirror run`: the daemon, until it is told to stop.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::Globals;
use super::context::Context;
use super::report::{Error, Exit, Kind};
use crate::config::{self, Purpose};
use crate::daemon::telemetry::{self, Verbosity};
use crate::daemon::{self, Options};
use crate::domain::time::SystemClock;
use crate::jobs::QueueLimits;
use crate::vault::VaultError;

/// What the daemon puts before what to do about an error.
const HINT: &str = "\nhint: ";

pub async fn run(globals: &Globals) -> Result<Exit, Error> {
    let settings = config::load(&Context::sources(globals, Purpose::Daemon, Vec::new()))?.settings;
    telemetry::start(settings.daemon.log_format, verbosity(globals))
        .map_err(|error| failed(&error.into()))?;
    let listening = |error| Error::io("listening for signals", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(listening)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(listening)?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let options = Options { clock: Arc::new(SystemClock), listener: None, queue: QueueLimits::default() };
    daemon::run(settings, options, shutdown).await.map_err(|error| failed(&error))?;
    Ok(Exit::Done)
}

/// `-v` says more, `-q` less; together they cancel out.
fn verbosity(globals: &Globals) -> Verbosity {
    let level = i16::from(globals.verbose) - i16::from(globals.quiet);
    Verbosity(i8::try_from(level).unwrap_or(if level > 0 { i8::MAX } else { i8::MIN }))
}

/// The whole chain. What comes with a remedy, and keys that are none, are faults of the configuration.
fn failed(error: &anyhow::Error) -> Error {
    let text = format!("{error:#}");
    match text.split_once(HINT) {
        Some((message, hint)) => Error::new(Kind::Configuration, message).hint(hint),
        None if error.downcast_ref::<VaultError>().is_some() => Error::new(Kind::Configuration, text),
        None => Error::new(Kind::Failed, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_daemon() {
        let keyless = failed(&anyhow::anyhow!("there is no vault key\nhint: run `fieldmirror key generate`"));
        assert_eq!((keyless.kind, keyless.message.as_str()), (Kind::Configuration, "there is no vault key"));
        assert_eq!(keyless.hint.as_deref(), Some("run `fieldmirror key generate`"));
        let other = failed(&anyhow::anyhow!("refused").context("binding"));
        assert_eq!((other.kind, other.message.as_str()), (Kind::Failed, "binding: refused"));
    }
}
