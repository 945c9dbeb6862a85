//! Practices of a lane that need limits of their own (a campaign's, a brand's, a practice's), and how much of them is under way. The
//! lane's senders are kept in the same way, by their numbers.
//!
//! Invariant: of a group that has as many segments under way as its limits let through soon nothing more is chosen; the others of
//! the lane go on, and nothing of a full group stands in their way at the gate. One message may exceed the room.
//!
//! Bounds: one entry for each practice that the driver names, and for each with segments under way.
use std::collections::BTreeMap;

/// Groups of one lane.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    of: BTreeMap<u32, usize>,
    groups: Vec<Group>,
    /// Segments begun and not sent, of each practice.
    unsent: BTreeMap<u32, u64>,
}

#[derive(Debug)]
struct Group {
    members: Vec<u32>,
    room: u64,
    /// So much of the lane's own limits it could use.
    claim: u64,
    unsent: u64,
    closed: bool,
}

impl Group {
    /// True if it opens or closes. It opens again when half of its room is free, so that large groups do not flap.
    fn settle(&mut self) -> bool {
        let full = self.unsent >= self.room;
        let closed = if self.closed { full || self.unsent * 2 > self.room } else { full };
        std::mem::replace(&mut self.closed, closed) != closed
    }
}

impl Groups {
    /// Other groups. Gives the practices for which that may change something.
    pub fn set(&mut self, members: Vec<Vec<u32>>) -> Vec<u32> {
        let before = std::mem::take(&mut self.groups).into_iter().flat_map(|group| group.members);
        let mut touched: Vec<u32> = before.collect();
        self.of.clear();
        for (no, members) in members.into_iter().enumerate() {
            self.of.extend(members.iter().map(|practice_no| (*practice_no, no)));
            touched.extend(&members);
            let under_way = |practice_no| self.unsent.get(practice_no).copied().unwrap_or(0);
            let unsent = members.iter().map(under_way).sum();
            // Its room is told with the next look.
            self.groups.push(Group { members, room: u64::MAX, claim: u64::MAX, unsent, closed: false });
        }
        touched
    }

    /// So many segments of a group may be under way, and so many more could leave soon if only the lane's own limits were asked. Gives the
    /// practices for which that changes something.
    pub fn set_room(&mut self, no: usize, room: u32, claim: u32) -> &[u32] {
        let Some(group) = self.groups.get_mut(no) else { return &[] };
        (group.room, group.claim) = (room.into(), claim.into());
        if group.settle() { &group.members } else { &[] }
    }

    pub fn begins(&mut self, practice_no: u32, segments: u32) -> &[u32] {
        *self.unsent.entry(practice_no).or_default() += u64::from(segments);
        self.change(practice_no, |group| group.unsent += u64::from(segments))
    }

    pub fn sent(&mut self, practice_no: u32, segments: u32) -> &[u32] {
        if let Some(unsent) = self.unsent.get_mut(&practice_no) {
            *unsent = unsent.saturating_sub(segments.into());
            if *unsent == 0 {
                self.unsent.remove(&practice_no);
            }
        }
        self.change(practice_no, |group| group.unsent = group.unsent.saturating_sub(segments.into()))
    }

    fn change(&mut self, practice_no: u32, change: impl FnOnce(&mut Group)) -> &[u32] {
        let Some(group) = self.of.get(&practice_no).and_then(|no| self.groups.get_mut(*no)) else {
            return &[];
        };
        change(group);
        if group.settle() { &group.members } else { &[] }
    }

    /// Of so many messages that wait for each practice: how many could use the lane's own limits.
    pub fn claims(&self, waiting: impl Iterator<Item = (u32, usize)>) -> u64 {
        let mut free = 0;
        let mut of_group = vec![0; self.groups.len()];
        for (practice_no, messages) in waiting {
            match self.of.get(&practice_no).and_then(|no| of_group.get_mut(*no)) {
                Some(sum) => *sum += messages as u64,
                None => free += messages as u64,
            }
        }
        free + of_group
            .into_iter()
            .zip(&self.groups)
            .map(|(waits, group)| group.claim.min(waits))
            .sum::<u64>()
    }

    /// Nothing of the practice is to be chosen.
    pub fn is_closed(&self, practice_no: u32) -> bool {
        self.of.get(&practice_no).and_then(|no| self.groups.get(*no)).is_some_and(|group| group.closed)
    }

    /// All that are in a group.
    pub fn members(&self) -> impl Iterator<Item = u32> + '_ {
        self.of.keys().copied()
    }

    /// Segments begun and not sent, of each practice that has any.
    pub fn unsent(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.unsent.iter().map(|(practice_no, segments)| (*practice_no, *segments))
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}
