//! What may happen between two steps of an exchange: a test can stop there, as a process that dies or stands still does.
//! A daemon has nothing here, and no setting puts anything here.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::ids::ConnectionId;

/// A moment in the life of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Nothing is on record yet. For a consent: its answer has been recognised.
    Beginning,
    /// The attempt is on record. For a consent: it has been redeemed.
    Open,
    /// The request has left, or is about to.
    Sent,
    /// The whole reply is here, and nowhere else.
    Replied,
    /// The reply is in the folder of spills.
    Spilled,
    /// The new tokens are in the database.
    Committed,
    /// A caller is about to be given the token.
    Using,
}

impl Step {
    pub const ALL: [Self; 7] =
        [Self::Beginning, Self::Open, Self::Sent, Self::Replied, Self::Spilled, Self::Committed, Self::Using];
}

/// For how long the process is to count as having stood still.
type Frozen = Pin<Box<dyn Future<Output = Duration> + Send>>;
type Hook = dyn Fn(ConnectionId, Step) -> Frozen + Send + Sync;

/// Nothing, or what a test does at each step.
#[derive(Clone, Default)]
pub struct Between(Option<Arc<Hook>>);

impl fmt::Debug for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Between").field(&self.0.is_some()).finish()
    }
}

impl Between {
    pub fn steps(hook: impl Fn(ConnectionId, Step) -> Frozen + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(super) async fn at(&self, connection: ConnectionId, step: Step) -> Duration {
        match &self.0 {
            None => Duration::ZERO,
            Some(hook) => hook(connection, step).await,
        }
    }
}
