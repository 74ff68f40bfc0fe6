//! The settings as types, and how each is read. What a key means and how it is written is told in
//! `config/default.toml`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::reader::Reader;
use super::secrets::SecretKind;
use super::validate;
use crate::domain::secret::Secret;
use crate::domain::spec::Rhythm;

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const HOUR: Duration = seconds(60 * 60);
const DAY: Duration = seconds(24 * 60 * 60);
const MONTH: Duration = seconds(30 * 24 * 60 * 60);

/// What each setting may be. `config/default.toml` says the same in words.
const WORKERS: RangeInclusive<u32> = 1..=256;
const POOL_SIZE: RangeInclusive<u32> = 2..=100;
const PAGE_SIZE: RangeInclusive<u32> = 0..=1000;
const SPILL_GRACE: RangeInclusive<Duration> = Duration::ZERO..=DAY;
const TICKET_TTL: RangeInclusive<Duration> = seconds(1)..=MONTH;
const POLL_INTERVAL: RangeInclusive<Duration> = seconds(1)..=DAY;
const WALK_INTERVAL: RangeInclusive<Duration> = seconds(1)..=MONTH;
const OVERLAP: RangeInclusive<Duration> = Duration::ZERO..=DAY;
const HOLD_BACK: RangeInclusive<Duration> = Duration::ZERO..=HOUR;
const TURN_LIMIT: RangeInclusive<Duration> = seconds(1)..=seconds(5 * 60);
const HOOK_TIMEOUT: RangeInclusive<Duration> = seconds(1)..=seconds(5 * 60);
const STALE_AFTER: RangeInclusive<Duration> = seconds(60)..=MONTH;
const KEPT: RangeInclusive<Duration> = DAY..=seconds(3650 * 24 * 60 * 60);
const HOOK_WORDS_MAX: usize = 32;
const QUOTA_RESERVE: RangeInclusive<f64> = 0.0..=0.9;
const HISTORY_WORDS_MAX: usize = 100;
const HISTORY_KEPT: RangeInclusive<Duration> = HOUR..=seconds(10 * 31_557_600);
const EGRESS_GROUP_LENGTH_MAX: usize = 128;
const CLIENT_ID_LENGTH_MAX: usize = 512;
const SCOPES_MAX: usize = 100;

/// Where state is kept under a system account.
const SYSTEM_STATE_DIR: &str = "/var/lib/fieldmirror";

/// Everything that can be set. Secrets print as `[secret]`.
#[derive(Debug, Clone)]
pub struct Settings {
    pub daemon: DaemonSettings,
    pub database: DatabaseSettings,
    pub callback: CallbackSettings,
    pub metrics: MetricsSettings,
    pub alerts: AlertSettings,
    pub vault: VaultSettings,
    pub sync: SyncSettings,
    /// By name. All that we know, enabled or not.
    pub providers: BTreeMap<String, ProviderSettings>,
}

#[derive(Debug, Clone)]
pub struct DaemonSettings {
    /// Absolute. Not created here.
    pub state_dir: PathBuf,
    pub workers: usize,
    pub log_format: LogFormat,
    /// Never empty: the host's name where nothing is set.
    pub egress_group: String,
    pub requests_kept: Duration,
    pub audit_log_kept: Duration,
    /// How long a reply is waited for that may be on the disk of a daemon that died.
    pub spill_grace: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
    Journald,
}

impl LogFormat {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            "journald" => Some(Self::Journald),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// `None`: a private server in the state directory.
    pub url: Option<Secret>,
    pub pool_size: usize,
    /// `None`: searched.
    pub pg_bin: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct CallbackSettings {
    pub listen: SocketAddr,
    pub public_url: Url,
    pub ticket_ttl: Duration,
}

#[derive(Debug, Clone)]
pub struct MetricsSettings {
    pub listen: SocketAddr,
}

#[derive(Debug, Clone)]
pub struct AlertSettings {
    /// Program and arguments; empty: nobody is told.
    pub exec: Vec<String>,
    /// What the program finds in its environment: nothing of ours, so no secret.
    pub environment: BTreeMap<String, OsString>,
    pub timeout: Duration,
    pub stale_after: Duration,
    /// `None`: an alert is told once.
    pub repeat_after: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct VaultSettings {
    /// Base64 of 32 bytes, already read. `None` when it is not set, and always for commands: only the daemon needs it,
    /// and refuses to start without.
    pub key: Option<Secret>,
    pub previous_keys: Vec<Secret>,
}

#[derive(Debug, Clone)]
pub struct SyncSettings {
    pub poll_interval: Duration,
    pub archived_interval: Duration,
    pub sweep_interval: Duration,
    pub overlap: Duration,
    pub hold_back: Duration,
    pub turn_limit: Duration,
    /// From 0 to 0.9.
    pub quota_reserve: f64,
    /// Streams whose changes are kept, as `config/default.toml` has it.
    pub history: Vec<String>,
    /// `None`: for ever.
    pub history_kept: Option<Duration>,
}

impl SyncSettings {
    /// Whether the values before a change are kept. The last word that is about the stream decides.
    pub fn keeps_history(&self, provider: &str, stream: &str) -> bool {
        let kept = self.history.iter().rev().find_map(|word| {
            let (named, keeps) = word.strip_prefix('-').map_or((word.as_str(), true), |rest| (rest, false));
            let about = match named.split_once('.') {
                None => named == "*",
                Some((of, "*")) => of == provider,
                Some((of, one)) => of == provider && one == stream,
            };
            about.then_some(keeps)
        });
        kept.unwrap_or(false)
    }
}

#[derive(Debug, Clone)]
pub struct ProviderSettings {
    pub enabled: bool,
    /// May be empty: needed for consent only.
    pub client_id: String,
    /// Always `None` for commands.
    pub client_secret: Option<Secret>,
    pub scopes: Vec<String>,
    pub authorize_url: Url,
    pub token_url: Url,
    /// `None`: grants are not revoked, only forgotten.
    pub revoke_url: Option<Url>,
    pub api_base: Url,
    /// Empty where the provider's paths name none.
    pub api_version: String,
    pub pkce: bool,
    /// `None`: as `SyncSettings::poll_interval`.
    pub poll_interval: Option<Duration>,
    /// 0: the provider's own.
    pub page_size: u32,
    /// Keys that only this provider has, each of the type of its built-in value.
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Keys that every provider has; what else stands in its section is `extra`.
const PROVIDER_KEYS: [&str; 13] = [
    "enabled",
    "client_id",
    "client_secret",
    "client_secret_file",
    "scopes",
    "authorize_url",
    "token_url",
    "revoke_url",
    "api_base",
    "api_version",
    "pkce",
    "poll_interval",
    "page_size",
];

impl Settings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            daemon: DaemonSettings::read(reader),
            database: DatabaseSettings {
                url: reader.secret("database.url", "database.url_file", SecretKind::DatabaseUrl),
                pool_size: reader.count("database.pool_size", &POOL_SIZE) as usize,
                pg_bin: reader.path("database.pg_bin"),
            },
            callback: CallbackSettings {
                listen: reader.address("callback.listen"),
                public_url: reader.base_url("callback.public_url"),
                ticket_ttl: reader.duration("callback.ticket_ttl", &TICKET_TTL),
            },
            metrics: MetricsSettings { listen: reader.address("metrics.listen") },
            alerts: AlertSettings::read(reader),
            vault: VaultSettings {
                key: reader.secret("vault.key", "vault.key_file", SecretKind::VaultKey),
                previous_keys: reader.previous_keys("vault.previous_key_files"),
            },
            sync: SyncSettings::read(reader),
            providers: read_providers(reader),
        }
    }

    /// Providers whose connections are synced.
    pub fn enabled_providers(&self) -> Vec<String> {
        let enabled = self.providers.iter().filter(|(_, provider)| provider.enabled);
        enabled.map(|(name, _)| name.clone()).collect()
    }

    /// How often walks of each enabled provider's accounts begin by themselves.
    pub fn rhythms(&self) -> Vec<(String, Rhythm)> {
        let enabled = self.providers.iter().filter(|(_, provider)| provider.enabled);
        enabled.map(|(name, provider)| (name.clone(), self.rhythm(provider))).collect()
    }

    pub fn rhythm(&self, provider: &ProviderSettings) -> Rhythm {
        let SyncSettings { poll_interval, archived_interval, sweep_interval, .. } = self.sync;
        let poll = provider.poll_interval.unwrap_or(poll_interval);
        Rhythm { poll, archived: archived_interval, sweep: sweep_interval }
    }

    /// The built-in settings, for tests: as for root on a host named `host`.
    pub fn example() -> Self {
        super::load(&super::Sources::none()).expect("the built-in settings have no problem").settings
    }
}

impl CallbackSettings {
    /// What a provider is told, and sent again exactly.
    pub fn redirect_uri(&self, provider: &str) -> String {
        format!("{}/oauth/callback/{provider}", self.public_url.as_str().trim_end_matches('/'))
    }
}

impl DaemonSettings {
    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            state_dir: state_dir(reader),
            workers: reader.count("daemon.workers", &WORKERS) as usize,
            log_format: reader.required(
                "daemon.log_format",
                "\"text\", \"json\" or \"journald\"",
                LogFormat::parse,
            ),
            egress_group: egress_group(reader),
            requests_kept: reader.duration("daemon.requests_kept", &KEPT),
            audit_log_kept: reader.duration("daemon.audit_log_kept", &KEPT),
            spill_grace: reader.duration("daemon.spill_grace", &SPILL_GRACE),
        }
    }
}

/// Variables that the alert program is given.
const HOOK_ENVIRONMENT: [&str; 5] = ["PATH", "HOME", "USER", "LANG", "TZ"];

impl AlertSettings {
    fn read(reader: &mut Reader<'_>) -> Self {
        let given = &reader.sources.environment;
        let environment = HOOK_ENVIRONMENT.iter().filter_map(|name| given.get_key_value(*name));
        Self {
            environment: environment.map(|(name, value)| (name.clone(), value.clone())).collect(),
            exec: reader.command("alerts.exec", HOOK_WORDS_MAX),
            timeout: reader.duration("alerts.timeout", &HOOK_TIMEOUT),
            stale_after: reader.duration("alerts.stale_after", &STALE_AFTER),
            repeat_after: reader.optional_duration("alerts.repeat_after", &STALE_AFTER),
        }
    }
}

impl SyncSettings {
    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            poll_interval: reader.duration("sync.poll_interval", &POLL_INTERVAL),
            archived_interval: reader.duration("sync.archived_interval", &WALK_INTERVAL),
            sweep_interval: reader.duration("sync.sweep_interval", &WALK_INTERVAL),
            overlap: reader.duration("sync.overlap", &OVERLAP),
            hold_back: reader.duration("sync.hold_back", &HOLD_BACK),
            turn_limit: reader.duration("sync.turn_limit", &TURN_LIMIT),
            quota_reserve: reader.share("sync.quota_reserve", &QUOTA_RESERVE),
            history: reader.words("sync.history", HISTORY_WORDS_MAX),
            history_kept: reader.optional_duration("sync.history_kept", &HISTORY_KEPT),
        }
    }
}

impl ProviderSettings {
    fn read(reader: &mut Reader<'_>, name: &str) -> Self {
        let key = |key: &str| format!("providers.{name}.{key}");
        let version = "\"v3\" or the month of a version, such as \"2026-03\"";
        Self {
            enabled: reader.flag(&key("enabled")),
            client_id: reader.text(&key("client_id"), CLIENT_ID_LENGTH_MAX),
            client_secret: reader.secret(
                &key("client_secret"),
                &key("client_secret_file"),
                SecretKind::Plain,
            ),
            scopes: reader.words(&key("scopes"), SCOPES_MAX),
            authorize_url: reader.url(&key("authorize_url")),
            token_url: reader.url(&key("token_url")),
            revoke_url: reader.optional_url(&key("revoke_url")),
            api_base: reader.base_url(&key("api_base")),
            api_version: reader
                .parsed(&key("api_version"), version, validate::api_version)
                .unwrap_or_default(),
            pkce: reader.flag(&key("pkce")),
            poll_interval: reader.optional_duration(&key("poll_interval"), &POLL_INTERVAL),
            page_size: reader.count(&key("page_size"), &PAGE_SIZE),
            extra: extra(reader, name),
        }
        .in_environment(reader, name)
    }

    /// Replaces the built-in addresses by those of the provider's other environment, where `environment` names one: they
    /// stand in the section as `{environment}_{key}`. An address that somebody set stays.
    fn in_environment(mut self, reader: &mut Reader<'_>, name: &str) -> Self {
        let Some(environment) = self.extra.get("environment").and_then(|word| word.as_str()) else {
            return self;
        };
        let origin = format!("providers.{name}.environment = \"{environment}\"");
        let environment = environment.to_owned();
        let known = self.extra.keys().filter_map(|key| key.strip_suffix("_api_base"));
        let known: Vec<&str> = ["production"].into_iter().chain(known).collect();
        if !known.contains(&environment.as_str()) {
            let key = format!("providers.{name}.environment");
            let set_by = reader.layers.effective(&key).1;
            let expected = format!("one of \"{}\"", known.join("\", \""));
            reader.problem(&key, format!("\"{environment}\""), expected, &set_by, "choose one of these");
        }
        let addresses = [
            ("authorize_url", &mut self.authorize_url),
            ("token_url", &mut self.token_url),
            ("api_base", &mut self.api_base),
        ];
        for (key, address) in addresses {
            let own = self.extra.get(&format!("{environment}_{key}")).and_then(|url| url.as_str());
            let full = format!("providers.{name}.{key}");
            if let Some(url) = own.and_then(validate::url).filter(|_| reader.is_default(&full)) {
                reader.resolve(&full, url.as_str().into(), origin.clone());
                *address = url;
            }
        }
        self
    }
}

fn read_providers(reader: &mut Reader<'_>) -> BTreeMap<String, ProviderSettings> {
    let names = reader.layers.providers();
    names.into_iter().map(|name| (name.clone(), ProviderSettings::read(reader, &name))).collect()
}

fn extra(reader: &mut Reader<'_>, name: &str) -> BTreeMap<String, serde_json::Value> {
    let section = format!("providers.{name}.");
    let layers = reader.layers;
    let own = layers.keys().filter_map(|key| Some((key, key.strip_prefix(&section)?)));
    own.filter(|(_, name)| !PROVIDER_KEYS.contains(name))
        .map(|(key, name)| (name.to_owned(), reader.extra(key)))
        .collect()
}

/// The state directory. The built-in one is for root; systemd names one, and others get one of their own.
fn state_dir(reader: &mut Reader<'_>) -> PathBuf {
    const KEY: &str = "daemon.state_dir";
    let stated = reader.path(KEY).unwrap_or_else(|| SYSTEM_STATE_DIR.into());
    if !reader.is_default(KEY) {
        return stated;
    }
    let sources = reader.sources;
    // systemd separates several directories by colons; the first is ours.
    let by_systemd = sources
        .directory_variable("STATE_DIRECTORY")
        .and_then(|paths| paths.to_str()?.split(':').next().map(PathBuf::from));
    if let Some(path) = by_systemd {
        reader.resolve(KEY, path.to_string_lossy().into(), "environment STATE_DIRECTORY".to_owned());
        return path;
    }
    if sources.privileged {
        return stated;
    }
    let state_home = sources.directory_variable("XDG_STATE_HOME").map(PathBuf::from);
    let state_home = state_home.or_else(|| Some(sources.directory_variable("HOME")?.join(".local/state")));
    let Some(path) = state_home.map(|path| path.join("fieldmirror")) else {
        let found = "neither HOME nor XDG_STATE_HOME, and no privileges";
        reader.problem(KEY, found, "a directory for state", "default", "set `daemon.state_dir`");
        return stated;
    };
    reader.resolve(KEY, path.to_string_lossy().into(), "default".to_owned());
    path
}

fn egress_group(reader: &mut Reader<'_>) -> String {
    const KEY: &str = "daemon.egress_group";
    let stated = reader.text(KEY, EGRESS_GROUP_LENGTH_MAX);
    if !stated.is_empty() {
        return stated;
    }
    let host = reader.sources.host_name.clone();
    let origin = reader.layers.effective(KEY).1;
    reader.resolve(KEY, host.as_str().into(), origin);
    host
}
