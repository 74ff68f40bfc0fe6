//! Real daemons that are killed in every kind of walk: what is held is told in [`kills`](crate::kills).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use super::kills::{self, KINDS, Plan, Tally};
use super::simulation::worlds::PROVIDERS;
use super::{Args, say};

const SAY_EVERY: u64 = 10;
/// Kills that each kind of walk is to see, as a share of all; those that find one which has saved its place; and kills that
/// find a walk of each provider.
const LEAST_PERCENT: u64 = 10;
const MIDWAY_PERCENT: u64 = 3;
const PROVIDER_PERCENT: u64 = 10;

/// Kills as often as was asked for. `false`: something was wrong.
pub fn run(args: &Args) -> Result<bool, String> {
    let (kills, seed) = (args.number("moments", 200)?, args.number("seed", 1)?);
    let plan = Plan { kills, kinds: 0, seed, records: 60 };
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
    let missed = missed(&tally);
    if !missed.is_empty() {
        say(&format!("FAILED: too few kills in {}", missed.join(", ")));
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
        let met = |of: &BTreeMap<String, u64>| of.get(kind).copied().unwrap_or(0);
        let _ = write!(text, ", {} in `{kind}` ({} midway)", met(&tally.within), met(&tally.midway));
    }
    for provider in PROVIDERS {
        let _ = write!(text, ", {} at {provider}", tally.of_provider.get(provider).copied().unwrap_or(0));
    }
    let _ = write!(text, "; {} changes, {} rows looked at", tally.changes, tally.rows_seen);
    text
}

/// The kinds and providers that too few kills have met.
fn missed(tally: &Tally) -> Vec<String> {
    let rare = |of: &BTreeMap<String, u64>, word: &str, percent: u64| {
        of.get(word).copied().unwrap_or(0) * 100 < tally.kills * percent
    };
    let kinds = KINDS.into_iter().filter(|kind| rare(&tally.within, kind, LEAST_PERCENT)).map(str::to_owned);
    let midway = KINDS.into_iter().filter(|kind| rare(&tally.midway, kind, MIDWAY_PERCENT));
    let midway = midway.map(|kind| format!("{kind} midway"));
    let providers = PROVIDERS.into_iter().filter(|name| rare(&tally.of_provider, name, PROVIDER_PERCENT));
    kinds.chain(midway).chain(providers.map(str::to_owned)).collect()
}
