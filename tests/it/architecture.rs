//! The layers, and the crates that belong to one folder each: read from the sources' own paths.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by row. A module may name those of rows below its own, and itself; siblings do not know each other.
const ROWS: [&[&str]; 8] = [
    &["cli"],
    &["daemon"],
    &["callback"],
    &["jobs"],
    &["sync"],
    &["auth"],
    &["providers", "http", "vault", "db", "config"],
    &["domain"],
];
/// The providers' stand-ins stand beside `daemon`: what they may name, and who may name them.
const SANDBOX_MAY_NAME: [&str; 2] = ["domain", "config"];
const MAY_NAME_SANDBOX: [&str; 2] = ["daemon", "cli"];

/// Crates that only some folders name.
const CRATES: [(&str, &[&str]); 15] = [
    ("apalis", &["jobs"]),
    ("apalis_core", &["jobs"]),
    ("reqwest", &["http"]),
    ("oauth2", &["http"]),
    ("backoff", &["http"]),
    ("diesel", &["db"]),
    ("diesel_migrations", &["db"]),
    ("deadpool", &["db"]),
    ("deadpool_diesel", &["db"]),
    ("anyhow", &["cli", "daemon"]),
    ("chacha20poly1305", &["vault"]),
    ("crypto_box", &["vault"]),
    ("figment", &["config"]),
    ("metrics", &["domain", "daemon"]),
    ("metrics_exporter_prometheus", &["daemon"]),
];
/// Words that are nowhere in the code of providers, whose methods are pure.
const NOT_IN_PROVIDERS: [&str; 10] = [
    "async",
    "await",
    "tokio",
    "Clock",
    "SystemClock",
    "ShiftedClock",
    "Instant",
    "SystemTime",
    "rand",
    "unsafe",
];

#[test]
fn imports_point_down_and_crates_stay_home() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    list(&source, &mut files);
    assert!(files.len() > 10, "found {} files below `{}`", files.len(), source.display());
    let breaches: Vec<_> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            breaches(file.strip_prefix(&source).unwrap(), &text)
        })
        .collect();
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

/// That the check can fail: what each sample breaks, by the words of the breach.
#[test]
fn the_check_finds_what_it_is_for() {
    let check = |file: &str, text: &str, expected: &[&str]| {
        let found = breaches(Path::new(file), text);
        assert_eq!(found.len(), expected.len(), "{file}: {text}\n{found:?}");
        for (breach, words) in found.iter().zip(expected) {
            assert!(breach.contains(words), "{file}: {text}\n{found:?}");
        }
    };
    check("db/rows.rs", "use crate::domain::secret::Secret; use crate::db::error; use super::session;", &[]);
    check("db/rows.rs", "use crate::http::Client;", &["`db` may not name `http`"]);
    check("db/rows.rs", "fn f() { crate::sync::turn() }", &["`db` may not name `sync`"]);
    check(
        "db/mod.rs",
        "use crate::{domain::ids, auth::{refresh, policy}, vault};",
        &["`auth`", "`db` may not name `vault`"],
    );
    check("domain/ids.rs", "use crate::db::Db;", &["`domain` may not name `db`"]);
    check("cli/run.rs", "use crate::daemon; use crate::sandbox;", &[]);
    check("sandbox/mod.rs", "use crate::{config, domain, db};", &["`sandbox` may not name `db`"]);
    check("jobs/sync.rs", "use crate::sandbox::serve;", &["`jobs` may not name `sandbox`"]);
    check("attic/mod.rs", "", &["`attic` is in no row"]);
    check("db/queue/mod.rs", "use super::super::http;", &["leaves its module"]);
    check("db/error.rs", "use super::super::http;", &["leaves its module"]);
    check("db/mod.rs", "use super::http;", &["leaves its module"]);
    check("db/mod.rs", "mod tests { use super::*; }", &[]);
    check("db/mod.rs", "mod tests { use super::super::http; }", &["leaves its module"]);
    check("db/mod.rs", "fn f() { { use super::http; } }", &["leaves its module"]);

    check("sync/drive.rs", "use diesel::prelude::*;", &["`diesel` belongs to db"]);
    check("sync/drive.rs", "#[derive(X)] #[diesel(a = b)] struct S;", &["`diesel` belongs to db"]);
    check("sync/drive.rs", "let backoff = 1; row.diesel(); crate::db::diesel::x();", &[]);
    check("auth/refresh.rs", "let x = ::reqwest::get();", &["`reqwest` belongs to http"]);
    check("auth/refresh.rs", "extern crate anyhow;", &["`anyhow` belongs to cli, daemon"]);
    check("sync/drive.rs", "use crate::domain::measure; metrics::counter!();", &["`metrics` belongs to"]);
    check("main.rs", "use anyhow::Context;", &[]);
    check(
        "auth/refresh.rs",
        "// use diesel\n/* crate::cli */ let a = \"diesel::x\"; let b = r#\"crate::cli\"#;",
        &[],
    );
    check("auth/refresh.rs", "let quote = '\"'; use diesel::x;", &["`diesel`"]);
    check("auth/refresh.rs", "fn f<'a>(x: &'a str) { diesel::x() }", &["`diesel`"]);

    check("providers/jobber/mod.rs", "async fn f() { g().await }", &["`async`", "`await`"]);
    check("providers/hubspot.rs", "use std::fs::File;", &["`std::fs`"]);
    check("providers/hubspot.rs", "use std::{collections::BTreeMap, net::IpAddr};", &["`std::net`"]);
    check("http/pace.rs", "async fn f(clock: &dyn Clock) {}", &[]);
}

/// Adds the Rust sources below `folder`.
pub fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// What `file`, named from `src/`, does against the rules.
fn breaches(file: &Path, text: &str) -> Vec<String> {
    let parts: Vec<_> =
        file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    let module = parts[0].as_str();
    let top = parts.len() == 1 && (module == "main" || module == "lib");
    let tokens = tokens(text);
    let mut found = BTreeSet::new();
    if !top && row(module).is_none() && module != "sandbox" {
        found.insert(format!("`{module}` is in no row of the layers"));
    }
    for target in paths(&tokens, "crate") {
        if !top && !may_name(module, &target) {
            found.insert(format!("`{module}` may not name `{target}`"));
        }
    }
    let depth = parts.iter().filter(|part| *part != "mod").count();
    if !top && escapes(&tokens, depth) {
        found.insert(
            "a path of `super` leaves its module: write `crate::…`, so that it can be checked".to_owned(),
        );
    }
    for (name, homes) in CRATES {
        if !top && !homes.contains(&module) && names_crate(&tokens, name) {
            found.insert(format!("`{name}` belongs to {}", homes.join(", ")));
        }
    }
    if module == "providers" {
        let words = NOT_IN_PROVIDERS.iter().filter(|word| tokens.iter().any(|token| token == *word));
        found.extend(words.map(|word| format!("`{word}` in a provider")));
        let io = paths(&tokens, "std").into_iter();
        let io = io.filter(|path| ["fs", "io", "net", "process", "thread", "env"].contains(&path.as_str()));
        found.extend(io.map(|path| format!("`std::{path}` in a provider")));
    }
    found.into_iter().map(|breach| format!("src/{}: {breach}", file.display())).collect()
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

fn may_name(module: &str, target: &str) -> bool {
    if module == target {
        return true;
    }
    if module == "sandbox" {
        return SANDBOX_MAY_NAME.contains(&target);
    }
    if target == "sandbox" {
        return MAY_NAME_SANDBOX.contains(&module);
    }
    matches!((row(module), row(target)), (Some(own), Some(other)) if own < other)
}

/// The first segments after `start::`, those of a group included.
fn paths(tokens: &[String], start: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let begins = token == start && !(at > 0 && tokens[at - 1] == "::");
        if !begins || tokens.get(at + 1).is_none_or(|next| next != "::") {
            continue;
        }
        match tokens.get(at + 2) {
            Some(brace) if brace == "{" => found.extend(group(&tokens[at + 3..])),
            Some(name) => found.push(name.clone()),
            None => {}
        }
    }
    found
}

/// The first segment of each item of a `{…}` group whose brace has been read.
fn group(tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    let mut first = true;
    for token in tokens {
        match token.as_str() {
            "}" if depth == 0 => break,
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => first = true,
            name if first => {
                found.push(name.to_owned());
                first = false;
            }
            _ => {}
        }
    }
    found
}

/// Whether a chain of `super` reaches the crate's root, `depth` modules up; inline modules count as one more each.
fn escapes(tokens: &[String], depth: usize) -> bool {
    // One entry per open brace: whether it is that of a module.
    let mut braces = Vec::new();
    let mut chain = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => braces.push(at >= 2 && tokens[at - 2] == "mod"),
            "}" => drop(braces.pop()),
            "super" => {
                chain = if at >= 2 && tokens[at - 1] == "::" && tokens[at - 2] == "super" {
                    chain + 1
                } else {
                    1
                };
                // `pub(super)` names nobody.
                let visibility = tokens.get(at + 1).is_some_and(|next| next == ")");
                let inline = braces.iter().filter(|module| **module).count();
                if !visibility && chain >= depth + inline {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// `name::…`, `use name`, `extern crate name` or the attribute `#[name…`, but not as a later segment of a path.
fn names_crate(tokens: &[String], name: &str) -> bool {
    let is =
        |at: Option<usize>, word: &str| at.and_then(|at| tokens.get(at)).is_some_and(|token| token == word);
    tokens.iter().enumerate().filter(|(_, token)| *token == name).any(|(at, _)| {
        let before = at.checked_sub(1);
        let segment = is(before, "::")
            && at.checked_sub(2).is_some_and(|at| tokens[at].starts_with(|c: char| c.is_alphanumeric()));
        let attribute = is(before, "[") && is(at.checked_sub(2), "#");
        !segment && (is(Some(at + 1), "::") || is(before, "use") || is(before, "crate") || attribute)
    })
}

/// Words, `::` and single other characters; comments, texts and characters are left out.
fn tokens(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_text(rest) {
            length
        } else if first == '"' {
            quoted(rest)
        } else if first == '\'' {
            character_or_lifetime(rest)
        } else {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let length = if word(first) {
                rest.find(|c| !word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            if !first.is_whitespace() {
                found.push(rest[..length].to_owned());
            }
            length
        };
        rest = &rest[length..];
    }
    found
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of `r"…"`, `r#"…"#`, `br"…"` and so on at the start, if one is there.
fn raw_text(rest: &str) -> Option<usize> {
    let after =
        rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr")).or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - body.len();
    Some(body.find(&end).map_or(rest.len(), |at| start + at + end.len()))
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `'x'` and `'\''` whole; of a lifetime the quote alone.
fn character_or_lifetime(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(rest.len(), |at| 3 + at + 1),
        Some(_) => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}
