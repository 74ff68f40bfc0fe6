//! OnceHub's part as a client meets it: requests through its routes, without a socket.

use axum::body::Body;
use axum::http;
use chrono::TimeDelta;
use tower::ServiceExt;

use super::*;
use crate::domain::time::ShiftedClock;
use crate::sandbox::SandboxOptions;

struct World {
    oncehub: Arc<OnceHub>,
    router: Router,
    clock: Arc<ShiftedClock>,
}

impl World {
    fn new(records: usize, throttled: bool) -> Self {
        let clock = Arc::new(ShiftedClock::default());
        let options =
            SandboxOptions { records, throttled, clock: clock.clone(), ..SandboxOptions::default() };
        let oncehub = OnceHub::new(&Shared::new(options));
        Self { router: oncehub.clone().part().api, oncehub, clock }
    }

    async fn get(&self, path: &str) -> (u16, HeaderMap, Value) {
        let key = OnceHub::api_key(&self.oncehub.account_ids()[0]);
        let request = http::Request::get(path).header("API-Key", key).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap())
    }

    async fn status(&self, path: &str) -> u16 {
        self.get(path).await.0
    }
}

#[tokio::test]
async fn pages_follow_the_last_id() {
    let world = World::new(25, false);
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let (status, headers, page) = world.get(&format!("/v2/bookings?limit=10{after}")).await;
        assert_eq!(status, 200);
        let ids: Vec<String> = page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect();
        after = format!("&after={}", ids.last().unwrap());
        seen.extend(ids);
        let link = headers.get(LINK).map(|link| link.to_str().unwrap().to_owned());
        assert_eq!(link.is_some(), page["has_more"] == true);
        if page["has_more"] == false {
            break;
        }
        assert!(link.unwrap().starts_with("<https://api.oncehub.com/bookings?after="));
    }
    assert_eq!(seen.len(), 25);
    assert!(seen.is_sorted_by(|newer, older| newer > older), "newest first");
    assert_eq!(world.get("/v2/bookings").await.2["data"].as_array().unwrap().len(), LIMIT_DEFAULT);
}

#[tokio::test]
async fn what_is_wrong_is_refused() {
    let world = World::new(3, false);
    for path in [
        "/v2/bookings?limit=0",
        "/v2/bookings?limit=101",
        "/v2/bookings?after=BKNG-NONE",
        "/v2/bookings?after=a&before=b",
        "/v2/bookings?last_updated_time.gt=soon",
        "/v2/bookings?last_updated_time.gt=2026-02-01T00:00:00Z&last_updated_time.lt=2026-01-01T00:00:00Z",
    ] {
        let (status, _, body) = world.get(path).await;
        assert_eq!((status, body["type"].as_str()), (400, Some("invalid_request_error")), "{path}");
    }
    assert_eq!(world.status("/v2/bookings/BKNG-NONE").await, 404);
    assert_eq!(world.status("/bookings").await, 404);
    let request = http::Request::get("/v2/test").header("API-Key", "wrong").body(Body::empty()).unwrap();
    assert_eq!(world.router.clone().oneshot(request).await.unwrap().status(), 401);
    world.oncehub.revoke(&world.oncehub.account_ids()[0]);
    assert_eq!(world.status("/v2/test").await, 401);
}

#[tokio::test]
async fn both_limits_hold() {
    let world = World::new(1, true);
    world.clock.stop();
    for _ in 0..SECONDLY {
        assert_eq!(world.status("/v2/test").await, 200);
    }
    assert_eq!(world.status("/v2/test").await, 429);
    world.clock.shift(TimeDelta::seconds(1));
    for _ in SECONDLY..FIVE_MINUTELY {
        world.clock.shift(TimeDelta::milliseconds(250));
        assert_eq!(world.status("/v2/test").await, 200);
    }
    world.clock.shift(TimeDelta::seconds(5));
    assert_eq!(world.status("/v2/test").await, 429, "the address's limit");
    world.clock.shift(TimeDelta::minutes(5));
    assert_eq!(world.status("/v2/test").await, 200);
}

#[tokio::test]
async fn changes_show_in_windows_and_deletions_in_two_ways() {
    let world = World::new(5, false);
    let account = world.oncehub.account_ids()[0].clone();
    let ids: Vec<String> = world
        .oncehub
        .truth(&account)
        .unwrap()
        .iter()
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect();
    let since = world.oncehub.shared.now() - TimeDelta::seconds(1);
    let window = format!("/v2/bookings?last_updated_time.gt={}", since.to_rfc3339().replace('+', "%2B"));
    assert!(world.get(&window).await.2["data"].as_array().unwrap().is_empty());
    let change = Change::Cancel { id: ids[2].clone(), reason: "ill".to_owned() };
    world.oncehub.change(&account, &change).unwrap();
    let page = world.get(&window).await.2;
    assert_eq!((&page["data"][0]["id"], &page["data"][0]["status"]), (&json!(ids[2]), &json!("canceled")));
    for (index, gone) in [(0, false), (1, true)] {
        world.oncehub.change(&account, &Change::Delete { id: ids[index].clone(), gone }).unwrap();
    }
    let (status, _, redacted) = world.get(&format!("/v2/bookings/{}", ids[0])).await;
    assert_eq!((status, redacted), (200, json!({"id": ids[0], "object": "booking", "deleted": true})));
    assert_eq!(world.status(&format!("/v2/bookings/{}", ids[1])).await, 404);
    assert_eq!(world.get("/v2/bookings?limit=100").await.2["data"].as_array().unwrap().len(), 3);
}
