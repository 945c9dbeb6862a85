//! What the rest of the node holds of the engine: propose, read, follow. Never a database and never a group.
use super::members::MemberMessage;
use super::references::References;
use super::scrub::{ScrubMessage, ScrubReport};
use super::shard::ShardMessage;
use super::snapshot::Hub;
use crate::leave::Leavers;
use crate::space::Space;
use arc_swap::ArcSwap;
use bytes::Bytes;
use carillon_consensus::Follower;
use carillon_core::meta::MetaView;
use carillon_core::{CommandResult, ScheduleChange};
use carillon_proto::internal::ConfState;
use carillon_store::{Replica, StateDb};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot, watch};

/// Commands in one proposal.
pub const COMMANDS_MAX: usize = 512;
/// Bytes in one proposal.
pub const PROPOSAL_BYTES_MAX: usize = 256 * 1024;
/// Bytes of proposals that were handed in and not answered, on one node.
pub const IN_FLIGHT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why a proposal has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was appended; try the node in the hint (0 = unknown).
    #[error("not the leader (hint {leader_hint})")]
    NotLeader { leader_hint: u64 },
    /// Nothing was appended; try again shortly.
    #[error("busy")]
    Busy,
    /// Appended, but leadership was lost before it committed here: it may or may not be in force.
    #[error("fate unknown")]
    Uncertain,
    /// More commands or bytes than one proposal may have. A defect of the caller.
    #[error("proposal too large")]
    TooLarge,
    /// This replica stopped, with the reason.
    #[error("replica blocked: {0}")]
    Blocked(String),
    #[error("the node is stopping")]
    Stopping,
}

/// The answer to a proposal of the meta group: one refusal text for each command, empty = done.
pub type MetaAnswer = Result<(u64, Vec<String>), ProposeError>;

/// What was proposed and who waits for it.
pub enum Waiter {
    Commands(oneshot::Sender<Result<Vec<CommandResult>, ProposeError>>),
    Meta(oneshot::Sender<MetaAnswer>),
    /// The engine's own commands; nobody waits.
    None,
}

impl Waiter {
    pub fn fail(self, error: ProposeError) {
        // A receiver that is gone has passed its deadline; there is nobody left to tell.
        match self {
            Self::Commands(sender) => drop(sender.send(Err(error))),
            Self::Meta(sender) => drop(sender.send(Err(error))),
            Self::None => {}
        }
    }
}

/// Who leads a partition, as this node knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// 0 = unknown.
    pub leader: u64,
    pub term: u64,
}

/// Replicas of this node that are out of service, and why.
pub type Fenced = Arc<Mutex<BTreeMap<u32, String>>>;

/// Leaders by group.
pub type Leaders = BTreeMap<u32, Leadership>;

/// What the delivery driver hears, in apply order for each partition.
#[derive(Debug)]
pub enum DriverEvent {
    /// This node leads the partition and `LeaderStart` of this term is applied.
    Lead {
        partition: u32,
        term: u64,
    },
    Unlead {
        partition: u32,
    },
    Schedule {
        partition: u32,
        changes: Vec<ScheduleChange>,
    },
}

/// Replica id of each group that has a replica on this node.
pub type Hosted = BTreeMap<u32, u64>;

/// Why a replica was not created or destroyed, or a membership not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    #[error("this node has no replica of the group")]
    NoReplica,
    #[error("replica {0} of the group lives on this node")]
    OtherReplica(u64),
    #[error("the replica id is not of this node, or there is no such group")]
    NotOfThisNode,
    #[error("replica {0} of the group was removed from this node; give the next one a later id")]
    Removed(u64),
    #[error("a replica of the group is being created or removed; try again")]
    Busy,
    #[error("raft log: {0}")]
    Log(String),
    #[error(transparent)]
    Refused(#[from] carillon_consensus::ProposeError),
    #[error("the node is stopping")]
    Stopping,
}

/// State of one group, for operators and for the steward.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupStatus {
    pub group: u32,
    pub replica_id: u64,
    /// Node.
    pub leader: u64,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub blocked: String,
    /// Replica ids.
    pub members: ConfState,
    /// A change of the membership is not in force yet, or leadership is being handed over.
    pub changing: bool,
    /// A snapshot takes the place of this replica's state.
    pub installing: bool,
    /// On the leader: the other members by replica id.
    pub followers: Vec<(u64, Follower)>,
}

pub(crate) struct Shared {
    pub node_id: u64,
    pub partitions: u32,
    pub inbox: crossbeam_channel::Sender<ShardMessage>,
    pub state: Arc<StateDb>,
    pub leaders: watch::Receiver<Arc<Leaders>>,
    pub hosted: watch::Receiver<Arc<Hosted>>,
    pub snapshots: Arc<Hub>,
    pub meta: Arc<ArcSwap<MetaView>>,
    pub meta_changed: watch::Receiver<u64>,
    /// Applied index of each group, index = group.
    pub applied: Vec<watch::Receiver<u64>>,
    pub references: Arc<References>,
    pub admission: Arc<Semaphore>,
    pub space: Arc<Space>,
    pub leavers: Arc<Leavers>,
    pub fenced: Fenced,
    pub scrub: crossbeam_channel::Sender<ScrubMessage>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    pub(crate) shared: Arc<Shared>,
}

impl NodeHandle {
    pub fn node_id(&self) -> u64 {
        self.shared.node_id
    }

    /// Room on this node's disk and on its peers'.
    pub fn space(&self) -> &Space {
        &self.shared.space
    }

    /// Who is stopping, this node or others.
    pub fn leavers(&self) -> &Leavers {
        &self.shared.leavers
    }

    /// Whether this node's replica of a group is out of service.
    pub fn is_fenced(&self, group: u32) -> bool {
        self.shared.fenced.lock().contains_key(&group)
    }

    /// Reads everything that is stored here, with checksums. `None`: a pass is running already, or the node stops.
    pub async fn scrub(&self) -> Option<ScrubReport> {
        let (reply, report) = oneshot::channel();
        self.shared.scrub.try_send(ScrubMessage::Run { reply }).ok()?;
        report.await.ok()
    }

    /// Partitions are numbered 1..=partitions; group 0 is the meta group.
    pub fn partitions(&self) -> u32 {
        self.shared.partitions
    }

    /// Map, practices, carriers and wrapped keys as applied here.
    pub fn meta(&self) -> Arc<MetaView> {
        self.shared.meta.load_full()
    }

    /// Changes whenever `meta()` does; the value is the applied index.
    pub fn meta_changes(&self) -> watch::Receiver<u64> {
        self.shared.meta_changed.clone()
    }

    pub fn leaders(&self) -> watch::Receiver<Arc<Leaders>> {
        self.shared.leaders.clone()
    }

    /// What lives on this node.
    pub fn hosted(&self) -> watch::Receiver<Arc<Hosted>> {
        self.shared.hosted.clone()
    }

    /// The files of snapshots, for the peer plane.
    pub fn snapshots(&self) -> &Arc<Hub> {
        &self.shared.snapshots
    }

    pub fn leadership(&self, group: u32) -> Leadership {
        self.shared.leaders.borrow().get(&group).copied().unwrap_or_default()
    }

    pub fn is_leader(&self, group: u32) -> bool {
        self.leadership(group).leader == self.shared.node_id
    }

    /// Applied index of a group; changes with each applied batch.
    pub fn applied(&self, group: u32) -> watch::Receiver<u64> {
        self.shared.applied[group as usize].clone()
    }

    /// Carrier references that became known lately.
    pub fn references(&self) -> &References {
        &self.shared.references
    }

    /// The committed state of a partition on this node, without any check of leadership. Reads of it may fail when the
    /// replica is replaced by a snapshot or leaves.
    pub fn local_tables(&self, group: u32) -> anyhow::Result<Arc<Replica>> {
        anyhow::ensure!(self.shared.hosted.borrow().contains_key(&group), "no replica of group {group} here");
        Ok(self.shared.state.replica(group)?)
    }

    /// Appends encoded `Command`s of one partition and answers after they are applied here: one result for each,
    /// in order. At most [`COMMANDS_MAX`] commands and [`PROPOSAL_BYTES_MAX`] bytes.
    pub async fn propose(
        &self,
        partition: u32,
        commands: Vec<Bytes>,
    ) -> Result<Vec<CommandResult>, ProposeError> {
        let (sender, receiver) = oneshot::channel();
        let _permit = self.append(partition, commands, Waiter::Commands(sender))?;
        receiver.await.unwrap_or(Err(ProposeError::Uncertain))
    }

    /// Appends encoded `MetaCommand`s; works only on the meta leader.
    pub async fn propose_meta(&self, commands: Vec<Bytes>) -> MetaAnswer {
        let (sender, receiver) = oneshot::channel();
        let _permit = self.append(0, commands, Waiter::Meta(sender))?;
        receiver.await.unwrap_or(Err(ProposeError::Uncertain))
    }

    fn append(
        &self,
        group: u32,
        commands: Vec<Bytes>,
        waiter: Waiter,
    ) -> Result<tokio::sync::OwnedSemaphorePermit, ProposeError> {
        let bytes: usize = commands.iter().map(|c| c.len() + 8).sum();
        if commands.is_empty() || commands.len() > COMMANDS_MAX || bytes > PROPOSAL_BYTES_MAX {
            return Err(ProposeError::TooLarge);
        }
        let leadership = self.leadership(group);
        if leadership.leader != self.shared.node_id {
            return Err(ProposeError::NotLeader { leader_hint: leadership.leader });
        }
        let permit = Arc::clone(&self.shared.admission)
            .try_acquire_many_owned(bytes as u32)
            .map_err(|_| ProposeError::Busy)?;
        let message = ShardMessage::Propose { group, commands, bytes, waiter };
        match self.shared.inbox.try_send(message) {
            Ok(()) => Ok(permit),
            Err(crossbeam_channel::TrySendError::Full(_)) => Err(ProposeError::Busy),
            Err(crossbeam_channel::TrySendError::Disconnected(_)) => Err(ProposeError::Stopping),
        }
    }

    /// The state of a partition, at least as new as every write acknowledged before this call: confirmed with a quorum
    /// (ReadIndex). Only on the leader.
    pub async fn read(&self, group: u32) -> Result<Arc<Replica>, ProposeError> {
        let (sender, receiver) = oneshot::channel();
        self.send(ShardMessage::Read { group, reply: sender })?;
        receiver.await.unwrap_or(Err(ProposeError::Stopping))?;
        self.shared.state.replica(group).map_err(|e| ProposeError::Blocked(e.to_string()))
    }

    /// Asks to move the leadership of a group this node leads.
    pub async fn transfer_leader(&self, group: u32, to: u64) -> Result<(), ProposeError> {
        let (sender, receiver) = oneshot::channel();
        self.send(ShardMessage::Transfer { group, to, reply: sender })?;
        receiver.await.unwrap_or(Err(ProposeError::Stopping))
    }

    /// Creates or ends a replica on this node, or proposes a change of a membership that this node leads.
    pub async fn member(&self, group: u32, message: MemberMessage) -> Result<(), MemberError> {
        let (reply, receiver) = oneshot::channel();
        self.send(ShardMessage::Member { group, message, reply }).map_err(|error| match error {
            ProposeError::Busy => MemberError::Busy,
            _ => MemberError::Stopping,
        })?;
        receiver.await.unwrap_or(Err(MemberError::Stopping))
    }

    pub async fn status(&self) -> Vec<GroupStatus> {
        let (sender, receiver) = oneshot::channel();
        if self.send(ShardMessage::Status { reply: sender }).is_err() {
            return Vec::new();
        }
        receiver.await.unwrap_or_default()
    }

    fn send(&self, message: ShardMessage) -> Result<(), ProposeError> {
        match self.shared.inbox.try_send(message) {
            Ok(()) => Ok(()),
            Err(crossbeam_channel::TrySendError::Full(_)) => Err(ProposeError::Busy),
            Err(crossbeam_channel::TrySendError::Disconnected(_)) => Err(ProposeError::Stopping),
        }
    }
}
