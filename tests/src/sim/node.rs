//! One simulated node: what survives a crash (log disk, state stores) and what does not (groups, wing, waiters).
use super::disk::SimDisk;
use super::proposals::{Parts, Proposals};
use super::store::SimStore;
use super::wing::{FactBatch, Wing};
use super::world::START_MS;
use carillon_consensus::{CommittedEntry, Group, PersistTask};
use carillon_core::Applier;
use carillon_core::meta::MetaView;
use carillon_delivery::BeginDecision;
use carillon_proto::MessageId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Who waits for the results of a proposal.
#[derive(Debug, Clone)]
pub enum Waiter {
    /// The engine's own commands; nobody waits.
    Nobody,
    /// A client's call; `id` is what a new message got.
    Call {
        op: u64,
        call_no: u32,
        id: Option<MessageId>,
    },
    Begin {
        partition: u32,
        term: u64,
        list: Vec<BeginDecision>,
        decided_ms: u64,
    },
    /// This node's own batch of facts.
    Facts {
        partition: u32,
    },
    /// A batch of facts of another node.
    Forwarded {
        from: usize,
        batch: FactBatch,
    },
    /// A receipt that was looked up here for a node.
    Looked {
        from: usize,
        report_no: u64,
    },
    Operator {
        step: usize,
    },
}

/// A read that waits for the quorum or for apply.
#[derive(Debug, Clone)]
pub struct Read {
    pub op: u64,
    pub call_no: u32,
    pub id: MessageId,
}

/// One replica while its node runs.
pub struct Cell {
    pub group: Group,
    pub proposals: Proposals<Waiter>,
    pub reads_asked: Vec<(u64, Read)>,
    pub reads_confirmed: Vec<(u64, Read)>,
    pub to_apply: VecDeque<(CommittedEntry, Parts<Waiter>)>,
    pub applying: bool,
    pub core: Applier,
    /// Term whose `LeaderStart` by this node is applied, while it leads.
    pub leading: Option<u64>,
    pub preferred_ticks: u32,
}

/// The clocks of a node. The monotonic one drifts and never jumps; the wall clock does both.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    offset_ms: i64,
    drift_ppm: i64,
    /// When the wall clock was last set.
    pub jumped_ms: Option<u64>,
}

impl Clock {
    fn drift_us(&self, now_ms: u64) -> i64 {
        now_ms as i64 * self.drift_ppm / 1000
    }

    pub fn mono(&self, now_ms: u64) -> Duration {
        Duration::from_micros((now_ms as i64 * 1000 + self.drift_us(now_ms)) as u64)
    }

    pub fn wall_ms(&self, now_ms: u64) -> u64 {
        (START_MS as i64 + now_ms as i64 + self.offset_ms + self.drift_us(now_ms) / 1000) as u64
    }

    pub fn true_ms(&self, mono_ms: u64) -> u64 {
        (mono_ms as i64 - mono_ms as i64 * self.drift_ppm / 1_000_000).max(0) as u64
    }

    pub fn jump(&mut self, delta_ms: i64, now_ms: u64) {
        self.offset_ms += delta_ms;
        self.jumped_ms = Some(now_ms);
    }

    pub fn error_ms(&self, now_ms: u64) -> u64 {
        (self.offset_ms + self.drift_us(now_ms) / 1000).unsigned_abs()
    }
}

/// See the module documentation.
pub struct Node {
    pub index: usize,
    /// Replica id in every group.
    pub id: u64,
    pub up: bool,
    /// Why it cannot be started any more.
    pub out: Option<String>,
    pub epoch: u64,
    pub frozen_until: u64,
    pub clock: Clock,
    // What survives.
    pub disk: Arc<SimDisk>,
    pub stores: BTreeMap<u32, SimStore>,
    /// The next sync fails; then the node is down for this long.
    pub sync_fails: Option<u64>,
    pub slow: u64,
    // What does not.
    pub cells: BTreeMap<u32, Cell>,
    /// Replicas out of service, with the reason.
    pub blocked: BTreeMap<u32, String>,
    pub queue: Vec<PersistTask>,
    pub busy: Vec<PersistTask>,
    pub meta: MetaView,
    /// (leader, term) of each group as this node knows it.
    pub leaders: BTreeMap<u32, (u64, u64)>,
    /// Up to where every replica has the log.
    pub safe: BTreeMap<u32, u64>,
    pub ticks: u64,
    pub wing: Wing,
}

impl Node {
    pub fn new(index: usize, (offset_ms, drift_ppm): (i64, i64)) -> Self {
        Self {
            index,
            id: index as u64 + 1,
            up: false,
            out: None,
            epoch: 0,
            frozen_until: 0,
            clock: Clock { offset_ms, drift_ppm, jumped_ms: None },
            disk: Arc::new(SimDisk::default()),
            stores: BTreeMap::new(),
            sync_fails: None,
            slow: 1,
            cells: BTreeMap::new(),
            blocked: BTreeMap::new(),
            queue: Vec::new(),
            busy: Vec::new(),
            meta: MetaView::default(),
            leaders: BTreeMap::new(),
            safe: BTreeMap::new(),
            ticks: 0,
            wing: Wing::default(),
        }
    }

    /// Everything volatile is gone.
    pub fn forget(&mut self) {
        self.up = false;
        self.epoch += 1;
        self.cells.clear();
        self.blocked.clear();
        self.queue.clear();
        self.busy.clear();
        self.meta = MetaView::default();
        self.leaders.clear();
        self.safe.clear();
        self.ticks = 0;
        self.wing = Wing::default();
    }

    pub fn leads(&self, group: u32) -> bool {
        self.leaders.get(&group).is_some_and(|(leader, _)| *leader == self.id)
    }

    pub fn leader_hint(&self, group: u32) -> u64 {
        self.leaders.get(&group).map_or(0, |(leader, _)| *leader)
    }

    /// Something of it is damaged for good.
    pub fn is_damaged(&self) -> bool {
        self.out.is_some() || !self.blocked.is_empty() || self.stores.values().any(SimStore::is_rotten)
    }
}
