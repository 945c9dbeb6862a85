//! The fail points that only changes of the membership, new nodes and damage reach: nodes die while a cluster is founded, while a
//! node joins, while replicas come and go by moves between four nodes, and while a damaged replica is remembered.
use carillon_ctl::lab::{Lab, ProcessState};
use carillon_proto::admin::GetStatusResponse;
use carillon_proto::internal::{PartitionRecord, ReplicaRole};
use carillon_tests::faults::{arm, disarm};
use carillon_tests::rig::until;
use carillon_tests::trial::{RECOVERY_LIMIT, Trial};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Of founding nodes 1 and 2, at their first start.
const FOUNDING: [&str; 2] = ["recovery::before_found", "recovery::after_found"];
/// Of a node that joins, in the order in which it comes to them.
const JOINING: [&str; 4] =
    ["identity::before_save", "identity::after_save", "membership::before_save", "membership::after_save"];
/// Of the node that a replica moves to.
const ARRIVING: [&str; 8] = [
    "replica::before_create",
    "replica::after_create",
    "snapshot::before_fetched",
    "snapshot::after_fetched",
    "snapshot::before_import",
    "snapshot::after_import",
    "log::before_install",
    "log::after_install",
];
/// Of the node that a replica moves away from.
const GOING: [&str; 4] =
    ["replica::before_remove", "replica::after_remove", "replica::before_drop", "replica::after_drop"];
/// Of the node that leads the partition which moves.
const LEADING: [&str; 4] =
    ["snapshot::before_export", "snapshot::after_export", "log::before_conf", "log::after_conf"];
/// Of a node that finds a damaged table.
const DAMAGED: [&str; 2] = ["damage::before_note", "damage::after_note"];

/// A move takes seconds; after this another one is ordered, because the leader may have changed meanwhile.
const MOVE_LIMIT: Duration = Duration::from_secs(30);
const MOVES_MAX: usize = 6;
const POLL: Duration = Duration::from_millis(50);

/// Before a cluster is there; then it is started as any other.
pub fn while_founding(lab: &Lab) {
    let victims = [1, 2];
    for (node, point) in victims.into_iter().zip(FOUNDING) {
        arm(&lab.data_dir(node), &[(point, "return")]).unwrap();
    }
    // A founding node asks the others first, so all are there.
    lab.node_ids().into_iter().for_each(|node| lab.start_node(node).unwrap());
    let end = Instant::now() + RECOVERY_LIMIT;
    while !victims.iter().all(|node| lab.node_state(*node) == ProcessState::Ended) {
        assert!(Instant::now() < end, "a founding node did not come to its fail point");
        std::thread::sleep(POLL);
    }
    victims.into_iter().for_each(|node| disarm(&lab.data_dir(node)).unwrap());
}

pub async fn each(trial: &Trial) {
    joining(trial).await;
    for (turn, point) in ARRIVING.into_iter().enumerate() {
        moving(trial, point, 1 + turn as u64 % 4, |order| order.to).await;
    }
    for (turn, point) in GOING.into_iter().enumerate() {
        moving(trial, point, 1 + turn as u64 % 4, |order| order.from).await;
    }
    for (turn, point) in LEADING.into_iter().enumerate() {
        moving(trial, point, 1 + turn as u64 % 4, |order| order.leader).await;
    }
    damaged(trial).await;
}

/// One more node, which dies at its first starts, again and again, and is in at last.
async fn joining(trial: &Trial) {
    let lab = &trial.rig.lab;
    let node = 1 + lab.node_ids().into_iter().max().unwrap();
    let data = lab.data_dir(node);
    fs_err::create_dir_all(&data).unwrap();
    arm(&data, &[(JOINING[0], "return")]).unwrap();
    assert_eq!(lab.add_node("warn,carillon_node=info").await.unwrap(), node);
    for (turn, point) in JOINING.into_iter().enumerate() {
        if turn > 0 {
            arm(&data, &[(point, "return")]).unwrap();
            lab.start_node(node).unwrap();
        }
        trial.until_ended(node).await;
        trial.say(&format!("node {node} died at {point} while it joined"));
    }
    disarm(&data).unwrap();
    trial.start_nodes(&[node]).await;
    trial.works().await;
}

/// A move by hand.
#[derive(Clone, Copy)]
struct Order {
    partition: u32,
    from: u64,
    to: u64,
    leader: u64,
}

/// The newest map, and who leads by the newest term that anybody knows.
async fn view(trial: &Trial) -> Result<(Vec<PartitionRecord>, BTreeMap<u32, u64>), String> {
    let epochs = |s: &GetStatusResponse| s.map.iter().map(|p| p.epoch).sum::<u64>();
    let mut newest: Option<GetStatusResponse> = None;
    let mut leaders = BTreeMap::<u32, (u64, u64)>::new();
    for node in trial.rig.lab.node_ids() {
        let Ok(status) = trial.rig.status(node).await else { continue };
        for p in status.partitions.iter().filter(|p| p.leader != 0) {
            let known = leaders.entry(p.partition).or_default();
            *known = (*known).max((p.term, p.leader));
        }
        if newest.as_ref().is_none_or(|known| epochs(known) < epochs(&status)) {
            newest = Some(status);
        }
    }
    let newest = newest.ok_or("no node answers")?;
    Ok((newest.map, leaders.into_iter().map(|(partition, (_, leader))| (partition, leader)).collect()))
}

/// Orders a move to a node, of a partition that rests and has no replica there.
async fn ordered(trial: &Trial, to: u64) -> Order {
    until(&format!("a replica moves to node {to}"), RECOVERY_LIMIT, async || {
        let (map, leaders) = view(trial).await?;
        let can_move = |row: &PartitionRecord| {
            let rests =
                row.replicas.len() == 3 && row.replicas.iter().all(|r| r.role() == ReplicaRole::Voter);
            row.partition != 0 && rests && row.replicas.iter().all(|r| r.node_id != to)
        };
        let row = map.iter().filter(|row| can_move(row)).min_by_key(|row| row.epoch);
        let row = row.ok_or("every partition is there already, or is being moved")?;
        let leader = *leaders.get(&row.partition).ok_or("it has no leader")?;
        let from = row.replicas.iter().map(|r| r.node_id).find(|node| *node != leader);
        let order = Order { partition: row.partition, from: from.ok_or("one replica")?, to, leader };
        let admin = trial.rig.lab.admin(to).map_err(|e| e.to_string())?;
        admin.move_partition(order.partition, order.from, to).await.map_err(|e| e.to_string())?;
        Ok(order)
    })
    .await
}

/// Arms `point` on the node that `whom` picks of a move, and moves until that node has died.
async fn moving(trial: &Trial, point: &str, to: u64, whom: impl Fn(Order) -> u64) {
    let lab = &trial.rig.lab;
    for _ in 0..MOVES_MAX {
        let order = ordered(trial, to).await;
        let node = whom(order);
        let data = lab.data_dir(node);
        arm(&data, &[(point, "return")]).unwrap();
        let end = Instant::now() + MOVE_LIMIT;
        while lab.node_state(node) == ProcessState::Running && Instant::now() < end {
            tokio::time::sleep(POLL).await;
        }
        disarm(&data).unwrap();
        if lab.node_state(node) != ProcessState::Running {
            trial.start_nodes(&[node]).await;
            trial.works().await;
            let Order { partition, from, .. } = order;
            trial.say(&format!("node {node} died at {point} (partition {partition}, {from} -> {to})"));
            return;
        }
    }
    panic!("no node came to {point} in {MOVES_MAX} moves");
}

/// The largest table of a partition. The names of practices are in tables of the meta group only, without which a node cannot start.
fn table_of_a_partition(trial: &Trial, node: u64) -> PathBuf {
    let files = std::fs::read_dir(trial.rig.lab.data_dir(node).join("state")).unwrap();
    let practice = trial.rig.practices[0].as_bytes();
    let tables = files.map(|entry| entry.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|ending| ending == "sst"));
    let is_of_meta =
        |path: &PathBuf| fs_err::read(path).unwrap().windows(practice.len()).any(|window| window == practice);
    let found = tables.filter(|path| !is_of_meta(path));
    found.max_by_key(|path| std::fs::metadata(path).unwrap().len()).expect("a table")
}

/// A bit flips in a table. The node that finds it dies before it has remembered it, then after; then the replica is repaired.
async fn damaged(trial: &Trial) {
    let (lab, node) = (&trial.rig.lab, 2);
    let data = lab.data_dir(node);
    lab.stop_node(node).unwrap();
    let table = table_of_a_partition(trial, node);
    let mut bytes = fs_err::read(&table).unwrap();
    // In the first block of rows, however small it is.
    bytes[40] ^= 4;
    fs_err::write(&table, bytes).unwrap();
    for point in DAMAGED {
        arm(&data, &[(point, "return")]).unwrap();
        lab.start_node(node).unwrap();
        until(&format!("node {node} ends at {point}"), RECOVERY_LIMIT, async || {
            // It dies of the question, or of a lookup that met the damage before.
            let answer = lab.admin(node).map_err(|e| e.to_string())?.scrub().await;
            match lab.node_state(node) {
                ProcessState::Running => Err(format!("it runs: {:?}", answer.map(|r| r.damaged.len()))),
                _ => Ok(()),
            }
        })
        .await;
        trial.say(&format!("node {node} died at {point}"));
    }
    disarm(&data).unwrap();
    trial.start_nodes(&[node]).await;
    let fenced = async || -> Result<Vec<u32>, String> {
        let partitions = trial.rig.status(node).await?.partitions;
        Ok(partitions.iter().filter(|p| !p.blocked.is_empty()).map(|p| p.partition).collect())
    };
    let found = fenced().await.unwrap();
    let [partition] = found.as_slice() else { panic!("one replica is fenced after the restart: {found:?}") };
    lab.admin(node).unwrap().repair_replica(*partition).await.unwrap();
    until("the replica is whole", RECOVERY_LIMIT, async || match fenced().await?.as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
    trial.works().await;
}
