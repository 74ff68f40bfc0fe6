//! What tests share.

#[cfg(feature = "sandbox")]
pub mod app;
pub mod postgres;
#[cfg(feature = "sandbox")]
pub mod truth;
