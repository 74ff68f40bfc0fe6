//! Refreshes in which the process dies, and databases that are restored: what goes wrong is drawn from the seed, so a run
//! that failed goes the same way again.

use std::collections::BTreeMap;
use std::time::Instant;

use futures_util::future::join_all;

use crate::auth::deeds::{Lane, ROTATIONS};
use crate::auth::fake::Rotation;
use crate::{Plan, say};

const SAY_EVERY: u64 = 250;

/// Deeds by what they were.
type Kinds = BTreeMap<String, u64>;

pub async fn run(plan: Plan) -> Result<(), String> {
    let began = Instant::now();
    let lanes = (0..).zip(ROTATIONS).map(|(number, rotation)| tokio::spawn(lane(plan, number, rotation)));
    let mut kinds = Kinds::new();
    for ended in join_all(lanes).await {
        let lane = ended.map_err(|error| format!("a lane broke off: {error}"))??;
        for (kind, count) in lane {
            *kinds.entry(kind).or_default() += count;
        }
    }
    for (kind, count) in &kinds {
        say(&format!("  {kind}: {count}"));
    }
    say(&format!(
        "{} faulted refreshes in {:.0} s: no grant was lost that the provider would have honoured",
        kinds.values().sum::<u64>(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn lane(plan: Plan, number: u64, rotation: Rotation) -> Result<Kinds, String> {
    let mut lane = Lane::new(plan.seed, number, rotation).await;
    let (mut kinds, mut done, began) = (Kinds::new(), 0, Instant::now());
    while done < plan.refreshes.div_ceil(4) || began.elapsed() < plan.lasts {
        let deed = lane.step().await.map_err(|why| {
            format!(
                "lane {number}, refresh {done}, {why}\nto see it again: scripts/torture tokens --seed {} --refreshes {}",
                plan.seed,
                (done + 1) * 4
            )
        })?;
        let end = if deed.survives() { "" } else { " (dead, and said so)" };
        *kinds.entry(format!("{deed}{end}")).or_default() += 1;
        done += 1;
        if done.is_multiple_of(SAY_EVERY) {
            say(&format!("  lane {number} ({rotation:?}): {done}"));
        }
    }
    Ok(kinds)
}
