//! The state directory, room on its disk, the alert program, and the programs of the private server.

use std::ffi::CString;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::Finding;
use crate::config::Settings;
use crate::daemon::postgres;

/// Bits of a directory's mode that let others than its owner write.
const WRITE_OF_OTHERS: u32 = 0o022;
/// Less free space than this is too little to go on with, and little.
const FREE_MIN: u64 = 256 * 1024 * 1024;
const FREE_LITTLE: u64 = 2 * 1024 * 1024 * 1024;

pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    let state_dir = &settings.daemon.state_dir;
    let mut findings = vec![state(state_dir)];
    findings.extend(room(state_dir));
    if settings.database.url.is_none() {
        findings.push(private_server(settings));
    }
    findings.extend(alert_program(&settings.alerts.exec));
    findings
}

fn state(path: &Path) -> Finding {
    const CHECK: &str = "state_dir";
    let shown = path.display();
    let make =
        format!("`install -d -m 0700 -o USER {shown}` with the daemon's user, or set `daemon.state_dir`");
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Finding::unknown(CHECK, format!("`{shown}` may not be looked at by this user"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("`{shown}` is not there yet");
            return if nearest(path).is_some_and(|parent| may(parent, libc::W_OK)) {
                Finding::ok(CHECK, format!("{text}; the daemon makes it"))
            } else {
                Finding::ill(CHECK, format!("{text}, and this user cannot make it"), make)
            };
        }
        Err(error) => return Finding::ill(CHECK, format!("`{shown}`: {error}"), make),
    };
    if !found.is_dir() {
        return Finding::ill(CHECK, format!("`{shown}` is no directory"), make);
    }
    judge_mode(path, &found)
}

fn judge_mode(path: &Path, found: &Metadata) -> Finding {
    const CHECK: &str = "state_dir";
    let (shown, mode) = (path.display(), found.permissions().mode() & 0o7777);
    if mode & WRITE_OF_OTHERS != 0 {
        let text = format!("others than its owner may write to `{shown}` (mode {mode:04o})");
        return Finding::ill(CHECK, text, format!("`chmod 700 {shown}`"));
    }
    if !may(path, libc::W_OK) {
        let text = format!("`{shown}` belongs to user {}, and this user may not write there", found.uid());
        return Finding::unknown(CHECK, text);
    }
    Finding::ok(CHECK, format!("`{shown}` can be written to"))
}

/// The nearest folder above that is there.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|parent| parent.exists())
}

fn room(path: &Path) -> Option<Finding> {
    let there = path.ancestors().find(|path| path.exists())?;
    Some(judge_room(there, free_bytes(there)?))
}

fn judge_room(path: &Path, free: u64) -> Finding {
    const CHECK: &str = "disk_space";
    let text = format!("{} MiB are free at `{}`", free / 1024 / 1024, path.display());
    let remedy = "make room there, or set `daemon.state_dir` to a larger disk";
    if free < FREE_MIN {
        Finding::ill(CHECK, text, remedy)
    } else if free < FREE_LITTLE {
        Finding::warning(CHECK, text, remedy)
    } else {
        Finding::ok(CHECK, text)
    }
}

fn private_server(settings: &Settings) -> Finding {
    const CHECK: &str = "private_postgres";
    let database = &settings.database;
    match postgres::installed(&settings.daemon.state_dir, database.pg_bin.as_deref()) {
        Ok(found) => {
            Finding::ok(CHECK, format!("`database.url` is empty, so {found} is used: fit for evaluation"))
        }
        Err(error) => Finding::ill(
            CHECK,
            error,
            "install Postgres 15 or newer, or correct `database.pg_bin`, or set `database.url`",
        ),
    }
}

fn alert_program(exec: &[String]) -> Option<Finding> {
    const CHECK: &str = "alert_program";
    let path = Path::new(exec.first()?);
    let shown = path.display();
    Some(match std::fs::metadata(path) {
        Ok(found) if found.is_file() && may(path, libc::X_OK) => {
            Finding::ok(CHECK, format!("`{shown}` can be run"))
        }
        Ok(_) => Finding::ill(
            CHECK,
            format!("`{shown}` is no program that this user may run"),
            format!("`chmod +x {shown}`, or correct `alerts.exec`"),
        ),
        Err(error) => Finding::ill(
            CHECK,
            format!("`{shown}`: {error}"),
            "correct `alerts.exec`, or put the program there",
        ),
    })
}

fn c_path(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}

#[expect(unsafe_code, reason = "the standard library does not tell what the process may do with a file")]
fn may(path: &Path, what: libc::c_int) -> bool {
    // SAFETY: the path is a C string that outlives the call, which only reads it.
    c_path(path).is_some_and(|path| unsafe { libc::access(path.as_ptr(), what) } == 0)
}

#[expect(unsafe_code, reason = "the standard library does not tell how full a disk is")]
fn free_bytes(path: &Path) -> Option<u64> {
    let path = c_path(path)?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a C string, and `found` has room for what the call writes.
    let done = unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) };
    // SAFETY: the call said that it has filled it.
    (done == 0).then(|| unsafe { found.assume_init() }).map(|found| found.f_bavail * found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn room_on_the_disk() {
        for (free, level) in [(0, Level::Ill), (FREE_MIN, Level::Warning), (FREE_LITTLE, Level::Ok)] {
            let found = judge_room(Path::new("/"), free);
            assert_eq!((found.check, found.level), ("disk_space", level), "{free}");
        }
        assert!(free_bytes(Path::new("/")).is_some());
    }

    #[test]
    fn alert_programs() {
        let level = |exec: &[&str]| {
            let exec: Vec<String> = exec.iter().map(|word| (*word).to_owned()).collect();
            alert_program(&exec).map(|finding| finding.level)
        };
        assert_eq!(level(&[]), None);
        assert_eq!(level(&["/bin/sh", "-c", "x"]), Some(Level::Ok));
        assert_eq!(level(&["/bin"]), Some(Level::Ill));
        assert_eq!(level(&["/nonexistent"]), Some(Level::Ill));
    }
}
