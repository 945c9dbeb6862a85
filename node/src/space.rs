//! Room on the disk: looks how full it is, says so to maintenance, edge and peers, and keeps the ballast file. What follows
//! from the numbers is in `carillon_core::space`.
//!
//! A write that finds no room at all stops the process, as any failed write does. Peers tell with every frame that they send
//! ([`Space::peer`]). The ballast file is deleted when only a quarter of the limit is left, made again when there is room.
use crate::config::Disk;
pub use carillon_core::space::{DiskSpace, NearFull};
use carillon_core::space::{PeerSpace, SpaceGate, SpaceLimits};
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Name of the ballast file in the data directory.
const BALLAST: &str = "ballast";

/// Where the numbers come from; tests have their own.
pub trait SpaceProbe: Send {
    fn probe(&mut self) -> std::io::Result<DiskSpace>;
}

/// `statvfs` of a directory.
pub struct VolumeProbe(pub PathBuf);

impl SpaceProbe for VolumeProbe {
    fn probe(&mut self) -> std::io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(&self.0)?;
        Ok(DiskSpace {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// Shared by the edge, the peer plane and maintenance.
pub struct Space {
    node_id: u64,
    here: AtomicBool,
    peers: Mutex<PeerSpace>,
    start: Instant,
}

impl Space {
    /// A cluster of this node alone, until [`Space::set_peers`].
    pub fn new(node_id: u64) -> Arc<Self> {
        Arc::new(Self {
            node_id,
            here: AtomicBool::new(false),
            peers: Mutex::new(PeerSpace::new(node_id)),
            start: Instant::now(),
        })
    }

    /// The other nodes; what those that left said is forgotten.
    pub fn set_peers(&self, peers: &[u64]) {
        self.peers.lock().set_members(self.node_id, peers);
    }

    pub fn near_full(&self) -> bool {
        self.here.load(Ordering::Relaxed)
    }

    /// What a peer says about itself.
    pub fn peer(&self, node: u64, near_full: bool) {
        self.peers.lock().hear(node, near_full, self.now_ms());
    }

    /// Whether a peer has sent nothing for `limit`; one that never sent anything is silent.
    pub fn is_silent(&self, node: u64, limit: Duration) -> bool {
        self.peers.lock().silent_ms(node, self.now_ms()).is_none_or(|ms| ms >= limit.as_millis() as u64)
    }

    /// Whether submits are refused now.
    pub fn refusal(&self) -> Option<NearFull> {
        self.peers.lock().refusal(self.near_full(), self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Looks from here on, on a thread of its own: a hung volume must hold up nobody.
    pub fn watch(self: &Arc<Self>, data_dir: &Path, limits: &Disk) -> std::io::Result<()> {
        let mut watcher = Watcher {
            space: Arc::clone(self),
            probe: VolumeProbe(data_dir.to_path_buf()),
            gate: SpaceGate::new(limits_of(limits)),
            ballast: data_dir.join(BALLAST),
            ballast_bytes: limits.ballast_bytes,
        };
        watcher.look();
        std::thread::Builder::new().name("space".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(LOOK_EVERY);
                watcher.look();
            }
        })?;
        Ok(())
    }
}

struct Watcher<P> {
    space: Arc<Space>,
    probe: P,
    gate: SpaceGate,
    ballast: PathBuf,
    ballast_bytes: u64,
}

fn limits_of(disk: &Disk) -> SpaceLimits {
    SpaceLimits { free_percent_min: disk.free_percent_min, free_bytes_min: disk.free_bytes_min }
}

impl<P: SpaceProbe> Watcher<P> {
    fn look(&mut self) {
        let seen = match self.probe.probe() {
            Ok(seen) => seen,
            Err(error) => {
                tracing::warn!(%error, "cannot tell how full the disk is");
                return;
            }
        };
        metrics::gauge!("carillon_disk_free_bytes").set(seen.free_bytes as f64);
        let before = self.gate.near_full();
        let near_full = self.gate.update(seen);
        self.space.here.store(near_full, Ordering::Relaxed);
        metrics::gauge!("carillon_disk_near_full").set(f64::from(u8::from(near_full)));
        if near_full != before {
            let (free_bytes, limit_bytes) = (seen.free_bytes, self.gate.limit_bytes(seen));
            if near_full {
                tracing::error!(free_bytes, limit_bytes, "the disk is nearly full; submits are refused");
            } else {
                tracing::warn!(free_bytes, limit_bytes, "there is room on the disk again");
            }
        }
        self.keep_ballast(seen);
    }

    fn keep_ballast(&self, seen: DiskSpace) {
        let there = self.ballast.exists();
        let done = match there {
            true if self.gate.is_critical(seen) => {
                tracing::error!(free_bytes = seen.free_bytes, "the disk is full; the ballast file goes");
                std::fs::remove_file(&self.ballast)
            }
            false if self.ballast_bytes > 0 && self.gate.has_room_for_ballast(seen, self.ballast_bytes) => {
                make_ballast(&self.ballast, self.ballast_bytes)
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "ballast file");
        }
    }
}

/// Allocates blocks, which writing a hole would not.
fn make_ballast(path: &Path, bytes: u64) -> std::io::Result<()> {
    let file = std::fs::File::create(path)?;
    let allocated = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes);
    if let Err(error) = allocated {
        std::fs::remove_file(path)?;
        return Err(error.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    struct Told(Vec<u64>);

    impl SpaceProbe for Told {
        fn probe(&mut self) -> std::io::Result<DiskSpace> {
            let free = self.0.remove(0);
            Ok(DiskSpace { total_bytes: 1000 * MIB, free_bytes: free * MIB })
        }
    }

    #[test]
    fn refused_at_the_limit_until_a_quarter_more_is_free_and_the_ballast_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(1);
        let ballast = dir.path().join(BALLAST);
        // (MiB free, refused, ballast there)
        let steps = [
            (120, false, false),
            (200, false, true),
            (100, false, true),
            (99, true, true),
            (124, true, true),
            (24, true, false),
            (125, false, false),
            (100, false, false),
            (151, false, true),
        ];
        let mut watcher = Watcher {
            space: Arc::clone(&space),
            probe: Told(steps.iter().map(|step| step.0).collect()),
            gate: SpaceGate::new(SpaceLimits { free_percent_min: 10, free_bytes_min: 2 << 30 }),
            ballast: ballast.clone(),
            ballast_bytes: MIB,
        };
        for (free, refused, there) in steps {
            watcher.look();
            assert_eq!((space.refusal().is_some(), ballast.exists()), (refused, there), "{free} MiB free");
        }
        use std::os::unix::fs::MetadataExt as _;
        assert!(std::fs::metadata(&ballast).unwrap().blocks() * 512 >= MIB, "it occupies its bytes");
    }
}
