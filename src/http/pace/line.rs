//! Those who asked for more than there was, in the order in which they came. Whoever comes later leaves them what they
//! wait for: cheap requests that come often do not starve a dear one, however soon a turn ends.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::time::delta;

/// How much longer than it has to wait somebody's place is kept: who does not come back holds nobody up for long.
pub(super) const KEPT: Duration = Duration::from_mins(1);
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
pub(super) struct Line(pub(super) Vec<Place>);

impl Line {
    /// Drops places that nobody has come back to.
    pub(super) fn forget(&mut self, now: DateTime<Utc>) {
        self.0.retain(|place| place.kept_until > now);
    }

    /// What those ahead of `of` are to take from `bucket`: the points of each. Who has no name is behind everybody.
    pub(super) fn ahead<'a>(
        &'a self,
        of: Option<&'a str>,
        bucket: &'a str,
    ) -> impl Iterator<Item = u32> + 'a {
        let ahead = self.0.iter().take_while(move |place| of != Some(place.of.as_str()));
        ahead.filter(move |place| place.buckets.iter().any(|name| name == bucket)).map(|place| place.points)
    }

    /// `of` has to wait for so long: it keeps its place, or gets the last one.
    pub(super) fn wait(&mut self, place: Place, wait: Duration) {
        let place = Place { kept_until: place.kept_until + delta(wait.saturating_add(KEPT)), ..place };
        if let Some(known) = self.0.iter_mut().find(|known| known.of == place.of) {
            *known = place;
        } else if self.0.len() < PLACES_MAX {
            self.0.push(place);
        }
    }

    pub(super) fn leave(&mut self, of: &str) {
        self.0.retain(|place| place.of != of);
    }

    pub(super) fn move_back(&mut self, by: TimeDelta) {
        for place in &mut self.0 {
            place.kept_until = place.kept_until.checked_sub_signed(by).unwrap_or(DateTime::<Utc>::MIN_UTC);
        }
    }
}
