//! A disk of its own for a node: an ext4 image on a loop mount, and the power cut that loses what was not synced.
//!
//! The cut is ext4's shutdown call without a flush of its journal (FS_IOC_SHUTDOWN, flag 2), which `xfs_io` makes:
//! dirty pages and the journal in memory are gone, every later write or sync gets an I/O error, and the next mount
//! recovers from what the disk has. It models the loss of the page cache, not a disk that lies about a flush. One thing
//! it does wrongly: a sync that is under way at that moment may return success although its data is lost (5 of 150 cuts
//! under a program that does nothing but append and sync; none of 150 when the program stood still). So who stands on
//! the disk must stand still when it is cut (`Rig::cut_power`).

use super::tool::{left_by_the_dead, run};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Sparse: only what is written takes space.
const IMAGE_BYTES: u64 = 2 << 30;
const PREFIX: &str = "crl-disk-";
/// A process that was just killed may hold the mount for a moment.
const BUSY_LIMIT: Duration = Duration::from_secs(10);
const BUSY_POLL: Duration = Duration::from_millis(50);

/// Unmounted when dropped; the image stays for whoever owns the directory.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount_point: PathBuf,
    mounted: bool,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of temporary directories are ASCII")
}

/// Unmounts what processes left behind that are gone.
pub fn sweep() -> Result<(), String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let name = Path::new(point).file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if left_by_the_dead(name, PREFIX) {
            run(&["umount", point])?;
        }
    }
    Ok(())
}

impl Disk {
    /// A new one, formatted and mounted below `dir`.
    pub fn new(dir: &Path, name: &str, bytes: Option<u64>) -> Result<Self, String> {
        let image = dir.join(format!("{name}.ext4"));
        let mount_point = dir.join(format!("{PREFIX}{:x}-{name}", std::process::id()));
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(bytes.unwrap_or(IMAGE_BYTES)).map_err(|e| e.to_string())?;
        std::fs::create_dir(&mount_point).map_err(|e| e.to_string())?;
        run(&[
            "mkfs.ext4",
            "-q",
            "-F",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
            text(&image),
        ])?;
        let mut disk = Self { image, mount_point, mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    /// Where a node may keep its data.
    pub fn data_dir(&self) -> PathBuf {
        self.mount_point.join("data")
    }

    fn mount(&mut self) -> Result<(), String> {
        run(&["mount", "-t", "ext4", "-o", "loop,noatime", text(&self.image), text(&self.mount_point)])?;
        self.mounted = true;
        Ok(())
    }

    /// What was not synced is gone. Whoever uses it must stand still (SIGSTOP). Kill it, then [`Disk::mount_again`].
    pub fn cut_power(&self) -> Result<(), String> {
        run(&["xfs_io", "-x", "-c", "shutdown", text(&self.mount_point)]).map(drop)
    }

    /// After the power came back: recovers the file system as the kernel does at a boot.
    pub fn mount_again(&mut self) -> Result<(), String> {
        self.unmount()?;
        self.mount()
    }

    fn unmount(&mut self) -> Result<(), String> {
        let until = Instant::now() + BUSY_LIMIT;
        while self.mounted {
            match run(&["umount", text(&self.mount_point)]) {
                Ok(_) => self.mounted = false,
                Err(why) if Instant::now() >= until => return Err(why),
                Err(_) => std::thread::sleep(BUSY_POLL),
            }
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            // Out of sight at once, and gone when its last user is.
            let _last_resort = run(&["umount", "-l", text(&self.mount_point)]);
        }
    }
}
