//! `fieldmirror why`: the causal chain behind the present state of a connection or a stream, from recorded decisions.

mod chain;
mod streams;

use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::{Value, json};

use super::context::{Context, DAEMON_LIVES, find};
use super::report::{Error, Exit, Kind};
use crate::db::evidence::{self, Evidence};
use crate::providers::{self, Provider};
use chain::{Cause, View};

#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The connection: its name or id
    connection: String,
    /// Only this stream, also when nothing is wrong with it
    stream: Option<String>,
}

pub async fn run(cx: &Context, args: WhyArgs) -> Result<Exit, Error> {
    let db = cx.db().await?;
    let connection = find(&db, &args.connection).await?;
    let settings = &cx.loaded.settings;
    if let Some(stream) = &args.stream {
        known(&connection.provider, stream)?;
    }
    let client_id = settings.providers.get(&connection.provider).map(|provider| provider.client_id.clone());
    let read = db.run(move |conn| {
        evidence::read(conn, connection.id, client_id.as_deref().unwrap_or_default(), DAEMON_LIVES)
    });
    let evidence = read.await?;
    let view = View {
        evidence: &evidence,
        spec: providers::provider(&evidence.connection.provider).map(Provider::spec),
        quota_reserve: settings.sync.quota_reserve,
        stream: args.stream.as_deref(),
    };
    let causes = view.causes();
    cx.terminal.result(|| object(&view, &causes), || text(&evidence, view.stream, &causes))?;
    Ok(Exit::Done)
}

fn known(provider: &str, stream: &str) -> Result<(), Error> {
    let Some(spec) = providers::provider(provider).map(Provider::spec) else { return Ok(()) };
    if spec.stream(stream).is_some() {
        return Ok(());
    }
    let names: Vec<_> = spec.streams.iter().map(|stream| format!("`{}`", stream.name)).collect();
    Err(Error::new(Kind::UnknownName, format!("{provider} has no stream `{stream}`"))
        .hint(format!("its streams are {}", names.join(", "))))
}

fn object(view: &View<'_>, causes: &[Cause]) -> Value {
    let connection = &view.evidence.connection;
    json!({
        "as_of": view.evidence.as_of,
        "connection": connection.name,
        "connection_id": connection.id,
        "provider": connection.provider,
        "state": connection.state.as_str(),
        "stream": view.stream,
        "healthy": causes.iter().all(|cause| !cause.ill),
        "causes": causes.iter().map(cause_object).collect::<Vec<_>>(),
    })
}

fn cause_object(cause: &Cause) -> Value {
    let evidence = cause
        .proofs
        .iter()
        .map(|proof| json!({ "at": proof.at, "source": proof.source, "text": proof.text }));
    json!({
        "kind": cause.kind,
        "ill": cause.ill,
        "stream": cause.stream,
        "summary": cause.summary,
        "since": cause.since,
        "until": cause.until,
        "next_action": cause.next,
        "evidence": evidence.collect::<Vec<_>>(),
    })
}

fn text(evidence: &Evidence, stream: Option<&str>, causes: &[Cause]) -> String {
    let connection = &evidence.connection;
    let of = stream.map(|stream| format!("stream `{stream}` of ")).unwrap_or_default();
    let mut lines = vec![format!(
        "{of}{} ({}), {}, as of {}",
        connection.name,
        connection.provider,
        connection.state.as_str(),
        moment(evidence.as_of)
    )];
    if causes.is_empty() {
        lines.push("Nothing stands in its way".to_owned());
    }
    for (place, cause) in causes.iter().enumerate() {
        lines.push(String::new());
        lines.push(format!("{}. {}", place + 1, cause.summary));
        let times = [("since", cause.since), ("until", cause.until)];
        let times: Vec<_> = times
            .into_iter()
            .filter_map(|(word, at)| at.map(|at| format!("{word} {}", moment(at))))
            .collect();
        if !times.is_empty() {
            lines.push(format!("   {}", times.join(", ")));
        }
        for proof in &cause.proofs {
            let at = proof.at.map_or_else(|| " ".repeat(moment(evidence.as_of).len()), moment);
            lines.push(format!("   {at}  {}: {}", proof.source, proof.text));
        }
        lines.extend(cause.next.iter().map(|next| format!("   next: {next}")));
    }
    lines.join("\n")
}

fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}
