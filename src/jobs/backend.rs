//! The table as an apalis `Backend`.
//!
//! Polling only reads a channel: [`super::lane::fetch`] claims, [`super::ack`] writes the ends. Nothing here can fail: an
//! error from polling would make the monitor drop the worker with every job in flight.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::task_id::TaskId;
use apalis_core::worker::context::WorkerContext;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::ack::AckLayer;
use super::hub::Hub;
use super::lane::{Lane, fetch};
use super::lease::Lease;
use crate::domain::ids::ConnectionId;

/// The jobs of one kind, for one worker.
pub(super) struct Queue {
    hub: Arc<Hub>,
    lane: Arc<Lane>,
    /// None until the first poll: the monitor makes workers, layers and all, before it runs them.
    fetcher: Option<Fetcher>,
    closing: Option<BoxFuture<'static, ()>>,
}

struct Fetcher {
    jobs: mpsc::Receiver<Arc<Lease>>,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Queue {
    pub(super) fn new(hub: Arc<Hub>, lane: Arc<Lane>) -> Self {
        Self { hub, lane, fetcher: None, closing: None }
    }

    fn fetcher(&mut self) -> &mut Fetcher {
        self.fetcher.get_or_insert_with(|| {
            let (out, jobs) = mpsc::channel(self.lane.slots_max);
            // A drain stops the fetcher without waiting for the worker to be polled.
            let stop = self.hub.shared.draining.child_token();
            let task = tokio::spawn(fetch(Arc::clone(&self.hub), Arc::clone(&self.lane), out, stop.clone()));
            Fetcher { jobs, task, stop }
        })
    }
}

/// Stops fetching, and gives back what was claimed and not started.
async fn close(hub: Arc<Hub>, mut fetcher: Fetcher) {
    fetcher.stop.cancel();
    // A fetcher that panicked has nothing more to say than its panic did.
    let _ = fetcher.task.await;
    while let Ok(lease) = fetcher.jobs.try_recv() {
        hub.return_unstarted(&lease).await;
    }
}

impl Backend for Queue {
    type Task = Task<Option<ConnectionId>>;
    type Error = Infallible;

    fn poll_ready(&mut self, _: &mut Context<'_>, worker: &WorkerContext) -> Poll<Result<(), Infallible>> {
        if worker.is_shutting_down() {
            self.fetcher().stop.cancel();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        let next = self.fetcher().jobs.poll_recv(cx);
        if matches!(next, Poll::Ready(None)) && !self.fetcher().stop.is_cancelled() {
            // Ending the worker would leave its kind without one until the daemon restarts.
            error!(
                job.kind = self.lane.kind,
                "The task that fetches `{}` jobs died; starting another", self.lane.kind
            );
            self.fetcher = None;
            return self.fetcher().jobs.poll_recv(cx).map(|lease| lease.map(|lease| Ok(task(lease))));
        }
        next.map(|lease| lease.map(|lease| Ok(task(lease))))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Infallible>> {
        if let Some(fetcher) = self.fetcher.take() {
            self.closing = Some(close(Arc::clone(&self.hub), fetcher).boxed());
        }
        match &mut self.closing {
            Some(closing) => closing.poll_unpin(cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}

fn task(lease: Arc<Lease>) -> Task<Option<ConnectionId>> {
    // Ids come from an identity column: never negative.
    let id = TaskId::from_int(lease.job.0.unsigned_abs());
    TaskBuilder::new(lease.connection).task_id(id).data(lease).build()
}

/// A worker that is dropped without having been closed (past the grace, or replaced) gives back the same way.
impl Drop for Queue {
    fn drop(&mut self) {
        if let (Some(fetcher), Ok(runtime)) = (self.fetcher.take(), Handle::try_current()) {
            runtime.spawn(close(Arc::clone(&self.hub), fetcher));
        }
    }
}

impl BackendConfig for Queue {
    type Args = Option<ConnectionId>;
    type Id = u64;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = AckLayer;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> AckLayer {
        AckLayer::new(Arc::clone(&self.hub))
    }
}
