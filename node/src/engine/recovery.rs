//! What happens before a group runs: it is created if it is new, and what the log knows beyond the durable state is applied
//! again with the effects dropped. So applied is close to commit before the first election.
use crate::failpoints;
use carillon_consensus::{Group, GroupConfig, GroupError, LogError, LogStore, bootstrap_write};
use carillon_core::{Applier as CoreApplier, Effects, EntryMeta, TableError, meta};
use carillon_store::{EngineLog, StateDb, StateError};
use raft::eraftpb::EntryType;
use std::sync::Arc;

/// Bytes of entries read at a time.
const PAGE_BYTES: u64 = 4 << 20;

/// Creates missing groups with all members as voters. One synced write.
pub(super) fn create_groups(log: &EngineLog, groups: &[u32], members: &[u64]) -> anyhow::Result<()> {
    let mut writes = Vec::new();
    for group in groups {
        if log.load(*group)?.is_none() {
            writes.push(bootstrap_write(*group, members));
        }
    }
    if !writes.is_empty() {
        log.write(&writes, true)?;
    }
    Ok(())
}

/// Applies everything that is known to be committed. Returns the applied index.
pub(super) fn replay(log: &EngineLog, state: &StateDb, group: u32) -> anyhow::Result<u64> {
    let replica = state.replica(group)?;
    let Some(stored) = log.load(group)? else { anyhow::bail!("group {group} does not exist") };
    let commit = stored.hard_state.commit;
    let mut core = CoreApplier::open(&*replica)?;
    core.set_permits(false);
    let mut applied = core.last().index;
    let first = applied;
    let (mut effects, mut meta_effects) = (Effects::default(), meta::MetaEffects::default());
    if applied < commit {
        failpoints::hit("recovery::before_replay");
    }
    while applied < commit {
        let entries = log.entries(group, applied + 1, commit + 1, PAGE_BYTES)?;
        let mut batch = replica.batch()?;
        for entry in entries {
            // Configuration changes are left to raft, which must see them itself.
            if entry.entry_type != EntryType::EntryNormal {
                batch.commit()?;
                return Ok(applied);
            }
            let meta = EntryMeta { index: entry.index, term: entry.term };
            applied = entry.index;
            if group == 0 {
                meta::apply(&mut batch, meta, &entry.data, &mut meta_effects)?;
            } else {
                core.apply(&mut batch, meta, &entry.data, &mut effects)?;
            }
        }
        batch.commit()?;
        failpoints::hit("recovery::after_batch");
    }
    if applied > first {
        tracing::info!(group, from = first, to = applied, "replayed the log");
    }
    Ok(applied)
}

/// Brings one group up to what it knows. `Ok(Err(reason))`: this replica cannot run, the others can.
pub(super) fn open_group(
    log: &Arc<EngineLog>,
    state: &StateDb,
    config: GroupConfig,
) -> anyhow::Result<Result<(Group, u64), String>> {
    let group = config.group;
    if let Some(reason) = log.damaged().get(&group) {
        return Ok(Err(reason.clone()));
    }
    if let Some((family, reason)) = state.damaged().into_iter().find(|(family, _)| family.group == group) {
        return Ok(Err(format!("state of replica {family} is damaged: {reason}")));
    }
    let opened = replay(log, state, group).and_then(|applied| {
        let log = Arc::clone(log) as Arc<dyn LogStore>;
        Ok((Group::open(config, log, applied)?, applied))
    });
    match opened {
        Ok(opened) => Ok(Ok(opened)),
        Err(error) if is_of_this_replica(&error) => Ok(Err(format!("{error:#}"))),
        Err(error) => Err(error),
    }
}

/// Whether the stored bytes of one replica are at fault, and not the disk or the configuration.
fn is_of_this_replica(error: &anyhow::Error) -> bool {
    let by_log = |error: &LogError| !matches!(error, LogError::Io(_));
    if let Some(error) = error.downcast_ref::<GroupError>() {
        return match error {
            GroupError::AppliedAheadOfLog { .. }
            | GroupError::AppliedBehindLog { .. }
            | GroupError::CommitAheadOfLog { .. } => true,
            GroupError::Log(error) => by_log(error),
            _ => false,
        };
    }
    error.downcast_ref::<LogError>().is_some_and(by_log)
        || error.downcast_ref::<TableError>().is_some()
        || error.downcast_ref::<StateError>().is_some_and(StateError::is_damage)
}
