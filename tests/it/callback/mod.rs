//! The endpoint that browsers reach, under attack and in a real browser.

#[cfg(feature = "sandbox")]
mod browser;
#[cfg(feature = "sandbox")]
mod flood;
mod injection;
#[cfg(feature = "sandbox")]
mod log;
mod raw;
mod states;
mod wire;
