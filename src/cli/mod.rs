//! The command line: one file per command, each of which loads, calls and prints.
//!
//! Results go to stdout as text, or as one JSON object per line with `--json`; remarks, progress and errors to stderr.
//! No command needs the vault key: secrets travel sealed to the public key that the daemon publishes. What the keys of
//! the objects and the exit codes mean is a contract that scripts rely on.

mod callback;
mod completions;
mod config;
mod context;
#[cfg(feature = "sandbox")]
mod demo;
mod doctor;
mod enqueue;
mod grant_analyst;
mod jobs;
mod key;
mod man;
mod migrate;
mod report;
mod run;
#[cfg(feature = "sandbox")]
mod sandbox;
mod status;
mod table;
mod terminal;
mod usage;
mod verify;
mod wait;
mod why;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

pub use report::Exit;

use context::Context;
use report::Error;
use terminal::Terminal;

/// Keeps a local Postgres mirror of field-service and CRM records
#[derive(Debug, Parser)]
#[command(name = "fieldmirror", version, max_term_width = 100, disable_help_subcommand = true)]
struct Line {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// Settings file, over the built-in settings and those of the system (repeatable)
    #[arg(long, global = true, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Print results, and errors, as JSON: one object per line, the last is the result
    #[arg(long, global = true)]
    json: bool,
    /// Log more (repeatable)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Log less (repeatable); no remarks, no progress
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    /// How long a live daemon is waited for
    #[arg(long, global = true, hide = true, default_value = "30s", value_parser = humantime::parse_duration)]
    daemon_wait: Duration,
}

impl Globals {
    fn terminal(&self) -> Terminal {
        Terminal { json: self.json, quiet: self.quiet > 0 }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: migrations, callback endpoint, scheduler, workers
    Run,
    /// Ask the daemon for something: to connect an account, to read it again, to refresh, to disconnect
    Enqueue(Box<enqueue::EnqueueArgs>),
    /// Finish a consent with the address that the browser was sent to, for servers that no browser reaches
    Callback(callback::CallbackArgs),
    /// Show daemons, connections, tokens and streams
    Status(status::StatusArgs),
    /// Show what the present state of a connection, or of a stream, comes from
    Why(why::WhyArgs),
    /// Compare a part of the mirror with what the provider shows
    Verify(verify::VerifyArgs),
    /// Show the queue, or run a job again
    Jobs(jobs::JobsArgs),
    /// Look for what is set up wrongly, and say what to do about it
    Doctor,
    /// Show the settings in force and where each comes from
    Config,
    /// Make a vault key, or show which keys are in use
    Key(key::KeyArgs),
    /// Apply pending migrations to the database
    Migrate,
    /// Let a role of the database read schema `mirror`, now and later, and nothing else
    GrantAnalyst(grant_analyst::GrantAnalystArgs),
    /// Print what makes a shell complete command lines, names of connections and streams included
    Completions(completions::CompletionsArgs),
    /// Print the manual page
    Man(man::ManArgs),
    /// Print names, for the shell's completions
    #[command(hide = true)]
    Names(completions::NamesArgs),
    /// Show it all at work: a private Postgres, the sandbox and a daemon, on invented records
    #[cfg(feature = "sandbox")]
    Demo(demo::DemoArgs),
    /// Serve stand-ins of the providers, for trying things out
    #[cfg(feature = "sandbox")]
    Sandbox(sandbox::SandboxArgs),
}

/// Runs the command that `args` ask for, the program's name first, and says how it ended.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    let line = match Line::try_parse_from(&args) {
        Ok(line) => line,
        Err(error) => return usage::refuse(&error, &args),
    };
    let terminal = line.globals.terminal();
    match dispatch(line) {
        Ok(exit) => exit,
        Err(error) => {
            terminal.error(&error);
            error.kind.exit()
        }
    }
}

fn dispatch(line: Line) -> Result<Exit, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::io("starting the runtime", &error))?;
    let exit = runtime.block_on(command(&line.globals, line.command));
    // A blocking thread may still wait for a database that does not answer; nobody needs its answer any more.
    runtime.shutdown_background();
    exit
}

async fn command(globals: &Globals, command: Command) -> Result<Exit, Error> {
    let cx = || Context::load(globals);
    match command {
        Command::Run => run::run(globals).await,
        #[cfg(feature = "sandbox")]
        Command::Demo(args) => demo::run(globals, args).await,
        Command::Enqueue(args) => enqueue::run(&cx()?, *args).await,
        Command::Callback(args) => callback::run(&cx()?, args).await,
        Command::Status(args) => status::run(&cx()?, args).await,
        Command::Why(args) => why::run(&cx()?, args).await,
        Command::Verify(args) => verify::run(&cx()?, args).await,
        Command::Jobs(args) => jobs::run(&cx()?, args).await,
        Command::Doctor => doctor::run(globals).await,
        Command::Config => config::run(globals),
        Command::Key(args) => key::run(globals, args).await,
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Names(args) => completions::names(globals, args).await,
        Command::GrantAnalyst(args) => grant_analyst::run(&cx()?, args).await,
        Command::Migrate => migrate::run(&cx()?).await,
        #[cfg(feature = "sandbox")]
        Command::Sandbox(args) => sandbox::run(globals.terminal(), args).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Line::command().debug_assert();
    }

    #[test]
    fn globals_stand_anywhere() {
        for line in ["--json --config a status --config b -v", "status --json -v --config a --config b"] {
            let words = std::iter::once("fieldmirror").chain(line.split(' '));
            let line = Line::try_parse_from(words).unwrap();
            assert!(line.globals.json);
            assert_eq!((line.globals.verbose, line.globals.daemon_wait), (1, Duration::from_secs(30)));
            assert!(line.globals.config.contains(&PathBuf::from("b")));
        }
    }
}
