//! What is in force, where it comes from, and how it is reported.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::domain::secret::Secret;

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
    let alerts = &settings.alerts;
    assert!(alerts.exec.is_empty() && alerts.repeat_after.is_none() && alerts.environment.is_empty());
    assert_eq!([alerts.timeout, alerts.stale_after].map(|duration| duration.as_secs()), [30, 3600]);
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

/// What the alert program is given: nothing of ours.
#[test]
fn the_alert_programs_environment() {
    let given =
        [("PATH", "/bin"), ("FIELDMIRROR_VAULT__KEY", ""), ("CREDENTIALS_DIRECTORY", "/x"), ("TZ", "UTC")];
    let environment = load(&variables(Sources::none(), &given)).unwrap().settings.alerts.environment;
    let names: Vec<_> = environment.keys().map(String::as_str).collect();
    assert_eq!(names, ["PATH", "TZ"]);
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
fn an_environment_of_the_provider_brings_its_hosts() {
    let hosts = |set: &[(&str, &str)]| {
        let named =
            set.iter().map(|(key, value)| (format!("FIELDMIRROR_PROVIDERS__SERVICETITAN__{key}"), *value));
        let named: Vec<(String, &str)> = named.collect();
        let named: Vec<(&str, &str)> = named.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let settings = load(&variables(Sources::none(), &named)).expect("no problem").settings;
        let of = &settings.providers["servicetitan"];
        [&of.authorize_url, &of.token_url, &of.api_base]
            .map(|url| url.host_str().unwrap_or_default().to_owned())
    };
    let production = ["auth.servicetitan.io", "auth.servicetitan.io", "api.servicetitan.io"];
    assert_eq!(hosts(&[]), production);
    assert_eq!(hosts(&[("ENVIRONMENT", "production")]), production);
    let integration = [
        "auth-integration.servicetitan.io",
        "auth-integration.servicetitan.io",
        "api-integration.servicetitan.io",
    ];
    assert_eq!(hosts(&[("ENVIRONMENT", "integration")]), integration);
    let own = hosts(&[("ENVIRONMENT", "integration"), ("API_BASE", "https://proxy.example")]);
    assert_eq!(own, [integration[0], integration[1], "proxy.example"], "an address that is set stays");
    let odd = variables(Sources::none(), &[("FIELDMIRROR_PROVIDERS__SERVICETITAN__ENVIRONMENT", "staging")]);
    let said = format!("{:?}", problems(&odd));
    assert!(said.contains("production") && said.contains("integration"), "{said}");
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

/// What a new provider takes: a section in the built-in file, with the keys that only it has.
#[test]
fn a_provider_is_added_by_a_section() {
    let (_, hubspot) = DEFAULT_TOML.split_once("[providers.hubspot]").expect("the section");
    let hubspot = hubspot.split_once("\n[").map_or(hubspot, |(section, _)| section);
    let schema = format!("{DEFAULT_TOML}[providers.acme]{hubspot}\nlocation_ids = []\ntimezone = \"\"\n");
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

#[test]
fn both_listeners_may_take_a_free_port() {
    let any = "127.0.0.1:0";
    let set = [("FIELDMIRROR_CALLBACK__LISTEN", any), ("FIELDMIRROR_METRICS__LISTEN", any)];
    let settings = load(&variables(Sources::none(), &set)).expect("no problem").settings;
    assert_eq!((settings.callback.listen.port(), settings.metrics.listen.port()), (0, 0));
}
