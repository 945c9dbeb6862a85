//! The ground truth of the carriers: every part that left a node and every part that a carrier took over.
use carillon_proto::MessageId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A part leaves a node.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    pub now_ms: u64,
    pub id: MessageId,
    pub attempt_no: u32,
    pub part: u32,
    pub carrier: usize,
    pub practice: u32,
    /// The sender that the attempt was committed with, from 1; 0 = the account's own.
    pub sender: u32,
    /// Segments per second of the whole lane.
    pub limit: u32,
    /// When the attempt was decided, and how long after that its writer may still write.
    pub decided_ms: u64,
    pub send_within_ms: u64,
    /// What right clocks show.
    pub wall_ms: u64,
    /// How wrong the others may be, with a second of margin, and without.
    pub wall_error_ms: u64,
    pub clock_error_ms: u64,
    /// The writer's wall clock jumped in between: only I4 holds then.
    pub clock_jumped: bool,
    /// The last moment (true time) at which a clock inside the assumed bound may hold the message for not expired.
    pub expires_ms: u64,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Truth {
    writes: BTreeSet<(MessageId, u32, u32)>,
    /// (cluster, attempt, part): attempts are numbered anew from where a backup had them.
    accepted: BTreeMap<MessageId, BTreeSet<(u32, u32, u32)>>,
    cluster: u32,
    /// Moments of the writes of the last second, for each carrier.
    window: BTreeMap<usize, VecDeque<u64>>,
    pub parts_accepted: u64,
}

impl Truth {
    /// I4: a part of an attempt leaves once. I6: the lane's limit is a wall. I7: nothing leaves after its `send_by`.
    pub fn wrote(&mut self, write: &Write) -> Result<(), String> {
        let Write { now_ms, id, attempt_no, part, .. } = *write;
        if !self.writes.insert((id, attempt_no, part)) {
            return Err(format!("I4 message {id} attempt {attempt_no} part {part} left twice"));
        }
        let window = self.window.entry(write.carrier).or_default();
        window.push_back(now_ms);
        while window.front().is_some_and(|at| *at + 1000 <= now_ms) {
            window.pop_front();
        }
        if window.len() > write.limit as usize {
            return Err(format!(
                "I6 carrier {}: {} segments within a second, the limit is {}",
                write.carrier,
                window.len(),
                write.limit
            ));
        }
        if !write.clock_jumped && now_ms > write.decided_ms + write.send_within_ms {
            return Err(format!(
                "I7 message {id} attempt {attempt_no} left {} ms after it was decided",
                now_ms - write.decided_ms
            ));
        }
        if now_ms > write.expires_ms {
            return Err(format!("I6 message {id} attempt {attempt_no} left after its expiry"));
        }
        Ok(())
    }

    pub fn cluster(&self) -> u32 {
        self.cluster
    }

    /// Another cluster goes on.
    pub fn next_cluster(&mut self) {
        self.cluster += 1;
        self.writes.clear();
        self.window.clear();
    }

    /// How many attempts of the message the carriers have taken over, this one included.
    pub fn accept(&mut self, id: MessageId, part: (u32, u32, u32)) -> u32 {
        self.parts_accepted += 1;
        let parts = self.accepted.entry(id).or_default();
        parts.insert(part);
        parts.iter().map(|(cluster, attempt, _)| (cluster, attempt)).collect::<BTreeSet<_>>().len() as u32
    }

    pub fn is_accepted(&self, id: &MessageId) -> bool {
        self.accepted.contains_key(id)
    }

    /// Messages that at least two attempts of were taken over.
    pub fn duplicates(&self) -> usize {
        let twice = |parts: &BTreeSet<(u32, u32, u32)>| {
            let sending = |part: &(u32, u32, u32)| (part.0, part.1);
            parts.first().map(sending) != parts.last().map(sending)
        };
        self.accepted.values().filter(|parts| twice(parts)).count()
    }
}
