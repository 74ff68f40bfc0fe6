//! `fieldmirror demo`: a private Postgres, the sandbox and a daemon in one go, on invented records.
//!
//! Nothing is faked: the daemon is the one that `run` starts, the accounts are connected by the command that an admin
//! would type, and consents go through the sandbox's pages. What is shown at the end is asked of the database.

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
use crate::sandbox::{Connect, Running, Sandbox, SandboxOptions};
use crate::vault::generate_key;

/// More take longer to make and to read than anybody watches.
const RECORDS_MAX: u64 = 1_000_000;
/// How often we look whether everything has been read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long the first read may take for each thousand records, under the providers' own rate limits, and besides. Jobber's is
/// the slowest: a thousand jobs with their visits and clients cost some 58,000 points, and 450 come back each second.
const WAIT_PER_THOUSAND: Duration = Duration::from_mins(3);
const WAIT_BESIDES: Duration = Duration::from_mins(3);
/// Bytes of an answer of the sandbox or the endpoint that are looked at.
const ANSWER_MAX: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Records in each invented account
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
    let settings = settings(&folder.0, sandbox.control().settings(&base), &listener)?;
    // What the daemon tells is of interest when asked for; what the demo shows is on stdout.
    log(
        &Globals { quiet: globals.quiet + u8::from(globals.verbose == 0), ..globals.clone() },
        settings.daemon.log_format,
    )?;
    let options = Options { listener: Some(listener), ..Options::default() };
    let daemon = Daemon::start(settings, options).await.map_err(not_started)?;
    let told = tokio::select! {
        told = show(globals, &args, &daemon, &folder.0, &sandbox) => told,
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
    sandbox: &Running,
) -> Result<(), Error> {
    let say = |text: &str| if globals.json { Ok(()) } else { terminal::line(text) };
    let base = sandbox.base_url();
    let stand_ins = sandbox.control().stand_ins();
    let titles: Vec<&str> = stand_ins.iter().map(|stand_in| stand_in.title()).collect();
    say(&format!(
        "A daemon serves on http://{}, invented accounts of {} on {base}\n",
        daemon.callback_addr,
        titles.join(", ")
    ))?;
    for stand_in in stand_ins {
        let connect = stand_in.connects().into_iter().next().unwrap_or_default();
        let words = words(stand_in.name(), &connect, state_dir)?;
        say(&format!("$ fieldmirror {}", words.join(" ")))?;
        match enqueue(daemon, &words).await? {
            Some(authorize_url) => {
                say(&format!("Consent given on the sandbox's page; {}", consent(&authorize_url).await?))?;
            }
            None => say("The daemon verifies the credentials by itself")?,
        }
    }
    wait_until_read(globals, daemon.db(), args.records, stand_ins.len()).await?;
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
         curl -d '{{\"do\": \"archive\", \"id\": {ticket}}}' {base}/control/hubspot/accounts/{account}\n\nCtrl-C ends it and removes everything.",
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

async fn sandbox(records: u64) -> Result<Running, Error> {
    let records = usize::try_from(records).unwrap_or(usize::MAX);
    let options = SandboxOptions { records, accounts: 1, ..SandboxOptions::default() };
    let made = tokio::task::spawn_blocking(|| Sandbox::new(options)).await;
    let made = made.map_err(|error| Error::new(Kind::Failed, format!("making the records: {error}")))?;
    made.start().await.map_err(|error| Error::io("serving the sandbox", &error))
}

/// Built-in settings but for the sandbox's addresses, a key of its own, and intervals that one can watch.
fn settings(
    state_dir: &Path,
    stand_ins: Vec<(&str, &str, String)>,
    listener: &TcpListener,
) -> Result<Settings, Error> {
    let address = listener.local_addr().map_err(|error| Error::io("asking for our own address", &error))?;
    let flags = [
        ("daemon.state_dir", state_dir.display().to_string()),
        ("callback.public_url", format!("http://{address}")),
        ("metrics.listen", "127.0.0.1:0".to_owned()),
        ("vault.key", generate_key().expose().to_owned()),
        ("sync.poll_interval", "5s".to_owned()),
        ("sync.archived_interval", "10s".to_owned()),
        ("sync.hold_back", "1s".to_owned()),
        ("sync.overlap", "10s".to_owned()),
    ];
    let flag = |(key, value): (String, String)| Flag { name: "demo".to_owned(), key, value };
    let own = flags.into_iter().map(|(key, value)| (key.to_owned(), value));
    let stand_ins =
        stand_ins.into_iter().map(|(name, key, value)| (format!("providers.{name}.{key}"), value));
    let flags = own.chain(stand_ins).map(flag).collect();
    let sources = Sources { purpose: Purpose::Daemon, flags, ..Sources::none() };
    Ok(config::load(&sources)?.settings)
}

// ---- connecting

/// What an admin would type. Secrets are in files, as the command wants them.
fn words(provider: &str, connect: &Connect, state_dir: &Path) -> Result<Vec<String>, Error> {
    let mut words: Vec<String> = ["enqueue", "--connect", provider, "--name"].map(str::to_owned).into();
    words.push(format!("demo-{provider}"));
    for (name, value) in &connect.params {
        words.extend(["--param".to_owned(), format!("{name}={value}")]);
    }
    for (name, secret) in &connect.secrets {
        let file = state_dir.join(format!("{provider}.{name}"));
        std::fs::write(&file, secret).map_err(|error| Error::io("writing a secret of the demo", &error))?;
        words.extend(["--secret".to_owned(), format!("{name}=@{}", file.display())]);
    }
    Ok(words)
}

/// Types it. Returns the authorize URL that it prints, where the grant needs a consent.
async fn enqueue(daemon: &Daemon, words: &[String]) -> Result<Option<Url>, Error> {
    let program = std::env::current_exe().map_err(|error| Error::io("finding this program", &error))?;
    let output = tokio::process::Command::new(program)
        .args(words)
        .args(["--no-wait", "--json"])
        .env("FIELDMIRROR_DATABASE__URL", daemon.database_url.expose())
        // A file of this machine's own settings would be a second address.
        .env("FIELDMIRROR_DATABASE__URL_FILE", "")
        .output()
        .await
        .map_err(|error| Error::io("running `fieldmirror enqueue`", &error))?;
    let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(Error::new(Kind::Failed, format!("`fieldmirror enqueue` failed: {}", said.trim())));
    }
    Ok(object["authorize_url"].as_str().and_then(|url| Url::parse(url).ok()))
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
    count(DISTINCT connection_name) AS accounts,
    coalesce(sum(rows + deleted_rows) FILTER (WHERE stream IN ('tickets', 'jobs', 'bookings')), 0) AS records,
    string_agg(stream || ' is ' || state || coalesce(': ' || stalled_reason, ''), '; ')
        FILTER (WHERE state IN ('stalled', 'forbidden')) AS ill
  FROM mirror.freshness";

async fn wait_until_read(globals: &Globals, db: &Db, records: u64, accounts: usize) -> Result<(), Error> {
    let thousands = u32::try_from(records / 1000).unwrap_or(u32::MAX);
    let limit = WAIT_BESIDES + WAIT_PER_THOUSAND.saturating_mul(thousands);
    let bar = globals.terminal().progress(records.saturating_mul(accounts as u64));
    let reading = async {
        loop {
            let found = db.run(|connection| rows::objects(connection, PROGRESS)).await?;
            let found = found.first().cloned().unwrap_or_default();
            bar.set_position(found["records"].as_u64().unwrap_or(0));
            if let Some(ill) = found["ill"].as_str() {
                return Err(Error::new(Kind::Failed, ill.to_owned()));
            }
            if found["done"] == true && found["accounts"] == accounts {
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
const SHOWN: [(&str, &str, &[&str]); 5] = [
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
        "Jobs mirrored, from mirror.jobs:",
        "SELECT provider, status, count(*) AS jobs, count(*) FILTER (WHERE deleted_at IS NOT NULL) AS deleted,
                sum(total_amount) AS total_amount
         FROM mirror.jobs GROUP BY 1, 2 ORDER BY 1, jobs DESC, 2",
        &["provider", "status", "jobs", "deleted", "total_amount"],
    ),
    (
        "Bookings mirrored, from mirror.bookings:",
        "SELECT provider, status, count(*) AS bookings, count(*) FILTER (WHERE deleted_at IS NOT NULL) AS deleted
         FROM mirror.bookings GROUP BY 1, 2 ORDER BY 1, bookings DESC, 2",
        &["provider", "status", "bookings", "deleted"],
    ),
    (
        "How far it can be relied upon, from mirror.freshness:",
        "SELECT provider, stream, state, rows, deleted_rows,
                to_char(complete_to, 'YYYY-MM-DD HH24:MI:SS') AS complete_to, to_char(lag, 'HH24:MI:SS') AS lag
         FROM mirror.freshness ORDER BY provider, stream",
        &["provider", "stream", "state", "rows", "deleted_rows", "complete_to", "lag"],
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
