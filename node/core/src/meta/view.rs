//! Everything the meta group knows, in memory: what a node loads at start and after each change.
use super::rows::{self, each, is_present};
use super::{keys, share_of};
use crate::records::{applied_record, decode};
use crate::tables::{ReadTables, TableError};
use carillon_proto::internal::{
    Bootstrap, BreakerRecord, CapRecord, CarrierRecord, ClusterRestore, DataKeyRecord, HoursRecord,
    LaneRecord, LimitRecord, MetaNode, PartitionRecord, PauseRecord, PolicyRecord, PracticeRecord,
    RouteRecord, SenderRecord, SendingPolicy, ShareRecord, TokenRecord,
};
use std::collections::BTreeMap;

/// (practice number, epoch)
pub type DataKeyId = (u32, u32);

/// A copy of the meta group's state. Bounded by the limits of the module's root.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetaView {
    /// Empty before the cluster is bootstrapped.
    pub cluster_id: String,
    /// 0 before the cluster is bootstrapped.
    pub partitions: u32,
    /// All that ever were members; see [`MetaView::present`].
    pub nodes: BTreeMap<u64, MetaNode>,
    /// Where replicas belong; 0 is the meta group.
    pub map: BTreeMap<u32, PartitionRecord>,
    pub shares: ShareRecord,
    /// Feature level; 0 before the cluster is bootstrapped.
    pub level: u32,
    pub tokens: BTreeMap<u64, TokenRecord>,
    pub practices: BTreeMap<u32, PracticeRecord>,
    /// By tenant, then by the practice's name.
    pub practice_numbers: BTreeMap<String, BTreeMap<String, u32>>,
    pub carriers: BTreeMap<u32, CarrierRecord>,
    pub data_keys: BTreeMap<DataKeyId, DataKeyRecord>,
    pub routes: BTreeMap<u32, RouteRecord>,
    /// By carrier and number.
    pub senders: BTreeMap<(u32, u32), SenderRecord>,
    /// What operators want of breakers; a carrier without a row decides by itself.
    pub breakers: BTreeMap<u32, BreakerRecord>,
    /// Limits besides those of the accounts, by number.
    pub limits: BTreeMap<u32, LimitRecord>,
    /// State of lanes that is not the usual one, by carrier.
    pub lanes: BTreeMap<u32, LaneRecord>,
    /// What is taken of daily caps, by limit.
    pub caps: BTreeMap<u32, CapRecord>,
    /// The rules of the hours; version 0 = those built in.
    pub hours: HoursRecord,
    /// By tenant, then by practice; no practice is the tenant's.
    pub policies: BTreeMap<String, BTreeMap<String, SendingPolicy>>,
    /// By practice and carrier; also those that have ended.
    pub pauses: BTreeMap<(u32, u32), PauseRecord>,
    /// The backup that the cluster was restored from, if it was.
    pub restore: Option<ClusterRestore>,
    /// Entry up to which this is the state.
    pub applied_index: u64,
}

impl MetaView {
    pub fn load(tables: &dyn ReadTables) -> Result<Self, TableError> {
        let mut view = Self { applied_index: applied_record(tables)?.index, ..Self::default() };
        if let Some(row) = tables.get(&keys::bootstrap())? {
            let bootstrap: Bootstrap = decode('m', row)?;
            view.cluster_id = bootstrap.cluster_id;
            view.partitions = bootstrap.partitions;
        }
        view.nodes = rows::nodes(tables)?;
        view.map = rows::partitions(tables)?;
        view.shares = rows::shares(tables)?;
        view.level = rows::level(tables)?;
        view.tokens = rows::tokens(tables)?;
        view.hours = super::hours::record(tables)?;
        view.restore = super::restore::record(tables)?;
        each(tables, b'P', |record: PracticeRecord| {
            let of_tenant = view.practice_numbers.entry(record.tenant.clone()).or_default();
            of_tenant.insert(record.practice.clone(), record.practice_no);
            view.practices.insert(record.practice_no, record);
        })?;
        each(tables, b'C', |record: CarrierRecord| {
            view.carriers.insert(record.carrier_no, record);
        })?;
        each(tables, b'F', |record: RouteRecord| drop(view.routes.insert(record.route_no, record)))?;
        each(tables, b'O', |record: SenderRecord| {
            view.senders.insert((record.carrier_no, record.sender_no), record);
        })?;
        each(tables, b'b', |record: BreakerRecord| {
            view.breakers.insert(record.carrier_no, record);
        })?;
        each(tables, b'K', |record: DataKeyRecord| {
            view.data_keys.insert((record.practice_no, record.epoch), record);
        })?;
        each(tables, b'V', |record: LimitRecord| {
            view.limits.insert(record.limit_no, record);
        })?;
        each(tables, b'E', |record: LaneRecord| {
            view.lanes.insert(record.carrier_no, record);
        })?;
        each(tables, b'D', |record: CapRecord| {
            view.caps.insert(record.limit_no, record);
        })?;
        each(tables, b'Q', |record: PolicyRecord| {
            let of_tenant = view.policies.entry(record.tenant).or_default();
            of_tenant.insert(record.practice, record.policy.unwrap_or_default());
        })?;
        each(tables, b'W', |record: PauseRecord| {
            view.pauses.insert((record.practice_no, record.carrier_no), record);
        })?;
        Ok(view)
    }

    /// Pieces of a backup are still missing: nothing is accepted and nothing is sent.
    pub fn is_restoring(&self) -> bool {
        self.restore.as_ref().is_some_and(|restore| !restore.done)
    }

    /// Members that are neither removed nor dead.
    pub fn present(&self) -> impl Iterator<Item = &MetaNode> {
        self.nodes.values().filter(|node| is_present(node))
    }

    /// Whether a data directory may speak for a node. Unknown nodes and nodes that have not registered may: there is
    /// nothing to compare with.
    pub fn admits(&self, node_id: u64, store_id: u64) -> bool {
        self.nodes
            .get(&node_id)
            .is_none_or(|n| is_present(n) && (n.store_id == 0 || store_id == 0 || n.store_id == store_id))
    }

    /// Nodes send on leases, not on fixed shares.
    pub fn leases(&self) -> bool {
        let senders = if self.shares.changing { &self.shares.next } else { &self.shares.senders };
        self.level >= super::level::LEVEL_DELIVERY && senders.is_empty()
    }

    /// Segments per second of a carrier that a node may send without a lease; 0 = none.
    pub fn share(&self, carrier: &CarrierRecord, node_id: u64) -> u32 {
        share_of(&self.shares, node_id, carrier.segments_per_second)
    }

    /// Nodes with a replica of a partition, as the map wants it.
    pub fn hosts(&self, partition: u32) -> impl Iterator<Item = u64> {
        self.map.get(&partition).into_iter().flat_map(|p| &p.replicas).map(|r| r.node_id)
    }

    /// The practice of a tenant, by name.
    pub fn practice(&self, tenant: &str, practice: &str) -> Option<&PracticeRecord> {
        self.practices.get(self.practice_numbers.get(tenant)?.get(practice)?)
    }

    /// All practices of a tenant, by name.
    pub fn practices_of(&self, tenant: &str) -> impl Iterator<Item = &PracticeRecord> {
        let numbers = self.practice_numbers.get(tenant).into_iter().flat_map(BTreeMap::values);
        numbers.filter_map(|practice_no| self.practices.get(practice_no))
    }

    pub fn carrier(&self, name: &str) -> Option<&CarrierRecord> {
        self.carriers.values().find(|c| c.name == name)
    }

    /// Numbers of the limits besides its account's that apply to a practice on a carrier under a sender.
    pub fn limits_of(&self, carrier_no: u32, practice_no: u32, sender: &str) -> Vec<u32> {
        let (Some(carrier), Some(practice)) =
            (self.carriers.get(&carrier_no), self.practices.get(&practice_no))
        else {
            return Vec::new();
        };
        let of = self.limits.values().filter(|limit| super::applies(limit, carrier, practice, sender));
        of.map(|limit| limit.limit_no).collect()
    }

    pub fn data_key(&self, practice_no: u32, epoch: u32) -> Option<&DataKeyRecord> {
        self.data_keys.get(&(practice_no, epoch))
    }

    /// The key with the highest epoch: what new messages are sealed with.
    pub fn newest_data_key(&self, practice_no: u32) -> Option<&DataKeyRecord> {
        self.data_keys.range((practice_no, 0)..=(practice_no, u32::MAX)).next_back().map(|(_, key)| key)
    }
}
