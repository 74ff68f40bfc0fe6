//! Handing a secret to whoever holds a private key: `crypto_box` sealed boxes (X25519, XSalsa20-Poly1305), as in
//! libsodium.
//!
//! The CLI seals what it was given to the daemon's public key, so that it never needs the vault key; the daemon seals
//! what only the asker may read to the CLI's [`ReplyKey`]. A box says nothing about who sealed it. What is handed over is
//! bound to its request: a box that was moved to another one opens there, and is refused.

use chacha20poly1305::aead::OsRng;
use crypto_box::{PublicKey, SecretKey};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::VaultError;
use crate::domain::ids::ConnectionId;

/// Stands first in every box that is handed over, so that one of another layout is never mistaken for it.
const DOMAIN: &[u8] = b"fieldmirror handed over v1";

/// The request that something is handed over with. It is refused with any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandedOver {
    pub connection: ConnectionId,
    pub request: Uuid,
}

impl HandedOver {
    /// Seals `plain` for the holder of the private key, to be found with this request alone. Sealed boxes have no
    /// associated data, so it stands before the value: who cannot open the box cannot change it either.
    pub fn seal(&self, public_key: &[u8; 32], plain: &[u8]) -> Vec<u8> {
        let mut bound = Zeroizing::new(self.prefix());
        bound.reserve_exact(plain.len());
        bound.extend_from_slice(plain);
        seal_to(public_key, &bound)
    }

    /// The value of an opened box, where it was sealed for this request.
    pub(super) fn value(&self, opened: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let value = opened.strip_prefix(self.prefix().as_slice());
        value.map(|value| Zeroizing::new(value.to_vec())).ok_or(VaultError::BoxMoved(self.connection))
    }

    fn prefix(&self) -> Vec<u8> {
        [DOMAIN, &self.connection.0.to_be_bytes(), self.request.as_bytes()].concat()
    }
}

/// Seals `plain` so that only the holder of the private key opens it.
pub fn seal_to(public_key: &[u8; 32], plain: &[u8]) -> Vec<u8> {
    PublicKey::from_bytes(*public_key)
        .seal(&mut OsRng, plain)
        .expect("XSalsa20-Poly1305 refuses no message that fits into memory")
}

/// A key pair for one answer: the CLI makes it, publishes its public half with the request, and forgets it.
pub struct ReplyKey(SecretKey);

impl ReplyKey {
    pub fn generate() -> Self {
        Self(SecretKey::generate(&mut OsRng))
    }

    /// What the answer is to be sealed to.
    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().to_bytes()
    }

    /// # Errors
    /// [`VaultError::ReplyRefused`] when the answer was altered, or sealed to another key.
    pub fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.0.unseal(sealed).map(Zeroizing::new).map_err(|_| VaultError::ReplyRefused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_reply_key_opens() {
        let (mine, other) = (ReplyKey::generate(), ReplyKey::generate());
        let sealed = seal_to(&mine.public(), b"https://example.test/connect/t");
        assert_eq!(mine.open(&sealed).expect("opens").as_slice(), b"https://example.test/connect/t");
        assert_eq!(other.open(&sealed), Err(VaultError::ReplyRefused));
    }

    #[test]
    fn what_is_handed_over_belongs_to_one_request() {
        let key = ReplyKey::generate();
        let ours = HandedOver { connection: ConnectionId(7), request: Uuid::from_u128(1) };
        let open = |sealed: &[u8], of: HandedOver| of.value(&key.open(sealed).expect("it is ours"));
        let sealed = ours.seal(&key.public(), b"value");
        assert_eq!(open(&sealed, ours).expect("it is there").as_slice(), b"value");
        assert_eq!(open(&ours.seal(&key.public(), b""), ours).expect("empty is fine").as_slice(), b"");
        let moved = |of: HandedOver| Err(VaultError::BoxMoved(of.connection));
        for other in [
            HandedOver { request: Uuid::from_u128(2), ..ours },
            HandedOver { connection: ConnectionId(8), ..ours },
        ] {
            assert_eq!(open(&sealed, other), moved(other));
        }
        for unbound in [b"".as_slice(), b"value", DOMAIN] {
            assert_eq!(open(&seal_to(&key.public(), unbound), ours), moved(ours), "{unbound:?}");
        }
    }

    #[test]
    fn a_cut_or_altered_box_is_refused_at_every_byte() {
        let key = ReplyKey::generate();
        let sealed = seal_to(&key.public(), b"value");
        for index in 0..sealed.len() {
            assert_eq!(key.open(&sealed[..index]), Err(VaultError::ReplyRefused), "cut to {index}");
            let mut altered = sealed.clone();
            altered[index] ^= 1;
            assert_eq!(key.open(&altered), Err(VaultError::ReplyRefused), "altered at {index}");
        }
    }
}
