//! What kinds of failure there are. The kind decides retry, status text, exit code and metric label; the text is for
//! people.

use chrono::{DateTime, Utc};

/// Why something did not work, as far as what to do next is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureKind {
    /// Passing: network, 5xx, database. Tried again with growing pauses.
    Transient,
    /// The provider asked us to wait; `until` is when it may be tried again, where it said so.
    Throttled { until: Option<DateTime<Utc>> },
    /// The grant is dead: a person at the customer must consent again.
    NeedsReauth,
    /// The grant lives, but this stream is not allowed. `scope` is what is missing, where the provider said so.
    Forbidden { scope: Option<String> },
    /// The answer does not have the shape that the provider documents.
    ProviderChanged,
    /// Our configuration or registration at the provider is at fault; it concerns every account alike.
    Misconfigured,
    /// Nothing failed, but what would come next is not done before a person has agreed to it.
    Held,
    /// We sent something that the provider calls wrong, or broke a rule of our own.
    OurBug,
}

impl FailureKind {
    /// Every word that [`FailureKind::label`] gives.
    pub const LABELS: [&'static str; 7] = [
        "transient",
        "throttled",
        "needs_reauth",
        "forbidden",
        "provider_changed",
        "misconfigured",
        "our_bug",
    ];

    /// The word for logs, metric labels and the database.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled { .. } => "throttled",
            Self::NeedsReauth => "needs_reauth",
            Self::Forbidden { .. } => "forbidden",
            Self::ProviderChanged => "provider_changed",
            Self::Misconfigured => "misconfigured",
            Self::Held => "held",
            Self::OurBug => "our_bug",
        }
    }
}

/// A failure with its sentence. The sentence never holds a secret or customer data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(cause.to_string().trim_end());
        source = cause.source();
    }
    text
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Transient, message)
    }

    pub fn changed(message: impl Into<String>) -> Self {
        Self::new(FailureKind::ProviderChanged, message)
    }

    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(FailureKind::OurBug, message)
    }
}
