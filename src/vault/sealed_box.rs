//! Handing a secret to whoever holds a private key: `crypto_box` sealed boxes (X25519, XSalsa20-Poly1305), as in
//! libsodium.
//!
//! The CLI seals what it was given to the daemon's public key, so that it never needs the vault key; the daemon seals
//! what only the asker may read to the CLI's [`ReplyKey`]. A box says nothing about who sealed it.

use chacha20poly1305::aead::OsRng;
use crypto_box::{PublicKey, SecretKey};
use zeroize::Zeroizing;

use super::VaultError;

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
