//! What tests share.

#[cfg(feature = "sandbox")]
pub mod app;
pub mod disk;
#[cfg(feature = "sandbox")]
pub mod leaks;
mod not_checked;
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

pub use not_checked::not_checked;
