//! Records that wait on disk until the ledger needs them, so that memory does not grow with a run.
//!
//! Owns: the files of a run, the same number of buckets for each kind and writer, and the records. Bounds: a writer keeps
//! [`BUFFER_OCTETS`] for each bucket in memory, a reader one bucket.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use prost::Message;

/// Buckets of each kind of record. The ledger holds one in memory.
pub const BUCKETS: usize = 64;
const BUFFER_OCTETS: usize = 16 << 10;
/// A record is far smaller; a length above this is a broken file.
const RECORD_OCTETS_MAX: u64 = 4_096;

/// An acknowledged message, as the generator wrote it down.
#[derive(Clone, PartialEq, Message)]
pub struct Ack {
    /// The number of the message in the workload.
    #[prost(uint64, tag = "1")]
    pub n: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
    /// When it was sent and when it was acknowledged, in us since the epoch.
    #[prost(uint64, tag = "3")]
    pub sent_us: u64,
    #[prost(uint64, tag = "4")]
    pub acked_us: u64,
    /// The answer said that the key was known.
    #[prost(bool, tag = "5")]
    pub repeated: bool,
}

/// A cancel that was answered.
#[derive(Clone, PartialEq, Message)]
pub struct Cancel {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub in_time: bool,
    /// The state that it was in, if too late.
    #[prost(int32, tag = "3")]
    pub state: i32,
}

/// A message as ListMessages has it, and what was acknowledged of it.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Not set if it was never acknowledged.
    #[prost(message, optional, tag = "2")]
    pub ack: Option<Ack>,
    /// Not set if it is not in the list.
    #[prost(message, optional, tag = "3")]
    pub listed: Option<ListedRow>,
    #[prost(message, optional, tag = "4")]
    pub cancel: Option<Cancel>,
}

/// What ListMessages says.
#[derive(Clone, PartialEq, Message)]
pub struct ListedRow {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    #[prost(int32, tag = "2")]
    pub class: i32,
    #[prost(string, tag = "3")]
    pub practice: String,
    #[prost(int32, tag = "4")]
    pub state: i32,
    #[prost(string, tag = "5")]
    pub reason: String,
    #[prost(int64, tag = "6")]
    pub expires_at_ms: i64,
    #[prost(uint32, tag = "7")]
    pub lost_answers: u32,
    #[prost(int64, tag = "8")]
    pub updated_ms: i64,
}

/// A record of the carrier's ground truth: what the ledger needs of it.
#[derive(Clone, PartialEq, Message)]
pub struct TruthRow {
    /// The entry as JSON; the form is the simulator's.
    #[prost(bytes = "vec", tag = "1")]
    pub entry: Vec<u8>,
}

fn path(dir: &Path, kind: &str, writer: &str, bucket: usize) -> PathBuf {
    dir.join(format!("{kind}.{writer}.{bucket:02}"))
}

/// Writes records of one kind.
pub struct Spill<T> {
    files: Vec<BufWriter<File>>,
    record: Vec<u8>,
    kind: PhantomData<T>,
}

impl<T: Message + Default> Spill<T> {
    /// `writer` tells apart those that write the same kind.
    pub fn create(dir: &Path, kind: &str, writer: &str) -> io::Result<Self> {
        let open = |bucket| {
            let file = File::create(path(dir, kind, writer, bucket))?;
            Ok(BufWriter::with_capacity(BUFFER_OCTETS, file))
        };
        let files = (0..BUCKETS).map(open).collect::<io::Result<_>>()?;
        Ok(Self { files, record: Vec::new(), kind: PhantomData })
    }

    pub fn write(&mut self, bucket: usize, record: &T) -> io::Result<()> {
        self.record.clear();
        record.encode_length_delimited(&mut self.record).map_err(io::Error::other)?;
        self.files[bucket % BUCKETS].write_all(&self.record)
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.files.iter_mut().try_for_each(BufWriter::flush)
    }
}

/// The files of one kind and bucket, of all writers.
fn files(dir: &Path, kind: &str, bucket: usize) -> io::Result<Vec<PathBuf>> {
    let (start, end) = (format!("{kind}."), format!(".{bucket:02}"));
    let mut found = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&start) && name.ends_with(&end) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn length(reader: &mut BufReader<File>) -> io::Result<Option<usize>> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let Some(octet) = reader.fill_buf()?.first().copied() else {
            return if shift == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        };
        reader.consume(1);
        value |= u64::from(octet & 0x7f) << shift;
        if octet < 0x80 {
            break;
        }
    }
    if value > RECORD_OCTETS_MAX {
        return Err(io::Error::other("a spilled record is too long"));
    }
    Ok(Some(value as usize))
}

/// Gives every record of one kind and bucket to `take`.
pub fn read<T: Message + Default>(
    dir: &Path,
    kind: &str,
    bucket: usize,
    mut take: impl FnMut(T) -> io::Result<()>,
) -> io::Result<()> {
    let mut octets = Vec::new();
    for path in files(dir, kind, bucket)? {
        let mut reader = BufReader::new(File::open(path)?);
        while let Some(length) = length(&mut reader)? {
            octets.resize(length, 0);
            reader.read_exact(&mut octets)?;
            take(T::decode(octets.as_slice()).map_err(io::Error::other)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spilled_by_several_writers_is_read_back_by_bucket() {
        let dir = tempfile::tempdir().unwrap();
        for writer in ["0", "1"] {
            let mut spill = Spill::<Ack>::create(dir.path(), "acks", writer).unwrap();
            for n in 0..1_000_u64 {
                let ack = Ack { n, id: vec![7; 16], sent_us: n * 1_000, ..Ack::default() };
                spill.write(n as usize, &ack).unwrap();
            }
            spill.finish().unwrap();
        }
        let mut count = 0;
        for bucket in 0..BUCKETS {
            read(dir.path(), "acks", bucket, |ack: Ack| {
                assert_eq!((ack.n as usize % BUCKETS, ack.sent_us), (bucket, ack.n * 1_000));
                count += 1;
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(count, 2_000);
        read::<Ack>(dir.path(), "ack", 0, |_| panic!("another kind")).unwrap();
    }

    #[test]
    fn half_a_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path(), "acks", "0", 3), [9, 8]).unwrap();
        assert!(read::<Ack>(dir.path(), "acks", 3, |_| Ok(())).is_err());
    }
}
