//! The submits of one session that wait for an answer, and those that nobody waits for any more.
//!
//! Bounded: waiting ones by the window, late ones by [`LATE_MAX`]; beyond it the oldest is forgotten, and its answer
//! is then counted as a PDU that fits nothing.
use super::session::{PartAnswer, Submission, Tag};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Late answers that can be recognized.
const LATE_MAX: usize = 4096;

pub(crate) struct Waiting {
    pub tag: Tag,
    pub queued_at: Instant,
    deadline: Instant,
    reply: oneshot::Sender<PartAnswer>,
    /// Given back when this is dropped.
    _seat: Arc<super::pool::Seat>,
}

impl Waiting {
    /// Tells the sender; false when nobody waits any more.
    pub fn reply(self, answer: PartAnswer) -> bool {
        self.reply.send(answer).is_ok()
    }
}

#[derive(Default)]
pub(crate) struct InFlight {
    waiting: HashMap<u32, Waiting>,
    deadlines: BTreeSet<(Instant, u32)>,
    late: HashMap<u32, Tag>,
    late_order: VecDeque<u32>,
}

impl InFlight {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Gives back the encoded PDU and the time after which it must not start.
    pub fn insert(
        &mut self,
        sequence: u32,
        submission: Submission,
        now: Instant,
        deadline: Instant,
    ) -> (super::pdu::Wire, Instant) {
        let Submission { wire, send_by, tag, seat, reply } = submission;
        self.deadlines.insert((deadline, sequence));
        self.waiting.insert(sequence, Waiting { tag, queued_at: now, deadline, reply, _seat: seat });
        (wire, send_by)
    }

    pub fn remove(&mut self, sequence: u32) -> Option<Waiting> {
        let waiting = self.waiting.remove(&sequence)?;
        self.deadlines.remove(&(waiting.deadline, sequence));
        Some(waiting)
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The next one whose answer is overdue at `at`.
    pub fn pop_overdue(&mut self, at: Instant) -> Option<(u32, Waiting)> {
        let (deadline, sequence) = *self.deadlines.first()?;
        if deadline > at {
            return None;
        }
        self.remove(sequence).map(|waiting| (sequence, waiting))
    }

    /// Remembers a submit whose answer may still come.
    pub fn remember_late(&mut self, sequence: u32, tag: Tag) {
        self.late.insert(sequence, tag);
        self.late_order.push_back(sequence);
        if self.late_order.len() > LATE_MAX
            && let Some(oldest) = self.late_order.pop_front()
        {
            self.late.remove(&oldest);
        }
    }

    pub fn take_late(&mut self, sequence: u32) -> Option<Tag> {
        self.late.remove(&sequence)
    }

    /// The connection is gone: everything that is still waiting.
    pub fn drain(&mut self) -> impl Iterator<Item = Waiting> + '_ {
        self.deadlines.clear();
        self.waiting.drain().map(|(_, waiting)| waiting)
    }
}
