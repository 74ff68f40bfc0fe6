//! The three unguessable texts of a consent: the ticket in a start link, the `state`, and the cookie that names an
//! attempt. Each carries a MAC, so that a forged one is refused before the database is asked anything.
//!
//! Tickets and states hold 256 random bits and are looked up by their SHA-256. A cookie holds the attempt's id.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use rand::TryRngCore as _;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::domain::secret::Secret;
use crate::vault::Vault;

const RANDOM_BYTES: usize = 32;
const EXPIRY_BYTES: usize = 8;
const MAC_BYTES: usize = 32;
const ID_BYTES: usize = 16;
/// The most characters that are looked at; all three kinds are shorter.
const TEXT_MAX: usize = 200;

/// Why a text is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOurs {
    /// Not of our making, altered, or made for another provider.
    Forged,
    /// Of our making, but its time has passed.
    Expired,
}

/// A fresh ticket.
pub fn new_ticket(vault: &Vault) -> Secret {
    let random = random();
    let mac = vault.mac("connect-ticket", &random);
    encode(&[&random, &mac])
}

/// The hash to look a ticket up by. When it expires is in the table.
pub fn ticket_hash(vault: &Vault, ticket: &str) -> Result<[u8; 32], NotOurs> {
    let bytes = decode(ticket, RANDOM_BYTES + MAC_BYTES)?;
    let (random, mac) = bytes.split_at(RANDOM_BYTES);
    if !vault.mac_verify("connect-ticket", random, mac) {
        return Err(NotOurs::Forged);
    }
    Ok(hash(ticket))
}

/// Who a consent was begun for. The state says so itself, so that an answer from the wrong browser is refused before the
/// database is asked anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BegunBy {
    /// A browser that followed the start link and keeps our cookie: only it may bring the answer.
    Browser,
    /// Whoever asked for the connection, and was told the authorize URL itself: any browser may bring the answer.
    Asker,
}

impl BegunBy {
    fn label(self) -> &'static str {
        match self {
            Self::Browser => "oauth-state-browser",
            Self::Asker => "oauth-state",
        }
    }
}

/// A fresh `state` for a consent at `provider`.
pub fn new_state(vault: &Vault, by: BegunBy, provider: &str, expires_at: DateTime<Utc>) -> Secret {
    let (random, expiry) = (random(), expiry_bytes(expires_at));
    let mac = vault.mac(by.label(), &bound(&random, &expiry, provider));
    encode(&[&random, &expiry, &mac])
}

/// The hash to look a state up by, and who may bring it.
pub fn state_hash(
    vault: &Vault,
    provider: &str,
    state: &str,
    now: DateTime<Utc>,
) -> Result<([u8; 32], BegunBy), NotOurs> {
    let open = |by: BegunBy| opened(vault, by.label(), RANDOM_BYTES, provider, state, now).map(|_| by);
    let by = match open(BegunBy::Browser) {
        Err(NotOurs::Forged) => open(BegunBy::Asker)?,
        opened => opened?,
    };
    Ok((hash(state), by))
}

/// A cookie that names `attempt` at `provider`.
pub fn new_cookie(vault: &Vault, provider: &str, attempt: Uuid, expires_at: DateTime<Utc>) -> Secret {
    let expiry = expiry_bytes(expires_at);
    let mac = vault.mac("attempt-cookie", &bound(attempt.as_bytes(), &expiry, provider));
    encode(&[attempt.as_bytes(), &expiry, &mac])
}

/// The attempt that a cookie names.
pub fn cookie_attempt(
    vault: &Vault,
    provider: &str,
    cookie: &str,
    now: DateTime<Utc>,
) -> Result<Uuid, NotOurs> {
    let id = opened(vault, "attempt-cookie", ID_BYTES, provider, cookie, now)?;
    Uuid::from_slice(&id).map_err(|_| NotOurs::Forged)
}

/// SHA-256 of the text: what is stored of tickets and states. `callback URL` uses it without the key to find out
/// which connection a pasted state is for.
pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The first part of a text with expiry and MAC.
fn opened(
    vault: &Vault,
    label: &str,
    first_bytes: usize,
    provider: &str,
    text: &str,
    now: DateTime<Utc>,
) -> Result<Vec<u8>, NotOurs> {
    let bytes = decode(text, first_bytes + EXPIRY_BYTES + MAC_BYTES)?;
    let (first, rest) = bytes.split_at(first_bytes);
    let (expiry, mac) = rest.split_at(EXPIRY_BYTES);
    if !vault.mac_verify(label, &bound(first, expiry, provider), mac) {
        return Err(NotOurs::Forged);
    }
    let expiry = <[u8; EXPIRY_BYTES]>::try_from(expiry).map_err(|_| NotOurs::Forged)?;
    if now.timestamp() >= i64::from_be_bytes(expiry) { Err(NotOurs::Expired) } else { Ok(first.to_vec()) }
}

/// What a MAC covers. The parts before the provider have fixed lengths, so that no two inputs run together.
fn bound(first: &[u8], expiry: &[u8], provider: &str) -> Vec<u8> {
    [first, expiry, provider.as_bytes()].concat()
}

fn expiry_bytes(expires_at: DateTime<Utc>) -> [u8; EXPIRY_BYTES] {
    expires_at.timestamp().to_be_bytes()
}

fn random() -> [u8; RANDOM_BYTES] {
    let mut bytes = [0; RANDOM_BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the kernel has given random bytes since it started");
    bytes
}

fn encode(parts: &[&[u8]]) -> Secret {
    Secret::new(BASE64_URL_SAFE_NO_PAD.encode(parts.concat()))
}

fn decode(text: &str, length: usize) -> Result<Vec<u8>, NotOurs> {
    if text.len() > TEXT_MAX {
        return Err(NotOurs::Forged);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| NotOurs::Forged)?;
    if bytes.len() == length { Ok(bytes) } else { Err(NotOurs::Forged) }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::vault::generate_key;

    fn vault() -> Vault {
        Vault::new(&generate_key(), &[]).expect("a generated key fits")
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("a time in this century")
    }

    const LIFE: TimeDelta = TimeDelta::minutes(10);

    #[test]
    fn a_state_is_good_for_its_provider_and_its_time() {
        let vault = vault();
        for by in [BegunBy::Browser, BegunBy::Asker] {
            let state = new_state(&vault, by, "hubspot", now() + LIFE);
            let state = state.expose();
            let check = |vault: &Vault, provider, now, expected| {
                assert_eq!(state_hash(vault, provider, state, now), expected, "{by:?} {provider} {now}");
            };
            check(&vault, "hubspot", now(), Ok((hash(state), by)));
            check(&vault, "jobber", now(), Err(NotOurs::Forged));
            check(&vault, "hubspot", now() + LIFE, Err(NotOurs::Expired));
            check(&self::vault(), "hubspot", now(), Err(NotOurs::Forged));
        }
    }

    #[test]
    fn altered_texts_are_forged_at_every_byte() {
        let vault = vault();
        let state = new_state(&vault, BegunBy::Browser, "hubspot", now() + LIFE);
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(state.expose()).expect("base64");
        for index in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[index] ^= 1;
            let text = BASE64_URL_SAFE_NO_PAD.encode(altered);
            assert_eq!(state_hash(&vault, "hubspot", &text, now()), Err(NotOurs::Forged), "{index}");
        }
    }

    #[test]
    fn other_texts_are_forged() {
        let vault = vault();
        let ticket = new_ticket(&vault);
        let cookie = new_cookie(&vault, "hubspot", Uuid::nil(), now() + LIFE);
        for text in ["", "x", "%00", ticket.expose(), cookie.expose(), &"A".repeat(96), &"A".repeat(5000)] {
            assert_eq!(state_hash(&vault, "hubspot", text, now()), Err(NotOurs::Forged), "{text}");
        }
        let state = new_state(&vault, BegunBy::Asker, "hubspot", now() + LIFE);
        for text in ["", cookie.expose(), state.expose(), &"A".repeat(86)] {
            assert_eq!(ticket_hash(&vault, text), Err(NotOurs::Forged), "{text}");
        }
        assert_eq!(ticket_hash(&vault, ticket.expose()), Ok(hash(ticket.expose())));
    }

    #[test]
    fn a_cookie_names_its_attempt() {
        let vault = vault();
        let id = Uuid::from_u128(7);
        let cookie = new_cookie(&vault, "hubspot", id, now() + LIFE);
        assert_eq!(cookie_attempt(&vault, "hubspot", cookie.expose(), now()), Ok(id));
        assert_eq!(cookie_attempt(&vault, "jobber", cookie.expose(), now()), Err(NotOurs::Forged));
        assert_eq!(cookie_attempt(&vault, "hubspot", cookie.expose(), now() + LIFE), Err(NotOurs::Expired));
    }

    #[test]
    fn no_two_are_alike() {
        let vault = vault();
        assert_ne!(new_ticket(&vault), new_ticket(&vault));
        let state = || new_state(&vault, BegunBy::Browser, "hubspot", now());
        assert_ne!(state(), state());
    }
}
