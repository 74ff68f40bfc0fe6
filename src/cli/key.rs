//! `fieldmirror key`: makes a vault key, tells which keys are in use, and has the daemon change to another one. None of
//! it needs the key itself.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Globals;
use super::context::{Context, DAEMON_LIVES};
use super::report::{Error, Exit, Kind};
use super::table::{left, right, table};
use super::terminal;
use super::wait::{Waited, wait};
use crate::db::asks::{self, Asked, Ended};
use crate::db::daemons::Daemon;
use crate::db::requests::RequestOutcome;
use crate::db::rotations;
use crate::db::vault_use::{self, KeyUse, KeysInUse, SealedIn};
use crate::vault;

/// How long a rotation is waited for: minutes for any number of connections, and the daemons have to agree first.
const WAIT_MAX: Duration = Duration::from_hours(1);

#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print a new key, and nothing else, on standard output: `(umask 077; fieldmirror key generate > FILE)`
    Generate,
    /// Seal all that is stored anew with the key in `[vault] key_file`, and prove that no other key is used any more
    Rotate {
        /// Do not wait until it is done
        #[arg(long)]
        no_wait: bool,
        /// The longest wait, such as `10m`
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait_max: Option<Duration>,
    },
    /// Show which keys are in use, by what, and which may be removed
    Status,
}

/// What may hold values that a key has sealed, and cannot be seen from here.
const NOT_LOOKED_AT: [&str; 2] = ["old backups", "hosts whose daemon is stopped"];

pub async fn run(globals: &Globals, args: KeyArgs) -> Result<Exit, Error> {
    match args.action {
        Action::Generate => generate(globals),
        Action::Rotate { no_wait, wait_max } => {
            let wait_max = (!no_wait).then_some(wait_max.unwrap_or(WAIT_MAX));
            rotate(&Context::load(globals)?, wait_max).await
        }
        Action::Status => status(&Context::load(globals)?).await,
    }
}

/// The one place that prints a secret: it is what was asked for, and belongs to nobody yet.
fn generate(globals: &Globals) -> Result<Exit, Error> {
    let key = vault::generate_key();
    globals.terminal().result(|| json!({ "key": key.expose() }), || key.expose().to_owned())?;
    Ok(Exit::Done)
}

/// `wait_max`: `None` not to wait.
async fn rotate(cx: &Context, wait_max: Option<Duration>) -> Result<Exit, Error> {
    let db = cx.db_of_daemon().await?;
    cx.wait_for_daemon(&db).await?;
    let asked = db.transaction(rotations::ask).await?;
    if asked.parked {
        cx.terminal.note(&format!(
            "warning: the job is parked after crashing; `fieldmirror jobs retry {}` runs it again",
            asked.job
        ));
    }
    cx.terminal.result(
        || json!({ "requests": [request(&asked, None)] }),
        || "Requested the rotation of the vault key".to_owned(),
    )?;
    let Some(wait_max) = wait_max else { return Ok(Exit::Done) };
    let spinner = cx.terminal.spinner("sealing anew");
    let id = asked.request;
    let waited = wait(&db, wait_max, move |conn| Ok(asks::ended(conn, &[id])?.pop())).await?;
    spinner.finish_and_clear();
    let hint = "the request stands: `fieldmirror key status` shows how far it is";
    match waited {
        Waited::Got(ended) => conclude(cx, &asked, &ended),
        Waited::Over => Err(Error::new(Kind::WaitOver, "not done yet, and the wait is over").hint(hint)),
        Waited::Interrupted => Err(Error::new(Kind::Interrupted, "interrupted while waiting").hint(hint)),
    }
}

fn conclude(cx: &Context, asked: &Asked, ended: &Ended) -> Result<Exit, Error> {
    let message = ended.message.as_deref().unwrap_or_default();
    let error = match ended.outcome {
        RequestOutcome::Done => None,
        RequestOutcome::Refused => Some(Error::bad_request(message)),
        _ => {
            Some(Error::new(Kind::Failed, message).hint("`fieldmirror key status` shows what uses which key"))
        }
    };
    if cx.terminal.json {
        let mut object = json!({ "requests": [request(asked, Some(ended))] });
        if let Some(error) = &error {
            object["error"] = error.json();
        }
        terminal::print_object(&object)?;
        return error.map_or(Ok(Exit::Done), |error| Err(error.told()));
    }
    error.map_or_else(|| terminal::line(message).map(|()| Exit::Done), Err)
}

/// The object of the contract for a request; this one concerns no connection.
fn request(asked: &Asked, ended: Option<&Ended>) -> Value {
    json!({
        "request_id": asked.request,
        "job_id": asked.job.to_string(),
        "connection": null,
        "connection_id": null,
        "kind": rotations::KIND,
        "outcome": ended.map(|ended| ended.outcome.as_str()),
        "message": ended.and_then(|ended| ended.message.as_deref()),
    })
}

async fn status(cx: &Context) -> Result<Exit, Error> {
    let db = cx.db().await?;
    let used = db.run(|conn| vault_use::keys(conn, DAEMON_LIVES)).await?;
    cx.terminal.result(
        || {
            json!({
                "keys": used.keys.iter().map(|key| object(&used, key)).collect::<Vec<_>>(),
                "daemons": used.daemons.iter().map(daemon).collect::<Vec<_>>(),
            })
        },
        || text(&used, terminal::width()),
    )?;
    Ok(Exit::Done)
}

fn object(used: &KeysInUse, key: &KeyUse) -> Value {
    let sealed: serde_json::Map<_, _> = SealedIn::ALL
        .into_iter()
        .map(|place| (place.as_str().to_owned(), key.sealed(place).into()))
        .collect();
    let needs = used.needs(key);
    json!({
        "key_id": key.key_id,
        "active": key.active,
        "published_at": key.published_at,
        "sealed": sealed,
        "connections": key.connections,
        "removable": key.key_id.is_some() && needs.is_empty(),
        "needed_for": needs,
        "not_looked_at": NOT_LOOKED_AT,
    })
}

fn daemon(daemon: &Daemon) -> Value {
    json!({
        "id": daemon.id,
        "host": daemon.host,
        "seals_with": daemon.seals_with,
        "opens_with": daemon.opens_with,
        "spill_keys": daemon.spill_keys,
    })
}

fn text(used: &KeysInUse, width: usize) -> String {
    if used.keys.is_empty() {
        return "No key has been published yet: no daemon has run with this database".to_owned();
    }
    let mut columns = vec![left("KEY"), left("STATE"), left("PUBLISHED")];
    columns.extend(SealedIn::ALL.map(|place| right(place.heading())));
    let rows: Vec<Vec<String>> = used
        .keys
        .iter()
        .map(|key| {
            let published = key.published_at.map(|at| at.format("%Y-%m-%d %H:%M UTC").to_string());
            let mut row = vec![name(key), state(key).to_owned(), published.unwrap_or_else(|| "-".to_owned())];
            row.extend(SealedIn::ALL.map(|place| key.sealed(place).to_string()));
            row
        })
        .collect();
    let mut lines = vec![table(&columns, &rows, width).trim_end().to_owned()];
    lines.extend(used.keys.iter().map(|key| verdict(used, key)));
    lines.join("\n")
}

fn verdict(used: &KeysInUse, key: &KeyUse) -> String {
    let Some(id) = &key.key_id else {
        return "unreadable: no key is noted for these values, such as those of requests from an older program"
            .to_owned();
    };
    let needs = used.needs(key);
    let text = match needs.as_slice() {
        [] => format!(
            "{id}: nothing uses it; its file may be removed, and be kept only with {}",
            NOT_LOOKED_AT.join(" and for ")
        ),
        needs => format!("{id}: keep its file: {}", needs.join("; ")),
    };
    match key.connections.as_slice() {
        [] => text,
        names => format!("{text} (connections: {})", names.join(", ")),
    }
}

fn name(key: &KeyUse) -> String {
    key.key_id.clone().unwrap_or_else(|| "unreadable".to_owned())
}

fn state(key: &KeyUse) -> &'static str {
    match (key.active, key.published_at) {
        (true, _) => "active",
        (false, Some(_)) => "published",
        (false, None) if key.total() > 0 => "in use",
        (false, None) => "known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, active: bool, tokens: i64) -> KeyUse {
        KeyUse {
            key_id: Some(id.into()),
            active,
            published_at: active.then(|| "2026-11-21T08:00:00Z".parse().unwrap()),
            counts: vec![(SealedIn::Tokens, tokens)],
            connections: if active { Vec::new() } else { vec!["acme".into()] },
        }
    }

    fn used(keys: Vec<KeyUse>) -> KeysInUse {
        KeysInUse { keys, daemons: Vec::new(), silent: Vec::new(), links_until: None }
    }

    #[test]
    fn as_programs_and_people_read_it() {
        let used = used(vec![key("57c28003f45931c9", true, 3), key("00ff", false, 2), key("aa", false, 0)]);
        let expected = json!({
            "key_id": "57c28003f45931c9", "active": true, "published_at": "2026-11-21T08:00:00Z",
            "sealed": { "tokens": 3, "secrets": 0, "authorization_attempts": 0, "requests": 0 },
            "connections": [], "removable": false,
            "needed_for": ["3 values are sealed with it", "commands seal to it"],
            "not_looked_at": ["old backups", "hosts whose daemon is stopped"],
        });
        assert_eq!(object(&used, &used.keys[0]), expected);
        assert_eq!(object(&used, &used.keys[1])["removable"], false);
        assert_eq!(object(&used, &used.keys[2])["removable"], true);
        let page = text(&used, 100);
        assert!(page.contains("57c28003f45931c9  active  2026-11-21 08:00 UTC       3        0"), "{page}");
        assert!(page.contains("00ff: keep its file: 2 values are sealed with it, which"), "{page}");
        assert!(page.contains("(connections: acme)"), "{page}");
        assert!(page.contains("aa: nothing uses it; its file may be removed"), "{page}");
    }

    #[test]
    fn before_there_is_a_key() {
        assert!(text(&used(Vec::new()), 100).contains("No key has been published"));
    }
}
