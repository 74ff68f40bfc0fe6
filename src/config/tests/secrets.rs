//! How secrets are given, checked and hidden.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::*;
use crate::domain::secret::Secret;

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
