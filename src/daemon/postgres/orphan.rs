//! What an earlier daemon left running on our data. We hold the state directory's lock, so nobody has a use for it.
//!
//! Numbers in pid files prove nothing: processes end and their numbers are given out again. Every Postgres process works
//! in its data folder, and `/proc` tells who does.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::PrivateServerError as Error;
use super::layout::Layout;
use super::sys::{self, Signal};

/// After its parent's death a server shuts down by itself. It is helped along when it takes long.
const STEPS: [(Duration, Signal); 3] = [
    (Duration::ZERO, Signal::Fast),
    (Duration::from_secs(30), Signal::Immediate),
    (Duration::from_secs(40), Signal::Kill),
];
const WAIT_MAX: Duration = Duration::from_secs(50);
const PAUSE: Duration = Duration::from_millis(50);
/// The most processes of one server: 60 sessions and a dozen of its own, generously.
const PROCESSES_MAX: usize = 1_000;

/// Ends every process that works in the data folder, then removes pid files that would stop a new server without reason.
pub(super) fn clear(layout: &Layout) -> Result<(), Error> {
    let started = Instant::now();
    let mut steps = STEPS.iter().peekable();
    loop {
        let left = working_in(&layout.data);
        if left.is_empty() {
            break;
        }
        if started.elapsed() > WAIT_MAX {
            return Err(Error::Orphan { pid: left[0], data: layout.data.clone() });
        }
        if let Some((_, signal)) = steps.next_if(|(after, _)| started.elapsed() >= *after) {
            end(layout, &left, *signal);
        }
        std::thread::sleep(PAUSE);
    }
    layout.pid_files.iter().for_each(|file| forget(file));
    Ok(())
}

/// The postmaster ends its own; when it is dead already, the others notice by themselves and get the stronger signals only.
fn end(layout: &Layout, left: &[i32], signal: Signal) {
    let postmaster = pid_in(&layout.pid_files[0]).filter(|pid| left.contains(pid));
    match postmaster {
        Some(pid) => {
            tracing::warn!(
                postgres.pid = pid,
                postgres.signal = ?signal,
                "Stopping Postgres process {pid}, left by an earlier daemon ({signal:?})"
            );
            sys::signal(pid, signal);
        }
        None if signal == Signal::Fast => {}
        None => left.iter().for_each(|pid| {
            sys::signal(*pid, signal);
        }),
    }
}

/// Postgres sees for itself that a dead process' file is stale, and checks for shared memory left behind while it does.
/// What it cannot see is that the number now belongs to somebody else; then the file is removed.
fn forget(pid_file: &Path) {
    if pid_in(pid_file).is_some_and(sys::exists) {
        let _ = fs::remove_file(pid_file);
    }
}

/// The first line; negative while a single-user server holds it.
fn pid_in(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.lines().next()?.trim().parse::<i32>().ok().map(i32::abs)
}

fn working_in(data: &Path) -> Vec<i32> {
    let Ok(data) = data.canonicalize() else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    let works_here = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    let is_postgres = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| matches!(name.trim_end(), "postgres" | "postmaster"))
    };
    let mut found: Vec<_> = processes
        .flatten()
        .filter_map(pid)
        .filter(works_here)
        .filter(is_postgres)
        .take(PROCESSES_MAX)
        .collect();
    found.sort_unstable();
    found
}
