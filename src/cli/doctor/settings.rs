//! The settings: whether they can be read, and whether they fit together.

use url::{Host, Url};

use super::{Finding, Patient};
use crate::config::{CallbackSettings, Problem, Problems};
use crate::vault::Vault;

/// Secrets that systemd reads as root are shown to a service alone.
const AS_THE_SERVICE: &str = "to have it looked at, run this as the daemon's user, or under systemd as root: \
    `systemd-run --quiet --wait --pipe --uid=fieldmirror --property=StateDirectory=fieldmirror \
    --property=LoadCredential=database.url:/etc/fieldmirror/database.url \
    --property=LoadCredential=vault.key:/etc/fieldmirror/vault.key fieldmirror doctor`, with one `LoadCredential` more for each \
    further credential of the unit";

/// Everything that is wrong with the settings. A secret that this user may not read is no fault of the settings.
pub(super) fn of_problems(problems: Option<&Problems>) -> Vec<Finding> {
    let Some(Problems(problems)) = problems else {
        return vec![Finding::ok("configuration", "all settings can be read")];
    };
    let finding = |problem: &Problem| {
        let Problem { key, found, expected, origin, remedy } = problem;
        if found.contains("Permission denied") {
            let text = format!("`{key}` ({origin}) cannot be read by this user; the daemon's user may");
            return Finding {
                remedy: Some(AS_THE_SERVICE.to_owned()),
                ..Finding::unknown("configuration", text)
            };
        }
        let text = format!("`{key}` ({origin}): found {found}, expected {expected}");
        Finding::ill("configuration", text, remedy)
    };
    problems.iter().map(finding).collect()
}

pub(super) fn examine(patient: &Patient) -> Vec<Finding> {
    vec![key(patient), redirect(&patient.settings().callback)]
}

fn key(patient: &Patient) -> Finding {
    const CHECK: &str = "vault_key";
    let vault = &patient.settings().vault;
    match &vault.key {
        _ if !patient.has_secrets => {
            Finding::unknown(CHECK, "not looked at: the secrets could not be read as a whole")
        }
        None => Finding::ill(
            CHECK,
            "there is no vault key, and the daemon does not start without one",
            "make one with `(umask 077; fieldmirror key generate > vault.key)`, keep a copy of it in a safe place, and set \
             `[vault] key_file` to its path",
        ),
        Some(key) => match Vault::new(key, &vault.previous_keys) {
            Ok(vault) => Finding::ok(CHECK, format!("key `{}` can be read", vault.key_id())),
            Err(error) => Finding::ill(CHECK, error, "put the right key back"),
        },
    }
}

/// What providers and browsers are told, as far as the settings alone tell whether it leads to where the daemon listens.
fn redirect(callback: &CallbackSettings) -> Finding {
    let uri = callback.redirect_uri("PROVIDER");
    Finding::ok(
        "redirect_uri",
        match reaches(callback) {
            Reaches::Outside => format!("`{uri}`, to be registered with each provider letter by letter"),
            Reaches::Here | Reaches::Elsewhere { .. } => {
                format!("`{uri}`: only a browser on this machine reaches it")
            }
        },
    )
}

/// Where the public address leads.
pub(super) enum Reaches {
    /// To a host that others see.
    Outside,
    /// To this machine, where the daemon listens.
    Here,
    /// To this machine, where something else has to pass it on.
    Elsewhere { port: u16 },
}

pub(super) fn reaches(CallbackSettings { listen, public_url, .. }: &CallbackSettings) -> Reaches {
    if !is_loopback(public_url) {
        return Reaches::Outside;
    }
    match public_url.port_or_known_default() {
        Some(port) if port == listen.port() => Reaches::Here,
        port => Reaches::Elsewhere { port: port.unwrap_or(0) },
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::config::Settings;

    #[test]
    fn where_browsers_are_sent() {
        let check = |listen: &str, public_url: &str, expected: fn(Reaches) -> bool| {
            let mut callback = Settings::example().callback;
            callback.listen = listen.parse().unwrap();
            callback.public_url = public_url.parse().unwrap();
            assert!(expected(reaches(&callback)), "{listen} {public_url}");
        };
        check("127.0.0.1:8787", "http://127.0.0.1:8787", |to| matches!(to, Reaches::Here));
        check("127.0.0.1:8787", "http://localhost", |to| matches!(to, Reaches::Elsewhere { port: 80 }));
        check("127.0.0.1:8787", "https://mirror.example.com", |to| matches!(to, Reaches::Outside));
    }

    #[test]
    fn what_may_not_be_read_is_not_ill() {
        let problem = |found: &str| Problem {
            key: "vault.key_file".into(),
            found: found.into(),
            expected: "a readable file".into(),
            origin: "file x".into(),
            remedy: "check its path and permissions".into(),
        };
        let away = "a file that cannot be read (No such file or directory (os error 2))";
        let denied = "a file that cannot be read (Permission denied (os error 13))";
        let found = of_problems(Some(&Problems(vec![problem(away), problem(denied)])));
        assert_eq!([found[0].level, found[1].level], [Level::Ill, Level::Unknown]);
        assert!(found[1].remedy.as_ref().is_some_and(|remedy| remedy.contains("LoadCredential=vault.key:")));
        assert_eq!(of_problems(None)[0].level, Level::Ok);
    }
}
