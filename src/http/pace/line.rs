//! Those who asked for more than there was, in the order in which they came. Whoever comes later leaves them what they
//! wait for: cheap requests that come often do not starve a dear one, however soon a turn ends.
//!
//! Who has a place and is not here cannot go, so it holds nobody up where permits do not add up: what it leaves is lost.
//! Points do: they are saved for it, until a little after it can have them.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::time::delta;

/// How much longer than it has to wait somebody's place is kept: who does not come back holds nobody up for long.
pub(super) const KEPT: Duration = Duration::from_mins(1);
/// How much longer than it has to wait points are saved for somebody who is not here: its next turn has begun by then, or
/// turns are long enough to save them up within one.
const SAVED: Duration = Duration::from_secs(5);
/// More do not wait for one account: those who come later have no place.
pub(super) const PLACES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub(super) of: String,
    pub(super) buckets: Vec<String>,
    pub(super) points: u32,
    pub(super) kept_until: DateTime<Utc>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Line {
    pub(super) places: Vec<Place>,
    /// Those who can go as soon as they may.
    here: Vec<String>,
}

impl Line {
    /// Drops places that nobody has come back to.
    pub(super) fn forget(&mut self, now: DateTime<Utc>) {
        self.places.retain(|place| place.kept_until > now);
    }

    /// These are here, and no others.
    pub(super) fn come(&mut self, here: Vec<String>) {
        self.here = here;
    }

    /// `of` can no longer go. It keeps its place if it `waits`.
    pub(super) fn go(&mut self, of: &str, waits: bool) {
        self.here.retain(|known| known != of);
        if !waits {
            self.leave(of);
        }
    }

    /// What those ahead of `of` are to take from `bucket`: the points of each. Who has no name is behind everybody.
    /// `saved_at`: now, where what is left to those who are not here is not lost.
    pub(super) fn ahead<'a>(
        &'a self,
        of: Option<&'a str>,
        bucket: &'a str,
        saved_at: Option<DateTime<Utc>>,
    ) -> impl Iterator<Item = u32> + 'a {
        let ahead = self.places.iter().take_while(move |place| of != Some(place.of.as_str()));
        let counts = move |place: &&Place| {
            place.buckets.iter().any(|name| name == bucket)
                && (self.here.contains(&place.of)
                    || saved_at.is_some_and(|now| place.kept_until + delta(SAVED) > now + delta(KEPT)))
        };
        ahead.filter(counts).map(|place| place.points)
    }

    /// `of` has to wait for so long: it keeps its place, or gets the last one.
    pub(super) fn wait(&mut self, place: Place, wait: Duration) {
        let place = Place { kept_until: place.kept_until + delta(wait.saturating_add(KEPT)), ..place };
        if let Some(known) = self.places.iter_mut().find(|known| known.of == place.of) {
            *known = place;
        } else if self.places.len() < PLACES_MAX {
            self.places.push(place);
        }
    }

    pub(super) fn leave(&mut self, of: &str) {
        self.places.retain(|place| place.of != of);
    }

    pub(super) fn move_back(&mut self, by: TimeDelta) {
        for place in &mut self.places {
            place.kept_until = place.kept_until.checked_sub_signed(by).unwrap_or(DateTime::<Utc>::MIN_UTC);
        }
    }
}
