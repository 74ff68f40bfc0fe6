//! What is in the mirror is what is at the provider: after the first read, after changes, and at what price.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fieldmirror::http::pace::less_reserve;
use fieldmirror::sandbox::{HubspotLimits, SandboxOptions};
use serde_json::{Value, json};

use crate::support::app::{HUB, PATIENCE, TestApp, small};
use crate::support::truth::{MIRRORED, hold_against_mirror, says_what_it_said};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_mirrored_after_a_consent() {
    let app = TestApp::new(small(700), &[]).await;
    let daemon = app.daemon().await;
    let asked = app.mirrored("acme").await;
    assert_eq!(asked["state"], "awaiting_consent");
    hold_against_mirror(&app).await;
    assert_eq!(app.one("SELECT state FROM mirror.connections").await, "connected");
    assert_eq!(app.number("SELECT count(*) FROM mirror.tickets").await, 700);
    assert!(app.number("SELECT count(deleted_at) FROM mirror.tickets").await > 0, "some are archived");
    daemon.stop().await;
}

const SUBJECT: &str = "changed from outside";

/// Where every row of the mirror is, physically: a row that is written anew moves.
const PLACES: &str = "SELECT md5(string_agg(place, ',' ORDER BY place)) FROM (
       SELECT 't' || ctid || xmin AS place FROM mirror.hubspot_tickets
       UNION ALL SELECT 'p' || ctid || xmin FROM mirror.hubspot_properties
       UNION ALL SELECT 's' || ctid || xmin FROM mirror.hubspot_pipeline_stages
       UNION ALL SELECT 'o' || ctid || xmin FROM mirror.hubspot_owners) places";

/// Requests of closed runs, by stream and mode, that needed another number than an unchanged poll takes.
const DEAR_POLLS: &str = "SELECT stream, mode, requests FROM mirror.sync_runs
    WHERE outcome = 'closed' AND started_at > (SELECT started_at FROM fieldmirror.daemons)
      AND requests <> CASE stream WHEN 'owners' THEN 2 ELSE 1 END";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_poll_costs_a_request_and_no_write() {
    let app = TestApp::new(small(150), &[]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    daemon.stop().await;
    let places = app.one(PLACES).await;
    app.sandbox.control().ledger().reset();
    let daemon = app.daemon().await;
    app.wait_until("four polls of everything", "SELECT bool_and(polls >= 4) AND count(*) = 5 FROM (
        SELECT count(*) FILTER (WHERE outcome = 'closed') AS polls FROM mirror.sync_runs
        WHERE started_at > (SELECT started_at FROM fieldmirror.daemons) AND (stream, mode) <> ('tickets', 'backfill')
        GROUP BY stream, mode) runs")
        .await;
    assert_eq!(app.rows(DEAR_POLLS).await, Vec::<Value>::new());
    daemon.stop().await;
    assert_eq!(app.one(PLACES).await, places, "no row was written");
    for purpose in ["batch_read", "associations"] {
        assert_eq!(app.asked(purpose), 0, "{purpose}");
    }
    for (purpose, sql) in [
        (
            "search",
            "SELECT sum(requests)::bigint FROM mirror.sync_runs WHERE stream = 'tickets' AND mode = 'incremental'",
        ),
        ("owners", "SELECT sum(requests)::bigint FROM mirror.sync_runs WHERE stream = 'owners'"),
    ] {
        let counted = u64::try_from(app.number(sql).await).unwrap();
        assert!(
            app.asked(purpose) > 0 && app.asked(purpose) <= counted,
            "{purpose}: what is asked is counted"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_arrive_without_reading_everything_again() {
    let app = TestApp::new(small(300), &[]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    let tickets = app.truth().await;
    let of_state = |state: &str| -> Vec<u64> {
        let with = tickets.iter().filter(|ticket| ticket["state"] == state);
        with.map(|ticket| ticket["record"]["id"].as_str().unwrap().parse().unwrap()).collect()
    };
    let (live, archived) = (of_state("live"), of_state("archived"));
    let held = app.rows(MIRRORED).await;
    app.sandbox.control().ledger().reset();
    app.execute("CREATE TABLE public.mark AS SELECT clock_timestamp() - interval '1 s' AS moment").await;

    app.change(json!({"do": "change", "id": live[0], "properties": {"subject": SUBJECT, "hs_pipeline": "0", "hs_pipeline_stage": "4"}}));
    app.change(json!({"do": "create", "properties": {"subject": SUBJECT}}));
    app.wait_until(
        "a change and a new ticket",
        "SELECT count(*) = 2 FROM mirror.tickets WHERE subject = 'changed from outside'",
    )
    .await;
    app.change(json!({"do": "archive", "id": live[1]}));
    let third = app.change(json!({"do": "merge", "primary": live[2], "other": live[3]}))[0];
    let kept = app.change(json!({"do": "merge", "primary": live[4], "other": live[5], "new_id": false}))[0];
    assert!(third > live[5] && kept == live[4]);
    // Restored and changed: search shows it, while the restoring alone would leave no trace there.
    app.change(json!({"do": "restore", "id": archived[0]}));
    app.change(json!({"do": "change", "id": archived[0], "properties": {"subject": "restored"}}));
    app.wait_until(
        "an archived, three merged and a restored ticket",
        "SELECT count(merged_into) = 3 AND bool_or(subject = 'restored' AND deleted_at IS NULL)
            AND count(*) FILTER (WHERE deleted_at > (SELECT moment FROM public.mark) AND merged_into IS NULL) = 1
         FROM mirror.tickets",
    )
    .await;
    hold_against_mirror(&app).await;
    let swept = "SELECT count(*) FROM mirror.sync_runs WHERE mode = 'sweep'";
    assert_eq!(app.number(swept).await, 0, "some polls, and no sweep");
    let lists = u64::try_from(
        app.number("SELECT sum(requests)::bigint FROM mirror.sync_runs WHERE mode = 'archived'").await,
    )
    .unwrap();
    assert!(app.asked("list") <= lists, "only archived tickets were listed");
    assert_eq!(
        app.number("SELECT count(*) FROM mirror.sync_runs WHERE stream = 'tickets' AND mode = 'backfill'")
            .await,
        1
    );

    // What leaves no trace is found by reading everything again.
    app.change(json!({"do": "delete", "id": live[6]}));
    app.change(json!({"do": "restore", "id": archived[1]}));
    let swept = app.run("enqueue --resync acme --full --wait --json").await.done().last();
    assert_eq!(swept["requests"][0]["outcome"], "done", "{swept}");
    hold_against_mirror(&app).await;

    // A sweep reads no more than ids, and the records of those that have come back, or that were never there.
    app.change(json!({"do": "restore", "id": archived[2]}));
    app.execute(
        "UPDATE fieldmirror.stream_state SET rows = rows - 1 WHERE stream = 'tickets';
         DELETE FROM mirror.hubspot_tickets WHERE id = (SELECT min(id) FROM mirror.tickets
             WHERE deleted_at IS NULL AND updated_at < now() - interval '1 hour');
         UPDATE fieldmirror.walks SET due_at = now() WHERE mode = 'sweep'",
    )
    .await;
    app.wait_until(
        "the sweep has closed",
        "SELECT count(*) = 1 FROM mirror.sync_runs WHERE mode = 'sweep' AND outcome = 'closed'",
    )
    .await;
    hold_against_mirror(&app).await;
    let read = "SELECT records FROM mirror.sync_runs WHERE mode = 'sweep' AND outcome = 'closed'";
    assert_eq!(app.number(read).await, 2, "no other record was read");

    // Many at once are not believed without an admin's word.
    for id in &live[10..50] {
        app.change(json!({"do": "delete", "id": id}));
    }
    let gone = "SELECT count(deleted_at) FROM mirror.tickets";
    let before = app.number(gone).await;
    let braked = app.run("enqueue --resync acme --stream tickets --full --wait --json").await;
    assert_eq!(braked.code, 2, "{braked:?}");
    assert!(braked.stdout.contains("--allow-mass-delete"), "it says what to do: {}", braked.stdout);
    assert_eq!(app.number(gone).await, before);
    let allowed =
        app.run("enqueue --resync acme --stream tickets --full --allow-mass-delete --wait --json").await;
    assert_eq!(allowed.done().last()["requests"][0]["outcome"], "done");
    assert_eq!(app.number(gone).await, before + 40);
    hold_against_mirror(&app).await;
    // What was merged or deleted for good; what is archived is shown as such, and held against that.
    let truth = app.truth().await;
    let shown = |row: &Value| {
        let is_shown = |ticket: &Value| ticket["state"] == "live" || ticket["state"] == "archived";
        truth.iter().any(|ticket| ticket["record"]["id"] == row["id"] && is_shown(ticket))
    };
    let told: Vec<Value> = app.rows(MIRRORED).await.into_iter().filter(|row| !shown(row)).collect();
    let gone = says_what_it_said(&held, &told, &["deleted", "merged_into", "t_merged_into"]);
    assert_eq!(gone.len(), 3 + 1 + 40, "{gone:?}");
    daemon.stop().await;
}

/// Search shows a change some moments after it was made. What is held back is longer, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_search_shows_late_is_not_lost() {
    let options = SandboxOptions { search_lag: Duration::from_secs(3), ..small(40) };
    let app = TestApp::new(options, &[("sync.hold_back", "4s")]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    let tickets = app.truth().await;
    let live = tickets.iter().find(|ticket| ticket["state"] == "live").expect("one that lives");
    let id: u64 = live["record"]["id"].as_str().unwrap().parse().unwrap();
    let began = Instant::now();
    app.change(json!({"do": "change", "id": id, "properties": {"subject": "shown late"}}));
    let late = "SELECT count(*) = 1 FROM mirror.tickets WHERE subject = 'shown late'";
    app.wait_until("a change that search shows late", late).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2), "search did not show it at once: {took:?}");
    let complete =
        "SELECT complete_to < now() - interval '3.9 seconds' FROM mirror.freshness WHERE stream = 'tickets'";
    assert_eq!(app.one(complete).await, true);
    hold_against_mirror(&app).await;
    daemon.stop().await;
}

/// More tickets than a search can page through, all of one millisecond: only walking by id brings them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_change_beyond_the_limits_of_search() {
    const MANY: u32 = 25_000;
    let app = TestApp::new(small(50), &[]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    app.sandbox.control().ledger().reset();
    let control = app.sandbox.control().clone();
    let change = serde_json::from_value(
        json!({"do": "bulk_create", "count": MANY, "properties": {"subject": "bulk"}}),
    )
    .unwrap();
    let made = tokio::task::spawn_blocking(move || control.hubspot().change(HUB, &change));
    assert_eq!(made.await.unwrap().unwrap().count, MANY as usize);
    // At the pace that the reserve leaves it takes half a minute and more: as long as it gets on, it has its time.
    let (mut moved_at, mut there) = (Instant::now(), 0);
    while there < i64::from(MANY) {
        let now = app.number("SELECT count(*) FROM mirror.hubspot_tickets WHERE subject = 'bulk'").await;
        if now > there {
            (moved_at, there) = (Instant::now(), now);
        }
        assert!(moved_at.elapsed() < PATIENCE, "it stays at {there}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(there, i64::from(MANY));
    assert_eq!(
        app.number(
            "SELECT count(DISTINCT source_updated_at) FROM mirror.hubspot_tickets WHERE subject = 'bulk'"
        )
        .await,
        1
    );
    app.none_refused(429);
    assert_eq!(
        app.number("SELECT count(*) FROM mirror.sync_runs WHERE stream = 'tickets' AND mode = 'backfill'")
            .await,
        1
    );
    daemon.stop().await;
    let lists =
        app.number("SELECT sum(requests)::bigint FROM mirror.sync_runs WHERE mode = 'archived'").await;
    assert!(app.asked("list") <= u64::try_from(lists).unwrap(), "only archived tickets were listed");
    hold_against_mirror(&app).await;
}

/// Waits for a span in which nine tenths of so many requests a second were sent: one in which the machine stood still does
/// not count.
async fn all_used(span: Duration, secondly: f64, asked: impl Fn() -> u64) {
    let (began, mut seen) = (Instant::now(), VecDeque::new());
    loop {
        seen.push_back((Instant::now(), asked()));
        while seen.len() > 1 && seen[1].0.elapsed() >= span {
            seen.pop_front();
        }
        let (since, before) = seen[0];
        let more = f64::from(u32::try_from(asked() - before).unwrap());
        if since.elapsed() >= span && more >= 0.9 * secondly * since.elapsed().as_secs_f64() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{} requests in {:?}", asked(), began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// While a bulk change is read, what the reserve leaves of five searches in a second is used, and none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_are_as_many_as_may_be() {
    let app = TestApp::new(small(20), &[("providers.hubspot.page_size", "5")]).await;
    let daemon = app.daemon().await;
    app.mirrored("acme").await;
    app.sandbox.control().ledger().reset();
    let bulk = json!({"do": "bulk_create", "count": 3_000, "properties": {"subject": "bulk"}});
    let bulk = serde_json::from_value(bulk).unwrap();
    app.sandbox.control().hubspot().change(HUB, &bulk).unwrap();
    all_used(Duration::from_secs(5), f64::from(less_reserve(5, 0.1)), || app.asked("search")).await;
    let pending = "SELECT 3000 - count(*) FROM mirror.hubspot_tickets WHERE subject = 'bulk'";
    assert!(app.number(pending).await > 0, "there was more to read all the time");
    daemon.stop().await;
    app.none_refused(429);
}

/// The same of the limit of ten seconds while everything of two accounts is read for the first time: few enough that a slow
/// machine sends as many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_ten_seconds_is_kept_and_used() {
    const LIMIT: usize = 20;
    // They leave as soon as they may: what comes with a span is sent at its beginning.
    const SPAN: Duration = Duration::from_millis(10_500);
    let limits = HubspotLimits { ten_secondly: LIMIT, ..HubspotLimits::default() };
    let options = SandboxOptions { hubspot_limits: limits, accounts: 2, ..small(800) };
    let app = TestApp::new(options, &[("providers.hubspot.page_size", "5")]).await;
    let daemon = app.daemon().await;
    app.connect("acme").await;
    app.consent_for("enqueue --connect hubspot --name beta", HUB + 1).await;
    let left = 2.0 * f64::from(less_reserve(u32::try_from(LIMIT).unwrap(), 0.1)) / 10.0;
    let asked = || ["list", "batch_read"].map(|of| app.asked(of)).iter().sum::<u64>();
    all_used(SPAN, left, asked).await;
    let pending = "SELECT count(*) FROM mirror.freshness WHERE stream = 'tickets' AND NOT backfill_done";
    assert_eq!(app.number(pending).await, 2, "there was more to read all the time");
    daemon.stop().await;
    app.none_refused(429);
}
