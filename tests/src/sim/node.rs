//! One simulated node: what survives a crash (log disk, state stores) and what does not (groups, wing, waiters).
use super::disk::SimDisk;
use super::leases::LeaseDesk;
use super::members::LogTask;
use super::steward::Steward;
use super::store::SimStore;
use super::wing::{FactBatch, LeaseCall, Wing};
use carillon_consensus::{Awaited, Group, Proposals, Release, SnapshotMark};
use carillon_core::clock::ClusterClock;
use carillon_core::meta::{MetaView, level};
use carillon_core::space::{PeerSpace, SpaceGate, SpaceLimits};
use carillon_core::{Applier, MemTables};
use carillon_delivery::BeginDecision;
use carillon_delivery::lease::Grant;
use carillon_proto::MessageId;
use carillon_proto::replica::node_of;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const VOLUME_BYTES: u64 = 1_000 << 20;
pub const SPACE_LIMITS: SpaceLimits = SpaceLimits { free_percent_min: 15, free_bytes_min: 2 << 30 };
/// `tuning.clock_skew_ms_max`.
pub const CLOCK_BOUND_MS: u64 = 1_000;

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
        ask: u64,
    },
    /// Slices of daily caps, and whose request they are for.
    Slices {
        call: Box<LeaseCall>,
        grants: Vec<Grant>,
    },
    /// A piece of the retention loop.
    Retired {
        partition: u32,
    },
    /// A piece of a restore.
    Fed,
    /// A node's own word about itself.
    Registered {
        from: usize,
        epoch: u64,
    },
}

/// A read that waits for the quorum or for apply.
#[derive(Debug, Clone)]
pub struct Read {
    pub op: u64,
    pub call_no: u32,
    pub id: MessageId,
}

/// Who waits for a confirmed read.
#[derive(Debug, Clone)]
pub enum Asker {
    Client(Read),
    /// The steward's confirmation that it still leads.
    Steward {
        round: u64,
    },
    /// A backup copies the partition when this is answered.
    Backup {
        no: u64,
    },
    /// Another node, or this one, asks for leases.
    Lease(Box<LeaseCall>),
    /// Another node, or this one, asks how far the meta group is.
    Confirm {
        from: usize,
        epoch: u64,
    },
}

/// One replica while its node runs.
pub struct Cell {
    pub group: Group,
    pub proposals: Proposals<Waiter>,
    pub reads_asked: Vec<(u64, Asker)>,
    pub reads_confirmed: Vec<(u64, Asker)>,
    /// Committed, and not given to the applier yet.
    pub release: Release<Waiter>,
    pub to_apply: VecDeque<Awaited<Waiter>>,
    pub applying: bool,
    pub core: Applier,
    /// Term whose `LeaderStart` by this node is applied, while it leads.
    pub leading: Option<u64>,
    /// A snapshot that took the place of the log, for the applier.
    pub installed: Option<SnapshotMark>,
    /// Index and files of the snapshot that this leader offers.
    pub offered: Option<(u64, MemTables)>,
    pub exporting: bool,
}

impl Cell {
    pub fn new(group: Group, core: Applier) -> Self {
        Self {
            group,
            proposals: Proposals::default(),
            reads_asked: Vec::new(),
            reads_confirmed: Vec::new(),
            release: Release::default(),
            to_apply: VecDeque::new(),
            applying: false,
            core,
            leading: None,
            installed: None,
            offered: None,
            exporting: false,
        }
    }

    /// The member that lives on a node.
    pub fn replica_on(&self, node_id: u64) -> Option<u64> {
        let conf = self.group.conf_state();
        let mut members = conf.voters.iter().chain(&conf.learners).chain(&conf.voters_outgoing).copied();
        members.find(|id| node_of(*id) == node_id)
    }
}

/// The clocks of a node. The monotonic one drifts and never jumps; the wall clock does both.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start_ms: u64,
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
        (self.start_ms as i64 + now_ms as i64 + self.offset_ms + self.drift_us(now_ms) / 1000) as u64
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
    pub id: u64,
    pub up: bool,
    /// It never comes back: its disk is gone, or it was removed.
    pub lost: bool,
    /// It lost its disk once; what it says from then on must count for nobody.
    pub wiped: bool,
    /// Its configuration names the founding members; others came with a token.
    pub founder: bool,
    /// Secret that it joined with; 0 = none.
    pub token: u64,
    /// Feature level of its program.
    pub level: u32,
    pub epoch: u64,
    pub frozen_until: u64,
    pub clock: Clock,
    // What survives, unless the disk is lost.
    pub store_id: u64,
    /// The raft log of this disk is complete.
    pub ready: bool,
    /// Store of every node that it has heard of.
    pub known_stores: BTreeMap<u64, u64>,
    pub disk: Arc<SimDisk>,
    pub stores: BTreeMap<u32, SimStore>,
    /// The next sync fails; then the node is down for this long.
    pub sync_fails: Option<u64>,
    pub slow: u64,
    /// Free bytes of its volume, of [`VOLUME_BYTES`].
    pub free_bytes: u64,
    pub full_since_ms: Option<u64>,
    // What does not.
    pub started_ms: u64,
    pub gate: SpaceGate,
    /// What it knows of its peers' disks and clocks.
    pub space: PeerSpace,
    pub clocks: ClusterClock,
    pub cells: BTreeMap<u32, Cell>,
    /// Replicas out of service, with the reason.
    pub blocked: BTreeMap<u32, String>,
    /// Replica id of each group that lives here.
    pub replicas: BTreeMap<u32, u64>,
    /// Groups whose damaged replica went.
    pub repairing: BTreeSet<u32>,
    /// Groups whose replica is on its way in or out.
    pub creating: BTreeSet<u32>,
    pub leaving: BTreeSet<u32>,
    pub queue: Vec<LogTask>,
    pub busy: Vec<LogTask>,
    pub meta: MetaView,
    pub steward: Option<Steward>,
    /// (leader, term) of each group as this node knows it.
    pub leaders: BTreeMap<u32, (u64, u64)>,
    /// Up to where every replica has the log.
    pub safe: BTreeMap<u32, u64>,
    /// Groups that have something to say in the next turn, and whether it is planned.
    pub dirty: BTreeSet<u32>,
    pub turn_planned: bool,
    pub ticks: u64,
    pub wing: Wing,
    /// What it gives out while it leads the meta group, and in which term.
    pub leases: Option<LeaseDesk>,
}

impl Node {
    pub fn new(index: usize, start_ms: u64, (offset_ms, drift_ppm): (i64, i64)) -> Self {
        Self {
            index,
            id: index as u64 + 1,
            up: false,
            lost: false,
            wiped: false,
            founder: false,
            token: 0,
            level: level::LEVEL,
            epoch: 0,
            frozen_until: 0,
            clock: Clock { start_ms, offset_ms, drift_ppm, jumped_ms: None },
            store_id: index as u64 + 101,
            ready: false,
            known_stores: BTreeMap::new(),
            disk: Arc::new(SimDisk::default()),
            stores: BTreeMap::new(),
            sync_fails: None,
            slow: 1,
            free_bytes: VOLUME_BYTES,
            full_since_ms: None,
            started_ms: 0,
            gate: SpaceGate::new(SPACE_LIMITS),
            space: PeerSpace::new(index as u64 + 1),
            clocks: ClusterClock::new(CLOCK_BOUND_MS),
            cells: BTreeMap::new(),
            blocked: BTreeMap::new(),
            replicas: BTreeMap::new(),
            repairing: BTreeSet::new(),
            creating: BTreeSet::new(),
            leaving: BTreeSet::new(),
            queue: Vec::new(),
            busy: Vec::new(),
            meta: MetaView::default(),
            steward: None,
            leaders: BTreeMap::new(),
            safe: BTreeMap::new(),
            dirty: BTreeSet::new(),
            turn_planned: false,
            ticks: 0,
            wing: Wing::default(),
            leases: None,
        }
    }

    /// Everything volatile is gone.
    pub fn forget(&mut self) {
        self.up = false;
        self.epoch += 1;
        self.cells.clear();
        self.blocked.clear();
        self.replicas.clear();
        self.repairing.clear();
        self.creating.clear();
        self.leaving.clear();
        self.steward = None;
        self.leases = None;
        self.queue.clear();
        self.busy.clear();
        self.meta = MetaView::default();
        self.gate = SpaceGate::new(SPACE_LIMITS);
        self.space = PeerSpace::new(self.id);
        self.clocks = ClusterClock::new(CLOCK_BOUND_MS);
        self.leaders.clear();
        self.safe.clear();
        self.ticks = 0;
        self.dirty.clear();
        self.turn_planned = false;
        self.wing = Wing::default();
    }

    pub fn leads(&self, group: u32) -> bool {
        self.leaders.get(&group).is_some_and(|(leader, _)| *leader == self.id)
    }

    pub fn leader_hint(&self, group: u32) -> u64 {
        self.leaders.get(&group).map_or(0, |(leader, _)| *leader)
    }

    /// Something of it is damaged, and it is not gone as a whole.
    pub fn is_rotten(&self) -> bool {
        !self.blocked.is_empty() || self.stores.values().any(SimStore::is_rotten) || self.disk.is_rotten()
    }

    /// Whether another node speaks from the disk that it always had. The first one is remembered.
    pub fn knows_store(&mut self, node_id: u64, store_id: u64) -> bool {
        *self.known_stores.entry(node_id).or_insert(store_id) == store_id
    }

    /// Its disk is gone with all that it knew; a new one is there.
    pub fn wipe(&mut self) {
        self.wiped = true;
        self.store_id += 1_000;
        self.ready = false;
        self.known_stores.clear();
        self.disk = Arc::new(SimDisk::default());
        self.stores.clear();
    }
}
