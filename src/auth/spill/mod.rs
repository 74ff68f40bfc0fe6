//! Spills: replies of token endpoints, sealed and on disk before the database is asked to take them. A reply whose daemon
//! died, or that a database has lost again since it was restored, is found there.
//!
//! This module knows what is in a spill; [`folder`] keeps the files, and [`super::replay`] decides what becomes of them.

mod folder;
mod name;
mod order;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::{error, warn};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Auth;
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::token::TokenSet;
use crate::http::oauth::Granted;
use crate::vault::{Bound, Vault, key_id_of};

use folder::AtRisk;
pub use folder::{Found, PutOff, Spills};
pub use name::{Name, NoName};
pub(super) use order::{Kept, Order, Recorded, Traded};

/// The column that spills are bound to.
const SPILL_COLUMN: &str = "spill";

/// A spill's content, as it is sealed.
#[derive(Serialize)]
struct Written<'a> {
    generation: i64,
    access_token: &'a str,
    refresh_token: Option<&'a str>,
    expires_in: Option<Duration>,
    scopes: &'a [String],
    sent_at: DateTime<Utc>,
    extra: &'a Value,
    claims: Option<&'a Value>,
    from: Option<Traded>,
}

#[derive(Deserialize)]
struct Read {
    generation: i64,
    access_token: Secret,
    refresh_token: Option<Secret>,
    expires_in: Option<Duration>,
    scopes: Vec<String>,
    sent_at: DateTime<Utc>,
    extra: Value,
    claims: Option<Value>,
    #[serde(default)]
    from: Option<Traded>,
}

/// A spill that is of no use, or gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unread {
    /// Somebody removed it meanwhile.
    Gone,
    /// For this reason, which holds nothing of its content.
    NoUse(String),
}

fn sealed(vault: &Vault, name: Name, granted: &Granted, from: Option<Traded>) -> Vec<u8> {
    let Granted { tokens, extra, claims, sent_at } = granted;
    let written = Written {
        generation: name.generation,
        access_token: tokens.access_token.expose(),
        refresh_token: tokens.refresh_token.as_ref().map(Secret::expose),
        expires_in: tokens.expires_in,
        scopes: &tokens.scopes,
        sent_at: *sent_at,
        extra,
        claims: claims.as_ref(),
        from,
    };
    let plain = Zeroizing::new(serde_json::to_vec(&written).expect("plain data is JSON"));
    vault.seal(&plain, &bound(name))
}

fn opened(vault: &Vault, name: Name, sealed: &[u8]) -> Result<Kept, String> {
    let plain = vault.open(sealed, &bound(name)).map_err(|error| error.to_string())?;
    // The parser's own texts quote what they read.
    let read: Read = serde_json::from_slice(&plain)
        .map_err(|_| "it was written by another version of fieldmirror".to_owned())?;
    if read.generation != name.generation {
        return Err(format!("it holds generation {}: somebody renamed it", read.generation));
    }
    let Read { access_token, refresh_token, expires_in, scopes, sent_at, extra, claims, from, .. } = read;
    let tokens = TokenSet { access_token, refresh_token, expires_in, scopes };
    Ok(Kept { granted: Granted { tokens, extra, claims, sent_at }, from })
}

fn bound(name: Name) -> Bound<'static> {
    Bound { connection: name.connection, grant: name.grant, column: SPILL_COLUMN }
}

/// Reads and opens a spill.
pub(super) fn open(spills: &Spills, vault: &Vault, name: Name) -> Result<Kept, Unread> {
    match spills.read(name) {
        Ok(bytes) => opened(vault, name, &bytes).map_err(Unread::NoUse),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unread::Gone),
        Err(error) => Err(Unread::NoUse(error.to_string())),
    }
}

/// [`open`], and where another key than the present one has sealed it, seals it anew. Returns the id of the key that has
/// sealed what is there now.
pub(super) fn renewed(spills: &Spills, vault: &Vault, name: Name) -> (Option<String>, Result<Kept, Unread>) {
    let bytes = match spills.read(name) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (None, Err(Unread::Gone)),
        Err(error) => return (None, Err(Unread::NoUse(error.to_string()))),
    };
    let mut key_id = key_id_of(&bytes);
    if let Ok(Some(anew)) = vault.reseal(&bytes, &bound(name)) {
        match spills.replace(name, &anew) {
            Ok(()) => key_id = Some(vault.key_id().to_owned()),
            Err(error) => warn!(
                connection.id = name.connection.0, error = %error,
                "The spill `{name}` could not be sealed with the present key: {error}"
            ),
        }
    }
    (key_id, opened(vault, name, &bytes).map_err(Unread::NoUse))
}

/// Looks at the folder anew. Files that a process left unfinished, but whole, get their names; the beginnings of some
/// are removed once nobody can be writing them any more.
pub(super) fn look(spills: &Spills, vault: &Vault) -> io::Result<Found> {
    let mut found = spills.look()?;
    for (path, name) in std::mem::take(&mut found.unfinished) {
        let Ok((bytes, abandoned)) = Spills::read_unfinished(&path) else { continue };
        if opened(vault, name, &bytes).is_ok() {
            found.spills.insert(spills.finish(&path, name)?);
        } else if abandoned {
            warn!(
                connection.id = name.connection.0,
                "Removing the beginning of a spill, left by a process that died"
            );
            std::fs::remove_file(&path)?;
        }
    }
    Ok(found)
}

/// What is in this process alone, under the name that it is to have.
struct Unwritten {
    name: Name,
    sealed: Zeroizing<Vec<u8>>,
    _at_risk: AtRisk,
}

/// A reply in hand, on its way to the folder of spills and to the database.
pub(super) struct InHand {
    spills: Arc<Spills>,
    vault: Arc<Vault>,
    /// `None` once it is written, or where nothing can be lost.
    unwritten: Option<Unwritten>,
    written: Option<Name>,
    /// Whether it has been said that it cannot be written.
    said: bool,
}

impl Drop for InHand {
    fn drop(&mut self) {
        if let Some(name) = self.written {
            self.spills.let_go(name);
        }
    }
}

impl InHand {
    /// Whether it outlives this process.
    pub fn is_safe(&self) -> bool {
        self.unwritten.is_none()
    }

    /// Writes the spill, if it is not written yet. Failing is no reason to stop: the database may still take the reply.
    pub async fn keep(&mut self) {
        let Some(Unwritten { name, sealed, .. }) = &self.unwritten else { return };
        let (name, sealed) = (*name, sealed.clone());
        let (spills, vault) = (Arc::clone(&self.spills), Arc::clone(&self.vault));
        let task = tokio::task::spawn_blocking(move || {
            let written = spills.write_held(name, &sealed);
            if let Ok(written) = &written {
                remove_older(&spills, &vault, *written);
            }
            written
        });
        // Where the task breaks off, nothing is known to be written.
        let Ok(written) = task.await else { return };
        match written {
            Ok(written) => {
                self.unwritten = None;
                self.written = Some(written);
            }
            Err(error) => {
                if std::mem::replace(&mut self.said, true) {
                    return;
                }
                error!(
                    connection.id = name.connection.0,
                    token.generation = name.generation,
                    error = %error,
                    "A reply of a token endpoint could not be kept in `{}`: {error}",
                    self.spills.folder().display()
                );
            }
        }
    }

    /// The API has said that it is another account's.
    pub fn set_foreign(&self) {
        if let Some(name) = self.written {
            self.spills.set_foreign(name);
        }
    }

    /// Removes the spill: the reply has come to nothing.
    pub async fn discard(&mut self) {
        self.unwritten = None;
        if let Some(name) = self.written.take() {
            self.spills.let_go(name);
            remove(&self.spills, name).await;
        }
    }
}

/// Earlier replies to refreshes of the same grant: their tokens have been traded for the new ones. One that does not open
/// stays for a person to look at.
fn remove_older(spills: &Spills, vault: &Vault, newest: Name) {
    let is_older = |name: &Name| name.grant == newest.grant && name.generation < newest.generation;
    for name in spills.of(newest.connection).into_iter().filter(is_older) {
        remove_readable(spills, vault, name);
    }
}

/// Removes a spill, but not one that a person has to look at.
pub(super) fn remove_readable(spills: &Spills, vault: &Vault, name: Name) {
    if !matches!(open(spills, vault, name), Err(Unread::NoUse(_))) {
        report(name, spills.remove(name));
    }
}

pub(super) async fn remove(spills: &Arc<Spills>, name: Name) {
    let spills = Arc::clone(spills);
    let task = tokio::task::spawn_blocking(move || report(name, spills.remove(name)));
    let _ = task.await;
}

fn report(name: Name, removed: io::Result<()>) {
    if let Err(error) = removed {
        warn!(connection.id = name.connection.0, error = %error, "The spill `{name}` could not be removed: {error}");
    }
}

impl Auth {
    /// Takes a reply in hand: the next step is [`InHand::keep`].
    pub(super) fn in_hand(
        &self,
        connection: ConnectionId,
        grant: Uuid,
        generation: i64,
        granted: &Granted,
        from: Option<Traded>,
    ) -> InHand {
        let name = Name { connection, grant, generation, copy: 0 };
        let bytes = Zeroizing::new(sealed(&self.vault, name, granted, from));
        let (spills, vault) = (Arc::clone(&self.spills), Arc::clone(&self.vault));
        let unwritten = Unwritten { name, sealed: bytes, _at_risk: AtRisk::of(&spills) };
        InHand { spills, vault, unwritten: Some(unwritten), written: None, said: false }
    }

    /// A reply that can simply be asked for again.
    pub(super) fn nothing_to_lose(&self) -> InHand {
        let (spills, vault) = (Arc::clone(&self.spills), Arc::clone(&self.vault));
        InHand { spills, vault, unwritten: None, written: None, said: false }
    }

    /// The replies that are kept for a grant, of that generation or later, the newest first. `anew`: with what others
    /// wrote since the last look.
    pub(super) async fn kept_replies(
        &self,
        connection: ConnectionId,
        grant: Uuid,
        from: i64,
        anew: bool,
    ) -> Vec<(Name, Kept)> {
        let (spills, vault) = (Arc::clone(&self.spills), Arc::clone(&self.vault));
        if !anew && !spills.of(connection).iter().any(|name| name.grant == grant && name.generation >= from) {
            return Vec::new();
        }
        let task = tokio::task::spawn_blocking(move || {
            if anew && let Err(error) = look(&spills, &vault) {
                warn!(error = %error, "The folder `{}` cannot be read: {error}", spills.folder().display());
            }
            let names = spills.of(connection).into_iter();
            let names = names.filter(|name| name.grant == grant && name.generation >= from);
            // What does not open is reported by the next look at all of them.
            let mut replies: Vec<_> =
                names.filter_map(|name| Some((name, open(&spills, &vault, name).ok()?))).collect();
            replies.sort_by_key(|(name, kept): &(Name, Kept)| (name.generation, kept.granted.sent_at));
            replies.reverse();
            replies
        });
        task.await.unwrap_or_default()
    }

    /// Removes what is kept for earlier grants of a connection, which a new consent has replaced.
    pub(super) async fn forget_other_grants(&self, connection: ConnectionId, grant: Uuid) {
        let (spills, vault) = (Arc::clone(&self.spills), Arc::clone(&self.vault));
        let task = tokio::task::spawn_blocking(move || {
            // Not one that is about to be written down, of a consent that came yet later.
            let of_others = |name: &Name| name.grant != grant && !spills.is_in_hand(*name);
            for name in spills.of(connection).into_iter().filter(of_others) {
                remove_readable(&spills, &vault, name);
            }
        });
        let _ = task.await;
    }

    /// Seals spills anew that another key than the present one has sealed. Returns the keys that are still used: another
    /// one where a spill does not open, or the disk does not go along.
    pub(super) async fn reseal_spills(&self) -> Result<BTreeSet<String>, Failure> {
        let (spills, vault) = (Arc::clone(&self.spills), Arc::clone(&self.vault));
        let task = tokio::task::spawn_blocking(move || {
            let found = spills.look()?.spills.into_iter();
            let keys: BTreeSet<String> = found.filter_map(|name| renewed(&spills, &vault, name).0).collect();
            spills.set_keys(keys.clone());
            Ok::<_, io::Error>(keys)
        });
        match task.await {
            Ok(Ok(keys)) => Ok(keys),
            Ok(Err(error)) => {
                let folder = self.spills.folder().display();
                Err(Failure::transient(format!("sealing the spills in `{folder}` anew: {error}")))
            }
            Err(_) => Err(Failure::bug("sealing spills anew broke off")),
        }
    }

    /// Removes all that is kept for a connection, whatever it is: its grant has ended, on purpose.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn forget_spills(&self, connection: ConnectionId) -> Result<(), Failure> {
        let spills = Arc::clone(&self.spills);
        let task = tokio::task::spawn_blocking(move || {
            let found = spills.look()?;
            found
                .spills
                .into_iter()
                .filter(|name| name.connection == connection)
                .try_for_each(|name| spills.remove(name))
        });
        match task.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let folder = self.spills.folder().display();
                Err(Failure::transient(format!(
                    "removing the spills of connection {connection} from `{folder}`: {error}"
                )))
            }
            Err(_) => Err(Failure::bug("removing spills broke off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::generate_key;

    fn granted() -> Granted {
        Granted {
            tokens: TokenSet {
                access_token: "SECRET-AT".into(),
                refresh_token: Some("SECRET-RT".into()),
                expires_in: Some(Duration::from_mins(30)),
                scopes: vec!["oauth".to_owned()],
            },
            extra: serde_json::json!({"hub_id": 4711, "ratio": 0.25}),
            claims: None,
            sent_at: DateTime::from_timestamp(1_800_000_000, 5).expect("a time in this century"),
        }
    }

    fn name(generation: i64) -> Name {
        Name { connection: ConnectionId(7), grant: Uuid::from_u128(9), generation, copy: 0 }
    }

    fn vault() -> Vault {
        Vault::new(&generate_key(), &[]).expect("a generated key fits")
    }

    #[test]
    fn a_reply_comes_back_as_it_was() {
        let vault = vault();
        for granted in [
            granted(),
            Granted {
                tokens: TokenSet { refresh_token: None, expires_in: None, ..granted().tokens },
                claims: Some(serde_json::json!({"exp": 1})),
                ..granted()
            },
        ] {
            let (issued_at, begun_at) = (granted.sent_at, granted.sent_at);
            for from in [None, Some(Traded { generation: 2, issued_at, begun_at })] {
                let bytes = sealed(&vault, name(3), &granted, from);
                assert!(!String::from_utf8_lossy(&bytes).contains("SECRET"));
                assert_eq!(opened(&vault, name(3), &bytes), Ok(Kept { granted: granted.clone(), from }));
            }
        }
    }

    #[test]
    fn a_write_that_breaks_off_is_no_write() {
        let (state, vault) = (tempfile::tempdir().expect("a folder"), Arc::new(vault()));
        let spills = Arc::new(Spills::below(state.path()));
        let bytes = Zeroizing::new(sealed(&vault, name(3), &granted(), None));
        let unwritten = Some(Unwritten { name: name(3), sealed: bytes, _at_risk: AtRisk::of(&spills) });
        let mut in_hand =
            InHand { spills: Arc::clone(&spills), vault, unwritten, written: None, said: false };
        // A runtime that has ended takes no work: the task breaks off before it has begun.
        let ended = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let handle = ended.handle().clone();
        ended.shutdown_background();
        handle.block_on(in_hand.keep());
        assert!(!in_hand.is_safe() && spills.is_any_at_risk(), "it is in this process alone");
        assert_eq!(spills.of(ConnectionId(7)), []);
        tokio::runtime::Runtime::new().expect("a runtime").block_on(in_hand.keep());
        assert!(in_hand.is_safe() && !spills.is_any_at_risk());
        assert_eq!(spills.of(ConnectionId(7)), [name(3)]);
    }

    #[test]
    fn a_reply_opens_under_its_own_name_only() {
        let (vault, other_vault) = (vault(), vault());
        let bytes = sealed(&vault, name(3), &granted(), None);
        for other in [
            name(4),
            Name { connection: ConnectionId(8), ..name(3) },
            Name { grant: Uuid::from_u128(10), ..name(3) },
        ] {
            let why = opened(&vault, other, &bytes).expect_err("another's");
            assert!(!why.contains("SECRET"), "{why}");
        }
        assert!(opened(&vault, Name { copy: 2, ..name(3) }, &bytes).is_ok(), "copies differ in name only");
        for cut in [0, 1, 40, bytes.len() - 1] {
            opened(&vault, name(3), &bytes[..cut]).expect_err("cut off");
        }
        let why = opened(&other_vault, name(3), &bytes).expect_err("another key");
        assert!(why.contains("previous_key_files"), "{why}");
    }
}
