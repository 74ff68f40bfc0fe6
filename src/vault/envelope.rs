//! The bytes of a sealed value, and what its seal covers besides the value.
//!
//! ```text
//! version (1) │ length of key id (1) │ key id │ nonce (24) │ ciphertext and tag (16 or more)
//! ```

use super::Bound;

/// The only layout so far.
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// Where the associated data comes from, so that it is never mistaken for that of another use of the same cipher.
const DOMAIN: &[u8] = b"fieldmirror sealed value";

/// A sealed value, taken apart but not opened.
pub(super) struct Envelope<'a> {
    pub(super) key_id: &'a str,
    pub(super) nonce: &'a [u8; NONCE_BYTES],
    pub(super) ciphertext: &'a [u8],
}

impl<'a> Envelope<'a> {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let id_length = u8::try_from(self.key_id.len()).expect("key ids have 16 characters");
        let mut bytes = vec![VERSION, id_length];
        bytes.extend_from_slice(self.key_id.as_bytes());
        bytes.extend_from_slice(self.nonce);
        bytes.extend_from_slice(self.ciphertext);
        bytes
    }

    /// `None` when the bytes are cut off, empty or of another layout.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let (&id_length, rest) = rest.split_first()?;
        let (key_id, rest) = rest.split_at_checked(id_length.into())?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_BYTES>()?;
        if version != VERSION || ciphertext.len() < TAG_BYTES {
            return None;
        }
        let key_id = std::str::from_utf8(key_id).ok().filter(|id| is_key_id(id))?;
        Some(Self { key_id, nonce, ciphertext })
    }
}

/// The id of the key that sealed a value; `None` when it is not a sealed value. Needs no key: `key status` counts rows
/// by it.
pub fn key_id_of(sealed: &[u8]) -> Option<String> {
    Envelope::parse(sealed).map(|envelope| envelope.key_id.to_owned())
}

/// Key ids end up in error texts and tables: nothing but hex digits gets there.
fn is_key_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a seal covers besides the value. Every part has a fixed size or its length before it: no two sets of parts
/// give the same bytes.
pub(super) fn associated_data(key_id: &str, bound: &Bound<'_>) -> Vec<u8> {
    let mut data = DOMAIN.to_vec();
    data.push(VERSION);
    push_text(&mut data, key_id);
    data.extend_from_slice(&bound.connection.0.to_be_bytes());
    data.extend_from_slice(bound.grant.as_bytes());
    push_text(&mut data, bound.column);
    data
}

fn push_text(data: &mut Vec<u8>, text: &str) {
    data.extend_from_slice(&(text.len() as u64).to_be_bytes());
    data.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        Envelope { key_id: "00ff", nonce: &[3; NONCE_BYTES], ciphertext: &[4; TAG_BYTES] }.to_bytes()
    }

    #[test]
    fn comes_apart_as_it_was_put_together() {
        let bytes = sample();
        let envelope = Envelope::parse(&bytes).expect("whole");
        assert_eq!(envelope.key_id, "00ff");
        assert_eq!(envelope.nonce, &[3; NONCE_BYTES]);
        assert_eq!(envelope.ciphertext, &[4; TAG_BYTES]);
        assert_eq!(key_id_of(&bytes).as_deref(), Some("00ff"));
    }

    #[test]
    fn what_is_not_sealed_has_no_key_id() {
        let mut other_version = sample();
        other_version[0] = 2;
        let mut other_id = sample();
        other_id[2] = b'\n';
        let mut longer_id = sample();
        longer_id[1] = 255;
        for bytes in [Vec::new(), vec![VERSION], vec![0; 100], other_version, other_id, longer_id] {
            assert_eq!(key_id_of(&bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_cut_is_noticed_at_every_length() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert_eq!(key_id_of(&bytes[..length]), None, "{length} of {}", bytes.len());
        }
    }
}
