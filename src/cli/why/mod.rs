//! `fieldmirror why`: the causal chain behind the present state of a connection or a stream, from recorded decisions.

mod chain;
mod page;
mod streams;

use clap::Args;
use serde_json::{Value, json};

use super::context::{Context, DAEMON_LIVES, find};
use super::report::{Error, Exit, Kind};
use super::terminal::Look;
use crate::db::evidence;
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
    if let Some(stream) = &args.stream {
        known(&connection.provider, stream)?;
    }
    let evidence = db.run(move |conn| evidence::read(conn, connection.id, DAEMON_LIVES)).await?;
    let view = View {
        evidence: &evidence,
        spec: providers::provider(&evidence.connection.provider).map(Provider::spec),
        stream: args.stream.as_deref(),
    };
    let causes = view.causes();
    cx.terminal.result(|| object(&view, &causes), || page::of(&view, &causes, Look::of_stdout()))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::{health, samples};
    use crate::daemon::alerts::{message, standstill::Standstill};
    use crate::db::alerts::Alert;
    use crate::db::connections::ConnectionState;
    use crate::db::evidence::StreamEvidence;
    use crate::db::status::StreamStatus;

    /// Evidence of which nothing is ill.
    pub(super) mod evidence {
        use crate::cli::status::samples::at;
        use crate::db::connections::Connection;
        use crate::db::evidence::{Evidence, StreamEvidence};

        pub(in crate::cli::why) fn of(connection: Connection) -> Evidence {
            Evidence {
                as_of: at("08:00:00"),
                connection,
                daemon_lives: true,
                token: None,
                token_failure_kind: None,
                refresh: None,
                token_permits_at: None,
                audit: Vec::new(),
                streams: Vec::new(),
                walks: Vec::new(),
                runs: Vec::new(),
                jobs: Vec::new(),
                requests: Vec::new(),
                verifications: Vec::new(),
                alerts: Vec::new(),
            }
        }

        pub(in crate::cli::why) fn stream(name: &str) -> StreamEvidence {
            StreamEvidence {
                stream: name.to_owned(),
                partition: String::new(),
                state: "idle".to_owned(),
                complete_to: None,
                backfill_done: true,
                backfill_progress: None,
                stalled_reason: None,
                last_error: None,
                failure_kind: None,
                last_success_at: None,
                failures: 0,
                not_before: None,
                waits_for: None,
            }
        }
    }

    /// An alert, `status` and `why` say the same of a stream that stands still, and name the same command.
    #[test]
    fn one_trouble_has_one_sentence_and_one_remedy() {
        for (recorded, next) in [
            ("provider_changed", "fieldmirror enqueue --resync acme --stream tickets"),
            ("partial", "fieldmirror enqueue --resync acme --stream tickets"),
            ("forbidden", "fieldmirror enqueue --reconnect acme"),
            ("held", "fieldmirror enqueue --resync acme --stream tickets --full --allow-mass-delete"),
        ] {
            let mut status = samples::connection(ConnectionState::Connected);
            let kind = Some(recorded.to_owned());
            let reason = Some("odd".to_owned());
            status.streams = vec![StreamStatus {
                stalled_reason: reason.clone(),
                stalled_kind: kind.clone(),
                ..samples::stream("stalled")
            }];
            let seen = health::ailments(&status).remove(0);

            let mut evidence = evidence::of(status.connection.clone());
            evidence.streams = vec![StreamEvidence {
                stalled_reason: reason,
                failure_kind: kind,
                ..evidence::stream("tickets")
            }];
            let view = View { evidence: &evidence, spec: None, stream: None };
            let cause = view.causes().remove(0);

            let kind = Standstill::of(recorded).alert();
            let mut alert = Alert::example(kind);
            alert.of.stream = Some("tickets".into());
            alert.of.reason = "odd".into();

            assert_eq!(cause.kind, kind.as_str());
            assert_eq!(cause.summary, seen.reason, "{recorded}");
            let told = message::summary(&alert.of).replace(" of connection `acme` (hubspot)", "");
            assert_eq!(told, seen.reason, "{recorded}");
            let commands = [cause.next, seen.next, message::next_action(&alert)];
            assert_eq!(commands, [Some(next); 3].map(|next| next.map(str::to_owned)), "{recorded}");
        }
    }
}
