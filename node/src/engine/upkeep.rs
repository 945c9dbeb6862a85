//! What the shard does now and then: says how far logs may be cut (`carillon_consensus::cut_index`).
use super::cell::Cell;
use super::maintenance::MaintenanceMessage;
use super::shard::Shard;
use carillon_consensus::cut_index;
use carillon_proto::internal::TruncateHint;

/// Ticks between hints on how far logs may be cut.
pub(super) const HINT_TICKS: u64 = 50;

impl Shard {
    pub(super) fn send_hints(&mut self) {
        let slack = self.slack;
        let hint = |(group, cell): (&u32, &Cell)| {
            Some(TruncateHint { group: *group, index: cut_index(&cell.group, &cell.log_marks, slack)? })
        };
        let hints: Vec<TruncateHint> = self.cells.iter().filter_map(hint).collect();
        self.pass_hints(&hints);
        if !hints.is_empty() {
            self.peers.send_hints(&hints);
        }
    }

    /// Late or lost hints do no harm, so a full queue drops them.
    pub(super) fn pass_hints(&self, hints: &[TruncateHint]) {
        for hint in hints.iter().filter(|hint| self.cells.contains_key(&hint.group)) {
            drop(
                self.maintenance.try_send(MaintenanceMessage::Safe { group: hint.group, index: hint.index }),
            );
        }
    }
}
