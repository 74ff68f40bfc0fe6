//! What the server wrote to its log of changes about the tables of the mirror: bytes, as `pg_waldump` tells them.

use std::path::PathBuf;
use std::process::Command;

use super::app::TestApp;

/// Heap records that change what a table holds; vacuuming and pruning do not.
const WRITES: [&str; 6] = ["INSERT", "MULTI_INSERT", "DELETE", "UPDATE", "HOT_UPDATE", "LOCK"];

/// Ends the segment, so that all of it is in files. Returns the place.
pub async fn place(app: &TestApp) -> String {
    text(app, "SELECT pg_switch_wal()::text").await
}

/// Bytes of records between two places that wrote to tables of schema `mirror`.
pub async fn written_to_mirror(app: &TestApp, from: &str, to: &str) -> u64 {
    let folder = PathBuf::from(text(app, "SELECT current_setting('data_directory')").await).join("pg_wal");
    let program = text(app, "SELECT setting FROM pg_config WHERE name = 'BINDIR'").await;
    let files = "SELECT pg_relation_filepath(oid) AS path FROM pg_class
                 WHERE relnamespace = 'mirror'::regnamespace AND relkind = 'r'";
    // `base/16384/16403` is written as `rel 1663/16384/16403` there.
    let files: Vec<String> = app
        .rows(files)
        .await
        .iter()
        .map(|row| row["path"].as_str().unwrap().replacen("base/", "rel 1663/", 1) + " ")
        .collect();
    assert!(files.len() > 20 && files.iter().all(|file| file.starts_with("rel 1663/")), "{files:?}");
    let mut dump = Command::new(PathBuf::from(program).join("pg_waldump"));
    let dumped = dump.arg("-p").arg(folder).args(["-s", from, "-e", to]).output().expect("pg_waldump starts");
    let lines = String::from_utf8_lossy(&dumped.stdout);
    assert!(dumped.status.success() && lines.lines().count() > 10, "{dumped:?}");
    lines.lines().filter(|line| files.iter().any(|file| line.contains(file))).filter_map(bytes).sum()
}

async fn text(app: &TestApp, sql: &'static str) -> String {
    app.one(sql).await.as_str().expect("a text").to_owned()
}

/// Of a line that tells of a write: `rmgr: Heap len (rec/tot): 54/150, … desc: INSERT off: 3, …`.
fn bytes(line: &str) -> Option<u64> {
    let (_, desc) = line.split_once("desc: ")?;
    if !line.starts_with("rmgr: Heap") || !WRITES.contains(&desc.split([' ', '+']).next()?) {
        return None;
    }
    let (_, lengths) = line.split_once("len (rec/tot):")?;
    lengths.split(',').next()?.split('/').nth(1)?.trim().parse().ok()
}
