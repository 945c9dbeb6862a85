//! What practices with limits of their own may have under way, so that one whose limit is used up does not hold up the others of its lane.
//!
//! The gate stays the wall: a message waits there for every limit that it needs. Here it is only kept from beginning when it
//! would wait there for long, and so from taking a place that others could use.
use crate::lease::{HeldView, LimitId, common, stack};
use crate::scheduler::Scheduler;
use carillon_core::meta::MetaView;
use carillon_proto::internal::LimitScope;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A limit that opens later than this lets nothing through soon.
const SOON: Duration = Duration::from_millis(200);
/// Segments that may be under way although the limit is slow, at most.
const AHEAD_MIN: u32 = 8;

/// The groups of each carrier: what they need besides the limits that every segment of it needs.
#[derive(Debug, Default)]
pub struct Rooms(BTreeMap<u32, Vec<Vec<LimitId>>>);

impl Rooms {
    /// Groups the practices anew, when limits or practices were changed.
    pub fn sync(&mut self, view: &MetaView, scheduler: &mut Scheduler) {
        let of_some =
            |scope| matches!(scope, LimitScope::Campaign | LimitScope::Brand | LimitScope::Practice);
        let limits = view.limits.values().filter(|limit| of_some(limit.scope()));
        let carriers: BTreeSet<u32> = limits.map(|limit| limit.carrier_no).collect();
        for carrier_no in self.0.keys().filter(|carrier_no| !carriers.contains(*carrier_no)) {
            scheduler.group_practices(*carrier_no, Vec::new());
        }
        self.0.clear();
        for carrier_no in carriers {
            let common: BTreeSet<LimitId> = common(view, carrier_no).into_iter().collect();
            let mut groups: BTreeMap<Vec<LimitId>, Vec<u32>> = BTreeMap::new();
            for practice_no in view.practices.keys() {
                let mut own = stack(view, carrier_no, *practice_no);
                own.retain(|limit| !common.contains(limit));
                if !own.is_empty() {
                    groups.entry(own).or_default().push(*practice_no);
                }
            }
            let (needs, members) = groups.into_iter().unzip();
            scheduler.group_practices(carrier_no, members);
            self.0.insert(carrier_no, needs);
        }
    }

    /// Tells the scheduler what each group's limits let through soon. Gives the time after which one that is closed may open.
    /// `held`: what the node holds of a limit, and what it may still send of a daily cap (`None`: no cap).
    pub fn look(
        &self,
        held: impl Fn(LimitId) -> (HeldView, Option<u32>),
        scheduler: &mut Scheduler,
        mono: Duration,
    ) -> Option<Duration> {
        let mut again = None;
        for (carrier_no, groups) in &self.0 {
            for (no, needs) in groups.iter().enumerate() {
                let opens = needs.iter().map(|limit| held(*limit).0.next_permit).max();
                let wait = opens.map(|at| at.saturating_sub(mono + SOON)).filter(|wait| !wait.is_zero());
                again = [again, wait].into_iter().flatten().min();
                let rooms = needs.iter().map(|limit| match held(*limit) {
                    (_, Some(left)) => (left, left),
                    // Who has nothing of it yet, or waits for its turn, needs the others when it has.
                    (view, None) => (room(&view, mono), claim(&view)),
                });
                let (room, claim) = rooms
                    .reduce(|(a, b), (room, claim)| (a.min(room), b.min(claim)))
                    .unwrap_or((u32::MAX, u32::MAX));
                scheduler.set_group_room(*carrier_no, no, room, claim);
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
