//! Holds the mirror against all that was ever true. The rules are in the module's own description.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};
use fieldmirror::db::DbError;
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::spec::StreamSpec;
use fieldmirror::providers;
use serde_json::Value;

use super::columns;
use super::worlds::{Key, Real, Standing, Truth, World};

/// More than these are not told.
const TOLD_MAX: usize = 12;

/// A version of a record, from when on it was true.
#[derive(Debug, Clone)]
struct Version {
    since: DateTime<Utc>,
    real: Real,
    /// Its change marker tells that it came about.
    marked: bool,
}

/// All versions of a record.
type Track = Vec<Version>;

/// What a row of the mirror says, as versions of its record that it may be.
#[derive(Debug, Clone)]
struct Held {
    oldest: usize,
    newest: usize,
    /// The newest version that each part of what it shows of others may be of. `None`: of a row that is called gone
    /// nothing is demanded.
    ties: Option<Vec<usize>>,
    gone: bool,
    gone_at: Option<i64>,
    merged_into: Option<String>,
    /// It lacks fields that were not known of when it was asked for: it reaches no version.
    partial: bool,
}

#[derive(Debug, QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    raw: String,
    #[diesel(sql_type = Bool)]
    gone: bool,
    #[diesel(sql_type = Text)]
    evidence: String,
    #[diesel(sql_type = Timestamptz)]
    synced_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    deleted_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Text>)]
    merged_into: Option<String>,
    /// All columns but the large ones.
    #[diesel(sql_type = Text)]
    cells: String,
}

/// How a stream stands.
#[derive(Debug, QueryableByName)]
pub struct Stands {
    #[diesel(sql_type = Text)]
    pub stream: String,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub complete_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub swept_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    pub rows: i64,
    #[diesel(sql_type = BigInt)]
    pub deleted_rows: i64,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
}

/// What of the mirror has changed since the last look, and how its streams stand.
pub struct Look {
    rows: Vec<(&'static str, Vec<Row>)>,
    counts: BTreeMap<&'static str, i64>,
    pub stands: Vec<Stands>,
    /// See [`Oracle::run`].
    run: i64,
    /// All rows of the mirror are in it.
    whole: bool,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    value: i64,
}

pub struct Oracle {
    provider: &'static str,
    /// By how much our clock is ahead of the provider's, at the most.
    skew: TimeDelta,
    tracks: BTreeMap<Key, Track>,
    truth: Truth,
    held: BTreeMap<Key, Held>,
    /// The first run that may write rows, or may have written them since the last look.
    run: i64,
    /// The highest each watermark has been.
    highest: BTreeMap<(String, &'static str), DateTime<Utc>>,
    pub checks: usize,
    pub rows_seen: usize,
    found: Vec<String>,
}

impl Oracle {
    pub fn new(provider: &'static str, skew: TimeDelta) -> Self {
        Self {
            provider,
            skew,
            tracks: BTreeMap::new(),
            truth: Truth::new(),
            held: BTreeMap::new(),
            run: 0,
            highest: BTreeMap::new(),
            checks: 0,
            rows_seen: 0,
            found: Vec::new(),
        }
    }

    /// What is wrong, if anything is.
    pub fn found(&self) -> &[String] {
        &self.found
    }

    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    fn wrong(&mut self, what: String) {
        if self.found.len() < TOLD_MAX {
            self.found.push(what);
        }
    }

    fn wrongs(&mut self, found: Vec<String>) {
        for what in found {
            self.wrong(what);
        }
    }

    /// The next look is at all rows again, whenever they were written.
    pub fn look_at_all(&mut self) {
        self.run = 0;
    }

    /// Something may have happened at the provider, by its clock just now.
    pub fn note(&mut self, world: &dyn World, truth: Truth, now: DateTime<Utc>) {
        let unit = world.marker_unit();
        for (key, before) in &self.truth {
            if !truth.contains_key(key) && before.standing != Standing::Gone {
                let real = Real { standing: Standing::Gone, ..before.clone() };
                let track = self.tracks.get_mut(key).expect("what was true has a track");
                track.push(Version { since: now, real, marked: false });
            }
        }
        for (key, real) in &truth {
            if self.truth.get(key) == Some(real) {
                continue;
            }
            let track = self.tracks.entry(key.clone()).or_default();
            let before = track.last().and_then(|version| version.real.marker);
            let moved = real.marker.is_some() && real.marker != before;
            let just_now = real.marker.is_some_and(|marker| now.timestamp_micros() - marker < unit);
            track.push(Version { since: now, real: real.clone(), marked: moved || just_now });
        }
        let lost: Vec<_> = self.truth.iter().filter(|(key, _)| !truth.contains_key(*key)).collect();
        let lost = lost
            .into_iter()
            .map(|(key, real)| (key.clone(), Real { standing: Standing::Gone, ..real.clone() }));
        let lost: Truth = lost.collect();
        self.truth = truth;
        self.truth.extend(lost);
    }

    /// What [`Self::check`] needs of the database, as of one moment.
    pub fn look(
        &self,
        of: ConnectionId,
    ) -> impl FnOnce(&mut PgConnection) -> Result<Look, DbError> + Send + use<> {
        let (run, provider) = (self.run, self.provider);
        move |connection| {
            connection.build_transaction().repeatable_read().run(|connection| {
                let spec = providers::provider(provider).expect("a provider of ours").spec();
                let mut look = Look {
                    rows: Vec::new(),
                    counts: BTreeMap::new(),
                    stands: Vec::new(),
                    run: 0,
                    whole: run == 0,
                };
                for stream in spec.streams {
                    look.rows.push((stream.name, rows(connection, stream, of, run)?));
                    let count = format!(
                        "SELECT count(*) AS value FROM mirror.{} WHERE connection_id = $1",
                        stream.table
                    );
                    let count = diesel::sql_query(count).bind::<BigInt, _>(of.0);
                    let count: Count = count.get_result(connection)?;
                    look.counts.insert(stream.name, count.value);
                }
                look.stands = diesel::sql_query(
                    "SELECT stream, state, complete_to, swept_to, rows, deleted_rows, last_error
                     FROM fieldmirror.stream_state WHERE connection_id = $1 ORDER BY stream",
                )
                .bind::<BigInt, _>(of.0)
                .load(connection)?;
                let run: Count = diesel::sql_query(
                    "SELECT coalesce(min(id) FILTER (WHERE ended_at IS NULL), max(id) + 1, 0) AS value
                     FROM fieldmirror.sync_runs WHERE connection_id = $1",
                )
                .bind::<BigInt, _>(of.0)
                .get_result(connection)?;
                look.run = run.value;
                Ok(look)
            })
        }
    }

    /// Holds what was seen of the mirror against what is true by the provider's clock at `now`.
    pub fn check(&mut self, world: &dyn World, look: Look, now: DateTime<Utc>) {
        self.checks += 1;
        for (stream, rows) in look.rows {
            let seen: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
            for row in rows {
                self.rows_seen += 1;
                self.row(world, stream, row, now);
            }
            let held = || self.held.keys().filter(|key| key.0 == stream);
            let removed = held().find(|key| look.whole && !seen.contains(&key.1));
            let count = i64::try_from(held().count()).expect("few rows");
            let wrong = removed.map(|key| format!("{key:?} was in the mirror, and is no more"));
            let known = look.counts[stream];
            let wrong = wrong.or_else(|| {
                (count != known).then(|| format!("`{stream}` has {known} rows, and had {count}"))
            });
            self.wrongs(wrong.into_iter().collect());
        }
        self.run = look.run;
        for stands in &look.stands {
            let Some((stream, count)) = look.counts.iter().find(|(stream, _)| **stream == stands.stream)
            else {
                continue;
            };
            if *count != stands.rows + stands.deleted_rows {
                let (rows, deleted) = (stands.rows, stands.deleted_rows);
                self.wrong(format!("`{stream}` has {count} rows, and {rows} + {deleted} are told"));
            }
            self.watermark(stands, "complete_to", stands.complete_to);
            self.watermark(stands, "swept_to", stands.swept_to);
            self.owed(world, stream, stands);
        }
    }

    /// A watermark never goes back.
    fn watermark(&mut self, stands: &Stands, which: &'static str, at: Option<DateTime<Utc>>) {
        let key = (stands.stream.clone(), which);
        let before = self.highest.get(&key).copied();
        if before.is_some() && at < before {
            self.wrong(format!("`{}`: `{which}` went back from {before:?} to {at:?}", stands.stream));
        }
        if let Some(at) = at {
            self.highest.insert(key, at);
        }
    }

    /// A row that was written.
    fn row(&mut self, world: &dyn World, stream: &'static str, row: Row, now: DateTime<Utc>) {
        let key = (stream, row.id.clone());
        let before = self.held.get(&key);
        let Some(track) = self.tracks.get(&key) else {
            return self.wrong(format!("{key:?} is in the mirror, and was never at the provider"));
        };
        let held = match held(world, self.provider, stream, track, &row) {
            Ok(held) => held,
            Err(what) => return self.wrong(format!("{key:?} {what}")),
        };
        // The evidence is of this moment or later.
        let asked_at = row.synced_at - self.skew;
        let stood = |wanted: fn(Standing) -> bool| stood(track, wanted, asked_at, now);
        let mut wrong = Vec::new();
        if before.is_some_and(|before| held.newest < before.oldest) {
            wrong.push(format!("{key:?} has become older: {before:?}, and now {held:?}"));
        }
        let was_gone = before.is_some_and(|before| before.gone);
        if held.gone && !was_gone && !stood(|of| of == Standing::Gone) {
            wrong.push(format!("{key:?} is called gone ({}), and lived since {asked_at}", row.evidence));
        }
        if !held.gone && before.is_none_or(|before| before.gone) && !stood(|of| of != Standing::Gone) {
            wrong.push(format!("{key:?} is called alive, and was gone since {asked_at}"));
        }
        self.wrongs(wrong);
        self.held.insert(key, held);
    }

    /// What the watermarks of a stream promise.
    fn owed(&mut self, world: &dyn World, stream: &'static str, stands: &Stands) {
        let complete_to = stands.complete_to.map(|at| at.timestamp_micros());
        let swept_to = stands.swept_to.map(|at| at - self.skew);
        let mut wrong = Vec::new();
        for (key, track) in
            self.tracks.range((stream, String::new())..).take_while(|(key, _)| key.0 == stream)
        {
            let held = self.held.get(key);
            let last = track.last().expect("a track has a version");
            let told = newest_told(track)
                .filter(|_| last.real.standing == Standing::Alive || world.marks_deletions());
            if let (Some(to), Some((index, marker))) = (complete_to, told)
                && marker <= to
            {
                let wants_gone = last.real.standing == Standing::Gone;
                match held {
                    None => wrong.push(format!(
                        "{key:?} is lost: changed at {}, and `{stream}` is complete to {:?}",
                        at(marker),
                        stands.complete_to
                    )),
                    Some(held) if held.partial || reaches(track, held) < index => wrong.push(format!(
                        "{key:?} is stale: changed at {} (version {index}), `{stream}` is complete to {:?}, and it is {held:?}",
                        at(marker),
                        stands.complete_to
                    )),
                    Some(held) if held.gone != wants_gone => wrong.push(format!(
                        "{key:?} is {:?} since {}, `{stream}` is complete to {:?}, and it is {held:?}",
                        last.real.standing,
                        at(marker),
                        stands.complete_to
                    )),
                    Some(_) => {}
                }
            }
            let gone_since = gone_since(track);
            if let (Some(to), Some(since), Some(held)) = (swept_to, gone_since, held)
                && since <= to
                && !held.gone
            {
                wrong.push(format!(
                    "{key:?} is gone since {since}, `{stream}` is swept to {to}, and it lives"
                ));
            }
        }
        self.wrongs(wrong);
    }

    /// Nothing happens any more and everything has been read: now it has to be the same.
    pub fn same(&mut self) {
        let mut wrong = Vec::new();
        for (key, real) in &self.truth {
            let track = &self.tracks[key];
            let last = track.len() - 1;
            match (self.held.get(key), real.standing) {
                (None, Standing::Alive) => wrong.push(format!("{key:?} is not in the mirror")),
                (Some(held), Standing::Alive) if held.gone || held.partial || reaches(track, held) < last => {
                    wrong.push(format!("{key:?}, version {last}, is in the mirror as {held:?}"));
                }
                (Some(held), Standing::Gone) if !held.gone => {
                    wrong.push(format!("{key:?} is gone, and in the mirror as {held:?}"));
                }
                (Some(held), Standing::Gone) => wrong.extend(self.end(key, real, held)),
                _ => {}
            }
        }
        let known: BTreeSet<&Key> = self.truth.keys().collect();
        for key in self.held.keys().filter(|key| !known.contains(key)) {
            wrong.push(format!("{key:?} is in the mirror only"));
        }
        self.wrongs(wrong);
    }

    /// Of a record that is gone: since when, and where it went.
    fn end(&self, key: &Key, real: &Real, held: &Held) -> Option<String> {
        let dated = real.gone_at.zip(held.gone_at).is_none_or(|(real, held)| (real - held).abs() <= 1);
        let lives = |id: &String| {
            self.truth.get(&(key.0, id.clone())).is_some_and(|real| real.standing == Standing::Alive)
        };
        // What became of a record tells the one that it went into, as long as that one can be read.
        let told = held.merged_into.is_some() || !real.merged_into.iter().any(lives);
        let Real { gone_at, merged_into, .. } = real;
        (!dated || !told).then(|| {
            format!("{key:?} is gone since {gone_at:?}, merged into {merged_into:?}, and in the mirror as {held:?}")
        })
    }

    pub fn blame(&mut self, what: String) {
        self.wrong(what);
    }
}

fn rows(
    connection: &mut PgConnection,
    stream: &StreamSpec,
    of: ConnectionId,
    run: i64,
) -> Result<Vec<Row>, diesel::result::Error> {
    let merged_into = if stream.merges { "merged_into" } else { "NULL::text AS merged_into" };
    let sql = format!(
        "SELECT id, raw::text AS raw, deleted_at IS NOT NULL AS gone, coalesce(deleted_evidence, '') AS evidence,
                synced_at, deleted_at, {merged_into}, (to_jsonb(t) - 'raw' - 'content_hash')::text AS cells
         FROM mirror.{} t WHERE connection_id = $1 AND sync_run_id >= $2",
        stream.table
    );
    diesel::sql_query(sql).bind::<BigInt, _>(of.0).bind::<BigInt, _>(run).load(connection)
}

/// What a row says, or what cannot be.
fn held(world: &dyn World, provider: &str, stream: &str, track: &Track, row: &Row) -> Result<Held, String> {
    let spec = providers::provider(provider).and_then(|provider| provider.spec().stream(stream));
    let raw: Value = serde_json::from_str(&row.raw).expect("`raw` is JSON");
    let cells = serde_json::from_str(&row.cells).expect("an object");
    if let Some(wrong) = columns::wrong(spec.expect("a stream of ours"), &raw, &cells) {
        return Err(wrong);
    }
    let [content, ties] = world.split(stream, raw);
    let never = |says: &str, told: &Value, real: fn(&Real) -> &Value| {
        let newest = track.last().map(|version| difference(told, real(&version.real)));
        format!("{says} what was never true: {}", newest.unwrap_or_default())
    };
    let whole = span(track, &content, |real, told| agrees(told, &real.content));
    let (oldest, newest) = whole
        .or_else(|| span(track, &content, |real, told| world.is_part(stream, told, &real.content)))
        .ok_or_else(|| never("says", &content, |real| &real.content))?;
    let shown = shown(track, &ties);
    if shown.is_none() && !row.gone {
        return Err(never("shows of others", &ties, |real| &real.ties));
    }
    if let Some(into) = &row.merged_into
        && !(row.gone && track.iter().any(|version| version.real.merged_into.contains(into)))
    {
        return Err(format!("was never merged into {into}"));
    }
    Ok(Held {
        oldest,
        newest,
        ties: shown.filter(|_| !row.gone),
        gone: row.gone,
        gone_at: row.deleted_at.map(|at| at.timestamp_micros()),
        merged_into: row.merged_into.clone(),
        partial: whole.is_none(),
    })
}

/// The oldest and the newest version that this part of a row may be of.
fn span(track: &Track, told: &Value, agrees: impl Fn(&Real, &Value) -> bool) -> Option<(usize, usize)> {
    let mut fits = (0..track.len()).filter(|at| agrees(&track[*at].real, told));
    let oldest = fits.next()?;
    Some((oldest, fits.next_back().unwrap_or(oldest)))
}

/// What others a record shows, in the parts that are asked for one by one, each at a moment of its own.
fn parts(ties: &Value) -> &[Value] {
    ties.as_array().map_or(std::slice::from_ref(ties), Vec::as_slice)
}

/// The newest version that each part of what a row shows of others may be of.
fn shown(track: &Track, ties: &Value) -> Option<Vec<usize>> {
    let newest = |(part, told): (usize, &Value)| {
        track
            .iter()
            .rposition(|version| parts(&version.real.ties).get(part).is_some_and(|real| agrees(told, real)))
    };
    parts(ties).iter().enumerate().map(newest).collect()
}

/// Whether the record stood so at some moment between the two.
fn stood(track: &Track, wanted: fn(Standing) -> bool, from: DateTime<Utc>, to: DateTime<Utc>) -> bool {
    (0..track.len()).any(|at| {
        let until = track.get(at + 1).map(|next| next.since);
        wanted(track[at].real.standing) && track[at].since <= to && until.is_none_or(|until| until >= from)
    })
}

/// The newest version that the change marker tells, with that marker, if nothing that the marker does not tell has
/// happened to the record's standing since: the index, and the marker as it is now.
fn newest_told(track: &Track) -> Option<(usize, i64)> {
    let told = track.iter().rposition(|version| version.marked)?;
    let standing = track[told].real.standing;
    let undisturbed = track[told..].iter().all(|version| version.real.standing == standing);
    let marker = track[told].real.marker?;
    (undisturbed && standing != Standing::Hidden).then_some((told, marker))
}

/// The newest version that a row says: what came about since may have left the record as it was.
fn reaches(track: &Track, held: &Held) -> usize {
    let ties = held.ties.iter().flatten().enumerate();
    let ties = ties.map(|(part, newest)| reach(track, *newest, |real| parts(&real.ties).get(part)));
    ties.fold(reach(track, held.newest, |real| Some(&real.content)), usize::min)
}

fn reach<'a>(track: &'a Track, from: usize, part: impl Fn(&'a Real) -> Option<&'a Value>) -> usize {
    let same = track[from..].iter().take_while(|version| part(&version.real) == part(&track[from].real));
    from + same.count() - 1
}

/// Since when the record is gone without a break.
fn gone_since(track: &Track) -> Option<DateTime<Utc>> {
    let gone = track.iter().rev().take_while(|version| version.real.standing == Standing::Gone);
    gone.last().map(|version| version.since)
}

fn at(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).map_or_else(String::new, |time| time.to_rfc3339())
}

/// Whether two say the same; numbers in whatever way they are written.
pub(super) fn agrees(told: &Value, real: &Value) -> bool {
    match (told, real) {
        (Value::Object(told), Value::Object(real)) => {
            told.len() == real.len()
                && told.iter().all(|(name, value)| real.get(name).is_some_and(|real| agrees(value, real)))
        }
        (Value::Array(told), Value::Array(real)) => {
            told.len() == real.len() && told.iter().zip(real).all(|(told, real)| agrees(told, real))
        }
        (Value::Number(told), Value::Number(real)) => {
            told.to_string() == real.to_string()
                || told.as_f64().zip(real.as_f64()).is_some_and(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => told == real,
    }
}

/// Where the two part, for people.
fn difference(told: &Value, real: &Value) -> String {
    if let (Value::Object(told), Value::Object(real)) = (told, real) {
        for name in told.keys().chain(real.keys()) {
            let (told, real) = (told.get(name), real.get(name));
            if !told.zip(real).is_some_and(|(told, real)| agrees(told, real)) {
                let [told, real] =
                    [told, real].map(|value| value.cloned().unwrap_or_else(|| "nothing".into()));
                return format!("/{name}{}", difference(&told, &real));
            }
        }
    }
    let cut = |value: &Value| value.to_string().chars().take(200).collect::<String>();
    format!(": {}, and it is {}", cut(told), cut(real))
}
