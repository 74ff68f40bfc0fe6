//! Rules for single values that several settings share, and for settings that have to fit together.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use url::{Host, Url};
use zeroize::Zeroizing;

use super::reader::Reader;
use super::settings::Settings;
use super::sources::Purpose;

pub(super) const URL_EXPECTED: &str =
    "an https URL (http only for a loopback host) without user name, password and fragment";
pub(super) const BASE_URL_EXPECTED: &str =
    "an https URL (http only for a loopback host) without user name, password, query and fragment";

/// The size of a vault key, before base64.
pub(super) const VAULT_KEY_BYTES: usize = 32;

/// A URL that secrets may be sent to.
pub(super) fn url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let safe = match url.scheme() {
        "https" => url.host().is_some(),
        "http" => is_loopback(&url),
        _ => false,
    };
    let bare = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (safe && bare).then_some(url)
}

/// A URL that paths are put behind.
pub(super) fn base_url(text: &str) -> Option<Url> {
    url(text).filter(|url| url.query().is_none())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// `v3`, or the month of a dated version such as `2026-03`.
pub(super) fn api_version(text: &str) -> Option<String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let month = |text: &str| text.len() == 2 && digits(text) && ("01"..="12").contains(&text);
    let dated = |(year, rest): (&str, &str)| year.len() == 4 && digits(year) && month(rest);
    let fits = text == "v3" || text.split_once('-').is_some_and(dated);
    fits.then(|| text.to_owned())
}

/// What is wrong with a vault key, without a byte of it. Whether it is the right key only the vault can tell.
pub(super) fn vault_key_fault(text: &str) -> Option<String> {
    let engine = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    match engine.decode(text.trim()).map(Zeroizing::new) {
        Err(_) => Some("text that is not base64".to_owned()),
        Ok(bytes) if bytes.len() == VAULT_KEY_BYTES => None,
        Ok(bytes) => Some(format!("{} bytes after base64 decoding", bytes.len())),
    }
}

/// What is wrong with the database's URL, without showing it. libpq's key=value form is not taken: parameters are added
/// to the URL before it is used.
pub(super) fn database_url_fault(text: &str) -> Option<String> {
    let uri = text.starts_with("postgres://") || text.starts_with("postgresql://");
    if uri { None } else { Some("text that is no Postgres URL (not shown)".to_owned()) }
}

/// Rules between settings. Only asked when each of them fits by itself.
pub(super) fn combinations(settings: &Settings, reader: &mut Reader<'_>) {
    private_server_is_allowed(settings, reader);
    let (callback, metrics) = (settings.callback.listen, settings.metrics.listen);
    if callback == metrics && callback.port() != 0 {
        let (_, origin) = reader.layers.effective("metrics.listen");
        reader.problem(
            "metrics.listen",
            format!("`{metrics}`, which is [callback] listen too"),
            "an address and port of its own",
            &origin,
            "choose another port for one of them",
        );
    }
}

/// The private server is for trying things out: a service that is meant to last has a database that somebody looks
/// after, and systemd would hold a server inside the daemon's own walls.
fn private_server_is_allowed(settings: &Settings, reader: &mut Reader<'_>) {
    const KEY: &str = "database.url";
    let sources = reader.sources;
    if sources.purpose == Purpose::Daemon && sources.under_systemd() && settings.database.url.is_none() {
        let (_, origin) = reader.layers.effective(KEY);
        reader.problem(
            KEY,
            "no address, under systemd (NOTIFY_SOCKET is set)",
            "the address of a Postgres database",
            &origin,
            "write it into a file of mode 0600 and give that to the unit, as in \
             `LoadCredential=database.url:/etc/fieldmirror/database.url`",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check = |text: &str, expected: bool| assert_eq!(url(text).is_some(), expected, "{text}");
        check("https://api.hubapi.com", true);
        check("https://api.example.com:8443/base?x=1", true);
        check("http://127.0.0.1:1", true);
        check("http://127.9.8.7/x", true);
        check("http://[::1]:8080", true);
        check("http://localhost:8787", true);
        check("http://api.hubapi.com", false);
        check("http://localhost.example.com", false);
        check("http://128.0.0.1", false);
        check("http://0.0.0.0", false);
        check("ftp://127.0.0.1", false);
        check("https://user@example.com", false);
        check("https://:pw@example.com", false);
        check("https://example.com/#here", false);
        check("example.com", false);
        check("", false);
        assert!(base_url("https://example.com/?x=1").is_none());
        assert!(base_url("https://example.com/api").is_some());
    }

    #[test]
    fn api_versions() {
        for good in ["v3", "2026-03", "2025-12"] {
            assert!(api_version(good).is_some(), "{good}");
        }
        for bad in ["", "v", "3", "v4", "2026-3", "2026-13", "2026-00", "2026-03-01", "26-03", "2026_03"] {
            assert!(api_version(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn database_urls() {
        for good in ["postgres://u:p@h/d", "postgresql:///d?host=/run"] {
            assert_eq!(database_url_fault(good), None, "{good}");
        }
        for bad in ["mysql://u:hunter2@h/d", "hunter2", "host=/run/x dbname=d password=hunter2"] {
            let fault = database_url_fault(bad).expect("a fault");
            assert!(!fault.contains("hunter2"), "{fault}");
        }
    }
}
