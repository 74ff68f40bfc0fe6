//! What becomes of rows that a walk over everything has not met. A list that moves while it is read may have hidden them,
//! and one that is short may have been empty by mistake, so each is asked for by its id where that can be done.
//!
//! A row counts as gone when the provider says so; in a stream that has no way to ask, when a second reading lacks it as
//! well. Where a row cannot be asked for, or the answer proves nothing, it stays, does not count for the brake, and the
//! walk ends as a partial one. What the settings leave out of the walk stays as well, and the walk closes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::commit::{Ready, Source};
use super::drive::{Drive, Open, halt};
use super::probe::{Probed, asks_by_id, probe};
use super::send::{Halt, Tally};
use super::watermark;
use crate::db::streams::StreamWrite;
use crate::db::sync_runs::Counts;
use crate::db::{DbError, PgConnection, mirror, streams, turns};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::record::{Deletion, Tombstone};
use crate::domain::spec::Mode;
use crate::domain::step::{Page, Position, Presence, StepContext};

/// Places that one reason names.
const PLACES_NAMED_MAX: usize = 5;

/// Why a walk begins again whose unmet rows nobody can be asked about. What it has met stays met.
pub(super) const LOOKS_AGAIN: &str = "rows that it has not met are looked for once more";

/// What is known of the rows that a walk has not met.
#[derive(Default)]
pub(super) struct Confirmed {
    /// The ids that a snapshot has met by now.
    pub met: Vec<String>,
    /// Why that does not prove what is gone, if so.
    pub unproven: Option<String>,
}

impl Drive<'_> {
    /// Counts rows as met that the settings leave out of the walk.
    pub(super) async fn spare(
        &self,
        open: &Open,
        mut met: Vec<String>,
        tally: &Tally,
        counts: &mut Counts,
    ) -> Result<Vec<String>, Halt> {
        let (source, cx, provider) = (open.source, self.context(open), self.sender.provider);
        let whole = source.mode == Mode::Snapshot || source.sweeping;
        let Some(left) = provider.left_alone(&cx).filter(|_| whole) else { return Ok(met) };
        let unknown = !asks_by_id(provider, &cx);
        let (spec, of) = (source.spec, source.key.connection);
        let ids = self.db.run(move |connection| {
            mirror::living_at(connection, spec, of, left.column, &left.places, unknown)
        });
        let ids = ids.await.map_err(halt)?;
        if source.mode == Mode::Snapshot {
            met.extend(ids);
        } else if !ids.is_empty() {
            let page = Page { met: ids, ..Page::default() };
            self.write_aside(source, Ready::of(spec, page), tally, counts).await?;
        }
        Ok(met)
    }

    /// Looks once more for what a walk over everything has not met.
    pub(super) async fn confirm(
        &self,
        open: &Open,
        met: Vec<String>,
        tally: &Tally,
        counts: &mut Counts,
    ) -> Result<Confirmed, Halt> {
        let source = open.source;
        let asks = asks_by_id(self.sender.provider, &self.context(open));
        if !(source.mode == Mode::Snapshot || source.sweeping) {
            return Ok(Confirmed { met, unproven: None });
        }
        let (started_at, known) = (open.walk.started_at, met.clone());
        let unmet = self.db.run(move |connection| unmet(connection, &source, &known, started_at)).await;
        let unmet = unmet.map_err(halt)?;
        if asks {
            return self.ask_for_all(open, met, unmet, tally, counts).await;
        }
        if unmet.is_empty() {
            return Ok(Confirmed { met, unproven: None });
        }
        self.brake(open, unmet.len()).await?;
        if source.sweeping {
            if !open.looks_again {
                return Err(Halt::Restart(LOOKS_AGAIN.to_owned()));
            }
            return Ok(Confirmed { met, unproven: None });
        }
        let found = self.read_again(open, tally, counts).await?;
        Ok(Confirmed { met: met.into_iter().chain(found).collect(), unproven: None })
    }

    /// Asks for each of these records by its id, unless the brake holds.
    async fn ask_for_all(
        &self,
        open: &Open,
        mut met: Vec<String>,
        unmet: Vec<String>,
        tally: &Tally,
        counts: &mut Counts,
    ) -> Result<Confirmed, Halt> {
        let (source, cx) = (open.source, self.context(open));
        let can_ask = |(place, ids): &(Option<String>, Vec<String>)| {
            self.sender.provider.probe_at(&cx, place.as_deref(), ids).is_some()
        };
        let (to_ask, mut unproven): (Vec<_>, Vec<_>) =
            self.by_place(&cx, &source, unmet).await?.into_iter().partition(can_ask);
        self.brake(open, to_ask.iter().map(|(_, ids)| ids.len()).sum()).await?;
        // The walk may have learned how to ask.
        let known = self.db.run(move |connection| turns::facts(connection, source.key.connection));
        let mut facts = known.await.map_err(halt)?;
        for (place, ids) in to_ask {
            let mut rest = ids.as_slice();
            while !rest.is_empty() {
                let cx = StepContext { facts: &facts, ..cx };
                let asked = probe(self.sender, &cx, place.as_deref(), rest, open.deadline, tally).await?;
                let Some(probed) = asked else { break };
                facts.extend(probed.learned.clone());
                let asked;
                (asked, rest) = rest.split_at(probed.taken);
                let (page, nothing) = shown_page(asked, probed);
                met.extend(page.met.iter().cloned());
                self.write_aside(source, Ready::of(source.spec, page), tally, counts).await?;
                self.leave(source, &nothing).await?;
                unproven.extend((!nothing.is_empty()).then(|| (place.clone(), nothing)));
            }
        }
        if source.sweeping {
            // With those of the walk's earlier turns.
            let left = self.db.run(move |connection| streams::unproven(connection, source.key, source.mode));
            let cannot: Vec<_> = unproven.into_iter().filter(|of| !can_ask(of)).collect();
            unproven = self.by_place(&cx, &source, left.await.map_err(halt)?).await?.into_iter().collect();
            unproven.extend(cannot);
        }
        let unproven = (!unproven.is_empty()).then(|| self.reason(&cx, &unproven));
        Ok(Confirmed { met, unproven })
    }

    /// Notes for the rest of the walk that nothing is proven of these records.
    async fn leave(&self, source: Source, ids: &[String]) -> Result<(), Halt> {
        if ids.is_empty() || !source.sweeping {
            return Ok(());
        }
        let ids = ids.to_vec();
        let left = self.db.transaction(move |connection| {
            let owned = streams::lock(connection, source.key)?;
            if owned == StreamWrite::Done {
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                streams::leave(connection, source.key, source.mode, &ids)?;
            }
            Ok(owned)
        });
        if left.await.map_err(halt)? == StreamWrite::Lost { Err(Halt::Lost) } else { Ok(()) }
    }

    /// Why these rows, by their places, are neither there nor gone.
    fn reason(&self, cx: &StepContext<'_>, unproven: &[(Option<String>, Vec<String>)]) -> String {
        let column = self.sender.provider.place_column(cx).unwrap_or_default();
        let (mut parts, mut silent, mut all) = (Vec::new(), 0, 0);
        for (place, ids) in unproven {
            all += ids.len();
            let can_ask = self.sender.provider.probe_at(cx, place.as_deref(), ids).is_some();
            match place {
                _ if can_ask => silent += ids.len(),
                Some(place) => parts.push(format!("{} have `{place}` as their `{column}`", ids.len())),
                None => parts.push(format!("{} have no `{column}`", ids.len())),
            }
        }
        if parts.len() > PLACES_NAMED_MAX {
            let more = parts.split_off(PLACES_NAMED_MAX).len();
            parts.push(format!("and so on for {more} more"));
        }
        if !parts.is_empty() {
            parts[0].insert_str(0, "nothing can be asked about where they are: ");
        }
        if silent > 0 {
            parts.push(format!("the answers to questions for {silent} by their ids prove nothing"));
        }
        format!(
            "{all} rows of `{}` are no longer listed and not proven to be gone, so they stay: {}",
            cx.stream.name,
            parts.join(", ")
        )
    }

    /// The ids by where their rows are, for requests that have to say it.
    async fn by_place(
        &self,
        cx: &StepContext<'_>,
        source: &Source,
        ids: Vec<String>,
    ) -> Result<BTreeMap<Option<String>, Vec<String>>, Halt> {
        let mut by_place: BTreeMap<Option<String>, Vec<String>> = BTreeMap::new();
        if ids.is_empty() {
            return Ok(by_place);
        }
        let Some(column) = self.sender.provider.place_column(cx) else {
            return Ok(BTreeMap::from([(None, ids)]));
        };
        let (spec, of, asked) = (source.spec, source.key.connection, ids.clone());
        let places = self.db.run(move |connection| mirror::places(connection, spec, of, column, &asked));
        let mut places = places.await.map_err(halt)?;
        for id in ids {
            by_place.entry(places.remove(&id).flatten()).or_default().push(id);
        }
        Ok(by_place)
    }

    /// Reads a short list once more, and returns the ids that it shows.
    async fn read_again(&self, open: &Open, tally: &Tally, counts: &mut Counts) -> Result<Vec<String>, Halt> {
        let fetched = self.fetch_aside(open, Position::start(), tally, counts).await?;
        match fetched.lost {
            Some(why) => Err(Halt::Failed(Failure::transient(why))),
            None => Ok(fetched.met),
        }
    }

    /// Stops before so many rows are marked as gone that a person has to agree.
    async fn brake(&self, open: &Open, gone: usize) -> Result<(), Halt> {
        let (source, allowed) = (open.source, open.mass_delete_allowed);
        let holds = self.db.run(move |connection| brake(connection, &source, gone, allowed));
        holds.await.map_err(halt)?.map_or(Ok(()), |holds| Err(Halt::Failed(holds)))
    }
}

/// Rows that a walk which reads everything has not met.
pub(super) fn unmet(
    connection: &mut PgConnection,
    source: &Source,
    met: &[String],
    started_at: DateTime<Utc>,
) -> Result<Vec<String>, DbError> {
    let (spec, of) = (source.spec, source.key.connection);
    match source.mode {
        Mode::Snapshot => mirror::living_but(connection, spec, of, met, started_at),
        mode if source.sweeping => mirror::living_unmet(connection, spec, of, mode, started_at),
        _ => Ok(Vec::new()),
    }
}

/// Why so many rows are not marked as gone, if the brake holds.
pub(super) fn brake(
    connection: &mut PgConnection,
    source: &Source,
    gone: usize,
    allowed: bool,
) -> Result<Option<Failure>, DbError> {
    if gone == 0 || allowed {
        return Ok(None);
    }
    let living = mirror::living(connection, source.spec, source.key.connection)?;
    let living = usize::try_from(living).unwrap_or(0);
    Ok((!watermark::brake_lets_pass(gone, living)).then(|| brake_holds(source, gone, living)))
}

pub(super) fn brake_holds(source: &Source, gone: usize, living: usize) -> Failure {
    Failure::new(
        FailureKind::Held,
        format!(
            "{gone} of {living} rows of `{}` are no longer listed; nothing was marked as gone. If that is right, run \
             `fieldmirror enqueue --resync {} --stream {} --full --allow-mass-delete`",
            source.spec.name, source.key.connection, source.spec.name
        ),
    )
}

/// What probes have shown, as a page, and the ids of which nothing is proven.
fn shown_page(ids: &[String], probed: Probed) -> (Page, Vec<String>) {
    let Probed { shown, sent_at, learned, .. } = probed;
    let (mut page, mut nothing) = (Page { facts: learned, ..Page::default() }, Vec::new());
    for (id, presence) in ids.iter().zip(shown) {
        match presence {
            Presence::Gone { evidence } => page.tombstones.push(Tombstone {
                id: id.clone(),
                deletion: Deletion { at: sent_at, told: false, evidence },
                merged_into: None,
                sent_at,
            }),
            Presence::Here(record) => {
                page.met.push(id.clone());
                page.records.extend(record.map(|record| *record));
            }
            Presence::Unknown => nothing.push(id.clone()),
        }
    }
    (page, nothing)
}
