//! Retention, as the simulator runs it: a mirror of `node/src/retention.rs` around the same `Cutoffs` and `Retire`; and what must be true
//! of it, judged by the clock of the tables:
//!  - I1 only final messages are dropped, and not before their time
//!  - I2 a key lives as long as its message, and as long as its own time
use super::engine::Refused;
use super::node::Waiter;
use super::plant::Plant;
use super::world::{Event, World};
use carillon_core::{CommandResult, Cutoffs, ReadTables as _, Retired, keys, message, query};
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, IdempotencyRecord, Retire, command::Kind};
use prost::Message as _;

/// Between two looks at the partitions that a node leads.
const LOOK_EVERY_MS: u64 = 1_000;
/// What is dropped may be so much younger than it should be, by the clock of the log.
const CUTOFF_SLACK_MS: u64 = 200;
/// Between two pieces of one partition.
const PIECE_PAUSE_MS: u64 = 30;
/// The loop looks once a second; a message may be kept this much longer when all is calm.
pub const LAG_MS_MAX: u64 = 3_000;

impl World {
    pub fn look_for_old(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        let pause = self.true_ms(node, LOOK_EVERY_MS).max(1);
        self.at(pause, Event::Retention { node, epoch });
        let led: Vec<u32> =
            self.nodes[node].cells.keys().copied().filter(|group| self.nodes[node].leads(*group)).collect();
        for partition in led.into_iter().filter(|group| *group != 0) {
            if self.retention_lag_ms(node, partition) > 0 {
                self.retire(node, partition);
            }
        }
    }

    fn cutoffs(&mut self, node: usize) -> Cutoffs {
        let (finals_s, keys_s) = (self.plan.finals_kept_s, self.plan.keys_kept_s);
        Cutoffs::at(self.wall_ms(node), finals_s, keys_s)
    }

    /// How late the oldest thing is that retention should have dropped.
    pub fn retention_lag_ms(&mut self, node: usize, partition: u32) -> u64 {
        let cutoffs = self.cutoffs(node);
        let Some(store) = self.nodes[node].stores.get(&partition) else { return 0 };
        // A row that rotted is found by whoever reads it.
        query::oldest_kept_ms(store).map_or(0, |oldest| cutoffs.lag_ms(oldest))
    }

    /// The next piece of one partition.
    pub fn retire(&mut self, node: usize, partition: u32) {
        let mut retire = self.cutoffs(node).command();
        let now_ms = self.wall_ms(node);
        match self.plan.plant {
            Some(Plant::RetiredEarly) => retire.finals_before_ms = now_ms,
            Some(Plant::KeyRetiredEarly) => retire.keys_before_ms = now_ms,
            _ => {}
        }
        if self.plan.small_limits {
            retire.limit = 3;
        }
        let command = Command { kind: Some(Kind::Retire(retire)) };
        self.propose(node, partition, vec![command], Waiter::Retired { partition });
    }

    /// Any failure: this or another leader goes on at the next look.
    pub fn retire_done(&mut self, node: usize, partition: u32, result: Result<Vec<CommandResult>, Refused>) {
        let retired = result.ok().and_then(|results| results.into_iter().next());
        if let Some(CommandResult::Retired(Retired { more: true, .. })) = retired {
            let epoch = self.nodes[node].epoch;
            self.at(PIECE_PAUSE_MS, Event::RetireMore { node, epoch, partition });
        }
    }

    /// Planted bug: keys go by their age alone. The same on every replica.
    pub fn drop_old_keys(&mut self, node: usize, partition: u32, retire: &Retire) {
        let Some(store) = self.nodes[node].stores.get_mut(&partition) else { return };
        let ids: Vec<MessageId> =
            store.tables().rows().keys().filter_map(|key| keys::decode_payload(key)).collect();
        let mut rows = Vec::new();
        for id in ids {
            let Ok(Some((payload, _))) = query::message(store.tables(), &id) else { continue };
            let accept = payload.accept.unwrap_or_default();
            let index = keys::Index::try_from(accept.idempotency_index.as_ref());
            if let Ok(index) = index
                && payload.accepted_at_ms <= retire.keys_before_ms
            {
                rows.push(keys::idempotency(accept.practice_no, &index));
            }
        }
        let mut batch = store.batch();
        rows.into_iter().for_each(|row| carillon_core::Tables::delete(&mut batch, row));
        batch.commit();
    }

    /// Shows the oracle what a `Retire` dropped, with the tables as they are after it.
    pub fn follow_retire(&mut self, node: usize, partition: u32, now_ms: u64, retired: &Retired) {
        // Cutoffs are by the leader's own clock, which may be a little ahead of what it is allowed to stamp.
        let slack_ms = self.jumps_ms() + CUTOFF_SLACK_MS;
        let (finals_ms, keys_ms) = (self.plan.finals_kept_s * 1000, self.plan.keys_kept_s * 1000);
        let store = self.nodes[node].stores[&partition].tables();
        self.oracle.changes.dropped(partition, now_ms, store);
        let of_partition = |id: &MessageId| id.slot().partition(self.plan.partitions) == partition;
        let mut wrong = Vec::new();
        let (mut messages, mut outlived, mut gone) = (0, 0, 0);
        let mut free = Vec::new();
        for (id, seen) in self.oracle.messages.iter_mut().filter(|(id, _)| of_partition(id)) {
            let there = store.get(&keys::status(id)).ok().flatten().is_some();
            let too_early = |what: &str, since_ms: u64, kept_ms: u64| {
                let after_ms = now_ms.saturating_sub(since_ms);
                (since_ms + kept_ms > now_ms + slack_ms)
                    .then(|| format!("I1 {what} of message {id} was dropped after {after_ms} ms"))
            };
            if !there && !seen.retired {
                seen.retired = true;
                messages += 1;
                wrong.extend(too_early("a row", seen.changed_ms, finals_ms));
                if !message::is_final(seen.state) {
                    wrong.push(format!("I1 message {id} was dropped, and it is {:?}", seen.state));
                }
            }
            let Some(index) = seen.key.filter(|_| !seen.key_gone) else { continue };
            let row = store.get(&keys::idempotency(seen.practice_no, &index)).ok().flatten();
            let names = row.is_some_and(|row| key_row_names(&row, id));
            if !names {
                seen.key_gone = true;
                gone += 1;
                free.extend(seen.text);
                wrong.extend(too_early("the key", seen.accepted_ms, keys_ms));
                if there {
                    wrong.push(format!("I2 the key of message {id} was dropped before it"));
                }
            } else if !there {
                outlived += 1;
            }
        }
        if retired.messages != messages {
            wrong
                .push(format!("I1 partition {partition}: {messages} messages are gone, {retired:?} is said"));
        }
        wrong.into_iter().for_each(|text| self.oracle.fail(text));
        // The key may name another message from now on, or does so already in this very entry.
        for text in free {
            let count = self.oracle.changes.accepted.entry(text).or_insert(0);
            *count = count.saturating_sub(1);
        }
        for (what, count) in
            [("message_retired", messages), ("key_outlived_its_message", outlived), ("key_retired", gone)]
        {
            if count > 0 {
                self.trace.count(what);
            }
        }
    }

    /// Everything that clocks were set by so far.
    pub fn jumps_ms(&self) -> u64 {
        let jumps = self.plan.faults.iter().filter_map(|(_, fault)| match fault {
            super::plan::Fault::ClockJump { delta_ms, .. } => Some(delta_ms.unsigned_abs()),
            _ => None,
        });
        jumps.sum()
    }
}

/// Whether a row of table I is of this message.
pub fn key_row_names(row: &prost::bytes::Bytes, id: &MessageId) -> bool {
    IdempotencyRecord::decode(row.clone()).is_ok_and(|record| record.message_id.as_ref() == id.as_bytes())
}
