//! Dead letters for operators: listed, sent again, dropped. A replay is a message of its own: its payload is opened here, sealed under
//! the new id and accepted like any other, and apply lets each dead letter be replayed once.
use super::backup::led;
use super::ingest::{self, Ingest, keyring_status};
use super::quarantine::practice_no;
use super::{internal, propose_status};
use crate::clock::now_ms as clock_ms;
use crate::engine::NodeHandle;
use crate::engine::handle::COMMANDS_MAX;
use crate::seal::{Context, Field, Keyring, Nonces};
use bytes::Bytes;
use carillon_core::message::state_of;
use carillon_core::{CommandResult, ReadTables, query};
use carillon_proto::MessageId;
use carillon_proto::admin::{
    DeadLetterRow, DeadLetterScope, DropDeadLettersRequest, DropDeadLettersResponse, ListDeadLettersRequest,
    ListDeadLettersResponse, ReplayDeadLettersRequest, ReplayDeadLettersResponse, ReplayedMessage,
};
use carillon_proto::internal::{
    Accept, Command, DropDeadLetter, IngestMessage, MessageDetails, MessagePayload, MessageStatus,
    command::Kind,
};
use carillon_proto::public::MessageState;
use prost::Message as _;
use std::sync::Arc;
use tonic::Status;

/// Messages of one call.
const LIMIT_MAX: usize = 1_000;
const LIST_DEFAULT: usize = 100;
const RATE_DEFAULT: u64 = 10;
/// Between due times, so that a replay leaves room for everybody else.
const SECOND_MS: u64 = 1_000;

pub(super) struct DeadLetters<'a> {
    pub handle: &'a NodeHandle,
    pub keyring: &'a Arc<Keyring>,
    pub ingest: &'a Ingest,
}

struct Dead {
    practice_no: u32,
    id: MessageId,
    payload: MessagePayload,
    status: MessageStatus,
}

fn limit_of(asked: u32, default: usize) -> usize {
    if asked == 0 { default } else { (asked as usize).min(LIMIT_MAX) }
}

impl DeadLetters<'_> {
    pub async fn list(&self, request: ListDeadLettersRequest) -> Result<ListDeadLettersResponse, Status> {
        let scope = request.scope.unwrap_or_default();
        let limit = limit_of(request.limit, LIST_DEFAULT);
        let (mut first, mut after) = position(&request.page_token)?;
        let partitions: Vec<u32> = match scope.partition {
            0 => (1..=self.handle.partitions()).filter(|p| self.handle.is_leader(*p)).collect(),
            partition => vec![led(self.handle, partition)?],
        };
        let mut answer = ListDeadLettersResponse::default();
        for partition in partitions {
            if partition < first {
                continue;
            }
            if partition > first {
                (first, after) = (partition, None);
            }
            let found = self
                .find(&DeadLetterScope { partition, ..scope.clone() }, after, limit - answer.messages.len())
                .await?;
            let last = found.last().map(|dead| (dead.practice_no, dead.id));
            answer.messages.extend(found.iter().map(|dead| self.row(partition, dead)));
            if answer.messages.len() >= limit {
                answer.next_page_token =
                    last.map(|(no, id)| format!("{partition}.{no}.{id}")).unwrap_or_default();
                break;
            }
        }
        Ok(answer)
    }

    fn row(&self, partition: u32, dead: &Dead) -> DeadLetterRow {
        let view = self.handle.meta();
        let practice = view.practices.get(&dead.practice_no);
        let (tenant, practice) = practice.map(|p| (p.tenant.clone(), p.practice.clone())).unwrap_or_default();
        DeadLetterRow {
            partition,
            tenant,
            practice,
            message_id: dead.id.to_string(),
            class: dead.status.class,
            died_at_ms: dead.status.updated_at_ms,
            deadline_ms: dead.status.deadline_ms,
            attempts: dead.status.attempts_counted,
            code: dead.status.attempts.last().map(|a| a.code.clone()).unwrap_or_default(),
        }
    }

    /// Open dead letters of one partition.
    async fn find(
        &self,
        scope: &DeadLetterScope,
        after: Option<(u32, MessageId)>,
        limit: usize,
    ) -> Result<Vec<Dead>, Status> {
        let practice_no = practice_no(&self.handle.meta(), &scope.tenant, &scope.practice)?;
        let mut wanted = Vec::new();
        for text in &scope.message_ids {
            wanted.push(
                text.parse::<MessageId>()
                    .map_err(|_| Status::invalid_argument("a message id is malformed"))?,
            );
        }
        let tables = self.handle.read(scope.partition).await.map_err(|error| propose_status(&error))?;
        let read = move || -> Result<Vec<Dead>, carillon_core::TableError> {
            let rows = match wanted.is_empty() {
                true => query::dead_letters(&*tables, practice_no, after, limit)?,
                false => named(&*tables, practice_no, wanted, limit)?,
            };
            let mut found = Vec::with_capacity(rows.len());
            for (practice_no, id) in rows {
                if let Some((payload, status)) = query::message(&*tables, &id)? {
                    found.push(Dead { practice_no, id, payload, status });
                }
            }
            Ok(found)
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|_| internal("the read ended"))?.map_err(|_| internal("unreadable rows"))
    }

    pub async fn replay(
        &self,
        request: ReplayDeadLettersRequest,
    ) -> Result<ReplayDeadLettersResponse, Status> {
        let scope = request.scope.unwrap_or_default();
        let partition = led(self.handle, scope.partition)?;
        let limit = limit_of(request.limit, LIMIT_MAX);
        let found = self.find(&scope, None, limit).await?;
        let more = found.len() == limit && scope.message_ids.is_empty();
        let mut answer = ReplayDeadLettersResponse { more, ..Default::default() };
        let (now_ms, rate) = (
            clock_ms(),
            match request.messages_per_second {
                0 => RATE_DEFAULT,
                given => u64::from(given),
            },
        );
        let mut commands = Vec::new();
        for dead in found {
            if dead.status.deadline_ms > 0 && dead.status.deadline_ms <= now_ms {
                answer.too_late += 1;
                continue;
            }
            let due_ms = now_ms + answer.messages.len() as u64 * SECOND_MS / rate;
            if !request.dry_run {
                commands.push(self.again(partition, &dead, due_ms).await?);
            }
            let message_id = dead.id.to_string();
            answer.messages.push(ReplayedMessage { message_id, due_ms, ..Default::default() });
        }
        let results = self.propose(partition, commands).await?;
        for (row, (new, result)) in answer.messages.iter_mut().zip(results) {
            match result {
                CommandResult::Accepted => row.replayed_as = new.to_string(),
                CommandResult::Duplicate { message_id } => row.replayed_as = message_id.to_string(),
                // Somebody dropped it meanwhile.
                _ => row.due_ms = 0,
            }
        }
        answer.messages.retain(|row| row.due_ms > 0);
        if !request.dry_run {
            let replayed = answer.messages.len();
            metrics::counter!("carillon_dead_letters_replayed_total").increment(replayed as u64);
            tracing::info!(partition, replayed, too_late = answer.too_late, "dead letters replayed");
        }
        Ok(answer)
    }

    /// The message once more, under an id of its own.
    async fn again(&self, partition: u32, dead: &Dead, due_ms: u64) -> Result<(MessageId, Bytes), Status> {
        let view = self.handle.meta();
        let tenant = view.practices.get(&dead.practice_no).map(|p| p.tenant.clone()).unwrap_or_default();
        let practice = self.ingest.practice(&tenant, partition, dead.practice_no).await?;
        let message = self.opened(dead, due_ms)?;
        let sealed = self.ingest.seal_one(&practice, &mut Nonces::default(), message);
        let (told, accept) = sealed.map_err(|_| internal("sealing failed"))?;
        let accept = Accept { replay_of: dead.id.to_bytes(), ..accept };
        Ok((told.id, ingest::encode(accept)))
    }

    fn opened(&self, dead: &Dead, due_ms: u64) -> Result<IngestMessage, Status> {
        let accept = dead.payload.accept.clone().unwrap_or_default();
        let keys = self.keyring.of_epoch(accept.practice_no, accept.key_epoch);
        let keys = keys.map_err(|error| keyring_status(&error))?;
        let view = self.handle.meta();
        let context =
            Context { cluster_id: &view.cluster_id, practice_no: accept.practice_no, message_id: &dead.id };
        let open =
            |field, sealed: &[u8]| keys.open(context, field, sealed).map_err(|_| internal("does not open"));
        let text = |field, sealed: &[u8]| {
            String::from_utf8(open(field, sealed)?.to_vec()).map_err(|_| internal("does not open"))
        };
        let details = match accept.sealed_details.is_empty() {
            true => MessageDetails::default(),
            false => MessageDetails::decode(open(Field::Details, &accept.sealed_details)?.as_slice())
                .map_err(|_| internal("does not open"))?,
        };
        metrics::counter!("carillon_phi_opened_total", "reason" => "replay").increment(1);
        Ok(IngestMessage {
            practice_no: accept.practice_no,
            recipient: text(Field::Recipient, &accept.sealed_recipient)?,
            body: text(Field::Body, &accept.sealed_body)?,
            class: accept.class,
            priority: accept.priority,
            not_before_ms: due_ms,
            // By its class, and never after the deadline.
            expires_at_ms: 0,
            deadline_ms: accept.deadline_ms,
            time_zone: accept.time_zone,
            idempotency_key: String::new(),
            external_reference: details.external_reference,
            labels: details.labels,
            encoding: accept.encoding,
            segments: accept.segments,
            place: accept.place,
            ordered: accept.ordered,
            // Whoever replays it means it.
            allow_duplicate: true,
            not_before_local: String::new(),
        })
    }

    async fn propose<T>(
        &self,
        partition: u32,
        mut commands: Vec<(T, Bytes)>,
    ) -> Result<Vec<(T, CommandResult)>, Status> {
        let mut done = Vec::with_capacity(commands.len());
        while !commands.is_empty() {
            let rest = commands.split_off(commands.len().min(COMMANDS_MAX / 4));
            let (what, encoded): (Vec<T>, Vec<Bytes>) =
                std::mem::replace(&mut commands, rest).into_iter().unzip();
            let results = self.handle.propose(partition, encoded).await;
            done.extend(what.into_iter().zip(results.map_err(|error| propose_status(&error))?));
        }
        Ok(done)
    }

    pub async fn discard(&self, request: DropDeadLettersRequest) -> Result<DropDeadLettersResponse, Status> {
        let scope = request.scope.unwrap_or_default();
        let partition = led(self.handle, scope.partition)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let reason = request.reason;
        if reason.is_empty() || reason.len() > carillon_core::CODE_CHARS_MAX || !reason.bytes().all(plain) {
            return Err(Status::invalid_argument("give a reason: one word of letters, digits, _ and -"));
        }
        let limit = limit_of(request.limit, LIMIT_MAX);
        let found = self.find(&scope, None, limit).await?;
        let more = found.len() == limit && scope.message_ids.is_empty();
        if request.dry_run {
            return Ok(DropDeadLettersResponse { messages: found.len() as u32, more });
        }
        let commands = found.iter().map(|dead| {
            let drop = DropDeadLetter {
                message_id: dead.id.to_bytes(),
                practice_no: dead.practice_no,
                reason: reason.clone(),
            };
            ((), Command { kind: Some(Kind::DropDeadLetter(drop)) }.encode_to_vec().into())
        });
        let results = self.propose(partition, commands.collect()).await?;
        let dropped = results.iter().filter(|(_, result)| *result == CommandResult::Done).count();
        metrics::counter!("carillon_dead_letters_dropped_total").increment(dropped as u64);
        tracing::info!(partition, dropped, reason, "dead letters dropped");
        Ok(DropDeadLettersResponse { messages: dropped as u32, more })
    }
}

/// Those of the named messages that are open dead letters.
fn named(
    tables: &dyn ReadTables,
    practice_no: u32,
    ids: Vec<MessageId>,
    limit: usize,
) -> Result<Vec<(u32, MessageId)>, carillon_core::TableError> {
    let mut found = Vec::new();
    for id in ids.into_iter().take(limit) {
        let Some((_, status)) = query::message(tables, &id)? else { continue };
        let decided = status.dead_letter.clone().unwrap_or_default();
        let open = state_of(&status) == MessageState::Dead
            && decided.dropped.is_empty()
            && decided.replayed_as.is_empty();
        if open && (practice_no == 0 || status.practice_no == practice_no) {
            found.push((status.practice_no, id));
        }
    }
    Ok(found)
}

/// Where a list goes on: partition, and the last row of it.
fn position(token: &str) -> Result<(u32, Option<(u32, MessageId)>), Status> {
    if token.is_empty() {
        return Ok((0, None));
    }
    let mut parts = token.split('.');
    let mut read = || -> Option<(u32, Option<(u32, MessageId)>)> {
        let partition = parts.next()?.parse().ok()?;
        Some((partition, Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))))
    };
    read().ok_or_else(|| Status::invalid_argument("the page token is not one of ours"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_says_where_to_go_on_and_others_are_refused() {
        let id = MessageId::new(1, carillon_proto::Slot::of_practice("acme", "north"), 2);
        assert_eq!(position(&format!("7.3.{id}")).expect("ours"), (7, Some((3, id))));
        assert_eq!(position("").expect("the start"), (0, None));
        for bad in ["x", "7", "7.3", "7.3.!"] {
            assert!(position(bad).is_err(), "{bad}");
        }
    }
}
