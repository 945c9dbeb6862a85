//! Keeps the cluster informed of this node: where it is, which directory it has, what its program understands. And the other
//! way round: keeps the address book, in memory and on disk, equal to the meta group.
use super::{Membership, MetaClient};
use crate::engine::NodeHandle;
use crate::engine::peers::PeerChannels;
use carillon_proto::internal::{MetaCommand, RegisterNode, meta_command::Kind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const PAUSE: Duration = Duration::from_secs(1);

pub struct Registrar {
    pub handle: NodeHandle,
    pub meta: MetaClient,
    pub channels: Arc<PeerChannels>,
    pub membership: Membership,
    pub store_id: u64,
    pub data_dir: PathBuf,
    pub peer_address: String,
    pub feature_level: u32,
}

impl Registrar {
    /// Runs for the life of the node. Fails when the cluster does not want this node any more.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut changes = self.handle.meta_changes();
        loop {
            changes.mark_unchanged();
            self.follow()?;
            let registered = self.is_registered();
            if !registered {
                self.register().await?;
            }
            // A refused or lost registration is repeated; otherwise the next change wakes us.
            let wait = tokio::time::timeout(PAUSE, changes.changed()).await;
            if registered && matches!(wait, Ok(Err(_))) {
                return Ok(());
            }
        }
    }

    fn follow(&mut self) -> anyhow::Result<()> {
        let view = self.handle.meta();
        if view.cluster_id.is_empty() {
            return Ok(());
        }
        self.channels.update(&view);
        let nodes = view.present().map(|n| (n.node_id, n.peer_address.clone())).collect();
        if self.membership.nodes != nodes {
            self.membership.nodes = nodes;
            self.membership.save(&self.data_dir)?;
        }
        Ok(())
    }

    /// Nothing to say, or nobody to say it to.
    fn is_registered(&self) -> bool {
        let view = self.handle.meta();
        let Some(known) = view.nodes.get(&self.membership.node_id) else { return true };
        known.store_id == self.store_id
            && known.peer_address == self.peer_address
            && known.feature_level == self.feature_level
    }

    async fn register(&self) -> anyhow::Result<()> {
        let command = RegisterNode {
            node_id: self.membership.node_id,
            store_id: self.store_id,
            peer_address: self.peer_address.clone(),
            feature_level: self.feature_level,
        };
        let command = MetaCommand { kind: Some(Kind::RegisterNode(command)) };
        let Ok(texts) = self.meta.propose(vec![command]).await else { return Ok(()) };
        match texts.first().map(String::as_str) {
            None | Some("") => Ok(()),
            Some(refusal) => anyhow::bail!("{refusal}"),
        }
    }
}
