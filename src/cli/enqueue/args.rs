//! The flags of `enqueue`, and which of them go together.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{ArgGroup, Args};

use super::credentials::SecretArg;
use crate::cli::report::Error;
use crate::domain::ids::ConnectionName;
use crate::domain::spec::GrantKind;

/// How long `--wait` waits for what was requested.
const WAIT_MAX: Duration = Duration::from_hours(24);

#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, Clone, Default, Args)]
#[command(group(ArgGroup::new("form").required(true).args(["connect", "reconnect", "resync", "refresh", "disconnect"])))]
pub struct EnqueueArgs {
    /// Connect an account of this provider
    #[arg(long, value_name = "PROVIDER")]
    connect: Option<String>,
    /// New consent or credentials for an existing connection; another account's are refused
    #[arg(long, value_name = "CONNECTION")]
    reconnect: Option<String>,
    #[expect(clippy::option_option, reason = "clap's shape for a flag whose value may be left out")]
    /// Read what changed, now; of one connection, or of all with --all
    #[arg(long, value_name = "CONNECTION", num_args = 0..=1)]
    resync: Option<Option<String>>,
    /// Refresh the token now
    #[arg(long, value_name = "CONNECTION")]
    refresh: Option<String>,
    /// Revoke where the provider can, wipe tokens, keep the mirrored rows
    #[arg(long, value_name = "CONNECTION")]
    disconnect: Option<String>,

    /// Name of the new connection: a-z, 0-9, `_` and `-`
    #[arg(long, help_heading = "With --connect")]
    name: Option<String>,
    /// Kind of grant, where the provider takes several: authorization_code, client_credentials, api_key, bearer_token
    #[arg(long, help_heading = "With --connect")]
    grant: Option<String>,
    /// What the grant needs besides secrets (repeatable)
    #[arg(long, value_name = "K=V", help_heading = "With --connect")]
    param: Vec<String>,
    /// A secret from a file, or from standard input; never on the command line (repeatable)
    #[arg(long, value_name = "K=@FILE|K=-", help_heading = "With --connect and --reconnect")]
    secret: Vec<String>,
    /// Print the start link and do not wait for the consent
    #[arg(long, help_heading = "With --connect and --reconnect")]
    no_wait: bool,
    /// Open the start link in this machine's browser
    #[arg(long, help_heading = "With --connect and --reconnect")]
    open: bool,

    /// Every connection
    #[arg(long, help_heading = "With --resync")]
    all: bool,
    /// Only this stream (repeatable)
    #[arg(long, value_name = "S", help_heading = "With --resync")]
    stream: Vec<String>,
    /// Read everything again, and find what was deleted
    #[arg(long, help_heading = "With --resync")]
    full: bool,
    /// Read what changed since this moment
    #[arg(long, value_name = "RFC3339", help_heading = "With --resync")]
    since: Option<String>,
    /// Let this run mark more rows as deleted than it otherwise would without asking
    #[arg(long, help_heading = "With --resync")]
    allow_mass_delete: bool,

    /// Delete the mirrored rows as well
    #[arg(long, help_heading = "With --disconnect")]
    purge: bool,

    /// Wait until it is done
    #[arg(long, help_heading = "With --resync, --refresh and --disconnect")]
    wait: bool,
    /// The longest wait, such as `10m`
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "When waiting")]
    wait_max: Option<Duration>,
}

/// What is asked for, once the flags have proved to go together.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    Connect(Connect),
    Reconnect(Reconnect),
    Request(Request),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Connect {
    pub(super) provider: String,
    pub(super) name: ConnectionName,
    /// `None`: the provider's default.
    pub(super) grant: Option<GrantKind>,
    pub(super) given: Given,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reconnect {
    /// Name or id.
    pub(super) connection: String,
    pub(super) given: Given,
}

/// What goes with both.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Given {
    pub(super) params: Vec<(String, String)>,
    pub(super) secrets: Vec<SecretArg>,
    pub(super) wait: bool,
    /// `None`: as long as the request can come to an end.
    pub(super) wait_max: Option<Duration>,
    pub(super) open: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// `None`: every connection.
    pub(super) connection: Option<String>,
    pub(super) what: What,
    pub(super) wait: bool,
    pub(super) wait_max: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    Sync { streams: Vec<String>, full: bool, since: Option<DateTime<Utc>>, allow_mass_delete: bool },
    Refresh,
    Disconnect { purge: bool },
}

impl EnqueueArgs {
    pub(super) fn understood(self) -> Result<Asked, Error> {
        let form = self.form();
        self.stray(form)?;
        match form {
            "--connect" => self.connecting().map(Asked::Connect),
            "--reconnect" => {
                let connection = self.reconnect.clone().unwrap_or_default();
                Ok(Asked::Reconnect(Reconnect { connection, given: self.given()? }))
            }
            _ => self.requesting(form).map(Asked::Request),
        }
    }

    fn form(&self) -> &'static str {
        if self.connect.is_some() {
            "--connect"
        } else if self.reconnect.is_some() {
            "--reconnect"
        } else if self.resync.is_some() {
            "--resync"
        } else if self.refresh.is_some() {
            "--refresh"
        } else {
            "--disconnect"
        }
    }

    /// Refuses a flag that says nothing about this form: who gave it meant something by it.
    fn stray(&self, form: &str) -> Result<(), Error> {
        let consent = "--connect --reconnect";
        let other = "--resync --refresh --disconnect";
        let rules = [
            ("--name", self.name.is_some(), "--connect"),
            ("--grant", self.grant.is_some(), "--connect"),
            ("--param", !self.param.is_empty(), "--connect"),
            ("--secret", !self.secret.is_empty(), consent),
            ("--no-wait", self.no_wait, consent),
            ("--open", self.open, consent),
            ("--all", self.all, "--resync"),
            ("--stream", !self.stream.is_empty(), "--resync"),
            ("--full", self.full, "--resync"),
            ("--since", self.since.is_some(), "--resync"),
            ("--allow-mass-delete", self.allow_mass_delete, "--resync"),
            ("--purge", self.purge, "--disconnect"),
            ("--wait", self.wait, other),
        ];
        let stray = rules.iter().find(|(_, given, forms)| *given && !forms.split(' ').any(|f| f == form));
        match stray {
            None => Ok(()),
            Some((flag, _, forms)) => {
                let forms: Vec<_> = forms.split(' ').map(|form| format!("`{form}`")).collect();
                let message = format!("`{flag}` goes with {}, not with `{form}`", forms.join(", "));
                Err(Error::bad_request(message).hint("see `fieldmirror enqueue --help`"))
            }
        }
    }

    fn connecting(&self) -> Result<Connect, Error> {
        let provider = self.connect.clone().unwrap_or_default();
        let Some(name) = &self.name else {
            return Err(Error::bad_request("`--connect` needs a `--name` for the new connection")
                .hint(format!("such as `fieldmirror enqueue --connect {provider} --name acme-{provider}`")));
        };
        let name = name.parse::<ConnectionName>().map_err(|error| Error::bad_request(error.to_string()))?;
        // A number is an id wherever a connection is named.
        if name.as_str().bytes().all(|byte| byte.is_ascii_digit()) {
            let message = format!("`{name}` cannot be a connection's name: a number alone is an id");
            return Err(Error::bad_request(message));
        }
        let grant = self.grant.as_deref().map(grant_of).transpose()?;
        Ok(Connect { provider, name, grant, given: self.given()? })
    }

    fn given(&self) -> Result<Given, Error> {
        if self.no_wait && self.wait_max.is_some() {
            return Err(Error::bad_request("`--wait-max` says nothing with `--no-wait`"));
        }
        Ok(Given {
            params: self.param.iter().map(|text| param_of(text)).collect::<Result<_, _>>()?,
            secrets: self.secret.iter().map(|text| SecretArg::parse(text)).collect::<Result<_, _>>()?,
            wait: !self.no_wait,
            wait_max: self.wait_max,
            open: self.open,
        })
    }

    fn requesting(&self, form: &str) -> Result<Request, Error> {
        if self.wait_max.is_some() && !self.wait {
            return Err(Error::bad_request("`--wait-max` goes with `--wait`"));
        }
        let what = match form {
            "--refresh" => What::Refresh,
            "--disconnect" => What::Disconnect { purge: self.purge },
            _ => self.syncing()?,
        };
        let named = self.resync.clone().flatten();
        let connection = match (form, named, self.all) {
            ("--resync", None, false) => {
                return Err(Error::bad_request("`--resync` needs a connection, or `--all`"));
            }
            ("--resync", Some(_), true) => {
                return Err(Error::bad_request("`--resync` takes a connection or `--all`, not both"));
            }
            ("--resync", named, _) => named,
            _ => self.refresh.clone().or_else(|| self.disconnect.clone()),
        };
        Ok(Request { connection, what, wait: self.wait, wait_max: self.wait_max.unwrap_or(WAIT_MAX) })
    }

    fn syncing(&self) -> Result<What, Error> {
        if self.full && self.since.is_some() {
            let message = "`--full` reads everything again, `--since` a part of it: give one of them";
            return Err(Error::bad_request(message));
        }
        let since = self.since.as_deref().map(|text| {
            let parsed = DateTime::parse_from_rfc3339(text).map(|since| since.to_utc());
            parsed.map_err(|_| {
                Error::bad_request(format!("`--since {text}` is not a moment"))
                    .hint("write it as in RFC 3339, such as `2026-11-21T08:00:00Z`")
            })
        });
        let mut streams = self.stream.clone();
        streams.sort();
        streams.dedup();
        Ok(What::Sync {
            streams,
            full: self.full,
            since: since.transpose()?,
            allow_mass_delete: self.allow_mass_delete,
        })
    }
}

fn grant_of(word: &str) -> Result<GrantKind, Error> {
    GrantKind::parse(word).ok_or_else(|| {
        let known: Vec<_> = GrantKind::ALL.iter().map(|grant| format!("`{}`", grant.as_str())).collect();
        Error::bad_request(format!("`{word}` is no kind of grant: expected {}", known.join(", ")))
    })
}

fn param_of(text: &str) -> Result<(String, String), Error> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.into(), value.into())),
        // Not quoted back: it may be a secret that was meant for `--secret`.
        _ => Err(Error::bad_request("`--param` needs NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: EnqueueArgs,
    }

    fn understood(line: &str) -> Result<Asked, String> {
        let words = std::iter::once("enqueue").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.args.understood().map_err(|error| error.message)
    }

    fn refused(line: &str, words: &str) {
        let message = understood(line).expect_err(line);
        assert!(message.contains(words), "{line}: {message}");
    }

    #[test]
    fn connecting() {
        let Ok(Asked::Connect(connect)) = understood(
            "--connect hubspot --name acme --grant bearer_token --secret bearer_token=@/k --param a=b=c",
        ) else {
            panic!("not understood")
        };
        assert_eq!((connect.provider.as_str(), connect.name.as_str()), ("hubspot", "acme"));
        assert_eq!(connect.grant, Some(GrantKind::BearerToken));
        assert_eq!(connect.given.params, [("a".to_owned(), "b=c".to_owned())]);
        assert!(connect.given.wait && !connect.given.open);
        let Ok(Asked::Connect(connect)) = understood("--connect hubspot --name acme --no-wait --open") else {
            panic!("not understood")
        };
        assert!(!connect.given.wait && connect.given.open);
    }

    #[test]
    fn requesting() {
        let request = |line: &str| match understood(line) {
            Ok(Asked::Request(request)) => request,
            other => panic!("{line}: {other:?}"),
        };
        let sync = |streams: &[&str], full, since: Option<&str>, allow_mass_delete| What::Sync {
            streams: streams.iter().map(|s| (*s).to_owned()).collect(),
            full,
            since: since.map(|since| since.parse().unwrap()),
            allow_mass_delete,
        };
        for (line, connection, what, wait) in [
            ("--resync acme", Some("acme"), sync(&[], false, None, false), false),
            ("--resync --all --full --wait", None, sync(&[], true, None, false), true),
            (
                "--resync 7 --stream t --stream a --stream t --allow-mass-delete",
                Some("7"),
                sync(&["a", "t"], false, None, true),
                false,
            ),
            (
                "--resync acme --since 2026-01-02T03:04:05+01:00",
                Some("acme"),
                sync(&[], false, Some("2026-01-02T02:04:05Z"), false),
                false,
            ),
            ("--refresh acme --wait", Some("acme"), What::Refresh, true),
            ("--disconnect acme", Some("acme"), What::Disconnect { purge: false }, false),
            ("--disconnect acme --purge", Some("acme"), What::Disconnect { purge: true }, false),
        ] {
            let expected = Request { connection: connection.map(Into::into), what, wait, wait_max: WAIT_MAX };
            assert_eq!(request(line), expected, "{line}");
        }
        assert_eq!(request("--refresh a --wait --wait-max 90s").wait_max, Duration::from_secs(90));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        refused("", "required");
        refused("--connect hubspot --refresh a", "cannot be used with");
        refused("--connect hubspot", "needs a `--name`");
        refused("--connect hubspot --name Acme", "is not a connection name");
        refused("--connect hubspot --name 42", "a number alone is an id");
        refused("--connect hubspot --name a --grant magic", "`magic` is no kind of grant");
        refused("--connect hubspot --name a --full", "`--full` goes with `--resync`, not with `--connect`");
        refused("--connect hubspot --name a --wait", "`--wait` goes with");
        refused("--connect hubspot --name a --no-wait --wait-max 1s", "says nothing");
        refused("--connect hubspot --name a --param hunter2", "needs NAME=VALUE");
        refused("--reconnect a --name b", "`--name` goes with `--connect`");
        refused("--reconnect a --grant api_key", "`--grant` goes with `--connect`");
        refused("--reconnect a --param k=v", "`--param` goes with `--connect`");
        refused("--resync", "needs a connection, or `--all`");
        refused("--resync a --all", "not both");
        refused("--resync a --full --since 2026-01-01T00:00:00Z", "give one of them");
        refused("--resync a --since yesterday", "`--since yesterday` is not a moment");
        refused("--resync a --wait-max 1s", "goes with `--wait`");
        refused("--resync a --purge", "`--purge` goes with `--disconnect`");
        refused("--refresh a --all", "`--all` goes with `--resync`");
        refused("--disconnect a --secret k=-", "`--secret` goes with");
    }
}
