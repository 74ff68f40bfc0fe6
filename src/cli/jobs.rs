//! `fieldmirror jobs`: the queue as it stands, and a second chance for a job.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::context::Context;
use super::report::{Error, Exit, Kind};
use super::table::{left, right, table};
use super::terminal;
use crate::db::queue::{self, JobId, JobRow, JobState, Retried};

/// The most jobs shown, newest first.
const JOBS_MAX: u32 = 200;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct JobsArgs {
    /// Only jobs in this state: pending, running, done, failed or parked
    #[arg(long, value_name = "S")]
    state: Option<JobState>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a failed, parked or pending job now, and forget its crashes
    Retry {
        #[arg(value_name = "ID")]
        id: i64,
    },
}

pub async fn run(cx: &Context, args: JobsArgs) -> Result<Exit, Error> {
    match args.action {
        Some(Action::Retry { id }) => retry(cx, JobId(id)).await,
        None => list(cx, args.state).await,
    }
}

async fn list(cx: &Context, state: Option<JobState>) -> Result<Exit, Error> {
    let db = cx.db().await?;
    let jobs = db.run(move |conn| queue::list(conn, state, JOBS_MAX)).await?;
    cx.terminal.result(
        || json!({ "jobs": jobs.iter().map(object).collect::<Vec<_>>() }),
        || text(&jobs, terminal::width()),
    )?;
    Ok(Exit::Done)
}

fn object(job: &JobRow) -> Value {
    json!({
        "id": job.id.to_string(),
        "kind": job.kind,
        "connection": job.connection_name,
        "connection_id": job.connection,
        "state": job.state.as_str(),
        "run_at": job.run_at,
        "daemon_id": job.owner,
        "lease_until": job.lease_until,
        "attempt": job.attempt,
        "crashes": job.crashes,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "last_error": job.last_error,
    })
}

fn text(jobs: &[JobRow], width: usize) -> String {
    if jobs.is_empty() {
        return "No jobs".to_owned();
    }
    let columns = [
        right("ID"),
        left("KIND"),
        left("CONNECTION"),
        left("STATE"),
        left("SINCE"),
        right("TRY"),
        left("LAST ERROR"),
    ];
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            vec![
                job.id.to_string(),
                job.kind.clone(),
                job.connection_name.clone().unwrap_or_else(|| "-".to_owned()),
                job.state.to_string(),
                since(job).format("%m-%d %H:%M:%S").to_string(),
                job.attempt.to_string(),
                job.last_error.clone().unwrap_or_default().replace('\n', " "),
            ]
        })
        .collect();
    let more = if jobs.len() < JOBS_MAX as usize {
        String::new()
    } else {
        format!(
            "The newest {JOBS_MAX} are shown; `--state` narrows
"
        )
    };
    table(&columns, &rows, width) + &more
}

/// Since when the job is in its state; for one that waits, when it is due.
fn since(job: &JobRow) -> DateTime<Utc> {
    match job.state {
        JobState::Running => job.started_at,
        JobState::Done | JobState::Failed => job.ended_at,
        JobState::Pending | JobState::Parked => None,
    }
    .unwrap_or(job.run_at)
}

async fn retry(cx: &Context, id: JobId) -> Result<Exit, Error> {
    let db = cx.db().await?;
    let retried = db.run(move |conn| queue::retry(conn, id)).await?;
    verdict(retried, id)?;
    cx.terminal.result(
        || json!({ "job_id": id.to_string(), "state": JobState::Pending.as_str() }),
        || format!("Job {id} is due now"),
    )?;
    Ok(Exit::Done)
}

fn verdict(retried: Retried, id: JobId) -> Result<(), Error> {
    match retried {
        Retried::Due => Ok(()),
        Retried::Unknown => Err(Error::new(Kind::UnknownName, format!("there is no job {id}"))
            .hint("`fieldmirror jobs` shows those that are kept; old ones are pruned")),
        Retried::Refused(state) => {
            Err(Error::bad_request(format!("job {id} is {state}: there is nothing to retry")))
        }
        Retried::Replaced(live) => {
            Err(Error::bad_request(format!("job {id} has failed, and job {live} does the same work already"))
                .hint(format!("`fieldmirror jobs retry {live}` makes that one due now")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobRow {
        let at = "2026-11-21T08:00:00Z".parse().unwrap();
        JobRow {
            id: JobId(12),
            kind: "sync".into(),
            connection: None,
            connection_name: None,
            state: JobState::Failed,
            run_at: at,
            owner: None,
            lease_until: None,
            attempt: 2,
            crashes: 1,
            created_at: at,
            started_at: Some(at),
            ended_at: None,
            last_error: Some("gone\nwrong".into()),
        }
    }

    #[test]
    fn as_programs_read_it() {
        let expected = json!({
            "id": "12", "kind": "sync", "connection": null, "connection_id": null, "state": "failed",
            "run_at": "2026-11-21T08:00:00Z", "daemon_id": null, "lease_until": null, "attempt": 2, "crashes": 1,
            "created_at": "2026-11-21T08:00:00Z", "started_at": "2026-11-21T08:00:00Z", "ended_at": null,
            "last_error": "gone\nwrong",
        });
        assert_eq!(object(&job()), expected);
    }

    #[test]
    fn as_people_read_it() {
        let text = text(&[job()], 100);
        assert!(text.contains("12  sync  -           failed  11-21 08:00:00    2  gone wrong"), "{text}");
        assert_eq!(super::text(&[], 100), "No jobs");
    }

    #[test]
    fn verdicts() {
        let kind = |retried| verdict(retried, JobId(1)).err().map(|error| error.kind);
        assert_eq!(kind(Retried::Due), None);
        assert_eq!(kind(Retried::Unknown), Some(Kind::UnknownName));
        assert_eq!(kind(Retried::Refused(JobState::Running)), Some(Kind::BadRequest));
        assert_eq!(kind(Retried::Replaced(JobId(2))), Some(Kind::BadRequest));
    }
}
