//! A cluster of three, and what each trouble looks like to an operator.
use super::*;
use carillon_proto::admin::CarrierStatus;
use carillon_proto::internal::{PartitionRecord, ReplicaRecord};

const PARTITIONS: u32 = 2;

/// What node `id` of three says when all is well; the node `p % 3 + 1` leads partition `p`, in term 4.
fn status(id: u64) -> GetStatusResponse {
    let node = |node_id| MetaNode {
        node_id,
        peer_address: format!("10.0.0.{node_id}:1"),
        status: NodeStatus::Active as i32,
        ..MetaNode::default()
    };
    let replica = |node_id| ReplicaRecord { replica_id: node_id, node_id, role: 1 };
    let row = |partition| PartitionRecord {
        partition,
        epoch: 1,
        replicas: (1..=3).map(replica).collect(),
        ..PartitionRecord::default()
    };
    let group = |partition: u32| PartitionStatus {
        partition,
        leader: u64::from(partition % 3 + 1),
        term: 4,
        commit: 10 + id,
        applied: 10,
        ..PartitionStatus::default()
    };
    GetStatusResponse {
        cluster_id: "lab".to_owned(),
        node_id: id,
        nodes: (1..=3).map(node).collect(),
        map: (0..=PARTITIONS).map(row).collect(),
        partitions: (0..=PARTITIONS).map(group).collect(),
        carriers: vec![CarrierStatus { binds_up: 2, ..CarrierStatus::default() }],
        ..GetStatusResponse::default()
    }
}

fn answers() -> Vec<Answer> {
    let answer = |id| Answer { node_id: Some(id), name: format!("node {id}"), status: Ok(status(id)) };
    (1..=3).map(answer).collect()
}

fn change(answers: &mut [Answer], id: u64, change: impl Fn(&mut GetStatusResponse)) {
    change(answers[id as usize - 1].status.as_mut().unwrap());
}

#[test]
fn all_is_well() {
    let health = Health::of(&answers());
    assert!(health.healthy, "{:?}", health.problems);
    assert_eq!(
        health.nodes.iter().map(|n| (n.replicas, n.leads)).collect::<Vec<_>>(),
        [(2, 0), (2, 1), (2, 1)]
    );
    let group = &health.partitions[1];
    assert_eq!((group.leader, group.commit, group.replicas, group.replicas_up), (2, 13, 3, 3));
}

#[test]
fn a_dead_node_is_named_and_what_it_led_has_no_leader() {
    let mut answers = answers();
    answers[1].status = Err("connection refused".to_owned());
    let health = Health::of(&answers);
    assert!(!health.healthy);
    assert_eq!(
        health.problems,
        [
            "partition 1 has no leader: node 2, which led it, does not answer",
            "node 2 does not answer: connection refused"
        ]
    );
    assert_eq!(health.nodes[1].presence, Presence::Silent("connection refused".to_owned()));
    assert_eq!((health.partitions[1].leader, health.partitions[1].replicas_up), (0, 2));
    // Another one has taken over: the node is still missing.
    for id in [1, 3] {
        change(&mut answers, id, |s| (s.partitions[1].leader, s.partitions[1].term) = (3, 5));
    }
    let health = Health::of(&answers);
    assert_eq!(health.problems, ["node 2 does not answer: connection refused"]);
    assert_eq!(health.partitions[1].leader, 3);
}

#[test]
fn a_group_in_which_nobody_leads_is_named_even_if_everybody_answers() {
    let mut answers = answers();
    for id in 1..=3 {
        change(&mut answers, id, |s| (s.partitions[2].leader, s.partitions[2].term) = (0, 9));
    }
    assert_eq!(Health::of(&answers).problems, ["partition 2 has no leader"]);
    // Two think that the third leads; it knows better.
    for id in 1..=3 {
        let leader = if id == 1 { 0 } else { 1 };
        change(&mut answers, id, |s| (s.partitions[2].leader, s.partitions[2].term) = (leader, 9));
    }
    let health = Health::of(&answers);
    assert_eq!(health.problems, ["partition 2 has no leader: node 1, which led it, says that it does not"]);
    assert_eq!(health.partitions[2].leader, 0);
}

#[test]
fn one_address_is_enough_to_hear_of_a_node_that_is_missed() {
    let mut one = answers();
    one.truncate(1);
    one[0].node_id = None;
    let health = Health::of(&one);
    assert!(health.healthy, "{:?}", health.problems);
    assert_eq!(health.nodes[1].presence, Presence::NotAsked);
    change(&mut one, 1, |s| s.silent_nodes = vec![3]);
    let problems = Health::of(&one).problems;
    assert!(
        problems.iter().any(|p| p.starts_with("node 3 does not answer: node 1, which leads")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|p| p.starts_with("partition 2 has no leader: node 3")), "{problems:?}");
}

#[test]
fn no_answer_at_all_is_not_healthy() {
    let mut answers = answers();
    answers.iter_mut().for_each(|a| a.status = Err("x".to_owned()));
    let health = Health::of(&answers);
    assert_eq!(health.problems[0], "no node answers");
    assert_eq!((health.problems.len(), health.nodes.len(), health.healthy), (4, 3, false));
    assert!(!Health::of(&[]).healthy);
}

#[test]
fn members_that_left_are_not_missed() {
    let mut answers = answers();
    answers[1].status = Err("x".to_owned());
    for id in [1, 3] {
        change(&mut answers, id, |s| {
            s.nodes[1].status = NodeStatus::Removed as i32;
            s.map.iter_mut().for_each(|row| row.replicas.retain(|r| r.node_id != 2));
            (s.partitions[1].leader, s.partitions[1].term) = (3, 5);
        });
    }
    let health = Health::of(&answers);
    assert!(health.healthy, "{:?}", health.problems);
    assert_eq!(health.nodes[1].presence, Presence::Gone);
}

#[test]
fn what_a_node_says_of_itself_is_told_with_its_number() {
    let mut answers = answers();
    change(&mut answers, 3, |s| {
        s.partitions[1].blocked = "digest".to_owned();
        s.storage_near_full = true;
        s.carriers[0].binds_up = 0;
    });
    let problems = Health::of(&answers).problems;
    assert_eq!(
        problems,
        [
            "partition 1 is fenced on node 3: digest",
            "the disk of node 3 is nearly full; submits are refused",
            "carrier ? has no bind on node 3"
        ]
    );
}
