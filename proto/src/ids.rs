//! Identifiers. A message id carries its slot, so any router can route by id alone.
//!
//! Layout of the 16 bytes, big endian: 48 bits milliseconds since the epoch, 4 bits version (1),
//! 12 bits slot, 64 bits random. Text form: 26 characters of Crockford base32, lower case,
//! read case-insensitively with `i`/`l` as 1 and `o` as 0.
use crate::slot::{SLOTS, Slot};
use std::fmt;

const VERSION: u8 = 1;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Length of the text form.
pub const MESSAGE_ID_CHARS: usize = 26;

/// Names one message for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; 16]);

/// Why a text or byte string is not a message id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("a message id has 26 characters")]
    Length,
    #[error("a message id holds only digits and letters without i, l, o, u")]
    Character,
    #[error("unknown message id version")]
    Version,
}

impl MessageId {
    /// Makes an id from its parts; `random` must come from a secure generator.
    pub fn new(time_ms: u64, slot: Slot, random: u64) -> Self {
        let mut b = [0u8; 16];
        b[..6].copy_from_slice(&time_ms.to_be_bytes()[2..]);
        let tail = (u16::from(VERSION) << 12) | slot.get();
        b[6..8].copy_from_slice(&tail.to_be_bytes());
        b[8..].copy_from_slice(&random.to_be_bytes());
        Self(b)
    }

    /// From the 16 bytes used in logs and records.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        let b: [u8; 16] = bytes.try_into().map_err(|_| IdError::Length)?;
        if b[6] >> 4 != VERSION {
            return Err(IdError::Version);
        }
        Ok(Self(b))
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    pub fn to_bytes(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }

    /// The slot that owns the message.
    pub fn slot(&self) -> Slot {
        let tail = u16::from_be_bytes([self.0[6], self.0[7]]);
        Slot::new(tail % SLOTS).expect("reduced modulo the number of slots")
    }

    /// Milliseconds since the epoch at which the id was made.
    pub fn time_ms(&self) -> u64 {
        let mut b = [0u8; 8];
        b[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(b)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = u128::from_be_bytes(self.0);
        let mut text = [0u8; MESSAGE_ID_CHARS];
        for (i, c) in text.iter_mut().enumerate() {
            let shift = 5 * (MESSAGE_ID_CHARS - 1 - i);
            *c = ALPHABET[((value >> shift) & 31) as usize];
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MessageId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() != MESSAGE_ID_CHARS {
            return Err(IdError::Length);
        }
        let mut value: u128 = 0;
        for (i, c) in text.bytes().enumerate() {
            let c = match c.to_ascii_lowercase() {
                b'i' | b'l' => b'1',
                b'o' => b'0',
                c => c,
            };
            let digit = ALPHABET.iter().position(|a| *a == c).ok_or(IdError::Character)? as u128;
            if i == 0 && digit > 7 {
                return Err(IdError::Character);
            }
            value = (value << 5) | digit;
        }
        Self::from_bytes(&value.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_keeps_the_parts() {
        let slot = Slot::new(4095).unwrap();
        let id = MessageId::new(1_793_000_000_123, slot, 0x0123_4567_89ab_cdef);
        let text = id.to_string();
        assert_eq!(text.len(), MESSAGE_ID_CHARS);
        assert_eq!(text.parse::<MessageId>().unwrap(), id);
        assert_eq!(text.to_uppercase().parse::<MessageId>().unwrap(), id);
        assert_eq!((id.slot(), id.time_ms()), (slot, 1_793_000_000_123));
    }

    #[test]
    fn text_order_is_time_order() {
        let slot = Slot::new(7).unwrap();
        let a = MessageId::new(1000, slot, u64::MAX);
        let b = MessageId::new(1001, slot, 0);
        assert!(a < b && a.to_string() < b.to_string());
    }

    #[test]
    fn bad_texts_are_refused() {
        let good = MessageId::new(1, Slot::new(1).unwrap(), 1).to_string();
        assert_eq!("short".parse::<MessageId>(), Err(IdError::Length));
        assert_eq!(good.replace('1', "u").parse::<MessageId>(), Err(IdError::Character));
        assert_eq!(format!("z{}", &good[1..]).parse::<MessageId>(), Err(IdError::Character));
        assert_eq!("0".repeat(26).parse::<MessageId>(), Err(IdError::Version));
    }
}
