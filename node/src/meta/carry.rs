//! Carries out steps: the steward's side sends them to where they belong, the node's side does them.
use super::MetaClient;
use crate::engine::peers::PeerChannels;
use crate::engine::{MemberMessage, NodeHandle};
use carillon_consensus::MemberChange;
use carillon_core::meta::planner::{ConfStep, Step};
use carillon_proto::internal::carry_request::Step as Wire;
use carillon_proto::internal::steward_client::StewardClient;
use carillon_proto::internal::{CarryRequest, LeaveJoint, MetaCommand, SwapVoters};
use carillon_proto::replica::node_of;
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone)]
pub struct Carrier {
    pub handle: NodeHandle,
    pub channels: Arc<PeerChannels>,
    pub meta: MetaClient,
}

impl Carrier {
    pub async fn carry(&self, step: &Step) -> Result<(), String> {
        let (node_id, group, wire) = match step {
            Step::Meta(kind) => {
                let command = MetaCommand { kind: Some(kind.clone()) };
                let texts = self.meta.propose(vec![command]).await.map_err(|e| e.to_string())?;
                return match texts.first() {
                    Some(refusal) if !refusal.is_empty() => Err(refusal.clone()),
                    _ => Ok(()),
                };
            }
            Step::Create { node_id, group, replica_id } => (*node_id, *group, Wire::Create(*replica_id)),
            Step::Destroy { node_id, group, replica_id } => (*node_id, *group, Wire::Destroy(*replica_id)),
            Step::Transfer { node_id, group, to } => (*node_id, *group, Wire::Transfer(*to)),
            Step::Conf { node_id, group, change } => (*node_id, *group, conf(change)),
        };
        let request = CarryRequest { group, step: Some(wire) };
        if node_id == self.handle.node_id() {
            return self.serve(request).await;
        }
        let channel = self.channels.get(node_id).ok_or("no connection to the node")?;
        let mut request = tonic::Request::new(request);
        request.set_timeout(TIMEOUT);
        let call = tokio::time::timeout(TIMEOUT, StewardClient::new(channel).carry(request)).await;
        let answer = call.map_err(|_| "no answer")?.map_err(|status| status.to_string())?.into_inner();
        if answer.error.is_empty() { Ok(()) } else { Err(answer.error) }
    }

    /// The node's side.
    pub async fn serve(&self, request: CarryRequest) -> Result<(), String> {
        let (handle, group) = (&self.handle, request.group);
        let message = match request.step.ok_or("an empty step; is the meta leader a newer version?")? {
            Wire::Transfer(to) => {
                return handle.transfer_leader(group, node_of(to)).await.map_err(|e| e.to_string());
            }
            Wire::Create(replica_id) => MemberMessage::Create { replica_id },
            Wire::Destroy(replica_id) => MemberMessage::Destroy { replica_id },
            Wire::AddLearner(id) => MemberMessage::Change(MemberChange::AddLearner(id)),
            Wire::Remove(id) => MemberMessage::Change(MemberChange::Remove(id)),
            Wire::Swap(SwapVoters { promote, demote }) => {
                MemberMessage::Change(MemberChange::Enter { promote, demote })
            }
            Wire::Leave(LeaveJoint {}) => MemberMessage::Change(MemberChange::Leave),
        };
        handle.member(group, message).await.map_err(|error| error.to_string())
    }
}

fn conf(change: &ConfStep) -> Wire {
    match change {
        ConfStep::AddLearner(id) => Wire::AddLearner(*id),
        ConfStep::Remove(id) => Wire::Remove(*id),
        ConfStep::Swap { promote, demote } => {
            Wire::Swap(SwapVoters { promote: promote.clone(), demote: demote.clone() })
        }
        ConfStep::Leave => Wire::Leave(LeaveJoint {}),
    }
}
