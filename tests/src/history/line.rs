//! The lines of a history, their writer and reader, and how lines become operations.
//!
//! Invariants: the line of an invoke is in the file before the call is made, so that a history that ends in the middle
//! still names everything that may have happened; times are microseconds of one monotonic clock. No line holds a number or
//! a text: the carrier's keyed hash stands for both.

use carillon_loadtest::ledger::state_name;
use carillon_proto::public::MessageState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::time::Instant;

/// A history that cannot be written or understood.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("line {line} does not parse: {why}")]
    Line { line: usize, why: String },
    #[error("operation {op} {why}")]
    Order { op: u64, why: &'static str },
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    Submit {
        practice: String,
        key: String,
        /// Two submits with the same key and variant are the same message.
        variant: u32,
        /// The hash under which the carrier's ground truth knows it, in hexadecimal.
        truth: String,
    },
    Get {
        id: String,
    },
    Cancel {
        id: String,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Accepted {
        id: String,
        duplicate: bool,
    },
    /// The key names another message.
    KeyReused,
    Seen {
        #[serde(with = "state_text")]
        state: MessageState,
    },
    Missing,
    CancelAnswer {
        canceled: bool,
        #[serde(with = "state_text")]
        state: MessageState,
    },
}

/// One end of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum What {
    Invoke(Call),
    Ok(Answer),
    Fail { why: String },
    Info { why: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub op: u64,
    pub client: u32,
    pub at_us: u64,
    #[serde(flatten)]
    pub what: What,
}

mod state_text {
    use super::{MessageState, state_name};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(state: &MessageState, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(state_name(*state))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MessageState, D::Error> {
        let text = String::deserialize(deserializer)?;
        MessageState::from_str_name(&format!("MESSAGE_STATE_{text}"))
            .ok_or_else(|| Error::custom("no such state"))
    }
}

struct Inner {
    file: fs_err::File,
    next_op: u64,
}

/// Appends lines; shared by all clients of a run.
pub struct Writer {
    inner: Mutex<Inner>,
    origin: Instant,
}

impl Writer {
    pub fn create(path: &Path) -> Result<Self, HistoryError> {
        let inner = Inner { file: fs_err::File::create(path)?, next_op: 0 };
        Ok(Self { inner: Mutex::new(inner), origin: Instant::now() })
    }

    fn put(&self, inner: &mut Inner, op: u64, client: u32, what: What) -> Result<(), HistoryError> {
        // The clock is read under the lock, so that the lines of the file are in order of time.
        let line = Line { op, client, at_us: self.origin.elapsed().as_micros() as u64, what };
        let mut text = serde_json::to_vec(&line).map_err(std::io::Error::from)?;
        text.push(b'\n');
        Ok(inner.file.write_all(&text)?)
    }

    /// Writes the invoke; the call is made afterwards.
    pub fn invoke(&self, client: u32, call: Call) -> Result<u64, HistoryError> {
        let mut inner = self.inner.lock();
        inner.next_op += 1;
        let op = inner.next_op;
        self.put(&mut inner, op, client, What::Invoke(call))?;
        Ok(op)
    }

    pub fn end(&self, op: u64, client: u32, what: What) -> Result<(), HistoryError> {
        self.put(&mut self.inner.lock(), op, client, what)
    }
}

/// All lines of a file.
pub fn read(path: &Path) -> Result<Vec<Line>, HistoryError> {
    let lines = BufReader::new(fs_err::File::open(path)?).lines();
    let parse = |(at, line): (usize, Result<String, std::io::Error>)| {
        serde_json::from_str(&line?).map_err(|e| HistoryError::Line { line: at + 1, why: e.to_string() })
    };
    lines.enumerate().map(parse).collect()
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Ok { at_us: u64, answer: Answer },
    Fail { why: String },
    Info,
}

/// A call with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub op: u64,
    pub begin_us: u64,
    pub call: Call,
    pub end: End,
}

/// Joins invokes and ends, in order of the invokes.
pub fn ops(lines: &[Line]) -> Result<Vec<Op>, HistoryError> {
    let mut all: BTreeMap<u64, Op> = BTreeMap::new();
    let mut ended = std::collections::BTreeSet::new();
    for line in lines {
        if let What::Invoke(call) = &line.what {
            let op = Op { op: line.op, begin_us: line.at_us, call: call.clone(), end: End::Info };
            if all.insert(line.op, op).is_some() {
                return Err(HistoryError::Order { op: line.op, why: "was invoked twice" });
            }
            continue;
        }
        let open = all.get_mut(&line.op);
        let op = open.ok_or(HistoryError::Order { op: line.op, why: "ended before it was invoked" })?;
        if !ended.insert(line.op) {
            return Err(HistoryError::Order { op: line.op, why: "ended twice" });
        }
        op.end = match &line.what {
            What::Ok(answer) => End::Ok { at_us: line.at_us, answer: answer.clone() },
            What::Fail { why } => End::Fail { why: why.clone() },
            What::Info { .. } | What::Invoke(_) => End::Info,
        };
    }
    Ok(all.into_values().collect())
}
