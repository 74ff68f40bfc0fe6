//! Tests against a real Postgres, in one binary.

mod postgres;
mod queue;
