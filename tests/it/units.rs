//! The files for systemd, as `systemd-analyze` judges them. Where it is not installed, that is said and no more.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::not_checked;

/// The highest score for exposure: contract, section on systemd.
const EXPOSURE_MAX: f64 = 1.2;

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

fn analyze(arguments: &[&str], unit: &Path, manual: &Path) -> Option<Output> {
    let output =
        Command::new("systemd-analyze").args(arguments).arg(unit).env("MANPATH", manual).output().ok();
    if output.is_none() {
        not_checked(&format!("`systemd-analyze {}`, which is not installed", arguments.join(" ")));
    }
    output
}

/// With the manual page that the unit names, made by the program.
#[test]
fn units_verify() {
    let manual = tempfile::tempdir().unwrap();
    let pages = manual.path().join("man1");
    let made = Command::new(env!("CARGO_BIN_EXE_fieldmirror")).args(["man", "--out"]).arg(&pages).output();
    assert!(made.unwrap().status.success());
    let readable = Command::new("man").arg("--version").output().is_ok();
    if !readable {
        not_checked("that the unit's manual page is found, since `man` is not installed");
    }
    for name in ["fieldmirror.service", "fieldmirror.socket"] {
        let arguments: &[&str] = if readable { &["verify"] } else { &["verify", "--man=no"] };
        let Some(output) = analyze(arguments, &unit(name), manual.path()) else { continue };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.trim().is_empty(), "{name}: {said}");
    }
}

#[test]
fn the_service_is_shut_in() {
    let Some(output) = analyze(&["security", "--offline=true"], &unit("fieldmirror.service"), Path::new(""))
    else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let score = said.lines().find_map(|line| {
        let (_, rest) = line.split_once("Overall exposure level for fieldmirror.service: ")?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    });
    let score =
        score.unwrap_or_else(|| panic!("no score: {said}{}", String::from_utf8_lossy(&output.stderr)));
    assert!(score <= EXPOSURE_MAX, "{said}");
}

#[test]
fn the_unit_says_what_the_daemon_relies_on() {
    let text = std::fs::read_to_string(unit("fieldmirror.service")).unwrap();
    for line in [
        "Type=notify",
        "User=fieldmirror",
        "StateDirectory=fieldmirror",
        "LoadCredential=database.url:/etc/fieldmirror/database.url",
        "LoadCredential=vault.key:/etc/fieldmirror/vault.key",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    let sysusers = std::fs::read_to_string(unit("fieldmirror.sysusers")).unwrap();
    assert!(sysusers.lines().any(|line| line.starts_with("u fieldmirror ")), "{sysusers}");
}
