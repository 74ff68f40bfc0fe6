//! Changing the vault key while everything goes on: whatever is stored is sealed anew with the present key, value by
//! value, and then it is counted whether any other key is still used.
//!
//! A value is replaced only where it is still the one that was read, so that a refresh that comes in between wins. A
//! value that does not open in its row is left alone and told: sealing it anew would make good what was moved or altered.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use tracing::{error, info};

use super::{ACCESS_COLUMN, Auth, REFRESH_COLUMN, VERIFIER_COLUMN, secret_column};
use crate::db::daemons::{self, Daemon};
use crate::db::requests::{self, RequestOutcome};
use crate::db::rotations::{self, Rotation};
use crate::db::sealed::{self, SealedColumn, SealedValue};
use crate::db::{audit, vault_keys, vault_use};
use crate::domain::failure::Failure;
use crate::vault::{Bound, VaultError};

/// Values in one transaction.
const PAGE: u32 = 50;
/// Boxes of open requests that are looked at in one pass.
const BOXES_MAX: u32 = 1_000;
/// How often everything is looked through: a daemon that had another key a moment ago may have sealed one more value.
const PASSES_MAX: u32 = 5;
/// Values that do not open which are told by name.
const TOLD_MAX: usize = 5;

/// What a look at the daemons came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Agreement {
    /// All seal with our key.
    Reached,
    /// A daemon that seals with another key may have ended just now: its silence will tell.
    Open(String),
    /// A daemon that lives seals with another key.
    Missing(String),
}

/// What was done.
#[derive(Debug, Default)]
struct Done {
    resealed: u64,
    from: BTreeSet<String>,
    /// Values that do not open, each with the reason, and spills that are left.
    unopened: BTreeSet<String>,
}

impl Auth {
    /// Does what open requests for a rotation ask for, and ends them.
    ///
    /// # Errors
    /// When it could not be finished; the requests are still open then.
    pub async fn rotate_key(&self) -> Result<(), Failure> {
        let open = self.db(rotations::open).await?;
        let Some(latest) = open.iter().map(|rotation| rotation.requested_at).max() else { return Ok(()) };
        let live = self.db(|conn| daemons::live(conn, daemons::DAEMON_LIVES)).await?;
        match agreement(self.vault.key_id(), &live, latest) {
            Agreement::Reached => {}
            Agreement::Open(why) => return Err(Failure::transient(why)),
            Agreement::Missing(why) => return self.end_rotation(open, RequestOutcome::Refused, why).await,
        }
        let silent = self.db(|conn| daemons::silent(conn, daemons::DAEMON_LIVES)).await?;
        let elsewhere: Vec<Daemon> =
            live.into_iter().filter(|daemon| daemon.id != self.daemon).chain(silent).collect();
        let (outcome, message) = self.seal_anew(&elsewhere).await?;
        self.end_rotation(open, outcome, message).await
    }

    /// `elsewhere`: other daemons, each of which seals its own spills anew, at its start and at every look, and those that
    /// have ended without a word.
    async fn seal_anew(&self, elsewhere: &[Daemon]) -> Result<(RequestOutcome, String), Failure> {
        let mut done = Done::default();
        for _ in 0..PASSES_MAX {
            let before = done.resealed;
            for column in SealedColumn::ALL {
                self.reseal_column(column, &mut done).await?;
            }
            self.reseal_boxes(&mut done).await?;
            if done.resealed == before {
                break;
            }
        }
        let own = self.reseal_spills().await?;
        let own = own.into_iter().map(|key_id| (self.host.as_str(), key_id));
        let theirs = elsewhere.iter().flat_map(|daemon| {
            daemon.spill_keys.iter().flatten().map(|key_id| (daemon.host.as_str(), key_id.clone()))
        });
        for (host, key_id) in own.chain(theirs).filter(|(_, key_id)| key_id != self.vault.key_id()) {
            done.unopened
                .insert(format!("replies kept on host `{host}` are still sealed with key `{key_id}`"));
        }
        // The proof: counted from the tables, not from what was done.
        let counts = self.db(vault_use::counts).await?;
        let by_key: BTreeMap<Option<String>, i64> = counts
            .into_iter()
            .map(|(key_id, of)| (key_id, of.iter().map(|(_, count)| count).sum()))
            .collect();
        Ok(verdict(self.vault.key_id(), &done, &by_key))
    }

    async fn reseal_column(&self, column: SealedColumn, done: &mut Done) -> Result<(), Failure> {
        let mut after = (i64::MIN, String::new());
        loop {
            let (auth, from) = (self.clone(), after.clone());
            let page = self.transaction(move |conn| {
                // What a crash takes back is done again; the end of the request waits for the disk, and with it all that
                // came before.
                sealed::unhurried(conn)?;
                let values = sealed::not_by(conn, column, auth.vault.key_id(), &from, PAGE)?;
                let mut page = Done::default();
                for value in &values {
                    match auth.vault.reseal(&value.sealed, &bound(value, &name(column, value))) {
                        Ok(Some(new)) if sealed::swap(conn, column, value, &new)? => {
                            page.resealed += 1;
                            page.from.extend(crate::vault::key_id_of(&value.sealed));
                        }
                        Ok(_) => {}
                        Err(error) => page.note(&error, column),
                    }
                }
                Ok((page, values.last().map(SealedValue::place)))
            });
            let (page, last) = page.await?;
            done.add(page);
            match last {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    async fn reseal_boxes(&self, done: &mut Done) -> Result<(), Failure> {
        let auth = self.clone();
        let page = self.transaction(move |conn| {
            let mut page = Done::default();
            for old in sealed::boxes(conn, BOXES_MAX)? {
                // One that no key opens is answered when its request is worked off.
                let Ok(new) = auth.vault.reseal_box(&old.sealed) else { continue };
                let anew = new.is_some();
                let opened = new.unwrap_or_else(|| old.sealed.clone());
                if sealed::swap_box(conn, &old, &opened, auth.vault.key_id())? {
                    page.resealed += u64::from(anew);
                }
            }
            Ok(page)
        });
        done.add(page.await?);
        Ok(())
    }

    async fn end_rotation(
        &self,
        open: Vec<Rotation>,
        outcome: RequestOutcome,
        message: String,
    ) -> Result<(), Failure> {
        let (daemon, key_id, public_key) =
            (self.daemon, self.vault.key_id().to_owned(), self.vault.public_key());
        let text = message.clone();
        self.transaction(move |conn| {
            if outcome == RequestOutcome::Done {
                vault_keys::publish(conn, &key_id, &public_key)?;
                vault_keys::withdraw_others(conn, &key_id)?;
            }
            for rotation in open {
                requests::finish(conn, rotation.id, outcome, Some(&text))?;
            }
            let (event, outcome, detail) = (rotations::KIND, outcome.as_str(), Some(text.as_str()));
            audit::write(conn, &audit::Entry { connection: None, event, outcome, detail, daemon })
        })
        .await?;
        if outcome == RequestOutcome::Done {
            info!(outcome = outcome.as_str(), "The vault key was rotated: {message}");
        } else {
            error!(outcome = outcome.as_str(), error = message, "The vault key was not rotated: {message}");
        }
        Ok(())
    }
}

impl Done {
    fn add(&mut self, other: Self) {
        self.resealed += other.resealed;
        self.from.extend(other.from);
        self.unopened.extend(other.unopened);
    }

    fn note(&mut self, error: &VaultError, column: SealedColumn) {
        // What another key has sealed is counted by that key.
        if !matches!(error, VaultError::UnknownKey { .. }) {
            self.unopened.insert(format!("{error} (`fieldmirror.{}`)", column.table()));
        }
    }
}

/// Whether all daemons seal with `key_id`. One that seals with another key and has not been seen since `asked_at` may
/// have ended: it is left to time whether it is heard of again.
fn agreement(key_id: &str, live: &[Daemon], asked_at: DateTime<Utc>) -> Agreement {
    let others: Vec<&Daemon> =
        live.iter().filter(|daemon| daemon.seals_with.as_deref() != Some(key_id)).collect();
    if others.is_empty() {
        let unseen = live.iter().find(|daemon| daemon.spill_keys.is_none());
        return unseen.map_or(Agreement::Reached, |daemon| {
            Agreement::Open(format!("the daemon on `{}` has not looked at its kept replies yet", daemon.host))
        });
    }
    let said: Vec<String> = others.iter().map(|daemon| stance(daemon, key_id)).collect();
    let why = format!(
        "not every daemon seals with key `{key_id}`: {}; give all of them the new key as `[vault] key_file` and the old \
         one among `previous_key_files`, restart them, and rotate again",
        said.join("; ")
    );
    if others.iter().any(|daemon| daemon.last_seen_at > asked_at) {
        Agreement::Missing(why)
    } else {
        Agreement::Open(why)
    }
}

fn stance(daemon: &Daemon, key_id: &str) -> String {
    let Daemon { host, pid, seals_with, opens_with, .. } = daemon;
    let Some(theirs) = seals_with else {
        return format!(
            "the daemon on `{host}` (process {pid}) is of an older version, which does not say its key"
        );
    };
    let lacks = if opens_with.iter().any(|id| id == key_id) { "" } else { ", and lacks that one" };
    format!("the daemon on `{host}` (process {pid}) seals with `{theirs}`{lacks}")
}

/// What the counts prove.
fn verdict(key_id: &str, done: &Done, by_key: &BTreeMap<Option<String>, i64>) -> (RequestOutcome, String) {
    let from: Vec<String> = done.from.iter().map(|id| format!("`{id}`")).collect();
    let from =
        if from.is_empty() { String::new() } else { format!(", that key {} had sealed", from.join(", ")) };
    let mut parts = vec![format!("{} values were sealed anew with key `{key_id}`{from}", done.resealed)];
    let others = by_key.iter().filter(|(key, _)| key.as_deref() != Some(key_id));
    parts.extend(others.map(|(key, count)| match key {
        Some(key) => format!("{count} values are still sealed with key `{key}`"),
        None => format!("{count} values are not of the shape that the vault writes"),
    }));
    parts.extend(done.unopened.iter().take(TOLD_MAX).cloned());
    if done.unopened.len() > TOLD_MAX {
        parts.push(format!("and {} more do not open", done.unopened.len() - TOLD_MAX));
    }
    if parts.len() == 1 {
        let count = by_key.get(&Some(key_id.to_owned())).copied().unwrap_or(0);
        parts.push(format!("all {count} stored values are sealed with it, and none with another key"));
        return (RequestOutcome::Done, parts.join("; "));
    }
    parts.push(
        "no old key may be removed: add the file of a key that is missing to `[vault] previous_key_files`, mend the rest, \
         and rotate again"
            .to_owned(),
    );
    (RequestOutcome::Failed, parts.join("; "))
}

/// The column that the seal of a value covers.
fn name(column: SealedColumn, value: &SealedValue) -> String {
    match column {
        SealedColumn::Access => ACCESS_COLUMN.to_owned(),
        SealedColumn::Refresh => REFRESH_COLUMN.to_owned(),
        SealedColumn::Secret => secret_column(&value.name),
        SealedColumn::Verifier => VERIFIER_COLUMN.to_owned(),
    }
}

fn bound<'a>(value: &SealedValue, column: &'a str) -> Bound<'a> {
    Bound { connection: value.connection(), grant: value.grant, column }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time in this century")
    }

    fn daemon(seals_with: Option<&str>, opens_with: &[&str], seen_s: i64) -> Daemon {
        Daemon {
            id: Uuid::nil(),
            host: "h".into(),
            pid: 7,
            version: "0.1.0".into(),
            last_seen_at: at(seen_s),
            seals_with: seals_with.map(Into::into),
            opens_with: opens_with.iter().map(|id| (*id).to_owned()).collect(),
            spill_keys: Some(Vec::new()),
        }
    }

    #[test]
    fn all_daemons_have_to_seal_with_the_key() {
        let check = |others: &[Daemon], expected: &str| {
            let mut live = vec![daemon(Some("new"), &["new", "old"], 1)];
            live.extend_from_slice(others);
            let found = format!("{:?}", agreement("new", &live, at(0)));
            assert!(found.starts_with(expected.split('|').next().unwrap()), "{found}");
            for words in expected.split('|').skip(1) {
                assert!(found.contains(words), "{found}");
            }
        };
        check(&[], "Reached");
        check(&[daemon(Some("new"), &["new"], -9)], "Reached");
        check(
            &[daemon(Some("old"), &["old"], 1)],
            "Missing|seals with `old`, and lacks that one|`h` (process 7)",
        );
        check(&[daemon(Some("old"), &["old", "new"], 1)], "Missing|seals with `old`;|restart them");
        check(&[daemon(Some("old"), &["old"], -1)], "Open|lacks");
        check(&[daemon(None, &[], 1)], "Missing|older version");
        let unseen = Daemon { spill_keys: None, ..daemon(Some("new"), &["new"], 1) };
        check(&[unseen], "Open|has not looked at its kept replies yet");
    }

    #[test]
    fn what_the_counts_prove() {
        let check = |done: &Done, counts: &[(Option<&str>, i64)], outcome, words: &str| {
            let counts = counts.iter().map(|(key, count)| (key.map(ToOwned::to_owned), *count)).collect();
            let (found, message) = verdict("new", done, &counts);
            assert_eq!(found, outcome, "{message}");
            assert!(message.contains(words), "{message}");
        };
        let done = Done { resealed: 3, from: BTreeSet::from(["old".to_owned()]), ..Done::default() };
        check(
            &done,
            &[(Some("new"), 5)],
            RequestOutcome::Done,
            "3 values were sealed anew with key `new`, that key `old`",
        );
        check(&done, &[(Some("new"), 5)], RequestOutcome::Done, "all 5 stored values are sealed with it");
        check(
            &done,
            &[(Some("new"), 5), (Some("x"), 1)],
            RequestOutcome::Failed,
            "1 values are still sealed with key `x`",
        );
        check(&done, &[(None, 2)], RequestOutcome::Failed, "2 values are not of the shape");
        let moved =
            Done { unopened: BTreeSet::from(["the sealed `c` does not open".to_owned()]), ..Done::default() };
        check(&moved, &[(Some("new"), 1)], RequestOutcome::Failed, "the sealed `c` does not open");
    }
}
