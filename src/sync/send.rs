//! Sending a walk's requests: paced, with a token that lives, retried where that helps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::auth::doubt::Doubt;
use crate::auth::proof::{Turnstile, verdict_of};
use crate::auth::{Access, Auth};
use crate::db::Db;
use crate::db::rate_budget::{self, Lease};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::measure;
use crate::domain::spec::BucketSpec;
use crate::domain::step::{Body, Reply, Request, Verdict};
use crate::domain::time::{Clock, delta};
use crate::http::pace::{Observed, Pacer};
use crate::http::retry::{http_date, pause, retry_after};
use crate::http::{Client, SendError};
use crate::providers::Provider;

/// How often one request is sent when the trouble is passing, 429 included.
const TRIES_MAX: u32 = 5;
/// The first pause after passing trouble, and the longest.
const PAUSE_BASE: Duration = Duration::from_millis(400);
const PAUSE_CAP: Duration = Duration::from_secs(15);

/// How long it counts that a token is fresh, or that the provider takes it.
const DOUBT_SETTLED_MAX: Duration = Duration::from_secs(30);

/// How long a token is used without asking whether there is a newer one: a request in hundreds pays for the question.
const ACCESS_KEPT_MAX: Duration = Duration::from_secs(2);

/// Why a walk does not go on in this turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Halt {
    /// The turn's time is over.
    TurnOver,
    /// It would be over before the next request may go: nothing can be done before `until`. `what` is waited for, in words.
    Waits {
        until: DateTime<Utc>,
        what: String,
    },
    /// The daemon stops, or the job's lease is lost.
    Stopped,
    /// Another turn owns the stream.
    Lost,
    /// The provider refused the walk's place: it starts again.
    Restart(String),
    /// The walk is at its end and has not read all of what it had to; it is due again at `due_at`.
    Partial {
        why: String,
        due_at: DateTime<Utc>,
    },
    /// A credential that is good was refused all the same: passing trouble, unless it stays.
    Refused(String),
    /// What came was no JSON though it was called a success: the same.
    Unread(String),
    Failed(Failure),
}

impl Halt {
    /// The turn is too short for what comes next.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::TurnOver | Self::Waits { .. })
    }
}

/// What is counted about requests, by all that send for one walk.
#[derive(Debug, Default)]
pub struct Tally {
    /// The stream that they are for; `None`: they get what all streams leave.
    pub of: Option<&'static str>,
    pub requests: AtomicI64,
    pub throttled: AtomicI64,
    /// By how many milliseconds our clock runs ahead of the provider's, at the most that was seen.
    pub ahead_ms: AtomicI64,
}

/// What limits requests by the address that they leave from. All daemons that leave from it count together, so it is
/// kept in the database.
pub struct Egress<'a> {
    pub db: &'a Db,
    pub scope: String,
    pub buckets: Vec<BucketSpec>,
}

/// What a turn knows of tokens that were refused, by their generations.
#[derive(Debug, Default)]
pub struct Doubts {
    /// The one that took the place of a refused one.
    fresh: Option<(i64, Instant)>,
    /// The one that the provider takes all the same.
    good: Option<(i64, Instant)>,
}

/// Whether what was found out of a token still counts: it may have ended since.
fn counts(known: Option<(i64, Instant)>, generation: i64) -> bool {
    known.is_some_and(|(of, since)| of == generation && since.elapsed() < DOUBT_SETTLED_MAX)
}

/// The limits that a turn keeps, for questions about its credential.
struct Gate<'a> {
    sender: &'a Sender<'a>,
    deadline: Instant,
    tally: &'a Tally,
    /// Why a question did not leave.
    halted: Mutex<Option<Halt>>,
}

impl Turnstile for Gate<'_> {
    fn pass<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            if let Err(halt) = self.sender.wait_for_account(request, self.deadline).await {
                *lock(&self.halted) = Some(halt);
                return Err(Failure::transient("the turn is over before the provider could be asked"));
            }
            self.tally.requests.fetch_add(1, Ordering::Relaxed);
            measure::request(self.sender.provider.spec().name, request.buckets);
            Ok(())
        })
    }

    fn answered(&self, request: &Request, reply: &Reply) {
        self.sender.observe(request, reply, self.tally);
    }

    fn refused(&self, bucket: &'static str, wait: Option<Duration>) -> Duration {
        self.tally.throttled.fetch_add(1, Ordering::Relaxed);
        measure::refusal(self.sender.provider.spec().name, bucket);
        self.sender.lock_pacer().refused(self.sender.pacing_now(), bucket, wait)
    }
}

/// Sends for one connection.
pub struct Sender<'a> {
    pub client: &'a Client,
    pub auth: &'a Auth,
    pub clock: &'a dyn Clock,
    pub provider: &'static dyn Provider,
    pub connection: ConnectionId,
    pub api_base: &'a Url,
    pub pacer: Mutex<Pacer>,
    /// Limits of the address that requests leave from, and whose they are in the database.
    pub egress: Egress<'a>,
    /// Requests under way.
    pub in_flight: Semaphore,
    /// The token in use. It is asked for again before it runs out, and now and then in any case.
    pub access: Mutex<Option<(Access, Instant)>>,
    pub stop: CancellationToken,
    /// What this turn knows of tokens that were refused.
    pub doubts: tokio::sync::Mutex<Doubts>,
    /// By how much our clock is ahead of the provider's, or behind it where that is negative, as its last answer shows.
    pub skew: Mutex<Option<TimeDelta>>,
    /// When the turn began, on both clocks.
    pub began: (DateTime<Utc>, Instant),
}

impl Sender<'_> {
    /// Sends `request` until the provider's answer is one for the state machine, or it is clear that none will come.
    pub async fn send(&self, request: &Request, deadline: Instant, tally: &Tally) -> Result<Reply, Halt> {
        let mut refusals = 0;
        let mut tries = 0;
        loop {
            // The slot is kept until a refusal is noted: the next in line must not leave before.
            let (slot, access) = self.admission(request, deadline, tally).await?;
            let access = if access.is_usable(self.clock.now()) { access } else { self.access().await? };
            tally.requests.fetch_add(1, Ordering::Relaxed);
            measure::request(self.provider.spec().name, request.buckets);
            let leaves = Instant::now();
            let sent = self.client.send(self.api_base, request, &access.credentials, self.clock).await;
            let status = sent.as_ref().ok().map(|reply| reply.status);
            measure::response(self.provider.spec().name, status, leaves.elapsed());
            tries += 1;
            let unread = matches!(&sent, Ok(reply) if reply.status < 300 && reply.json().is_none());
            let (why, wait) = match sent {
                Err(error) => match self.too_slow(request, &error) {
                    Some(reply) => return Ok(reply),
                    None => (trouble(request, &error)?, None),
                },
                Ok(reply) => {
                    self.observe(request, &reply, tally);
                    match verdict_of(self.provider, request, &reply, &access.credentials) {
                        Verdict::Accept => return Ok(reply),
                        Verdict::RestartPaging { why } => return Err(Halt::Restart(why)),
                        Verdict::Fail(failure) if failure.kind == FailureKind::NeedsReauth => {
                            let ended = self.auth.ended(self.connection, access.generation, &failure.message);
                            return Err(Halt::Failed(ended.await));
                        }
                        Verdict::Fail(failure) => return Err(Halt::Failed(failure)),
                        Verdict::Throttled { bucket, wait_ms } => {
                            tally.throttled.fetch_add(1, Ordering::Relaxed);
                            measure::refusal(self.provider.spec().name, bucket);
                            let wait = self.refused(bucket, wait_ms, &reply, tries).await?;
                            if tries >= TRIES_MAX {
                                return Err(Halt::Failed(self.throttled(request, wait)));
                            }
                            continue;
                        }
                        Verdict::RefreshToken => {
                            refusals =
                                self.refused_with_401(request, &access, refusals, deadline, tally).await?;
                            if tries >= TRIES_MAX {
                                return Err(Halt::Refused(self.unauthorised(request)));
                            }
                            continue;
                        }
                        Verdict::Retry { wait_ms, why } => {
                            (why, self.asked_wait(&reply).or(wait_ms.map(Duration::from_millis)))
                        }
                    }
                }
            };
            if tries >= TRIES_MAX {
                let why = format!("{why}, {tries} times");
                return Err(if unread { Halt::Unread(why) } else { Halt::Failed(Failure::transient(why)) });
            }
            drop(slot);
            let wait = wait.unwrap_or_else(|| pause(tries, PAUSE_BASE, PAUSE_CAP));
            self.sleep(wait, deadline, || format!("the end of a pause: {why}")).await?;
        }
    }

    /// A token for a request that leaves now.
    async fn access(&self) -> Result<Access, Halt> {
        let kept = lock(&self.access).clone();
        if let Some((access, asked_at)) = kept
            && asked_at.elapsed() < ACCESS_KEPT_MAX
            && access.is_usable(self.clock.now())
        {
            return Ok(access);
        }
        let access = self.auth.access_token(self.connection).await.map_err(Halt::Failed)?;
        *lock(&self.access) = Some((access.clone(), Instant::now()));
        Ok(access)
    }

    /// Another token in place of one that was refused. Returns its generation.
    async fn replace(&self, refused: &Access) -> Result<i64, Halt> {
        let access = self.auth.replace(self.connection, refused).await.map_err(Halt::Failed)?;
        let generation = access.generation;
        *lock(&self.access) = Some((access, Instant::now()));
        Ok(generation)
    }

    /// An answer that did not come in time, as one that says so, where the provider can ask for less.
    fn too_slow(&self, request: &Request, error: &SendError) -> Option<Reply> {
        let body = Body::Text(String::new());
        let reply = Reply { status: 408, headers: BTreeMap::new(), body, sent_at: self.clock.now() };
        let asks_for_less = || self.provider.judge(request, &reply) == Verdict::Accept;
        (error.timed_out && asks_for_less()).then_some(reply)
    }

    /// What follows from a 401 after so many others: another token; if the provider refuses that as well, the question
    /// whether it takes it at all; and if it does, one more try, after which it is the request that is refused.
    /// Returns how many refusals there are now.
    async fn refused_with_401(
        &self,
        request: &Request,
        access: &Access,
        before: u32,
        deadline: Instant,
        tally: &Tally,
    ) -> Result<u32, Halt> {
        if before > 1 {
            return Err(Halt::Refused(self.unauthorised(request)));
        }
        // Requests that are refused side by side lead to one new token and one question.
        let mut doubts = self.doubts.lock().await;
        if before == 0 && !counts(doubts.fresh, access.generation) {
            let generation = self.replace(access).await?;
            doubts.fresh = Some((generation, Instant::now()));
            // A key that is returned again has been asked about.
            doubts.good = doubts.fresh.filter(|_| generation == access.generation).or(doubts.good);
            return Ok(1);
        }
        if !counts(doubts.good, access.generation) {
            let gate = Gate { sender: self, deadline, tally, halted: Mutex::default() };
            let doubt = self.auth.doubt(self.connection, access, &gate).await;
            if let Some(halt) = lock(&gate.halted).take() {
                return Err(halt);
            }
            match doubt.map_err(Halt::Failed)? {
                Doubt::Unfounded => doubts.good = Some((access.generation, Instant::now())),
                Doubt::Replaced => {
                    *lock(&self.access) = None;
                    return Ok(1);
                }
            }
        }
        Ok(2)
    }

    /// Waits for a slot, a token and permits. Permits come last: a request that leaves later than they say meets those of
    /// the next span. Who has to wait for one holds no slot: whoever is ahead may need it to go.
    async fn admission(
        &self,
        request: &Request,
        deadline: Instant,
        tally: &Tally,
    ) -> Result<(Option<SemaphorePermit<'_>>, Access), Halt> {
        loop {
            // The semaphore is never closed.
            let slot = self.in_flight.acquire().await.ok();
            let access = self.access().await?;
            match self.take(request, deadline, tally)? {
                None => {
                    self.lease(request, deadline).await?;
                    return Ok((slot, access));
                }
                Some(wait) => {
                    drop(slot);
                    let limit = || self.limit(request, self.pacing_now(), tally.of);
                    self.sleep(wait, deadline, limit).await?;
                }
            }
        }
    }

    /// Waits for the account's own limits outside of the line: the request that has raised the question holds a slot, which
    /// those in the line may need to go.
    async fn wait_for_account(&self, request: &Request, deadline: Instant) -> Result<(), Halt> {
        loop {
            if self.stop.is_cancelled() {
                return Err(Halt::Stopped);
            }
            let now = self.pacing_now();
            if Instant::now() >= deadline {
                return Err(Halt::TurnOver);
            }
            let taken = self.lock_pacer().take(now, request.buckets, request.points);
            let Err(wait) = taken else { return Ok(()) };
            self.sleep(wait, deadline, || self.limit(request, now, None)).await?;
        }
    }

    /// The account's limit that is waited for, in words.
    fn limit(&self, request: &Request, now: DateTime<Utc>, of: Option<&str>) -> String {
        let limit = self.lock_pacer().in_the_way(now, of, request.buckets, request.points);
        format!("{}'s limit {}", self.provider.spec().title, limit.unwrap_or_default())
    }

    /// Takes permits of the account's own limits, or says how long to wait before asking again. A stream whose turn ends
    /// before that keeps its place in the line.
    fn take(&self, request: &Request, deadline: Instant, tally: &Tally) -> Result<Option<Duration>, Halt> {
        let Request { buckets, points, .. } = request;
        if self.stop.is_cancelled() {
            return Err(Halt::Stopped);
        }
        let now = self.pacing_now();
        if Instant::now() >= deadline {
            self.lock_pacer().wait(now, tally.of, buckets, *points, Duration::ZERO);
            return Err(Halt::TurnOver);
        }
        Ok(self.lock_pacer().take_in_line(now, tally.of, buckets, *points).err())
    }

    /// Waits for the limits of the address.
    async fn lease(&self, request: &Request, deadline: Instant) -> Result<(), Halt> {
        for bucket in self.egress.buckets.iter().filter(|bucket| request.buckets.contains(&bucket.name)) {
            let (scope, bucket) = (self.egress.scope.clone(), *bucket);
            let limit = || {
                let (title, per) = (self.provider.spec().title, humantime::format_duration(bucket.per));
                format!(
                    "{title}'s limit `{}` of our address ({} in {per} are ours), which all share that count as `{}`",
                    bucket.name, bucket.limit, self.egress.scope
                )
            };
            let patience = deadline.saturating_duration_since(Instant::now());
            let lease = self
                .egress
                .db
                .run(move |connection| rate_budget::lease(connection, &scope, &bucket, 1, patience))
                .await
                .map_err(|error| Halt::Failed(Failure::from(&error)))?;
            match lease {
                Lease::Granted { wait } => self.sleep(wait, deadline, limit).await?,
                Lease::Full { wait } => return Err(self.waits(wait, limit())),
            }
        }
        Ok(())
    }

    fn waits(&self, wait: Duration, what: String) -> Halt {
        Halt::Waits { until: self.clock.now() + delta(wait), what }
    }

    /// Waits, unless that would outlast the turn.
    async fn sleep(
        &self,
        wait: Duration,
        deadline: Instant,
        what: impl FnOnce() -> String,
    ) -> Result<(), Halt> {
        if Instant::now() + wait > deadline {
            return Err(self.waits(wait, what()));
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.stop.cancelled() => Err(Halt::Stopped),
        }
    }

    /// Learns what a reply says about limits and clocks.
    fn observe(&self, request: &Request, reply: &Reply, tally: &Tally) {
        if reply.status < 400 {
            let mut pacer = self.lock_pacer();
            let now = self.pacing_now();
            pacer.succeeded(now, request.buckets);
            if let Some(limit) = self.provider.limits(request, reply) {
                let per = limit.per_ms.map(Duration::from_millis);
                // What was not charged after all comes back first: what the provider says is left counts it already.
                let unspent = limit.charged.map_or(0, |charged| request.points.saturating_sub(charged));
                let observed = Observed { limit: limit.max, remaining: limit.remaining, per, unspent };
                pacer.observe(now, limit.bucket, observed);
            }
            if let Some(quota) = self.provider.quota(request, reply) {
                let again = Duration::from_millis(quota.again_ms);
                pacer.quota(now, quota.bucket, quota.max, quota.remaining, again);
            }
        }
        if let Some(date) = reply.header("date").and_then(http_date) {
            let ahead = reply.sent_at - date;
            tally.ahead_ms.fetch_max(ahead.num_milliseconds(), Ordering::Relaxed);
            // It was written between sending and now.
            let behind = (self.clock.now() - date).min(TimeDelta::zero());
            *lock(&self.skew) = Some(ahead.max(behind));
        }
    }

    async fn refused(
        &self,
        bucket: &'static str,
        wait_ms: Option<u64>,
        reply: &Reply,
        tries: u32,
    ) -> Result<DateTime<Utc>, Halt> {
        let shared = self.egress.buckets.iter().find(|of| of.name == bucket).copied();
        // What is refused again after a short pause has hit the limit of the address, which is told by nothing else.
        let whole_span = shared.filter(|_| tries > 1).map(|of| of.per);
        let asked = self.asked_wait(reply).or(wait_ms.map(Duration::from_millis)).or(whole_span);
        let now = self.pacing_now();
        let wait = self.lock_pacer().refused(now, bucket, asked);
        if let Some(bucket) = shared {
            let scope = self.egress.scope.clone();
            let paused =
                self.egress.db.run(move |conn| rate_budget::refused(conn, &scope, &bucket, wait)).await;
            paused.map_err(|error| Halt::Failed(Failure::from(&error)))?;
        }
        Ok(now + delta(wait))
    }

    fn asked_wait(&self, reply: &Reply) -> Option<Duration> {
        Some(retry_after(reply, self.clock.now())?.min(self.provider.wait_max(reply)))
    }

    fn throttled(&self, request: &Request, until: DateTime<Utc>) -> Failure {
        let title = self.provider.spec().title;
        Failure::new(
            FailureKind::Throttled { until: Some(until) },
            format!("{title} refuses `{}` with 429, {TRIES_MAX} times", request.purpose),
        )
    }

    /// Refreshing once more would not help, and a token endpoint that is asked again and again only makes it worse.
    fn unauthorised(&self, request: &Request) -> String {
        let title = self.provider.spec().title;
        format!(
            "{title} answers `{}` with 401 although the credential is fresh and good for other requests: it may not be \
             allowed to read this",
            request.purpose
        )
    }

    /// The wall clock as it was when the turn began, and what has passed since: a clock that is set meanwhile neither
    /// gives permits away nor holds them back.
    pub fn pacing_now(&self) -> DateTime<Utc> {
        self.began.0 + delta(self.began.1.elapsed())
    }

    pub fn skew(&self) -> Option<TimeDelta> {
        *lock(&self.skew)
    }

    pub fn lock_pacer(&self) -> MutexGuard<'_, Pacer> {
        lock(&self.pacer)
    }
}

/// What a panicking task left behind here is plain data: it is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a request that got no answer says; one that is wrong in itself is not sent again.
fn trouble(request: &Request, error: &SendError) -> Result<String, Halt> {
    let text = format!("`{}` got no answer: {error}", request.purpose);
    match error.kind {
        FailureKind::Transient => Ok(text),
        ref kind => Err(Halt::Failed(Failure::new(kind.clone(), text))),
    }
}

impl Tally {
    /// The count of a run whose walk has seen our clock run ahead by this much before.
    pub fn of(stream: &'static str, ahead_ms: i64) -> Self {
        Self { of: Some(stream), ahead_ms: AtomicI64::new(ahead_ms), ..Self::default() }
    }

    /// By how much our clock runs ahead of the provider's. `Date` has whole seconds, so up to one is not meant.
    pub fn ahead(&self) -> TimeDelta {
        TimeDelta::milliseconds(self.ahead_ms.load(Ordering::Relaxed).max(0))
    }
}
