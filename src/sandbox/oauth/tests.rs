//! What is granted, and what is dead.

use super::*;

const REDIRECT: &str = "http://127.0.0.1:1/cb";

fn server(one_grant_per_account: bool) -> AuthServer {
    let app = |id: &str| App { client_id: id.into(), client_secret: "s".into(), redirect_uris: Vec::new() };
    let rules = TokenRules {
        access_life: Duration::from_secs(10),
        code_life: Duration::from_secs(1),
        access_bytes: 40,
        one_grant_per_account,
    };
    AuthServer::new(vec![app("a"), app("b")], rules)
}

fn code(server: &AuthServer, challenge: Option<&str>) -> String {
    let asked = ConsentRequest {
        client_id: "a".into(),
        redirect_uri: REDIRECT.into(),
        scopes: vec!["oauth".into()],
        state: None,
        code_challenge: challenge.map(ToOwned::to_owned),
    };
    server.issue_code(&asked, "7", 0)
}

#[test]
fn a_code_is_good_once_for_its_app_redirect_and_verifier() {
    // The pair of RFC 7636, appendix B.
    let challenge = Some("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    let verifier = Some("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
    let server = server(false);
    let code = code(&server, challenge);
    let redeem = |client, redirect, verifier, now| {
        server.redeem_code(client, &code, redirect, verifier, now).map(|issued| issued.account)
    };
    assert_eq!(redeem("b", REDIRECT, verifier, 0), Err(GrantFault::OtherApp));
    assert_eq!(redeem("a", "http://127.0.0.1:2/cb", verifier, 0), Err(GrantFault::OtherRedirect));
    assert_eq!(redeem("a", REDIRECT, None, 0), Err(GrantFault::WrongVerifier));
    assert_eq!(redeem("a", REDIRECT, Some("x"), 0), Err(GrantFault::WrongVerifier));
    assert_eq!(redeem("a", REDIRECT, verifier, 1000), Err(GrantFault::Expired));
    assert_eq!(redeem("a", REDIRECT, verifier, 999), Ok("7".into()));
    assert_eq!(redeem("a", REDIRECT, verifier, 999), Err(GrantFault::Used));
    assert_eq!(server.redeem_code("a", "never", REDIRECT, None, 0).unwrap_err(), GrantFault::Unknown);
}

#[test]
fn rotation_kills_the_old_token_at_once_and_replays_are_counted() {
    let server = server(false);
    let first = server.redeem_code("a", &code(&server, None), REDIRECT, None, 0).unwrap();
    let kept = server.redeem_refresh("a", &first.refresh_token, false, 0).unwrap();
    assert_eq!(kept.refresh_token, first.refresh_token);
    assert!(server.bearer(&first.access_token, 0).is_ok(), "refreshing does not kill earlier access tokens");
    let second = server.redeem_refresh("a", &first.refresh_token, true, 0).unwrap();
    assert_ne!(second.refresh_token, first.refresh_token);
    assert_eq!(server.redeem_refresh("a", &first.refresh_token, true, 0).unwrap_err(), GrantFault::Replaced);
    assert_eq!(server.redeem_refresh("b", &second.refresh_token, true, 0).unwrap_err(), GrantFault::OtherApp);
    let rows = server.redemptions();
    assert_eq!(
        (&rows[0]["redeemed"], &rows[0]["replays"], &rows[0]["dead"]),
        (&json!(2), &json!(1), &json!(true))
    );
    assert_eq!((&rows[1]["generation"], &rows[1]["redeemed"]), (&json!(1), &json!(0)));
}

#[test]
fn access_tokens_expire_and_die_with_an_uninstall() {
    let server = server(false);
    let issued = server.redeem_code("a", &code(&server, None), REDIRECT, None, 0).unwrap();
    assert!(server.bearer(&issued.access_token, 9_999).is_ok());
    assert_eq!(
        server.bearer(&issued.access_token, 10_000).unwrap_err(),
        BearerFault::Expired { at_ms: 10_000 }
    );
    assert_eq!(server.expire_access_tokens(5), 1);
    assert_eq!(server.bearer(&issued.access_token, 5).unwrap_err(), BearerFault::Expired { at_ms: 5 });
    assert_eq!((server.revoke_account("8"), server.revoke_account("7")), (0, 1));
    assert_eq!(server.bearer(&issued.access_token, 0).unwrap_err(), BearerFault::Unknown);
    assert_eq!(server.redeem_refresh("a", &issued.refresh_token, false, 0).unwrap_err(), GrantFault::Revoked);
}

#[test]
fn revoking_a_refresh_token_leaves_access_tokens_alive() {
    let server = server(false);
    let issued = server.redeem_code("a", &code(&server, None), REDIRECT, None, 0).unwrap();
    assert!(server.refresh_token_owner("a", &issued.refresh_token).is_some());
    assert!(!server.revoke_refresh_token("b", &issued.refresh_token), "another app's");
    assert!(server.revoke_refresh_token("a", &issued.refresh_token));
    assert!(!server.revoke_refresh_token("a", &issued.refresh_token), "twice");
    assert!(server.refresh_token_owner("a", &issued.refresh_token).is_none());
    assert!(server.bearer(&issued.access_token, 0).is_ok());
}

#[test]
fn a_shared_grant_answers_with_the_token_that_is_there() {
    for shared in [true, false] {
        let server = server(shared);
        let redeem = || server.redeem_code("a", &code(&server, None), REDIRECT, None, 0).unwrap();
        assert_eq!(redeem().refresh_token == redeem().refresh_token, shared);
    }
}
