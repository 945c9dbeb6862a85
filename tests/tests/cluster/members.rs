//! Nodes come and go while callers submit and the carrier's lane is busy: nothing is lost, nothing is sent twice, the carrier's limit
//! is kept, and callers notice nothing.
use crate::load::{Load, reconcile, settled_since};
use carillon_core::meta::level::LEVEL;
use carillon_ctl::lab::{Lab, ProcessState};
use carillon_proto::admin::{GetStatusResponse, NodeAction};
use carillon_proto::internal::{NodeStatus, ReplicaRole};
use carillon_proto::public::MessageState;
use carillon_tests::api::{now_ms, spec};
use carillon_tests::rig::{Rig, submit_within_deadline, until};
use carillon_tests::steps::say;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Segments per second while nodes come and go: the load is a little below, so that the lanes are always busy.
pub const LIMIT: u32 = 120;
/// 3 callers of 4 messages each: 100 a second.
const PAUSE: Duration = Duration::from_millis(120);
/// For everything that moves replicas.
const MOVES: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(60);

/// What a node says, from the first one that answers and knows the most.
async fn view(rig: &Rig) -> Result<GetStatusResponse, String> {
    let mut newest: Option<GetStatusResponse> = None;
    for id in rig.lab.node_ids() {
        let Ok(status) = rig.status(id).await else { continue };
        let epochs = |s: &GetStatusResponse| s.map.iter().map(|p| p.epoch).sum::<u64>();
        if newest.as_ref().is_none_or(|n| (n.nodes.len(), epochs(n)) < (status.nodes.len(), epochs(&status)))
        {
            newest = Some(status);
        }
    }
    newest.ok_or_else(|| "no node answers".to_owned())
}

fn status_of(status: &GetStatusResponse, node: u64) -> Option<NodeStatus> {
    status.nodes.iter().find(|n| n.node_id == node).map(|n| n.status())
}

/// Leaders of all groups, from the words of all nodes.
async fn leaders(rig: &Rig) -> BTreeMap<u32, u64> {
    let mut known = BTreeMap::<u32, (u64, u64)>::new();
    for id in rig.lab.node_ids() {
        let Ok(status) = rig.status(id).await else { continue };
        for p in status.partitions.iter().filter(|p| p.leader != 0) {
            let leader = known.entry(p.partition).or_default();
            *leader = (*leader).max((p.term, p.leader));
        }
    }
    known.into_iter().map(|(partition, (_, leader))| (partition, leader)).collect()
}

/// Waits until exactly these nodes are active, all replicas are where the map says, and each node has its part.
pub async fn until_balanced(rig: &Rig, nodes: &[u64], limit: Duration) {
    until(&format!("nodes {nodes:?} share everything"), limit, async || {
        let status = view(rig).await?;
        let present: Vec<u64> = status
            .nodes
            .iter()
            .filter(|n| !matches!(n.status(), NodeStatus::Removed))
            .map(|n| n.node_id)
            .collect();
        if present != nodes || !nodes.iter().all(|n| status_of(&status, *n) == Some(NodeStatus::Active)) {
            return Err(format!("{:?}", status.nodes));
        }
        let mut replicas = BTreeMap::<u64, usize>::new();
        for row in status.map.iter().filter(|p| p.partition != 0) {
            if row.replicas.len() != 3 || row.replicas.iter().any(|r| r.role() != ReplicaRole::Voter) {
                return Err(format!("partition {} is being moved", row.partition));
            }
            row.replicas.iter().for_each(|r| *replicas.entry(r.node_id).or_default() += 1);
        }
        if !replicas.keys().eq(nodes) {
            return Err(format!("replicas are on {replicas:?}"));
        }
        let (least, most) = (replicas.values().min().unwrap_or(&0), replicas.values().max().unwrap_or(&0));
        if most - least > 2 {
            return Err(format!("replicas are uneven: {replicas:?}"));
        }
        let shares = status.shares.clone().unwrap_or_default();
        // Nodes send on leases.
        if status.feature_level < 5 || shares.changing || !shares.senders.is_empty() {
            return Err(format!("{shares:?}"));
        }
        let led: BTreeSet<u64> =
            leaders(rig).await.into_iter().filter(|(p, _)| *p != 0).map(|(_, leader)| leader).collect();
        if led.iter().eq(nodes) { Ok(()) } else { Err(format!("only {led:?} lead")) }
    })
    .await;
}

/// The replicas of each group agree: equal digests at equal entries, on every node that has one.
async fn until_replicas_agree(rig: &Rig) {
    until("replicas agree", SOON, async || {
        let mut seen = BTreeMap::<u32, (u64, Vec<u8>)>::new();
        for id in rig.lab.node_ids() {
            for p in rig.status(id).await?.partitions {
                if !p.blocked.is_empty() {
                    return Err(format!("group {} of node {id} is fenced: {}", p.partition, p.blocked));
                }
                let own = (p.digest_index, p.digest.to_vec());
                let first = seen.entry(p.partition).or_insert_with(|| own.clone());
                if *first != own {
                    assert!(first.0 != own.0, "group {}: different digests at entry {}", p.partition, own.0);
                    return Err(format!(
                        "group {} of node {id} is at {}, another at {}",
                        p.partition, own.0, first.0
                    ));
                }
            }
        }
        Ok(())
    })
    .await;
}

async fn set_node(rig: &Rig, node: u64, action: NodeAction) -> Result<(), String> {
    // Some commands only the meta leader can judge.
    let leader = leaders(rig).await.get(&0).copied().ok_or("no meta leader")?;
    let admin = rig.lab.admin(leader).map_err(|e| e.to_string())?;
    admin.set_node(node, action).await.map_err(|e| e.to_string())
}

async fn until_set(rig: &Rig, node: u64, action: NodeAction) {
    until(&format!("{action:?} of node {node}"), SOON, async || set_node(rig, node, action).await).await;
}

async fn until_status(rig: &Rig, node: u64, wanted: NodeStatus, limit: Duration) {
    until(&format!("node {node} is {wanted:?}"), limit, async || {
        let status = view(rig).await?;
        if status_of(&status, node) == Some(wanted) { Ok(()) } else { Err(format!("{:?}", status.nodes)) }
    })
    .await;
}

async fn add_node(rig: &Rig) -> u64 {
    let node =
        until("a token", SOON, async || rig.lab.add_node("info").await.map_err(|e| e.to_string())).await;
    rig.lab.until_node_ready(node, SOON).await.expect("the new node gets ready");
    node
}

/// The limit in every sliding window, as the carrier counts.
async fn limit_was_kept(rig: &Rig) {
    let stats = rig.carrier.stats().await.unwrap();
    let most = stats.accounts.iter().map(|a| a.window_max).max().unwrap_or(0);
    say(&format!("fullest window {most} of {LIMIT} segments"));
    assert_eq!(stats.violations(), 0, "the carrier's limit was broken");
    assert!(most <= u64::from(LIMIT) && most > u64::from(LIMIT) / 2, "{most} segments in the fullest window");
}

/// 3 nodes -> 5 -> 3 other ones, under load.
pub async fn scale(rig: &Rig) {
    until_balanced(rig, &[1, 2, 3], SOON).await;
    let (since, mark) = (now_ms(), rig.carrier.mark().await.unwrap());
    let load = Load::start(rig, "scale", PAUSE);
    load.until_more(200).await;
    let began = Instant::now();
    let added = [add_node(rig).await, add_node(rig).await];
    assert_eq!(added, [4, 5]);
    until_balanced(rig, &[1, 2, 3, 4, 5], MOVES).await;
    say(&format!("5 nodes share everything after {:.1} s", began.elapsed().as_secs_f64()));
    let row = view(rig).await.unwrap().map.remove(0);
    assert!(row.replicas.iter().all(|r| r.role() == ReplicaRole::Voter), "5 nodes, 5 voters: {row:?}");
    load.until_more(200).await;

    let began = Instant::now();
    for gone in [1, 4] {
        until_set(rig, gone, NodeAction::Decommission).await;
    }
    until_balanced(rig, &[2, 3, 5], MOVES).await;
    say(&format!("3 nodes share everything after {:.1} s", began.elapsed().as_secs_f64()));
    for gone in [1, 4] {
        rig.lab.remove_node(gone).unwrap();
    }
    load.until_more(200).await;
    let told = load.finish().await;
    assert_eq!(told.failures, [] as [String; 0], "callers saw errors");
    let stored = settled_since(rig, since, MOVES).await;
    let held = reconcile(&told, &stored, &rig.carrier.truth(&mark).await.unwrap());
    assert_eq!(held, 0, "an attempt was left without an answer");
    limit_was_kept(rig).await;
    until_replicas_agree(rig).await;
}

/// Every node is stopped and started again, under load.
pub async fn rolling_restart(rig: &Rig) {
    until_balanced(rig, &rig.lab.node_ids(), SOON).await;
    let (since, mark) = (now_ms(), rig.carrier.mark().await.unwrap());
    let load = Load::start(rig, "rolling", PAUSE);
    load.until_more(100).await;
    for node in rig.lab.node_ids() {
        let began = Instant::now();
        let before: usize = leaders(rig).await.values().filter(|leader| **leader == node).count();
        let lab = &rig.lab;
        tokio::task::block_in_place(|| lab.stop_node(node)).unwrap();
        let after = leaders(rig).await;
        assert!(after.len() == 17 && after.values().all(|leader| *leader != node), "{after:?}");
        say(&format!(
            "node {node} led {before} groups and stopped within {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        load.until_more(50).await;
        rig.start_node(node).await;
        load.until_more(50).await;
    }
    let told = load.finish().await;
    assert_eq!(told.failures, [] as [String; 0], "callers saw errors");
    let stored = settled_since(rig, since, MOVES).await;
    let held = reconcile(&told, &stored, &rig.carrier.truth(&mark).await.unwrap());
    assert_eq!(held, 0, "a planned restart left an attempt without an answer");
    limit_was_kept(rig).await;
}

/// A drained node leads nothing, and again its part when it is active.
pub async fn drain(rig: &Rig) {
    let node = *rig.lab.node_ids().last().unwrap();
    until_set(rig, node, NodeAction::Drain).await;
    until("it leads nothing", SOON, async || {
        let led = leaders(rig).await;
        if led.len() == 17 && led.values().all(|l| *l != node) { Ok(()) } else { Err(format!("{led:?}")) }
    })
    .await;
    let replicas = view(rig).await.unwrap().map;
    assert!(replicas.iter().all(|p| p.replicas.iter().any(|r| r.node_id == node)), "it keeps its replicas");
    until_set(rig, node, NodeAction::Activate).await;
    until_balanced(rig, &rig.lab.node_ids(), SOON).await;
}

/// A replica that is moved by hand goes where it was told.
pub async fn moved_by_hand(rig: &Rig) {
    let fourth = add_node(rig).await;
    until_balanced(rig, &rig.lab.node_ids(), MOVES).await;
    let row = view(rig)
        .await
        .unwrap()
        .map
        .into_iter()
        .find(|p| p.partition != 0 && p.replicas.iter().all(|r| r.node_id != fourth));
    let row = row.expect("4 nodes, 3 replicas: some partition is not on the new one");
    let (partition, from) = (row.partition, row.replicas[0].node_id);
    let admin = rig.lab.admin(fourth).unwrap();
    let wrong = admin.move_partition(partition, fourth, from).await.unwrap_err().to_string();
    assert!(wrong.contains(&format!("not on {fourth}")), "{wrong}");
    admin.move_partition(partition, from, fourth).await.unwrap();
    until("the replica is there and alone", MOVES, async || {
        let map = view(rig).await?.map;
        let row = map.into_iter().find(|p| p.partition == partition).ok_or("no such row")?;
        let here = row.replicas.iter().any(|r| r.node_id == fourth);
        let gone = row.replicas.iter().all(|r| r.node_id != from);
        if here && gone && row.replicas.len() == 3 { Ok(()) } else { Err(format!("{row:?}")) }
    })
    .await;
    until_replicas_agree(rig).await;
}

/// A node that lost its disk is refused, given up and replaced.
pub async fn replace_lost_disk(rig: &Rig) {
    let nodes = rig.lab.node_ids();
    until_balanced(rig, &nodes, MOVES).await;
    let victim = nodes[1];
    let practice = &rig.practices[12];
    let before = spec(practice, "before-the-loss", 500);
    let id = rig.submit(vec![before.clone()]).await.remove(0).message_id;
    let alive = set_node(rig, victim, NodeAction::Replace).await.unwrap_err();
    assert!(alive.contains("answers: stop it first"), "{alive}");
    rig.lab.kill_node(victim).unwrap();
    rig.lab.wipe_node(victim).unwrap();
    // The old identity with an empty disk: it is told what to do, and stops.
    rig.lab.start_node(victim).unwrap();
    until_refused(&rig.lab, victim, &format!("carillonctl node replace {victim}")).await;
    until_set(rig, victim, NodeAction::Replace).await;
    let heir = add_node(rig).await;
    until_status(rig, victim, NodeStatus::Removed, MOVES).await;
    let wanted: Vec<u64> = nodes.iter().copied().filter(|n| *n != victim).chain([heir]).collect();
    until_refused_again(rig, victim).await;
    rig.lab.remove_node(victim).unwrap();
    until_balanced(rig, &wanted, MOVES).await;
    let ids = submit_within_deadline(&rig.client, vec![before]).await.expect("no error in 10 s");
    assert_eq!(ids, std::slice::from_ref(&id), "the key still names the message");
    rig.until_state(&id, MessageState::Delivered, SOON).await;
    until_replicas_agree(rig).await;
}

async fn until_refused(lab: &Lab, node: u64, told: &str) {
    let name = format!("node-{node}");
    until(&format!("{name} stops"), SOON, async || {
        let members = lab.status().await.map_err(|e| e.to_string())?;
        match members.iter().find(|m| m.name == name).map(|m| m.state) {
            Some(ProcessState::Ended) => Ok(()),
            state => Err(format!("{state:?}")),
        }
    })
    .await;
    let log = std::fs::read_to_string(lab.log_path(&name)).unwrap();
    let tail: String = log.lines().rev().take(5).collect();
    assert!(tail.contains(told), "its log does not say what to do: {tail}");
}

async fn until_refused_again(rig: &Rig, node: u64) {
    rig.lab.start_node(node).unwrap();
    until_refused(&rig.lab, node, "was removed").await;
}

/// Seven founding nodes: three replicas of each partition, five voters of the meta group; two may fail.
pub async fn seven(rig: &Rig) {
    let status = view(rig).await.unwrap();
    let voters = |p: &carillon_proto::internal::PartitionRecord| {
        p.replicas.iter().filter(|r| r.role() == ReplicaRole::Voter).count()
    };
    assert_eq!((voters(&status.map[0]), status.map[0].replicas.len()), (5, 7));
    assert!(status.map[1..].iter().all(|p| voters(p) == 3 && p.replicas.len() == 3));
    let hosted: usize = status.partitions.iter().filter(|p| p.partition != 0).count();
    assert!((6..=7).contains(&hosted), "a node has its part only: {hosted}");
    let specs: Vec<_> =
        rig.practices.iter().enumerate().map(|(at, p)| spec(p, &format!("seven-{at}"), at)).collect();
    let ids = rig.submit(specs).await;
    for id in &ids {
        rig.until_state(&id.message_id, MessageState::Delivered, SOON).await;
    }
    let lost = leaders(rig).await[&0];
    rig.lab.kill_node(lost).unwrap();
    let more: Vec<_> =
        rig.practices.iter().enumerate().map(|(at, p)| spec(p, &format!("six-{at}"), at)).collect();
    let ids = submit_within_deadline(&rig.client, more).await.expect("six nodes serve all partitions");
    assert_eq!(ids.len(), rig.practices.len());
    rig.start_node(lost).await;
}

/// One node is older: what it does not understand is refused until it is upgraded.
pub async fn mixed_levels(rig: &Rig) {
    let admin = rig.lab.admin(1).unwrap();
    until("every node has registered", SOON, async || {
        let status = view(rig).await?;
        let levels: Vec<u32> = status.nodes.iter().map(|n| n.feature_level).collect();
        if levels == [LEVEL, LEVEL, 1] { Ok(()) } else { Err(format!("{levels:?}")) }
    })
    .await;
    assert_eq!(view(rig).await.unwrap().feature_level, 1);
    let refused = admin.create_token(60).await.unwrap_err().to_string();
    assert!(refused.contains("feature level 2") && refused.contains("upgrade every node"), "{refused}");
    // Messages do not mind.
    let id = rig.submit(vec![spec(&rig.practices[3], "mixed", 7)]).await.remove(0).message_id;
    rig.until_state(&id, MessageState::Delivered, SOON).await;
    let lab = &rig.lab;
    tokio::task::block_in_place(|| lab.stop_node(3)).unwrap();
    rig.lab.set_feature_level(3, None).unwrap();
    rig.start_node(3).await;
    until("the level rises", SOON, async || {
        let level = view(rig).await?.feature_level;
        if level == LEVEL { Ok(()) } else { Err(level.to_string()) }
    })
    .await;
    assert_eq!(admin.create_token(60).await.unwrap().node_id, 4);
    // And back: a program that is too old does not come in any more.
    tokio::task::block_in_place(|| lab.stop_node(3)).unwrap();
    rig.lab.set_feature_level(3, Some(1)).unwrap();
    rig.lab.start_node(3).unwrap();
    until_refused(&rig.lab, 3, "install a newer version").await;
    rig.lab.set_feature_level(3, None).unwrap();
    rig.start_node(3).await;
}
