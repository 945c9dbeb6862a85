//! Which limits a message needs besides those of all messages of its carrier: those of its campaign, its brand and its practice, and those
//! of its sender if the carrier has several.
use super::{LIMIT_BASE, LimitId, demand, has_senders, of_practice, of_sender};
use crate::scheduler::Scheduler;
use carillon_core::meta::{MetaView, senders};
use carillon_proto::internal::{LimitRecord, LimitScope};
use std::collections::{BTreeMap, BTreeSet};

/// A cache of what the meta group says. Bounded by the carriers, and by the practices and senders that were asked for since it changed
/// last.
#[derive(Debug, Clone, Default)]
pub struct Stacks {
    /// Carriers with limits that only some of their messages need.
    narrow: BTreeSet<u32>,
    /// (carrier, practice)
    own: BTreeMap<(u32, u32), Vec<LimitId>>,
    /// (carrier, sender)
    senders: BTreeMap<(u32, u32), Vec<LimitId>>,
}

impl Stacks {
    /// The meta group has changed.
    pub fn sync(&mut self, view: &MetaView) {
        let narrow = view.limits.values().filter(|limit| is_narrow(view, limit));
        self.narrow = narrow.map(|limit| limit.carrier_no).collect();
        self.own.clear();
        self.senders.clear();
    }

    /// Some messages of the carrier need limits that others do not.
    pub fn is_narrow(&self, carrier_no: u32) -> bool {
        self.narrow.contains(&carrier_no)
    }

    /// The limits of a practice's messages that those of other practices of the carrier need not have.
    pub fn own(&mut self, view: &MetaView, carrier_no: u32, practice_no: u32) -> &[LimitId] {
        if !self.is_narrow(carrier_no) {
            return &[];
        }
        let of = || of_practice(view, carrier_no, practice_no);
        self.own.entry((carrier_no, practice_no)).or_insert_with(of)
    }

    /// The limits of a sender's messages that those of other senders of the carrier need not have.
    pub fn of_sender(&mut self, view: &MetaView, carrier_no: u32, sender_no: u32) -> &[LimitId] {
        if !self.is_narrow(carrier_no) || !has_senders(view, carrier_no) {
            return &[];
        }
        let of = || of_sender(view, carrier_no, senders::address(view, carrier_no, sender_no));
        self.senders.entry((carrier_no, sender_no)).or_insert_with(of)
    }
}

impl Scheduler {
    /// Segments that wait for each limit of these carriers, as far as they are in memory: of all messages of the carrier, or of those
    /// that need the limit. A node that asked for what it has no use for would keep it from the others.
    pub fn demand_of(
        &self,
        view: &MetaView,
        stacks: &mut Stacks,
        carriers: impl Iterator<Item = u32>,
    ) -> BTreeMap<LimitId, u32> {
        let mut waits: BTreeMap<u32, u32> = carriers.map(|carrier_no| (carrier_no, 0)).collect();
        for (carrier_no, segments) in self.demand() {
            waits.entry(carrier_no).and_modify(|known| *known = segments);
        }
        let narrow: Vec<u32> = waits.keys().copied().filter(|no| stacks.is_narrow(*no)).collect();
        let mut demand = demand(view, waits);
        if narrow.is_empty() {
            return demand;
        }
        for limit in view.limits.values().filter(|limit| is_narrow(view, limit)) {
            demand.insert(LIMIT_BASE + limit.limit_no, 0);
        }
        let mut add = |limits: &[LimitId], segments: u64| {
            for limit in limits {
                let waits = demand.entry(*limit).or_default();
                *waits = waits.saturating_add(u32::try_from(segments).unwrap_or(u32::MAX));
            }
        };
        for carrier_no in narrow {
            let Some(lane) = self.lanes.get(&carrier_no) else { continue };
            for (practice_no, messages) in lane.waiting() {
                add(stacks.own(view, carrier_no, practice_no), messages as u64);
            }
            for (practice_no, segments) in lane.unsent_of() {
                add(stacks.own(view, carrier_no, practice_no), segments);
            }
            for (sender_no, messages) in lane.waiting_of_senders() {
                add(stacks.of_sender(view, carrier_no, sender_no), messages as u64);
            }
            for (sender_no, segments) in lane.unsent_of_senders() {
                add(stacks.of_sender(view, carrier_no, sender_no), segments);
            }
        }
        demand
    }
}

fn is_narrow(view: &MetaView, limit: &LimitRecord) -> bool {
    match limit.scope() {
        LimitScope::Account => false,
        LimitScope::Sender => has_senders(view, limit.carrier_no),
        _ => true,
    }
}
