//! Damage that no single replica can be blamed for: a flipped bit in the raft log outside of entries, and one in the rows of the meta
//! group. The node refuses to start and says which file it is, why, and the one command that helps; that command brings a new node in
//! its place, and nothing is lost.
use carillon_ctl::lab::ProcessState;
use carillon_proto::public::{MessageState, MessageView};
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, until};
use carillon_tests::steps::say;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const REBUILD_LIMIT: Duration = Duration::from_secs(240);
/// Magic, version and alignment; the header of the first batch follows.
const LOG_HEADER_BYTES: usize = 69;

fn files(rig: &Rig, node: u64, store: &str, ending: &str) -> Vec<PathBuf> {
    let found = std::fs::read_dir(rig.lab.data_dir(node).join(store)).unwrap();
    let found = found.map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        found.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    found.sort();
    found
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs_err::read(path).unwrap();
    bytes[at] ^= 4;
    fs_err::write(path, bytes).unwrap();
}

async fn delivered(rig: &Rig, tag: &str) -> Vec<String> {
    let practices = rig.practices.iter().take(40).enumerate();
    let specs = practices.map(|(i, practice)| spec(practice, &format!("{tag}-{i}"), i)).collect();
    let ids: Vec<String> = rig.submit(specs).await.into_iter().map(|m| m.message_id).collect();
    for id in &ids {
        rig.until_state(id, MessageState::Delivered, LIMIT).await;
    }
    ids
}

/// Starts a node that cannot start; gives the last thing that it said.
async fn refused(rig: &Rig, node: u64) -> String {
    rig.lab.start_node(node).unwrap();
    until(&format!("node {node} refuses to start"), LIMIT, async || match rig.lab.node_state(node) {
        ProcessState::Ended => Ok(()),
        state => Err(format!("it is {state:?}")),
    })
    .await;
    let log = fs_err::read_to_string(rig.lab.log_path(&format!("node-{node}"))).unwrap();
    let last = log.lines().last().unwrap_or_default().to_owned();
    say(&last);
    last
}

/// The one command, and what it promises.
async fn rebuilt(rig: &Rig, node: u64, known: &[String]) {
    let before = rig.lab.node_ids();
    let done = rig.lab.rebuild_node(node, "info", REBUILD_LIMIT, &say).await.unwrap();
    assert!(done.set_aside.join("log").exists(), "nothing was deleted");
    let after = rig.lab.node_ids();
    assert!(!after.contains(&node) && after.contains(&done.node) && after.len() == before.len(), "{after:?}");
    rig.until_caught_up(LIMIT).await;
    let mut digests = BTreeMap::new();
    for id in after {
        for p in rig.status(id).await.unwrap().partitions {
            let found = p.digest.to_vec();
            let known = digests.entry((p.partition, p.digest_index)).or_insert_with(|| found.clone());
            assert_eq!(*known, found, "group {} of node {id}", p.partition);
        }
    }
    for id in known {
        let message = rig.get(id, MessageView::Basic).await.unwrap();
        assert_eq!(message.state(), MessageState::Delivered, "{id}");
    }
}

pub async fn damaged_log(rig: &Rig) {
    let node = 2;
    let mut known = delivered(rig, "log-damage").await;
    rig.lab.stop_node(node).unwrap();
    let log = files(rig, node, "log", "raftlog").remove(0);
    // The length of the first batch: what follows it was acknowledged.
    flip(&log, LOG_HEADER_BYTES + 6);
    let told = refused(rig, node).await;
    let name = log.file_name().unwrap().to_string_lossy().into_owned();
    for part in [&name, "is damaged", "byte 69", &format!("`carillonctl node rebuild {node}`")] {
        assert!(told.contains(part), "it does not say {part:?}: {told}");
    }
    known.extend(delivered(rig, "log-damaged").await);
    rebuilt(rig, node, &known).await;
    delivered(rig, "log-rebuilt").await;
}

pub async fn damaged_meta_group(rig: &Rig) {
    let node = 1;
    let known = delivered(rig, "meta-damage").await;
    rig.lab.stop_node(node).unwrap();
    // The names of practices are in rows of the meta group, wherever else they may be.
    let practice = rig.practices[0].as_bytes();
    let mut flipped = 0;
    for table in files(rig, node, "state", "sst") {
        let bytes = fs_err::read(&table).unwrap();
        if let Some(at) = bytes.windows(practice.len()).position(|window| window == practice) {
            flip(&table, at);
            flipped += 1;
        }
    }
    assert!(flipped > 0, "a table has the practices");
    let told = refused(rig, node).await;
    for part in [".sst is damaged", &format!("`carillonctl node rebuild {node}`")] {
        assert!(told.contains(part), "it does not say {part:?}: {told}");
    }
    assert!(!told.contains("MANIFEST"), "it blames a file that is whole: {told}");
    rebuilt(rig, node, &known).await;
    delivered(rig, "meta-rebuilt").await;
}
