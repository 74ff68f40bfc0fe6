//! ServiceTitan's part as a client meets it: requests through the whole router, without a socket.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, Request};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use serde_json::{Value, json};
use tower::ServiceExt;
use url::{Url, form_urlencoded};

use super::feed::FEED_PAGE;
use super::{APP_KEY, Kind, ServiceTitan, TENANT_FIRST as TENANT, seed};
use crate::domain::time::ShiftedClock;
use crate::sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox, SandboxOptions};

const TOKEN: &str = "/servicetitan/connect/token";
const REDIRECT: &str = "http://127.0.0.1:9/cb";

struct World {
    sandbox: Sandbox,
    router: Router,
    clock: Arc<ShiftedClock>,
    bearer: String,
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

    fn ids(&self) -> Vec<u64> {
        let answer = self.json();
        let rows = answer["data"].as_array().unwrap_or_else(|| panic!("no data: {answer}"));
        rows.iter().map(|row| row["id"].as_u64().unwrap()).collect()
    }

    fn next(&self) -> String {
        self.json()["continueFrom"].as_str().unwrap_or_default().to_owned()
    }

    fn more(&self) -> bool {
        self.json()["hasMore"].as_bool().unwrap()
    }
}

impl World {
    async fn new(records: usize, faults: &[&str]) -> Self {
        let clock = Arc::new(ShiftedClock::default());
        let faults = faults.iter().map(|text| text.parse().unwrap()).collect();
        let options = SandboxOptions { records, faults, clock: clock.clone(), ..SandboxOptions::default() };
        let sandbox = Sandbox::new(options);
        let mut world = Self { router: sandbox.router(), sandbox, clock, bearer: String::new() };
        let granted = world.credentials(&[]).await.json();
        granted["access_token"].as_str().unwrap_or_default().clone_into(&mut world.bearer);
        world
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().into()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    async fn get_with(&self, path: &str, bearer: &str, key: &str) -> Answer {
        let request = Request::get(format!("/servicetitan{path}"))
            .header(AUTHORIZATION, format!("Bearer {bearer}"))
            .header("ST-App-Key", key);
        self.send(request.body(Body::empty()).unwrap()).await
    }

    /// `crm/bookings?x=y` of our tenant.
    async fn get(&self, place: &str) -> Answer {
        let (module, rest) = place.split_once('/').unwrap();
        self.get_with(&format!("/{module}/v2/tenant/{TENANT}/{rest}"), &self.bearer, APP_KEY).await
    }

    async fn form(&self, fields: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = Request::post(TOKEN).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    /// Asks for a token with the tenant's credentials; `fields` go before them, and the first of a name counts.
    async fn credentials(&self, fields: &[(&str, &str)]) -> Answer {
        let (id, secret) = (ServiceTitan::client_id(TENANT), ServiceTitan::client_secret(TENANT));
        let own = [("grant_type", "client_credentials"), ("client_id", &id), ("client_secret", &secret)];
        self.form(&[fields, &own].concat()).await
    }

    fn change(&self, change: Value) -> Vec<u64> {
        let change = serde_json::from_value(change).unwrap();
        self.sandbox.servicetitan().change(TENANT, &change).unwrap()
    }

    /// Reads a feed to its end. Returns the ids as delivered and the last token that was not the feed's end.
    async fn feed(&self, place: &str, more: &str) -> (Vec<u64>, String) {
        let (mut from, mut ids) = (String::new(), Vec::new());
        loop {
            let escaped: String = form_urlencoded::byte_serialize(from.as_bytes()).collect();
            let answer = self.get(&format!("{place}?from={escaped}{more}")).await;
            ids.extend(answer.ids());
            if !answer.next().is_empty() {
                from = answer.next();
            }
            if !answer.more() {
                return (ids, from);
            }
        }
    }
}

fn escaped(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test]
async fn a_token_costs_credentials_in_the_body_and_lives_900_seconds() {
    let world = World::new(5, &[]).await;
    let granted = world.credentials(&[]).await.json();
    assert_eq!((&granted["expires_in"], &granted["token_type"]), (&json!(900), &json!("Bearer")));
    assert!(granted.get("refresh_token").is_none(), "there is none, ever");
    assert!(granted["scope"].as_str().unwrap().contains("tn.crm.bookings:r"));
    let claims = granted["access_token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!((&claims["tenant"], claims["scope"].is_array()), (&json!(TENANT.to_string()), true));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(), 900);

    let basic = Request::post(TOKEN)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(AUTHORIZATION, "Basic Y2lkOmNz")
        .body(Body::from("grant_type=client_credentials"));
    let refused = world.send(basic.unwrap()).await;
    assert_eq!((refused.status, refused.json()), (400, json!({"error": "invalid_request"})));
    for (fields, error) in [
        (vec![("client_secret", "cs1.other")], "invalid_client"),
        (vec![("client_id", "cid.other")], "invalid_client"),
        (vec![("tenant", "930000002")], "invalid_client"),
        (vec![("grant_type", "password")], "unsupported_grant_type"),
        (
            vec![
                ("client_id", ServiceTitan::HUB_CLIENT_ID),
                ("client_secret", ServiceTitan::HUB_CLIENT_SECRET),
            ],
            "invalid_request",
        ),
    ] {
        assert_eq!(world.credentials(&fields).await.json(), json!({"error": error}), "{fields:?}");
    }
    let hub =
        [("client_id", ServiceTitan::HUB_CLIENT_ID), ("client_secret", ServiceTitan::HUB_CLIENT_SECRET)];
    let hub = world.credentials(&[&hub[..], &[("tenant", "930000001")]].concat()).await;
    assert_eq!(hub.status, 200, "a network's client names the tenant");

    assert_eq!(world.get("settings/business-units").await.status, 200);
    world.clock.shift(TimeDelta::seconds(901));
    assert_eq!(world.get("settings/business-units").await.status, 401);
}

#[tokio::test]
async fn the_token_endpoint_has_a_limit_and_every_call_is_counted() {
    let world = World::new(5, &[]).await;
    world.clock.stop();
    let mut last = 200;
    for _ in 0..30 {
        last = world.credentials(&[]).await.status;
    }
    assert_eq!((last, world.sandbox.ledger().of_purpose("token")), (429, 31));
}

#[tokio::test]
async fn who_asks_is_looked_at() {
    let world = World::new(5, &[]).await;
    let path = format!("/jpm/v2/tenant/{TENANT}/jobs");
    for (bearer, key, path, status) in [
        (world.bearer.as_str(), APP_KEY, path.as_str(), 200),
        (&world.bearer, "", &path, 401),
        (&world.bearer, "ak1.other", &path, 401),
        ("nobody", APP_KEY, &path, 401),
        (&world.bearer, APP_KEY, "/jpm/v2/tenant/930000002/jobs", 403),
        (&world.bearer, APP_KEY, "/jpm/v2/tenant/5/jobs", 404),
        (&world.bearer, APP_KEY, "/crm/v2/tenant/930000001/jobs", 404),
    ] {
        assert_eq!(world.get_with(path, bearer, key).await.status, status, "{path} {key}");
    }
    world.change(json!({"do": "lose_scopes", "scopes": ["tn.jpm.jobs:r"]}));
    let token = world.credentials(&[]).await.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(world.get_with(&path, &token, APP_KEY).await.status, 403);
    world.change(json!({"do": "disable"}));
    assert_eq!(world.get("jpm/jobs").await.status, 401);
    assert_eq!(world.credentials(&[]).await.json(), json!({"error": "invalid_client"}));
    world.change(json!({"do": "enable"}));
    assert_eq!(world.credentials(&[]).await.status, 200);
}

#[tokio::test]
async fn a_feed_tells_everything_at_least_once_and_then_what_changed() {
    let world = World::new(600, &[]).await;
    let (ids, token) = world.feed("jpm/export/jobs", "").await;
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 600);
    assert!(ids.len() > 600, "some twice");
    assert!(ids.contains(&seed::BEYOND_DOUBLES));
    assert!(token.contains(['+', '/', '=']), "has to be escaped: {token}");
    let first = world.get("jpm/export/jobs").await;
    let times: Vec<String> = first.json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["modifiedOn"].as_str().unwrap().to_owned())
        .collect();
    assert!(!times.is_sorted(), "order is usual, not promised");
    assert!(first.json()["data"].as_array().unwrap().iter().any(|job| job["active"] == false));

    // A change shows after a quarter of an hour, or at once to those who ask for recent ones.
    let changed =
        world.change(json!({"do": "set", "kind": "jobs", "id": 7_000_003, "fields": {"summary": "new"}}));
    let later = format!("jpm/export/jobs?from={}", escaped(&token));
    let seen = |answer: &Answer| answer.ids().contains(&changed[0]);
    assert!(!seen(&world.get(&later).await));
    let (recent, _) = world.feed("jpm/export/jobs", "&includeRecentChanges=true").await;
    assert_eq!(recent.last(), Some(&changed[0]));
    world.clock.shift(TimeDelta::minutes(14));
    assert!(!seen(&world.get(&later).await));
    world.clock.shift(TimeDelta::minutes(1));
    let world = World {
        bearer: world.credentials(&[]).await.json()["access_token"].as_str().unwrap().into(),
        ..world
    };
    assert!(seen(&world.get(&later).await));
    assert_eq!(world.get("jpm/export/jobs?from=2099-01-01").await.ids(), Vec::<u64>::new());
}

#[tokio::test]
async fn feeds_end_in_as_many_ways_as_clients_report() {
    let world = World::new(30, &[]).await;
    for (place, ends) in [
        ("jpm/export/jobs", "text"),
        ("crm/export/bookings", "null"),
        ("crm/export/customers", "missing"),
        ("crm/export/locations", "empty"),
        ("settings/export/technicians", "unchanged"),
    ] {
        let answer = world.get(&format!("{place}?from=2020-01-01")).await;
        assert!(!answer.more());
        let told = answer.json();
        let way = match told.get("continueFrom") {
            None => "missing",
            Some(Value::Null) => "null",
            Some(text) if text == "" => "empty",
            Some(text) if text == "2020-01-01" => "unchanged",
            Some(_) => "text",
        };
        assert_eq!(way, ends, "{place}");
    }
}

#[tokio::test]
async fn a_token_is_good_for_what_it_was_made_for() {
    let world = World::new(FEED_PAGE + 5, &[]).await;
    let token = escaped(&world.get("jpm/export/jobs").await.next());
    for (place, status) in [
        (format!("jpm/export/jobs?from={token}"), 200),
        (format!("jpm/export/jobs?from={token}&includeRecentChanges=true"), 400),
        (format!("jpm/export/appointments?from={token}"), 400),
        ("jpm/export/jobs?from=soon".to_owned(), 400),
    ] {
        assert_eq!(world.get(&place).await.status, status, "{place}");
    }
    world.change(json!({"do": "forget_feeds"}));
    let refused = world.get(&format!("jpm/export/jobs?from={token}")).await;
    assert_eq!((refused.status, &refused.json()["errors"]), (400, &json!({"from": ["Value is not valid."]})));
    for member in ["type", "title", "status", "traceId", "data"] {
        assert!(!refused.json()[member].is_null(), "{member}");
    }
    let world = World::new(5, &["stuck_cursor"]).await;
    let stuck = world.get("jpm/export/jobs").await;
    assert!(stuck.more() && stuck.next().is_empty());
}

#[tokio::test]
async fn lists_page_filter_and_know_no_active_jobs() {
    let world = World::new(120, &[]).await;
    let all = world.get("jpm/jobs?pageSize=9999&includeTotal=true").await;
    assert_eq!(
        (all.ids().len(), &all.json()["totalCount"], &all.json()["pageSize"]),
        (120, &json!(120), &json!(9999))
    );
    assert!(all.ids().is_sorted());
    assert!(all.json()["data"].as_array().unwrap().iter().all(|job| job.get("active").is_none()));
    assert!(world.get("jpm/export/jobs").await.json()["data"][0].get("active").is_some());
    let last = world.get("jpm/jobs?page=3").await;
    assert_eq!((last.ids().len(), last.more(), &last.json()["totalCount"]), (20, false, &json!(null)));
    assert_eq!(world.get("jpm/jobs?sort=%2BId").await.status, 200);
    assert_eq!(world.get("jpm/jobs?sort=+Id").await.status, 400, "a bare plus is a blank");
    assert_eq!(world.get("jpm/jobs?page=0").await.status, 400);
    assert_eq!(world.get("jpm/jobs?ids=7000001,7000009,1").await.ids(), [7_000_001, 7_000_009]);
    let many: Vec<String> = (0..51).map(|id| id.to_string()).collect();
    assert_eq!(world.get(&format!("jpm/jobs?ids={}", many.join(","))).await.status, 400);
    let types = |query: &str| format!("jpm/job-types?active={query}");
    assert_eq!(world.get("jpm/job-types").await.ids().len(), 5);
    assert_eq!(world.get(&types("Any")).await.ids().len(), 6);
    assert_eq!(world.get(&types("False")).await.ids(), [26]);
    assert_eq!(world.get("jpm/jobs/7000001").await.json()["id"], 7_000_001);
    assert_eq!(world.get("jpm/jobs/1").await.status, 404);
    let changed =
        world.change(json!({"do": "set", "kind": "jobs", "id": 7_000_002, "fields": {"total": 1.5}}));
    let since = escaped(&(world.sandbox.shared.now() - TimeDelta::minutes(1)).to_rfc3339());
    assert_eq!(world.get(&format!("jpm/jobs?modifiedOnOrAfter={since}")).await.ids(), changed);
}

#[tokio::test]
async fn a_bound_app_has_the_paths_of_its_booking_provider_only() {
    let world = World::new(60, &[]).await;
    let own = world.get("crm/booking-provider/71/bookings?pageSize=500").await;
    assert!(!own.ids().is_empty());
    assert!(own.json()["data"].as_array().unwrap().iter().all(|booking| booking["bookingProviderId"] == 71));
    let id = own.ids()[0];
    assert_eq!(world.get("crm/booking-provider/5/bookings").await.status, 404);
    world.change(json!({"do": "bind", "booking_provider": 71}));
    for (place, status) in [
        ("crm/export/bookings".to_owned(), 403),
        ("crm/bookings".to_owned(), 403),
        (format!("crm/bookings/{id}"), 403),
        ("crm/booking-provider/72/bookings".to_owned(), 403),
        ("crm/booking-provider/71/bookings".to_owned(), 200),
        (format!("crm/booking-provider/71/bookings/{id}"), 200),
        ("crm/booking-provider/71/bookings/1".to_owned(), 404),
        ("jpm/export/jobs".to_owned(), 200),
    ] {
        assert_eq!(world.get(&place).await.status, status, "{place}");
    }
}

#[tokio::test]
async fn what_happens_is_seen_in_the_feed_and_in_the_truth() {
    let world = World::new(30, &[]).await;
    let job = 7_000_004;
    let [_, log] = world.change(json!({"do": "cancel", "id": job}))[..] else { panic!("two records") };
    let made = world
        .change(json!({"do": "create", "kind": "bookings", "fields": {"name": "Zoë", "status": "New"}}))[0];
    world.change(json!({"do": "remove", "kind": "jobs", "id": 7_000_005}));
    world.change(json!({"do": "set", "kind": "customers", "id": 30_001, "fields": {"active": false, "mergedToId": 30_002}}));
    let recent = "&includeRecentChanges=true";
    assert!(world.feed("jpm/export/job-canceled-logs", recent).await.0.contains(&log));
    assert_eq!(world.feed("crm/export/bookings", recent).await.0.last(), Some(&made));
    assert!(!world.feed("jpm/export/jobs", recent).await.0.contains(&7_000_005), "gone without a trace");
    let truth = world.sandbox.servicetitan().truth(TENANT).unwrap();
    let of = |kind: Kind, id: u64| {
        let found = truth
            .iter()
            .find(|line| line["kind"] == json!(kind) && (line["record"]["id"] == id || line["id"] == id));
        found.cloned().unwrap_or_else(|| panic!("{kind:?} {id}"))
    };
    assert_eq!(of(Kind::Jobs, job)["record"]["jobStatus"], "Canceled");
    assert_eq!(of(Kind::Jobs, 7_000_005)["state"], "removed");
    assert_eq!(of(Kind::Customers, 30_001)["state"], "inactive");
    assert!(of(Kind::Bookings, made)["record"]["modifiedOn"].is_string());
    assert!(of(Kind::JobCanceledLogs, log)["record"].get("modifiedOn").is_none());
}

#[tokio::test]
async fn refusals_for_haste_say_how_long_in_turn() {
    let world = World::new(5, &["throttle_storm=on:export_jobs"]).await;
    let mut ways = Vec::new();
    for _ in 0..4 {
        let answer = world.get("jpm/export/jobs").await;
        assert_eq!(answer.status, 429);
        assert_eq!(answer.json()["message"], "Rate limit is exceeded. Try again in 1 seconds.");
        ways.push(answer.headers.get(RETRY_AFTER).map(|text| text.to_str().unwrap().to_owned()));
    }
    assert_eq!((ways[0].as_deref(), ways[1].as_deref(), &ways[3]), (Some("1"), Some("0.700"), &None));
    assert!(ways[2].as_ref().unwrap().ends_with(" GMT"));
    let pauses = world.sandbox.servicetitan().pauses().clone();
    assert_eq!([0, 1, 3].map(|place: usize| pauses[place].asked_ms), [1_000, 700, 1_000]);
    assert!((0..=1_000).contains(&pauses[2].asked_ms), "{pauses:?}");
    assert!(pauses[..3].iter().all(|pause| pause.kept_ms.is_some()) && pauses[3].kept_ms.is_none());
    let world = World::new(5, &[]).await;
    world.clock.stop();
    let mut statuses = Vec::new();
    for _ in 0..61 {
        statuses.push(world.get("settings/business-units").await.status);
    }
    assert_eq!((statuses.iter().filter(|status| **status == 200).count(), statuses[60]), (60, 429));
}

#[tokio::test]
async fn the_code_grant_of_older_guides_works_where_it_is_offered() {
    let world = World::new(5, &[]).await;
    let ask = format!(
        "/connect/authorize?client_id={CLIENT_ID}&redirect_uri={REDIRECT}&response_type=code&state=s&auto=approve"
    );
    let code = |scope: &str| {
        let path = format!("{ask}&scope={scope}");
        let world = &world;
        async move {
            let answer = world.get_with(&path, "", "").await;
            let url = Url::parse(answer.headers[LOCATION].to_str().unwrap()).unwrap();
            url.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned()
        }
    };
    let app = [("client_id", CLIENT_ID), ("client_secret", CLIENT_SECRET)];
    let exchange = |code: String| {
        let world = &world;
        async move {
            let fields =
                [("grant_type", "authorization_code"), ("code", code.as_str()), ("redirect_uri", REDIRECT)];
            world.form(&[&fields[..], &app[..]].concat()).await
        }
    };
    let granted = exchange(code("tn.jpm.jobs:r").await).await.json();
    assert!(granted.get("refresh_token").is_none());
    assert_eq!(granted["scope"], "tn.jpm.jobs:r");
    let granted = exchange(code("tn.jpm.jobs:r%20offline_access").await).await.json();
    let refresh = granted["refresh_token"].as_str().unwrap();
    let again = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
    let renewed = world.form(&[&again[..], &app[..]].concat()).await.json();
    assert_ne!(renewed["refresh_token"].as_str().unwrap(), refresh, "it rotates");
    let token = renewed["access_token"].as_str().unwrap();
    assert_eq!(world.get_with(&format!("/jpm/v2/tenant/{TENANT}/jobs"), token, APP_KEY).await.status, 200);
    assert_eq!(world.form(&[&again[..], &app[..]].concat()).await.json(), json!({"error": "invalid_grant"}));

    world.sandbox.set_faults(vec!["no_code_grant".parse().unwrap()]);
    let page = world.get_with(&ask, "", "").await;
    assert!(page.status == 404 && page.text.starts_with("<!DOCTYPE html>"));
    assert_eq!(exchange("x".to_owned()).await.json(), json!({"error": "unauthorized_client"}));
}
