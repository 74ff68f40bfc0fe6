//! Refreshes in which the process dies, and databases that are restored: what goes wrong is drawn from the seed, so a run
//! that failed goes the same way again.

use std::collections::BTreeMap;
use std::time::Instant;

use fieldmirror::auth::between::Step;
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::domain::ids::ConnectionId;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::auth::fake::Rotation;
use crate::auth::rig::Rig;
use crate::auth::stage::{self, Crash, Reply, start_again};
use crate::{Plan, say};

const ROTATIONS: [Rotation; 4] = [Rotation::Never, Rotation::Strict, Rotation::Graceful, Rotation::Jealous];
/// Replies that are lost take their pause; of a hundred.
const LOST_PERCENT: u32 = 4;
const UNSEEN_PERCENT: u32 = 4;
/// Restored databases, of a hundred.
const RESTORED_PERCENT: u32 = 10;
/// The most refreshes that a restored database has lost.
const LOST_MAX: u32 = 4;
const SAY_EVERY: u64 = 250;

/// What goes wrong next.
enum Deed {
    Crash(Crash),
    Restore { lost: u32 },
}

pub async fn run(plan: Plan) -> Result<(), String> {
    let began = Instant::now();
    let lanes = (0..).zip(ROTATIONS).map(|(lane, rotation)| {
        tokio::spawn(async move { Lane::new(plan, lane, rotation).await.run(plan).await })
    });
    let mut kinds = BTreeMap::<String, u64>::new();
    let mut done = 0;
    for ended in join_all(lanes).await {
        let lane = ended.map_err(|error| format!("a lane broke off: {error}"))??;
        done += lane.done;
        for (kind, count) in lane.kinds {
            *kinds.entry(kind).or_default() += count;
        }
    }
    for (kind, count) in kinds {
        say(&format!("  {kind}: {count}"));
    }
    say(&format!(
        "{done} faulted refreshes in {:.0} s: no grant was lost that the provider would have honoured",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// A provider of one kind, and one connection at a time.
struct Lane {
    rig: Rig,
    dice: StdRng,
    rotation: Rotation,
    number: u64,
    account: u64,
    done: u64,
    kinds: BTreeMap<String, u64>,
}

impl Lane {
    async fn new(plan: Plan, number: u64, rotation: Rotation) -> Self {
        let rig = Rig::new().await;
        rig.fake.rotate(rotation);
        rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
        let dice = StdRng::seed_from_u64(plan.seed.wrapping_mul(4).wrapping_add(number));
        Self { rig, dice, rotation, number, account: 0, done: 0, kinds: BTreeMap::new() }
    }

    async fn run(mut self, plan: Plan) -> Result<Self, String> {
        let mut id = self.connect().await;
        while self.done < plan.refreshes.div_ceil(4) || Instant::now() < plan.until {
            let deed = self.draw();
            let (what, lives) = match deed {
                Deed::Crash(crash) => (crash.to_string(), crash.survives()),
                Deed::Restore { lost } => {
                    (format!("restored, {lost} lost, rotation {:?}", self.rotation), true)
                }
            };
            let held = match deed {
                Deed::Crash(crash) => stage::crash(&self.rig, id, crash).await,
                Deed::Restore { lost } => self.restore(id, lost).await,
            };
            held.map_err(|why| {
                let Self { number, done, .. } = &self;
                format!(
                    "lane {number}, refresh {done}, connection {id}: {what}: {why}\nto see it again: \
                     scripts/torture tokens --seed {} --refreshes {}",
                    plan.seed,
                    (done + 1) * 4
                )
            })?;
            *self
                .kinds
                .entry(format!("{what}{}", if lives { "" } else { " (dead, and said so)" }))
                .or_default() += 1;
            self.done += 1;
            if self.done.is_multiple_of(SAY_EVERY) {
                say(&format!("  lane {} ({:?}): {}", self.number, self.rotation, self.done));
            }
            self.rig.execute("DELETE FROM fieldmirror.rate_budget").await;
            if !lives {
                stage::put_away(&self.rig, id).await;
                id = self.connect().await;
            }
        }
        Ok(self)
    }

    fn draw(&mut self) -> Deed {
        let chance = self.dice.random_range(0..100);
        if chance < RESTORED_PERCENT {
            return Deed::Restore { lost: self.dice.random_range(1..=LOST_MAX) };
        }
        let chance = self.dice.random_range(0..100);
        let reply = match chance {
            _ if chance < LOST_PERCENT => Reply::Lost,
            _ if chance < LOST_PERCENT + UNSEEN_PERCENT => Reply::Unseen,
            _ => Reply::Arrives,
        };
        let step = *Step::ALL.choose(&mut self.dice).expect("there are steps");
        Deed::Crash(Crash { step, rotation: self.rotation, reply })
    }

    async fn connect(&mut self) -> ConnectionId {
        self.account += 1;
        self.rig.fake.forget_answers();
        self.rig.connected(&format!("acme-{}", self.account), self.account).await
    }

    /// The database goes back by some refreshes, and the daemon is started again.
    async fn restore(&self, id: ConnectionId, lost: u32) -> Result<(), String> {
        let rig = &self.rig;
        rig.fake.forget_answers();
        rig.execute("DELETE FROM public.backup").await;
        rig.execute("INSERT INTO public.backup SELECT * FROM fieldmirror.tokens").await;
        let auth = start_again(rig, rig.state.path()).await;
        for _ in 0..lost {
            auth.refresh(id, Why::Asked).await.map_err(|failure| format!("before it: {failure}"))?;
        }
        rig.execute("DELETE FROM fieldmirror.tokens").await;
        rig.execute("INSERT INTO fieldmirror.tokens SELECT * FROM public.backup").await;
        let replays = rig.fake.replays();
        let auth = start_again(rig, rig.state.path()).await;
        let refreshed = auth.refresh(id, Why::Asked).await;
        let state = rig.connection(id).await.state;
        if refreshed == Ok(Refreshed::Renewed)
            && state == ConnectionState::Connected
            && rig.fake.replays() == replays
        {
            return Ok(());
        }
        Err(format!("{state:?}, {refreshed:?}, {} replays", rig.fake.replays() - replays))
    }
}
