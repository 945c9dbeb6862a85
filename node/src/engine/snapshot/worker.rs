//! The snapshot thread: makes, imports and drops files and families, one after the other. It may be slow; nobody waits for
//! it but the snapshots themselves.
use super::{FEATURE_LEVEL, Hub, Made, Work};
use crate::engine::shard::SnapshotMessage;
use crate::failpoints;
use carillon_consensus::SnapshotFetch;
use carillon_proto::internal::SnapshotManifest;
use carillon_store::snapshot::{ExportOptions, SnapshotError, export};
use carillon_store::{Family, StateError};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use prost::Message as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long a replaced family stays for readers that hold it.
const RETIRE_AFTER: Duration = Duration::from_secs(5);

/// Runs until it is told to stop.
pub(in crate::engine) fn run(hub: &Arc<Hub>, work: &Receiver<Work>) {
    let mut retired: Vec<(Instant, Family)> = Vec::new();
    loop {
        match work.recv_timeout(LOOK_AGAIN) {
            Ok(Work::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Work::Export { group }) => hub.export(group),
            Ok(Work::Import { group, replica_id, fetch, manifest, dir }) => {
                hub.import(group, replica_id, &fetch, &manifest, &dir);
            }
            Ok(Work::Backup { group, reply }) => drop(reply.send(hub.backup(group))),
            Ok(Work::Stage { manifest, dir, reply }) => hub.stage(&manifest, &dir, reply),
            Ok(Work::Tell(message)) => drop(hub.inbox.send(message)),
            Ok(Work::Retire(family)) => retired.push((Instant::now(), family)),
            Ok(Work::DropFamily(family)) => hub.drop_family(family),
            Ok(Work::Destroy { group }) => hub.destroy(group),
            Err(RecvTimeoutError::Timeout) => {}
        }
        for (group, snapshot_id) in hub.expire_exports() {
            hub.tell(group, SnapshotMessage::Gone { snapshot_id });
        }
        let (old, young): (Vec<_>, Vec<_>) =
            retired.into_iter().partition(|(at, _)| at.elapsed() > RETIRE_AFTER);
        retired = young;
        for (_, family) in old {
            hub.drop_family(family);
        }
    }
}

impl Hub {
    fn export(&self, group: u32) {
        let start = Instant::now();
        let made = match self.make(group) {
            Ok((snapshot_id, manifest)) => {
                tracing::info!(
                    group,
                    index = manifest.index,
                    bytes = manifest.bytes,
                    rows = manifest.rows,
                    took_ms = start.elapsed().as_millis() as u64,
                    "snapshot made"
                );
                metrics::histogram!("carillon_snapshot_export_seconds").record(start.elapsed().as_secs_f64());
                let encoded = manifest.encode_to_vec().into();
                let made =
                    Made { snapshot_id, index: manifest.index, term: manifest.term, manifest: encoded };
                self.add_export(manifest, self.export_dir(group, snapshot_id), false);
                Some(made)
            }
            Err(error) => {
                tracing::warn!(group, %error, "snapshot not made");
                metrics::counter!("carillon_snapshot_failures_total", "step" => "export").increment(1);
                None
            }
        };
        self.tell_now(group, SnapshotMessage::Made(made));
    }

    pub(super) fn make(&self, group: u32) -> Result<(u64, SnapshotManifest), SnapshotError> {
        // Random: never used again, also after a restart with another clock.
        let snapshot_id = rand::random::<u64>();
        // With the rows on disk the view pins less memory.
        self.state.flush(group)?;
        let replica = self.state.replica(group)?;
        let options = ExportOptions {
            bytes_per_second: self.bytes_per_second,
            feature_level: FEATURE_LEVEL,
            ..ExportOptions::new(self.node_id, snapshot_id)
        };
        let stop = || self.stopping();
        failpoints::hit("snapshot::before_export");
        let manifest = export(&replica, &self.export_dir(group, snapshot_id), &options, &stop)?;
        failpoints::hit("snapshot::after_export");
        Ok((snapshot_id, manifest))
    }

    fn import(
        &self,
        group: u32,
        replica_id: u64,
        fetch: &SnapshotFetch,
        manifest: &SnapshotManifest,
        dir: &Path,
    ) {
        let (start, generation) = (Instant::now(), self.state.next_generation(group));
        let result = self.state.import(Family { group, generation }, manifest, dir);
        if let Err(error) = fs_err::remove_dir_all(dir) {
            tracing::debug!(%error, "fetched files stay behind");
        }
        let generation = match result {
            Ok(()) => {
                metrics::histogram!("carillon_snapshot_import_seconds").record(start.elapsed().as_secs_f64());
                Some(generation)
            }
            Err(error) => {
                tracing::warn!(group, %error, "snapshot not imported");
                metrics::counter!("carillon_snapshot_failures_total", "step" => "import").increment(1);
                self.report(group, replica_id, fetch.from, fetch.index, false);
                None
            }
        };
        self.tell_now(group, SnapshotMessage::Fetched { index: fetch.index, term: fetch.term, generation });
    }

    fn tell_now(&self, group: u32, message: SnapshotMessage) {
        drop(self.inbox.send(crate::engine::shard::ShardMessage::Snapshot { group, message }));
    }

    pub(super) fn drop_family(&self, family: Family) {
        match self.state.destroy_generation(family) {
            Ok(()) => tracing::debug!(%family, "family dropped"),
            Err(StateError::NoReplica(_)) => {}
            Err(error) => stop_on(&error),
        }
    }

    fn destroy(&self, group: u32) {
        if let Err(error) = self.state.destroy(group) {
            stop_on(&error);
        }
        self.tell_now(group, SnapshotMessage::Destroyed);
    }
}

/// A failed change of the database is final, as everywhere.
fn stop_on(error: &StateError) {
    tracing::error!(%error, "state family could not be dropped; stopping");
    std::process::abort();
}
