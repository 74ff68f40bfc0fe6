//! Secrets at rest: what is sealed here is readable only with the vault key, and only in the row it was sealed for.
//!
//! Values are sealed with XChaCha20-Poly1305 and bound to connection, grant and column, so that a sealed value that is
//! copied into another row does not open there. The key id stands in clear before the value: several keys can be in
//! use while a rotation runs. Everything else that needs a secret of ours (the box that the CLI seals to, the MAC of
//! `state` parameters) is derived from the same key, so that every daemon that has the key agrees.
//!
//! This module does no I/O: keys come from `config`, sealed values go to `db`. There is no way to store plaintext, and
//! no daemon without a key.

mod envelope;
mod error;
mod keys;
pub mod sealed_box;

use std::fmt;

use chacha20poly1305::aead::{Aead, AeadCore, OsRng, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hmac::Mac as _;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::domain::ids::ConnectionId;
use crate::domain::secret::Secret;

pub use envelope::key_id_of;
pub use error::{KeyFault, SealedPlace, VaultError};
pub use keys::{KEY_BYTES, generate_key};
pub use sealed_box::{HandedOver, ReplyKey, seal_to};

use envelope::Envelope;
use keys::Keys;

/// The row and column that a sealed value belongs to. It opens nowhere else.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    pub connection: ConnectionId,
    /// The grant of the connection: a value of an earlier consent does not open as one of a later consent.
    pub grant: Uuid,
    pub column: &'a str,
}

/// The vault key, and the earlier ones that still open what they sealed.
pub struct Vault {
    active: Keys,
    previous: Vec<Keys>,
}

impl Vault {
    /// `active` seals; `active` and `previous` open. Keys are [`KEY_BYTES`] bytes as base64; white space around them
    /// is ignored. A previous key that equals another is taken once.
    ///
    /// # Errors
    /// [`VaultError::Key`] when a key is empty, not base64 or of another length.
    pub fn new(active: &Secret, previous: &[Secret]) -> Result<Self, VaultError> {
        let mut vault = Self { active: Keys::parse(active, "the vault key")?, previous: Vec::new() };
        for (index, key) in previous.iter().enumerate() {
            let keys = Keys::parse(key, &format!("previous vault key {}", index + 1))?;
            if vault.all().all(|known| known.id != keys.id) {
                vault.previous.push(keys);
            }
        }
        Ok(vault)
    }

    /// The id of the key that seals: 16 hex digits that tell nothing of the key.
    pub fn key_id(&self) -> &str {
        &self.active.id
    }

    /// Whether it opens what the key of that id has sealed.
    pub fn has(&self, key_id: &str) -> bool {
        self.all().any(|keys| keys.id == key_id)
    }

    /// The ids of the keys that only open, in the order given.
    pub fn previous_key_ids(&self) -> impl Iterator<Item = &str> {
        self.previous.iter().map(|keys| keys.id.as_str())
    }

    /// The ids of all keys that open, the active one first.
    pub fn key_ids(&self) -> Vec<String> {
        self.all().map(|keys| keys.id.clone()).collect()
    }

    /// Seals `plain` with the active key for one row and column. Twice the same plaintext gives different bytes.
    pub fn seal(&self, plain: &[u8], bound: &Bound<'_>) -> Vec<u8> {
        let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
        let aad = envelope::associated_data(&self.active.id, bound);
        let ciphertext = cipher(&self.active)
            .encrypt(&nonce, Payload { msg: plain, aad: &aad })
            .expect("XChaCha20-Poly1305 refuses only messages of more than 256 GiB");
        Envelope { key_id: &self.active.id, nonce: nonce.as_ref(), ciphertext: &ciphertext }.to_bytes()
    }

    /// Opens what [`Vault::seal`] sealed for the same row and column, with whichever key sealed it.
    ///
    /// # Errors
    /// [`VaultError::NotSealed`] when the bytes are cut off or not ours, [`VaultError::UnknownKey`] when none of the
    /// keys sealed them, [`VaultError::Refused`] when they were altered or belong to another row.
    pub fn open(&self, sealed: &[u8], bound: &Bound<'_>) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let envelope = Envelope::parse(sealed).ok_or_else(|| VaultError::NotSealed(bound.into()))?;
        let keys = self
            .all()
            .find(|keys| keys.id == envelope.key_id)
            .ok_or_else(|| VaultError::UnknownKey { key_id: envelope.key_id.to_owned() })?;
        let aad = envelope::associated_data(envelope.key_id, bound);
        cipher(keys)
            .decrypt(envelope.nonce.into(), Payload { msg: envelope.ciphertext, aad: &aad })
            .map(Zeroizing::new)
            .map_err(|_| VaultError::Refused(bound.into()))
    }

    /// The same value for the same place, sealed with the active key; `None` when that sealed it already.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn reseal(&self, sealed: &[u8], bound: &Bound<'_>) -> Result<Option<Vec<u8>>, VaultError> {
        let plain = self.open(sealed, bound)?;
        let is_active = key_id_of(sealed).is_some_and(|key_id| key_id == self.active.id);
        Ok((!is_active).then(|| self.seal(&plain, bound)))
    }

    /// The X25519 public key that the CLI seals secrets to. Every daemon with the same active key has the same one.
    pub fn public_key(&self) -> [u8; 32] {
        self.active.box_secret.public_key().to_bytes()
    }

    /// Opens what was sealed to our public key for that request: the present key, or that of a previous vault key (the
    /// CLI may have read it just before a rotation).
    ///
    /// # Errors
    /// [`VaultError::BoxRefused`] when no key opens it, [`VaultError::BoxMoved`] when it was sealed for another request.
    pub fn open_box(&self, sealed: &[u8], with: &HandedOver) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        with.value(&self.unsealed(sealed)?)
    }

    fn unsealed(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.all()
            .find_map(|keys| keys.box_secret.unseal(sealed).ok())
            .map(Zeroizing::new)
            .ok_or(VaultError::BoxRefused)
    }

    /// What is in a box, in one that the active key opens; `None` when it opens this one already. It stays bound to the
    /// request that it was sealed for, wherever it was found.
    ///
    /// # Errors
    /// [`VaultError::BoxRefused`] when no key opens it.
    pub fn reseal_box(&self, sealed: &[u8]) -> Result<Option<Vec<u8>>, VaultError> {
        if self.active.box_secret.unseal(sealed).map(Zeroizing::new).is_ok() {
            return Ok(None);
        }
        Ok(Some(seal_to(&self.public_key(), &self.unsealed(sealed)?)))
    }

    /// HMAC-SHA256 of `data` under the active key. `label` says what the MAC is for: one made for one purpose is not
    /// valid for another.
    pub fn mac(&self, label: &str, data: &[u8]) -> [u8; 32] {
        self.active.mac(label, data).finalize().into_bytes().into()
    }

    /// Whether `tag` is the MAC of `data` for `label`, under the active key or a previous one. Takes the same time
    /// wherever `tag` differs.
    pub fn mac_verify(&self, label: &str, data: &[u8], tag: &[u8]) -> bool {
        self.all().any(|keys| keys.mac(label, data).verify_slice(tag).is_ok())
    }

    fn all(&self) -> impl Iterator<Item = &Keys> {
        std::iter::once(&self.active).chain(&self.previous)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let previous: Vec<_> = self.previous_key_ids().collect();
        f.debug_struct("Vault").field("key_id", &self.key_id()).field("previous_key_ids", &previous).finish()
    }
}

fn cipher(keys: &Keys) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&*keys.seal).into())
}

#[cfg(test)]
mod tests;
