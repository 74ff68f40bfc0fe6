//! The providers in use, and the daemon's own endpoint: what is set against what the database knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use url::Url;

use super::database::Known;
use super::network::{client, get};
use super::settings::is_loopback;
use super::{Finding, Patient};
use crate::config::{self, ProviderSettings, Settings};
use crate::db::connections::{Connection, ConnectionState};
use crate::domain::spec::GrantKind;

pub(super) async fn examine(patient: &Patient, known: Option<&Known>) -> Vec<Finding> {
    let settings = patient.settings();
    let connections = known.map_or(&[][..], |known| &known.connections);
    let mut findings: Vec<Finding> = settings
        .providers
        .iter()
        .flat_map(|(name, provider)| of_provider(name, provider, connections, patient.has_secrets))
        .collect();
    let here = config::host_name();
    if known.is_some_and(|known| known.daemons.iter().any(|daemon| daemon.host == here)) {
        findings.extend(endpoint(settings).await);
    }
    findings
}

fn of_provider(
    name: &str,
    settings: &ProviderSettings,
    connections: &[Connection],
    has_secrets: bool,
) -> Vec<Finding> {
    let live = |connection: &&Connection| {
        connection.provider == name
            && matches!(connection.state, ConnectionState::Connected | ConnectionState::NeedsReauth)
    };
    let connections: Vec<&Connection> = connections.iter().filter(live).collect();
    let consented = connections.iter().filter(|one| one.grant == GrantKind::AuthorizationCode).count();
    let mut findings = Vec::new();
    if !settings.enabled && !connections.is_empty() {
        findings.push(Finding::warning(
            "provider",
            format!("`{name}` is disabled, and {} connections wait", connections.len()),
            format!("set `providers.{name}.enabled = true`, or disconnect them"),
        ));
    }
    if settings.enabled && settings.client_id.is_empty() && consented > 0 {
        findings.push(Finding::ill(
            "provider",
            format!("{consented} connections of `{name}` need our client to refresh, and it has no id"),
            format!("set `providers.{name}.client_id` and `providers.{name}.client_secret_file`"),
        ));
    }
    if settings.enabled && has_secrets && !settings.client_id.is_empty() && settings.client_secret.is_none() {
        findings.push(Finding::ill(
            "provider",
            format!("the client of `{name}` has an id and no secret"),
            format!("set `providers.{name}.client_secret_file`, or give the credential `providers.{name}.client_secret`"),
        ));
    }
    findings
}

/// Whether the daemon on this host can be reached as it is set, and from outside as browsers would.
async fn endpoint(settings: &Settings) -> Vec<Finding> {
    let Some(client) = client() else { return Vec::new() };
    let mut findings = Vec::new();
    let listen = settings.callback.listen;
    if listen.port() != 0 {
        let base = format!("http://{}", reachable(listen));
        let answered = matches!(get(&client, &base, "/healthz").await, Ok(reply) if reply.status == 200);
        findings.push(if answered {
            Finding::ok("callback_endpoint", format!("it answers on {listen}"))
        } else {
            Finding::ill(
                "callback_endpoint",
                format!("a daemon lives on this host, and nothing of ours answers on {listen}"),
                "see whether `callback.listen` was changed without a restart of the daemon, and what listens there",
            )
        });
    }
    let public: &Url = &settings.callback.public_url;
    if !is_loopback(public) {
        let answered =
            matches!(get(&client, public.as_str(), "/healthz").await, Ok(reply) if reply.status == 200);
        findings.push(if answered {
            Finding::ok("public_url", format!("`{public}` leads to the daemon"))
        } else {
            Finding::warning(
                "public_url",
                format!("`{public}` does not lead to the daemon, seen from this host"),
                format!("let the reverse proxy pass its paths to {listen}, or correct `callback.public_url`"),
            )
        });
    }
    findings
}

/// An address that can be connected to: a listener on all addresses is reached by loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
