//! Founding: on the first leader of the meta group, writes the cluster's first record (name, partitions, founding nodes). A cluster
//! that exists already keeps what it has.
use super::Membership;
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_proto::internal::{Bootstrap, MetaCommand, MetaNode, meta_command::Kind};
use prost::Message as _;
use std::time::Duration;

/// Runs until the cluster is created, as seen here. Fails when it was created differently from what this node was told,
/// because that node would look for data where it is not.
pub async fn found(membership: &Membership, handle: &NodeHandle) -> anyhow::Result<()> {
    let mut leaders = handle.leaders();
    loop {
        let view = handle.meta();
        if !view.cluster_id.is_empty() {
            anyhow::ensure!(
                view.cluster_id == membership.cluster_id && view.partitions == membership.partitions,
                "the cluster is {} with {} partitions; this node was told {} with {}",
                view.cluster_id,
                view.partitions,
                membership.cluster_id,
                membership.partitions
            );
            return Ok(());
        }
        if handle.is_leader(0) && !membership.founders.is_empty() {
            create(membership, handle).await;
        }
        // Woken by a change of leaders; looks again at least once a second.
        drop(tokio::time::timeout(Duration::from_secs(1), leaders.changed()).await);
    }
}

async fn create(membership: &Membership, handle: &NodeHandle) {
    let founders = membership.nodes.iter().filter(|(id, _)| membership.founders.contains(id));
    let node = |(id, address): (&u64, &String)| MetaNode {
        node_id: *id,
        peer_address: address.clone(),
        ..Default::default()
    };
    let bootstrap = Bootstrap {
        cluster_id: membership.cluster_id.clone(),
        partitions: membership.partitions,
        nodes: founders.map(node).collect(),
    };
    let command = MetaCommand { kind: Some(Kind::Bootstrap(bootstrap)) };
    match handle.propose_meta(vec![Bytes::from(command.encode_to_vec())]).await {
        Ok((_, texts)) if texts.iter().all(String::is_empty) => {
            tracing::info!(
                cluster = membership.cluster_id,
                partitions = membership.partitions,
                "cluster created"
            );
        }
        Ok((_, texts)) => tracing::warn!(refused = texts.join("; "), "cluster not created"),
        Err(error) => tracing::debug!(%error, "cluster not created yet"),
    }
}
