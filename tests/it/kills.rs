//! A daemon that is killed in whatever walk it is, over and over, while records are edited, deleted and restored at all
//! five providers: the suite does it a few times, `scripts/torture kill` as often as one likes.
//!
//! Real are the program, its queue, Postgres and the sockets; the providers' stand-ins are in this process, so what the
//! mirror has to say is known. After each kill, while nobody writes, the [`Oracle`] looks at every row that was written and
//! at what the watermarks promise; a trigger has seen which walks were closed, and each run that is called a success must be
//! one of them. When all kills are over, every watermark has to pass the last change without anything being read again
//! from the beginning; then everything is, and every row is compared.
//!
//! The seed fixes which walk a kill waits for, how long after that it comes, and what happens to which records. What the
//! daemon does at that moment is the machine's to choose, so a seed makes a failure likely to come again, not certain.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use fieldmirror::db::connections;
use fieldmirror::db::requests::{self, NewRequest, RequestKind};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::sandbox::SandboxOptions;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::process::Child;

use crate::simulation::oracle::Oracle;
use crate::simulation::worlds::{PROVIDERS, World, world};
use crate::support::app::{TestApp, small};

/// The kinds of walk that keep their place. A snapshot starts afresh every time.
pub const KINDS: [&str; 4] = ["backfill", "incremental", "archived", "sweep"];
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a kill waits for the walk that it is meant for, once the daemon has begun to work.
const WALK_WITHIN: Duration = Duration::from_secs(2);
/// How long after that it comes, at most: longer than most walks take here.
const KILL_WITHIN_MS: u64 = 400;
/// More kills of the suite, until it has met what it has to: on a slow machine the first walks outlast some.
const KILLS_MORE: u64 = 30;
/// The longest that the last watermark, or a full read, may take.
const SETTLED_IN: Duration = Duration::from_mins(10);
/// For Housecall Pro, whose change marker knows seconds.
const HOLD_BACK: &str = "2s";

pub struct Plan {
    pub kills: u64,
    /// How many it may become until the floors are reached: what a kill meets is the machine's to choose.
    pub kills_max: u64,
    pub floors: Floors,
    pub seed: u64,
    pub records: usize,
}

/// Of how many kinds of walk some have to be met; kills that each kind is to see at least; those that find one which has saved
/// its place; and kills that find a walk of each provider.
#[derive(Debug, Clone, Copy, Default)]
pub struct Floors {
    pub kinds: usize,
    pub within: u64,
    pub midway: u64,
    pub of_provider: u64,
}

impl Floors {
    /// What too few kills have met.
    pub fn missed(&self, tally: &Tally) -> Vec<String> {
        let kinds = KINDS.into_iter().filter(|kind| met(&tally.within, kind) < self.within);
        let midway = KINDS.into_iter().filter(|kind| met(&tally.midway, kind) < self.midway);
        let providers = PROVIDERS.into_iter().filter(|name| met(&tally.of_provider, name) < self.of_provider);
        let midway = midway.map(|kind| format!("{kind} midway"));
        let few = (tally.within.len() < self.kinds).then(|| format!("{} kinds of walk", self.kinds));
        few.into_iter()
            .chain(kinds.map(str::to_owned))
            .chain(midway)
            .chain(providers.map(str::to_owned))
            .collect()
    }

    /// How much of the floors a kind has reached, in percent.
    fn reached(&self, tally: &Tally, kind: &str) -> u64 {
        let share = |met: u64, floor: u64| met * 100 / floor.max(1);
        share(met(&tally.within, kind), self.within).min(share(met(&tally.midway, kind), self.midway))
    }
}

pub fn met(of: &BTreeMap<String, u64>, word: &str) -> u64 {
    of.get(word).copied().unwrap_or(0)
}

/// What the kills have come to.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u64,
    /// Kills by the kind of a walk that was open, as the daemon's own tables say; one may count for several.
    pub within: BTreeMap<String, u64>,
    /// Of those, kills of a walk that had saved its place.
    pub midway: BTreeMap<String, u64>,
    /// Kills by the provider of such a walk, wherever it stood.
    pub of_provider: BTreeMap<String, u64>,
    pub changes: u64,
    pub rows_seen: usize,
    pub walks_closed: i64,
}

/// Kills a daemon as the plan says. An error tells which kill left what behind.
pub async fn run(plan: &Plan, say: impl Fn(&Tally)) -> Result<Tally, String> {
    let mut scene = Scene::new(plan).await;
    let is_over = |tally: &Tally| tally.kills >= plan.kills && plan.floors.missed(tally).is_empty();
    while !is_over(&scene.tally) && scene.tally.kills < plan.kills_max {
        let found = scene.live_and_die().await;
        found.map_err(|why| format!("kill {} of seed {}: {why}", scene.tally.kills, plan.seed))?;
        say(&scene.tally);
    }
    let settled = scene.settle().await;
    settled.map_err(|why| format!("after {} kills of seed {}: {why}", scene.tally.kills, plan.seed))?;
    Ok(scene.tally)
}

/// One provider's account.
struct Account {
    provider: &'static str,
    connection: ConnectionId,
    world: Box<dyn World>,
    oracle: Oracle,
    /// Since when `world` counts what sweeps have to find.
    world_since: DateTime<Utc>,
}

struct Scene {
    app: TestApp,
    accounts: Vec<Account>,
    dice: StdRng,
    tally: Tally,
    kills: u64,
    floors: Floors,
    daemon: Child,
}

impl Scene {
    async fn new(plan: &Plan) -> Self {
        let options = SandboxOptions { seed: plan.seed, throttled: false, ..small(plan.records) };
        let app = TestApp::new(options, &SETTINGS).await;
        app.faults(&["slow=25"]);
        app.execute(WITNESS).await;
        let truths = PROVIDERS.map(|provider| (provider, world(provider)));
        app.execute(MARK).await;
        let daemon = app.spawn_daemon("");
        app.connect_all().await;
        let known = app.db.run(connections::list).await.expect("the database tells");
        let accounts = truths.into_iter().map(|(provider, world)| Account {
            provider,
            connection: known.iter().find(|one| one.provider == provider).expect("it is connected").id,
            world,
            oracle: Oracle::new(provider, TimeDelta::zero()),
            world_since: SystemClock.now(),
        });
        let accounts = accounts.collect();
        let dice = StdRng::seed_from_u64(plan.seed);
        let (kills, floors, tally) = (plan.kills, plan.floors, Tally::default());
        let mut scene = Self { app, accounts, dice, tally, kills, floors, daemon };
        for place in 0..PROVIDERS.len() {
            scene.note(place);
        }
        scene
    }

    /// What a daemon does until it is killed, what is left then, and what happens while none is there.
    async fn live_and_die(&mut self) -> Result<(), String> {
        let kind = self.draw_kind();
        if self.tally.kills > 0 {
            self.make_due(kind).await;
            self.app.execute(MARK).await;
            self.daemon = self.app.spawn_daemon("");
        }
        let midway = self.dice.random_bool(0.5);
        self.wait_for_walk(kind, midway).await;
        if self.dice.random_bool(0.5) {
            self.change();
        }
        // Short walks are to be met as well as long ones.
        let most = (KILL_WITHIN_MS * 1_000) >> self.dice.random_range(0..4);
        tokio::time::sleep(Duration::from_micros(self.dice.random_range(0..most))).await;
        self.kill().await?;
        self.tally.kills += 1;
        self.count().await;
        self.hold().await?;
        self.app.execute(TIME_PASSES).await;
        for _ in 0..self.dice.random_range(0..3) {
            self.change();
        }
        Ok(())
    }

    /// The kind that is the furthest from its floors, or any; those alone, where more kills are made for their sake.
    fn draw_kind(&mut self) -> &'static str {
        let any = *KINDS.choose(&mut self.dice).expect("there are some");
        let reached = |kind: &&str| self.floors.reached(&self.tally, kind);
        let least = KINDS.into_iter().min_by_key(reached).expect("there are some");
        let lacks = self.tally.kills >= self.kills && reached(&least) < 100;
        if lacks || self.dice.random_bool(0.5) { least } else { any }
    }

    /// Something that only an admin's word or time would bring about.
    async fn make_due(&mut self, kind: &'static str) {
        if kind != "backfill" {
            let due = format!(
                "UPDATE fieldmirror.walks SET due_at = now() WHERE mode = '{kind}' AND due_at IS NOT NULL"
            );
            return self.app.execute(due.leak()).await;
        }
        let of = self.accounts[self.dice.random_range(0..PROVIDERS.len())].connection;
        let open = self.app.db.run(move |conn| requests::open(conn, of, RequestKind::Sync)).await;
        if open.expect("the database tells").is_empty() {
            self.ask_for_everything(of).await;
        }
    }

    async fn ask_for_everything(&self, connection: ConnectionId) {
        let args = json!({"full": true});
        let new = NewRequest { connection, kind: RequestKind::Sync, args, sealed: None };
        let asked = self.app.db.run(move |conn| requests::create(conn, &new)).await;
        asked.expect("the database takes it");
    }

    /// Waits for a walk of the kind, or for one that has saved its place, if one comes soon.
    async fn wait_for_walk(&self, kind: &'static str, midway: bool) {
        self.app
            .wait_until(
                "a run has begun",
                "SELECT max(id) > max(run) FROM fieldmirror.sync_runs, public.mark",
            )
            .await;
        let placed = if midway { "AND position IS NOT NULL" } else { "" };
        let open: &'static str =
            format!("SELECT count(*) FROM public.open_walks WHERE mode = '{kind}' {placed}").leak();
        let began = Instant::now();
        while began.elapsed() < WALK_WITHIN && self.app.number(open).await == 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn kill(&mut self) -> Result<(), String> {
        if let Some(status) = self.daemon.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("the daemon ended by itself: {status}"));
        }
        self.daemon.kill().await.map_err(|error| error.to_string())?;
        // What its sessions were told last is done, or not.
        self.app.wait_until("its sessions have ended", NOBODY_WORKS).await;
        Ok(())
    }

    async fn count(&mut self) {
        for row in self.app.rows(MET).await {
            let mode = row["mode"].as_str().unwrap_or_default().to_owned();
            *self.tally.midway.entry(mode.clone()).or_default() += u64::from(row["midway"] == true);
            *self.tally.within.entry(mode).or_default() += 1;
        }
        for row in self.app.rows(MET_OF).await {
            let provider = row["provider"].as_str().unwrap_or_default().to_owned();
            *self.tally.of_provider.entry(provider).or_default() += 1;
        }
    }

    /// Holds what is there against what must be, while nobody writes.
    async fn hold(&mut self) -> Result<(), String> {
        for (sql, wrong) in [
            (UNPROVEN, "runs are called a success and have closed no walk"),
            (MISPLACED, "a place was saved without its pages, or they without it"),
        ] {
            let found = self.app.rows(sql).await;
            if !found.is_empty() {
                return Err(format!("{wrong}: {}", Value::from(found)));
            }
        }
        for account in &mut self.accounts {
            let look = self.app.db.run(account.oracle.look(account.connection)).await;
            let look = look.map_err(|error| format!("looking: {error}"))?;
            let swept_to = look.stands.iter().map(|stands| stands.swept_to).min().flatten();
            account.oracle.check(account.world.as_ref(), look, SystemClock.now());
            found(account)?;
            if swept_to.is_some_and(|swept_to| swept_to > account.world_since) {
                account.world = world(account.provider);
                account.world_since = SystemClock.now();
            }
        }
        self.tally.rows_seen = self.accounts.iter().map(|account| account.oracle.rows_seen).sum();
        Ok(())
    }

    /// Something happens to a record of one provider.
    fn change(&mut self) {
        let place = self.dice.random_range(0..PROVIDERS.len());
        let Account { world, oracle, .. } = &mut self.accounts[place];
        world.change(self.app.sandbox.control(), oracle.truth(), &mut self.dice);
        self.tally.changes += 1;
        self.note(place);
    }

    fn note(&mut self, place: usize) {
        let Account { world, oracle, .. } = &mut self.accounts[place];
        let truth = world.truth(self.app.sandbox.control());
        oracle.note(world.as_ref(), truth, SystemClock.now());
    }

    /// A daemon that is left in peace. First it only does what is due; whatever it lacks after that was lost.
    async fn settle(&mut self) -> Result<(), String> {
        self.app.execute("CREATE TABLE public.last_change AS SELECT clock_timestamp() AS moment").await;
        self.daemon = self.app.spawn_daemon("");
        self.wait_for("all watermarks have passed the last change", PASSED).await?;
        self.kill().await?;
        self.hold().await?;
        self.app.execute(TIME_PASSES).await;
        self.daemon = self.app.spawn_daemon("");
        self.hold_full_read().await?;
        self.wait_for("the state is settled", IDLE).await?;
        self.kill().await?;
        for account in &mut self.accounts {
            account.oracle.look_at_all();
        }
        self.hold().await?;
        for account in &mut self.accounts {
            account.oracle.same();
            found(account)?;
        }
        self.tally.walks_closed = self.app.number("SELECT count(*) FROM public.closings").await;
        let parked = self.app.rows("SELECT * FROM fieldmirror.jobs WHERE state = 'parked'").await;
        if parked.is_empty() { Ok(()) } else { Err(format!("parked: {}", Value::from(parked))) }
    }

    /// Everything is read once more, for what moves no change marker.
    async fn hold_full_read(&self) -> Result<(), String> {
        for account in &self.accounts {
            self.ask_for_everything(account.connection).await;
        }
        self.wait_for("everything has been read again", ALL_ENDED).await?;
        let failed = self.app.rows(FAILED).await;
        if failed.is_empty() { Ok(()) } else { Err(format!("the last full read: {}", Value::from(failed))) }
    }

    /// As the app waits, and longer.
    async fn wait_for(&self, what: &str, sql: &'static str) -> Result<(), String> {
        let began = Instant::now();
        while self.app.one(sql).await != true {
            if began.elapsed() > SETTLED_IN {
                let stands = self.app.rows("SELECT * FROM mirror.freshness").await;
                return Err(format!("not in time: {what}: {}", Value::from(stands)));
            }
            // OnceHub's limit for an address would spread this over minutes.
            self.app.execute("UPDATE fieldmirror.rate_budget SET taken_until = now()").await;
            tokio::time::sleep(LOOK_EVERY * 10).await;
        }
        Ok(())
    }
}

fn found(account: &Account) -> Result<(), String> {
    match account.oracle.found() {
        [] => Ok(()),
        wrong => Err(format!("{}: {}", account.provider, wrong.join("\n"))),
    }
}

/// Walks that are due all the time, many pages, and no limit but the stand-ins' slowness.
const SETTINGS: [(&str, &str); 15] = [
    ("daemon.workers", "6"),
    ("sync.poll_interval", "1s"),
    ("sync.archived_interval", "1s"),
    ("sync.sweep_interval", "2s"),
    ("sync.hold_back", HOLD_BACK),
    ("sync.turn_limit", "1s"),
    ("sync.quota_reserve", "0"),
    ("providers.hubspot.page_size", "10"),
    ("providers.jobber.page_size", "10"),
    ("providers.housecallpro.page_size", "10"),
    ("providers.housecallpro.requests_per_minute", "6000"),
    ("providers.servicetitan.poll_interval", "1s"),
    ("providers.servicetitan.include_recent_changes", "true"),
    ("providers.oncehub.page_size", "10"),
    ("providers.oncehub.poll_interval", "3s"),
];

/// Notes which walks were closed, in the transactions that close them; shows those that a run of this daemon is in.
const WITNESS: &str = "
    CREATE TABLE public.closings (connection_id bigint, stream text, mode text, closed_at timestamptz);
    CREATE FUNCTION public.note_closing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.closings VALUES (NEW.connection_id, NEW.stream, NEW.mode, NEW.closed_at);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_closing AFTER UPDATE ON fieldmirror.walks FOR EACH ROW
        WHEN (NEW.closed_at IS DISTINCT FROM OLD.closed_at) EXECUTE FUNCTION public.note_closing();
    CREATE TABLE public.mark AS SELECT 0::bigint AS run;
    CREATE VIEW public.open_walks AS
        SELECT r.mode, r.stream, r.connection_id, r.pages, r.started_at AS run_started_at, w.started_at, w.position
        FROM public.mark m
        JOIN fieldmirror.sync_runs r ON r.id > m.run AND r.ended_at IS NULL
        JOIN fieldmirror.walks w ON (w.connection_id, w.stream, w.mode) = (r.connection_id, r.stream, r.mode)
            AND w.started_at IS NOT NULL";

/// Where this daemon's runs begin.
const MARK: &str = "UPDATE public.mark SET run = (SELECT coalesce(max(id), 0) FROM fieldmirror.sync_runs)";

/// By kind: whether a walk that was open had saved its place.
const MET: &str = "SELECT mode, bool_or(position IS NOT NULL) AS midway FROM public.open_walks GROUP BY mode";

/// The providers of walks that were open.
const MET_OF: &str = "SELECT DISTINCT provider FROM public.open_walks w
    JOIN fieldmirror.connections c ON c.id = w.connection_id";

const NOBODY_WORKS: &str = "SELECT count(*) = 0 FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'";

const UNPROVEN: &str = "SELECT r.* FROM fieldmirror.sync_runs r WHERE r.outcome = 'closed' AND 1 <> (
    SELECT count(*) FROM public.closings c WHERE (c.connection_id, c.stream, c.mode) = (r.connection_id, r.stream, r.mode)
        AND c.closed_at BETWEEN r.started_at AND r.ended_at)";

/// A run that has saved pages has left a place, and a walk that it has opened without saving any has none.
const MISPLACED: &str = "SELECT * FROM public.open_walks
    WHERE pages > 0 AND position IS NULL
       OR pages = 0 AND position IS NOT NULL AND started_at >= run_started_at";

/// What the time that a killed daemon's leases, attempts and rate limits take to lapse would do. Three kills before anything
/// was saved would park a job, and no test says when something is.
const TIME_PASSES: &str = "UPDATE fieldmirror.jobs SET lease_until = now() WHERE state = 'running';
    UPDATE fieldmirror.jobs SET crashes = 0;
    UPDATE fieldmirror.connections SET pacing = '{}';
    UPDATE fieldmirror.rate_budget SET taken_until = now();
    UPDATE fieldmirror.refresh_attempts SET blocked_until = now()";

const PASSED: &str =
    "SELECT count(*) = 27 AND bool_and(coalesce(complete_to > moment AND swept_to > moment, false))
    FROM mirror.freshness, public.last_change";
const ALL_ENDED: &str = "SELECT count(*) = 0 FROM fieldmirror.requests WHERE done_at IS NULL";
const FAILED: &str = "SELECT connection_id, outcome, message FROM fieldmirror.requests, public.last_change
    WHERE kind = 'sync' AND requested_at > moment AND outcome <> 'done'";
const IDLE: &str =
    "SELECT bool_and(state IN ('idle', 'syncing') AND stalled_reason IS NULL) FROM mirror.freshness";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_is_killed_in_any_walk_of_any_provider() {
    let floors = Floors { kinds: 2, ..Floors::default() };
    let plan = Plan { kills: 4, kills_max: 4 + KILLS_MORE, floors, seed: 20_261_126, records: 25 };
    let tally = run(&plan, |_| {}).await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(plan.floors.missed(&tally), [""; 0], "{tally:?}");
}
