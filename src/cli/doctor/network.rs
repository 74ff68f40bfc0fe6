//! What has to be reached: the providers in use, whose `Date` also tells whether our clock is right.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::TimeDelta;
use futures_util::future::join_all;
use url::{Position, Url};

use super::Finding;
use crate::config::Settings;
use crate::db::connections::{Connection, ConnectionState};
use crate::domain::failure::chain;
use crate::domain::spec::GrantKind;
use crate::domain::step::{Reply, Request};
use crate::domain::time::SystemClock;
use crate::http::retry::http_date;
use crate::http::{Client, HttpLimits, SendError};

/// How far our clock may be from a provider's. `Date` has whole seconds, and an answer takes some.
const SKEW_MAX: TimeDelta = TimeDelta::seconds(30);
const LIMITS: HttpLimits = HttpLimits {
    connect: Duration::from_secs(5),
    read: Duration::from_secs(8),
    total: Duration::from_secs(10),
    body_max: 1024 * 1024,
};

pub(super) async fn examine(settings: &Settings, connections: &[Connection]) -> Vec<Finding> {
    let client = match Client::new(&LIMITS) {
        Ok(client) => client,
        Err(error) => {
            let remedy = "install the system's certificates, for example the package ca-certificates";
            return vec![Finding::ill("https", chain(&error), remedy)];
        }
    };
    let hosts = hosts(settings, connections);
    let probes = hosts.iter().map(|(host, key)| probe(&client, host, key));
    join_all(probes).await.into_iter().flatten().collect()
}

/// Hosts of enabled providers that are used, each with the settings that lead there. A key is never exchanged for a token.
fn hosts(settings: &Settings, connections: &[Connection]) -> BTreeMap<String, String> {
    let mut hosts: BTreeMap<String, String> = BTreeMap::new();
    for (name, provider) in settings.providers.iter().filter(|(_, provider)| provider.enabled) {
        let live = |one: &&Connection| {
            one.provider == *name
                && matches!(one.state, ConnectionState::Connected | ConnectionState::NeedsReauth)
        };
        let has_key = |one: &Connection| matches!(one.grant, GrantKind::ApiKey | GrantKind::BearerToken);
        let live: Vec<&Connection> = connections.iter().filter(live).collect();
        let has_client = !provider.client_id.is_empty();
        for (key, url, is_used) in [
            ("api_base", &provider.api_base, has_client || !live.is_empty()),
            ("token_url", &provider.token_url, has_client || live.iter().any(|one| !has_key(one))),
        ] {
            if !is_used {
                continue;
            }
            let keys = hosts.entry(url[..Position::BeforePath].to_owned()).or_default();
            let key = format!("providers.{name}.{key}");
            *keys = if keys.is_empty() { key } else { format!("{keys}, {key}") };
        }
    }
    hosts
}

async fn probe(client: &Client, host: &str, keys: &str) -> Vec<Finding> {
    match get(client, host, "/").await {
        Ok(reply) => {
            let reached = Finding::ok("reachability", format!("`{host}` answers ({keys})"));
            std::iter::once(reached).chain(clock(host, &reply)).collect()
        }
        // It was reached, and said something of no use here.
        Err(error) if error.sent => {
            vec![Finding::ok("reachability", format!("`{host}` can be reached ({keys})"))]
        }
        Err(error) => vec![Finding::ill(
            "reachability",
            format!("`{host}` cannot be reached: {error}"),
            format!("see name resolution, firewall and the settings {keys}"),
        )],
    }
}

fn clock(host: &str, reply: &Reply) -> Option<Finding> {
    let ahead = reply.sent_at - http_date(reply.header("date")?)?;
    let text = format!("{} s from `{host}`", ahead.num_seconds().abs());
    Some(if ahead.abs() > SKEW_MAX {
        let remedy = "let this machine follow a time server, for example with `timedatectl set-ntp true`";
        Finding::ill("clock", format!("this machine's clock is {text}"), remedy)
    } else {
        Finding::ok("clock", text)
    })
}

/// One GET of `path` below `base`, without credentials.
pub(super) async fn get(client: &Client, base: &str, path: &str) -> Result<Reply, SendError> {
    let request = Request::get(path.to_owned(), "doctor", &[]);
    match Url::parse(base) {
        Ok(base) => client.send(&base, &request, &[], &SystemClock).await,
        Err(error) => Err(SendError {
            sent: false,
            timed_out: false,
            kind: crate::domain::failure::FailureKind::Misconfigured,
            message: error.to_string(),
        }),
    }
}

pub(super) fn client() -> Option<Client> {
    Client::new(&LIMITS).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_once_and_only_those_in_use() {
        let mut settings = Settings::example();
        assert!(hosts(&settings, &[]).is_empty(), "nobody uses a provider without a client or a connection");
        settings.providers.get_mut("hubspot").unwrap().client_id = "x".into();
        let expected = "providers.hubspot.api_base, providers.hubspot.token_url".to_owned();
        assert_eq!(hosts(&settings, &[]), BTreeMap::from([("https://api.hubapi.com".to_owned(), expected)]));
    }
}
