//! `enqueue --connect` and `enqueue --reconnect`: a request, the links that the daemon makes for it, and the end.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::args::{Connect, Given, Reconnect};
use super::consent::{Links, Object, conclude};
use super::credentials;
use crate::cli::context::{Context, find};
use crate::cli::report::{Error, Exit, Kind};
use crate::cli::terminal;
use crate::cli::wait::{Waited, wait};
use crate::db::asks::{self, Asked, Ended};
use crate::db::connections::{self, Connection, NewConnection, Pending};
use crate::db::requests::{self, Boxed, NewRequest, RequestKind};
use crate::db::{Db, DbError, PgConnection};
use crate::domain::ids::ConnectionId;
use crate::domain::spec::{GrantKind, GrantSpec, ProviderSpec};
use crate::domain::time::{Clock as _, SystemClock, until};
use crate::vault::{HandedOver, ReplyKey};

/// The job that sees to `connect` and `callback` requests.
pub(in crate::cli) const JOB: &str = "connect";
/// How long a daemon takes at most to make the links.
const LINKS_WAIT_MAX: Duration = Duration::from_mins(1);
/// How long the verification of a key or of a code takes at most: an exchange and its retries.
pub(in crate::cli) const VERIFY_WAIT_MAX: Duration = Duration::from_mins(5);
/// What a consent in the last moment still takes.
const GRACE: Duration = Duration::from_mins(2);

pub(super) async fn connect(cx: &Context, asked: Connect) -> Result<Exit, Error> {
    let spec = credentials::provider(&asked.provider)?;
    let grant = credentials::grant(spec, asked.grant)?;
    check_given(spec, grant, &asked.given, false)?;
    let new = NewConnection {
        name: asked.name,
        provider: spec.name.to_owned(),
        grant: grant.kind,
        params: credentials::params(&asked.given.params)?.into(),
    };
    let secrets = credentials::read_secrets(&asked.given.secrets)?;
    let db = cx.db_of_daemon().await?;
    let (draft, reply_key) = Draft::new(cx.wait_for_daemon(&db).await?, secrets, false);
    let placed = db.transaction(move |conn| match connections::create_pending(conn, &new)? {
        Pending::Taken(connection) => Ok(Err(connection)),
        Pending::Created(connection) | Pending::Renewed(connection) => {
            let asked = draft.place(conn, &connection)?;
            Ok(Ok((connection, asked)))
        }
    });
    let (connection, request) = placed.await?.map_err(|connection| taken(&connection))?;
    see_through(cx, &db, connection, request, &reply_key, &asked.given).await
}

pub(super) async fn reconnect(cx: &Context, asked: Reconnect) -> Result<Exit, Error> {
    let db = cx.db_of_daemon().await?;
    let connection = find(&db, &asked.connection).await?;
    let spec = credentials::provider(&connection.provider)?;
    let grant = credentials::grant(spec, Some(connection.grant))?;
    check_given(spec, grant, &asked.given, true)?;
    let secrets = credentials::read_secrets(&asked.given.secrets)?;
    let (draft, reply_key) = Draft::new(cx.wait_for_daemon(&db).await?, secrets, true);
    let id = connection.id;
    let placed = db.transaction(move |conn| {
        let connection = connections::lock(conn, id)?;
        let asked = draft.place(conn, &connection)?;
        Ok((connection, asked))
    });
    let (connection, request) = placed.await?;
    see_through(cx, &db, connection, request, &reply_key, &asked.given).await
}

/// A new connection needs all that its grant needs. A new consent for an old one keeps what is not given again; a new
/// key has to be given. Parameters say which account it is, and stay.
fn check_given(spec: &ProviderSpec, grant: &GrantSpec, given: &Given, again: bool) -> Result<(), Error> {
    let of = format!("the grant `{}` of {}", grant.kind.as_str(), spec.title);
    let params: Vec<&str> = given.params.iter().map(|(name, _)| name.as_str()).collect();
    let secrets: Vec<&str> = given.secrets.iter().map(|secret| secret.name.as_str()).collect();
    if !again {
        credentials::check_names("--param", grant.params, &params, false, &of)?;
    }
    let kept = again && grant.kind.needs_consent();
    credentials::check_names("--secret", grant.secrets, &secrets, kept, &of)?;
    if given.open && !grant.kind.needs_consent() {
        return Err(Error::bad_request(format!("`--open` says nothing here: {of} has no consent page")));
    }
    Ok(())
}

/// A request that is not on record yet.
struct Draft {
    args: Value,
    daemon_key: [u8; 32],
    secrets: Option<Zeroizing<Vec<u8>>>,
}

impl Draft {
    /// Returns what opens the answer as well.
    fn new(daemon_key: [u8; 32], secrets: Option<Zeroizing<Vec<u8>>>, reconnect: bool) -> (Self, ReplyKey) {
        let reply_key = ReplyKey::generate();
        let args = json!({ "reply_to": BASE64.encode(reply_key.public()), "reconnect": reconnect });
        (Self { args, daemon_key, secrets }, reply_key)
    }

    /// Puts the request on record. The daemon ends earlier ones of the connection as superseded, together with their links.
    fn place(self, conn: &mut PgConnection, connection: &Connection) -> Result<Asked, DbError> {
        asks::ask(conn, &self.for_connection(connection.id, connection.grant), JOB)
    }

    fn for_connection(mut self, connection: ConnectionId, grant: GrantKind) -> NewRequest {
        self.args["grant"] = grant.as_str().into();
        let sealed = self.secrets.map(|secrets| {
            let with = HandedOver { connection, request: Uuid::now_v7() };
            Boxed { request: with.request, sealed: with.seal(&self.daemon_key, &secrets) }
        });
        NewRequest { connection, kind: RequestKind::Connect, args: self.args, sealed }
    }
}

fn taken(connection: &Connection) -> Error {
    let Connection { name, provider, state, .. } = connection;
    let message =
        format!("the name `{name}` belongs to a connection already ({provider}, {})", state.as_str());
    Error::bad_request(message).hint(format!(
        "for a new consent run `fieldmirror enqueue --reconnect {name}`; for another account choose another name"
    ))
}

/// Shows the request, waits as asked, and shows the end.
async fn see_through(
    cx: &Context,
    db: &Db,
    connection: Connection,
    asked: Asked,
    reply_key: &ReplyKey,
    given: &Given,
) -> Result<Exit, Error> {
    if asked.parked {
        cx.terminal.note(&super::request::parked(&connection.name, &asked));
    }
    let mut object = Object::new(connection, &asked);
    if object.connection.grant.needs_consent()
        && let Some(links) = links(cx, db, &object, reply_key).await?
    {
        show_links(cx, &object, &links, given.open)?;
        object.links = Some(links);
    }
    if cx.terminal.json {
        terminal::print_object(&object.json())?;
    }
    // Without links a consent has ended before it began: that is told, whether or not its end is waited for.
    let is_over = object.connection.grant.needs_consent() && object.links.is_none();
    if !given.wait && !is_over {
        if object.links.is_none() && !cx.terminal.json {
            terminal::line(&format!(
                "Requested; `fieldmirror status {}` shows how it goes",
                object.connection.name
            ))?;
        }
        return Ok(Exit::Done);
    }
    let limit = given.wait_max.unwrap_or_else(|| match &object.links {
        Some(links) => until(links.expires_at, SystemClock.now()) + GRACE,
        None => VERIFY_WAIT_MAX,
    });
    await_end(cx, db, object, limit).await
}

/// The links, once the daemon has made them; `None` when the request ended before.
async fn links(cx: &Context, db: &Db, object: &Object, reply_key: &ReplyKey) -> Result<Option<Links>, Error> {
    let spinner = cx.terminal.spinner("asking the daemon for a start link");
    let id = object.request;
    let waited = wait(db, LINKS_WAIT_MAX, move |conn| {
        let request = requests::get(conn, id)?;
        Ok((request.reply_sealed.is_some() || request.done_at.is_some()).then_some(request.reply_sealed))
    });
    let waited = waited.await?;
    spinner.finish_and_clear();
    let name = &object.connection.name;
    match waited {
        Waited::Got(sealed) => sealed.map(|sealed| Links::open(reply_key, &sealed)).transpose(),
        Waited::Over => {
            Err(Error::new(Kind::WaitOver, format!("the daemon made no start link for `{name}` in time"))
                .hint(format!(
                    "`fieldmirror jobs` shows job {}, `fieldmirror status {name}` the connection",
                    object.job
                )))
        }
        Waited::Interrupted => Err(interrupted(name)),
    }
}

fn show_links(cx: &Context, object: &Object, links: &Links, open: bool) -> Result<(), Error> {
    let terminal = &cx.terminal;
    if !terminal.json {
        let until = links.expires_at.format("%Y-%m-%d %H:%M UTC");
        let Connection { name, provider, .. } = &object.connection;
        terminal::line(&format!(
            "To connect `{name}` ({provider}), open this link and agree. It is good until {until}, and may be sent to the \
             owner of the account:\n\n  {}\n\nOr begin at the provider's own page, within the next minutes:\n\n  {}\n",
            links.start_url, links.authorize_url
        ))?;
    }
    if open && let Err(error) = open_in_browser(&links.start_url) {
        terminal.note(&format!("The browser was not opened (`xdg-open`: {error}); open the link yourself"));
    }
    Ok(())
}

/// Starts the desktop's browser and does not wait for it.
fn open_in_browser(link: &str) -> std::io::Result<()> {
    let null = Stdio::null;
    std::process::Command::new("xdg-open").arg(link).stdin(null()).stdout(null()).stderr(null()).spawn()?;
    Ok(())
}

/// Waits for the end of a `connect` or `callback` request, and shows what has become of the connection.
pub(in crate::cli) async fn await_end(
    cx: &Context,
    db: &Db,
    object: Object,
    limit: Duration,
) -> Result<Exit, Error> {
    let consent = object.links.is_some();
    let message =
        if consent { "waiting for the consent (Ctrl-C leaves the link valid)" } else { "verifying" };
    let spinner = cx.terminal.spinner(message);
    let waited = wait(db, limit, ended(object.request)).await?;
    spinner.finish_and_clear();
    let name = object.connection.name.clone();
    match waited {
        Waited::Got(None) => {
            Err(Error::new(Kind::Superseded, format!("connection `{name}` was removed meanwhile")))
        }
        Waited::Got(Some(ended)) => {
            let id = object.connection.id;
            let connection = db.run(move |conn| connections::get(conn, id)).await?;
            let concluded = conclude(&ended, &connection).map_err(Error::told);
            let object = object.finished(connection, ended);
            if cx.terminal.json {
                terminal::print_object(&object.json())?;
            } else if concluded.is_ok() {
                terminal::line(&object.text())?;
            }
            concluded.map(|()| Exit::Done)
        }
        Waited::Over => {
            Err(Error::new(Kind::WaitOver, format!("`{name}` is not connected yet, and the wait is over"))
                .hint(format!("the request stands: `fieldmirror status {name}` shows how it goes")))
        }
        Waited::Interrupted => Err(match &object.links {
            Some(links) => interrupted(&name).hint(format!(
                "the start link stays good until {}",
                links.expires_at.format("%Y-%m-%d %H:%M UTC")
            )),
            None => interrupted(&name),
        }),
    }
}

/// A look for the end of a request; its inner `None` means that the request is gone.
fn ended(id: Uuid) -> impl Fn(&mut PgConnection) -> Result<Option<Option<Ended>>, DbError> + Clone + Send {
    move |conn| {
        if let Some(ended) = asks::ended(conn, &[id])?.pop() {
            return Ok(Some(Some(ended)));
        }
        match requests::get(conn, id) {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(Some(None)),
            Err(error) => Err(error),
        }
    }
}

fn interrupted(name: &str) -> Error {
    Error::new(Kind::Interrupted, format!("interrupted while waiting for `{name}`"))
        .hint(format!("the request stands: `fieldmirror status {name}` shows how it goes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::enqueue::credentials::{SecretArg, SecretSource, grant, provider};

    fn given(secrets: &[&str], open: bool) -> Given {
        let secret = |name: &&str| SecretArg { name: (*name).to_owned(), source: SecretSource::Stdin };
        Given {
            params: Vec::new(),
            secrets: secrets.iter().map(secret).collect(),
            wait: true,
            wait_max: None,
            open,
        }
    }

    #[test]
    fn what_a_grant_needs() {
        let hubspot = provider("hubspot").unwrap();
        let check = |kind, secrets: &[&str], open, again| {
            check_given(hubspot, grant(hubspot, Some(kind)).unwrap(), &given(secrets, open), again).is_ok()
        };
        assert!(check(GrantKind::AuthorizationCode, &[], true, false));
        assert!(!check(GrantKind::AuthorizationCode, &["bearer_token"], false, false));
        assert!(check(GrantKind::BearerToken, &["bearer_token"], false, false));
        assert!(!check(GrantKind::BearerToken, &[], false, false));
        assert!(!check(GrantKind::BearerToken, &[], false, true), "a new key must be given");
        assert!(!check(GrantKind::BearerToken, &["bearer_token"], true, false), "there is no page to open");
    }

    #[test]
    fn secrets_travel_sealed_only() {
        let (draft, reply_key) =
            Draft::new(ReplyKey::generate().public(), Some(Zeroizing::new(b"hunter2".to_vec())), false);
        assert!(!draft.args.to_string().contains("hunter2"));
        assert_eq!(draft.args["reconnect"], false);
        let reply_to = BASE64.decode(draft.args["reply_to"].as_str().unwrap()).unwrap();
        assert_eq!(reply_to, reply_key.public());
        let placed = draft.for_connection(ConnectionId(7), GrantKind::BearerToken);
        assert!(!placed.sealed.unwrap().sealed.windows(7).any(|bytes| bytes == b"hunter2"));
        assert_eq!(placed.args["grant"], "bearer_token");
    }
}
