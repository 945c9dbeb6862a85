//! The envelope of a sealed value and the keyed hashes of a practice.
//!
//! Envelope: version (1 byte, 1) | algorithm (1 byte, 1 = AES-256-GCM) | nonce (12) | ciphertext | tag (16). The
//! associated data names cluster, practice, message and field, so a value moved to another place does not open. Nonces
//! are random (NIST SP 800-38D: at most 2^32 for a key), never derived from an index: a deposed leader could use the
//! same index for another plaintext.
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::{hmac, rand};
use bytes::Bytes;
use carillon_proto::MessageId;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const AES_256_GCM_ID: u8 = 1;
const HEAD: usize = 2 + NONCE_LEN;
const TAG: usize = 16;
/// Length of a keyed hash in records and keys.
pub const INDEX_LEN: usize = 16;

/// Which field a value belongs to; part of the associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Recipient,
    Body,
    Details,
    /// Of a series.
    Plan,
}

/// Where a value belongs.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub cluster_id: &'a str,
    pub practice_no: u32,
    pub message_id: &'a MessageId,
}

/// A value could not be sealed or opened. Says nothing about its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("sealed value is malformed")]
    Malformed,
    #[error("sealed value does not open: wrong key, wrong place or damaged")]
    Refused,
    #[error("sealing failed")]
    Failed,
}

/// Nonces drawn in one go: asking the generator for each one costs more than sealing a short text. Made for one request and used up
/// or dropped with it, so that no random bytes lie around; each is given out once.
pub struct Nonces {
    drawn: [u8; NONCE_LEN * NONCES],
    used: usize,
}

/// Drawn together.
const NONCES: usize = 32;

impl Default for Nonces {
    /// Draws nothing before the first is needed.
    fn default() -> Self {
        Self { drawn: [0; NONCE_LEN * NONCES], used: NONCES }
    }
}

impl Nonces {
    fn take(&mut self) -> Result<[u8; NONCE_LEN], SealError> {
        if self.used == NONCES {
            rand::fill(&mut self.drawn).map_err(|_| SealError::Failed)?;
            self.used = 0;
        }
        let mut nonce = [0; NONCE_LEN];
        let place = self.used * NONCE_LEN;
        nonce.copy_from_slice(&self.drawn[place..place + NONCE_LEN]);
        self.used += 1;
        Ok(nonce)
    }
}

/// The keys of one practice and epoch, all derived from its data key.
pub struct PracticeKeys {
    pub epoch: u32,
    seal: LessSafeKey,
    recipient: hmac::Key,
    idempotency: hmac::Key,
    reference: hmac::Key,
    content: hmac::Key,
}

struct Len32;
impl KeyType for Len32 {
    fn len(&self) -> usize {
        32
    }
}

/// HKDF-SHA256 with the purpose as info.
fn derive(data_key: &[u8], purpose: &str) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut out = Zeroizing::new([0_u8; 32]);
    let prk = Salt::new(HKDF_SHA256, b"carillon data key v1").extract(data_key);
    let info = [purpose.as_bytes()];
    let okm = prk.expand(&info, Len32).map_err(|_| SealError::Failed)?;
    okm.fill(out.as_mut()).map_err(|_| SealError::Failed)?;
    Ok(out)
}

impl PracticeKeys {
    /// From an unwrapped data key of 32 bytes.
    pub fn new(epoch: u32, data_key: &[u8; 32]) -> Result<Self, SealError> {
        let mac = |purpose| Ok(hmac::Key::new(hmac::HMAC_SHA256, derive(data_key, purpose)?.as_ref()));
        let seal = derive(data_key, "seal")?;
        Ok(Self {
            epoch,
            seal: LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM, seal.as_ref()).map_err(|_| SealError::Failed)?,
            ),
            recipient: mac("recipient index")?,
            idempotency: mac("idempotency index")?,
            reference: mac("reference index")?,
            content: mac("content")?,
        })
    }

    /// Seals one field of one message.
    pub fn seal(
        &self,
        nonces: &mut Nonces,
        context: Context<'_>,
        field: Field,
        plaintext: &[u8],
    ) -> Result<Bytes, SealError> {
        let nonce = nonces.take()?;
        let mut out = Vec::with_capacity(HEAD + plaintext.len() + TAG);
        out.extend_from_slice(&[VERSION, AES_256_GCM_ID]);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plaintext);
        let aad = Aad::from(aad(context, field));
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .seal
            .seal_in_place_separate_tag(nonce, aad, &mut out[HEAD..])
            .map_err(|_| SealError::Failed)?;
        out.extend_from_slice(tag.as_ref());
        Ok(Bytes::from(out))
    }

    /// Opens a field; the result is wiped when it is dropped.
    pub fn open(
        &self,
        context: Context<'_>,
        field: Field,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if sealed.len() < HEAD + TAG || sealed[0] != VERSION || sealed[1] != AES_256_GCM_ID {
            return Err(SealError::Malformed);
        }
        let nonce = Nonce::try_assume_unique_for_key(&sealed[2..HEAD]).map_err(|_| SealError::Malformed)?;
        let mut buffer = Zeroizing::new(sealed[HEAD..].to_vec());
        let length = self
            .seal
            .open_in_place(nonce, Aad::from(aad(context, field)), &mut buffer)
            .map_err(|_| SealError::Refused)?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Finds the messages of a number without knowing it: equal numbers of one practice, and only those, agree.
    pub fn recipient_index(&self, e164: &str) -> Bytes {
        short_mac(&self.recipient, e164.as_bytes())
    }

    pub fn idempotency_index(&self, key: &str) -> Bytes {
        short_mac(&self.idempotency, key.as_bytes())
    }

    pub fn reference_index(&self, reference: &str) -> Bytes {
        short_mac(&self.reference, reference.as_bytes())
    }

    /// Of a canonical encoding of everything the caller gave.
    pub fn content_mac(&self, canonical: &[u8]) -> Bytes {
        short_mac(&self.content, canonical)
    }
}

fn short_mac(key: &hmac::Key, data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&hmac::sign(key, data).as_ref()[..INDEX_LEN])
}

/// Length-prefixed, so that no two contexts share an encoding.
fn aad(context: Context<'_>, field: Field) -> Vec<u8> {
    let mut aad = Vec::with_capacity(64);
    aad.push(VERSION);
    aad.push(match field {
        Field::Recipient => 1,
        Field::Body => 2,
        Field::Details => 3,
        Field::Plan => 4,
    });
    aad.extend_from_slice(&context.practice_no.to_be_bytes());
    aad.extend_from_slice(context.message_id.as_bytes());
    aad.extend_from_slice(context.cluster_id.as_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    fn id(random: u64) -> MessageId {
        MessageId::new(1, Slot::new(1).unwrap(), random)
    }

    #[test]
    fn opens_only_in_its_place() {
        let keys = PracticeKeys::new(1, &[7; 32]).unwrap();
        let (a, b) = (id(1), id(2));
        let here = Context { cluster_id: "lab", practice_no: 3, message_id: &a };
        let sealed = keys.seal(&mut Nonces::default(), here, Field::Body, b"Hello Ada").unwrap();
        assert_eq!(&**keys.open(here, Field::Body, &sealed).unwrap(), b"Hello Ada");
        let elsewhere = [
            (Context { message_id: &b, ..here }, Field::Body),
            (Context { practice_no: 4, ..here }, Field::Body),
            (Context { cluster_id: "lab2", ..here }, Field::Body),
            (here, Field::Recipient),
        ];
        for (context, field) in elsewhere {
            assert_eq!(keys.open(context, field, &sealed).unwrap_err(), SealError::Refused);
        }
        let other = PracticeKeys::new(1, &[8; 32]).unwrap();
        assert_eq!(other.open(here, Field::Body, &sealed).unwrap_err(), SealError::Refused);
    }

    #[test]
    fn any_flipped_bit_is_noticed_and_no_nonce_repeats() {
        let keys = PracticeKeys::new(1, &[7; 32]).unwrap();
        let a = id(1);
        let here = Context { cluster_id: "lab", practice_no: 3, message_id: &a };
        let sealed = keys.seal(&mut Nonces::default(), here, Field::Body, b"text").unwrap();
        for i in 0..sealed.len() * 8 {
            let mut bad = sealed.to_vec();
            bad[i / 8] ^= 1 << (i % 8);
            assert!(keys.open(here, Field::Body, &bad).is_err(), "bit {i}");
        }
        assert_ne!(sealed, keys.seal(&mut Nonces::default(), here, Field::Body, b"text").unwrap());
    }

    #[test]
    fn nonces_are_given_out_once_each_also_when_they_are_drawn_anew() {
        let mut nonces = Nonces::default();
        let given: std::collections::HashSet<_> =
            (0..3 * NONCES + 1).map(|_| nonces.take().unwrap()).collect();
        assert_eq!(given.len(), 3 * NONCES + 1);
        assert!(!given.contains(&[0; NONCE_LEN]));
    }

    #[test]
    fn indexes_of_different_uses_and_practices_differ() {
        let (a, b) = (PracticeKeys::new(1, &[7; 32]).unwrap(), PracticeKeys::new(1, &[8; 32]).unwrap());
        let text = "+12125550123";
        assert_eq!(a.recipient_index(text), a.recipient_index(text));
        assert_ne!(a.recipient_index(text), b.recipient_index(text));
        assert_ne!(a.recipient_index(text), a.reference_index(text));
        assert_ne!(a.idempotency_index(text), a.reference_index(text));
    }
}
