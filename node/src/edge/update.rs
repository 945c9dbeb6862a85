//! Changes of an appointment: reads its messages, resolves what the caller asked for each, seals new texts, and proposes one command.
//!
//! A message that is accepted between the reading and the command makes apply refuse it; then everything is read again.
use super::ingest::keyring_status;
use super::query::not_leader;
use super::view::timestamp;
use super::{internal, propose_status};
use crate::clock::now_ms as clock_ms;
use crate::engine::{NodeHandle, ProposeError};
use crate::seal::{Context, Field, Keyring, KeyringError, Nonces};
use carillon_core::classes::ClassTable;
use carillon_core::message::{is_final, state_of, waits};
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::query::{self, ListRow};
use carillon_core::{CommandResult, Disposition, Refusal, UPDATES_MAX, Updated, update};
use carillon_proto::errors;
use carillon_proto::internal::node_update_response::Result as UpdateAnswer;
use carillon_proto::internal::{
    Command, MessageUpdate, NodeChange, NodeUpdateRequest, NodeUpdateResponse, UpdateByReference,
    command::Kind,
};
use carillon_proto::public::{
    ErrorReason, MessageClass, MessageState, UpdateAppointmentResponse, UpdateResult,
};
use prost::Message as _;
use std::sync::Arc;
use tonic::Status;

/// How often messages may be accepted in between before the caller is told to come back.
const TRIES: usize = 5;

#[derive(Clone)]
pub struct Updates {
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
    pub classes: Arc<ClassTable>,
}

/// A way out of the middle of an update.
enum Out {
    NotLeader(ProposeError),
    Refused(Status),
}

impl From<Status> for Out {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl Updates {
    pub async fn update(&self, request: NodeUpdateRequest) -> Result<NodeUpdateResponse, Status> {
        let result = match self.run(&request).await {
            Ok(updated) => UpdateAnswer::Updated(updated),
            Err(Out::NotLeader(error @ ProposeError::NotLeader { .. })) => {
                UpdateAnswer::NotLeader(not_leader(&error))
            }
            // Repeating is safe: the version tells.
            Err(Out::NotLeader(error)) => return Err(propose_status(&error)),
            Err(Out::Refused(status)) => UpdateAnswer::Error(errors::to_rpc(&status)),
        };
        Ok(NodeUpdateResponse { result: Some(result) })
    }

    async fn run(&self, request: &NodeUpdateRequest) -> Result<UpdateAppointmentResponse, Out> {
        let meta = self.handle.meta();
        if request.partition == 0 || request.partition > self.handle.partitions() {
            return Err(internal("no such partition").into());
        }
        if meta.practices.get(&request.practice_no).is_none_or(|p| p.tenant != request.tenant) {
            return Err(errors::status(ErrorReason::PracticeNotFound, "no such practice").into());
        }
        if meta.level < LEVEL_DELIVERY {
            let what = "appointments need feature level 5; upgrade every node first";
            return Err(errors::status(ErrorReason::Overloaded, what).into());
        }
        let keys = match self.keyring.of_epoch(request.practice_no, 1) {
            Ok(keys) => keys,
            // Nothing was ever accepted for it.
            Err(KeyringError::Missing) => return Ok(UpdateAppointmentResponse::default()),
            Err(error) => return Err(keyring_status(&error).into()),
        };
        let reference_index = keys.reference_index(&request.external_reference);
        let content_mac = keys.content_mac(&canonical(request));
        let index =
            reference_index.as_ref().try_into().map_err(|_| internal("a keyed hash has another length"))?;
        for _ in 0..TRIES {
            let tables = self.handle.read(request.partition).await.map_err(Out::NotLeader)?;
            let rows = query::of_reference(&*tables, request.practice_no, &index)
                .map_err(|_| internal("unreadable record"))?;
            let known = update::version(&*tables, request.practice_no, &index)
                .map_err(|_| internal("unreadable record"))?;
            drop(tables);
            if request.validate_only {
                if let Some(known) = known.filter(|known| known.version > request.version) {
                    return Err(old_version(known.version).into());
                }
                return Ok(UpdateAppointmentResponse { results: preview(request, &rows), duplicate: false });
            }
            let command = UpdateByReference {
                practice_no: request.practice_no,
                reference_index: reference_index.clone(),
                version: request.version,
                content_mac: content_mac.clone(),
                updates: self.updates(request, &rows)?,
            };
            match self.propose(request.partition, command).await? {
                CommandResult::Updated(updated) => return Ok(answer(updated)),
                CommandResult::Refused(Refusal::MovedOn) => {}
                CommandResult::Refused(refusal) => return Err(refusal_status(refusal).into()),
                _ => return Err(internal("an update has another answer").into()),
            }
        }
        let what = "messages of this reference keep coming";
        Err(errors::status(ErrorReason::Overloaded, what).into())
    }

    async fn propose(&self, partition: u32, command: UpdateByReference) -> Result<CommandResult, Out> {
        let command = Command { kind: Some(Kind::UpdateByReference(command)) }.encode_to_vec();
        let results = self.handle.propose(partition, vec![command.into()]).await;
        let result = results.map_err(Out::NotLeader)?.into_iter().next();
        result.ok_or_else(|| internal("no answer").into())
    }

    /// What becomes of every message that is not final.
    fn updates(&self, request: &NodeUpdateRequest, rows: &[ListRow]) -> Result<Vec<MessageUpdate>, Status> {
        let live = || rows.iter().filter(|row| !is_final(state_of(&row.status)));
        if live().count() > UPDATES_MAX {
            let what = format!("the reference has more than {UPDATES_MAX} messages that have not ended");
            return Err(errors::status(ErrorReason::TooManyItems, &what));
        }
        live().map(|row| self.resolve(request, row)).collect()
    }

    fn resolve(&self, request: &NodeUpdateRequest, row: &ListRow) -> Result<MessageUpdate, Status> {
        let message_id = row.message_id.to_bytes();
        let Some(change) = change_for(request, row) else {
            return Ok(MessageUpdate { message_id, ..MessageUpdate::default() });
        };
        let empty = carillon_proto::internal::Accept::default();
        let accept = row.payload.accept.as_ref().unwrap_or(&empty);
        let mut update =
            MessageUpdate { message_id, cancel: change.cancel, ..times(change, row, &self.classes) };
        if !change.body.is_empty() {
            let keys = self.keyring.of_epoch(accept.practice_no, accept.key_epoch);
            let keys = keys.map_err(|e| keyring_status(&e))?;
            let view = self.handle.meta();
            let context = Context {
                cluster_id: &view.cluster_id,
                practice_no: accept.practice_no,
                message_id: &row.message_id,
            };
            let sealed = keys.seal(&mut Nonces::default(), context, Field::Body, change.body.as_bytes());
            update.sealed_body = sealed.map_err(|_| internal("sealing failed"))?;
            (update.encoding, update.segments) = (change.encoding, change.segments);
        }
        Ok(update)
    }
}

/// The first change whose classes fit.
fn change_for<'a>(request: &'a NodeUpdateRequest, row: &ListRow) -> Option<&'a NodeChange> {
    let fits = |change: &&NodeChange| change.classes.is_empty() || change.classes.contains(&row.status.class);
    request.changes.iter().find(fits)
}

/// The new times; 0 = stays.
fn times(change: &NodeChange, row: &ListRow, classes: &ClassTable) -> MessageUpdate {
    let moved = |ms: u64| if ms == 0 { 0 } else { ms.saturating_add_signed(change.shift_ms).max(1) };
    let not_before_ms = row.payload.accept.as_ref().map_or(0, |accept| accept.not_before_ms);
    if change.shift_ms != 0 {
        return MessageUpdate {
            not_before_ms: moved(not_before_ms),
            expires_at_ms: moved(row.status.expires_at_ms),
            deadline_ms: moved(row.status.deadline_ms),
            ..MessageUpdate::default()
        };
    }
    let mut expires_at_ms = change.expires_at_ms;
    if expires_at_ms == 0 && change.deadline_ms > 0 {
        let class = MessageClass::try_from(row.status.class).unwrap_or(MessageClass::Unspecified);
        let begin_ms =
            clock_ms().max(if change.not_before_ms > 0 { change.not_before_ms } else { not_before_ms });
        expires_at_ms = (begin_ms + classes.get(class).default_expiry_ms).min(change.deadline_ms);
    }
    MessageUpdate {
        not_before_ms: change.not_before_ms,
        expires_at_ms,
        deadline_ms: change.deadline_ms,
        ..MessageUpdate::default()
    }
}

/// What the command would do, as far as can be told beforehand.
fn preview(request: &NodeUpdateRequest, rows: &[ListRow]) -> Vec<UpdateResult> {
    let disposition = |row: &ListRow| match (state_of(&row.status), change_for(request, row)) {
        (MessageState::Canceled, _) => Disposition::Canceled,
        (MessageState::Submitted | MessageState::Delivered | MessageState::Undelivered, _) => {
            Disposition::HandedOver
        }
        (state, _) if is_final(state) => Disposition::Ended,
        (_, None) => Disposition::Unchanged,
        (state, Some(change)) if waits(state) => {
            if change.cancel {
                Disposition::Canceled
            } else {
                Disposition::Updated
            }
        }
        _ => Disposition::InDoubt,
    };
    rows.iter()
        .map(|row| UpdateResult {
            message_id: row.message_id.to_string(),
            class: row.status.class,
            disposition: disposition(row) as i32,
            state: row.status.state,
            submit_time: timestamp(row.status.submitted_at_ms),
        })
        .collect()
}

fn answer(updated: Updated) -> UpdateAppointmentResponse {
    let results = updated.outcomes.into_iter().map(|outcome| UpdateResult {
        message_id: outcome.message_id.to_string(),
        class: outcome.class,
        disposition: outcome.disposition as i32,
        state: outcome.state as i32,
        submit_time: timestamp(outcome.handed_over_ms),
    });
    UpdateAppointmentResponse { results: results.collect(), duplicate: updated.duplicate }
}

fn old_version(known: u64) -> Status {
    let metadata = [("version", known.to_string())];
    errors::status_with(ErrorReason::OldVersion, "a later version was applied", &metadata)
}

fn refusal_status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::OldVersion { known } => old_version(known),
        Refusal::VersionReused => {
            errors::status(ErrorReason::VersionReused, "the version names another change")
        }
        Refusal::Restoring => super::ingest::restoring(),
        _ => internal("the update was refused"),
    }
}

/// What the caller asked for, in a fixed order and length-prefixed: what makes two calls of one version "the same".
fn canonical(request: &NodeUpdateRequest) -> Vec<u8> {
    let mut out = b"update".to_vec();
    let mut bytes = |value: &[u8]| {
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value);
    };
    bytes(request.external_reference.as_bytes());
    for change in &request.changes {
        let classes: Vec<u8> = change.classes.iter().flat_map(|class| class.to_be_bytes()).collect();
        bytes(&classes);
        bytes(&[u8::from(change.cancel)]);
        bytes(change.body.as_bytes());
        for number in [change.not_before_ms, change.expires_at_ms, change.deadline_ms] {
            bytes(&number.to_be_bytes());
        }
        bytes(&change.shift_ms.to_be_bytes());
    }
    out
}

/// Not used by the wire: keeps the numbers of the core and of the public API together.
const _: () = {
    use carillon_proto::public::UpdateDisposition as Public;
    assert!(Disposition::Updated as i32 == Public::Updated as i32);
    assert!(Disposition::Canceled as i32 == Public::Canceled as i32);
    assert!(Disposition::Unchanged as i32 == Public::Unchanged as i32);
    assert!(Disposition::HandedOver as i32 == Public::HandedOver as i32);
    assert!(Disposition::InDoubt as i32 == Public::InDoubt as i32);
    assert!(Disposition::Ended as i32 == Public::Ended as i32);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn request(changes: Vec<NodeChange>) -> NodeUpdateRequest {
        NodeUpdateRequest { external_reference: "visit-1".into(), version: 3, changes, ..Default::default() }
    }

    #[test]
    fn the_content_of_a_version_is_everything_but_the_version() {
        let base = NodeChange { classes: vec![2], body: "new".into(), ..Default::default() };
        let mac = |change: &NodeChange| canonical(&request(vec![change.clone()]));
        let same = NodeUpdateRequest { version: 9, ..request(vec![base.clone()]) };
        assert_eq!(canonical(&same), mac(&base));
        let others = [
            NodeChange { classes: vec![3], ..base.clone() },
            NodeChange { body: "news".into(), ..base.clone() },
            NodeChange { not_before_ms: 1, ..base.clone() },
            NodeChange { deadline_ms: 1, ..base.clone() },
            NodeChange { shift_ms: -1, ..base.clone() },
            NodeChange { cancel: true, ..base.clone() },
        ];
        others.iter().for_each(|other| assert_ne!(mac(other), mac(&base)));
        assert_ne!(canonical(&request(vec![base.clone(), base.clone()])), mac(&base));
    }

    #[test]
    fn a_shift_moves_what_is_set_and_a_new_deadline_brings_an_expiry() {
        let mut row = ListRow {
            message_id: carillon_proto::MessageId::new(
                1,
                carillon_proto::Slot::of_practice("acme", "north"),
                2,
            ),
            payload: carillon_proto::internal::MessagePayload::default(),
            status: carillon_proto::internal::MessageStatus::default(),
        };
        (row.status.class, row.status.expires_at_ms) = (MessageClass::Reminder as i32, 10_000);
        let moved =
            times(&NodeChange { shift_ms: -4_000, ..Default::default() }, &row, &ClassTable::default());
        assert_eq!((moved.not_before_ms, moved.expires_at_ms, moved.deadline_ms), (0, 6_000, 0));
        let deadline_ms = clock_ms() + 3_600_000;
        let new = times(&NodeChange { deadline_ms, ..Default::default() }, &row, &ClassTable::default());
        assert_eq!((new.expires_at_ms, new.deadline_ms), (deadline_ms, deadline_ms));
    }
}
