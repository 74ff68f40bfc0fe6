//! The `connect` job: takes open `connect` and `callback` requests of a connection one step further.
//!
//! For a consent that step is a start link; the rest is the browser's, and the request stays open until then. For keys
//! it is the verification. A pasted redirect URL does what the endpoint would have done.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::auth::answer::{Answer, BroughtBy};
use crate::auth::{Auth, Ending};
use crate::db::audit;
use crate::db::connections::{self, Connection};
use crate::db::requests::{self, Request, RequestKind, RequestOutcome};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::ids::ConnectionId;
use crate::vault::HandedOver;

/// Does what is to be done. Repeating it does no harm.
///
/// # Errors
/// When nothing could be written down: the requests are still open then.
pub async fn run(auth: &Auth, connection: ConnectionId) -> Result<(), Failure> {
    offer(auth, connection).await?;
    pasted(auth, connection).await
}

/// The newest request counts: earlier ones are superseded.
async fn offer(auth: &Auth, id: ConnectionId) -> Result<(), Failure> {
    let (connection, mut open) = auth
        .db
        .run(move |conn| Ok((connections::get(conn, id)?, requests::open(conn, id, RequestKind::Connect)?)))
        .await
        .map_err(|error| Failure::from(&error))?;
    let Some(newest) = open.pop() else { return Ok(()) };
    if !open.is_empty() {
        let (newest, daemon) = (newest.id, auth.daemon);
        auth.db
            .transaction(move |conn| {
                requests::supersede_connects(conn, id, Some(newest), requests::SUPERSEDED, daemon)
            })
            .await
            .map_err(|error| Failure::from(&error))?;
    }
    if !connection.grant.needs_consent() {
        return auth.verify_keys(&newest, &connection).await;
    }
    if newest.reply_sealed.is_some() {
        // It waits for a person.
        return Ok(());
    }
    consent(auth, &newest, &connection).await
}

async fn consent(auth: &Auth, request: &Request, connection: &Connection) -> Result<(), Failure> {
    let Some(reply_to) = reply_key(&request.args) else {
        let message = "the request has no `reply_to` key of 32 bytes in base64".to_owned();
        return fail(auth, request, message).await;
    };
    match auth.offer_consent(request, connection, reply_to).await {
        Err(failure) if matches!(failure.kind, FailureKind::Misconfigured | FailureKind::OurBug) => {
            fail(auth, request, failure.message).await
        }
        done => done,
    }
}

async fn pasted(auth: &Auth, id: ConnectionId) -> Result<(), Failure> {
    let open = auth
        .db
        .run(move |conn| requests::open(conn, id, RequestKind::Callback))
        .await
        .map_err(|error| Failure::from(&error))?;
    for request in open {
        let (outcome, message) = match read(auth, &request) {
            Ok((provider, answer)) => {
                let ending = match auth.recognise(&provider, answer, BroughtBy::Admin) {
                    Ok(recognised) => auth.conclude(recognised).await,
                    Err(refusal) => Ending::Refused(refusal),
                };
                (ending.outcome(), ending.message())
            }
            Err(message) => (RequestOutcome::Refused, message),
        };
        finish(auth, &request, outcome, message).await?;
    }
    Ok(())
}

/// The pasted URL. Reasons quote nothing of it: it holds a code.
fn read(auth: &Auth, request: &Request) -> Result<(String, Answer), String> {
    let sealed = request.sealed.as_deref().ok_or("the request carries no address")?;
    let with = HandedOver { connection: request.connection, request: request.id };
    let plain = auth.vault.open_box(sealed, &with).map_err(|error| error.to_string())?;
    let url = std::str::from_utf8(&plain).map_err(|_| "the pasted address is not text".to_owned())?;
    Answer::of_url(url).map_err(|error| format!("the pasted address cannot be used: {error}"))
}

fn reply_key(args: &Value) -> Option<[u8; 32]> {
    BASE64_STANDARD.decode(args.get("reply_to")?.as_str()?).ok()?.try_into().ok()
}

/// Ends a request that cannot be met as it is, or as we are configured.
async fn fail(auth: &Auth, request: &Request, message: String) -> Result<(), Failure> {
    let (id, text, daemon) = (request.connection, message.clone(), auth.daemon);
    let (event, outcome) = ("connect", RequestOutcome::Refused.as_str());
    auth.db
        .transaction(move |conn| {
            connections::fail_pending(conn, id, &text)?;
            let entry = audit::Entry { connection: Some(id), event, outcome, detail: Some(&text), daemon };
            audit::write(conn, &entry)
        })
        .await
        .map_err(|error| Failure::from(&error))?;
    finish(auth, request, RequestOutcome::Refused, message).await
}

async fn finish(
    auth: &Auth,
    request: &Request,
    outcome: RequestOutcome,
    message: String,
) -> Result<(), Failure> {
    let id = request.id;
    auth.db
        .transaction(move |conn| requests::finish(conn, id, outcome, Some(&message)))
        .await
        .map(drop)
        .map_err(|error| Failure::from(&error))
}
