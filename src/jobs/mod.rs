//! Running jobs: apalis' workers and monitor over our own table.
//!
//! A job kind is a [`Job`]; [`register`] makes a worker for it. What apalis gives: the workers' life (start, restart, drain
//! with a grace), the layers around a handler, the hand-over of tasks. What is ours, in [`Hub`] and around it: the table as a
//! `Backend`, leases with heartbeats, fenced outcomes, counted crashes. `docs/decisions/0001-own-queue-backend.md` says why.
//!
//! Not here: what is due (the scheduler derives it from tables), and what the SQL looks like (`db::queue`). The queue never
//! retries a failure by itself: the domain's tables decide when a job is enqueued again.

mod ack;
mod backend;
pub mod connect;
pub mod disconnect;
mod ends;
mod held;
mod hub;
mod keeper;
mod kinds;
mod lane;
mod lease;
mod limits;
mod pulse;
pub mod refresh_token;
mod rotate_key;
pub mod scheduler;
mod sync;

use std::sync::Arc;
use std::time::Duration;

use apalis::layers::WorkerBuilderExt as _;
use apalis_core::error::BoxDynError;
use apalis_core::monitor::Monitor;
use apalis_core::task::data::Data;
use apalis_core::task::into_response::IntoResponse;
use apalis_core::worker::builder::WorkerBuilder;

pub use hub::{Hub, HubError, Vitals};
pub use kinds::workers;
pub use lease::{Lease, Stop};
pub use limits::QueueLimits;
pub use pulse::{Pulse, SILENCE_MAX, Sign};

use crate::domain::ids::ConnectionId;

/// How a run of a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The same job, pending again for that long. Not a moment: when jobs are due is told by the database's clock, which
    /// need not be ours.
    RunAgainIn(Duration),
    /// The reason, for people; never a secret or customer data. The row ends as `failed` and is not tried again.
    Failed(String),
}

impl IntoResponse for Outcome {
    type Output = Self;

    fn into_response(self) -> Result<Self, BoxDynError> {
        Ok(self)
    }
}

/// What a job is about: a connection, or nothing in particular.
pub trait Subject: Sized + Send + 'static {
    /// None when the row does not fit.
    fn of(connection: Option<ConnectionId>) -> Option<Self>;
}

impl Subject for ConnectionId {
    fn of(connection: Option<ConnectionId>) -> Option<Self> {
        connection
    }
}

impl Subject for () {
    fn of(connection: Option<ConnectionId>) -> Option<Self> {
        connection.is_none().then_some(())
    }
}

/// A kind of job.
pub trait Job: Send + Sync + 'static {
    /// What the handlers share.
    type App: Send + Sync + 'static;
    type Subject: Subject;
    /// `[a-z][a-z0-9_]*`, the word in the table.
    const KIND: &'static str;
    /// A run that takes longer is dropped and has failed. Blocking calls that it made go on: give them limits of their own.
    const TIMEOUT: Duration;
    /// How long all runs may be silent while no more of them could begin, before the workers count as stuck. Less than
    /// [`Job::TIMEOUT`], whose cuts would hide it.
    const SILENT_MAX: Duration = SILENCE_MAX;

    /// One run. It should end soon after [`Lease::stopped`] resolves. A panic is contained and counts as a crash.
    fn run(
        subject: Self::Subject,
        lease: &Lease,
        app: &Arc<Self::App>,
    ) -> impl Future<Output = Outcome> + Send;
}

/// Adds a worker for `J` that runs at most `slots` jobs at a time.
pub fn register<J: Job>(monitor: Monitor, hub: &Arc<Hub>, slots: usize, app: Arc<J::App>) -> Monitor {
    let hub = Arc::clone(hub);
    let lane = hub.shared.lane(J::KIND, slots, J::SILENT_MAX);
    monitor.register(move |restarts| {
        WorkerBuilder::new(format!("{}-{restarts}", J::KIND))
            .backend(backend::Queue::new(Arc::clone(&hub), Arc::clone(&lane)))
            .data(Arc::clone(&app))
            .timeout(J::TIMEOUT)
            .build(handle::<J>)
    })
}

/// An `async fn`, so that nothing of a handler runs outside its future: a panic there would take the worker down.
async fn handle<J: Job>(
    connection: Option<ConnectionId>,
    lease: Data<Arc<Lease>>,
    app: Data<Arc<J::App>>,
) -> Outcome {
    match J::Subject::of(connection) {
        Some(subject) => J::run(subject, &lease, &app).await,
        None => Outcome::Failed(format!("a `{}` job is not about this kind of subject", J::KIND)),
    }
}
