//! Reads that must be linearizable: confirmed with a quorum (ReadIndex), answered from what is applied here then. A mirror of the reads of
//! `node/src/engine/cell.rs` and `handle.rs`.
use super::client::Answer;
use super::engine::Refused;
use super::node::{Asker, Read};
use super::world::World;
use carillon_core::query;
use carillon_proto::public::MessageState;

impl World {
    pub fn ask_read(&mut self, node: usize, partition: u32, read: Read) {
        let Some(cell) = self.nodes[node].cells.get_mut(&partition) else {
            return self.reply(node, read.op, read.call_no, Answer::Refused(Refused::Busy));
        };
        let ctx = read.op << 16 | u64::from(read.call_no);
        match cell.group.read_index(ctx) {
            Ok(()) => cell.reads_asked.push((ctx, Asker::Client(read))),
            Err(_) => return self.reply(node, read.op, read.call_no, Answer::Refused(Refused::Busy)),
        }
        self.mark(node, partition);
    }

    /// Answers confirmed reads that are applied by now.
    pub fn answer_reads(&mut self, node: usize, group: u32) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        if cell.reads_confirmed.is_empty() {
            return;
        }
        let applied = cell.group.applied_index();
        let (ready, rest) =
            std::mem::take(&mut cell.reads_confirmed).into_iter().partition(|(i, _)| *i <= applied);
        cell.reads_confirmed = rest;
        let ready: Vec<(u64, Asker)> = ready;
        for (_, asker) in ready {
            let read = match asker {
                Asker::Steward { round } => {
                    self.confirmed(node, round);
                    continue;
                }
                Asker::Confirm { from, epoch } => {
                    self.serve_confirmed(node, from, epoch);
                    continue;
                }
                Asker::Backup { no } => {
                    self.copy_partition(node, group, no);
                    continue;
                }
                Asker::Lease(call) => {
                    self.grant(node, call);
                    continue;
                }
                Asker::Client(read) => read,
            };
            let Some(store) = self.nodes[node].stores.get(&group) else { return };
            let found = query::message(store, &read.id);
            let result = found.map_err(|_| Refused::Busy).map(|found| {
                found.map(|(_, status)| {
                    MessageState::try_from(status.state).unwrap_or(MessageState::Unspecified)
                })
            });
            self.answer_read(node, &Asker::Client(read), result);
        }
    }

    pub fn answer_read(&mut self, node: usize, asker: &Asker, result: Result<Option<MessageState>, Refused>) {
        let Asker::Client(read) = asker else { return };
        let answer = match result {
            Ok(state) => Answer::Got(state),
            Err(refused) => Answer::Refused(refused),
        };
        self.reply(node, read.op, read.call_no, answer);
    }
}
