//! How a command ends: its exit code, and errors as people and programs read them.
//!
//! An error is one sentence with its causes, and where something can be done about it a hint on a line of its own. What
//! scripts decide on is the exit code and, with `--json`, the word in `kind`; the text may change.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::Problems;
use crate::db::DbError;
use crate::domain::failure::{Failure, FailureKind};

/// The exit codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// Denied, expired, wrong account, unknown name, bad request or configuration.
    Wrong,
    /// Provider or database failed, no live daemon, wait over.
    Failed,
    /// Ctrl-C, by the shells' convention of 128 + the number of the signal.
    Interrupted,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Wrong => 1,
            Self::Failed => 2,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// What kind of error it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    BadRequest,
    UnknownName,
    Configuration,
    Denied,
    Expired,
    WrongAccount,
    Superseded,
    /// The provider, or the work that the daemon did for the request.
    Failed,
    Database,
    NoDaemon,
    WaitOver,
    Interrupted,
    Io,
    /// Whoever read our output has gone. Nobody is told.
    OutputClosed,
}

impl Kind {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownName => "unknown_name",
            Self::Configuration => "configuration",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::WrongAccount => "wrong_account",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
            Self::Database => "database",
            Self::NoDaemon => "no_daemon",
            Self::WaitOver => "wait_over",
            Self::Interrupted => "interrupted",
            Self::Io => "io",
            Self::OutputClosed => "output_closed",
        }
    }

    pub fn exit(self) -> Exit {
        match self {
            // `fieldmirror status | head -1` has done what it was asked for.
            Self::OutputClosed => Exit::Done,
            Self::BadRequest
            | Self::UnknownName
            | Self::Configuration
            | Self::Denied
            | Self::Expired
            | Self::WrongAccount
            | Self::Superseded => Exit::Wrong,
            Self::Failed | Self::Database | Self::NoDaemon | Self::WaitOver | Self::Io => Exit::Failed,
            Self::Interrupted => Exit::Interrupted,
        }
    }
}

/// Why a command did not do what it was asked for. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    /// With its causes, in one sentence without a full stop.
    pub message: String,
    pub hint: Option<String>,
    /// The command's own JSON object has told it already.
    told: bool,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, told: false }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Kind::BadRequest, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With `--json` nothing more is printed: the last object holds [`Error::json`] already.
    #[must_use]
    pub fn told(self) -> Self {
        Self { told: true, ..self }
    }

    /// Standard input, output or a file that could not be read or written. `what` names the attempt.
    pub fn io(what: &str, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Kind::OutputClosed, "the reader of the output has gone");
        }
        Self::new(Kind::Io, format!("{what}: {error}"))
    }

    /// What stands under `error` in JSON.
    pub fn json(&self) -> Value {
        json!({ "kind": self.kind.as_str(), "message": self.message, "hint": self.hint })
    }

    /// The line for stdout with `--json`; `None` when it has been told, or nobody listens.
    pub fn json_line(&self) -> Option<String> {
        let silent = self.told || self.kind == Kind::OutputClosed;
        (!silent).then(|| json!({ "error": self.json() }).to_string())
    }

    /// The lines for stderr otherwise.
    pub fn text(&self, coloured: bool) -> Option<String> {
        if self.kind == Kind::OutputClosed {
            return None;
        }
        let label =
            |word: &str, style: console::Style| style.force_styling(coloured).apply_to(word).to_string();
        let mut lines =
            vec![format!("{} {}", label("error:", console::Style::new().red().bold()), self.message)];
        if let Some(hint) = &self.hint {
            lines.push(format!("{} {hint}", label("hint:", console::Style::new().cyan().bold())));
        }
        Some(lines.join(
            "
",
        ))
    }
}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::new(Kind::Configuration, problems.to_string())
            .hint("`fieldmirror config` shows every setting and where it comes from, once these are mended")
    }
}

impl From<DbError> for Error {
    fn from(error: DbError) -> Self {
        let Failure { kind, message } = Failure::from(&error);
        let message = one_line(&message);
        match (&error, kind) {
            // These sentences say what to do.
            (
                DbError::ServerTooOld { .. } | DbError::SchemaNewer { .. } | DbError::SchemaBehind { .. },
                _,
            ) => Self::new(Kind::Configuration, message),
            (_, FailureKind::Misconfigured) => Self::new(Kind::Configuration, message)
                .hint("see `database.url` in `fieldmirror config`, and the rights of its role"),
            (DbError::Connect(_) | DbError::Busy { .. }, _) => Self::new(Kind::Database, message)
                .hint("see that Postgres runs and that `database.url` leads to it"),
            _ => Self::new(Kind::Database, message),
        }
    }
}

/// libpq spreads some of its sentences over several lines.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        use Kind::*;
        for (kinds, code) in [
            (&[BadRequest, UnknownName, Configuration, Denied, Expired, WrongAccount, Superseded][..], 1),
            (&[Failed, Database, NoDaemon, WaitOver, Io], 2),
            (&[Interrupted], 130),
            (&[OutputClosed], 0),
        ] {
            for kind in kinds {
                assert_eq!(kind.exit().code(), code, "{kind:?}");
            }
        }
        assert_eq!(Exit::Done.code(), 0);
    }

    #[test]
    fn as_people_read_it() {
        let error = Error::new(Kind::Denied, "connection `a` was denied").hint("ask again");
        assert_eq!(error.text(false).unwrap(), "error: connection `a` was denied\nhint: ask again");
        assert_eq!(console::strip_ansi_codes(&error.text(true).unwrap()), error.text(false).unwrap());
        assert_ne!(error.text(true), error.text(false));
    }

    #[test]
    fn as_programs_read_it() {
        let error = Error::bad_request("no");
        assert_eq!(
            error.json_line().unwrap(),
            r#"{"error":{"hint":null,"kind":"bad_request","message":"no"}}"#
        );
        assert_eq!(error.told().json_line(), None);
    }

    #[test]
    fn a_reader_that_left_is_told_nothing() {
        let error = Error::io("writing", &std::io::ErrorKind::BrokenPipe.into());
        assert_eq!((error.text(false), error.json_line(), error.kind.exit()), (None, None, Exit::Done));
        assert_eq!(Error::io("writing", &std::io::ErrorKind::StorageFull.into()).kind, Kind::Io);
    }

    #[test]
    fn databases_that_are_away_and_settings_that_are_wrong() {
        let away = Error::from(DbError::Connect("connection to server at \"h\" failed: refused".into()));
        assert_eq!(away.kind, Kind::Database);
        assert_eq!(one_line("failed: gone\n\tIs it running?\n"), "failed: gone Is it running?");
        let wrong = Error::from(DbError::Address("it must start with `postgresql://`"));
        assert_eq!(wrong.kind, Kind::Configuration);
        let behind = Error::from(DbError::SchemaBehind { version: "1".into() });
        assert_eq!((behind.kind, behind.hint), (Kind::Configuration, None));
    }
}
