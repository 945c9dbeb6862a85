//! `carillonctl node|partition|leader ...`: who is in the cluster, and where its partitions are.
use super::Verdict;
use super::output::{Format, print, table};
use super::target::Target;
use carillon_proto::admin::{GetStatusResponse, NodeAction};
use carillon_proto::internal::{MetaNode, NodeStatus, PartitionRecord, ReplicaRole};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// All nodes that are or were in the cluster.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Make a token with which one new node can join; prints what to do with it.
    Token {
        #[command(flatten)]
        target: Target,
        /// Seconds for which it can be used, at most 7 days.
        #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(1..=604_800))]
        life_s: u32,
    },
    /// Move the leaders away from a node, for maintenance; it keeps its replicas. Undone by `activate`.
    Drain {
        node_id: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Undo a drain or a decommission.
    Activate {
        node_id: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Move everything away from a node, then remove it for ever. `node list` shows how far it is.
    Decommission {
        node_id: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Put a new node in the place of one whose data cannot be used (a damaged log, a damaged meta group): its replicas are made anew
    /// from its peers. In a lab it does all of it; elsewhere it prints the two lines for the machine. Deletes nothing.
    Rebuild(super::rebuild::RebuildArgs),
    /// Give up a node whose disk is lost: its replicas go to other nodes, and it is never let in again. Ask the meta leader.
    Replace {
        node_id: u64,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
pub enum PartitionCommand {
    /// Where the replicas of every partition are, and who leads.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Move a replica from one node to another. The balance may move another one back.
    Move {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        partition: u32,
        #[arg(long)]
        from: u64,
        #[arg(long)]
        to: u64,
    },
    /// Move the leadership of a partition to another node. The balance may move it again.
    TransferLeader {
        #[command(flatten)]
        target: Target,
        /// A number, or `meta` (0) for the meta group.
        #[arg(long, value_parser = super::target::partition)]
        partition: u32,
        #[arg(long)]
        to: u64,
    },
}

#[derive(Debug, Subcommand)]
pub enum LeaderCommand {
    /// Spread the leaders over the nodes now; without it that happens within seconds. Ask the meta leader.
    Balance {
        #[command(flatten)]
        target: Target,
    },
}

pub async fn node(command: NodeCommand, format: Format) -> anyhow::Result<Verdict> {
    let (target, node_id, action) = match command {
        NodeCommand::List { target } => return list_nodes(&target, format).await,
        NodeCommand::Token { target, life_s } => return token(&target, life_s, format).await,
        NodeCommand::Rebuild(args) => return super::rebuild::run(args, format).await,
        NodeCommand::Drain { node_id, target } => (target, node_id, NodeAction::Drain),
        NodeCommand::Activate { node_id, target } => (target, node_id, NodeAction::Activate),
        NodeCommand::Decommission { node_id, target } => (target, node_id, NodeAction::Decommission),
        NodeCommand::Replace { node_id, target } => (target, node_id, NodeAction::Replace),
    };
    let admin = match action {
        // Only it knows which nodes answer.
        NodeAction::Replace => target.connect_leader(0).await?,
        _ => target.any().await?,
    };
    admin.set_node(node_id, action).await?;
    let next = match action {
        NodeAction::Drain => "its leaders move away within seconds; `carillonctl node activate` undoes it",
        NodeAction::Decommission => {
            "its replicas move away; it is done when `carillonctl node list` shows it as removed"
        }
        NodeAction::Replace => {
            "its replicas go to the other nodes as far as there is room; `carillonctl node token` lets a new node in"
        }
        _ => "it gets its part of leaders and replicas again",
    };
    print(format, &json!({ "node_id": node_id, "action": action.as_str_name() }), || {
        println!("node {node_id}: {next}")
    })?;
    Ok(Verdict::Done)
}

async fn token(target: &Target, life_s: u32, format: Format) -> anyhow::Result<Verdict> {
    let made = target.any().await?.create_token(life_s).await?;
    let value = json!({
        "node_id": made.node_id, "token": made.token, "cluster_id": made.cluster_id, "peers": made.peers,
    });
    print(format, &value, || {
        let first = made.peers.first().map_or("HOST:PORT", String::as_str);
        println!("{}", made.token);
        println!();
        println!(
            "It admits node {} of cluster {} once, within {life_s} s. On the new machine:",
            made.node_id, made.cluster_id
        );
        println!(" 1. a certificate of the peers' CA for spiffe://{}/node/{}", made.cluster_id, made.node_id);
        println!(" 2. a configuration with node_id = {} and without members", made.node_id);
        println!(" 3. carillon-node --config FILE --join {first} --token {}", made.token);
    })?;
    Ok(Verdict::Done)
}

/// The newest map of several nodes, and the leader of each group by the newest term.
struct Merged {
    nodes: Vec<MetaNode>,
    map: Vec<PartitionRecord>,
    leaders: BTreeMap<u32, u64>,
    level: u32,
}

impl Merged {
    fn of(statuses: &[GetStatusResponse]) -> Self {
        let epochs = |s: &GetStatusResponse| s.map.iter().map(|p| p.epoch).sum::<u64>();
        let newest = statuses
            .iter()
            .max_by_key(|s| (s.map.len(), epochs(s), s.nodes.len()))
            .cloned()
            .unwrap_or_default();
        let mut leaders = BTreeMap::<u32, (u64, u64)>::new();
        for p in statuses.iter().flat_map(|s| &s.partitions).filter(|p| p.leader != 0) {
            let known = leaders.entry(p.partition).or_default();
            *known = (*known).max((p.term, p.leader));
        }
        let leaders = leaders.into_iter().map(|(partition, (_, leader))| (partition, leader)).collect();
        Self { nodes: newest.nodes, map: newest.map, leaders, level: newest.feature_level }
    }

    fn replicas(&self, node_id: u64) -> usize {
        let data = self.map.iter().filter(|p| p.partition != 0);
        data.flat_map(|p| &p.replicas).filter(|r| r.node_id == node_id).count()
    }

    fn led(&self, node_id: u64) -> usize {
        self.leaders.iter().filter(|(partition, leader)| **partition != 0 && **leader == node_id).count()
    }
}

fn status_word(node: &MetaNode) -> String {
    node.status().as_str_name().trim_start_matches("NODE_STATUS_").to_ascii_lowercase()
}

async fn list_nodes(target: &Target, format: Format) -> anyhow::Result<Verdict> {
    let merged = Merged::of(&target.every_status().await?);
    let value: Vec<Value> = merged
        .nodes
        .iter()
        .map(|n| {
            json!({
                "node_id": n.node_id, "address": n.peer_address, "status": status_word(n),
                "feature_level": n.feature_level, "registered": n.store_id != 0,
                "replicas": merged.replicas(n.node_id), "leads": merged.led(n.node_id),
            })
        })
        .collect();
    print(format, &json!({ "feature_level": merged.level, "nodes": value }), || {
        let rows: Vec<Vec<String>> = merged
            .nodes
            .iter()
            .map(|n| {
                vec![
                    n.node_id.to_string(),
                    n.peer_address.clone(),
                    status_word(n),
                    n.feature_level.to_string(),
                    merged.replicas(n.node_id).to_string(),
                    merged.led(n.node_id).to_string(),
                ]
            })
            .collect();
        table(&["NODE", "ADDRESS", "STATUS", "LEVEL", "REPLICAS", "LEADS"], &rows);
        println!();
        println!("feature level of the cluster: {}", merged.level);
    })?;
    let bad = merged.nodes.iter().any(|n| n.status() == NodeStatus::Dead);
    Ok(if bad { Verdict::Unhealthy } else { Verdict::Done })
}

async fn list_partitions(target: &Target, format: Format) -> anyhow::Result<Verdict> {
    let merged = Merged::of(&target.every_status().await?);
    let of = |p: &PartitionRecord, role: ReplicaRole| {
        p.replicas.iter().filter(|r| r.role() == role).map(|r| r.node_id).collect::<Vec<u64>>()
    };
    let value: Vec<Value> = merged
        .map
        .iter()
        .map(|p| {
            json!({
                "partition": p.partition, "epoch": p.epoch, "leader": merged.leaders.get(&p.partition),
                "voters": of(p, ReplicaRole::Voter), "learners": of(p, ReplicaRole::Learner),
                "leaving": of(p, ReplicaRole::Leaving),
            })
        })
        .collect();
    print(format, &json!({ "partitions": value }), || {
        let join = |list: Vec<u64>| list.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let rows: Vec<Vec<String>> = merged
            .map
            .iter()
            .map(|p| {
                vec![
                    if p.partition == 0 { "meta".to_owned() } else { p.partition.to_string() },
                    p.epoch.to_string(),
                    merged.leaders.get(&p.partition).map_or_else(|| "-".to_owned(), u64::to_string),
                    join(of(p, ReplicaRole::Voter)),
                    join(of(p, ReplicaRole::Learner)),
                    join(of(p, ReplicaRole::Leaving)),
                ]
            })
            .collect();
        table(&["PARTITION", "EPOCH", "LEADER", "VOTERS", "LEARNERS", "LEAVING"], &rows);
    })?;
    Ok(Verdict::Done)
}

pub async fn partition(command: PartitionCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        PartitionCommand::List { target } => return list_partitions(&target, format).await,
        PartitionCommand::Move { target, partition, from, to } => {
            target.any().await?.move_partition(partition, from, to).await?;
            print(format, &json!({ "partition": partition, "from": from, "to": to }), || {
                println!(
                    "partition {partition} moves from node {from} to node {to}; `carillonctl partition list` shows how far it is"
                );
            })?;
        }
        PartitionCommand::TransferLeader { target, partition, to } => {
            target.connect_leader(partition).await?.transfer_leader(partition, to).await?;
        }
    }
    Ok(Verdict::Done)
}

pub async fn leader(command: LeaderCommand, format: Format) -> anyhow::Result<Verdict> {
    let LeaderCommand::Balance { target } = command;
    target.connect_leader(0).await?.balance_leaders().await?;
    print(format, &json!({ "balancing": true }), || println!("leaders are being spread"))?;
    Ok(Verdict::Done)
}
