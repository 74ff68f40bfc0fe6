//! Where the private server keeps its things, and how it is reached: `{state_dir}/postgres/{data,run,log}`.

use std::path::{Path, PathBuf};

use super::PrivateServerError as Error;
use crate::domain::secret::Secret;

/// The database, and the superuser that owns it.
pub(super) const NAME: &str = "fieldmirror";
/// Part of the socket's file name; nothing listens on a TCP port.
const PORT: u16 = 5432;
/// `sun_path` of a unix socket holds 108 bytes, one of them the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) state_dir: PathBuf,
    pub(super) root: PathBuf,
    pub(super) data: PathBuf,
    /// Where initdb works; becomes `data` by a rename, so that a half-made one is never taken for a whole one.
    pub(super) data_unfinished: PathBuf,
    pub(super) run: PathBuf,
    pub(super) log: PathBuf,
    pub(super) log_file: PathBuf,
    /// Says which daemon holds the state directory.
    pub(super) lock_file: PathBuf,
    /// Postgres' own pid files, beside the data and beside the socket.
    pub(super) pid_files: [PathBuf; 2],
}

impl Layout {
    /// Refuses a state directory whose socket could not be named. A short directory elsewhere, found by a hash of the
    /// state directory, would lift the limit, but every user can make directories in `/tmp` first, and whoever looks for
    /// the socket would not find it where the rest is: an error with the remedy in it serves people better.
    pub(super) fn of(state_dir: &Path) -> Result<Self, Error> {
        let state_dir = std::path::absolute(state_dir)
            .map_err(|source| Error::Folder { path: state_dir.into(), source })?;
        let layout = Self::unchecked(state_dir);
        let Some(run) = layout.run.to_str().filter(|run| !run.contains([',', '"', '\n'])) else {
            return Err(Error::StateDirName { state_dir: layout.state_dir });
        };
        let bytes = socket_file(run).len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            let excess = bytes - SOCKET_PATH_BYTES_MAX;
            return Err(Error::SocketPath { state_dir: layout.state_dir, bytes, excess });
        }
        Ok(layout)
    }

    fn unchecked(state_dir: PathBuf) -> Self {
        let root = state_dir.join("postgres");
        let log = root.join("log");
        Self {
            data: root.join("data"),
            data_unfinished: root.join("data.unfinished"),
            run: root.join("run"),
            log_file: log.join("postgres.log"),
            lock_file: root.join("lock"),
            pid_files: [root.join("data/postmaster.pid"), root.join(format!("{}.lock", socket_file("run")))],
            log,
            root,
            state_dir,
        }
    }

    /// The address of a database of this server.
    pub(super) fn url(&self, database: &str) -> Secret {
        // The form encoding, but for the space: libpq reads `+` as itself.
        let encode = |text: &str| -> String {
            url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
        };
        let run = self.run.to_string_lossy();
        let run: Vec<_> = run.split('/').map(encode).collect();
        Secret::new(format!("postgresql:///{}?host={}&user={NAME}", encode(database), run.join("/")))
    }
}

fn socket_file(run: &str) -> String {
    format!("{run}/.s.PGSQL.{PORT}")
}

/// The address of the private server of `state_dir`, whether it runs or not: for commands beside the daemon.
pub fn socket_url(state_dir: &Path) -> Secret {
    let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.into());
    Layout::unchecked(state_dir).url(NAME)
}

/// What a person types to look into the private server of `state_dir`.
pub fn psql_line(state_dir: &Path) -> String {
    let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.into());
    let run = Layout::unchecked(state_dir).run;
    format!("psql -h {} -U {NAME} {NAME}", shell_word(&run.to_string_lossy()))
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |state_dir: &str, url: &str, psql: &str| {
            assert_eq!(socket_url(Path::new(state_dir)).expose(), url);
            assert_eq!(psql_line(Path::new(state_dir)), psql);
        };
        check(
            "/var/lib/fieldmirror",
            "postgresql:///fieldmirror?host=/var/lib/fieldmirror/postgres/run&user=fieldmirror",
            "psql -h /var/lib/fieldmirror/postgres/run -U fieldmirror fieldmirror",
        );
        check(
            "/home/o'neil & co",
            "postgresql:///fieldmirror?host=/home/o%27neil%20%26%20co/postgres/run&user=fieldmirror",
            r"psql -h '/home/o'\''neil & co/postgres/run' -U fieldmirror fieldmirror",
        );
    }

    #[test]
    fn the_socket_must_have_room() {
        let tail = "/postgres/run/.s.PGSQL.5432".len();
        let fits = format!("/{}", "x".repeat(SOCKET_PATH_BYTES_MAX - tail - 1));
        assert!(Layout::of(Path::new(&fits)).is_ok());
        let refusal = Layout::of(Path::new(&format!("{fits}y"))).unwrap_err();
        assert!(matches!(refusal, Error::SocketPath { bytes: 108, excess: 1, .. }), "{refusal}");
        assert!(matches!(Layout::of(Path::new("/a,b")), Err(Error::StateDirName { .. })));
    }
}
