//! Answers of token endpoints that come late: a process that stood still beyond its deadline may find one waiting, and what
//! it brings may be the only thing that the provider still honours.

use std::pin::pin;
use std::time::Duration;

use super::Auth;
use super::between::Step;
use crate::domain::ids::ConnectionId;
use crate::http::deadline::Deadline;
use crate::http::oauth::{self, Granted, TokenFailure};

/// How long an answer is waited for that a process which stood still may find.
pub(super) const LATE_MAX: Duration = Duration::from_secs(5);

impl Auth {
    /// What is asked, until the deadline; and then for another moment, in which `hold_on` keeps others out where that can be
    /// done. Whoever has begun meanwhile loses nothing by what is found: it is written where he got nothing. For a process
    /// that a test makes stand still, the deadline is nearer afterwards.
    pub(super) async fn in_time(
        &self,
        id: ConnectionId,
        asked: impl Future<Output = Result<Granted, TokenFailure>>,
        deadline: &mut Deadline,
        hold_on: impl Future<Output = ()>,
    ) -> Result<Granted, TokenFailure> {
        if deadline.left().is_zero() {
            return Err(oauth::unavailable(
                false,
                "the time for it had passed before the token endpoint was asked",
            ));
        }
        let mut asked = pin!(asked);
        tokio::select! {
            biased;
            done = &mut asked => return done,
            stood_still = self.between.at(id, Step::Sent) => *deadline = deadline.sooner(stood_still),
        }
        tokio::select! {
            biased;
            done = &mut asked => return done,
            () = deadline.passed() => {}
        }
        let late = || oauth::unavailable(true, "the token endpoint did not answer in time");
        let _ = tokio::time::timeout(LATE_MAX, hold_on).await;
        tokio::time::timeout(LATE_MAX, asked).await.unwrap_or_else(|_| Err(late()))
    }
}
