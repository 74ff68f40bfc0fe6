//! What comparing a part of the mirror with the provider has found. Plain data, kept in the database and shown by the
//! command that asked for it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Rows of a sample, where nothing else is said, and at most.
pub const SAMPLE: u32 = 50;
pub const SAMPLE_MAX: u32 = 1_000;

/// What was compared of one stream, and what differs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Up to where the mirror was to know every change, and every deletion.
    pub complete_to: Option<DateTime<Utc>>,
    pub deletions_to: Option<DateTime<Utc>>,
    /// Rows drawn at random, each asked for by its id.
    pub sample: Part,
    /// What changed in a span of time, read from the provider's own list of changes; of short lists all.
    pub window: Part,
    /// Rows that differ.
    pub differing: u64,
    /// Their differences, up to a limit.
    pub differences: Vec<Difference>,
    /// What was asked for so that they are read again.
    pub reread: Option<String>,
}

/// One way of comparing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// Why nothing, or not all, could be compared in this way.
    pub note: Option<String>,
    pub from: Option<DateTime<Utc>>,
    pub to: Option<DateTime<Utc>>,
    /// Rows that were looked at. Each is in one of the four that follow.
    pub rows: u64,
    pub agree: u64,
    /// Changed at the provider after what the mirror is to know: no difference.
    pub changed_since: u64,
    /// The provider's answer proves nothing.
    pub unknown: u64,
    pub differ: u64,
}

/// One thing that is not the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub id: String,
    /// A column of the stream's table; `raw/…`: a value within the record; `row`: the row itself.
    pub column: String,
    pub mirror: Option<String>,
    pub provider: Option<String>,
}

impl Report {
    /// Rows that could be compared.
    pub fn compared(&self) -> u64 {
        [&self.sample, &self.window].map(|part| part.agree + part.changed_since + part.differ).iter().sum()
    }

    /// Whether what could be compared is the same; `None` where nothing could.
    pub fn agrees(&self) -> Option<bool> {
        match (self.differing, self.compared()) {
            (0, 0) if self.sample.rows + self.window.rows > 0 => None,
            (0, 0) if self.sample.note.is_some() && self.window.note.is_some() => None,
            (differing, _) => Some(differing == 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_compared_does_not_agree() {
        let part = |agree, unknown| Part { rows: agree + unknown, agree, unknown, ..Part::default() };
        let noted = Part { note: Some("no".into()), ..Part::default() };
        for (sample, window, differing, expected) in [
            (part(3, 1), noted.clone(), 0, Some(true)),
            (part(0, 2), noted.clone(), 0, None),
            (noted.clone(), noted.clone(), 0, None),
            // An empty stream of which nothing is listed either.
            (Part::default(), part(0, 0), 0, Some(true)),
            (part(3, 0), noted, 1, Some(false)),
        ] {
            let report = Report { sample, window, differing, ..Report::default() };
            assert_eq!(report.agrees(), expected, "{report:?}");
        }
    }
}
