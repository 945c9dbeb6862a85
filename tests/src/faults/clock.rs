//! A wall clock of its own for a node: it jumps while the node runs, and the monotonic clock does not.
//!
//! A small preloaded library (`clock_shim.c`, compiled here by `cc`, which building RocksDB needs anyway) adds what is
//! in a file shared with it. libfaketime would be the usual tool; it deadlocks with jemalloc when a node starts.

use super::tool::run;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

const SHIM: &str = include_str!("clock_shim.c");

/// The clocks of all nodes.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    dir: PathBuf,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Compiles the library into `dir`.
fn compile(dir: &Path) -> Result<PathBuf, String> {
    let (source, library) = (dir.join("clock_shim.c"), dir.join("clock_shim.so"));
    std::fs::write(&source, SHIM).map_err(|e| e.to_string())?;
    run(&["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", &text(&library), &text(&source)])?;
    Ok(library)
}

/// Whether clocks can be moved here: asks `date` with one that is an hour ahead.
pub fn probe() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let clock = Clock::new(dir.path(), 1)?;
    let read = |offset_s: i64| -> Result<i64, String> {
        clock.set(1, offset_s)?;
        let env: Vec<String> =
            clock.env(1).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let line = ["env"].into_iter().chain(env.iter().map(String::as_str)).chain(["date", "+%s"]);
        let said = run(&line.collect::<Vec<_>>())?;
        said.trim().parse().map_err(|_| format!("date said {said}"))
    };
    let ahead = read(3_600)? - read(0)?;
    if (3_590..=3_600).contains(&ahead) { Ok(()) } else { Err(format!("an hour became {ahead} s")) }
}

impl Clock {
    /// The clocks of `nodes` nodes, all right at first.
    pub fn new(dir: &Path, nodes: u64) -> Result<Self, String> {
        let clock = Self { library: compile(dir)?, dir: dir.to_owned() };
        (1..=nodes).try_for_each(|node| clock.set(node, 0))?;
        Ok(clock)
    }

    fn file(&self, node: u64) -> PathBuf {
        self.dir.join(format!("clock-{node}"))
    }

    pub fn env(&self, node: u64) -> BTreeMap<String, String> {
        [("LD_PRELOAD", &self.library), ("CARILLON_TEST_CLOCK", &self.file(node))]
            .into_iter()
            .map(|(name, path)| (name.to_owned(), text(path)))
            .collect()
    }

    /// Lets a node's clock be off by this much from now on.
    pub fn set(&self, node: u64, offset_s: i64) -> Result<(), String> {
        // In place, because it is mapped; eight aligned bytes are never seen half written.
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(self.file(node));
        file.and_then(|mut file| file.write_all(&offset_s.to_ne_bytes())).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_moves_for_a_program_that_runs_under_it() {
        probe().unwrap();
    }
}
