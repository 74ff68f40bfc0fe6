//! Which settings a running daemon takes over, and which wait for its next start.
//!
//! What is under way ends with the settings that it began with.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::config::{CallbackSettings, Loaded, Settings};
use crate::domain::secret::Secret;

/// Sections and keys that are taken over. What is built at the start waits for the next one: listeners, the pool, the
/// number of workers, the keys, the log, the alerts.
const RELOADED: [&str; 4] = ["callback.public_url", "callback.ticket_ttl", "sync", "providers"];

/// What a new reading of the settings brings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Keys whose new value holds from now on.
    pub taken: BTreeSet<String>,
    /// Keys whose new value needs a restart.
    pub waiting: BTreeSet<String>,
}

/// What differs: for what is taken over, from the `last` reading; for the rest, from the daemon's start.
pub fn change(started: &Loaded, last: &Loaded, read: &Loaded) -> Change {
    let changed = |from: &Loaded| changed_rows(from, read).into_iter().chain(changed_secrets(from, read));
    Change {
        taken: changed(last).filter(|key| is_reloaded(key)).collect(),
        waiting: changed(started).filter(|key| !is_reloaded(key)).collect(),
    }
}

/// The settings that hold after a reload.
pub fn merged(running: &Settings, read: Settings) -> Settings {
    let Settings { daemon, database, callback, metrics, alerts, vault, .. } = running.clone();
    Settings {
        daemon,
        database,
        metrics,
        alerts,
        vault,
        callback: CallbackSettings { listen: callback.listen, ..read.callback },
        sync: read.sync,
        providers: read.providers,
    }
}

fn is_reloaded(key: &str) -> bool {
    let within = |prefix: &&str| {
        key.strip_prefix(*prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    RELOADED.iter().any(within)
}

fn changed_rows(running: &Loaded, read: &Loaded) -> Vec<String> {
    let value = |loaded: &Loaded, section: &str, key: &str| -> Option<Value> {
        let row = loaded.rows().iter().find(|row| row.section == section && row.key == key)?;
        Some(row.value.clone())
    };
    let changed =
        read.rows().iter().filter(|row| value(running, &row.section, &row.key).as_ref() != Some(&row.value));
    changed.map(|row| format!("{}.{}", row.section, row.key)).collect()
}

/// Secrets are masked where settings are listed.
fn changed_secrets(running: &Loaded, read: &Loaded) -> Vec<String> {
    let (before, after) = (secrets(&running.settings), secrets(&read.settings));
    let exposed = |secrets: &[(String, Vec<Secret>)], key: &str| -> Vec<String> {
        let found = secrets.iter().find(|(name, _)| name == key);
        found
            .map(|(_, values)| values.iter().map(|secret| secret.expose().to_owned()).collect())
            .unwrap_or_default()
    };
    let changed = after.iter().filter(|(key, _)| exposed(&before, key) != exposed(&after, key));
    changed.map(|(key, _)| key.clone()).collect()
}

fn secrets(settings: &Settings) -> Vec<(String, Vec<Secret>)> {
    let one = |secret: &Option<Secret>| secret.iter().cloned().collect();
    let mut all = vec![
        ("database.url".to_owned(), one(&settings.database.url)),
        ("vault.key".to_owned(), one(&settings.vault.key)),
        ("vault.previous_key_files".to_owned(), settings.vault.previous_keys.clone()),
    ];
    let of_provider = |(name, provider): (&String, &crate::config::ProviderSettings)| {
        (format!("providers.{name}.client_secret"), one(&provider.client_secret))
    };
    all.extend(settings.providers.iter().map(of_provider));
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::config::{self, Sources};

    fn load(settings: &[(&str, &str)]) -> Loaded {
        let variable = |(key, value): &(&str, &str)| {
            (format!("FIELDMIRROR_{}", key.to_uppercase().replace('.', "__")), (*value).into())
        };
        let environment: BTreeMap<_, _> = settings.iter().map(variable).collect();
        config::load(&Sources { environment, ..Sources::none() }).unwrap()
    }

    fn keys(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn what_is_taken_and_what_waits() {
        let running = load(&[("providers.hubspot.client_secret", "one")]);
        assert_eq!(change(&running, &running, &running), Change::default());
        let read = load(&[
            ("daemon.workers", "3"),
            ("callback.listen", "127.0.0.1:1"),
            ("callback.public_url", "https://sync.example.com"),
            ("sync.poll_interval", "1m"),
            ("providers.hubspot.client_secret", "two"),
            ("database.url", "postgres://h/d"),
        ]);
        let change = change(&running, &running, &read);
        assert_eq!(
            change.taken,
            keys(&["callback.public_url", "providers.hubspot.client_secret", "sync.poll_interval"])
        );
        assert_eq!(change.waiting, keys(&["callback.listen", "daemon.workers", "database.url"]));

        let back = self::change(&running, &read, &running);
        assert_eq!((back.taken.len(), back.waiting.len()), (3, 0), "what waited is as it was at the start");

        let merged = merged(&running.settings, read.settings);
        assert_eq!(merged.sync.poll_interval, Duration::from_mins(1));
        assert_eq!(merged.callback.public_url.as_str(), "https://sync.example.com/");
        assert_eq!(merged.providers["hubspot"].client_secret.as_ref().unwrap().expose(), "two");
        assert_eq!(merged.daemon.workers, running.settings.daemon.workers);
        assert_eq!(merged.callback.listen, running.settings.callback.listen);
        assert!(merged.database.url.is_none());
    }

    #[test]
    fn every_reloaded_key_is_there() {
        let all = load(&[]);
        for prefix in RELOADED {
            let of_it = |row: &&config::Row| {
                let key = format!("{}.{}", row.section, row.key);
                key == prefix || key.starts_with(&format!("{prefix}."))
            };
            assert!(all.rows().iter().any(|row| of_it(&row)), "{prefix}");
        }
        for (key, expected) in
            [("sync.overlap", true), ("sync", true), ("synchrony.x", false), ("vault.key", false)]
        {
            assert_eq!(is_reloaded(key), expected, "{key}");
        }
    }
}
