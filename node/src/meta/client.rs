//! Changes of the meta group from any node: on the leader directly, otherwise by asking it.
use crate::engine::transport::PeerChannels;
use crate::engine::{NodeHandle, ProposeError};
use bytes::Bytes;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::propose_meta_response::Result as Answer;
use carillon_proto::internal::{MetaCommand, ProposeMetaRequest};
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a change is tried before it fails.
const TRY_FOR: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    #[error("the meta group has no leader that answers")]
    Unavailable,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct MetaClient {
    handle: NodeHandle,
    channels: Arc<PeerChannels>,
}

impl MetaClient {
    pub fn new(handle: NodeHandle, channels: Arc<PeerChannels>) -> Self {
        Self { handle, channels }
    }

    /// Runs the commands and waits until they are applied on this node too. One refusal text for each command, empty =
    /// done. Commands may run twice when a leader is lost in between: all of them are idempotent.
    pub async fn propose(&self, commands: Vec<MetaCommand>) -> Result<Vec<String>, MetaError> {
        let deadline = Instant::now() + TRY_FOR;
        while Instant::now() < deadline {
            if let Some((index, texts)) = self.try_once(&commands).await {
                let mut applied = self.handle.applied(0);
                let seen = applied.wait_for(|at| *at >= index);
                return match tokio::time::timeout_at(deadline, seen).await {
                    Ok(Ok(_)) => Ok(texts),
                    _ => Err(MetaError::Unavailable),
                };
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(MetaError::Unavailable)
    }

    async fn try_once(&self, commands: &[MetaCommand]) -> Option<(u64, Vec<String>)> {
        let leader = self.handle.leadership(0).leader;
        if leader == self.handle.node_id() {
            let encoded = commands.iter().map(|c| Bytes::from(c.encode_to_vec())).collect();
            return self.handle.propose_meta(encoded).await.ok();
        }
        let mut client = PeerClient::new(self.channels.get(&leader)?.clone());
        let mut request = tonic::Request::new(ProposeMetaRequest { commands: commands.to_vec() });
        request.set_timeout(TRY_FOR);
        match client.propose_meta(request).await.ok()?.into_inner().result? {
            Answer::AppliedIndex(index) => Some((index, vec![String::new(); commands.len()])),
            Answer::Refusals(refusals) => Some((refusals.applied_index, refusals.texts)),
            Answer::LeaderHint(_) => None,
        }
    }

    /// The leader's side of the call.
    pub async fn serve(&self, request: ProposeMetaRequest) -> Answer {
        let encoded = request.commands.iter().map(|c| Bytes::from(c.encode_to_vec())).collect();
        match self.handle.propose_meta(encoded).await {
            Ok((index, texts)) if texts.iter().all(String::is_empty) => Answer::AppliedIndex(index),
            Ok((applied_index, texts)) => {
                Answer::Refusals(carillon_proto::internal::MetaRefusals { texts, applied_index })
            }
            Err(ProposeError::NotLeader { leader_hint }) => Answer::LeaderHint(leader_hint),
            Err(_) => Answer::LeaderHint(0),
        }
    }
}
