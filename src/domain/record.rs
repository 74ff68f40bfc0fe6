//! What a page carries: records and proofs of deletion.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One version of one record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// As sent by the provider.
    pub id: String,
    /// The whole record as JSON.
    pub raw: Value,
    /// When the request that brought it left: orders versions that carry the same modification time.
    pub sent_at: DateTime<Utc>,
    /// Set when the record itself says that it is archived or deleted.
    pub deleted: Option<Deletion>,
    /// Top-level fields that it was asked for without: what the mirror holds of them stays.
    pub without: Vec<String>,
}

/// That a record is gone, and how we know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deletion {
    /// When it went, where the provider says so; otherwise when we learned of it.
    pub at: DateTime<Utc>,
    /// Whether the provider says so.
    #[serde(default)]
    pub told: bool,
    /// A sentence for `deleted_evidence`.
    pub evidence: String,
}

/// A deletion without a new version of the record: the row keeps what it last held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tombstone {
    pub id: String,
    pub deletion: Deletion,
    /// The record that this one was merged into.
    pub merged_into: Option<String>,
    pub sent_at: DateTime<Utc>,
}
