//! The private Postgres server, for demo and evaluation: a supervised child of an installed server.
//!
//! It lives in `{state_dir}/postgres`, is reached by a unix socket there and by nothing else, runs unprivileged when we
//! are root, is started again when it crashes, and ends with the daemon however that ends. Not here: the pool and the
//! schema (`db`), and servers that an admin runs (`database.url`).

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use crate::db::DbError;
use crate::db::migrations::POSTGRES_MAJOR_MIN;
use crate::domain::secret::Secret;

mod account;
mod find;
mod init;
mod layout;
mod orphan;
mod server;
mod supervise;
mod sys;

pub use layout::{psql_line, socket_url};

/// Why there is no private server. The text says what to do about it where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum PrivateServerError {
    #[error(
        "no Postgres server is installed: `apt-get install postgresql` (version {POSTGRES_MAJOR_MIN} or newer), \
         or name the folder of `initdb` and `postgres` in `database.pg_bin`, or give `database.url`"
    )]
    NotInstalled,
    #[error(
        "the installed Postgres {found} is too old: `apt-get install postgresql` (version {POSTGRES_MAJOR_MIN} or \
         newer), or name a newer one's folder in `database.pg_bin`, or give `database.url`"
    )]
    TooOld { found: u32 },
    #[error("`database.pg_bin` is `{}`, which holds no `initdb` and `postgres` that run", pg_bin.display())]
    PgBin { pg_bin: PathBuf },
    #[error(
        "the private server's data was made by Postgres {data}, which is not installed: \
         `apt-get install postgresql-{data}`, or name its folder in `database.pg_bin`"
    )]
    DataVersion { data: u32 },
    #[error(
        "Postgres does not run as root, and there is no user `postgres` or `nobody` to run it as: \
         `apt-get install postgresql`, or start fieldmirror as another user, or give `database.url`"
    )]
    NoAccount,
    #[error(
        "`{}` belongs to user {owner}, but we are user {ours}: start fieldmirror as its owner, or set \
         `daemon.state_dir`", data.display()
    )]
    DataOwner { data: PathBuf, owner: u32, ours: u32 },
    #[error(
        "Postgres does not run as root but as user {uid}, who may not enter `{}`: `chmod o+x` it, or set \
         `daemon.state_dir` to a folder below others that everybody may enter, such as `/var/lib/fieldmirror`",
        path.display()
    )]
    Unreachable { path: PathBuf, uid: u32 },
    #[error(
        "`daemon.state_dir` is `{}`: the private server's socket would have a path of {bytes} bytes there, and 107 is \
         the system's limit: choose a folder whose path is at least {excess} bytes shorter, or give `database.url`",
        state_dir.display()
    )]
    SocketPath { state_dir: PathBuf, bytes: usize, excess: usize },
    #[error(
        "`daemon.state_dir` is `{}`: Postgres takes no socket folder whose path has a comma, a double quote or a line \
         break in it, or is not UTF-8",
        state_dir.display()
    )]
    StateDirName { state_dir: PathBuf },
    #[error(
        "another fieldmirror (process {holder}) runs the private server of `{}`: stop it, or set `daemon.state_dir`",
        state_dir.display()
    )]
    Locked { state_dir: PathBuf, holder: String },
    #[error("Postgres process {pid}, left by an earlier daemon in `{}`, does not end: end it", data.display())]
    Orphan { pid: i32, data: PathBuf },
    #[error("using `{}`", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("running `{}`", program.display())]
    Spawn { program: PathBuf, source: std::io::Error },
    #[error("making the private server's data folder: {output}")]
    Initdb { output: String },
    #[error("starting the private Postgres server: {reason} (log: `{}`)", log.display())]
    Start { reason: String, log: PathBuf },
    #[error("making the private server's database")]
    Database { source: DbError },
    #[error("the private server was stopped while it started")]
    Stopped,
}

/// Whether the server survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    #[default]
    Full,
    /// Faster, for tests: survives crashes of its own, not of the machine.
    None,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub state_dir: PathBuf,
    /// Where `initdb` and `postgres` are; searched for when `None`.
    pub pg_bin: Option<PathBuf>,
    pub durability: Durability,
}

/// Which installed Postgres the private server of `state_dir` would be: a sentence's part for people.
pub fn installed(state_dir: &Path, pg_bin: Option<&Path>) -> Result<String, PrivateServerError> {
    let layout = layout::Layout::of(state_dir)?;
    let found = find::find(pg_bin, init::data_major(&layout))?;
    Ok(format!("Postgres {} in `{}`", found.major, found.bin.display()))
}

/// How the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Starting,
    Serving,
    /// It ended, or does not answer; it is being started again.
    Down {
        reason: String,
    },
    Stopped,
}

/// A running private server. Dropping it orders the server to stop, without waiting.
#[derive(Debug)]
pub struct PrivateServer {
    layout: layout::Layout,
    health: watch::Receiver<Health>,
    /// Its end is the order to stop.
    orders: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PrivateServer {
    /// Makes the server where there is none yet, starts it, and waits until it serves.
    pub async fn start(state_dir: &Path, pg_bin: Option<&Path>) -> Result<Self, PrivateServerError> {
        let options = Options {
            state_dir: state_dir.into(),
            pg_bin: pg_bin.map(Path::to_path_buf),
            durability: Durability::Full,
        };
        let started = tokio::task::spawn_blocking(move || Self::start_blocking(options));
        started.await.unwrap_or(Err(PrivateServerError::Stopped))
    }

    /// [`Self::start`], for callers that are not async, or want other options.
    pub fn start_blocking(options: Options) -> Result<Self, PrivateServerError> {
        let layout = layout::Layout::of(&options.state_dir)?;
        let (orders, orders_in) = mpsc::channel();
        let (health_out, health) = watch::channel(Health::Starting);
        let (ready, ready_in) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("private-postgres".to_owned())
            .spawn(move || supervise::run(&options, orders_in, health_out, &ready))
            .map_err(|source| PrivateServerError::Spawn { program: "a thread".into(), source })?;
        // The thread limits each of its steps; its end without a word can only be a panic.
        ready_in.recv().unwrap_or(Err(PrivateServerError::Stopped))?;
        Ok(Self { layout, health, orders: Some(orders), thread: Some(thread) })
    }

    /// The address of the database `fieldmirror`. It stays the same over restarts.
    pub fn url(&self) -> Secret {
        self.layout.url(layout::NAME)
    }

    /// The address of another database of this server.
    pub fn url_of(&self, database: &str) -> Secret {
        self.layout.url(database)
    }

    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// For waiting on changes of [`Self::health`].
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// Stops the server and waits for its end: at most about 70 s, usually a fraction of one.
    pub async fn stop(self) {
        // A panic of the blocking task has nobody to tell: the server ends with its thread in any case.
        let _ = tokio::task::spawn_blocking(move || self.stop_blocking()).await;
    }

    /// [`Self::stop`], for callers that are not async.
    pub fn stop_blocking(mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The thread of the private Postgres server had panicked");
        }
    }
}
