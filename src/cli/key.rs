//! `fieldmirror key`: makes a vault key, and tells which keys are in use. Neither needs the key itself.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Globals;
use super::context::Context;
use super::report::{Error, Exit};
use super::table::{left, right, table};
use super::terminal;
use crate::db::vault_use::{self, KeyUse, SealedIn};
use crate::vault;

#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print a new key, and nothing else, on standard output: `(umask 077; fieldmirror key generate > FILE)`
    Generate,
    /// Show which keys are published, and how many stored values each has sealed
    Status,
}

pub async fn run(globals: &Globals, args: KeyArgs) -> Result<Exit, Error> {
    match args.action {
        Action::Generate => generate(globals),
        Action::Status => status(&Context::load(globals)?).await,
    }
}

/// The one place that prints a secret: it is what was asked for, and belongs to nobody yet.
fn generate(globals: &Globals) -> Result<Exit, Error> {
    let key = vault::generate_key();
    globals.terminal().result(|| json!({ "key": key.expose() }), || key.expose().to_owned())?;
    Ok(Exit::Done)
}

async fn status(cx: &Context) -> Result<Exit, Error> {
    let db = cx.db().await?;
    let keys = db.run(vault_use::keys).await?;
    cx.terminal.result(
        || json!({ "keys": keys.iter().map(object).collect::<Vec<_>>() }),
        || text(&keys, terminal::width()),
    )?;
    Ok(Exit::Done)
}

fn object(key: &KeyUse) -> Value {
    let sealed: serde_json::Map<_, _> = SealedIn::ALL
        .into_iter()
        .map(|place| (place.as_str().to_owned(), key.sealed(place).into()))
        .collect();
    json!({
        "key_id": key.key_id,
        "active": key.active,
        "published_at": key.published_at,
        "sealed": sealed,
    })
}

fn text(keys: &[KeyUse], width: usize) -> String {
    if keys.is_empty() {
        return "No key has been published yet: no daemon has run with this database".to_owned();
    }
    let mut columns = vec![left("KEY"), left("STATE"), left("PUBLISHED")];
    columns.extend(SealedIn::ALL.map(|place| right(place.heading())));
    let rows: Vec<Vec<String>> = keys
        .iter()
        .map(|key| {
            let published = key.published_at.map(|at| at.format("%Y-%m-%d %H:%M UTC").to_string());
            let mut row = vec![
                key.key_id.clone().unwrap_or_else(|| "unreadable".to_owned()),
                state(key).to_owned(),
                published.unwrap_or_else(|| "-".to_owned()),
            ];
            row.extend(SealedIn::ALL.map(|place| key.sealed(place).to_string()));
            row
        })
        .collect();
    table(&columns, &rows, width)
}

fn state(key: &KeyUse) -> &'static str {
    match (key.active, key.published_at) {
        (true, _) => "active",
        (false, Some(_)) => "published",
        (false, None) => "in use",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_programs_and_people_read_it() {
        let key = KeyUse {
            key_id: Some("57c28003f45931c9".into()),
            active: true,
            published_at: Some("2026-11-21T08:00:00Z".parse().unwrap()),
            counts: vec![(SealedIn::Tokens, 3)],
        };
        let expected = json!({
            "key_id": "57c28003f45931c9", "active": true, "published_at": "2026-11-21T08:00:00Z",
            "sealed": { "tokens": 3, "secrets": 0, "authorization_attempts": 0 },
        });
        assert_eq!(object(&key), expected);
        assert!(
            text(&[key], 100).contains("57c28003f45931c9  active  2026-11-21 08:00 UTC       3        0")
        );
        assert!(text(&[], 100).contains("No key has been published"));
    }
}
