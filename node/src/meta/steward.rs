//! The steward: on the leader of the meta group, writes the cluster's first record (name, partitions, nodes) from the
//! configuration. A cluster that exists already keeps what it has.
use crate::config::Config;
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_proto::internal::{Bootstrap, MetaCommand, MetaNode, meta_command::Kind};
use prost::Message as _;
use std::time::Duration;

/// Runs until the cluster is bootstrapped, as seen here. Fails when it was created differently from this
/// configuration, because that node would look for data where it is not.
pub async fn run(config: &Config, handle: NodeHandle) -> anyhow::Result<()> {
    let mut leaders = handle.leaders();
    loop {
        let view = handle.meta();
        if !view.cluster_id.is_empty() {
            anyhow::ensure!(
                view.cluster_id == config.cluster_id && view.partitions == config.partitions,
                "this data belongs to cluster {} with {} partitions; the configuration says {} with {}",
                view.cluster_id,
                view.partitions,
                config.cluster_id,
                config.partitions
            );
            return Ok(());
        }
        if handle.is_leader(0) {
            let nodes = config
                .members
                .iter()
                .map(|m| MetaNode { node_id: m.node_id, peer_address: m.peer_address.clone() });
            let command = MetaCommand {
                kind: Some(Kind::Bootstrap(Bootstrap {
                    cluster_id: config.cluster_id.clone(),
                    partitions: config.partitions,
                    nodes: nodes.collect(),
                })),
            };
            match handle.propose_meta(vec![Bytes::from(command.encode_to_vec())]).await {
                Ok((_, texts)) if texts.iter().all(String::is_empty) => {
                    tracing::info!(
                        cluster = config.cluster_id,
                        partitions = config.partitions,
                        "cluster created"
                    );
                }
                Ok((_, texts)) => tracing::warn!(refused = texts.join("; "), "cluster not created"),
                Err(error) => tracing::debug!(%error, "cluster not created yet"),
            }
        }
        // Woken by a change of leaders; looks again at least once a second.
        drop(tokio::time::timeout(Duration::from_secs(1), leaders.changed()).await);
    }
}
