//! What is refused, and in which words.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use super::*;

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
    check("alerts.exec", "[\"hook\"]", "`[\"hook\"]`", "the absolute path of a program");
    check("alerts.exec", "\"/bin/hook\"", "`\"/bin/hook\"`", "a list");
    check("alerts.timeout", "\"1h\"", "`\"1h\"`", "from 1s to 5m");
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
    check("sync.history", "[\"a b\"]", "`[\"a b\"]`", "words");
    check("sync.history_kept", "\"1m\"", "`\"1m\"`", "from 1h to 10years");
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

#[test]
fn systemd_starts_no_private_server() {
    let under_systemd = || variables(Sources::none(), &[("NOTIFY_SOCKET", "/run/systemd/notify")]);
    let told = problems(&under_systemd());
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].key, "database.url");
    assert!(told[0].remedy.contains("LoadCredential=database.url:"), "{}", told[0]);
    let command = Sources { purpose: Purpose::Command, ..under_systemd() };
    assert!(load(&command).is_ok(), "a command starts no server");
    let given = [("NOTIFY_SOCKET", "/run/x"), ("FIELDMIRROR_DATABASE__URL", "postgres://h/d")];
    assert!(load(&variables(Sources::none(), &given)).is_ok());
}
