//! The layers of settings, one over the other, each value with its origin.
//!
//! The built-in file is the schema: a layer may hold what it holds, and nothing else. What does not fit is reported and
//! left out, so that the rest can still be looked at.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider, Source};

use super::problems::Problem;
use super::sources::{ENVIRONMENT_PREFIX, Sources, TEST_PREFIX};
use super::suggest;

/// The built-in settings: the lowest layer, the schema and the reference.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// A settings file of more bytes is not one.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How the lowest layer is called.
pub(super) const DEFAULT_ORIGIN: &str = "default";

/// One layer: where its values come from, and the values.
struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::from("settings", Source::Custom(self.origin.clone()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// All layers, merged.
pub(super) struct Layers {
    defaults: BTreeMap<String, Value>,
    merged: Figment,
}

impl Layers {
    /// Reads and merges all layers over `schema`, the built-in settings. What could not be used of them is in the list.
    pub(super) fn read(schema: &str, sources: &Sources) -> (Self, Vec<Problem>) {
        let schema: Dict = Toml::from_str(schema).expect("the built-in settings are TOML; a test reads them");
        let mut stack = Stack::new(schema);
        if let Some(path) = sources.system_file.as_deref() {
            stack.file(path, true);
        }
        sources.files.iter().for_each(|path| stack.file(path, false));
        stack.environment(sources);
        for flag in &sources.flags {
            stack.text(&flag.key, &flag.value, &flag.key, format!("flag {}", flag.name));
        }
        (Self { defaults: stack.leaves, merged: stack.merged }, stack.problems)
    }

    /// Section and key of every setting.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.defaults.keys().map(String::as_str)
    }

    /// The providers that the built-in file describes.
    pub(super) fn providers(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .keys()
            .filter_map(|key| key.strip_prefix("providers.")?.split_once('.'))
            .map(|(name, _)| name.to_owned())
            .collect();
        names.dedup();
        names
    }

    pub(super) fn default_of(&self, key: &str) -> &Value {
        self.defaults.get(key).unwrap_or_else(|| panic!("`{key}` is not in config/default.toml"))
    }

    /// The value in force and where it comes from.
    pub(super) fn effective(&self, key: &str) -> (Value, String) {
        let value = self.merged.find_value(key).expect("every key is in the lowest layer");
        let source = self.merged.get_metadata(value.tag()).and_then(|metadata| metadata.source.as_ref());
        let origin = source.and_then(Source::custom).unwrap_or(DEFAULT_ORIGIN).to_owned();
        (value, origin)
    }
}

/// Layers while they are being read, lowest first.
struct Stack {
    schema: Dict,
    leaves: BTreeMap<String, Value>,
    merged: Figment,
    problems: Vec<Problem>,
}

impl Stack {
    fn new(schema: Dict) -> Self {
        let mut leaves = BTreeMap::new();
        collect_leaves(&schema, "", &mut leaves);
        let lowest = Layer { origin: DEFAULT_ORIGIN.to_owned(), values: schema.clone() };
        Self { schema, leaves, merged: Figment::from(lowest), problems: Vec::new() }
    }

    fn push(&mut self, origin: String, values: Dict) {
        let merged = std::mem::take(&mut self.merged);
        self.merged = merged.merge(Layer { origin, values });
    }

    fn file(&mut self, path: &Path, may_be_missing: bool) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                let remedy = "check its path and permissions".to_owned();
                return self.bad_file(path, error.to_string(), "a readable file", remedy);
            }
        };
        match parse_toml(&text) {
            Ok(mut values) => {
                let origin = format!("file {}", path.display());
                let schema = self.schema.clone();
                self.fit(&mut values, &schema, "", &origin);
                self.push(origin, values);
            }
            Err((line, message)) => {
                self.bad_file(path, message, "TOML", format!("look at line {line}"));
            }
        }
    }

    fn bad_file(&mut self, path: &Path, found: String, expected: &str, remedy: String) {
        let path = path.display();
        self.problems.push(Problem {
            key: path.to_string(),
            found,
            expected: expected.to_owned(),
            origin: format!("file {path}"),
            remedy,
        });
    }

    fn environment(&mut self, sources: &Sources) {
        let ours = sources.environment.iter().filter_map(|(name, value)| {
            let key = name.strip_prefix(ENVIRONMENT_PREFIX).filter(|_| !name.starts_with(TEST_PREFIX))?;
            Some((name, key.to_lowercase().replace("__", "."), value))
        });
        for (name, key, value) in ours {
            let origin = format!("environment {name}");
            match value.to_str() {
                Some(text) => self.text(&key, text, name, origin),
                None => self.problems.push(Problem {
                    key,
                    found: "bytes that are not UTF-8".to_owned(),
                    expected: "text".to_owned(),
                    origin,
                    remedy: "set the variable again, or unset it".to_owned(),
                }),
            }
        }
    }

    /// A layer of one value that came as text. `written` is how the key was written.
    fn text(&mut self, key: &str, text: &str, written: &str, origin: String) {
        let Some(default) = self.leaves.get(key) else {
            return self.unknown(key, written, &origin);
        };
        let value = typed(text, default);
        let values = figment::util::nest(key, value).into_dict().expect("keys have a section");
        self.push(origin, values);
    }

    /// Takes out of `values` what the schema does not have, and reports it.
    fn fit(&mut self, values: &mut Dict, schema: &Dict, prefix: &str, origin: &str) {
        values.retain(|name, value| {
            let key = join(prefix, name);
            match (schema.get(name), &mut *value) {
                (None, _) => self.unknown(&key, &key, origin),
                (Some(Value::Dict(_, inner)), Value::Dict(_, values)) => {
                    self.fit(values, inner, &key, origin);
                    return true;
                }
                (Some(Value::Dict(..)), _) => self.misshapen(&key, "a value", "a section", origin),
                (Some(_), Value::Dict(..)) => self.misshapen(&key, "a section", "a value", origin),
                (Some(_), _) => return true,
            }
            false
        });
    }

    fn unknown(&mut self, key: &str, written: &str, origin: &str) {
        let hint = suggest::nearest(key, self.leaves.keys().map(String::as_str));
        let remedy = match hint {
            Some(near) if written.starts_with(ENVIRONMENT_PREFIX) => {
                format!("did you mean `{}`?", suggest::variable(&near))
            }
            Some(near) => format!("did you mean `{near}`?"),
            None => "remove it; `fieldmirror config` lists the settings there are".to_owned(),
        };
        self.problems.push(Problem {
            key: written.to_owned(),
            found: "an unknown name".to_owned(),
            expected: "the name of a setting".to_owned(),
            origin: origin.to_owned(),
            remedy,
        });
    }

    fn misshapen(&mut self, key: &str, found: &str, expected: &str, origin: &str) {
        self.problems.push(Problem {
            key: key.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
            origin: origin.to_owned(),
            remedy: format!(
                "write it as the built-in file does: `[{key}]` begins a section, `name = value` sets a value"
            ),
        });
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn collect_leaves(values: &Dict, prefix: &str, into: &mut BTreeMap<String, Value>) {
    for (name, value) in values {
        let key = join(prefix, name);
        match value {
            Value::Dict(_, inner) => collect_leaves(inner, &key, into),
            leaf => drop(into.insert(key, leaf.clone())),
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The values, or the line and what the parser says. Its full text is not used: it quotes the line, which may hold a
/// secret.
fn parse_toml(text: &str) -> Result<Dict, (usize, String)> {
    Toml::from_str(text).map_err(|error: <Toml as figment::providers::Format>::Error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.get(..start).map_or(0, |before| before.matches('\n').count()) + 1;
        (line, error.message().lines().collect::<Vec<_>>().join(", "))
    })
}

/// Text from the environment or a flag, as the type that the setting has by default. What does not read as that type
/// stays text, for the check of the setting to report. Settings that are text are taken as they are: a secret of
/// digits is not a number.
fn typed(text: &str, default: &Value) -> Value {
    let plain = text.trim();
    let parsed = match default {
        Value::Bool(..) => plain.parse::<bool>().ok().map(Value::from),
        Value::Num(..) => {
            plain.parse::<i64>().map(Value::from).or_else(|_| plain.parse::<f64>().map(Value::from)).ok()
        }
        Value::Array(..) => Some(list(plain)),
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::from(text))
}

/// `a,b c` or, as in TOML, `["a", "b"]`.
fn list(text: &str) -> Value {
    let text = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    let items =
        text.split(|c: char| c == ',' || c.is_whitespace()).map(|item| item.trim_matches(['"', '\'']));
    items.filter(|item| !item.is_empty()).map(Value::from).collect::<Vec<_>>().into()
}
