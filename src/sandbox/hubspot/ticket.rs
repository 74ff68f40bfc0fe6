//! One ticket as it stands, rendered once when it changes so that serving it is copying bytes.

use std::borrow::Cow;
use std::sync::Arc;

use super::properties::{Catalogue, Draft, Selection};
use crate::sandbox::world::{iso, write_iso};

/// Whether a ticket can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Live,
    Archived { at_ms: i64 },
    Deleted,
    Merged { into: u64 },
}

/// To what a ticket is tied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    Company,
    Contact,
    Deal,
}

/// One association. The first company is the primary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    pub kind: LinkKind,
    pub to: u64,
}

/// A ticket and what it is tied to.
#[derive(Debug, Clone)]
pub struct Ticket {
    pub id: u64,
    pub version: Arc<Version>,
    pub links: Vec<Link>,
}

/// A state of a ticket between two changes.
#[derive(Debug)]
pub struct Version {
    pub standing: Standing,
    pub created_ms: i64,
    pub updated_ms: i64,
    /// The whole record with all its properties, without the closing brace.
    json: Box<[u8]>,
    /// Where in `json` the values of the properties are.
    spans: Box<[(u32, u32)]>,
    /// Where in `json` the properties begin and where they end.
    inside: (u32, u32),
}

/// What a [`Version`] is made from.
pub struct Making<'a> {
    pub hub_id: u64,
    pub id: u64,
    pub standing: Standing,
    pub created_ms: i64,
    pub updated_ms: i64,
    pub draft: &'a mut Draft,
}

impl Version {
    /// Fills in the dates and the id, and renders.
    pub fn render(catalogue: &Catalogue, making: Making<'_>) -> Self {
        let Making { hub_id, id, standing, created_ms, updated_ms, draft } = making;
        draft.set(catalogue, "createdate", iso(created_ms));
        draft.set(catalogue, "hs_lastmodifieddate", iso(updated_ms));
        draft.set(catalogue, "hs_object_id", id.to_string());
        let mut out = std::mem::take(&mut draft.scratch);
        out.clear();
        out.extend_from_slice(b"{\"id\":\"");
        out.extend_from_slice(id.to_string().as_bytes());
        out.extend_from_slice(b"\",\"properties\":{");
        let begin = position(&out);
        let spans = write_properties(&mut out, catalogue, draft);
        let inside = (begin, position(&out));
        out.extend_from_slice(tail(hub_id, id, standing, created_ms, updated_ms).as_bytes());
        let json = Box::from(out.as_slice());
        draft.scratch = out;
        Self { standing, created_ms, updated_ms, json, spans, inside }
    }

    /// The value of a property as JSON: a string or null.
    fn raw(&self, index: usize) -> &[u8] {
        self.spans.get(index).map_or(b"null", |&(from, to)| &self.json[from as usize..to as usize])
    }

    /// The value of a property as text; `None` when it is unset or cleared.
    pub fn text(&self, index: usize) -> Option<Cow<'_, str>> {
        let text: Option<Cow<'_, str>> = match self.raw(index) {
            b"null" => None,
            [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => {
                std::str::from_utf8(plain).ok().map(Cow::Borrowed)
            }
            quoted => serde_json::from_slice::<String>(quoted).ok().map(Cow::Owned),
        };
        text.filter(|text| !text.is_empty())
    }

    /// The values, to be changed and rendered anew.
    pub fn draft(&self, catalogue: &Catalogue) -> Draft {
        let value = |index| serde_json::from_slice::<Option<String>>(self.raw(index)).ok().flatten();
        let values = (0..catalogue.len()).map(|index| value(index).map(Cow::Owned)).collect();
        Draft { values, scratch: Vec::new() }
    }

    /// Writes the record with the selected properties, without the closing brace.
    pub fn write(&self, out: &mut Vec<u8>, catalogue: &Catalogue, selection: &Selection) {
        let (begin, end) = (self.inside.0 as usize, self.inside.1 as usize);
        match selection {
            Selection::All if self.spans.len() == catalogue.len() => {
                out.extend_from_slice(&self.json);
                return;
            }
            Selection::All => self.write_some(out, catalogue, 0..catalogue.len(), begin),
            Selection::Some(list) => self.write_some(out, catalogue, list.iter().copied(), begin),
        }
        out.extend_from_slice(&self.json[end..]);
    }

    fn write_some(
        &self,
        out: &mut Vec<u8>,
        catalogue: &Catalogue,
        wanted: impl Iterator<Item = usize>,
        begin: usize,
    ) {
        out.extend_from_slice(&self.json[..begin]);
        for (order, index) in wanted.enumerate() {
            write_name(out, &catalogue.get(index).name, order == 0);
            out.extend_from_slice(self.raw(index));
        }
    }
}

/// Records are far below 4 GiB: their values came in by requests of limited size.
fn position(out: &[u8]) -> u32 {
    u32::try_from(out.len()).unwrap_or(u32::MAX)
}

fn write_properties(out: &mut Vec<u8>, catalogue: &Catalogue, draft: &Draft) -> Box<[(u32, u32)]> {
    let rendered = draft.values.iter().enumerate().map(|(index, value)| {
        write_name(out, &catalogue.get(index).name, index == 0);
        let from = position(out);
        match value {
            None => out.extend_from_slice(b"null"),
            Some(text) => serde_json::to_writer(&mut *out, text).expect("text is written to memory"),
        }
        (from, position(out))
    });
    rendered.collect()
}

/// Property names are of `[a-z0-9_]` and need no escapes.
fn write_name(out: &mut Vec<u8>, name: &str, first: bool) {
    out.extend_from_slice(if first { b"\"" } else { b",\"" });
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// What comes after the properties, up to the closing brace.
fn tail(hub_id: u64, id: u64, standing: Standing, created_ms: i64, updated_ms: i64) -> String {
    let mut tail = String::with_capacity(192);
    tail.push_str("},\"createdAt\":\"");
    write_iso(&mut tail, created_ms);
    tail.push_str("\",\"updatedAt\":\"");
    write_iso(&mut tail, updated_ms);
    match standing {
        Standing::Archived { at_ms } => {
            tail.push_str("\",\"archived\":true,\"archivedAt\":\"");
            write_iso(&mut tail, at_ms);
            tail.push('"');
        }
        _ => tail.push_str("\",\"archived\":false"),
    }
    tail.push_str(",\"url\":\"https://app.hubspot.com/contacts/");
    tail.push_str(&hub_id.to_string());
    tail.push_str("/record/0-5/");
    tail.push_str(&id.to_string());
    tail.push('"');
    tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn version(catalogue: &Catalogue, standing: Standing) -> Version {
        let mut draft = Draft::empty(catalogue);
        draft.set(catalogue, "subject", "say \"no\"\n");
        draft.set(catalogue, "content", "");
        draft.set(catalogue, "hs_pipeline", "0");
        let making =
            Making { hub_id: 1, id: 77, standing, created_ms: 1000, updated_ms: 2500, draft: &mut draft };
        Version::render(catalogue, making)
    }

    fn written(version: &Version, catalogue: &Catalogue, selection: &Selection) -> Value {
        let mut out = Vec::new();
        version.write(&mut out, catalogue, selection);
        out.push(b'}');
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn every_selection_shows_the_same_values() {
        let mut catalogue = Catalogue::new();
        let version = version(&catalogue, Standing::Live);
        let all = written(&version, &catalogue, &Selection::All);
        let some = written(
            &version,
            &catalogue,
            &catalogue.select(["subject", "content", "hs_pipeline", "nps_score"]),
        );
        for (name, value) in some["properties"].as_object().unwrap() {
            assert_eq!(value, &all["properties"][name], "{name}");
        }
        assert_eq!(all["properties"].as_object().unwrap().len(), catalogue.len());
        assert_eq!(all["properties"]["subject"], "say \"no\"\n");
        assert_eq!(all["properties"]["hs_object_id"], "77");
        assert_eq!(
            (&all["updatedAt"], &all["archived"]),
            (&"1970-01-01T00:00:02.500Z".into(), &false.into())
        );
        catalogue.add("later", "string", chrono::DateTime::UNIX_EPOCH);
        assert_eq!(written(&version, &catalogue, &Selection::All)["properties"]["later"], Value::Null);
    }

    #[test]
    fn values_can_be_read_back() {
        let catalogue = Catalogue::new();
        let version = version(&catalogue, Standing::Archived { at_ms: 3000 });
        let text = |name| version.text(catalogue.index(name).unwrap());
        assert_eq!(text("subject").as_deref(), Some("say \"no\"\n"));
        assert_eq!(text("hs_pipeline").as_deref(), Some("0"));
        assert_eq!((text("content"), text("nps_score")), (None, None));
        let draft = version.draft(&catalogue);
        assert_eq!(draft.values[catalogue.index("content").unwrap()].as_deref(), Some(""));
        let shown = written(&version, &catalogue, &Selection::All);
        assert_eq!(
            (&shown["archived"], &shown["archivedAt"]),
            (&true.into(), &"1970-01-01T00:00:03Z".into())
        );
    }
}
