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

/// Whether a process runs. One that has ended and was not yet collected by its parent is still listed, and does not.
pub fn runs(pid: u32) -> bool {
    let stat = read(&pid.to_string(), "stat").unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Processor time used so far, by all threads, in user and kernel mode.
pub fn cpu_time(pid: Option<u32>) -> Result<Duration, ProcError> {
    let pid = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let stat = read(&pid, "stat")?;
    let (user, system) =
        parse_times(&stat).ok_or_else(|| ProcError { pid, why: "stat does not parse".to_owned() })?;
    Ok(user + system)
}

/// Fields 14 and 15 (user and system), counted after the name, which may hold spaces and brackets.
fn parse_times(stat: &str) -> Option<(Duration, Duration)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut time = || {
        let ticks: u64 = fields.next()?.parse().ok()?;
        Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    };
    Some((time()?, time()?))
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub user: Duration,
    pub system: Duration,
    /// Of all its threads that live.
    pub context_switches: u64,
    /// Octets that it gave to the disk.
    pub written_bytes: u64,
}

impl Usage {
    /// What came after an earlier look.
    pub fn since(self, before: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
            context_switches: self.context_switches.saturating_sub(before.context_switches),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

/// Looks at a process, or at this one.
pub fn usage(pid: Option<u32>) -> Result<Usage, ProcError> {
    let pid = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let unread = |what: &str| ProcError { pid: pid.clone(), why: format!("{what} does not parse") };
    let (user, system) = parse_times(&read(&pid, "stat")?).ok_or_else(|| unread("stat"))?;
    let tasks = fs_err::read_dir(format!("/proc/{pid}/task"))
        .map_err(|e| ProcError { pid: pid.clone(), why: e.to_string() })?;
    // A thread may end while we look.
    let context_switches = tasks
        .filter_map(|task| fs_err::read_to_string(task.ok()?.path().join("status")).ok())
        .map(|status| number_after(&status, "voluntary_ctxt_switches:"))
        .sum();
    // Another user's is not for us to read.
    let written_bytes = read(&pid, "io").map_or(0, |io| number_after(&io, "write_bytes:"));
    Ok(Usage { user, system, context_switches, written_bytes })
}

/// The sum over the lines that end with this name; "voluntary" is the end of "nonvoluntary" too, and both are meant.
fn number_after(text: &str, name: &str) -> u64 {
    let number = |line: &str| -> Option<u64> {
        let (label, value) = line.split_once('\t').or_else(|| line.split_once(' '))?;
        // "cancelled_write_bytes" is something else.
        (label.ends_with(name) && !label.starts_with("cancelled")).then(|| value.trim().parse().ok())?
    };
    text.lines().filter_map(number).sum()
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
        assert_eq!(parse_times(stat), Some((Duration::from_millis(2500), Duration::from_millis(500))));
        assert_eq!(parse_times("77 (x"), None);
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(number_after(status, "voluntary_ctxt_switches:"), 10);
        let io = "wchar: 9\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(number_after(io, "write_bytes:"), 4096);
        assert_eq!(parse_rss("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2 << 20));
    }

    #[test]
    fn a_child_that_ended_does_not_run_though_it_is_listed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(runs(child.id()) && runs(std::process::id()));
        child.kill().unwrap();
        while runs(child.id()) {
            std::thread::yield_now();
        }
        let stat = read(&child.id().to_string(), "stat").unwrap();
        assert!(stat.contains(") Z"), "not collected yet, because `wait` comes later: {stat}");
        child.wait().unwrap();
        assert!(!runs(child.id()));
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
