//! The loss of a whole cluster and the restore of its newest backup into a new one: a mirror of `node/src/restore.rs`, `edge/restore.rs` and of
//! what `carillonctl restore` does, around the same pieces and the same `Restore` commands.
//!
//! What was accepted after the backup is lost, and everybody who was told so is told wrong: that is what a backup costs. What must
//! be true all the same: messages of the backup that the old cluster may have sent since are held, and nothing but an
//! operator's release sends them (I5).
use super::backup::Backup;
use super::engine::Refused;
use super::node::{Node, Waiter};
use super::operator::Order;
use super::plant::Plant;
use super::world::{Event, World};
use carillon_core::meta::level;
use carillon_core::{
    CommandResult, ReadTables as _, Refusal, base_of_restored_events, keys, message, next_piece,
    position_after, query,
};
use carillon_proto::MessageId;
use carillon_proto::internal::{
    Command, PartitionRestored, QuarantineAction, ResolveQuarantine, Restore, command::Kind,
    meta_command::Kind as MetaKind,
};
use carillon_proto::public::MessageState;

/// Of one piece: small, so that there are several.
const PIECE_BYTES: usize = 6_000;
/// A piece that is not answered in this time is proposed again, from where the partition stands.
const PATIENCE_MS: u64 = 2_000;
/// Messages that an operator decides on at a time.
const RESOLVE_LIMIT: u32 = 64;

impl World {
    /// Every disk of the cluster is gone. Nothing happens while there is no backup to come back from.
    pub fn lose_everything(&mut self, down_ms: u64) {
        if self.backups.newest.is_none() || !self.operator.is_done() || self.is_dark {
            return;
        }
        for node in 0..self.nodes.len() {
            self.crash(node, true);
            self.nodes[node].lost = true;
        }
        self.is_dark = true;
        self.backups.break_off();
        self.lasting.clear();
        self.net = super::world::Net::default();
        for carrier in &mut self.carriers {
            (carrier.throttled, carrier.hanging) = (0, 0);
        }
        self.forget_events_of_nodes();
        self.operator.rest();
        // The moment of the restore is what tells whether a message may have been sent: the old cluster must be off by then, by
        // every clock that it had.
        let wait = down_ms + 2 * self.clock_error_ms();
        self.at(wait, Event::Rebuild);
        self.trace.count("cluster_lost");
    }

    /// A new cluster of the same name, with nothing in it.
    pub fn rebuild(&mut self) {
        let Some(backup) = self.backups.newest.clone() else { return };
        self.is_dark = false;
        self.note(&[111, backup.no], || format!("REBUILD from backup #{}", backup.no));
        let epoch = self.nodes.iter().map(|node| node.epoch).max().unwrap_or(0) + 1;
        let clocks: Vec<_> = self.nodes.iter().map(|node| (node.clock, node.store_id)).collect();
        self.nodes =
            (0..self.plan.nodes).map(|n| Node::new(n, self.plan.start_ms(), self.plan.clocks[n])).collect();
        for (node, (clock, store_id)) in self.nodes.iter_mut().zip(clocks) {
            (node.clock, node.store_id) = (clock, store_id + 10_000);
            (node.founder, node.level, node.epoch) = (true, level::LEVEL, epoch);
        }
        self.lost_since(&backup);
        let orders = self.operator.restoring(&self.plan, &backup);
        self.note(&[112, orders], || format!("restore: {orders} orders"));
        for node in 0..self.plan.nodes {
            self.restart(node);
        }
    }

    /// What everybody knows from now on: only what is in the backup.
    fn lost_since(&mut self, backup: &Backup) {
        let partitions = self.plan.partitions;
        let oracle = &mut self.oracle;
        oracle.history.clear();
        oracle.leaders.clear();
        oracle.truth.next_cluster();
        oracle.stack.next_cluster();
        oracle.fuses.restored();
        oracle.changes.restored(&backup.tables);
        let mut lost = Vec::new();
        for (id, seen) in &mut oracle.messages {
            let Some(tables) = backup.tables.get(&id.slot().partition(partitions)) else { continue };
            let found = query::message(tables, id).ok().flatten();
            let key = seen.key.and_then(|index| {
                let row = tables.get(&keys::idempotency(seen.practice_no, &index)).ok().flatten();
                row.filter(|row| super::retention::key_row_names(row, id))
            });
            seen.key_gone = seen.key.is_some() && key.is_none();
            match found {
                Some((_, status)) => {
                    seen.state = MessageState::try_from(status.state).unwrap_or(MessageState::Unspecified);
                    seen.attempts = status.attempts.iter().map(|a| a.number).max().unwrap_or(0);
                    seen.retired = false;
                    seen.quarantined = query::quarantined(tables, 0, None, usize::MAX)
                        .is_ok_and(|rows| rows.iter().any(|(_, other)| other == id));
                    // A receipt that the old cluster acknowledged since does not come again.
                    if !message::is_final(seen.state) {
                        for carrier in &mut self.carriers {
                            carrier.receipts_lost.insert(*id);
                        }
                    }
                }
                None if seen.retired => {}
                None => lost.push(*id),
            }
        }
        let named = oracle.messages.iter().filter(|(id, seen)| !seen.key_gone && !lost.contains(id));
        oracle.changes.accepted = named.filter_map(|(_, seen)| Some((seen.text?, 1))).collect();
        oracle.recipients.restored(backup.tables.values());
        for id in &lost {
            oracle.messages.remove(id);
            oracle.acked.remove(id);
            oracle.lost.insert(*id);
        }
        let known = |id: &MessageId| oracle.messages.contains_key(id);
        oracle.keys.retain(|_, (_, id)| known(id));
        let state = |id: &MessageId| oracle.messages.get(id).map(|seen| seen.state);
        oracle.canceled.retain(|id, _| state(id) == Some(MessageState::Canceled));
        oracle.stopped.retain(|(practice_no, recipient)| {
            let index = keys::Index::try_from(recipient.as_ref()).ok();
            index.is_some_and(|index| {
                let row = keys::opt_out(*practice_no, &index);
                backup.tables.values().any(|tables| matches!(tables.get(&row), Ok(Some(_))))
            })
        });
        let ranks = oracle.messages.iter().map(|(id, seen)| (*id, message::rank(seen.state))).collect();
        self.clients.lost_since(&ranks);
        let count = lost.len() as u64;
        self.note(&[113, count], || format!("{count} messages were accepted after the backup"));
        if count > 0 {
            self.trace.count("messages_lost_with_the_cluster");
        }
    }

    /// Feeds a partition, one piece at a time, each from where the partition stands. What is to be told to the meta group once
    /// all is there.
    pub fn feed(&mut self, partition: u32) -> Option<MetaKind> {
        let backup = self.backups.newest.as_ref()?;
        let backup_id: prost::bytes::Bytes = backup.id().into();
        let node = (0..self.nodes.len()).find(|n| self.nodes[*n].up && self.nodes[*n].leads(partition))?;
        let standing = query::restore(self.nodes[node].stores.get(&partition)?).ok()?;
        if standing.as_ref().is_some_and(|record| record.done) {
            return Some(MetaKind::PartitionRestored(PartitionRestored { backup_id, partition }));
        }
        if self.fed.is_some_and(|(_, since_ms)| self.now_ms < since_ms + PATIENCE_MS) {
            return None;
        }
        let tables = backup.tables.get(&partition)?;
        let position = standing.and_then(|record| record.position).unwrap_or_default();
        let (rows, last) = next_piece(tables, &position, PIECE_BYTES).ok()?;
        debug_assert!(position_after(position.clone(), &rows).key >= position.key);
        let guard_ms = self.nodes[node].meta.restore.as_ref()?.guard_ms;
        let piece = Restore {
            backup_id,
            guard_ms: if self.planted(Plant::GuardForgotten) { 0 } else { guard_ms },
            events_base: base_of_restored_events(tables).ok()?,
            after: Some(position),
            rows,
            last,
        };
        self.fed = Some((partition, self.now_ms));
        let command = Command { kind: Some(Kind::Restore(piece)) };
        self.propose(node, partition, vec![command], Waiter::Fed);
        None
    }

    pub fn fed(&mut self, result: Result<Vec<CommandResult>, Refused>) {
        self.fed = None;
        match result.ok().and_then(|results| results.into_iter().next()) {
            // Lost, late or out of order: the next look goes on from where the partition stands.
            None | Some(CommandResult::Refused(Refusal::OutOfOrder)) => {
                self.trace.count("restore_piece_again")
            }
            Some(CommandResult::Done) => self.trace.count("restore_piece"),
            Some(other) => self.oracle.fail(format!("I8 a piece of a restore was answered with {other:?}")),
        }
    }

    /// An operator decides what becomes of a practice's messages in quarantine, in every partition.
    pub fn resolve_quarantine(&mut self, practice_no: u32, release: bool) {
        let action = if release { QuarantineAction::Release } else { QuarantineAction::Drop };
        let resolve = ResolveQuarantine {
            practice_no,
            action: action.into(),
            limit: RESOLVE_LIMIT,
            keep_taken_over: self.oracle.keeps_taken_over,
            ..Default::default()
        };
        for partition in 1..=self.plan.partitions {
            let leader = (0..self.nodes.len()).find(|n| self.nodes[*n].up && self.nodes[*n].leads(partition));
            if let Some(node) = leader {
                let command = Command { kind: Some(Kind::ResolveQuarantine(resolve.clone())) };
                self.propose(node, partition, vec![command], Waiter::Nobody);
            }
        }
    }

    /// Some time after a restore: practices of odd numbers are sent again, some others given up, the rest stays held.
    pub fn decide_on_quarantine(&mut self) {
        for practice_no in 1..=self.plan.practices {
            match practice_no % 3 {
                0 => self.operator.push(Order::Quarantine { practice_no, release: false }),
                1 => self.operator.push(Order::Quarantine { practice_no, release: true }),
                _ => {}
            }
        }
    }
}
