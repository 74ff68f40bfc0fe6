//! What tests share.

#[cfg(feature = "sandbox")]
pub mod app;
pub mod disk;
#[cfg(feature = "sandbox")]
pub mod leaks;
#[cfg(feature = "sandbox")]
pub mod notify;
pub mod postgres;
#[cfg(feature = "sandbox")]
pub mod truth;
#[cfg(feature = "sandbox")]
pub mod webdriver;
