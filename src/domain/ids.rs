//! What things are called: connections and their names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a connection: one company account authorised at one provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnectionId(pub i64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name an admin gives a connection: `[a-z0-9][a-z0-9_-]{0,62}`, unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ConnectionName(String);

/// A name that is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a connection name: expected 1 to 63 characters of `a-z`, `0-9`, `_` and `-`, the first a letter or digit"
)]
pub struct BadConnectionName(String);

impl ConnectionName {
    /// The most characters a name has.
    pub const LENGTH_MAX: usize = 63;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ConnectionName {
    type Err = BadConnectionName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = text.len() <= Self::LENGTH_MAX
            && text.starts_with(plain)
            && text.chars().all(|c| plain(c) || c == '_' || c == '-');
        if fits { Ok(Self(text.to_owned())) } else { Err(BadConnectionName(text.to_owned())) }
    }
}

impl fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::ConnectionName;

    #[test]
    fn names() {
        let longest = "a".repeat(63);
        for good in ["acme", "7up", "a", "acme-jobber_2", &longest] {
            assert!(good.parse::<ConnectionName>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-acme", "_acme", "Acme", "ac me", "acmé", "a/b", &too_long] {
            assert!(bad.parse::<ConnectionName>().is_err(), "{bad}");
        }
    }
}
