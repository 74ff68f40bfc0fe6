//! How the hub writes the end of a job: tried until the database answers, then the job is let go.

use std::time::{Duration, Instant};

use tokio::time;
use tracing::{error, info, warn};

use super::hub::Hub;
use super::lease::Lease;
use super::limits::next_pause;
use crate::db::DbError;
use crate::db::queue::{self, Ending, JobId, JobState};
use crate::domain::failure::{FailureKind, chain};
use crate::domain::ids::ConnectionId;

/// How many errors that do not look passing are sat out: a server that goes down or comes up has many words for it.
const UNEXPECTED_MAX: u32 = 10;

impl Hub {
    /// Writes how a run ended, trying again until the database answers, and lets go of the job.
    pub(super) async fn finish(&self, lease: &Lease, ending: Ending) {
        let holding = lease.holding();
        let write = || {
            let ending = ending.clone();
            self.db.run(move |conn| queue::finish(conn, holding, &ending))
        };
        match self.until_answered(lease, "writing the end", write).await {
            Some(None) => warn!(
                job.id = %lease.job, job.kind = lease.kind, job.attempt = lease.attempt,
                "The outcome of `{}` job {} is refused: it is no longer ours", lease.kind, lease.job
            ),
            Some(Some(JobState::Parked)) => {
                log_parked(lease.kind, lease.job, lease.connection, lease.crashes + 1);
            }
            Some(Some(_)) | None => {}
        }
        self.shared.release(lease.job);
    }

    /// Gives a job back that was claimed and not started.
    pub(super) async fn return_unstarted(&self, lease: &Lease) {
        self.return_job(lease, false).await;
    }

    /// Gives a job back whose run was dropped.
    pub(super) async fn return_dropped(&self, lease: &Lease) {
        self.return_job(lease, true).await;
    }

    async fn return_job(&self, lease: &Lease, started: bool) {
        lease.set_ending();
        let holding = lease.holding();
        let write = || self.db.run(move |conn| queue::give_back(conn, holding, started));
        if self.until_answered(lease, "giving back", write).await == Some(true) {
            info!(job.id = %lease.job, job.kind = lease.kind, "Gave back `{}` job {}", lease.kind, lease.job);
        }
        self.shared.release(lease.job);
    }

    /// Tries until the database answers, or until closing has waited long enough; meanwhile heartbeats go on. None: given up,
    /// and the lease will lapse.
    async fn until_answered<T, F>(
        &self,
        lease: &Lease,
        what: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        let mut pause = Duration::ZERO;
        let mut closing_since: Option<Instant> = None;
        let mut unexpected = 0;
        loop {
            let error = match attempt().await {
                Ok(answer) => return Some(answer),
                Err(error) => error,
            };
            if self.shared.closing.is_cancelled() {
                closing_since.get_or_insert_with(Instant::now);
            }
            let late = closing_since.is_some_and(|since| since.elapsed() >= self.shared.limits.close_wait);
            unexpected += u32::from(error.kind() != FailureKind::Transient);
            if late || unexpected > UNEXPECTED_MAX {
                error!(job.id = %lease.job, job.kind = lease.kind, error = chain(&error),
                    "Gave up {what} of `{}` job {}", lease.kind, lease.job);
                return None;
            }
            if pause.is_zero() {
                warn!(job.id = %lease.job, job.kind = lease.kind, error = chain(&error),
                    "Still {what} of `{}` job {}", lease.kind, lease.job);
            }
            pause = next_pause(pause);
            time::sleep(pause).await;
        }
    }
}

pub(super) fn log_parked(kind: &str, job: JobId, connection: Option<ConnectionId>, crashes: i32) {
    let whose = connection.map_or_else(String::new, |id| format!(" of connection {id}"));
    error!(
        job.id = %job, job.kind = kind, connection.id = connection.map(|id| id.0), job.crashes = crashes,
        "Parked `{kind}` job {job}{whose} after {crashes} crashes; `fieldmirror jobs retry {job}` runs it again"
    );
}
