//! Membership for operators: tokens, what the cluster wants of a node, moves by hand.
use super::admin::change;
use crate::engine::NodeHandle;
use crate::meta::{Desk, MetaClient};
use aws_lc_rs::digest::{SHA256, digest};
use carillon_core::meta::status_word;
use carillon_proto::admin::{
    CreateTokenRequest, CreateTokenResponse, MovePartitionRequest, NodeAction, SetNodeRequest,
    TransferLeaderRequest,
};
use carillon_proto::internal::{
    ChangeReplicas, CreateToken, NodeStatus, ReplicaRecord, ReplicaRole, SetNodeStatus, meta_command::Kind,
};
use rand::Rng as _;
use tonic::Status;

const TOKEN_LIFE_S: u32 = 3_600;
const SECRET_BYTES: usize = 32;

pub(super) struct Members<'a> {
    pub handle: &'a NodeHandle,
    pub meta: &'a MetaClient,
    pub desk: &'a Desk,
}

impl Members<'_> {
    pub async fn create_token(&self, request: CreateTokenRequest) -> Result<CreateTokenResponse, Status> {
        let secret: [u8; SECRET_BYTES] = rand::rng().random();
        let secret_hash: prost::bytes::Bytes = digest(&SHA256, &secret).as_ref().to_vec().into();
        let life_s = if request.life_s == 0 { TOKEN_LIFE_S } else { request.life_s };
        let command = CreateToken { secret_hash: secret_hash.clone(), life_s };
        change(self.meta, Kind::CreateToken(command)).await?;
        let view = self.handle.meta();
        let made = view.tokens.values().find(|token| token.secret_hash == secret_hash);
        let made = made.ok_or_else(|| super::internal("the token was not stored"))?;
        Ok(CreateTokenResponse {
            node_id: made.node_id,
            token: format!("carillon-{}-{}", made.node_id, hex::encode(secret)),
            cluster_id: view.cluster_id.clone(),
            peers: view.present().map(|n| n.peer_address.clone()).collect(),
        })
    }

    pub async fn set_node(&self, request: &SetNodeRequest) -> Result<(), Status> {
        let node_id = request.node_id;
        let status = match request.action() {
            NodeAction::Drain => NodeStatus::Draining,
            NodeAction::Activate => self.activate(node_id)?,
            NodeAction::Decommission => NodeStatus::Decommissioning,
            NodeAction::Replace => {
                self.check_is_lost(node_id)?;
                NodeStatus::Dead
            }
            NodeAction::Unspecified => return Err(Status::invalid_argument("name an action")),
        };
        change(self.meta, Kind::SetNodeStatus(SetNodeStatus { node_id, status: status.into() })).await
    }

    /// A joining node becomes active by itself, when it has learned the meta group.
    fn activate(&self, node_id: u64) -> Result<NodeStatus, Status> {
        match self.handle.meta().nodes.get(&node_id).map(|n| n.status()) {
            Some(status @ NodeStatus::Joining) => Err(Status::failed_precondition(format!(
                "node {node_id} is {}; it becomes active by itself",
                status_word(status)
            ))),
            _ => Ok(NodeStatus::Active),
        }
    }

    /// Calling a node dead is for ever, so it is not done to one that answers, nor while a group might need it.
    fn check_is_lost(&self, node_id: u64) -> Result<(), Status> {
        let seen = self.steward()?;
        let Some(node) = seen.nodes.get(&node_id) else {
            return Err(Status::failed_precondition(format!(
                "node {node_id} is not known; `carillonctl node list` shows all nodes"
            )));
        };
        if node.alive {
            return Err(Status::failed_precondition(format!(
                "node {node_id} answers: stop it first if its disk is to be given up, or use `carillonctl node decommission {node_id}`"
            )));
        }
        if let Some(group) = (0..=self.handle.partitions()).find(|group| !seen.groups.contains_key(group)) {
            return Err(Status::failed_precondition(format!(
                "partition {group} has no leader now: without node {node_id} it could be lost; bring missing nodes back first"
            )));
        }
        Ok(())
    }

    fn steward(&self) -> Result<carillon_core::meta::planner::Seen, Status> {
        self.desk.seen().ok_or_else(|| {
            Status::failed_precondition(format!(
                "this node does not lead the meta group, or has just begun to; ask node {}",
                self.handle.leadership(0).leader
            ))
        })
    }

    pub async fn move_partition(&self, request: &MovePartitionRequest) -> Result<(), Status> {
        let view = self.handle.meta();
        let refuse = |text: String| Err(Status::failed_precondition(text));
        let partition = request.partition;
        let Some(record) = view.map.get(&partition).filter(|_| partition > 0) else {
            return refuse(format!(
                "partition {partition} does not exist; `carillonctl partition list` shows all"
            ));
        };
        let voters = || record.replicas.iter().filter(|r| r.role() == ReplicaRole::Voter);
        let Some(leaves) = voters().find(|r| r.node_id == request.from_node) else {
            let hosts: Vec<String> = voters().map(|r| r.node_id.to_string()).collect();
            return refuse(format!(
                "partition {partition} is on nodes {}, not on {}",
                hosts.join(", "),
                request.from_node
            ));
        };
        if record.replicas.iter().any(|r| r.role() == ReplicaRole::Leaving) {
            return refuse(format!("partition {partition} is being moved already; wait until that is done"));
        }
        match view.nodes.get(&request.to_node).map(|n| n.status()) {
            Some(NodeStatus::Active) => {}
            Some(status) => {
                return refuse(format!("node {} is {}, not active", request.to_node, status_word(status)));
            }
            None => return refuse(format!("node {} is not known", request.to_node)),
        }
        let add = ReplicaRecord { replica_id: 0, node_id: request.to_node, role: ReplicaRole::Voter.into() };
        let set = ReplicaRecord { role: ReplicaRole::Leaving.into(), ..*leaves };
        let command = ChangeReplicas {
            partition,
            expected_epoch: record.epoch,
            add: vec![add],
            set: vec![set],
            forget: Vec::new(),
        };
        change(self.meta, Kind::ChangeReplicas(command)).await
    }

    /// A leadership goes only to a node that votes.
    pub fn check_transfer(&self, request: &TransferLeaderRequest) -> Result<(), Status> {
        let view = self.handle.meta();
        let (partition, to) = (request.partition, request.to_node);
        let refuse = |text: String| Err(Status::failed_precondition(text));
        // A map that is not known yet says nothing.
        if view.map.is_empty() {
            return Ok(());
        }
        let Some(record) = view.map.get(&partition) else {
            return refuse(format!(
                "partition {partition} does not exist; `carillonctl partition list` shows all"
            ));
        };
        if !view.nodes.contains_key(&to) {
            return refuse(format!("node {to} is not known; `carillonctl node list` shows all nodes"));
        }
        let voters = record.replicas.iter().filter(|r| r.role() == ReplicaRole::Voter);
        let hosts: Vec<u64> = voters.map(|r| r.node_id).collect();
        if !hosts.contains(&to) {
            return refuse(format!(
                "node {to} has no replica of partition {partition} that votes: nodes {hosts:?} have"
            ));
        }
        Ok(())
    }

    /// The damaged copy goes; the planner then finds the partition one copy short and makes a new one, with a new id.
    pub async fn repair_replica(&self, partition: u32) -> Result<(), Status> {
        let refuse = |text: String| Err(Status::failed_precondition(text));
        let node_id = self.handle.node_id();
        if !self.handle.is_fenced(partition) {
            return refuse(format!("partition {partition} is not fenced on node {node_id}"));
        }
        if partition == 0 {
            return refuse(format!(
                "the meta group's replica cannot be repaired alone: `carillonctl node rebuild {node_id}` puts a new node in its place"
            ));
        }
        let view = self.handle.meta();
        let Some(record) = view.map.get(&partition) else {
            return refuse(format!("partition {partition} is not in the map that this node knows"));
        };
        let Some(own) = record.replicas.iter().find(|r| r.node_id == node_id) else {
            return refuse(format!("the map has no replica of partition {partition} on node {node_id}"));
        };
        match own.role() {
            ReplicaRole::Leaving => return Ok(()),
            ReplicaRole::Voter if record.replicas.len() == 1 => {
                return refuse(format!(
                    "node {node_id} has the only copy of partition {partition}; restore a backup"
                ));
            }
            _ => {}
        }
        let set = ReplicaRecord { role: ReplicaRole::Leaving.into(), ..*own };
        let command =
            ChangeReplicas { partition, expected_epoch: record.epoch, set: vec![set], ..Default::default() };
        tracing::warn!(partition, replica_id = own.replica_id, "a damaged replica is given up");
        change(self.meta, Kind::ChangeReplicas(command)).await
    }

    pub fn balance_leaders(&self) -> Result<(), Status> {
        self.steward()?;
        self.desk.balance_leaders_now();
        Ok(())
    }
}
