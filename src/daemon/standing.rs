//! The daemon's standing in one line: what `systemctl status` shows of us.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::service::Tell;
use crate::db::Db;
use crate::db::glance::{self, Glance, Oldest};

/// How often the line is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Renews the line until `stop`.
pub async fn keep(db: Db, tell: Tell, stop: CancellationToken) {
    loop {
        let looked = tokio::select! {
            looked = db.run(glance::look) => looked,
            () = stop.cancelled() => return,
        };
        let text = match &looked {
            Ok(glance) => line(glance),
            Err(_) => "Waiting for the database, which does not answer".to_owned(),
        };
        tell(&[NotifyState::Status(&text)]);
        tokio::select! {
            () = tokio::time::sleep(RENEW_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn line(glance: &Glance) -> String {
    if !glance.writable {
        return "Waiting for the database, which is read-only".to_owned();
    }
    let mut text = match glance.connections {
        0 => return "No connections yet".to_owned(),
        1 => "1 connection".to_owned(),
        count => format!("{count} connections"),
    };
    if glance.needing_consent > 0 {
        text = format!("{text}, {} in need of a new consent", glance.needing_consent);
    }
    if glance.stalled > 0 {
        text = format!("{text}, {} streams stalled", glance.stalled);
    }
    match &glance.oldest {
        None => text,
        Some(Oldest { connection, stream, age: None }) => {
            format!("{text}; `{stream}` of `{connection}` is being read for the first time")
        }
        Some(Oldest { connection, stream, age: Some(age) }) => {
            let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
            format!("{text}; oldest freshness {age} (`{stream}` of `{connection}`)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let oldest = |age: Option<u64>| Oldest {
            connection: "acme".to_owned(),
            stream: "tickets".to_owned(),
            age: age.map(Duration::from_secs),
        };
        let check = |connections, needing_consent, stalled, oldest, expected: &str| {
            let glance = Glance { writable: true, connections, needing_consent, stalled, oldest };
            assert_eq!(line(&glance), expected);
        };
        check(0, 0, 0, None, "No connections yet");
        check(1, 0, 0, None, "1 connection");
        check(
            3,
            0,
            0,
            Some(oldest(Some(252))),
            "3 connections; oldest freshness 4m 12s (`tickets` of `acme`)",
        );
        check(
            2,
            1,
            2,
            Some(oldest(None)),
            "2 connections, 1 in need of a new consent, 2 streams stalled; `tickets` of `acme` is being read for the first time",
        );
        let away = Glance { writable: false, connections: 1, needing_consent: 0, stalled: 0, oldest: None };
        assert_eq!(line(&away), "Waiting for the database, which is read-only");
    }
}
