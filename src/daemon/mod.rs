//! The daemon: the only place where things are built and wired.
//!
//! [`Daemon::start`] takes settings and gives back something that serves; [`Daemon::stop`] ends it without losing
//! anything: no new work, turns save their place, token exchanges run to their end, then the database goes.

pub mod alerts;
pub mod postgres;
mod prometheus;
mod readiness;
mod reload;
pub mod service;
mod standing;
pub mod telemetry;
pub mod watchdog;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use uuid::Uuid;

use crate::auth::between::Between;
use crate::auth::replay::{self, Left};
use crate::auth::spill::Spills;
use crate::auth::{Auth, Parts};
use crate::callback::{self, ReadyCheck};
use crate::config::Settings;
use crate::db::daemons::{self, SpillFolder};
use crate::db::{Db, DbError, PgConnection, audit, migrations, rate_budget, tokens, vault_keys};
use crate::domain::current::Current;
use crate::domain::failure::{Failure, FailureKind, chain};
use crate::domain::secret::Secret;
use crate::domain::time::{Clock, SystemClock};
use crate::http::deadline::Deadline;
use crate::http::{Client, HttpError, HttpLimits};
use crate::jobs::scheduler::Scheduler;
use crate::jobs::{Hub, HubError, Pulse, QueueLimits, SILENCE_MAX, Sign};
use crate::sync::{Engine, history};
use crate::vault::{Vault, VaultError, key_id_of};
use postgres::{PrivateServer, PrivateServerError};

/// How often a daemon says that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(4);
/// Daemons that have been silent for this long are forgotten.
const FORGET_AFTER: Duration = Duration::from_hours(24);
/// How long running jobs have to save their place when the daemon stops, and exchanges of tokens to be answered. All
/// limits of [`Daemon::stop`] together, the queue's own wait included, stay below 30 s; only tokens in hand that
/// neither the database nor the disk takes are waited for longer.
const GRACE: Duration = Duration::from_secs(16);
/// How long the workers have to end, and what they and exchanges had to write down: the queue's own wait comes after the
/// grace.
const DRAIN_MAX: Duration = Duration::from_secs(22);
/// How long the scheduler and the endpoint have to end after that.
const TASKS_END_MAX: Duration = Duration::from_secs(3);
/// How long signing off in the database may take.
const SIGN_OFF_MAX: Duration = Duration::from_secs(2);
/// How often the runtime shows that it runs tasks, and how long it may fail to: a machine that is short of processors
/// delays a task by seconds.
const RUNTIME_BEATS_EVERY: Duration = Duration::from_secs(1);
const RUNTIME_SILENT_MAX: Duration = Duration::from_secs(30);

/// What a test, the demo or `main` may choose besides the settings.
pub struct Options {
    pub clock: Arc<dyn Clock>,
    /// Already bound, in place of `callback.listen`.
    pub listener: Option<TcpListener>,
    pub queue: QueueLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock), listener: None, queue: QueueLimits::default() }
    }
}

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("there is no vault key, and tokens are never stored in plain text")]
    NoKey,
    #[error("reading the vault keys")]
    Vault(#[source] VaultError),
    #[error("starting the private Postgres server, since `database.url` is empty")]
    PrivateServer(#[source] PrivateServerError),
    #[error("preparing the database")]
    Database(#[source] DbError),
    #[error("preparing HTTPS")]
    Https(#[source] HttpError),
    #[error("listening on {address}, the setting `{key}`")]
    Listen {
        address: SocketAddr,
        key: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "the tokens in the database are sealed with vault key `{key_id}`, which this daemon does not have"
    )]
    ForeignKey { key_id: String },
    #[error("starting the queue")]
    Queue(#[source] HubError),
    #[error("`sync.history` names `{0}`, which is no stream")]
    NoStream(String),
}

impl StartError {
    /// Whether it is for the admin to mend, rather than something that may pass.
    pub fn is_wrong_settings(&self) -> bool {
        match self {
            Self::NoKey
            | Self::Vault(_)
            | Self::ForeignKey { .. }
            | Self::Listen { .. }
            | Self::NoStream(_) => true,
            Self::Database(error) => error.kind() == FailureKind::Misconfigured,
            Self::PrivateServer(_) | Self::Https(_) | Self::Queue(_) => false,
        }
    }

    /// What to do about it, where the text does not say so itself.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoKey => Some(
                "make one with `(umask 077; fieldmirror key generate > vault.key)`, keep a copy of it in a safe place, \
                 and set `[vault] key_file` to its path",
            ),
            Self::Listen { .. } => {
                Some("see whether another process listens there, and what `fieldmirror config` shows")
            }
            Self::ForeignKey { .. } => {
                Some("start it with that key in `[vault] key_file`, or with it among `previous_key_files`")
            }
            Self::NoStream(_) => Some(
                "write it as `provider.stream`, such as `hubspot.tickets`: `fieldmirror status` shows the names of \
                 streams",
            ),
            _ => None,
        }
    }
}

/// A daemon that serves.
pub struct Daemon {
    pub callback_addr: SocketAddr,
    pub metrics_addr: SocketAddr,
    pub database_url: Secret,
    db: Db,
    auth: Auth,
    engine: Arc<Current<Engine>>,
    endpoint: callback::Endpoint,
    routers: Arc<Current<Router>>,
    id: Uuid,
    stop: CancellationToken,
    workers: JoinHandle<()>,
    tasks: TaskTracker,
    server: Option<PrivateServer>,
    ready: ReadyCheck,
    /// How the parts are doing.
    signs: Arc<dyn Fn() -> Vec<Sign> + Send + Sync>,
}

impl Daemon {
    /// Builds everything and starts serving: pending migrations, callback endpoint, scheduler, workers.
    pub async fn start(settings: Settings, options: Options) -> Result<Self, StartError> {
        let settings = Arc::new(settings);
        let vault = Arc::new(vault(&settings)?);
        refuse_unknown_streams(&settings)?;
        // What fails soonest comes first: nothing has been started yet that would have to be stopped.
        let (callback_listener, callback_addr) =
            listener("callback.listen", settings.callback.listen, options.listener).await?;
        let (metrics_listener, metrics_addr) =
            listener("metrics.listen", settings.metrics.listen, None).await?;
        let (server, url) = database(&settings).await?;
        let applied = migrations::run(&url).await.map_err(StartError::Database)?;
        if !applied.is_empty() {
            info!(migrations.applied = applied.len(), "Applied {} migrations", applied.len());
        }
        let db = Db::connect(&url, settings.database.pool_size).map_err(StartError::Database)?;
        refuse_foreign_key(&db, &vault).await?;
        let id = Uuid::now_v7();
        let spills = prepared_spills(&settings.daemon.state_dir);
        announce(&db, id, &vault, &spills).await?;
        let client = Client::new(&HttpLimits::default()).map_err(StartError::Https)?;
        let auth = Auth::new(Parts {
            db: db.clone(),
            vault,
            http: client.clone(),
            settings: Arc::clone(&settings),
            clock: Arc::clone(&options.clock),
            daemon: id,
            host: crate::config::host_name(),
            tasks: TaskTracker::new(),
            spills: Arc::clone(&spills),
            between: Between::default(),
        });
        // Before anybody trades a token that was traded already.
        let left = replay(&auth).await;
        let engine = Current::new(Engine {
            db: db.clone(),
            auth: auth.clone(),
            client,
            settings: Arc::clone(&settings),
            clock: Arc::clone(&options.clock),
        });
        let hub = Hub::new(db.clone(), url.clone(), id, options.queue).await.map_err(StartError::Queue)?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let started_at = options.clock.now();
        let scheduler = Scheduler {
            db: db.clone(),
            engine: Arc::clone(&engine),
            clock: options.clock,
            pulse: Arc::default(),
        };
        let signs = signs(&hub, &scheduler.pulse, &tasks, &stop);
        tasks.spawn(scheduler.run(hub.ticks(), stop.clone()));
        tasks.spawn(beat(db.clone(), id, Arc::clone(&auth.vault), spills, stop.clone()));
        tasks.spawn(look_after_spills(Arc::clone(&engine), left, stop.clone()));
        let watch = alerts::Watch {
            db: db.clone(),
            clock: Arc::clone(&engine.get().clock),
            settings: Arc::clone(&settings),
            in_force: {
                let engine = Arc::clone(&engine);
                Box::new(move || Arc::clone(&engine.get().settings))
            },
            daemon: id,
            host: crate::config::host_name(),
        };
        tasks.spawn(watch.run(stop.clone()));
        let ready = readiness::check(db.clone(), auth.clone(), Arc::clone(&hub));
        let endpoint = callback::Endpoint::new(auth.clone(), Arc::clone(&ready));
        let routers = Current::new(callback::router(endpoint.clone()));
        tasks.spawn(callback::serve(
            callback_listener,
            callback::present(Arc::clone(&routers)),
            stop.clone(),
        ));
        let in_force = Arc::clone(&engine);
        let enabled = move || in_force.get().settings.enabled_providers();
        let page = prometheus::Page::new(db.clone(), Arc::clone(&hub), enabled, started_at);
        tasks.spawn(callback::serve(metrics_listener, prometheus::router(page), stop.clone()));
        tasks.spawn(prometheus::upkeep(stop.clone()));
        let workers = tokio::spawn(work(hub, Arc::clone(&engine), settings.daemon.workers, stop.clone()));
        info!(callback.listen = %callback_addr, metrics.listen = %metrics_addr, daemon.id = %id,
            "Serving on {callback_addr}, metrics on {metrics_addr}");
        Ok(Self {
            callback_addr,
            metrics_addr,
            database_url: url,
            db,
            auth,
            engine,
            endpoint,
            routers,
            id,
            stop,
            workers,
            tasks,
            server,
            ready,
            signs,
        })
    }

    pub fn db(&self) -> &Db {
        &self.db
    }

    /// How its parts are doing: what the watchdog looks at.
    pub fn signs(&self) -> Vec<Sign> {
        (self.signs)()
    }

    /// Works with other settings from now on, as far as they can change while it runs: see [`reload`].
    fn take(&self, settings: Settings) {
        let now = self.engine.get();
        let settings = Arc::new(reload::merged(&now.settings, settings));
        let auth = now.auth.with_settings(Arc::clone(&settings));
        self.routers.set(callback::router(self.endpoint.with_auth(auth.clone())));
        self.engine.set(Engine { auth, settings, ..Engine::clone(&now) });
        let db = self.db.clone();
        self.spawn(async move {
            if let Err(error) = db.run(rate_budget::all_go_on).await {
                warn!(error = %Failure::from(&error), "Clients that were refused are tried again in a minute");
            }
        });
    }

    /// Runs something beside the daemon that ends with it.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Ends it. Nothing is lost: what was under way is saved or runs to its end.
    pub async fn stop(self) {
        info!("Stopping");
        self.stop.cancel();
        self.auth.close_within(GRACE);
        let drained_by = Deadline::after(DRAIN_MAX);
        tokio::select! {
            ended = self.workers => if let Err(error) = ended {
                warn!(error = chain(&error), "The workers ended badly");
            },
            () = drained_by.passed() => warn!("The workers did not end in time: their jobs' leases will lapse"),
        }
        self.auth.drained(drained_by).await;
        self.tasks.close();
        if timeout(TASKS_END_MAX, self.tasks.wait()).await.is_err() {
            warn!("Not all parts of the daemon ended in time: what they had to save is saved");
        }
        // What a browser, or a look at the spills, began while the workers ended.
        self.auth.drained(drained_by).await;
        let id = self.id;
        let signed_off = self.db.run(move |connection| daemons::remove(connection, id));
        match timeout(SIGN_OFF_MAX, signed_off).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(error = %Failure::from(&error), "Could not sign off in the database");
            }
            Err(_) => warn!("Could not sign off in the database, which does not answer"),
        }
        self.db.close();
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// No key, no start: never plaintext.
fn refuse_unknown_streams(settings: &Settings) -> Result<(), StartError> {
    match history::unknown_words(&settings.sync.history).first() {
        Some(word) => Err(StartError::NoStream((*word).to_owned())),
        None => Ok(()),
    }
}

fn vault(settings: &Settings) -> Result<Vault, StartError> {
    let key = settings.vault.key.as_ref().ok_or(StartError::NoKey)?;
    Vault::new(key, &settings.vault.previous_keys).map_err(StartError::Vault)
}

/// The database that is set, or a private server of our own.
async fn database(settings: &Settings) -> Result<(Option<PrivateServer>, Secret), StartError> {
    if let Some(url) = &settings.database.url {
        return Ok((None, url.clone()));
    }
    let server = PrivateServer::start(&settings.daemon.state_dir, settings.database.pg_bin.as_deref()).await;
    let server = server.map_err(StartError::PrivateServer)?;
    let url = server.url();
    Ok((Some(server), url))
}

/// A daemon with another key could open nothing, and would have secrets sealed to a key that nobody else has.
async fn refuse_foreign_key(db: &Db, vault: &Vault) -> Result<(), StartError> {
    let newest = db.run(tokens::newest_sealed).await.map_err(StartError::Database)?;
    match newest {
        Some(sealed) if !readiness::opens(vault, &sealed) => {
            let key_id = key_id_of(&sealed).unwrap_or_else(|| "of another program".to_owned());
            Err(StartError::ForeignKey { key_id })
        }
        _ => Ok(()),
    }
}

/// Puts this daemon and its public key on record. Where another daemon lacks the key, the one before stays published as
/// long as this daemon opens with it too: whoever takes a request must be able to read it. A rotation publishes it.
async fn announce(db: &Db, id: Uuid, vault: &Arc<Vault>, spills: &Spills) -> Result<(), StartError> {
    let (ours, folder) = (Arc::clone(vault), spill_folder(spills));
    let announced = db.transaction(move |connection| {
        daemons::forget_lost(connection, FORGET_AFTER)?;
        rate_budget::all_go_on(connection)?;
        let mut others = daemons::live(connection, daemons::DAEMON_LIVES)?;
        others.retain(|daemon| {
            daemon.seals_with.is_some() && !daemon.opens_with.iter().any(|id| id == ours.key_id())
        });
        let before = vault_keys::latest_id(connection)?;
        if others.is_empty() || !before.is_some_and(|key_id| ours.has(&key_id)) {
            publish(connection, id, &ours)?;
        }
        beat_once(connection, id, &ours, &folder)?;
        Ok(others)
    });
    for other in announced.await.map_err(StartError::Database)? {
        warn!(
            daemon.host = other.host,
            "The daemon on `{}` lacks vault key `{}`: it cannot open what this one seals",
            other.host,
            vault.key_id()
        );
    }
    Ok(())
}

/// A folder that cannot be used is no reason not to start: it is told, and tried again with every reply.
fn prepared_spills(state_dir: &Path) -> Arc<Spills> {
    let spills = Arc::new(Spills::below(state_dir));
    if let Err(error) = spills.prepare() {
        let folder = spills.folder().display();
        warn!(error = %error, "Replies of token endpoints cannot be kept in `{folder}`: {error}");
    }
    spills
}

fn spill_folder(spills: &Spills) -> SpillFolder {
    let keys = spills.keys().map(|keys| keys.into_iter().collect());
    SpillFolder { id: spills.id(), fault: spills.fault(), keys }
}

/// Compares the folder of spills with the tables. An outage of the database is the beat's to report.
async fn replay(auth: &Auth) -> Left {
    auth.replay().await.unwrap_or_else(|failure| {
        if failure.kind != FailureKind::Transient {
            warn!(error = %failure, "Spills could not be looked at: {failure}");
        }
        Left::default()
    })
}

async fn look_after_spills(engine: Arc<Current<Engine>>, mut left: Left, stop: CancellationToken) {
    loop {
        engine.get().auth.follow_up(left).await;
        tokio::select! {
            () = tokio::time::sleep(replay::LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        left = replay(&engine.get().auth).await;
    }
}

fn publish(connection: &mut PgConnection, daemon: Uuid, vault: &Vault) -> Result<(), DbError> {
    let key_id = vault.key_id();
    if vault_keys::publish(connection, key_id, &vault.public_key())? {
        let detail = format!("commands seal to key `{key_id}` from now on");
        let (event, outcome, detail) = ("publish_key", "done", Some(detail.as_str()));
        audit::write(connection, &audit::Entry { connection: None, event, outcome, detail, daemon })?;
    }
    Ok(())
}

fn beat_once(
    connection: &mut PgConnection,
    id: Uuid,
    vault: &Vault,
    spills: &SpillFolder,
) -> Result<(), DbError> {
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    daemons::beat(connection, id, &crate::config::host_name(), pid, env!("CARGO_PKG_VERSION"))?;
    daemons::tell_spills(connection, id, spills)?;
    daemons::tell_keys(connection, id, vault.key_id(), &vault.key_ids())
}

async fn beat(db: Db, id: Uuid, vault: Arc<Vault>, spills: Arc<Spills>, stop: CancellationToken) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(BEAT_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let (vault, folder) = (Arc::clone(&vault), spill_folder(&spills));
        match db.transaction(move |connection| beat_once(connection, id, &vault, &folder)).await {
            Ok(()) if std::mem::take(&mut failing) => info!("The database is back"),
            Ok(()) => {}
            Err(error) if std::mem::replace(&mut failing, true) => drop(error),
            Err(error) => warn!(error = %Failure::from(&error), "The database does not answer"),
        }
    }
}

/// What the watchdog looks at. The runtime's own sign is a task that comes round.
fn signs(
    hub: &Arc<Hub>,
    scheduler: &Arc<Pulse>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Arc<dyn Fn() -> Vec<Sign> + Send + Sync> {
    let runtime: Arc<Pulse> = Arc::default();
    let (beating, stop) = (Arc::clone(&runtime), stop.clone());
    tasks.spawn(async move {
        while !stop.is_cancelled() {
            beating.beat();
            tokio::time::sleep(RUNTIME_BEATS_EVERY).await;
        }
    });
    let (hub, scheduler) = (Arc::downgrade(hub), Arc::clone(scheduler));
    Arc::new(move || {
        let mut signs = vec![
            Sign::of("the runtime", &runtime, RUNTIME_SILENT_MAX),
            Sign::of("the scheduler", &scheduler, SILENCE_MAX),
        ];
        signs.extend(hub.upgrade().into_iter().flat_map(|hub| hub.signs()));
        signs
    })
}

/// The listener that the setting `key` asks for, if it is not bound already, and where it is.
async fn listener(
    key: &'static str,
    address: SocketAddr,
    bound: Option<TcpListener>,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let listening = async {
        let listener = match bound {
            Some(listener) => listener,
            None => TcpListener::bind(address).await?,
        };
        let at = listener.local_addr()?;
        Ok((listener, at))
    };
    listening.await.map_err(|source| StartError::Listen { address, key, source })
}

async fn work(hub: Arc<Hub>, engine: Arc<Current<Engine>>, workers: usize, stop: CancellationToken) {
    let monitor = crate::jobs::workers(&hub, workers, &engine);
    let signal = async move { stop.cancelled().await };
    if let Err(error) = hub.serve(monitor, signal, GRACE).await {
        warn!(error = chain(&error), "The workers ended badly");
    }
}
