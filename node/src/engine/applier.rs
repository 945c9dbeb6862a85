//! The applier thread: runs committed entries through the pure core, writes the state, then tells those who wait.
//!
//! State is written before anyone learns of it, and the applied index is in the same write. Effects go to the
//! delivery driver only while this node leads with an applied `LeaderStart` of the current term.
use super::handle::{DriverEvent, Leaders, ProposeError, Waiter};
use super::references::References;
use super::shard::Completion;
use super::snapshot::{Hub, Work};
use crate::failpoints;
use arc_swap::ArcSwap;
use bytes::Bytes;
use carillon_consensus::{Awaited, CommittedEntry, EntryKind, SnapshotMark, is_leader_start};
use carillon_core::meta::{self, MetaEffects, MetaView};
use carillon_core::{Applier as CoreApplier, CommandResult, Effects, EntryMeta, ScheduleChange};
use carillon_store::{ApplyBatch, Family, Replica, StateDb, StateError};
use crossbeam_channel::{Receiver, Sender};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// Driver events waiting; when it is full the applier waits, which holds back apply and never heartbeats.
pub const DRIVER_EVENTS_MAX: usize = 4096;

/// A committed entry and who waits for it.
pub type ApplyEntry = Awaited<Waiter>;

pub enum ApplyMessage {
    Entries {
        group: u32,
        entries: Vec<ApplyEntry>,
    },
    /// This node no longer leads the group (in the term it did).
    StepDown {
        group: u32,
    },
    /// A replica was created; its state is empty.
    Open {
        group: u32,
    },
    /// The replica leaves this node: let go of its state.
    Close {
        group: u32,
    },
    /// The log names another generation of the state: go on from there.
    Install {
        group: u32,
        mark: SnapshotMark,
    },
}

struct GroupState {
    replica: Arc<Replica>,
    core: CoreApplier,
    /// Term whose `LeaderStart` by this node is applied, while it leads.
    leading: Option<u64>,
    blocked: bool,
}

pub(super) struct Applier {
    pub node_id: u64,
    pub state: Arc<StateDb>,
    pub messages: Receiver<ApplyMessage>,
    pub completions: Sender<Completion>,
    pub driver: mpsc::Sender<DriverEvent>,
    pub leaders: watch::Receiver<Arc<Leaders>>,
    pub meta: Arc<ArcSwap<MetaView>>,
    pub meta_changed: watch::Sender<u64>,
    pub applied: Vec<watch::Sender<u64>>,
    pub references: Arc<References>,
    /// Log bytes applied and not reported to the flush pacing yet, by group.
    pub unflushed: Arc<Vec<AtomicU64>>,
    pub snapshots: Arc<Hub>,
}

/// Results held back until the state is written.
type Answers = Vec<(Waiter, Vec<CommandResult>)>;

impl Applier {
    /// Runs until the shard is gone.
    pub fn run(self, groups: &[u32]) -> anyhow::Result<()> {
        let mut states = BTreeMap::new();
        for group in groups {
            states.insert(*group, self.open(*group)?);
        }
        while let Ok(message) = self.messages.recv() {
            match message {
                ApplyMessage::StepDown { group } => {
                    let Some(state) = states.get_mut(&group) else { continue };
                    self.unlead(group, state);
                }
                ApplyMessage::Close { group } => {
                    if let Some(mut state) = states.remove(&group) {
                        self.unlead(group, &mut state);
                    }
                    drop(self.completions.send(Completion::Closed { group }));
                }
                ApplyMessage::Open { group } => match self.open(group) {
                    Ok(state) => drop(states.insert(group, state)),
                    Err(error) => self.block(group, error.to_string()),
                },
                ApplyMessage::Install { group, mark } => {
                    if let Some(state) = states.get_mut(&group) {
                        self.unlead(group, state);
                    }
                    match self.install(group, mark) {
                        Ok(state) => drop(states.insert(group, state)),
                        Err(error) => self.block(group, error.to_string()),
                    }
                }
                ApplyMessage::Entries { group, entries } => {
                    let Some(state) = states.get_mut(&group) else { continue };
                    if state.blocked {
                        continue;
                    }
                    let result = match group {
                        0 => self.apply_meta(state, entries),
                        _ => self.apply_entries(group, state, entries),
                    };
                    if let Err(reason) = result {
                        state.blocked = true;
                        // What apply cannot read, it cannot read after a restart either.
                        let damage = StateError::Damaged(reason.clone());
                        if let Err(error) = self.state.note_damage(Some(group), &damage) {
                            tracing::error!(group, %error, "the fence will not outlast a restart");
                        }
                        self.block(group, reason);
                    }
                }
            }
        }
        Ok(())
    }

    fn open(&self, group: u32) -> anyhow::Result<GroupState> {
        let replica = self.state.replica(group)?;
        // From now on this one, also while the files of a snapshot lie beside it.
        self.state.set_live(replica.family())?;
        let core = CoreApplier::open(&*replica)?;
        Ok(GroupState { replica, core, leading: None, blocked: false })
    }

    fn unlead(&self, group: u32, state: &mut GroupState) {
        if state.leading.take().is_some() {
            drop(self.driver.blocking_send(DriverEvent::Unlead { partition: group }));
        }
    }

    fn block(&self, group: u32, reason: String) {
        drop(self.completions.send(Completion::Blocked { group, reason }));
    }

    /// Readers see the new generation from here on; those that hold the old one may finish.
    fn install(&self, group: u32, mark: SnapshotMark) -> anyhow::Result<GroupState> {
        let old = self.state.replica(group)?.family();
        self.state.set_live(Family { group, generation: mark.generation })?;
        let opened = self.open(group)?;
        let applied = opened.core.last().index;
        anyhow::ensure!(applied == mark.index, "snapshot {} holds entry {applied}", mark.index);
        self.unflushed[group as usize].store(0, Ordering::Relaxed);
        if group == 0 {
            self.meta.store(Arc::new(MetaView::load(&*opened.replica)?));
            self.meta_changed.send_replace(mark.index);
        }
        self.snapshots.ask(Work::Retire(old));
        self.applied[group as usize].send_replace(mark.index);
        drop(self.completions.send(Completion::Applied { group, index: mark.index }));
        Ok(opened)
    }

    fn apply_entries(
        &self,
        group: u32,
        state: &mut GroupState,
        entries: Vec<ApplyEntry>,
    ) -> Result<(), String> {
        let start = Instant::now();
        let (mut answers, mut changes, mut bytes): (Answers, Vec<ScheduleChange>, u64) = Default::default();
        let (mut last, mut commands, mut lead) = (0, 0, None);
        let mut batch = state.replica.batch().map_err(|e| e.to_string())?;
        let (mut effects, mut references) = (Effects::default(), Vec::new());
        for Awaited { entry, waiters } in entries {
            let meta = EntryMeta { index: entry.index, term: entry.term };
            bytes += entry.data.len() as u64;
            last = entry.index;
            if entry.kind != EntryKind::Normal {
                state.core.pass(&mut batch, meta);
                fail_all(waiters);
                continue;
            }
            state.core.set_permits(!waiters.is_empty());
            state.core.apply(&mut batch, meta, &entry.data, &mut effects).map_err(|e| e.to_string())?;
            commands += effects.results.len();
            if is_own_start(&entry, &waiters, self.node_id) && self.leads(group, entry.term) {
                lead = Some(entry.term);
            }
            references.append(&mut effects.references);
            if state.leading.is_some() || lead.is_some() {
                changes.append(&mut effects.schedule);
            }
            let mut results = std::mem::take(&mut effects.results).into_iter();
            for (count, waiter) in waiters {
                answers.push((waiter, results.by_ref().take(count).collect()));
            }
        }
        self.commit(group, batch);
        self.references.learn(&references);
        self.unflushed[group as usize].fetch_add(bytes, Ordering::Relaxed);
        metrics::counter!("carillon_commands_applied_total").increment(commands as u64);
        metrics::histogram!("carillon_apply_seconds").record(start.elapsed().as_secs_f64());
        self.tell_driver(group, state, lead, changes);
        for (waiter, results) in answers {
            match waiter {
                Waiter::Commands(sender) => drop(sender.send(Ok(results))),
                other => other.fail(ProposeError::Uncertain),
            }
        }
        failpoints::hit("apply::after_answers");
        self.applied[group as usize].send_replace(last);
        drop(self.completions.send(Completion::Applied { group, index: last }));
        Ok(())
    }

    /// Writes rows and applied index. A failed write may be in memory and not on disk, or the other way round: the process stops and
    /// replays.
    fn commit(&self, group: u32, batch: ApplyBatch<'_>) {
        failpoints::hit("apply::before_batch");
        let written = match failpoints::fails("apply::write_error") {
            true => Err(StateError::Database("fail point apply::write_error".to_owned())),
            false => batch.commit(),
        };
        if let Err(error) = written {
            // A compaction may have met damaged tables of another replica: after the restart that one is fenced and the rest runs.
            if let Err(error) = self.state.note_damage(None, &error) {
                tracing::error!(%error, "the damaged replica cannot be remembered");
            }
            tracing::error!(group, %error, "state write failed; stopping");
            std::process::abort();
        }
        failpoints::hit("apply::after_batch");
    }

    fn tell_driver(
        &self,
        partition: u32,
        state: &mut GroupState,
        lead: Option<u64>,
        changes: Vec<ScheduleChange>,
    ) {
        if let Some(term) = lead {
            state.leading = Some(term);
            // The driver reads the tables from here on, so changes of this batch need not be told.
            drop(self.driver.blocking_send(DriverEvent::Lead { partition, term }));
        } else if state.leading.is_some() && !changes.is_empty() {
            drop(self.driver.blocking_send(DriverEvent::Schedule { partition, changes }));
        }
    }

    fn leads(&self, group: u32, term: u64) -> bool {
        let leaders = self.leaders.borrow();
        leaders.get(&group).is_some_and(|l| l.leader == self.node_id && l.term == term)
    }

    fn apply_meta(&self, state: &mut GroupState, entries: Vec<ApplyEntry>) -> Result<(), String> {
        let mut batch = state.replica.batch().map_err(|e| e.to_string())?;
        let (mut answers, mut changed, mut last) = (Vec::new(), false, 0);
        let mut effects = MetaEffects::default();
        for Awaited { entry, waiters } in entries {
            last = entry.index;
            let meta = EntryMeta { index: entry.index, term: entry.term };
            // Raft's own entries hold nothing for the tables.
            let data = if entry.kind == EntryKind::Normal { entry.data.clone() } else { Bytes::new() };
            meta::apply(&mut batch, meta, &data, &mut effects).map_err(|e| e.to_string())?;
            changed |= effects.changed;
            let mut results = std::mem::take(&mut effects.results).into_iter();
            for (count, waiter) in waiters {
                let texts = results
                    .by_ref()
                    .take(count)
                    .map(|result| result.err().map(|refusal| refusal.to_string()).unwrap_or_default())
                    .collect();
                answers.push((waiter, entry.index, texts));
            }
        }
        self.commit(0, batch);
        self.unflushed[0].fetch_add(1, Ordering::Relaxed);
        if changed {
            let view = MetaView::load(&*state.replica).map_err(|e| e.to_string())?;
            self.meta.store(Arc::new(view));
            self.meta_changed.send_replace(last);
        }
        for (waiter, index, texts) in answers {
            match waiter {
                Waiter::Meta(sender) => drop(sender.send(Ok((index, texts)))),
                other => other.fail(ProposeError::Uncertain),
            }
        }
        self.applied[0].send_replace(last);
        drop(self.completions.send(Completion::Applied { group: 0, index: last }));
        Ok(())
    }
}

fn fail_all(waiters: Vec<(usize, Waiter)>) {
    for (_, waiter) in waiters {
        waiter.fail(ProposeError::Uncertain);
    }
}

/// Only entries that this process appended are looked at.
fn is_own_start(entry: &CommittedEntry, waiters: &[(usize, Waiter)], node_id: u64) -> bool {
    matches!(waiters.first(), Some((1, Waiter::None))) && is_leader_start(entry, node_id)
}
