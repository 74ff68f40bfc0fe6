//! The layer around a handler that runs each job as a task of its own and writes how it ended.
//!
//! It stands outside the user's layers, so it sees timeouts as well as outcomes. A task of its own, because apalis polls all
//! jobs of a worker from one task, and drops them all when that worker is dropped.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use apalis_core::error::BoxDynError;
use apalis_core::task::Task;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::{JoinError, JoinHandle};
use tokio::time;
use tower::timeout::error::Elapsed;
use tower::{Layer, Service};
use tracing::{Instrument, error, info_span, warn};

use super::Outcome;
use super::hub::Hub;
use super::lease::Lease;
use super::pulse::Beating;
use crate::db::queue::Ending;
use crate::domain::ids::ConnectionId;
use crate::domain::measure;

#[derive(Clone)]
pub(super) struct AckLayer {
    hub: Arc<Hub>,
}

impl AckLayer {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

impl<S> Layer<S> for AckLayer {
    type Service = Ack<S>;

    fn layer(&self, inner: S) -> Ack<S> {
        Ack { hub: Arc::clone(&self.hub), inner }
    }
}

#[derive(Clone)]
pub(super) struct Ack<S> {
    hub: Arc<Hub>,
    inner: S,
}

impl<S> Service<Task<Option<ConnectionId>>> for Ack<S>
where
    S: Service<Task<Option<ConnectionId>>, Response = Outcome>,
    S::Error: Into<BoxDynError>,
    S::Future: Send + 'static,
{
    type Response = ();
    type Error = BoxDynError;
    type Future = BoxFuture<'static, Result<(), BoxDynError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxDynError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, task: Task<Option<ConnectionId>>) -> Self::Future {
        // `backend::task` puts it in.
        let lease = match task.data().get_checked::<Arc<Lease>>() {
            Ok(lease) => Arc::clone(lease),
            Err(error) => return std::future::ready(Err(error.into())).boxed(),
        };
        lease.set_started();
        let span = info_span!(
            "job", job.id = %lease.job, job.kind = lease.kind, job.attempt = lease.attempt,
            connection.id = lease.connection.map(|id| id.0)
        );
        let pulse = self.hub.shared.pulse_of(lease.kind).unwrap_or_default();
        let run = self.inner.call(task).map(|ended| ended.map_err(Into::into));
        let run = Beating { pulse: Arc::clone(&pulse), inner: Box::pin(run) };
        let run = tokio::spawn(run.instrument(span.clone()));
        let supervised = Box::pin(supervise(Arc::clone(&self.hub), lease, run));
        let ended = tokio::spawn(Beating { pulse, inner: supervised }.instrument(span));
        ended.map(|joined| joined.map_err(Into::into)).boxed()
    }
}

type Run = JoinHandle<Result<Outcome, BoxDynError>>;

/// Waits for the end of a run and writes it.
async fn supervise(hub: Arc<Hub>, lease: Arc<Lease>, run: Run) {
    let ended = wait(&hub, &lease, run).await;
    lease.set_ending();
    let Some(ended) = ended else {
        measure::job(lease.kind, "dropped");
        return hub.return_dropped(&lease).await;
    };
    hub.shared.saw_end(&lease, matches!(&ended, Ok(Err(error)) if error.is::<Elapsed>()));
    let ending = match ended {
        Ok(outcome) => ending(&lease, outcome),
        Err(panic) => crash(&hub, &lease, panic),
    };
    measure::job(lease.kind, ending.word());
    hub.finish(&lease, ending).await;
}

/// The end of the run; none when it was dropped, because the daemon closes or because it went on without a lease.
async fn wait(
    hub: &Hub,
    lease: &Lease,
    mut run: Run,
) -> Option<Result<Result<Outcome, BoxDynError>, Box<dyn std::any::Any + Send>>> {
    let lost_for_long = async {
        lease.lost().await;
        time::sleep(hub.shared.limits.lost_grace).await;
    };
    let joined = tokio::select! {
        joined = &mut run => joined,
        () = lost_for_long => dropped(run).await,
        () = hub.shared.closing.cancelled() => dropped(run).await,
    };
    joined.map(Ok).or_else(|error| error.try_into_panic().map(Err)).ok()
}

/// Drops the run at its next pause. It may still have ended by itself in that moment: then its end counts.
async fn dropped(run: Run) -> Result<Result<Outcome, BoxDynError>, JoinError> {
    run.abort();
    run.await
}

fn ending(lease: &Lease, outcome: Result<Outcome, BoxDynError>) -> Ending {
    match outcome {
        Ok(Outcome::Done) => Ending::Done,
        Ok(Outcome::RunAgainIn(pause)) => Ending::RunAgainIn(pause),
        Ok(Outcome::Failed(reason)) => {
            warn!(error = reason, "`{}` job {} failed: {reason}", lease.kind, lease.job);
            Ending::Failed(reason)
        }
        Err(error) => {
            let reason =
                if error.is::<Elapsed>() { "took longer than it may".to_owned() } else { error.to_string() };
            error!(error = reason, "`{}` job {} was stopped: {reason}", lease.kind, lease.job);
            Ending::Failed(reason)
        }
    }
}

/// A panic counts as a crash, so that a job which always panics ends up parked instead of running for ever.
fn crash(hub: &Hub, lease: &Lease, panic: Box<dyn std::any::Any + Send>) -> Ending {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text =
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned());
    // What it said stands in the log: the panic's own line.
    error!("`{}` job {} panicked, which counts as a crash", lease.kind, lease.job);
    let limits = &hub.shared.limits;
    let pause = limits.panic_pause.saturating_mul(u32::try_from(lease.crashes + 1).unwrap_or(1));
    Ending::Crashed {
        reason: format!("panicked: {text}"),
        pause: pause.min(PANIC_PAUSE_MAX),
        crashes_max: limits.crashes_max,
    }
}

/// The longest wait after a panic.
const PANIC_PAUSE_MAX: Duration = Duration::from_mins(5);
