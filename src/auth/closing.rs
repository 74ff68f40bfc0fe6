//! The daemon's end, for those who wait for a provider: an exchange that is under way has a while to be answered, and
//! one that is not counts as any other whose answer was lost. Nothing that is in hand is ever dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Auth;
use crate::domain::failure::Failure;
use crate::http::deadline::Deadline;

/// When waiting ends; `None`: the daemon does not stop.
#[derive(Clone)]
pub(super) struct Closing(Arc<watch::Sender<Option<Deadline>>>);

impl Default for Closing {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Auth {
    /// The daemon stops: providers are waited for no longer than this.
    pub fn close_within(&self, wait: Duration) {
        self.closing.0.send_replace(Some(Deadline::after(wait)));
    }

    /// What a provider answers, unless the daemon's end comes first.
    pub(super) async fn answered<T>(&self, asked: impl Future<Output = T>) -> Result<T, Failure> {
        let mut closing = self.closing.0.subscribe();
        let over = async {
            // The sender lives as long as we do.
            let deadline = closing.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
            match deadline {
                Some(deadline) => deadline.passed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = asked => Ok(answer),
            () = over => Err(Failure::transient("the daemon stopped before the provider answered")),
        }
    }

    /// Whether the daemon stops, and its grace has passed.
    pub(super) fn is_over(&self) -> bool {
        self.closing.0.borrow().is_some_and(|deadline| deadline.left().is_zero())
    }

    /// Whether the daemon stops.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.0.borrow().is_some()
    }
}
