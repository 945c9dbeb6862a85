//! What a figure depends on besides the cluster: machine, kernel, program, command line.

use jiff::Timestamp;

use super::report::Environment;
use super::target::Target;

fn first_line(path: &str) -> String {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// The value of the first line that begins with `key`.
fn value_of(path: &str, key: &str) -> String {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

/// Looks around.
pub fn look(target: &Target, start_ms: i64) -> Environment {
    let memory_kib = value_of("/proc/meminfo", "MemTotal");
    let memory_kib: u64 = memory_kib.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let local = target.lab.is_some() || target.address.router.starts_with("127.");
    let program = std::env::args().next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    let words: Vec<String> = std::iter::once(program).chain(std::env::args().skip(1)).collect();
    Environment {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command_line: words.join(" "),
        started: Timestamp::from_millisecond(start_ms).map(|at| at.to_string()).unwrap_or_default(),
        host: first_line("/proc/sys/kernel/hostname"),
        kernel: first_line("/proc/sys/kernel/osrelease"),
        processor: value_of("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(0, |cores| cores.get() as u64),
        memory_bytes: memory_kib * 1_024,
        target: target.text.clone(),
        launched: target.launched,
        shared_machine: local,
    }
}
