//! The three system calls that the standard library does not offer.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What a postmaster understands (PostgreSQL documentation, "Shutting Down the Server").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Signal {
    /// "Fast": sessions are ended, a checkpoint is written.
    Fast = libc::SIGINT,
    /// "Immediate": no checkpoint; the next start recovers.
    Immediate = libc::SIGQUIT,
    Kill = libc::SIGKILL,
}

#[expect(unsafe_code, reason = "geteuid has no safe wrapper in the standard library; it cannot fail")]
pub(super) fn effective_uid() -> u32 {
    unsafe { libc::geteuid() }
}

/// False when the process is gone.
#[expect(unsafe_code, reason = "kill has no safe wrapper for processes that are not our children")]
pub(super) fn signal(pid: i32, signal: Signal) -> bool {
    // 0 and negative numbers mean whole process groups.
    pid > 0 && unsafe { libc::kill(pid, signal as i32) } == 0
}

/// Whether a process of that number exists, ours or not.
#[expect(unsafe_code, reason = "signal 0 is the portable question whether a process exists")]
pub(super) fn exists(pid: i32) -> bool {
    pid > 0
        && (unsafe { libc::kill(pid, 0) } == 0
            || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM))
}

/// The child gets a fast shutdown when the **thread** that spawns it ends. The kernel forgets the wish when the child
/// changes its user; the standard library runs this hook after that change, right before exec.
#[expect(unsafe_code, reason = "runs between fork and exec: only async-signal-safe calls, no allocation")]
pub(super) fn die_with_this_thread(command: &mut Command) {
    let parent = std::process::id();
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGINT) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the wish was known.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
