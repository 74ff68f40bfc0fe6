//! The thread that owns the server from its start to its end.
//!
//! One thread for all of it, because the kernel ends the server when the thread that spawned it ends: it must not be one
//! of the runtime's, which come and go.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::account::{self, Account};
use super::layout::{Layout, NAME};
use super::server::{self, Answer, Recipe, Server};
use super::{Health, Options, PrivateServerError as Error, find, init, orphan};
use crate::db::admin;
use crate::domain::failure::chain;

/// How soon the end of the process is noticed.
const TICK: Duration = Duration::from_millis(100);
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// The lock file holds a process number.
const HOLDER_BYTES_MAX: u64 = 20;
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// A server that has not answered for so long is ended and started again.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// Pauses before restarts double from the first to the last, and begin anew after a calm time.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_mins(1);

/// The order to stop is the end of the channel: it also comes when whoever could give it is gone.
pub(super) struct Supervisor {
    recipe: Recipe,
    orders: Receiver<()>,
    health: watch::Sender<Health>,
    _lock: Lock,
}

/// Held while the thread lives; the kernel lets go of it when the process dies.
struct Lock(File);

impl Drop for Lock {
    /// Closing the file would not do at once: a child that another thread is just starting has it open until its exec.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Why a wait ended.
enum Outcome {
    Stop,
    Serving,
    Ended(String),
}

/// The body of the thread. `ready` hears once: that the server serves, or why it does not.
pub(super) fn run(
    options: &Options,
    orders: Receiver<()>,
    health: watch::Sender<Health>,
    ready: &SyncSender<Result<(), Error>>,
) {
    let started = prepare(options).and_then(|(recipe, lock)| {
        let supervisor = Supervisor { recipe, orders, health, _lock: lock };
        let server = supervisor.first_start()?;
        Ok((supervisor, server))
    });
    match started {
        Ok((supervisor, server)) => {
            supervisor.health.send_replace(Health::Serving);
            let _ = ready.send(Ok(()));
            supervisor.watch(server);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// Everything up to the first start: folders, lock, program, user, data.
fn prepare(options: &Options) -> Result<(Recipe, Lock), Error> {
    let layout = Layout::of(&options.state_dir)?;
    account::make_state_dir(&layout.state_dir)?;
    let account = account::choose(&layout)?;
    // Others may pass through to what is theirs; nobody but us may list.
    account::make_folder(&layout.root, if account.is_some() { 0o711 } else { 0o700 })?;
    let lock = lock(&layout)?;
    account::make_folder(&layout.log, 0o700)?;
    let installed = find::find(options.pg_bin.as_deref(), init::data_major(&layout))?;
    account::prove(account.as_ref(), &layout, &installed)?;
    Account::folder(account.as_ref(), &layout.run)?;
    if layout.data.exists() {
        orphan::clear(&layout)?;
    } else {
        init::make_data(&layout, &installed, account.as_ref(), options.durability)?;
    }
    Ok((Recipe { layout, installed, account, durability: options.durability }, lock))
}

/// One daemon per state directory. Waits a moment for one that is just ending.
fn lock(layout: &Layout) -> Result<Lock, Error> {
    let folder = |source| Error::Folder { path: layout.lock_file.clone(), source };
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    let mut file = options.open(&layout.lock_file).map_err(folder)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_WAIT_MAX => std::thread::sleep(TICK),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
                let holder = holder.trim().to_owned();
                return Err(Error::Locked { state_dir: layout.state_dir.clone(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(folder(source)),
        }
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(folder)?;
    writeln!(file, "{}", std::process::id()).map_err(folder)?;
    Ok(Lock(file))
}

impl Supervisor {
    fn first_start(&self) -> Result<Server, Error> {
        let mut server = self.recipe.start()?;
        match self.wait_until_serving(&mut server) {
            Outcome::Serving => {}
            Outcome::Stop => {
                server.stop();
                return Err(Error::Stopped);
            }
            Outcome::Ended(reason) => {
                server.stop_at_once();
                return Err(Error::Start { reason, log: self.recipe.layout.log_file.clone() });
            }
        }
        if let Err(source) = admin::create_if_missing(server.url(), NAME) {
            server.stop();
            return Err(Error::Database { source });
        }
        Ok(server)
    }

    /// Keeps a server running until told to stop.
    fn watch(&self, mut server: Server) {
        let mut pause = PAUSE_FIRST;
        loop {
            let since = Instant::now();
            let reason = match self.while_serving(&mut server) {
                Outcome::Ended(reason) => reason,
                Outcome::Stop | Outcome::Serving => break server.stop(),
            };
            server.stop_at_once();
            if since.elapsed() >= CALM {
                pause = PAUSE_FIRST;
            }
            tracing::error!(error = reason, "The private Postgres server ended: {reason}");
            self.health.send_replace(Health::Down { reason });
            match self.start_again(&mut pause) {
                Some(again) => server = again,
                None => break,
            }
        }
        self.health.send_replace(Health::Stopped);
    }

    /// Starts until it serves, with growing pauses; `None` when told to stop. Logs the first failure and the success.
    fn start_again(&self, pause: &mut Duration) -> Option<Server> {
        let mut failures = 0_u32;
        loop {
            if self.told_to_stop(*pause) {
                return None;
            }
            *pause = pause.saturating_mul(2).min(PAUSE_MAX);
            let reason = match self.attempt() {
                Ok(Some(server)) => {
                    let pid = server.pid();
                    tracing::info!(
                        postgres.pid = pid,
                        postgres.failures = failures,
                        "The private Postgres server serves again as process {pid}"
                    );
                    self.health.send_replace(Health::Serving);
                    return Some(server);
                }
                Ok(None) => return None,
                Err(reason) => reason,
            };
            failures = failures.saturating_add(1);
            if failures == 1 {
                tracing::error!(error = reason, "The private Postgres server does not start again: {reason}");
            }
            self.health.send_replace(Health::Down { reason });
        }
    }

    fn attempt(&self) -> Result<Option<Server>, String> {
        orphan::clear(&self.recipe.layout).map_err(|error| chain(&error))?;
        let mut server = self.recipe.start().map_err(|error| chain(&error))?;
        match self.wait_until_serving(&mut server) {
            Outcome::Serving => Ok(Some(server)),
            Outcome::Stop => {
                server.stop();
                Ok(None)
            }
            Outcome::Ended(reason) => {
                server.stop_at_once();
                Err(reason)
            }
        }
    }

    fn wait_until_serving(&self, server: &mut Server) -> Outcome {
        let started = Instant::now();
        loop {
            // The process first: what answers could only be somebody else's when it has ended.
            if let Some(reason) = server.ended() {
                return Outcome::Ended(reason);
            }
            let answer = match server.ask() {
                Answer::Serving => return Outcome::Serving,
                Answer::Busy(error) | Answer::None(error) => error,
            };
            if started.elapsed() > server::START_MAX {
                let limit = server::START_MAX.as_secs();
                return Outcome::Ended(format!("no answer within {limit} s of its start: {answer}"));
            }
            if self.told_to_stop(server::PAUSE) {
                return Outcome::Stop;
            }
        }
    }

    /// Until the process ends, stays silent for too long, or is no longer wanted.
    fn while_serving(&self, server: &mut Server) -> Outcome {
        let mut asked = Instant::now();
        let mut answered = asked;
        loop {
            if self.told_to_stop(TICK) {
                return Outcome::Stop;
            }
            if let Some(reason) = server.ended() {
                return Outcome::Ended(reason);
            }
            if asked.elapsed() < HEALTH_INTERVAL {
                continue;
            }
            server.trim_log();
            let health = match server.ask() {
                Answer::Serving => Health::Serving,
                Answer::Busy(error) | Answer::None(error) if answered.elapsed() > SILENCE_MAX => {
                    return Outcome::Ended(format!("no answer for {} s: {error}", SILENCE_MAX.as_secs()));
                }
                Answer::Busy(error) => {
                    answered = Instant::now();
                    Health::Down { reason: error.to_string() }
                }
                Answer::None(error) => Health::Down { reason: error.to_string() },
            };
            asked = Instant::now();
            if health == Health::Serving {
                answered = asked;
            }
            self.health.send_if_modified(|now| std::mem::replace(now, health.clone()) != health);
        }
    }

    fn told_to_stop(&self, within: Duration) -> bool {
        !matches!(self.orders.recv_timeout(within), Err(RecvTimeoutError::Timeout))
    }
}
