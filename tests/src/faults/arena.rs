//! Where a cluster lives that is to be hurt: networks, disks and clocks as far as they are needed, and the placements
//! of its nodes.

use super::{Clock, Disk, Net, clock, disk};
use carillon_ctl::lab::{LabOptions, Placement};
use std::path::Path;

/// What a suite needs of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    pub net: bool,
    pub disks: bool,
    pub clock: bool,
}

impl Needs {
    pub const NET: Self = Self { net: true, disks: false, clock: false };
    pub const DISKS: Self = Self { net: false, disks: true, clock: false };
    pub const CLOCK: Self = Self { net: false, disks: false, clock: true };
    pub const ALL: Self = Self { net: true, disks: true, clock: true };
}

/// Undone when dropped; drop the cluster first.
#[derive(Debug, Default)]
pub struct Arena {
    pub net: Option<Net>,
    /// Of node 1, 2 and so on.
    pub disks: Vec<Disk>,
    pub clock: Option<Clock>,
}

/// What this machine lacks, by trying it; `None` if all is there.
pub fn missing(needs: Needs) -> Option<String> {
    let tried = || -> Result<(), String> {
        let own = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
        let is_root = own.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"));
        if (needs.net || needs.disks) && !is_root {
            return Err("needs root".to_owned());
        }
        if needs.net {
            // Also tries nft, by loading the empty rules.
            drop(Net::new(1)?);
        }
        if needs.disks {
            let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
            let disk = Disk::new(dir.path(), "probe", Some(16 << 20))?;
            disk.cut_power()?;
            if std::fs::write(disk.data_dir(), b"x").is_ok() {
                return Err("a power cut does not stop writes here".to_owned());
            }
        }
        if needs.clock { clock::probe() } else { Ok(()) }
    };
    tried().err()
}

impl Arena {
    /// Makes what is needed for `nodes` nodes, files below `dir`.
    pub fn new(dir: &Path, nodes: u64, needs: Needs) -> Result<Self, String> {
        let mut arena = Self::default();
        if needs.net {
            arena.net = Some(Net::new(nodes)?);
        }
        if needs.disks {
            disk::sweep()?;
            for node in 1..=nodes {
                arena.disks.push(Disk::new(dir, &format!("n{node}"), None)?);
            }
        }
        if needs.clock {
            arena.clock = Some(Clock::new(dir, nodes)?);
        }
        Ok(arena)
    }

    fn placement(&self, node: u64) -> Placement {
        Placement {
            address: self.net.as_ref().map(|net| net.address(node)),
            data_dir: self.disks.get(node as usize - 1).map(Disk::data_dir),
            command_prefix: self.net.as_ref().map(|net| net.command_prefix(node)).unwrap_or_default(),
            env: self.clock.as_ref().map(|clock| clock.env(node)).unwrap_or_default(),
        }
    }

    /// The same lab, but here.
    pub fn place(&self, options: LabOptions) -> LabOptions {
        let placements = (1..=options.nodes).map(|node| self.placement(node)).collect();
        let smsc_address = self.net.as_ref().map(|net| net.address(super::HOST));
        LabOptions { placements, smsc_address, ..options }
    }

    pub fn net(&self) -> &Net {
        self.net.as_ref().expect("the suite asked for a network")
    }

    pub fn clock(&self) -> &Clock {
        self.clock.as_ref().expect("the suite asked for clocks")
    }

    /// Power cuts at once, as far as tools can be.
    pub fn cut_power(&self, nodes: &[u64]) -> Result<(), String> {
        nodes.iter().try_for_each(|node| self.disks[*node as usize - 1].cut_power())
    }
}
