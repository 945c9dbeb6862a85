//! What this node tells the steward about itself.
use crate::delivery::ShareKeeper;
use crate::engine::NodeHandle;
use crate::engine::handle::GroupStatus;
use carillon_proto::internal::{HostedReplica, LedGroup, ReplicaProgress, SeeResponse};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Cheap to clone.
#[derive(Clone)]
pub struct SelfView {
    pub handle: NodeHandle,
    pub shares: ShareKeeper,
    pub store_id: u64,
    pub stopping: Arc<AtomicBool>,
}

impl SelfView {
    pub async fn see(&self) -> SeeResponse {
        let (groups, node_id) = (self.handle.status().await, self.handle.node_id());
        SeeResponse {
            node_id,
            store_id: self.store_id,
            stopping: self.stopping.load(Ordering::Relaxed),
            meta_applied: groups.iter().find(|g| g.group == 0).map_or(0, |g| g.applied),
            shares_epoch: self.shares.kept(Instant::now()),
            clock_off: crate::clock::look().is_off,
            replicas: groups
                .into_iter()
                .map(|g| HostedReplica {
                    group: g.group,
                    replica_id: g.replica_id,
                    led: (g.leader == node_id).then(|| led(&g)),
                    blocked: g.blocked,
                })
                .collect(),
        }
    }
}

fn led(group: &GroupStatus) -> LedGroup {
    let own = ReplicaProgress { replica_id: group.replica_id, matched: group.last_index, active: true };
    let others = group.followers.iter().map(|(replica_id, follower)| ReplicaProgress {
        replica_id: *replica_id,
        // While it gets a snapshot it has nothing that counts.
        matched: if follower.in_snapshot { 0 } else { follower.matched },
        active: follower.recent_active,
    });
    LedGroup {
        term: group.term,
        conf: Some(group.members.clone()),
        busy: group.changing,
        last_index: group.last_index,
        progress: others.chain([own]).collect(),
    }
}
