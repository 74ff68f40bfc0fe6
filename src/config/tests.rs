//! Settings as their users see them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::domain::secret::Secret;

/// 32 bytes as base64.
const KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

fn variables(sources: Sources, variables: &[(&str, &str)]) -> Sources {
    let environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    Sources { environment, ..sources }
}

/// A file for its owner only.
fn file(directory: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode");
    path
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn problems(sources: &Sources) -> Vec<Problem> {
    load(sources).expect_err("a problem").0
}

fn row<'a>(loaded: &'a Loaded, path: &str) -> &'a Row {
    let (section, key) = path.rsplit_once('.').expect("section and key");
    loaded.rows().iter().find(|row| row.section == section && row.key == key).expect(path)
}

#[test]
fn the_built_in_settings_are_those_of_the_contract() {
    let settings = Settings::example();
    assert_eq!(settings.daemon.state_dir, Path::new("/var/lib/fieldmirror"));
    assert_eq!((settings.daemon.workers, settings.daemon.log_format), (16, LogFormat::Text));
    assert_eq!(settings.daemon.egress_group, "host");
    assert!(settings.database.url.is_none() && settings.database.pg_bin.is_none());
    assert_eq!(settings.database.pool_size, 8);
    assert_eq!(settings.callback.listen.to_string(), "127.0.0.1:8787");
    assert_eq!(settings.callback.public_url.as_str(), "http://127.0.0.1:8787/");
    assert_eq!(settings.callback.ticket_ttl, Duration::from_hours(24));
    assert_eq!(settings.metrics.listen.to_string(), "127.0.0.1:9464");
    assert!(settings.vault.key.is_none() && settings.vault.previous_keys.is_empty());
    let sync = &settings.sync;
    let seconds = [
        sync.poll_interval,
        sync.archived_interval,
        sync.sweep_interval,
        sync.overlap,
        sync.hold_back,
        sync.turn_limit,
    ];
    assert_eq!(seconds.map(|duration| duration.as_secs()), [300, 3600, 86_400, 300, 90, 30]);
    assert!((sync.quota_reserve - 0.1).abs() < f64::EPSILON);
    let hubspot = &settings.providers["hubspot"];
    assert!(
        hubspot.enabled && hubspot.pkce && hubspot.client_id.is_empty() && hubspot.client_secret.is_none()
    );
    assert_eq!(hubspot.token_url.as_str(), "https://api.hubapi.com/oauth/2026-03/token");
    assert_eq!(
        (hubspot.api_version.as_str(), hubspot.page_size, hubspot.poll_interval),
        ("2026-03", 0, None)
    );
    assert_eq!(hubspot.scopes.len(), 5);
    assert!(hubspot.extra.is_empty(), "{:?}", hubspot.extra);
}

/// Reading a key that is not in the file panics, so what is left to show is that each key of the file is read.
#[test]
fn every_key_of_the_reference_is_read_and_reported() {
    let loaded = load(&Sources::none()).expect("no problem");
    let read: BTreeSet<String> =
        loaded.rows().iter().map(|row| format!("{}.{}", row.section, row.key)).collect();
    let (layers, _) = Layers::read(DEFAULT_TOML, &Sources::none());
    assert_eq!(read, layers.keys().map(str::to_owned).collect());
    assert!(loaded.rows().iter().all(|row| row.origin == "default"));
}

#[test]
fn every_key_of_the_reference_has_a_comment_above() {
    let lines: Vec<&str> = DEFAULT_TOML.lines().collect();
    let keys: Vec<usize> = (1..lines.len())
        .filter(|index| lines[*index].contains(" = ") && !lines[*index].starts_with('#'))
        .collect();
    assert_eq!(keys.len(), load(&Sources::none()).expect("no problem").rows().len());
    for index in keys {
        assert!(lines[index - 1].starts_with("# "), "no comment above `{}`", lines[index]);
    }
}

#[test]
fn the_example_for_production_has_no_problem() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config/production.example.toml");
    let loaded = load(&Sources { files: vec![example.into()], ..Sources::none() }).expect("no problem");
    assert_eq!(loaded.settings.daemon.log_format, LogFormat::Journald);
}

#[test]
fn each_layer_overrides_the_one_below() {
    let directory = directory();
    let (system, one, other) = (
        file(&directory, "system.toml", "[daemon]\nworkers = 1\n[sync]\noverlap = \"1m\""),
        file(&directory, "one.toml", "[daemon]\nworkers = 2\n[sync]\nhold_back = \"1m\""),
        file(&directory, "other.toml", "[daemon]\nworkers = 3"),
    );
    let flag = || Flag { name: "--workers".into(), key: "daemon.workers".into(), value: "5".into() };
    let mut sources = Sources::none();
    let check = |sources: &Sources, workers: usize, origin: &str| {
        let loaded = load(sources).expect("no problem");
        assert_eq!(loaded.settings.daemon.workers, workers);
        assert_eq!(row(&loaded, "daemon.workers").origin, origin);
        loaded
    };
    check(&sources, 16, "default");
    sources.system_file = Some(system.clone());
    check(&sources, 1, &format!("file {}", system.display()));
    sources.files = vec![one.clone(), other.clone()];
    let loaded = check(&sources, 3, &format!("file {}", other.display()));
    assert_eq!(row(&loaded, "sync.overlap").origin, format!("file {}", system.display()));
    assert_eq!(row(&loaded, "sync.hold_back").origin, format!("file {}", one.display()));
    sources = variables(sources, &[("FIELDMIRROR_DAEMON__WORKERS", "4"), ("FIELDMIRROR_TEST_DATABASE", "x")]);
    check(&sources, 4, "environment FIELDMIRROR_DAEMON__WORKERS");
    sources.flags.push(flag());
    check(&sources, 5, "flag --workers");
}

#[test]
fn variables_are_read_as_the_type_of_their_setting() {
    let sources = variables(
        Sources::none(),
        &[
            ("FIELDMIRROR_PROVIDERS__HUBSPOT__CLIENT_SECRET", "12345"),
            ("FIELDMIRROR_PROVIDERS__HUBSPOT__CLIENT_ID", "true"),
            ("FIELDMIRROR_PROVIDERS__HUBSPOT__PKCE", "false"),
            ("FIELDMIRROR_PROVIDERS__HUBSPOT__SCOPES", "oauth, tickets"),
            ("FIELDMIRROR_PROVIDERS__HUBSPOT__POLL_INTERVAL", "1h 30m"),
            ("FIELDMIRROR_PROVIDERS__HUBSPOT__REVOKE_URL", ""),
            ("FIELDMIRROR_SYNC__QUOTA_RESERVE", "0"),
        ],
    );
    let settings = load(&sources).expect("no problem").settings;
    let hubspot = &settings.providers["hubspot"];
    assert_eq!(hubspot.client_secret.as_ref().map(Secret::expose), Some("12345"));
    assert_eq!(hubspot.client_id, "true");
    assert!(!hubspot.pkce);
    assert_eq!(hubspot.scopes, ["oauth", "tickets"]);
    assert_eq!(hubspot.poll_interval, Some(Duration::from_mins(90)));
    assert_eq!(hubspot.revoke_url, None);
    assert!(settings.sync.quota_reserve.abs() < f64::EPSILON);
    let listed = variables(Sources::none(), &[("FIELDMIRROR_PROVIDERS__HUBSPOT__SCOPES", r#"["a", "b"]"#)]);
    assert_eq!(load(&listed).expect("no problem").settings.providers["hubspot"].scopes, ["a", "b"]);
}

#[test]
fn unknown_names_are_refused_with_a_suggestion() {
    let directory = directory();
    let text = "poll_interval = \"1m\"\n[snyc]\noverlap = \"1m\"\n[daemon]\nworker = 1\ncolour = 2\n[providers.hubspt]";
    let sources = Sources {
        files: vec![file(&directory, "a.toml", text)],
        flags: vec![Flag { name: "--x".into(), key: "callback.listn".into(), value: "x".into() }],
        ..variables(
            Sources::none(),
            &[("FIELDMIRROR_SYNC__POL_INTERVAL", "1m"), ("FIELDMIRROR_SYNC_OVERLAP", "1m")],
        )
    };
    let told: BTreeSet<(String, String)> =
        problems(&sources).into_iter().map(|problem| (problem.key, problem.remedy)).collect();
    let expected = [
        ("poll_interval", "did you mean `sync.poll_interval`?"),
        ("snyc", "did you mean `sync`?"),
        ("daemon.worker", "did you mean `daemon.workers`?"),
        ("daemon.colour", "remove it; `fieldmirror config` lists the settings there are"),
        ("providers.hubspt", "did you mean `providers.hubspot`?"),
        ("FIELDMIRROR_SYNC__POL_INTERVAL", "did you mean `FIELDMIRROR_SYNC__POLL_INTERVAL`?"),
        ("FIELDMIRROR_SYNC_OVERLAP", "did you mean `FIELDMIRROR_SYNC__OVERLAP`?"),
        ("callback.listn", "did you mean `callback.listen`?"),
    ];
    assert_eq!(told, expected.map(|(key, remedy)| (key.to_owned(), remedy.to_owned())).into());
}

#[test]
fn values_that_do_not_fit() {
    let check = |path: &str, value: &str, found: &str, expected: &str| {
        let directory = directory();
        let (section, key) = path.rsplit_once('.').expect("section and key");
        let stated = file(&directory, "a.toml", &format!("[{section}]\n{key} = {value}"));
        let told = problems(&Sources { files: vec![stated.clone()], ..Sources::none() });
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].key.as_str(), told[0].found.as_str()), (path, found));
        assert!(told[0].expected.contains(expected), "{}", told[0]);
        assert_eq!(told[0].origin, format!("file {}", stated.display()));
        assert!(!told[0].remedy.is_empty());
    };
    check("daemon.workers", "0", "`0`", "from 1 to 256");
    check("daemon.workers", "257", "`257`", "from 1 to 256");
    check("daemon.workers", "-1", "`-1`", "from 1 to 256");
    check("daemon.workers", "1.5", "`1.5`", "a whole number");
    check("daemon.workers", "\"many\"", "`\"many\"`", "a whole number");
    check("daemon.workers", "{ x = 1 }", "a section", "a value");
    check("daemon.state_dir", "\"state\"", "`\"state\"`", "an absolute path");
    check("daemon.state_dir", "\"\"", "an empty text", "an absolute path");
    check("daemon.log_format", "\"xml\"", "`\"xml\"`", "\"journald\"");
    check("daemon.egress_group", "\"a\\nb\"", "`\"a\\nb\"`", "at most 128 characters");
    check("database.pool_size", "1", "`1`", "from 2 to 100");
    check(
        "database.url",
        "\"mysql://u:hunter2@h/d\"",
        "text that is no Postgres URL (not shown)",
        "postgres://",
    );
    check("database.url", "5", "a value that is no text (not shown)", "a URL");
    check("callback.listen", "\"localhost:1\"", "`\"localhost:1\"`", "an address and port");
    check("callback.public_url", "\"http://example.com\"", "`\"http://example.com\"`", "an https URL");
    check("callback.ticket_ttl", "\"0s\"", "`\"0s\"`", "from 1s to 30days");
    check("vault.key", "\"c2hvcnQ=\"", "5 bytes after base64 decoding", "32 bytes as base64");
    check("vault.previous_key_files", "[\"a\"]", "`[\"a\"]`", "absolute paths");
    check("sync.poll_interval", "300", "`300`", "a duration from 1s to 1day");
    check("sync.poll_interval", "\"often\"", "`\"often\"`", "such as \"90s\"");
    check("sync.turn_limit", "\"6m\"", "`\"6m\"`", "from 1s to 5m");
    check("sync.quota_reserve", "0.95", "`0.95`", "from 0 to 0.9");
    check("sync.quota_reserve", "-0.1", "`-0.1`", "from 0 to 0.9");
    check("providers.hubspot.enabled", "\"yes\"", "`\"yes\"`", "true or false");
    check("providers.hubspot.scopes", "[\"a b\"]", "`[\"a b\"]`", "words");
    check("providers.hubspot.scopes", "\"oauth\"", "`\"oauth\"`", "a list");
    check("providers.hubspot.token_url", "\"\"", "an empty text", "an https URL");
    check("providers.hubspot.api_base", "\"https://a.example/?x\"", "`\"https://a.example/?x\"`", "query");
    check(
        "providers.hubspot.api_base",
        "\"https://u:hunter2@h\"",
        "text with an `@` in it (not shown)",
        "https",
    );
    check("providers.hubspot.api_version", "\"v4\"", "`\"v4\"`", "\"v3\"");
    check("providers.hubspot.page_size", "1001", "`1001`", "from 0 to 1000");
    check(
        "metrics.listen",
        "\"127.0.0.1:8787\"",
        "`127.0.0.1:8787`, which is [callback] listen too",
        "of its own",
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let directory = directory();
    let broken = file(&directory, "broken.toml", "[vault]\nkey = hunter2\n");
    let sources = Sources {
        files: vec![
            file(&directory, "a.toml", "daemon = 5\n[sync]\noverlap = 1\nunknown = 1"),
            broken.clone(),
            directory.path().join("missing.toml"),
        ],
        environment: [
            ("FIELDMIRROR_DAEMON__WORKERS".to_owned(), OsString::from("x")),
            ("FIELDMIRROR_DATABASE__URL".to_owned(), OsString::from_vec(vec![0xff])),
            ("FIELDMIRROR_VAULT__KEY_FILE".to_owned(), OsString::from("/nowhere/vault.key")),
        ]
        .into(),
        ..Sources::none()
    };
    let error = load(&sources).expect_err("problems");
    let text = error.to_string();
    assert!(text.starts_with("the configuration has 8 problems:\n- `"), "{text}");
    for part in [
        "`daemon` (file ",
        "`sync.unknown` (file ",
        "`sync.overlap` (file ",
        "look at line 2",
        "missing.toml` (file ",
        "`daemon.workers` (environment FIELDMIRROR_DAEMON__WORKERS): found `\"x\"`, expected a whole number from 1 to \
         256; correct it, or leave it out for the default `16`",
        "`database.url` (environment FIELDMIRROR_DATABASE__URL): found bytes that are not UTF-8",
        "`vault.key_file` (file /nowhere/vault.key): found a file that cannot be read",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

/// What a new provider takes: a section in the built-in file, with the keys that only it has.
#[test]
fn a_provider_is_added_by_a_section() {
    let (_, hubspot) = DEFAULT_TOML.split_once("[providers.hubspot]").expect("the section");
    let schema = format!("{DEFAULT_TOML}[providers.acme]{hubspot}location_ids = []\ntimezone = \"\"\n");
    let read = |set: &[(&str, &str)]| load_over(&schema, &variables(Sources::none(), set));
    let set = [
        ("FIELDMIRROR_PROVIDERS__ACME__LOCATION_IDS", "1,2"),
        ("FIELDMIRROR_PROVIDERS__ACME__PKCE", "false"),
    ];
    let settings = read(&set).expect("no problem").settings;
    let acme = &settings.providers["acme"];
    assert_eq!(
        acme.extra,
        [("location_ids".into(), json!(["1", "2"])), ("timezone".into(), json!(""))].into()
    );
    assert!(!acme.pkce && settings.providers["hubspot"].pkce);
    let told = read(&[("FIELDMIRROR_PROVIDERS__ACME__TIMEZON", "x")]).expect_err("a problem").to_string();
    assert!(told.contains("did you mean `FIELDMIRROR_PROVIDERS__ACME__TIMEZONE`?"), "{told}");
}

#[test]
fn a_missing_system_file_is_no_problem() {
    let sources = Sources { system_file: Some("/nowhere/fieldmirror.toml".into()), ..Sources::none() };
    assert!(load(&sources).is_ok());
}

#[test]
fn secrets_come_in_three_ways() {
    const NAME: &str = "FIELDMIRROR_PROVIDERS__HUBSPOT__CLIENT_SECRET";
    let directory = directory();
    let check = |sources: &Sources, origin: &str| {
        let loaded = load(sources).expect("no problem");
        let secret = loaded.settings.providers["hubspot"].client_secret.as_ref();
        assert_eq!(secret.map(Secret::expose), Some("hunter2"));
        let row = row(&loaded, "providers.hubspot.client_secret");
        assert_eq!((&row.value, row.origin.as_str()), (&json!(MASK), origin));
    };
    check(&variables(Sources::none(), &[(NAME, "hunter2")]), &format!("environment {NAME}"));
    let path = file(&directory, "providers.hubspot.client_secret", "hunter2\r\n");
    let text = path.to_str().expect("UTF-8");
    check(&variables(Sources::none(), &[(&format!("{NAME}_FILE"), text)]), &format!("file {text}"));
    let credentials = Some(directory.path().to_path_buf());
    check(&Sources { credentials, ..Sources::none() }, "credential providers.hubspot.client_secret");
}

#[test]
fn a_secret_given_twice_is_refused() {
    let directory = directory();
    let path = file(&directory, "database.url", "postgres://h/d");
    let inline = ("FIELDMIRROR_DATABASE__URL", "postgres://u:hunter2@h/d");
    let by_file = ("FIELDMIRROR_DATABASE__URL_FILE", path.to_str().expect("UTF-8"));
    let credentials = || Some(directory.path().to_path_buf());
    for sources in [
        variables(Sources::none(), &[inline, by_file]),
        Sources { credentials: credentials(), ..variables(Sources::none(), &[inline]) },
        Sources { credentials: credentials(), ..variables(Sources::none(), &[by_file]) },
    ] {
        let told = problems(&sources);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].found.starts_with("a secret given twice: by environment "), "{}", told[0]);
        assert!(!told[0].to_string().contains("hunter2"), "{}", told[0]);
    }
}

#[test]
fn key_files() {
    let check = |text: &str, mode: u32, expected: &str| {
        let directory = directory();
        let path = file(&directory, "vault", text);
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode");
        let path = path.to_str().expect("UTF-8");
        for (name, value) in [("KEY_FILE", path), ("PREVIOUS_KEY_FILES", path)] {
            let sources = variables(Sources::none(), &[(&format!("FIELDMIRROR_VAULT__{name}"), value)]);
            match load(&sources) {
                Ok(Loaded { settings: Settings { vault, .. }, .. }) => {
                    assert_eq!(expected, "");
                    let key = vault.key.or_else(|| vault.previous_keys.first().cloned()).expect("a key");
                    assert_eq!(key.expose().trim(), KEY);
                }
                Err(Problems(told)) => {
                    assert_eq!(told.len(), 1, "{told:?}");
                    assert!(!expected.is_empty() && told[0].to_string().contains(expected), "{}", told[0]);
                    assert_eq!(told[0].origin, format!("file {path}"));
                }
            }
        }
    };
    check(KEY, 0o600, "");
    check(&format!("{KEY}\n"), 0o400, "");
    check(KEY, 0o640, "(mode 0640)");
    check(KEY, 0o604, "run `chmod 600 /");
    check("", 0o600, "an empty file");
    check("\n", 0o600, "an empty file");
    check(&KEY[..40], 0o600, "30 bytes after base64 decoding");
    check("not base64!", 0o600, "not base64");
    check(&"A".repeat(70_000), 0o600, "more than 64 KiB");
}

/// systemd gives credentials the modes it likes, inside a directory that is private already.
#[test]
fn key_files_among_credentials_may_have_any_mode() {
    let directory = directory();
    for name in ["vault.key", "previous"] {
        let path = file(&directory, name, KEY);
        fs::set_permissions(path, Permissions::from_mode(0o444)).expect("its mode");
    }
    let previous = directory.path().join("previous");
    let stated = [("FIELDMIRROR_VAULT__PREVIOUS_KEY_FILES", previous.to_str().expect("UTF-8"))];
    let credentials = Some(directory.path().to_path_buf());
    let vault = load(&Sources { credentials, ..variables(Sources::none(), &stated) })
        .expect("no problem")
        .settings
        .vault;
    assert_eq!((vault.key.is_some(), vault.previous_keys.len()), (true, 1));
}

/// A user who may not read the daemon's secrets can still give commands, and sees that they are set.
#[test]
fn commands_read_no_secret_but_the_way_to_the_database() {
    let stated = [
        ("FIELDMIRROR_DATABASE__URL", "postgres://h/d"),
        ("FIELDMIRROR_VAULT__KEY_FILE", "/nowhere/vault.key"),
        ("FIELDMIRROR_VAULT__PREVIOUS_KEY_FILES", "/nowhere/old.key"),
        ("FIELDMIRROR_PROVIDERS__HUBSPOT__CLIENT_SECRET_FILE", "/nowhere/client_secret"),
    ];
    let sources = Sources { purpose: Purpose::Command, ..variables(Sources::none(), &stated) };
    let loaded = load(&sources).expect("no problem");
    let settings = &loaded.settings;
    assert!(settings.database.url.is_some() && settings.vault.key.is_none());
    assert!(settings.vault.previous_keys.is_empty());
    assert!(settings.providers["hubspot"].client_secret.is_none());
    assert_eq!(row(&loaded, "vault.key").value, json!(MASK));
    assert_eq!(row(&loaded, "vault.key").origin, "file /nowhere/vault.key");
    assert_eq!(problems(&Sources { purpose: Purpose::Daemon, ..sources }).len(), 3);
}

#[test]
fn secrets_are_masked_everywhere() {
    let sources = variables(
        Sources::none(),
        &[
            ("FIELDMIRROR_DATABASE__URL", "postgres://u:hunter2@h/d"),
            ("FIELDMIRROR_VAULT__KEY", KEY),
            ("FIELDMIRROR_PROVIDERS__HUBSPOT__CLIENT_SECRET", "hunter2"),
        ],
    );
    let loaded = load(&sources).expect("no problem");
    let table = loaded.rows().iter().map(Row::text).collect::<Vec<_>>().join("\n");
    for text in [format!("{loaded:?}"), format!("{:?}", loaded.settings), report(&loaded).to_string(), table]
    {
        assert!(!text.contains("hunter2") && !text.contains(KEY), "{text}");
        assert!(text.contains(MASK), "{text}");
    }
}

#[test]
fn the_report_has_the_shape_of_the_contract() {
    let sources = variables(Sources::none(), &[("FIELDMIRROR_SYNC__OVERLAP", "1m")]);
    let report = report(&load(&sources).expect("no problem"));
    let settings = &report["settings"];
    assert_eq!(settings["daemon"]["workers"], json!({"value": 16, "origin": "default"}));
    let overlap = json!({"value": "1m", "origin": "environment FIELDMIRROR_SYNC__OVERLAP"});
    assert_eq!(settings["sync"]["overlap"], overlap);
    assert_eq!(settings["sync"]["quota_reserve"]["value"], json!(0.1));
    assert_eq!(settings["vault"]["key"], json!({"value": null, "origin": "default"}));
    assert_eq!(settings["providers.hubspot"]["pkce"]["value"], json!(true));
    assert_eq!(settings["daemon"]["egress_group"]["value"], json!("host"));
}

#[test]
fn the_state_directory_depends_on_who_we_are() {
    let check = |privileged: bool, set: &[(&str, &str)], expected: &str, origin: &str| {
        let loaded = load(&variables(Sources { privileged, ..Sources::none() }, set)).expect("no problem");
        assert_eq!(loaded.settings.daemon.state_dir, Path::new(expected));
        assert_eq!(row(&loaded, "daemon.state_dir").value, json!(expected));
        assert_eq!(row(&loaded, "daemon.state_dir").origin, origin);
    };
    let (home, state_home) = (("HOME", "/home/a"), ("XDG_STATE_HOME", "/home/a/state"));
    check(true, &[home, state_home], "/var/lib/fieldmirror", "default");
    check(false, &[home, state_home], "/home/a/state/fieldmirror", "default");
    check(false, &[home], "/home/a/.local/state/fieldmirror", "default");
    check(false, &[home, ("XDG_STATE_HOME", "state")], "/home/a/.local/state/fieldmirror", "default");
    check(
        false,
        &[("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")],
        "/var/lib/a",
        "environment STATE_DIRECTORY",
    );
    let stated = ("FIELDMIRROR_DAEMON__STATE_DIR", "/srv/a");
    check(false, &[stated, home, ("STATE_DIRECTORY", "/x")], "/srv/a", &format!("environment {}", stated.0));
    let told = problems(&Sources { privileged: false, ..Sources::none() });
    assert_eq!((told.len(), told[0].key.as_str()), (1, "daemon.state_dir"));
}
