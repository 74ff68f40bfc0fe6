//! The README's promises: its queries run, and its commands exist.

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

#[test]
fn the_commands_exist() {
    let commands: Vec<String> = [README, HUBSPOT, HOUSECALLPRO, JOBBER, SERVICETITAN, ONCEHUB, OPERATIONS]
        .iter()
        .flat_map(|text| blocks(text, "console"))
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| line.strip_prefix("$ ").map(str::to_owned))
        .collect();
    assert!(commands.len() >= 8, "{commands:?}");
    for command in commands {
        let command = command.trim_start_matches("(umask 077; ").split(" > ").next().unwrap().to_owned();
        let mut words = command.split_whitespace();
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
