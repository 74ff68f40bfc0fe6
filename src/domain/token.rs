//! Token sets and verdicts on token endpoints.

use std::time::Duration;

use super::secret::Secret;

/// What a token endpoint granted, after quirks have been smoothed.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenSet {
    pub access_token: Secret,
    /// `None`: the answer carried none; the one in hand stays good.
    pub refresh_token: Option<Secret>,
    /// Counted from the moment of sending. `None` means unknown, never expired.
    pub expires_in: Option<Duration>,
    pub scopes: Vec<String>,
}

/// What a refusal of the token endpoint means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenVerdict {
    /// The grant is dead, in the provider's own words.
    Dead(String),
    /// Our client id, secret or redirect URI is refused: it concerns every account, and marks none dead.
    Misconfigured(String),
    /// Passing, or not understood: keep the old token and try again.
    Retry(String),
}
