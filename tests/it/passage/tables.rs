//! The same through the engine and into the tables: a mirror that has read everything, reads it again from pages of which
//! nothing is left but who a record is, and once more as it was.

use std::collections::BTreeMap;
use std::time::Duration;

use fieldmirror::db::requests::RequestOutcome;
use fieldmirror::db::rows;
use fieldmirror::domain::spec::StreamSpec;
use fieldmirror::providers;
use serde_json::{Value, json};

use super::{enlarge, large};
use crate::simulation::columns;
use crate::simulation::rig::{Ground, Rig};
use crate::simulation::worlds::{PROVIDERS, world};
use crate::support::pages::each_record;
use crate::walks::{ALL_READ, rig_of, until};

const RECORDS: usize = 24;
const PATIENCE: Duration = Duration::from_hours(6);

/// Every row: its stream and id, what it holds, and whether it lives.
type Rows = BTreeMap<(&'static str, String), (Value, bool)>;

async fn all_rows(rig: &Rig, provider: &str) -> Rows {
    let streams = providers::provider(provider).expect("a provider").spec().streams;
    let mut found = Rows::new();
    for stream in streams {
        for row in rows_of(rig, stream).await {
            let (id, raw) = (row["id"].as_str().expect("an id").to_owned(), row["raw"].clone());
            let cells = row["cells"].as_object().expect("columns");
            assert_eq!(columns::wrong(stream, &raw, cells), None, "{} {id}", stream.table);
            found.insert((stream.name, id), (raw, row["lives"] == true));
        }
    }
    assert!(streams.iter().all(|stream| found.keys().any(|key| key.0 == stream.name)), "each has some");
    found
}

async fn rows_of(rig: &Rig, stream: &StreamSpec) -> Vec<Value> {
    let query = format!(
        "SELECT id, raw, to_jsonb(t) AS cells, deleted_at IS NULL AS lives FROM mirror.{} t WHERE connection_id = {}",
        stream.table, rig.connection
    );
    query_of(rig, query).await
}

async fn query_of(rig: &Rig, query: String) -> Vec<Value> {
    let query: &'static str = query.leak();
    rig.db(move |connection| rows::objects(connection, query)).await
}

async fn read_all_again(rig: &Rig) {
    let asked = rig.ask_for_everything().await;
    let began = tokio::time::Instant::now();
    let outcome = loop {
        rig.next(Duration::from_mins(1)).await;
        if let Some(outcome) = rig.outcome(asked).await {
            break outcome;
        }
        assert!(began.elapsed() < PATIENCE, "not in time");
    };
    assert!(matches!(outcome, (RequestOutcome::Done, _)), "{outcome:?}");
}

/// Leaves of a record who it is, and nothing else: its other fields are null or not there, or what is in them is.
fn bare(record: &mut Value) {
    let identity = if record["id"].is_null() { "name" } else { "id" };
    let (null, takes) = match record[identity].to_string().bytes().map(u32::from).sum::<u32>() % 4 {
        0 => (true, false),
        1 => (true, true),
        2 => (false, false),
        _ => (false, true),
    };
    let Some(fields) = record.as_object_mut() else { return };
    let stays = |name: &str, value: &Value| name == identity || is_ours(name) || has_pages(value);
    for (_, value) in fields.iter_mut().filter(|(name, value)| !stays(name, value)) {
        if null {
            *value = Value::Null;
        } else {
            hollow(value, takes);
        }
    }
    fields.retain(|name, value| stays(name, value) || !takes || !value.is_null());
}

/// What the mirror puts beside what was sent.
fn is_ours(name: &str) -> bool {
    ["associations", "pipeline", "key"].contains(&name)
}

/// A list within a record of which only the first ten came along: its pages are read on.
fn has_pages(value: &Value) -> bool {
    let many = value["nodes"].as_array().is_some_and(|nodes| nodes.len() > 10);
    many || value["pageInfo"]["hasNextPage"] == true
}

/// Of lists and objects nothing is left but their shape.
fn hollow(value: &mut Value, takes: bool) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| hollow(value, takes));
            fields.retain(|_, value| !takes || !value.is_null());
        }
        Value::Array(items) => items.iter_mut().for_each(|value| hollow(value, takes)),
        other => *other = Value::Null,
    }
}

#[tokio::test(start_paused = true)]
async fn rows_lose_what_pages_lack_and_get_it_back() {
    let ground = Ground::new();
    for provider in PROVIDERS {
        let rig = rig_of(&ground, provider, RECORDS, &[]).await;
        until(&rig, "everything has been read once", ALL_READ).await;
        let whole = all_rows(&rig, provider).await;

        rig.road.forge(Some(Box::new(|body| each_record(body, &mut |record| bare(record)))));
        read_all_again(&rig).await;
        let hollow = all_rows(&rig, provider).await;
        compare(provider, &whole, &hollow, |raw| {
            bare(raw);
            raw.get_mut("pipeline").into_iter().for_each(bare);
        });

        rig.road.forge(None);
        read_all_again(&rig).await;
        let again = all_rows(&rig, provider).await;
        compare(provider, &whole, &again, |_| {});
        let lives = |rows: &Rows| rows.values().map(|(_, lives)| *lives).collect::<Vec<_>>();
        assert_eq!(lives(&again), lives(&whole), "{provider}");
    }
}

/// Some states are a matter of the time of asking: the world knows which.
fn compare(provider: &str, whole: &Rows, now: &Rows, change: impl Fn(&mut Value)) {
    assert_eq!(now.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>(), "{provider}");
    let world = world(provider);
    for (((stream, id), (was, _)), (is, _)) in whole.iter().zip(now.values()) {
        let mut wanted = was.clone();
        change(&mut wanted);
        let same = is == &wanted || world.split(stream, is.clone()) == world.split(stream, wanted.clone());
        assert!(same, "{provider}.{stream} {id}: {wanted}\nand in the mirror {is}");
    }
}

/// ServiceTitan's ids are numbers.
#[tokio::test(start_paused = true)]
async fn ids_beyond_2_53_are_rows_and_ties_of_their_own() {
    let ground = Ground::new();
    let mut found = Vec::new();
    for grows in [false, true] {
        let rig = rig_of(&ground, "servicetitan", RECORDS, &[]).await;
        if grows {
            rig.road.forge(Some(Box::new(enlarge)));
        }
        until(&rig, "everything has been read once", ALL_READ).await;
        let names = "SELECT id, customer_name, title, address, assigned_to, scheduled_start FROM mirror.jobs";
        let names = query_of(
            &rig,
            format!("{names} WHERE connection_id = {} ORDER BY id COLLATE \"C\"", rig.connection),
        )
        .await;
        found.push((all_rows(&rig, "servicetitan").await, names));
    }
    let [(small, shown), (grown, also_shown)] = &found[..] else { panic!("two") };
    let mut wanted = Rows::new();
    for ((stream, id), (raw, lives)) in small {
        let mut raw = raw.clone();
        enlarge(&mut raw);
        wanted.insert((stream, large(id)), (raw, *lives));
    }
    assert_eq!(grown, &wanted);
    let grow = |row: &Value| {
        let mut row = row.clone();
        row["id"] = json!(large(row["id"].as_str().expect("an id")));
        row
    };
    let mut wanted: Vec<Value> = shown.iter().map(grow).collect();
    wanted.sort_by_key(|row| row["id"].as_str().map(str::to_owned));
    assert_eq!(also_shown, &wanted);
    assert!(shown.iter().any(|row| row["customer_name"].is_string() && row["assigned_to"].is_array()));
}
