//! What happens before a group runs: it is created if it is new, and what the log knows beyond the durable state is applied
//! again with the effects dropped. So applied is close to commit before the first election.
use super::handle::Hosted;
use crate::failpoints;
use crate::meta::Membership;
use bytes::Bytes;
use carillon_consensus::{Group, GroupConfig, GroupError, GroupWrite, LogError, LogStore, bootstrap_write};
use carillon_core::{Applier as CoreApplier, Effects, EntryMeta, TableError, meta};
use carillon_proto::internal::ReplicaRole;
use carillon_proto::replica::node_of;
use carillon_store::{EngineLog, FIRST_GENERATION, StateDb, StateError};
use raft::eraftpb::EntryType;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of entries read at a time.
const PAGE_BYTES: u64 = 4 << 20;

/// Creates this node's replicas of the groups of a new cluster; every founding node works out the same places. One
/// synced write.
pub(super) fn create_groups(log: &EngineLog, membership: &Membership) -> anyhow::Result<()> {
    let mut writes = Vec::new();
    for group in 0..=membership.partitions {
        let record = meta::place::founding(group, &membership.founders);
        let of = |role| record.replicas.iter().filter(move |r| r.role() == role).map(|r| r.replica_id);
        let own = record.replicas.iter().find(|r| r.node_id == membership.node_id);
        let Some(own) = own else { continue };
        let mut write = bootstrap_write(group, &of(ReplicaRole::Voter).collect::<Vec<_>>());
        if let Some((conf, _)) = &mut write.conf {
            conf.learners = of(ReplicaRole::Learner).collect();
        }
        writes.push(GroupWrite { replica_id: Some(own.replica_id), ..write });
    }
    failpoints::hit("recovery::before_found");
    log.write(&writes, true)?;
    failpoints::hit("recovery::after_found");
    Ok(())
}

/// The replicas of this node, after what an interrupted install or removal left was cleared away: a replica that is not in
/// its membership any more ends, and only the state that the log names stays.
pub(super) fn settle(log: &EngineLog, state: &StateDb, node_id: u64) -> anyhow::Result<Hosted> {
    let (mut hosted, mut live) = (Hosted::new(), BTreeMap::new());
    for group in log.groups() {
        let stored = match log.load(group) {
            Ok(Some(stored)) => stored,
            Ok(None) => continue,
            // Out of service, see `open_group`; what there is of its state stays.
            Err(_) if log.damaged().contains_key(&group) => {
                let families = state.families().into_iter().filter(|family| family.group == group);
                live.insert(group, families.map(|f| f.generation).max().unwrap_or(FIRST_GENERATION));
                hosted.insert(group, node_id);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let replica_id = if stored.replica_id == 0 { node_id } else { stored.replica_id };
        anyhow::ensure!(
            node_of(replica_id) == node_id,
            "replica {replica_id} of group {group} is of another node"
        );
        let conf = &stored.conf_state;
        let members: Vec<&u64> =
            conf.voters.iter().chain(&conf.learners).chain(&conf.voters_outgoing).collect();
        let joins = members.is_empty() && stored.last_index == 0;
        if !joins && !members.contains(&&replica_id) {
            tracing::info!(group, replica_id, "this replica was removed from its group; its data goes");
            failpoints::hit("replica::before_remove");
            log.write(&[GroupWrite::remove(group)], true)?;
            failpoints::hit("replica::after_remove");
            continue;
        }
        live.insert(group, stored.generation.max(FIRST_GENERATION));
        hosted.insert(group, replica_id);
    }
    for family in state.keep_only(&live)? {
        tracing::info!(%family, "dropped a state that the log does not name");
    }
    Ok(hosted)
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
            let normal = entry.entry_type == EntryType::EntryNormal;
            // Changes of the membership that are not in force yet are left to raft, which must see them itself.
            if !normal && entry.index > stored.conf_index {
                batch.commit()?;
                return Ok(applied);
            }
            let meta = EntryMeta { index: entry.index, term: entry.term };
            applied = entry.index;
            if group == 0 {
                let data = if normal { entry.data } else { Bytes::new() };
                meta::apply(&mut batch, meta, &data, &mut meta_effects)?;
            } else if !normal {
                core.pass(&mut batch, meta);
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
