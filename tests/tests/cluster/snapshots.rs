//! Followers whose log was cut past them catch up by snapshots, and a node whose disk was wiped does not come back as
//! itself.
use carillon_proto::public::MessageSpec;
use carillon_tests::api::spec;
use carillon_tests::faults::{arm, disarm};
use carillon_tests::rig::{Rig, until};
use carillon_tests::steps::say;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
/// Little log is kept and states are written often, so that a few hundred messages are enough.
const TUNING: &str = "\n[tuning]\nlog_slack_entries = 64\nunflushed_log_age_max_s = 1\n";

/// Positions of the replicas of a node by partition.
async fn last_indexes(rig: &Rig, node: u64) -> BTreeMap<u32, u64> {
    let status = rig.status(node).await.expect("the node answers");
    status.partitions.iter().map(|p| (p.partition, p.last_index)).collect()
}

async fn keep_little_log(rig: &Rig) {
    for node in rig.lab.node_ids() {
        let config = rig.lab.data_dir(node).parent().expect("a home").join("config.toml");
        let mut file = std::fs::File::options().append(true).open(config).expect("the configuration exists");
        file.write_all(TUNING.as_bytes()).expect("it can be written");
        rig.lab.kill_node(node).expect("it runs");
        rig.start_node(node).await;
    }
    rig.until_caught_up(LIMIT).await;
}

/// Submits until the logs of all others start behind what the stopped node has, in every partition.
async fn write_past(rig: &Rig, stopped: u64, had: &BTreeMap<u32, u64>) {
    let mut count = 0;
    until("the logs are cut past the stopped node", LIMIT, async || {
        for _ in 0..10 {
            let specs = rig.practices.iter().map(|practice| {
                count += 1;
                spec(practice, &format!("past-{stopped}-{count}"), count)
            });
            rig.submit(specs.collect()).await;
        }
        for node in rig.lab.node_ids().into_iter().filter(|id| *id != stopped) {
            let status = rig.status(node).await?;
            // The meta group hardly writes.
            for p in status.partitions.iter().filter(|p| p.partition != 0) {
                if p.first_index <= had[&p.partition] + 1 {
                    return Err(format!("log of group {} starts at {}", p.partition, p.first_index));
                }
            }
        }
        Ok(())
    })
    .await;
    say(&format!("{count} messages later every log starts behind node {stopped}"));
}

/// Replicas at the same index have the same digest, on all nodes and in all groups.
pub async fn until_same_digests(rig: &Rig) {
    until("digests agree", LIMIT, async || {
        let mut seen: BTreeMap<(u32, u64), Vec<u8>> = BTreeMap::new();
        let mut index_of: BTreeMap<u32, u64> = BTreeMap::new();
        for node in rig.lab.node_ids() {
            for p in rig.status(node).await?.partitions {
                let key = (p.partition, p.digest_index);
                if let Some(digest) = seen.insert(key, p.digest.to_vec()) {
                    assert_eq!(digest, p.digest.to_vec(), "group {} at {} differs", key.0, key.1);
                }
                if *index_of.entry(p.partition).or_insert(p.digest_index) != p.digest_index {
                    return Err(format!("group {} is not at rest", p.partition));
                }
            }
        }
        assert!(seen.iter().filter(|((group, _), _)| *group != 0).all(|(_, digest)| digest.len() == 16));
        Ok(())
    })
    .await;
}

fn metric(page: &str, name: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

pub async fn catch_up(rig: &Rig) {
    keep_little_log(rig).await;
    let node = 2;
    let had = last_indexes(rig, node).await;
    rig.lab.kill_node(node).unwrap();
    write_past(rig, node, &had).await;
    rig.start_node(node).await;
    rig.until_caught_up(LIMIT).await;
    let pages = rig.metrics().await;
    let installs = metric(&pages["node-2"], "carillon_snapshot_installs_total");
    let bytes = metric(&pages["node-2"], "carillon_snapshot_received_bytes_total");
    say(&format!("{installs} snapshots with {bytes} bytes were installed"));
    assert!(installs >= f64::from(rig.lab.plan().partitions), "every partition needed one");
    for practice in rig.practices.iter().take(4) {
        rig.until_settled(practice, LIMIT).await;
    }
    until_same_digests(rig).await;

    // What was installed survives a kill, and the node takes part as before.
    rig.lab.kill_node(node).unwrap();
    rig.start_node(node).await;
    rig.until_caught_up(LIMIT).await;
    until_same_digests(rig).await;
    until("the node leads again", LIMIT, async || {
        let leaders = rig.leaders().await;
        if leaders.values().any(|leader| *leader == node) { Ok(()) } else { Err(format!("{leaders:?}")) }
    })
    .await;
}

/// Messages of one practice so long that the files of its partition take several chunks.
async fn write_much(rig: &Rig) {
    let practice = &rig.practices[0];
    for round in 0..12 {
        let long = |at: usize| MessageSpec {
            body: format!("{round}-{at} {}", "See you soon. ".repeat(40)),
            ..spec(practice, &format!("long-{round}-{at}"), round * 100 + at)
        };
        rig.submit((0..100).map(long).collect()).await;
    }
}

/// Numbers of a field in those lines of a log that have this message.
fn logged(text: &str, message: &str, field: &str) -> Vec<u64> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["message"] == message).filter_map(|line| line[field].as_u64()).collect()
}

/// Streams of a snapshot break in the middle of a file. The follower goes on by offset: no byte comes twice, and what it installs
/// is what the others have.
pub async fn broken_off(rig: &Rig) {
    let node = 2;
    let had = last_indexes(rig, node).await;
    rig.lab.kill_node(node).unwrap();
    write_much(rig).await;
    write_past(rig, node, &had).await;
    let log = rig.lab.log_path("node-2");
    let before = std::fs::read_to_string(&log).unwrap().len();
    for other in [1, 3] {
        arm(&rig.lab.data_dir(other), &[("snapshot::stream_error", "2*return")]).unwrap();
    }
    rig.start_node(node).await;
    rig.until_caught_up(LIMIT).await;
    for other in [1, 3] {
        disarm(&rig.lab.data_dir(other)).unwrap();
    }
    let text = std::fs::read_to_string(&log).unwrap().split_off(before);
    let offsets = logged(&text, "snapshot file goes on where it stopped", "offset");
    let fetched: u64 = logged(&text, "snapshot fetched", "bytes").into_iter().sum();
    let received = metric(&rig.metrics().await["node-2"], "carillon_snapshot_received_bytes_total");
    say(&format!("{fetched} bytes were fetched; streams went on from {offsets:?}"));
    assert!(offsets.len() >= 2 && offsets.iter().all(|offset| *offset > 0), "{offsets:?}");
    assert!(fetched > 0 && received == fetched as f64, "{received} bytes came for {fetched}");
    assert!(!text.contains("snapshot not fetched"), "nothing was given up");
    until_same_digests(rig).await;
}

/// It has forgotten its votes and what it acknowledged.
pub async fn wiped(rig: &Rig) {
    let node = 3;
    let data = rig.lab.data_dir(node);
    let aside = data.with_extension("aside");
    rig.lab.kill_node(node).unwrap();
    std::fs::rename(&data, &aside).unwrap();
    std::fs::create_dir(&data).unwrap();
    rig.lab.start_node(node).unwrap();
    let log = rig.lab.log_path("node-3");
    until("the node refuses to start", LIMIT, async || {
        let text = std::fs::read_to_string(&log).map_err(|e| e.to_string())?;
        match text.contains("the data directory is new, but node") {
            true => Ok(()),
            false => Err("it does not say so".to_owned()),
        }
    })
    .await;
    until("it is not running", LIMIT, async || match rig.status(node).await {
        Ok(_) => Err("it answers".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    assert!(!data.join("log").exists(), "no replicas were created");

    // A log that is gone is noticed as well.
    drop(rig.lab.kill_node(node));
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    std::fs::rename(data.join("log"), data.join("log-aside")).unwrap();
    rig.lab.start_node(node).unwrap();
    until("the node misses its log", LIMIT, async || {
        let text = std::fs::read_to_string(&log).map_err(|e| e.to_string())?;
        if text.contains("the raft log is gone") { Ok(()) } else { Err("it does not say so".to_owned()) }
    })
    .await;
    drop(rig.lab.kill_node(node));
    std::fs::rename(data.join("log-aside"), data.join("log")).unwrap();
    rig.start_node(node).await;
    rig.until_caught_up(LIMIT).await;
}
