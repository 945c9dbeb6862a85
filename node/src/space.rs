//! Room on the disk: whether this node and its peers are nearly full, and whether submits are refused because of it.
//!
//! Nearly full is early: at the limit there is still room for everything that goes on (outcomes, receipts, opt-outs, cancels,
//! flushes, compactions, truncation). Submits are refused while this node is nearly full, or so many members are that the rest
//! would not be a majority; one full follower does not stop the others. A write that finds no room at all stops the process, as
//! any failed write does. It recovers by itself: when a quarter more than the limit is free again.
//!
//! Peers tell with every frame that they send ([`Space::peer`]); what was not heard for [`STALE`] does not count.
//! Owns the ballast file: deleted when only a quarter of the limit is left, made again when there is room.
use crate::config::Disk;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Every node sends heartbeats several times a second.
const STALE: Duration = Duration::from_secs(10);
/// Name of the ballast file in the data directory.
const BALLAST: &str = "ballast";

/// Room on a volume, as an unprivileged process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

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

/// What the limits say about a volume.
#[derive(Debug)]
struct Gate {
    limits: Disk,
    near_full: bool,
}

impl Gate {
    fn limit_bytes(&self, space: DiskSpace) -> u64 {
        let by_percent = space.total_bytes / 100 * u64::from(self.limits.free_percent_min);
        by_percent.min(self.limits.free_bytes_min)
    }

    fn update(&mut self, space: DiskSpace) -> bool {
        let limit = self.limit_bytes(space);
        let leave = limit + limit / 4;
        self.near_full = space.free_bytes < if self.near_full { leave } else { limit };
        self.near_full
    }

    fn is_critical(&self, space: DiskSpace) -> bool {
        space.free_bytes < self.limit_bytes(space) / 4
    }

    fn has_room_for_ballast(&self, space: DiskSpace) -> bool {
        let limit = self.limit_bytes(space);
        space.free_bytes >= limit + limit / 2 + self.limits.ballast_bytes
    }
}

/// Why a submit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NearFull {
    Here,
    Majority,
}

/// Shared by the edge, the peer plane and maintenance.
pub struct Space {
    node_id: u64,
    /// With this node.
    members: Mutex<Vec<u64>>,
    here: AtomicBool,
    peers: Mutex<BTreeMap<u64, (bool, Instant)>>,
}

impl Space {
    /// A cluster of this node alone, until [`Space::set_peers`].
    pub fn new(node_id: u64) -> Arc<Self> {
        Arc::new(Self {
            node_id,
            members: Mutex::new(vec![node_id]),
            here: AtomicBool::new(false),
            peers: Mutex::new(BTreeMap::new()),
        })
    }

    /// The other nodes; what those that left said is forgotten.
    pub fn set_peers(&self, peers: &[u64]) {
        let mut members = vec![self.node_id];
        members.extend(peers.iter().filter(|peer| **peer != self.node_id));
        self.peers.lock().retain(|node, _| members.contains(node));
        *self.members.lock() = members;
    }

    pub fn near_full(&self) -> bool {
        self.here.load(Ordering::Relaxed)
    }

    /// What a peer says about itself.
    pub fn peer(&self, node: u64, near_full: bool) {
        if self.members.lock().contains(&node) {
            self.peers.lock().insert(node, (near_full, Instant::now()));
        }
    }

    /// Whether a peer has sent nothing for `limit`; one that never sent anything is silent.
    pub fn is_silent(&self, node: u64, limit: Duration) -> bool {
        self.peers.lock().get(&node).is_none_or(|(_, heard)| heard.elapsed() >= limit)
    }

    /// Whether submits are refused now.
    pub fn refusal(&self) -> Option<NearFull> {
        if self.near_full() {
            return Some(NearFull::Here);
        }
        let now = Instant::now();
        let full = |(near_full, at): &&(bool, Instant)| *near_full && now.duration_since(*at) < STALE;
        let count = self.peers.lock().values().filter(full).count();
        let members = self.members.lock().len();
        (members.saturating_sub(count) < members / 2 + 1).then_some(NearFull::Majority)
    }

    /// Looks from here on, on a thread of its own: a hung volume must hold up nobody.
    pub fn watch(self: &Arc<Self>, data_dir: &Path, limits: &Disk) -> std::io::Result<()> {
        let mut watcher = Watcher {
            space: Arc::clone(self),
            probe: VolumeProbe(data_dir.to_path_buf()),
            gate: Gate { limits: limits.clone(), near_full: false },
            ballast: data_dir.join(BALLAST),
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
    gate: Gate,
    ballast: PathBuf,
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
        let before = self.gate.near_full;
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
            false if self.gate.limits.ballast_bytes > 0 && self.gate.has_room_for_ballast(seen) => {
                make_ballast(&self.ballast, self.gate.limits.ballast_bytes)
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

    fn limits() -> Disk {
        Disk { free_percent_min: 10, free_bytes_min: 2 << 30, ballast_bytes: MIB }
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
            gate: Gate { limits: limits(), near_full: false },
            ballast: ballast.clone(),
        };
        for (free, refused, there) in steps {
            watcher.look();
            assert_eq!((space.refusal().is_some(), ballast.exists()), (refused, there), "{free} MiB free");
        }
        use std::os::unix::fs::MetadataExt as _;
        assert!(std::fs::metadata(&ballast).unwrap().blocks() * 512 >= MIB, "it occupies its bytes");
    }

    #[test]
    fn the_smaller_limit_counts() {
        let gate = |percent, bytes| Gate {
            limits: Disk { free_percent_min: percent, free_bytes_min: bytes, ballast_bytes: 0 },
            near_full: false,
        };
        let volume = |total_bytes| DiskSpace { total_bytes, free_bytes: 0 };
        assert_eq!(gate(10, 2 << 30).limit_bytes(volume(1000 * MIB)), 100 * MIB);
        assert_eq!(gate(10, 2 << 30).limit_bytes(volume(1 << 40)), 2 << 30);
    }

    #[test]
    fn one_full_follower_stops_nobody_and_a_full_majority_does() {
        let space = Space::new(1);
        space.set_peers(&[2, 3]);
        space.peer(2, true);
        assert_eq!(space.refusal(), None);
        space.peer(9, true);
        assert_eq!(space.refusal(), None, "not a member");
        space.peer(3, true);
        assert_eq!(space.refusal(), Some(NearFull::Majority));
        space.peer(2, false);
        assert_eq!(space.refusal(), None);
        space.here.store(true, Ordering::Relaxed);
        assert_eq!(space.refusal(), Some(NearFull::Here));
    }
}
