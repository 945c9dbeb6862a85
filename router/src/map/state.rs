//! What the nodes told us, merged: partitions, leaders, nodes, practices. Pure; no clock, no network.
//!
//! Merge rules
//!  - A leader of a higher term wins; of the same term the newer word wins, but "none known" never replaces a leader of the same term.
//!  - Nodes and practices carry the index of the meta group: older lists are ignored.
//!  - The number of partitions never changes.
use carillon_proto::internal::{MapUpdate, PartitionLeader, PracticeRecord, RecipientZones};
use carillon_proto::slot::{SLOTS, Slot};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Nodes remembered at most; a cluster has far fewer.
pub const NODES_MAX: usize = 256;
/// Practices remembered at most.
pub const PRACTICES_MAX: usize = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("the node belongs to another cluster")]
    OtherCluster,
    #[error("the number of partitions changed from {known} to {told}")]
    PartitionsChanged { known: u32, told: u32 },
    #[error("{0} partitions are not possible")]
    Partitions(u32),
    #[error("more than {PRACTICES_MAX} practices or {NODES_MAX} nodes")]
    TooLarge,
}

/// Who leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leader {
    /// 0 = none known.
    pub node: u64,
    pub term: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Practice {
    pub number: u32,
    /// IANA zone.
    pub time_zone: Arc<str>,
    pub recipient_zones: RecipientZones,
    pub partition: u32,
}

/// The practices of one tenant by name.
pub type Practices = HashMap<String, Practice>;

#[derive(Debug, Clone, Default)]
pub struct MapState {
    /// 0 = not known yet.
    pub partitions: u32,
    /// By partition; the first place is unused.
    pub leaders: Vec<Leader>,
    /// Addresses of the peer plane by node id.
    pub nodes: BTreeMap<u64, String>,
    pub tenants: HashMap<String, Arc<Practices>>,
    meta_index: u64,
    practice_count: usize,
}

impl MapState {
    /// Takes in one update of one node's stream. True when something may have changed.
    pub fn apply(&mut self, cluster_id: &str, update: MapUpdate) -> Result<bool, MapError> {
        if update.cluster_id.is_empty() && update.partitions == 0 && update.full {
            // The node has not joined a cluster yet.
            return Ok(false);
        }
        if update.cluster_id != cluster_id && (update.full || !update.cluster_id.is_empty()) {
            return Err(MapError::OtherCluster);
        }
        let mut changed = self.set_partitions(update.partitions)?;
        let has_lists = update.full || !update.nodes.is_empty() || !update.practices.is_empty();
        if has_lists && update.meta_index >= self.meta_index {
            self.apply_meta(&update)?;
            changed = true;
        }
        for leader in &update.leaders {
            changed |= self.set_leader(leader);
        }
        Ok(changed)
    }

    fn set_partitions(&mut self, told: u32) -> Result<bool, MapError> {
        match (self.partitions, told) {
            (_, 0) => Ok(false),
            (known, told) if known == told => Ok(false),
            (0, told) if told <= u32::from(SLOTS) => {
                self.partitions = told;
                self.leaders = vec![Leader::default(); told as usize + 1];
                Ok(true)
            }
            (0, told) => Err(MapError::Partitions(told)),
            (known, told) => Err(MapError::PartitionsChanged { known, told }),
        }
    }

    fn apply_meta(&mut self, update: &MapUpdate) -> Result<(), MapError> {
        if update.full {
            self.nodes.clear();
            self.tenants.clear();
            self.practice_count = 0;
        }
        self.meta_index = update.meta_index;
        for node in &update.nodes {
            self.nodes.insert(node.node_id, node.peer_address.clone());
        }
        for record in &update.practices {
            self.put_practice(record);
        }
        if self.nodes.len() > NODES_MAX || self.practice_count > PRACTICES_MAX {
            return Err(MapError::TooLarge);
        }
        Ok(())
    }

    fn put_practice(&mut self, record: &PracticeRecord) {
        if self.partitions == 0 || self.practice_count > PRACTICES_MAX {
            return;
        }
        let practice = Practice {
            number: record.practice_no,
            time_zone: Arc::from(record.time_zone.as_str()),
            recipient_zones: record.recipient_zones(),
            partition: Slot::of_practice(&record.tenant, &record.practice).partition(self.partitions),
        };
        let practices = self.tenants.entry(record.tenant.clone()).or_default();
        if Arc::make_mut(practices).insert(record.practice.clone(), practice).is_none() {
            self.practice_count += 1;
        }
    }

    fn set_leader(&mut self, told: &PartitionLeader) -> bool {
        let Some(known) = self.leaders.get_mut(told.partition as usize).filter(|_| told.partition > 0) else {
            return false;
        };
        let newer = told.term > known.term || (told.term == known.term && told.leader != 0);
        let told = Leader { node: told.leader, term: told.term };
        if newer && told != *known {
            *known = told;
            return true;
        }
        false
    }

    /// `asked` does not lead the partition and names `leader` instead. Ignored when the map has moved on.
    pub fn hint(&mut self, partition: u32, asked: u64, leader: u64) -> bool {
        if leader == 0 || leader == asked || !self.nodes.contains_key(&leader) {
            return false;
        }
        match self.leaders.get_mut(partition as usize) {
            Some(known) if known.node == asked => {
                known.node = leader;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::internal::MetaNode;

    fn full(meta_index: u64, practices: &[&str]) -> MapUpdate {
        MapUpdate {
            full: true,
            cluster_id: "lab".into(),
            partitions: 16,
            nodes: (1..=3)
                .map(|id| MetaNode { node_id: id, peer_address: format!("n{id}:1"), ..Default::default() })
                .collect(),
            leaders: vec![],
            practices: practices.iter().map(|name| record(name, 7)).collect(),
            meta_index,
            node_id: 1,
        }
    }

    fn record(name: &str, number: u32) -> PracticeRecord {
        PracticeRecord {
            practice_no: number,
            tenant: "lakeside".into(),
            practice: name.into(),
            time_zone: "America/Chicago".into(),
            carrier_no: 1,
            ..Default::default()
        }
    }

    fn leader(partition: u32, leader: u64, term: u64) -> PartitionLeader {
        PartitionLeader { partition, leader, term, epoch: 0 }
    }

    fn with_leaders(leaders: Vec<PartitionLeader>) -> MapUpdate {
        MapUpdate { leaders, ..MapUpdate::default() }
    }

    fn known() -> MapState {
        let mut state = MapState::default();
        state.apply("lab", full(5, &["north"])).unwrap();
        state
    }

    #[test]
    fn the_leader_of_the_highest_term_wins_in_any_order() {
        let mut state = known();
        for (told, expected) in [
            (leader(3, 1, 5), (1, 5)),
            (leader(3, 2, 4), (1, 5)),
            (leader(3, 0, 5), (1, 5)),
            (leader(3, 0, 6), (0, 6)),
            (leader(3, 3, 6), (3, 6)),
            (leader(3, 2, 7), (2, 7)),
        ] {
            state.apply("lab", with_leaders(vec![told])).unwrap();
            assert_eq!((state.leaders[3].node, state.leaders[3].term), expected);
        }
        state.apply("lab", with_leaders(vec![leader(0, 1, 9), leader(17, 1, 9)])).unwrap();
        assert_eq!(state.leaders[0], Leader::default());
    }

    #[test]
    fn a_hint_counts_only_while_the_map_still_says_what_was_tried() {
        let mut state = known();
        state.apply("lab", with_leaders(vec![leader(3, 1, 5)])).unwrap();
        assert!(!state.hint(3, 1, 0) && !state.hint(3, 1, 1) && !state.hint(3, 1, 99));
        assert!(!state.hint(3, 2, 3), "node 2 was not the known leader");
        assert!(state.hint(3, 1, 2));
        assert_eq!(state.leaders[3], Leader { node: 2, term: 5 });
        state.apply("lab", with_leaders(vec![leader(3, 1, 5)])).unwrap();
        assert_eq!(state.leaders[3].node, 1);
    }

    #[test]
    fn an_older_list_of_practices_is_ignored_and_a_newer_one_replaces() {
        let mut state = known();
        state.apply("lab", full(4, &["old"])).unwrap();
        assert!(state.tenants["lakeside"].contains_key("north"));
        let one = MapUpdate { practices: vec![record("south", 8)], meta_index: 6, ..MapUpdate::default() };
        state.apply("lab", one).unwrap();
        assert_eq!(state.tenants["lakeside"].len(), 2);
        let south = &state.tenants["lakeside"]["south"];
        assert_eq!(south.partition, Slot::of_practice("lakeside", "south").partition(16));
        state.apply("lab", full(7, &["east"])).unwrap();
        assert_eq!(state.tenants["lakeside"].keys().collect::<Vec<_>>(), ["east"]);
    }

    #[test]
    fn heartbeats_change_nothing_and_do_not_make_lists_look_old() {
        let mut state = known();
        assert_eq!(state.apply("lab", with_leaders(vec![leader(3, 1, 5)])), Ok(true));
        let heartbeat = MapUpdate { meta_index: 9, ..with_leaders(vec![leader(3, 1, 5)]) };
        assert_eq!(state.apply("lab", heartbeat), Ok(false));
        assert_eq!(state.apply("lab", full(6, &["east"])), Ok(true));
        assert!(state.tenants["lakeside"].contains_key("east"));
        let blank = MapUpdate { full: true, ..MapUpdate::default() };
        assert_eq!(state.apply("lab", blank), Ok(false), "a node without a cluster says nothing");
    }

    #[test]
    fn foreign_clusters_and_other_partition_counts_are_refused() {
        let mut state = known();
        assert_eq!(state.apply("lab2", full(9, &[])), Err(MapError::OtherCluster));
        let told = MapUpdate { partitions: 32, ..full(9, &[]) };
        let refused = MapError::PartitionsChanged { known: 16, told: 32 };
        assert_eq!(state.apply("lab", told), Err(refused));
        let told = MapUpdate { partitions: 4097, ..full(9, &[]) };
        assert_eq!(MapState::default().apply("lab", told), Err(MapError::Partitions(4097)));
        assert!(state.tenants["lakeside"].contains_key("north"));
    }
}
