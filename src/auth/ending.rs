//! How a consent, or the verification of a key, ended.

use super::authorize::{Refusal, Started};
use crate::db::requests::RequestOutcome;
use crate::domain::failure::{Failure, FailureKind};

/// What [`Ending::AccountTaken`] says of itself: a reason on record tells by it that no other credentials would help.
pub const ACCOUNT_TAKEN: &str = "is connected already, as";

/// How a consent ended, for the page and for whoever waits.
#[derive(Debug, Clone)]
pub enum Ending {
    Connected {
        name: String,
        title: &'static str,
        account: String,
    },
    /// The person said no.
    Denied {
        title: &'static str,
    },
    /// The answer leads nowhere.
    Refused(Refusal),
    /// The browser is to start again.
    Restart(Box<Started>),
    /// A reconnect was consented to with another account than before.
    WrongAccount {
        name: String,
        title: &'static str,
    },
    /// Another connection holds the account.
    AccountTaken {
        by: String,
        title: &'static str,
    },
    /// The consent was given and its tokens are kept: the connection is made once what is in the way has passed.
    Postponed {
        title: &'static str,
        failure: Failure,
    },
    /// The provider, or we, failed.
    Failed(Failure),
}

impl Ending {
    /// How a request that led to this has ended.
    pub fn outcome(&self) -> RequestOutcome {
        match self {
            Self::Connected { .. } => RequestOutcome::Done,
            Self::Denied { .. } => RequestOutcome::Denied,
            Self::Refused(Refusal::Expired) => RequestOutcome::Expired,
            Self::Refused(Refusal::Closed) => RequestOutcome::Superseded,
            // The provider does not take the credential.
            Self::Failed(failure) if failure.kind == FailureKind::NeedsReauth => RequestOutcome::Denied,
            Self::Failed(failure) if failure.kind == FailureKind::Misconfigured => RequestOutcome::Refused,
            Self::Refused(_) | Self::Restart(_) => RequestOutcome::Refused,
            Self::Postponed { .. } | Self::Failed(_) => RequestOutcome::Failed,
            Self::WrongAccount { .. } | Self::AccountTaken { .. } => RequestOutcome::WrongAccount,
        }
    }

    /// A sentence for people, without anything from outside that was not masked.
    pub fn message(&self) -> String {
        match self {
            Self::Connected { name, account, title } => {
                format!("`{name}` is connected to {account} at {title}")
            }
            Self::Denied { title } => format!("the consent at {title} was declined"),
            Self::Refused(Refusal::Invalid) => "the answer does not belong to a consent of ours".to_owned(),
            Self::Refused(Refusal::Expired) => {
                "the consent took too long, or its link has expired".to_owned()
            }
            Self::Refused(Refusal::Replayed) => "the answer was used before".to_owned(),
            Self::Refused(Refusal::OtherConsent) => {
                "the answer came from a browser that had opened another start link".to_owned()
            }
            Self::Refused(Refusal::Closed) => {
                "the link has been used, or a later one has taken its place".to_owned()
            }
            Self::Restart(_) => {
                "the answer has no state: the consent has to be started from its link".to_owned()
            }
            Self::WrongAccount { name, title } => {
                format!("`{name}` belongs to another account at {title}; its grant was left as it is")
            }
            Self::AccountTaken { by, title } => {
                format!("this account at {title} {ACCOUNT_TAKEN} `{by}`")
            }
            Self::Postponed { title, failure } => format!(
                "the consent at {title} was given and is kept; the connection is made once this has passed: {}",
                failure.message
            ),
            Self::Failed(failure) => failure.message.clone(),
        }
    }
}
