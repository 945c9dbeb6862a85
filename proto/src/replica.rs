//! Ids of replicas, as raft knows them.
//!
//! A replica is one node's copy of one group on one disk. Its id holds the node (low half) and an incarnation (high
//! half) that rises whenever the node gets a new copy of the group: after it left the group, or after it lost its disk.
//! So an id is never used again, and whoever sees one knows where to send.
use std::fmt;

/// Never 0 as a whole. The replicas that a cluster is created with have incarnation 0: their id is their node's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(u64);

impl ReplicaId {
    /// `None` for node 0 and for a node id that does not fit.
    pub fn new(node_id: u64, incarnation: u32) -> Option<Self> {
        let node = u32::try_from(node_id).ok().filter(|node| *node > 0)?;
        Some(Self(u64::from(incarnation) << 32 | u64::from(node)))
    }

    /// As raft and the log hold it; `None` when its node is 0.
    pub fn from_raw(raw: u64) -> Option<Self> {
        (raw as u32 > 0).then_some(Self(raw))
    }

    pub fn raw(self) -> u64 {
        self.0
    }

    pub fn node_id(self) -> u64 {
        u64::from(self.0 as u32)
    }

    pub fn incarnation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The node of a raw id; 0 (nobody) stays 0.
pub fn node_of(raw: u64) -> u64 {
    u64::from(raw as u32)
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node_id(), self.incarnation())
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_node_and_incarnations_differ() {
        let first = ReplicaId::new(7, 0).unwrap();
        assert_eq!((first.raw(), first.to_string().as_str()), (7, "7.0"));
        let next = ReplicaId::new(7, 3).unwrap();
        assert_ne!(first, next);
        assert_eq!((next.node_id(), next.incarnation(), node_of(next.raw())), (7, 3, 7));
        assert_eq!(ReplicaId::from_raw(next.raw()), Some(next));
        assert_eq!(ReplicaId::new(u64::from(u32::MAX) + 1, 0), None);
        assert_eq!((ReplicaId::new(0, 5), ReplicaId::from_raw(5 << 32)), (None, None));
    }
}
