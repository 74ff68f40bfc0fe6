//! Seeds of the simulation, as many as one likes: each is a world, its weather and what happens in it.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::Instant;

use super::simulation::worlds::{PROVIDERS, provider_of};
use super::simulation::{self, Ground, Outcome};
use super::{Args, say};

/// What came of all seeds so far.
#[derive(Default)]
struct Sum {
    failed: Vec<u64>,
    seeds: u64,
    turns: usize,
    checks: usize,
    rows: usize,
    requests: i64,
}

/// Plays the seeds. `false`: some failed.
pub fn run(args: &Args) -> Result<bool, String> {
    let seeds = range(args.text("seeds").ok_or("`--seeds FIRST..END` is missing")?)?;
    let jobs = args.number("jobs", 2)?.clamp(1, 16);
    let tells = args.has("story");
    let only = args.text("provider");
    if let Some(name) = only.filter(|name| !PROVIDERS.contains(name)) {
        return Err(format!("`--provider {name}`: one of {} was expected", PROVIDERS.join(", ")));
    }
    let seeds = seeds.filter(|seed| only.is_none_or(|name| provider_of(*seed) == name));
    let seeds: Vec<u64> = seeds.collect();
    let (began, next, sum) = (Instant::now(), Mutex::new(seeds.into_iter()), Mutex::new(Sum::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let ground = Ground::new();
                loop {
                    let Some(seed) = next.lock().expect("no seed panics with it").next() else { return };
                    let played =
                        std::panic::catch_unwind(AssertUnwindSafe(|| simulation::play(&ground, seed)));
                    let mut sum = sum.lock().expect("no seed panics with it");
                    if let Ok(outcome) = played {
                        tell(&mut sum, &outcome, tells);
                    } else {
                        say(&format!("seed {seed}: FAILED, it panicked"));
                        sum.failed.push(seed);
                    }
                    sum.seeds += 1;
                }
            });
        }
    });
    let Sum { failed, seeds, turns, checks, rows, requests } = sum.into_inner().expect("all have ended");
    say(&format!(
        "{seeds} seeds in {:.0} s: {turns} turns, {requests} requests, {checks} looks, {rows} rows written; {} failed {}",
        began.elapsed().as_secs_f64(),
        failed.len(),
        failed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    ));
    if let Some(seed) = failed.first() {
        say(&format!("again: scripts/torture sync --seeds {seed}..{} --story", seed + 1));
    }
    Ok(failed.is_empty())
}

fn tell(sum: &mut Sum, outcome: &Outcome, tells: bool) {
    sum.turns += outcome.turns;
    sum.checks += outcome.checks;
    sum.rows += outcome.rows;
    sum.requests += outcome.requests;
    say(&outcome.to_string());
    if !outcome.wrong.is_empty() {
        sum.failed.push(outcome.seed);
        say(&outcome.wrong.join("\n"));
    }
    if tells {
        say(&outcome.story);
    }
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..").and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)));
    match ends {
        Some((first, end)) if first < end => Ok(first..end),
        _ => Err(format!("`--seeds {text}`: two numbers with `..` between were expected, such as 0..1000")),
    }
}
