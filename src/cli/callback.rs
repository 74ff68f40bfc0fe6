//! `fieldmirror callback`: does what the callback endpoint would, with the address that the browser was sent to.
//!
//! The address holds the authorization code, so it travels sealed to the daemon's key. Its `state` means nothing to us;
//! its hash tells which consent it belongs to.

use std::io::Read as _;

use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use url::Url;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::context::{Context, find};
use super::enqueue::{CONNECT_JOB, Object, VERIFY_WAIT_MAX, await_end};
use super::report::{Error, Exit, Kind};
use crate::db::connections::{self, Connection};
use crate::db::requests::{Boxed, NewRequest, RequestKind};
use crate::db::{Db, asks, authorizations};
use crate::domain::secret::Secret;
use crate::vault::HandedOver;

/// More than any browser sends.
const ADDRESS_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub struct CallbackArgs {
    /// The whole address that the browser was sent to after the consent, in quotes; `-` reads it from standard input,
    /// where nobody sees it in the process list
    #[arg(value_name = "URL|-")]
    url: String,
    /// The connection that the consent is for; needed only when the address has no `state`
    #[arg(long, value_name = "NAME")]
    connection: Option<String>,
}

pub async fn run(cx: &Context, args: CallbackArgs) -> Result<Exit, Error> {
    let address = if args.url == "-" { read_address()? } else { Secret::new(args.url) };
    let pasted = Pasted::parse(&address)?;
    let db = cx.db_of_daemon().await?;
    let connection = match (&args.connection, pasted.state_hash) {
        (Some(name), _) => find(&db, name).await?,
        (None, Some(hash)) => of_state(&db, hash).await?,
        (None, None) => {
            return Err(Error::bad_request(
                "the address has no `state`: it does not tell which consent it belongs to",
            )
            .hint("name the connection with `--connection NAME`"));
        }
    };
    let daemon_key = cx.wait_for_daemon(&db).await?;
    let with = HandedOver { connection: connection.id, request: Uuid::now_v7() };
    let sealed = with.seal(&daemon_key, pasted.url.expose().as_bytes());
    let sealed = Some(Boxed { request: with.request, sealed });
    let new = NewRequest { connection: connection.id, kind: RequestKind::Callback, args: json!({}), sealed };
    let asked = db.transaction(move |conn| asks::ask(conn, &new, CONNECT_JOB)).await?;
    await_end(cx, &db, Object::new(connection, &asked), VERIFY_WAIT_MAX).await
}

fn read_address() -> Result<Secret, Error> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().take(ADDRESS_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| Error::io("reading the address from standard input", &error))?;
    Ok(Secret::new(text.as_str()))
}

/// What a person pasted.
#[derive(Debug)]
struct Pasted {
    url: Secret,
    state_hash: Option<[u8; 32]>,
}

impl Pasted {
    /// Nothing of the address is quoted back: it holds the code.
    fn parse(address: &Secret) -> Result<Self, Error> {
        let text = address.expose().trim();
        let hint = "copy the whole address line of the browser, from `http` on, and put it in quotes";
        if text.len() as u64 > ADDRESS_BYTES_MAX {
            return Err(Error::bad_request(format!("the address has more than {ADDRESS_BYTES_MAX} bytes")));
        }
        let url = Url::parse(text).map_err(|error| {
            Error::bad_request(format!("what was given is not an address: {error}")).hint(hint)
        })?;
        let parameter = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value);
        if parameter("code").is_none() && parameter("error").is_none() {
            let message = "the address has neither `code` nor `error`: no consent ended there";
            return Err(Error::bad_request(message).hint(hint));
        }
        let state_hash = parameter("state").map(|state| Sha256::digest(state.as_bytes()).into());
        Ok(Self { url: Secret::new(text), state_hash })
    }
}

async fn of_state(db: &Db, hash: [u8; 32]) -> Result<Connection, Error> {
    let found = db.run(move |conn| match authorizations::connection_of_state(conn, &hash)? {
        Some(id) => Ok(Some(connections::get(conn, id)?)),
        None => Ok(None),
    });
    found.await?.ok_or_else(|| {
        Error::new(Kind::UnknownName, "the address belongs to no consent that was begun here")
            .hint("see that `--config` leads to the right database; consents that are over are forgotten: ask for a new link")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| Pasted::parse(&text.into());
        let pasted = parse(" http://127.0.0.1:8787/oauth/callback/hubspot?code=C&state=a%2Bb \n").unwrap();
        assert_eq!(pasted.url.expose(), "http://127.0.0.1:8787/oauth/callback/hubspot?code=C&state=a%2Bb");
        assert_eq!(pasted.state_hash, Some(Sha256::digest(b"a+b").into()));
        assert_eq!(parse("http://h/cb?error=access_denied").unwrap().state_hash, None);
        for refused in
            ["", "code=hunter2", "http://h/cb", "http://h/cb?state=hunter2", "http://[hunter2?code=1"]
        {
            let error = parse(refused).expect_err(refused);
            assert_eq!(error.kind, Kind::BadRequest);
            assert!(!error.text(false).unwrap().contains("hunter2"), "{refused}");
        }
        assert!(parse(&format!("http://h/?code={}", "x".repeat(70_000))).is_err());
    }
}
