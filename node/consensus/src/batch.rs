//! Cuts encoded commands into the payloads of raft entries, without encoding a command twice.
//!
//! The framing of `CommandBatch` and of `MetaBatch` is the same by design: field 1 is `now_ms`, field 2 the commands.
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

const NOW_MS_FIELD: u32 = 1;
const COMMANDS_FIELD: u32 = 2;

/// How much goes into one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    pub commands_max: usize,
    /// Of the whole payload. A single command that is larger makes a batch of its own.
    pub bytes_max: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { commands_max: 512, bytes_max: 256 * 1024 }
    }
}

/// The payload of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub data: Bytes,
    /// How many commands it holds, counted on from the batch before.
    pub commands: usize,
}

/// Cuts `commands` (each one an encoded `Command` or `MetaCommand`) in order into as few batches as the limits allow.
pub fn cut(now_ms: u64, commands: &[Bytes], limits: BatchLimits) -> Vec<Batch> {
    assert!(limits.commands_max > 0 && limits.bytes_max > 0, "limits must not be 0");
    let mut batches = Vec::new();
    let mut rest = commands;
    while !rest.is_empty() {
        let (count, bytes) = measure(now_ms, rest, limits);
        let (taken, later) = rest.split_at(count);
        batches.push(Batch { data: encode(now_ms, taken, bytes), commands: count });
        rest = later;
    }
    batches
}

/// How many of `commands` fit into one batch (at least one) and how many bytes that makes.
fn measure(now_ms: u64, commands: &[Bytes], limits: BatchLimits) -> (usize, usize) {
    let mut bytes = match now_ms {
        0 => 0,
        _ => key_len(NOW_MS_FIELD) + encoded_len_varint(now_ms),
    };
    let mut count = 0;
    for command in commands.iter().take(limits.commands_max) {
        let more = key_len(COMMANDS_FIELD) + encoded_len_varint(command.len() as u64) + command.len();
        if count > 0 && bytes + more > limits.bytes_max {
            break;
        }
        bytes += more;
        count += 1;
    }
    (count, bytes)
}

fn encode(now_ms: u64, commands: &[Bytes], bytes: usize) -> Bytes {
    let mut data = BytesMut::with_capacity(bytes);
    if now_ms != 0 {
        encode_key(NOW_MS_FIELD, WireType::Varint, &mut data);
        encode_varint(now_ms, &mut data);
    }
    for command in commands {
        encode_key(COMMANDS_FIELD, WireType::LengthDelimited, &mut data);
        encode_varint(command.len() as u64, &mut data);
        data.put_slice(command);
    }
    assert_eq!(data.len(), bytes, "measured and encoded sizes agree");
    data.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::internal::{
        Accept, Command, CommandBatch, Expire, MetaBatch, MetaCommand, PutPractice, command, meta_command,
    };
    use prost::Message as _;

    fn accept(body_bytes: usize, number: u32) -> Command {
        let accept = Accept {
            practice_no: number,
            sealed_body: vec![number as u8; body_bytes].into(),
            ..Default::default()
        };
        Command { kind: Some(command::Kind::Accept(accept)) }
    }

    /// Cuts, decodes with prost, and gives the commands of each batch.
    fn decoded(now_ms: u64, commands: &[Command], limits: BatchLimits) -> Vec<Vec<Command>> {
        let encoded: Vec<Bytes> = commands.iter().map(|c| c.encode_to_vec().into()).collect();
        cut(now_ms, &encoded, limits)
            .into_iter()
            .map(|batch| {
                let decoded = CommandBatch::decode(batch.data.clone()).unwrap();
                assert_eq!(decoded.now_ms, now_ms);
                assert_eq!(decoded.commands.len(), batch.commands);
                assert_eq!(decoded.encode_to_vec(), batch.data, "same bytes as prost writes");
                assert!(batch.commands == 1 || batch.data.len() <= limits.bytes_max);
                decoded.commands
            })
            .collect()
    }

    #[test]
    fn prost_reads_the_same_commands_in_the_same_order() {
        let commands: Vec<_> = (0..2000u32).map(|n| accept((n as usize * 37) % 1500, n)).collect();
        for now_ms in [0, 1, 1_793_000_000_000] {
            let batches = decoded(now_ms, &commands, BatchLimits::default());
            assert!(batches.len() > 4);
            assert_eq!(batches.concat(), commands);
        }
    }

    #[test]
    fn the_number_of_commands_is_limited() {
        let commands = vec![accept(0, 1); 1025];
        let sizes: Vec<_> = decoded(5, &commands, BatchLimits::default()).iter().map(Vec::len).collect();
        assert_eq!(sizes, [512, 512, 1]);
    }

    #[test]
    fn bytes_are_limited_exactly() {
        let commands = vec![accept(100, 1); 10];
        let one = commands[0].encoded_len() + 2;
        let exact = BatchLimits { commands_max: 512, bytes_max: 2 + one * 4 };
        let sizes: Vec<_> = decoded(5, &commands, exact).iter().map(Vec::len).collect();
        assert_eq!(sizes, [4, 4, 2]);
        let less = BatchLimits { bytes_max: exact.bytes_max - 1, ..exact };
        let sizes: Vec<_> = decoded(5, &commands, less).iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 3, 3, 1]);
    }

    #[test]
    fn a_command_above_the_limit_goes_alone() {
        let commands = [accept(10, 1), accept(5000, 2), accept(10, 3)];
        let limits = BatchLimits { commands_max: 512, bytes_max: 1000 };
        let sizes: Vec<_> = decoded(9, &commands, limits).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 1, 1]);
    }

    #[test]
    fn empty_commands_and_no_commands() {
        let empty = Command { kind: None };
        let expire = Command { kind: Some(command::Kind::Expire(Expire::default())) };
        let commands = [empty, expire];
        assert_eq!(decoded(1, &commands, BatchLimits::default()).concat(), commands);
        assert!(cut(1, &[], BatchLimits::default()).is_empty());
    }

    #[test]
    fn meta_batches_have_the_same_framing() {
        let put = PutPractice { tenant: "acme".into(), practice: "north".into(), ..Default::default() };
        let command = MetaCommand { kind: Some(meta_command::Kind::PutPractice(put)) };
        let encoded: Bytes = command.encode_to_vec().into();
        let batches = cut(77, &[encoded.clone(), encoded], BatchLimits::default());
        let batch = MetaBatch::decode(batches[0].data.clone()).unwrap();
        assert_eq!(batch, MetaBatch { now_ms: 77, commands: vec![command.clone(), command] });
    }
}
