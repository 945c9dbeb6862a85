//! A few replicas of one group without time: messages arrive at once and in order, writes are done at once. A test may
//! isolate replicas, hold files back, and crash a replica at any of its steps (a write, an apply, an install).
#![allow(dead_code)] // each test file uses a part
use bytes::Bytes;
use carillon_consensus::{
    EntryKind, Group, GroupConfig, GroupWrite, LogStore as _, MemLog, Outputs, PersistTask, SnapshotFetch,
    SnapshotMark, bootstrap_write,
};
use carillon_proto::internal::RaftMessage;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub const GROUP: u32 = 4;

/// What a replica has applied: entry i + 1.
pub type History = Vec<(u64, Bytes)>;

pub struct Replica {
    pub log: Arc<MemLog>,
    pub group: Option<Group>,
    pub applied: History,
    pub flushed: usize,
    pub families: BTreeMap<u64, History>,
    pub generation: u64,
    pub offered: Option<(u64, History)>,
    /// Announced and not fetched, while `hold_files` is set.
    pub fetch: Option<SnapshotFetch>,
    pub installs: usize,
    pub fetches: usize,
    steps: usize,
    crash_at: Option<usize>,
}

#[derive(Default)]
pub struct Mini {
    pub replicas: BTreeMap<u64, Replica>,
    pub isolated: BTreeSet<u64>,
    pub hold_files: bool,
    /// Applied is flushed at once; otherwise only by `cut` and installs.
    pub flush: bool,
    pub crashes: usize,
    pub sent_snapshots: usize,
    queue: VecDeque<RaftMessage>,
}

impl Mini {
    pub fn new(voters: &[u64]) -> Self {
        let mut mini = Self::default();
        for id in voters {
            mini.create(*id, bootstrap_write(GROUP, voters));
        }
        mini
    }

    /// A replica on a disk of its own.
    pub fn create(&mut self, id: u64, write: GroupWrite) {
        let log = Arc::new(MemLog::new());
        log.write(&[write], true).unwrap();
        let replica = Replica {
            log,
            group: None,
            applied: Vec::new(),
            flushed: 0,
            families: BTreeMap::new(),
            generation: 0,
            offered: None,
            fetch: None,
            installs: 0,
            fetches: 0,
            steps: 0,
            crash_at: None,
        };
        self.replicas.insert(id, replica);
        self.start(id);
    }

    pub fn group(&mut self, id: u64) -> &mut Group {
        self.replicas.get_mut(&id).unwrap().group.as_mut().expect("it is up")
    }

    pub fn replica(&mut self, id: u64) -> &mut Replica {
        self.replicas.get_mut(&id).unwrap()
    }

    /// Opens what is on disk. A replica that finds itself removed stays down.
    pub fn start(&mut self, id: u64) {
        let replica = self.replicas.get_mut(&id).unwrap();
        if replica.group.is_some() {
            return;
        }
        let state = replica.log.load(GROUP).unwrap().unwrap();
        if state.generation != replica.generation {
            replica.applied = replica.families.remove(&state.generation).expect("the family is on disk");
            (replica.flushed, replica.generation) = (replica.applied.len(), state.generation);
        }
        let conf = &state.conf_state;
        let known = [&conf.voters, &conf.learners, &conf.voters_outgoing];
        if state.last_index > 0 && !known.iter().any(|list| list.contains(&id)) {
            return;
        }
        let config = GroupConfig { snapshot_ticks_max: 20, ..GroupConfig::new(GROUP, id, 7) };
        let applied = replica.applied.len() as u64;
        replica.group = Some(Group::open(config, replica.log.clone(), applied).unwrap());
    }

    pub fn crash_at(&mut self, id: u64, step: usize) {
        self.replica(id).crash_at = Some(step);
    }

    /// No more crashes.
    pub fn calm(&mut self) {
        self.replicas.values_mut().for_each(|replica| replica.crash_at = None);
    }

    pub fn crash(&mut self, id: u64) {
        self.crashes += 1;
        let replica = self.replica(id);
        replica.log.crash(0);
        (replica.group, replica.offered, replica.fetch, replica.crash_at) = (None, None, None, None);
        replica.applied.truncate(replica.flushed);
    }

    /// True: it crashed instead.
    fn step(&mut self, id: u64) -> bool {
        let replica = self.replica(id);
        replica.steps += 1;
        let crash = replica.crash_at.is_some_and(|at| replica.steps > at);
        if crash {
            self.crash(id);
        }
        crash
    }

    /// Delivers and carries out everything there is to do.
    pub fn settle(&mut self) {
        loop {
            let ids: Vec<u64> = self.replicas.keys().copied().collect();
            let mut progress = false;
            for id in ids {
                progress |= self.pump(id);
            }
            while let Some(message) = self.queue.pop_front() {
                progress = true;
                let cut = self.isolated.contains(&message.from) || self.isolated.contains(&message.to);
                let Some(to) = self.replicas.get_mut(&message.to).filter(|_| !cut) else { continue };
                if let Some(group) = &mut to.group {
                    // Refusals are part of the game: a replica that is not a member yet, or no longer.
                    drop(group.step(message));
                }
            }
            if !progress {
                return;
            }
        }
    }

    pub fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for replica in self.replicas.values_mut() {
                if let Some(group) = &mut replica.group {
                    group.tick();
                }
            }
            self.settle();
        }
    }

    fn pump(&mut self, id: u64) -> bool {
        let mut any = false;
        loop {
            let Some(group) = self.replica(id).group.as_mut() else { return any };
            let mut out = Outputs::default();
            if !group.poll(&mut out).unwrap() {
                return any;
            }
            any = true;
            self.send(out.send);
            for task in out.persist {
                if !self.persist(id, task) {
                    return true;
                }
            }
            if out.snapshot_wanted.is_some() {
                self.export(id);
            }
            if let Some(fetch) = out.snapshot_fetch {
                self.replica(id).fetch = Some(fetch);
                if !self.hold_files {
                    self.fetch(id);
                }
            }
            if let Some(mark) = out.installed
                && !self.install(id, mark)
            {
                return true;
            }
            for entry in out.committed {
                if !self.apply(id, entry.index, entry.term, entry.kind, entry.data) {
                    return true;
                }
            }
        }
    }

    fn send(&mut self, messages: Vec<RaftMessage>) {
        self.sent_snapshots += messages.iter().filter(|m| m.snapshot.is_some()).count();
        self.queue.extend(messages);
    }

    /// A write, then its messages; false: it crashed.
    fn persist(&mut self, id: u64, task: PersistTask) -> bool {
        let replica = self.replica(id);
        replica.log.write(&[task.write], false).unwrap();
        if self.step(id) {
            return false;
        }
        self.replica(id).log.sync();
        if self.step(id) {
            return false;
        }
        self.send(task.after);
        self.group(id).persisted(task.number);
        true
    }

    fn apply(&mut self, id: u64, index: u64, term: u64, kind: EntryKind, data: Bytes) -> bool {
        if kind == EntryKind::ConfChange {
            let write = self.group(id).apply_conf_change(index).unwrap();
            if self.step(id) {
                return false;
            }
            self.replica(id).log.write(&[write], true).unwrap();
            if self.step(id) {
                return false;
            }
        }
        let flush = self.flush;
        let replica = self.replica(id);
        assert_eq!(replica.applied.len() as u64 + 1, index, "replica {id} applies without gaps");
        replica.applied.push((term, data));
        if flush {
            replica.flushed = replica.applied.len();
        }
        if self.step(id) {
            return false;
        }
        self.group(id).applied(index);
        true
    }

    fn export(&mut self, id: u64) {
        let replica = self.replica(id);
        let (index, files) = (replica.applied.len() as u64, replica.applied.clone());
        let Some((term, _)) = files.last().cloned() else { return };
        replica.offered = Some((index, files));
        self.group(id).offer_snapshot(index, term, Bytes::from_static(b"manifest")).unwrap();
    }

    /// Fetches what was announced, if its sender has it.
    pub fn fetch(&mut self, id: u64) {
        let Some(fetch) = self.replica(id).fetch.take() else { return };
        let offered = self.replicas.get(&fetch.from).and_then(|from| from.offered.clone());
        let Some((_, files)) = offered.filter(|(index, _)| *index == fetch.index) else {
            return self.group(id).refuse_snapshot(fetch.index, fetch.term);
        };
        let replica = self.replica(id);
        replica.fetches += 1;
        let generation = replica.generation + 1 + replica.families.len() as u64;
        replica.families.insert(generation, files);
        if self.step(id) {
            return;
        }
        if !self.group(id).accept_snapshot(fetch.index, fetch.term, generation).unwrap() {
            self.replica(id).families.remove(&generation);
        }
    }

    fn install(&mut self, id: u64, mark: SnapshotMark) -> bool {
        if self.step(id) {
            return false;
        }
        let replica = self.replica(id);
        replica.applied = replica.families.remove(&mark.generation).expect("it was accepted");
        (replica.flushed, replica.generation) = (replica.applied.len(), mark.generation);
        replica.installs += 1;
        assert_eq!(replica.applied.len() as u64, mark.index);
        self.group(id).applied(mark.index);
        true
    }

    pub fn leader(&self) -> Option<u64> {
        let leads = |r: &Replica| r.group.as_ref().is_some_and(Group::leader_ready);
        let found = self.replicas.iter().filter(|(id, r)| leads(r) && !self.isolated.contains(*id));
        found.map(|(id, _)| *id).max_by_key(|id| self.replicas[id].group.as_ref().map(Group::term))
    }

    /// Ticks until there is a leader.
    pub fn elect(&mut self) -> u64 {
        for _ in 0..1000 {
            if let Some(leader) = self.leader() {
                return leader;
            }
            self.tick(1);
        }
        panic!("no leader");
    }

    pub fn propose(&mut self, count: usize) {
        let leader = self.elect();
        for n in 0..count {
            let data = format!("{}-{n}", self.replica(leader).applied.len());
            self.group(leader).propose(data.into()).unwrap();
            self.settle();
        }
        // Followers learn the last commit with a heartbeat.
        self.tick(3);
    }

    /// Cuts the log of a replica behind its applied index.
    pub fn cut(&mut self, id: u64) {
        let replica = self.replica(id);
        let (index, term) = (replica.applied.len() as u64, replica.applied.last().unwrap().0);
        replica.flushed = replica.applied.len();
        replica.log.truncate(GROUP, index, term).unwrap();
        self.group(id).log_truncated(index, term);
    }
}
