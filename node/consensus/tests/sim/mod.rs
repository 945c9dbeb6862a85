//! Three nodes with several groups in one thread and virtual time: random delay, order, loss and duplication, a disk
//! that writes slowly and forgets what was not synced, crashes, partitions. Everything comes from one seed.
#![allow(dead_code)] // each test file uses a part

mod faults;
pub mod oracle;
pub mod rng;
mod run;
mod snapshot;

use carillon_consensus::wire;
use carillon_consensus::{
    CommittedEntry, Group, GroupConfig, LogStore as _, MemLog, Outputs, PersistTask, ProposeError,
    SnapshotFetch, SnapshotMark, bootstrap_write,
};
use carillon_proto::internal::RaftMessage;
pub use faults::Faults;
use oracle::Oracle;
use prost::Message as _;
use raft::eraftpb::MessageType;
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub const TICK_MS: u64 = 100;
pub const VOTERS: [u64; 3] = [1, 2, 3];

#[derive(Debug)]
enum Event {
    Tick {
        node: usize,
    },
    Deliver {
        from: usize,
        to: usize,
        group: u32,
        message: Box<RaftMessage>,
    },
    DiskDone {
        node: usize,
        epoch: u64,
    },
    Apply {
        node: usize,
        epoch: u64,
        group: u32,
    },
    /// The files of a snapshot are made.
    Exported {
        node: usize,
        epoch: u64,
        group: u32,
    },
    /// They are fetched, or fetching them failed.
    Fetched {
        node: usize,
        epoch: u64,
        group: u32,
        fetch: SnapshotFetch,
    },
    Client,
    Trouble,
    Restart {
        node: usize,
    },
    Heal,
}

#[derive(Default)]
pub struct Replica {
    pub group: Option<Group>,
    to_apply: VecDeque<CommittedEntry>,
    /// (term, data hash) of entry i + 1.
    pub applied: Vec<(u64, u64)>,
    /// What of it survives a crash.
    flushed: usize,
    /// The state family that `applied` is, and complete ones that are not live (yet).
    generation: u64,
    imported: BTreeMap<u64, Vec<(u64, u64)>>,
    /// A snapshot that is durable in the log; the applier has to switch to it.
    installed: Option<SnapshotMark>,
    /// What this replica offers, and whether it is making one.
    offered: Option<(u64, Vec<(u64, u64)>)>,
    exporting: bool,
}

pub struct Node {
    pub id: u64,
    pub log: Arc<MemLog>,
    pub up: bool,
    epoch: u64,
    pub replicas: BTreeMap<u32, Replica>,
    disk_queue: Vec<PersistTask>,
    disk_busy: Vec<PersistTask>,
}

/// What happened, to see that the rare things did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Stats {
    pub events: u64,
    pub acked: u64,
    pub applied: u64,
    pub terms: u64,
    pub crashes: u64,
    pub lost_writes: u64,
    pub applied_beyond_commit: u64,
    pub reads: u64,
    pub transfers: u64,
    pub dropped: u64,
    pub rejections: u64,
    pub overwrites: u64,
    pub cuts: u64,
    pub exports: u64,
    pub failed_fetches: u64,
    pub installs: u64,
    /// Installs that a crash interrupted, found at restart in the log.
    pub installs_at_restart: u64,
}

pub struct Sim {
    pub rng: Rng,
    pub now_ms: u64,
    pub nodes: Vec<Node>,
    pub faults: Faults,
    pub groups: u32,
    pub oracle: Oracle,
    pub stats: Stats,
    pub trace: u64,
    /// Links (from, to) that lose everything.
    pub cuts: BTreeSet<(usize, usize)>,
    pub clients: bool,
    pub trouble: bool,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    seed: u64,
    next_id: u64,
    reads: BTreeMap<u64, (u32, u64)>,
}

impl Sim {
    pub fn new(seed: u64, groups: u32, faults: Faults) -> Self {
        let mut sim = Self {
            rng: Rng::new(seed),
            now_ms: 0,
            nodes: Vec::new(),
            faults,
            groups,
            oracle: Oracle::default(),
            stats: Stats::default(),
            trace: seed,
            cuts: BTreeSet::new(),
            clients: true,
            trouble: true,
            events: BTreeMap::new(),
            sequence: 0,
            seed,
            next_id: 1,
            reads: BTreeMap::new(),
        };
        for (n, id) in VOTERS.into_iter().enumerate() {
            let log = Arc::new(MemLog::new());
            let writes: Vec<_> = (0..groups).map(|g| bootstrap_write(g, &VOTERS)).collect();
            log.write(&writes, true).expect("memory does not fail");
            let node = Node {
                id,
                log,
                up: false,
                epoch: 0,
                replicas: BTreeMap::new(),
                disk_queue: Vec::new(),
                disk_busy: Vec::new(),
            };
            sim.nodes.push(node);
            for group in 0..groups {
                sim.nodes[n].replicas.insert(group, Replica::default());
            }
            sim.restart(n);
            let phase = sim.rng.below(TICK_MS);
            sim.at(phase, Event::Tick { node: n });
        }
        sim.at(500, Event::Client);
        sim.at(1000, Event::Trouble);
        sim
    }

    fn at(&mut self, delay_ms: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now_ms + delay_ms, self.sequence), event);
    }

    pub fn group(&mut self, node: usize, group: u32) -> &mut Group {
        self.replica(node, group).group.as_mut().expect("the node is up")
    }

    pub fn replica(&mut self, node: usize, group: u32) -> &mut Replica {
        self.nodes[node].replicas.get_mut(&group).expect("the group exists")
    }

    /// Opens what the disk and the state hold.
    pub fn restart(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.nodes[node].up = true;
        for group in 0..self.groups {
            let log = self.nodes[node].log.clone();
            let state = log.load(group).unwrap().unwrap();
            self.choose_family(node, group, state.generation);
            let applied = self.replica(node, group).applied.len() as u64;
            self.stats.applied_beyond_commit += u64::from(applied > state.hard_state.commit);
            let config = GroupConfig {
                max_size_per_msg: 600,
                max_inflight_msgs: 8,
                committed_bytes_max: 500,
                unapplied_bytes_max: 2000,
                cache_bytes_max: 1500,
                uncommitted_bytes_max: 6000,
                snapshot_ticks_max: 30,
                skip_commit_broadcast: self.seed.is_multiple_of(2),
                ..GroupConfig::new(group, self.nodes[node].id, self.seed)
            };
            match Group::open(config, log, applied) {
                Ok(opened) => self.replica(node, group).group = Some(opened),
                Err(error) => self.oracle.fail(format!("node {node} group {group}: {error}")),
            }
            self.pump(node, group);
        }
    }

    /// Loses everything that is not durable, but for a random prefix of the unsynced writes.
    pub fn crash(&mut self, node: usize) {
        let keep = self.rng.below(self.nodes[node].log.unsynced() as u64 + 1) as usize;
        let node = &mut self.nodes[node];
        self.stats.crashes += 1;
        self.stats.lost_writes += (node.log.unsynced() - keep + node.disk_queue.len()) as u64;
        node.log.crash(keep);
        node.up = false;
        node.epoch += 1;
        node.disk_queue.clear();
        node.disk_busy.clear();
        for replica in node.replicas.values_mut() {
            replica.group = None;
            replica.to_apply.clear();
            replica.applied.truncate(replica.flushed);
            (replica.installed, replica.offered, replica.exporting) = (None, None, false);
        }
    }

    /// Carries out what a group asks for.
    pub fn pump(&mut self, node: usize, group: u32) {
        let mut out = Outputs::default();
        let Some(replica) = self.replica(node, group).group.as_mut() else { return };
        loop {
            match replica.poll(&mut out) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return self.oracle.fail(format!("node {node} group {group}: {error}")),
            }
        }
        if let Some(role) = out.role {
            let id = self.nodes[node].id;
            self.note(&[9, id, u64::from(group), role.term, role.leader]);
            self.oracle.role(group, id, role);
        }
        for message in out.send {
            self.send(node, group, message);
        }
        for read in out.reads {
            if let Some((group, at_least)) = self.reads.remove(&read.ctx) {
                self.stats.reads += 1;
                self.oracle.read(group, read.index, at_least);
            }
        }
        for mut task in out.persist {
            if self.faults.ack_before_persist {
                for message in std::mem::take(&mut task.after) {
                    self.send(node, group, message);
                }
            }
            self.nodes[node].disk_queue.push(task);
        }
        self.kick_disk(node);
        if let Some(replica) = out.snapshot_wanted {
            self.want(node, group, replica);
        }
        if let Some(fetch) = out.snapshot_fetch {
            self.fetch(node, group, fetch);
        }
        if out.installed.is_some() || !out.committed.is_empty() {
            let replica = self.replica(node, group);
            if out.installed.is_some() {
                // What it would still apply is in the snapshot.
                replica.to_apply.clear();
                replica.installed = out.installed;
            }
            replica.to_apply.extend(out.committed);
            let delay = self.rng.below(self.faults.apply_ms_max + 1);
            let epoch = self.nodes[node].epoch;
            self.at(delay, Event::Apply { node, epoch, group });
        }
    }

    /// One write at a time; it takes whatever waits, as the log writer does.
    fn kick_disk(&mut self, node: usize) {
        let busy = &mut self.nodes[node];
        if !busy.disk_busy.is_empty() || busy.disk_queue.is_empty() {
            return;
        }
        busy.disk_busy = std::mem::take(&mut busy.disk_queue);
        for task in &busy.disk_busy {
            let first = task.write.entries.first().map(|e| e.index);
            let last = busy.log.load(task.group).unwrap().unwrap().last_index;
            self.stats.overwrites += u64::from(first.is_some_and(|first| first <= last));
            if let Err(error) = busy.log.write(std::slice::from_ref(&task.write), false) {
                self.oracle.fail(format!("node {node}: {error}"));
            }
        }
        let delay = match self.rng.chance(5) {
            true => self.faults.disk_ms_max * 4,
            false => self.faults.disk_ms_max,
        };
        let (delay, epoch) = (self.rng.below(delay + 1), self.nodes[node].epoch);
        self.at(delay, Event::DiskDone { node, epoch });
    }

    fn disk_done(&mut self, node: usize) {
        let tasks = std::mem::take(&mut self.nodes[node].disk_busy);
        if tasks.iter().any(|task| task.must_sync) {
            self.nodes[node].log.sync();
        }
        let groups: BTreeSet<u32> = tasks.iter().map(|task| task.group).collect();
        for task in tasks {
            for message in task.after {
                self.send(node, task.group, message);
            }
            self.group(node, task.group).persisted(task.number);
        }
        for group in groups {
            self.pump(node, group);
        }
        self.kick_disk(node);
    }

    fn apply(&mut self, node: usize, group: u32) {
        self.switch(node, group);
        let entries: Vec<_> = self.replica(node, group).to_apply.drain(..).collect();
        let Some(last) = entries.last().map(|e| e.index) else { return };
        let id = self.nodes[node].id;
        for entry in entries {
            self.stats.applied += 1;
            let hash = rng::hash(&entry.data);
            let replica = self.replica(node, group);
            replica.applied.push((entry.term, hash));
            let length = replica.applied.len() as u64;
            if length != entry.index {
                self.oracle.fail(format!("node {node} group {group}: entry {} after {length}", entry.index));
            }
            self.stats.acked += u64::from(self.oracle.applied(group, id, &entry, hash));
        }
        if self.rng.chance(50) {
            let durable = self.nodes[node].log.durable_term(group, last);
            let replica = self.replica(node, group);
            replica.flushed = replica.applied.len();
            if durable != replica.applied.last().map(|a| a.0) {
                self.oracle
                    .fail(format!("node {node} group {group}: {last} applied but its log is not durable"));
            }
        }
        self.group(node, group).applied(last);
        self.pump(node, group);
    }

    fn send(&mut self, from: usize, group: u32, message: RaftMessage) {
        if !self.faults.ack_before_persist {
            let log = &self.nodes[from].log;
            self.oracle.promise(group, &message, log);
        }
        let to = (message.to - 1) as usize;
        let mut drop = self.faults.drop;
        let mut duplicate = self.faults.duplicate;
        let mut delay_max = self.faults.delay_ms_max;
        if message.reject && message.msg_type == MessageType::MsgAppendResponse as i32 {
            self.stats.rejections += 1;
            if self.faults.bad_rejections {
                (drop, duplicate, delay_max) = (30, 60, delay_max + 500);
            }
        }
        if self.rng.chance(drop) || self.cuts.contains(&(from, to)) {
            self.stats.dropped += 1;
            if self.rng.chance(20) && self.nodes[from].up {
                self.group(from, group).report_unreachable(message.to);
            }
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(duplicate));
        for _ in 0..copies {
            let delay = 1 + self.rng.below(delay_max);
            let message = Box::new(message.clone());
            self.at(delay, Event::Deliver { from, to, group, message });
        }
    }

    fn deliver(&mut self, to: usize, group: u32, mut message: RaftMessage) {
        let m = &message;
        self.note(&[u64::from(group), m.msg_type as u64, m.to, m.from, m.term, m.index, m.commit]);
        if self.sequence.is_multiple_of(16) {
            let bytes = message.encode_to_vec();
            message = RaftMessage::decode(bytes.as_slice()).expect("prost reads what it wrote");
        }
        if !self.nodes[to].up {
            return;
        }
        if let Err(error) = self.group(to, group).step(message) {
            self.oracle.fail(format!("node {to} group {group}: {error}"));
        }
        self.pump(to, group);
    }

    /// Proposes one or more entries with an id of their own.
    pub fn propose(&mut self, node: usize, group: u32, count: u64) -> Result<(), ProposeError> {
        let entries: Vec<_> = (0..count)
            .map(|n| {
                let mut data = vec![0; 8 + self.rng.below(120) as usize];
                data[..8].copy_from_slice(&(self.next_id + n).to_be_bytes());
                data
            })
            .collect();
        let hashes: Vec<_> = entries.iter().map(|e| rng::hash(e)).collect();
        let proposal = self.group(node, group).propose_many(entries.into_iter().map(Into::into).collect())?;
        self.next_id += count;
        let id = self.nodes[node].id;
        self.oracle.proposed(group, id, proposal, &hashes);
        self.pump(node, group);
        Ok(())
    }

    pub fn read(&mut self, node: usize, group: u32) -> Result<(), ProposeError> {
        let ctx = self.next_id;
        self.next_id += 1;
        self.group(node, group).read_index(ctx)?;
        self.reads.insert(ctx, (group, self.oracle.acked_index(group)));
        self.pump(node, group);
        Ok(())
    }

    fn note(&mut self, values: &[u64]) {
        self.trace = rng::mix(self.trace ^ self.now_ms);
        for value in values {
            self.trace = rng::mix(self.trace ^ value);
        }
    }
}

/// Type of a message, by name.
pub fn kind(message: &RaftMessage) -> MessageType {
    wire::message_from_wire(message.clone()).expect("a group sends only what peers accept").msg_type
}
