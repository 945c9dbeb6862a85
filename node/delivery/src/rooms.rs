//! What practices and senders with limits of their own may have under way, so that one whose limit is used up does not hold up the others
//! of its lane.
//!
//! The gate stays the wall: a message waits there for every limit that it needs. Here it is only kept from beginning when it
//! would wait there for long, and so from taking a place that others could use. A sender that is paused, or that the carrier refuses,
//! has no room at all.
use crate::lease::{HeldView, LimitId, has_senders, of_practice, of_sender};
use crate::scheduler::Scheduler;
use carillon_core::meta::{MetaView, senders};
use carillon_proto::internal::LimitScope;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A limit that opens later than this lets nothing through soon.
const SOON: Duration = Duration::from_millis(200);
/// Segments that may be under way although the limit is slow, at most.
const AHEAD_MIN: u32 = 8;

/// The groups of each carrier: what they need besides the limits that every segment of it needs.
#[derive(Debug, Default)]
pub struct Rooms {
    practices: BTreeMap<u32, Vec<Vec<LimitId>>>,
    senders: BTreeMap<u32, Vec<OfSender>>,
}

#[derive(Debug)]
struct OfSender {
    sender_no: u32,
    paused: bool,
    needs: Vec<LimitId>,
}

impl Rooms {
    /// Groups practices and senders anew, when limits, senders or practices were changed.
    pub fn sync(&mut self, view: &MetaView, scheduler: &mut Scheduler) {
        self.sync_practices(view, scheduler);
        self.sync_senders(view, scheduler);
    }

    fn sync_practices(&mut self, view: &MetaView, scheduler: &mut Scheduler) {
        let of_some =
            |scope| matches!(scope, LimitScope::Campaign | LimitScope::Brand | LimitScope::Practice);
        let limits = view.limits.values().filter(|limit| of_some(limit.scope()));
        let carriers: BTreeSet<u32> = limits.map(|limit| limit.carrier_no).collect();
        for carrier_no in self.practices.keys().filter(|carrier_no| !carriers.contains(*carrier_no)) {
            scheduler.group_practices(*carrier_no, Vec::new());
        }
        self.practices.clear();
        for carrier_no in carriers {
            let mut groups: BTreeMap<Vec<LimitId>, Vec<u32>> = BTreeMap::new();
            for practice_no in view.practices.keys() {
                let own = of_practice(view, carrier_no, *practice_no);
                if !own.is_empty() {
                    groups.entry(own).or_default().push(*practice_no);
                }
            }
            let (needs, members) = groups.into_iter().unzip();
            scheduler.group_practices(carrier_no, members);
            self.practices.insert(carrier_no, needs);
        }
    }

    /// Messages from before the carrier had senders leave under its account's own (0).
    fn sync_senders(&mut self, view: &MetaView, scheduler: &mut Scheduler) {
        let carriers: BTreeSet<u32> = view.senders.keys().map(|(carrier_no, _)| *carrier_no).collect();
        for carrier_no in self.senders.keys().filter(|carrier_no| !carriers.contains(*carrier_no)) {
            scheduler.set_senders(*carrier_no, &[]);
        }
        self.senders.clear();
        for carrier_no in carriers.into_iter().filter(|carrier_no| has_senders(view, *carrier_no)) {
            let own = OfSender { sender_no: 0, paused: false, needs: of_sender(view, carrier_no, "") };
            let others = senders::of_carrier(view, carrier_no).map(|sender| OfSender {
                sender_no: sender.sender_no,
                paused: sender.paused,
                needs: of_sender(view, carrier_no, &sender.address),
            });
            let list: Vec<OfSender> = std::iter::once(own).chain(others).collect();
            let numbers: Vec<u32> = list.iter().map(|sender| sender.sender_no).collect();
            scheduler.set_senders(carrier_no, &numbers);
            self.senders.insert(carrier_no, list);
        }
    }

    /// Tells the scheduler what each group's limits let through soon. Gives the time after which one that is closed may open.
    /// `held`: what the node holds of a limit, and what it may still send of a daily cap (`None`: no cap). `allowed`: attempts that a
    /// sender's breaker allows (`None`: as many as can be).
    pub fn look(
        &self,
        held: impl Fn(LimitId) -> (HeldView, Option<u32>),
        allowed: impl Fn(u32) -> Option<u32>,
        scheduler: &mut Scheduler,
        mono: Duration,
    ) -> Option<Duration> {
        let mut again = None;
        let mut look = |needs: &[LimitId]| {
            let opens = needs.iter().map(|limit| held(*limit).0.next_permit).max();
            let wait = opens.map(|at| at.saturating_sub(mono + SOON)).filter(|wait| !wait.is_zero());
            again = [again, wait].into_iter().flatten().min();
            let rooms = needs.iter().map(|limit| match held(*limit) {
                (_, Some(left)) => (left, left),
                // Who has nothing of it yet, or waits for its turn, needs the others when it has.
                (view, None) => (room(&view, mono), claim(&view)),
            });
            let tightest = rooms.reduce(|(a, b), (room, claim)| (a.min(room), b.min(claim)));
            tightest.unwrap_or((u32::MAX, u32::MAX))
        };
        for (carrier_no, groups) in &self.practices {
            for (no, needs) in groups.iter().enumerate() {
                let (room, claim) = look(needs);
                scheduler.set_group_room(*carrier_no, no, room, claim);
            }
        }
        for (carrier_no, list) in &self.senders {
            for (place, sender) in list.iter().enumerate() {
                let (room, claim) = look(&sender.needs);
                let allowed = if sender.paused { Some(0) } else { allowed(sender.sender_no) };
                let allowed = allowed.unwrap_or(u32::MAX);
                scheduler.set_sender_room(*carrier_no, place, room.min(allowed), claim.min(allowed));
            }
        }
        again
    }
}

/// What a held share lets through soon.
fn room(held: &HeldView, mono: Duration) -> u32 {
    if held.tokens == 0 || held.next_permit > mono + SOON {
        return 0;
    }
    let share = u32::try_from(held.per_kilosecond().div_ceil(1_000)).unwrap_or(u32::MAX);
    (share / 10).max(AHEAD_MIN.min(share.div_ceil(2))).max(1)
}

/// What may wait for the limits that the whole lane needs: what a held share lets through in a second. More would keep from the
/// others what it cannot use.
fn claim(held: &HeldView) -> u32 {
    u32::try_from(held.per_kilosecond().div_ceil(1_000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_limit_has_little_room_and_one_that_opens_late_has_none() {
        let ms = Duration::from_millis;
        let held = |tokens, next_ms| HeldView { tokens, frame: ms(1_000), next_permit: ms(next_ms) };
        assert_eq!(room(&held(0, 0), ms(5_000)), 0);
        assert_eq!(room(&held(2, 5_201), ms(5_000)), 0);
        assert_eq!(room(&held(1, 5_200), ms(5_000)), 1);
        assert_eq!(room(&held(2, 0), ms(5_000)), 1);
        assert_eq!(room(&held(10, 0), ms(5_000)), 5);
        assert_eq!(room(&held(50, 0), ms(5_000)), 8);
        assert_eq!(room(&held(500, 0), ms(5_000)), 50);
    }
}
