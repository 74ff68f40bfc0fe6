//! Jobber's part as a client meets it: requests through its router, without a socket.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION};
use chrono::TimeDelta;
use serde_json::{Value, json};
use tower::ServiceExt;
use url::{Url, form_urlencoded};

use super::{Change, Jobber};
use crate::domain::time::ShiftedClock;
use crate::sandbox::shared::Shared;
use crate::sandbox::{CLIENT_ID, CLIENT_SECRET, SandboxOptions, StandIn};

const REDIRECT: &str = "http://127.0.0.1:9/cb";
const JOBS: &str = "query Jobs($n: Int!, $after: String) { jobs(first: $n, after: $after, sort: [{key: UPDATED_AT, \
    direction: DESCENDING}]) { nodes { id updatedAt client { id name } } pageInfo { hasNextPage endCursor } } }";

struct World {
    jobber: Arc<Jobber>,
    router: Router,
    clock: Arc<ShiftedClock>,
    account: String,
    bearer: String,
}

impl World {
    async fn new(faults: &[&str]) -> Self {
        let clock = Arc::new(ShiftedClock::default());
        let faults = faults.iter().map(|text| text.parse().unwrap()).collect();
        let shared = Shared::new(SandboxOptions {
            records: 60,
            accounts: 1,
            faults,
            clock: clock.clone(),
            ..Default::default()
        });
        let jobber = Jobber::new(&shared);
        let (router, account) = (jobber.clone().part().api, jobber.account_ids()[0].clone());
        let mut world = Self { jobber, router, clock, account, bearer: String::new() };
        world.bearer = world.tokens().await["access_token"].as_str().unwrap().to_owned();
        world
    }

    async fn send(&self, request: Request<Body>) -> (u16, Option<String>, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let location = response.headers().get(LOCATION).map(|text| text.to_str().unwrap().to_owned());
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, location, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Where the consent page leads.
    async fn consent(&self, auto: &str) -> Url {
        let path = format!(
            "/api/oauth/authorize?client_id={CLIENT_ID}&redirect_uri={REDIRECT}&response_type=code&state=s&auto={auto}"
        );
        let (_, location, _) = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        Url::parse(&location.unwrap()).unwrap()
    }

    async fn token(&self, fields: &[(&str, &str)]) -> (u16, Value) {
        let app = [("client_id", CLIENT_ID), ("client_secret", CLIENT_SECRET)];
        let body =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(fields.iter().chain(&app)).finish();
        let request =
            Request::post("/api/oauth/token").header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let (status, _, answer) = self.send(request.body(Body::from(body)).unwrap()).await;
        (status, answer)
    }

    async fn tokens(&self) -> Value {
        let url = self.consent("approve").await;
        let code = url.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
        let fields = [("grant_type", "authorization_code"), ("code", &code), ("redirect_uri", REDIRECT)];
        let (status, tokens) = self.token(&fields).await;
        assert_eq!(status, 200, "{tokens}");
        tokens
    }

    async fn ask(&self, query: &str, variables: Value) -> (u16, Value) {
        let request = Request::post("/api/graphql")
            .header(AUTHORIZATION, format!("Bearer {}", self.bearer))
            .header(CONTENT_TYPE, "application/json")
            .header("x-jobber-graphql-version", "2025-04-16");
        let body = json!({"query": query, "variables": variables}).to_string();
        let (status, _, answer) = self.send(request.body(Body::from(body)).unwrap()).await;
        (status, answer)
    }

    /// All ids that a walk in pages of `n` brings.
    async fn walk(&self, query: &str, n: u64) -> Vec<String> {
        let mut ids = Vec::new();
        let mut after = Value::Null;
        loop {
            let (_, answer) = self.ask(query, json!({"n": n, "after": after})).await;
            let list = answer["data"].as_object().unwrap().values().next().unwrap().clone();
            let nodes = list["nodes"].as_array().unwrap();
            ids.extend(nodes.iter().map(|node| node["id"].as_str().unwrap().to_owned()));
            after = list["pageInfo"]["endCursor"].clone();
            if list["pageInfo"]["hasNextPage"] != true {
                return ids;
            }
        }
    }
}

#[tokio::test]
async fn consents_end_in_three_ways() {
    let world = World::new(&[]).await;
    assert!(world.consent("approve").await.query().unwrap().contains("state=s"));
    assert_eq!(world.consent("deny").await.as_str(), "http://127.0.0.1:9/cb");
    let from_marketplace = world.consent("marketplace").await;
    assert!(!from_marketplace.query().unwrap().contains("state"), "{from_marketplace}");
    assert!(from_marketplace.query().unwrap().contains("code="), "{from_marketplace}");
}

#[tokio::test]
async fn refresh_tokens_rotate_and_answers_tell_no_life() {
    let world = World::new(&[]).await;
    let first = world.tokens().await;
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["access_token", "refresh_token"]);
    let claims = super::tokens::account_of(first["access_token"].as_str().unwrap());
    assert_eq!(claims.as_deref(), Some(world.account.as_str()));
    let old = first["refresh_token"].as_str().unwrap();
    let fields = |token| [("grant_type", "refresh_token"), ("refresh_token", token)];
    let (status, second) = world.token(&fields(old)).await;
    assert_eq!(status, 200);
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    let (status, refused) = world.token(&fields(old)).await;
    assert_eq!((status, &refused["message"]), (401, &json!("The provided refresh token is not valid.")));
    assert_eq!(world.token(&fields(second["refresh_token"].as_str().unwrap())).await.0, 200);

    let world = World::new(&["expires_at", "opaque_tokens"]).await;
    let tokens = world.tokens().await;
    assert!(tokens["expires_at"].as_str().unwrap().ends_with(" UTC"), "{tokens}");
    assert!(!tokens["access_token"].as_str().unwrap().contains('.'), "{tokens}");
}

/// What is deleted while a list is read moves the rest up under cursors that stand for places.
#[tokio::test]
async fn cursors_stand_for_places_or_for_records() {
    for (faults, hides) in [(&[][..], true), (&["record_cursors"], false)] {
        let world = World::new(faults).await;
        let page = async |after: Value| {
            let (_, answer) = world.ask(JOBS, json!({"n": 5, "after": after})).await;
            let list = &answer["data"]["jobs"];
            let ids =
                list["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap().to_owned());
            (ids.collect::<Vec<_>>(), list["pageInfo"]["endCursor"].clone())
        };
        let (first, end) = page(Value::Null).await;
        let (second, _) = page(end.clone()).await;
        world.jobber.change(&world.account, &Change::Delete { id: first[0].clone() }).unwrap();
        let (now, _) = page(end).await;
        assert_eq!(now.contains(&second[0]), !hides, "{faults:?}");
    }
}

/// A list within a record goes on behind its own cursor.
#[tokio::test]
async fn people_of_a_visit_come_in_pages() {
    let world = World::new(&[]).await;
    let truth = world.jobber.truth(&world.account).unwrap();
    let visits = truth.iter().flat_map(|job| job["visits"].as_array().into_iter().flatten());
    let visit = visits.max_by_key(|visit| visit["assignedUsers"].as_array().unwrap().len()).unwrap();
    let people = visit["assignedUsers"].as_array().unwrap();
    assert!(people.len() > 10, "{people:?}");
    let query = |after: &Value| {
        format!(
            "{{ visit(id: {}) {{ assignedUsers(first: 10, after: {after}) {{ nodes {{ id }} pageInfo {{ hasNextPage \
             endCursor }} }} }} }}",
            visit["id"]
        )
    };
    let (_, first) = world.ask(&query(&Value::Null), json!({})).await;
    let info = &first["data"]["visit"]["assignedUsers"]["pageInfo"];
    assert_eq!(info["hasNextPage"], true, "{first}");
    let (_, rest) = world.ask(&query(&info["endCursor"]), json!({})).await;
    let rest = &rest["data"]["visit"]["assignedUsers"];
    assert_eq!(rest["nodes"].as_array().unwrap().len(), people.len() - 10, "{rest}");
    assert_eq!(rest["pageInfo"]["hasNextPage"], false);
}

#[tokio::test]
async fn lists_come_in_pages_newest_first() {
    let world = World::new(&[]).await;
    let all = world.walk(JOBS, 7).await;
    assert_eq!(all.len(), 60);
    let change = Change::Change { id: all[40].clone(), title: "x".into(), quiet: false };
    world.jobber.change(&world.account, &change).unwrap();
    let quiet = Change::Change { id: all[41].clone(), title: "y".into(), quiet: true };
    world.jobber.change(&world.account, &quiet).unwrap();
    world.jobber.change(&world.account, &Change::Delete { id: all[0].clone() }).unwrap();
    let later = world.walk(JOBS, 100).await;
    assert_eq!((later.len(), &later[0], &later[1]), (59, &all[40], &all[1]));
    let one = "query($id: EncodedId!) { account { id } a: job(id: $id) { id title } }";
    let (_, answer) = world.ask(one, json!({"id": all[0]})).await;
    assert_eq!(answer["data"]["a"], Value::Null);
    let (_, answer) = world.ask(one, json!({"id": all[41]})).await;
    assert_eq!(answer["data"]["a"]["title"], "y");

    let visits = "query Visits($n: Int!, $after: String, $filter: V) { visits(first: $n, after: $after, filter: \
        $filter) { nodes { id job { id } assignedUsers(first: 1) { nodes { name { full } } } } } }";
    let (_, answer) = world.ask(visits, json!({"n": 50, "filter": {"jobIds": [all[1]]}})).await;
    for visit in answer["data"]["visits"]["nodes"].as_array().unwrap() {
        assert_eq!(visit["job"]["id"], json!(all[1]));
    }
    let (_, answer) =
        world.ask(visits, json!({"n": 50, "filter": {"startAt": {"after": "2040-01-01T00:00:00Z"}}})).await;
    assert_eq!(answer["data"]["visits"]["nodes"], json!([]));
    let (_, answer) = world.ask(visits, json!({"n": 50, "filter": {"updatedAt": {}}})).await;
    assert!(answer["errors"][0]["extensions"]["problems"].is_array(), "{answer}");
    let (_, answer) = world.ask(JOBS, json!({"n": 5, "after": "?"})).await;
    assert!(answer["errors"][0]["message"].as_str().unwrap().contains("cursor"), "{answer}");
}

#[tokio::test]
async fn points_are_reckoned_and_run_out() {
    let world = World::new(&[]).await;
    // 1 for the list, 60 times id, updatedAt, client with id and name, 3 for the page's own.
    let (_, answer) = world.ask(JOBS, json!({"n": 60})).await;
    let cost = &answer["extensions"]["cost"];
    assert_eq!((&cost["requestedQueryCost"], &cost["actualQueryCost"]), (&json!(304), &json!(304)));
    assert_eq!(cost["throttleStatus"]["currentlyAvailable"], 9_696);
    let (_, answer) = world.ask("{ jobs { nodes { id } } }", json!({})).await;
    assert_eq!(answer["extensions"]["cost"]["requestedQueryCost"], 101, "without `first` it counts as 100");
    let (status, answer) = world.ask(JOBS, json!({"n": 3_000})).await;
    assert_eq!((status, &answer["errors"][0]["extensions"]["code"]), (200, &json!("THROTTLED")));
    assert_eq!(answer["extensions"]["cost"]["actualQueryCost"], 0);
    assert!(answer.get("data").is_none());
    world.clock.stop();
    let mut answered = 0;
    let refused = loop {
        let (_, answer) = world.ask(JOBS, json!({"n": 60})).await;
        if answer.get("data").is_none() {
            break answer;
        }
        answered += 1;
        assert!(answered < 1_000, "it never ends");
    };
    assert!(answered >= 31, "{answered}");
    assert_eq!(refused["errors"][0]["message"], "Throttled");
    world.clock.shift(TimeDelta::seconds(2));
    assert!(world.ask(JOBS, json!({"n": 60})).await.1["data"].is_object(), "500 points a second come back");
}

#[tokio::test]
async fn no_comes_in_many_shapes() {
    let message = |answer: &Value| answer["errors"][0]["message"].as_str().unwrap_or_default().to_owned();
    let world = World::new(&["hidden_field=Job.client"]).await;
    let (status, answer) = world.ask(JOBS, json!({"n": 5})).await;
    assert_eq!((status, &answer["data"]), (200, &Value::Null));
    assert_eq!(message(&answer), "The field client on an object of type Job was hidden due to permissions");
    let world = World::new(&["unknown_field=Client.name"]).await;
    assert_eq!(
        message(&world.ask(JOBS, json!({"n": 5})).await.1),
        "Field 'name' doesn't exist on type 'Client'"
    );
    let world = World::new(&["partial_data"]).await;
    let (_, answer) = world.ask(JOBS, json!({"n": 5})).await;
    assert_eq!(answer["data"]["jobs"]["nodes"][0]["client"], Value::Null);
    assert_eq!(answer["errors"][0]["path"], json!(["jobs", "nodes", 0, "client"]));
    let world = World::new(&["inactive"]).await;
    assert_eq!(world.ask(JOBS, json!({"n": 5})).await.1["error"]["message"], "This account is not active");
    let world = World::new(&["old_version"]).await;
    assert!(world.ask(JOBS, json!({"n": 5})).await.1["extensions"]["versioning"]["warning"].is_string());

    let mut world = World::new(&[]).await;
    world.clock.shift(TimeDelta::hours(1));
    let (status, answer) = world.ask(JOBS, json!({"n": 5})).await;
    assert_eq!((status, &answer["message"]), (401, &json!("Access token expired")));
    world.bearer = world.tokens().await["access_token"].as_str().unwrap().to_owned();
    let (_, answer) =
        world.ask("mutation { appDisconnect { app { name } userErrors { message } } }", json!({})).await;
    assert_eq!(answer["data"]["appDisconnect"]["userErrors"], json!([]));
    let (_, answer) = world.ask(JOBS, json!({"n": 5})).await;
    assert!(answer["message"].as_str().unwrap().contains("has disconnected this app"), "{answer}");
    world.bearer = "never.issued".to_owned();
    let (status, answer) = world.ask(JOBS, json!({"n": 5})).await;
    assert_eq!((status, &answer["errors"][0]["extensions"]["code"]), (200, &json!("UNAUTHENTICATED")));
}

#[tokio::test]
async fn the_same_seed_tells_the_same_story_with_its_corners() {
    let tell = |seed| {
        let clock = Arc::new(ShiftedClock::default());
        let options = SandboxOptions { seed, records: 400, accounts: 1, clock, ..Default::default() };
        let jobber = Jobber::new(&Shared::new(options));
        jobber.truth(&jobber.account_ids()[0]).unwrap()
    };
    let jobs = tell(5);
    assert_eq!(jobs, tell(5));
    assert_ne!(jobs, tell(6));
    let some = |wanted: &dyn Fn(&Value) -> bool| assert!(jobs.iter().any(wanted));
    some(&|job| job["record"]["title"].is_null());
    some(&|job| job["record"]["property"].is_null());
    some(&|job| job["record"]["jobBalanceTotals"].is_null());
    some(&|job| job["record"]["jobStatus"] == "awaiting_parts");
    some(&|job| job["record"]["client"]["name"] == "");
    some(&|job| job["visits"].is_null());
    some(&|job| job["visits"].as_array().is_some_and(|visits| visits.len() > 2));
    some(&|job| job["visits"][0]["assignedUsers"].as_array().is_some_and(|users| users.len() > 1));
}

#[tokio::test]
async fn nobody_is_assigned_to_a_visit_twice() {
    let world = World::new(&[]).await;
    let people = || {
        let jobs = world.jobber.truth(&world.account).unwrap();
        let visit = jobs.iter().map(|job| job["visits"][0].clone()).find(|visit| !visit.is_null()).unwrap();
        let people = visit["assignedUsers"].as_array().unwrap().iter().map(|user| user["id"].clone());
        (visit["id"].as_str().unwrap().to_owned(), people.collect::<Vec<_>>())
    };
    let (id, before) = people();
    for user in (1..=14).chain([5]) {
        world.jobber.change(&world.account, &Change::AssignVisit { id: id.clone(), user }).unwrap();
    }
    let (_, after) = people();
    assert!(after.len() == 14 && after.starts_with(&before), "{before:?} {after:?}");
}

#[tokio::test]
async fn the_guard_counts_requests() {
    let world = World::new(&[]).await;
    for _ in 0..super::GUARD_MAX {
        assert_eq!(world.ask("{ account { id } }", json!({})).await.0, 200);
    }
    assert_eq!(world.ask("{ account { id } }", json!({})).await.0, 429);
    world.clock.shift(TimeDelta::from_std(Duration::from_mins(5)).unwrap());
    assert_eq!(world.ask("{ account { id } }", json!({})).await.0, 200);
}
