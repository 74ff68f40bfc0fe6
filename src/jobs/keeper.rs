//! The thread that keeps the leases and listens.
//!
//! A thread of its own, so that neither a busy runtime nor an empty pool can let a lease lapse. diesel hides the socket of
//! its connection, so it looks for notifications every few milliseconds instead of waiting for them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::held::Shared;
use super::limits::next_pause;
use crate::db::queue::{Session, SessionError};
use crate::domain::failure::chain;
use crate::domain::secret::Secret;

pub(super) fn start(shared: Arc<Shared>, url: Secret) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("queue-keeper".to_owned()).spawn(move || keep(&shared, &url))
}

/// Keeps a session open until told to stop.
fn keep(shared: &Shared, url: &Secret) {
    let mut pause = Duration::ZERO;
    let mut away = false;
    while !stopped(shared) {
        shared.keeper_pulse.beat();
        let error = match Session::open(url) {
            Ok(mut session) => {
                if away {
                    info!("Listening for jobs again");
                }
                (pause, away) = (Duration::ZERO, false);
                match attend(shared, &mut session) {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if !away {
            warn!(error = chain(&error), "Lost the session that keeps the leases and listens for jobs");
        }
        away = true;
        pause = next_pause(pause);
        thread::park_timeout(pause);
    }
}

fn stopped(shared: &Shared) -> bool {
    shared.keeper_stop.load(Ordering::SeqCst)
}

/// Works on an open session until told to stop, or until the session is no longer good.
fn attend(shared: &Shared, session: &mut Session) -> Result<(), SessionError> {
    let limits = &shared.limits;
    // Whatever was said while nobody listened is made up for by looking.
    shared.wake_all();
    tick(shared);
    let (mut beat_at, mut prune_at) = (Instant::now(), Instant::now() + limits.prune_every);
    while !stopped(shared) {
        shared.keeper_pulse.beat();
        let now = Instant::now();
        if now >= beat_at {
            beat(shared, session)?;
            beat_at = now + limits.lease / 4;
        }
        if now >= prune_at {
            let pruned = session.prune(limits.keep, limits.prune_max)?;
            debug!(jobs.pruned = pruned, "Deleted {pruned} jobs that ended long ago");
            prune_at = now + limits.prune_every;
        }
        let heard = session.heard()?;
        heard.kinds.iter().for_each(|kind| shared.wake(kind));
        if heard.tick {
            tick(shared);
        }
        thread::park_timeout(limits.listen_tick);
    }
    Ok(())
}

fn tick(shared: &Shared) {
    shared.tick.send_modify(|count| *count = count.wrapping_add(1));
}

/// Extends the leases, and tells the runs whose job is no longer ours. Sent even when nothing is held: it is how a session
/// that died without a word is noticed.
fn beat(shared: &Shared, session: &mut Session) -> Result<(), SessionError> {
    let held = shared.holdings();
    let ours = session.beat(shared.owner, &held, shared.limits.lease)?;
    shared.saw_heartbeat();
    for holding in held.iter().filter(|holding| !ours.contains(&holding.job)) {
        // Looked up again: the job may have been let go, or claimed anew, since.
        let Some(lease) = shared.lease_of(holding.job) else { continue };
        if lease.attempt == holding.attempt && lease.lose() {
            warn!(
                job.id = %lease.job, job.kind = lease.kind, job.attempt = lease.attempt,
                "Lost the lease of `{}` job {}: its run is told to stop", lease.kind, lease.job
            );
        }
    }
    Ok(())
}
