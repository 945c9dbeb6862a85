//! What a process costs, from `/proc`: processor time and resident memory.

use std::time::Duration;

/// Units of the times in `/proc/PID/stat`. The kernel fixes it at 100 for programs on x86-64 and arm64.
const TICKS_PER_SECOND: u64 = 100;

/// A process that cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("process {pid}: {why}")]
pub struct ProcError {
    pid: String,
    why: String,
}

fn read(pid: &str, file: &str) -> Result<String, ProcError> {
    fs_err::read_to_string(format!("/proc/{pid}/{file}"))
        .map_err(|e| ProcError { pid: pid.to_owned(), why: e.to_string() })
}

/// Processor time used so far, by all threads, in user and kernel mode.
pub fn cpu_time(pid: Option<u32>) -> Result<Duration, ProcError> {
    let pid = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let stat = read(&pid, "stat")?;
    parse_cpu(&stat).ok_or_else(|| ProcError { pid, why: "stat does not parse".to_owned() })
}

/// Fields 14 and 15, counted after the name, which may hold spaces and brackets.
fn parse_cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

/// Resident memory now, in octets.
pub fn rss_bytes(pid: u32) -> Result<u64, ProcError> {
    let status = read(&pid.to_string(), "status")?;
    parse_rss(&status)
        .ok_or_else(|| ProcError { pid: pid.to_string(), why: "status does not parse".to_owned() })
}

fn parse_rss(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_after_a_name_with_brackets() {
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 4 0 100 0 0";
        assert_eq!(parse_cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse_cpu("77 (x"), None);
        assert_eq!(parse_rss("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2 << 20));
    }

    #[test]
    fn our_own_time_grows_as_we_work() {
        let before = cpu_time(None).unwrap();
        let mut n = 1u64;
        while cpu_time(None).unwrap() < before + Duration::from_millis(20) {
            n = std::hint::black_box(n.wrapping_mul(31));
        }
        assert!(rss_bytes(std::process::id()).unwrap() > 100_000);
        assert!(cpu_time(Some(u32::MAX)).is_err());
    }
}
