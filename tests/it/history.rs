//! What rows were before they changed, what came and was not foreseen, and columns that are filled from `raw`: against a
//! real server, without any provider.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection as _;
use diesel::sql_types::{BigInt, Jsonb, Text};
use fieldmirror::db::streams::{self, StreamKey, StreamWrite};
use fieldmirror::db::sync_runs::{self, Counts};
use fieldmirror::db::{DbError, PgConnection, changes, drift, rows};
use fieldmirror::domain::current::Current;
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::record::{Deletion, Record, Tombstone};
use fieldmirror::domain::spec::{Column, ColumnType, Mode, StreamSpec};
use fieldmirror::domain::step::{Page, Position};
use fieldmirror::jobs::scheduler::Scheduler;
use fieldmirror::providers::{REGISTRY, provider};
use fieldmirror::sync::commit::{self, Ready, Source};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fixtures::records;
use crate::simulation::rig::{Ground, Rig, Setup};
use crate::support::postgres::TestDb;

/// After everything that happens.
const FAR: DateTime<Utc> = DateTime::<Utc>::MAX_UTC;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(second, 0).unwrap()
}

/// A stream of a connection of its own, of which a turn has begun.
fn begun(connection: &mut PgConnection, of: &str, stream: &str) -> Result<Source, DbError> {
    let insert = "INSERT INTO connections (name, provider, grant_kind, state, account_id)
                  VALUES ($1 || '-' || $2, $1, 'api_key', 'connected', $2) RETURNING id AS value";
    let insert = diesel::sql_query(insert).bind::<Text, _>(of).bind::<Text, _>(stream);
    let id = ConnectionId(rows::value::<BigInt, i64, _>(connection, insert)?);
    let provider = provider(of).expect("it is registered").spec();
    let epoch = streams::take(connection, id, provider.streams)?;
    let spec = provider.stream(stream).expect("it is described");
    let run = sync_runs::begin(connection, id, spec.name, Mode::Backfill, at(0))?;
    let key = StreamKey { connection: id, stream: spec.name, epoch };
    Ok(Source { key, spec, mode: Mode::Backfill, run, opened_at: FAR, sweeping: false, history: true })
}

fn write(connection: &mut PgConnection, source: &Source, page: Page) -> Result<i64, DbError> {
    let (page, mut counts) = (Ready::of(source.spec, page), Counts::default());
    let owned = commit::pages(connection, source, vec![(page, Position::start())], &mut counts)?;
    assert_eq!(owned, StreamWrite::Done);
    Ok(counts.rows_written)
}

fn objects(connection: &mut PgConnection, sql: &str) -> Result<Vec<Value>, DbError> {
    let query = diesel::sql_query(format!("SELECT to_jsonb(q) AS value FROM ({sql}) q"));
    rows::values::<Jsonb, Value, _>(connection, query)
}

fn ticket(subject: &str, second: i64) -> Record {
    let raw = json!({"id": "7", "updatedAt": at(second).to_rfc3339(),
                     "properties": {"subject": subject, "content": "the same", "other": subject.len()}});
    Record { id: "7".into(), raw, sent_at: at(second), deleted: None, without: Vec::new() }
}

fn deletion(second: i64) -> Deletion {
    Deletion { at: at(second), told: false, evidence: "said so".into() }
}

fn page(record: Record) -> Page {
    Page { records: vec![record], ..Page::default() }
}

fn burial(second: i64, merged_into: Option<&str>) -> Tombstone {
    let merged_into = merged_into.map(str::to_owned);
    Tombstone { id: "7".into(), deletion: deletion(second), merged_into, sent_at: at(second) }
}

const CHANGES: &str = "SELECT record_id, op, extract(epoch FROM source_updated_at)::bigint AS modified, before FROM mirror.changes ORDER BY id";

#[tokio::test]
async fn every_change_is_told_by_what_it_took_away() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let source = begun(connection, "hubspot", "tickets")?;
        let mut expected = Vec::new();
        let mut then = |connection: &mut PgConnection, page: Page, change: Option<Value>| {
            let what = format!("{page:?}");
            write(connection, &source, page)?;
            expected.extend(change.map(|mut change| {
                change["record_id"] = json!("7");
                change
            }));
            assert_eq!(objects(connection, CHANGES)?, expected, "{what}");
            Ok::<_, DbError>(())
        };
        then(connection, page(ticket("one", 100)), None)?;
        then(connection, page(ticket("one", 100)), None)?;
        let was = |subject: &str, second: i64| {
            let time = at(second);
            json!({"subject": subject, "source_updated_at": time.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
                   "raw": {"updatedAt": time.to_rfc3339(), "properties": {"subject": subject}}})
        };
        let update = json!({"op": "update", "modified": 200, "before": was("one", 100)});
        then(connection, page(ticket("two", 200)), Some(update))?;
        let gone = Record { deleted: Some(deletion(300)), ..ticket("six", 300) };
        then(
            connection,
            page(gone),
            Some(json!({"op": "delete", "modified": 300, "before": was("two", 200)})),
        )?;
        // Written again while it is gone, since another moment.
        let dated = Record { deleted: Some(Deletion { told: true, ..deletion(290) }), ..ticket("sad", 310) };
        let mut before = was("six", 300);
        before["deleted_at"] = json!("1970-01-01T00:05:00Z");
        then(connection, page(dated), Some(json!({"op": "update", "modified": 310, "before": before})))?;
        let mut before = was("sad", 310);
        before["deleted_at"] = json!("1970-01-01T00:04:50Z");
        before["deleted_evidence"] = json!("said so");
        let back = json!({"op": "restore", "modified": 400, "before": before});
        then(connection, page(ticket("ten", 400)), Some(back))?;
        let absent = Page { tombstones: vec![burial(500, None)], ..Page::default() };
        then(connection, absent.clone(), Some(json!({"op": "delete", "modified": null, "before": {}})))?;
        then(connection, absent, None)?;
        // The provider says when it went, which was before anybody noticed.
        let dated = Tombstone { deletion: Deletion { told: true, ..deletion(450) }, ..burial(550, None) };
        let dated = Page { tombstones: vec![dated], ..Page::default() };
        let update =
            json!({"op": "update", "modified": null, "before": {"deleted_at": "1970-01-01T00:08:20Z"}});
        then(connection, dated.clone(), Some(update))?;
        then(connection, dated, None)?;
        let since = "SELECT extract(epoch FROM deleted_at)::bigint AS at FROM mirror.hubspot_tickets";
        assert_eq!(objects(connection, since)?, [json!({"at": 450})]);
        // Written again and merged away in one page, after it was gone.
        let both = Page { tombstones: vec![burial(600, Some("8"))], ..page(ticket("ten", 600)) };
        write(connection, &source, both)?;
        let last: Vec<Value> = objects(connection, CHANGES)?.split_off(expected.len());
        let told: Vec<(&Value, &Value)> =
            last.iter().map(|row| (&row["op"], &row["before"]["merged_into"])).collect();
        assert_eq!(told, [(&json!("restore"), &Value::Null), (&json!("delete"), &Value::Null)]);
        assert_eq!(last[1]["before"], json!({"merged_into": null}));
        let runs = objects(
            connection,
            "SELECT count(*) FROM mirror.changes JOIN mirror.sync_runs r ON r.id = sync_run_id",
        )?;
        assert_eq!(runs, [json!({"count": 8})]);
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test]
async fn without_history_rows_change_all_the_same_and_old_changes_go() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let kept = begun(connection, "hubspot", "tickets")?;
        let silent = Source { history: false, ..kept };
        write(connection, &silent, page(ticket("one", 100)))?;
        assert_eq!(write(connection, &silent, page(ticket("two", 200)))?, 1);
        write(connection, &silent, Page { tombstones: vec![burial(250, None)], ..Page::default() })?;
        assert_eq!(objects(connection, CHANGES)?, Vec::<Value>::new());
        let first_seen =
            "SELECT extract(epoch FROM first_seen_at)::bigint AS first FROM mirror.hubspot_tickets";
        assert_eq!(objects(connection, first_seen)?, [json!({"first": 100})]);

        write(connection, &kept, page(ticket("three", 300)))?;
        write(connection, &kept, page(ticket("four", 400)))?;
        let day = Duration::from_hours(24);
        assert_eq!(changes::prune(connection, day)?, 0);
        let age = "UPDATE mirror.changes SET observed_at = now() - interval '25 hours' WHERE op = 'restore'";
        diesel::sql_query(age).execute(connection)?;
        assert_eq!((changes::prune(connection, day)?, changes::prune(connection, day)?), (1, 0));
        assert_eq!(objects(connection, "SELECT op FROM mirror.changes")?, [json!({"op": "update"})]);
        Ok(())
    });
    done.await.unwrap();
}

/// Of each kind of row that is kept for a while, one from before and one from after the bound; runs by the daemon's clock.
const OLD_AND_NEW: &str = "
    INSERT INTO mirror.changes (connection_id, stream, record_id, op, observed_at, before)
        SELECT 1, 'tickets', age, 'update', now() - age::interval, '{}' FROM unnest(ARRAY['32 days', '20 days']) age;
    INSERT INTO mirror.drift (connection_id, stream, kind, field, count, last_seen_at)
        SELECT 1, 'tickets', 'misfit', age, 1, now() - age::interval FROM unnest(ARRAY['32 days', '20 days']) age;
    INSERT INTO fieldmirror.sync_runs (connection_id, stream, mode, started_at, ended_at, outcome)
        SELECT id, 'jobs', 'sweep', 'OUR_NOW'::timestamptz - age::interval, 'OUR_NOW'::timestamptz - age::interval, 'closed'
        FROM unnest(ARRAY['32 days', '20 days']) age, fieldmirror.connections";
const KEPT: &str = "SELECT (SELECT string_agg(record_id, ', ' ORDER BY id) FROM mirror.changes) AS changes,
    (SELECT string_agg(field, ', ' ORDER BY last_seen_at) FROM mirror.drift) AS drift,
    (SELECT count(*) FROM fieldmirror.sync_runs) AS runs";

/// In time of its own, where an hour takes no longer than what is done in it.
#[tokio::test(start_paused = true)]
async fn the_scheduler_deletes_what_is_older_than_the_settings_say() {
    let ground = Ground::new();
    let settings = vec![("sync.history_kept", "30days".to_owned())];
    let (provider, skew, search_lag) = ("oncehub", chrono::TimeDelta::zero(), Duration::ZERO);
    let rig = Rig::new(
        &ground,
        Setup { provider, seed: 1, records: 1, skew, search_lag, feed_page: 250, settings },
    )
    .await;
    let old_and_new = OLD_AND_NEW.replace("OUR_NOW", &rig.engine.clock.now().to_rfc3339());
    rig.db(move |connection| Ok(connection.batch_execute(&old_and_new)?)).await;
    let (mut kept_for_ever, engine) = (rig.engine.clone(), rig.engine.clone());
    let mut settings = (*kept_for_ever.settings).clone();
    settings.sync.history_kept = None;
    kept_for_ever.settings = settings.into();
    let engines = Current::new(kept_for_ever);
    let (stop, (_notices, heard)) = (CancellationToken::new(), watch::channel(0));
    let scheduler = Scheduler {
        db: engine.db.clone(),
        engine: Arc::clone(&engines),
        clock: Arc::clone(&engine.clock),
        pulse: Arc::default(),
    };
    let kept_is = async |changes: &str, runs: i64| {
        let expected = json!({"changes": changes, "drift": changes, "runs": runs});
        let began = tokio::time::Instant::now();
        loop {
            let kept = rig.db(|connection| objects(connection, KEPT)).await.remove(0);
            if kept == expected {
                return;
            }
            assert!(began.elapsed() < Duration::from_mins(10), "{kept}, and not {expected}");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    let looking = async {
        kept_is("32 days, 20 days", 1).await;
        engines.set(engine.clone());
        kept_is("20 days", 1).await;
        stop.cancel();
    };
    tokio::join!(scheduler.run(heard, stop.clone()), looking);
}

/// A field that could not be asked for is not one that is empty.
#[tokio::test]
async fn what_was_not_asked_for_stays_as_it_is() {
    const ROW: &str = "SELECT title, total, client_name, outstanding, raw FROM mirror.jobber_jobs";
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let source = begun(connection, "jobber", "jobs")?;
        let raw = |title: &str, second: i64| {
            json!({"id": "7", "title": title, "jobStatus": "active", "updatedAt": at(second).to_rfc3339()})
        };
        let record = |raw: Value, second: i64, without: &[&str]| {
            let without = without.iter().map(ToString::to_string).collect();
            Record { id: "7".into(), raw, sent_at: at(second), deleted: None, without }
        };
        let mut whole = raw("one", 100);
        whole["total"] = json!(12.5);
        whole["client"] = json!({"id": "C", "name": "Ana"});
        write(connection, &source, page(record(whole, 100, &[])))?;

        let partly = |title, second| record(raw(title, second), second, &["total", "client", "property"]);
        assert_eq!(write(connection, &source, page(partly("two", 200)))?, 1);
        let mut expected = raw("two", 200);
        expected["total"] = json!(12.5);
        expected["client"] = json!({"id": "C", "name": "Ana"});
        let row =
            json!({"title": "two", "total": 12.5, "client_name": "Ana", "outstanding": null, "raw": expected});
        assert_eq!(objects(connection, ROW)?, [row]);
        assert_eq!(write(connection, &source, page(partly("two", 200)))?, 0, "nothing has changed");
        let lost = "SELECT before -> 'total' AS total, before -> 'raw' AS raw FROM mirror.changes";
        let before = json!({"title": "one", "updatedAt": at(100).to_rfc3339()});
        assert_eq!(objects(connection, lost)?, [json!({"total": null, "raw": before})]);

        // In one transaction with a page that showed it whole.
        let mut fresh = raw("three", 300);
        (fresh["total"], fresh["client"]) = (json!(99), Value::Null);
        let pages = [record(fresh, 300, &[]), partly("four", 400)].map(|record| {
            (Ready::of(source.spec, page(record)), Position::start())
        });
        let owned = commit::pages(connection, &source, pages.into(), &mut Counts::default())?;
        assert_eq!(owned, StreamWrite::Done);
        let mut row = objects(connection, ROW)?.remove(0);
        row["raw"].take();
        assert_eq!(
            row,
            json!({"title": "four", "total": 99, "client_name": null, "outstanding": null, "raw": null})
        );
        // Of a record that is new, nothing is known.
        let new = Record { id: "8".into(), ..partly("new", 500) };
        assert_eq!(write(connection, &source, page(new))?, 1);
        Ok(())
    });
    done.await.unwrap();
}

fn bookings(range: std::ops::Range<usize>, second: i64, with: &Value) -> Page {
    let booking = |number: usize| {
        let mut raw = json!({"id": format!("BKNG-{number}"), "status": "scheduled", "subject": number,
                             "last_updated_time": at(second).to_rfc3339(), "attendees": []});
        raw.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        Record { id: format!("BKNG-{number}"), raw, sent_at: at(second), deleted: None, without: Vec::new() }
    };
    Page { records: range.map(booking).collect(), ..Page::default() }
}

/// As if every walk had come to its end once.
fn closed(connection: &mut PgConnection) -> Result<(), DbError> {
    diesel::sql_query("UPDATE stream_state SET backfill_done = true").execute(connection)?;
    diesel::sql_query("UPDATE walks SET closed_at = now()").execute(connection)?;
    Ok(())
}

const DRIFT: &str =
    "SELECT kind, field, value, column_name, count, example FROM mirror.drift ORDER BY kind, field, value";

#[tokio::test]
async fn what_was_not_foreseen_is_listed_once_and_counted() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let source = begun(connection, "oncehub", "bookings")?;
        let plain = json!({});
        write(connection, &source, bookings(0..250, 10, &plain))?;
        write(connection, &source, bookings(250..251, 10, &json!({"rare": true})))?;
        assert_eq!(objects(connection, DRIFT)?, Vec::<Value>::new(), "optional fields are learned");
        closed(connection)?;

        let odd = json!({"mood": {"of": "Ana Ruiz"}, "status": "haunted", "starting_time": "some day",
                         "attendees": "ana@example.com", "rare": 1, "cancel_url": "https://secret.example"});
        write(connection, &source, bookings(0..2, 20, &odd))?;
        let row = |kind: &str, field: &str, value: &str, column: Value, count: i64, example: &str| {
            json!({"kind": kind, "field": field, "value": value, "column_name": column, "count": count, "example": example})
        };
        let mut expected = [
            row("misfit", "/attendees", "", json!("attendees"), 2, "text"),
            row("misfit", "/starting_time", "", json!("starting_time"), 2, "some day"),
            row("new_field", "/mood", "", Value::Null, 2, "object (of)"),
            row("unknown_value", "/status", "haunted", json!("status"), 2, "haunted"),
        ];
        assert_eq!(objects(connection, DRIFT)?, expected);
        // Read again as they are, they say nothing new.
        let where_it_is = "SELECT ctid, xmin FROM mirror.drift UNION ALL SELECT ctid, xmin FROM stream_fields";
        let places = objects(connection, where_it_is)?;
        assert_eq!(write(connection, &source, bookings(0..2, 20, &odd))?, 0);
        assert_eq!(objects(connection, where_it_is)?, places);
        write(connection, &source, bookings(2..3, 30, &odd))?;
        for counted in [0, 1, 3] {
            expected[counted]["count"] = json!(3);
        }
        assert_eq!(objects(connection, DRIFT)?, expected, "a new field is told once");

        // More kinds of words than anybody reads.
        for number in 0..60 {
            let status = json!({"status": format!("status {number}")});
            write(connection, &source, bookings(3..4, 40 + number, &status))?;
        }
        let listed = "SELECT count(*) FROM mirror.drift WHERE kind = 'unknown_value'";
        assert_eq!(objects(connection, listed)?, [json!({"count": drift::LISTED_MAX})]);

        let text = "SELECT jsonb_agg(d)::text AS all FROM mirror.drift d";
        let listed = objects(connection, text)?[0]["all"].to_string();
        for personal in ["Ana", "example.com", "secret"] {
            assert!(!listed.contains(personal), "{listed}");
        }
        let aged = "UPDATE mirror.drift SET last_seen_at = now() - interval '2 days' WHERE kind = 'misfit'";
        diesel::sql_query(aged).execute(connection)?;
        assert_eq!(drift::prune(connection, Duration::from_hours(24))?, 2);
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test]
async fn a_field_that_vanished_is_listed_until_it_is_back() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let source = begun(connection, "oncehub", "bookings")?;
        let (whole, less) = (json!({"channel": "web"}), json!({}));
        write(connection, &source, bookings(0..220, 10, &whole))?;
        closed(connection)?;
        write(connection, &source, bookings(0..210, 20, &less))?;
        let vanished = "SELECT kind, field, count, record_id FROM mirror.drift";
        let listed =
            json!({"kind": "vanished_field", "field": "/channel", "count": 210, "record_id": "BKNG-99"});
        assert_eq!(objects(connection, vanished)?, [listed]);
        write(connection, &source, bookings(0..1, 30, &whole))?;
        assert_eq!(objects(connection, vanished)?, Vec::<Value>::new());
        Ok(())
    });
    done.await.unwrap();
}

/// The word for a kind of column in `fieldmirror.fill_column`, and the type of the column.
fn kind(column: &Column) -> (&'static str, &'static str) {
    match column.kind {
        ColumnType::Text => ("text", "text"),
        ColumnType::Timestamptz => ("timestamptz", "timestamptz"),
        ColumnType::Numeric => ("numeric", "numeric"),
        ColumnType::Bigint => ("bigint", "bigint"),
        ColumnType::Boolean => ("boolean", "boolean"),
        ColumnType::TextArray => ("text[]", "text[]"),
        ColumnType::Cents => ("cents", "numeric"),
        ColumnType::Reference => ("reference", "text"),
    }
}

/// Values that are nearly something, for every column.
fn odd_values() -> Vec<Value> {
    let number = |text: &str| serde_json::from_str(text).expect("a number");
    let texts = [
        "",
        " ",
        "7",
        " 7 ",
        "-7",
        "1.50",
        "1e3",
        "true",
        "TRUE",
        "soon",
        "2026-05-04",
        "2026-02-30",
        "2026-05-04T08:00:00",
        "2026-05-04T08:00:00.25",
        "2026-05-04 08:00:00 UTC",
        "2026-05-04T08:00:00+02:00",
        "1777881600000",
        "12 apples",
        "\"q\"\\{},",
        "ü",
    ];
    let others = [
        json!(null),
        json!(true),
        json!([]),
        json!(["a", 1, "", "x,\"y\""]),
        json!([null]),
        json!([["a"]]),
        json!({"id": 7}),
        json!({"id": {}}),
        json!({}),
        json!([{"id": "a"}, {"id": ""}, {}, {"id": 2}]),
        json!([{"id": {}}]),
        number("900719925474099312"),
        number("12.50"),
        number("-5"),
        number("1777881600000"),
    ];
    texts.iter().map(|text| json!(text)).chain(others).collect()
}

/// A later release adds a column: whichever column it is, its migration fills it with what the engine would have written
/// had the column been there, and nobody is asked for anything.
#[tokio::test]
async fn a_new_column_is_filled_from_what_is_mirrored() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        for provider in REGISTRY {
            let all = records(*provider, |_| {});
            for spec in provider.spec().streams {
                let source = begun(connection, provider.spec().name, spec.name)?;
                let mut page = Page::default();
                for (number, (_, record)) in all.iter().filter(|(of, _)| of.name == spec.name).enumerate() {
                    page.records.push(Record { id: format!("r{number}"), ..record.clone() });
                }
                page.records.extend(odd_records(spec));
                assert!(page.records.len() > odd_values().len(), "{}: no record of its own", spec.table);
                write(connection, &source, page)?;
                fill(connection, spec)?;
            }
        }
        Ok(())
    });
    done.await.unwrap();
}

/// Records of which every column's place has the same odd value.
fn odd_records(spec: &StreamSpec) -> Vec<Record> {
    let record = |(number, value): (usize, Value)| {
        let mut raw = json!({});
        for column in spec.columns {
            put(&mut raw, column.at.split("/*").next().unwrap(), &value);
        }
        Record { id: format!("odd{number}"), raw, sent_at: at(1), deleted: None, without: Vec::new() }
    };
    odd_values().into_iter().enumerate().map(record).collect()
}

/// Puts a value where a pointer leads, making the objects on the way.
fn put(raw: &mut Value, pointer: &str, value: &Value) {
    let mut place = raw;
    for key in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = place.as_object_mut().unwrap().entry(key).or_insert(Value::Null);
    }
    *place = value.clone();
}

/// As a migration does, for every column of a table under another name.
fn fill(connection: &mut PgConnection, spec: &StreamSpec) -> Result<(), DbError> {
    let table = spec.table;
    for column in spec.columns {
        let (name, at, (kind, postgres)) = (column.name, column.at, kind(column));
        connection.batch_execute(&format!(
            "ALTER TABLE mirror.{table} ADD COLUMN later_{name} {postgres};
             CALL fieldmirror.fill_column('mirror.{table}', 'later_{name}', '{kind}', '{at}')"
        ))?;
        let differing = format!(
            "SELECT id, raw, {name} AS written, later_{name} AS filled FROM mirror.{table}
             WHERE {name} IS DISTINCT FROM later_{name} LIMIT 3"
        );
        assert_eq!(objects(connection, &differing)?, Vec::<Value>::new(), "{table}.{name}");
        let filled = format!("SELECT count(later_{name}) > 0 AS some FROM mirror.{table}");
        assert_eq!(objects(connection, &filled)?, [json!({"some": true})], "{table}.{name}");
    }
    Ok(())
}

/// A word that the unified views know is no drift, and one that they do not know is.
#[tokio::test]
async fn the_words_of_the_unified_views_are_those_of_the_specs() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        for (of, stream, column, view) in [
            ("jobber", "jobs", "job_status", "jobs"),
            ("housecallpro", "jobs", "work_status", "jobs"),
            ("servicetitan", "jobs", "status", "jobs"),
            ("servicetitan", "bookings", "status", "bookings"),
            ("oncehub", "bookings", "status", "bookings"),
        ] {
            let source = begun(connection, of, stream)?;
            let column = source.spec.columns.iter().find(|one| one.name == column).expect("a column");
            assert!(!column.words.is_empty());
            let words = column.words.iter().chain(&["unheard of"]);
            let record = |word: &&str| {
                let mut raw = json!({});
                put(&mut raw, column.at, &json!(word));
                Record { id: (*word).to_owned(), raw, sent_at: at(1), deleted: None, without: Vec::new() }
            };
            write(connection, &source, Page { records: words.map(record).collect(), ..Page::default() })?;
            let other = format!(
                "SELECT id, d.value AS listed FROM mirror.{view} v
                 LEFT JOIN mirror.drift d ON (d.connection_id, d.value) = (v.connection_id, v.id)
                 WHERE v.connection_id = {} AND (v.status = 'other' OR d.value IS NOT NULL)",
                source.key.connection
            );
            assert_eq!(
                objects(connection, &other)?,
                [json!({"id": "unheard of", "listed": "unheard of"})],
                "{of}"
            );
        }
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_filled_is_refused_by_name() {
    let database = TestDb::new();
    for (kind, pointer, expected) in [
        ("money", "/a", "no kind of column: money"),
        ("text", "a", "JSON pointer"),
        ("text", "/~0", "JSON pointer"),
    ] {
        let call = format!(
            "CALL fieldmirror.fill_column('mirror.hubspot_tickets', 'subject', '{kind}', '{pointer}')"
        );
        let refused = database.db.run(move |connection| Ok(connection.batch_execute(&call)?)).await;
        let error = fieldmirror::domain::failure::chain(&refused.unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}
