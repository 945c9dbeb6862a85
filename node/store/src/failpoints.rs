//! Fail points of the stores, and what they do. The table of all fail points, and how a test arms them, is in `failpoints.rs` of
//! carillon-node. Feature `failpoints`; without it nothing of this is compiled in.

/// A place where a test may let this process die. Does nothing unless a test armed it.
#[inline]
pub fn hit(name: &'static str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |_| die());
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// SIGKILL to this process: no handler runs, nothing is flushed, nobody unwinds, as when the kernel or an operator kills it.
#[cfg(feature = "failpoints")]
pub fn die() {
    use rustix::process::{Signal, getpid, kill_process};
    // It does not come back from the call; were the signal refused, the process would have to end all the same.
    let _refused = kill_process(getpid(), Signal::KILL);
    std::process::abort();
}
