//! `status`: the whole cluster, as its nodes see it, and a verdict.
use super::Verdict;
use super::output::{Format, print, table};
use super::target::Target;
use carillon_ctl::health::{Answer, GroupHealth, Health, NodeHealth, Presence};
use carillon_proto::admin::{CarrierStatus, GetStatusResponse};
use serde_json::{Value, json};

/// Exit code 3 unless everything is well.
pub async fn status(target: &Target, format: Format) -> anyhow::Result<Verdict> {
    let answers = target.ask().await?;
    let health = Health::of(&answers);
    print(format, &as_json(&health, &answers), || show(&health, &answers))?;
    Ok(if health.healthy { Verdict::Done } else { Verdict::Unhealthy })
}

fn told(answers: &[Answer]) -> impl Iterator<Item = &GetStatusResponse> {
    answers.iter().filter_map(|answer| answer.status.as_ref().ok())
}

fn carrier_name(c: &CarrierStatus) -> &str {
    c.carrier.as_ref().map_or("?", |record| &record.name)
}

fn presence(node: &NodeHealth) -> &'static str {
    match node.presence {
        Presence::Answers => "answers",
        Presence::Silent(_) => "DOES NOT ANSWER",
        Presence::NotAsked => "not asked",
        Presence::Gone => "gone",
    }
}

fn show(health: &Health, answers: &[Answer]) {
    let practices = told(answers).map(|s| s.practices.len()).max().unwrap_or(0);
    let name = if health.cluster_id.is_empty() { "?" } else { &health.cluster_id };
    println!("cluster {name}, {} nodes, {practices} practices", health.nodes.len());
    println!();
    let row = |n: &NodeHealth| {
        vec![
            n.node_id.to_string(),
            n.peer_address.clone(),
            n.status.clone(),
            presence(n).to_owned(),
            n.version.clone(),
            n.replicas.to_string(),
            n.leads.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = health.nodes.iter().map(row).collect();
    table(&["NODE", "ADDRESS", "STATUS", "PRESENCE", "VERSION", "REPLICAS", "LEADS"], &rows);
    println!();
    let row = |p: &GroupHealth| {
        vec![
            if p.partition == 0 { "meta".to_owned() } else { p.partition.to_string() },
            if p.leader == 0 { "NONE".to_owned() } else { p.leader.to_string() },
            p.term.to_string(),
            p.commit.to_string(),
            p.applied.to_string(),
            format!("{} of {}", p.replicas_up, p.replicas),
        ]
    };
    let rows: Vec<Vec<String>> = health.partitions.iter().map(row).collect();
    table(&["PARTITION", "LEADER", "TERM", "COMMIT", "APPLIED", "REPLICAS UP"], &rows);
    println!();
    let row = |(node, c): (u64, &CarrierStatus)| {
        vec![
            carrier_name(c).to_owned(),
            node.to_string(),
            c.binds_up.to_string(),
            c.in_flight.to_string(),
            format!("{:.1}", c.share_segments_per_second),
            c.paused_ms.to_string(),
            format!("{} v{}", c.contract, c.contract_version),
            if c.carries_phi { "yes" } else { "no" }.to_owned(),
        ]
    };
    let carriers = told(answers).flat_map(|s| s.carriers.iter().map(|c| (s.node_id, c)));
    let rows: Vec<Vec<String>> = carriers.map(row).collect();
    table(&["CARRIER", "NODE", "BINDS", "IN FLIGHT", "SHARE/S", "PAUSED MS", "CONTRACT", "PHI"], &rows);
    println!();
    if health.healthy {
        println!("HEALTHY");
    } else {
        println!("DEGRADED");
        health.problems.iter().for_each(|problem| println!("  {problem}"));
    }
}

/// The whole of it, with what each node said of its own replicas.
fn as_json(health: &Health, answers: &[Answer]) -> Value {
    let replicas = |s: &GetStatusResponse| -> Vec<Value> {
        let replica = |p: &carillon_proto::admin::PartitionStatus| {
            json!({
                "partition": p.partition, "replica_id": p.replica_id, "leader": p.leader, "term": p.term,
                "commit": p.commit, "applied": p.applied, "first_index": p.first_index,
                "last_index": p.last_index, "blocked": p.blocked, "digest": hex::encode(&p.digest),
                "digest_index": p.digest_index,
            })
        };
        s.partitions.iter().map(replica).collect()
    };
    let carriers = |s: &GetStatusResponse| -> Vec<Value> {
        let carrier = |c: &CarrierStatus| {
            json!({
                "name": carrier_name(c), "binds_up": c.binds_up, "in_flight": c.in_flight,
                "segments_per_second": c.carrier.as_ref().map_or(0, |r| r.segments_per_second),
                "share_segments_per_second": c.share_segments_per_second, "paused_ms": c.paused_ms,
                "contract": c.contract, "contract_version": c.contract_version, "carries_phi": c.carries_phi,
            })
        };
        s.carriers.iter().map(carrier).collect()
    };
    let seen = told(answers).map(|s| {
        json!({ "node_id": s.node_id, "version": s.version, "replicas": replicas(s), "carriers": carriers(s) })
    });
    let practices = told(answers).max_by_key(|s| s.practices.len()).map(|s| {
        let practice = |p: &carillon_proto::internal::PracticeRecord| {
            json!({
                "practice_no": p.practice_no, "tenant": p.tenant, "practice": p.practice,
                "time_zone": p.time_zone, "carrier_no": p.carrier_no, "weight": p.weight.max(1),
            })
        };
        s.practices.iter().map(practice).collect::<Vec<_>>()
    });
    json!({
        "cluster_id": health.cluster_id, "healthy": health.healthy, "problems": health.problems,
        "nodes": health.nodes, "partitions": health.partitions, "seen_by": seen.collect::<Vec<_>>(),
        "practices": practices.unwrap_or_default(),
    })
}
