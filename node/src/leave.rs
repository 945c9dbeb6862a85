//! How a node goes without anybody noticing: it hands over what it leads before it stops.
use crate::engine::NodeHandle;
use crate::engine::handle::GroupStatus;
use carillon_proto::replica::node_of;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

const ROUND: Duration = Duration::from_millis(100);
/// Routers learn of the new leaders from this node for so long, so that they need not find out by themselves.
const GRACE: Duration = Duration::from_millis(300);

/// Moves every leadership away that somebody else can take. Gives up after `limit`: then the others elect.
pub async fn hand_over(handle: &NodeHandle, limit: Duration) {
    let until = Instant::now() + limit;
    loop {
        let led: Vec<GroupStatus> =
            handle.status().await.into_iter().filter(|group| group.leader == handle.node_id()).collect();
        let mut given = BTreeMap::<u64, usize>::new();
        let mut open = 0;
        for group in &led {
            let Some(heir) = heir(handle.node_id(), group, &given) else { continue };
            open += 1;
            *given.entry(heir).or_default() += 1;
            if let Err(error) = handle.transfer_leader(group.group, heir).await {
                tracing::debug!(group = group.group, %error, "leadership not handed over yet");
            }
        }
        if open == 0 {
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

/// The node that takes over: active, with as much of the log as any, and with as few handed to it as possible.
fn heir(own: u64, group: &GroupStatus, given: &BTreeMap<u64, usize>) -> Option<u64> {
    let able = group.followers.iter().filter(|(id, follower)| {
        follower.recent_active && group.members.voters.contains(id) && node_of(*id) != own
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
        assert_eq!(heir(1, &group, &BTreeMap::new()), Some(3));
        assert_eq!(heir(1, &group, &BTreeMap::from([(3, 1)])), Some(6), "not all to the same one");
        assert_eq!(heir(3, &GroupStatus::default(), &BTreeMap::new()), None);
    }
}
