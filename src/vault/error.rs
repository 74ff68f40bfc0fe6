//! What can go wrong with keys and sealed values. No text here holds a byte of a key or of a secret.

use super::{Bound, KEY_BYTES};
use crate::domain::ids::ConnectionId;

/// Where a sealed value was read from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the sealed `{column}` of connection {connection}")]
pub struct SealedPlace {
    pub connection: ConnectionId,
    pub column: String,
}

impl From<&Bound<'_>> for SealedPlace {
    fn from(bound: &Bound<'_>) -> Self {
        Self { connection: bound.connection, column: bound.column.to_owned() }
    }
}

/// What is wrong with a key's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    #[error("is empty")]
    Empty,
    #[error("is not base64")]
    NotBase64,
    /// `found` is the number of bytes after decoding.
    #[error("has {found} bytes after base64 decoding")]
    Length { found: usize },
}

/// A key or a sealed value that cannot be used, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// `which` names the key by its role; the file it came from is `config`'s to tell.
    #[error(
        "{which} {fault}; expected {KEY_BYTES} bytes as base64, as `fieldmirror key generate` prints them; restore the \
         right file, for another key does not open what this one sealed"
    )]
    Key { which: String, fault: KeyFault },
    #[error(
        "{0} is cut off or was written by something else; restore the row from a backup, or run \
         `fieldmirror enqueue --reconnect`"
    )]
    NotSealed(SealedPlace),
    #[error(
        "sealed with vault key `{key_id}`, which this daemon does not have; add the file with that old key to \
         `[vault] previous_key_files`"
    )]
    UnknownKey { key_id: String },
    #[error(
        "{0} does not open: it was altered, or sealed for another row; restore the row from a backup, or run \
         `fieldmirror enqueue --reconnect`"
    )]
    Refused(SealedPlace),
    #[error(
        "a secret that was handed over does not open with this daemon's keys: it was altered, or sealed to the public \
         key of another vault key; give the command again"
    )]
    BoxRefused,
    #[error(
        "what lies with this request for connection {0} was sealed for another request: it was moved, and is not used; \
         give the command again"
    )]
    BoxMoved(ConnectionId),
    #[error(
        "the daemon's answer does not open: it was altered, or meant for another command; give the command again"
    )]
    ReplyRefused,
}
