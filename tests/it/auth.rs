//! Grants from start link to disconnect, against a real Postgres and a provider that does what the test says.

mod consent;
mod ends;
pub mod fake;
mod faults;
mod keys;
mod refresh;
pub mod rig;
mod spill;
pub mod stage;
