//! Grants from start link to disconnect, against a real Postgres and a provider that does what the test says.

mod audit;
mod consent;
mod deeds;
mod ends;
pub mod fake;
mod faults;
mod keys;
mod refresh;
pub mod rig;
mod rotation;
pub mod spill;
pub mod stage;
