//! Backup of a running cluster, as the simulator runs it: a mirror of `node/src/edge/backup.rs` and of what `carillonctl backup create` does.
//! Each partition's leader confirms with a majority that it leads, then its tables are copied; practices and carriers come last.
//!
//! I1: whatever was acknowledged before a backup began is in it.
use super::node::Asker;
use super::plant::Plant;
use super::world::{Event, World};
use carillon_core::{MemTables, ReadTables as _, applied_record, keys};
use carillon_proto::MessageId;
use carillon_proto::internal::MetaBackup;
use std::collections::{BTreeMap, BTreeSet};

const EVERY_MS: u64 = 300;
/// A backup that is not done by then is given up.
const TRIES_MAX: u32 = 60;

/// What was copied.
#[derive(Debug, Clone)]
pub struct Backup {
    pub no: u64,
    /// Acknowledged when it began.
    acked: BTreeSet<MessageId>,
    pub tables: BTreeMap<u32, MemTables>,
    pub meta: MetaBackup,
    /// The leader of the meta group was asked for it.
    has_meta: bool,
    tries: u32,
}

impl Backup {
    /// 16 bytes.
    pub fn id(&self) -> Vec<u8> {
        [self.no.to_be_bytes(), *b"a backup"].concat()
    }

    /// The latest time that is known from it.
    pub fn now_ms(&self) -> u64 {
        let clocks = self.tables.values().map(|tables| applied_record(tables).map_or(0, |r| r.now_ms));
        clocks.max().unwrap_or(0)
    }

    pub fn holds(&self, id: &MessageId, partitions: u32) -> Option<&MemTables> {
        let tables = self.tables.get(&id.slot().partition(partitions))?;
        tables.get(&keys::status(id)).ok().flatten().map(|_| tables)
    }
}

/// Backups of the run.
#[derive(Debug, Default)]
pub struct Backups {
    next_no: u64,
    under_way: Option<Backup>,
    pub newest: Option<Backup>,
}

impl Backups {
    /// The cluster that they were being made of is gone.
    pub fn break_off(&mut self) {
        self.under_way = None;
    }
}

impl World {
    pub fn begin_backup(&mut self) {
        let restoring = self.newest_view().is_none_or(|view| view.is_restoring());
        if !self.operator.is_done() || restoring || self.backups.under_way.is_some() {
            return;
        }
        let (oracle, backups) = (&self.oracle, &mut self.backups);
        backups.next_no += 1;
        let no = backups.next_no;
        let acked = oracle.acked.keys().copied().collect();
        let (tables, meta) = (BTreeMap::new(), MetaBackup::default());
        backups.under_way = Some(Backup { no, acked, tables, meta, has_meta: false, tries: 0 });
        self.at(1, Event::Backup { no });
    }

    /// Asks for what is missing.
    pub fn go_on_with_backup(&mut self, no: u64) {
        let Some(backup) = self.backups.under_way.as_mut().filter(|backup| backup.no == no) else { return };
        backup.tries += 1;
        let tries = backup.tries;
        if tries > TRIES_MAX {
            return self.backups.break_off();
        }
        let mut missing: Vec<u32> =
            (1..=self.plan.partitions).filter(|p| !backup.tables.contains_key(p)).collect();
        // The meta group comes after the partitions, so it has every practice that they know.
        match (missing.is_empty(), backup.has_meta) {
            (true, true) => return self.finish_backup(),
            (true, false) => missing.push(0),
            (false, _) => {}
        }
        for partition in missing {
            if self.planted(Plant::BackupUnconfirmed) && partition > 0 {
                let any = (0..self.nodes.len()).find(|n| self.nodes[*n].cells.contains_key(&partition));
                if let Some(node) = any {
                    self.copy_partition(node, partition, no);
                }
                continue;
            }
            let leader = (0..self.nodes.len()).find(|n| self.nodes[*n].up && self.nodes[*n].leads(partition));
            let Some(node) = leader else { continue };
            let Some(cell) = self.nodes[node].cells.get_mut(&partition) else { continue };
            let ctx = if partition == 0 { 2 } else { 1 } << 62 | no << 32 | u64::from(tries);
            if cell.group.read_index(ctx).is_ok() {
                cell.reads_asked.push((ctx, Asker::Backup { no }));
                self.mark(node, partition);
            }
        }
        self.at(EVERY_MS, Event::Backup { no });
    }

    /// The node is confirmed to lead, and has applied what was committed when it was asked.
    pub fn copy_partition(&mut self, node: usize, partition: u32, no: u64) {
        if partition == 0 {
            let meta = self.nodes[node].meta.backup();
            if let Some(backup) = self.backups.under_way.as_mut().filter(|backup| backup.no == no) {
                (backup.meta, backup.has_meta) =
                    (MetaBackup { data_keys: Vec::new(), hours: None, ..meta }, true);
            }
            return;
        }
        let Some(store) = self.nodes[node].stores.get(&partition).filter(|store| !store.is_rotten()) else {
            return;
        };
        let Some(backup) = self.backups.under_way.as_mut().filter(|backup| backup.no == no) else { return };
        backup.tables.entry(partition).or_insert_with(|| store.tables().clone());
    }

    fn finish_backup(&mut self) {
        let Some(backup) = self.backups.under_way.take() else { return };
        self.trace.count("backup_made");
        let (no, count) = (backup.no, backup.acked.len() as u64);
        self.note(&[110, no, count], || {
            format!("backup #{no}: {count} messages were acknowledged before it")
        });
        let missed = backup.acked.iter().find(|id| {
            let retired = self.oracle.messages.get(id).is_some_and(|seen| seen.retired);
            !retired && backup.holds(id, self.plan.partitions).is_none()
        });
        if let Some(id) = missed {
            self.oracle.fail(format!("I1 message {id} was acknowledged before a backup, which has it not"));
        }
        self.backups.newest = Some(backup);
    }
}
