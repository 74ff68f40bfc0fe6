//! What a seed means: how a world is set up, what goes wrong in it, and when something happens to its records. A pure
//! function of the seed.

use std::time::Duration;

use chrono::TimeDelta;
use fieldmirror::sandbox::faults::Fault;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng, SeedableRng};

use super::road::Mess;
use super::worlds::{World, provider_of};

/// In the order of the providers.
const POLLS: [&str; 5] = [
    "providers.hubspot.poll_interval",
    "providers.jobber.poll_interval",
    "providers.housecallpro.poll_interval",
    "providers.servicetitan.poll_interval",
    "providers.oncehub.poll_interval",
];
/// Spans of bad weather.
const SPANS: usize = 3;

#[derive(Debug)]
pub struct Script {
    pub seed: u64,
    pub provider: &'static str,
    pub records: usize,
    pub skew: TimeDelta,
    /// When our clock is set, and by how much: forward, or back by less than what makes a watermark lie in the future for long.
    pub clock_set: Option<(Duration, TimeDelta)>,
    pub search_lag: Duration,
    /// Records on a page of ServiceTitan's feeds.
    pub feed_page: usize,
    /// Longer than two polls take.
    pub rest: Duration,
    /// How long it takes until the stand-in shows all that has happened.
    pub settles_in: Duration,
    pub settings: Vec<(&'static str, String)>,
    pub spans: Vec<Span>,
    /// How long nothing happens before the next thing does, and how many things then happen at once.
    pub changes: Vec<(Duration, usize)>,
}

/// A span of time with its weather.
#[derive(Debug)]
pub struct Span {
    pub length: Duration,
    pub faults: Vec<Fault>,
    pub mess: Mess,
    /// The longest that one direction of a request takes.
    pub slow_ms: u64,
}

impl Script {
    pub fn of(seed: u64, world: impl Fn(&str) -> Box<dyn World>) -> Self {
        let mut dice = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x51);
        let provider = provider_of(seed);
        let world = world(provider);
        let dice = &mut dice;
        let hold_back_s = pick(dice, &[5_u64, 20, 90]);
        let overlap = pick(dice, &["1s", "30s", "5m"]);
        let skew_ms = pick(dice, &[0_i64, 0, 0, 0, 1_400, -1_400, 40_000, -40_000, 660_000, -660_000]);
        let poll = POLLS[usize::try_from(seed % 5).expect("a small number")];
        // Ten streams that are late by a quarter of an hour need no more.
        let poll_s = pick(dice, if provider == "servicetitan" { &[180_u64, 300] } else { &[60, 120] });
        let seconds = |dice: &mut StdRng, choices: &[u64]| format!("{}s", pick(dice, choices));
        let page_size = pick(dice, &[5_u32, 12, 30, 100]);
        let mut settings = vec![
            ("sync.hold_back", format!("{hold_back_s}s")),
            ("sync.overlap", overlap.to_owned()),
            (poll, format!("{poll_s}s")),
            ("sync.archived_interval", seconds(dice, &[120, 300])),
            ("sync.sweep_interval", seconds(dice, &[300, 600])),
            ("sync.turn_limit", seconds(dice, &[2, 6, 30])),
        ];
        let recent = dice.random_bool(0.6);
        let late = Duration::from_secs(if provider == "servicetitan" && !recent { 16 * 60 } else { 0 });
        settings.push(match provider {
            "hubspot" => ("providers.hubspot.page_size", page_size.to_string()),
            "jobber" => ("providers.jobber.page_size", page_size.min(50).to_string()),
            "housecallpro" => ("providers.housecallpro.page_size", page_size.to_string()),
            "servicetitan" => ("providers.servicetitan.include_recent_changes", recent.to_string()),
            _ => ("providers.oncehub.page_size", page_size.to_string()),
        });
        let spans = (0..SPANS).map(|_| span(world.as_ref(), dice)).collect();
        let changes = (0..dice.random_range(6..14))
            .map(|_| (Duration::from_millis(dice.random_range(20..45_000)), pick(dice, &[1, 1, 1, 2, 4])))
            .collect();
        Self {
            seed,
            provider,
            records: dice.random_range(15..80),
            skew: TimeDelta::milliseconds(skew_ms),
            clock_set: clock_set(seed),
            rest: Duration::from_secs(poll_s * 2 + 10),
            settles_in: Duration::from_secs(hold_back_s + 5) + late,
            feed_page: page_size as usize,
            search_lag: Duration::from_millis(dice.random_range(0..hold_back_s * 900)),
            settings,
            spans,
            changes,
        }
    }
}

/// With dice of its own: what else a seed means does not depend on it.
fn clock_set(seed: u64) -> Option<(Duration, TimeDelta)> {
    let dice = &mut StdRng::seed_from_u64(seed ^ 0xc10c);
    let by_ms = pick(dice, &[0_i64, 0, 0, 1_400, -1_400, 40_000, -40_000, 660_000]);
    let after = Duration::from_secs(dice.random_range(5..60));
    (by_ms != 0).then(|| (after, TimeDelta::milliseconds(by_ms)))
}

impl Script {
    /// By how much our clock is ahead of the provider's, at the most.
    pub fn skew_max(&self) -> TimeDelta {
        self.skew + self.clock_set.map_or(TimeDelta::zero(), |(_, by)| by.max(TimeDelta::zero()))
    }
}

fn pick<T: Copy>(dice: &mut StdRng, from: &[T]) -> T {
    *from.choose(dice).expect("there is something to pick from")
}

fn span(world: &dyn World, dice: &mut StdRng) -> Span {
    let count = pick(dice, &[0, 1, 2, 3, 5]);
    let mut faults: Vec<&str> = world.faults().to_vec();
    faults.shuffle(dice);
    faults.truncate(count);
    let drawn = |text: &str| {
        let chance: f64 = pick(dice, &[0.05, 0.2, 0.5, 0.9]);
        text.replace('#', &chance.to_string()).parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    let faults = faults.into_iter().map(drawn).collect();
    let shuffled = if world.shuffles() { pick(dice, &[0.0, 0.0, 0.3]) } else { 0.0 };
    Span {
        faults,
        mess: Mess { shuffled, doubled: pick(dice, &[0.0, 0.0, 0.3]) },
        slow_ms: pick(dice, &[20, 200, 1_500]),
        length: Duration::from_secs(dice.random_range(20..150)),
    }
}
