//! What a machine lacks for a test is told.

use std::io::Write as _;

/// Says that something is not checked on this machine, and why, whatever becomes of the test's own output.
pub fn not_checked(what: &str) {
    let line = format!("not checked here: {what}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes a line");
}
