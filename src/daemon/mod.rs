//! The daemon: the only place where things are built and wired.

pub mod postgres;
pub mod telemetry;
