//! Which nodes may send with a fixed share of a lane: below feature level 5. From there on nodes hold leases and nobody has a fixed
//! share ([`super::MetaView::leases`]); the last change of this record gives them all up.
//!
//! Invariant (P5): at every moment the sum of the shares that the nodes keep to is within the limit, however far behind a
//! node is with applying the meta group. A change goes in two steps. While it is under way a node keeps to the smaller of its old and
//! its new share; it is settled only when every node of both sets has said that it does, after which the new shares hold. So a
//! node that has not heard of the change keeps its old share, all others at most theirs; and when the first node
//! takes its larger new share, nobody keeps to an old one.
use super::apply::{Change, MetaRefusal, Outcome, slowest_carrier};
use super::level::LEVEL_DELIVERY;
use super::{NODES_MAX, rows};
use crate::tables::Tables;
use carillon_proto::internal::{SetShares, SettleShares, ShareRecord};

pub(super) fn set(tables: &mut dyn Tables, command: SetShares) -> Outcome {
    let mut record = rows::shares(tables)?;
    if record.epoch != command.expected_epoch || record.changing {
        return Ok(Err(MetaRefusal::MovedOn { epoch: record.epoch }));
    }
    let leases = rows::level(tables)? >= LEVEL_DELIVERY;
    if leases && !command.senders.is_empty() {
        return Ok(Err(MetaRefusal::Invalid { field: "senders", rule: "must be empty: nodes hold leases" }));
    }
    let rising = command.senders.windows(2).all(|w| w[0] < w[1]);
    if (command.senders.is_empty() && !leases) || command.senders.len() > NODES_MAX || !rising {
        return Ok(Err(MetaRefusal::Invalid {
            field: "senders",
            rule: "must be 1 to 64 nodes in rising order",
        }));
    }
    for node_id in &command.senders {
        if rows::node(tables, *node_id)?.is_none() {
            return Ok(Err(MetaRefusal::NoNode { node_id: *node_id }));
        }
    }
    if command.senders == record.senders {
        return Ok(Ok(Change::Same));
    }
    let nodes = command.senders.len() as u32;
    if slowest_carrier(tables)?.is_some_and(|rate| rate < nodes) {
        return Ok(Err(MetaRefusal::TooSlow { nodes }));
    }
    record.epoch += 1;
    record.next = command.senders;
    record.changing = true;
    rows::put_shares(tables, &record);
    Ok(Ok(Change::Changed))
}

pub(super) fn settle(tables: &mut dyn Tables, command: &SettleShares) -> Outcome {
    let mut record = rows::shares(tables)?;
    if record.epoch != command.epoch {
        return Ok(Err(MetaRefusal::MovedOn { epoch: record.epoch }));
    }
    if !record.changing {
        return Ok(Ok(Change::Same));
    }
    record.senders = std::mem::take(&mut record.next);
    record.changing = false;
    rows::put_shares(tables, &record);
    Ok(Ok(Change::Changed))
}

/// Segments per second of a limit that a node may send now; 0 = none.
pub fn share_of(record: &ShareRecord, node_id: u64, limit: u32) -> u32 {
    let now = part(&record.senders, node_id, limit);
    if record.changing { now.min(part(&record.next, node_id, limit)) } else { now }
}

/// The parts of all nodes add up to the limit.
fn part(nodes: &[u64], node_id: u64, limit: u32) -> u32 {
    let Some(position) = nodes.iter().position(|id| *id == node_id) else { return 0 };
    let count = nodes.len() as u32;
    limit / count + u32::from((position as u32) < limit % count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settled(senders: &[u64]) -> ShareRecord {
        ShareRecord { senders: senders.to_vec(), ..Default::default() }
    }

    #[test]
    fn settled_shares_add_up_to_the_limit_and_strangers_get_nothing() {
        for limit in [3, 7, 30, 601] {
            let record = settled(&[1, 4, 9]);
            let sum: u32 = [1, 4, 9].iter().map(|id| share_of(&record, *id, limit)).sum();
            assert_eq!(sum, limit);
            assert_eq!(share_of(&record, 2, limit), 0);
        }
        assert_eq!(share_of(&ShareRecord::default(), 1, 30), 0);
    }

    proptest! {
        /// Every node may be at any of the states from the last one that was acknowledged by all.
        #[test]
        fn the_sum_never_exceeds_the_limit_whoever_is_behind(
            old in prop::collection::btree_set(1_u64..10, 1..8),
            next in prop::collection::btree_set(1_u64..10, 1..8),
            limit in 10_u32..1000,
            phase in 0..2_u32,
            behind in prop::collection::vec(any::<bool>(), 10),
        ) {
            let (old, next): (Vec<u64>, Vec<u64>) = (old.into_iter().collect(), next.into_iter().collect());
            let before = settled(&old);
            let changing = ShareRecord { next: next.clone(), changing: true, ..before.clone() };
            let after = settled(&next);
            // Phase 0: some have not heard of the change. Phase 1: all have, some know that it is settled.
            let (late, early) = if phase == 0 { (&before, &changing) } else { (&changing, &after) };
            let sum: u32 = (1..10)
                .map(|id| share_of(if behind[id as usize] { late } else { early }, id, limit))
                .sum();
            prop_assert!(sum <= limit, "{} > {}", sum, limit);
        }
    }
}
