//! Plain types that every layer shares. No I/O, no async, no clock of its own, nothing of ours imported.

pub mod chance;
pub mod current;
pub mod drift;
pub mod failure;
pub mod forecast;
pub mod graphql;
pub mod ids;
pub mod measure;
pub mod record;
pub mod secret;
pub mod spec;
pub mod step;
pub mod text;
pub mod time;
pub mod token;
pub mod values;
pub mod verification;
pub mod view;
