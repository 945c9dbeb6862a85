//! What happens before a group runs: it is created if it is new, and what the log knows beyond the durable state is applied
//! again with the effects dropped. So applied is close to commit before the first election.
use crate::failpoints;
use carillon_consensus::{LogStore, bootstrap_write};
use carillon_core::{Applier as CoreApplier, Effects, EntryMeta, meta};
use carillon_store::{EngineLog, StateDb};
use raft::eraftpb::EntryType;

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
