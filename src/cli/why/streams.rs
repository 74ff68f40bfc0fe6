//! Why a stream stands where it stands.

use chrono::{DateTime, TimeDelta, Utc};

use super::chain::{Cause, Proof, View};
use crate::cli::status::health;
use crate::daemon::alerts::standstill::{Owner, Standstill};
use crate::db::evidence::{RunEvidence, StreamEvidence};

/// Pauses for quota from here on may have lost their reason before they end.
const QUESTIONED_FROM: TimeDelta = TimeDelta::minutes(30);

impl View<'_> {
    pub(super) fn streams(&self) -> Vec<Cause> {
        let of = |stream: &&StreamEvidence| self.stream.is_none_or(|asked| asked == stream.stream);
        let found: Vec<&StreamEvidence> = self.evidence.streams.iter().filter(of).collect();
        if let (Some(asked), true) = (self.stream, found.is_empty()) {
            let cause = Cause::new("not_begun", false, format!("no turn has looked at `{asked}` yet"));
            return vec![Cause { stream: Some(asked.to_owned()), ..cause }];
        }
        let causes = found.into_iter().map(|stream| self.stream_cause(stream));
        // Unasked, only what is not as it should be.
        causes.filter(|cause| cause.ill || self.stream.is_some()).collect()
    }

    fn stream_cause(&self, stream: &StreamEvidence) -> Cause {
        let cause = match (&stream.stalled_reason, stream.failure_kind.as_deref()) {
            (Some(reason), kind) => self.still(stream, reason, kind),
            (None, Some("throttled"))
                if stream.state == "backing_off" || self.tried_again(stream).is_some() =>
            {
                self.quota(stream)
            }
            (None, _) if stream.state == "backing_off" => self.failing(stream),
            // A pause without a failure is one for permits.
            (None, _) if self.later(stream.not_before).is_some() => self.quota(stream),
            (None, _) => self.usual(stream),
        };
        let mut proofs = self.standing(stream);
        proofs.extend(cause.proofs);
        Cause { stream: Some(stream.stream.clone()), proofs, ..cause }
    }

    /// The watermark does not move.
    fn still(&self, stream: &StreamEvidence, reason: &str, kind: Option<&str>) -> Cause {
        let (connection, name) = (&self.evidence.connection, &stream.stream);
        let owner =
            Owner { provider: &connection.provider, connection: &connection.name, grant: connection.grant };
        let standstill = Standstill::of(kind.unwrap_or(&stream.state));
        let alerted = self.alert_of(|alert| alert.of.stream.as_deref() == Some(name));
        // What is only behind is read, and nothing is ill about it before it lags.
        let ill = standstill != Standstill::Behind || alerted.is_some();
        Cause {
            since: alerted.or_else(|| self.failing_since(name)),
            until: self.tried_again(stream),
            next: Some(standstill.remedy(owner, name)),
            proofs: self.bad_runs(name),
            ..Cause::new(
                standstill.alert().as_str(),
                ill,
                format!("stream `{name}` {}", standstill.says(reason)),
            )
        }
    }

    fn quota(&self, stream: &StreamEvidence) -> Cause {
        let name = &stream.stream;
        let until = self.tried_again(stream);
        let said = stream.last_error.as_deref().unwrap_or("a short pause");
        let quota = || format!("{}'s quota: {said}", self.title());
        // What was written down of a wait that is over says nothing of this one.
        let waits_for = stream.waits_for.clone().filter(|_| self.later(stream.not_before).is_some());
        let summary = format!("`{name}` waits for {}", waits_for.clone().unwrap_or_else(quota));
        let runs = self.evidence.runs.iter().filter(|run| run.stream == *name && run.throttled > 0);
        let mut proofs = Vec::new();
        if let (Some(what), Some(until)) = (&waits_for, until) {
            let until = until.format("%Y-%m-%d %H:%M:%S UTC");
            proofs.push(Proof::new(
                None,
                "stream_state",
                format!("nothing before {until}: waits for {what}"),
            ));
        }
        proofs.extend(runs.map(|run| {
            let text = format!(
                "run {} ({}): {} of {} requests were refused with 429",
                run.id, run.mode, run.throttled, run.requests
            );
            Proof::new(Some(run.ended_at.unwrap_or(run.started_at)), "sync_runs", text)
        }));
        // The reason of a long pause may be over: an admin's word has it asked about.
        let long = until.is_some_and(|until| until - self.evidence.as_of > QUESTIONED_FROM);
        let next = long.then(|| format!("fieldmirror enqueue --resync {}", self.evidence.connection.name));
        Cause { until, next, proofs, ..Cause::new("waits_for_quota", stream.state == "backing_off", summary) }
    }

    fn failing(&self, stream: &StreamEvidence) -> Cause {
        let name = &stream.stream;
        let said = stream.last_error.as_deref().unwrap_or("no reason is on record");
        let word = if stream.failure_kind.as_deref() == Some("needs_reauth") {
            "token_missing"
        } else {
            "stream_failing"
        };
        Cause {
            since: self.failing_since(name),
            until: self.tried_again(stream),
            next: (word == "token_missing")
                .then(|| health::anew_unless_over(&self.evidence.connection))
                .flatten(),
            proofs: self.bad_runs(name),
            ..Cause::new(word, true, format!("`{name}` failed {} times in a row: {said}", stream.failures))
        }
    }

    /// Nothing is wrong.
    fn usual(&self, stream: &StreamEvidence) -> Cause {
        let name = &stream.stream;
        let until = self.later(self.due(name));
        let (word, summary) = match stream.state.as_str() {
            "backfilling" => {
                let share = stream.backfill_progress.map(|share| format!(", {:.0} % so far", share * 100.0));
                (
                    "backfilling",
                    format!("everything of `{name}` is being read once{}", share.unwrap_or_default()),
                )
            }
            "syncing" => ("syncing", format!("`{name}` is being read")),
            "pending" => ("not_begun", format!("`{name}` waits for its first turn")),
            _ => ("scheduled", format!("`{name}` is up to date and waits for its next turn")),
        };
        let runs = self.evidence.runs.iter().filter(|run| run.stream == *name).take(1).map(run_proof);
        Cause { until, proofs: runs.collect(), ..Cause::new(word, false, summary) }
    }

    /// Where the stream stands, and its walks that did not go well.
    fn standing(&self, stream: &StreamEvidence) -> Vec<Proof> {
        let complete = match stream.complete_to {
            Some(at) => format!("complete up to {}", at.format("%Y-%m-%d %H:%M:%S UTC")),
            None => "not read as a whole yet".to_owned(),
        };
        let partition =
            if stream.partition.is_empty() { String::new() } else { format!("`{}`: ", stream.partition) };
        let mut proofs = vec![Proof::new(
            stream.last_success_at,
            "stream_state",
            format!("{partition}{}, {complete}", stream.state),
        )];
        proofs.extend(self.compared(&stream.stream));
        let walks = self.evidence.walks.iter().filter(|walk| walk.stream == stream.stream);
        for walk in walks {
            if walk.failures > 0 {
                let text = format!("{} failed in {} turns in a row", walk.mode, walk.failures);
                proofs.push(Proof::new(walk.started_at, "walks", text));
            }
            if let Some(why) = &walk.restart_reason {
                let text = format!("{} began again {} times: {why}", walk.mode, walk.restarts);
                proofs.push(Proof::new(walk.started_at, "walks", text));
            }
        }
        proofs
    }

    /// What the last comparison with the provider has found, and when one last agreed.
    fn compared(&self, stream: &str) -> Option<Proof> {
        let last = self.evidence.verifications.iter().find(|last| last.stream == stream)?;
        let agreed = match last.agreed_at {
            Some(at) if !last.agrees => {
                format!(", the last that agreed ended at {}", at.format("%Y-%m-%d %H:%M:%S UTC"))
            }
            _ => String::new(),
        };
        let what =
            if last.agrees { "agreed".to_owned() } else { format!("{} rows differed", last.differing) };
        let text = format!("compared {} rows with the provider: {what}{agreed}", last.compared);
        Some(Proof::new(Some(last.ended_at), "verifications", text))
    }

    /// The runs since the last that did not fail.
    fn failed_runs(&self, stream: &str) -> impl Iterator<Item = &RunEvidence> {
        let runs = self.evidence.runs.iter().filter(move |run| run.stream == stream);
        runs.take_while(|run| run.outcome.as_deref() != Some("closed"))
            .filter(|run| run.outcome.as_deref() == Some("failed"))
    }

    fn bad_runs(&self, stream: &str) -> Vec<Proof> {
        self.failed_runs(stream).take(2).map(run_proof).collect()
    }

    fn failing_since(&self, stream: &str) -> Option<DateTime<Utc>> {
        self.failed_runs(stream).last().and_then(|run| run.ended_at)
    }

    fn due(&self, stream: &str) -> Option<DateTime<Utc>> {
        self.evidence.walks.iter().filter(|walk| walk.stream == stream).filter_map(|walk| walk.due_at).min()
    }

    /// When the stream's pause ends; where only a walk of it waits, when that is due.
    fn tried_again(&self, stream: &StreamEvidence) -> Option<DateTime<Utc>> {
        let failing =
            self.evidence.walks.iter().filter(|walk| walk.stream == stream.stream && walk.failures > 0);
        self.later(stream.not_before.max(failing.filter_map(|walk| walk.due_at).min()))
    }
}

fn run_proof(run: &RunEvidence) -> Proof {
    let outcome = run.outcome.as_deref().unwrap_or("goes on");
    let error = run.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    let text = format!("run {} ({}) {outcome}{error}", run.id, run.mode);
    Proof::new(Some(run.ended_at.unwrap_or(run.started_at)), "sync_runs", text)
}
