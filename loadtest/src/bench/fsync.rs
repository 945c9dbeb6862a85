//! What the disk itself can do: append 64 KiB, fdatasync, again; without a pause, or now and then beside a load.
//!
//! Bounds: the file is begun anew at [`FILE_BYTES_MAX`], and removed at the end.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::measure::Latency;

pub const APPEND_BYTES: usize = 64 << 10;
pub const FILE_BYTES_MAX: usize = 64 << 20;

/// Between two appends beside a load: 3 MB/s, which hardly changes what is measured.
pub const BESIDE_A_LOAD: Duration = Duration::from_millis(20);

/// Times of append + fdatasync in `dir`, for `length`, with a `pause` between them.
pub fn run(dir: &Path, length: Duration, pause: Duration) -> std::io::Result<Latency> {
    let path = dir.join(format!("fsync-probe-{}.tmp", std::process::id()));
    let times = probe(&path, length, pause);
    // Also after an error; what counts is the result of the probe.
    let _removed = fs_err::remove_file(&path);
    times
}

fn probe(path: &Path, length: Duration, pause: Duration) -> std::io::Result<Latency> {
    // Not all zeros, so that no layer below can be clever.
    let block: Vec<u8> = (0..APPEND_BYTES).map(|i| (i * 31 + (i >> 8)) as u8).collect();
    let (mut times, until) = (Latency::default(), Instant::now() + length);
    loop {
        let mut file = fs_err::File::create(path)?;
        for _ in 0..FILE_BYTES_MAX / APPEND_BYTES {
            let begun = Instant::now();
            if begun >= until && times.count() > 0 {
                return Ok(times);
            }
            file.write_all(&block)?;
            file.sync_data()?;
            times.record(begun.elapsed(), 1);
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_measures_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        for pause in [Duration::ZERO, Duration::from_millis(10)] {
            let times = run(dir.path(), Duration::from_millis(50), pause).unwrap();
            assert!(times.count() > 0 && times.summary().p50_ms > 0.0);
            assert!(pause.is_zero() || times.count() <= 6, "it waits in between");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(run(Path::new("/nowhere"), Duration::ZERO, Duration::ZERO).is_err());
    }
}
