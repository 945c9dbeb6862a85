//! What applying a batch causes outside the tables. Plain data: the leader acts on it, followers drop it.
use bytes::Bytes;
use carillon_proto::MessageId;
use carillon_proto::internal::{EventRecord, FactResult};
use carillon_proto::public::MessageState;

/// Answer to one command, aligned with the commands of the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandResult {
    /// Accept, PutSeries: it is new.
    Accepted,
    /// Accept, PutSeries: the key named this message already, with the same content.
    Duplicate { message_id: MessageId },
    /// Accept, PutSeries: the key named another content.
    KeyReused { message_id: MessageId },
    /// Accept: the fuse for duplicates knows the content, of this message.
    SameContent { message_id: MessageId },
    /// Cancel, CancelByReference: one answer for each message concerned.
    Canceled(Vec<CancelOutcome>),
    /// BeginAttempt: send it. The payload is handed over so that the sender reads nothing.
    Begun(Box<Permit>),
    /// RecordOutcome, RecordReceipt, Expire, HoldBack, SetHours, LeaderStart, OptOut, DropDeadLetter, ResolveUnknown, Reroute, AdvanceSeries, EndSeries, Restore: done (also when it changed nothing new).
    Done,
    /// Retire: what was dropped.
    Retired(Retired),
    /// ResolveQuarantine: what was released or dropped.
    Resolved(Resolved),
    /// UpdateByReference: what became of each message.
    Updated(Updated),
    /// The command does not fit the present state; nothing was changed (but see the refusals of BeginAttempt).
    Refused(Refusal),
}

impl CommandResult {
    /// What apply said to a fact (an outcome, a receipt), as it travels between nodes.
    pub fn fact(&self) -> FactResult {
        match self {
            Self::Done => FactResult::Recorded,
            Self::Refused(Refusal::UnknownReference) => FactResult::UnknownReference,
            Self::Refused(Refusal::NotFound) => FactResult::NotFound,
            Self::Refused(Refusal::WrongState(_)) => FactResult::WrongState,
            // It comes again when the restore is over.
            Self::Refused(Refusal::Restoring) => FactResult::Unspecified,
            _ => FactResult::Malformed,
        }
    }
}

/// What one Retire dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    pub messages: u32,
    /// Idempotency keys, with their message or after it.
    pub keys: u32,
    pub event_blocks: u32,
    /// The limit was reached: there may be more.
    pub more: bool,
}

/// What one ResolveQuarantine did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    pub messages: u32,
    /// The limit was reached: there may be more.
    pub more: bool,
    /// Not released, because a carrier has them.
    pub kept: Vec<MessageId>,
    /// The last one that was looked at, and its practice.
    pub last: Option<(u32, MessageId)>,
}

/// What one UpdateByReference did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Updated {
    /// The version had taken effect before; nothing was changed now.
    pub duplicate: bool,
    /// One for each message of the reference, in the order of their ids.
    pub outcomes: Vec<UpdateOutcome>,
}

/// The answer to an update for one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateOutcome {
    pub message_id: MessageId,
    pub class: i32,
    pub state: MessageState,
    pub disposition: Disposition,
    /// When a carrier took it over, or when the attempt began that may have; 0 = neither.
    pub handed_over_ms: u64,
}

/// What an update did to a message; `carillon.v1.UpdateDisposition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    Updated = 1,
    Canceled,
    Unchanged,
    HandedOver,
    InDoubt,
    Ended,
}

/// A committed attempt: the permission to hand one message to a carrier once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    pub message_id: MessageId,
    pub attempt_no: u32,
    pub carrier_no: u32,
    pub practice_no: u32,
    pub class: i32,
    pub key_epoch: u32,
    pub sealed_recipient: Bytes,
    pub sealed_body: Bytes,
    pub encoding: i32,
    pub segments: u32,
    pub expires_at_ms: u64,
    pub send_by_ms: u64,
    /// The recipient's hours: nothing is handed over at or after this; 0 = no hours apply.
    pub open_until_ms: u64,
    /// It has waited for the recipient's hours.
    pub was_held: bool,
    /// What the attempt was committed with: the sender's number (0 = the account's own) and what the recipient sees.
    pub sender_no: u32,
    pub sender: String,
}

/// The answer to a cancel for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelOutcome {
    pub message_id: MessageId,
    pub canceled: bool,
    pub state: MessageState,
    pub submitted_at_ms: u64,
}

/// Why a command was refused. A value, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    /// The state does not allow it (canceled, expired, already final, another attempt number).
    WrongState(MessageState),
    /// An entry of another term carries a permission.
    StaleTerm,
    /// The expiry has passed.
    Expired,
    /// Not expired yet.
    NotExpired,
    /// No message has this carrier reference.
    UnknownReference,
    /// The command lacks something or has an impossible value: a bug of the proposer.
    Malformed,
    /// BeginAttempt: the recipient has opted out. The message has ended.
    OptedOut,
    /// BeginAttempt: the recipient has got as many messages as the policy allows. The message waits.
    FrequencyCap,
    /// BeginAttempt: the recipient gets so many messages that something must be wrong. Nothing was changed.
    Burst,
    /// BeginAttempt: an ordered message goes before it. The message waits.
    OutOfTurn,
    /// The partition is being restored from a backup; try again later.
    Restoring,
    /// Restore: the partition holds something else than this backup.
    NotFresh,
    /// Restore: the piece does not follow the one before. Look where it stands, and go on there.
    OutOfOrder,
    /// UpdateByReference: a later version took effect before.
    OldVersion {
        known: u64,
    },
    /// UpdateByReference: the version took effect with other content.
    VersionReused,
    /// UpdateByReference: the reference has a message that the command does not know. AdvanceSeries: it stands elsewhere. Read again.
    MovedOn,
    /// BeginAttempt: the recipient's hours are over.
    QuietHours,
    /// ResolveUnknown: it was taken back, so it is not sent again.
    TakenBack,
}

/// A change of the schedule: the scheduler keeps its volatile view equal to table D with these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScheduleChange {
    /// The message waits until `due_ms`.
    Due(DueEntry),
    /// The message no longer waits (begun, canceled, expired).
    Gone { message_id: MessageId, priority: u8, flow: u32, due_ms: u64 },
}

/// One row of table D, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEntry {
    pub message_id: MessageId,
    pub priority: u8,
    /// Which part of table D the row is in: its practice's, or (0) the one from before feature level 5.
    pub flow: u32,
    pub due_ms: u64,
    pub practice_no: u32,
    pub class: i32,
    pub segments: u32,
    pub expires_at_ms: u64,
    pub deadline_ms: u64,
    pub carrier_no: u32,
    pub attempt_no: u32,
    /// Nothing is handed over at or after this; 0 = no hours apply.
    pub open_until_ms: u64,
    /// The rules by which that was computed; 0 = it was not.
    pub hours_stamp: u32,
    /// 0 = the account's own.
    pub sender_no: u32,
}

/// Everything that one batch caused.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    pub results: Vec<CommandResult>,
    pub schedule: Vec<ScheduleChange>,
    /// The same records that were written to table E.
    pub events: Vec<EventRecord>,
    /// Carrier references that became known: rows of table R.
    pub references: Vec<Reference>,
}

/// A carrier's reference of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    pub carrier_no: u32,
    /// Its hash, as in the key of table R.
    pub hash: crate::keys::Index,
    pub message_id: MessageId,
}
