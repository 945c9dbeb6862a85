//! The log writer of a node, as the simulator runs it: a mirror of `node/src/engine/log_writer.rs`. One write at a time; it takes
//! whatever waits.
use super::members::LogTask;
use super::plant::Plant;
use super::world::{Event, World};
use carillon_consensus::{GroupWrite, LogStore as _};
use std::collections::BTreeSet;

/// The slowest write.
const WRITE_MS_MAX: u64 = 6_000;

impl World {
    pub fn kick_disk(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        if !at.busy.is_empty() || at.queue.is_empty() {
            return;
        }
        at.busy = std::mem::take(&mut at.queue);
        let writes: Vec<GroupWrite> = at.busy.iter().filter_map(written).collect();
        for write in &writes {
            let last = at.disk.load(write.group).ok().flatten().map_or(0, |state| state.last_index);
            if write.entries.first().is_some_and(|entry| entry.index <= last) {
                self.trace.count("entries_overwritten");
            }
        }
        if let Err(error) = self.write(node, writes) {
            self.trace.count("disk_full_halt");
            return self.halt(node, &error, 1_000);
        }
        let high = if self.calm { 3 } else { self.plan.rates.disk_ms_max * self.nodes[node].slow };
        let high = if self.rng.disk.chance(30) { high * 4 } else { high };
        let delay = 1 + self.rng.disk.below(high.min(WRITE_MS_MAX));
        let epoch = self.nodes[node].epoch;
        self.at(delay, Event::DiskDone { node, epoch });
    }

    fn write(&mut self, node: usize, mut writes: Vec<GroupWrite>) -> Result<(), String> {
        if self.planted(Plant::VoteNotPersisted) {
            for hard_state in writes.iter_mut().filter_map(|write| write.hard_state.as_mut()) {
                hard_state.vote = 0;
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        let disk = &self.nodes[node].disk;
        if self.planted(Plant::HardStateApart) {
            let states = writes.iter_mut().filter(|write| write.replica_id.is_none() && !write.remove);
            let states = states.map(|write| GroupWrite {
                group: write.group,
                hard_state: write.hard_state.take(),
                ..GroupWrite::default()
            });
            let states: Vec<GroupWrite> = states.collect();
            disk.write(&states, false).map_err(|error| error.to_string())?;
        }
        disk.write(&writes, false).map_err(|error| error.to_string())
    }

    /// The write under way is on disk, with everything before it; or the sync failed.
    pub fn disk_done(&mut self, node: usize) {
        let tasks = std::mem::take(&mut self.nodes[node].busy);
        let sync = tasks.iter().any(must_sync);
        let id = self.nodes[node].id;
        self.note(&[3, id, tasks.len() as u64, sync.into()], || {
            format!("disk   n{id} {} writes{}", tasks.len(), if sync { ", synced" } else { "" })
        });
        let failed = sync.then(|| self.nodes[node].sync_fails.take()).flatten();
        match failed {
            Some(down_ms) if !self.planted(Plant::IgnoreSyncError) => {
                self.trace.count("sync_error_halt");
                return self.halt(node, "sync failed", down_ms);
            }
            None if sync => self.nodes[node].disk.sync(),
            _ => {}
        }
        let mut groups = BTreeSet::new();
        for task in tasks {
            match task {
                LogTask::Raft(task) => {
                    groups.insert(task.group);
                    for message in task.after {
                        self.send_raft(node, task.group, message);
                    }
                    if let Some(cell) = self.nodes[node].cells.get_mut(&task.group) {
                        cell.group.persisted(task.number);
                    }
                }
                LogTask::Own { write, then } => {
                    groups.insert(write.group);
                    self.written(node, write.group, then);
                }
            }
        }
        for group in groups {
            self.pump(node, group);
        }
        self.kick_disk(node);
    }

    /// The process stops itself, because going on would be wrong. What was written and not synced may be lost.
    fn halt(&mut self, node: usize, why: &str, down_ms: u64) {
        let id = self.nodes[node].id;
        self.note(&[4, id], || format!("halt   n{id} {why}"));
        self.crash(node, true);
        self.at(down_ms, Event::Restart { node });
    }
}

fn must_sync(task: &LogTask) -> bool {
    match task {
        LogTask::Raft(task) => task.must_sync,
        LogTask::Own { .. } => true,
    }
}

fn written(task: &LogTask) -> Option<GroupWrite> {
    let write = match task {
        LogTask::Raft(task) => &task.write,
        LogTask::Own { write, .. } => write,
    };
    (!write.is_empty()).then(|| write.clone())
}
