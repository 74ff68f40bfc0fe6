//! The engine: one bounded turn for one connection. It knows no provider by name.
//!
//! A turn draws a number, works on the walks that are due, and stops when its time is over or there is nothing left to
//! do. It holds no database connection while it waits. What it leaves is due again at once.

pub mod commit;
mod confirm;
pub mod drift;
pub mod drive;
pub mod extract;
pub mod history;
pub mod merge;
pub mod order;
pub mod plan;
mod probe;
pub mod requests;
pub mod send;
mod setback;
mod suspicion;
mod verify;
pub mod watermark;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::auth::Auth;
use crate::config::{ProviderSettings, Settings};
use crate::db::connections::{Connection, ConnectionState};
use crate::db::streams::{StreamKey, StreamRow, WalkRow};
use crate::db::{
    Db, DbError, PgConnection, connections, rate_budget, streams, sync_runs, tokens, turns, views,
};
use crate::domain::chance;
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;
use crate::domain::spec::{BucketSpec, Mode, Scope, StreamSpec};
use crate::domain::step::{Facts, Params};
use crate::domain::time::{Clock, delta};
use crate::http::Client;
use crate::http::pace::{Pacer, less_reserve};
use crate::providers::{self, Provider};
use drive::Drive;
use order::Unserved;
use plan::{StreamPlan, WalkState, Wave};
use send::{Egress, Halt, Sender};
use setback::Before;

/// What turns are made of.
#[derive(Clone)]
pub struct Engine {
    pub db: Db,
    pub auth: Auth,
    pub client: Client,
    pub settings: Arc<Settings>,
    pub clock: Arc<dyn Clock>,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnEnd {
    /// What could be done has been done, or the turn's time is over; the tables say what is due next.
    Done,
    /// The connection is not there or not connected: nothing to do.
    Idle,
}

impl TurnEnd {
    /// The word for metrics.
    pub fn word(ended: &Result<Self, Failure>) -> &'static str {
        match ended {
            Ok(Self::Done) => "done",
            Ok(Self::Idle) => "idle",
            Err(_) => "failed",
        }
    }
}

/// A connection as a turn finds it.
struct Turn {
    connection: Connection,
    provider: &'static dyn Provider,
    provider_settings: ProviderSettings,
    epoch: i64,
    pacer: Pacer,
    facts: Facts,
    params: Params,
    streams: Vec<StreamRow>,
    walks: Vec<WalkRow>,
    /// The walks that come first the next time they are due.
    unserved: Mutex<Unserved>,
}

impl Engine {
    /// One turn. `stop` ends it early: the daemon stops, or the job's lease is lost.
    pub async fn turn(&self, of: ConnectionId, stop: &CancellationToken) -> Result<TurnEnd, Failure> {
        let began = Instant::now();
        let Some(mut turn) = self.begin(of).await.map_err(|error| Failure::from(&error))? else {
            return Ok(TurnEnd::Idle);
        };
        let sender = Sender {
            client: &self.client,
            auth: &self.auth,
            access: Mutex::new(None),
            doubts: tokio::sync::Mutex::default(),
            skew: Mutex::default(),
            clock: &*self.clock,
            provider: turn.provider,
            connection: of,
            api_base: &turn.provider_settings.api_base.clone(),
            pacer: Mutex::new(turn.pacer.clone()),
            egress: self.egress(&turn),
            in_flight: Semaphore::new(turn.provider.in_flight_max(&turn.provider_settings.extra)),
            stop: stop.clone(),
            began: (self.clock.now(), began),
        };
        let plans = turn.plans();
        let [first, mut second] =
            plan::plan(&plans, self.settings.rhythm(&turn.provider_settings), self.clock.now());
        if !first.is_empty() {
            self.wave(&turn, &sender, first, began).await;
            self.relearn(&mut turn).await.map_err(|error| Failure::from(&error))?;
        }
        let unlearned = plan::unlearned(&plans, &mut second, &turn.facts);
        self.wave(&turn, &sender, second, began).await;
        self.hold(&turn, unlearned).await;
        // Comparing comes last: it takes what the walks have left of the time and of the limits.
        let compared = self.verify(&turn, &sender, began + self.settings.sync.turn_limit).await;
        self.end(&turn, &sender).await.map_err(|error| Failure::from(&error))?;
        compared.map(|()| TurnEnd::Done)
    }

    /// Draws the turn's number, takes over what is left of the rate limits, and applies what admins asked for.
    async fn begin(&self, of: ConnectionId) -> Result<Option<Turn>, DbError> {
        let now = self.clock.now();
        let settings = Arc::clone(&self.settings);
        self.db
            .transaction(move |connection| {
                if !turns::lock(connection, of)? {
                    return Ok(None);
                }
                let row = connections::get(connection, of)?;
                let Some(provider) = providers::provider(&row.provider) else { return Ok(None) };
                if !is_readable(connection, &row, now)? {
                    requests::give_up(connection, of, &format!("the connection is {}", row.state.as_str()))?;
                    return Ok(None);
                }
                let provider_settings =
                    settings.providers.get(&row.provider).filter(|of| of.enabled).cloned();
                let Some(provider_settings) = provider_settings else {
                    requests::give_up(
                        connection,
                        of,
                        &format!("`{}` is disabled in the settings", row.provider),
                    )?;
                    return Ok(None);
                };
                let spec = provider.spec();
                let epoch = streams::take(connection, of, spec.streams)?;
                sync_runs::end_abandoned(connection, of, now)?;
                let asked = requests::apply(connection, of, spec, now)?;
                let saved = turns::take_pacing(connection, of)?;
                let unserved = Mutex::new(Unserved::read(saved.as_ref()));
                let buckets = provider.buckets(&provider_settings.extra);
                let mut pacer = pacer(&buckets, settings.sync.quota_reserve, saved, now);
                if asked {
                    // Whoever asks may know that a long pause has lost its reason.
                    pacer.question_pauses(now);
                    let scope = rate_budget::egress_scope(&row.provider, &settings.daemon.egress_group);
                    for bucket in buckets.iter().filter(|bucket| bucket.scope == Scope::Egress) {
                        rate_budget::question_pause(connection, &scope, bucket)?;
                    }
                }
                let turn = Turn {
                    facts: turns::facts(connection, of)?,
                    params: row.params.clone(),
                    streams: streams::streams(connection, of)?,
                    walks: streams::walks(connection, of)?,
                    connection: row,
                    provider,
                    provider_settings,
                    epoch,
                    pacer,
                    unserved,
                };
                Ok(Some(turn))
            })
            .await
    }

    /// The limits that the connection shares with all others which leave from the same address.
    fn egress(&self, turn: &Turn) -> Egress<'_> {
        let left = |bucket: BucketSpec| BucketSpec {
            limit: less_reserve(bucket.limit, self.settings.sync.quota_reserve),
            ..bucket
        };
        let buckets = turn.provider.buckets(&turn.provider_settings.extra).into_iter();
        Egress {
            db: &self.db,
            scope: rate_budget::egress_scope(&turn.connection.provider, &self.settings.daemon.egress_group),
            buckets: buckets.filter(|bucket| bucket.scope == Scope::Egress).map(left).collect(),
        }
    }

    /// Streams of a wave side by side, the walks of a stream one after the other.
    async fn wave(&self, turn: &Turn, sender: &Sender<'_>, wave: Wave, began: Instant) {
        let drive = Drive {
            db: &self.db,
            sender,
            settings: &self.settings.sync,
            rhythm: self.settings.rhythm(&turn.provider_settings),
            api_version: &turn.provider_settings.api_version,
            page_size: turn.page_size(),
            params: &turn.params,
            options: &turn.provider_settings.extra,
            facts: &turn.facts,
            began,
        };
        let in_order = {
            let mut pacer = sender.lock_pacer();
            pacer.come(wave.keys().copied());
            turn.unserved().order(wave, pacer.line())
        };
        let streams = in_order.into_iter().map(|(stream, modes)| self.stream(turn, &drive, stream, modes));
        join_all(streams).await;
    }

    async fn stream(&self, turn: &Turn, drive: &Drive<'_>, stream: &'static str, modes: Vec<Mode>) {
        let Some(spec) = turn.provider.spec().stream(stream) else { return };
        let key = StreamKey { connection: turn.connection.id, stream: spec.name, epoch: turn.epoch };
        let known = turn.streams.iter().find(|row| row.stream == stream);
        let complete_to = known.and_then(|row| row.complete_to);
        let mut result = Ok(());
        let mut last = None;
        // What an admin allows holds for all that this turn reads of the stream.
        let allowed = turn.walks.iter().any(|walk| walk.stream == stream && walk.mass_delete_allowed);
        let is_over = |result: &Result<(), Halt>| matches!(result, Err(halt) if halt.is_over());
        let mut modes = modes.into_iter();
        for mode in modes.by_ref() {
            let Some(row) = turn.walk(stream, mode) else { continue };
            last = Some(mode);
            let row = WalkRow {
                mass_delete_allowed: row.mass_delete_allowed || allowed,
                facts_as_of: turn.facts_as_of(spec, row),
                ..row.clone()
            };
            let sent;
            (result, sent) = drive.walk(key, spec, &row, mode, complete_to).await;
            turn.unserved().note(stream, mode, sent > 0 || !is_over(&result));
            match &result {
                Ok(()) => {}
                // What could be read has been: the other walks go on.
                Err(Halt::Partial { .. }) => {
                    self.record(turn, key, last, std::mem::replace(&mut result, Ok(()))).await;
                }
                Err(_) => break,
            }
        }
        let waits = is_over(&result);
        drive.sender.lock_pacer().go(stream, waits);
        if waits {
            modes.for_each(|mode| turn.unserved().note(stream, mode, false));
        }
        self.record(turn, key, last, result).await;
    }

    /// Streams that lack what another stream of the connection should have learned wait, and say so.
    async fn hold(&self, turn: &Turn, unlearned: Wave) {
        for stream in unlearned.into_keys() {
            let Some(spec) = turn.provider.spec().stream(stream) else { continue };
            let key = StreamKey { connection: turn.connection.id, stream: spec.name, epoch: turn.epoch };
            let wanted: Vec<&str> = spec.needs_facts.iter().map(|fact| fact.name).collect();
            let wanted = wanted.join("`, `");
            let failure = Failure::transient(format!("waits until `{wanted}` of the account is known"));
            self.record(turn, key, None, Err(Halt::Failed(failure))).await;
        }
    }

    async fn record(&self, turn: &Turn, key: StreamKey, mode: Option<Mode>, result: Result<(), Halt>) {
        let stream = key.stream;
        let spec = turn.provider.spec().stream(stream);
        let needs =
            spec.and_then(|spec| setback::needs(spec, self.settings.rhythm(&turn.provider_settings).poll));
        let before = if let Some(walk) = mode.and_then(|mode| turn.walk(stream, mode)) {
            Before { failures: walk.failures, refusals: walk.refusals, unread: walk.unread, needs }
        } else {
            let row = turn.streams.iter().find(|row| row.stream == stream);
            Before { failures: row.map_or(0, |row| row.failures), needs, ..Before::default() }
        };
        let (now, chance) = (self.clock.now(), chance::share());
        let record = move |connection: &mut PgConnection| {
            setback::record(connection, key, mode, &result, &before, now, chance)
        };
        let recorded = self.db.transaction(record).await;
        if let Err(error) = recorded {
            warn!(connection.id = key.connection.0, stream, error = %Failure::from(&error), "Could not record how `{stream}` stands");
        }
    }

    /// Reads again what the first wave has learned.
    async fn relearn(&self, turn: &mut Turn) -> Result<(), DbError> {
        let of = turn.connection.id;
        let learned = self
            .db
            .run(move |connection| Ok((turns::facts(connection, of)?, streams::walks(connection, of)?)));
        (turn.facts, turn.walks) = learned.await?;
        Ok(())
    }

    /// Leaves the rate limits, the account's view and the requests as the turn has made them.
    async fn end(&self, turn: &Turn, sender: &Sender<'_>) -> Result<(), DbError> {
        let now = self.clock.now();
        let of = turn.connection.id;
        let mut pacing = sender.lock_pacer().to_saved(sender.pacing_now());
        turn.unserved().write(&mut pacing);
        let provider = turn.provider;
        let epoch = turn.epoch;
        let known = turn.facts.get(CLOCKS).cloned().unwrap_or_else(|| json!({}));
        let clocks =
            sender.skew().map(|skew| clocks(provider.spec().title, skew, self.settings.sync.overlap));
        let news = clocks.filter(|clocks| *clocks != known);
        self.db
            .transaction(move |connection| {
                turns::save_pacing(connection, of, epoch, &pacing, now)?;
                if let Some(clocks) = news
                    && turns::owns(connection, of, epoch)?
                {
                    turns::learn(connection, of, &Facts::from([(CLOCKS.to_owned(), clocks)]))?;
                }
                requests::settle(connection, of, provider.spec())
            })
            .await?;
        self.show_account(turn).await;
        Ok(())
    }

    /// Makes the account's own view when it does not show what it should, unless the connection was ended meanwhile. A view
    /// that cannot be made loses no data.
    async fn show_account(&self, turn: &Turn) {
        let (of, provider, epoch) = (turn.connection.id, turn.provider, turn.epoch);
        let shown = self.db.transaction(move |connection| {
            if !turns::owns(connection, of, epoch)? {
                return Ok(());
            }
            let facts = turns::facts(connection, of)?;
            match provider.account_view(&facts) {
                Some(view) if !views::is_current(connection, of, &view)? => {
                    views::create(connection, of, &view)
                }
                _ => Ok(()),
            }
        });
        if let Err(error) = shown.await {
            warn!(connection.id = of.0, error = %Failure::from(&error), "Could not renew the view of connection {of}");
        }
    }
}

/// Whether requests can be sent for it: an account that needs a new consent is read for as long as its token lives, unless
/// it is the API that refuses that.
fn is_readable(session: &mut PgConnection, row: &Connection, now: DateTime<Utc>) -> Result<bool, DbError> {
    match row.state {
        ConnectionState::Connected => Ok(true),
        ConnectionState::NeedsReauth => {
            let token = tokens::load(session, row.id)?;
            let token = token.filter(|token| token.refused_at.is_none());
            Ok(token.and_then(|token| token.expires_at).is_some_and(|expires_at| expires_at > now))
        }
        _ => Ok(false),
    }
}

/// The fact that tells people of clocks that do not agree.
const CLOCKS: &str = "notices.clock";

/// What people should know of the provider's clock: nothing, as long as what walks reach back for anyway covers it.
fn clocks(title: &str, skew: TimeDelta, overlap: Duration) -> Value {
    if skew.abs() <= delta(overlap) {
        return json!({});
    }
    let (minutes, side) =
        (skew.num_minutes().abs(), if skew > TimeDelta::zero() { "behind" } else { "ahead of" });
    let harm = if skew > TimeDelta::zero() {
        "changes are read again from where its clock stands"
    } else {
        "changes are seen that much later"
    };
    json!({ "clock": format!("the clock of {title} is {minutes} min {side} ours, so {harm}: see to ours if it is the one that is wrong") })
}

/// What is left of the rate limits.
fn pacer(buckets: &[BucketSpec], reserve: f64, saved: Option<Value>, now: DateTime<Utc>) -> Pacer {
    let of_account: Vec<BucketSpec> =
        buckets.iter().filter(|bucket| bucket.scope == Scope::Account).copied().collect();
    let mut full = Pacer::new(&of_account, reserve);
    match saved {
        // Nothing was ever asked of this account.
        Some(saved) if saved.as_object().is_some_and(serde_json::Map::is_empty) => full,
        Some(saved) => Pacer::from_saved(&of_account, reserve, &saved, now),
        // The last turn did not come to its end: nothing counts as left.
        None => {
            full.assume_spent(now);
            full
        }
    }
}

impl Turn {
    fn plans(&self) -> Vec<StreamPlan> {
        let plan = |row: &StreamRow| {
            let spec = self.provider.spec().stream(&row.stream)?;
            let walks = self.walks.iter().filter(|walk| walk.stream == row.stream);
            Some(StreamPlan {
                spec,
                not_before: row.not_before,
                walks: walks.filter_map(walk_state).collect(),
            })
        };
        self.streams.iter().filter_map(plan).collect()
    }

    /// What a panicking task left behind here is plain data: it is whole.
    fn unserved(&self) -> MutexGuard<'_, Unserved> {
        self.unserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn walk(&self, stream: &str, mode: Mode) -> Option<&WalkRow> {
        self.walks.iter().find(|walk| walk.stream == stream && walk.mode == mode.as_str())
    }

    /// As of when the facts are known that a walk needs, or has taught. One that is open goes on with what it knew when it
    /// began: what it has read since then was read with no less.
    fn facts_as_of(&self, spec: &StreamSpec, row: &WalkRow) -> Option<DateTime<Utc>> {
        let resumed = row.started_at.filter(|_| row.mode != Mode::Snapshot.as_str());
        let began = resumed.and(row.facts_as_of);
        if spec.needs_facts.is_empty() || began.is_some() {
            return row.facts_as_of;
        }
        let taught =
            spec.needs_facts.iter().filter_map(|fact| self.walk(fact.taught_by, Mode::Snapshot)?.facts_as_of);
        taught.min()
    }

    fn page_size(&self) -> u32 {
        match self.provider_settings.page_size {
            0 => self.provider.spec().page_size,
            size => size,
        }
    }
}

fn walk_state(row: &WalkRow) -> Option<WalkState> {
    let fails = row.failures > 0;
    Some(WalkState { mode: Mode::parse(&row.mode)?, covered_to: row.covered_to, due_at: row.due_at, fails })
}
