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
use crossbeam_channel::{Receiver, Sender};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of entries after which no more tasks are taken into one write: the fsync of a larger one takes too long.
const WRITE_BYTES_MAX: usize = 512 * 1024;

pub(super) struct LogWriter {
    pub log: Arc<dyn LogStore>,
    pub tasks: Receiver<Vec<PersistTask>>,
    pub completions: Sender<Completion>,
    pub peers: PeerSender,
}

impl LogWriter {
    /// Runs until the shard is gone.
    pub fn run(self) {
        let mut waiting: Vec<PersistTask> = Vec::new();
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

    fn write(&self, tasks: Vec<PersistTask>, bytes: usize) {
        let sync = tasks.iter().any(|task| task.must_sync);
        let mut done = Vec::with_capacity(tasks.len());
        let mut after: BTreeMap<u64, Vec<GroupMessage>> = BTreeMap::new();
        let mut writes: Vec<GroupWrite> = Vec::with_capacity(tasks.len());
        for task in tasks {
            done.push((task.group, task.number));
            for message in task.after {
                let message = GroupMessage { group: task.group, message: Some(message) };
                after.entry(message.message.as_ref().map_or(0, |m| m.to)).or_default().push(message);
            }
            let write = task.write;
            if !write.entries.is_empty() || write.hard_state.is_some() || write.conf.is_some() {
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
        // A receiver that is gone means that the node is stopping.
        drop(self.completions.send(Completion::Persisted(done)));
        if !after.is_empty() {
            failpoints::hit("log::before_replies");
            for (node, messages) in after {
                self.peers.send(node, messages);
            }
            failpoints::hit("log::after_replies");
        }
    }

    fn persist(&self, writes: &[GroupWrite], sync: bool) -> Result<(), LogError> {
        let conf = writes.iter().any(|write| write.conf.is_some());
        failpoints::hit("log::before_sync");
        if conf {
            failpoints::hit("log::before_conf");
        }
        if failpoints::fails("log::sync_error") {
            return Err(LogError::Io("fail point log::sync_error".to_owned()));
        }
        self.log.write(writes, sync)?;
        if conf {
            failpoints::hit("log::after_conf");
        }
        failpoints::hit("log::after_sync");
        Ok(())
    }
}

fn task_bytes(task: &PersistTask) -> usize {
    task.write.entries.iter().map(|entry| entry.data.len() + 32).sum()
}
