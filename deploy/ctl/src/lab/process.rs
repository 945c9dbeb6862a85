//! The processes of a lab: starting them detached, finding them again, and stopping exactly them.
//!
//! Invariants: the record of a process (`run/<name>.json`) holds its pid, its start time in clock ticks since boot and
//! its program; a signal goes to a pid only while `/proc` says the same, so that a pid that was given to somebody else
//! is never signalled. A process has ended when its last thread has: one that was killed keeps its ports while a thread
//! of it is still inside an fsync, although its first thread is a zombie already. A record is written before [`Processes::start`] returns.
use super::{LabError, Placement};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a stopping process is looked at.
const POLL: Duration = Duration::from_millis(20);
/// A killed process disappears at once, unless the kernel is busy writing its pages.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// A prefix such as `nsenter` takes milliseconds.
const EXEC_LIMIT: Duration = Duration::from_secs(10);
/// Threads stop within a scheduler tick.
const STOPPED_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    Running,
    /// It ended without being asked to: killed or crashed.
    Ended,
    /// Never started, or stopped.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: u32,
    start_ticks: u64,
    program: PathBuf,
}

pub(super) struct Processes {
    dir: PathBuf,
    /// Children of this process, to be reaped; processes of an earlier `carillonctl` are not among them.
    children: Mutex<BTreeMap<String, Child>>,
}

impl Processes {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), children: Mutex::default() }
    }

    pub(super) fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(format!("{name}.json"))
    }

    fn record(&self, name: &str) -> Option<Record> {
        serde_json::from_slice(&fs_err::read(self.record_path(name)).ok()?).ok()
    }

    /// The recorded pid, whether it runs or not.
    pub(super) fn pid(&self, name: &str) -> Option<u32> {
        self.record(name).map(|r| r.pid)
    }

    pub(super) fn state(&self, name: &str) -> ProcessState {
        self.reap(name);
        match self.record(name) {
            None => ProcessState::Stopped,
            Some(record) if is_alive(&record) => ProcessState::Running,
            Some(_) => ProcessState::Ended,
        }
    }

    /// Starts a program of ours in a process group of its own, its output appended to the log; nothing if it runs.
    pub(super) fn start(
        &self,
        name: &str,
        program: &'static str,
        arguments: &[String],
        placement: &Placement,
    ) -> Result<(), LabError> {
        if self.state(name) == ProcessState::Running {
            return Ok(());
        }
        self.start_program(name, find_program(program)?, arguments, placement)
    }

    fn start_program(
        &self,
        name: &str,
        program: PathBuf,
        arguments: &[String],
        placement: &Placement,
    ) -> Result<(), LabError> {
        let mut options = fs_err::OpenOptions::new();
        let log = options.create(true).append(true).open(self.log_path(name))?;
        let log = log.into_parts().0;
        let mut line = placement.command_prefix.iter().map(OsStr::new).collect::<Vec<_>>();
        line.push(program.as_os_str());
        let child = Command::new(line[0])
            .args(&line[1..])
            .args(arguments)
            .envs(&placement.env)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for us, not for the cluster.
            .process_group(0)
            .spawn()
            .map_err(|e| LabError::File { path: line[0].display().to_string(), reason: e.to_string() })?;
        let pid = child.id();
        let start_ticks = proc_stat(pid).map_or(0, |stat| stat.start_ticks);
        self.children.lock().insert(name.to_owned(), child);
        let record = Record { pid, start_ticks, program };
        let text = serde_json::to_vec(&record).map_err(|e| LabError::Wrong(e.to_string()))?;
        fs_err::write(self.record_path(name), text)?;
        if placement.command_prefix.is_empty() { Ok(()) } else { self.until_executed(name) }
    }

    /// Waits until the prefix has become the program: before that the record names another program.
    fn until_executed(&self, name: &str) -> Result<(), LabError> {
        let until = Instant::now() + EXEC_LIMIT;
        while self.state(name) != ProcessState::Running {
            let child_ended = !self.children.lock().contains_key(name);
            if child_ended || Instant::now() >= until {
                return Err(LabError::Wrong(format!("{name} did not start; see its log")));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// SIGSTOP; an error if it does not run. Returns once no thread can execute another instruction of its own: it is
    /// stopped, or in the kernel and stops before it comes back.
    pub(super) fn pause(&self, name: &str) -> Result<(), LabError> {
        let record = self.signal_running(name, Signal::STOP)?;
        let until = Instant::now() + STOPPED_LIMIT;
        while !stands_still(record.pid) {
            if Instant::now() >= until {
                return Err(LabError::Wrong(format!("{name} (pid {}) does not stand still", record.pid)));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// SIGCONT; an error if it does not run.
    pub(super) fn resume(&self, name: &str) -> Result<(), LabError> {
        self.signal_running(name, Signal::CONT).map(drop)
    }

    fn signal_running(&self, name: &str, what: Signal) -> Result<Record, LabError> {
        self.reap(name);
        let record = self.record(name).filter(is_alive);
        let record = record.ok_or_else(|| LabError::Wrong(format!("{name} is not running")))?;
        signal(&record, what)?;
        Ok(record)
    }

    /// SIGKILL. False if it was not running.
    pub(super) fn kill(&self, name: &str) -> Result<bool, LabError> {
        self.reap(name);
        let Some(record) = self.record(name).filter(is_alive) else { return Ok(false) };
        signal(&record, Signal::KILL)?;
        if self.wait(name, &record, Instant::now() + KILL_LIMIT) {
            Ok(true)
        } else {
            Err(LabError::Wrong(format!("{name} (pid {}) does not die", record.pid)))
        }
    }

    /// SIGTERM, and SIGKILL after `limit`. False if it was not running. Forgets the record.
    pub(super) fn stop(&self, name: &str, limit: Duration) -> Result<bool, LabError> {
        Ok(self.stop_all(&[name.to_owned()], limit)? == 1)
    }

    /// The same for several at once.
    pub(super) fn stop_all(&self, names: &[String], limit: Duration) -> Result<usize, LabError> {
        let mut stopping = Vec::new();
        for name in names {
            self.reap(name);
            if let Some(record) = self.record(name).filter(is_alive) {
                signal(&record, Signal::TERM)?;
                // A paused process would never see it.
                signal(&record, Signal::CONT)?;
                stopping.push((name, record));
            }
        }
        let until = Instant::now() + limit;
        for (name, record) in &stopping {
            if !self.wait(name, record, until) {
                self.kill(name)?;
            }
        }
        for name in names {
            match fs_err::remove_file(self.record_path(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(stopping.len())
    }

    /// Kills the children of this process, for `Drop`.
    pub(super) fn kill_started(&self) {
        for (name, child) in self.children.lock().iter_mut() {
            // Errors mean that it has ended already.
            let _ended = child.kill();
            let _reaped = child.wait();
            let _no_record = std::fs::remove_file(self.record_path(name));
        }
    }

    /// A child that ended stays a zombie until somebody asks.
    fn reap(&self, name: &str) {
        let mut children = self.children.lock();
        if let Some(child) = children.get_mut(name)
            && matches!(child.try_wait(), Ok(Some(_)))
        {
            children.remove(name);
        }
    }

    fn wait(&self, name: &str, record: &Record, until: Instant) -> bool {
        loop {
            self.reap(name);
            if !is_alive(record) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(POLL);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Of the first thread.
    state: char,
    threads: u32,
    start_ticks: u64,
}

impl Stat {
    /// Fields of `/proc/<pid>/stat`. The name in it is in brackets and may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let threads = fields.nth(16)?.parse().ok()?;
        Some(Self { state, threads, start_ticks: fields.nth(1)?.parse().ok()? })
    }

    fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Nothing runs any more, so everything that it had open is closed.
    fn has_ended(&self) -> bool {
        self.is_zombie() && self.threads <= 1
    }
}

fn proc_stat(pid: u32) -> Option<Stat> {
    Stat::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether the recorded process is the one that has this pid now, and has not ended.
fn is_alive(record: &Record) -> bool {
    let Some(stat) = proc_stat(record.pid) else { return false };
    if stat.has_ended() || stat.start_ticks != record.start_ticks {
        return false;
    }
    // Without its first thread it has no program any more, but the time it started is still the one we know.
    if stat.is_zombie() {
        return true;
    }
    let Ok(program) = std::fs::read_link(format!("/proc/{}/exe", record.pid)) else { return false };
    // A program that was built anew while it runs is shown with this suffix.
    let program = program.to_string_lossy();
    let program = program.strip_suffix(" (deleted)").unwrap_or(&program);
    Path::new(program).file_name() == record.program.file_name()
}

/// Every thread is stopped (T) or waits in the kernel without being interruptible (D). One that has ended counts too.
fn stands_still(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        state.is_none_or(|state| matches!(state, 'T' | 't' | 'D' | 'Z' | 'X'))
    })
}

fn signal(record: &Record, signal: Signal) -> Result<(), LabError> {
    let pid = i32::try_from(record.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| LabError::Wrong(format!("{} is no pid", record.pid)))?;
    if !is_alive(record) {
        return Ok(());
    }
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

/// `CARILLON_BIN_DIR`, else beside this program; test programs lie one level deeper (`deps/`).
fn find_program(name: &'static str) -> Result<PathBuf, LabError> {
    let dirs = match std::env::var_os("CARILLON_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => {
            let own = std::env::current_exe()?;
            own.ancestors().skip(1).take(2).map(Path::to_owned).collect()
        }
    };
    match dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file()) {
        // The link's target is what /proc shows.
        Some(path) => Ok(fs_err::canonicalize(path)?),
        None => {
            let looked: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
            Err(LabError::NoProgram { name, looked: looked.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_of(child: &Child) -> Record {
        let program = std::fs::read_link(format!("/proc/{}/exe", child.id())).unwrap();
        Record { pid: child.id(), start_ticks: proc_stat(child.id()).unwrap().start_ticks, program }
    }

    #[test]
    fn a_pid_with_another_start_time_or_program_is_not_ours_and_is_not_signalled() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let record = record_of(&child);
        assert!(is_alive(&record));
        let later = Record { start_ticks: record.start_ticks + 1, ..record.clone() };
        let other = Record { program: PathBuf::from("/bin/other"), ..record.clone() };
        for stranger in [later, other] {
            assert!(!is_alive(&stranger));
            signal(&stranger, Signal::KILL).unwrap();
        }
        assert!(child.try_wait().unwrap().is_none(), "a stranger was killed");
        signal(&record, Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!is_alive(&record));
    }

    #[test]
    fn a_prefix_becomes_the_program_with_its_environment_and_it_can_be_paused() {
        let dir = tempfile::tempdir().unwrap();
        for part in ["logs", "run"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
        }
        let processes = Processes::new(dir.path());
        let placement = Placement {
            command_prefix: vec!["nice".to_owned(), "-n".to_owned(), "1".to_owned()],
            env: BTreeMap::from([("PLACED".to_owned(), "here".to_owned())]),
            ..Placement::default()
        };
        let program = PathBuf::from(which_sleep());
        processes.start_program("a", program, &["600".to_owned()], &placement).unwrap();
        assert_eq!(processes.state("a"), ProcessState::Running);
        let pid = processes.pid("a").unwrap();
        let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(env.split(|b| *b == 0).any(|pair| pair == b"PLACED=here"));
        let state = |wanted: &[char]| {
            let until = Instant::now() + KILL_LIMIT;
            while !proc_stat(pid).is_some_and(|s| wanted.contains(&s.state)) {
                assert!(Instant::now() < until, "it is never in {wanted:?}");
                std::thread::yield_now();
            }
        };
        processes.pause("a").unwrap();
        state(&['T']);
        assert_eq!(processes.state("a"), ProcessState::Running);
        processes.resume("a").unwrap();
        state(&['S', 'R']);
        processes.pause("a").unwrap();
        assert!(processes.stop("a", KILL_LIMIT).unwrap(), "a paused process is stopped too");
        assert!(processes.pause("a").is_err());
        let missing = Placement { command_prefix: vec!["false".to_owned()], ..Placement::default() };
        assert!(processes.start_program("b", which_sleep().into(), &[], &missing).is_err());
    }

    fn which_sleep() -> &'static str {
        ["/usr/bin/sleep", "/bin/sleep"].into_iter().find(|path| Path::new(path).is_file()).unwrap()
    }

    #[test]
    fn a_zombie_is_not_running() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let record = record_of(&child);
        child.kill().unwrap();
        let until = Instant::now() + KILL_LIMIT;
        while proc_stat(record.pid).is_some_and(|s| !s.has_ended()) && Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!is_alive(&record));
        child.wait().unwrap();
    }

    #[test]
    fn a_process_has_ended_with_its_last_thread() {
        let line = |state, threads| {
            let rest = "1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0";
            format!("42 (carillon) Z 9 (x) {state} 1 {rest} {threads} 0 7700 0 0")
        };
        let stat = |state, threads| Stat::parse(&line(state, threads)).unwrap();
        assert_eq!(stat('R', 9), Stat { state: 'R', threads: 9, start_ticks: 7700 });
        // Killed in the middle of an fsync: the port is not free yet.
        for (state, threads, ended) in [('S', 1, false), ('Z', 5, false), ('Z', 2, false), ('Z', 1, true)] {
            assert_eq!(stat(state, threads).has_ended(), ended, "{state} {threads}");
        }
        // This test's own process, as the kernel writes it.
        let own = proc_stat(std::process::id()).unwrap();
        let listed = std::fs::read_dir("/proc/self/task").unwrap().count();
        assert!(own.threads >= 2 && listed >= 2 && !own.has_ended());
    }
}
