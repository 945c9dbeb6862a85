//! The chained digest of a replica: equal exactly when the same entries gave the same results and events.
//!
//! It finds replicas that drifted apart by a defect; it does not defend against forgery (its key is public), so a
//! fast hash is enough.
use crate::applied::EntryMeta;
use crate::keys::hash_bytes;
use bytes::Bytes;
use siphasher::sip128::{Hasher128 as _, SipHasher13};
use std::hash::Hasher as _;

/// Fixed key, version 1. A change needs a feature level: leaders compare digests.
const DIGEST_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x6469_6765_7374_3031);

/// The digest of one entry in the making.
pub(crate) struct Digest(SipHasher13);

impl Digest {
    /// Begins with the digest before, and the entry itself.
    pub fn of_entry(previous: &[u8], meta: EntryMeta, data: &[u8]) -> Self {
        let mut hasher = SipHasher13::new_with_keys(DIGEST_KEY.0, DIGEST_KEY.1);
        hasher.write(previous);
        hasher.write(&meta.index.to_be_bytes());
        hasher.write(&meta.term.to_be_bytes());
        hasher.write(&(data.len() as u64).to_be_bytes());
        hasher.write(data);
        Self(hasher)
    }

    /// Adds what a command or the entry caused.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub fn finish(self) -> Bytes {
        Bytes::copy_from_slice(&hash_bytes(self.0.finish128()))
    }
}
