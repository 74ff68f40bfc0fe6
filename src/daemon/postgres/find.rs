//! Finding an installed Postgres server.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PrivateServerError as Error;
use crate::db::migrations::POSTGRES_MAJOR_MIN;

/// Directories whose last but one or last part carries a version, by distribution. `*` stands for any text.
const VERSIONED: [(&str, &str, &str); 6] = [
    // Debian, Ubuntu
    ("/usr/lib/postgresql", "", "bin"),
    // Fedora and RHEL with the packages of the PostgreSQL project
    ("/usr", "pgsql-", "bin"),
    // SUSE
    ("/usr/lib", "postgresql", "bin"),
    // Alpine
    ("/usr/libexec", "postgresql", ""),
    // Homebrew on Linux
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"),
    // built from source
    ("/usr/local", "pgsql", "bin"),
];
/// The most folders looked at under one of [`VERSIONED`].
const FOLDERS_MAX: usize = 1_000;

/// A folder that holds `initdb` and `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installation {
    pub(super) bin: PathBuf,
    pub(super) major: u32,
}

impl Installation {
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The server to run: the setting's, or the first in PATH, or the newest elsewhere. Existing data wants its own major
/// version.
pub(super) fn find(pg_bin: Option<&Path>, data_major: Option<u32>) -> Result<Installation, Error> {
    if let Some(bin) = pg_bin {
        let found = look(bin).ok_or_else(|| Error::PgBin { pg_bin: bin.into() })?;
        return choose(vec![found], data_major);
    }
    let mut found: Vec<_> = search_path().iter().filter_map(|bin| look(bin)).collect();
    let mut elsewhere: Vec<_> = versioned().iter().filter_map(|bin| look(bin)).collect();
    elsewhere.sort_by_key(|installation| std::cmp::Reverse(installation.major));
    found.append(&mut elsewhere);
    choose(found, data_major)
}

fn choose(found: Vec<Installation>, data_major: Option<u32>) -> Result<Installation, Error> {
    let newest = found.iter().map(|installation| installation.major).max();
    let fits = |installation: &Installation| {
        installation.major >= POSTGRES_MAJOR_MIN && data_major.is_none_or(|major| major == installation.major)
    };
    match (found.into_iter().find(fits), newest, data_major) {
        (Some(installation), _, _) => Ok(installation),
        (None, None, _) => Err(Error::NotInstalled),
        (None, Some(_), Some(data)) => Err(Error::DataVersion { data }),
        (None, Some(found), None) => Err(Error::TooOld { found }),
    }
}

#[expect(clippy::disallowed_methods, reason = "PATH belongs to the system; it is no setting of ours")]
fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect()
}

fn versioned() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, prefix, bin) in VERSIONED {
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        for entry in entries.take(FOLDERS_MAX).flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                folders.push(entry.path().join(bin));
            }
        }
    }
    folders
}

fn look(bin: &Path) -> Option<Installation> {
    if !bin.join("initdb").is_file() {
        return None;
    }
    let answer = Command::new(bin.join("postgres"))
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let major = major(&String::from_utf8_lossy(&answer.stdout))?;
    Some(Installation { bin: bin.into(), major })
}

/// From `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, or the content of `PG_VERSION`.
pub(super) fn major(text: &str) -> Option<u32> {
    let number = text.rsplit_once("(PostgreSQL)").map_or(text, |(_, after)| after).trim_start();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors() {
        for (text, expected) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta2", Some(18)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("16\n", Some(16)),
            ("", None),
            ("bash: postgres: not found", None),
        ] {
            assert_eq!(major(text), expected, "{text}");
        }
    }

    #[test]
    fn choices() {
        let at = |major| Installation { bin: format!("/{major}").into(), major };
        let majors = |majors: &[u32], data| {
            choose(majors.iter().copied().map(at).collect(), data).map(|installation| installation.major)
        };
        assert_eq!(majors(&[14, 16, 18], None).unwrap(), 16);
        assert_eq!(majors(&[18, 16], Some(16)).unwrap(), 16);
        assert!(matches!(majors(&[18], Some(16)), Err(Error::DataVersion { data: 16 })));
        assert!(matches!(majors(&[14, 13], None), Err(Error::TooOld { found: 14 })));
        assert!(matches!(majors(&[], Some(16)), Err(Error::NotInstalled)));
    }

    #[test]
    fn a_setting_that_leads_nowhere_is_named() {
        let refusal = find(Some(Path::new("/nonexistent")), None).unwrap_err();
        assert!(refusal.to_string().contains("`database.pg_bin`"), "{refusal}");
    }
}
