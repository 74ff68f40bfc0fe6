//! The providers in use, and the daemon's own endpoint: what is set against what the database knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::database::Known;
use super::network::{client, get};
use super::settings::{self, Reaches};
use super::{Finding, Patient};
use crate::callback::pages;
use crate::config::{self, CallbackSettings, ProviderSettings, Settings};
use crate::db::authorizations::LinkOut;
use crate::db::connections::{Connection, ConnectionState};
use crate::domain::spec::GrantKind;
use crate::domain::step::{Body, Reply};
use crate::http::Client;

/// Connections that one finding names.
const NAMES_MAX: usize = 5;

pub(super) async fn examine(patient: &Patient, known: Option<&Known>) -> Vec<Finding> {
    let settings = patient.settings();
    let connections = known.map_or(&[][..], |known| &known.connections);
    let mut findings: Vec<Finding> = settings
        .providers
        .iter()
        .flat_map(|(name, provider)| of_provider(name, provider, connections, patient.has_secrets))
        .collect();
    let here = config::host_name();
    let lives_here = known.is_some_and(|known| known.daemons.iter().any(|daemon| daemon.host == here));
    findings.extend(endpoint(settings, lives_here).await);
    findings.extend(known.and_then(|known| links(&settings.callback, &known.links)));
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

/// Whether the daemon on this host, if one lives here, can be reached as it is set, and from outside as browsers would.
async fn endpoint(settings: &Settings, lives_here: bool) -> Vec<Finding> {
    let Some(client) = client() else { return Vec::new() };
    let mut findings = Vec::new();
    if lives_here {
        findings.extend(callback_listener(&client, settings.callback.listen).await);
        findings.extend(metrics_listener(&client, settings.metrics.listen).await);
    }
    findings.extend(public_url(&client, &settings.callback, lives_here).await);
    findings
}

async fn callback_listener(client: &Client, listen: SocketAddr) -> Option<Finding> {
    const CHECK: &str = "callback_endpoint";
    let reply = get(client, &base(listen)?, "/healthz").await;
    Some(if reply.is_ok_and(|reply| reply.status == 200) {
        Finding::ok(CHECK, format!("it answers on {listen}"))
    } else {
        Finding::ill(
            CHECK,
            format!("a daemon lives on this host, and nothing of ours answers on {listen}"),
            "see whether `callback.listen` was changed without a restart of the daemon, and what listens there",
        )
    })
}

async fn metrics_listener(client: &Client, listen: SocketAddr) -> Option<Finding> {
    const CHECK: &str = "metrics_endpoint";
    let reply = get(client, &base(listen)?, "/metrics").await;
    // The first lines are kept, and already tell.
    let is_ours = |reply: Reply| {
        reply.status == 200 && matches!(reply.body, Body::Text(text) if text.contains("fieldmirror_"))
    };
    Some(if reply.is_ok_and(is_ours) {
        Finding::ok(CHECK, format!("`http://{listen}/metrics` answers"))
    } else {
        Finding::warning(
            CHECK,
            format!("a daemon lives on this host, and no metrics of ours are on {listen}"),
            "see whether `metrics.listen` was changed without a restart of the daemon, and what listens there",
        )
    })
}

async fn public_url(client: &Client, callback: &CallbackSettings, lives_here: bool) -> Option<Finding> {
    const CHECK: &str = "public_url";
    let (public, listen) = (callback.public_url.as_str(), callback.listen);
    let reaches = settings::reaches(callback);
    if matches!(reaches, Reaches::Here) || !lives_here && matches!(reaches, Reaches::Outside) {
        return None;
    }
    if leads_to_us(client, public).await {
        return Some(Finding::ok(CHECK, format!("`{public}` leads to the daemon")));
    }
    let passed_on =
        format!("let the reverse proxy pass its paths to {listen}, or correct `callback.public_url`");
    let found = match reaches {
        Reaches::Elsewhere { port } => format!(
            "browsers are sent to port {port} of this machine, where no daemon is found, and the daemon listens on {listen}"
        ),
        Reaches::Outside | Reaches::Here => {
            format!("`{public}` does not lead to the daemon, seen from this host")
        }
    };
    // From outside it may look better than from here.
    let is_sure = lives_here && matches!(reaches, Reaches::Elsewhere { .. });
    Some(if is_sure {
        Finding::ill(CHECK, found, passed_on)
    } else {
        Finding::warning(CHECK, found, passed_on)
    })
}

/// Whether a browser that is sent to `public` comes to an endpoint of ours. A proxy need not pass on other paths than those
/// of consents, so it is asked for a start link that is none.
async fn leads_to_us(client: &Client, public: &str) -> bool {
    let policy = pages::POLICY.split("'sha256").next().unwrap_or_default();
    let is_ours = |reply: Reply| {
        reply.status == 400
            && reply.header("content-security-policy").is_some_and(|said| said.starts_with(policy))
    };
    get(client, public, "/connect/doctor").await.is_ok_and(is_ours)
}

/// Start links that are out and lead back to another address than the one that is set.
fn links(callback: &CallbackSettings, links: &[LinkOut]) -> Option<Finding> {
    let astray: Vec<&LinkOut> =
        links.iter().filter(|link| link.redirect_uri != callback.redirect_uri(&link.provider)).collect();
    let first = astray.first()?;
    let mut names: Vec<_> = astray.iter().map(|link| format!("`{}`", link.connection)).collect();
    names.dedup();
    let more = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    let names = names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(Finding::warning(
        "start_links",
        format!(
            "links that are out lead back to another address than `{}`, such as `{}`: those of {names}",
            callback.public_url, first.redirect_uri
        ),
        "let the old address lead to the daemon until they have expired, or give out new links, which replace them: \
         `fieldmirror status` has the commands",
    ))
}

/// The address of a listener on this host; none where the system chooses the port.
fn base(listen: SocketAddr) -> Option<String> {
    (listen.port() != 0).then(|| format!("http://{}", reachable(listen)))
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
