//! The ground truth as a file: JSON lines, one per thing that happened.
//!
//! Owns: the lines ([`Line`]), their writer (a thread of its own, so the disk
//! never holds up the server) and their reader.
//! Bounds: 64 MiB of lines wait in memory at most; beyond that lines are
//! dropped and counted, and the stats say so.
//! Does not: fsync: it is a measuring instrument, not a store.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::truth::TruthEntry;

/// Octets that may wait for the disk.
pub const WAITING_MAX: u64 = 64 << 20;
const CHUNK: usize = 128 << 10;
/// Chunks that may wait for the writer; beyond that lines gather in the buffer.
const CHUNKS_MAX: usize = 512;

/// A journal that cannot be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("ground truth file: {0}")]
    Io(#[from] io::Error),
    #[error("ground truth line {line} does not parse: {why}")]
    Line { line: usize, why: String },
}

/// One line. Times are microseconds since the epoch; `index` is the submit's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    Open {
        at_us: u64,
        seed: u64,
    },
    Submit(TruthEntry),
    /// An answer that had been delayed was handed to the socket.
    Answered {
        index: u64,
        at_us: u64,
    },
    Receipt {
        index: u64,
        at_us: u64,
        bind: u32,
        state: String,
        attempt: u8,
    },
    /// A deliver_sm_resp, with its status.
    Acked {
        index: u64,
        at_us: u64,
        status: u32,
    },
    /// Indexes begin at 0 again.
    Reset {
        at_us: u64,
    },
}

enum Order {
    Write(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The writing side.
pub struct Journal {
    buffer: Vec<u8>,
    orders: Option<SyncSender<Order>>,
    waiting: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    /// Lines dropped because the disk was too slow.
    pub lost_lines: u64,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    /// Creates (or truncates) the file.
    pub fn create(path: &Path) -> Result<Self, JournalError> {
        let file = File::create(path)?;
        let (orders, inbox) = sync_channel(CHUNKS_MAX);
        let (waiting, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (waits, fails) = (waiting.clone(), failed.clone());
        let thread = std::thread::Builder::new()
            .name("smsc-truth".to_owned())
            .spawn(move || write_all(file, &inbox, &waits, &fails))?;
        Ok(Self {
            buffer: Vec::new(),
            orders: Some(orders),
            waiting,
            failed,
            lost_lines: 0,
            thread: Some(thread),
        })
    }

    pub fn add(&mut self, line: &Line) {
        if self.waiting.load(Ordering::Relaxed) + self.buffer.len() as u64 > WAITING_MAX {
            self.lost_lines += 1;
            return;
        }
        // A Vec takes every write and every value here can be JSON.
        if serde_json::to_writer(&mut self.buffer, line).is_ok() {
            self.buffer.push(b'\n');
        }
        if self.buffer.len() >= CHUNK {
            self.hand_over();
        }
    }

    /// Gives the buffered lines to the writer, if it can take them now.
    pub fn hand_over(&mut self) {
        let Some(chunk) = self.take() else { return };
        if let Some(orders) = &self.orders
            && let Err(TrySendError::Full(Order::Write(chunk))) = orders.try_send(Order::Write(chunk))
        {
            self.waiting.fetch_sub(chunk.len() as u64, Ordering::Relaxed);
            self.buffer = chunk;
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        if self.buffer.is_empty() {
            return None;
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK + 1024));
        self.waiting.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Some(chunk)
    }

    /// Failed writes so far.
    pub fn failures(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// A wait for everything added so far to be in the file; call it without
    /// holding a lock. Handing over may itself wait for a slow disk.
    pub fn flush(&mut self) -> impl FnOnce() + use<> {
        let chunk = self.take().map(Order::Write);
        let (done, wait): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        if let Some(orders) = &self.orders {
            for order in chunk.into_iter().chain([Order::Flush(done)]) {
                // The writer ends only after this sender is gone.
                let _ = orders.send(order);
            }
        }
        move || {
            let _ = wait.recv();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.flush()();
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(mut file: File, inbox: &Receiver<Order>, waiting: &AtomicU64, failed: &AtomicU64) {
    for order in inbox {
        match order {
            Order::Write(chunk) => {
                if file.write_all(&chunk).is_err() {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
                waiting.fetch_sub(chunk.len() as u64, Ordering::Relaxed);
            }
            Order::Flush(done) => drop(done),
        }
    }
}

/// Reads a ground truth file, line by line.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Line, JournalError>> + use<>, JournalError> {
    let lines = BufReader::new(File::open(path)?).lines();
    Ok(lines.enumerate().map(|(at, line)| {
        serde_json::from_str(&line?).map_err(|e| JournalError::Line { line: at + 1, why: e.to_string() })
    }))
}
