//! Alerts: what holds in the tables against what a program is told, with the daemon's own loops.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection as _;
use diesel::sql_types::BigInt;
use fieldmirror::config::Settings;
use fieldmirror::daemon::alerts::{Watch, served};
use fieldmirror::db::alerts::{self, AlertKind, Changes, HookTrouble};
use fieldmirror::db::{PgConnection, daemons, rows, status};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::time::SystemClock;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::readme::blocks;
use crate::support::not_checked;
use crate::support::postgres::{TestDb, short_folder};

const PATIENCE: Duration = Duration::from_mins(3);

/// A database with a connection that is well, and a program that writes down what it is told.
struct Site {
    database: TestDb,
    folder: PathBuf,
    settings: Settings,
}

/// Loops of a daemon.
struct Loops {
    id: Uuid,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Loops {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

const ACME: &str = "
    INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, account_id, account_name, connected_at)
    VALUES ('acme', 'hubspot', 'authorization_code', 'connected', '1', 'Jane Customer', now() - interval '1 day');
    INSERT INTO fieldmirror.tokens (connection_id, grant_id, kind, access_sealed, refresh_sealed, issued_at, expires_at)
    SELECT id, gen_random_uuid(), 'oauth', '\\x01', '\\x01', now(), now() + interval '1 hour' FROM fieldmirror.connections;
    INSERT INTO fieldmirror.stream_state (connection_id, stream, state, complete_to, backfill_done)
    SELECT id, unnest(ARRAY['tickets', 'owners']), 'idle', now(), true FROM fieldmirror.connections;";

impl Site {
    async fn new() -> Self {
        let folder = short_folder("alerts");
        let told = folder.join("told");
        let script =
            format!("#!/bin/sh\n[ -e {0}/broken ] && exit 7\ncat >> {1}\n", folder.display(), told.display());
        let hook = folder.join("hook");
        std::fs::write(&hook, script).unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut settings = Settings::example();
        settings.alerts.exec = vec![hook.display().to_string(), "--fixed".to_owned()];
        settings.alerts.environment.insert("PATH".to_owned(), "/usr/bin:/bin".into());
        let site = Self { database: TestDb::new(), folder, settings };
        site.sql(ACME).await;
        site
    }

    async fn sql(&self, statements: impl Into<String>) {
        let statements = statements.into();
        self.database.db.run(move |conn| Ok(conn.batch_execute(&statements)?)).await.unwrap();
    }

    async fn daemon(&self) -> Loops {
        let id = Uuid::now_v7();
        self.database.db.run(move |conn| daemons::beat(conn, id, "testhost", 1, "0.1.0")).await.unwrap();
        let stop = CancellationToken::new();
        let settings = Arc::new(self.settings.clone());
        let watch = Watch {
            db: self.database.db.clone(),
            clock: Arc::new(SystemClock),
            settings: Arc::clone(&settings),
            in_force: Box::new(move || Arc::clone(&settings)),
            daemon: id,
            host: "testhost".to_owned(),
        };
        let task = tokio::spawn(watch.run(stop.clone()));
        Loops { id, stop, task }
    }

    /// What the program was told so far.
    fn told(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("told")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    }

    async fn told_of(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = self.told();
            if told.len() >= count {
                return told;
            }
            assert!(Instant::now() < deadline, "told of {told:?} only");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until no alert is left that somebody has to tell, by the tables.
    async fn told_on_record(&self) {
        let deadline = Instant::now() + PATIENCE;
        let untold =
            "SELECT count(*) AS value FROM fieldmirror.alerts WHERE fired_at IS NULL OR teller IS NOT NULL";
        let left = || {
            self.database.db.run(move |conn| rows::value::<BigInt, i64, _>(conn, diesel::sql_query(untold)))
        };
        while left().await.unwrap() > 0 {
            assert!(Instant::now() < deadline, "not on record");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The failure of the program, once there is one, or there is none any more.
    async fn trouble(&self, expected: bool) -> Option<HookTrouble> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let looked = self.database.db.run(|conn| alerts::hook_trouble(conn, PATIENCE));
            let trouble = looked.await.unwrap();
            if trouble.is_some() == expected {
                return trouble;
            }
            assert!(Instant::now() < deadline, "not in time: {trouble:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn reconcile(&self) -> Changes {
        let of = served(&self.settings);
        self.database.db.transaction(move |conn| alerts::reconcile(conn, &of)).await.unwrap()
    }

    /// The conditions that hold, as kind and subject.
    async fn holding(&self) -> Vec<(String, String)> {
        let of = served(&self.settings);
        let found = self.database.db.run(move |conn| alerts::conditions(conn, &of)).await.unwrap();
        let mut found: Vec<_> = found.into_iter().map(|of| (of.kind, of.subject)).collect();
        found.sort();
        found
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn each_condition_is_found_in_the_tables() {
    let site = Site::new().await;
    assert_eq!(site.holding().await, []);
    let steps: [(&str, &str, &str, &str); 13] = [
        (
            "UPDATE fieldmirror.connections SET state = 'needs_reauth', reason = 'revoked'",
            "needs_reauth",
            "connection 1",
            "UPDATE fieldmirror.connections SET state = 'connected', reason = NULL",
        ),
        (
            "UPDATE fieldmirror.tokens SET failure_kind = 'misconfigured', last_error = 'invalid_client'",
            "configuration_fault",
            "provider hubspot",
            "UPDATE fieldmirror.tokens SET failure_kind = NULL, last_error = NULL",
        ),
        (
            "UPDATE fieldmirror.tokens SET failure_kind = 'misconfigured', last_error = 'no key';
             UPDATE fieldmirror.connections SET grant_kind = 'client_credentials'",
            "configuration_fault",
            "connection 1",
            "UPDATE fieldmirror.tokens SET failure_kind = NULL, last_error = NULL;
             UPDATE fieldmirror.connections SET grant_kind = 'authorization_code'",
        ),
        (
            "UPDATE fieldmirror.tokens SET failure_kind = 'our_bug', last_error = 'the sealed value does not open'",
            "token_unusable",
            "connection 1",
            "UPDATE fieldmirror.tokens SET failure_kind = NULL, last_error = NULL",
        ),
        (
            "UPDATE fieldmirror.stream_state SET state = 'syncing', stalled_reason = 'odd', failure_kind = 'provider_changed'
             WHERE stream = 'tickets'",
            "stream_stalled",
            "connection 1 stream tickets",
            "UPDATE fieldmirror.stream_state SET state = 'idle', stalled_reason = NULL, failure_kind = NULL",
        ),
        (
            "UPDATE fieldmirror.stream_state SET state = 'stalled', stalled_reason = '90 of 100 rows', failure_kind = 'held'
             WHERE stream = 'tickets'",
            "mass_delete_held",
            "connection 1 stream tickets",
            "UPDATE fieldmirror.stream_state SET state = 'idle', stalled_reason = NULL, failure_kind = NULL",
        ),
        (
            "UPDATE fieldmirror.stream_state SET state = 'forbidden', stalled_reason = 'no scope' WHERE stream = 'owners'",
            "stream_forbidden",
            "connection 1 stream owners",
            "UPDATE fieldmirror.stream_state SET state = 'idle', stalled_reason = NULL",
        ),
        (
            "UPDATE fieldmirror.stream_state SET complete_to = now() - interval '61 min' WHERE stream = 'owners'",
            "stream_stale",
            "connection 1 stream owners",
            "UPDATE fieldmirror.stream_state SET complete_to = now() - interval '59 min'",
        ),
        // One that is read and not relied upon yet is told when it lags.
        (
            "UPDATE fieldmirror.stream_state SET state = 'stalled', stalled_reason = 'waits', failure_kind = 'behind',
                 complete_to = now() - interval '61 min' WHERE stream = 'owners'",
            "stream_stale",
            "connection 1 stream owners",
            "UPDATE fieldmirror.stream_state SET complete_to = now() - interval '5 min'",
        ),
        (
            "UPDATE fieldmirror.stream_state SET state = 'idle', stalled_reason = NULL, failure_kind = NULL;
             UPDATE fieldmirror.stream_state SET backfill_done = false, complete_to = NULL WHERE stream = 'owners'",
            "stream_stale",
            "connection 1 stream owners",
            "INSERT INTO fieldmirror.sync_runs (connection_id, stream, mode, started_at, ended_at, pages)
             VALUES (1, 'owners', 'backfill', now() - interval '2 h', now() - interval '30 min', 3)",
        ),
        (
            "INSERT INTO fieldmirror.jobs (kind, connection_id, state, crashes) VALUES ('sync', 1, 'parked', 3)",
            "job_parked",
            "job 1",
            "UPDATE fieldmirror.jobs SET state = 'pending'",
        ),
        (
            "INSERT INTO fieldmirror.refresh_attempts (connection_id, grant_id, generation, daemon_id, host, spills, blocked_until)
             VALUES (1, gen_random_uuid(), 1, gen_random_uuid(), 'gone', '0199d5a0-5f0b-7c3e-8a51-9d3f0c1b2a3d', now() - interval '1 s')",
            "refresh_interrupted",
            "connection 1",
            // A daemon that can look there sees to it without anybody's help.
            "INSERT INTO fieldmirror.daemons (id, host, pid, version, spills)
             VALUES (gen_random_uuid(), 'testhost', 1, '0.1.0', '0199d5a0-5f0b-7c3e-8a51-9d3f0c1b2a3d')",
        ),
        (
            "UPDATE fieldmirror.daemons SET spill_fault = 'the disk is full'",
            "spill_fault",
            "host testhost",
            "UPDATE fieldmirror.daemons SET spill_fault = NULL",
        ),
    ];
    for (begins, kind, subject, ends) in steps {
        site.sql(begins).await;
        assert_eq!(site.holding().await, [(kind.to_owned(), subject.to_owned())], "{begins}");
        site.sql(ends).await;
        assert_eq!(site.holding().await, [], "{ends}");
    }
    let kinds: std::collections::BTreeSet<_> = steps.iter().map(|step| step.1).collect();
    assert_eq!(kinds.len(), AlertKind::ALL.len(), "every kind has been here");
}

/// What is told already is not told by another name, and what is switched off is nobody's affair.
#[tokio::test]
async fn one_trouble_is_one_alert() {
    let site = Site::new().await;
    site.sql("UPDATE fieldmirror.stream_state SET complete_to = now() - interval '2 h', stalled_reason = 'odd', state = 'stalled'")
        .await;
    let kinds: Vec<_> = site.holding().await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["stream_stalled", "stream_stalled"]);
    site.sql(
        "UPDATE fieldmirror.stream_state SET stalled_reason = NULL;
         UPDATE fieldmirror.connections SET state = 'needs_reauth'",
    )
    .await;
    assert_eq!(site.holding().await, [("needs_reauth".to_owned(), "connection 1".to_owned())]);
    site.sql("UPDATE fieldmirror.connections SET state = 'disconnected'").await;
    assert_eq!(site.holding().await, []);
}

#[tokio::test]
async fn told_once_by_several_daemons_and_across_restarts_then_resolved() {
    let site = Site::new().await;
    site.sql("UPDATE fieldmirror.connections SET state = 'needs_reauth', reason = 'the grant was revoked'")
        .await;
    let (one, other) = (site.daemon().await, site.daemon().await);
    let told = site.told_of(1).await;
    assert_eq!(
        (&told[0]["state"], &told[0]["kind"], &told[0]["connection"], &told[0]["next_action"]),
        (
            &json!("firing"),
            &json!("needs_reauth"),
            &json!("acme"),
            &json!("fieldmirror enqueue --reconnect acme")
        )
    );
    assert!(!told[0].to_string().contains("Jane"), "nothing of the customer's: {}", told[0]);
    // A daemon that stops before it has written that down leaves the alert to be told again.
    site.told_on_record().await;
    one.end().await;
    other.end().await;
    let later = site.daemon().await;
    // It tells what is news after that, in the order in which it came, and not what is none.
    site.sql(
        "INSERT INTO fieldmirror.jobs (kind, connection_id, state, crashes) VALUES ('sync', 1, 'parked', 3)",
    )
    .await;
    let told = site.told_of(2).await;
    assert_eq!((told.len(), &told[1]["kind"]), (2, &json!("job_parked")));
    // The end is told even when the connection is gone.
    site.sql("DELETE FROM fieldmirror.connections").await;
    let told = site.told_of(4).await;
    assert_eq!((&told[2]["state"], &told[2]["alert_id"]), (&json!("resolved"), &told[0]["alert_id"]));
    assert!(told[2]["resolved_at"].is_string() && told[2]["next_action"].is_null(), "{}", told[2]);
    assert_eq!(told[3]["alert_id"], told[1]["alert_id"]);
    later.end().await;
    assert_eq!(site.told().len(), 4);
}

#[tokio::test]
async fn a_program_that_fails_is_reported_and_tried_again() {
    let site = Site::new().await;
    let broken = site.folder.join("broken");
    std::fs::write(&broken, "").unwrap();
    site.sql(
        "INSERT INTO fieldmirror.jobs (kind, connection_id, state, crashes) VALUES ('sync', 1, 'parked', 3)",
    )
    .await;
    let daemon = site.daemon().await;
    let trouble = site.trouble(true).await.expect("a failure");
    assert_eq!(trouble.waiting, 1);
    assert!(trouble.last_error.ends_with("ended with exit status: 7"), "{trouble:?}");
    std::fs::remove_file(&broken).unwrap();
    let told = site.told_of(1).await;
    assert_eq!(told[0]["job_id"], "1");
    site.trouble(false).await;
    daemon.end().await;
}

/// What a daemon met that runs no more is over: the next one may have another program, or none.
#[tokio::test]
async fn a_failure_ends_with_its_daemon() {
    let site = Site::new().await;
    std::fs::write(site.folder.join("broken"), "").unwrap();
    site.sql("UPDATE fieldmirror.connections SET state = 'needs_reauth'").await;
    let (daemon, other) = (site.daemon().await, Uuid::now_v7());
    site.trouble(true).await;
    let id = daemon.id;
    daemon.end().await;
    let replaced = site.database.db.run(move |conn| {
        daemons::remove(conn, id)?;
        daemons::beat(conn, other, "testhost", 2, "0.1.0")
    });
    replaced.await.unwrap();
    site.trouble(false).await;
    assert_eq!(site.holding().await.len(), 1, "the alert itself stays");
}

/// A stream that swings about the limit is one alert, which ends when the stream is well below.
#[tokio::test]
async fn staleness_ends_below_where_it_began() {
    let site = Site::new().await;
    let stale = |minutes: &str| {
        format!(
            "UPDATE fieldmirror.stream_state SET complete_to = now() - interval '{minutes} min' WHERE stream = 'owners'"
        )
    };
    for (minutes, opened, resolved) in
        [("59", 0, 0), ("61", 1, 0), ("50", 0, 0), ("61", 0, 0), ("44", 0, 1), ("50", 0, 0), ("61", 1, 0)]
    {
        site.sql(stale(minutes)).await;
        let changes = site.reconcile().await;
        let found = (changes.opened.len(), changes.resolved.len());
        assert_eq!(found, (opened, resolved), "{minutes} min: {changes:?}");
    }
}

#[tokio::test]
async fn daemons_that_were_away_catch_up_first() {
    let site = Site::new().await;
    site.sql("UPDATE fieldmirror.stream_state SET complete_to = now() - interval '2 days'").await;
    let daemon = Uuid::now_v7();
    let beat = || site.database.db.run(move |conn| daemons::beat(conn, daemon, "testhost", 1, "0.1.0"));
    beat().await.unwrap();
    assert_eq!(site.reconcile().await.opened, [], "it has just started");
    site.sql("UPDATE fieldmirror.daemons SET steady_since = now() - interval '31 min'").await;
    assert_eq!(site.reconcile().await.opened.len(), 2, "it had its time");
    site.sql("DELETE FROM fieldmirror.alerts").await;
    site.sql("UPDATE fieldmirror.daemons SET last_seen_at = now() - interval '2 min'").await;
    beat().await.unwrap();
    assert_eq!(site.reconcile().await.opened, [], "it was away, suspended or without the database");
    // Another one that was there all the time would have caught up.
    site.sql(
        "INSERT INTO fieldmirror.daemons (id, host, pid, version, steady_since)
         VALUES (gen_random_uuid(), 'other', 1, '0.1.0', now() - interval '1 day')",
    )
    .await;
    assert_eq!(site.reconcile().await.opened.len(), 2);
    site.sql("UPDATE fieldmirror.daemons SET steady_since = now()").await;
    assert_eq!(site.reconcile().await.resolved, [], "a restart ends no alert");
}

#[tokio::test]
async fn what_stays_is_told_again_where_that_is_asked_for() {
    let mut site = Site::new().await;
    site.settings.alerts.repeat_after = Some(Duration::from_secs(1));
    site.sql("UPDATE fieldmirror.connections SET state = 'needs_reauth'").await;
    let daemon = site.daemon().await;
    let told = site.told_of(2).await;
    assert_eq!((&told[0]["state"], &told[1]["state"]), (&json!("firing"), &json!("still_firing")));
    daemon.end().await;
}

/// A fault of our client is a fault of each of its connections, and of none of another provider's.
#[tokio::test]
async fn what_stops_a_provider_is_told_of_each_connection() {
    let site = Site::new().await;
    site.sql(
        "UPDATE fieldmirror.tokens SET failure_kind = 'misconfigured', last_error = 'invalid_client';
         INSERT INTO fieldmirror.connections (name, provider, grant_kind, state, connected_at)
         VALUES ('other', 'oncehub', 'api_key', 'connected', now())",
    )
    .await;
    let found = site.reconcile().await;
    assert_eq!(found.opened.len(), 1, "{found:?}");
    for (id, alerts) in [(1, 1), (2, 0)] {
        let read = move |conn: &mut PgConnection| status::read(conn, Some(ConnectionId(id)), PATIENCE);
        let snapshot = site.database.db.run(read).await.unwrap();
        assert_eq!(snapshot.alerts.len(), alerts, "of connection {id}");
    }
}

/// The program that docs/ALERTS.md shows, against a mail server.
#[tokio::test]
async fn the_program_of_the_document_mails() {
    use fieldmirror::daemon::alerts::{hook, message};
    use fieldmirror::db::alerts::Alert;
    use fieldmirror::domain::time::Clock as _;

    for program in ["jq", "curl"] {
        if std::process::Command::new(program).arg("--version").output().is_err() {
            not_checked(&format!("the program of docs/ALERTS.md, since there is no `{program}`"));
            return;
        }
    }
    let mut site = Site::new().await;
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let [script] = blocks(include_str!("../../docs/ALERTS.md"), "sh").try_into().expect("one program");
    assert!(script.contains("smtp://localhost "));
    let path = site.folder.join("mails");
    std::fs::write(&path, script.replace("smtp://localhost", &format!("smtp://{address}"))).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    site.settings.alerts.exec = vec![path.display().to_string()];
    let object = message::object(&Alert::example(AlertKind::NeedsReauth), "h", SystemClock.now());
    let stop = CancellationToken::new();
    let told = hook::run(&site.settings.alerts, &object, &stop);
    let (told, mail) = tokio::join!(told, take_mail(&server, "250 taken"));
    told.unwrap();
    assert!(
        mail.contains("To: ops@example.com\r\nSubject: fieldmirror: needs_reauth firing\r\n\r\n"),
        "{mail}"
    );
    assert!(mail.contains("needs a new authorization: the grant was revoked\r\n"), "{mail}");
    assert!(mail.contains("\r\nfieldmirror enqueue --reconnect acme\r\n"), "{mail}");
    // What the server does not take is not told.
    let told = hook::run(&site.settings.alerts, &object, &stop);
    let (told, _) = tokio::join!(told, take_mail(&server, "451 not now"));
    assert!(matches!(told, Err(hook::HookError::Refused { .. })), "{told:?}");
}

/// Takes one mail as a server does, which ends the dialogue with `verdict`.
async fn take_mail(server: &tokio::net::TcpListener, verdict: &str) -> String {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};

    let (stream, _) = server.accept().await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut lines = tokio::io::BufReader::new(reader);
    let (mut mail, mut in_mail, mut line) = (String::new(), false, String::new());
    writer.write_all(b"220 here\r\n").await.unwrap();
    while lines.read_line(&mut line).await.unwrap() > 0 {
        let answer = match line.as_str() {
            ".\r\n" if in_mail => {
                in_mail = false;
                verdict
            }
            text if in_mail => {
                mail.push_str(text);
                ""
            }
            "DATA\r\n" => {
                in_mail = true;
                "354 go on"
            }
            "QUIT\r\n" => "221 bye",
            _ => "250 well",
        };
        if !answer.is_empty() && writer.write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
            break;
        }
        line.clear();
    }
    mail
}
