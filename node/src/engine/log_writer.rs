//! The log writer thread: the only one that writes the raft log. It takes whatever arrived during the last fsync and
//! makes one atomic, synced write of it, for all groups together.
//!
//! Any error stops the process: pages that failed to sync may be lost silently, so nothing may be acknowledged or
//! tried again after one.
use super::shard::Completion;
use super::transport::PeerSender;
use crate::failpoints;
use carillon_consensus::{GroupWrite, LogError, LogStore, PersistTask};
use carillon_proto::internal::GroupMessage;
use carillon_proto::replica::node_of;
use crossbeam_channel::{Receiver, Sender};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What the shard has to write for one group.
pub(super) enum LogTask {
    Raft(PersistTask),
    /// A write of the shard's own, and what it is to be told when it is on disk.
    Own {
        write: GroupWrite,
        then: Written,
    },
}

/// A write of the shard's own.
#[derive(Debug, Clone, Copy)]
pub enum Written {
    /// The membership changed at this entry.
    Members {
        index: u64,
    },
    Created {
        replica_id: u64,
    },
    Removed,
}

/// Bytes of entries after which no more tasks are taken into one write: the fsync of a larger one takes too long.
const WRITE_BYTES_MAX: usize = 512 * 1024;

pub(super) struct LogWriter {
    pub log: Arc<dyn LogStore>,
    pub tasks: Receiver<Vec<LogTask>>,
    pub completions: Sender<Completion>,
    pub peers: PeerSender,
}

impl LogWriter {
    /// Runs until the shard is gone.
    pub fn run(self) {
        let mut waiting: Vec<LogTask> = Vec::new();
        while let Ok(tasks) = self.tasks.recv() {
            waiting.extend(tasks);
            let mut bytes: usize = waiting.iter().map(task_bytes).sum();
            while bytes < WRITE_BYTES_MAX {
                let Ok(tasks) = self.tasks.try_recv() else { break };
                bytes += tasks.iter().map(task_bytes).sum::<usize>();
                waiting.extend(tasks);
            }
            self.write(std::mem::take(&mut waiting), bytes);
        }
    }

    fn write(&self, tasks: Vec<LogTask>, bytes: usize) {
        let sync = tasks.iter().any(LogTask::must_sync);
        let mut own = Vec::new();
        let mut done = Vec::with_capacity(tasks.len());
        let mut after: BTreeMap<u64, Vec<GroupMessage>> = BTreeMap::new();
        let mut writes: Vec<GroupWrite> = Vec::with_capacity(tasks.len());
        for task in tasks {
            let task = match task {
                LogTask::Raft(task) => task,
                LogTask::Own { write, then } => {
                    own.push((write.group, then));
                    writes.push(write);
                    continue;
                }
            };
            done.push((task.group, task.number));
            for message in task.after {
                let message = GroupMessage { group: task.group, message: Some(message) };
                after.entry(message.message.as_ref().map_or(0, |m| node_of(m.to))).or_default().push(message);
            }
            let write = task.write;
            if !write.is_empty() {
                writes.push(write);
            }
        }
        if !writes.is_empty() {
            let start = Instant::now();
            if let Err(error) = self.persist(&writes, sync) {
                tracing::error!(%error, "raft log write failed; stopping so that nothing unsynced is acknowledged");
                std::process::abort();
            }
            if sync {
                metrics::histogram!("carillon_log_sync_seconds").record(start.elapsed().as_secs_f64());
                metrics::histogram!("carillon_log_write_bytes").record(bytes as f64);
            }
        }
        // Leaders wait for these; the own shard, which they would otherwise share a core with first, does not.
        if !after.is_empty() {
            failpoints::hit("log::before_replies");
            for (node, messages) in after {
                self.peers.send(node, messages);
            }
            failpoints::hit("log::after_replies");
        }
        // A receiver that is gone means that the node is stopping.
        drop(self.completions.send(Completion::Persisted(done)));
        for (group, written) in own {
            drop(self.completions.send(Completion::Written { group, written }));
        }
    }

    fn persist(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        failpoints::hit("log::before_sync");
        let special = || SPECIAL.iter().filter(move |(is, ..)| writes.iter().any(is));
        special().for_each(|(_, before, _)| failpoints::hit(before));
        if failpoints::fails("log::sync_error") {
            return Err(LogError::Io("fail point log::sync_error".to_owned()));
        }
        self.log.write(writes, sync)?;
        special().for_each(|(_, _, after)| failpoints::hit(after));
        failpoints::hit("log::after_sync");
        Ok(())
    }
}

/// Which write it is, and the fail points before and after it.
type Special = (fn(&GroupWrite) -> bool, &'static str, &'static str);

/// Rare parts of a batch.
static SPECIAL: [Special; 4] = [
    (is_conf, "log::before_conf", "log::after_conf"),
    (|write| write.snapshot.is_some(), "log::before_install", "log::after_install"),
    (|write| write.replica_id.is_some(), "replica::before_create", "replica::after_create"),
    (|write| write.remove, "replica::before_remove", "replica::after_remove"),
];

/// A change of the membership by itself: those that come with a snapshot or a new replica have points of their own.
fn is_conf(write: &GroupWrite) -> bool {
    write.conf.is_some() && write.snapshot.is_none() && write.replica_id.is_none()
}

impl LogTask {
    fn must_sync(&self) -> bool {
        match self {
            Self::Raft(task) => task.must_sync,
            Self::Own { .. } => true,
        }
    }
}

fn task_bytes(task: &LogTask) -> usize {
    let LogTask::Raft(task) = task else { return 0 };
    task.write.entries.iter().map(|entry| entry.data.len() + 32).sum()
}
