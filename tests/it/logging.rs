//! What the log says: the fields in the sources, the document about them, and the lines of a running daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde_json::Value;

use crate::architecture::list;
use crate::support::app::{PATIENCE, TestApp, small};
use crate::support::not_checked;

const DOCUMENT: &str = include_str!("../../docs/LOGGING.md");
/// What every JSON line has.
const OWN: [&str; 4] = ["timestamp", "level", "target", "message"];
const MACROS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "info_span"];

/// Fields by name, with what the document says they are.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let (_, fields) = DOCUMENT.split_once("## Fields").expect("a chapter of fields");
    let rows = fields.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>());
    cells
        .map(|cells| {
            let [name, is, means] = cells.as_slice() else { panic!("not three columns: {cells:?}") };
            assert!(means.len() > 3, "{name}");
            (name.trim_matches('`'), *is)
        })
        .collect()
}

#[test]
fn the_document_names_the_fields_of_the_sources() {
    let mut files = Vec::new();
    list(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut used = BTreeMap::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        // Tests log what they like.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for field in fields(text) {
            used.entry(field).or_insert_with(|| file.display().to_string());
        }
    }
    let documented = documented();
    for (field, file) in &used {
        assert!(documented.contains_key(field.as_str()), "`{field}` in {file} is not in docs/LOGGING.md");
    }
    for field in documented.keys() {
        assert!(used.contains_key(*field), "nobody logs `{field}`, which docs/LOGGING.md tells of");
    }
    // In the journal they must not fall together, nor be too long for it.
    let names: BTreeSet<String> = documented.keys().map(|name| journal_name(name)).collect();
    assert_eq!(names.len(), documented.len());
    let good = |c: char| c.is_ascii_uppercase() || c == '_';
    assert!(names.iter().all(|name| name.len() <= 64 && name.chars().all(good)), "{names:?}");
}

fn journal_name(field: &str) -> String {
    format!("FIELDMIRROR_{}", field.replace('.', "_").to_uppercase())
}

/// That the reading of the sources reads what it is meant to.
#[test]
fn fields_are_read_from_sources() {
    let check = |text: &str, expected: &[&str]| assert_eq!(fields(text), expected, "{text}");
    check(r#"info!("Nothing but text {}", a == b);"#, &[]);
    check(r#"warn!(a.b = x, "Text, with a comma = {}", c = 1);"#, &["a.b"]);
    check(
        r#"tracing::error!(a = f(x, "y, z"), %error, ?why, stream, "Text");"#,
        &["a", "error", "why", "stream"],
    );
    check("debug!(\n    a_b.c_d = ?x,\n    e = %f,\n    \"Text\"\n)", &["a_b.c_d", "e"]);
    check(r#"info_span!("job", job.id = %lease.job, late = Empty)"#, &["job.id", "late"]);
    check(r#"#[error("not {a}")] enum E { A } my_error!(a = 1, "x"); println!("{a}", a = 2)"#, &[]);
    check(r#"info!(a = 1, "x"); warn!(b = "\"c = 1", "y")"#, &["a", "b"]);
}

/// The fields that are stated in calls of the log's macros.
fn fields(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("!(") {
        let before = &text[..at];
        let start = before.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
        let name = &before[start..];
        if !MACROS.contains(&name) {
            continue;
        }
        let arguments = arguments(&text[at + 2..]);
        // The name of a span stands first; what follows the text of a line is for the text.
        let arguments = arguments.iter().skip(usize::from(name == "info_span"));
        for argument in arguments.take_while(|argument| !argument.starts_with('"')) {
            let field = argument.split('=').next().unwrap_or_default().trim();
            found.push(field.trim_start_matches(['%', '?']).to_owned());
        }
    }
    found
}

/// The arguments of a call, up to its closing parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let (mut found, mut current) = (Vec::new(), String::new());
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(std::mem::take(&mut current).trim().to_owned());
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    found.push(current.trim().to_owned());
    found.retain(|argument| !argument.is_empty());
    found
}

/// The lines of a daemon that has connected, read everything, met a failure, and was told to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_daemon_logs_flat_objects_and_one_line_for_each_run() {
    let app =
        TestApp::new(small(60), &[("daemon.log_format", "json"), ("providers.hubspot.page_size", "10")])
            .await;
    let mut daemon = app.spawn_daemon("");
    app.mirrored("acme").await;
    app.faults(&["malformed=/results/*/id,on:pipelines", "torn=on:owners", "http_503=on:token_refresh"]);
    app.run("enqueue --resync acme").await.done();
    app.run("enqueue --refresh acme").await;
    app.wait_until(
        "failed runs",
        "SELECT count(DISTINCT stream) = 2 FROM mirror.sync_runs WHERE outcome = 'failed'",
    )
    .await;
    app.wait_until("a failed refresh", "SELECT failures > 0 FROM fieldmirror.tokens").await;
    let pid = daemon.id().expect("it runs").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(daemon.wait().await.unwrap().success());

    let log = fs::read_to_string(app.folder.join("daemon.log")).unwrap();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let documented = documented();
    for line in &lines {
        let object = line.as_object().expect("an object");
        assert!(OWN.iter().all(|name| object.get(*name).is_some_and(Value::is_string)), "{line}");
        for (name, value) in object.iter().filter(|(name, _)| !OWN.contains(&name.as_str())) {
            let is =
                documented.get(name.as_str()).unwrap_or_else(|| panic!("`{name}` is not documented: {line}"));
            let fits = match *is {
                "text" => value.is_string(),
                "number" => value.is_number(),
                _ => value.is_boolean(),
            };
            assert!(fits, "`{name}` is to be {is}: {line}");
        }
    }
    let of = |name: &str| lines.iter().filter(|line| line.get(name).is_some()).collect::<Vec<_>>();
    let runs: BTreeSet<i64> = of("run.id").iter().filter_map(|line| line["run.id"].as_i64()).collect();
    assert_eq!(runs.len(), of("run.id").len(), "a run is told once");
    let ended = app.rows("SELECT id FROM mirror.sync_runs WHERE ended_at IS NOT NULL").await;
    assert_eq!(runs, ended.iter().filter_map(|row| row["id"].as_i64()).collect());
    let pages = app.number("SELECT sum(pages)::bigint FROM mirror.sync_runs").await;
    assert_eq!(of("run.pages").iter().filter_map(|line| line["run.pages"].as_i64()).sum::<i64>(), pages);
    for line in of("run.id") {
        let failed = line["run.outcome"] == "failed";
        assert_eq!((line["level"] == "WARN", line.get("error").is_some()), (failed, failed), "{line}");
        assert_eq!(line["job.kind"], "sync", "its job is told with it: {line}");
    }
    // A failure is told once, with what it comes from, and as it is on record.
    let failed = "SELECT id, stream, error FROM mirror.sync_runs WHERE outcome = 'failed'";
    for row in app.rows(failed).await {
        let told: Vec<&Value> = lines.iter().filter(|line| line["error"] == row["error"]).collect();
        let same = app.rows(failed).await.iter().filter(|other| other["error"] == row["error"]).count();
        assert_eq!(told.len(), same, "{row}: {told:#?}");
        assert!(told.iter().any(|line| line["run.id"] == row["id"]), "{row}");
        let causes = row["error"].as_str().unwrap().split(": ").count();
        assert!(row["stream"] != "owners" || causes > 2, "the whole chain: {row}");
    }
    let audited = app
        .number("SELECT count(*) FROM fieldmirror.audit_log WHERE event = 'refresh' AND outcome = 'failed'")
        .await;
    let told = of("failure.kind").into_iter().filter(|line| line["job.kind"] == "refresh_token").count();
    assert_eq!(i64::try_from(told).unwrap(), audited, "a failed refresh is told once");
}

/// Gives the daemon a `/run` of its own, in which the journal's socket is ours.
const WITH_OUR_JOURNAL: &str = r#"mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal &&
    mount --bind "$1" /run/systemd/journal && shift && exec "$@""#;

/// The fields of an entry: `NAME=value` lines, and for values of several lines `NAME`, the length in 64 bits, the value.
fn entry(mut bytes: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let mut found = Vec::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if let Some(at) = line.iter().position(|byte| *byte == b'=') {
            found.push((text(&line[..at]), text(&line[at + 1..])));
            bytes = rest;
            continue;
        }
        let (length, rest) = rest.split_at(8);
        let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
        found.push((text(line), text(&rest[..length])));
        assert_eq!(rest[length], b'\n');
        bytes = &rest[length + 1..];
    }
    assert!(bytes.is_empty(), "{bytes:?}");
    found
}

/// A test that plays journald. What arrives has the document's fields, and no line goes anywhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_gets_every_line_with_its_fields() {
    let app = TestApp::new(small(5), &[("daemon.log_format", "journald")]).await;
    let journal = app.folder.join("journal");
    fs::create_dir(&journal).unwrap();
    let socket = UnixDatagram::bind(journal.join("socket")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = tokio::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", WITH_OUR_JOURNAL, "sh"]).arg(&journal);
    command.args([env!("CARGO_BIN_EXE_fieldmirror"), "run"]).env_clear().envs(&app.environment);
    command.env("HOME", &app.folder).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let piped = std::process::Stdio::piped;
    let Ok(mut daemon) = command.kill_on_drop(true).stdout(piped()).stderr(piped()).spawn() else {
        not_checked("lines in the journal, since there is no `unshare`");
        return;
    };
    // It is there once it has been looked whether the journal listens.
    socket.set_nonblocking(true).unwrap();
    let mut bytes = vec![0; 64 * 1024];
    let began = std::time::Instant::now();
    let first = loop {
        if let Ok(length) = socket.recv(&mut bytes) {
            break Some(length);
        }
        if daemon.try_wait().unwrap().is_some() {
            break None;
        }
        assert!(began.elapsed() < PATIENCE, "nothing arrives");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    if first.is_none() {
        let said = daemon.wait_with_output().await.unwrap();
        not_checked("lines in the journal, since nothing can be mounted here");
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("mount:") || said.contains("unshare:"), "{said}");
        return;
    }
    assert_eq!(first, Some(0), "an entry without fields, which journald leaves out");
    socket.set_nonblocking(false).unwrap();
    let listening = std::thread::spawn(move || {
        let mut entries = Vec::new();
        loop {
            let length = socket.recv(&mut bytes).expect("an entry in time");
            entries.push(entry(&bytes[..length]));
            let last = entries.last().unwrap();
            if last.iter().any(|(name, value)| name == "MESSAGE" && value == "Stopped") {
                return entries;
            }
        }
    });
    app.mirrored("acme").await;
    let pid = daemon.id().expect("it runs").to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let said = daemon.wait_with_output().await.unwrap();
    assert!(said.status.success() && said.stdout.is_empty() && said.stderr.is_empty(), "{said:?}");

    let entries = listening.join().unwrap();
    let documented: BTreeSet<String> = documented().keys().map(|name| journal_name(name)).collect();
    let of = |entry: &[(String, String)], name: &str| {
        entry.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    };
    for entry in &entries {
        for name in ["MESSAGE", "PRIORITY", "TARGET", "CODE_FILE", "CODE_LINE"] {
            assert!(of(entry, name).is_some(), "{name}: {entry:?}");
        }
        assert_eq!(of(entry, "SYSLOG_IDENTIFIER").as_deref(), Some("fieldmirror"));
        let ours = entry.iter().filter(|(name, _)| name.starts_with("FIELDMIRROR_"));
        assert!(ours.clone().all(|(name, _)| documented.contains(name)), "{entry:?}");
    }
    let serving = entries.iter().find(|entry| of(entry, "MESSAGE").unwrap().starts_with("Serving on "));
    let serving = serving.expect("that it serves");
    assert_eq!(of(serving, "PRIORITY").as_deref(), Some("5"));
    let listens = app.endpoint.trim_start_matches("http://");
    assert_eq!(of(serving, "FIELDMIRROR_CALLBACK_LISTEN").as_deref(), Some(listens));
    let id = app.number("SELECT id FROM mirror.connections").await.to_string();
    let runs = app.rows("SELECT id FROM mirror.sync_runs").await;
    for run in &runs {
        let run = run["id"].to_string();
        let told: Vec<_> =
            entries.iter().filter(|entry| of(entry, "FIELDMIRROR_RUN_ID").as_ref() == Some(&run)).collect();
        assert_eq!(told.len(), 1, "run {run}: {told:?}");
        assert_eq!(of(told[0], "FIELDMIRROR_CONNECTION_ID").as_ref(), Some(&id));
        assert_eq!(of(told[0], "FIELDMIRROR_JOB_KIND").as_deref(), Some("sync"));
    }
    assert!(runs.len() >= 4, "{runs:?}");
}
