//! Long runs that the suite has no time for: `scripts/torture` says how they are called.

#[path = "../it/kills.rs"]
#[allow(dead_code, reason = "the suite uses what this does not")]
mod kills;
#[path = "../it/simulation/mod.rs"]
#[allow(dead_code, reason = "the suite uses what this does not")]
mod simulation;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, reason = "the suite uses what this does not")]
mod support;

mod kill;
mod sync;

use std::io::Write as _;
use std::process::ExitCode;

const USAGE: &str = "usage: torture sync --seeds FIRST..END [--provider NAME] [--jobs N] [--story]
       torture kill [--moments N] [--seed S]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((word, rest)) = args.split_first() else { return refuse("what is to be done?") };
    let args = match Args::read(rest) {
        Ok(args) => args,
        Err(why) => return refuse(&why),
    };
    let done = match word.as_str() {
        "sync" => sync::run(&args),
        "kill" => kill::run(&args),
        other => Err(format!("there is no `{other}`")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => refuse(&why),
    }
}

/// A line on stdout, at once.
fn say(line: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout");
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("{why}\n{USAGE}");
    ExitCode::from(2)
}

/// `--name value` and `--name`.
pub struct Args(Vec<(String, Option<String>)>);

impl Args {
    fn read(words: &[String]) -> Result<Self, String> {
        let mut args: Vec<(String, Option<String>)> = Vec::new();
        for word in words {
            match (word.strip_prefix("--"), args.last_mut()) {
                (Some(name), _) => args.push((name.to_owned(), None)),
                (None, Some((_, value @ None))) => *value = Some(word.clone()),
                (None, _) => return Err(format!("`{word}` belongs to no flag")),
            }
        }
        Ok(Self(args))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name)?.1.as_deref()
    }

    /// A number, or `default` where it is not given.
    pub fn number(&self, name: &str, default: u64) -> Result<u64, String> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.parse().map_err(|_| format!("`--{name} {text}`: a whole number was expected"))
    }
}
