//! What becomes of spills: a reply that its daemon could not write down is written down now, a grant that the database has
//! lost again goes on from what was kept, and what is of no use is reported and left alone.
//!
//! Done at the start and then every [`LOOK_EVERY`], by comparing the folder with the tables. Repeating it does no harm, and
//! daemons that share a folder may do it at the same time: everything is written by compare-and-swap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tracing::{info, warn};
use uuid::Uuid;

use super::Auth;
use super::authorize::Redeemed;
use super::kept::Interrupted;
use super::policy::DEAD_RETRY;
use super::refresh::{Refreshed, Why};
use super::renewal::{self, Swap, note, swap};
use super::spill::{self, Kept, Name, Order, PutOff, Recorded, Unread};
use crate::db::connections::{self, ConnectionState};
use crate::db::refresh_attempts::{self, RefreshAttempt};
use crate::db::tokens::{self, OnRecord, Renewal};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::domain::time::delta;
use crate::http::oauth::Granted;

/// How often the folder is compared with the tables.
pub const LOOK_EVERY: Duration = Duration::from_mins(1);
/// Connections that one query asks for.
const QUERY_MAX: usize = 5_000;
/// Refreshes and consents that run at once.
const AT_ONCE: usize = 4;

const TRADED: &str = "its tokens have been traded";
const UNKNOWN_CONNECTION: &str =
    "the database does not know the connection: is it the right one, or restored from an old backup?";
const UNKNOWN_GRANT: &str = "the database does not know the grant: is it restored from an old backup? Where the provider does \
     not take the connection's token any more, `fieldmirror enqueue --reconnect` asks for a new consent";

/// What a spill is, compared with what is on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Written down, or older than what is.
    Known,
    /// The reply to the last refresh, which nobody wrote down.
    Next,
    /// The database has lost more than one refresh.
    Ahead,
    /// The connection was disconnected: it is of no use, and nobody is to have it.
    Ended,
    /// Of a grant that the connection does not have: a consent that was interrupted, or replaced.
    OtherGrant,
    /// The database does not know the connection.
    Unknown,
}

fn fate(name: Name, kept: &Kept, on_record: Option<&OnRecord>) -> Fate {
    let Some(on_record) = on_record else { return Fate::Unknown };
    if on_record.state == ConnectionState::Disconnected.as_str() {
        // A reply that came later belongs to a consent that came later, whether or not this database knows it. That of a
        // refresh has a moment of the database's, whatever its host's clock said.
        let asked_at = kept.from.map_or(kept.granted.sent_at, |from| from.begun_at);
        let came_later = on_record.disconnected_at.is_some_and(|at| at < asked_at);
        return if came_later { Fate::OtherGrant } else { Fate::Ended };
    }
    let (generation, issued_at, written_at) =
        (on_record.generation, on_record.issued_at, on_record.last_refresh_at);
    match (on_record.grant_id, generation, issued_at) {
        (Some(grant), Some(generation), Some(issued_at)) if grant == name.grant => {
            match kept.order(name.generation, Recorded { generation, issued_at, written_at }) {
                Order::Known => Fate::Known,
                Order::Next => Fate::Next,
                Order::Ahead => Fate::Ahead,
            }
        }
        _ => Fate::OtherGrant,
    }
}

/// What is left to be done, and needs providers.
#[derive(Default)]
pub struct Left {
    ahead: BTreeMap<ConnectionId, Name>,
    consents: Vec<(Name, Granted, Consent)>,
}

/// A consent that a kept reply is of.
enum Consent {
    Interrupted(Box<Redeemed>),
    /// The database does not know it, but this grant of the connection, which is older.
    Unknown {
        instead_of: Option<Uuid>,
    },
}

impl Left {
    /// One of several replies of a grant is enough.
    fn conclude(&mut self, name: Name, granted: Granted, consent: Consent) {
        if self.consents.iter().all(|(other, ..)| other.grant != name.grant) {
            self.consents.push((name, granted, consent));
        }
    }
}

/// What is in the folder, opened.
struct Opened {
    replies: BTreeMap<Name, Kept>,
    no_use: BTreeMap<String, String>,
}

impl Auth {
    /// Compares the folder of spills with the tables, and does what can be done without asking a provider.
    ///
    /// # Errors
    /// When the database or the folder does not go along: nothing is lost by that.
    pub async fn replay(&self) -> Result<Left, Failure> {
        let Opened { replies, mut no_use } = self.open_all().await?;
        let on_record = self.on_record(&replies).await?;
        let mut left = Left::default();
        let mut newest = BTreeMap::new();
        let (put_off, now) = (self.spills.all_put_off(), self.clock.now());
        // Not where a clock was set back meanwhile.
        let waits = |off: &&PutOff| off.until > now && off.until <= now + delta(DEAD_RETRY);
        // The newest of a grant first.
        for (name, kept) in replies.into_iter().rev() {
            let newest = *newest.entry((name.connection, name.grant)).or_insert(name.generation);
            let row = on_record.get(&name.connection);
            let useless = match fate(name, &kept, row) {
                Fate::Known => (name.generation < newest).then_some(TRADED),
                found @ (Fate::Next | Fate::Ahead) => {
                    let written = match found {
                        Fate::Next => self.write_down(name, &kept, row).await,
                        _ => Ok(false),
                    };
                    // A death that was said of what another machine had kept says nothing of what is kept here.
                    let untried = |row: &OnRecord| row.is_dead && !self.spills.was_offered(name);
                    match written {
                        // One that the database refuses does not stand in the way of others.
                        Err(failure) if failure.kind != FailureKind::Transient => {
                            warn!(connection.id = name.connection.0, error = %failure,
                                "The spill `{name}` could not be written down: {failure}");
                        }
                        Err(failure) => return Err(failure),
                        Ok(false) if row.is_some_and(|row| !row.pauses || untried(row)) => {
                            left.ahead.entry(name.connection).or_insert(name);
                        }
                        Ok(_) => {}
                    }
                    None
                }
                found @ (Fate::OtherGrant | Fate::Ended) => match self.interrupted(name).await? {
                    Some(Interrupted::Waits(_)) if name.generation < newest => Some(TRADED),
                    Some(Interrupted::Waits(redeemed)) => {
                        if put_off.get(&name.grant).is_none_or(|off| !waits(&off)) {
                            left.conclude(name, kept.granted, Consent::Interrupted(redeemed));
                        }
                        None
                    }
                    Some(Interrupted::Replaced) => {
                        Some("another consent, or its connection's end, has replaced it")
                    }
                    None if found == Fate::Ended => Some("its connection was disconnected"),
                    // Every refresh moves `issued_at`, and only a consent `connected_at`.
                    None if row.and_then(|row| row.connected_at) > Some(kept.granted.sent_at) => {
                        Some("a later consent has replaced its grant")
                    }
                    None => {
                        let tried = put_off.get(&name.grant).filter(waits);
                        let in_force = row.filter(|row| {
                            row.is_in_force()
                                && name.generation == newest
                                && row.issued_at <= Some(kept.granted.sent_at)
                        });
                        match (in_force, tried) {
                            (Some(row), None) => {
                                let instead_of = row.grant_id;
                                left.conclude(name, kept.granted, Consent::Unknown { instead_of });
                            }
                            (_, tried) => {
                                let tried = tried.map(|off| format!(" (it was tried: {})", off.why));
                                let why = format!("{UNKNOWN_GRANT}{}", tried.unwrap_or_default());
                                no_use.insert(name.to_string(), why);
                            }
                        }
                        None
                    }
                },
                Fate::Unknown => {
                    no_use.insert(name.to_string(), UNKNOWN_CONNECTION.to_owned());
                    None
                }
            };
            if let Some(why) = useless {
                info!(connection.id = name.connection.0, "Removing the spill `{name}`: {why}");
                spill::remove(&self.spills, name).await;
            }
        }
        for (name, why) in self.spills.set_unreadable(no_use) {
            let folder = self.spills.folder().display();
            warn!(error = why, "`{folder}/{name}` is of no use and is left alone: {why}");
        }
        Ok(left)
    }

    /// Everything that lies in the folder, opened; what was left unfinished but whole included.
    async fn open_all(&self) -> Result<Opened, Failure> {
        let (spills, vault) = (Arc::clone(&self.spills), Arc::clone(&self.vault));
        let task = tokio::task::spawn_blocking(move || {
            if spills.id().is_none() {
                // What was wrong at the start may be over, and others must know where our replies are.
                let _ = spills.prepare();
            }
            let found = spill::look(&spills, &vault)?;
            let mut opened = Opened { replies: BTreeMap::new(), no_use: BTreeMap::new() };
            for name in found.strange {
                opened.no_use.insert(name, "it is no file of ours".to_owned());
            }
            let mut keys = BTreeSet::new();
            for name in found.spills.into_iter().filter(|name| !spills.is_in_hand(*name)) {
                let (key_id, reply) = spill::renewed(&spills, &vault, name);
                keys.extend(key_id);
                match reply {
                    Ok(kept) => _ = opened.replies.insert(name, kept),
                    Err(Unread::Gone) => {}
                    Err(Unread::NoUse(why)) => _ = opened.no_use.insert(name.to_string(), why),
                }
            }
            spills.set_keys(keys);
            Ok::<_, std::io::Error>(opened)
        });
        match task.await {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(error)) => {
                let folder = self.spills.folder().display();
                Err(Failure::transient(format!("looking at the spills in `{folder}`: {error}")))
            }
            Err(_) => Err(Failure::bug("looking at spills broke off")),
        }
    }

    async fn on_record(
        &self,
        replies: &BTreeMap<Name, Kept>,
    ) -> Result<BTreeMap<ConnectionId, OnRecord>, Failure> {
        let ids: BTreeSet<ConnectionId> = replies.keys().map(|name| name.connection).collect();
        let ids: Vec<ConnectionId> = ids.into_iter().collect();
        let now = self.clock.now();
        let mut all = BTreeMap::new();
        for ids in ids.chunks(QUERY_MAX) {
            let ids = ids.to_vec();
            let rows = self.db(move |conn| tokens::on_record(conn, &ids, now)).await?;
            all.extend(rows.into_iter().map(|row| (row.connection(), row)));
        }
        Ok(all)
    }

    /// Writes a reply down that nobody did, in the place of what is on `row`. False: whose it is has to be asked first.
    async fn write_down(&self, name: Name, kept: &Kept, row: Option<&OnRecord>) -> Result<bool, Failure> {
        let Some(replaces) = row.and_then(|row| row.issued_at) else { return Ok(true) };
        let Name { connection: id, grant, generation, .. } = name;
        let connection = self.db(move |conn| connections::get(conn, id)).await?;
        let Some(provider) = crate::providers::provider(&connection.provider) else { return Ok(true) };
        let settings = self.settings.providers.get(&connection.provider);
        if settings.is_some_and(|settings| {
            renewal::names_another_account(provider, settings, &connection, &kept.granted).is_some()
        }) {
            return Ok(false);
        }
        let begun_at = kept.from.map(|from| from.begun_at);
        let renewal = renewal::renewal(self, provider, (id, grant, generation), &kept.granted, replaces);
        let renewal = Renewal { begun_at, ..renewal };
        let daemon = self.daemon;
        let swapped = self
            .transaction(move |conn| {
                let connection = connections::lock(conn, id)?;
                if connection.state == ConnectionState::Disconnected {
                    return Ok(Swap::Overtaken);
                }
                let from = RefreshAttempt {
                    connection: id,
                    grant_id: grant,
                    generation: generation - 1,
                    daemon,
                    started_at: renewal.issued_at,
                };
                let swapped = swap(conn, &connection, &from, &renewal)?;
                if matches!(swapped, Swap::Done | Swap::Doubtful) {
                    refresh_attempts::settle(conn, id, grant, generation - 1)?;
                    note(conn, &from, "replay", swapped.word(), None, daemon)?;
                }
                Ok(swapped)
            })
            .await?;
        if matches!(swapped, Swap::Done | Swap::Doubtful) {
            info!(
                connection.id = id.0,
                connection.name = connection.name,
                token.generation = generation,
                "A reply of {} that was kept for `{}` is written down",
                provider.spec().title,
                connection.name
            );
        }
        Ok(true)
    }

    /// Does what needs providers: goes on with grants that the database has lost again, and concludes consents that were
    /// interrupted. Begins nothing any more once the daemon stops.
    pub async fn follow_up(&self, left: Left) {
        let ahead = left.ahead.into_iter().map(|(id, name)| async move {
            if self.is_closing() {
                return;
            }
            // What it comes to is written down and logged where it happens.
            let refreshed = self.refresh(id, Why::Asked).await;
            if !matches!(refreshed, Ok(Refreshed::Busy { .. } | Refreshed::Later { .. })) {
                self.spills.set_offered(name);
            }
        });
        stream::iter(ahead).buffer_unordered(AT_ONCE).collect::<()>().await;
        let consents = left.consents.into_iter().map(|(name, granted, consent)| {
            let auth = self.clone();
            async move {
                if auth.is_closing() {
                    return Ok(());
                }
                let concluding = auth.clone();
                let concluded = async move {
                    match consent {
                        Consent::Interrupted(redeemed) => {
                            concluding.conclude_kept(name, &granted, &redeemed).await
                        }
                        Consent::Unknown { instead_of } => concluding.adopt(name, &granted, instead_of).await,
                    }
                };
                auth.detached(concluded).await
            }
        });
        let ended = stream::iter(consents).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
        for failure in ended.into_iter().filter_map(Result::err) {
            warn!(failure.kind = failure.kind.label(), error = %failure, "What is kept of a consent waits: {failure}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::spill::Traded;
    use crate::domain::token::TokenSet;
    use chrono::DateTime;

    #[test]
    fn a_spill_is_compared_with_what_is_on_record() {
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0);
        let on_record = |state: &str, token: Option<(Uuid, i64)>| {
            let mut on_record = OnRecord::example(7, state, token);
            on_record.issued_at = token.and(at(-5));
            on_record
        };
        let gone = |seconds: i64| {
            let mut gone = on_record("disconnected", None);
            gone.disconnected_at = at(seconds);
            gone
        };
        let ours_5 = Some((ours, 5));
        // `begun`: when the refresh began that the reply is of, by the database's clock.
        for (generation, begun, on_record, expected) in [
            (4, None, Some(on_record("connected", ours_5)), Fate::Known),
            (5, None, Some(on_record("connected", ours_5)), Fate::Known),
            (6, None, Some(on_record("connected", ours_5)), Fate::Next),
            (6, None, Some(on_record("needs_reauth", ours_5)), Fate::Next),
            (7, None, Some(on_record("connected", ours_5)), Fate::Ahead),
            (6, None, Some(on_record("connected", Some((other, 5)))), Fate::OtherGrant),
            (1, None, Some(on_record("awaiting_consent", None)), Fate::OtherGrant),
            (6, None, Some(on_record("disconnected", None)), Fate::Ended),
            (6, None, Some(on_record("disconnected", ours_5)), Fate::Ended),
            (6, None, Some(gone(1)), Fate::Ended),
            (6, None, Some(gone(-1)), Fate::OtherGrant),
            (6, at(-2), Some(gone(-1)), Fate::Ended),
            (6, at(-1), Some(gone(-2)), Fate::OtherGrant),
            (6, None, None, Fate::Unknown),
        ] {
            let name = Name { connection: ConnectionId(7), grant: ours, generation, copy: 0 };
            let tokens = TokenSet {
                access_token: "AT".into(),
                refresh_token: None,
                expires_in: None,
                scopes: Vec::new(),
            };
            let (extra, sent_at) = (serde_json::Value::Null, at(0).expect("a time in this century"));
            let from = begun.map(|begun_at| Traded { generation: 5, issued_at: sent_at, begun_at });
            let kept = Kept { granted: Granted { tokens, extra, claims: None, sent_at }, from };
            assert_eq!(fate(name, &kept, on_record.as_ref()), expected, "{generation} {on_record:?}");
        }
    }
}
