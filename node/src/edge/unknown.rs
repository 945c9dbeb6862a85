//! Messages whose carrier's answer was lost, for operators: listed, and resolved by what the operator has found out. Nothing is opened.
//!
//! Audit: every message that is resolved, or refused to be, is a line in this node's log with the operator's name; the reason is in
//! the message's event.
use super::backup::led;
use super::quarantine::practice_no;
use super::{internal, propose_status};
use crate::clock::now_ms;
use crate::engine::NodeHandle;
use crate::engine::handle::COMMANDS_MAX;
use bytes::Bytes;
use carillon_core::message::state_of;
use carillon_core::meta::MetaView;
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::query::{self, ListFilter, ListRow};
use carillon_core::{CODE_CHARS_MAX, CommandResult, ReadTables, Refusal, TableError, unknown};
use carillon_proto::admin::{
    ListUnknownRequest, ListUnknownResponse, ResolveUnknownRequest, ResolveUnknownResponse, ResolvedUnknown,
    UnknownAttempt, UnknownRow,
};
use carillon_proto::internal::{Command, ResolveUnknown, UnknownVerdict, command::Kind};
use carillon_proto::public::{MessageState, Outcome};
use carillon_proto::slot::SLOTS;
use carillon_proto::{MessageId, Slot};
use prost::Message as _;
use tonic::Status;

/// Messages of one call.
const LIMIT_MAX: usize = 1_000;
const LIST_DEFAULT: usize = 100;
/// Rows looked at for one page; there is no table of these messages, they are few.
const SCAN_LIMIT: usize = 200_000;

pub(super) struct Unknown<'a> {
    pub handle: &'a NodeHandle,
}

impl Unknown<'_> {
    pub async fn list(&self, request: ListUnknownRequest) -> Result<ListUnknownResponse, Status> {
        let partition = led(self.handle, request.partition)?;
        let view = self.handle.meta();
        let practices = match practice_no(&view, &request.tenant, &request.practice)? {
            0 => None,
            one => Some([one].into()),
        };
        let limit = match request.limit {
            0 => LIST_DEFAULT,
            given => (given as usize).min(LIMIT_MAX),
        };
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse::<MessageId>().map_err(|_| {
                Status::invalid_argument("the page token is not one of ours; begin without one")
            })?),
        };
        let states = [MessageState::Unknown].into();
        let filter = ListFilter { practices, states, ..ListFilter::default() };
        let tables = self.handle.read(partition).await.map_err(|error| propose_status(&error))?;
        let read = move || {
            let all = (Slot::new(0).expect("0 is a slot"), Slot::new(SLOTS - 1).expect("4095 is a slot"));
            query::list(&*tables, all, after, &filter, limit, SCAN_LIMIT)
        };
        let page = finished(tokio::task::spawn_blocking(read).await)?;
        let before_ms = now_ms().saturating_sub(u64::from(request.min_age_s) * 1_000);
        let old = |row: &&ListRow| row.status.updated_at_ms <= before_ms;
        let messages = page.rows.iter().filter(old).map(|row| shown(&view, partition, row)).collect();
        let next_page_token = page.next.map(|id| id.to_string()).unwrap_or_default();
        Ok(ListUnknownResponse { messages, next_page_token })
    }

    pub async fn resolve(
        &self,
        operator: &str,
        request: ResolveUnknownRequest,
    ) -> Result<ResolveUnknownResponse, Status> {
        let partition = led(self.handle, request.partition)?;
        let ids = check(&request, partition, self.handle.partitions())?;
        let level = self.handle.meta().level;
        if level < LEVEL_DELIVERY {
            return Err(Status::failed_precondition(format!(
                "this needs feature level {LEVEL_DELIVERY} and the cluster is at {level}; upgrade every node first"
            )));
        }
        let tables = self.handle.read(partition).await.map_err(|error| propose_status(&error))?;
        let (asked, verdict) = (ids.clone(), request.verdict());
        let look = move || asked.iter().map(|id| look(&*tables, id, verdict)).collect::<Result<Vec<_>, _>>();
        let looks = finished(tokio::task::spawn_blocking(look).await)?;
        let mut answers: Vec<ResolvedUnknown> = Vec::with_capacity(ids.len());
        let mut commands: Vec<(usize, Bytes)> = Vec::new();
        for (at, (id, look)) in ids.iter().zip(looks).enumerate() {
            let (state, refused) = match &look {
                Ok(_) if request.dry_run => (outcome(verdict), String::new()),
                Ok(_) => (MessageState::Unknown, String::new()),
                Err((state, refusal)) => (*state, word(*refusal)),
            };
            if let (Ok(practice_no), false) = (look, request.dry_run) {
                let command = ResolveUnknown {
                    message_id: id.to_bytes(),
                    practice_no,
                    verdict: verdict.into(),
                    reason: request.reason.clone(),
                };
                let command = Command { kind: Some(Kind::ResolveUnknown(command)) };
                commands.push((at, command.encode_to_vec().into()));
            }
            answers.push(ResolvedUnknown { message_id: id.to_string(), refused, state: state.into() });
        }
        for chunk in commands.chunks(COMMANDS_MAX / 4) {
            let encoded = chunk.iter().map(|(_, command)| command.clone()).collect();
            let results = self.handle.propose(partition, encoded).await;
            for ((at, _), result) in chunk.iter().zip(results.map_err(|error| propose_status(&error))?) {
                (answers[*at].state, answers[*at].refused) = match result {
                    CommandResult::Done => (outcome(verdict).into(), String::new()),
                    CommandResult::Refused(Refusal::WrongState(state)) => {
                        (state.into(), word(Refusal::WrongState(state)))
                    }
                    CommandResult::Refused(refusal) => (MessageState::Unknown.into(), word(refusal)),
                    _ => return Err(internal("an answer to another command")),
                };
            }
        }
        if !request.dry_run {
            audit(operator, partition, &request, &answers);
        }
        Ok(ResolveUnknownResponse { messages: answers })
    }
}

fn audit(operator: &str, partition: u32, request: &ResolveUnknownRequest, answers: &[ResolvedUnknown]) {
    let verdict = request.verdict().as_str_name().trim_start_matches("UNKNOWN_VERDICT_");
    for answer in answers {
        tracing::info!(
            operator,
            partition,
            message_id = answer.message_id,
            verdict,
            reason = request.reason,
            refused = answer.refused,
            "unknown message resolved by an operator"
        );
    }
    let done = answers.iter().filter(|answer| answer.refused.is_empty()).count() as u64;
    metrics::counter!("carillon_unknown_resolved_total", "verdict" => verdict.to_ascii_lowercase())
        .increment(done);
}

fn finished<T>(read: Result<Result<T, TableError>, tokio::task::JoinError>) -> Result<T, Status> {
    read.map_err(|_| internal("the read ended"))?.map_err(|_| internal("unreadable rows"))
}

/// The ids, all of this partition.
fn check(request: &ResolveUnknownRequest, partition: u32, partitions: u32) -> Result<Vec<MessageId>, Status> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let reason = &request.reason;
    if reason.is_empty() || reason.len() > CODE_CHARS_MAX || !reason.bytes().all(plain) {
        return Err(Status::invalid_argument("give a reason: one word of letters, digits, _ and -"));
    }
    if request.verdict() == UnknownVerdict::Unspecified {
        return Err(Status::invalid_argument("say what became of them: delivered, failed or send again"));
    }
    if !(1..=LIMIT_MAX).contains(&request.message_ids.len()) {
        return Err(Status::invalid_argument(format!("name 1 to {LIMIT_MAX} messages")));
    }
    let read = |text: &String| {
        let id =
            text.parse::<MessageId>().map_err(|_| Status::invalid_argument("a message id is malformed"))?;
        match id.slot().partition(partitions) == partition {
            true => Ok(id),
            false => {
                Err(Status::invalid_argument(format!("message {id} does not live in partition {partition}")))
            }
        }
    };
    request.message_ids.iter().map(read).collect()
}

/// The practice of a message that can be resolved so, or its state and why it cannot.
type Look = Result<u32, (MessageState, Refusal)>;

fn look(tables: &dyn ReadTables, id: &MessageId, verdict: UnknownVerdict) -> Result<Look, TableError> {
    let Some((_, status)) = query::message(tables, id)? else {
        return Ok(Err((MessageState::Unspecified, Refusal::NotFound)));
    };
    Ok(match unknown::refusal(&status, verdict, now_ms()) {
        None => Ok(status.practice_no),
        Some(refusal) => Err((state_of(&status), refusal)),
    })
}

/// What a resolved message is then.
fn outcome(verdict: UnknownVerdict) -> MessageState {
    match verdict {
        UnknownVerdict::Delivered => MessageState::Delivered,
        UnknownVerdict::SendAgain => MessageState::Waiting,
        UnknownVerdict::Failed | UnknownVerdict::Unspecified => MessageState::Undelivered,
    }
}

/// Why nothing was changed, for people.
fn word(refusal: Refusal) -> String {
    match refusal {
        Refusal::NotFound => "there is no such message".to_owned(),
        Refusal::WrongState(state) => {
            let state = state.as_str_name().trim_start_matches("MESSAGE_STATE_");
            format!("it is {state}, and only UNKNOWN is resolved")
        }
        Refusal::TakenBack => "it was taken back, so it is not sent again; call it failed".to_owned(),
        Refusal::Expired => "it has expired, so it is not sent again; call it failed".to_owned(),
        Refusal::Restoring => "the partition is being restored; repeat it when that is done".to_owned(),
        _ => "the command was refused; this is a defect, report it".to_owned(),
    }
}

fn shown(view: &MetaView, partition: u32, row: &ListRow) -> UnknownRow {
    let status = &row.status;
    let practice = view.practices.get(&status.practice_no);
    let (tenant, practice) = practice.map(|p| (p.tenant.clone(), p.practice.clone())).unwrap_or_default();
    let lost = status.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Ambiguous as i32);
    let attempts = lost.map(|attempt| UnknownAttempt {
        number: attempt.number,
        carrier: view.carriers.get(&attempt.carrier_no).map(|c| c.name.clone()).unwrap_or_default(),
        sender: attempt.sender.clone(),
        begin_ms: attempt.begin_ms,
        code: attempt.code.clone(),
    });
    UnknownRow {
        partition,
        tenant,
        practice,
        message_id: row.message_id.to_string(),
        class: status.class,
        accepted_at_ms: status.accepted_at_ms,
        unknown_since_ms: status.updated_at_ms,
        detail: status.detail.clone(),
        expires_at_ms: status.expires_at_ms,
        deadline_ms: status.deadline_ms,
        attempts: attempts.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_request_is_refused_before_anything_is_read() {
        let id = MessageId::new(1, Slot::of_practice("acme", "north"), 2);
        let home = id.slot().partition(16);
        let good = || ResolveUnknownRequest {
            partition: home,
            message_ids: vec![id.to_string()],
            verdict: UnknownVerdict::Failed.into(),
            reason: "told_by_phone".to_owned(),
            dry_run: false,
        };
        assert_eq!(check(&good(), home, 16).expect("it is good"), [id]);
        let other = home % 16 + 1;
        assert!(check(&good(), other, 16).is_err(), "of another partition");
        for bad in [
            ResolveUnknownRequest { reason: "told Ada".to_owned(), ..good() },
            ResolveUnknownRequest { reason: String::new(), ..good() },
            ResolveUnknownRequest { verdict: 0, ..good() },
            ResolveUnknownRequest { message_ids: Vec::new(), ..good() },
            ResolveUnknownRequest { message_ids: vec!["x".to_owned()], ..good() },
            ResolveUnknownRequest { message_ids: vec![id.to_string(); 1_001], ..good() },
        ] {
            assert!(check(&bad, home, 16).is_err(), "{bad:?}");
        }
    }
}
