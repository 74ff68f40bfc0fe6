//! HubSpot's part as a client meets it: requests through the whole router, without a socket.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, Request};
use chrono::TimeDelta;
use serde_json::{Value, json};
use tower::ServiceExt;
use url::{Url, form_urlencoded};

use super::{Change, HUB_ID_FIRST as HUB, Hubspot, Values};
use crate::domain::time::ShiftedClock;
use crate::sandbox::{CLIENT_ID, CLIENT_SECRET, HubspotLimits, Sandbox, SandboxOptions};

const REDIRECT: &str = "http://127.0.0.1:9/cb";
const DATED: &str = "/hubspot/crm/objects/2026-03/tickets";
const TOKEN: &str = "/hubspot/oauth/2026-03/token";

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

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn ids(&self) -> Vec<u64> {
        let answer = self.json();
        answer["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].as_str().unwrap().parse().unwrap())
            .collect()
    }
}

impl World {
    fn new(change: impl FnOnce(&mut SandboxOptions)) -> Self {
        let clock = Arc::new(ShiftedClock::default());
        let mut options =
            SandboxOptions { records: 30, throttled: false, clock: clock.clone(), ..Default::default() };
        change(&mut options);
        let sandbox = Sandbox::new(options);
        Self { router: sandbox.router(), sandbox, clock, bearer: Hubspot::private_app_token(HUB) }
    }

    fn faulty(faults: &[&str]) -> Self {
        Self::new(|options| options.faults = faults.iter().map(|text| text.parse().unwrap()).collect())
    }

    /// The response, or the error that a cut connection is.
    async fn send(&self, request: Request<Body>) -> Result<Answer, axum::Error> {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(to_bytes(body, usize::MAX).await?.into()).unwrap();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, text })
    }

    async fn get(&self, path: &str) -> Answer {
        let request = Request::get(path).header(AUTHORIZATION, format!("Bearer {}", self.bearer));
        self.send(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = Request::post(path).header(AUTHORIZATION, format!("Bearer {}", self.bearer));
        self.send(request.body(Body::from(body.to_string())).unwrap()).await.unwrap()
    }

    async fn form(&self, path: &str, fields: &[(&str, &str)]) -> Result<Answer, axum::Error> {
        let app = [("client_id", CLIENT_ID), ("client_secret", CLIENT_SECRET)];
        // The first of two fields of a name is the one that counts.
        let body =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(fields.iter().chain(&app)).finish();
        let request = Request::post(path).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    async fn code(&self, extra: &str) -> String {
        let path = format!(
            "/hubspot/oauth/authorize?client_id={CLIENT_ID}&redirect_uri={REDIRECT}&scope=oauth%20tickets&state=s&auto=approve{extra}"
        );
        let location = self.get(&path).await.header(LOCATION.as_str()).unwrap().to_owned();
        let url = Url::parse(&location).unwrap();
        url.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned()
    }

    async fn exchange(&self, code: &str) -> Answer {
        let fields = [("grant_type", "authorization_code"), ("code", code), ("redirect_uri", REDIRECT)];
        self.form(TOKEN, &fields).await.unwrap()
    }

    async fn refresh(&self, token: &str) -> Result<Answer, axum::Error> {
        self.form(TOKEN, &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    /// Connects, and uses the tokens from now on. Returns the token answer.
    async fn connect(&mut self) -> Value {
        let tokens = self.exchange(&self.code("").await).await.json();
        tokens["access_token"].as_str().unwrap().clone_into(&mut self.bearer);
        tokens
    }

    fn change(&self, change: &Change) -> Vec<u64> {
        self.sandbox.hubspot().change(HUB, change).unwrap().ids
    }
}

#[tokio::test]
async fn consent_code_tokens() {
    let mut world = World::new(|_| {});
    let page = world
        .get(&format!("/hubspot/oauth/authorize?client_id={CLIENT_ID}&redirect_uri={REDIRECT}&scope=tickets"))
        .await;
    assert_eq!(page.status, 200);
    for part in ["Approve", "Deny", "41000001", "41000002", "<li>tickets</li>"] {
        assert!(page.text.contains(part), "{part}");
    }
    assert!(!page.text.contains("<script"));
    let code = world.code("&account=41000002").await;
    let tokens = world.exchange(&code).await.json();
    assert_eq!((&tokens["hub_id"], &tokens["expires_in"]), (&json!(41_000_002), &json!(1800)));
    assert_eq!(
        (&tokens["scopes"], &tokens["token_use"]),
        (&json!(["oauth", "tickets"]), &json!("access_token"))
    );
    assert!(tokens["access_token"].as_str().unwrap().len() > 300);
    let again = world.exchange(&code).await;
    assert_eq!((again.status, &again.json()["status"]), (400, &json!("BAD_AUTH_CODE")));
    assert_eq!(again.json()["error"], "invalid_grant");
    tokens["access_token"].as_str().unwrap().clone_into(&mut world.bearer);
    let details = world.get("/hubspot/account-info/v3/details").await;
    assert_eq!(details.json()["portalId"], 41_000_002);
    let refreshed = world.refresh(tokens["refresh_token"].as_str().unwrap()).await.unwrap().json();
    assert_eq!(refreshed["refresh_token"], tokens["refresh_token"]);
    assert_ne!(refreshed["access_token"], tokens["access_token"]);
    assert_eq!(world.get(DATED).await.status, 200, "the earlier access token is still good");
}

#[tokio::test]
async fn the_first_version_answers_four_fields() {
    let world = World::new(|_| {});
    let code = world.code("").await;
    let fields = [("grant_type", "authorization_code"), ("code", &code), ("redirect_uri", REDIRECT)];
    let tokens = world.form("/hubspot/oauth/v1/token", &fields).await.unwrap().json();
    let names: Vec<&String> = tokens.as_object().unwrap().keys().collect();
    assert_eq!(names, ["access_token", "expires_in", "refresh_token", "token_type"]);
}

#[tokio::test]
async fn token_errors_have_hubspots_words() {
    let world = World::new(|_| {});
    let code = world.code("").await;
    let exchange = ("grant_type", "authorization_code");
    for (fields, status, error) in [
        (&[exchange, ("code", "x")][..], "BAD_AUTH_CODE", "invalid_grant"),
        (
            &[exchange, ("code", &code), ("redirect_uri", "http://127.0.0.1:8/")],
            "BAD_REDIRECT_URI",
            "invalid_grant",
        ),
        (&[("grant_type", "refresh_token"), ("refresh_token", "x")], "BAD_REFRESH_TOKEN", "invalid_grant"),
        (&[exchange, ("client_id", "x")], "BAD_CLIENT_ID", "invalid_client"),
        (&[exchange, ("client_secret", "x")], "BAD_CLIENT_SECRET", "invalid_client"),
        (&[("grant_type", "password")], "BAD_GRANT_TYPE", "unsupported_grant_type"),
    ] {
        let answer = world.form(TOKEN, fields).await.unwrap();
        let body = answer.json();
        assert_eq!((answer.status, &body["status"], &body["error"]), (400, &json!(status), &json!(error)));
        assert!(body["correlationId"].is_string());
    }
    let json = world.post(TOKEN, &json!({"grant_type": "authorization_code", "client_id": CLIENT_ID})).await;
    assert_eq!(json.status, 400, "a JSON body is refused");
    world.sandbox.set_faults(vec!["plain_oauth_errors".parse().unwrap()]);
    let plain = world.refresh("x").await.unwrap().json();
    assert_eq!((plain.get("error"), &plain["status"]), (None, &json!("BAD_REFRESH_TOKEN")));
}

#[tokio::test]
async fn introspect_and_revoke() {
    let mut world = World::new(|_| {});
    let tokens = world.connect().await;
    let refresh = tokens["refresh_token"].as_str().unwrap();
    let introspect = format!("{TOKEN}/introspect");
    let told = world.form(&introspect, &[("token", &world.bearer)]).await.unwrap().json();
    assert_eq!((&told["active"], &told["hub_id"]), (&json!(true), &json!(HUB)));
    assert_eq!(told["hub_domain"], "acme-1.example");
    assert_eq!(world.form(&format!("{TOKEN}/revoke"), &[("token", refresh)]).await.unwrap().status, 204);
    let told = world.form(&introspect, &[("token", refresh)]).await.unwrap().json();
    assert_eq!(told, json!({"active": false}));
    assert_eq!(world.refresh(refresh).await.unwrap().status, 400);
    assert_eq!(world.get(DATED).await.status, 200, "access tokens outlive a revoked refresh token");
}

#[tokio::test]
async fn rotation_and_lost_replies_are_seen_in_the_counters() {
    let mut world = World::faulty(&["rotate", "lost_token_reply=1x,on:token_refresh"]);
    let tokens = world.connect().await;
    let old = tokens["refresh_token"].as_str().unwrap();
    assert!(world.refresh(old).await.is_err(), "the reply is lost");
    assert_eq!(world.refresh(old).await.unwrap().json()["status"], "BAD_REFRESH_TOKEN");
    let counters = world.sandbox.counters();
    assert_eq!(counters["answers"]["hubspot"]["token_refresh"], json!({"0": 1, "400": 1}));
    let rows = &counters["refresh_tokens"]["hubspot"];
    assert_eq!(
        (&rows[0]["redeemed"], &rows[0]["replays"], &rows[1]["redeemed"]),
        (&json!(1), &json!(1), &json!(0))
    );
}

#[tokio::test]
async fn token_answers_with_less_in_them() {
    let mut world = World::faulty(&["no_expires_in", "no_refresh_token=1.0,on:token_refresh"]);
    let tokens = world.connect().await;
    assert_eq!(tokens.get("expires_in"), None);
    let refreshed = world.refresh(tokens["refresh_token"].as_str().unwrap()).await.unwrap().json();
    assert_eq!(refreshed.get("refresh_token"), None);
    world.sandbox.set_faults(vec!["wrong_account".parse().unwrap()]);
    let refreshed = world.refresh(tokens["refresh_token"].as_str().unwrap()).await.unwrap().json();
    assert_eq!(refreshed["hub_id"], HUB + 1);
}

#[tokio::test]
async fn unauthorised_calls() {
    let mut world = World::new(|_| {});
    world.connect().await;
    world.clock.shift(TimeDelta::minutes(33));
    let expired = world.get(DATED).await;
    assert_eq!((expired.status, &expired.json()["category"]), (401, &json!("EXPIRED_AUTHENTICATION")));
    assert!(expired.json()["message"].as_str().unwrap().contains("expired 3 minute(s) ago"));
    world.bearer = "nonsense".to_owned();
    assert_eq!(world.get(DATED).await.json()["category"], "INVALID_AUTHENTICATION");
    assert_eq!(world.sandbox.ledger().of_status(401), 2);
    world.connect().await;
    let owners = world.get("/hubspot/crm/v3/owners").await;
    assert_eq!((owners.status, &owners.json()["category"]), (403, &json!("MISSING_SCOPES")));
    let scopes = &owners.json()["errors"][0]["context"]["requiredGranularScopes"];
    assert_eq!(scopes, &json!(["crm.objects.owners.read"]));
    let router = world.router.clone();
    let revoke =
        Request::post(format!("/control/hubspot/accounts/{HUB}/revoke")).body(Body::empty()).unwrap();
    assert_eq!(router.oneshot(revoke).await.unwrap().status(), 200);
    assert_eq!(world.get(DATED).await.json()["category"], "INVALID_AUTHENTICATION");
}

#[tokio::test]
async fn lists_page_by_id_and_leave_out_the_archived() {
    let world = World::new(|options| options.records = 230);
    world.change(&Change::Archive { id: world.get(DATED).await.ids()[3] });
    let counts = world.sandbox.hubspot().counts(HUB).unwrap();
    for (archived, state) in [("false", "live"), ("true", "archived")] {
        let (mut ids, mut after) = (Vec::new(), String::new());
        for _ in 0..4 {
            let page = world.get(&format!("{DATED}?limit=100&archived={archived}&after={after}")).await;
            ids.extend(page.ids());
            for row in page.json()["results"].as_array().unwrap() {
                assert_eq!(row["archived"].to_string(), archived);
                assert_eq!(row.get("archivedAt").is_some(), archived == "true");
            }
            match page.json()["paging"]["next"]["after"].as_str() {
                Some(next) => next.clone_into(&mut after),
                None => break,
            }
        }
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert_eq!(json!(ids.len()), counts[state], "{state}");
    }
    assert_eq!(world.get(&format!("{DATED}?limit=101")).await.status, 400);
    assert_eq!(world.get(&format!("{DATED}?after=200")).await.status, 400, "a search cursor");
    assert_eq!(world.get("/hubspot/crm/v3/objects/tickets").await.ids().len(), 10, "the default page");
    assert_eq!(world.get(&format!("{DATED}?properties={}", "x,".repeat(8000))).await.status, 414);
}

#[tokio::test]
async fn properties_are_text_or_null_and_those_asked_for() {
    let world = World::new(|_| {});
    let row = &world.get(&format!("{DATED}?limit=1")).await.json()["results"][0];
    assert_eq!(row["properties"].as_object().unwrap().len(), 9);
    assert_eq!(row["properties"]["hs_object_id"], row["id"]);
    assert_eq!(row["properties"]["hs_lastmodifieddate"], row["updatedAt"]);
    let asked = format!("{DATED}?limit=1&properties=subject,no_such,nps_score");
    let row = &world.get(&asked).await.json()["results"][0];
    let names: Vec<&String> = row["properties"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["createdate", "hs_lastmodifieddate", "hs_object_id", "nps_score", "subject"]);
    let known = world.get("/hubspot/crm/properties/2026-03/tickets").await.json();
    let kinds: Vec<&str> = known["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|property| property["type"].as_str().unwrap())
        .collect();
    assert!(kinds.len() > 48, "{}", kinds.len());
    assert_eq!(world.get("/hubspot/crm/v3/properties/tickets/nope").await.status, 404);
}

#[tokio::test]
async fn batch_reads_report_what_is_missing() {
    let world = World::new(|_| {});
    let ids = world.get(DATED).await.ids();
    let known = world.get("/hubspot/crm/v3/properties/tickets").await.json();
    let names: Vec<&Value> =
        known["results"].as_array().unwrap().iter().map(|property| &property["name"]).collect();
    let read = format!("{DATED}/batch/read");
    let inputs = |ids: &[u64]| ids.iter().map(|id| json!({"id": id.to_string()})).collect::<Vec<_>>();
    let body = json!({"properties": names, "inputs": inputs(&ids)});
    let whole = world.post(&read, &body).await;
    assert_eq!((whole.status, &whole.json()["status"]), (200, &json!("COMPLETE")));
    assert_eq!(whole.ids(), ids);
    assert_eq!(whole.json()["results"][0]["properties"].as_object().unwrap().len(), names.len());
    world.change(&Change::Archive { id: ids[0] });
    let part = world.post(&read, &json!({"inputs": inputs(&[ids[0], 7, ids[1]])})).await;
    assert_eq!((part.status, part.ids()), (207, vec![ids[1]]));
    assert_eq!(part.json()["errors"][0]["context"]["ids"], json!([ids[0].to_string(), "7"]));
    let archived = world.post(&format!("{read}?archived=true"), &json!({"inputs": inputs(&ids[..1])})).await;
    assert_eq!((archived.status, archived.ids()), (200, vec![ids[0]]));
    assert_eq!(world.post(&read, &json!({"inputs": vec![json!({"id": "1"}); 101]})).await.status, 400);
    world.sandbox.set_faults(vec!["silent_missing".parse().unwrap()]);
    let silent = world.post(&read, &json!({"inputs": inputs(&[7])})).await;
    assert_eq!((silent.status, silent.ids(), silent.json().get("errors").is_some()), (200, vec![], false));
}

#[tokio::test]
async fn merged_tickets_lead_to_their_survivor() {
    let world = World::new(|_| {});
    let ids = world.get(DATED).await.ids();
    let [survivor] = world.change(&Change::Merge { primary: ids[0], other: ids[1], new_id: true })[..] else {
        panic!()
    };
    let one = world.get(&format!("{DATED}/{}?properties=hs_merged_object_ids", ids[1])).await.json();
    assert_eq!(one["id"], survivor.to_string());
    assert_eq!(one["properties"]["hs_merged_object_ids"], format!("{};{}", ids[0], ids[1]));
    let listed = world.get(&format!("{DATED}?limit=100")).await.ids();
    assert!(listed.contains(&survivor) && !listed.contains(&ids[0]) && !listed.contains(&ids[1]));
    let read =
        world.post(&format!("{DATED}/batch/read"), &json!({"inputs": [{"id": ids[0].to_string()}]})).await;
    assert_eq!((read.status, read.ids()), (207, vec![]));
    world.sandbox.set_faults(vec!["resolve_merged".parse().unwrap()]);
    let read =
        world.post(&format!("{DATED}/batch/read"), &json!({"inputs": [{"id": ids[0].to_string()}]})).await;
    assert_eq!((read.status, read.ids()), (200, vec![survivor]));
    let truth = world.get(&format!("/control/hubspot/accounts/{HUB}/truth")).await.text;
    let lines: Vec<Value> = truth.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 31);
    let merged = lines.iter().find(|line| line["record"]["id"] == json!(ids[0].to_string())).unwrap();
    assert_eq!((&merged["state"], &merged["merged_into"]), (&json!("merged"), &json!(survivor.to_string())));
}

#[tokio::test]
async fn search_lags_and_knows_no_archived() {
    let world = World::new(|options| options.search_lag = Duration::from_mins(1));
    let search = format!("{DATED}/search");
    let ids = world.get(DATED).await.ids();
    let subject = |text: &str| Values::from([("subject".to_owned(), Some(text.to_owned()))]);
    world.change(&Change::Change { id: ids[0], properties: subject("unheard-of"), modified_ms: None });
    let body = json!({"filterGroups": [{"filters": [
        {"propertyName": "subject", "operator": "EQ", "value": "unheard-of"}]}]});
    assert_eq!(world.post(&search, &body).await.json()["total"], 0);
    world.clock.shift(TimeDelta::seconds(61));
    let found = world.post(&search, &body).await;
    assert_eq!((found.ids(), found.header("x-hubspot-ratelimit-max")), (vec![ids[0]], None));
    world.change(&Change::Archive { id: ids[0] });
    assert_eq!(world.post(&search, &body).await.ids(), [ids[0]], "the index does not know yet");
    world.clock.shift(TimeDelta::seconds(61));
    assert_eq!(world.post(&search, &body).await.json()["total"], 0);
}

#[tokio::test]
async fn ten_thousand_and_one_in_one_millisecond() {
    let world = World::new(|options| options.records = 0);
    let at = 1_790_000_000_000;
    world.change(&Change::BulkCreate { count: 10_001, properties: Values::new(), modified_ms: Some(at) });
    let search = |after: String, above: u64| {
        json!({"limit": 200, "after": after, "sorts": [{"propertyName": "hs_object_id", "direction": "ASCENDING"}],
            "properties": ["hs_object_id"], "filterGroups": [{"filters": [
                {"propertyName": "hs_lastmodifieddate", "operator": "EQ", "value": at.to_string()},
                {"propertyName": "hs_object_id", "operator": "GT", "value": above.to_string()}]}]})
    };
    let path = format!("{DATED}/search");
    let page = world.post(&path, &search("9800".into(), 0)).await;
    assert_eq!(
        (&page.json()["total"], &page.json()["paging"]["next"]["after"]),
        (&json!(10_001), &json!("10000"))
    );
    assert_eq!(world.post(&path, &search("10000".into(), 0)).await.status, 400);
    let rest = world.post(&path, &search(String::new(), *page.ids().last().unwrap())).await;
    assert_eq!((rest.ids().len(), rest.json().get("paging").is_some()), (1, false));
}

#[tokio::test]
async fn associations_on_both_wires() {
    let world = World::new(|options| options.links_page = 2);
    let [id] = world.change(&Change::Create { id: None, properties: Values::new(), modified_ms: None })[..]
    else {
        panic!()
    };
    let [bare] = world.change(&Change::Create { id: None, properties: Values::new(), modified_ms: None })[..]
    else {
        panic!()
    };
    for to_id in [51, 52, 53] {
        world.change(&Change::Associate { id, to: "contacts".into(), to_id });
    }
    world.change(&Change::Associate { id, to: "companies".into(), to_id: 9 });
    let inputs = json!({"inputs": [{"id": id.to_string()}, {"id": bare.to_string()}]});
    for (path, first) in [
        ("/hubspot/crm/v4/associations/tickets/contacts/batch/read", json!(51)),
        ("/hubspot/crm/associations/2026-03/tickets/contacts/batch/read", json!("51")),
    ] {
        let answer = world.post(path, &inputs).await;
        let body = answer.json();
        assert_eq!(
            (answer.status, &body["numErrors"], body["results"].as_array().unwrap().len()),
            (207, &json!(1), 1)
        );
        assert_eq!(body["results"][0]["to"][0]["toObjectId"], first);
        assert_eq!(body["results"][0]["paging"]["next"]["after"], "53");
        let rest = json!({"inputs": [{"id": id.to_string(), "after": "53"}]});
        let rest = world.post(path, &rest).await;
        assert_eq!((rest.status, rest.json()["results"][0].get("paging").is_some()), (200, false));
    }
    let one = world.get(&format!("{DATED}/{id}?associations=contacts,companies,deals")).await.json();
    let told = &one["associations"];
    assert_eq!(told["contacts"]["paging"]["next"]["after"], "53");
    let sorts: Vec<&Value> =
        told["companies"]["results"].as_array().unwrap().iter().map(|row| &row["type"]).collect();
    assert_eq!(sorts, ["ticket_to_company", "ticket_to_company_unlabeled"]);
    assert_eq!(told.get("deals"), None);
    let of_one =
        world.get(&format!("/hubspot/crm/v4/objects/tickets/{id}/associations/companies")).await.json();
    assert_eq!(of_one["results"][0]["associationTypes"][0]["typeId"], 26);
    world.sandbox.set_faults(vec!["numeric_ids".parse().unwrap()]);
    let dated = world.get(&format!("{DATED}/{id}/associations/companies")).await.json();
    assert_eq!(dated["results"][0]["toObjectId"], 9);
    world.change(&Change::Disassociate { id, to: "companies".into(), to_id: 9 });
    let of_one =
        world.get(&format!("/hubspot/crm/v4/objects/tickets/{id}/associations/companies")).await.json();
    assert_eq!(of_one["results"], json!([]));
}

#[tokio::test]
async fn owners_are_paged_and_kept_apart() {
    let world = World::new(|_| {});
    let mut ids = Vec::new();
    let mut after = String::new();
    for _ in 0..3 {
        let page = world.get(&format!("/hubspot/crm/owners/2026-03?limit=5&after={after}")).await;
        ids.extend(page.ids());
        let next = page.json()["paging"]["next"]["after"].as_str().map(ToOwned::to_owned);
        after = next.unwrap_or_default();
    }
    assert_eq!((ids.len(), after.as_str()), (12, ""));
    assert_eq!(world.get("/hubspot/crm/v3/owners?archived=true").await.ids().len(), 3);
    assert_eq!(world.get("/hubspot/crm/v3/owners?email=ben@acme-1.example").await.ids().len(), 1);
}

#[tokio::test]
async fn rate_limits_are_enforced_and_told() {
    let limits = HubspotLimits { ten_secondly: 3, searches_secondly: 2, token_ten_secondly: 1 };
    let world = World::new(|options| {
        options.throttled = true;
        options.hubspot_limits = limits;
    });
    world.clock.stop();
    for left in ["2", "1", "0"] {
        let answer = world.get(DATED).await;
        assert_eq!((answer.status, answer.header("x-hubspot-ratelimit-remaining")), (200, Some(left)));
    }
    let refused = world.get(DATED).await;
    assert_eq!((refused.status, &refused.json()["policyName"]), (429, &json!("TEN_SECONDLY_ROLLING")));
    assert_eq!(refused.header(RETRY_AFTER.as_str()), None);
    let search = format!("{DATED}/search");
    let searched = [world.post(&search, &json!({})).await, world.post(&search, &json!({})).await];
    assert_eq!(searched.map(|answer| answer.status), [200, 200], "search has a budget of its own");
    let refused = world.post(&search, &json!({})).await.json();
    assert_eq!(
        (&refused["policyName"], &refused["message"]),
        (&json!("SECONDLY"), &json!("You have reached your secondly limit."))
    );
    let batch = "/hubspot/crm/v4/associations/tickets/contacts/batch/read";
    assert_eq!(world.post(batch, &json!({"inputs": []})).await.status, 200, "exempt");
    world.clock.shift(TimeDelta::seconds(10));
    assert_eq!(world.get(DATED).await.status, 200);
    let statuses = [world.refresh("x").await.unwrap().status, world.refresh("x").await.unwrap().status];
    assert_eq!(statuses, [400, 429]);
}

#[tokio::test]
async fn faults_look_as_they_should() {
    for (fault, status, text) in [
        ("http_502", 502, "<h1>Error 502"),
        ("http_530", 530, "<html>"),
        ("html_ok", 200, "<html>"),
        ("http_500", 500, "internal error"),
        ("http_477", 477, "migrated"),
        ("http_423", 423, "locked"),
        ("throttle_storm", 429, "TEN_SECONDLY_ROLLING"),
        ("daily_limit", 429, "\"DAILY\""),
        ("expired_auth", 401, "EXPIRED_AUTHENTICATION"),
        ("invalid_auth", 401, "INVALID_AUTHENTICATION"),
        ("no_scope=tickets", 403, "\"tickets\""),
        ("empty_list", 200, "\"results\":[]"),
        ("malformed=/results/*/updatedAt", 200, "\"updatedAt\":{\"unexpected\""),
    ] {
        let answer = World::faulty(&[fault]).get(DATED).await;
        assert_eq!(answer.status, status, "{fault}");
        assert!(answer.text.contains(text), "{fault}: {}", answer.text);
    }
    let stuck = World::faulty(&["stuck_cursor"]);
    let next = stuck.get(DATED).await.json()["paging"]["next"]["after"].as_str().unwrap().to_owned();
    assert_eq!(
        stuck.get(&format!("{DATED}?after={next}")).await.json()["paging"]["next"]["after"],
        next.as_str()
    );
    let told = World::faulty(&["throttle_storm", "retry_after", "no_policy_name"]).get(DATED).await;
    assert_eq!((told.header(RETRY_AFTER.as_str()), told.json().get("policyName")), (Some("10"), None));
    assert_eq!(World::faulty(&["http_477"]).get(DATED).await.header(RETRY_AFTER.as_str()), Some("3600"));
}

#[tokio::test]
async fn lines_are_cut() {
    for (fault, counted) in [("torn", 200), ("drop", 0)] {
        let world = World::faulty(&[fault]);
        let request = Request::get(DATED).header(AUTHORIZATION, format!("Bearer {}", world.bearer));
        assert!(world.send(request.body(Body::empty()).unwrap()).await.is_err(), "{fault}");
        assert_eq!(world.sandbox.ledger().of_status(counted), 1, "{fault}");
    }
}

#[tokio::test]
async fn every_answer_is_dated() {
    let parse = |answer: &Answer| {
        let date = answer.header(DATE.as_str()).unwrap().to_owned();
        chrono::DateTime::parse_from_rfc2822(&date).unwrap().timestamp()
    };
    let world = World::new(|_| {});
    let honest = parse(&world.get(DATED).await);
    world.clock.shift(TimeDelta::hours(2));
    let later = parse(&world.get(DATED).await);
    assert!((7_199..7_260).contains(&(later - honest)), "the date follows the clock");
    world.sandbox.set_faults(vec!["date_skew=-7200".parse().unwrap()]);
    let skewed = parse(&world.get(DATED).await);
    assert!((-1..60).contains(&(skewed - honest)));
}

#[tokio::test]
async fn control_over_http() {
    let world = World::new(|_| {});
    let path = format!("/control/hubspot/accounts/{HUB}");
    let made = world.post(&path, &json!({"do": "create", "properties": {"subject": "x"}})).await.json();
    let id = made["ids"][0].as_u64().unwrap();
    for change in [
        json!({"do": "change", "id": id, "properties": {"content": "", "hubspot_owner_id": null}}),
        json!({"do": "add_property", "name": "roof_pitch", "kind": "number"}),
        json!({"do": "change", "id": id, "properties": {"roof_pitch": "12"}, "modified_ms": 1_790_000_000_000_i64}),
        json!({"do": "bulk_change", "count": 5, "properties": {"subject": "y"}}),
        json!({"do": "archive", "id": id}),
        json!({"do": "restore", "id": id}),
    ] {
        assert_eq!(world.post(&path, &change).await.status, 200, "{change}");
    }
    let one = world.get(&format!("{DATED}/{id}?properties=roof_pitch,content,hubspot_owner_id")).await.json();
    assert_eq!(one["properties"]["roof_pitch"], "12");
    assert_eq!(
        (&one["properties"]["content"], &one["properties"]["hubspot_owner_id"]),
        (&json!(""), &Value::Null)
    );
    assert_eq!(one["updatedAt"], "2026-09-21T14:13:20Z");
    for wrong in [json!({"do": "explode"}), json!({"do": "archive", "id": 1}), json!({"do": "archive"})] {
        assert_eq!(world.post(&path, &wrong).await.status, 400, "{wrong}");
    }
    let put =
        |body: Value| world.send(Request::put("/control/faults").body(Body::from(body.to_string())).unwrap());
    assert_eq!(put(json!({"faults": ["nope"]})).await.unwrap().status, 400);
    assert_eq!(
        put(json!({"faults": ["http_502=1x"]})).await.unwrap().json()["faults"],
        json!(["http_502=1x"])
    );
    assert_eq!([world.get(DATED).await.status, world.get(DATED).await.status], [502, 200]);
    let counted = world.get("/control/counters").await.json();
    assert_eq!(counted["answers"]["hubspot"]["list"], json!({"200": 1, "502": 1}));
    assert_eq!((&counted["unauthorised"], &counted["throttled"]), (&json!(0), &json!(0)));
    world.post("/control/counters/reset", &json!({})).await;
    assert_eq!(world.get("/control/counters").await.json()["answers"], json!({}));
    assert_eq!(world.get("/").await.json()["providers"]["hubspot"]["accounts"], json!([HUB, HUB + 1]));
}

#[tokio::test]
async fn it_serves_on_a_socket_and_stops() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    let running = World::new(|_| {}).sandbox.start().await.unwrap();
    let address = running.base_url().replace("http://", "");
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"GET /control/faults HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    drop(running);
    let refused = async {
        while TcpStream::connect(&address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), refused).await.expect("the listener closes");
}
