//! What a connecting command shows: one object that begins as a request and ends as a connection, or as the reason why
//! there is none.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::report::{Error, Kind};
use crate::daemon::alerts::remedy;
use crate::db::asks::{Asked, Ended};
use crate::db::connections::Connection;
use crate::db::queue::JobId;
use crate::db::requests::RequestOutcome;
use crate::providers;
use crate::vault::ReplyKey;

/// What the daemon answers before the end, sealed to us: where the consent begins.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub(in crate::cli) struct Links {
    pub(super) start_url: String,
    pub(super) authorize_url: String,
    pub(super) redirect_uri: String,
    pub(super) expires_at: DateTime<Utc>,
}

impl Links {
    pub(super) fn open(key: &ReplyKey, sealed: &[u8]) -> Result<Self, Error> {
        let plain = key.open(sealed).map_err(|error| Error::new(Kind::Failed, error.to_string()))?;
        // The cause is left out: it may quote a ticket.
        serde_json::from_slice(&plain).map_err(|_| {
            Error::new(Kind::Failed, "the daemon's answer has another shape than this command knows")
                .hint("see with `fieldmirror status --json` that daemon and command are of one version")
        })
    }
}

/// The object of `enqueue --connect`, `enqueue --reconnect` and `callback`.
pub(in crate::cli) struct Object {
    pub(in crate::cli) request: Uuid,
    pub(in crate::cli) job: JobId,
    pub(in crate::cli) connection: Connection,
    /// Where the request stands at first, the connection at the end.
    pub(in crate::cli) state: &'static str,
    pub(in crate::cli) links: Option<Links>,
    pub(in crate::cli) ended: Option<Ended>,
}

impl Object {
    pub(in crate::cli) fn new(connection: Connection, asked: &Asked) -> Self {
        let state = if connection.grant.needs_consent() { "awaiting_consent" } else { "verifying" };
        Self { request: asked.request, job: asked.job, connection, state, links: None, ended: None }
    }

    /// The same at the end.
    pub(in crate::cli) fn finished(self, connection: Connection, ended: Ended) -> Self {
        Self { state: connection.state.as_str(), connection, ended: Some(ended), ..self }
    }

    pub(in crate::cli) fn json(&self) -> Value {
        let connection = &self.connection;
        let links = self.links.as_ref();
        let ended = self.ended.as_ref();
        let mut object = json!({
            "job_id": self.job.to_string(),
            "request_id": self.request,
            "connection": connection.name,
            "connection_id": connection.id,
            "provider": connection.provider,
            "grant": connection.grant.as_str(),
            "state": self.state,
            "start_url": links.map(|links| &links.start_url),
            "authorize_url": links.map(|links| &links.authorize_url),
            "redirect_uri": links.map(|links| &links.redirect_uri),
            "expires_at": links.map(|links| links.expires_at),
            "account_id": connection.account_id,
            "account_name": connection.account_name,
            "outcome": ended.map(|ended| ended.outcome.as_str()),
            "message": ended.and_then(|ended| ended.message.as_deref()),
        });
        if let Some(error) = ended.and_then(|ended| conclude(ended, connection).err()) {
            object["error"] = error.json();
        }
        object
    }

    /// The last word to a person.
    pub(in crate::cli) fn text(&self) -> String {
        sentence(&self.connection)
    }
}

/// What came of it, as a sentence.
pub(in crate::cli) fn sentence(connection: &Connection) -> String {
    let title = providers::provider(&connection.provider).map_or("", |provider| provider.spec().title);
    let account = match (&connection.account_name, &connection.account_id) {
        (Some(name), Some(id)) => format!("{title} account {id} ({name})"),
        (None, Some(id)) => format!("{title} account {id}"),
        _ => title.to_owned(),
    };
    format!("Connected `{}`: {account}", connection.name)
}

/// The error of a request that did not end well.
pub(in crate::cli) fn conclude(ended: &Ended, connection: &Connection) -> Result<(), Error> {
    let name = &connection.name;
    let again = if connection.account_id.is_some() {
        format!("fieldmirror enqueue --reconnect {name}")
    } else {
        format!("fieldmirror enqueue --connect {} --name {name}", connection.provider)
    };
    let give_up = match connection.account_id {
        Some(_) => String::new(),
        None => format!("; `{}` gives it up", remedy::disconnect(name)),
    };
    let (kind, what, hint) = match ended.outcome {
        RequestOutcome::Done => return Ok(()),
        RequestOutcome::Denied => (Kind::Denied, "was denied", format!("ask again with `{again}`{give_up}")),
        RequestOutcome::Expired => {
            (Kind::Expired, "was not given in time", format!("ask again with `{again}`{give_up}"))
        }
        RequestOutcome::WrongAccount => {
            (Kind::WrongAccount, "came from the wrong account", another_account(connection))
        }
        RequestOutcome::Superseded => (
            Kind::Superseded,
            "was superseded by a later request",
            format!("`fieldmirror status {name}` shows how it stands"),
        ),
        RequestOutcome::Refused => {
            (Kind::BadRequest, "was refused", format!("once that is mended, `{again}`{give_up}"))
        }
        RequestOutcome::Failed => {
            (Kind::Failed, "did not succeed", format!("once that is mended, `{again}`{give_up}"))
        }
    };
    let subject = if connection.grant.needs_consent() { "consent" } else { "access" };
    let mut message = format!("{subject} for connection `{name}` ({}) {what}", connection.provider);
    if let Some(said) = &ended.message {
        message.push_str(": ");
        message.push_str(said);
    }
    Err(Error::new(kind, message).hint(hint))
}

/// What helps where the account is not the connection's own, or is another connection's.
fn another_account(connection: &Connection) -> String {
    if connection.account_id.is_none() {
        let give_up = remedy::disconnect(&connection.name);
        return format!("that connection mirrors the account already; `{give_up}` gives this attempt up");
    }
    let what = if connection.grant.needs_consent() { "consent as" } else { "give the credentials of" };
    format!("{what} the account that the connection stands for, or connect this one under a name of its own")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::db::connections::ConnectionState;
    use crate::domain::ids::ConnectionId;
    use crate::domain::spec::GrantKind;
    use crate::domain::step::Params;
    use crate::vault::seal_to;

    fn connection(grant: GrantKind) -> Connection {
        Connection {
            id: ConnectionId(7),
            name: "acme".into(),
            provider: "hubspot".into(),
            grant,
            grant_id: None,
            state: ConnectionState::AwaitingConsent,
            reason: None,
            account_id: None,
            account_name: None,
            params: Params::new(),
            connected_at: None,
        }
    }

    fn object(grant: GrantKind) -> Object {
        let asked = Asked { request: Uuid::nil(), job: JobId(3), parked: false };
        Object::new(connection(grant), &asked)
    }

    fn links() -> Links {
        Links {
            start_url: "http://h/connect/T".into(),
            authorize_url: "http://p/authorize".into(),
            redirect_uri: "http://h/oauth/callback/hubspot".into(),
            expires_at: "2026-11-22T00:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn keys_are_always_there() {
        let keys = |object: &Object| -> BTreeSet<String> {
            object.json().as_object().unwrap().keys().cloned().collect()
        };
        let expected: BTreeSet<String> = [
            "job_id",
            "request_id",
            "connection",
            "connection_id",
            "provider",
            "grant",
            "state",
            "start_url",
            "authorize_url",
            "redirect_uri",
            "expires_at",
            "account_id",
            "account_name",
            "outcome",
            "message",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(keys(&object(GrantKind::AuthorizationCode)), expected);
        let ended =
            Ended { request: Uuid::nil(), outcome: RequestOutcome::Denied, message: Some("no".into()) };
        let failed = object(GrantKind::AuthorizationCode)
            .finished(connection(GrantKind::AuthorizationCode), ended)
            .json();
        assert_eq!(failed["error"]["kind"], "denied");
        assert_eq!((&failed["outcome"], &failed["message"]), (&json!("denied"), &json!("no")));
    }

    #[test]
    fn the_first_object() {
        let mut object = object(GrantKind::AuthorizationCode);
        object.links = Some(links());
        let json = object.json();
        assert_eq!(json["job_id"], "3");
        assert_eq!(json["connection_id"], 7);
        assert_eq!(json["state"], "awaiting_consent");
        assert_eq!(json["start_url"], "http://h/connect/T");
        assert_eq!(json["expires_at"], "2026-11-22T00:00:00Z");
        assert_eq!(json["account_id"], Value::Null);
        let key = self::object(GrantKind::BearerToken).json();
        assert_eq!((&key["state"], &key["start_url"]), (&json!("verifying"), &Value::Null));
    }

    #[test]
    fn outcomes() {
        use RequestOutcome as O;
        let check = |outcome, expected: Option<Kind>| {
            let ended = Ended { request: Uuid::nil(), outcome, message: None };
            let found = conclude(&ended, &connection(GrantKind::AuthorizationCode)).err();
            assert_eq!(found.map(|error| error.kind), expected, "{outcome:?}");
        };
        check(O::Done, None);
        check(O::Denied, Some(Kind::Denied));
        check(O::Expired, Some(Kind::Expired));
        check(O::WrongAccount, Some(Kind::WrongAccount));
        check(O::Superseded, Some(Kind::Superseded));
        check(O::Failed, Some(Kind::Failed));
    }

    #[test]
    fn another_account_is_not_asked_for_in_the_words_of_another_grant() {
        let hint = |account: Option<&str>, grant| {
            let of = Connection { account_id: account.map(str::to_owned), ..connection(grant) };
            let ended = Ended { request: Uuid::nil(), outcome: RequestOutcome::WrongAccount, message: None };
            conclude(&ended, &of).unwrap_err().hint.unwrap()
        };
        let taken = hint(None, GrantKind::ApiKey);
        assert!(taken.contains("`fieldmirror enqueue --disconnect acme`"), "{taken}");
        assert!(!taken.contains("consent"), "{taken}");
        assert!(hint(Some("1"), GrantKind::ApiKey).starts_with("give the credentials of the account"));
        assert!(hint(Some("1"), GrantKind::AuthorizationCode).starts_with("consent as the account"));
    }

    #[test]
    fn the_sentence_at_the_end() {
        let mut connection = connection(GrantKind::BearerToken);
        connection.account_id = Some("1".into());
        assert_eq!(sentence(&connection), "Connected `acme`: HubSpot account 1");
        connection.account_name = Some("acme.test".into());
        assert_eq!(sentence(&connection), "Connected `acme`: HubSpot account 1 (acme.test)");
    }

    #[test]
    fn links_are_read_from_the_sealed_answer() {
        let key = ReplyKey::generate();
        let plain = br#"{"start_url":"http://h/connect/T","authorize_url":"http://p/authorize",
            "redirect_uri":"http://h/oauth/callback/hubspot","expires_at":"2026-11-22T00:00:00Z","more":1}"#;
        assert!(Links::open(&key, &seal_to(&key.public(), plain)).is_ok_and(|opened| opened == links()));
        for bad in [seal_to(&key.public(), b"{\"start_url\":\"T\"}"), b"x".to_vec()] {
            let Err(error) = Links::open(&key, &bad) else { panic!("opened") };
            assert_eq!(error.kind, Kind::Failed);
        }
    }
}
