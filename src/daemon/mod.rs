//! The daemon: the only place where things are built and wired.
//!
//! [`Daemon::start`] takes settings and gives back something that serves; [`Daemon::stop`] ends it without losing
//! anything: no new work, turns save their place, token exchanges run to their end, then the database goes.

pub mod alerts;
pub mod postgres;
mod prometheus;
mod readiness;
pub mod telemetry;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use uuid::Uuid;

use crate::auth::{Auth, Parts};
use crate::callback;
use crate::config::Settings;
use crate::db::{Db, DbError, PgConnection, daemons, migrations, tokens, vault_keys};
use crate::domain::failure::{Failure, FailureKind, chain};
use crate::domain::secret::Secret;
use crate::domain::time::{Clock, SystemClock};
use crate::http::{Client, HttpError, HttpLimits};
use crate::jobs::scheduler::Scheduler;
use crate::jobs::{Hub, HubError, QueueLimits};
use crate::sync::Engine;
use crate::vault::{Vault, VaultError, key_id_of};
use postgres::{PrivateServer, PrivateServerError};

/// How often a daemon says that it lives.
const BEAT_EVERY: Duration = Duration::from_secs(4);
/// Daemons that have been silent for this long are forgotten.
const FORGET_AFTER: Duration = Duration::from_hours(24);
/// How long running jobs have to save their place when the daemon stops.
const GRACE: Duration = Duration::from_secs(20);

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
}

impl StartError {
    /// Whether it is for the admin to mend, rather than something that may pass.
    pub fn is_wrong_settings(&self) -> bool {
        match self {
            Self::NoKey | Self::Vault(_) | Self::ForeignKey { .. } | Self::Listen { .. } => true,
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
    id: Uuid,
    stop: CancellationToken,
    workers: JoinHandle<()>,
    tasks: TaskTracker,
    server: Option<PrivateServer>,
}

impl Daemon {
    /// Builds everything and starts serving: pending migrations, callback endpoint, scheduler, workers.
    pub async fn start(settings: Settings, options: Options) -> Result<Self, StartError> {
        let settings = Arc::new(settings);
        let vault = Arc::new(vault(&settings)?);
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
        announce(&db, id, &vault).await?;
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
        });
        let engine = Arc::new(Engine {
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
            auth: auth.clone(),
            clock: options.clock,
            providers: enabled(&settings),
        };
        tasks.spawn(scheduler.run(hub.ticks(), stop.clone()));
        tasks.spawn(beat(db.clone(), id, stop.clone()));
        let watch = alerts::Watch {
            db: db.clone(),
            clock: Arc::clone(&engine.clock),
            settings: Arc::clone(&settings),
            daemon: id,
            host: crate::config::host_name(),
        };
        tasks.spawn(watch.run(stop.clone()));
        let ready = readiness::check(db.clone(), auth.clone(), Arc::clone(&hub));
        let router = callback::router(callback::Endpoint::new(auth.clone(), ready));
        tasks.spawn(callback::serve(callback_listener, router, stop.clone()));
        let page = prometheus::Page::new(db.clone(), Arc::clone(&hub), enabled(&settings), started_at);
        tasks.spawn(callback::serve(metrics_listener, prometheus::router(page), stop.clone()));
        tasks.spawn(prometheus::upkeep(stop.clone()));
        let workers = tokio::spawn(work(hub, engine, settings.daemon.workers, stop.clone()));
        info!(callback.listen = %callback_addr, metrics.listen = %metrics_addr, daemon.id = %id,
            "Serving on {callback_addr}, metrics on {metrics_addr}");
        Ok(Self {
            callback_addr,
            metrics_addr,
            database_url: url,
            db,
            auth,
            id,
            stop,
            workers,
            tasks,
            server,
        })
    }

    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Ends it. Nothing is lost: what was under way is saved or runs to its end.
    pub async fn stop(self) {
        info!("Stopping");
        self.stop.cancel();
        if let Err(error) = self.workers.await {
            warn!(error = chain(&error), "The workers ended badly");
        }
        self.auth.drained().await;
        self.tasks.close();
        self.tasks.wait().await;
        let id = self.id;
        if let Err(error) = self.db.run(move |connection| daemons::remove(connection, id)).await {
            warn!(error = %Failure::from(&error), "Could not sign off in the database");
        }
        self.db.close();
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// Runs a daemon until `shutdown`.
pub async fn run(
    settings: Settings,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let daemon = Daemon::start(settings, options).await?;
    notify(&[sd_notify::NotifyState::Ready]);
    shutdown.await;
    notify(&[sd_notify::NotifyState::Stopping]);
    daemon.stop().await;
    Ok(())
}

/// Tells systemd, where it listens.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(error = chain(&error), "Could not notify systemd");
    }
}

/// No key, no start: never plaintext.
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

/// Puts this daemon and its public key on record.
async fn announce(db: &Db, id: Uuid, vault: &Vault) -> Result<(), StartError> {
    let (key_id, public_key) = (vault.key_id().to_owned(), vault.public_key());
    let announced = db.transaction(move |connection| {
        daemons::forget_lost(connection, FORGET_AFTER)?;
        vault_keys::publish(connection, &key_id, &public_key)?;
        beat_once(connection, id)
    });
    announced.await.map_err(StartError::Database)
}

fn beat_once(connection: &mut PgConnection, id: Uuid) -> Result<(), DbError> {
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    daemons::beat(connection, id, &crate::config::host_name(), pid, env!("CARGO_PKG_VERSION"))
}

async fn beat(db: Db, id: Uuid, stop: CancellationToken) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(BEAT_EVERY) => {}
            () = stop.cancelled() => return,
        }
        match db.run(move |connection| beat_once(connection, id)).await {
            Ok(()) if std::mem::take(&mut failing) => info!("The database is back"),
            Ok(()) => {}
            Err(error) if std::mem::replace(&mut failing, true) => drop(error),
            Err(error) => warn!(error = %Failure::from(&error), "The database does not answer"),
        }
    }
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

async fn work(hub: Arc<Hub>, engine: Arc<Engine>, workers: usize, stop: CancellationToken) {
    let monitor = crate::jobs::workers(&hub, workers, &engine);
    let signal = async move { stop.cancelled().await };
    if let Err(error) = hub.serve(monitor, signal, GRACE).await {
        warn!(error = chain(&error), "The workers ended badly");
    }
}

fn enabled(settings: &Settings) -> Vec<String> {
    settings.providers.iter().filter(|(_, provider)| provider.enabled).map(|(name, _)| name.clone()).collect()
}
