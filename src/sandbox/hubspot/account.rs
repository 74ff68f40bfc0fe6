//! One HubSpot account: its tickets, what happened to them, and what its lagging search index still believes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use chrono::DateTime;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::properties::{Catalogue, Draft};
use super::reference::PIPELINES;
use super::seed;
use super::ticket::{Link, LinkKind, Making, Standing, Ticket, Version};
use crate::sandbox::world::iso;

/// Values by property name, `None` for null.
pub type Values = BTreeMap<String, Option<String>>;

/// The highest id: search compares ids as JSON's numbers.
const ID_MAX: u64 = 1 << 53;

/// Why a change was not made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChangeError {
    #[error("there is no ticket {0} that this can be done to")]
    NoTicket(u64),
    #[error("the id {0} is not above the ids that there are, or above 2^53")]
    TakenId(u64),
    #[error("there is no property `{0}`")]
    NoProperty(String),
    #[error("the property `{0}` exists or is not named in `[a-z0-9_]`")]
    BadProperty(String),
    #[error("a ticket cannot be merged with itself")]
    Itself,
}

/// A change that the search index has not seen yet.
struct Unseen {
    until_ms: i64,
    before: Option<Arc<Version>>,
}

/// When a change happens, and from when on search knows about it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now_ms: i64,
    pub seen_ms: i64,
}

pub struct Account {
    pub hub_id: u64,
    pub domain: String,
    pub catalogue: Catalogue,
    /// By id, ascending; permanently deleted and merged ones too, for the truth.
    pub tickets: Vec<Ticket>,
    pub archived: BTreeSet<u64>,
    pub next_id: u64,
    pub dice: StdRng,
    unseen: HashMap<u64, VecDeque<Unseen>>,
}

impl Account {
    pub fn new(hub_id: u64, domain: &str) -> Self {
        Self {
            hub_id,
            domain: domain.to_owned(),
            catalogue: Catalogue::new(),
            tickets: Vec::new(),
            archived: BTreeSet::new(),
            next_id: 10_000_000_000,
            dice: StdRng::seed_from_u64(hub_id),
            unseen: HashMap::new(),
        }
    }

    /// Where the ticket is in `tickets`, or where it would be.
    pub fn position(&self, id: u64) -> Result<usize, usize> {
        self.tickets.binary_search_by_key(&id, |ticket| ticket.id)
    }

    pub fn find(&self, id: u64) -> Option<&Ticket> {
        self.position(id).ok().map(|index| &self.tickets[index])
    }

    /// The ticket that an id leads to, through any merges.
    pub fn resolve(&self, id: u64) -> Option<&Ticket> {
        let mut ticket = self.find(id)?;
        // A merge leads to a ticket that is merged later, if at all; there are no circles.
        while let Standing::Merged { into } = ticket.version.standing {
            ticket = self.find(into)?;
        }
        Some(ticket)
    }

    /// What search believes about a ticket at `now_ms`.
    pub fn indexed<'a>(&'a self, ticket: &'a Ticket, now_ms: i64) -> Option<&'a Arc<Version>> {
        let late =
            self.unseen.get(&ticket.id).and_then(|list| list.iter().find(|unseen| unseen.until_ms > now_ms));
        match late {
            Some(unseen) => unseen.before.as_ref(),
            None => Some(&ticket.version),
        }
    }

    fn live(&self, id: u64) -> Result<usize, ChangeError> {
        self.standing(id, |standing| standing == Standing::Live)
    }

    fn standing(&self, id: u64, fits: impl Fn(Standing) -> bool) -> Result<usize, ChangeError> {
        let index = self.position(id).map_err(|_| ChangeError::NoTicket(id))?;
        let fit = fits(self.tickets[index].version.standing);
        if fit { Ok(index) } else { Err(ChangeError::NoTicket(id)) }
    }

    /// Puts a new version in place, and leaves the old one to the search index until it has caught up.
    fn replace(&mut self, index: usize, version: Version, at: Moment) {
        let ticket = &mut self.tickets[index];
        let before = std::mem::replace(&mut ticket.version, Arc::new(version));
        let id = ticket.id;
        match ticket.version.standing {
            Standing::Archived { .. } => self.archived.insert(id),
            _ => self.archived.remove(&id),
        };
        self.hide(id, Some(before), at);
    }

    fn hide(&mut self, id: u64, before: Option<Arc<Version>>, at: Moment) {
        self.unseen.retain(|_, list| {
            list.retain(|unseen| unseen.until_ms > at.now_ms);
            !list.is_empty()
        });
        if at.seen_ms > at.now_ms {
            self.unseen.entry(id).or_default().push_back(Unseen { until_ms: at.seen_ms, before });
        }
    }

    /// Renders a ticket's values with another standing or modified time.
    fn rendered(&self, index: usize, standing: Standing, updated_ms: i64, draft: &mut Draft) -> Version {
        let (id, created_ms) = (self.tickets[index].id, self.tickets[index].version.created_ms);
        let making = Making { hub_id: self.hub_id, id, standing, created_ms, updated_ms, draft };
        Version::render(&self.catalogue, making)
    }

    /// Changes a live ticket's properties; `modified_ms` defaults to now.
    pub fn change(
        &mut self,
        id: u64,
        values: &Values,
        modified_ms: Option<i64>,
        at: Moment,
    ) -> Result<(), ChangeError> {
        let index = self.live(id)?;
        let updated_ms = modified_ms.unwrap_or(at.now_ms);
        let mut draft = self.tickets[index].version.draft(&self.catalogue);
        self.put(&mut draft, values)?;
        self.note_closing(&mut draft, values, updated_ms);
        let version = self.rendered(index, Standing::Live, updated_ms, &mut draft);
        self.replace(index, version, at);
        Ok(())
    }

    fn put(&self, draft: &mut Draft, values: &Values) -> Result<(), ChangeError> {
        for (name, value) in values {
            let index = self.catalogue.index(name).ok_or_else(|| ChangeError::NoProperty(name.clone()))?;
            draft.values[index] = value.clone().map(Cow::Owned);
        }
        Ok(())
    }

    /// Moving into a closed stage sets the close date, moving out of it clears it to the empty text.
    fn note_closing(&self, draft: &mut Draft, values: &Values, updated_ms: i64) {
        if !values.contains_key("hs_pipeline_stage") || values.contains_key("closed_date") {
            return;
        }
        let value = |name| self.catalogue.index(name).and_then(|index| draft.values[index].as_deref());
        let (pipeline, stage) = (value("hs_pipeline"), value("hs_pipeline_stage"));
        let pipeline = PIPELINES.iter().find(|known| Some(known.id) == pipeline);
        let closed = pipeline.and_then(|known| known.stages.iter().find(|known| Some(known.id) == stage));
        let date = if closed.is_some_and(|stage| stage.closed) { iso(updated_ms) } else { String::new() };
        draft.set(&self.catalogue, "closed_date", date);
    }

    /// A new ticket of invented values under the given ones. The id must be above all there are.
    pub fn create(
        &mut self,
        id: Option<u64>,
        values: &Values,
        modified_ms: Option<i64>,
        at: Moment,
    ) -> Result<u64, ChangeError> {
        let id = id.unwrap_or(self.next_id);
        if id < self.next_id || id > ID_MAX {
            return Err(ChangeError::TakenId(id));
        }
        let when = modified_ms.unwrap_or(at.now_ms);
        let mut draft = seed::fresh_draft(&self.catalogue, id, when, &mut self.dice);
        self.put(&mut draft, values)?;
        self.push(id, (when, when), &mut draft, Vec::new(), at);
        Ok(id)
    }

    fn push(&mut self, id: u64, times: (i64, i64), draft: &mut Draft, links: Vec<Link>, at: Moment) {
        let (created_ms, updated_ms) = times;
        let making =
            Making { hub_id: self.hub_id, id, standing: Standing::Live, created_ms, updated_ms, draft };
        let version = Version::render(&self.catalogue, making).into();
        self.tickets.push(Ticket { id, version, links });
        self.next_id = id + 1;
        // Looking for what is to be forgotten would make bulk creation quadratic, so only the entry is made here.
        if at.seen_ms > at.now_ms {
            let unseen = Unseen { until_ms: at.seen_ms, before: None };
            self.unseen.entry(id).or_default().push_back(unseen);
        }
    }

    /// Into the recycle bin. The modified date stays as it is.
    pub fn archive(&mut self, id: u64, at: Moment) -> Result<(), ChangeError> {
        let index = self.live(id)?;
        self.stand(index, Standing::Archived { at_ms: at.now_ms }, at);
        Ok(())
    }

    /// Out of the recycle bin. The modified date stays as it is.
    pub fn restore(&mut self, id: u64, at: Moment) -> Result<(), ChangeError> {
        let index = self.standing(id, |standing| matches!(standing, Standing::Archived { .. }))?;
        self.stand(index, Standing::Live, at);
        Ok(())
    }

    /// For good: neither live nor archived from now on.
    pub fn delete(&mut self, id: u64, at: Moment) -> Result<(), ChangeError> {
        let there = |standing| matches!(standing, Standing::Live | Standing::Archived { .. });
        let index = self.standing(id, there)?;
        self.stand(index, Standing::Deleted, at);
        Ok(())
    }

    fn stand(&mut self, index: usize, standing: Standing, at: Moment) {
        let before = &self.tickets[index].version;
        let (updated_ms, mut draft) = (before.updated_ms, before.draft(&self.catalogue));
        let version = self.rendered(index, standing, updated_ms, &mut draft);
        self.replace(index, version, at);
    }

    /// Merges two live tickets. The survivor is a third one with a new id, or the primary one. Returns its id.
    pub fn merge(&mut self, primary: u64, other: u64, new_id: bool, at: Moment) -> Result<u64, ChangeError> {
        if primary == other {
            return Err(ChangeError::Itself);
        }
        let (first, second) = (self.live(primary)?, self.live(other)?);
        let (one, two) = (&self.tickets[first], &self.tickets[second]);
        let mut links = [one.links.clone(), two.links.clone()].concat();
        links.sort_unstable();
        links.dedup();
        let created_ms = one.version.created_ms.min(two.version.created_ms);
        let mut draft = one.version.draft(&self.catalogue);
        let consumed = self.consumed(first, second, new_id);
        draft.set(&self.catalogue, "hs_merged_object_ids", consumed);
        let survivor = if new_id {
            let id = self.next_id;
            self.push(id, (created_ms, at.now_ms), &mut draft, links, at);
            self.stand(first, Standing::Merged { into: id }, at);
            id
        } else {
            let version = self.rendered(first, Standing::Live, at.now_ms, &mut draft);
            self.replace(first, version, at);
            self.tickets[first].links = links;
            primary
        };
        self.stand(second, Standing::Merged { into: survivor }, at);
        Ok(survivor)
    }

    /// The ids that a merge consumes, with those that earlier merges of the two did.
    fn consumed(&self, first: usize, second: usize, new_id: bool) -> String {
        let index = self.catalogue.index("hs_merged_object_ids").expect("a built-in property");
        let mut ids: BTreeSet<u64> = BTreeSet::from([self.tickets[second].id]);
        if new_id {
            ids.insert(self.tickets[first].id);
        }
        for ticket in [&self.tickets[first], &self.tickets[second]] {
            let earlier = ticket.version.text(index);
            ids.extend(
                earlier.iter().flat_map(|text| text.split(';')).filter_map(|id| id.parse::<u64>().ok()),
            );
        }
        ids.iter().map(u64::to_string).collect::<Vec<_>>().join(";")
    }

    /// Ties a ticket to something. The modified date stays as it is.
    pub fn associate(&mut self, id: u64, link: Link) -> Result<(), ChangeError> {
        let index = self.live(id)?;
        let links = &mut self.tickets[index].links;
        if !links.contains(&link) {
            links.push(link);
            links.sort_unstable();
        }
        Ok(())
    }

    pub fn disassociate(&mut self, id: u64, link: Link) -> Result<(), ChangeError> {
        let index = self.live(id)?;
        self.tickets[index].links.retain(|known| *known != link);
        Ok(())
    }

    /// A new custom property.
    pub fn add_property(&mut self, name: &str, kind: &str, at: Moment) -> Result<(), ChangeError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let created_at = DateTime::from_timestamp_millis(at.now_ms).unwrap_or_default();
        let fits = !name.is_empty() && name.chars().all(plain) && self.catalogue.add(name, kind, created_at);
        if fits { Ok(()) } else { Err(ChangeError::BadProperty(name.to_owned())) }
    }

    /// Links of one kind, ascending by the other id.
    pub fn links(ticket: &Ticket, kind: LinkKind) -> impl Iterator<Item = u64> + '_ {
        ticket.links.iter().filter(move |link| link.kind == kind).map(|link| link.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        let mut account = Account::new(1, "hub.example");
        for _ in 0..4 {
            account.create(None, &Values::new(), Some(1000), seen_at_once(1000)).unwrap();
        }
        account
    }

    fn seen_at_once(now_ms: i64) -> Moment {
        Moment { now_ms, seen_ms: now_ms }
    }

    fn text(account: &Account, id: u64, name: &str) -> Option<String> {
        let version = &account.find(id).unwrap().version;
        version.text(account.catalogue.index(name).unwrap()).map(Cow::into_owned)
    }

    #[test]
    fn archiving_and_restoring_leave_the_modified_date() {
        let mut account = account();
        let id = account.tickets[1].id;
        account.archive(id, seen_at_once(5000)).unwrap();
        let version = &account.find(id).unwrap().version;
        assert_eq!((version.standing, version.updated_ms), (Standing::Archived { at_ms: 5000 }, 1000));
        assert!(account.archived.contains(&id));
        assert_eq!(account.archive(id, seen_at_once(6000)), Err(ChangeError::NoTicket(id)));
        account.restore(id, seen_at_once(7000)).unwrap();
        assert_eq!(account.find(id).unwrap().version.updated_ms, 1000);
        assert!(account.archived.is_empty());
        account.delete(id, seen_at_once(8000)).unwrap();
        assert_eq!(account.restore(id, seen_at_once(9000)), Err(ChangeError::NoTicket(id)));
    }

    #[test]
    fn merges_name_what_they_consumed() {
        let mut account = account();
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| account.tickets[index].id);
        let company = |to| Link { kind: LinkKind::Company, to };
        account.associate(a, company(9)).unwrap();
        account.associate(b, company(8)).unwrap();
        let third = account.merge(a, b, true, seen_at_once(5000)).unwrap();
        assert!(third > d);
        assert_eq!(text(&account, third, "hs_merged_object_ids"), Some(format!("{a};{b}")));
        assert_eq!(account.resolve(a).unwrap().id, third);
        assert_eq!(account.find(third).unwrap().links, [company(8), company(9)]);
        let kept = account.merge(third, c, false, seen_at_once(6000)).unwrap();
        assert_eq!(kept, third);
        assert_eq!(text(&account, third, "hs_merged_object_ids"), Some(format!("{a};{b};{c}")));
        assert_eq!(account.find(third).unwrap().version.updated_ms, 6000);
        assert_eq!(account.merge(d, d, true, seen_at_once(7000)), Err(ChangeError::Itself));
    }

    #[test]
    fn search_believes_the_past_until_it_has_caught_up() {
        let mut account = account();
        let id = account.tickets[0].id;
        let change = |subject: &str| Values::from([("subject".to_owned(), Some(subject.to_owned()))]);
        account.change(id, &change("two"), None, Moment { now_ms: 2000, seen_ms: 2500 }).unwrap();
        account.change(id, &change("three"), None, Moment { now_ms: 2200, seen_ms: 2700 }).unwrap();
        let updated = |account: &Account, now| {
            account.indexed(account.find(id).unwrap(), now).map(|version| version.updated_ms)
        };
        assert_eq!(
            [2300, 2500, 2699, 2700].map(|now| updated(&account, now)),
            [1000, 2000, 2000, 2200].map(Some)
        );
        let new = account.create(None, &Values::new(), None, Moment { now_ms: 3000, seen_ms: 3500 }).unwrap();
        let ticket = account.find(new).unwrap();
        assert!(account.indexed(ticket, 3499).is_none() && account.indexed(ticket, 3500).is_some());
    }

    #[test]
    fn stages_open_and_close() {
        let mut account = account();
        let id = account.tickets[0].id;
        let stage = |stage: &str| {
            Values::from([
                ("hs_pipeline".to_owned(), Some("0".to_owned())),
                ("hs_pipeline_stage".to_owned(), Some(stage.to_owned())),
            ])
        };
        account.change(id, &stage("4"), Some(60_000), seen_at_once(9)).unwrap();
        assert_eq!(text(&account, id, "closed_date").as_deref(), Some("1970-01-01T00:01:00Z"));
        account.change(id, &stage("1"), None, seen_at_once(70_000)).unwrap();
        let index = account.catalogue.index("closed_date").unwrap();
        assert_eq!(
            account.find(id).unwrap().version.draft(&account.catalogue).values[index].as_deref(),
            Some("")
        );
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let mut account = account();
        let at = seen_at_once(1);
        let id = account.tickets[0].id;
        let values = Values::from([("nope".to_owned(), None)]);
        assert_eq!(account.change(id, &values, None, at), Err(ChangeError::NoProperty("nope".into())));
        assert_eq!(account.change(1, &Values::new(), None, at), Err(ChangeError::NoTicket(1)));
        for taken in [id, u64::MAX] {
            let refused = account.create(Some(taken), &Values::new(), None, at);
            assert_eq!(refused, Err(ChangeError::TakenId(taken)));
        }
        assert_eq!(
            account.add_property("Bad Name", "string", seen_at_once(1000)),
            Err(ChangeError::BadProperty("Bad Name".into()))
        );
        assert_eq!(
            account.add_property("subject", "string", seen_at_once(1000)),
            Err(ChangeError::BadProperty("subject".into()))
        );
    }
}
