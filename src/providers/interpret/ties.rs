//! Records that share a place in a list's order. Where a page ends among such, a provider may put them in another order for
//! the next one, and show some twice and others never. So the pages that hold them are read until each has been seen: as
//! many as they have places, which stay, whoever stands on them.

use std::collections::BTreeSet;

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::At;
use crate::domain::record::Record;
use crate::domain::spec::{Changes, ListSpec, Mode, Paging};
use crate::domain::step::StepContext;
use crate::domain::values;

/// Looks at the pages of one tie. Each shows about two thirds of what is left, however many there are.
const LOOKS_MAX: u32 = 40;
/// Records that may tie; their ids are kept with the walk's position.
const TIED_MAX: u64 = 20_000;

/// Records in a row with the same key, up to the end of what was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tie {
    /// None: they have no key.
    key: Option<String>,
    /// The page on which they begin, and how many records had been shown before it.
    page: u64,
    shown: Option<u64>,
    /// What the pass had to come to before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    /// How many places they have taken in this look, and who stood there.
    places: u64,
    ids: BTreeSet<u64>,
    /// The same of earlier looks.
    before: Option<(u64, BTreeSet<u64>)>,
}

impl Tie {
    fn new(key: Option<String>, here: &At) -> Self {
        let page = here.page.max(1);
        let shown = if page == 1 { Some(0) } else { here.shown };
        let expected = here.tally.as_ref().map(|tally| tally.expected);
        Self { key, page, shown, expected, places: 0, ids: BTreeSet::new(), before: None }
    }

    /// The page, and how many records had been shown before it.
    pub(super) fn begins(&self) -> (u64, Option<u64>) {
        (self.page, self.shown)
    }

    /// What the pass has to come to where its pages are about to be read once more: what is new on them counts once.
    pub(super) fn expected_again(&self) -> Option<u64> {
        self.expected.filter(|_| self.places == 0)
    }

    fn add(&mut self, id: &str) {
        self.places += 1;
        self.ids.insert(digest(id));
    }

    /// Of how many nobody has seen who they are. What has left the tie between two looks counts in neither.
    fn unseen(&self) -> u64 {
        let seen = match &self.before {
            Some((places, ids)) if *places == self.places => ids.union(&self.ids).count(),
            _ => self.ids.len(),
        };
        self.places.saturating_sub(u64::try_from(seen).unwrap_or(u64::MAX))
    }

    /// Before another look.
    fn again(self) -> Self {
        let ids = match self.before {
            Some((places, ids)) if places == self.places => ids.union(&self.ids).copied().collect(),
            _ => self.ids,
        };
        Self { before: Some((self.places, ids)), places: 0, ids: BTreeSet::new(), ..self }
    }
}

/// Six bytes: they are short as a number of JSON, and collide in one of millions of ties.
fn digest(id: &str) -> u64 {
    Sha256::digest(id).iter().take(6).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// By what the list is ordered, where records may share it. Of lists that do not count their records nothing is known.
fn key(cx: &StepContext<'_>, list: &ListSpec) -> Option<&'static str> {
    let Paging::Numbered { total, .. } = list.paging else { return None };
    let by = match list.changes {
        Changes::NewestFirst { .. } if cx.walk.mode == Mode::Incremental => Some(cx.stream.updated_at),
        Changes::Window { .. } | Changes::NewestFirst { full_is_unique: true, .. } => None,
        Changes::NewestFirst { .. } | Changes::None => Some(cx.stream.created_at),
    };
    by.filter(|by| !by.is_empty() && !total.is_empty())
}

/// Follows the tie at the end of a page to where it ends, and goes back to where it begins if some of it is unseen. Says why
/// if that is not to be had.
pub(super) fn follow(
    cx: &StepContext<'_>,
    list: &ListSpec,
    here: &At,
    records: &[Record],
    next: &mut At,
) -> Option<String> {
    let by = key(cx, list)?;
    let of = |record: &Record| values::at(&record.raw, by).filter(|key| !key.is_null()).map(place);
    // One that is not where it was begins on a later page.
    let mut tie =
        here.tie.clone().filter(|tie| tie.places > 0 || records.iter().any(|record| of(record) == tie.key));
    let mut why = None;
    for record in records {
        let key = of(record);
        let mut open = match tie.take() {
            Some(open) if open.key == key => open,
            Some(open) if open.places == 0 => {
                tie = Some(open);
                continue;
            }
            Some(open) => {
                if close(cx, open, next, &mut why) {
                    return why;
                }
                Tie::new(key, here)
            }
            None => Tie::new(key, here),
        };
        open.add(&record.id);
        tie = Some(open);
    }
    match tie.take() {
        Some(open) if next.ended => {
            close(cx, open, next, &mut why);
        }
        Some(open) if open.places > TIED_MAX => why = Some(too_many(cx)),
        open => next.tie = open,
    }
    why
}

/// Goes back to a tie that ended with the page before one that lies whole below the bound, if some of it is unseen. What
/// lies below the bound itself is nobody's loss.
pub(super) fn leave(cx: &StepContext<'_>, here: &At, next: &mut At) -> Option<String> {
    let tie = here.tie.clone().filter(|tie| tie.places > 0)?;
    let moment = DateTime::parse_from_rfc3339(tie.key.as_deref()?).ok()?;
    let mut why = None;
    if cx.walk.from.is_some_and(|bound| bound <= moment) {
        close(cx, tie, next, &mut why);
    }
    why
}

/// The place in the order that a key gives: a list may write the same time in several ways.
fn place(key: &Value) -> String {
    values::timestamp(key).map_or_else(|| key.to_string(), |time| time.to_rfc3339())
}

/// Whether the walk goes back.
fn close(cx: &StepContext<'_>, tie: Tie, next: &mut At, why: &mut Option<String>) -> bool {
    let unseen = tie.unseen();
    if unseen == 0 {
        next.looks = 0;
        return false;
    }
    if next.looks + 1 >= LOOKS_MAX {
        next.looks = 0;
        *why = Some(never_seen(cx, unseen));
        return false;
    }
    *next = At {
        page: tie.page,
        shown: tie.shown,
        looks: next.looks + 1,
        tie: Some(tie.again()),
        seen: None,
        newest: None,
        ended: false,
        ..std::mem::take(next)
    };
    true
}

fn never_seen(cx: &StepContext<'_>, unseen: u64) -> String {
    format!(
        "`{}` shows records of the same time in another order at every look, and {unseen} of them not once in \
         {LOOKS_MAX} looks",
        cx.stream.name
    )
}

fn too_many(cx: &StepContext<'_>) -> String {
    format!(
        "more than {TIED_MAX} records of `{}` have the same time: not all may have been shown",
        cx.stream.name
    )
}
