//! Settings as their users see them.

mod layering;
mod refusals;
mod secrets;

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// 32 bytes as base64.
const KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

fn variables(sources: Sources, variables: &[(&str, &str)]) -> Sources {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    Sources { environment, ..sources }
}

/// A file for its owner only.
fn file(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode");
    path
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn problems(sources: &Sources) -> Vec<Problem> {
    load(sources).expect_err("a problem").0
}

fn row<'a>(loaded: &'a Loaded, path: &str) -> &'a Row {
    let (section, key) = path.rsplit_once('.').expect("section and key");
    loaded.rows().iter().find(|row| row.section == section && row.key == key).expect(path)
}
