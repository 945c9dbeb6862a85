//! Reads every file of a raft-engine directory before the engine does, and tells a torn tail from damage.
//!
//! Why: the engine's recovery mode `TolerateTailCorruption` cuts the newest file at the first batch that does not
//! check out, even when intact acknowledged batches follow it; and its `AbsoluteConsistency` refuses the zeros that
//! every unclean stop leaves behind (files are allocated ahead). Neither is right, so this pass decides first.
//!
//! How: each batch of ours ends with a marker {sequence, highest sequence known synced when it was written}. Where
//! a batch of the newest file fails, a later intact batch that knows the failed sequence to be synced proves damage:
//! opening is refused. Otherwise the failed bytes were never acknowledged, and the file is cut there. Older files
//! were closed and synced, so they must be perfect, and sequences must follow each other without a gap.
//!
//! One kind of damage does not stop the node: where only the entries of an acknowledged batch fail and the rest of the batch is
//! intact, the batch still says what it is, so the engine can open. It is reported, and the log then finds the groups that
//! need those entries ([`super::EngineLog::damaged`]); only they are out of service.
//! Limit: rot in the very last batch looks like a torn tail. Nothing on this disk can tell; the other replicas can
//! (a follower whose log ends before what it acknowledged).
//! Memory: one file at a time (`target_file_size` plus one batch).
use super::OpenError;
use super::files::sync_directory;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// Key of the marker; it is always the last item of a batch.
pub(super) const MARKER_KEY: &[u8] = b"carillon-batch";
/// Region of the marker, which no group uses.
pub(super) const MARKER_REGION: u64 = u64::MAX;
const MARKER_VALUE_BYTES: usize = 16;

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const FORMAT_VERSION: u64 = 2;
const FILE_HEADER_BYTES: usize = MAGIC.len() + 16;
const BATCH_HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
const APPEND_SUFFIX: &str = ".raftlog";
const REWRITE_SUFFIX: &str = ".rewrite";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marker {
    pub sequence: u64,
    pub synced: u64,
}

impl Marker {
    pub fn to_value(self) -> Vec<u8> {
        [self.sequence.to_be_bytes(), self.synced.to_be_bytes()].concat()
    }
}

struct Batch {
    end: usize,
    marker: Option<Marker>,
    /// The entries fail their checksum; header, items and marker are intact.
    entries_damaged: bool,
}

/// What the files hold.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Highest sequence, 0 when there is none.
    pub sequence: u64,
    /// Places where acknowledged entries fail their checksum.
    pub damaged: Vec<String>,
}

/// Checks all files and cuts a torn tail off the newest one.
pub(super) fn check(dir: &Path) -> Result<Checked, OpenError> {
    let mut checked = Checked::default();
    let rewrites = files_of(dir, REWRITE_SUFFIX)?;
    for (position, (number, path)) in rewrites.iter().enumerate() {
        check_rewrite(*number, path, position + 1 == rewrites.len(), &mut checked)?;
    }
    let appends = files_of(dir, APPEND_SUFFIX)?;
    for (position, (number, path)) in appends.iter().enumerate() {
        check_append(*number, path, position + 1 == appends.len(), &mut checked)?;
    }
    Ok(checked)
}

/// Numbered files with this ending, oldest first.
fn files_of(dir: &Path, suffix: &str) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(number) = name.strip_suffix(suffix).and_then(|stem| stem.parse().ok()) {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files)
}

fn check_append(number: u64, path: &Path, newest: bool, checked: &mut Checked) -> Result<(), OpenError> {
    let data = std::fs::read(path)?;
    let mut offset = match file_header(&data) {
        Ok(()) => FILE_HEADER_BYTES,
        Err(_) if newest => return after_failure(&data, 0, number, path, checked.sequence),
        Err(reason) => return Err(damaged(path, 0, reason)),
    };
    while offset < data.len() {
        let last = checked.sequence;
        let batch = match read_batch(&data, offset, number) {
            // In the newest file it may be torn: damage only if a later batch knows that it was synced.
            Ok(batch) if newest && batch.entries_damaged => {
                match after_failure(&data, offset, number, path, last) {
                    Ok(()) => return Ok(()),
                    Err(_) => batch,
                }
            }
            Ok(batch) => batch,
            Err(_) if newest => return after_failure(&data, offset, number, path, last),
            Err(reason) => return Err(damaged(path, offset, reason)),
        };
        let Some(marker) = batch.marker else { return Err(damaged(path, offset, "batch has no marker")) };
        if last != 0 && marker.sequence != last + 1 {
            return Err(damaged(path, offset, "batches are missing before this one"));
        }
        note_damage(&batch, path, offset, checked);
        checked.sequence = marker.sequence;
        offset = batch.end;
    }
    Ok(())
}

fn note_damage(batch: &Batch, path: &Path, offset: usize, checked: &mut Checked) {
    if batch.entries_damaged {
        checked.damaged.push(damaged(path, offset, "entries fail their checksum").to_string());
    }
}

/// The batch at `offset` of the newest file failed: torn tail, which is cut, or damage?
fn after_failure(data: &[u8], offset: usize, number: u64, path: &Path, last: u64) -> Result<(), OpenError> {
    let mut at = offset + 1;
    while let Some(found) = next_batch(data, at, number) {
        let batch = read_batch(data, found, number).map_err(|reason| damaged(path, found, reason))?;
        if batch.marker.is_some_and(|marker| marker.synced > last) {
            return Err(damaged(path, offset, "an acknowledged batch fails its checksum"));
        }
        at = batch.end;
    }
    cut(path, offset)
}

/// Batches of the rewrite queue are the engine's own and carry no marker, so damage that intact batches follow
/// cannot be told from an interrupted rewrite: refused, because the originals may be gone.
fn check_rewrite(number: u64, path: &Path, newest: bool, checked: &mut Checked) -> Result<(), OpenError> {
    let data = std::fs::read(path)?;
    let start = match file_header(&data) {
        Ok(()) => FILE_HEADER_BYTES,
        Err(_) if newest && next_batch(&data, 0, number).is_none() => return cut(path, 0),
        Err(reason) => return Err(damaged(path, 0, reason)),
    };
    let mut offset = start;
    while offset < data.len() {
        let torn = || newest && next_batch(&data, offset + 1, number).is_none();
        match read_batch(&data, offset, number) {
            Ok(batch) if batch.entries_damaged && torn() => return cut(path, offset),
            Ok(batch) => {
                note_damage(&batch, path, offset, checked);
                offset = batch.end;
            }
            Err(_) if torn() => return cut(path, offset),
            Err(reason) => return Err(damaged(path, offset, reason)),
        }
    }
    Ok(())
}

fn file_header(data: &[u8]) -> Result<(), &'static str> {
    let header = data.get(..FILE_HEADER_BYTES).ok_or("file header is cut")?;
    let version = be_u64(header, MAGIC.len());
    let alignment = be_u64(header, MAGIC.len() + 8);
    if !header.starts_with(MAGIC) || version != FORMAT_VERSION || alignment != 0 {
        return Err("file header is not of the log format");
    }
    Ok(())
}

/// Layout: {length << 8 | compression (never), start of the items} big endian; entries and their checksum; items and
/// their checksum, which is mixed with the file number so that bytes of a recycled file do not count.
fn read_batch(data: &[u8], offset: usize, number: u64) -> Result<Batch, &'static str> {
    let rest = &data[offset..];
    if rest.len() < BATCH_HEADER_BYTES {
        return Err("batch header is cut");
    }
    let word = be_u64(rest, 0);
    let length = usize::try_from(word >> 8).map_err(|_| "batch length is out of range")?;
    let items = usize::try_from(be_u64(rest, 8)).map_err(|_| "batch layout is out of range")?;
    if word & 0xff != 0 || items < BATCH_HEADER_BYTES || items.saturating_add(CHECKSUM_BYTES) >= length {
        return Err("batch header is not valid");
    }
    let batch = rest.get(..length).ok_or("batch is cut")?;
    if checked(&batch[items..], number as u32).is_none() {
        return Err("batch items fail their checksum");
    }
    let entries_damaged =
        items > BATCH_HEADER_BYTES && checked(&batch[BATCH_HEADER_BYTES..items], 0).is_none();
    let marker = read_marker(&batch[items..length - CHECKSUM_BYTES]);
    Ok(Batch { end: offset + length, marker, entries_damaged })
}

/// The marker is the last item: key, one length byte, value.
fn read_marker(items: &[u8]) -> Option<Marker> {
    let value_start = items.len().checked_sub(MARKER_VALUE_BYTES)?;
    let key = items[..value_start].strip_suffix(&[MARKER_VALUE_BYTES as u8])?;
    key.ends_with(MARKER_KEY)
        .then(|| Marker { sequence: be_u64(items, value_start), synced: be_u64(items, value_start + 8) })
}

/// The first offset at or after `from` where an intact batch starts.
fn next_batch(data: &[u8], from: usize, number: u64) -> Option<usize> {
    (from..data.len().saturating_sub(BATCH_HEADER_BYTES)).find(|&offset| {
        // A batch is shorter than 2^40 bytes and its items start below 2^40: five zero bytes filter nearly all.
        data[offset..offset + 2] == [0; 2]
            && data[offset + 8..offset + 11] == [0; 3]
            && read_batch(data, offset, number).is_ok()
    })
}

/// The block without its trailing checksum, if that holds.
fn checked(block: &[u8], signature: u32) -> Option<&[u8]> {
    let (body, sum) = block.split_last_chunk::<CHECKSUM_BYTES>()?;
    (crc32fast::hash(body) == u32::from_le_bytes(*sum) ^ signature).then_some(body)
}

fn be_u64(data: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}

fn cut(path: &Path, offset: usize) -> Result<(), OpenError> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(offset as u64)?;
    file.sync_all()?;
    if let Some(dir) = path.parent() {
        sync_directory(dir)?;
    }
    Ok(())
}

fn damaged(path: &Path, offset: usize, reason: &str) -> OpenError {
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    OpenError::Damaged { file, offset: offset as u64, reason: reason.to_string() }
}
