//! The glue of snapshots, as the simulator runs it: a mirror of `node/src/engine/snapshot` around the same `Group`. The
//! files of a snapshot are a copy of the tables; they travel outside raft, late or not at all.
use super::plant::Plant;
use super::world::{Event, World};
use carillon_consensus::{OfferError, SnapshotFetch, SnapshotMark};
use carillon_core::{Applier, MemTables, Tables as _, applied_record};
use carillon_proto::replica::node_of;

impl World {
    /// The leader makes a snapshot for a follower whose entries are gone.
    pub fn want_snapshot(&mut self, node: usize, group: u32) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        if std::mem::replace(&mut cell.exporting, true) {
            return;
        }
        let delay = 1 + self.rng.disk.below(400);
        let epoch = self.nodes[node].epoch;
        self.at(delay, Event::Exported { node, epoch, group });
    }

    pub fn exported(&mut self, node: usize, group: u32) {
        let at = &self.nodes[node];
        let Some(store) = at.stores.get(&group).filter(|_| at.cells.contains_key(&group)) else { return };
        if store.is_rotten() {
            return self.block(node, group, "snapshot: block checksum mismatch".to_owned());
        }
        let files = store.tables().clone();
        let Ok(record) = applied_record(&files) else { return };
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        cell.exporting = false;
        if cell.installed.is_some() || cell.group.is_installing() || record.index == 0 {
            return;
        }
        let data = record.index.to_be_bytes().to_vec().into();
        match cell.group.offer_snapshot(record.index, record.term, data) {
            Ok(()) => cell.offered = Some((record.index, files)),
            // Raft asks again if it still needs one.
            Err(OfferError::MembersChanged { .. }) => self.trace.count("snapshot_outdated_by_members"),
            Err(error) => self.oracle.fail(format!("node {} group {group}: {error}", node + 1)),
        }
        let words = [70, node as u64, u64::from(group), record.index];
        self.note(&words, || format!("snap   n{} g{group} offers {}", node + 1, record.index));
        self.pump(node, group);
    }

    pub fn fetch_snapshot(&mut self, node: usize, group: u32, fetch: SnapshotFetch) {
        let delay = 1 + self.rng.net.below(if self.calm { 50 } else { 2_000 });
        let epoch = self.nodes[node].epoch;
        self.at(delay, Event::Fetched { node, epoch, group, fetch });
    }

    /// The files have arrived, or the transfer failed.
    pub fn fetched(&mut self, node: usize, group: u32, fetch: SnapshotFetch) {
        let from = node_of(fetch.from) as usize - 1;
        let offered = self.nodes[from].cells.get(&group).and_then(|cell| cell.offered.as_ref());
        let files = offered.filter(|(index, _)| *index == fetch.index).map(|(_, files)| files.clone());
        let reachable = self.nodes[from].up
            && self.net_delay(from, node).is_some()
            && (self.calm || !self.rng.net.chance(150));
        let Some(files) = files.filter(|_| reachable) else {
            return self.fetch_failed(node, group, &fetch, from);
        };
        let at = &mut self.nodes[node];
        let Some(cell) = at.cells.get_mut(&group) else { return };
        let store = at.stores.get_mut(&group).expect("a replica has a store");
        let generation = store.import(files);
        match cell.group.accept_snapshot(fetch.index, fetch.term, generation) {
            Ok(true) => {}
            Ok(false) => store.drop_import(generation),
            Err(error) => self.oracle.fail(format!("node {} group {group}: {error}", node + 1)),
        }
        self.pump(node, group);
    }

    fn fetch_failed(&mut self, node: usize, group: u32, fetch: &SnapshotFetch, from: usize) {
        self.trace.count("snapshot_fetch_failed");
        let Some(replica) = self.nodes[node].replicas.get(&group).copied() else { return };
        if let Some(cell) = self.nodes[node].cells.get_mut(&group) {
            cell.group.refuse_snapshot(fetch.index, fetch.term);
        }
        self.pump(node, group);
        // The report may get lost, too; then the deadline counts.
        if self.rng.net.chance(500)
            && let Some(cell) = self.nodes[from].cells.get_mut(&group)
        {
            cell.group.report_snapshot(replica, false);
            self.pump(from, group);
        }
    }

    /// The applier switches to an installed snapshot. False: the replica cannot go on.
    pub fn switch(&mut self, node: usize, group: u32, mark: SnapshotMark) -> bool {
        let id = self.nodes[node].id;
        self.trace.count("snapshot_install");
        self.note(&[71, id, u64::from(group), mark.index], || {
            format!("snap   n{id} g{group} goes on from {}", mark.index)
        });
        self.step_down(node, group);
        self.choose_family(node, group, mark.generation);
        let store = &self.nodes[node].stores[&group];
        let index = applied_record(store).map_or(0, |record| record.index);
        let opened = Applier::open(store);
        if index != mark.index {
            let text = format!("I3 node {id} group {group}: snapshot {} holds entry {index}", mark.index);
            self.oracle.fail(text);
        }
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return false };
        match opened {
            Ok(core) => cell.core = core,
            Err(error) => {
                self.block(node, group, error.to_string());
                return false;
            }
        }
        cell.group.applied(mark.index);
        if group == 0 {
            self.load_meta(node);
            self.sync_lanes(node);
        }
        true
    }

    /// Makes the state that the log names the live one.
    pub fn choose_family(&mut self, node: usize, group: u32, generation: u64) {
        let forgets = match self.plan.plant {
            Some(Plant::KeyForgottenBySnapshot) => Some(b'I'),
            Some(Plant::ContentForgottenBySnapshot) => Some(b'J'),
            _ => None,
        };
        let up = self.nodes[node].up;
        let store = self.nodes[node].stores.get_mut(&group).expect("every group has a store");
        if store.generation() == generation {
            if !up {
                store.drop_imports();
            }
            return;
        }
        if !store.install(generation, |files| {
            if let Some(table) = forgets {
                forget_table(files, table)
            }
        }) {
            self.oracle.fail(format!("I1 node {} group {group}: no state {generation}", node + 1));
        } else if !up {
            self.trace.count("snapshot_install_at_restart");
        }
    }
}

/// Planted bug: a table does not travel.
fn forget_table(files: &mut MemTables, table: u8) {
    let keys: Vec<Vec<u8>> = files.rows().keys().filter(|key| key.first() == Some(&table)).cloned().collect();
    keys.into_iter().for_each(|key| files.delete(key));
}
