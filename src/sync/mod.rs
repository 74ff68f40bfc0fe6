//! The engine: one bounded turn for one connection. It knows no provider by name.

pub mod extract;
pub mod merge;
pub mod plan;
pub mod watermark;
