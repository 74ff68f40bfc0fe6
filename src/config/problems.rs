//! What is wrong with the settings, all of it at once. No text here holds the value of a secret.

use std::fmt;

/// One thing that is wrong: which key, what stands there, what should, where it stands, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Section and key, such as `sync.poll_interval`; or the file, where it concerns a whole file.
    pub key: String,
    pub found: String,
    pub expected: String,
    /// `file …`, `environment …`, `credential …`, `flag …` or `default`.
    pub origin: String,
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, found, expected, origin, remedy } = self;
        write!(f, "`{key}` ({origin}): found {found}, expected {expected}; {remedy}")
    }
}

/// Everything that is wrong with the settings; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "the configuration has a problem: {one}"),
            all => {
                write!(f, "the configuration has {} problems:", all.len())?;
                all.iter().try_for_each(|problem| write!(f, "\n- {problem}"))
            }
        }
    }
}

impl std::error::Error for Problems {}
