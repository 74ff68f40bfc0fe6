//! What tests share.

use std::io::Write as _;

#[cfg(feature = "sandbox")]
pub mod app;
pub mod disk;
#[cfg(feature = "sandbox")]
pub mod leaks;
#[cfg(feature = "sandbox")]
pub mod notify;
pub mod pages;
pub mod postgres;
#[cfg(feature = "sandbox")]
pub mod stalls;
#[cfg(feature = "sandbox")]
pub mod truth;
#[cfg(feature = "sandbox")]
pub mod webdriver;

/// Says that something is not checked on this machine, and why, whatever becomes of the test's own output.
pub fn not_checked(what: &str) {
    let line = format!("not checked here: {what}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes a line");
}
