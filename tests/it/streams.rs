//! Streams, their walks and their owners, against a real server.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::RunQueryDsl;
use diesel::connection::SimpleConnection as _;
use diesel::sql_types::{BigInt, Nullable, Text};
use fieldmirror::db::rate_budget::{self, Lease};
use fieldmirror::db::requests::{self, NewRequest, RequestKind, RequestOutcome};
use fieldmirror::db::streams::{
    self, Closing, Demand, Needs, Setback, Strange, StreamKey, StreamWrite, WalkRow,
};
use fieldmirror::db::sync_runs::{self, Counts};
use fieldmirror::db::{DbError, PgConnection, queue, rows, turns};
use fieldmirror::domain::ids::ConnectionId;
use fieldmirror::domain::record::Record;
use fieldmirror::domain::spec::{BucketSpec, Mode};
use fieldmirror::domain::step::{Facts, Page, Position};
use fieldmirror::domain::time::{Clock as _, SystemClock};
use fieldmirror::providers;
use fieldmirror::sync;
use fieldmirror::sync::commit::{self, Ready, Source};
use serde_json::{Value, json};

use crate::support::postgres::TestDb;

/// After everything that happens.
const FAR: DateTime<Utc> = DateTime::<Utc>::MAX_UTC;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(second, 0).unwrap()
}

/// A connection of which a turn has begun, and the number of that turn.
fn begun(connection: &mut PgConnection) -> Result<(ConnectionId, i64), DbError> {
    let insert = "INSERT INTO connections (name, provider, grant_kind, state)
                  VALUES ('acme', 'hubspot', 'bearer_token', 'connected') RETURNING id AS value";
    let id = rows::value::<BigInt, i64, _>(connection, diesel::sql_query(insert))?;
    let id = ConnectionId(id);
    let spec = providers::provider("hubspot").expect("it is registered").spec();
    Ok((id, streams::take(connection, id, spec.streams)?))
}

fn since(connection: &mut PgConnection, id: ConnectionId, second: i64) -> Result<WalkRow, DbError> {
    let demand = Demand { stream: "tickets", since: Some(at(second)), ..Demand::default() };
    streams::demand(connection, id, &demand, at(1000))?;
    let walks = streams::walks(connection, id)?;
    Ok(walks.into_iter().find(|walk| walk.stream == "tickets" && walk.mode == "incremental").unwrap())
}

#[tokio::test]
async fn reading_again_since_a_moment_reaches_a_walk_that_is_open() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        // Nothing is covered yet: a bound that is later than the first read of everything would leave a hole.
        assert_eq!(since(connection, id, 900)?.covered_to, None);
        streams::begin_watermark(connection, key, at(800))?;
        streams::open_walk(connection, key, Mode::Incremental, at(850), Some(at(500)), None)?;
        let later = since(connection, id, 900)?;
        assert_eq!((later.covered_to, later.started_at), (Some(at(800)), Some(at(850))));
        let earlier = since(connection, id, 100)?;
        assert_eq!((earlier.covered_to, earlier.started_at, earlier.from_time), (Some(at(100)), None, None));
        Ok(())
    });
    done.await.unwrap();
}

/// A walk covers nothing that is younger than what it knows of the account, so that is read with it.
#[tokio::test]
async fn what_is_learned_bears_its_moment_and_may_ask_for_everything_again() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let provider = providers::provider("hubspot").expect("it is registered").spec();
        let walk = |connection: &mut PgConnection, stream: &str, mode: Mode| {
            let walks = streams::walks(connection, id)?;
            let of = |walk: &WalkRow| walk.stream == stream && walk.mode == mode.as_str();
            Ok::<_, DbError>(walks.into_iter().find(of).expect("it is there"))
        };
        let properties = StreamKey { connection: id, stream: "properties", epoch };
        streams::open_walk(connection, properties, Mode::Snapshot, at(100), None, None)?;
        let run = sync_runs::begin(connection, id, "properties", Mode::Snapshot, at(100))?;
        let spec = provider.stream("properties").expect("it is described");
        let mode = Mode::Snapshot;
        let source =
            Source { key: properties, spec, mode, run, opened_at: FAR, sweeping: false, history: false };
        let facts = Facts::from([("ticket_properties".to_owned(), json!([]))]);
        for renews in [vec![], vec!["tickets"]] {
            let page = Ready::of(spec, Page { facts: facts.clone(), renews, ..Page::default() });
            let page = vec![(page, Position::start())];
            let owned = commit::pages(connection, &source, page, &mut Counts::default())?;
            assert_eq!(owned, StreamWrite::Done);
        }
        let aside = Ready::of(spec, Page { renews: vec!["tickets"], ..Page::default() });
        assert_eq!(commit::aside(connection, &source, aside, &mut Counts::default())?, StreamWrite::Done);
        assert_eq!(walk(connection, "properties", mode)?.facts_as_of, Some(at(100)));
        streams::open_walk(connection, properties, mode, at(200), None, None)?;
        assert_eq!(walk(connection, "properties", mode)?.facts_as_of, Some(at(100)), "it has taught nothing");

        let tickets = StreamKey { connection: id, stream: "tickets", epoch };
        streams::open_walk(connection, tickets, Mode::Incremental, at(300), None, Some(at(100)))?;
        assert_eq!(walk(connection, "tickets", Mode::Incremental)?.facts_as_of, Some(at(100)));

        let asked = requests::open(connection, id, RequestKind::Sync)?;
        let asked: Vec<_> = asked.into_iter().map(|request| request.args).collect();
        let everything = json!({"streams": ["tickets"], "full": true, "own": true});
        assert_eq!(asked, [everything.clone(), everything], "what is read aside may ask for it as well");
        diesel::sql_query("UPDATE walks SET due_at = now() + interval '1 day'").execute(connection)?;
        let asked = sync::requests::apply(connection, id, provider, at(400))?;
        assert!(!asked, "no person did: the provider's pauses are left alone");
        assert_eq!(walk(connection, "tickets", Mode::Incremental)?.due_at, Some(at(400)));
        assert_eq!(
            walk(connection, "properties", mode)?.due_at,
            Some(at(400)),
            "tickets need what it learns"
        );
        assert_ne!(walk(connection, "owners", mode)?.due_at, Some(at(400)));
        let new = NewRequest { connection: id, kind: RequestKind::Sync, args: json!({}), sealed: None };
        requests::create(connection, &new)?;
        assert!(sync::requests::apply(connection, id, provider, at(500))?, "a person did");
        Ok(())
    });
    done.await.unwrap();
}

/// A stream that stands still fails a request; what that has allowed holds for no walk that comes later.
#[tokio::test]
async fn what_a_request_allows_is_over_with_it() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, _) = begun(connection)?;
        let spec = providers::provider("hubspot").expect("it is registered").spec();
        let allowed = |connection: &mut PgConnection| {
            let query = "SELECT coalesce(string_agg(DISTINCT stream, ', ' ORDER BY stream), '') AS value
                         FROM walks WHERE mass_delete_allowed";
            rows::value::<Text, String, _>(connection, diesel::sql_query(query))
        };
        for streams in [json!(["owners", "properties"]), json!(["properties", "pipeline_stages"])] {
            let args = json!({"streams": streams, "allow_mass_delete": true});
            let new = NewRequest { connection: id, kind: RequestKind::Sync, args, sealed: None };
            requests::create(connection, &new)?;
        }
        sync::requests::apply(connection, id, spec, at(400))?;
        assert_eq!(allowed(connection)?, "owners, pipeline_stages, properties");
        let ends = "UPDATE walks SET closed_started_at = '2001-01-01' WHERE stream = 'properties';
            UPDATE walks SET due_at = '2001-01-01' WHERE stream = 'owners';
            UPDATE stream_state SET state = 'stalled', stalled_reason = 'no list' WHERE stream = 'owners'";
        connection.batch_execute(ends)?;
        sync::requests::settle(connection, id, spec)?;
        assert_eq!(requests::open(connection, id, RequestKind::Sync)?.len(), 1);
        assert_eq!(allowed(connection)?, "pipeline_stages, properties", "another request allows these");
        sync::requests::give_up(connection, id, "it is over")?;
        assert_eq!(allowed(connection)?, "");
        Ok(())
    });
    done.await.unwrap();
}

/// Where there is more to read than there was, nothing is claimed before everything has been read again, whatever becomes of
/// the connection meanwhile.
#[tokio::test]
async fn what_the_mirror_asks_of_itself_holds_back_what_is_claimed() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let provider = providers::provider("hubspot").expect("it is registered").spec();
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let close = |connection: &mut PgConnection, mode, began| {
            streams::open_walk(connection, key, mode, at(began), None, None)?;
            streams::close_walk(connection, key, &closing(mode, began))
        };
        let known = |connection: &mut PgConnection| {
            let row = "SELECT concat_ws(' ', backfill_done, extract(epoch FROM complete_to)::int,
                extract(epoch FROM swept_to)::int) AS value FROM stream_state WHERE stream = 'tickets'";
            rows::value::<Text, String, _>(connection, diesel::sql_query(row))
        };
        let ask = |connection: &mut PgConnection, args: Value| {
            let new = NewRequest { connection: id, kind: RequestKind::Sync, args, sealed: None };
            requests::create(connection, &new)
        };
        let again = || json!({"streams": ["tickets"], "full": true, "own": true});
        let owned = StreamWrite::Done;
        streams::begin_watermark(connection, key, at(100))?;

        // It came about while everything was read for the first time.
        ask(connection, again())?;
        assert_eq!(close(connection, Mode::Backfill, 100)?, owned);
        assert_eq!(known(connection)?, "f");
        sync::requests::apply(connection, id, provider, at(200))?;
        assert_eq!(close(connection, Mode::Incremental, 210)?, owned);
        assert_eq!(known(connection)?, "f");
        assert_eq!(close(connection, Mode::Backfill, 220)?, owned);
        assert_eq!(known(connection)?, "t 210 220");
        assert_eq!(close(connection, Mode::Archived, 230)?, owned);
        sync::requests::settle(connection, id, provider)?;
        assert_eq!(requests::open(connection, id, RequestKind::Sync)?, []);

        // What others ask for, and what is asked of others, holds nothing back.
        for args in [json!({"full": true}), json!({"streams": ["owners"], "full": true, "own": true})] {
            ask(connection, args)?;
        }
        assert_eq!(close(connection, Mode::Incremental, 300)?, owned);
        assert_eq!(known(connection)?, "t 300 220");

        let request = ask(connection, again())?;
        assert_eq!(close(connection, Mode::Incremental, 400)?, owned);
        assert_eq!(close(connection, Mode::Sweep, 410)?, owned);
        assert_eq!(known(connection)?, "t 300 220");
        // And the stream says why, from the moment at which it is asked until all has been read.
        let stands = |connection: &mut PgConnection| {
            let row = "SELECT concat_ws(': ', state, failure_kind, stalled_reason) AS value FROM stream_state
                WHERE stream = 'tickets'";
            rows::value::<Text, String, _>(connection, diesel::sql_query(row))
        };
        let says = "stalled: behind: changes are read, and none are relied upon before everything has been read again";
        sync::requests::apply(connection, id, provider, at(420))?;
        assert!(stands(connection)?.contains("behind: changes are read"), "{}", stands(connection)?);
        assert_eq!(close(connection, Mode::Incremental, 430)?, owned);
        assert_eq!(streams::settle(connection, key, None)?, owned);
        assert!(stands(connection)?.starts_with(says), "{}", stands(connection)?);
        assert_eq!(known(connection)?, "t 300 220");
        // Neither a connection that cannot be read nor a stream that stands still makes an end of it.
        sync::requests::give_up(connection, id, "the connection is failed")?;
        let held = "UPDATE stream_state SET state = 'stalled', stalled_reason = 'x', failure_kind = NULL
            WHERE stream = 'tickets'";
        diesel::sql_query(held).execute(connection)?;
        let later = "UPDATE walks SET due_at = now() WHERE stream = 'tickets' AND mode = 'backfill'";
        diesel::sql_query(later).execute(connection)?;
        sync::requests::settle(connection, id, provider)?;
        let open: Vec<_> =
            requests::open(connection, id, RequestKind::Sync)?.into_iter().map(|one| one.id).collect();
        assert!(open.contains(&request) && open.len() == 2, "{open:?}");
        // It makes no turns of its own.
        assert_eq!(requests::waiting(connection, SystemClock.now())?, []);
        assert_eq!(close(connection, Mode::Backfill, 440)?, owned);
        assert_eq!(known(connection)?, "t 430 440");
        assert_eq!(close(connection, Mode::Archived, 440)?, owned);
        assert_eq!(streams::settle(connection, key, None)?, owned);
        assert_eq!(stands(connection)?, "idle");

        // What has been read is claimed, though some absence is not proved; what has gone is not.
        let request = ask(connection, again())?;
        sync::requests::apply(connection, id, provider, at(520))?;
        streams::open_walk(connection, key, Mode::Backfill, at(530), None, None)?;
        streams::read_whole(connection, key)?;
        streams::end_walk(connection, key, Mode::Backfill)?;
        for mode in [Mode::Archived, Mode::Incremental] {
            assert_eq!(close(connection, mode, 540)?, owned);
        }
        assert_eq!(known(connection)?, "t 540 440");
        sync::requests::settle(connection, id, provider)?;
        let open = requests::open(connection, id, RequestKind::Sync)?;
        assert!(open.iter().all(|one| one.id != request), "{open:?}");
        Ok(())
    });
    done.await.unwrap();
}

/// The brake may hold the first read of everything, too, where it begins again.
#[tokio::test]
async fn a_first_read_may_be_allowed_to_delete_much() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        streams::open_walk(connection, key, Mode::Backfill, at(100), None, None)?;
        let allowed = |connection: &mut PgConnection, mass_delete_allowed| {
            let demand = Demand { stream: "tickets", full: true, mass_delete_allowed, ..Demand::default() };
            streams::demand(connection, id, &demand, at(200))?;
            let walks = streams::walks(connection, id)?;
            let first = |walk: &&WalkRow| walk.stream == "tickets" && walk.mode == "backfill";
            Ok::<_, DbError>(walks.iter().find(first).is_some_and(|walk| walk.mass_delete_allowed))
        };
        assert!(!allowed(connection, false)?);
        assert!(allowed(connection, true)?);
        streams::end_walk(connection, key, Mode::Backfill)?;
        assert!(!allowed(connection, false)?, "it was allowed that walk");
        Ok(())
    });
    done.await.unwrap();
}

/// A stream that is read, and covers no more than what is known of the account, says so until that is read again.
#[tokio::test]
async fn a_stream_that_waits_for_what_another_learns_says_so() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let needs = Needs { age_max: Duration::from_mins(2), said: "last read at ".to_owned() };
        let read = |connection: &mut PgConnection, mode, began, known| {
            streams::open_walk(connection, key, mode, at(began), None, Some(at(known)))?;
            let _owned = streams::close_walk(connection, key, &closing(mode, known))?;
            streams::settle(connection, key, Some(&needs))
        };
        let stands = |connection: &mut PgConnection| {
            let row = "SELECT concat_ws(', ', state, failure_kind, stalled_reason, last_error) AS value
                       FROM stream_state WHERE stream = 'tickets'";
            rows::value::<Text, String, _>(connection, diesel::sql_query(row))
        };
        let owned = StreamWrite::Done;
        streams::begin_watermark(connection, key, at(100))?;
        assert_eq!(read(connection, Mode::Incremental, 900, 100)?, owned);
        assert_eq!(stands(connection)?, "backfilling", "nothing is claimed anyway");
        assert_eq!(read(connection, Mode::Backfill, 1_000, 900)?, owned);
        let behind = "stalled, behind, last read at 1970-01-01 00:01:40 UTC";
        assert_eq!(stands(connection)?, behind);
        assert_eq!(read(connection, Mode::Incremental, 1_120, 1_000)?, owned);
        assert_eq!(stands(connection)?, "idle");
        assert_eq!(read(connection, Mode::Incremental, 1_121, 1_000)?, owned);
        assert_eq!(stands(connection)?, "stalled, behind, last read at 1970-01-01 00:16:40 UTC");
        // What is worse is told in its place, and what is over is not told on.
        let setback = |kind, stalled_reason: Option<&str>| Setback {
            state: "stalled",
            kind,
            stalled_reason: stalled_reason.map(str::to_owned),
            last_error: Some("an error".to_owned()),
            not_before: None,
            whole_stream: false,
            strange: None,
        };
        let held = setback("held", Some("too many"));
        assert_eq!(streams::set_back(connection, key, Some(Mode::Sweep), &held)?, owned);
        assert_eq!(read(connection, Mode::Incremental, 1_200, 1_000)?, owned);
        assert_eq!(stands(connection)?, "stalled, held, too many, an error");
        assert_eq!(close_sweep(connection, key)?, owned);
        assert_eq!(read(connection, Mode::Incremental, 1_300, 1_000)?, owned);
        let passing = setback("transient", None);
        assert_eq!(streams::set_back(connection, key, Some(Mode::Sweep), &passing)?, owned);
        assert_eq!(stands(connection)?, "stalled, behind, last read at 1970-01-01 00:16:40 UTC, an error");
        assert_eq!(read(connection, Mode::Incremental, 1_400, 1_390)?, owned);
        assert_eq!(stands(connection)?, "backing_off, an error");
        Ok(())
    });
    done.await.unwrap();
}

/// What a walk of tickets establishes that covers so much.
fn closing(mode: Mode, covered_to: i64) -> Closing {
    Closing {
        mode,
        covered_to: at(covered_to),
        swept_to: matches!(mode, Mode::Backfill | Mode::Sweep).then(|| at(covered_to)),
        reads_all: mode == Mode::Backfill,
        sweeps: false,
        due_at: None,
        sweep_due_at: at(9_000),
        closed_at: at(covered_to),
    }
}

fn close_sweep(connection: &mut PgConnection, key: StreamKey) -> Result<StreamWrite, DbError> {
    streams::close_walk(connection, key, &closing(Mode::Sweep, 1_000))
}

/// Who has a doubt about what was read so far wants all of it to be read after that.
#[tokio::test]
async fn a_full_read_that_is_asked_for_during_the_first_one_begins_after_it() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let spec = providers::provider("hubspot").expect("it is registered").spec();
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let backfill = |connection: &mut PgConnection| {
            let walks = streams::walks(connection, id)?;
            let of = walks.into_iter().find(|walk| walk.stream == "tickets" && walk.mode == "backfill");
            Ok::<_, DbError>(of.unwrap())
        };
        let close = |connection: &mut PgConnection, mode, closed_at| {
            let due_at = (mode != Mode::Backfill).then_some(at(9_000));
            let (covered_to, sweep_due_at, closed_at) = (at(90), at(9_000), at(closed_at));
            let reads_all = mode == Mode::Backfill;
            let closing = Closing {
                mode,
                covered_to,
                swept_to: None,
                reads_all,
                sweeps: false,
                due_at,
                sweep_due_at,
                closed_at,
            };
            streams::close_walk(connection, key, &closing)
        };
        let ask = |connection: &mut PgConnection, args| {
            let new = NewRequest { connection: id, kind: RequestKind::Sync, args, sealed: None };
            requests::create(connection, &new)
        };
        let owned = StreamWrite::Done;
        streams::open_walk(connection, key, Mode::Backfill, at(100), None, None)?;
        ask(connection, json!({"streams": ["owners"], "full": true, "allow_mass_delete": true}))?;
        let asked = ask(connection, json!({"streams": ["tickets"], "full": true}))?;
        let may = json!({"streams": ["tickets"], "full": true, "allow_mass_delete": true});
        let permitted = ask(connection, may)?;
        sync::requests::apply(connection, id, spec, at(150))?;
        let walk = backfill(connection)?;
        assert_eq!((walk.started_at, walk.sweeping), (Some(at(100)), false), "the first one goes on");
        assert_eq!(close(connection, Mode::Backfill, 200)?, owned);
        for mode in [Mode::Incremental, Mode::Archived] {
            streams::open_walk(connection, key, mode, at(200), None, None)?;
            assert_eq!(close(connection, mode, 210)?, owned);
        }
        sync::requests::settle(connection, id, spec)?;
        assert_eq!(requests::get(connection, asked)?.outcome, None, "it began before it was asked for");
        sync::requests::apply(connection, id, spec, at(220))?;
        let walk = backfill(connection)?;
        let stands = (walk.due_at, walk.sweeping, walk.mass_delete_allowed);
        assert_eq!(
            stands,
            (Some(at(150)), true, true),
            "one that is permitted is not swallowed by one that is not"
        );
        ask(connection, json!({"streams": ["tickets"], "full": true}))?;
        sync::requests::apply(connection, id, spec, at(230))?;
        assert!(backfill(connection)?.mass_delete_allowed, "nor is its permission taken back");
        streams::open_walk(connection, key, Mode::Backfill, at(300), None, None)?;
        assert_eq!(close(connection, Mode::Backfill, 400)?, owned);
        sync::requests::apply(connection, id, spec, at(420))?;
        let walk = backfill(connection)?;
        assert_eq!((walk.due_at, walk.sweeping), (None, false), "and that was all");
        sync::requests::settle(connection, id, spec)?;
        for done in [asked, permitted] {
            assert_eq!(requests::get(connection, done)?.outcome, Some(RequestOutcome::Done));
        }
        assert!(!backfill(connection)?.mass_delete_allowed, "it was good for that read");
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test]
async fn a_request_whose_walks_wait_does_not_make_turn_after_turn() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let new = NewRequest { connection: id, kind: RequestKind::Sync, args: json!({}), sealed: None };
        let request = requests::create(connection, &new)?;
        turns::save_pacing(connection, id, epoch, &json!({}), at(100))?;
        let asked = vec![(id, RequestKind::Sync)];
        assert_eq!(requests::waiting(connection, at(100))?, asked, "nobody has looked at it yet");
        turns::mark_applied(connection, request, at(100))?;
        assert_eq!(requests::waiting(connection, at(104))?, []);
        assert_eq!(requests::waiting(connection, at(106))?, asked, "it may be over");
        Ok(())
    });
    done.await.unwrap();
}

/// A connect that cuts a turn off does not hide what that has used of the limits.
#[tokio::test]
async fn limits_that_a_cut_off_turn_has_used_are_not_left_to_the_next() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        assert_eq!(turns::take_pacing(connection, id)?, Some(json!({})), "nothing was asked yet");
        turns::leave_pacing(connection, id, &json!({"connect": 1}))?;
        assert_eq!(turns::take_pacing(connection, id)?, None);
        // Between turns it is all that counts.
        turns::save_pacing(connection, id, epoch, &json!({"turn": 1}), at(100))?;
        turns::leave_pacing(connection, id, &json!({"connect": 2}))?;
        assert_eq!(turns::take_pacing(connection, id)?, Some(json!({"connect": 2})));
        Ok(())
    });
    done.await.unwrap();
}

/// Who asks may know that a long pause of an address has lost its reason; a short one may be right.
#[tokio::test]
async fn a_long_pause_of_an_address_is_doubted() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let bucket = BucketSpec::requests("address", 200, Duration::from_mins(5));
        for (scope, minutes, left) in [("short", 30, 25..=31), ("long", 120, 3..=6)] {
            for of in [scope, "another"] {
                rate_budget::refused(connection, of, &bucket, Duration::from_mins(minutes))?;
            }
            rate_budget::question_pause(connection, scope, &bucket)?;
            let lease = |connection: &mut PgConnection, scope| {
                rate_budget::lease(connection, scope, &bucket, 1, Duration::ZERO)
            };
            let Lease::Full { wait } = lease(connection, scope)? else { panic!("{scope} is paused") };
            assert!(left.contains(&(wait.as_secs() / 60)), "{scope}: {wait:?}");
            let Lease::Full { wait } = lease(connection, "another")? else { panic!("it is paused") };
            assert!(wait > Duration::from_mins(minutes - 10), "nobody doubts the others': {wait:?}");
        }
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test]
async fn a_job_that_waits_after_a_failure_keeps_its_pause() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, _) = begun(connection)?;
        let later = SystemClock.now() + chrono::TimeDelta::seconds(60);
        let job = queue::enqueue(connection, "refresh_token", Some(id), Some(later))?.job_id;
        assert_eq!(queue::ensure_many(connection, "refresh_token", &[id])?, []);
        assert_eq!(queue::ensure_many(connection, "sync", &[id])?.len(), 1);
        let waits = diesel::sql_query("SELECT id AS value FROM jobs WHERE run_at > now() + interval '50 s'");
        assert_eq!(rows::values::<BigInt, i64, _>(connection, waits)?, [job.0]);
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test]
async fn a_turn_that_lost_its_streams_owns_nothing() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        assert!(turns::owns(connection, id, epoch)?);
        let next = streams::bump(connection, id)?;
        assert!(!turns::owns(connection, id, epoch)?);
        assert!(turns::owns(connection, id, next)?);
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        assert_eq!(streams::lock(connection, key)?, StreamWrite::Lost);
        // Purged: there are no streams to own.
        diesel::sql_query("DELETE FROM stream_state").execute(connection)?;
        assert!(!turns::owns(connection, id, next)?);
        Ok(())
    });
    done.await.unwrap();
}

/// Writes one page of one ticket, asked for in that second; how many rows that wrote.
fn write(connection: &mut PgConnection, source: &Source, subject: &str, second: i64) -> Result<i64, DbError> {
    let raw = json!({"id": "7", "updatedAt": at(second).to_rfc3339(), "properties": {"subject": subject},
                     "associations": {"companies": ["1", subject, "2"]}});
    let record = Record { id: "7".into(), raw, sent_at: at(second), deleted: None, without: Vec::new() };
    let page = Ready::of(source.spec, Page { records: vec![record], ..Page::default() });
    let mut counts = Counts::default();
    let owned = commit::pages(connection, source, vec![(page, Position::start())], &mut counts)?;
    assert_eq!(owned, StreamWrite::Done);
    Ok(counts.rows_written)
}

#[tokio::test]
async fn a_row_is_held_as_it_was_sent_and_replaced_by_newer_ones() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let spec = providers::provider("hubspot").and_then(|provider| provider.spec().stream("tickets"));
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let run = sync_runs::begin(connection, id, "tickets", Mode::Backfill, at(0))?;
        let spec = spec.expect("it is described");
        let source =
            Source { key, spec, mode: Mode::Backfill, run, opened_at: FAR, sweeping: false, history: true };
        let odd = "tab\t, lines\r\n, \\N, \\., \\\\, \"quoted\", {braces}, ü, \u{1f600}, \u{1}, \u{7f}\\";
        let read =
            "SELECT jsonb_build_array(subject, raw #> '{properties,subject}', company_ids[2], first_seen_at,
                                             synced_at) AS value FROM mirror.hubspot_tickets";
        for (subject, second, written, held) in
            [("first", 100, 1, 100), (odd, 200, 1, 200), ("older", 150, 0, 200), (odd, 200, 0, 200)]
        {
            assert_eq!(write(connection, &source, subject, second)?, written, "{subject}");
            let shown = if written == 1 { subject } else { odd };
            let found =
                rows::values::<diesel::sql_types::Jsonb, Value, _>(connection, diesel::sql_query(read))?;
            let time = |second| at(second).format("%Y-%m-%dT%H:%M:%S+00:00").to_string();
            assert_eq!(found, [json!([shown, shown, shown, time(100), time(held)])], "{subject}");
        }
        Ok(())
    });
    done.await.unwrap();
}

/// What a turn still holds in its hands when another has begun, such as a daemon that was frozen: none of it is written.
#[tokio::test]
async fn a_turn_that_another_has_overtaken_writes_nothing() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let spec = providers::provider("hubspot").and_then(|provider| provider.spec().stream("tickets"));
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let run = sync_runs::begin(connection, id, "tickets", Mode::Backfill, at(0))?;
        let spec = spec.expect("it is described");
        let source = Source { key, spec, mode: Mode::Backfill, run, opened_at: FAR, sweeping: true, history: true };
        assert_eq!(write(connection, &source, "first", 100)?, 1);
        let stands = |connection: &mut PgConnection| {
            let all = "SELECT jsonb_build_array((SELECT jsonb_agg(t) FROM mirror.hubspot_tickets t),
                (SELECT jsonb_agg(s ORDER BY stream) FROM stream_state s), (SELECT jsonb_agg(w ORDER BY stream, mode) FROM walks w),
                (SELECT jsonb_agg(m) FROM walk_seen m), (SELECT facts FROM connections)) AS value";
            rows::value::<diesel::sql_types::Jsonb, Value, _>(connection, diesel::sql_query(all))
        };
        streams::bump(connection, id)?;
        let before = stands(connection)?;
        let record = |second| {
            let raw = json!({"id": "7", "updatedAt": at(second).to_rfc3339(), "properties": {"subject": "late"}});
            Record { id: "7".into(), raw, sent_at: at(second), deleted: None, without: Vec::new() }
        };
        let facts = [("ticket_properties".to_owned(), json!(["late"]))].into();
        let page = Page { records: vec![record(200)], met: vec!["8".into()], facts, ..Page::default() };
        let (mut counts, lost) = (Counts::default(), StreamWrite::Lost);
        let page = vec![(Ready::of(source.spec, page), Position::of(&9))];
        assert_eq!(commit::pages(connection, &source, page, &mut counts)?, lost);
        let aside = Ready::of(source.spec, Page { records: vec![record(300)], ..Page::default() });
        assert_eq!(commit::aside(connection, &source, aside, &mut counts)?, lost);
        let setback = Setback {
            state: "stalled",
            kind: "our_bug",
            stalled_reason: Some("late".into()),
            last_error: None,
            not_before: Some(at(900)),
            whole_stream: true,
            strange: None,
        };
        assert_eq!(streams::set_back(connection, key, Some(Mode::Backfill), &setback)?, lost);
        assert_eq!(streams::postpone(connection, key, at(900), "a limit", true)?, lost);
        assert_eq!(streams::settle(connection, key, None)?, lost);
        assert_eq!(streams::set_state(connection, key, "syncing")?, lost);
        turns::save_pacing(connection, id, epoch, &json!({"late": true}), at(900))?;
        assert_eq!(stands(connection)?, before);
        assert_eq!(counts, Counts::default());
        // What the next turn has said of its run stands.
        sync_runs::end_abandoned(connection, id, at(800))?;
        sync_runs::end(connection, run, "yielded", None, at(900))?;
        let said = "SELECT outcome || ' ' || extract(epoch FROM ended_at)::bigint AS value FROM sync_runs";
        assert_eq!(rows::values::<Text, String, _>(connection, diesel::sql_query(said))?, ["lost 800"]);
        Ok(())
    });
    done.await.unwrap();
}

#[tokio::test]
async fn the_first_bound_of_changes_is_no_watermark() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let closing = |mode, covered_to| Closing {
            mode,
            covered_to: at(covered_to),
            swept_to: None,
            reads_all: mode == Mode::Backfill,
            sweeps: false,
            due_at: None,
            sweep_due_at: at(9_000),
            closed_at: at(1_000),
        };
        let known = |connection: &mut PgConnection| {
            let row = "SELECT (extract(epoch FROM s.complete_to) || ' ' || extract(epoch FROM w.covered_to)) AS value
                FROM stream_state s JOIN walks w USING (connection_id, stream)
                WHERE s.stream = 'tickets' AND w.mode = 'incremental'";
            let found = rows::value::<Nullable<Text>, Option<String>, _>(connection, diesel::sql_query(row))?;
            Ok::<_, DbError>(found.unwrap_or_default().replace(".000000", ""))
        };
        let owned = StreamWrite::Done;
        streams::begin_watermark(connection, key, at(500))?;
        // Our clock ran ahead: by the provider's, only what came before 490 is read.
        streams::lower_watermark(connection, key, at(490), false)?;
        assert_eq!(streams::close_walk(connection, key, &closing(Mode::Backfill, 490))?, owned);
        assert_eq!(known(connection)?, "490 490");
        assert_eq!(streams::close_walk(connection, key, &closing(Mode::Incremental, 600))?, owned);
        assert_eq!(known(connection)?, "600 600");
        // From then on neither goes back, and a later read of everything lowers nothing by itself.
        streams::lower_watermark(connection, key, at(510), false)?;
        assert_eq!(streams::close_walk(connection, key, &closing(Mode::Incremental, 550))?, owned);
        assert_eq!(known(connection)?, "600 600");
        Ok(())
    });
    done.await.unwrap();
}

/// By how much our clock ran ahead is kept with the walk that has seen it, at its worst: the run that closes it may send
/// nothing.
#[tokio::test]
async fn a_clock_that_ran_ahead_counts_until_the_walk_is_over() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let of = |connection: &mut PgConnection, mode: &str| {
            let walks = streams::walks(connection, id)?;
            let of = walks.into_iter().find(|walk| walk.stream == "tickets" && walk.mode == mode);
            Ok::<_, DbError>(of.expect("it is there"))
        };
        let ahead = |connection: &mut PgConnection| {
            Ok::<_, DbError>((of(connection, "incremental")?.ahead_ms, of(connection, "backfill")?.ahead_ms))
        };
        let closed =
            |connection: &mut PgConnection| Ok::<_, DbError>(of(connection, "incremental")?.closed_ahead_ms);
        streams::open_walk(connection, key, Mode::Incremental, at(100), None, None)?;
        for (seen, kept) in [(600_000, 600_000), (40_000, 600_000), (700_000, 700_000)] {
            streams::note_ahead(connection, key, Mode::Incremental, seen)?;
            assert_eq!(ahead(connection)?, (kept, 0), "{seen}");
        }
        streams::restart_walk(connection, key, Mode::Incremental, "the cursor was refused")?;
        assert_eq!(ahead(connection)?, (700_000, 0), "it began when it began");
        streams::open_walk(connection, key, Mode::Incremental, at(200), None, None)?;
        assert_eq!(ahead(connection)?, (0, 0));
        // What a walk has seen is what the next one compares with only once it has closed: one that could not read
        // everything moves nothing, and what it has seen is news to the next.
        assert_eq!(closed(connection)?, None);
        streams::note_ahead(connection, key, Mode::Incremental, 50_000)?;
        assert_eq!(
            streams::close_walk(connection, key, &closing(Mode::Incremental, 200))?,
            StreamWrite::Done
        );
        assert_eq!(closed(connection)?, Some(50_000));
        streams::open_walk(connection, key, Mode::Incremental, at(300), None, None)?;
        streams::note_ahead(connection, key, Mode::Incremental, 900_000)?;
        streams::end_walk(connection, key, Mode::Incremental)?;
        assert_eq!(closed(connection)?, Some(50_000));
        streams::open_walk(connection, key, Mode::Incremental, at(400), None, None)?;
        assert_eq!((ahead(connection)?, closed(connection)?), ((0, 0), Some(50_000)));
        Ok(())
    });
    done.await.unwrap();
}

/// Whatever the mode, the place is saved with the page, kept for the next turn, and thrown away with a reason.
#[tokio::test]
async fn every_walk_can_be_taken_up_again_or_begun_anew() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let spec = providers::provider("hubspot").and_then(|provider| provider.spec().stream("tickets"));
        let spec = spec.expect("it is described");
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let stands = |connection: &mut PgConnection, mode: Mode| {
            let walks = streams::walks(connection, id)?;
            Ok::<_, DbError>(
                walks
                    .into_iter()
                    .find(|walk| walk.stream == "tickets" && walk.mode == mode.as_str())
                    .unwrap(),
            )
        };
        for (second, mode) in (100..).zip(spec.modes.iter().copied()) {
            let run = sync_runs::begin(connection, id, "tickets", mode, at(second))?;
            let source =
                Source { key, spec, mode, run, opened_at: FAR, sweeping: mode == Mode::Sweep, history: true };
            streams::open_walk(connection, key, mode, at(second), Some(at(1)), None)?;
            for page in [3, 4] {
                let written = Ready::of(spec, Page { met: vec![page.to_string()], ..Page::default() });
                let written = vec![(written, Position::of(&json!({"page": page})))];
                let owned = commit::pages(connection, &source, written, &mut Counts::default())?;
                assert_eq!(owned, StreamWrite::Done);
            }
            // A crash, and the next turn.
            let next = streams::take(connection, id, providers::provider("hubspot").unwrap().spec().streams)?;
            assert_eq!(streams::lock(connection, key)?, StreamWrite::Lost);
            let walk = stands(connection, mode)?;
            let position: Position = serde_json::from_value(walk.position.unwrap()).unwrap();
            assert_eq!(position, Position::of(&json!({"page": 4})), "{mode:?}");
            assert_eq!((walk.started_at, walk.from_time), (Some(at(second)), Some(at(1))), "{mode:?}");
            sync_runs::end_abandoned(connection, id, at(second))?;
            // The provider does not know that place any more.
            let key = StreamKey { epoch: next, ..key };
            streams::restart_walk(connection, key, mode, "the cursor was refused")?;
            let walk = stands(connection, mode)?;
            assert_eq!((walk.position, walk.restarts), (None, 1), "{mode:?}");
            let why = "SELECT restart_reason AS value FROM walks WHERE stream = 'tickets' AND restarts > 0
                GROUP BY 1 HAVING bool_and(closed_at IS NULL)";
            let why = rows::value::<Text, String, _>(connection, diesel::sql_query(why))?;
            assert_eq!(why, "the cursor was refused");
            let back = "UPDATE stream_state SET turn_epoch = (SELECT min(turn_epoch) - 1 FROM stream_state)";
            diesel::sql_query(back).execute(connection)?;
            diesel::sql_query("UPDATE walks SET restarts = 0, restart_reason = NULL").execute(connection)?;
        }
        let lost = "SELECT count(*) AS value FROM sync_runs WHERE outcome = 'lost' AND ended_at IS NOT NULL";
        let count = rows::value::<BigInt, i64, _>(connection, diesel::sql_query(lost))?;
        assert_eq!(count, i64::try_from(spec.modes.len()).unwrap());
        Ok(())
    });
    done.await.unwrap();
}

/// What holds a stream is not lifted by trouble of another kind: it would be told as resolved, and then anew.
#[tokio::test]
async fn passing_trouble_does_not_lift_what_holds_a_stream() {
    let database = TestDb::new();
    let done = database.db.transaction(|connection| {
        let (id, epoch) = begun(connection)?;
        let key = StreamKey { connection: id, stream: "tickets", epoch };
        let setback = |kind, state, stalled_reason: Option<&str>| Setback {
            state,
            kind,
            stalled_reason: stalled_reason.map(str::to_owned),
            last_error: Some(kind.to_owned()),
            not_before: None,
            whole_stream: true,
            strange: None,
        };
        let stands = |connection: &mut PgConnection| {
            let row = "SELECT concat_ws(' ', state, failure_kind, stalled_reason, last_error) AS value
                       FROM stream_state WHERE stream = 'tickets'";
            rows::value::<Text, String, _>(connection, diesel::sql_query(row))
        };
        let (busy, refused) = ("backing_off", Mode::Backfill);
        let owned = StreamWrite::Done;
        for (kind, state) in [("held", "stalled"), ("forbidden", "forbidden"), ("our_bug", "stalled")] {
            let halted = setback(kind, state, Some("why"));
            assert_eq!(streams::set_back(connection, key, Some(refused), &halted)?, owned);
            assert_eq!(stands(connection)?, format!("{state} {kind} why {kind}"));
            let passing = setback("transient", busy, None);
            assert_eq!(streams::set_back(connection, key, Some(Mode::Incremental), &passing)?, owned);
            assert_eq!(stands(connection)?, format!("{state} {kind} why transient"));
            assert_eq!(streams::postpone(connection, key, at(900), "a limit", true)?, owned);
            assert!(stands(connection)?.starts_with(&format!("{state} {kind} why ")), "{kind}");
            assert_eq!(streams::settle(connection, key, None)?, owned);
            assert!(stands(connection)?.starts_with(&format!("{state} {kind} why ")), "{kind}");
        }
        // What may pass by itself is counted by its kind.
        let counted = |connection: &mut PgConnection| {
            let row = "SELECT concat_ws(' ', refusals, unread) AS value FROM walks
                       WHERE stream = 'tickets' AND mode = 'incremental'";
            rows::value::<Text, String, _>(connection, diesel::sql_query(row))
        };
        for (strange, now) in [
            (Strange::Unread, "0 1"),
            (Strange::Unread, "0 2"),
            (Strange::Refused, "1 0"),
            (Strange::Refused, "2 0"),
            (Strange::Unread, "0 1"),
        ] {
            let setback = Setback { strange: Some(strange), ..setback("transient", busy, None) };
            assert_eq!(streams::set_back(connection, key, Some(Mode::Incremental), &setback)?, owned);
            assert_eq!(counted(connection)?, now);
        }
        // A walk that closes is proof.
        diesel::sql_query("UPDATE walks SET failures = 0").execute(connection)?;
        assert_eq!(streams::settle(connection, key, None)?, owned);
        assert_eq!(stands(connection)?, "backfilling");
        assert_eq!(
            streams::set_back(connection, key, None, &setback("transient", busy, None))?,
            StreamWrite::Done
        );
        assert_eq!(stands(connection)?, "backing_off transient transient");
        Ok(())
    });
    done.await.unwrap();
}
