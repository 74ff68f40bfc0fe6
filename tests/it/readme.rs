//! The README's promises: its queries run, and its commands exist.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::postgres::TestDb;

const README: &str = include_str!("../../README.md");
const HUBSPOT: &str = include_str!("../../docs/providers/hubspot.md");
const JOBBER: &str = include_str!("../../docs/providers/jobber.md");
const HOUSECALLPRO: &str = include_str!("../../docs/providers/housecallpro.md");
const SERVICETITAN: &str = include_str!("../../docs/providers/servicetitan.md");
const ONCEHUB: &str = include_str!("../../docs/providers/oncehub.md");
const ANALYSTS: &str = include_str!("../../docs/ANALYSTS.md");
const OPERATIONS: &str = include_str!("../../docs/OPERATIONS.md");
const ALERTS: &str = include_str!("../../docs/ALERTS.md");
const METRICS: &str = include_str!("../../docs/METRICS.md");
const DIAGNOSIS: &str = include_str!("../../docs/DIAGNOSIS.md");
const UNITS: &str = include_str!("../../systemd/README.md");
const SETTINGS: &str = include_str!("../../config/default.toml");

/// The contents of code blocks of a language, indented ones included.
pub fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == fence {
            let block: Vec<&str> = lines.by_ref().map(str::trim).take_while(|line| *line != "```").collect();
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queries_run() {
    let db = TestDb::new();
    let queries: Vec<String> = [README, ANALYSTS]
        .iter()
        .flat_map(|text| blocks(text, "sql"))
        .flat_map(|block| block.split(';').map(|query| query.trim().to_owned()).collect::<Vec<_>>())
        .filter(|query| !query.is_empty())
        .collect();
    assert!(queries.len() >= 14, "{queries:?}");
    for query in queries {
        let query: &'static str = query.leak();
        let ran = db.db.run(move |connection| fieldmirror::db::rows::objects(connection, query)).await;
        assert!(ran.is_ok(), "{query}: {ran:?}");
    }
}

/// What stands in backticks in the running text.
fn quoted(text: &str) -> Vec<&str> {
    let text = text.split("```").step_by(2);
    text.flat_map(|part| part.lines().flat_map(|line| line.split('`').skip(1).step_by(2))).collect()
}

#[test]
fn the_commands_exist() {
    let shown = [README, HUBSPOT, HOUSECALLPRO, JOBBER, SERVICETITAN, ONCEHUB, OPERATIONS, ANALYSTS]
        .iter()
        .flat_map(|text| blocks(text, "console"))
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| line.strip_prefix("$ ").map(str::to_owned));
    let is_whole =
        |command: &&str| command.starts_with("fieldmirror ") && !command.contains(['…', '[', '|', '{']);
    let named =
        [README, OPERATIONS, ANALYSTS, ALERTS, METRICS, DIAGNOSIS, UNITS].into_iter().flat_map(quoted);
    let commands: BTreeSet<String> = shown.chain(named.filter(is_whole).map(str::to_owned)).collect();
    assert!(commands.len() >= 20, "{commands:?}");
    for command in commands {
        let command = command.trim_start_matches("(umask 077; ").split(" > ").next().unwrap().to_owned();
        // A word in capitals stands for a name; where a number is wanted, it has to be one.
        let mut words = command.split_whitespace().map(|word| if word == "ID" { "7" } else { word });
        let program = words.next().unwrap();
        if let Some(script) = program.strip_prefix("scripts/") {
            let path = format!("{}/scripts/{script}", env!("CARGO_MANIFEST_DIR"));
            assert!(std::path::Path::new(&path).exists(), "{command}");
            continue;
        }
        assert_eq!(program, "fieldmirror", "{command}");
        let help =
            Command::new(env!("CARGO_BIN_EXE_fieldmirror")).args(words).arg("--help").output().unwrap();
        assert!(help.status.success(), "{command}: {}", String::from_utf8_lossy(&help.stderr));
    }
}

#[test]
fn the_settings_exist() {
    let mut section = "";
    let mut there = BTreeSet::new();
    for line in SETTINGS.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with('#')) {
            there.insert(format!("{section}.{key}"));
        }
    }
    let sections =
        ["daemon.", "database.", "callback.", "metrics.", "alerts.", "vault.", "sync.", "providers."];
    let is_setting = |word: &&str| {
        sections.iter().any(|section| word.starts_with(section))
            && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '.' || letter == '_')
    };
    let named =
        [README, OPERATIONS, ANALYSTS, ALERTS, METRICS, DIAGNOSIS, UNITS].into_iter().flat_map(quoted);
    let named: BTreeSet<&str> = named.filter(is_setting).collect();
    assert!(named.len() > 15, "{named:?}");
    let unknown: Vec<_> = named.into_iter().filter(|word| !there.contains(*word)).collect();
    assert_eq!(unknown, Vec::<&str>::new());
}
