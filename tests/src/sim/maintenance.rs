//! The maintenance of a node, as the simulator runs it: a mirror of `node/src/engine/maintenance.rs` and `scrub.rs`. Flushes, cuts
//! logs below what is durable, and reads what is stored.
use super::plant::Plant;
use super::world::{Event, World};
use carillon_consensus::LogStore as _;
use carillon_core::applied_record;

/// Entries kept below the cut of a log.
const SLACK_ENTRIES: u64 = 8;

impl World {
    /// Flushes some replicas and cuts logs below what is durable here and present on every replica.
    pub fn flush(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        let pause = 1 + self.rng.disk.below(self.plan.rates.flush_ms_max);
        self.at(pause, Event::Flush { node, epoch });
        self.scrub(node);
        for group in self.stored(node) {
            // What is flushed can be cut from the log, so a disk that is nearly full flushes more.
            if self.rng.disk.chance(600) || self.nodes[node].gate.near_full() {
                let batches = self.nodes[node].stores[&group].pending();
                let delay = 1 + self.rng.disk.below(200 * self.nodes[node].slow.min(10));
                self.at(delay, Event::FlushDone { node, epoch, group, batches });
            }
        }
    }

    fn stored(&self, node: usize) -> Vec<u32> {
        self.nodes[node].stores.keys().copied().collect()
    }

    /// Reads everything that is stored, now and then: what rotted is found also where apply does not look.
    fn scrub(&mut self, node: usize) {
        if !self.calm && !self.rng.disk.chance(100) {
            return;
        }
        for group in self.stored(node) {
            if !self.nodes[node].cells.contains_key(&group) {
                continue;
            }
            if self.nodes[node].stores[&group].is_rotten() {
                self.block(node, group, "scrub: block checksum mismatch".to_owned());
            } else if self.nodes[node].disk.is_rotten_in(group) && !self.planted(Plant::LogRotIgnored) {
                self.trace.count("log_rot_found_by_scrub");
                self.block(node, group, "scrub: an entry of the log is damaged".to_owned());
            }
        }
    }

    /// `batches` were in memory when the flush began; a crash in between has changed the epoch.
    pub fn flush_done(&mut self, node: usize, group: u32, batches: usize) {
        // The replica may have left meanwhile.
        let Some(store) = self.nodes[node].stores.get_mut(&group) else { return };
        let before = store.pending();
        if self.plan.plant != Some(Plant::CutAheadOfFlush) {
            store.flush(batches.min(before));
        }
        let durable = match self.plan.plant {
            Some(Plant::CutAheadOfFlush) => applied_record(store).map_or(0, |record| record.index),
            _ => store.durable_applied(),
        };
        let safe = self.nodes[node].safe.get(&group).copied().unwrap_or(0);
        let index = safe.min(durable).saturating_sub(SLACK_ENTRIES);
        let at = &mut self.nodes[node];
        let Some(cell) = at.cells.get_mut(&group) else { return };
        if cell.group.is_installing() || index < cell.group.first_index() + SLACK_ENTRIES {
            return;
        }
        let Some(term) = cell.group.term_at(index) else { return };
        if at.disk.truncate(group, index, term).is_err() {
            return;
        }
        cell.group.log_truncated(index, term);
        let id = at.id;
        self.trace.count("log_cut");
        self.note(&[14, id, u64::from(group), index], || format!("cut    n{id} g{group} up to {index}"));
    }
}
