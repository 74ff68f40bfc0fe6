//! One run of the server process: started, asked whether it answers, stopped.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::account::Account;
use super::find::Installation;
use super::layout::Layout;
use super::sys::{self, Signal};
use super::{Durability, PrivateServerError as Error, init};
use crate::db::{DbError, admin};
use crate::domain::secret::Secret;

/// A crash may leave much to recover; the server says so meanwhile, and is waited for as long as it lives.
pub(super) const START_MAX: Duration = Duration::from_mins(10);
/// How long a shutdown may take before it is made shorter: fast, immediate, killed.
const FAST_MAX: Duration = Duration::from_mins(1);
const IMMEDIATE_MAX: Duration = Duration::from_secs(10);
pub(super) const PAUSE: Duration = Duration::from_millis(25);
/// The log starts anew beyond this size.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How much of the log's end is searched for the reason of a failed start.
const TAIL_BYTES: u64 = 4096;
const REASON_LINES_MAX: usize = 3;

/// Settings of the server, on its command line so that they always are this binary's. No statements and no row contents
/// in its log: they hold customers' data.
const SETTINGS: [&str; 16] = [
    "listen_addresses=",
    "port=5432", // layout::PORT, which a unix socket carries in its name
    "unix_socket_permissions=0700",
    "max_connections=60",
    "shared_buffers=128MB",
    "jit=off",
    "cluster_name=fieldmirror",
    "timezone=UTC",
    "log_timezone=UTC",
    "lc_messages=C",
    "logging_collector=off",
    "log_destination=stderr",
    "log_checkpoints=off",
    "log_error_verbosity=terse",
    "log_min_error_statement=panic",
    "log_statement=none",
];
/// A commit still reaches the system before it is answered, so that a crash of the server alone loses none.
const SETTINGS_WITHOUT_DURABILITY: [&str; 2] = ["fsync=off", "full_page_writes=off"];

/// All that it takes to start a server.
pub(super) struct Recipe {
    pub(super) layout: Layout,
    pub(super) installed: Installation,
    pub(super) account: Option<Account>,
    pub(super) durability: Durability,
}

pub(super) struct Server {
    child: Child,
    /// Of the maintenance database, which always exists.
    url: Secret,
    layout: Layout,
    /// Where the log of this run begins.
    log_start: u64,
}

impl Recipe {
    pub(super) fn start(&self) -> Result<Server, Error> {
        let layout = &self.layout;
        let program = self.installed.program("postgres");
        let file = |source| Error::Folder { path: layout.log_file.clone(), source };
        let log = File::options().create(true).append(true).open(&layout.log_file).map_err(file)?;
        trim(&log);
        let log_start = log.metadata().map_err(file)?.len();
        let mut command = Command::new(&program);
        command.arg("-D").arg(&layout.data);
        // A list of folders: quotes keep a space in the name from ending it.
        command.arg("-c").arg(format!("unix_socket_directories=\"{}\"", layout.run.display()));
        let relaxed: &[&str] = match self.durability {
            Durability::Full => &[],
            Durability::None => &SETTINGS_WITHOUT_DURABILITY,
        };
        for setting in SETTINGS.iter().chain(relaxed) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        init::prepare(&mut command, layout, self.account.as_ref());
        let child = command.spawn().map_err(|source| Error::Spawn { program, source })?;
        Ok(Server { child, url: maintenance_url(layout), layout: layout.clone(), log_start })
    }
}

/// A short wait for a session: the one who asks also has to notice the process' end and the order to stop.
fn maintenance_url(layout: &Layout) -> Secret {
    Secret::new(format!("{}&connect_timeout=5", layout.url("postgres").expose()))
}

fn trim(log: &File) {
    // Everybody appends, so whoever writes next writes at the new end.
    if log.metadata().is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        let _ = log.set_len(0);
    }
}

/// What the server said to a new session.
pub(super) enum Answer {
    Serving,
    /// It lives, but gives nobody a session now: it recovers or shuts down.
    Busy(DbError),
    None(DbError),
}

impl Server {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn url(&self) -> &Secret {
        &self.url
    }

    pub(super) fn ask(&self) -> Answer {
        match admin::ping(&self.url) {
            Ok(()) => Answer::Serving,
            Err(DbError::Connect(text)) if serves_others(&text) => Answer::Serving,
            Err(DbError::Connect(text)) if text.contains("FATAL") => Answer::Busy(DbError::Connect(text)),
            Err(error) => Answer::None(error),
        }
    }

    /// Why the process ended, in its own words; `None` while it runs.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status.to_string(),
            Err(error) => error.to_string(),
        };
        Some(match self.last_words() {
            Some(words) => format!("{status}: {words}"),
            None => status,
        })
    }

    pub(super) fn trim_log(&self) {
        if let Ok(log) = File::options().append(true).open(&self.layout.log_file) {
            trim(&log);
        }
    }

    /// Stops the process and waits for its end: fast, then immediate, then killed.
    pub(super) fn stop(self) {
        self.end(&[(Signal::Fast, FAST_MAX), (Signal::Immediate, IMMEDIATE_MAX)]);
    }

    /// The same for a process that has ended, or that does not answer and would not hear a polite word either.
    pub(super) fn stop_at_once(self) {
        self.end(&[(Signal::Immediate, IMMEDIATE_MAX)]);
    }

    fn end(mut self, steps: &[(Signal, Duration)]) {
        for (signal, limit) in steps {
            // A child that has been waited for is never signalled: its number may be somebody else's.
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sys::signal(i32::try_from(self.child.id()).unwrap_or(0), *signal);
            let started = Instant::now();
            while started.elapsed() < *limit {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
            tracing::warn!(
                postgres.signal = ?signal, postgres.waited_s = limit.as_secs(),
                "Postgres goes on {} s after the order `{signal:?}`", limit.as_secs()
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The telling lines at the end of this run's log.
    fn last_words(&self) -> Option<String> {
        let mut log = File::open(&self.layout.log_file).ok()?;
        let end = fs::metadata(&self.layout.log_file).ok()?.len();
        let from = self.log_start.max(end.saturating_sub(TAIL_BYTES)).min(end);
        log.seek(SeekFrom::Start(from)).ok()?;
        let mut bytes = Vec::new();
        log.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
        telling(&String::from_utf8_lossy(&bytes))
    }
}

/// A server whose sessions are all taken is in good health.
fn serves_others(refusal: &str) -> bool {
    refusal.contains("too many clients") || refusal.contains("remaining connection slots")
}

fn telling(log: &str) -> Option<String> {
    let marks = ["FATAL:", "PANIC:", "HINT:", "ERROR:"];
    let text = |line: &str| {
        let start = marks.iter().filter_map(|mark| line.find(mark)).min()?;
        Some(line[start..].split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let lines: Vec<_> = log.lines().filter_map(text).collect();
    let last = &lines[lines.len().saturating_sub(REASON_LINES_MAX)..];
    (!last.is_empty()).then(|| last.join("; "))
}

#[cfg(test)]
mod tests {
    use super::telling;

    #[test]
    fn the_telling_lines_of_a_log() {
        let log = "2026-01-01 10:00:00 UTC [7] LOG:  starting\n\
                   2026-01-01 10:00:00 UTC [7] FATAL:  could not  create lock file\n\
                   2026-01-01 10:00:00 UTC [7] HINT:  Is another postmaster running?\n\
                   2026-01-01 10:00:00 UTC [7] LOG:  database system is shut down\n";
        let expected = "FATAL: could not create lock file; HINT: Is another postmaster running?";
        assert_eq!(telling(log).as_deref(), Some(expected));
        assert_eq!(telling("LOG:  starting\n"), None);
    }
}
