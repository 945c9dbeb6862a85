//! Gives committed rows to RocksDB as finished tables, past its memtables: sorted here, written once, taken over in one step.
//!
//! Owns the thread that does it behind the applier's back, and the directory in which tables are made. Invariants
//!  - The rows of one write, the applied record among them, become part of the database in one step, so what is on disk stays a
//!    prefix of the apply order. They are durable when the write returns.
//!  - Writes of one replica come one after the other; the caller holds its writer.
//!
//! Why not memtables: rows would be sorted one by one, kept in memory twice, and written and compacted together. Here each range
//! of tables gets a file of its own. The payloads, most of the bytes, are in the order of time: their file lies behind
//! all earlier ones, so RocksDB puts it into its lowest level and never rewrites it until rows are dropped. Those few that are
//! older than the last file's end have a file to themselves. What remains for compactions is small.
use super::overlay::{Overlay, RISING};
use super::replica::{Replica, SstWriter};
use super::{Family, Shared, StateError};
use crate::failpoints;
use bytes::Bytes;
use rocksdb::properties::num_files_at_level;
use rocksdb::{BoundColumnFamily, IngestExternalFileOptions, Options};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// In the directory of the database; emptied when it is opened.
const DIRECTORY: &str = "write-back";
/// Replicas that wait for the thread; one that finds no room asks again.
const WAITING_MAX: usize = 512;
/// Tables in level 0 with which a write waits for compactions.
const LEVEL_ZERO_TABLES_MAX: u64 = 96;
const LOOK: Duration = Duration::from_millis(10);
const LOOKS_MAX: u32 = 500;
/// Which part of [`TableWriter::cut`] they are.
const NEW_PAYLOADS: i32 = 2;
/// How much the thread lets others go first.
const NICE: i32 = 5;

/// A row of [`Overlay::sorted`].
type Sorted<'a> = (&'a [u8], Option<&'a Bytes>);

/// What is remembered between the writes of one replica.
#[derive(Debug, Default)]
pub(super) struct TableWriter {
    /// Last key of table [`RISING`] that was written.
    last_rising: Vec<u8>,
}

impl TableWriter {
    /// Makes `rows` part of the database. Gives the bytes of their keys and values. An error is fatal for the process.
    pub fn write(
        &mut self,
        shared: &Shared,
        handle: &Arc<BoundColumnFamily<'_>>,
        family: Family,
        rows: &Overlay,
    ) -> Result<usize, StateError> {
        wait_for_compactions(shared, handle);
        let rows = rows.sorted();
        let parts = self.cut(&rows);
        failpoints::hit("write::before_tables");
        let written = (0..).zip(parts).filter(|(_, part)| !part.is_empty()).try_fold(
            (Vec::new(), 0),
            |(mut files, bytes), (number, part)| {
                let path = shared.path.join(DIRECTORY).join(format!("{family}-{number}.sst"));
                let options = match number {
                    NEW_PAYLOADS => &shared.parts.payload_options,
                    _ => &shared.parts.new_options,
                };
                let more = write_table(options, &path, part)?;
                files.push(path);
                Ok::<_, StateError>((files, bytes + more))
            },
        );
        let (files, bytes) = written.map_err(|error| shared.fail(error))?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        failpoints::hit("write::after_tables");
        let taken = shared.db.ingest_external_file_cf_opts(handle, &options, files);
        taken.map_err(|error| shared.fail(error.into()))?;
        failpoints::hit("write::after_taken");
        let last = rows.iter().rev().map(|(key, _)| *key).find(|key| key.first() == Some(&RISING));
        if let Some(last) = last.filter(|last| *last > self.last_rising.as_slice()) {
            self.last_rising = last.to_vec();
        }
        shared.count_written(bytes);
        metrics::counter!("carillon_state_write_back_bytes_total").increment(bytes as u64);
        metrics::counter!("carillon_state_write_back_rows_total").increment(rows.len() as u64);
        Ok(bytes)
    }

    /// Before the rising table, its rows that are not new, its new rows, behind it.
    fn cut<'a, 'r>(&self, rows: &'a [Sorted<'r>]) -> [&'a [Sorted<'r>]; 4] {
        let below = |end: &[u8]| rows.partition_point(|(key, _)| *key < end);
        let (start, end) = (below(&[RISING]), below(&[RISING + 1]));
        let new = start + rows[start..end].partition_point(|(key, _)| *key <= self.last_rising.as_slice());
        [&rows[..start], &rows[start..new], &rows[new..end], &rows[end..]]
    }
}

/// RocksDB never holds back whoever gives it whole tables, so this does: lookups must not have to ask ever more of them. Commits go
/// on until twice a replica's share waits. Ends in any case: a replica whose tables are damaged is not compacted any more.
fn wait_for_compactions(shared: &Shared, handle: &Arc<BoundColumnFamily<'_>>) {
    let tables = || shared.db.property_int_value_cf(handle, num_files_at_level(0)).ok().flatten();
    for _ in 0..LOOKS_MAX {
        if tables().is_none_or(|tables| tables < LEVEL_ZERO_TABLES_MAX) {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

fn write_table(options: &Options, path: &Path, rows: &[Sorted<'_>]) -> Result<usize, StateError> {
    let mut table = SstWriter::with_options(options, path)?;
    let mut bytes = 0;
    for (key, row) in rows {
        bytes += key.len();
        match row {
            Some(value) => {
                bytes += value.len();
                table.put(key, value)?;
            }
            None => table.delete(key)?,
        }
    }
    table.finish()?;
    Ok(bytes)
}

/// An empty directory for tables that are being made.
pub(super) fn make_directory(database: &Path) -> std::io::Result<()> {
    let directory: PathBuf = database.join(DIRECTORY);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)
}

/// Starts the thread. It ends when the sender is gone.
pub(super) fn start() -> std::io::Result<(SyncSender<Arc<Replica>>, JoinHandle<()>)> {
    let (sender, replicas) = sync_channel(WAITING_MAX);
    let thread = std::thread::Builder::new().name("state-writer".to_owned()).spawn(move || run(&replicas))?;
    Ok((sender, thread))
}

fn run(replicas: &Receiver<Arc<Replica>>) {
    // Acknowledgements do not wait for this thread. Without the right to change it, it runs as the others do.
    let _as_the_others = rustix::process::nice(NICE);
    while let Ok(replica) = replicas.recv() {
        // A failure is remembered by the database and told to whoever commits next; a replica that left has nothing to write.
        drop(replica.write_back());
    }
}
