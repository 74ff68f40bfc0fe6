//! What becomes of a comparison: its report, the request for what differs to be read again, the end of the request.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Progress, Subject, Verifying};
use crate::db::requests::{self, NewRequest, Request, RequestKind, RequestOutcome};
use crate::db::streams::{self, StreamKey, StreamWrite};
use crate::db::verifications;
use crate::domain::failure::Failure;
use crate::domain::spec::{Mode, StreamSpec};
use crate::sync::drive::halt;
use crate::sync::send::Halt;

/// Differences that a report lists.
const DIFFERENCES_MAX: usize = 100;

impl Verifying<'_> {
    /// Ends the comparison of a stream. What differs is asked to be read again, as an admin would ask.
    pub(super) async fn end(&self, subject: Subject) -> Result<(), Halt> {
        let Subject { open, spec, mut progress, .. } = subject;
        let (of, now) = (self.turn.connection.id, self.engine.clock.now());
        let key = StreamKey { connection: of, stream: spec.name, epoch: self.turn.epoch };
        let differing: Vec<String> = progress.found.keys().cloned().collect();
        let reread = (!differing.is_empty()).then(|| reread(spec, &progress));
        progress.report.differing = differing.len() as u64;
        progress.report.reread = reread.as_ref().map(|(said, _)| said.clone());
        progress.report.differences = progress.found.into_values().flatten().take(DIFFERENCES_MAX).collect();
        let report = progress.report;
        let kept = report.clone();
        let ended = self.engine.db.transaction(move |connection| {
            if streams::lock(connection, key)? == StreamWrite::Lost {
                return Ok(StreamWrite::Lost);
            }
            if let Some((_, args)) = reread {
                let ids: Vec<&str> = differing.iter().map(String::as_str).collect();
                verifications::forget_hashes(connection, spec, of, &ids)?;
                let new = NewRequest { connection: of, kind: RequestKind::Sync, args, sealed: None };
                requests::create(connection, &new)?;
            }
            verifications::end(connection, open.id, Ok(&kept), now)?;
            Ok(StreamWrite::Done)
        });
        if ended.await.map_err(halt)? == StreamWrite::Lost {
            return Err(Halt::Lost);
        }
        let (stream, compared, differing) = (spec.name, report.compared(), report.differing);
        if differing > 0 {
            warn!(
                connection.id = of.0,
                stream,
                verify.compared = compared,
                verify.differing = differing,
                "{differing} of {compared} rows of `{stream}` differ from what the provider shows"
            );
        } else {
            info!(
                connection.id = of.0,
                stream,
                verify.compared = compared,
                verify.differing = 0,
                "{compared} rows of `{stream}` are as the provider shows them"
            );
        }
        Ok(())
    }

    pub(super) async fn fail(&self, subject: &Subject, failure: &Failure) -> Result<(), Halt> {
        let (id, now, text) = (subject.open.id, self.engine.clock.now(), failure.message.clone());
        let ended = self.engine.db.run(move |connection| verifications::end(connection, id, Err(&text), now));
        ended.await.map_err(halt)
    }

    /// Ends the request, whose comparisons have all ended.
    pub(super) async fn settle(&self, request: &Request) -> Result<(), Halt> {
        let id = request.id;
        let settled = self.engine.db.transaction(move |connection| {
            let ended = verifications::ended(connection, id)?;
            let failed: Vec<String> = ended
                .iter()
                .filter_map(|one| Some(format!("`{}`: {}", one.stream, one.error.as_deref()?)))
                .collect();
            let differ: Vec<&str> =
                ended.iter().filter(|one| one.agrees == Some(false)).map(|one| one.stream.as_str()).collect();
            let message = match (failed.as_slice(), differ.as_slice()) {
                ([], []) => "what was compared agrees".to_owned(),
                ([], streams) => format!("rows of `{}` differ", streams.join("`, `")),
                (failed, _) => failed.join("; "),
            };
            let outcome = if failed.is_empty() { RequestOutcome::Done } else { RequestOutcome::Failed };
            requests::finish(connection, id, outcome, Some(&message))
        });
        settled.await.map_err(halt).map(drop)
    }
}

/// What is asked for so that differing rows are read again, in words and as a request's arguments: changes since the
/// oldest of them, everything where one has no time of modification, and a sweep where the provider has no such record.
fn reread(spec: &StreamSpec, progress: &Progress) -> (String, Value) {
    let has = |mode| spec.modes.contains(&mode);
    let undated = progress.undated || (progress.oldest.is_some() && !has(Mode::Incremental));
    let full = undated && has(Mode::Backfill);
    let sweep = progress.gone && has(Mode::Sweep) && !full;
    let since = progress.oldest.filter(|_| !full && has(Mode::Incremental));
    let mut said = Vec::new();
    if full || has(Mode::Snapshot) {
        said.push("everything".to_owned());
    }
    said.extend(since.map(|since| format!("changes since {}", moment(since))));
    if sweep {
        said.push("a sweep".to_owned());
    }
    let args = json!({"streams": [spec.name], "full": full, "since": since, "sweep": sweep, "own": true});
    (said.join(" and "), args)
}

fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::provider;

    #[test]
    fn what_is_read_again() {
        let at = DateTime::from_timestamp(1_000, 0).unwrap();
        let check =
            |of: (&str, &str), oldest: Option<DateTime<Utc>>, undated, gone, said: &str, args: Value| {
                let spec = provider(of.0).unwrap().spec().stream(of.1).unwrap();
                let progress = Progress { oldest, undated, gone, ..Progress::default() };
                let (told, asked) = reread(spec, &progress);
                assert_eq!((told.as_str(), asked), (said, args));
            };
        let since = "changes since 1970-01-01T00:16:40Z";
        let args = |stream: &str, full: bool, since: Option<DateTime<Utc>>, sweep: bool| json!({"streams": [stream], "full": full, "since": since, "sweep": sweep, "own": true});
        let tickets = ("hubspot", "tickets");
        check(tickets, Some(at), false, false, since, args("tickets", false, Some(at), false));
        check(tickets, None, false, true, "a sweep", args("tickets", false, None, true));
        let both = format!("{since} and a sweep");
        check(tickets, Some(at), false, true, &both, args("tickets", false, Some(at), true));
        let visits = ("jobber", "visits");
        check(visits, None, true, true, "everything", args("visits", true, None, false));
        let users = ("oncehub", "users");
        check(users, None, true, false, "everything", args("users", false, None, false));
    }
}
