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
    for finding in findings {
        let word = format!("{:WIDEST$}", finding.level.as_str());
        let word = look.styled(&finding.level.style(), &word);
        lines.push(format!("{word}  {}: {}", finding.check, finding.found));
        lines.extend(finding.remedy.iter().map(|remedy| format!("{:WIDEST$}  remedy: {remedy}", "")));
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
    use super::*;

    #[test]
    fn as_people_and_programs_read_it() {
        let findings = [Finding::ok("clock", "right"), Finding::ill("database", "it is away", "start it")];
        let text = text(&findings, Look { width: 80, coloured: true });
        assert_eq!(
            console::strip_ansi_codes(&text),
            "ok       clock: right\nill      database: it is away\n         remedy: start it\n\n1 ill, 0 to be looked at"
        );
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
