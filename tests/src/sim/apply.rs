//! The glue of a node's applier, as the simulator runs it: a mirror of `node/src/engine/applier.rs`, around the same
//! `carillon_core`.
//!
//! State is written before anyone learns of it, with the applied index in the same batch.
use super::engine::Refused;
use super::node::Waiter;
use super::oracle::Applied;
use super::plant::Plant;
use super::rng::hash;
use super::wing::PeerCall;
use super::world::{Event, World};
use carillon_consensus::{Awaited, CommittedEntry, EntryKind, Parts, is_leader_start};
use carillon_core::meta::{self, MetaEffects, MetaRefusal, MetaView};
use carillon_core::{CommandResult, Effects, EntryMeta, ScheduleChange};
use carillon_proto::internal::{CommandBatch, FactResult, command::Kind};
use prost::Message as _;
use prost::bytes::Bytes;

/// What one entry of a partition brought.
struct Outcome {
    answers: Vec<(Waiter, Vec<CommandResult>)>,
    changes: Vec<ScheduleChange>,
    lead: Option<u64>,
}

impl World {
    pub fn load_meta(&mut self, node: usize) {
        let Some(store) = self.nodes[node].stores.get(&0) else { return };
        match MetaView::load(store) {
            Ok(view) => self.nodes[node].meta = view,
            Err(error) => self.oracle.fail(format!("node {}: meta state: {error}", node + 1)),
        }
    }

    pub fn kick_apply(&mut self, node: usize, group: u32) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        if cell.applying || (cell.to_apply.is_empty() && cell.installed.is_none()) {
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
        let entries: Vec<Awaited<Waiter>> = cell.to_apply.drain(..).collect();
        if let Some(mark) = cell.installed.take()
            && !self.switch(node, group, mark)
        {
            return;
        }
        let Some(last) = entries.last().map(|held| held.entry.index) else { return self.pump(node, group) };
        let id = self.nodes[node].id;
        self.note(&[12, id, u64::from(group), last], || format!("apply  n{id} g{group} up to {last}"));
        let done = match group {
            0 => self.apply_meta(node, entries),
            _ => self.apply_entries(node, group, entries),
        };
        if let Err(reason) = done {
            if !self.nodes[node].is_rotten() {
                self.oracle.fail(format!("node {id} group {group}: apply failed: {reason}"));
            }
            return self.block(node, group, reason);
        }
        if let Some(cell) = self.nodes[node].cells.get_mut(&group) {
            cell.group.applied(last);
        }
        self.leave_if_removed(node, group, last);
        self.pump(node, group);
    }

    fn apply_entries(
        &mut self,
        node: usize,
        group: u32,
        entries: Vec<Awaited<Waiter>>,
    ) -> Result<(), String> {
        let mut outcome = Outcome { answers: Vec::new(), changes: Vec::new(), lead: None };
        for Awaited { entry, waiters } in entries {
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
        let data = data_of(&entry);
        let durable = at.disk.durable_term(group, entry.index);
        if durable != Some(entry.term) && !self.planted(Plant::IgnoreSyncError) {
            self.oracle.fail(format!("I1 node {id} group {group}: {} applied but not durable", entry.index));
        }
        let mut results = effects.results.clone().into_iter();
        for (count, waiter) in waiters {
            outcome.answers.push((waiter, results.by_ref().take(count).collect()));
        }
        if self.planted(Plant::StopOutsideApply) {
            self.note_stops(node, &data);
        }
        if self.planted(Plant::KeyBeforeMessage) {
            self.plant_key_loss(node, group, &data);
        }
        let applied = Applied { term: entry.term, data: hash(&data), digest };
        self.understands(node, group, &data, &MetaEffects::default());
        if self.oracle.first_to_apply(group, id, entry.index, applied) {
            // With the tables as they are after this entry, before the next one.
            self.follow(node, group, &data, &effects);
        }
        Ok(())
    }

    /// Planted bug: the node keeps opt-outs to itself, for when it proposes.
    fn note_stops(&mut self, node: usize, data: &Bytes) {
        let Ok(batch) = CommandBatch::decode(data.clone()) else { return };
        for command in batch.commands {
            if let Some(Kind::OptOut(stop)) = command.kind {
                let recipient = self.true_recipient(&stop.recipient_index);
                self.nodes[node].wing.stops.insert((stop.practice_no, recipient));
            }
        }
    }

    /// Planted bug.
    fn plant_key_loss(&mut self, node: usize, group: u32, data: &Bytes) {
        let Ok(batch) = CommandBatch::decode(data.clone()) else { return };
        for command in batch.commands {
            if let Some(Kind::Retire(retire)) = command.kind {
                self.drop_old_keys(node, group, &retire);
            }
        }
    }

    fn apply_meta(&mut self, node: usize, entries: Vec<Awaited<Waiter>>) -> Result<(), String> {
        let (mut answers, mut changed) = (Vec::new(), false);
        let (epoch_before, level_before) = (self.nodes[node].meta.shares.epoch, self.nodes[node].meta.level);
        let id = self.nodes[node].id;
        for Awaited { entry, waiters } in entries {
            let store = self.nodes[node].stores.get_mut(&0).expect("the meta group has a store");
            let meta = EntryMeta { index: entry.index, term: entry.term };
            let mut effects = MetaEffects::default();
            let data = data_of(&entry);
            let mut batch = store.batch();
            let record = meta::apply(&mut batch, meta, &data, &mut effects);
            let digest = record.map_err(|error| error.to_string())?.digest.to_vec();
            batch.commit();
            changed |= effects.changed;
            let applied = Applied { term: entry.term, data: hash(&data), digest };
            self.understands(node, 0, &data, &effects);
            self.oracle.first_to_apply(0, id, entry.index, applied);
            let mut results = effects.results.into_iter();
            for (count, waiter) in waiters {
                let results: Vec<Result<(), MetaRefusal>> = results.by_ref().take(count).collect();
                answers.push((waiter, results));
            }
        }
        if changed {
            self.load_meta(node);
            self.sync_lanes(node);
            let after = &self.nodes[node].meta;
            if after.level > level_before.max(1) {
                self.trace.count("level_raised");
            }
            if self.nodes[node].meta.shares.epoch > epoch_before.max(1) {
                self.trace.count("share_epoch_changed");
            }
        }
        for (waiter, results) in answers {
            self.answer_meta(node, waiter, results);
        }
        Ok(())
    }

    fn answer_meta(&mut self, node: usize, waiter: Waiter, results: Vec<Result<(), MetaRefusal>>) {
        if let Waiter::Slices { call, grants } = waiter {
            let taken: Vec<bool> = results.iter().map(Result::is_ok).collect();
            return self.sliced(node, &call, grants, &taken);
        }
        let refusal = results.into_iter().find_map(Result::err);
        match waiter {
            Waiter::Operator { ask } => self.operator.answered(ask, Some(refusal)),
            Waiter::Registered { from, epoch } if from == node => self.registered(node, epoch, refusal),
            Waiter::Registered { from, epoch } => {
                self.peer(node, from, PeerCall::Registered { epoch, refusal });
            }
            _ => {}
        }
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
                let result = results.first().map_or(FactResult::Unspecified, CommandResult::fact);
                self.looked(node, from, report_no, result);
            }
            Waiter::Operator { ask } => self.operator.answered(ask, None),
            Waiter::Retired { partition } => self.retire_done(node, partition, result),
            Waiter::Fed => self.fed(result),
            Waiter::Slices { call, .. } => self.sliced(node, &call, Vec::new(), &[]),
            // It comes again in a second.
            Waiter::Registered { .. } => {}
        }
    }
}

/// Only entries that this process appended are looked at.
fn is_own_start(entry: &CommittedEntry, waiters: &Parts<Waiter>, node_id: u64) -> bool {
    matches!(waiters.first(), Some((1, Waiter::Nobody))) && is_leader_start(entry, node_id)
}

/// What the tables see of an entry: nothing of raft's own.
fn data_of(entry: &CommittedEntry) -> Bytes {
    if entry.kind == EntryKind::Normal { entry.data.clone() } else { Bytes::new() }
}
