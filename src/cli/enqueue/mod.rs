//! `fieldmirror enqueue`: puts on record what an admin asks for, and waits for it where that was asked for too.
//!
//! The work is the daemon's. A request is a row, its job is enqueued in the same transaction, and nothing is requested
//! at all unless a daemon lives that will see to it.

mod args;
mod connect;
mod consent;
mod credentials;
mod request;

pub use args::EnqueueArgs;
pub(super) use connect::{JOB as CONNECT_JOB, VERIFY_WAIT_MAX, await_end};
pub(super) use consent::Object;

use args::Asked;

use super::context::Context;
use super::report::{Error, Exit};

pub async fn run(cx: &Context, args: EnqueueArgs) -> Result<Exit, Error> {
    match args.understood()? {
        Asked::Connect(connect) => connect::connect(cx, connect).await,
        Asked::Reconnect(reconnect) => connect::reconnect(cx, reconnect).await,
        Asked::Request(request) => request::run(cx, request).await,
    }
}
