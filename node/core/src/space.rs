//! Admission by room on disks: when a volume is nearly full, and when a leader refuses new messages because of it.
//!
//! Nearly full is early: at the limit there is still room for everything that goes on (outcomes, receipts, opt-outs, cancels,
//! flushes, compactions, truncation). Submits are refused while this node is nearly full, or so many members are that the rest
//! would not be a majority; one full follower does not stop the others. It recovers by itself: when a quarter more than the
//! limit is free again.
//!
//! Pure: who looks at volumes and at clocks is elsewhere. Times are milliseconds of the node's monotonic clock.
use std::collections::BTreeMap;

/// What a peer said counts for this long; every node sends heartbeats several times a second.
const STALE_MS: u64 = 10_000;

/// Room on a volume, as an unprivileged process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// The smaller of the two counts: the percentage on small volumes, the bytes on large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceLimits {
    pub free_percent_min: u8,
    pub free_bytes_min: u64,
}

/// What the limits say about a volume.
#[derive(Debug)]
pub struct SpaceGate {
    limits: SpaceLimits,
    near_full: bool,
}

impl SpaceGate {
    pub fn new(limits: SpaceLimits) -> Self {
        Self { limits, near_full: false }
    }

    pub fn limit_bytes(&self, space: DiskSpace) -> u64 {
        let by_percent = space.total_bytes / 100 * u64::from(self.limits.free_percent_min);
        by_percent.min(self.limits.free_bytes_min)
    }

    pub fn near_full(&self) -> bool {
        self.near_full
    }

    /// Takes what was seen; whether the volume is nearly full from now on.
    pub fn update(&mut self, space: DiskSpace) -> bool {
        let limit = self.limit_bytes(space);
        let leave = limit + limit / 4;
        self.near_full = space.free_bytes < if self.near_full { leave } else { limit };
        self.near_full
    }

    /// The ballast has to go.
    pub fn is_critical(&self, space: DiskSpace) -> bool {
        space.free_bytes < self.limit_bytes(space) / 4
    }

    pub fn has_room_for_ballast(&self, space: DiskSpace, ballast_bytes: u64) -> bool {
        let limit = self.limit_bytes(space);
        space.free_bytes >= limit + limit / 2 + ballast_bytes
    }
}

/// Why a submit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NearFull {
    Here,
    Majority,
}

/// What a node knows of its peers' disks. Bounded by the members.
#[derive(Debug)]
pub struct PeerSpace {
    /// With this node.
    members: Vec<u64>,
    peers: BTreeMap<u64, (bool, u64)>,
}

impl PeerSpace {
    /// A cluster of this node alone, until [`PeerSpace::set_members`].
    pub fn new(node_id: u64) -> Self {
        Self { members: vec![node_id], peers: BTreeMap::new() }
    }

    /// What those that left said is forgotten.
    pub fn set_members(&mut self, node_id: u64, peers: &[u64]) {
        self.members = vec![node_id];
        self.members.extend(peers.iter().filter(|peer| **peer != node_id));
        self.peers.retain(|node, _| self.members.contains(node));
    }

    /// What a peer says about itself.
    pub fn hear(&mut self, node: u64, near_full: bool, now_ms: u64) {
        if self.members.contains(&node) {
            self.peers.insert(node, (near_full, now_ms));
        }
    }

    /// Since when a peer has said nothing; `None` if it never said anything.
    pub fn silent_ms(&self, node: u64, now_ms: u64) -> Option<u64> {
        self.peers.get(&node).map(|(_, at_ms)| now_ms.saturating_sub(*at_ms))
    }

    /// Whether submits are refused now; `here` is what this node's own gate says.
    pub fn refusal(&self, here: bool, now_ms: u64) -> Option<NearFull> {
        if here {
            return Some(NearFull::Here);
        }
        let full = |(near_full, at_ms): &&(bool, u64)| *near_full && now_ms.saturating_sub(*at_ms) < STALE_MS;
        let count = self.peers.values().filter(full).count();
        let members = self.members.len();
        (members.saturating_sub(count) < members / 2 + 1).then_some(NearFull::Majority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_smaller_limit_counts() {
        let gate =
            |percent, bytes| SpaceGate::new(SpaceLimits { free_percent_min: percent, free_bytes_min: bytes });
        let volume = |total_bytes| DiskSpace { total_bytes, free_bytes: 0 };
        assert_eq!(gate(10, 2 << 30).limit_bytes(volume(1000 * MIB)), 100 * MIB);
        assert_eq!(gate(10, 2 << 30).limit_bytes(volume(1 << 40)), 2 << 30);
    }

    #[test]
    fn one_full_follower_stops_nobody_and_a_full_majority_does() {
        let mut space = PeerSpace::new(1);
        space.set_members(1, &[2, 3]);
        space.hear(2, true, 0);
        assert_eq!(space.refusal(false, 0), None);
        space.hear(9, true, 0);
        assert_eq!(space.refusal(false, 0), None, "not a member");
        space.hear(3, true, 5);
        assert_eq!(space.refusal(false, 9), Some(NearFull::Majority));
        assert_eq!(space.refusal(false, STALE_MS), None, "what was not heard lately does not count");
        space.hear(2, false, 10);
        assert_eq!(space.refusal(false, 10), None);
        assert_eq!(space.refusal(true, 10), Some(NearFull::Here));
    }
}
