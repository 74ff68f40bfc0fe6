//! Panics as lines of the log, in its format: what a job was doing stands in the line's fields, and whoever reads the log
//! as JSON finds no line that is none.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};

use tracing::error;

use crate::http::redact;

/// From now on panics are logged. Call it once the log has been started.
pub(super) fn log() {
    panic::set_hook(Box::new(told));
}

fn told(panic: &PanicHookInfo<'_>) {
    let said = redact::text(panic.payload_as_str().unwrap_or("no text"));
    let location = panic.location().map(ToString::to_string);
    let location = location.as_deref().unwrap_or("an unknown place");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    // Where the environment asks for one (RUST_BACKTRACE).
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    error!(
        error = said,
        panic.location = location,
        panic.backtrace = backtrace,
        "A panic at {location}, in thread `{thread}`: {said}"
    );
}
