//! The program: the command line, and its exit code.

use std::process::ExitCode;

/// Records come and go as large trees of JSON. What glibc's allocator keeps of them, in an arena for each thread, brought
/// the daemon's peak to its limit; with this one it stays well below. `docs/PERFORMANCE.md` has the figures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    give_memory_back_at_once();
    fieldmirror::cli::run(std::env::args_os()).into()
}

/// Pages of memory that are free go back to the system at once and not a second later: pages of records come and go so
/// fast that a second of them is twice what the daemon holds.
#[expect(unsafe_code, reason = "the allocator's options are set through C")]
fn give_memory_back_at_once() {
    /// `mi_option_purge_delay` in `mimalloc.h`, in milliseconds.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it stores a number; any thread may call it at any time.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) }
}
