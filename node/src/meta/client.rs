//! Changes of the meta group from any node: on the leader directly, otherwise by asking it.
use crate::engine::peers::PeerChannels;
use crate::engine::{NodeHandle, ProposeError};
use bytes::Bytes;
use carillon_proto::internal::peer_client::PeerClient;
use carillon_proto::internal::propose_meta_response::Result as Answer;
use carillon_proto::internal::steward_client::StewardClient;
use carillon_proto::internal::{ConfirmRequest, MetaCommand, ProposeMetaRequest};
use prost::Message as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    turn: Arc<AtomicUsize>,
}

impl MetaClient {
    pub fn new(handle: NodeHandle, channels: Arc<PeerChannels>) -> Self {
        Self { handle, channels, turn: Arc::default() }
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
        let leader = self.leader();
        if leader == self.handle.node_id() {
            let encoded = commands.iter().map(|c| Bytes::from(c.encode_to_vec())).collect();
            return self.handle.propose_meta(encoded).await.ok();
        }
        let mut client = PeerClient::new(self.channels.get(leader)?);
        let mut request = tonic::Request::new(ProposeMetaRequest { commands: commands.to_vec() });
        request.set_timeout(TRY_FOR);
        match client.propose_meta(request).await.ok()?.into_inner().result? {
            Answer::AppliedIndex(index) => Some((index, vec![String::new(); commands.len()])),
            Answer::Refusals(refusals) => Some((refusals.applied_index, refusals.texts)),
            Answer::LeaderHint(_) => None,
        }
    }

    /// Without a known leader, one node after the other: each knows more than nobody.
    fn leader(&self) -> u64 {
        match self.handle.leadership(0).leader {
            0 => {
                let ids = self.channels.ids();
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                ids.get(turn % ids.len().max(1)).copied().unwrap_or(0)
            }
            leader => leader,
        }
    }

    /// Returns once this node has applied everything of the meta group that was acknowledged before the call; tries as
    /// long as that takes.
    pub async fn caught_up(&self) {
        loop {
            if let Some(index) = self.confirm().await {
                let mut applied = self.handle.applied(0);
                if applied.wait_for(|at| *at >= index).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn confirm(&self) -> Option<u64> {
        let leader = self.leader();
        if leader == self.handle.node_id() {
            return self.serve_confirm().await;
        }
        let mut request = tonic::Request::new(ConfirmRequest {});
        request.set_timeout(TRY_FOR);
        let answer = StewardClient::new(self.channels.get(leader)?).confirm(request).await.ok()?;
        Some(answer.into_inner().index).filter(|index| *index > 0)
    }

    /// The leader's side of it: the read waits until everything is applied here.
    pub async fn serve_confirm(&self) -> Option<u64> {
        self.handle.read(0).await.ok()?;
        Some(*self.handle.applied(0).borrow())
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
