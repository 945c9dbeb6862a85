//! Requests made in advance: each message is a template of octets plus its idempotency key.
//!
//! Owns: [`Feed`]. Field order does not matter in protobuf, so the key goes behind the template and nothing is
//! encoded twice. Bounds: [`VARIANTS`] templates for each practice.

use bytes::{BufMut as _, Bytes, BytesMut};
use carillon_proto::Slot;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::public::{MessageClass, MessageSpec};
use prost::Message as _;

use crate::sample_day::{Practice, timestamp};

/// Recipients for each practice.
pub const VARIANTS: usize = 32;
/// `idempotency_key = 11`, length-delimited.
const KEY_TAG: u8 = 11 << 3 | 2;
/// `messages = 2`, length-delimited.
const MESSAGES_TAG: u8 = 2 << 3 | 2;
/// `batch_id = 1`, varint.
const BATCH_ID_TAG: u8 = 1 << 3;
const KEY_LEN: usize = 24;

/// What the messages are like.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    pub body_bytes: usize,
    /// Milliseconds since the epoch; `None` to send at once.
    pub not_before_ms: Option<i64>,
    /// Messages of one practice before the next one comes: 1 spreads each batch over all partitions, the size of a batch
    /// makes it a practice's own upload. At least 1.
    pub row: u64,
}

/// One practice for each partition, so that the load is even, with the partitions that no practice falls into.
pub fn even_practices(tenant: &str, practices: &[Practice], partitions: u32) -> (Vec<Practice>, Vec<u32>) {
    let of = |practice: &Practice| Slot::of_practice(tenant, &practice.name).partition(partitions);
    let (mut chosen, mut missing) = (Vec::new(), Vec::new());
    for partition in 1..=partitions {
        match practices.iter().find(|practice| of(practice) == partition) {
            Some(practice) => chosen.push(practice.clone()),
            None => missing.push(partition),
        }
    }
    (chosen, missing)
}

/// Makes batches.
pub struct Feed {
    /// Of one practice after the other.
    templates: Vec<Bytes>,
    practices: u64,
    row: u64,
    run: u32,
    made: u64,
}

impl Feed {
    /// `run` keeps the keys of one run apart from those of another.
    pub fn new(practices: &[Practice], content: &Content, run: u32) -> Self {
        let templates = (0..VARIANTS)
            .flat_map(|variant| practices.iter().map(move |practice| (variant, practice)))
            .map(|(variant, practice)| Bytes::from(template(practice, variant, content).encode_to_vec()))
            .collect();
        Self { templates, practices: practices.len().max(1) as u64, row: content.row.max(1), run, made: 0 }
    }

    fn template(&self) -> &Bytes {
        let (of_practice, variant) = (self.made / self.row % self.practices, self.made / self.practices);
        &self.templates[((variant * self.practices + of_practice) % self.templates.len() as u64) as usize]
    }

    /// The octets of a `StreamMessagesRequest` with `count` new messages.
    pub fn batch(&mut self, batch_id: u64, count: usize) -> Bytes {
        let longest = self.templates.iter().map(Bytes::len).max().unwrap_or(0);
        let mut out = BytesMut::with_capacity(count * (longest + KEY_LEN + 12) + 12);
        out.put_u8(BATCH_ID_TAG);
        prost::encoding::encode_varint(batch_id, &mut out);
        for _ in 0..count {
            let template = self.template().clone();
            out.put_u8(MESSAGES_TAG);
            prost::encoding::encode_varint((template.len() + 2 + KEY_LEN) as u64, &mut out);
            out.put_slice(&template);
            out.put_u8(KEY_TAG);
            out.put_u8(KEY_LEN as u8);
            put_hex(&mut out, u64::from(self.run), 8);
            put_hex(&mut out, self.made, 16);
            self.made += 1;
        }
        out.freeze()
    }
}

fn put_hex(out: &mut BytesMut, value: u64, digits: u32) {
    for at in (0..digits).rev() {
        out.put_u8(b"0123456789abcdef"[(value >> (4 * at) & 15) as usize]);
    }
}

fn template(practice: &Practice, variant: usize, content: &Content) -> MessageSpec {
    let area = &practice.area_codes[variant % practice.area_codes.len()];
    let start = format!("{}: reminder {variant:02}. ", practice.title);
    let body: String = start
        .chars()
        .chain("Please come a little early. ".chars().cycle())
        .collect_prefix(content.body_bytes);
    MessageSpec {
        practice: practice.name.clone(),
        recipient: Some(Recipient::PhoneNumber(format!("+1{area}55501{variant:02}"))),
        body,
        class: MessageClass::Reminder as i32,
        not_before: content.not_before_ms.map(timestamp),
        external_reference: format!("visit-{variant:06}"),
        ..Default::default()
    }
}

/// The first octets of a text; every character here is one octet.
trait CollectPrefix {
    fn collect_prefix(self, octets: usize) -> String;
}

impl<I: Iterator<Item = char>> CollectPrefix for I {
    fn collect_prefix(self, octets: usize) -> String {
        self.filter(char::is_ascii).take(octets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::public::StreamMessagesRequest;
    use std::collections::HashSet;

    #[test]
    fn octets_are_a_request_with_distinct_keys_over_all_practices() {
        let practices = crate::sample_day::practices().unwrap();
        let content = Content { body_bytes: 300, not_before_ms: Some(1_900_000_000_123), row: 1 };
        let mut feed = Feed::new(&practices[..16], &content, 0xabcd);
        let mut keys = HashSet::new();
        for id in [1, 300] {
            let request = StreamMessagesRequest::decode(feed.batch(id, 100)).unwrap();
            assert_eq!((request.batch_id, request.messages.len()), (id, 100));
            let names: HashSet<_> = request.messages.iter().map(|m| m.practice.clone()).collect();
            assert_eq!(names.len(), 16);
            for message in request.messages {
                assert_eq!(message.body.len(), 300);
                assert_eq!(message.not_before.as_ref().unwrap().nanos, 123_000_000);
                assert!(message.idempotency_key.starts_with("0000abcd"));
                assert!(keys.insert(message.idempotency_key));
            }
        }
        assert_eq!(keys.len(), 200);
    }

    #[test]
    fn a_row_is_of_one_practice_and_the_next_one_of_another() {
        let practices = crate::sample_day::practices().unwrap();
        let content = Content { body_bytes: 100, not_before_ms: None, row: 10 };
        let mut feed = Feed::new(&practices[..3], &content, 1);
        let names: Vec<String> = (0..6)
            .map(|id| {
                let request = StreamMessagesRequest::decode(feed.batch(id, 10)).unwrap();
                let names: HashSet<_> = request.messages.into_iter().map(|m| m.practice).collect();
                assert_eq!(names.len(), 1);
                names.into_iter().next().unwrap()
            })
            .collect();
        assert_eq!(names[..3], names[3..]);
        assert_eq!(names[..3].iter().collect::<HashSet<_>>().len(), 3);
    }

    #[test]
    fn one_practice_for_each_partition() {
        let practices = crate::sample_day::practices().unwrap();
        let (chosen, missing) = even_practices(crate::sample_day::TENANT, &practices, 16);
        assert_eq!((chosen.len(), missing), (16, Vec::new()));
        let (_, missing) = even_practices(crate::sample_day::TENANT, &practices[..1], 16);
        assert_eq!(missing.len(), 15);
    }
}
