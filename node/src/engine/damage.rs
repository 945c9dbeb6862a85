//! What an operator is told when a node cannot start because stored bytes are not what was written: which file, why, and the one
//! command that repairs it.
//!
//! Damage of one partition fences one replica and does not come here (`recovery.rs`). This is what remains: the log outside of
//! entries, what the database needs to open, the rows of the meta group. The peers have all of it, so the remedy is always a new node
//! in the place of this one. Does not: repair anything.
use carillon_consensus::LogError;
use carillon_core::TableError;
use carillon_store::{OpenError, StateError};
use std::path::Path;

/// The error as it is, unless it is damage: then with file, reason and remedy.
pub(super) fn with_remedy(error: anyhow::Error, node_id: u64, data_dir: &Path) -> anyhow::Error {
    let Some((file, reason)) = damage_of(&error, data_dir) else { return error };
    anyhow::anyhow!("{file} is damaged: {reason}. {}", remedy(node_id))
}

/// The same for every file of the data directory.
pub fn remedy(node_id: u64) -> String {
    format!(
        "What node {node_id} stores cannot be used any more, and its peers have all of it: `carillonctl node rebuild {node_id}` sets this \
         data directory aside and puts a new node in its place (deploy/runbooks/damage-and-repair.md)"
    )
}

fn damage_of(error: &anyhow::Error, data_dir: &Path) -> Option<(String, String)> {
    let at = |name: &str| data_dir.join(name).display().to_string();
    match error.downcast_ref::<OpenError>() {
        Some(OpenError::Damaged { file, offset, reason }) => {
            return Some((at(&format!("log/{file}")), format!("byte {offset}: {reason}")));
        }
        Some(OpenError::Log(error)) => return of_log(error).map(|reason| (at("log"), reason)),
        Some(OpenError::Io(_)) | None => {}
    }
    if let Some(error) = error.downcast_ref::<LogError>() {
        return of_log(error).map(|reason| (at("log"), reason));
    }
    let text = match error.downcast_ref::<StateError>() {
        Some(error) if error.is_damage() => error.to_string(),
        Some(_) => return None,
        None => match error.downcast_ref::<TableError>()? {
            TableError::Storage(text) if !text.contains("orruption") => return None,
            error => error.to_string(),
        },
    };
    // RocksDB names the table it read, and blames its list of tables (MANIFEST) for whatever it cannot open.
    let table = text.split_whitespace().find(|word| word.ends_with(".sst"));
    let file = table.map_or_else(|| at("state"), |path| path.trim_start_matches("file:").to_owned());
    let reason = text.split("The file ").next().unwrap_or(&text).trim().trim_end_matches('.');
    Some((file, reason.to_owned()))
}

fn of_log(error: &LogError) -> Option<String> {
    matches!(error, LogError::Damaged(_) | LogError::Corrupt { .. }).then(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: impl Into<anyhow::Error>) -> String {
        with_remedy(error.into(), 3, Path::new("/data")).to_string()
    }

    #[test]
    fn damage_names_its_file_its_reason_and_the_command() {
        let log = OpenError::Damaged { file: "7.raftlog".into(), offset: 69, reason: "it is bad".into() };
        let table = "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in /data/state/000012.sst \
                     offset 10 size 20 The file /data/state/MANIFEST-000005 may be corrupted.";
        for (text, start) in [
            (told(log), "/data/log/7.raftlog is damaged: byte 69: it is bad. "),
            (told(StateError::Damaged(table.into())), "/data/state/000012.sst is damaged: "),
            (told(TableError::Storage(table.into())), "/data/state/000012.sst is damaged: "),
            (told(LogError::Damaged("x".into())), "/data/log is damaged: "),
        ] {
            assert!(text.starts_with(start), "{text}");
            assert!(text.contains("`carillonctl node rebuild 3`") && !text.contains("MANIFEST"), "{text}");
        }
    }

    #[test]
    fn what_is_no_damage_stays_as_it_is() {
        assert_eq!(told(anyhow::anyhow!("the port is taken")), "the port is taken");
        assert!(!told(OpenError::Io("no space".into())).contains("rebuild"));
        assert!(!told(StateError::Database("no space".into())).contains("rebuild"));
    }
}
