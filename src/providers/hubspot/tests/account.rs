//! Which account a credential belongs to.

use serde_json::json;

use super::*;
use crate::domain::step::{Options, Params};

fn identity(granted: &Value, introspected: Option<&Value>, details: Value) -> Result<Account, Failure> {
    let replies = [reply(200, json(details))];
    let (params, options) = (Params::new(), Options::new());
    let of = Clues {
        grant: GrantKind::AuthorizationCode,
        granted,
        introspected,
        claims: None,
        params: &params,
        options: &options,
        known: None,
        replies: &replies,
    };
    HubSpot.identity(&of)
}

fn account(id: &str, name: Option<&str>) -> Account {
    Account { id: id.to_owned(), name: name.map(str::to_owned) }
}

#[test]
fn the_details_are_asked_for_in_both_schemes() {
    for (version, path) in [
        ("2026-03", "/account-info/2026-03/details"),
        ("2026-09", "/account-info/2026-09/details"),
        ("v3", "/account-info/v3/details"),
    ] {
        let of = AccountContext {
            grant: GrantKind::AuthorizationCode,
            api_version: version,
            params: &Params::new(),
            options: &Options::new(),
            known: None,
            now: DateTime::UNIX_EPOCH,
        };
        let requests = HubSpot.identity_requests(&of);
        assert_eq!(requests.iter().map(|request| request.path.as_str()).collect::<Vec<_>>(), [path]);
    }
}

#[test]
fn accounts_and_their_labels() {
    let hub = json!({"hub_id": 4_410_021, "hub_domain": "granted.example"});
    let bare = json!({"hub_id": 4_410_021});
    let seen = json!({"active": true, "hub_id": 4_410_021, "hub_domain": "seen.example"});
    let unnamed = json!({"hub_id": 4_410_021, "hub_domain": ""});
    let details = json!({"portalId": 4_410_021, "timeZone": "Europe/Berlin", "uiDomain": "app.example"});
    for (granted, introspected, details, expected) in [
        (&Value::Null, None, &details, account("4410021", None)),
        (&bare, None, &details, account("4410021", None)),
        (&hub, None, &details, account("4410021", Some("granted.example"))),
        (&hub, Some(&seen), &details, account("4410021", Some("seen.example"))),
        (&bare, Some(&unnamed), &details, account("4410021", None)),
        (&hub, None, &json!({}), account("4410021", Some("granted.example"))),
        (&Value::Null, None, &json!({"portalId": "9007199254740993"}), account("9007199254740993", None)),
    ] {
        assert_eq!(identity(granted, introspected, details.clone()), Ok(expected), "{granted} {details}");
    }
}

#[test]
fn nobody_or_two_accounts_are_a_failure() {
    let hub = json!({"hub_id": 1});
    for (granted, introspected, details) in [
        (&Value::Null, None, json!({})),
        (&Value::Null, None, json!({"portalId": null})),
        (&hub, None, json!({"portalId": 2})),
        (&hub, Some(&json!({"hub_id": 2})), json!({"portalId": 1})),
        (&Value::Null, Some(&json!({"hub_id": 2})), json!({"portalId": 1})),
    ] {
        let failure = identity(granted, introspected, details.clone()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::ProviderChanged, "{granted} {details}");
    }
}
