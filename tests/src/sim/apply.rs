//! The glue of a node's applier and maintenance, as the simulator runs it: a mirror of `node/src/engine/applier.rs`,
//! `recovery.rs` and `maintenance.rs`, around the same `carillon_core`.
//!
//! State is written before anyone learns of it, with the applied index in the same batch.
use super::engine::{Refused, members};
use super::node::{Cell, Waiter};
use super::oracle::Applied;
use super::plant::Plant;
use super::proposals::{Parts, Proposals};
use super::rng::{self, hash};
use super::store::SimStore;
use super::world::{Event, World};
use carillon_consensus::{CommittedEntry, EntryKind, Group, GroupConfig, LogStore, bootstrap_write};
use carillon_core::meta::{self, MetaEffects, MetaView};
use carillon_core::{Applier, CommandResult, Effects, EntryMeta, ScheduleChange, applied_record, query};
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, CommandBatch, EventRecord, FactResult, command::Kind};
use carillon_proto::public::MessageState;
use prost::Message as _;
use raft::eraftpb::EntryType;
use std::collections::VecDeque;
use std::sync::Arc;

/// Entries kept below the cut of a log.
const SLACK_ENTRIES: u64 = 8;

/// What one entry of a partition brought.
struct Outcome {
    answers: Vec<(Waiter, Vec<CommandResult>)>,
    changes: Vec<ScheduleChange>,
    lead: Option<u64>,
}

impl World {
    pub fn create_groups(&mut self, node: usize) {
        let members = members(&self.nodes);
        let writes: Vec<_> = self.groups().map(|group| bootstrap_write(group, &members)).collect();
        self.nodes[node].disk.write(&writes, true).expect("a new disk takes a write");
        let groups = self.groups();
        self.nodes[node].stores = groups.map(|group| (group, SimStore::default())).collect();
    }

    /// Starts the process: replays what the log knows beyond the durable state, then opens the groups.
    pub fn restart(&mut self, node: usize) {
        if self.nodes[node].up || self.nodes[node].out.is_some() {
            return;
        }
        let id = self.nodes[node].id;
        self.note(&[10, id], || format!("start  n{id}"));
        for group in self.groups() {
            match self.open(node, group) {
                Ok(cell) => drop(self.nodes[node].cells.insert(group, cell)),
                Err(reason) => {
                    // As a node does today: one replica that cannot be opened keeps the process from starting.
                    self.nodes[node].forget();
                    self.note(&[11, id], || format!("out    n{id} g{group} {reason}"));
                    if !self.nodes[node].is_damaged() {
                        self.oracle.fail(format!("I1 node {id} group {group} cannot start: {reason}"));
                    }
                    self.trace.count("replica_fenced");
                    self.nodes[node].out = Some(reason);
                    return;
                }
            }
        }
        self.nodes[node].up = true;
        self.load_meta(node);
        let epoch = self.nodes[node].epoch;
        let first = 1 + self.rng.ticks.below(super::world::TICK_MS);
        self.at(first, Event::Tick { node, epoch });
        self.at(self.plan.rates.flush_ms_max, Event::Flush { node, epoch });
        for group in self.groups() {
            self.pump(node, group);
        }
        self.sync_lanes(node);
    }

    fn open(&mut self, node: usize, group: u32) -> Result<Cell, String> {
        let log: Arc<dyn LogStore> = Arc::clone(&self.nodes[node].disk) as Arc<dyn LogStore>;
        let id = self.nodes[node].id;
        let applied = self.replay(node, group, &*log)?;
        let seed = rng::mix(self.plan.seed ^ self.nodes[node].epoch);
        let mut config = GroupConfig::new(group, id, seed);
        if self.plan.small_limits {
            config.max_size_per_msg = 2_000;
            config.max_inflight_msgs = 8;
            config.committed_bytes_max = 2_000;
            config.unapplied_bytes_max = 8_000;
            config.cache_bytes_max = 6_000;
            config.uncommitted_bytes_max = 40_000;
        }
        config.planted_batch_append = self.planted(Plant::BatchAppend);
        config.skip_commit_broadcast = !config.planted_batch_append;
        if self.planted(Plant::Priorities) {
            let preferred = u64::from(group) % self.plan.nodes as u64 + 1;
            config.priority = i64::from(preferred == id);
        }
        let group = Group::open(config, log, applied).map_err(|error| error.to_string())?;
        let store = &self.nodes[node].stores[&group.group()];
        let core = Applier::open(store).map_err(|error| error.to_string())?;
        Ok(Cell {
            group,
            proposals: Proposals::default(),
            reads_asked: Vec::new(),
            reads_confirmed: Vec::new(),
            to_apply: VecDeque::new(),
            applying: false,
            core,
            leading: None,
            preferred_ticks: 0,
        })
    }

    /// Applies everything that is known to be committed, with the effects dropped. Returns the applied index.
    fn replay(&mut self, node: usize, group: u32, log: &dyn LogStore) -> Result<u64, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let stored = log.load(group).map_err(|e| text(&e))?.ok_or("the group does not exist")?;
        let commit = stored.hard_state.commit;
        let mut core = Applier::open(&self.nodes[node].stores[&group]).map_err(|e| text(&e))?;
        core.set_permits(false);
        let mut applied = core.last().index;
        let first = applied;
        while applied < commit {
            for entry in log.entries(group, applied + 1, commit + 1, 4_000).map_err(|e| text(&e))? {
                if entry.entry_type != EntryType::EntryNormal {
                    return Ok(applied);
                }
                let meta = EntryMeta { index: entry.index, term: entry.term };
                applied = entry.index;
                let store = self.nodes[node].stores.get_mut(&group).expect("every group has a store");
                let mut batch = store.batch();
                let mut effects = Effects::default();
                if group == 0 {
                    meta::apply(&mut batch, meta, &entry.data, &mut MetaEffects::default())
                        .map_err(|e| text(&e))?;
                } else {
                    core.apply(&mut batch, meta, &entry.data, &mut effects).map_err(|e| text(&e))?;
                }
                batch.commit();
                let digest = applied_record(store).map_err(|e| text(&e))?.digest.to_vec();
                let found = Applied { term: entry.term, data: hash(&entry.data), digest };
                if self.oracle.applied(group, self.nodes[node].id, entry.index, found) {
                    // Committed and acknowledged by nobody so far; its events are followed all the same.
                    self.follow(node, group, &effects.events);
                }
            }
        }
        if applied > first {
            self.trace.count("state_lost_and_replayed");
        }
        Ok(applied)
    }

    fn load_meta(&mut self, node: usize) {
        match MetaView::load(&self.nodes[node].stores[&0]) {
            Ok(view) => self.nodes[node].meta = view,
            Err(error) => self.oracle.fail(format!("node {}: meta state: {error}", node + 1)),
        }
    }

    pub fn kick_apply(&mut self, node: usize, group: u32) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        if cell.applying || cell.to_apply.is_empty() {
            return;
        }
        cell.applying = true;
        let high = if self.calm { 2 } else { self.plan.rates.apply_ms_max };
        let delay = self.rng.apply.below(high + 1);
        let epoch = self.nodes[node].epoch;
        self.at(delay, Event::Apply { node, epoch, group });
    }

    /// Applies what waits, as one batch.
    pub fn apply(&mut self, node: usize, group: u32) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        cell.applying = false;
        let entries: Vec<_> = cell.to_apply.drain(..).collect();
        let Some(last) = entries.last().map(|(entry, _)| entry.index) else { return };
        let id = self.nodes[node].id;
        self.note(&[12, id, u64::from(group), last], || format!("apply  n{id} g{group} up to {last}"));
        let done = match group {
            0 => self.apply_meta(node, entries),
            _ => self.apply_entries(node, group, entries),
        };
        if let Err(reason) = done {
            if !self.nodes[node].is_damaged() {
                self.oracle.fail(format!("node {id} group {group}: apply failed: {reason}"));
            }
            return self.block(node, group, reason);
        }
        if let Some(cell) = self.nodes[node].cells.get_mut(&group) {
            cell.group.applied(last);
        }
        self.pump(node, group);
    }

    fn apply_entries(
        &mut self,
        node: usize,
        group: u32,
        entries: Vec<(CommittedEntry, Parts<Waiter>)>,
    ) -> Result<(), String> {
        let mut outcome = Outcome { answers: Vec::new(), changes: Vec::new(), lead: None };
        for (entry, waiters) in entries {
            self.apply_one(node, group, entry, waiters, &mut outcome)?;
        }
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return Ok(()) };
        if let Some(term) = outcome.lead {
            cell.leading = Some(term);
            // The wing reads the tables from here on, so changes of this batch need not be told.
            self.lead(node, group, term);
        } else if cell.leading.is_some() && !outcome.changes.is_empty() {
            self.schedule_changed(node, group, &outcome.changes);
        }
        for (waiter, results) in outcome.answers {
            self.answer(node, waiter, Ok(results));
        }
        Ok(())
    }

    fn apply_one(
        &mut self,
        node: usize,
        group: u32,
        entry: CommittedEntry,
        waiters: Parts<Waiter>,
        outcome: &mut Outcome,
    ) -> Result<(), String> {
        let id = self.nodes[node].id;
        let at = &mut self.nodes[node];
        let store = at.stores.get_mut(&group).expect("every group has a store");
        let Some(cell) = at.cells.get_mut(&group) else { return Ok(()) };
        let meta = EntryMeta { index: entry.index, term: entry.term };
        let mut effects = Effects::default();
        let mut batch = store.batch();
        if entry.kind == EntryKind::Normal {
            cell.core.set_permits(!waiters.is_empty());
            let applied = cell.core.apply(&mut batch, meta, &entry.data, &mut effects);
            applied.map_err(|error| error.to_string())?;
        } else {
            cell.core.pass(&mut batch, meta);
        }
        batch.commit();
        let digest = cell.core.last().digest.to_vec();
        let own = is_own_start(&entry, &waiters, id);
        let leads = at.leaders.get(&group) == Some(&(id, entry.term));
        if own && leads {
            outcome.lead = Some(entry.term);
        }
        if cell.leading.is_some() || outcome.lead.is_some() {
            outcome.changes.append(&mut effects.schedule);
        }
        let durable = at.disk.durable_term(group, entry.index);
        if durable != Some(entry.term) && !self.planted(Plant::IgnoreSyncError) {
            self.oracle.fail(format!("I1 node {id} group {group}: {} applied but not durable", entry.index));
        }
        let mut results = effects.results.into_iter();
        for (count, waiter) in waiters {
            outcome.answers.push((waiter, results.by_ref().take(count).collect()));
        }
        let applied = Applied { term: entry.term, data: hash(&entry.data), digest };
        if self.oracle.applied(group, id, entry.index, applied) {
            // With the tables as they are after this entry, before the next one.
            self.follow(node, group, &effects.events);
        }
        Ok(())
    }

    /// Shows the oracle the events of the first replica that applied them.
    fn follow(&mut self, node: usize, partition: u32, events: &[EventRecord]) {
        for event in events {
            // What was written, even if a row of it rotted since.
            let store = self.nodes[node].stores[&partition].tables();
            let message_id = MessageId::from_bytes(&event.message_id).ok();
            let found = message_id.and_then(|id| query::message(store, &id).ok().flatten());
            let Some((_, status)) = found else {
                self.oracle.fail(format!("I9 an event of partition {partition} names no message"));
                return;
            };
            let from = self.oracle.event(event, &status);
            self.count_event(from, event);
            let text = format!("{}{}", short_state(event.state), note_detail(event));
            let id = message_id.expect("it was found");
            let words = [13, hash(id.as_bytes()), event.state as u64, u64::from(event.attempt)];
            self.note(&words, || format!("event  p{partition} {id} {text}"));
        }
    }

    fn count_event(&mut self, from: MessageState, event: &EventRecord) {
        let to = MessageState::try_from(event.state).unwrap_or(MessageState::Unspecified);
        let taken =
            matches!(to, MessageState::Submitted | MessageState::Delivered | MessageState::Undelivered);
        match (from, to) {
            (MessageState::Unknown, _) if taken && event.attempt == 0 => {
                self.trace.count("unknown_resolved_by_receipt");
            }
            (MessageState::Unknown, _) if taken => self.trace.count("unknown_resolved_by_late_answer"),
            (_, MessageState::Unknown) => {
                self.trace.count("attempt_unknown");
                if event.detail == carillon_core::CODE_LEADER_CHANGED {
                    self.trace.count("leader_changed_with_attempts_in_flight");
                }
            }
            (MessageState::Unknown, MessageState::Waiting) => self.trace.count("resent_by_policy"),
            (_, MessageState::Canceled) => self.trace.count("canceled"),
            (_, MessageState::Expired) => self.trace.count("expired"),
            (MessageState::InFlight, _) if taken && event.attempt == 0 => {
                self.trace.count("receipt_before_outcome");
            }
            _ => {}
        }
    }

    fn apply_meta(
        &mut self,
        node: usize,
        entries: Vec<(CommittedEntry, Parts<Waiter>)>,
    ) -> Result<(), String> {
        let (mut answers, mut changed) = (Vec::new(), false);
        let id = self.nodes[node].id;
        for (entry, waiters) in entries {
            let store = self.nodes[node].stores.get_mut(&0).expect("the meta group has a store");
            let meta = EntryMeta { index: entry.index, term: entry.term };
            let mut effects = MetaEffects::default();
            let mut batch = store.batch();
            let record = meta::apply(&mut batch, meta, &entry.data, &mut effects);
            let digest = record.map_err(|error| error.to_string())?.digest.to_vec();
            batch.commit();
            changed |= effects.changed;
            let applied = Applied { term: entry.term, data: hash(&entry.data), digest };
            self.oracle.applied(0, id, entry.index, applied);
            let mut results = effects.results.into_iter();
            for (count, waiter) in waiters {
                let all_done = results.by_ref().take(count).all(|result| result.is_ok());
                answers.push((waiter, all_done));
            }
        }
        if changed {
            self.load_meta(node);
            self.sync_lanes(node);
        }
        for (waiter, done) in answers {
            if let Waiter::Operator { step } = waiter {
                self.operator.answered(step, done);
            }
        }
        Ok(())
    }

    /// Leadership is gone, in the term it was held.
    pub fn step_down(&mut self, node: usize, group: u32) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        if cell.leading.take().is_some() {
            self.step_down_wing(node, group);
        }
    }

    /// Tells who waits for a proposal what became of it.
    pub fn answer(&mut self, node: usize, waiter: Waiter, result: Result<Vec<CommandResult>, Refused>) {
        match waiter {
            Waiter::Nobody => {}
            Waiter::Call { op, call_no, id } => self.call_done(node, op, call_no, id, result),
            Waiter::Begin { partition, term, list, decided_ms } => {
                self.begun(node, partition, term, (list, decided_ms), result);
            }
            Waiter::Facts { partition } => self.facts_done(node, partition, result),
            Waiter::Forwarded { from, batch } => self.forwarded_done(node, from, batch, result),
            Waiter::Looked { from, report_no } => {
                let results = result.unwrap_or_default();
                let result = results.first().map_or(FactResult::Unspecified, super::facts::fact_result);
                self.looked(node, from, report_no, result);
            }
            Waiter::Operator { step } => self.operator.answered(step, false),
        }
    }

    /// Flushes some replicas and cuts logs below what is durable here and present on every replica.
    pub fn flush(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        let pause = 1 + self.rng.disk.below(self.plan.rates.flush_ms_max);
        self.at(pause, Event::Flush { node, epoch });
        self.scrub(node);
        for group in self.groups() {
            if self.rng.disk.chance(600) {
                let batches = self.nodes[node].stores[&group].pending();
                let delay = 1 + self.rng.disk.below(200 * self.nodes[node].slow.min(10));
                self.at(delay, Event::FlushDone { node, epoch, group, batches });
            }
        }
    }

    /// Reads everything that is stored, now and then: what rotted is found also where apply does not look.
    fn scrub(&mut self, node: usize) {
        if !self.calm && !self.rng.disk.chance(100) {
            return;
        }
        for group in self.groups() {
            if self.nodes[node].stores[&group].is_rotten() && self.nodes[node].cells.contains_key(&group) {
                self.block(node, group, "scrub: block checksum mismatch".to_owned());
            }
        }
    }

    /// `batches` were in memory when the flush began; a crash in between has changed the epoch.
    pub fn flush_done(&mut self, node: usize, group: u32, batches: usize) {
        let before = self.nodes[node].stores[&group].pending();
        let store = self.nodes[node].stores.get_mut(&group).expect("every group has a store");
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
        if index < cell.group.first_index() + SLACK_ENTRIES {
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

/// Whether an entry begins with `LeaderStart` of this node. Only entries that this process appended are looked at.
fn is_own_start(entry: &CommittedEntry, waiters: &Parts<Waiter>, node_id: u64) -> bool {
    if !matches!(waiters.first(), Some((1, Waiter::Nobody))) {
        return false;
    }
    let Ok(batch) = CommandBatch::decode(entry.data.clone()) else { return false };
    matches!(
        batch.commands.first(),
        Some(Command { kind: Some(Kind::LeaderStart(start)) }) if start.node_id == node_id && start.term == entry.term
    )
}

fn short_state(state: i32) -> String {
    format!("{:?}", MessageState::try_from(state).unwrap_or(MessageState::Unspecified)).to_uppercase()
}

fn note_detail(event: &EventRecord) -> String {
    let attempt = if event.attempt > 0 { format!(" attempt {}", event.attempt) } else { String::new() };
    let detail = if event.detail.is_empty() { String::new() } else { format!(" {}", event.detail) };
    format!("{attempt}{detail}")
}
