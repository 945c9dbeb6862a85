//! The start of a node, as the simulator runs it: a mirror of `node/src/engine/recovery.rs`, `identity.rs` and `meta/enter.rs`.
//! Whose disk is it, which replicas live here, and what the log knows beyond the durable state is applied again.
use super::oracle::Applied;
use super::plant::Plant;
use super::rng::{self, hash};
use super::wing::Wing;
use super::world::{Event, World};
use carillon_consensus::{GroupConfig, GroupWrite, LogStore, bootstrap_write};
use carillon_core::meta::{self, MetaEffects, place};
use carillon_core::{Applier, Effects, EntryMeta, applied_record};
use carillon_proto::internal::ReplicaRole;
use carillon_proto::replica::node_of;
use raft::eraftpb::EntryType;
use std::sync::Arc;

impl World {
    /// This node's replicas of the groups of a new cluster; every founding node works out the same places.
    pub fn create_groups(&mut self, node: usize) {
        let founders: Vec<u64> = (1..=self.plan.nodes as u64).collect();
        let mut writes = Vec::new();
        for group in 0..=self.plan.partitions {
            let record = place::founding(group, &founders);
            let of = |role| record.replicas.iter().filter(move |r| r.role() == role).map(|r| r.replica_id);
            let own = record.replicas.iter().find(|r| r.node_id == self.nodes[node].id);
            let Some(own) = own else { continue };
            let mut write = bootstrap_write(group, &of(ReplicaRole::Voter).collect::<Vec<_>>());
            if let Some((conf, _)) = &mut write.conf {
                conf.learners = of(ReplicaRole::Learner).collect();
            }
            writes.push(GroupWrite { replica_id: Some(own.replica_id), ..write });
        }
        // Only a disk that became full meanwhile does not take it; then it is not ready, and the next start comes here again.
        self.nodes[node].ready = self.nodes[node].disk.write(&writes, true).is_ok();
    }

    /// Starts the process, if it may run: replays what the log knows beyond the durable state, then opens the groups.
    pub fn restart(&mut self, node: usize) {
        if self.nodes[node].up || self.nodes[node].lost || !self.may_start(node) {
            return;
        }
        // Whatever the process did after it had stopped itself.
        self.nodes[node].forget();
        self.nodes[node].wing = Wing::new(self.plan.settings.window_rows);
        let (id, level) = (self.nodes[node].id, self.nodes[node].level);
        self.note(&[10, id, level.into()], || format!("start  n{id} at level {level}"));
        let Some(hosted) = self.settle(node) else {
            // A disk that is full; its operator tries again.
            return self.at(1_000, Event::Restart { node });
        };
        for (group, replica_id) in hosted {
            self.nodes[node].replicas.insert(group, replica_id);
            match self.open(node, group, replica_id) {
                Ok(cell) => drop(self.nodes[node].cells.insert(group, cell)),
                Err(reason) => self.cannot_open(node, group, reason),
            }
        }
        self.nodes[node].up = true;
        self.nodes[node].started_ms = self.now_ms;
        self.load_meta(node);
        let epoch = self.nodes[node].epoch;
        let first = 1 + self.rng.ticks.below(super::world::TICK_MS);
        self.at(first, Event::Tick { node, epoch });
        self.at(self.plan.rates.flush_ms_max, Event::Flush { node, epoch });
        self.at(first + super::steward::ROUND_MS, Event::Steward { node, epoch });
        self.at(1, Event::Space { node, epoch });
        self.at(first + 500, Event::Retention { node, epoch });
        let groups: Vec<u32> = self.nodes[node].cells.keys().copied().collect();
        for group in groups {
            self.pump(node, group);
        }
        self.sync_lanes(node);
    }

    fn cannot_open(&mut self, node: usize, group: u32, reason: String) {
        let id = self.nodes[node].id;
        self.note(&[11, id, u64::from(group)], || format!("fence  n{id} g{group} {reason}"));
        if !self.nodes[node].stores[&group].is_rotten() && !self.nodes[node].disk.is_rotten_in(group) {
            self.oracle.fail(format!("I1 node {id} group {group} cannot start: {reason}"));
        }
        self.trace.count("replica_fenced");
        self.nodes[node].blocked.insert(group, reason);
    }

    /// A new directory asks the others before it takes part: who is known with another one has lost its disk. Nodes that
    /// cannot be reached say nothing; they check for themselves what it sends.
    fn may_start(&mut self, node: usize) -> bool {
        if self.nodes[node].ready {
            return true;
        }
        let (id, store_id) = (self.nodes[node].id, self.nodes[node].store_id);
        let mut refused = !self.nodes[node].founder && self.nodes[node].wiped;
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let reached = self.nodes[other].up
                && self.net_delay(node, other).is_some()
                && self.net_delay(other, node).is_some();
            let known = self.nodes[other].known_stores.get(&id).copied();
            refused |= reached && known.is_some_and(|known| known != store_id);
        }
        if refused && !self.planted(Plant::WipedComesBack) {
            self.note(&[84, id], || format!("refuse n{id}: another store is known"));
            self.trace.count("wiped_disk_refused");
            self.nodes[node].lost = true;
            return false;
        }
        match self.nodes[node].founder {
            true => self.create_groups(node),
            false => self.nodes[node].ready = true,
        }
        if !self.nodes[node].ready {
            self.at(1_000, Event::Restart { node });
        }
        self.nodes[node].ready
    }

    /// The replicas of this node, after what an interrupted removal left was cleared away: a replica that is not in its
    /// membership any more ends, and only the state that the log names stays. `None`: the disk takes no write.
    fn settle(&mut self, node: usize) -> Option<Vec<(u32, u64)>> {
        let mut hosted = Vec::new();
        for group in 0..=self.plan.partitions {
            let at = &mut self.nodes[node];
            let Some(stored) = at.disk.load(group).ok().flatten() else {
                at.stores.remove(&group);
                continue;
            };
            let replica_id = if stored.replica_id == 0 { at.id } else { stored.replica_id };
            let conf = &stored.conf_state;
            let members: Vec<&u64> =
                conf.voters.iter().chain(&conf.learners).chain(&conf.voters_outgoing).collect();
            let joins = members.is_empty() && stored.last_index == 0;
            if !joins && !members.contains(&&replica_id) {
                at.disk.write(&[GroupWrite::remove(group)], true).ok()?;
                at.stores.remove(&group);
                self.trace.count("removed_replica_cleared_at_start");
                continue;
            }
            if node_of(replica_id) != self.nodes[node].id {
                self.oracle
                    .fail(format!("I3 node {} hosts replica {replica_id:x} of another node", node + 1));
            }
            self.nodes[node].stores.entry(group).or_default();
            hosted.push((group, replica_id));
        }
        Some(hosted)
    }

    pub fn group_config(&self, node: usize, group: u32, replica_id: u64) -> GroupConfig {
        let seed = rng::mix(self.plan.seed ^ self.nodes[node].epoch);
        let mut config = GroupConfig::new(group, replica_id, seed);
        if self.plan.small_limits {
            config.max_size_per_msg = 2_000;
            config.max_inflight_msgs = 8;
            config.committed_bytes_max = 2_000;
            config.unapplied_bytes_max = 8_000;
            config.cache_bytes_max = 6_000;
            config.uncommitted_bytes_max = 40_000;
        }
        config.snapshot_ticks_max = 60;
        config.planted_batch_append = self.planted(Plant::BatchAppend);
        config.skip_commit_broadcast = !config.planted_batch_append;
        if self.planted(Plant::Priorities) {
            let preferred = u64::from(group) % self.plan.nodes as u64 + 1;
            config.priority = i64::from(preferred == self.nodes[node].id);
        }
        config
    }

    fn open(&mut self, node: usize, group: u32, replica_id: u64) -> Result<super::node::Cell, String> {
        let log: Arc<dyn LogStore> = Arc::clone(&self.nodes[node].disk) as Arc<dyn LogStore>;
        // The log is read as a whole when it is opened.
        if self.nodes[node].disk.is_rotten_in(group) && !self.planted(Plant::LogRotIgnored) {
            self.trace.count("log_rot_found_at_start");
            return Err("an entry of the log is damaged".to_owned());
        }
        let stored = log.load(group).map_err(|e| e.to_string())?.ok_or("the group does not exist")?;
        self.choose_family(node, group, stored.generation);
        let applied = self.replay(node, group, &*log)?;
        self.open_group(node, group, replica_id, applied)
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
                let normal = entry.entry_type == EntryType::EntryNormal;
                // Changes of the membership that are not in force yet are left to raft, which must see them itself.
                if !normal && entry.index > stored.conf_index {
                    return Ok(applied);
                }
                let meta = EntryMeta { index: entry.index, term: entry.term };
                applied = entry.index;
                let store = self.nodes[node].stores.get_mut(&group).expect("every group has a store");
                let mut batch = store.batch();
                let (mut effects, mut meta_effects) = (Effects::default(), MetaEffects::default());
                let data = if normal { entry.data.clone() } else { Default::default() };
                if group == 0 {
                    meta::apply(&mut batch, meta, &data, &mut meta_effects).map_err(|e| text(&e))?;
                } else if normal {
                    core.apply(&mut batch, meta, &data, &mut effects).map_err(|e| text(&e))?;
                } else {
                    core.pass(&mut batch, meta);
                }
                batch.commit();
                let digest = applied_record(store).map_err(|e| text(&e))?.digest.to_vec();
                let found = Applied { term: entry.term, data: hash(&data), digest };
                self.understands(node, group, &data, &meta_effects);
                if self.oracle.first_to_apply(group, self.nodes[node].id, entry.index, found) {
                    // Committed and acknowledged by nobody so far; its events are followed all the same.
                    self.follow(node, group, &data, &effects);
                }
            }
        }
        if applied > first {
            self.trace.count("state_lost_and_replayed");
        }
        Ok(applied)
    }
}
