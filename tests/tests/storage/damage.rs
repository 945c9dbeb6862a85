//! A bit flips in a stopped node's state: the replica that it belongs to is fenced with a reason, by name, for good; all others,
//! on this node too, go on.
use carillon_proto::public::MessageState;
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, until};
use std::path::PathBuf;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const NODE: u64 = 3;

fn tables(rig: &Rig) -> Vec<(u64, PathBuf)> {
    let files = std::fs::read_dir(rig.lab.data_dir(NODE).join("state")).unwrap();
    let files = files.map(|entry| entry.unwrap());
    let mut tables: Vec<_> = files
        .filter(|file| file.path().extension().is_some_and(|e| e == "sst"))
        .map(|file| (file.metadata().unwrap().len(), file.path()))
        .collect();
    tables.sort();
    tables
}

async fn delivered(rig: &Rig, round: &str) {
    let messages = rig.practices.iter().take(40).enumerate();
    let messages = messages.map(|(i, practice)| spec(practice, &format!("{round}-{i}"), i)).collect();
    for message in rig.submit(messages).await {
        rig.until_state(&message.message_id, MessageState::Delivered, LIMIT).await;
    }
}

async fn fenced(rig: &Rig) -> Vec<(u32, String)> {
    let status = rig.status(NODE).await.expect("the node answers");
    let fenced = status.partitions.into_iter().filter(|p| !p.blocked.is_empty());
    fenced.map(|p| (p.partition, p.blocked)).collect()
}

pub async fn flipped(rig: &Rig) {
    delivered(rig, "before").await;
    // One partition's table is larger than the meta group's.
    let practice = &rig.practices[0];
    let many = (0..300).map(|i| spec(practice, &format!("many-{i}"), i)).collect();
    for message in rig.submit(many).await {
        rig.until_state(&message.message_id, MessageState::Delivered, LIMIT).await;
    }
    // A planned stop writes everything to tables.
    rig.lab.stop_node(NODE).unwrap();
    let (length, table) = tables(rig).pop().expect("a table");
    assert!(length > 2_000, "the largest table has rows in its first block");
    let mut bytes = fs_err::read(&table).unwrap();
    bytes[700] ^= 4;
    fs_err::write(&table, bytes).unwrap();
    rig.start_node(NODE).await;

    let report = rig.lab.admin(NODE).unwrap().scrub().await.unwrap();
    let found: Vec<u32> = report.damaged.iter().map(|d| d.partition).collect();
    // A lookup may have met it before the pass did.
    let known = until("the damaged replica is fenced", LIMIT, async || match fenced(rig).await {
        list if list.len() == 1 => Ok(list),
        list => Err(format!("{list:?}")),
    })
    .await;
    let (partition, reason) = known[0].clone();
    assert!(found.is_empty() || found == [partition], "{found:?} {partition}");
    assert!(reason.contains("damaged") || reason.contains("orruption"), "{reason}");
    // Every partition takes and delivers messages: this one on the other nodes, the others here as well.
    delivered(rig, "while fenced").await;
    // The fence outlasts a restart, and the node is ready without it.
    rig.lab.kill_node(NODE).unwrap();
    rig.start_node(NODE).await;
    let again = fenced(rig).await;
    assert_eq!(again.iter().map(|f| f.0).collect::<Vec<_>>(), [partition], "{again:?}");
    delivered(rig, "after a restart").await;
    // The others on this node are whole.
    let report = rig.lab.admin(NODE).unwrap().scrub().await.unwrap();
    assert!(report.bytes > 0 && report.damaged.is_empty(), "{report:?}");
    repaired(rig, partition).await;
}

/// One command, and a new copy with a new id has everything that the others have.
async fn repaired(rig: &Rig, partition: u32) {
    let admin = rig.lab.admin(NODE).unwrap();
    let whole = if partition == 1 { 2 } else { 1 };
    let refused = admin.repair_replica(whole).await.unwrap_err().to_string();
    assert!(refused.contains("not fenced"), "{refused}");
    admin.repair_replica(partition).await.unwrap();
    until("the replica is back", LIMIT, async || {
        let status = rig.status(NODE).await?;
        let back = status.partitions.iter().find(|p| p.partition == partition);
        match back {
            Some(p) if p.blocked.is_empty() && p.leader != 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    rig.until_caught_up(LIMIT).await;
    let mut digests = Vec::new();
    for node in rig.lab.node_ids() {
        let status = rig.status(node).await.unwrap();
        let own = status.partitions.into_iter().find(|p| p.partition == partition).unwrap();
        digests.push((own.digest_index, own.digest));
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
    delivered(rig, "after the repair").await;
    // The damage is forgotten with the old copy.
    rig.lab.kill_node(NODE).unwrap();
    rig.start_node(NODE).await;
    assert_eq!(fenced(rig).await, []);
    let report = rig.lab.admin(NODE).unwrap().scrub().await.unwrap();
    assert!(report.damaged.is_empty(), "{report:?}");
}
