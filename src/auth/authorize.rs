//! Consents, from the start link to the moment the provider sends the browser back.
//!
//! A *ticket* stands in the start link that is mailed to the account's owner, and is good for many starts. Each start
//! is an *attempt* with a `state` that can be redeemed once, within [`ATTEMPT_LIFE`]. What happens with a redeemed code
//! is [`super::exchange`]'s business.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::answer::{Answer, BroughtBy, Said};
use super::exchange::{By, Claim};
use super::ticket::{self, BegunBy, NotOurs};
use super::{Auth, TokenClient, VERIFIER_COLUMN};
use crate::config::ProviderSettings;
use crate::db::authorizations::{self, Attempt, Authorization, NewAttempt, NewAuthorization};
use crate::db::connections::{self, Connection};
use crate::db::requests::{self, Request};
use crate::db::{DbError, PgConnection};
use crate::domain::failure::Failure;
use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;
use crate::domain::time::delta;
use crate::http::oauth::{self, Consent};
use crate::providers::Provider;
use crate::vault::Bound;

/// How long a started consent may take.
pub const ATTEMPT_LIFE: TimeDelta = TimeDelta::minutes(10);

/// Where in the text of a link's id what tells it from all others begins: before it stands the time.
const LINK_AT: usize = 20;

/// A consent that was started.
#[derive(Debug, Clone)]
pub struct Started {
    /// Where the browser is sent.
    pub authorize_url: Url,
    /// What the browser is to keep: names the attempt.
    pub cookie: Secret,
    /// The cookie is of use on this path only.
    pub cookie_path: String,
    /// Tells the start link from others in the cookie's name. Random.
    pub link: String,
    pub provider: &'static str,
}

/// A start link of our making. Whether it is still of use is in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    hash: [u8; 32],
}

impl Ticket {
    /// Tells it from others. Random.
    pub fn known_by(&self) -> &[u8] {
        &self.hash
    }
}

/// An answer to a consent of our making. Whether it is still of use is in the database.
pub struct Recognised {
    pub(super) provider: &'static dyn Provider,
    pub(super) said: Said,
    pub(super) key: Key,
}

/// What an attempt is found by.
#[derive(Debug, Clone)]
pub(super) enum Key {
    /// The state; for an attempt that a browser began, with the attempts that the answering browser's cookies name.
    State { hash: [u8; 32], kept: Vec<Uuid> },
    /// The attempts that the cookies name: at least one.
    Cookies(Vec<Uuid>),
}

impl Recognised {
    /// Tells the consent from others. Random.
    pub fn known_by(&self) -> &[u8] {
        match &self.key {
            Key::State { hash, .. } => hash,
            Key::Cookies(kept) => kept.first().map_or(&[], |attempt| attempt.as_bytes().as_slice()),
        }
    }
}

/// What the asker may read before the consent has ended.
#[derive(Debug, Clone)]
pub struct Links {
    pub start_url: Url,
    pub authorize_url: Url,
    pub redirect_uri: String,
    pub expires_at: DateTime<Utc>,
}

impl Links {
    /// As it is sealed to the asker.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "start_url": self.start_url.as_str(),
            "authorize_url": self.authorize_url.as_str(),
            "redirect_uri": self.redirect_uri,
            "expires_at": self.expires_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        })
    }
}

/// Why a start link or an answer leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Unknown, altered, or for another provider.
    Invalid,
    Expired,
    /// The answer was used before.
    Replayed,
    /// The browser that brings the answer is in the middle of another link's consent, or of several.
    OtherConsent,
    /// The start link has been replaced, or has led to a connection.
    Closed,
}

impl From<NotOurs> for Refusal {
    fn from(reason: NotOurs) -> Self {
        match reason {
            NotOurs::Forged => Self::Invalid,
            NotOurs::Expired => Self::Expired,
        }
    }
}

/// An attempt that an answer has used up.
pub(super) struct Redeemed {
    pub attempt: Attempt,
    pub authorization: Authorization,
    pub connection: Connection,
    pub verifier: Option<Secret>,
}

impl Redeemed {
    /// What its grant is for.
    pub fn claim(&self) -> Claim<'_> {
        let by = By::Request(self.authorization.request_id);
        Claim { connection: &self.connection, grant: self.attempt.id, by }
    }
}

/// The start link that an attempt is made for.
struct Link<'a> {
    connection: ConnectionId,
    authorization: Uuid,
    redirect_uri: &'a str,
    expires_at: DateTime<Utc>,
}

/// A fresh attempt with what the browser needs.
struct Minted {
    attempt: NewAttempt,
    started: Started,
}

impl Auth {
    /// `{public_url}/oauth/callback/{provider}`.
    pub fn redirect_uri(&self, provider: &str) -> String {
        self.settings.callback.redirect_uri(provider)
    }

    /// Gives an open `connect` request its start link and a first authorize URL, and seals both to the asker. Earlier
    /// start links of the connection are closed, earlier requests end as superseded.
    pub(crate) async fn offer_consent(
        &self,
        request: &Request,
        connection: &Connection,
        reply_to: [u8; 32],
    ) -> Result<(), Failure> {
        let (provider, settings) = self.provider(&connection.provider)?;
        self.demand_beside(provider, connection, request)?;
        let now = self.clock.now();
        let expires_at = now + delta(self.settings.callback.ticket_ttl);
        let ticket = ticket::new_ticket(&self.vault);
        let authorization = NewAuthorization {
            id: Uuid::now_v7(),
            connection: connection.id,
            request: request.id,
            ticket_hash: ticket::hash(ticket.expose()),
            redirect_uri: self.redirect_uri(&connection.provider),
            expires_at,
        };
        let link = Link {
            connection: connection.id,
            authorization: authorization.id,
            redirect_uri: &authorization.redirect_uri,
            expires_at,
        };
        let minted = self.mint(provider, settings, BegunBy::Asker, &link)?;
        let links = Links {
            start_url: self.start_url(&ticket)?,
            authorize_url: minted.started.authorize_url,
            redirect_uri: authorization.redirect_uri.clone(),
            expires_at,
        };
        let reply = crate::vault::sealed_box::seal_to(&reply_to, links.to_json().to_string().as_bytes());
        let (id, request_id, attempt, daemon) = (connection.id, request.id, minted.attempt, self.daemon);
        self.transaction(move |conn| {
            connections::lock(conn, id)?;
            requests::supersede_connects(conn, id, Some(request_id), requests::SUPERSEDED, daemon)?;
            authorizations::close_all(conn, id)?;
            authorizations::create(conn, &authorization)?;
            authorizations::create_attempt(conn, &attempt)?;
            requests::reply(conn, request_id, &reply)
        })
        .await
    }

    /// Tells a start link of ours from anything else, without asking the database.
    pub fn recognise_ticket(&self, ticket: &str) -> Result<Ticket, Refusal> {
        Ok(Ticket { hash: ticket::ticket_hash(&self.vault, ticket)? })
    }

    /// Tells an answer to a consent of ours from anything else, without asking the database.
    pub fn recognise(
        &self,
        provider: &str,
        answer: Answer,
        brought_by: BroughtBy<'_>,
    ) -> Result<Recognised, Refusal> {
        let described = crate::providers::provider(provider).ok_or(Refusal::Invalid)?;
        let now = self.clock.now();
        if answer.said == Said::Nothing && !described.spec().denies_in_silence {
            return Err(Refusal::Invalid);
        }
        let (cookies, is_admin) = match brought_by {
            BroughtBy::Browser { cookies } => (cookies, false),
            BroughtBy::Admin => (&[][..], true),
        };
        let kept =
            cookies.iter().filter_map(|text| ticket::cookie_attempt(&self.vault, provider, text, now).ok());
        let mut kept: Vec<Uuid> = kept.collect();
        // In the order in which everybody locks them.
        kept.sort_unstable();
        let key = match &answer.state {
            Some(state) => match ticket::state_hash(&self.vault, provider, state.expose(), now)? {
                // A state leads to one connection, whoever brings it, so a browser without a cookie may: the link was
                // mailed, opened in one program and finished in another. One that is in the middle of another link's
                // consent may not.
                (hash, BegunBy::Browser) if !is_admin => Key::State { hash, kept },
                (hash, _) => Key::State { hash, kept: Vec::new() },
            },
            None if kept.is_empty() => return Err(Refusal::Invalid),
            None => Key::Cookies(kept),
        };
        Ok(Recognised { provider: described, said: answer.said, key })
    }

    /// Starts a consent with the ticket of a start link.
    pub async fn start(&self, Ticket { hash }: Ticket) -> Result<Result<Started, Refusal>, Failure> {
        let now = self.clock.now();
        let found = self.db(move |conn| authorizations::by_ticket(conn, &hash, now)).await?;
        match found {
            Some(authorization) => self.start_of(authorization).await,
            None => Ok(Err(Refusal::Invalid)),
        }
    }

    /// Starts a consent for a start link that was found.
    async fn start_of(&self, authorization: Authorization) -> Result<Result<Started, Refusal>, Failure> {
        if !authorization.is_open {
            let expired = authorization.expires_at <= self.clock.now();
            return Ok(Err(if expired { Refusal::Expired } else { Refusal::Closed }));
        }
        let id = authorization.connection();
        let connection = self.db(move |conn| connections::get(conn, id)).await?;
        let (provider, settings) = self.provider(&connection.provider)?;
        let link = Link {
            connection: id,
            authorization: authorization.id,
            redirect_uri: &authorization.redirect_uri,
            expires_at: authorization.expires_at,
        };
        let Minted { attempt, started } = self.mint(provider, settings, BegunBy::Browser, &link)?;
        self.db(move |conn| authorizations::create_attempt(conn, &attempt)).await?;
        Ok(Ok(started))
    }

    /// Starts the consent that a cookie names once more: for an answer without `state`, such as an installation that
    /// began in the provider's marketplace. Its code is not redeemed, since nothing proves that this browser asked for
    /// it; the provider, which knows the consent already, answers the new start at once.
    pub(super) async fn restart(
        &self,
        provider: &'static dyn Provider,
        kept: Vec<Uuid>,
    ) -> Result<Result<Started, Refusal>, Failure> {
        let (now, provider) = (self.clock.now(), provider.spec().name);
        let found = self
            .transaction(move |conn| {
                let attempt = match attempt_of_browser(conn, provider, &kept, now)? {
                    Ok(attempt) if attempt.used_at.is_some() => return Ok(Err(Refusal::Replayed)),
                    Ok(attempt) => attempt,
                    Err(refusal) => return Ok(Err(refusal)),
                };
                // Used up: an answer without state can start a consent once, not go round in circles.
                authorizations::use_attempt(conn, attempt.id)?;
                authorizations::end_attempt(conn, attempt.id, "restarted")?;
                Ok(authorizations::get(conn, attempt.authorization_id, now)?.ok_or(Refusal::Replayed))
            })
            .await?;
        match found {
            Ok(authorization) => self.start_of(authorization).await,
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Uses up the attempt that an answer belongs to: by its state, or for an answer without one by the cookie.
    pub(super) async fn redeem(&self, recognised: &Recognised) -> Result<Result<Redeemed, Refusal>, Failure> {
        let now = self.clock.now();
        let (provider, key) = (recognised.provider.spec().name, recognised.key.clone());
        let is_denial = matches!(recognised.said, Said::Denied | Said::Nothing);
        let outcome = if is_denial { "denied" } else { "answered" };
        let redeemed = self
            .transaction(move |conn| {
                let (attempt, kept) = match key {
                    Key::State { hash, kept } => (authorizations::attempt_by_state(conn, &hash)?, kept),
                    Key::Cookies(kept) => match attempt_of_browser(conn, provider, &kept, now)? {
                        Ok(attempt) => (Some(attempt), Vec::new()),
                        Err(refusal) => return Ok(Err(refusal)),
                    },
                };
                let Some(attempt) = attempt.filter(|attempt| attempt.provider == provider) else {
                    return Ok(Err(Refusal::Invalid));
                };
                if attempt.used_at.is_some() {
                    return Ok(Err(Refusal::Replayed));
                }
                // Not used up by that: the right browser may still come.
                if authorizations::is_elsewhere(conn, &kept, attempt.authorization_id)? {
                    return Ok(Err(Refusal::OtherConsent));
                }
                let Some(authorization) = authorizations::get(conn, attempt.authorization_id, now)? else {
                    return Ok(Err(Refusal::Invalid));
                };
                authorizations::use_attempt(conn, attempt.id)?;
                authorizations::end_attempt(conn, attempt.id, outcome)?;
                if attempt.expires_at <= now {
                    return Ok(Err(Refusal::Expired));
                }
                if !authorization.is_open {
                    return Ok(Err(Refusal::Closed));
                }
                let connection = connections::get(conn, authorization.connection())?;
                Ok(Ok((attempt, authorization, connection)))
            })
            .await?;
        let (attempt, authorization, connection) = match redeemed {
            Ok(redeemed) => redeemed,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let verifier = match &attempt.verifier_sealed {
            Some(sealed) => Some(self.open(connection.id, attempt.id, VERIFIER_COLUMN, sealed)?),
            None => None,
        };
        Ok(Ok(Redeemed { attempt, authorization, connection, verifier }))
    }

    /// Closes start links whose time has passed: their requests end as expired, and a connection that never came about
    /// has failed. Returns how many. For every tick of the scheduler.
    pub async fn expire_authorizations(&self, now: DateTime<Utc>) -> Result<usize, Failure> {
        let daemon = self.daemon;
        self.transaction(move |conn| authorizations::expire(conn, now, daemon)).await
    }

    fn start_url(&self, ticket: &Secret) -> Result<Url, Failure> {
        let base = self.settings.callback.public_url.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/connect/{}", ticket.expose()))
            .map_err(|_| Failure::bug("`callback.public_url` makes no start link"))
    }

    /// A fresh state, verifier and authorize URL.
    fn mint(
        &self,
        provider: &'static dyn Provider,
        settings: &ProviderSettings,
        begun_by: BegunBy,
        link: &Link<'_>,
    ) -> Result<Minted, Failure> {
        let Link { connection, authorization, redirect_uri, expires_at: link_expires_at } = *link;
        let client = TokenClient::ours(provider, settings)?;
        let name = provider.spec().name;
        let expires_at = (self.clock.now() + ATTEMPT_LIFE).min(link_expires_at);
        let (id, state) = (Uuid::new_v4(), ticket::new_state(&self.vault, begun_by, name, expires_at));
        let verifier = settings.pkce.then(oauth::pkce_verifier);
        let own_scopes: Vec<String> = provider.spec().scopes.iter().map(ToString::to_string).collect();
        let authorize_url = oauth::authorize_url(&Consent {
            authorize_url: &settings.authorize_url,
            client_id: &client.id,
            redirect_uri,
            scopes: if settings.scopes.is_empty() { &own_scopes } else { &settings.scopes },
            state: &state,
            pkce_verifier: verifier.as_ref(),
            extra: &[],
        })
        .map_err(|error| Failure::bug(error.to_string()))?;
        let bound = Bound { connection, grant: id, column: VERIFIER_COLUMN };
        let attempt = NewAttempt {
            id,
            authorization,
            provider: name.to_owned(),
            state_hash: ticket::hash(state.expose()),
            verifier_sealed: verifier.map(|verifier| self.vault.seal(verifier.expose().as_bytes(), &bound)),
            redirect_uri: redirect_uri.to_owned(),
            expires_at,
        };
        let cookie = ticket::new_cookie(&self.vault, name, id, expires_at);
        let cookie_path =
            Url::parse(redirect_uri).map_or_else(|_| "/".to_owned(), |url| url.path().to_owned());
        let link = authorization.simple().to_string().split_off(LINK_AT);
        Ok(Minted { attempt, started: Started { authorize_url, cookie, cookie_path, link, provider: name } })
    }
}

/// The attempt that an answer without state belongs to: the only one of those that the browser `kept` which can still be
/// answered. Where none can, the last of them tells why.
fn attempt_of_browser(
    conn: &mut PgConnection,
    provider: &str,
    kept: &[Uuid],
    now: DateTime<Utc>,
) -> Result<Result<Attempt, Refusal>, DbError> {
    let (mut open, mut over) = (Vec::new(), None);
    for id in kept {
        let attempt = authorizations::attempt(conn, *id)?.filter(|attempt| attempt.provider == provider);
        let Some(attempt) = attempt else { continue };
        let link = authorizations::get(conn, attempt.authorization_id, now)?;
        if attempt.used_at.is_none() && link.is_some_and(|link| link.is_open) {
            open.push(attempt);
        } else {
            over = Some(attempt);
        }
    }
    // Nobody's: a denial of the one must not end the other.
    if open.len() > 1 {
        return Ok(Err(Refusal::OtherConsent));
    }
    Ok(open.pop().or(over).ok_or(Refusal::Invalid))
}
