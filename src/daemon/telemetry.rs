//! Logs of the daemon.
//!
//! Libraries are held at `warn` whatever is asked for: at finer levels some of them print headers and bodies, and with
//! them tokens. For the same reason no variable such as `RUST_LOG` is looked at. `docs/LOGGING.md` tells what every
//! field means.

mod json;
mod panics;
mod plain;

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// How much is said: -1 for `-q`, 0, 1 for `-v`, 2 for `-vv`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verbosity(pub i8);

impl Verbosity {
    fn filter(self) -> EnvFilter {
        let level = match self.0 {
            i8::MIN..=-1 => "warn",
            0 => "info",
            1 => "debug",
            _ => "trace",
        };
        EnvFilter::new(format!("warn,fieldmirror={level}"))
    }
}

/// What our fields are called in the journal: `connection.id` is `FIELDMIRROR_CONNECTION_ID` there.
const JOURNAL_PREFIX: &str = "FIELDMIRROR";

/// Where the log goes could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening the journal for `daemon.log_format = \"journald\"`")]
pub struct NoJournal(#[source] std::io::Error);

/// Starts logging, on stderr or to the journal. A second call changes nothing.
pub fn start(format: LogFormat, verbosity: Verbosity) -> Result<(), NoJournal> {
    let registry = tracing_subscriber::registry().with(verbosity.filter());
    let colour = std::io::stderr().is_terminal();
    let started = match format {
        LogFormat::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(move || plain::Lines { to: std::io::stderr(), coloured: colour })
                    .with_ansi(colour)
                    .with_target(false),
            )
            .try_init(),
        LogFormat::Json => registry.with(json::Lines::new(std::io::stderr)).try_init(),
        LogFormat::Journald => {
            let journal = tracing_journald::layer().map_err(NoJournal)?;
            registry.with(journal.with_field_prefix(Some(JOURNAL_PREFIX.to_owned()))).try_init()
        }
    };
    // Tests start more than one daemon in a process.
    if started.is_ok() {
        panics::log();
    }
    Ok(())
}
