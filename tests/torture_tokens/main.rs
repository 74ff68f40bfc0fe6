//! `scripts/torture`: looks for grants that get lost, for as long as one likes.
//!
//! `tokens` lets processes die in refreshes and restores databases, in this process and from a seed ([`crashes`]), and
//! kills real daemons ([`kills`]). `daemons` lets four of them share a database ([`crowd`]).

mod crashes;
mod crowd;
mod kills;

#[path = "../it/auth"]
#[expect(dead_code, reason = "the tests need more of it")]
mod auth {
    pub mod deeds;
    pub mod fake;
    pub mod rig;
    pub mod stage;
}
#[path = "../it/support"]
#[expect(dead_code, reason = "the tests need more of it")]
mod support {
    pub mod app;
    pub mod postgres;
    pub mod stalls;

    mod not_checked;
    pub use not_checked::not_checked;
}

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: torture tokens [--minutes N] [--seed S] [--refreshes N] [--kills N]
       torture daemons [--minutes N]";

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How long it lasts at least.
    pub lasts: Duration,
    pub seed: u64,
    pub refreshes: u64,
    pub kills: u64,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let ended = match words.split_first() {
        Some((what, flags)) if what == "tokens" => match plan(flags, 0, 1) {
            Some(plan) => tokens(plan).await,
            None => Err(USAGE.to_owned()),
        },
        Some((what, flags)) if what == "daemons" => match plan(flags, 10, 1) {
            Some(plan) => crowd::run(plan).await,
            None => Err(USAGE.to_owned()),
        },
        _ => Err(USAGE.to_owned()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("FAILED: {why}"));
            ExitCode::FAILURE
        }
    }
}

async fn tokens(plan: Plan) -> Result<(), String> {
    say(&format!("Seed {}: {} refreshes, {} kills", plan.seed, plan.refreshes, plan.kills));
    crashes::run(plan).await?;
    kills::run(plan).await
}

fn plan(flags: &[String], minutes: u64, seed: u64) -> Option<Plan> {
    let mut plan = (minutes, seed, 10_000, 500);
    for pair in flags.chunks(2) {
        let [flag, value] = pair else { return None };
        let value = value.parse().ok()?;
        match flag.as_str() {
            "--minutes" => plan.0 = value,
            "--seed" => plan.1 = value,
            "--refreshes" => plan.2 = value,
            "--kills" => plan.3 = value,
            _ => return None,
        }
    }
    let (minutes, seed, refreshes, kills) = plan;
    let lasts = Duration::from_secs(minutes * 60);
    Some(Plan { lasts, seed, refreshes, kills })
}

/// One line, seen at once.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
