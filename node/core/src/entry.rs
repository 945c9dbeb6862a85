//! The commands of an entry, read as far as needed: an Accept stays where it lies, everything else is decoded by prost.
use crate::accept::{self, AcceptView};
use crate::records::{corrupt, decode_batch};
use crate::tables::TableError;
use bytes::Bytes;
use carillon_proto::internal::{Command, CommandBatch};
use prost::Message as _;
use prost::encoding::decode_varint;
use std::ops::Range;

/// An encoded `CommandBatch`.
pub(crate) struct Entry {
    pub now_ms: u64,
    data: Bytes,
    /// Where each command lies.
    pub commands: Vec<Range<usize>>,
}

/// One command of it.
#[expect(clippy::large_enum_variant, reason = "nearly all are large, and few are read at a time")]
pub(crate) enum Read<'a> {
    Accept(AcceptView<'a>),
    Other(Box<Command>),
}

impl Entry {
    pub fn read(data: &Bytes) -> Result<Self, TableError> {
        if let Some(entry) = Self::usual(data) {
            return Ok(entry);
        }
        // Not as we write it: decoded the general way, which says what is wrong with it, and written anew.
        let batch: CommandBatch = decode_batch(data)?;
        Self::usual(&batch.encode_to_vec().into()).ok_or_else(|| corrupt('L', "batch"))
    }

    /// Of fields 1 (a number) and 2 (with a length) only.
    fn usual(data: &Bytes) -> Option<Self> {
        let (mut now_ms, mut commands, mut rest) = (0, Vec::new(), &data[..]);
        while !rest.is_empty() {
            match decode_varint(&mut rest).ok()? {
                0x08 => now_ms = decode_varint(&mut rest).ok()?,
                0x12 => {
                    let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                    let after = rest.get(length..)?;
                    let start = data.len() - rest.len();
                    commands.push(start..start + length);
                    rest = after;
                }
                _ => return None,
            }
        }
        Some(Self { now_ms, data: data.clone(), commands })
    }

    pub fn command(&self, place: &Range<usize>) -> Result<Read<'_>, TableError> {
        if let Some(view) = AcceptView::of_command(&self.data[place.clone()]) {
            return Ok(Read::Accept(view));
        }
        let command = Command::decode(self.data.slice(place.clone()));
        Ok(Read::Other(Box::new(command.map_err(|error| corrupt('L', &format!("batch: {error}")))?)))
    }
}

impl Read<'_> {
    /// The row that it asks for first, where most commands of an entry ask for one that does not exist.
    pub fn expects(&self) -> Option<Vec<u8>> {
        match self {
            Self::Accept(accept) => accept::idempotency_key(accept),
            Self::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::internal::{Accept, Expire, command::Kind};

    fn batch() -> CommandBatch {
        let kinds =
            [Kind::Accept(Accept { practice_no: 7, ..Default::default() }), Kind::Expire(Expire::default())];
        let commands = kinds.map(|kind| Command { kind: Some(kind) });
        CommandBatch { now_ms: 300, commands: commands.into_iter().chain([Command::default()]).collect() }
    }

    fn check(data: &Bytes) {
        let entry = Entry::read(data).unwrap();
        assert_eq!((entry.now_ms, entry.commands.len()), (300, 3));
        let read: Vec<_> = entry.commands.iter().map(|place| entry.command(place).unwrap()).collect();
        assert!(matches!(&read[0], Read::Accept(view) if view.practice_no == 7));
        assert!(matches!(&read[1], Read::Other(command) if matches!(command.kind, Some(Kind::Expire(_)))));
        assert!(matches!(&read[2], Read::Other(command) if command.kind.is_none()));
    }

    #[test]
    fn commands_come_in_order_and_as_they_were_written() {
        check(&batch().encode_to_vec().into());
    }

    #[test]
    fn fields_that_are_not_known_are_passed_over_as_prost_does() {
        let mut data = batch().encode_to_vec();
        data.extend_from_slice(&[0xfa, 0x07, 1, 0]);
        check(&data.into());
    }

    #[test]
    fn damaged_bytes_are_corrupt_storage() {
        let data = batch().encode_to_vec();
        for cut in [1, data.len() - 1] {
            let error = Entry::read(&data[..cut].to_vec().into()).err().map(|error| error.to_string());
            assert!(error.is_some_and(|text| text.contains("batch")), "{cut}");
        }
        let bad = Entry::read(&vec![0x12, 3, 0x3a, 9, 0].into()).unwrap();
        assert!(bad.command(&bad.commands[0]).is_err());
    }
}
