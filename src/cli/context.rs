//! What most commands need first: the settings, the database, and a daemon that lives.

use std::time::Duration;

use tokio::time::Instant;

use super::Globals;
use super::report::{Error, Kind, one_line};
use super::terminal::Terminal;
use crate::config::{self, Flag, Loaded, Purpose, Sources};
use crate::daemon::postgres::socket_url;
use crate::db::connections::{self, Connection};
use crate::db::{Db, DbError, daemons, migrations, vault_keys};
use crate::domain::secret::Secret;

pub use crate::db::daemons::DAEMON_LIVES;
/// How often we look for one.
const DAEMON_LOOK: Duration = Duration::from_millis(250);
/// A command asks one thing after the other; the second session is for a question while another one hangs.
const POOL_SIZE: usize = 2;

/// The surroundings of a command.
pub struct Context {
    pub terminal: Terminal,
    pub loaded: Loaded,
    daemon_wait: Duration,
}

impl Context {
    /// Reads the settings as commands do: of the secrets, only the way to the database.
    pub fn load(globals: &Globals) -> Result<Self, Error> {
        let loaded = config::load(&Self::sources(globals, Purpose::Command, Vec::new()))?;
        Ok(Self::new(globals, loaded))
    }

    pub fn new(globals: &Globals, loaded: Loaded) -> Self {
        Self { terminal: globals.terminal(), loaded, daemon_wait: globals.daemon_wait }
    }

    /// Where the settings of this process come from.
    pub fn sources(globals: &Globals, purpose: Purpose, flags: Vec<Flag>) -> Sources {
        Sources::of_process(purpose, globals.config.clone(), flags)
    }

    /// The database's address: the setting, or the private server that a daemon with our state directory runs.
    pub fn database_url(&self) -> Secret {
        let settings = &self.loaded.settings;
        settings.database.url.clone().unwrap_or_else(|| socket_url(&settings.daemon.state_dir))
    }

    /// The database, once it has answered and its schema has proved to be ours.
    pub async fn db(&self) -> Result<Db, Error> {
        let db = Db::connect(&self.database_url(), POOL_SIZE)?;
        db.run(migrations::check).await.map_err(|error| self.database_error(error))?;
        Ok(db)
    }

    /// As [`Context::db`], for commands that need a daemon: a private server that is about to be started is waited for.
    pub async fn db_of_daemon(&self) -> Result<Db, Error> {
        let deadline = Instant::now() + self.daemon_wait;
        let _spinner = self.terminal.spinner("waiting for a daemon");
        loop {
            match self.db().await {
                Err(error) if error.kind == Kind::NoDaemon && Instant::now() < deadline => {
                    tokio::time::sleep(DAEMON_LOOK).await;
                }
                done => return done,
            }
        }
    }

    /// As [`Error::from`]; without a `database.url`, a server that is not there means that no daemon runs.
    pub fn database_error(&self, error: DbError) -> Error {
        let private = self.loaded.settings.database.url.is_none();
        // A daemon that makes a private server migrates it right after.
        if !private || !matches!(error, DbError::Connect(_) | DbError::SchemaBehind { .. }) {
            return error.into();
        }
        let state_dir = &self.loaded.settings.daemon.state_dir;
        let message = format!("no daemon runs with state_dir `{}`: {error}", state_dir.display());
        Error::new(Kind::NoDaemon, one_line(&message)).hint(
            "start one with `fieldmirror run`, or name its settings with `--config`, or set `database.url`",
        )
    }

    /// Waits until a daemon lives that has published its key, and gives the key that secrets are sealed to.
    pub async fn wait_for_daemon(&self, db: &Db) -> Result<[u8; 32], Error> {
        let deadline = Instant::now() + self.daemon_wait;
        let spinner = self.terminal.spinner("waiting for a daemon");
        loop {
            let look = db.run(|conn| Ok((daemons::live(conn, DAEMON_LIVES)?, vault_keys::latest(conn)?)));
            match look.await? {
                (live, Some(key)) if !live.is_empty() => return Ok(key),
                _ if Instant::now() >= deadline => break,
                _ => tokio::time::sleep(DAEMON_LOOK).await,
            }
        }
        spinner.finish_and_clear();
        let waited = humantime::format_duration(self.daemon_wait);
        Err(Error::new(Kind::NoDaemon, format!("no live daemon within {waited}; nothing was requested"))
            .hint(
                "start one with `fieldmirror run`; `fieldmirror status` shows those that share this database",
            ))
    }
}

/// How far a word may be from a name, to be taken for a slip.
const LIKENESS_MIN: f64 = 0.8;

/// The connection of that name or id.
pub async fn find(db: &Db, word: &str) -> Result<Connection, Error> {
    let asked = word.to_owned();
    let found = db.run(move |conn| match connections::find(conn, &asked)? {
        Some(connection) => Ok(Ok(connection)),
        None => Ok(Err(connections::list(conn)?)),
    });
    found.await?.map_err(|all| unknown(word, all.iter().map(|connection| connection.name.as_str())))
}

/// A connection that does not exist, with the name that may have been meant.
pub fn unknown<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let hint = match alike(word, names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "`fieldmirror status` shows all connections".to_owned(),
    };
    Error::new(Kind::UnknownName, format!("there is no connection `{word}`")).hint(hint)
}

/// The name that may have been meant.
pub fn alike<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likely = names.map(|name| (strsim::jaro_winkler(word, name), name));
    let likely = likely.filter(|(likeness, _)| *likeness >= LIKENESS_MIN);
    likely.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised() {
        let hint = |word: &str| unknown(word, ["acme-jobber", "zenith"].into_iter()).hint.unwrap();
        assert_eq!(hint("acme-jober"), "did you mean `acme-jobber`?");
        assert_eq!(hint("17"), "`fieldmirror status` shows all connections");
    }
}
