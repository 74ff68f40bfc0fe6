//! The daemon: the only place where things are built and wired.
//!
//! [`Daemon::start`] takes settings and gives back something that serves; [`Daemon::stop`] ends it without losing
//! anything: no new work, turns save their place, token exchanges run to their end, then the database goes.

pub mod postgres;
mod readiness;
pub mod telemetry;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use uuid::Uuid;

use crate::auth::{Auth, Parts};
use crate::callback;
use crate::config::Settings;
use crate::db::{Db, daemons, migrations, vault_keys};
use crate::domain::failure::Failure;
use crate::domain::secret::Secret;
use crate::domain::time::Clock;
use crate::http::{Client, HttpLimits};
use crate::jobs::scheduler::Scheduler;
use crate::jobs::{Hub, QueueLimits};
use crate::sync::Engine;
use crate::vault::Vault;
use postgres::PrivateServer;

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

/// A daemon that serves.
pub struct Daemon {
    pub callback_addr: SocketAddr,
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
    pub async fn start(settings: Settings, options: Options) -> anyhow::Result<Self> {
        let settings = Arc::new(settings);
        let vault = Arc::new(vault(&settings)?);
        let (server, url) = database(&settings).await?;
        let applied = migrations::run(&url).await.context("preparing the database")?;
        if !applied.is_empty() {
            info!(migrations = applied.len(), "Applied {} migrations", applied.len());
        }
        let db = Db::connect(&url, settings.database.pool_size).context("preparing the database")?;
        let id = Uuid::now_v7();
        announce(&db, id, &vault).await?;
        let client = Client::new(&HttpLimits::default()).context("preparing HTTPS")?;
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
        let listener = listener(&settings, options.listener).await?;
        let callback_addr = listener.local_addr().context("asking for the callback's address")?;
        let hub = Hub::new(db.clone(), url.clone(), id, options.queue).await.context("starting the queue")?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let scheduler = Scheduler {
            db: db.clone(),
            auth: auth.clone(),
            clock: options.clock,
            providers: enabled(&settings),
        };
        tasks.spawn(scheduler.run(hub.ticks(), stop.clone()));
        tasks.spawn(beat(db.clone(), id, stop.clone()));
        let ready = readiness::check(db.clone(), auth.clone(), Arc::clone(&hub));
        let router = callback::router(callback::Endpoint::new(auth.clone(), ready));
        tasks.spawn(callback::serve(listener, router, stop.clone()));
        let workers = tokio::spawn(work(hub, engine, settings.daemon.workers, stop.clone()));
        info!(callback.listen = %callback_addr, daemon.id = %id, "Serving on {callback_addr}");
        Ok(Self { callback_addr, database_url: url, db, auth, id, stop, workers, tasks, server })
    }

    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Ends it. Nothing is lost: what was under way is saved or runs to its end.
    pub async fn stop(self) {
        info!("Stopping");
        self.stop.cancel();
        if let Err(error) = self.workers.await {
            warn!(%error, "The workers ended badly");
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
) -> anyhow::Result<()> {
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
        warn!(%error, "Could not notify systemd");
    }
}

/// No key, no start: never plaintext.
fn vault(settings: &Settings) -> anyhow::Result<Vault> {
    let Some(key) = &settings.vault.key else {
        bail!(
            "there is no vault key, and tokens are never stored in plain text\nhint: run `fieldmirror key generate > \
             vault.key`, `chmod 600 vault.key`, and set `[vault] key_file`"
        );
    };
    Vault::new(key, &settings.vault.previous_keys).context("reading the vault keys")
}

/// The database that is set, or a private server of our own.
async fn database(settings: &Settings) -> anyhow::Result<(Option<PrivateServer>, Secret)> {
    if let Some(url) = &settings.database.url {
        return Ok((None, url.clone()));
    }
    let pg_bin = settings.database.pg_bin.as_deref().map(Path::new);
    let server = PrivateServer::start(&settings.daemon.state_dir, pg_bin)
        .await
        .context("starting the private Postgres server (`database.url` is empty)")?;
    let url = server.url();
    Ok((Some(server), url))
}

/// Puts this daemon and its public key on record.
async fn announce(db: &Db, id: Uuid, vault: &Vault) -> anyhow::Result<()> {
    let (key_id, public_key) = (vault.key_id().to_owned(), vault.public_key());
    let announced = db.transaction(move |connection| {
        daemons::forget_lost(connection, FORGET_AFTER)?;
        vault_keys::publish(connection, &key_id, &public_key)?;
        beat_once(connection, id)
    });
    announced.await.context("signing on in the database")
}

fn beat_once(connection: &mut crate::db::PgConnection, id: Uuid) -> Result<(), crate::db::DbError> {
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

async fn listener(settings: &Settings, bound: Option<TcpListener>) -> anyhow::Result<TcpListener> {
    if let Some(listener) = bound {
        return Ok(listener);
    }
    let address = settings.callback.listen;
    TcpListener::bind(address).await.with_context(|| {
        format!("listening on {address}\nhint: another process may hold it; see `[callback] listen`")
    })
}

async fn work(hub: Arc<Hub>, engine: Arc<Engine>, workers: usize, stop: CancellationToken) {
    let monitor = crate::jobs::workers(&hub, workers, &engine);
    let signal = async move { stop.cancelled().await };
    if let Err(error) = hub.serve(monitor, signal, GRACE).await {
        warn!(%error, "The workers ended badly");
    }
}

fn enabled(settings: &Settings) -> Vec<String> {
    settings.providers.iter().filter(|(_, provider)| provider.enabled).map(|(name, _)| name.clone()).collect()
}
