//! An `Accept` as it lies in its entry: read in one pass, nothing copied. Accepts are nearly all of the log.
//!
//! Knows the one form in which prost writes the message: fields in the order of their numbers, each at most once. Whatever is
//! written otherwise is `None` here; the caller decodes it the general way and writes it anew in this form.
//! Texts inside (`place`) are looked at when the row is read, not here.
use carillon_proto::internal::RetryPolicy;
use prost::Message as _;
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

/// Of `Command.accept` and of `MessagePayload.accept` alike: field 1 with a length.
const ACCEPT_TAG: u8 = 0x0a;
/// Of `MessagePayload.accepted_at_ms`: field 2, a number.
const ACCEPTED_AT_TAG: u8 = 0x10;
/// Fields that table M does not keep, because its key, the idempotency row or the status says them: `message_id`, `content_mac`,
/// `retry`, `duplicate_window_ms`.
const LEFT_OUT: [u32; 4] = [1, 17, 20, 36];

/// The fields that apply looks at.
#[derive(Debug, Default)]
pub(crate) struct AcceptView<'a> {
    pub message_id: &'a [u8],
    pub practice_no: u32,
    pub class: i32,
    pub priority: i32,
    pub not_before_ms: u64,
    pub expires_at_ms: u64,
    pub deadline_ms: u64,
    pub recipient_index: &'a [u8],
    pub segments: u32,
    pub idempotency_index: &'a [u8],
    pub content_mac: &'a [u8],
    pub reference_index: &'a [u8],
    pub carrier_no: u32,
    pub retry: Option<RetryPolicy>,
    pub indexed_by_recipient: bool,
    pub due_ms: u64,
    pub open_until_ms: u64,
    pub hours_stamp: u32,
    pub dead_letter_listed: bool,
    pub replay_of: &'a [u8],
    pub route_no: u32,
    pub due_by_practice: bool,
    pub duplicate_index: &'a [u8],
    pub duplicate_window_ms: u32,
    pub ordered: bool,
    pub sender_no: u32,
    /// What table M keeps of the encoded message: the stretches between the fields that are left out.
    kept: [&'a [u8]; LEFT_OUT.len() + 1],
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> AcceptView<'a> {
    /// Of an encoded `Command`.
    pub fn of_command(command: &'a [u8]) -> Option<Self> {
        let mut body = command.strip_prefix(&[ACCEPT_TAG])?;
        let length = decode_varint(&mut body).ok()?;
        (length == body.len() as u64).then(|| Self::of_accept(body)).flatten()
    }

    /// Of an encoded `Accept`.
    pub fn of_accept(body: &'a [u8]) -> Option<Self> {
        let mut view = Self::default();
        let (mut rest, mut last, mut run, mut runs) = (body, 0, body, 0);
        while !rest.is_empty() {
            let before = rest;
            let (number, value) = field(&mut rest)?;
            if number <= last {
                return None;
            }
            last = number;
            view.set(number, value)?;
            if LEFT_OUT.contains(&number) {
                view.kept[runs] = &run[..run.len() - before.len()];
                (run, runs) = (rest, runs + 1);
            }
        }
        view.kept[runs] = run;
        Some(view)
    }

    fn set(&mut self, number: u32, value: Value<'a>) -> Option<()> {
        use Value::{Bytes, Number};
        match (number, value) {
            (1, Bytes(bytes)) => self.message_id = bytes,
            (2, Number(n)) => self.practice_no = n as u32,
            (3, Number(n)) => self.class = n as i32,
            (4, Number(n)) => self.priority = n as i32,
            (5, Number(n)) => self.not_before_ms = n,
            (6, Number(n)) => self.expires_at_ms = n,
            (7, Number(n)) => self.deadline_ms = n,
            (8, Bytes(zone)) if std::str::from_utf8(zone).is_ok() => {}
            (9 | 11 | 12, Bytes(_)) | (13 | 14, Number(_)) | (22, Bytes(_)) => {}
            (10, Bytes(bytes)) => self.recipient_index = bytes,
            (15, Number(n)) => self.segments = n as u32,
            (16, Bytes(bytes)) => self.idempotency_index = bytes,
            (17, Bytes(bytes)) => self.content_mac = bytes,
            (18, Bytes(bytes)) => self.reference_index = bytes,
            (19, Number(n)) => self.carrier_no = n as u32,
            (20, Bytes(bytes)) => self.retry = Some(RetryPolicy::decode(bytes).ok()?),
            (21, Number(n)) => self.indexed_by_recipient = n != 0,
            (23, Number(n)) => self.due_ms = n,
            (24, Number(n)) => self.open_until_ms = n,
            (25, Number(n)) => self.hours_stamp = n as u32,
            (26, Number(n)) => self.dead_letter_listed = n != 0,
            (27, Bytes(bytes)) => self.replay_of = bytes,
            (28, Number(n)) => self.route_no = n as u32,
            (34, Number(n)) => self.due_by_practice = n != 0,
            (35, Bytes(bytes)) => self.duplicate_index = bytes,
            (36, Number(n)) => self.duplicate_window_ms = n as u32,
            (37, Number(n)) => self.ordered = n != 0,
            (38, Number(n)) => self.sender_no = n as u32,
            _ => return None,
        }
        Some(())
    }

    /// The row of table M: a `MessagePayload` with the message as it came, less what is left out.
    pub fn payload_row(&self, accepted_at_ms: u64) -> Vec<u8> {
        let length = self.kept.iter().map(|run| run.len()).sum::<usize>();
        let number = 1 + encoded_len_varint(accepted_at_ms);
        let mut row = Vec::with_capacity(1 + encoded_len_varint(length as u64) + length + number);
        row.push(ACCEPT_TAG);
        encode_varint(length as u64, &mut row);
        self.kept.iter().for_each(|run| row.extend_from_slice(run));
        if accepted_at_ms != 0 {
            row.push(ACCEPTED_AT_TAG);
            encode_varint(accepted_at_ms, &mut row);
        }
        row
    }
}

/// The next field of a message.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    let key = decode_varint(rest).ok()?;
    let number = u32::try_from(key >> 3).ok()?;
    match key & 7 {
        0 => Some((number, Value::Number(decode_varint(rest).ok()?))),
        2 => {
            let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            *rest = after;
            Some((number, Value::Bytes(bytes)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
