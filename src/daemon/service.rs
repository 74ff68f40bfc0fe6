//! The daemon as a service: what it tells systemd, and what it does when it is told something.

use std::io;
use std::os::fd::FromRawFd as _;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::reload::{self, Change};
use super::watchdog::Watchdog;
use super::{Daemon, Options, StartError, standing};
use crate::config::{Loaded, Problems, Settings};

/// How often it is looked whether the daemon serves by now.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A start that takes longer is remarked upon.
const START_REMARK: Duration = Duration::from_secs(20);
/// While the daemon starts and while it stops, how often systemd is asked for more time, and for how much.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(20);

/// Says something to systemd.
pub type Tell = Arc<dyn Fn(&[NotifyState<'_>]) + Send + Sync>;

/// What a running daemon is told by signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Stop,
    /// Read the settings again.
    Reload,
}

/// Reads the settings as they are now.
pub type Load = Box<dyn Fn() -> Result<Loaded, Problems> + Send>;

/// Who runs us.
pub struct Manager {
    /// `None`: nobody who listens.
    pub tell: Option<Tell>,
    /// The longest that the watchdog waits between two meals; `None`: there is no watchdog.
    pub watchdog: Option<Duration>,
}

impl Manager {
    /// systemd, where it has started us: `listens` is whether `NOTIFY_SOCKET` is set.
    pub fn systemd(listens: bool) -> Self {
        let tell: Tell = Arc::new(|states: &[NotifyState<'_>]| {
            if let Err(error) = sd_notify::notify(states) {
                warn!(%error, "Could not notify systemd");
            }
        });
        Self { tell: listens.then_some(tell), watchdog: sd_notify::watchdog_enabled().filter(|_| listens) }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if let Some(tell) = &self.tell {
            tell(states);
        }
    }
}

/// The callback endpoint's socket, where systemd holds it and has handed it over (`fieldmirror.socket`).
///
/// # Errors
/// When what was handed over cannot be listened on.
pub fn handed_over() -> io::Result<Option<TcpListener>> {
    let Some(socket) = sd_notify::listen_fds()?.next() else { return Ok(None) };
    #[expect(unsafe_code, reason = "systemd hands sockets over by number")]
    // SAFETY: `listen_fds` has seen that LISTEN_PID is us and that the descriptor is open; it is ours, and taken once.
    let listener = unsafe { std::net::TcpListener::from_raw_fd(socket) };
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Some)
}

/// Runs a daemon until it is told to stop.
pub async fn run(
    loaded: Loaded,
    load: Load,
    options: Options,
    manager: Manager,
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), StartError> {
    let Some(daemon) = start(&loaded.settings, options, &manager, &mut orders).await? else {
        manager.tell(&[NotifyState::Stopping]);
        info!("Stopped before it had started");
        return Ok(());
    };
    if serves(&daemon, &mut orders).await {
        manager.tell(&[NotifyState::Ready]);
        let _watchdog = watchdog(&daemon, &manager);
        if let Some(tell) = &manager.tell {
            daemon.spawn(standing::keep(daemon.db.clone(), Arc::clone(tell), daemon.stop.clone()));
        }
        obey(&mut orders, &daemon, loaded, &load, &manager).await;
    }
    manager.tell(&[NotifyState::Stopping, NotifyState::Status("Stopping: what is under way is being saved")]);
    stop(daemon, &manager).await;
    Ok(())
}

/// Starts a daemon. `None`: it was told to stop before. What a migration has not finished by then Postgres takes back.
async fn start(
    settings: &Settings,
    options: Options,
    manager: &Manager,
    orders: &mut mpsc::Receiver<Order>,
) -> Result<Option<Daemon>, StartError> {
    manager.tell(&[NotifyState::Status("Starting: pending migrations are applied first")]);
    // A migration of a large mirror has no limit, and one that systemd broke off would begin anew for ever.
    let starting = with_more_time(Daemon::start(settings.clone(), options), manager, || true);
    if settings.database.url.is_none() {
        // A server of our own has to be stopped in its turn: the order is obeyed once there is a daemon.
        return starting.await.map(Some);
    }
    // What has just been read is still fresh.
    let stopped = async { while orders.recv().await == Some(Order::Reload) {} };
    tokio::select! {
        biased;
        started = starting => started.map(Some),
        () = stopped => Ok(None),
    }
}

/// Returns when the daemon serves; false when it is told to stop before.
async fn serves(daemon: &Daemon, orders: &mut mpsc::Receiver<Order>) -> bool {
    let mut remark_at = Some(Instant::now() + START_REMARK);
    while !(daemon.ready)().await.all() {
        if remark_at.is_some_and(|at| at < Instant::now()) {
            warn!("The daemon has started, and cannot serve yet: `/readyz` tells what is missing");
            remark_at = None;
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            order = orders.recv() => match order {
                // What has just been read is still fresh.
                Some(Order::Reload) => {}
                Some(Order::Stop) | None => return false,
            },
        }
    }
    true
}

/// Feeds the watchdog where there is one. Without a thread for it the daemon would be killed, which is said.
fn watchdog(daemon: &Daemon, manager: &Manager) -> Option<Watchdog> {
    let (limit, tell) = (manager.watchdog?, manager.tell.clone()?);
    let signs = Arc::clone(&daemon.signs);
    Watchdog::start(limit, move || signs(), tell)
        .inspect_err(|error| warn!(%error, "Could not start the thread that feeds systemd's watchdog"))
        .ok()
}

/// Does what it is told, until that is to stop.
async fn obey(
    orders: &mut mpsc::Receiver<Order>,
    daemon: &Daemon,
    started: Loaded,
    load: &Load,
    manager: &Manager,
) {
    let mut last = started.clone();
    while let Some(Order::Reload) = orders.recv().await {
        let now = NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0));
        manager.tell(&[NotifyState::Reloading, now]);
        match load() {
            Ok(read) => match super::refuse_unknown_streams(&read.settings) {
                Ok(()) => {
                    tell_change(&reload::change(&started, &last, &read));
                    daemon.take(read.settings.clone());
                    last = read;
                }
                Err(refused) => error!("The settings stay as they are: {refused}"),
            },
            Err(problems) => error!(
                "The settings stay as they are, since those that were read now are refused: {problems}"
            ),
        }
        manager.tell(&[NotifyState::Ready]);
    }
}

/// One line for each setting.
fn tell_change(change: &Change) {
    for setting in &change.taken {
        info!(setting, "Reloaded `{setting}`");
    }
    for setting in &change.waiting {
        warn!(setting, "`{setting}` has changed, which takes effect when the daemon is restarted");
    }
    if *change == Change::default() {
        info!("Reloaded the settings: none has changed");
    }
}

/// Stops, with more time as long as there is something to lose.
async fn stop(daemon: Daemon, manager: &Manager) {
    let began = Instant::now();
    // Whatever else hangs is systemd's to end.
    let auth = daemon.auth.clone();
    with_more_time(daemon.stop(), manager, move || auth.is_exchanging()).await;
    info!(duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), "Stopped");
}

/// Asks systemd for more time as long as `work` lasts and needs it.
async fn with_more_time<T>(
    work: impl Future<Output = T>,
    manager: &Manager,
    needs_it: impl Fn() -> bool,
) -> T {
    let by = u32::try_from(EXTEND_BY.as_micros()).unwrap_or(u32::MAX);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = sleep(EXTEND_EVERY) => {
                if needs_it() {
                    manager.tell(&[NotifyState::ExtendTimeoutUsec(by)]);
                }
            }
        }
    }
}
