//! Cancels: by id and by external reference, one answer for each message concerned.
use super::ingest::keyring_status;
use super::propose_status;
use super::view::timestamp;
use crate::engine::handle::COMMANDS_MAX;
use crate::engine::{NodeHandle, ProposeError};
use crate::seal::{Keyring, KeyringError};
use bytes::Bytes;
use carillon_core::{CancelOutcome, CommandResult, query};
use carillon_proto::internal::{
    Cancel, CancelByReference, Command, NodeCancelRequest, NodeCancelResponse, NotLeader, command::Kind,
};
use carillon_proto::public::{CancelResult, ErrorReason, MessageState};
use carillon_proto::{MessageId, errors};
use prost::Message as _;
use std::sync::Arc;
use tonic::Status;

#[derive(Clone)]
pub struct Cancels {
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
}

/// What one command of the proposal is about.
enum Asked {
    Id,
    Reference(String),
}

impl Cancels {
    pub async fn cancel(&self, request: NodeCancelRequest) -> Result<NodeCancelResponse, Status> {
        let partition = request.partition;
        if partition == 0 || partition > self.handle.partitions() {
            return Err(super::internal("no such partition"));
        }
        let not_leader = |leader_hint| NodeCancelResponse {
            not_leader: Some(NotLeader { leader_hint }),
            ..Default::default()
        };
        let tables = match self.handle.read(partition).await {
            Ok(tables) => tables,
            Err(ProposeError::NotLeader { leader_hint }) => return Ok(not_leader(leader_hint)),
            Err(_) => return Ok(not_leader(0)),
        };
        let meta = self.handle.meta();
        let mut results: Vec<CancelResult> = Vec::new();
        let mut commands: Vec<(usize, Asked, Bytes)> = Vec::new();
        for bytes in &request.message_ids {
            let found = match MessageId::from_bytes(bytes) {
                Ok(id) => query::message(&*tables, &id)
                    .map_err(|_| super::internal("unreadable record"))?
                    .map(|(_, status)| (id, status.practice_no)),
                Err(_) => None,
            };
            let own =
                found.filter(|(_, no)| meta.practices.get(no).is_some_and(|p| p.tenant == request.tenant));
            let at = results.len();
            match own {
                Some((id, practice_no)) => {
                    let cancel = Cancel { message_id: id.to_bytes(), practice_no };
                    commands.push((at, Asked::Id, encode(Kind::Cancel(cancel))));
                    results.push(CancelResult { message_id: id.to_string(), ..Default::default() });
                }
                None => results.push(missing(bytes)),
            }
        }
        let ids = results.len();
        for reference in request.external_references {
            match self.by_reference(&request.tenant, request.practice_no, &reference)? {
                Some(command) => commands.push((ids, Asked::Reference(reference), command)),
                None => continue,
            }
        }
        while !commands.is_empty() {
            let rest = commands.split_off(commands.len().min(COMMANDS_MAX));
            let chunk = std::mem::replace(&mut commands, rest);
            let encoded = chunk.iter().map(|(_, _, command)| command.clone()).collect();
            match self.handle.propose(partition, encoded).await {
                Ok(answers) => {
                    for ((at, asked, _), answer) in chunk.into_iter().zip(answers) {
                        fill(&mut results, at, asked, answer);
                    }
                }
                Err(ProposeError::NotLeader { leader_hint }) => return Ok(not_leader(leader_hint)),
                // Cancels are idempotent: the router may simply repeat them.
                Err(error) => return Err(propose_status(&error)),
            }
        }
        Ok(NodeCancelResponse { results, not_leader: None })
    }

    fn by_reference(&self, tenant: &str, practice_no: u32, reference: &str) -> Result<Option<Bytes>, Status> {
        let meta = self.handle.meta();
        if meta.practices.get(&practice_no).is_none_or(|p| p.tenant != tenant) {
            return Err(errors::status(ErrorReason::PracticeNotFound, "no such practice"));
        }
        let keys = match self.keyring.of_epoch(practice_no, 1) {
            Ok(keys) => keys,
            Err(KeyringError::Missing) => return Ok(None),
            Err(error) => return Err(keyring_status(&error)),
        };
        let reference_index = keys.reference_index(reference);
        Ok(Some(encode(Kind::CancelByReference(CancelByReference { practice_no, reference_index }))))
    }
}

fn encode(kind: Kind) -> Bytes {
    Command { kind: Some(kind) }.encode_to_vec().into()
}

fn missing(bytes: &[u8]) -> CancelResult {
    let status = errors::status(ErrorReason::MessageNotFound, "no such message");
    let message_id = MessageId::from_bytes(bytes).map(|id| id.to_string()).unwrap_or_default();
    CancelResult { message_id, error: Some(errors::to_rpc(&status)), ..Default::default() }
}

fn fill(results: &mut Vec<CancelResult>, at: usize, asked: Asked, answer: CommandResult) {
    match (asked, answer) {
        (Asked::Id, CommandResult::Canceled(outcomes)) => {
            if let Some(outcome) = outcomes.first() {
                results[at] = result(outcome, String::new());
            }
        }
        (Asked::Id, _) => {
            let status = errors::status(ErrorReason::MessageNotFound, "no such message");
            results[at].state = MessageState::Unspecified as i32;
            results[at].error = Some(errors::to_rpc(&status));
        }
        (Asked::Reference(reference), CommandResult::Canceled(outcomes)) => {
            results.extend(outcomes.iter().map(|outcome| result(outcome, reference.clone())));
        }
        (Asked::Reference(_), _) => {}
    }
}

fn result(outcome: &CancelOutcome, external_reference: String) -> CancelResult {
    CancelResult {
        message_id: outcome.message_id.to_string(),
        canceled: outcome.canceled,
        state: outcome.state as i32,
        submit_time: timestamp(outcome.submitted_at_ms),
        error: None,
        external_reference,
    }
}
