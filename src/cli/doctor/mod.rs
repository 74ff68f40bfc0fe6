//! `fieldmirror doctor`: what is set up wrongly, each with its remedy. It works when the database is away and when the
//! settings cannot be read, changes nothing, and prints no secret. What this user may not look at is told as such: the
//! daemon may be another user.

mod database;
mod files;
mod network;
mod providers;
mod settings;

use std::fmt::Display;

use console::Style;
use serde_json::{Value, json};

use super::Globals;
use super::context::Context;
use super::report::{Error, Exit};
use super::terminal::Look;
use crate::config::{self, Loaded, Purpose};

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    /// It works, and may not be what was meant.
    Warning,
    Ill,
    /// It could not be looked at.
    Unknown,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Ill => "ill",
            Self::Unknown => "unknown",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Ok => Style::new().green(),
            Self::Warning => Style::new().yellow(),
            Self::Ill => Style::new().red().bold(),
            Self::Unknown => Style::new().dim(),
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// What was looked at: a word for programs.
    check: &'static str,
    level: Level,
    found: String,
    /// What to do about it; always there when it is ill.
    remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Display) -> Self {
        Self { check, level: Level::Ok, found: found.to_string(), remedy: None }
    }

    fn unknown(check: &'static str, found: impl Display) -> Self {
        Self { check, level: Level::Unknown, found: found.to_string(), remedy: None }
    }

    fn ill(check: &'static str, found: impl Display, remedy: impl Display) -> Self {
        Self { check, level: Level::Ill, found: found.to_string(), remedy: Some(remedy.to_string()) }
    }

    fn warning(check: &'static str, found: impl Display, remedy: impl Display) -> Self {
        Self { level: Level::Warning, ..Self::ill(check, found, remedy) }
    }
}

pub async fn run(globals: &Globals) -> Result<Exit, Error> {
    let findings = {
        let _spinner = globals.terminal().spinner("looking");
        examine(globals).await
    };
    let ill = findings.iter().any(|finding| finding.level == Level::Ill);
    globals.terminal().result(|| object(&findings), || text(&findings, Look::of_stdout()))?;
    Ok(if ill { Exit::Wrong } else { Exit::Done })
}

/// What is looked at, with the settings and without them.
struct Patient {
    cx: Context,
    /// Whether the settings hold the secrets that the daemon has.
    has_secrets: bool,
}

impl Patient {
    fn settings(&self) -> &config::Settings {
        &self.cx.loaded.settings
    }
}

async fn examine(globals: &Globals) -> Vec<Finding> {
    let load = |purpose| config::load(&Context::sources(globals, purpose, Vec::new()));
    let full = load(Purpose::Daemon);
    let mut findings = settings::of_problems(full.as_ref().err());
    let has_secrets = full.is_ok();
    // Secrets aside, the rest may be in order.
    let loaded: Option<Loaded> = full.or_else(|_| load(Purpose::Command)).ok();
    let Some(loaded) = loaded else {
        findings.push(Finding::unknown("everything_else", "not looked at before the settings can be read"));
        return findings;
    };
    let patient = Patient { cx: Context::new(globals, loaded), has_secrets };
    findings.extend(settings::examine(&patient));
    findings.extend(files::examine(patient.settings()));
    let (known, found) = database::examine(&patient).await;
    findings.extend(found);
    let connections = known.as_ref().map_or(&[][..], |known| &known.connections);
    findings.extend(network::examine(patient.settings(), connections).await);
    findings.extend(providers::examine(&patient, known.as_ref()).await);
    findings
}

fn object(findings: &[Finding]) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "check": finding.check,
            "level": finding.level.as_str(),
            "found": finding.found,
            "remedy": finding.remedy,
        })
    };
    json!({
        "healthy": findings.iter().all(|finding| finding.level != Level::Ill),
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn text(findings: &[Finding], look: Look) -> String {
    const WIDEST: usize = "warning".len();
    let mut lines = Vec::new();
    for Finding { check, level, found, remedy } in findings {
        let word = look.styled(&level.style(), level.as_str());
        let lead = format!("{word}{:1$}", "", WIDEST - level.as_str().len() + 2);
        lines.push(look.hanging(&lead, &format!("{check}: {found}")));
        let below = format!("{:WIDEST$}  ", "");
        lines.extend(remedy.iter().map(|remedy| look.hanging(&below, &format!("remedy: {remedy}"))));
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    lines.push(String::new());
    lines.push(match (count(Level::Ill), count(Level::Warning)) {
        (0, 0) => "Nothing is wrong".to_owned(),
        (ill, warnings) => format!("{ill} ill, {warnings} to be looked at"),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::terminal::looks;
    use super::*;

    /// One of everything that can be found.
    fn crowd() -> [Finding; 5] {
        [
            Finding::ok("configuration", "all settings can be read"),
            Finding::ill(
                "vault_key",
                "there is no vault key, and the daemon does not start without one",
                "make one with `(umask 077; fieldmirror key generate > vault.key)`, keep a copy of it in a safe place, and \
                 set `[vault] key_file` to its path",
            ),
            Finding::warning(
                "database_durability",
                "the server does not wait for its disk (fsync or full_page_writes is off): a crash may lose tokens",
                "set `fsync = on` and `full_page_writes = on` in postgresql.conf",
            ),
            Finding::unknown(
                "vault_key_in_use",
                "daemons seal with key `k1`; this user's key cannot be compared",
            ),
            Finding::ill(
                "reachability",
                "`https://api.hubapi.com` cannot be reached: no route",
                "see the firewall",
            ),
        ]
    }

    #[test]
    fn the_page_in_narrow_and_wide_with_and_without_colour() {
        let plain = looks::all("doctor", |look| text(&crowd(), look));
        assert!(plain.ends_with("2 ill, 1 to be looked at"), "{plain}");
        let well = text(&crowd()[..1], Look { width: 80, coloured: false });
        assert_eq!(well, "ok       configuration: all settings can be read\n\nNothing is wrong");
    }

    #[test]
    fn as_programs_read_it() {
        let findings = [Finding::ok("clock", "right"), Finding::ill("database", "it is away", "start it")];
        let expected = json!({
            "healthy": false,
            "findings": [
                { "check": "clock", "level": "ok", "found": "right", "remedy": null },
                { "check": "database", "level": "ill", "found": "it is away", "remedy": "start it" },
            ],
        });
        assert_eq!(object(&findings), expected);
    }
}
