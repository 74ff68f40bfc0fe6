//! Real daemons that are killed in every kind of walk: what is held is told in [`kills`](crate::kills).

use std::fmt::Write as _;
use std::time::Instant;

use super::kills::{self, Floors, KINDS, Plan, Tally, met};
use super::simulation::worlds::PROVIDERS;
use super::{Args, say};

const SAY_EVERY: u64 = 10;
/// The floors, as shares of the kills that were asked for.
const LEAST_PERCENT: u64 = 10;
const MIDWAY_PERCENT: u64 = 3;
const PROVIDER_PERCENT: u64 = 10;
/// How many kills there may be until the floors are reached, as a share of those asked for.
const MOST_PERCENT: u64 = 200;

/// Kills as often as was asked for, and on until each kind of walk and each provider has seen enough. `false`: something was
/// wrong.
pub fn run(args: &Args) -> Result<bool, String> {
    let (kills, seed) = (args.number("moments", 200)?, args.number("seed", 1)?);
    let share = |percent: u64| (kills * percent).div_ceil(100);
    let floors = Floors {
        kinds: KINDS.len(),
        within: share(LEAST_PERCENT),
        midway: share(MIDWAY_PERCENT),
        of_provider: share(PROVIDER_PERCENT),
    };
    let plan = Plan { kills, kills_max: share(MOST_PERCENT), floors, seed, records: 60 };
    say(&format!("Seed {seed}: {kills} kills"));
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ended = runtime.block_on(kills::run(&plan, |tally| {
        if tally.kills.is_multiple_of(SAY_EVERY) {
            say(&format!("  {}", tell(tally)));
        }
    }));
    let took = began.elapsed().as_secs_f64();
    let tally = match ended {
        Ok(tally) => tally,
        Err(why) => {
            say(&format!("FAILED after {took:.0} s: {why}"));
            say(&format!("again: scripts/torture kill --moments {kills} --seed {seed}"));
            return Ok(false);
        }
    };
    say(&format!("{} in {took:.0} s; {} walks closed", tell(&tally), tally.walks_closed));
    let missed = floors.missed(&tally);
    if !missed.is_empty() {
        let kills = tally.kills;
        say(&format!("FAILED: too few of {kills} kills in {} ({floors:?})", missed.join(", ")));
        return Ok(false);
    }
    say(
        "The mirror is the providers' truth, row by row, and no run was called a success that closed no walk",
    );
    Ok(true)
}

fn tell(tally: &Tally) -> String {
    let mut text = format!("{} kills", tally.kills);
    for kind in KINDS {
        let (within, midway) = (met(&tally.within, kind), met(&tally.midway, kind));
        let _ = write!(text, ", {within} in `{kind}` ({midway} midway)");
    }
    for provider in PROVIDERS {
        let _ = write!(text, ", {} at {provider}", met(&tally.of_provider, provider));
    }
    let _ = write!(text, "; {} changes, {} rows looked at", tally.changes, tally.rows_seen);
    text
}
