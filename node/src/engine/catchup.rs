//! Snapshots, the shard's side: it passes what raft wants to the [`Hub`](super::snapshot::Hub) and what the hub has done to
//! raft. Nothing here waits.
use super::applier::ApplyMessage;
use super::cell::Cell;
use super::handle::ProposeError;
use super::shard::{Shard, SnapshotMessage};
use super::snapshot::{Made, Work};
use carillon_consensus::{SnapshotFetch, SnapshotMark};
use carillon_proto::replica::node_of;
use carillon_store::Family;

impl Shard {
    /// Raft needs a snapshot for a follower and has none that fits.
    pub(super) fn want_snapshot(&mut self, group: u32, replica: u64) {
        let Some(cell) = self.cells.get_mut(&group) else { return };
        if !std::mem::replace(&mut cell.snapshots.making, true) {
            tracing::info!(group, replica, node = node_of(replica), "a follower needs a snapshot");
            self.snapshots.ask(Work::Export { group });
        }
    }

    pub(super) fn fetch_snapshot(&mut self, group: u32, fetch: SnapshotFetch) {
        let Some(cell) = self.cells.get_mut(&group) else { return };
        tracing::info!(group, index = fetch.index, from = node_of(fetch.from), "a snapshot is announced");
        cell.snapshots.fetching_from = fetch.from;
        self.snapshots.fetch(group, cell.replica_id(), fetch);
    }

    /// The snapshot is durable in the log: the applier switches.
    pub(super) fn install_snapshot(&mut self, group: u32, mark: SnapshotMark) {
        let Some(cell) = self.cells.get_mut(&group) else { return };
        for waiter in cell.release.installed(mark.index) {
            waiter.fail(ProposeError::Uncertain);
        }
        cell.snapshots.installing = Some((cell.snapshots.fetching_from, mark.index));
        self.applier.push(ApplyMessage::Install { group, mark });
    }

    /// After an apply: a snapshot that is installed is reported.
    pub(super) fn report_installed(&mut self, group: u32, applied: u64) {
        let Some(cell) = self.cells.get_mut(&group) else { return };
        let done = cell.snapshots.installing.take_if(|(_, index)| applied >= *index);
        if let Some((from, index)) = done {
            tracing::info!(group, index, "snapshot installed");
            metrics::counter!("carillon_snapshot_installs_total").increment(1);
            self.snapshots.report(group, cell.replica_id(), from, index, true);
        }
    }

    pub(super) fn snapshot(&mut self, group: u32, message: SnapshotMessage) {
        if let SnapshotMessage::Destroyed = message {
            return self.destroyed(group);
        }
        let Some(cell) = self.cells.get_mut(&group) else {
            if let SnapshotMessage::Fetched { generation: Some(generation), .. } = message {
                self.snapshots.ask(Work::DropFamily(Family { group, generation }));
            }
            return;
        };
        match message {
            SnapshotMessage::Made(made) => {
                cell.snapshots.making = false;
                if let Some(made) = made {
                    offer(group, cell, made);
                }
            }
            SnapshotMessage::Gone { snapshot_id } => {
                if cell.snapshots.offered == Some(snapshot_id) {
                    cell.snapshots.offered = None;
                    cell.group.withdraw_snapshot();
                }
            }
            SnapshotMessage::Fetched { index, term, generation: None } => {
                cell.group.refuse_snapshot(index, term)
            }
            SnapshotMessage::Fetched { index, term, generation: Some(generation) } => {
                let taken = cell.blocked.is_none() && accept(group, cell, index, term, generation);
                if !taken {
                    self.snapshots.ask(Work::DropFamily(Family { group, generation }));
                }
            }
            SnapshotMessage::Progress { replica } => cell.group.snapshot_progress(replica),
            SnapshotMessage::Reported { replica, installed } => {
                tracing::info!(group, replica, installed, "a follower reports on its snapshot");
                cell.group.report_snapshot(replica, installed);
            }
            SnapshotMessage::Destroyed => {}
        }
    }
}

fn offer(group: u32, cell: &mut Cell, made: Made) {
    match cell.group.offer_snapshot(made.index, made.term, made.manifest) {
        Ok(()) => cell.snapshots.offered = Some(made.snapshot_id),
        // The membership or the leader changed meanwhile; raft asks again if it still needs one. The files expire.
        Err(error) => tracing::info!(group, %error, "snapshot not offered"),
    }
}

fn accept(group: u32, cell: &mut Cell, index: u64, term: u64, generation: u64) -> bool {
    match cell.group.accept_snapshot(index, term, generation) {
        Ok(taken) => taken,
        Err(error) => {
            tracing::info!(group, %error, "snapshot not taken");
            false
        }
    }
}
