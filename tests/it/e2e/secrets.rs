//! No secret leaves by what is printed, logged, shown by `ps` or kept in a table in the clear.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use fieldmirror::sandbox::housecallpro::Housecallpro;
use fieldmirror::sandbox::oncehub::OnceHub;
use fieldmirror::sandbox::servicetitan::{APP_KEY, ServiceTitan, TENANT_FIRST};
use fieldmirror::sandbox::{CLIENT_ID, SandboxOptions, oauth::App};
use serde_json::Value;
use url::Url;

use crate::support::app::{HUB, PATIENCE, TestApp, free_address, get, small};
use crate::support::leaks::leaks;

const CLIENT_SECRET: &str = "c11ent/s3cret+with=odd\"signs-0123456789";

/// What tables keep in words.
const WORDS: &str = "SELECT error AS words FROM fieldmirror.sync_runs
    UNION ALL SELECT args || coalesce(message, '') FROM fieldmirror.requests
    UNION ALL SELECT concat_ws(' ', event, outcome, detail) FROM fieldmirror.audit_log
    UNION ALL SELECT concat_ws(' ', reason, params, facts, pacing) FROM fieldmirror.connections
    UNION ALL SELECT last_error FROM fieldmirror.tokens
    UNION ALL SELECT last_error FROM fieldmirror.jobs
    UNION ALL SELECT concat_ws(' ', last_error, stalled_reason) FROM fieldmirror.stream_state
    UNION ALL SELECT concat_ws(' ', position, restart_reason) FROM fieldmirror.walks";

/// All that a daemon has left below its state directory, names of files included, and how many spills are among it.
fn left_on_disk(folder: &Path, text: &mut String) -> usize {
    let mut spills = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        text.push_str(&path.to_string_lossy());
        text.push('\n');
        if path.is_dir() {
            spills += left_on_disk(&path, text);
        } else {
            spills += usize::from(path.extension().is_some_and(|ending| ending == "spill"));
            text.push_str(&String::from_utf8_lossy(&std::fs::read(&path).unwrap()));
        }
    }
    spills
}

/// Every row of every table of ours, as the database shows them: bytes as hexadecimal digits.
async fn dump(app: &TestApp) -> String {
    let tables = app.rows("SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname IN ('fieldmirror', 'mirror')").await;
    let mut text = String::new();
    for table in &tables {
        let query = format!("SELECT t::text AS row FROM {} t", table["name"].as_str().unwrap());
        for row in app.rows(query.leak()).await {
            text.push_str(row["row"].as_str().unwrap());
            text.push('\n');
        }
    }
    text
}

/// What `ps` shows of our program, and what its processes have as environment is their own.
fn command_lines() -> String {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains("fieldmirror")).collect::<Vec<_>>().join("\n")
}

/// Connects what needs no browser, and tries a key that nobody knows. Returns what was handed over.
async fn hand_over(app: &TestApp, said: &mut String) -> Vec<(String, String)> {
    let control = app.sandbox.control();
    let oncehub = OnceHub::api_key(&control.oncehub().account_ids()[0]);
    let housecallpro = Housecallpro::api_key(&control.housecallpro().account_ids()[0]);
    let params = format!(
        "--param tenant_id={TENANT_FIRST} --param client_id={}",
        ServiceTitan::client_id(TENANT_FIRST)
    );
    let client_secret = ServiceTitan::client_secret(TENANT_FIRST);
    let mut handed = Vec::new();
    for (name, line, secrets) in [
        ("wrong", "oncehub", vec![("api_key", "nobody-knows-this-key-0123456789")]),
        ("bookings", "oncehub", vec![("api_key", oncehub.as_str())]),
        ("house", "housecallpro --grant api_key", vec![("api_key", &housecallpro)]),
        (
            "titan",
            &format!("servicetitan {params}"),
            vec![("client_secret", &client_secret), ("app_key", APP_KEY)],
        ),
    ] {
        let mut line = format!("enqueue --connect {line} --name {name} --json -vv");
        for (of, secret) in secrets {
            let file = app.folder.join(format!("{name}-{of}"));
            std::fs::write(&file, secret).unwrap();
            write!(line, " --secret {of}=@{}", file.display()).unwrap();
            handed.push((format!("{of} of {name}"), secret.to_owned()));
        }
        let ran = app.run(&line).await;
        assert_eq!(ran.code == 0, name != "wrong", "{}", ran.stderr);
        said.push_str(&ran.stdout);
        said.push_str(&ran.stderr);
    }
    handed
}

/// Everything secret that the sandbox and we have made up, with a label.
fn secrets(
    app: &TestApp,
    asked: &[Value],
    back: &[Url],
    handed: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let mut secrets = handed;
    secrets.extend([
        ("the client secret".to_owned(), CLIENT_SECRET.to_owned()),
        ("the vault key".to_owned(), app.environment["FIELDMIRROR_VAULT__KEY"].clone()),
    ]);
    let handed_out = app.sandbox.control().hubspot().auth().handed_out();
    secrets.extend(handed_out.iter().map(|secret| ("a token".to_owned(), secret.expose().to_owned())));
    for url in back {
        let of = |(name, value): (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| {
            matches!(&*name, "code" | "state").then(|| (name.to_string(), value.to_string()))
        };
        secrets.extend(url.query_pairs().filter_map(of));
    }
    let ticket = |asked: &Value| asked["start_url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    secrets.extend(asked.iter().map(|asked| ("a ticket".to_owned(), ticket(asked))));
    secrets
}

/// Connects, syncs, refreshes, fails and is revoked; everything that is said meanwhile is kept.
async fn live_through_it_all(log_format: &str) {
    let client =
        App { client_id: CLIENT_ID.into(), client_secret: CLIENT_SECRET.into(), redirect_uris: Vec::new() };
    let options =
        SandboxOptions { access_token_life: Duration::from_secs(10), apps: vec![client], ..small(60) };
    let metrics = free_address();
    let settings = [
        ("daemon.log_format", log_format),
        ("providers.hubspot.client_secret", CLIENT_SECRET),
        ("metrics.listen", &metrics),
    ];
    let app = TestApp::new(options, &settings).await;
    let mut said = String::new();
    let mut lines = String::new();
    let mut daemon = app.spawn_daemon("-vv");
    // A consent that is spoilt on its way back, and one that is not.
    let mut asked = Vec::new();
    let mut back = Vec::new();
    for spoilt in [true, false] {
        let ran = app.run("enqueue --connect hubspot --name acme --no-wait --json -vv").await.done();
        said.push_str(&ran.stderr);
        asked.push(ran.last());
        let url = app.approve(&asked[asked.len() - 1]).await;
        if spoilt {
            let mut other = url.clone();
            other.set_query(Some(&url.query().unwrap().replace("code=", "code=x")));
            let (_, _, page) = get(&other).await;
            said.push_str(&page);
        } else {
            let (status, _, page) = get(&url).await;
            assert_eq!(status, 200, "{page}");
            said.push_str(&page);
        }
        back.push(url);
        lines.push_str(&command_lines());
    }
    app.all_read().await;
    let handed = hand_over(&app, &mut said).await;
    app.faults(&[
        "http_500=1x,on:token_refresh",
        "invalid_auth=1x",
        "html_ok=1x",
        "lost_token_reply=1x",
        "malformed=/results/*/id,2x,on:search",
    ]);
    app.wait_until("refreshes", "SELECT bool_or(generation > 2) FROM fieldmirror.tokens").await;
    app.faults(&[]);
    app.sandbox.control().hubspot().auth().revoke_account(&HUB.to_string());
    app.wait_until("it is noticed", "SELECT bool_or(state = 'needs_reauth') FROM mirror.connections").await;
    for line in [
        "status -vv",
        "status --json",
        "jobs --json",
        "config --json",
        "config",
        "enqueue --refresh acme --wait --json",
    ] {
        let ran = tokio::time::timeout(PATIENCE, app.run(line)).await.unwrap_or_else(|_| panic!("{line}"));
        said.push_str(&ran.stdout);
        said.push_str(&ran.stderr);
        lines.push_str(&command_lines());
    }
    let (status, _, page) = get(&Url::parse(&format!("http://{metrics}/metrics")).unwrap()).await;
    assert_eq!(status, 200, "{page}");
    said.push_str(&page);
    daemon.kill().await.unwrap();
    let log = std::fs::read_to_string(app.folder.join("daemon.log")).unwrap();
    assert!(log.contains("Refreshed the token"), "the log tells what happened: {log}");
    let words = app.rows(WORDS).await.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    assert!(words.contains("grant is dead"), "tables say what went wrong: {words}");
    assert!(lines.contains("enqueue") || lines.contains("run"), "{lines}");
    let mut disk = String::new();
    assert!(left_on_disk(&app.folder.join("state"), &mut disk) > 0, "the killed daemon left a spill: {disk}");
    let dump = dump(&app).await;
    assert!(dump.contains("hubspot"), "there were rows");
    let secrets = secrets(&app, &asked, &back, handed);
    assert!(secrets.len() > 12, "there were secrets");
    for (place, text) in [
        ("the log", &log),
        ("commands and pages", &said),
        ("`ps`", &lines),
        ("tables", &words),
        ("the state directory", &disk),
        ("a dump of the database", &dump),
    ] {
        assert_eq!(leaks(text, &secrets), Vec::<String>::new(), "in {place}");
    }
    // What is printed for the owner to open is the one place where the ticket and the state are meant to be.
    let printed: String = asked.iter().map(Value::to_string).collect();
    let there = leaks(&printed, &secrets);
    assert!(there.iter().any(|leak| leak.starts_with("a ticket")), "the search works: {there:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_told() {
    tokio::join!(live_through_it_all("text"), live_through_it_all("json"));
}
