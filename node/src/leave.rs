//! How a node goes without anybody noticing: it hands over what it leads before it stops.
//!
//! A node that stops says so in every frame to its peers, and nothing is handed over to it: nodes that stop together would otherwise pass
//! their leaderships round in circles until the time is up. When all of them stop there is nobody left to serve, and nothing is handed over.
use crate::engine::NodeHandle;
use crate::engine::handle::GroupStatus;
use carillon_proto::replica::node_of;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const ROUND: Duration = Duration::from_millis(100);
/// Routers learn of the new leaders from this node for so long, so that they need not find out by themselves.
const GRACE: Duration = Duration::from_millis(300);

/// Who is stopping. Peers tell with every frame; at most one entry for each of them.
#[derive(Debug, Default)]
pub struct Leavers {
    here: AtomicBool,
    peers: Mutex<BTreeSet<u64>>,
}

impl Leavers {
    /// This node stops; there is no way back.
    pub fn leave(&self) {
        self.here.store(true, Ordering::Relaxed);
    }

    /// Whether this node stops.
    pub fn is_leaving(&self) -> bool {
        self.here.load(Ordering::Relaxed)
    }

    /// What a peer says about itself; one that has come back says that it does not stop.
    pub fn hear(&self, node: u64, stopping: bool) {
        let mut peers = self.peers.lock();
        if stopping {
            peers.insert(node);
        } else if !peers.is_empty() {
            peers.remove(&node);
        }
    }

    fn peers(&self) -> BTreeSet<u64> {
        self.peers.lock().clone()
    }
}

/// Moves every leadership away that somebody else can take. Gives up after `limit`: then the others elect.
pub async fn hand_over(handle: &NodeHandle, limit: Duration) {
    let until = Instant::now() + limit;
    loop {
        let led: Vec<GroupStatus> =
            handle.status().await.into_iter().filter(|group| group.leader == handle.node_id()).collect();
        let mut given = BTreeMap::<u64, usize>::new();
        let mut open = 0;
        let leavers = handle.leavers().peers();
        for group in &led {
            let Some(heir) = heir(handle.node_id(), group, &given, &leavers) else { continue };
            open += 1;
            *given.entry(heir).or_default() += 1;
            if let Err(error) = handle.transfer_leader(group.group, heir).await {
                tracing::debug!(group = group.group, %error, "leadership not handed over yet");
            }
        }
        if open == 0 {
            if !led.is_empty() {
                tracing::info!(
                    groups = led.len(),
                    stopping = leavers.len(),
                    "stopping as a leader; nobody else is there to take over"
                );
            }
            break;
        }
        if Instant::now() >= until {
            tracing::warn!(groups = open, "stopping as a leader; the others will elect");
            return;
        }
        tokio::time::sleep(ROUND).await;
    }
    tokio::time::sleep(GRACE).await;
}

/// The node that takes over: active, not about to stop itself, with as much of the log as any, and with as few handed to it as possible.
fn heir(own: u64, group: &GroupStatus, given: &BTreeMap<u64, usize>, leavers: &BTreeSet<u64>) -> Option<u64> {
    let able = group.followers.iter().filter(|(id, follower)| {
        let node = node_of(*id);
        follower.recent_active && group.members.voters.contains(id) && node != own && !leavers.contains(&node)
    });
    let (best, _) = able.min_by_key(|(id, follower)| {
        let behind = group.last_index.saturating_sub(follower.matched);
        // A few entries are on their way.
        (behind / 64, given.get(&node_of(*id)).copied().unwrap_or(0), *id)
    })?;
    Some(node_of(*best))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_consensus::Follower;
    use carillon_proto::internal::ConfState;

    #[test]
    fn the_heir_is_a_voter_that_is_there_and_up_to_date() {
        let follower =
            |id: u64, matched, recent_active| (id, Follower { matched, recent_active, in_snapshot: false });
        let group = GroupStatus {
            last_index: 1_000,
            members: ConfState { voters: vec![1, 2, 3, 4, 6], learners: vec![5], ..Default::default() },
            followers: vec![
                follower(2, 100, true),
                follower(3, 990, true),
                follower(4, 1_000, false),
                follower(5, 1_000, true),
                follower(6, 960, true),
            ],
            ..Default::default()
        };
        let (none, nobody) = (BTreeMap::new(), BTreeSet::new());
        assert_eq!(heir(1, &group, &none, &nobody), Some(3));
        assert_eq!(heir(1, &group, &BTreeMap::from([(3, 1)]), &nobody), Some(6), "not all to the same one");
        assert_eq!(heir(3, &GroupStatus::default(), &none, &nobody), None);
        assert_eq!(heir(1, &group, &none, &[3].into()), Some(6), "3 stops itself");
        assert_eq!(heir(1, &group, &none, &[2, 3, 6].into()), None, "they all stop");
    }

    #[test]
    fn a_peer_that_stops_is_known_until_it_has_come_back() {
        let leavers = Leavers::default();
        leavers.hear(2, true);
        leavers.hear(3, false);
        assert_eq!((leavers.peers(), leavers.is_leaving()), ([2].into(), false));
        leavers.hear(2, false);
        leavers.leave();
        assert!(leavers.peers().is_empty() && leavers.is_leaving());
    }
}
