//! `fieldmirror demo`: private Postgres, sandbox and daemon in one go.

use clap::Args;

use super::report::{Error, Exit, Kind};
use super::Globals;
use super::run::verbosity;

/// What a demo can be asked for: it has to be mirrored before anybody loses patience.
const RECORDS_MAX: u64 = 1_000_000;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Records in the first account of each provider
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(0..=RECORDS_MAX))]
    records: u64,
    /// Exit when everything is mirrored
    #[arg(long)]
    once: bool,
}

pub async fn run(globals: &Globals, args: DemoArgs) -> Result<Exit, Error> {
    let records = usize::try_from(args.records).unwrap_or(usize::MAX);
    let ended = crate::daemon::demo(records, args.once, globals.json, verbosity(globals)).await;
    ended.map_err(|error| Error::new(Kind::Failed, format!("{error:#}")))?;
    Ok(Exit::Done)
}
