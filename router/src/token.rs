//! Page tokens and watch cursors: opaque, URL-safe, without authority.
//!
//! Each ends in a checksum over its content and the request that it belongs to, so a token that was cut, mixed up or used
//! with other filters is refused instead of giving wrong pages. It is no signature: the node checks the tenant of
//! every row, whatever a token says. The checksum is short, so that a token says next to nothing about the filters.
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Buf as _, Bytes};
use carillon_proto::errors;
use carillon_proto::public::{ErrorReason, ListMessagesRequest};
use prost::Message as _;
use prost::encoding::{decode_varint, encode_varint};
use siphasher::sip::SipHasher24;
use std::hash::Hasher as _;
use tonic::Status;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// Longer texts are not ours. A cursor of 4096 partitions has 55,000 characters.
const TOKEN_CHARACTERS_MAX: usize = 64 * 1024;
const POSITION_BYTES_MAX: usize = 64;
/// Not a secret: it keeps these checksums apart from other uses of the hash.
const CHECKSUM_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x746f_6b65_6e73_3031);

/// What a token belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope(u64);

impl Scope {
    /// A list: the tenant and every filter, but not the page size.
    pub fn of_list(tenant: &str, request: &ListMessagesRequest) -> Self {
        let filters = ListMessagesRequest { page_size: 0, page_token: String::new(), ..request.clone() };
        Self(hash(&[b"list", tenant.as_bytes(), &filters.encode_to_vec()]))
    }

    pub fn of_watch(tenant: &str, practice: &str) -> Self {
        Self(hash(&[b"watch", tenant.as_bytes(), practice.as_bytes()]))
    }
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(CHECKSUM_KEY.0, CHECKSUM_KEY.1);
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    }
    hasher.finish()
}

fn checksum(scope: Scope, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = hash(&[&scope.0.to_be_bytes(), content]).to_be_bytes();
    [a, b, c, d]
}

fn close(scope: Scope, mut content: Vec<u8>) -> String {
    let sum = checksum(scope, &content);
    content.extend_from_slice(&sum);
    URL_SAFE_NO_PAD.encode(content)
}

/// The content without version and checksum.
fn open(scope: Scope, text: &str) -> Option<Bytes> {
    if text.len() > TOKEN_CHARACTERS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (content, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    if *sum != checksum(scope, content) || content.first() != Some(&VERSION) {
        return None;
    }
    Some(Bytes::copy_from_slice(&content[1..]))
}

fn invalid(what: &str) -> Status {
    errors::status(ErrorReason::InvalidToken, what)
}

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub partition: u32,
    /// The node's own mark in the partition; empty = its beginning.
    pub after: Bytes,
}

impl Position {
    pub fn encode(&self, scope: Scope) -> String {
        let mut content = vec![VERSION];
        encode_varint(u64::from(self.partition), &mut content);
        content.extend_from_slice(&self.after);
        close(scope, content)
    }

    pub fn decode(text: &str, scope: Scope) -> Result<Self, Status> {
        let read = || {
            let mut content = open(scope, text)?;
            let partition = u32::try_from(decode_varint(&mut content).ok()?).ok()?;
            (content.len() <= POSITION_BYTES_MAX).then_some(Self { partition, after: content })
        };
        read().ok_or_else(|| invalid("the page token is not one of this list"))
    }
}

/// Where a watch goes on: for each partition the last entry whose events were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// `indexes[i]` belongs to partition `i + 1`.
    pub indexes: Vec<u64>,
}

impl Cursor {
    pub fn encode(&self, scope: Scope) -> String {
        let mut content = Vec::with_capacity(8 + self.indexes.len() * 5);
        content.push(VERSION);
        encode_varint(self.indexes.len() as u64, &mut content);
        self.indexes.iter().for_each(|index| encode_varint(*index, &mut content));
        close(scope, content)
    }

    pub fn decode(text: &str, scope: Scope, partitions: u32) -> Result<Self, Status> {
        let read = || {
            let mut content = open(scope, text)?;
            if decode_varint(&mut content).ok()? != u64::from(partitions) {
                return None;
            }
            let mut indexes = Vec::with_capacity(partitions as usize);
            for _ in 0..partitions {
                indexes.push(decode_varint(&mut content).ok()?);
            }
            (!content.has_remaining()).then_some(Self { indexes })
        };
        read().ok_or_else(|| invalid("the cursor is not one of this stream"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filters() -> ListMessagesRequest {
        ListMessagesRequest { practice: "north".into(), states: vec![2], ..Default::default() }
    }

    #[test]
    fn a_position_survives_and_fits_only_its_own_list() {
        let scope = Scope::of_list("lakeside", &filters());
        let position = Position { partition: 4096, after: Bytes::from_static(&[7; 18]) };
        let text = position.encode(scope);
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert_eq!(Position::decode(&text, scope).unwrap(), position);
        let resized = ListMessagesRequest { page_size: 7, page_token: text.clone(), ..filters() };
        assert_eq!(Scope::of_list("lakeside", &resized), scope);
        for other in [
            Scope::of_list("riverside", &filters()),
            Scope::of_list("lakeside", &ListMessagesRequest { states: vec![3], ..filters() }),
            Scope::of_list("lakeside", &ListMessagesRequest { classes: vec![1], ..filters() }),
            Scope::of_list("lakeside", &ListMessagesRequest { view: 2, ..filters() }),
            Scope::of_watch("lakeside", "north"),
        ] {
            let refused = Position::decode(&text, other).unwrap_err();
            assert_eq!(errors::reason_of(&refused), Some(ErrorReason::InvalidToken));
        }
    }

    #[test]
    fn a_cursor_survives_and_fits_only_its_own_stream() {
        let scope = Scope::of_watch("lakeside", "");
        let cursor = Cursor { indexes: vec![0, 1, u64::MAX, 300] };
        let text = cursor.encode(scope);
        assert_eq!(Cursor::decode(&text, scope, 4).unwrap(), cursor);
        assert!(Cursor::decode(&text, scope, 5).is_err());
        assert!(Cursor::decode(&text, Scope::of_watch("lakeside", "north"), 4).is_err());
        assert!(Cursor::decode(&text, Scope::of_watch("riverside", ""), 4).is_err());
    }

    proptest! {
        #[test]
        fn damaged_tokens_are_refused_and_nothing_panics(text in "\\PC{0,80}", at in 0usize..20, c in "[A-Za-z0-9]") {
            let scope = Scope::of_list("lakeside", &filters());
            prop_assert!(Position::decode(&text, scope).is_err());
            prop_assert!(Cursor::decode(&text, scope, 3).is_err());
            let mut good = Position { partition: 3, after: Bytes::from_static(&[1; 18]) }.encode(scope);
            let before = good.clone();
            good.replace_range(at..=at, &c);
            prop_assert_eq!(Position::decode(&good, scope).is_ok(), good == before);
        }
    }
}
