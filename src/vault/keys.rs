//! The vault key and what is derived from it.
//!
//! The key itself seals nothing: HKDF-SHA256 (RFC 5869) makes one subkey per purpose, so that none of them tells
//! anything about another.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use chacha20poly1305::aead::OsRng;
use chacha20poly1305::aead::rand_core::RngCore;
use crypto_box::SecretKey;
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::{KeyFault, VaultError};
use crate::domain::secret::Secret;

/// The size of a vault key, before base64.
pub const KEY_BYTES: usize = 32;

/// Bytes of the hash that make a key id: enough that two keys of one installation never share one.
const KEY_ID_BYTES: usize = 8;

// What each subkey is for. Changing one of these makes everything sealed before unreadable.
const SEAL_LABEL: &[u8] = b"fieldmirror vault seal v1";
const BOX_LABEL: &[u8] = b"fieldmirror vault box v1";
const MAC_LABEL: &[u8] = b"fieldmirror vault mac v1";
const ID_LABEL: &[u8] = b"fieldmirror vault key id v1";

/// Padding may be missing: tools differ, and the length check follows anyway.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

type SubKey = Zeroizing<[u8; KEY_BYTES]>;

/// The subkeys of one vault key. The key itself is not kept.
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) seal: SubKey,
    pub(super) box_secret: SecretKey,
    mac: SubKey,
}

impl Keys {
    /// `which` names the key in the error, such as `the vault key`.
    pub(super) fn parse(text: &Secret, which: &str) -> Result<Self, VaultError> {
        let master = decode(text).map_err(|fault| VaultError::Key { which: which.to_owned(), fault })?;
        Ok(Self::derive(&master))
    }

    fn derive(master: &[u8]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(None, master);
        Self {
            id: key_id(&subkey(&hkdf, ID_LABEL)),
            seal: subkey(&hkdf, SEAL_LABEL),
            box_secret: SecretKey::from(*subkey(&hkdf, BOX_LABEL)),
            mac: subkey(&hkdf, MAC_LABEL),
        }
    }

    /// The MAC over label and data. The label's length goes first: no label and data read as another pair.
    pub(super) fn mac(&self, label: &str, data: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.mac.as_slice()).expect("HMAC takes keys of any length");
        mac.update(&(label.len() as u64).to_be_bytes());
        mac.update(label.as_bytes());
        mac.update(data);
        mac
    }
}

/// A new key from the system's randomness, as base64.
pub fn generate_key() -> Secret {
    let mut key = SubKey::default();
    OsRng.fill_bytes(key.as_mut_slice());
    Secret::new(BASE64.encode(key.as_slice()))
}

fn decode(text: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyFault> {
    let text = text.expose().trim();
    if text.is_empty() {
        return Err(KeyFault::Empty);
    }
    // The cause is left out on purpose: it quotes a character of the key.
    let bytes = BASE64.decode(text).map(Zeroizing::new).map_err(|_| KeyFault::NotBase64)?;
    if bytes.len() == KEY_BYTES { Ok(bytes) } else { Err(KeyFault::Length { found: bytes.len() }) }
}

fn subkey(hkdf: &Hkdf<Sha256>, label: &[u8]) -> SubKey {
    let mut key = SubKey::default();
    hkdf.expand(label, key.as_mut_slice()).expect("HKDF-SHA256 gives up to 8160 bytes");
    key
}

fn key_id(subkey: &SubKey) -> String {
    use std::fmt::Write as _;
    Sha256::digest(subkey.as_slice()).iter().take(KEY_ID_BYTES).fold(String::new(), |mut id, byte| {
        write!(id, "{byte:02x}").expect("writing to a string does not fail");
        id
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(), KeyFault>) {
        assert_eq!(decode(&Secret::new(text)).map(|_| ()), expected, "{text:?}");
    }

    #[test]
    fn texts_of_keys() {
        let key = BASE64.encode([7; KEY_BYTES]);
        check(&key, Ok(()));
        check(&format!(" {key}\r\n"), Ok(()));
        check(key.trim_end_matches('='), Ok(()));
        check("", Err(KeyFault::Empty));
        check(" \n", Err(KeyFault::Empty));
        check("not base64!", Err(KeyFault::NotBase64));
        check(&key[..43].replace('B', "-"), Err(KeyFault::NotBase64));
        check(&BASE64.encode([7; 16]), Err(KeyFault::Length { found: 16 }));
        check(&BASE64.encode([7; 33]), Err(KeyFault::Length { found: 33 }));
    }

    #[test]
    fn generated_keys_are_keys_and_differ() {
        let (one, other) = (generate_key(), generate_key());
        check(one.expose(), Ok(()));
        assert!(one != other);
    }

    /// Values that were computed apart from this code (RFC 5869 by hand): a change here would lock every installation
    /// out of its own tokens.
    #[test]
    fn derivation_is_frozen() {
        let keys = Keys::derive(&[7; KEY_BYTES]);
        assert_eq!(keys.id, "57c28003f45931c9");
        assert_eq!(BASE64.encode(keys.seal.as_slice()), "MVin9+u7vqxWev8vSWqKbtNao0l7tHWgdQRxo+4yT8w=");
        assert_eq!(
            BASE64.encode(keys.box_secret.public_key().as_bytes()),
            "qXltgZFOmH8A0gdgz5VLkHvNMH82euM67Zk11U1djTw="
        );
        assert_eq!(
            BASE64.encode(keys.mac("state", b"data").finalize().into_bytes()),
            "tS3nqGgtYFL1YSJxLMvczUbQGwsD1ZjDfE2i3Yuom1Y="
        );
    }

    #[test]
    fn subkeys_differ_from_each_other_and_from_the_key() {
        let master = [7; KEY_BYTES];
        let keys = Keys::derive(&master);
        let parts = [master, *keys.seal, *keys.mac, keys.box_secret.to_bytes()];
        for (index, part) in parts.iter().enumerate() {
            assert!(!parts[index + 1..].contains(part), "part {index}");
        }
    }
}
