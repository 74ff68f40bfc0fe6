//! Where settings are read from. The one place that looks at the process's environment; tests fill a [`Sources`]
//! themselves.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The file that is read when it is there.
pub const SYSTEM_FILE: &str = "/etc/fieldmirror/fieldmirror.toml";

/// What variables that are settings begin with.
pub const ENVIRONMENT_PREFIX: &str = "FIELDMIRROR_";

/// Variables of the test suite, which are never settings.
pub(super) const TEST_PREFIX: &str = "FIELDMIRROR_TEST_";

/// The kernel's names have at most 64 bytes.
const HOST_NAME_BYTES: usize = 256;

/// Which secrets are read. Commands run as users who may not read the daemon's files, and need none of them but the
/// way to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// All secrets; one that cannot be read is a problem.
    Daemon,
    /// `database.url` only. The others are `None`, whether given or not.
    Command,
}

/// A setting given as a flag of the command.
pub struct Flag {
    /// As typed, such as `--listen`.
    pub name: String,
    /// Section and key, such as `callback.listen`.
    pub key: String,
    pub value: String,
}

/// Everything that settings depend on. Neither printable nor serialisable: the environment may hold secrets.
pub struct Sources {
    pub purpose: Purpose,
    /// Read if present, before all other files.
    pub system_file: Option<PathBuf>,
    /// Files that must be there, in order.
    pub files: Vec<PathBuf>,
    /// `FIELDMIRROR_…`, and of the others `STATE_DIRECTORY`, `NOTIFY_SOCKET`, `XDG_STATE_HOME` and `HOME`.
    pub environment: BTreeMap<String, OsString>,
    /// Where systemd put credentials.
    pub credentials: Option<PathBuf>,
    pub flags: Vec<Flag>,
    /// Whether the process runs as root.
    pub privileged: bool,
    pub host_name: String,
}

impl Sources {
    /// The process's own surroundings.
    pub fn of_process(purpose: Purpose, files: Vec<PathBuf>, flags: Vec<Flag>) -> Self {
        let environment: BTreeMap<String, OsString> =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        Self {
            purpose,
            system_file: Some(SYSTEM_FILE.into()),
            files,
            credentials: environment.get("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            environment,
            flags,
            privileged: effective_user() == 0,
            host_name: host_name(),
        }
    }

    /// Nothing but the built-in settings, as on a host named `host` where we are root. For tests.
    pub fn none() -> Self {
        Self {
            purpose: Purpose::Daemon,
            system_file: None,
            files: Vec::new(),
            environment: BTreeMap::new(),
            credentials: None,
            flags: Vec::new(),
            privileged: true,
            host_name: "host".to_owned(),
        }
    }

    /// Whether systemd has started us and wants to hear from us (`Type=notify`).
    pub fn under_systemd(&self) -> bool {
        self.environment.contains_key("NOTIFY_SOCKET")
    }

    pub(super) fn directory_variable(&self, name: &str) -> Option<&Path> {
        self.environment.get(name).map(Path::new).filter(|path| path.is_absolute())
    }
}

#[expect(unsafe_code, reason = "the standard library does not tell the effective user")]
fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() }
}

/// The kernel's name for this host. Not read from /proc/sys, which a unit may hide (`ProcSubset=pid`).
pub fn host_name() -> String {
    let mut name = [0_u8; HOST_NAME_BYTES];
    #[expect(unsafe_code, reason = "the standard library does not tell the host's name")]
    // SAFETY: it writes into a live local of which it is told the size, less one byte that stays zero.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), HOST_NAME_BYTES - 1) } != 0;
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    let name = String::from_utf8_lossy(&name[..length]).trim().to_owned();
    if failed || name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_surroundings() {
        let sources = Sources::of_process(Purpose::Command, vec!["/a".into()], Vec::new());
        assert_eq!(sources.system_file.as_deref(), Some(Path::new(SYSTEM_FILE)));
        assert_eq!(sources.files, [Path::new("/a")]);
        assert!(sources.environment.contains_key("PATH"));
        assert!(!sources.host_name.is_empty() && !sources.host_name.contains('\n'));
    }
}
