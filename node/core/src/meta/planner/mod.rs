//! The planner: what the steward does next, from what the cluster wants ([`MetaView`]) and what was seen of it ([`Seen`]).
//!
//! Pure and without memory: a new meta leader goes on where the last one stopped, and doing a step twice changes nothing.
//!
//! Invariants
//!  - At most one step for a partition at a time, and none while its group is busy with the one before.
//!  - A replica votes only after it has caught up; no change of voters is proposed unless majorities of both the old and the
//!    new voters are healthy, and the leader never demotes itself: it hands over first.
//!  - A replica is destroyed only when it is in no map and in no configuration.
//!  - It comes to rest: balancing needs an improvement beyond a margin, and each step of it lowers the sum of squared weights, so
//!    no two steps undo each other.
//!
//! Files: `execute` makes a group what its row of the map says; `placement` changes rows; `leaders` moves leaders;
//! `lifecycle` advances nodes, shares and the feature level.
mod balance;
mod execute;
mod leaders;
mod lifecycle;
mod placement;

use super::{MetaView, is_present};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{NodeStatus, PartitionRecord, ReplicaRecord, ReplicaRole};
use carillon_proto::replica::node_of;
use std::collections::{BTreeMap, BTreeSet};

/// What was seen of the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Only nodes that are in the view.
    pub nodes: BTreeMap<u64, NodeSeen>,
    /// As each group's leader says; groups without a leader that answers are missing.
    pub groups: BTreeMap<u32, GroupSeen>,
}

/// One node's own words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeSeen {
    /// It answered lately.
    pub alive: bool,
    /// Since its last answer, by the clock of the observer.
    pub silent_ms: u64,
    /// It is about to stop: it leads nothing any more.
    pub stopping: bool,
    /// Entry of the meta group that it has applied.
    pub meta_applied: u64,
    /// Epoch of the shares that it keeps to, and has kept to for as long as the widest window of a limit.
    pub shares_epoch: u64,
    /// Its clock is too far from the others'.
    pub clock_off: bool,
    /// Replica id by group.
    pub replicas: BTreeMap<u32, u64>,
    /// Groups whose replica is out of service, whatever raft says of its log.
    pub blocked: BTreeSet<u32>,
}

/// A group as its leader sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupSeen {
    /// Replica id of the leader.
    pub leader: u64,
    pub conf: Conf,
    /// A change of the configuration or a transfer of the leadership is under way.
    pub busy: bool,
    pub last_index: u64,
    /// By replica id, the leader included.
    pub progress: BTreeMap<u64, Progress>,
    /// For how long it has led.
    pub led_ms: u64,
    /// Entries in a thousand seconds, smoothed.
    pub load: u64,
}

/// Replica ids by their part in the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conf {
    pub voters: BTreeSet<u64>,
    /// Not empty: a joint configuration.
    pub outgoing: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    /// Voters that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<u64>,
}

impl Conf {
    fn holds(&self, replica_id: u64) -> bool {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next]
            .iter()
            .any(|set| set.contains(&replica_id))
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    pub matched: u64,
    /// It answered within the last election timeout.
    pub active: bool,
}

/// How much at a time, and what counts as well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Partitions whose replicas are being moved.
    pub moves_max: usize,
    /// The same, of those that one node is part of.
    pub moves_per_node_max: usize,
    /// Leaders moved in one round.
    pub transfers_max: usize,
    /// A replica that is at most this many entries behind has caught up.
    pub lag_entries_max: u64,
    /// A leader is left alone for this long, unless its node must not lead, ...
    pub leader_rest_ms: u64,
    /// ... and for this long if only the load is uneven: moving a leader is load, too.
    pub leader_load_rest_ms: u64,
    /// A move to a node that has been silent for this long is given up.
    pub give_up_ms: u64,
    /// A node that leads nothing and has been silent for this long sends nothing any more: longer than any
    /// permission to send lasts.
    pub sends_end_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            moves_max: 4,
            moves_per_node_max: 2,
            transfers_max: 4,
            lag_entries_max: 256,
            leader_rest_ms: 5_000,
            leader_load_rest_ms: 60_000,
            give_up_ms: 30_000,
            sends_end_ms: 30_000,
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there are few at a time, and none is kept")]
pub enum Step {
    /// A command for the meta group.
    Meta(Kind),
    /// Make an empty replica on a node, to be filled by the group's leader.
    Create { node_id: u64, group: u32, replica_id: u64 },
    /// Delete a replica that no group knows.
    Destroy { node_id: u64, group: u32, replica_id: u64 },
    /// Change a configuration, through the leader on this node.
    Conf { node_id: u64, group: u32, change: ConfStep },
    /// Hand the leadership to another replica.
    Transfer { node_id: u64, group: u32, to: u64 },
}

#[derive(Debug, Clone, PartialEq)]
pub enum ConfStep {
    AddLearner(u64),
    /// Enters a joint configuration.
    Swap {
        promote: Vec<u64>,
        demote: Vec<u64>,
    },
    Leave,
    Remove(u64),
}

/// The next steps; empty when the cluster is as it should be, or when nothing can be done now.
pub fn plan(view: &MetaView, seen: &Seen, limits: &Limits) -> Vec<Step> {
    if view.cluster_id.is_empty() {
        return Vec::new();
    }
    let round = Round { view, seen, limits };
    let mut steps = lifecycle::steps(&round);
    if view.level < super::level::LEVEL_MEMBERSHIP {
        // Everything below needs it.
        return steps;
    }
    let mut taken = BTreeSet::new();
    for record in view.map.values() {
        if let Some(step) = execute::step(&round, record) {
            taken.insert(record.partition);
            steps.push(step);
        }
    }
    placement::steps(&round, &mut taken, &mut steps);
    leaders::steps(&round, &mut taken, &mut steps);
    steps
}

/// What all parts of a round look at.
struct Round<'a> {
    view: &'a MetaView,
    seen: &'a Seen,
    limits: &'a Limits,
}

impl Round<'_> {
    fn status(&self, node_id: u64) -> NodeStatus {
        self.view.nodes.get(&node_id).map_or(NodeStatus::Removed, |n| n.status())
    }

    fn present(&self, node_id: u64) -> bool {
        self.view.nodes.get(&node_id).is_some_and(is_present)
    }

    fn alive(&self, node_id: u64) -> bool {
        self.seen.nodes.get(&node_id).is_some_and(|n| n.alive)
    }

    /// Its replicas belong elsewhere.
    fn is_going(&self, node_id: u64) -> bool {
        matches!(self.status(node_id), NodeStatus::Dead | NodeStatus::Removed | NodeStatus::Decommissioning)
    }

    /// May be given replicas now.
    fn takes_replicas(&self, node_id: u64) -> bool {
        self.status(node_id) == NodeStatus::Active
            && self.seen.nodes.get(&node_id).is_some_and(|n| n.alive && !n.stopping)
    }

    fn active_nodes(&self) -> impl Iterator<Item = u64> {
        self.view.nodes.values().filter(|n| n.status() == NodeStatus::Active).map(|n| n.node_id)
    }

    /// May lead: a leader of a partition must be able to send. Where nodes have fixed shares it needs one now and after the
    /// change under way. One whose
    /// clock is off would stamp what it accepts with a wrong time.
    fn may_lead(&self, node_id: u64, group: u32) -> bool {
        let shares = &self.view.shares;
        let sends = self.view.leases()
            || shares.senders.contains(&node_id) && (!shares.changing || shares.next.contains(&node_id));
        let clock_off = self.seen.nodes.get(&node_id).is_some_and(|n| n.clock_off);
        self.takes_replicas(node_id) && !clock_off && (group == 0 || sends)
    }

    /// Nothing is to be done for this row.
    fn is_settled(&self, record: &PartitionRecord) -> bool {
        let Some(group) = self.seen.groups.get(&record.partition) else { return false };
        let conf = &group.conf;
        conf.outgoing.is_empty()
            && !group.busy
            && record.replicas.iter().all(|r| match r.role() {
                ReplicaRole::Voter => conf.voters.contains(&r.replica_id),
                ReplicaRole::Learner => conf.learners.contains(&r.replica_id),
                _ => false,
            })
            && conf.voters.len() + conf.learners.len() == record.replicas.len()
    }

    fn caught_up(&self, number: u32, group: &GroupSeen, replica_id: u64) -> bool {
        let node = self.seen.nodes.get(&node_of(replica_id));
        if node.is_none_or(|n| n.blocked.contains(&number)) {
            return false;
        }
        replica_id == group.leader
            || group.progress.get(&replica_id).is_some_and(|p| {
                p.active && p.matched.saturating_add(self.limits.lag_entries_max) >= group.last_index
            })
    }

    fn healthy_majority(&self, number: u32, group: &GroupSeen, voters: &BTreeSet<u64>) -> bool {
        let healthy = voters.iter().filter(|id| self.caught_up(number, group, **id)).count();
        healthy * 2 > voters.len()
    }
}

fn find(record: &PartitionRecord, replica_id: u64) -> Option<&ReplicaRecord> {
    record.replicas.iter().find(|r| r.replica_id == replica_id)
}

fn role(record: &PartitionRecord, replica_id: u64) -> Option<ReplicaRole> {
    find(record, replica_id).map(|r| r.role())
}
