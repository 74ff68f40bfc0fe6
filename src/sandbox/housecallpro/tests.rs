//! Housecall Pro's part as a client meets it: requests through its routes, without a socket.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, Request};
use chrono::TimeDelta;
use serde_json::{Value, json};
use tower::ServiceExt;
use url::Url;

use super::*;
use crate::domain::time::ShiftedClock;
use crate::sandbox::{CLIENT_ID, CLIENT_SECRET, SandboxOptions};

const REDIRECT: &str = "http://127.0.0.1:9/cb";

struct World {
    part: Arc<Housecallpro>,
    router: Router,
    clock: Arc<ShiftedClock>,
    account: String,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn ids(&self, of: &str) -> Vec<String> {
        let rows = self.json()[of].as_array().cloned().unwrap_or_else(|| panic!("no {of} in {}", self.text));
        rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    }
}

impl World {
    fn new(records: usize) -> Self {
        let clock = Arc::new(ShiftedClock::default());
        let options = SandboxOptions { records, clock: clock.clone(), ..Default::default() };
        let part = Housecallpro::new(&Shared::new(options));
        let account = part.account_ids()[0].clone();
        Self { router: part.clone().part().api, part, clock, account }
    }

    fn faults(&self, texts: &[&str]) {
        self.part.shared.faults.set(texts.iter().map(|text| text.parse().unwrap()).collect());
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().into()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    async fn with(&self, path: &str, authorization: &str, location: Option<&str>) -> Answer {
        let mut request = Request::get(path).header(AUTHORIZATION, authorization);
        if let Some(location) = location {
            request = request.header("X-Company-Id", location);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn get(&self, path: &str) -> Answer {
        let key = format!("Token {}", Housecallpro::api_key(&self.account));
        self.with(path, &key, None).await
    }

    async fn at(&self, path: &str, location: &str) -> Answer {
        let key = format!("Token {}", Housecallpro::api_key(&self.account));
        self.with(path, &key, Some(location)).await
    }

    fn change(&self, change: Value) -> Vec<String> {
        self.part.change(&self.account, &serde_json::from_value(change).unwrap()).unwrap()
    }

    async fn tokens(&self, fields: Value) -> Answer {
        let mut body =
            json!({"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "redirect_uri": REDIRECT});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let request = Request::post("/oauth/token").header(CONTENT_TYPE, "application/json");
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn code(&self) -> String {
        let path = format!(
            "/oauth/authorize?response_type=code&client_id={CLIENT_ID}&redirect_uri={REDIRECT}&scope=public&state=s&auto=approve"
        );
        let answer = self.send(Request::get(&path).body(Body::empty()).unwrap()).await;
        let url = Url::parse(answer.headers[LOCATION].to_str().unwrap()).unwrap();
        url.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned()
    }

    async fn connect(&self) -> Value {
        self.tokens(json!({"grant_type": "authorization_code", "code": self.code().await})).await.json()
    }

    async fn refresh(&self, token: &Value) -> Answer {
        self.tokens(json!({"grant_type": "refresh_token", "refresh_token": token})).await
    }
}

fn bearer(tokens: &Value) -> String {
    format!("Bearer {}", tokens["access_token"].as_str().unwrap())
}

#[tokio::test]
async fn tokens_are_asked_for_in_json_and_rotate() {
    let world = World::new(5);
    let tokens = world.connect().await;
    assert_eq!(
        (&tokens["token_type"], &tokens["expires_in"], &tokens["scope"]),
        (&json!("Bearer"), &json!(2_592_000), &json!("public"))
    );
    assert!(tokens["created_at"].is_number());
    assert_eq!(tokens["access_token"].as_str().unwrap().len(), 64);
    assert_eq!(world.with("/company", &bearer(&tokens), None).await.status, 200);

    let later = world.refresh(&tokens["refresh_token"]).await.json();
    assert_eq!(later["expires_in"], 2_629_745);
    assert!(later["created_at"].is_string(), "{later}");
    assert_ne!(later["refresh_token"], tokens["refresh_token"]);
    let spent = world.refresh(&tokens["refresh_token"]).await;
    assert_eq!((spent.status, &spent.json()["error"]), (400, &json!("invalid_grant")));
    world.faults(&["error_in_ok"]);
    let spent = world.refresh(&tokens["refresh_token"]).await;
    assert_eq!((spent.status, &spent.json()["error"]), (200, &json!("invalid_grant")));
    let other = world.tokens(json!({"client_secret": "x", "grant_type": "refresh_token"})).await;
    assert_eq!(other.json()["error"], "invalid_client");
    world.faults(&[]);

    let bare = world
        .tokens(json!({"grant_type": "refresh_token", "refresh_token": later["refresh_token"], "redirect_uri": ""}))
        .await;
    assert_eq!((bare.status, &bare.json()["error"]), (400, &json!("invalid_request")));
    let form = Request::post("/oauth/token").header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let form = world.send(form.body(Body::from("grant_type=refresh_token")).unwrap()).await;
    assert_eq!(form.status, 400, "a form is not read");
}

#[tokio::test]
async fn every_401_says_the_same() {
    let world = World::new(5);
    let tokens = world.connect().await;
    let key = Housecallpro::api_key(&world.account);
    let expired = bearer(&tokens);
    world.clock.shift(TimeDelta::days(31));
    for authorization in [expired, format!("Bearer {key}"), "Token nope".to_owned(), String::new()] {
        let answer = world.with("/jobs", &authorization, None).await;
        assert_eq!(
            (answer.status, answer.json()),
            (401, json!({"message": "Unauthorized"})),
            "{authorization}"
        );
    }
    assert_eq!(world.get("/application").await.status, 401, "not for keys of companies");
    assert_eq!(world.get("/company").await.json()["id"], json!(world.account));
    assert_eq!(world.get("/company").await.json()["locations"].as_array().unwrap().len(), LOCATIONS);
    world.part.revoke(&world.account);
    assert_eq!(world.get("/company").await.status, 401, "the key is deleted");
}

#[tokio::test]
async fn pages_are_numbered_small_and_capped() {
    let world = World::new(700);
    let first = world.get("/jobs").await.json();
    assert_eq!((&first["page"], &first["page_size"]), (&json!(1), &json!(10)));
    let wide = world.get("/jobs?page_size=500").await.json();
    assert_eq!(wide["page_size"], 200);
    let (pages, items) = (wide["total_pages"].as_u64().unwrap(), wide["total_items"].as_u64().unwrap());
    let mut ids = Vec::new();
    for page in 1..=pages {
        let page = format!("/jobs?page_size=200&page={page}&sort_by=created_at&sort_direction=asc");
        ids.extend(world.get(&page).await.ids("jobs"));
    }
    assert_eq!(ids.len() as u64, items);
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len() as u64, items, "every job once while nothing moves");
    assert!(world.get(&format!("/jobs?page={}", items + 1)).await.ids("jobs").is_empty());
    assert_eq!(world.get("/employees?page_size=200").await.json()["page_size"], 100);
    for (query, status) in
        [("page=0", 400), ("page_size=x", 400), ("sort_by=color", 422), ("sort_direction=up", 422)]
    {
        assert_eq!(world.get(&format!("/jobs?{query}")).await.status, status, "{query}");
    }
    assert_eq!(world.get("/v1/jobs").await.json(), json!({"error": "not found"}), "no version in the path");
}

#[tokio::test]
async fn rows_move_while_pages_are_turned() {
    let world = World::new(60);
    let newest = |page: u32| format!("/jobs?sort_by=updated_at&sort_direction=desc&page_size=10&page={page}");
    let first = world.get(&newest(1)).await;
    let second = world.get(&newest(2)).await;
    assert!(first.json()["jobs"][0]["updated_at"].as_str() > second.json()["jobs"][0]["updated_at"].as_str());
    let old = world.get(&newest(4)).await.ids("jobs")[0].clone();
    world.change(json!({"do": "change", "id": old, "fields": {"/description": "moved"}}));
    assert_eq!(world.get(&newest(1)).await.ids("jobs")[0], old);
    assert_eq!(world.get(&newest(2)).await.ids("jobs")[0], first.ids("jobs")[9], "an edit repeats a row");
    world.change(json!({"do": "delete", "id": old}));
    world.change(json!({"do": "delete", "id": first.ids("jobs")[0]}));
    assert_eq!(world.get(&newest(2)).await.ids("jobs")[0], second.ids("jobs")[1], "a deletion skips one");
}

#[tokio::test]
async fn filters_gather_by_brackets_and_speak_their_own_words() {
    let world = World::new(200);
    let count = async |query: &str| world.get(&format!("/jobs?{query}")).await.json()["total_items"].clone();
    let completed = count("work_status[]=completed").await.as_u64().unwrap();
    let scheduled = count("work_status[]=scheduled").await.as_u64().unwrap();
    assert!(completed > 0 && scheduled > 0);
    assert_eq!(count("work_status[]=completed&work_status[]=scheduled").await, completed + scheduled);
    assert_eq!(count("work_status=completed&work_status=scheduled").await, scheduled, "only the last one");
    assert_eq!(count("work_status[]=complete%20rated").await, 0, "an answer's word finds nothing");
    let answer = world.get("/jobs?work_status[]=scheduled&expand[]=appointments").await.json();
    assert!(answer["jobs"][0]["schedule"]["appointments"][0]["start_time"].is_string());
    let bare = world.get("/jobs?work_status[]=scheduled").await.json();
    assert_eq!(bare["jobs"][0]["schedule"]["appointments"], json!([]));
}

#[tokio::test]
async fn locations_are_asked_for_by_header_and_can_be_lost() {
    let world = World::new(200);
    let [north, lakeside] = world.part.locations(&world.account).try_into().unwrap();
    let items = |answer: Answer| answer.json()["total_items"].as_u64().unwrap();
    let (own, below) = (items(world.get("/jobs").await), items(world.at("/jobs", &north).await));
    assert!(own > 0 && below > 0);
    let both = format!("/jobs?location_ids[]={}&location_ids[]={north}", world.account);
    assert_eq!(items(world.get(&both).await), own + below);
    assert_eq!(items(world.at(&both, &north).await), below, "the header wins");
    let job = world.at("/jobs", &north).await.ids("jobs")[0].clone();
    let job = format!("/jobs/{job}");
    assert_eq!(world.at(&job, &north).await.status, 200);
    for elsewhere in [&world.account, &lakeside] {
        assert_eq!(world.at(&job, elsewhere).await.status, 404, "a read by id is about a location, too");
    }
    assert_eq!(world.get(&job).await.status, 404);
    world.change(json!({"do": "location", "location": north, "lost": true}));
    assert_eq!(world.at("/jobs", &north).await.status, 403);
    assert_eq!(world.at(&job, &north).await.status, 403);
    assert_eq!(world.at("/jobs", &lakeside).await.status, 200);
    assert_eq!(world.at("/jobs", "00000000-0000-4000-8000-000000000000").await.status, 403);
    assert_eq!(world.get("/company").await.json()["locations"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn jobs_end_in_several_ways() {
    let world = World::new(60);
    let ids = world.get("/jobs?page_size=20").await.ids("jobs");
    let read = async |id: &str| world.get(&format!("/jobs/{id}")).await;
    world.change(json!({"do": "cancel", "id": ids[0], "by": "user"}));
    let job = read(&ids[0]).await.json();
    assert_eq!(job["work_status"], "user canceled");
    assert!(job["canceled_at"].is_string() && job["deleted_at"].is_null());
    world.change(json!({"do": "cancel", "id": ids[1], "by": "pro"}));
    let job = read(&ids[1]).await.json();
    assert_eq!(job["work_status"], "pro canceled");
    assert!(job["canceled_at"].is_null() && job["deleted_at"].is_string(), "a cancellation, no deletion");
    for (id, left, status) in [(&ids[2], "nothing", 404), (&ids[3], "archive", 400), (&ids[4], "record", 200)]
    {
        world.change(json!({"do": "delete", "id": id, "left": left}));
        assert_eq!(read(id).await.status, status, "{left}");
    }
    assert_eq!(read(&ids[3]).await.json(), json!({"error": {"message": "Archived job"}}));
    let listed = world.get("/jobs?page_size=200").await.ids("jobs");
    assert!(ids[..2].iter().all(|id| listed.contains(id)) && !ids[2..5].iter().any(|id| listed.contains(id)));
    world.change(json!({"do": "restore", "id": ids[3]}));
    assert_eq!(read(&ids[3]).await.status, 200);
    let gone = world.part.truth(&world.account).unwrap();
    let states: Vec<&str> = gone
        .iter()
        .filter(|line| line["record"]["id"] == *ids[2])
        .filter_map(|line| line["state"].as_str())
        .collect();
    assert_eq!(states, ["gone"]);
}

#[tokio::test]
async fn what_is_changed_shows_and_what_is_impossible_is_said() {
    let world = World::new(20);
    let id = world.change(json!({"do": "create", "fields": {"/schedule/arrival_window": 15}}))[0].clone();
    world.change(
        json!({"do": "change", "id": id, "fields": {"/work_status": "teleported"}, "omit": ["/customer/id"]}),
    );
    let job = world.get(&format!("/jobs/{id}")).await.json();
    assert_eq!((&job["work_status"], &job["schedule"]["arrival_window"]), (&json!("teleported"), &json!(15)));
    assert!(job["customer"].get("id").is_none());
    let refused = |change: Value| {
        let change = serde_json::from_value(change).unwrap();
        world.part.change(&world.account, &change).unwrap_err().to_string()
    };
    for (change, expected) in [
        (json!({"do": "delete", "id": "job_0"}), "there is no record `job_0` that this can be done to"),
        (json!({"do": "change", "id": id, "fields": {"notes": 1}}), "`notes` is no JSON pointer"),
        (json!({"do": "create", "count": 1_000_000}), "1000000 jobs are more than 100000"),
        (json!({"do": "location", "location": "x", "lost": true}), "there is no location `x`"),
    ] {
        assert_eq!(refused(change), expected);
    }
}

#[tokio::test]
async fn the_world_has_its_corners_and_one_seed_tells_one_story() {
    let world = World::new(1_000);
    let truth = world.part.truth(&world.account).unwrap();
    assert_eq!(truth, World::new(1_000).part.truth(&world.account).unwrap());
    let jobs: Vec<&Value> =
        truth.iter().filter(|line| line["kind"] == "jobs").map(|line| &line["record"]).collect();
    assert_eq!(jobs.len(), 1_000);
    let has = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        assert!(jobs.iter().any(|job| wanted(job)), "no job {what}");
    };
    has("without an address", &|job| job["address"]["id"].is_null());
    has("without a description", &|job| job["description"] == "");
    has("without tags", &|job| job.get("tags").is_none());
    has("of an unknown status", &|job| job["work_status"] == "on hold");
    has("with times without a zone", &|job| !job["updated_at"].as_str().unwrap().ends_with('Z'));
    has("with more cents than a double holds", &|job| {
        job["total_amount"].as_u64() == Some(9_007_199_254_740_993)
    });
    has("with an unknown field", &|job| job["ai_dispatch"].is_object());
    has("of a firm without a person", &|job| job["customer"]["first_name"].is_null());
    has("with a crew of two", &|job| job["assigned_employees"].as_array().unwrap().len() == 2);
    has("of a location below", &|job| job["company_id"] != json!(world.account));
}

#[tokio::test]
async fn refusals_without_a_limit_may_say_how_long() {
    let world = World::new(5);
    world.faults(&["throttle_storm=1x", "retry_after=1x"]);
    let answer = world.get("/jobs").await;
    assert_eq!((answer.status, answer.headers[RETRY_AFTER].to_str().unwrap()), (429, "2"));
    assert_eq!(world.part.came_early(&world.account), 0);
    world.get("/jobs").await;
    assert_eq!(world.part.came_early(&world.account), 1);
    world.faults(&["throttle_storm=1x"]);
    let answer = world.get("/jobs").await;
    assert!(answer.status == 429 && !answer.headers.contains_key(RETRY_AFTER));
    assert_eq!(world.get("/jobs").await.status, 200);
    world.faults(&["slow=50"]);
    tokio::join!(world.get("/jobs"), world.get("/jobs"));
    assert_eq!(world.part.most_at_once(&world.account), 2);
}
