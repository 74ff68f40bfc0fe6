//! `fieldmirror demo`: a private Postgres, the sandbox and a daemon in one go, on invented records.
//!
//! Nothing is faked: the daemon is the one that `run` starts, the account is connected by the command that an admin would
//! type, and the consent goes through the sandbox's page. What is shown at the end is asked of the database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::report::{Error, Exit, Kind};
use super::run::{log, not_started};
use super::table::{Column, left, table};
use super::{Globals, terminal};
use crate::config::{self, Flag, Purpose, Settings, Sources};
use crate::daemon::postgres::psql_line;
use crate::daemon::{Daemon, Options};
use crate::db::{Db, rows};
use crate::sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox, SandboxOptions};
use crate::vault::generate_key;

/// More take longer to make and to read than anybody watches.
const RECORDS_MAX: u64 = 1_000_000;
/// How often we look whether everything has been read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long the first read may take for each thousand records, under HubSpot's own rate limits, and besides.
const WAIT_PER_THOUSAND: Duration = Duration::from_secs(30);
const WAIT_BESIDES: Duration = Duration::from_mins(3);
/// Bytes of an answer of the sandbox or the endpoint that are looked at.
const ANSWER_MAX: u64 = 64 * 1024;
const NAME: &str = "demo";

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Records in the invented account
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(0..=RECORDS_MAX))]
    records: u64,
    /// End when everything has been mirrored
    #[arg(long)]
    once: bool,
}

pub async fn run(globals: &Globals, args: DemoArgs) -> Result<Exit, Error> {
    let folder = Folder::new()?;
    let sandbox = sandbox(args.records).await?;
    let base = sandbox.base_url();
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| Error::io("listening", &error))?;
    let settings = settings(&folder.0, &base, &listener)?;
    // What the daemon tells is of interest when asked for; what the demo shows is on stdout.
    log(
        &Globals { quiet: globals.quiet + u8::from(globals.verbose == 0), ..globals.clone() },
        settings.daemon.log_format,
    )?;
    let options = Options { listener: Some(listener), ..Options::default() };
    let daemon = Daemon::start(settings, options).await.map_err(not_started)?;
    let told = tokio::select! {
        told = show(globals, &args, &daemon, &folder.0, &base) => told,
        () = terminal::told_to_stop() => Ok(()),
    };
    daemon.stop().await;
    told?;
    Ok(Exit::Done)
}

/// Everything between the daemon's start and its end.
async fn show(
    globals: &Globals,
    args: &DemoArgs,
    daemon: &Daemon,
    state_dir: &Path,
    sandbox: &str,
) -> Result<(), Error> {
    let say = |text: &str| if globals.json { Ok(()) } else { terminal::line(text) };
    say(&format!("A daemon serves on http://{}, an invented HubSpot on {sandbox}", daemon.callback_addr))?;
    say(&format!("\n$ fieldmirror enqueue --connect hubspot --name {NAME}"))?;
    let authorize_url = enqueue(daemon).await?;
    let account = consent(&authorize_url).await?;
    say(&format!("Consent given on the sandbox's page; {account}"))?;
    wait_until_read(globals, daemon.db(), args.records).await?;
    let psql = psql_line(state_dir);
    let found = report(daemon.db()).await?;
    if globals.json {
        terminal::print_object(&json!({ "tables": found_objects(&found), "psql": psql }))?;
    } else {
        for (title, text) in &found {
            terminal::line(&format!("\n{title}\n\n{}", text.1))?;
        }
        terminal::line(&format!("\nTo query it yourself while this runs:\n\n  {psql}"))?;
    }
    if args.once {
        return Ok(());
    }
    let (ticket, account) = some_ticket(daemon.db()).await?;
    say(&format!(
        "\nChange something, for example archive a ticket, and look again some seconds later:\n\n  \
         curl -d '{{\"do\": \"archive\", \"id\": {ticket}}}' {sandbox}/control/hubspot/accounts/{account}\n\nCtrl-C ends it and removes everything.",
    ))?;
    std::future::pending().await
}

// ---- setting up

/// The folder of a demo, removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Error> {
        let name = format!("fieldmirror-demo-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder)
            .map_err(|error| Error::io("making a folder for the demo", &error))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is the temporary folder's to clean.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn sandbox(records: u64) -> Result<crate::sandbox::Running, Error> {
    let records = usize::try_from(records).unwrap_or(usize::MAX);
    let options = SandboxOptions { records, accounts: 1, ..SandboxOptions::default() };
    let made = tokio::task::spawn_blocking(|| Sandbox::new(options)).await;
    let made = made.map_err(|error| Error::new(Kind::Failed, format!("making the records: {error}")))?;
    made.start().await.map_err(|error| Error::io("serving the sandbox", &error))
}

/// Built-in settings but for the sandbox's addresses, a key of its own, and intervals that one can watch.
fn settings(state_dir: &Path, sandbox: &str, listener: &TcpListener) -> Result<Settings, Error> {
    let address = listener.local_addr().map_err(|error| Error::io("asking for our own address", &error))?;
    let hubspot = |path: &str| format!("{sandbox}/hubspot{path}");
    let flags = [
        ("daemon.state_dir", state_dir.display().to_string()),
        ("callback.public_url", format!("http://{address}")),
        ("vault.key", generate_key().expose().to_owned()),
        ("sync.poll_interval", "5s".to_owned()),
        ("sync.archived_interval", "10s".to_owned()),
        ("sync.hold_back", "1s".to_owned()),
        ("sync.overlap", "10s".to_owned()),
        ("providers.hubspot.client_id", CLIENT_ID.to_owned()),
        ("providers.hubspot.client_secret", CLIENT_SECRET.to_owned()),
        ("providers.hubspot.api_base", hubspot("")),
        ("providers.hubspot.authorize_url", hubspot("/oauth/authorize")),
        ("providers.hubspot.token_url", hubspot("/oauth/2026-03/token")),
        ("providers.hubspot.revoke_url", hubspot("/oauth/2026-03/token/revoke")),
    ];
    let flag = |(key, value): (&str, String)| Flag { name: "demo".to_owned(), key: key.to_owned(), value };
    let sources =
        Sources { purpose: Purpose::Daemon, flags: flags.into_iter().map(flag).collect(), ..Sources::none() };
    Ok(config::load(&sources)?.settings)
}

// ---- connecting

/// What an admin would type, typed. Returns the authorize URL that it prints.
async fn enqueue(daemon: &Daemon) -> Result<Url, Error> {
    let program = std::env::current_exe().map_err(|error| Error::io("finding this program", &error))?;
    let output = tokio::process::Command::new(program)
        .args(["enqueue", "--connect", "hubspot", "--name", NAME, "--no-wait", "--json"])
        .env("FIELDMIRROR_DATABASE__URL", daemon.database_url.expose())
        .output()
        .await
        .map_err(|error| Error::io("running `fieldmirror enqueue`", &error))?;
    let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let url = object["authorize_url"].as_str().and_then(|url| Url::parse(url).ok());
    url.ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Error::new(Kind::Failed, format!("`fieldmirror enqueue` made no link: {}", said.trim()))
    })
}

/// Agrees on the sandbox's page and follows it back to the endpoint, as a browser would.
async fn consent(authorize_url: &Url) -> Result<String, Error> {
    let mut page = authorize_url.clone();
    page.query_pairs_mut().append_pair("auto", "approve");
    let (status, location) = get(&page).await?;
    let back = location.and_then(|location| Url::parse(&location).ok());
    let back = back.ok_or_else(|| {
        Error::new(Kind::Failed, format!("the sandbox's consent page answered {status} and led nowhere"))
    })?;
    match get(&back).await? {
        (200, _) => Ok("the endpoint says: connected".to_owned()),
        (status, _) => Err(Error::new(Kind::Failed, format!("the endpoint answered {status}"))),
    }
}

/// One GET on loopback: the status, and where a redirect leads.
async fn get(url: &Url) -> Result<(u16, Option<String>), Error> {
    let io = |error| Error::io("asking a server of the demo", &error);
    let host = format!("{}:{}", url.host_str().unwrap_or_default(), url.port().unwrap_or(80));
    let mut stream = TcpStream::connect(&host).await.map_err(io)?;
    let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await.map_err(io)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let location = answer.lines().take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
    });
    Ok((status, location))
}

// ---- looking

const PROGRESS: &str = "SELECT coalesce(bool_and(backfill_done AND state = 'idle'), false) AS done,
    coalesce(sum(rows + deleted_rows) FILTER (WHERE stream = 'tickets'), 0) AS tickets,
    string_agg(stream || ' is ' || state || coalesce(': ' || stalled_reason, ''), '; ')
        FILTER (WHERE state IN ('stalled', 'forbidden')) AS ill
  FROM mirror.freshness";

async fn wait_until_read(globals: &Globals, db: &Db, records: u64) -> Result<(), Error> {
    let thousands = u32::try_from(records / 1000).unwrap_or(u32::MAX);
    let limit = WAIT_BESIDES + WAIT_PER_THOUSAND.saturating_mul(thousands);
    let bar = globals.terminal().progress(records);
    let reading = async {
        loop {
            let found = db.run(|connection| rows::objects(connection, PROGRESS)).await?;
            let found = found.first().cloned().unwrap_or_default();
            bar.set_position(found["tickets"].as_u64().unwrap_or(0));
            if let Some(ill) = found["ill"].as_str() {
                return Err(Error::new(Kind::Failed, ill.to_owned()));
            }
            if found["done"] == true {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let read = tokio::time::timeout(limit, reading).await;
    bar.finish_and_clear();
    read.unwrap_or_else(|_| Err(Error::new(Kind::WaitOver, "not everything was read in time")))
}

/// Title, query and columns of what is shown.
const SHOWN: [(&str, &str, &[&str]); 3] = [
    (
        "Tickets mirrored, from mirror.tickets:",
        "SELECT pipeline, provider_status, status, count(*) AS tickets,
                count(*) FILTER (WHERE deleted_at IS NOT NULL) AS deleted
         FROM mirror.tickets GROUP BY 1, 2, 3 ORDER BY tickets DESC, 1, 2",
        &["pipeline", "provider_status", "status", "tickets", "deleted"],
    ),
    (
        "The latest, from mirror.tickets:",
        "SELECT id, left(subject, 40) AS subject, provider_status, owner_name FROM mirror.tickets
         WHERE deleted_at IS NULL ORDER BY updated_at DESC LIMIT 5",
        &["id", "subject", "provider_status", "owner_name"],
    ),
    (
        "How far it can be relied upon, from mirror.freshness:",
        "SELECT stream, state, rows, deleted_rows, to_char(complete_to, 'YYYY-MM-DD HH24:MI:SS') AS complete_to,
                to_char(lag, 'HH24:MI:SS') AS lag FROM mirror.freshness ORDER BY stream",
        &["stream", "state", "rows", "deleted_rows", "complete_to", "lag"],
    ),
];

type Shown = (&'static str, (Vec<Value>, String));

async fn report(db: &Db) -> Result<Vec<Shown>, Error> {
    let mut shown = Vec::new();
    for (title, sql, columns) in SHOWN {
        let found = db.run(move |connection| rows::objects(connection, sql)).await?;
        let heads: Vec<Column> = columns.iter().map(|name| left(name)).collect();
        let cells: Vec<Vec<String>> =
            found.iter().map(|row| columns.iter().map(|name| text(&row[*name])).collect()).collect();
        let drawn = table(&heads, &cells, terminal::width());
        shown.push((title, (found, drawn)));
    }
    Ok(shown)
}

fn found_objects(shown: &[Shown]) -> Value {
    shown.iter().map(|(title, (rows, _))| json!({ "title": title, "rows": rows })).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A living ticket and its account.
async fn some_ticket(db: &Db) -> Result<(String, String), Error> {
    let sql =
        "SELECT t.id, c.account_id FROM mirror.tickets t JOIN mirror.connections c ON c.id = t.connection_id
               WHERE t.deleted_at IS NULL ORDER BY t.updated_at DESC LIMIT 1";
    let found = db.run(move |connection| rows::objects(connection, sql)).await?;
    let found = found.first().cloned().unwrap_or_default();
    Ok((text(&found["id"]), text(&found["account_id"])))
}
