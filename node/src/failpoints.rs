//! Fail points: named places, on both sides of everything that is persisted or sent, where a test lets this process die, wait
//! or fail. Crate `fail`, feature `failpoints`.
//!
//! A developer's build has them, so that the one build serves the suites; a build for patients' data leaves them out
//! (`cargo build --release -p carillon-node --no-default-features`). Even where they are compiled in they do nothing unless the
//! configuration says `lab = true`: [`arm`] is not called otherwise.
//!
//! How a test arms them: `<data_dir>/failpoints.txt`, one `name=actions` a line, read before the engine starts and again within
//! [`POLL`] of a change; or `FAILPOINTS="name=actions;..."` in the environment. Actions are those of the crate:
//! `return`, `sleep(ms)`, `pause`, `off`, with counts and chances, for example `200*off->return` or `1%return`.
//! `return` means: die here and now by kill -9 (the process sends itself SIGKILL), or, at the places whose
//! name ends in `_error`, fail with an I/O error, or where it says so, panic. One exception: `send::after_last_byte` is in a crate
//! without system calls of its own and dies by abort (SIGABRT). Nobody handles that signal, so there, too, nothing is flushed,
//! closed or unwound.
//!
//! Every point of this table is armed by the crash suite, or by the suite that its row of `tests/tests/tidy/fail_points.rs` names; that test
//! compares sources, table and suites.
//!
//! | name | thread | place |
//! |---|---|---|
//! | `log::before_sync` | log writer | a batch is about to be written and synced |
//! | `log::after_sync` | log writer | it is on disk; nobody knows yet |
//! | `log::sync_error` | log writer | the sync fails |
//! | `log::before_conf`, `log::after_conf` | log writer | as `before_sync` and `after_sync`, of a batch with a configuration change |
//! | `log::before_replies`, `log::after_replies` | log writer | answers and votes that had to wait for the sync |
//! | `log::before_truncate`, `log::after_truncate` | maintenance | the log of a group is cut |
//! | `log::before_purge`, `log::after_purge` | maintenance | log files are freed |
//! | `log::before_install`, `log::after_install` | log writer | a batch by which a replica goes over to an imported snapshot |
//! | `replica::before_create`, `replica::after_create` | log writer, start | a batch with a new replica |
//! | `replica::before_remove`, `replica::after_remove` | log writer, start | a batch with the tombstone of a replica |
//! | `replica::before_drop`, `replica::after_drop` | snapshots, start | the rows of a removed replica, or of a replaced generation, are dropped |
//! | `recovery::before_found`, `recovery::after_found` | start | the replicas of a new cluster are created |
//! | `identity::before_save`, `identity::after_save` | start, worker | the identity of the data directory, or a peer's, is recorded |
//! | `membership::before_save`, `membership::after_save` | start, worker | `membership.json` is written |
//! | `snapshot::before_export`, `snapshot::after_export` | snapshots | files of a state are made |
//! | `snapshot::stream_error` | worker | a stream of a snapshot's file breaks behind its first chunk |
//! | `snapshot::before_fetched`, `snapshot::after_fetched` | worker | a fetched file is synced and checked |
//! | `snapshot::before_import`, `snapshot::after_import` | snapshots | fetched files become a family beside the state |
//! | `damage::before_note`, `damage::after_note` | scrub, applier, maintenance | a damaged replica is remembered |
//! | `apply::before_batch` | applier | entries ran through the core; nothing is committed to the state |
//! | `apply::after_batch` | applier | rows and applied index are in memory (tables come later: `write::`); nobody knows yet |
//! | `apply::after_answers` | applier | callers were answered |
//! | `apply::write_error` | applier | the write of the state fails |
//! | `state::before_flush`, `state::after_flush` | maintenance | rows of a group go to disk |
//! | `write::before_tables` | state-writer, maintenance | rows that wait are about to be made into tables |
//! | `write::after_tables` | state-writer, maintenance | the tables are on disk; the database does not know them |
//! | `write::after_taken` | state-writer, maintenance | the database has taken them over; memory still has the rows |
//! | `recovery::before_replay`, `recovery::after_batch` | start | entries beyond the durable state are applied again |
//! | `send::before_intent` | worker | attempts are about to be proposed |
//! | `send::after_intent` | worker | they are committed; no byte has left |
//! | `send::panic_opened` | worker | a message is open; `return` makes it panic with the plaintext in the panic |
//! | `send::panic_handed_over` | worker | the same, where its connector may have begun to write |
//! | `send::before_first_byte` | worker | one attempt is handed to its connector |
//! | `send::after_last_byte` | worker | PDUs are written to the carrier's socket; no answer was read (in carillon-carriers) |
//! | `send::after_answer` | worker | the carrier answered; the outcome is not proposed |
//! | `fact::before_commit` | worker | outcomes and receipts are about to be proposed |
//! | `fact::after_commit` | worker | they are committed; the carrier's receipt is not acknowledged |
use std::path::Path;
use std::time::Duration;

/// How often the file is looked at.
pub const POLL: Duration = Duration::from_millis(100);
/// In the data directory.
pub const FILE: &str = "failpoints.txt";

/// A place. Does nothing unless a test armed it.
#[inline]
pub fn hit(name: &'static str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |_| carillon_store::failpoints::die());
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// Whether the next operation is to fail.
#[inline]
pub fn fails(name: &'static str) -> bool {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |_| true);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
    false
}

/// Obeys the file and the environment from here on, for as long as the process lives. For `lab = true` only.
#[cfg(feature = "failpoints")]
pub fn arm(data_dir: &Path) -> anyhow::Result<()> {
    // Dropping the scenario would forget what the environment asked for.
    #[expect(clippy::disallowed_methods, reason = "armed for as long as the process lives")]
    std::mem::forget(fail::FailScenario::setup());
    let path = data_dir.join(FILE);
    let mut armed = obey(&[], &read(&path))?;
    std::thread::Builder::new().name("failpoints".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(POLL);
            let wanted = read(&path);
            if wanted != armed {
                match obey(&armed, &wanted) {
                    Ok(now) => armed = now,
                    Err(error) => {
                        tracing::error!(%error, "fail points not armed");
                        armed = wanted;
                    }
                }
            }
        }
    })?;
    Ok(())
}

#[cfg(not(feature = "failpoints"))]
pub fn arm(_data_dir: &Path) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
type Armed = Vec<(String, String)>;

#[cfg(feature = "failpoints")]
fn read(path: &Path) -> Armed {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines.map(|(name, actions)| (name.trim().to_owned(), actions.trim().to_owned())).collect()
}

/// Takes back what is no longer wanted and arms what is new; what stays the same keeps its counts.
#[cfg(feature = "failpoints")]
fn obey(before: &[(String, String)], wanted: &[(String, String)]) -> anyhow::Result<Armed> {
    for (name, _) in before.iter().filter(|old| !wanted.iter().any(|new| new.0 == old.0)) {
        fail::remove(name);
    }
    for (name, actions) in wanted.iter().filter(|new| !before.contains(new)) {
        fail::cfg(name, actions).map_err(|reason| anyhow::anyhow!("fail point {name}: {reason}"))?;
        tracing::warn!(name, actions, "fail point armed");
    }
    Ok(wanted.to_vec())
}
