//! Walks of every kind at providers that refuse where they stand, or show what cannot be: they begin again and say why, or
//! stand still and say so, and no row is touched. In the simulation's own time.

use std::sync::Mutex;
use std::time::Duration;

use chrono::TimeDelta;
use diesel::connection::SimpleConnection as _;
use fieldmirror::auth::refresh::{Refreshed, Why};
use fieldmirror::db::requests::{self, NewRequest, RequestKind, RequestOutcome};
use fieldmirror::db::{rows, streams};
use fieldmirror::domain::spec::BucketSpec;
use fieldmirror::domain::step::Request;
use fieldmirror::http::pace::Pacer;
use fieldmirror::providers;
use fieldmirror::sandbox::hubspot::HUB_ID_FIRST;
use fieldmirror::sandbox::servicetitan::TENANT_FIRST;
use fieldmirror::sync::send::{Egress, Sender, Tally};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::simulation::rig::{Ground, Rig, Setup};
use crate::simulation::road::Mess;
use crate::simulation::worlds::{Standing, world};

const RECORDS: usize = 40;
const PATIENCE: Duration = Duration::from_hours(3);

/// An account of so many records.
pub async fn rig_of(
    ground: &Ground,
    provider: &'static str,
    records: usize,
    settings: &[(&'static str, &str)],
) -> Rig {
    let settings = settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    let (skew, search_lag, feed_page) = (TimeDelta::zero(), Duration::ZERO, 5);
    let setup = Setup { provider, seed: 1, records, skew, search_lag, feed_page, settings };
    Rig::new(ground, setup).await
}

async fn rig(ground: &Ground, provider: &'static str) -> Rig {
    let page_size = match provider {
        "hubspot" => "providers.hubspot.page_size",
        "jobber" => "providers.jobber.page_size",
        "oncehub" => "providers.oncehub.page_size",
        "servicetitan" => "providers.servicetitan.page_size",
        _ => "providers.housecallpro.page_size",
    };
    rig_of(ground, provider, RECORDS, &[(page_size, "5"), ("sync.turn_limit", "1s")]).await
}

fn faults(rig: &Rig, texts: &[&str]) {
    rig.sandbox.set_faults(texts.iter().map(|text| text.parse().expect("a fault")).collect());
}

/// The only row of a query in which `{}` is the connection.
async fn row(rig: &Rig, sql: &str) -> Value {
    let sql: &'static str = sql.replace("{}", &rig.connection.to_string()).leak();
    let rows = rig.db(move |connection| rows::objects(connection, sql)).await;
    rows.into_iter().next().unwrap_or_default()
}

/// A statement in which `now()` is the daemon's.
fn dated(rig: &Rig, sql: &str) -> String {
    sql.replace("now()", &format!("'{}'::timestamptz", rig.engine.clock.now().to_rfc3339()))
}

/// `now()` is the daemon's.
async fn execute(rig: &Rig, sql: &str) {
    let sql = dated(rig, sql).replace("{}", &rig.connection.to_string());
    rig.db(move |connection| Ok(connection.batch_execute(&sql)?)).await;
}

/// Takes turns until the query's only value is true.
pub async fn until(rig: &Rig, what: &str, sql: &str) {
    let began = Instant::now();
    // Each time anew: the daemon's clock goes on.
    let holds = async || row(rig, &dated(rig, &format!("SELECT ({sql}) AS value"))).await["value"] == true;
    while !holds().await {
        let stands =
            "SELECT jsonb_agg(s) AS streams FROM fieldmirror.stream_state s WHERE connection_id = {}";
        assert!(began.elapsed() < PATIENCE, "not in time: {what}\n{}", row(rig, stands).await);
        rig.next(Duration::from_mins(1)).await;
    }
}

pub const ALL_READ: &str = "SELECT bool_and(backfill_done AND state = 'idle') FROM fieldmirror.stream_state WHERE connection_id = {}";

/// The rows of a table: ids, what they hold, whether they are gone.
async fn held(rig: &Rig, table: &str) -> Value {
    let all = format!(
        "SELECT count(*) AS rows, md5(string_agg(id || content_hash::text || coalesce(deleted_at::text, ''), ',' ORDER BY id)) AS hash
         FROM mirror.{table} WHERE connection_id = {{}}"
    );
    row(rig, &all).await
}

/// One kind of walk of a stream is due, and no other walk of the account.
async fn only(rig: &Rig, stream: &str, mode: &str) {
    let due = format!(
        "UPDATE fieldmirror.walks SET due_at = NULL WHERE connection_id = {{}};
         UPDATE fieldmirror.walks SET due_at = now(),
             covered_to = CASE WHEN mode = 'incremental' THEN '2001-01-01' WHEN mode <> 'archived' THEN covered_to END
         WHERE connection_id = {{}} AND (stream, mode) = ('{stream}', '{mode}')"
    );
    execute(rig, &due).await;
}

/// Takes turns until a run of the walk has ended, and tells of it.
async fn run_of(rig: &Rig, stream: &str, mode: &str) -> Value {
    let last = format!(
        "SELECT id, outcome, error FROM fieldmirror.sync_runs WHERE connection_id = {{}} AND ended_at IS NOT NULL
             AND (stream, mode) = ('{stream}', '{mode}') ORDER BY id DESC LIMIT 1"
    );
    let before = row(rig, &last).await["id"].clone();
    let began = Instant::now();
    loop {
        rig.next(Duration::from_mins(1)).await;
        let run = row(rig, &last).await;
        if run["id"] != before {
            return run;
        }
        assert!(began.elapsed() < PATIENCE, "no run of {stream}, {mode}");
    }
}

async fn walk(rig: &Rig, stream: &str, mode: &str) -> Value {
    let walk =
        "SELECT position IS NOT NULL AS placed, started_at, restarts, restart_reason, closed_started_at
        FROM fieldmirror.walks WHERE connection_id = {}";
    row(rig, &format!("{walk} AND (stream, mode) = ('{stream}', '{mode}')")).await
}

/// Enough archived tickets for pages of them.
fn archive_some(rig: &Rig) {
    let truth = world("hubspot").truth(&rig.sandbox);
    let alive = truth.iter().filter(|(key, real)| key.0 == "tickets" && real.standing == Standing::Alive);
    for ((_, id), _) in alive.take(15) {
        let change = json!({"do": "archive", "id": id.parse::<u64>().expect("a number")});
        let change = serde_json::from_value(change).expect("a change");
        rig.sandbox.hubspot().change(HUB_ID_FIRST, &change).expect("it is archived");
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_refused_begins_the_walk_again_with_a_reason() {
    let ground = Ground::new();
    for (provider, stream, table, list, modes) in [
        ("hubspot", "tickets", "hubspot_tickets", "list", &["backfill", "archived", "sweep"][..]),
        ("jobber", "jobs", "jobber_jobs", "jobs", &["incremental", "backfill", "sweep"][..]),
        ("oncehub", "bookings", "oncehub_bookings", "bookings", &["incremental", "backfill", "sweep"][..]),
    ] {
        let rig = rig(&ground, provider).await;
        if provider == "hubspot" {
            archive_some(&rig);
        }
        until(&rig, "everything has been read once", ALL_READ).await;
        let before = held(&rig, table).await;
        for mode in modes {
            only(&rig, stream, mode).await;
            faults(&rig, &[&format!("slow=700,on:{list}")]);
            let run = run_of(&rig, stream, mode).await;
            let midway = walk(&rig, stream, mode).await;
            assert_eq!(run["outcome"], "yielded", "{provider} {mode}: {run}");
            assert!(midway["placed"] == true && run["error"].is_null(), "{provider} {mode}: {run} {midway}");

            faults(&rig, &[&format!("refused_cursor=on:{list}")]);
            let run = run_of(&rig, stream, mode).await;
            let again = walk(&rig, stream, mode).await;
            let said = run["error"].as_str().unwrap_or_default();
            assert!(
                run["outcome"] == "yielded"
                    && said.contains("starts again")
                    && said.contains("refused the cursor"),
                "{provider} {mode}: {run}"
            );
            assert_eq!(
                (&again["placed"], &again["restarts"]),
                (&json!(false), &json!(1)),
                "{provider} {mode}"
            );
            assert!(again["restart_reason"].as_str().is_some_and(|why| said.ends_with(why)), "{again}");
            assert_eq!(again["started_at"], midway["started_at"], "it began when it began");

            faults(&rig, &[]);
            let closed = format!(
                "SELECT closed_started_at = '{}' FROM fieldmirror.walks WHERE connection_id = {{}}
                AND (stream, mode) = ('{stream}', '{mode}')",
                again["started_at"].as_str().unwrap()
            );
            until(&rig, "it closes", &closed).await;
            assert_eq!(walk(&rig, stream, mode).await["restart_reason"], Value::Null);
            assert_eq!(held(&rig, table).await, before, "{provider} {mode}");
        }
        // A place that is refused again and again is no passing matter.
        only(&rig, stream, modes[0]).await;
        faults(&rig, &[&format!("refused_cursor=on:{list}")]);
        let stalled = format!("SELECT stalled_reason LIKE 'the walk started again 3 times, and again:%' FROM fieldmirror.stream_state
            WHERE connection_id = {{}} AND stream = '{stream}'");
        until(&rig, "it is said", &stalled).await;
        assert_eq!(held(&rig, table).await, before, "{provider}");
    }
}

/// What a provider does, the stream that it does it to, and what is said of that.
const SUSPICIONS: [(&str, &str, &str, &str, &str); 12] = [
    // Nothing where there were many.
    (
        "hubspot",
        "empty_list=on:list",
        "tickets",
        "hubspot_tickets",
        "are no longer listed; nothing was marked as gone",
    ),
    (
        "jobber",
        "empty_list=on:jobs",
        "jobs",
        "jobber_jobs",
        "are no longer listed; nothing was marked as gone",
    ),
    (
        "housecallpro",
        "empty_list=on:housecallpro.jobs",
        "jobs",
        "housecallpro_jobs",
        "nothing was marked as gone",
    ),
    ("oncehub", "empty_list=on:bookings", "bookings", "oncehub_bookings", "nothing was marked as gone"),
    ("servicetitan", "/data=[]", "jobs", "servicetitan_jobs", "nothing was marked as gone"),
    // A page that repeats, a place that does not move.
    ("hubspot", "stuck_cursor=on:list", "tickets", "hubspot_tickets", "repeats a page"),
    ("jobber", "stuck_cursor=on:jobs", "jobs", "jobber_jobs", "names itself as the next one"),
    (
        "housecallpro",
        "stuck_cursor=on:housecallpro.jobs",
        "jobs",
        "housecallpro_jobs",
        "answers page 1 when asked for page 2",
    ),
    ("oncehub", "stuck_cursor=on:bookings", "bookings", "oncehub_bookings", "repeats a page"),
    ("servicetitan", "stuck_cursor=on:export_jobs", "jobs", "servicetitan_jobs", "names no other page"),
    // A count that disagrees.
    ("hubspot", "/total", "tickets", "hubspot_tickets", "counts 999 tickets"),
    ("housecallpro", "/total_items", "jobs", "housecallpro_jobs", "counts 999 records and has shown"),
];

#[tokio::test(start_paused = true)]
async fn what_cannot_be_is_said_and_changes_no_row() {
    let ground = Ground::new();
    for provider in ["hubspot", "jobber", "housecallpro", "oncehub", "servicetitan"] {
        let rig = rig(&ground, provider).await;
        until(&rig, "everything has been read once", ALL_READ).await;
        for (_, cause, stream, table, said) in SUSPICIONS.into_iter().filter(|of| of.0 == provider) {
            hold(&rig, cause, stream, table, said).await;
        }
        // A watermark that has not come yet.
        let (_, _, stream, table, _) =
            SUSPICIONS.into_iter().find(|of| of.0 == provider).expect("it has some");
        let ahead = format!(
            "UPDATE fieldmirror.walks SET covered_to = now() + interval '9 days', due_at = now()
             WHERE connection_id = {{}} AND (stream, mode) = ('{stream}', 'incremental')"
        );
        let before = held(&rig, table).await;
        execute(&rig, &ahead).await;
        until(&rig, "it is said", &says(stream, "lies in the future")).await;
        assert_eq!(held(&rig, table).await, before, "{provider}");
    }
}

/// Nobody allows anything to be gone.
async fn ask_for_everything(rig: &Rig) -> Uuid {
    let (connection, args) = (rig.connection, json!({"full": true}));
    let new = NewRequest { connection, kind: RequestKind::Sync, args, sealed: None };
    rig.db(move |conn| requests::create(conn, &new)).await
}

fn says(stream: &str, said: &str) -> String {
    format!(
        "SELECT coalesce(stalled_reason LIKE '%{said}%', false) FROM fieldmirror.stream_state
         WHERE connection_id = {{}} AND stream = '{stream}'"
    )
}

/// Everything is asked for while the provider does that: the stream stands still and says why, its rows stay and what was
/// swept does not grow, until the provider does it no more.
async fn hold(rig: &Rig, cause: &'static str, stream: &str, table: &str, said: &str) {
    let swept = format!(
        "SELECT swept_to FROM fieldmirror.stream_state WHERE connection_id = {{}} AND stream = '{stream}'"
    );
    let before = (held(rig, table).await, row(rig, &swept).await);
    if cause.starts_with('/') {
        let (place, value) = cause.split_once('=').unwrap_or((cause, "999"));
        rig.road.put(place, value.parse().expect("JSON"));
    } else {
        faults(rig, &[cause]);
    }
    let asked = ask_for_everything(rig).await;
    until(rig, cause, &says(stream, said)).await;
    let ended = format!("SELECT done_at IS NOT NULL FROM fieldmirror.requests WHERE id = '{asked}'");
    until(rig, "the request has ended", &ended).await;
    let outcome = rig.outcome(asked).await;
    let Some((RequestOutcome::Failed, Some(message))) = &outcome else { panic!("{cause}: {outcome:?}") };
    assert!(message.contains(said), "{cause}: {message}");
    assert_eq!((held(rig, table).await, row(rig, &swept).await), before, "{cause}");

    rig.road.forge(None);
    faults(rig, &[]);
    let asked = ask_for_everything(rig).await;
    let ended = format!("SELECT outcome = 'done' FROM fieldmirror.requests WHERE id = '{asked}'");
    until(rig, "it is over", &ended).await;
    until(rig, "all is well", ALL_READ).await;
    assert_eq!(held(rig, table).await, before.0, "{cause}");
}

/// What a walk reads at its end, to make sure of what it has not met, may be refused as well: that counts as any other time.
#[tokio::test(start_paused = true)]
async fn a_place_that_is_refused_at_the_end_is_counted() {
    let ground = Ground::new();
    let rig = rig(&ground, "oncehub").await;
    until(&rig, "everything has been read once", ALL_READ).await;
    let before = held(&rig, "oncehub_users").await;
    only(&rig, "users", "snapshot").await;
    let allow = "UPDATE fieldmirror.walks SET mass_delete_allowed = true WHERE connection_id = {} AND stream = 'users'";
    execute(&rig, allow).await;
    faults(&rig, &["empty_list=1x,on:users", "refused_cursor=on:users"]);
    let run = run_of(&rig, "users", "snapshot").await;
    assert!(run["error"].as_str().is_some_and(|said| said.contains("starts again")), "{run}");
    assert_eq!(walk(&rig, "users", "snapshot").await["restarts"], 1);
    faults(&rig, &[]);
    until(
        &rig,
        "all is well",
        "SELECT restarts = 0 FROM fieldmirror.walks WHERE connection_id = {} AND stream = 'users'",
    )
    .await;
    assert_eq!(held(&rig, "oncehub_users").await, before);
}

/// Whose account it is may take an API as long to say as anything else.
#[tokio::test(start_paused = true)]
async fn a_slow_answer_about_the_account_is_waited_for() {
    let ground = Ground::new();
    let rig = rig(&ground, "oncehub").await;
    faults(&rig, &["slow=90000,on:test"]);
    let began = Instant::now();
    let looked_at = rig.engine.auth.refresh(rig.connection, Why::Asked).await;
    assert_eq!(looked_at, Ok(Refreshed::Renewed));
    assert!(began.elapsed() >= Duration::from_secs(90), "{:?}", began.elapsed());
}

/// A log of a cancellation is in no list that could be asked for it: what a feed leaves out once is not gone.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_for_is_gone_when_it_is_absent_twice() {
    const TABLE: &str = "servicetitan_job_canceled_logs";
    const ALLOW: &str = "UPDATE fieldmirror.walks SET mass_delete_allowed = true
        WHERE connection_id = {} AND (stream, mode) = ('job_canceled_logs', 'sweep')";
    const CLOSED: &str = "SELECT started_at IS NULL AND restarts = 0 FROM fieldmirror.walks
        WHERE connection_id = {} AND (stream, mode) = ('job_canceled_logs', 'sweep')";
    const STRAY: &str = "INSERT INTO mirror.servicetitan_job_canceled_logs
        SELECT (jsonb_populate_record(log, '{\"id\": \"stray\"}')).* FROM mirror.servicetitan_job_canceled_logs log
        WHERE connection_id = {} LIMIT 1";
    let ground = Ground::new();
    let rig = rig(&ground, "servicetitan").await;
    until(&rig, "everything has been read once", ALL_READ).await;
    let before = held(&rig, TABLE).await;
    assert!(before["rows"].as_i64().is_some_and(|rows| rows > 0), "{before}");
    let looks_again = async || {
        let run = run_of(&rig, "job_canceled_logs", "sweep").await;
        assert!(run["error"].as_str().is_some_and(|said| said.contains("looked for once more")), "{run}");
    };
    only(&rig, "job_canceled_logs", "sweep").await;
    execute(&rig, ALLOW).await;
    rig.road.put("/data", json!([]));
    looks_again().await;
    rig.road.forge(None);
    until(&rig, "it closes", CLOSED).await;
    assert_eq!(held(&rig, TABLE).await, before);

    execute(&rig, STRAY).await;
    only(&rig, "job_canceled_logs", "sweep").await;
    looks_again().await;
    assert_eq!(living(&rig, TABLE, "id = 'stray'").await, 1);
    until(&rig, "it closes", CLOSED).await;
    assert_eq!(living(&rig, TABLE, "id = 'stray'").await, 0);
}

/// What a turn must not touch once another has begun.
const OWNED: &str = "SELECT
    (SELECT jsonb_agg(s ORDER BY s.stream) FROM fieldmirror.stream_state s WHERE connection_id = {}) AS streams,
    (SELECT jsonb_agg(w ORDER BY w.stream, w.mode) FROM fieldmirror.walks w WHERE connection_id = {}) AS walks,
    (SELECT jsonb_agg(m ORDER BY m.stream, m.mode, m.record_id) FROM fieldmirror.walk_seen m WHERE connection_id = {}) AS met,
    (SELECT facts FROM fieldmirror.connections WHERE id = {}) AS facts";

/// Whatever it is about when another turn begins: opening walks, writing pages, closing them, beginning them again, throwing
/// them away.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_overtaken_writes_nothing_more() {
    let ground = Ground::new();
    for (provider, table, fault) in [
        ("hubspot", "hubspot_tickets", None),
        ("hubspot", "hubspot_tickets", Some("refused_cursor=on:list")),
        ("jobber", "jobber_jobs", Some("empty_list=on:jobs")),
    ] {
        let rig = rig(&ground, provider).await;
        if let Some(fault) = fault {
            until(&rig, "everything has been read once", ALL_READ).await;
            faults(&rig, &[fault]);
        }
        for moment in (0..700).step_by(60) {
            execute(
                &rig,
                "UPDATE fieldmirror.walks SET due_at = now(), restarts = 0 WHERE connection_id = {};
                UPDATE fieldmirror.stream_state SET not_before = NULL WHERE connection_id = {};
                UPDATE fieldmirror.connections SET pacing = jsonb_build_object() WHERE id = {}",
            )
            .await;
            let overtake = async {
                tokio::time::sleep(Duration::from_millis(moment)).await;
                let of = rig.connection;
                rig.db(move |connection| streams::bump(connection, of)).await;
                (held(&rig, table).await, row(&rig, OWNED).await)
            };
            let stop = CancellationToken::new();
            let (ended, then) = tokio::join!(rig.engine.turn(rig.connection, &stop), overtake);
            ended.expect("it ends");
            assert_eq!(
                (held(&rig, table).await, row(&rig, OWNED).await),
                then,
                "{provider}, {fault:?}, {moment} ms"
            );
        }
        let lost = row(
            &rig,
            "SELECT count(*) AS runs FROM fieldmirror.sync_runs WHERE connection_id = {} AND outcome = 'lost'",
        );
        let lost = lost.await["runs"].as_i64().unwrap_or_default();
        assert!(lost > 0, "{provider}, {fault:?}: {lost} runs were overtaken");
    }
}

/// What was swept of a stream, and what is said of it.
async fn swept(rig: &Rig, stream: &str) -> Value {
    let swept = format!(
        "SELECT swept_to, state, stalled_reason FROM fieldmirror.stream_state WHERE connection_id = {{}} AND stream = '{stream}'"
    );
    row(rig, &swept).await
}

/// How many living rows of a table hold that.
async fn living(rig: &Rig, table: &str, what: &str) -> i64 {
    let count = format!(
        "SELECT count(*) AS rows FROM mirror.{table} WHERE connection_id = {{}} AND deleted_at IS NULL AND {what}"
    );
    row(rig, &count).await["rows"].as_i64().expect("a number")
}

/// The settings name these booking providers from now on.
fn name_providers(rig: &mut Rig, ids: &[&str]) {
    let mut settings = (*rig.engine.settings).clone();
    let of = settings.providers.get_mut("servicetitan").expect("it has settings");
    of.extra.insert("booking_provider_ids".to_owned(), json!(ids));
    rig.engine.settings = settings.into();
}

#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_asked_for_hold_nothing_but_the_sweep() {
    let ground = Ground::new();
    let named = [("providers.servicetitan.booking_provider_ids", "[\"71\", \"72\"]")];
    let mut rig = rig_of(&ground, "servicetitan", 160, &named).await;
    until(&rig, "everything has been read once", ALL_READ).await;
    let (table, here, there) =
        ("servicetitan_bookings", "booking_provider_id = '71'", "booking_provider_id = '72'");
    let (of_one, of_other) = (living(&rig, table, here).await, living(&rig, table, there).await);
    assert!(of_other > 10, "more than the brake lets pass: {of_other}");
    only(&rig, "bookings", "sweep").await;
    assert_eq!(run_of(&rig, "bookings", "sweep").await["outcome"], "closed");
    let before = swept(&rig, "bookings").await;

    let one = "SELECT min(id) AS id FROM mirror.servicetitan_bookings WHERE booking_provider_id = '71'";
    let one: u64 = row(&rig, one).await["id"].as_str().expect("an id").parse().expect("a number");
    let removed = json!({"do": "remove", "kind": "bookings", "id": one});
    let removed = serde_json::from_value(removed).expect("a change");
    rig.sandbox.servicetitan().change(TENANT_FIRST, &removed).expect("it is removed");
    name_providers(&mut rig, &["71"]);
    only(&rig, "bookings", "sweep").await;
    let run = run_of(&rig, "bookings", "sweep").await;
    let (said, after) = (run["error"].as_str().unwrap_or_default(), swept(&rig, "bookings").await);
    assert!(
        run["outcome"] == "failed" && said.contains("`booking_provider_id`") && said.contains("`72`"),
        "{run}"
    );
    assert!(said.contains(&of_other.to_string()) && !said.contains("--allow-mass-delete"), "{said}");
    assert_eq!((&after["swept_to"], &after["stalled_reason"]), (&before["swept_to"], &run["error"]));
    assert_eq!(living(&rig, table, here).await, of_one - 1, "what can be asked for is proven");
    assert_eq!(living(&rig, table, there).await, of_other, "the others stay");

    // Whoever allows deletions allows those that are proven, this once.
    execute(&rig, "UPDATE fieldmirror.walks SET mass_delete_allowed = true WHERE connection_id = {} AND stream = 'bookings'").await;
    only(&rig, "bookings", "sweep").await;
    assert_eq!(run_of(&rig, "bookings", "sweep").await["outcome"], "failed");
    assert_eq!(living(&rig, table, there).await, of_other);
    let allowed = "SELECT mass_delete_allowed FROM fieldmirror.walks WHERE connection_id = {} AND (stream, mode) = ('bookings', 'sweep')";
    assert_eq!(row(&rig, allowed).await["mass_delete_allowed"], false);

    // What comes back is read again, all of it, before anything more is claimed.
    let complete = "SELECT complete_to AS at FROM fieldmirror.stream_state WHERE connection_id = {} AND stream = 'bookings'";
    only(&rig, "bookings", "incremental").await;
    assert_eq!(run_of(&rig, "bookings", "incremental").await["outcome"], "closed");
    let claimed = row(&rig, complete).await;
    tokio::time::sleep(Duration::from_mins(5)).await;
    name_providers(&mut rig, &["71", "72"]);
    only(&rig, "bookings", "incremental").await;
    assert_eq!(run_of(&rig, "bookings", "incremental").await["outcome"], "closed");
    assert_eq!(row(&rig, complete).await, claimed, "there is more to be read");
    let read = "SELECT bool_and(outcome = 'done') FROM fieldmirror.requests WHERE connection_id = {} AND args @> '{\"own\": true}'";
    only(&rig, "bookings", "sweep").await;
    until(&rig, "what the mirror asked of itself is done", read).await;
    let after = swept(&rig, "bookings").await;
    assert!(
        after["stalled_reason"].is_null() && after["swept_to"].as_str() > before["swept_to"].as_str(),
        "{after}"
    );
    assert!(row(&rig, complete).await["at"].as_str() > claimed["at"].as_str());
}

#[tokio::test(start_paused = true)]
async fn a_job_is_gone_when_no_location_has_it() {
    let ground = Ground::new();
    let slow = [("sync.turn_limit", "2s"), ("providers.housecallpro.requests_per_minute", "60")];
    let rig = rig_of(&ground, "housecallpro", 90, &slow).await;
    until(&rig, "everything has been read once", ALL_READ).await;
    let of = rig.sandbox.housecallpro();
    let account = of.account_ids().remove(0);
    let change = |change: Value| {
        let change = serde_json::from_value(change).expect("a change");
        of.change(&account, &change).expect("it is done");
    };
    let own =
        |line: &Value| line["kind"] == "jobs" && line["state"] == "listed" && line["company_id"] == *account;
    let jobs = of.truth(&account).expect("the account is there").into_iter().filter(own);
    let jobs: Vec<String> =
        jobs.map(|line| line["record"]["id"].as_str().expect("an id").to_owned()).collect();
    let north = of.locations(&account).remove(0);
    let (moved, placeless, gone, lost) = (&jobs[0], &jobs[1], &jobs[2], &jobs[3..16]);
    for id in &jobs[..16] {
        change(json!({"do": "delete", "id": id, "left": if id == gone { "nothing" } else { "record" }}));
    }
    for id in [moved, placeless] {
        change(json!({"do": "move", "id": id, "location": north}));
    }
    let places = format!(
        "UPDATE mirror.housecallpro_jobs SET company_id = NULL WHERE connection_id = {{}} AND id = '{placeless}';
         UPDATE mirror.housecallpro_jobs SET company_id = 'nowhere' WHERE connection_id = {{}} AND id IN ('{}')",
        lost.join("', '")
    );
    execute(&rig, &places).await;
    let (table, all) = ("housecallpro_jobs", living(&rig, "housecallpro_jobs", "true").await);
    let before = swept(&rig, "jobs").await;
    only(&rig, "jobs", "sweep").await;
    until(&rig, "it is said", &says("jobs", "nowhere")).await;
    let after = swept(&rig, "jobs").await;
    assert!(after["swept_to"] == before["swept_to"] && after["state"] == "stalled", "{before} {after}");
    let said = after["stalled_reason"].as_str().expect("a reason");
    assert!(said.contains("13 rows") && said.contains("`company_id`"), "{said}");
    assert_eq!(living(&rig, table, "true").await, all - 1, "one is gone");
    let there = format!("company_id = '{north}' AND id IN ('{moved}', '{placeless}')");
    assert_eq!(living(&rig, table, &there).await, 2, "these are at another location");
    let evidence = format!(
        "SELECT deleted_evidence AS why FROM mirror.{table} WHERE connection_id = {{}} AND id = '{gone}'"
    );
    let evidence = row(&rig, &evidence).await["why"].clone();
    assert!(evidence.as_str().is_some_and(|why| why.contains("2 other places")), "{evidence}");

    // Answers that prove nothing are counted over all turns of the walk.
    let back = format!("UPDATE mirror.{table} SET company_id = '{account}' WHERE company_id = 'nowhere'");
    execute(&rig, &back).await;
    for id in lost {
        change(json!({"do": "restore", "id": id}));
    }
    for id in &lost[..7] {
        change(json!({"do": "delete", "id": id, "left": "record"}));
    }
    rig.road.put("/id", json!("another"));
    only(&rig, "jobs", "sweep").await;
    until(&rig, "it is said", &says("jobs", "prove nothing")).await;
    let after = swept(&rig, "jobs").await;
    let said = after["stalled_reason"].as_str().expect("a reason");
    // The two that were moved are met by no list, too.
    assert!(said.contains("9 rows") && after["swept_to"] == before["swept_to"], "{after}");
    assert_eq!(living(&rig, table, "true").await, all - 1, "none of them is gone");
    let turns = "SELECT count(*) AS runs FROM fieldmirror.sync_runs WHERE connection_id = {} AND mode = 'sweep' AND outcome = 'yielded'";
    assert!(row(&rig, turns).await["runs"].as_i64() > Some(2));
    rig.road.forge(None);
    only(&rig, "jobs", "sweep").await;
    let swept = "SELECT stalled_reason IS NULL AND state = 'idle' FROM fieldmirror.stream_state WHERE connection_id = {} AND stream = 'jobs'";
    until(&rig, "all is well", swept).await;
}

/// 401 although the token is good: trouble that passes, until it has stayed for some turns.
#[tokio::test(start_paused = true)]
async fn a_401_that_passes_turns_no_stream_off() {
    let ground = Ground::new();
    for (provider, stream, list) in [
        ("hubspot", "tickets", "search"),
        ("jobber", "jobs", "jobs"),
        ("housecallpro", "customers", "customers"),
        ("oncehub", "bookings", "bookings"),
    ] {
        let rig = rig_of(&ground, provider, RECORDS, &[]).await;
        until(&rig, "everything has been read once", ALL_READ).await;
        let state = format!(
            "SELECT state FROM fieldmirror.stream_state WHERE connection_id = {{}} AND stream = '{stream}'"
        );
        // Another token, and the same request once more.
        only(&rig, stream, "incremental").await;
        faults(&rig, &[&format!("invalid_auth=1x,on:{list}")]);
        let run = run_of(&rig, stream, "incremental").await;
        assert_eq!(run["outcome"], "closed", "{provider}: {run}");

        only(&rig, stream, "incremental").await;
        faults(&rig, &[&format!("invalid_auth=3x,on:{list}")]);
        let run = run_of(&rig, stream, "incremental").await;
        assert_eq!(
            (&run["outcome"], &row(&rig, &state).await["state"]),
            (&json!("failed"), &json!("backing_off")),
            "{provider}: {run}"
        );
        let began = Instant::now();
        until(&rig, "it has passed", ALL_READ).await;
        assert!(began.elapsed() < Duration::from_mins(5), "{provider}: {:?}", began.elapsed());

        only(&rig, stream, "incremental").await;
        faults(&rig, &[&format!("invalid_auth=on:{list}")]);
        run_of(&rig, stream, "incremental").await;
        assert_eq!(row(&rig, &state).await["state"], "backing_off", "{provider}");
        let off = format!(
            "SELECT state = 'forbidden' AND stalled_reason LIKE '%401%' FROM fieldmirror.stream_state WHERE connection_id = {{}} AND stream = '{stream}'"
        );
        until(&rig, "it is not allowed", &off).await;
        let connected = "SELECT state FROM fieldmirror.connections WHERE id = {}";
        assert_eq!(row(&rig, connected).await["state"], "connected", "{provider}");
    }
}

/// A page of an edge in place of JSON: the same request goes out again, and the stream stands still when that stays so.
#[tokio::test(start_paused = true)]
async fn a_success_without_json_passes() {
    let ground = Ground::new();
    for (provider, stream, list) in [
        ("hubspot", "tickets", "search"),
        ("jobber", "jobs", "jobs"),
        ("housecallpro", "customers", "customers"),
        ("servicetitan", "customers", "export_customers"),
        ("oncehub", "bookings", "bookings"),
    ] {
        let rig = rig_of(&ground, provider, RECORDS, &[]).await;
        until(&rig, "everything has been read once", ALL_READ).await;
        only(&rig, stream, "incremental").await;
        faults(&rig, &[&format!("html_ok=4x,on:{list}")]);
        let run = run_of(&rig, stream, "incremental").await;
        assert_eq!(run["outcome"], "closed", "{provider}: {run}");

        only(&rig, stream, "incremental").await;
        faults(&rig, &[&format!("html_ok=on:{list}")]);
        run_of(&rig, stream, "incremental").await;
        let state = format!(
            "SELECT state, stalled_reason FROM fieldmirror.stream_state WHERE connection_id = {{}} AND stream = '{stream}'"
        );
        let stands = row(&rig, &state).await;
        assert_eq!(
            (&stands["state"], &stands["stalled_reason"]),
            (&json!("backing_off"), &Value::Null),
            "{provider}"
        );
        until(&rig, "it stays so", &says(stream, "no JSON")).await;
        assert_eq!(row(&rig, &state).await["state"], "stalled", "{provider}");
        faults(&rig, &[]);
        until(&rig, "it has passed", ALL_READ).await;
    }
}

/// What changes after a provider's clock was set back is stamped earlier than where the last walk has come to.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_is_followed_and_told() {
    let ground = Ground::new();
    let rig = rig(&ground, "hubspot").await;
    until(&rig, "everything has been read once", ALL_READ).await;
    let covered = "SELECT extract(epoch FROM covered_to)::bigint AS at FROM fieldmirror.walks
        WHERE connection_id = {} AND (stream, mode) = ('tickets', 'incremental')";
    let told =
        "SELECT facts -> 'notices.clock' ->> 'clock' AS said FROM fieldmirror.connections WHERE id = {}";
    let mut came = Vec::new();
    for faulty in [&[][..], &["date_skew=-1200"], &["date_skew=-1200"], &[]] {
        faults(&rig, faulty);
        let run = run_of(&rig, "tickets", "incremental").await;
        assert_eq!(run["outcome"], "closed", "{run}");
        came.push(row(&rig, covered).await["at"].as_i64().expect("a watermark"));
        let said = row(&rig, told).await["said"].clone();
        let told = said.as_str().is_some_and(|said| said.contains("HubSpot is 20 min behind ours"));
        assert_eq!(told, !faulty.is_empty(), "{said}");
    }
    // Once it is read again from where that clock stood when the last walk had come to its end.
    assert!((1_190..=1_210).contains(&(came[0] - came[1])), "{came:?}");
    assert!(came[2] > came[1] && came[2] < came[0], "{came:?}");
    assert!(came[3] > came[0], "{came:?}");
}

/// Removes a record so that no list shows it any more.
fn remove(rig: &Rig, kind: &str, id: &Value) {
    let id: u64 = id.as_str().expect("an id").parse().expect("a number");
    let removed = serde_json::from_value(json!({"do": "remove", "kind": kind, "id": id}));
    rig.sandbox.servicetitan().change(TENANT_FIRST, &removed.expect("a change")).expect("it is removed");
}

/// A clock that ran ahead has dated rows and walks to a time to come. It is corrected, and then records are deleted.
#[tokio::test(start_paused = true)]
async fn what_a_clock_has_dated_that_ran_ahead_hides_nothing() {
    let ground = Ground::new();
    let rig = rig_of(&ground, "servicetitan", RECORDS, &[]).await;
    rig.ours.set_by(TimeDelta::hours(30));
    until(&rig, "everything has been read once", ALL_READ).await;
    only(&rig, "bookings", "sweep").await;
    assert_eq!(run_of(&rig, "bookings", "sweep").await["outcome"], "closed");
    execute(
        &rig,
        "UPDATE fieldmirror.walks SET due_at = now() WHERE connection_id = {} AND mode <> 'backfill'",
    )
    .await;
    until(&rig, "everything has been read again", "SELECT bool_and(due_at > now() + interval '4 minutes') FROM fieldmirror.walks WHERE connection_id = {} AND mode <> 'backfill'").await;
    rig.ours.set_by(TimeDelta::hours(-30));

    let of = |table: &str| {
        format!(
            "SELECT min(id) AS id FROM mirror.servicetitan_{table} WHERE connection_id = {{}} AND deleted_at IS NULL"
        )
    };
    let booking = row(&rig, &of("bookings")).await["id"].clone();
    remove(&rig, "bookings", &booking);
    let gone = format!(
        "SELECT deleted_at IS NOT NULL FROM mirror.servicetitan_bookings WHERE connection_id = {{}} AND id = {booking}"
    );
    until(&rig, "it is gone", &gone.replace('"', "'")).await;
    // Nothing tells by itself what a short list was at that moment.
    until(&rig, "it is said", &says("technicians", "lies in the future")).await;
    let since = rig.engine.clock.now() - TimeDelta::days(9);
    let (connection, args) = (rig.connection, json!({"since": since}));
    let new = NewRequest { connection, kind: RequestKind::Sync, args, sealed: None };
    let asked = rig.db(move |conn| requests::create(conn, &new)).await;
    ends(&rig, asked, Duration::from_mins(30)).await;
    let now = rig.engine.clock.now().to_rfc3339();
    let ahead = format!(
        "SELECT count(*) AS streams FROM fieldmirror.stream_state WHERE connection_id = {{}} AND greatest(complete_to, swept_to) > '{now}'"
    );
    assert_eq!(row(&rig, &ahead).await["streams"], 0);
}

/// What was deleted since a first read began that could not read everything is found by the one that can.
#[tokio::test(start_paused = true)]
async fn a_first_read_that_begins_again_finds_what_is_gone_since() {
    let ground = Ground::new();
    let named = [("providers.servicetitan.booking_provider_ids", "[\"71\", \"99\"]")];
    let mut rig = rig_of(&ground, "servicetitan", 60, &named).await;
    until(&rig, "it is said", &says("bookings", "booking provider 99")).await;
    let one = "SELECT min(id) AS id FROM mirror.servicetitan_bookings WHERE connection_id = {}";
    let one = row(&rig, one).await["id"].clone();
    remove(&rig, "bookings", &one);
    name_providers(&mut rig, &["71"]);
    only(&rig, "bookings", "backfill").await;
    assert_eq!(run_of(&rig, "bookings", "backfill").await["outcome"], "closed");
    let gone = format!("id = '{}'", one.as_str().expect("an id"));
    assert_eq!(living(&rig, "servicetitan_bookings", &gone).await, 0);
    assert!(swept(&rig, "bookings").await["swept_to"].is_string());
}

/// While the list of properties is not read, tickets are, and cover no more than what was known: they say so until it is.
#[tokio::test(start_paused = true)]
async fn who_waits_for_what_another_learns_says_so() {
    let ground = Ground::new();
    let rig = rig(&ground, "hubspot").await;
    until(&rig, "everything has been read once", ALL_READ).await;
    let complete = "SELECT complete_to AS at FROM fieldmirror.stream_state WHERE connection_id = {} AND stream = 'tickets'";
    let due = |when: &str| {
        format!(
            "UPDATE fieldmirror.walks SET due_at = {when} WHERE connection_id = {{}} AND stream = 'properties'"
        )
    };
    execute(&rig, &due("NULL")).await;
    until(&rig, "it is said", &says("tickets", "`properties`")).await;
    let stands = row(&rig, complete).await;
    tokio::time::sleep(Duration::from_mins(30)).await;
    assert_eq!(run_of(&rig, "tickets", "incremental").await["outcome"], "closed");
    assert_eq!(row(&rig, complete).await, stands, "it covers no more");
    execute(&rig, &due("now()")).await;
    until(&rig, "all is well", ALL_READ).await;
    until(
        &rig,
        "nothing is said any more",
        "SELECT bool_and(stalled_reason IS NULL) FROM fieldmirror.stream_state WHERE connection_id = {}",
    )
    .await;
    assert!(row(&rig, complete).await["at"].as_str() > stands["at"].as_str());
}

/// Who has to wait for a permit holds no slot meanwhile: whoever is ahead of it needs one to go.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_slot_that_one_holds_who_waits() {
    let ground = Ground::new();
    let rig = rig_of(&ground, "housecallpro", 5, &[]).await;
    let (engine, now) = (&rig.engine, rig.engine.clock.now());
    let mut pacer = Pacer::new(&[BucketSpec::own_pace("requests", 1, Duration::from_secs(1))], 0.0);
    pacer.take(now, &["requests"], 1).expect("nothing was taken before");
    pacer.come(["first", "second"].into_iter());
    pacer.wait(now, Some("first"), &["requests"], 1, Duration::from_secs(1));
    let sender = Sender {
        client: &engine.client,
        auth: &engine.auth,
        access: Mutex::default(),
        doubts: tokio::sync::Mutex::default(),
        skew: Mutex::default(),
        clock: &*engine.clock,
        provider: providers::provider("housecallpro").expect("it is registered"),
        connection: rig.connection,
        api_base: &engine.settings.providers["housecallpro"].api_base,
        pacer: Mutex::new(pacer),
        egress: Egress { db: &engine.db, scope: String::new(), buckets: Vec::new() },
        in_flight: Semaphore::new(1),
        stop: CancellationToken::new(),
        began: (now, Instant::now()),
    };
    let request = Request::get("/company".to_owned(), "company", &["requests"]);
    let deadline = Instant::now() + Duration::from_mins(5);
    let tallies = ["second", "first"].map(|of| Tally::of(of, 0));
    // The slot goes to who asks first.
    let [second, first] = tallies.each_ref().map(|tally| sender.send(&request, deadline, tally));
    let (second, first) = tokio::join!(second, first);
    let (second, first) = (second.expect("it has left"), first.expect("it has left"));
    assert!(first.sent_at < second.sent_at, "in their order: {} {}", first.sent_at, second.sent_at);
}

/// What is asked for is done, whatever else is due, within so long.
async fn ends(rig: &Rig, asked: Uuid, within: Duration) {
    let began = Instant::now();
    let ended = format!("SELECT done_at IS NOT NULL FROM fieldmirror.requests WHERE id = '{asked}'");
    until(rig, "what was asked for has ended", &ended).await;
    let outcome = rig.outcome(asked).await;
    assert!(matches!(outcome, Some((RequestOutcome::Done, _))), "{outcome:?}");
    assert!(began.elapsed() < within, "{:?}", began.elapsed());
}

/// Changes and ids are due again as soon as they have been read, in turns of a second, and take more points than come back.
#[tokio::test(start_paused = true)]
async fn no_walk_waits_for_points_for_ever() {
    let ground = Ground::new();
    let settings = [
        ("sync.turn_limit", "1s"),
        ("sync.sweep_interval", "2s"),
        ("sync.quota_reserve", "0.7"),
        ("providers.jobber.poll_interval", "1s"),
        ("providers.jobber.page_size", "20"),
    ];
    let rig = rig_of(&ground, "jobber", RECORDS, &settings).await;
    rig.road.set(Mess::default(), 20);
    until(
        &rig,
        "everything has been read once",
        "SELECT bool_and(backfill_done) FROM fieldmirror.stream_state WHERE connection_id = {}",
    )
    .await;
    let asked = ask_for_everything(&rig).await;
    ends(&rig, asked, Duration::from_mins(10)).await;
}

/// What a turn leaves is less time than records take that are asked for by their ids.
#[tokio::test(start_paused = true)]
async fn a_comparison_ends_however_short_turns_are() {
    let ground = Ground::new();
    for (provider, stream) in [("hubspot", "tickets"), ("jobber", "visits")] {
        let rig = rig_of(&ground, provider, RECORDS, &[("sync.turn_limit", "1s")]).await;
        until(&rig, "everything has been read once", ALL_READ).await;
        rig.road.set(Mess::default(), 1_500);
        let (connection, args) = (rig.connection, json!({"streams": [stream], "sample": RECORDS}));
        let new = NewRequest { connection, kind: RequestKind::Verify, args, sealed: None };
        let asked = rig.db(move |conn| requests::create(conn, &new)).await;
        ends(&rig, asked, Duration::from_hours(2)).await;
    }
}
