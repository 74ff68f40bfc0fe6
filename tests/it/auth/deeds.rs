//! A series of refreshes that go wrong, all of it drawn from a seed: for the torture. The same seed goes the same way again.

use std::fmt;

use fieldmirror::auth::between::Step;
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::db::connections::ConnectionState;
use fieldmirror::domain::ids::ConnectionId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::fake::Rotation;
use super::rig::Rig;
use super::stage::{self, Crash, Reply, start_again};

/// One lane each.
pub const ROTATIONS: [Rotation; 4] =
    [Rotation::Never, Rotation::Strict, Rotation::Graceful, Rotation::Jealous];
/// Replies that are lost take their pause; of a hundred.
const LOST_PERCENT: u32 = 4;
const UNSEEN_PERCENT: u32 = 4;
/// Restored databases, of a hundred.
const RESTORED_PERCENT: u32 = 10;
/// The most refreshes that a restored database has lost.
const LOST_MAX: u32 = 4;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Deed {
    Crash(Crash),
    Restore { lost: u32, rotation: Rotation },
}

impl Deed {
    /// Whether the grant has to be alive after it.
    pub fn survives(self) -> bool {
        match self {
            Self::Crash(crash) => crash.survives(),
            Self::Restore { .. } => true,
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crash(crash) => crash.fmt(f),
            Self::Restore { lost, rotation } => write!(f, "restored, {lost} lost, rotation {rotation:?}"),
        }
    }
}

/// What a lane of a seed goes through, without end.
pub struct Deeds {
    dice: StdRng,
    rotation: Rotation,
}

impl Deeds {
    pub fn new(seed: u64, lane: u64, rotation: Rotation) -> Self {
        Self { dice: StdRng::seed_from_u64(seed.wrapping_mul(4).wrapping_add(lane)), rotation }
    }
}

impl Iterator for Deeds {
    type Item = Deed;

    fn next(&mut self) -> Option<Deed> {
        let rotation = self.rotation;
        let chance = self.dice.random_range(0..100);
        if chance < RESTORED_PERCENT {
            return Some(Deed::Restore { lost: self.dice.random_range(1..=LOST_MAX), rotation });
        }
        let chance = self.dice.random_range(0..100);
        let reply = match chance {
            _ if chance < LOST_PERCENT => Reply::Lost,
            _ if chance < LOST_PERCENT + UNSEEN_PERCENT => Reply::Unseen,
            _ => Reply::Arrives,
        };
        let step = *Step::ALL.choose(&mut self.dice).expect("there are steps");
        Some(Deed::Crash(Crash { step, rotation, reply }))
    }
}

/// A provider of one kind, and one connection at a time.
pub struct Lane {
    rig: Rig,
    deeds: Deeds,
    account: u64,
    id: ConnectionId,
}

impl Lane {
    pub async fn new(seed: u64, number: u64, rotation: Rotation) -> Self {
        let rig = Rig::new().await;
        rig.fake.rotate(rotation);
        rig.execute("CREATE TABLE public.backup AS SELECT * FROM fieldmirror.tokens").await;
        let deeds = Deeds::new(seed, number, rotation);
        let mut lane = Self { rig, deeds, account: 0, id: ConnectionId(0) };
        lane.connect().await;
        lane
    }

    /// Does the next deed, and looks whether what must hold holds: what it was, or with it what does not.
    pub async fn step(&mut self) -> Result<Deed, String> {
        let deed = self.deeds.next().expect("there is no end to it");
        let held = match deed {
            Deed::Crash(crash) => stage::crash(&self.rig, self.id, crash).await,
            Deed::Restore { lost, .. } => restore(&self.rig, self.id, lost).await,
        };
        held.map_err(|why| format!("connection {}: {deed}: {why}", self.id))?;
        self.rig.execute("DELETE FROM fieldmirror.rate_budget").await;
        if !deed.survives() {
            stage::put_away(&self.rig, self.id).await;
            self.connect().await;
        }
        Ok(deed)
    }

    async fn connect(&mut self) {
        self.account += 1;
        self.rig.fake.forget_answers();
        self.id = self.rig.connected(&format!("acme-{}", self.account), self.account).await;
    }
}

/// The database goes back by some refreshes, and the daemon is started again.
async fn restore(rig: &Rig, id: ConnectionId, lost: u32) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use fieldmirror::db::rows;

    use super::*;

    fn plan(seed: u64, lane: u64, rotation: Rotation) -> Vec<String> {
        Deeds::new(seed, lane, rotation).take(1_000).map(|deed| deed.to_string()).collect()
    }

    #[test]
    fn a_seed_draws_the_same_deeds_again() {
        for (lane, rotation) in (0..).zip(ROTATIONS) {
            let drawn = plan(7, lane, rotation);
            assert_eq!(drawn, plan(7, lane, rotation));
            assert_ne!(drawn, plan(8, lane, rotation));
            // Each lane of a seed is another story, whatever its rotation.
            assert_ne!(drawn, plan(7, lane + 1, rotation));
            for step in Step::ALL {
                assert!(drawn.iter().any(|deed| deed.contains(&format!("{step:?}"))), "{step:?}");
            }
            assert!(
                drawn.iter().any(|deed| deed.contains("Lost"))
                    && drawn.iter().any(|deed| deed.contains("restored"))
            );
        }
    }

    /// All that was asked of the provider, and all that is on record of it.
    async fn story(seed: u64) -> Vec<String> {
        let mut lane = Lane::new(seed, 1, Rotation::Strict).await;
        let mut told = Vec::new();
        for _ in 0..8 {
            let deed = lane.step().await.unwrap_or_else(|why| panic!("{why}"));
            let asked = lane.rig.fake.asked();
            told.push(format!("{deed}, {} token requests", asked.len()));
        }
        let written = lane.rig.db(|conn| {
            rows::objects(
                conn,
                "SELECT connection_id, event, outcome, split_part(detail, ' that began at ', 1) AS detail
                 FROM fieldmirror.audit_log ORDER BY id",
            )
        });
        told.extend(written.await.iter().map(ToString::to_string));
        told
    }

    #[tokio::test]
    async fn a_seed_goes_the_same_way_again() {
        let first = story(7).await;
        assert!(first.len() > 16, "{first:#?}");
        assert_eq!(first, story(7).await);
    }
}
