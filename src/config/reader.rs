//! Reads values in force as types, and remembers every one that does not fit.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use serde_json::Value as Json;
use url::Url;

use super::layers::{DEFAULT_ORIGIN, Layers};
use super::problems::Problem;
use super::sources::Sources;
use super::validate;

/// Characters of a bad value that are shown.
const SHOWN_MAX: usize = 80;

/// A value as it is in force, for the report.
pub(super) struct InForce {
    pub(super) value: Json,
    pub(super) origin: String,
}

/// Reads settings one by one. A value that does not fit is reported, and the built-in one stands in for it, so that
/// reading goes on; settings read with a problem are never handed out.
pub(super) struct Reader<'a> {
    pub(super) layers: &'a Layers,
    pub(super) sources: &'a Sources,
    pub(super) problems: Vec<Problem>,
    pub(super) in_force: BTreeMap<String, InForce>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a Layers, sources: &'a Sources, problems: Vec<Problem>) -> Self {
        Self { layers, sources, problems, in_force: BTreeMap::new() }
    }

    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.read(key, "true or false", Value::to_bool)
    }

    pub(super) fn count(&mut self, key: &str, range: &RangeInclusive<u32>) -> u32 {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| {
            value
                .to_i128()
                .and_then(|number| u32::try_from(number).ok())
                .filter(|number| range.contains(number))
        })
    }

    pub(super) fn share(&mut self, key: &str, range: &RangeInclusive<f64>) -> f64 {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| number(value).filter(|share| range.contains(share)))
    }

    /// Text of at most `length_max` characters, without control characters. Empty only where the built-in value is.
    pub(super) fn text(&mut self, key: &str, length_max: usize) -> String {
        let expected = format!("text of at most {length_max} characters, in quotes");
        let may_be_empty = self.empty_by_default(key);
        self.read(key, &expected, |value| {
            let text = value.as_str()?;
            let fits = text.chars().count() <= length_max && !text.contains(char::is_control);
            (fits && (may_be_empty || !text.is_empty())).then(|| text.to_owned())
        })
    }

    /// Text that `parse` understands; empty (as `None`) only where the built-in value is.
    pub(super) fn parsed<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let may_be_empty = self.empty_by_default(key);
        self.read(key, expected, |value| match value.as_str()? {
            "" if may_be_empty => Some(None),
            text => parse(text).map(Some),
        })
    }

    pub(super) fn required<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        self.read(key, expected, |value| parse(value.as_str()?))
    }

    pub(super) fn duration(&mut self, key: &str, range: &RangeInclusive<Duration>) -> Duration {
        self.required(key, &durations(range), |text| duration(text, range))
    }

    pub(super) fn optional_duration(
        &mut self,
        key: &str,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.parsed(key, &durations(range), |text| duration(text, range))
    }

    pub(super) fn address(&mut self, key: &str) -> SocketAddr {
        self.required(key, "an address and port, such as `127.0.0.1:8787`", |text| text.parse().ok())
    }

    pub(super) fn url(&mut self, key: &str) -> Url {
        self.required(key, validate::URL_EXPECTED, validate::url)
    }

    pub(super) fn base_url(&mut self, key: &str) -> Url {
        self.required(key, validate::BASE_URL_EXPECTED, validate::base_url)
    }

    /// A URL that may be left out by an empty text, whatever the built-in one is.
    pub(super) fn optional_url(&mut self, key: &str) -> Option<Url> {
        self.read(key, validate::URL_EXPECTED, |value| match value.as_str()? {
            "" => Some(None),
            text => validate::url(text).map(Some),
        })
    }

    /// An absolute path; empty (as `None`) only where the built-in value is.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.parsed(key, "an absolute path", absolute)
    }

    pub(super) fn paths(&mut self, key: &str, count_max: usize) -> Vec<PathBuf> {
        let expected = format!("a list of at most {count_max} absolute paths");
        self.read(key, &expected, |value| {
            let items = value.as_array().filter(|items| items.len() <= count_max)?;
            items.iter().map(|item| item.as_str().and_then(absolute)).collect()
        })
    }

    /// A program with its arguments; empty for none.
    pub(super) fn command(&mut self, key: &str, words_max: usize) -> Vec<String> {
        let expected =
            format!("a list of at most {words_max} texts, the first the absolute path of a program; or []");
        self.read(key, &expected, |value| {
            let items = value.as_array().filter(|items| items.len() <= words_max)?;
            let word = |text: &&str| !text.contains(char::is_control);
            let words: Vec<String> = items
                .iter()
                .map(|item| item.as_str().filter(word).map(str::to_owned))
                .collect::<Option<_>>()?;
            words.first().is_none_or(|program| absolute(program).is_some()).then_some(words)
        })
    }

    /// A list of words without white space.
    pub(super) fn words(&mut self, key: &str, count_max: usize) -> Vec<String> {
        let expected =
            format!("a list of at most {count_max} words in quotes, none of them empty or with spaces");
        self.read(key, &expected, |value| {
            let word = |text: &&str| !text.is_empty() && !text.contains(char::is_whitespace);
            let items = value.as_array().filter(|items| items.len() <= count_max)?;
            items.iter().map(|item| item.as_str().filter(word).map(str::to_owned)).collect()
        })
    }

    /// A value of a key that only one provider has: of the type of the built-in value.
    pub(super) fn extra(&mut self, key: &str) -> Json {
        let like = std::mem::discriminant(self.layers.default_of(key));
        let expected = format!("a value like the built-in {}", show(self.layers.default_of(key)));
        self.read(key, &expected, |value| (std::mem::discriminant(value) == like).then(|| json(value)))
    }

    /// Replaces what the report shows: where the value in force is not the one that was read.
    pub(super) fn resolve(&mut self, key: &str, value: Json, origin: String) {
        self.in_force.insert(key.to_owned(), InForce { value, origin });
    }

    pub(super) fn problem(
        &mut self,
        key: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
        origin: &str,
        remedy: impl Into<String>,
    ) {
        self.problems.push(Problem {
            key: key.to_owned(),
            found: found.into(),
            expected: expected.into(),
            origin: origin.to_owned(),
            remedy: remedy.into(),
        });
    }

    fn read<T>(&mut self, key: &str, expected: &str, parse: impl Fn(&Value) -> Option<T>) -> T {
        let (value, origin) = self.layers.effective(key);
        let parsed = parse(&value);
        if parsed.is_none() {
            let remedy =
                format!("correct it, or leave it out for the default {}", show(self.layers.default_of(key)));
            self.problem(key, show(&value), expected, &origin, remedy);
        }
        self.resolve(key, json(&value), origin);
        parsed.unwrap_or_else(|| {
            parse(self.layers.default_of(key))
                .unwrap_or_else(|| panic!("the built-in `{key}` does not fit its own rule"))
        })
    }

    fn empty_by_default(&self, key: &str) -> bool {
        self.layers.default_of(key).as_str() == Some("")
    }

    pub(super) fn is_default(&self, key: &str) -> bool {
        self.layers.effective(key).1 == DEFAULT_ORIGIN
    }
}

fn absolute(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_absolute())
}

fn duration(text: &str, range: &RangeInclusive<Duration>) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|duration| range.contains(duration))
}

fn durations(range: &RangeInclusive<Duration>) -> String {
    let text = |duration: &Duration| humantime::format_duration(*duration).to_string().replace(' ', "");
    format!("a duration from {} to {}, such as \"90s\" or \"1h 30m\"", text(range.start()), text(range.end()))
}

fn number(value: &Value) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a share is near 0; larger numbers are refused anyway")]
    value.to_f64().or_else(|| value.to_i128().map(|number| number as f64))
}

/// A value as a person should see it in a problem. Never used for secrets.
fn show(value: &Value) -> String {
    let text = match value {
        // A URL with a password in it, perhaps.
        Value::String(_, text) if text.contains('@') => {
            return "text with an `@` in it (not shown)".to_owned();
        }
        Value::String(_, text) if text.is_empty() => return "an empty text".to_owned(),
        Value::String(_, text) => format!("\"{}\"", text.escape_debug()),
        other => json(other).to_string(),
    };
    let short: String = text.chars().take(SHOWN_MAX).collect();
    if short.len() < text.len() { format!("`{short}…`") } else { format!("`{short}`") }
}

pub(super) fn json(value: &Value) -> Json {
    match value {
        Value::String(_, text) => text.as_str().into(),
        Value::Char(_, character) => character.to_string().into(),
        Value::Bool(_, flag) => (*flag).into(),
        Value::Num(..) => number_json(value),
        Value::Empty(..) => Json::Null,
        Value::Dict(_, values) => values.iter().map(|(name, value)| (name.clone(), json(value))).collect(),
        Value::Array(_, items) => items.iter().map(json).collect(),
    }
}

fn number_json(value: &Value) -> Json {
    let whole = value.to_i128().and_then(|number| i64::try_from(number).ok());
    whole.map_or_else(|| value.to_f64().map_or(Json::Null, Json::from), Json::from)
}
