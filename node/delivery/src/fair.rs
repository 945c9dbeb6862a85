//! The ready messages of one lane and one priority: fair shares between practices, deadline order inside each.
//!
//! Weighted deficit round robin, kept as positions instead of a list that is rotated: each practice has a round, which grows by
//! segments / weight with what it sends, and the practice with the lowest round goes next. What a deficit counter
//! would carry over is the difference of the rounds. A practice that had nothing joins at the lowest round, ahead of
//! those that are there: one message among a million of another practice goes next.
//!
//! Deadlines and fairness want different things, so each has its place: inside a practice the earliest useful deadline goes
//! first, always. Between practices the shares decide - except that a message whose useful deadline is near goes ahead of its
//! practice's turn *on credit*: the segments are charged like all others, and a practice that is [`CREDIT`]
//! ahead gets no more of it. So what others wait for it is bounded, and nobody gains by calling everything urgent.
//!
//! Inside a practice each sender has its own messages, because one sender's limit may be used up while another's is not: of a closed one
//! nothing is chosen, and the practice goes on with the others.
//!
//! Bounds: one small record for each practice with a ready message, and for each that is ahead of the others.
use crate::cells::CellNo;
use carillon_proto::MessageId;
use std::collections::{BTreeMap, BTreeSet};

/// Order inside a practice: useful until, id (which is the order of acceptance). Not the due time: a message that comes back from the
/// carrier waits again, is due later than before, and keeps its place.
pub(crate) type ReadyKey = (u64, MessageId);

/// Rounds of one segment of a practice of weight 1.
const SEGMENT: u64 = 1 << 20;
/// How far ahead of the others a practice may be and still get credit: 16 segments of a practice of weight 1.
const CREDIT: u64 = 16 * SEGMENT;
/// Practices looked at for credit, at most.
const CREDIT_LOOKS_MAX: usize = 64;
/// Weights of practices are 1 to this.
pub const WEIGHT_MAX: u32 = 1_000;

/// The ready messages of one level.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    shares: BTreeMap<u32, Share>,
    /// The practices that can be chosen: (round, was there before, practice).
    order: BTreeSet<(u64, bool, u32)>,
    /// The same by the useful deadline of their first message.
    heads: BTreeSet<(u64, u32)>,
    /// Practices without a message that are ahead.
    ahead: BTreeSet<(u64, u32)>,
    /// Lowest round so far of those that can be chosen; never falls while anything is ready.
    round: u64,
    ready: usize,
    aged: usize,
    paused: BTreeSet<u32>,
    /// Senders of which nothing is chosen.
    closed: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct Share {
    /// By sender; none of them is empty.
    messages: BTreeMap<u32, BTreeMap<ReadyKey, CellNo>>,
    round: u64,
    /// It was there before; those that join go first in their round.
    old: bool,
}

impl Share {
    /// The first message that can be chosen, and its sender.
    fn first(&self, closed: &BTreeSet<u32>) -> Option<(ReadyKey, u32, CellNo)> {
        let open = self.messages.iter().filter(|(sender_no, _)| !closed.contains(sender_no));
        let heads = open.filter_map(|(sender_no, messages)| {
            let (key, no) = messages.first_key_value()?;
            Some((*key, *sender_no, *no))
        });
        heads.min_by_key(|(key, ..)| *key)
    }

    fn remove(&mut self, sender_no: u32, key: &ReadyKey) -> bool {
        let Some(messages) = self.messages.get_mut(&sender_no) else { return false };
        let found = messages.remove(key).is_some();
        if messages.is_empty() {
            self.messages.remove(&sender_no);
        }
        found
    }
}

impl Fair {
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// Messages that have waited for too long.
    pub fn aged(&self) -> usize {
        self.aged
    }

    /// Something can be chosen.
    pub fn offers(&self) -> bool {
        !self.order.is_empty()
    }

    pub fn practices(&self) -> impl Iterator<Item = u32> + '_ {
        self.order.iter().map(|(.., practice_no)| *practice_no)
    }

    /// `of`: practice and sender.
    pub fn insert(&mut self, of: (u32, u32), key: ReadyKey, no: CellNo, aged: bool) {
        let (practice_no, sender_no) = of;
        self.change(practice_no, |share, round| {
            if share.messages.is_empty() {
                share.old = share.round > round;
                share.round = share.round.max(round);
            }
            share.messages.entry(sender_no).or_default().insert(key, no);
        });
        self.ready += 1;
        self.aged += usize::from(aged);
    }

    pub fn remove(&mut self, of: (u32, u32), key: &ReadyKey, aged: bool) {
        self.take(of, key, aged, 0);
    }

    /// Which practice and sender go next, and their message. `urgent_until`: useful deadlines before this are near.
    pub fn first(&self, urgent_until: u64) -> Option<((u32, u32), ReadyKey, CellNo)> {
        let credit = self.round.saturating_add(CREDIT);
        let urgent = self
            .heads
            .iter()
            .take(CREDIT_LOOKS_MAX)
            .take_while(|(useful_until, _)| *useful_until < urgent_until)
            .map(|(_, practice_no)| *practice_no)
            .find(|practice_no| self.shares.get(practice_no).is_some_and(|share| share.round < credit));
        let practice_no = urgent.or_else(|| self.order.first().map(|(.., practice_no)| *practice_no))?;
        let (key, sender_no, no) = self.shares.get(&practice_no)?.first(&self.closed)?;
        Some(((practice_no, sender_no), key, no))
    }

    /// The message was chosen: it leaves, and its practice is charged.
    pub fn charge(&mut self, of: (u32, u32), key: &ReadyKey, aged: bool, segments: u32, weight: u32) {
        self.advance();
        let cost = u64::from(segments) * (SEGMENT / u64::from(weight.clamp(1, WEIGHT_MAX)));
        self.take(of, key, aged, cost);
    }

    fn take(&mut self, (practice_no, sender_no): (u32, u32), key: &ReadyKey, aged: bool, cost: u64) {
        let mut found = false;
        self.change(practice_no, |share, _| {
            found = share.remove(sender_no, key);
            share.round = share.round.saturating_add(cost);
            share.old |= cost > 0;
        });
        if found {
            self.ready -= 1;
            self.aged -= usize::from(aged);
        }
        self.advance();
    }

    /// A paused practice keeps its messages and is not chosen.
    pub fn pause(&mut self, practice_no: u32, paused: bool) {
        match paused {
            true => self.paused.insert(practice_no),
            false => self.paused.remove(&practice_no),
        };
        if self.shares.contains_key(&practice_no) {
            self.change(practice_no, |_, _| {});
        }
    }

    /// Messages of a closed sender stay and are not chosen.
    pub fn close_sender(&mut self, sender_no: u32, closed: bool) {
        if self.closed.contains(&sender_no) == closed {
            return;
        }
        let with = |(practice_no, share): (&u32, &Share)| {
            share.messages.contains_key(&sender_no).then_some(*practice_no)
        };
        let touched: Vec<u32> = self.shares.iter().filter_map(with).collect();
        touched.iter().for_each(|practice_no| self.detach(*practice_no));
        match closed {
            true => self.closed.insert(sender_no),
            false => self.closed.remove(&sender_no),
        };
        touched.iter().for_each(|practice_no| self.attach(*practice_no));
    }

    /// How many messages of each practice are ready, also of those that are not chosen now.
    pub fn waiting(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        let count = |share: &Share| share.messages.values().map(BTreeMap::len).sum::<usize>();
        self.shares.iter().map(move |(practice_no, share)| (*practice_no, count(share)))
    }

    /// The same of each sender, practice by practice.
    pub fn waiting_of_senders(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        let of_all = self.shares.values().flat_map(|share| &share.messages);
        of_all.map(|(sender_no, messages)| (*sender_no, messages.len()))
    }

    /// Some practice is paused.
    pub fn pauses(&self) -> bool {
        !self.paused.is_empty()
    }

    /// Takes a practice's share out of the order, changes it, and puts it back where it belongs now.
    fn change(&mut self, practice_no: u32, change: impl FnOnce(&mut Share, u64)) {
        self.shares.entry(practice_no).or_default();
        self.detach(practice_no);
        if let Some(share) = self.shares.get_mut(&practice_no) {
            change(share, self.round);
        }
        self.attach(practice_no);
    }

    fn detach(&mut self, practice_no: u32) {
        let Some(share) = self.shares.get(&practice_no) else { return };
        if share.messages.is_empty() {
            self.ahead.remove(&(share.round, practice_no));
        } else if let Some((first, ..)) = share.first(&self.closed) {
            self.order.remove(&(share.round, share.old, practice_no));
            self.heads.remove(&(first.0, practice_no));
        }
    }

    fn attach(&mut self, practice_no: u32) {
        let Some(share) = self.shares.get_mut(&practice_no) else { return };
        match share.first(&self.closed) {
            Some(_) if self.paused.contains(&practice_no) => {}
            Some((first, ..)) => {
                share.round = share.round.max(self.round);
                self.order.insert((share.round, share.old, practice_no));
                self.heads.insert((first.0, practice_no));
            }
            None if !share.messages.is_empty() => {}
            None if share.round > self.round => {
                self.ahead.insert((share.round, practice_no));
            }
            None => {
                self.shares.remove(&practice_no);
            }
        }
    }

    /// The round follows the lowest one, and whoever is no longer ahead of it is forgotten. A lane without a backlog owes nobody
    /// anything.
    fn advance(&mut self) {
        if self.ready == 0 {
            (self.round, self.ahead) = (0, BTreeSet::new());
            self.shares.clear();
            return;
        }
        if let Some((round, ..)) = self.order.first() {
            self.round = self.round.max(*round);
        }
        while let Some(&(round, practice_no)) = self.ahead.first()
            && round <= self.round
        {
            self.ahead.pop_first();
            self.shares.remove(&practice_no);
        }
    }
}

#[cfg(test)]
mod tests;
