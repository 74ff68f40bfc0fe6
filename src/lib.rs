//! fieldmirror: keeps a local Postgres mirror of field-service and CRM records.
//!
//! Layers, top down; a module imports only from below its own line (`tests/it/architecture.rs` holds it to that):
//!
//! ```text
//! cli → daemon → callback → jobs → sync → auth → { providers  http  vault  db  config } → domain
//! ```
//!
//! `sandbox` stands beside `daemon` and knows `domain` and `config` only. `docs/ARCHITECTURE.md` is the long form.

pub mod auth;
pub mod callback;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod db;
pub mod domain;
pub mod http;
pub mod jobs;
pub mod providers;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod sync;
pub mod vault;
