//! A wall clock of its own for a node, by libfaketime: it jumps while the node runs, and the monotonic clock does not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where Debian and Ubuntu put the library for programs with threads.
const LIBRARY: &str = "libfaketimeMT.so.1";
const PLACES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
    "/usr/lib64/faketime",
    "/usr/lib/faketime",
];

/// The clocks of all nodes.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    dir: PathBuf,
}

/// The library, if it is installed.
pub fn library() -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join(LIBRARY)).find(|path| path.is_file())
}

impl Clock {
    /// The clocks of `nodes` nodes, all right at first.
    pub fn new(dir: &Path, nodes: u64) -> Result<Self, String> {
        let library = library().ok_or_else(|| format!("no {LIBRARY}; install libfaketime"))?;
        let clock = Self { library, dir: dir.to_owned() };
        (1..=nodes).try_for_each(|node| clock.set(node, 0))?;
        Ok(clock)
    }

    fn file(&self, node: u64) -> PathBuf {
        self.dir.join(format!("clock-{node}"))
    }

    pub fn env(&self, node: u64) -> BTreeMap<String, String> {
        let path = |path: &Path| path.display().to_string();
        let pairs = [
            ("LD_PRELOAD", path(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", path(&self.file(node))),
            // Look at the file each time, so that a jump counts at once.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Lets a node's clock be off by this much from now on.
    pub fn set(&self, node: u64, offset_s: i64) -> Result<(), String> {
        let (path, new) = (self.file(node), self.dir.join(format!("clock-{node}.new")));
        // A reader must never see half of it.
        std::fs::write(&new, format!("{offset_s:+}s\n")).map_err(|e| e.to_string())?;
        std::fs::rename(new, path).map_err(|e| e.to_string())
    }
}
