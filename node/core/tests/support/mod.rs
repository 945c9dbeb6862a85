//! Two replicas of one partition that must never differ, and commands in short form.
//!
//! The second replica is opened anew for every entry and hands over no payloads, so everything that an `Applier`
//! remembers or skips is compared with what the tables say. After every entry the whole of the tables is checked.
#![allow(dead_code)]
use bytes::Bytes;
use carillon_core::message::{holds_up, next_attempt_no, waits};
use carillon_core::{
    Applier, CommandResult, DueEntry, Effects, EntryMeta, MemTables, ReadTables, Refusal, ScheduleChange,
    TableError, Tables, keys, query,
};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::*;
use carillon_proto::public::{MessageClass, MessageState, Outcome, Priority, WaitingReason};
use carillon_proto::{MessageId, Slot};
use prost::Message as _;
use std::collections::BTreeMap;

pub const START_MS: u64 = 1_793_000_000_000;
pub const CARRIER: u32 = 3;
pub const PRACTICE: u32 = 5;

pub struct World {
    pub tables: MemTables,
    pub applier: Applier,
    replica: MemTables,
    pub index: u64,
    pub term: u64,
    pub now_ms: u64,
    /// What a scheduler knows that follows the effects.
    schedule: BTreeMap<(u8, u32, u64, MessageId), DueEntry>,
}

impl World {
    pub fn new() -> Self {
        let tables = MemTables::default();
        let applier = Applier::open(&tables).unwrap();
        let (index, term, now_ms) = (0, 1, START_MS);
        Self {
            tables,
            applier,
            replica: MemTables::default(),
            index,
            term,
            now_ms,
            schedule: BTreeMap::new(),
        }
    }

    /// Applies one entry to both replicas and checks everything that must always hold.
    pub fn run(&mut self, kinds: impl IntoIterator<Item = Kind>) -> Effects {
        let commands = kinds.into_iter().map(|kind| Command { kind: Some(kind) }).collect::<Vec<_>>();
        let data = Bytes::from(CommandBatch { now_ms: self.now_ms, commands }.encode_to_vec());
        self.raw(&data)
    }

    pub fn raw(&mut self, data: &Bytes) -> Effects {
        self.index += 1;
        let meta = EntryMeta { index: self.index, term: self.term };
        let mut effects = Effects::default();
        let digest = self.applier.apply(&mut self.tables, meta, data, &mut effects).unwrap().digest.clone();
        assert_eq!(digest.len(), 16);
        let mut second = Effects::default();
        let mut other = Applier::open(&self.replica).unwrap();
        other.set_permits(false);
        other.apply(&mut Strict(&mut self.replica), meta, data, &mut second).unwrap();
        assert!(self.tables == self.replica, "replicas differ after entry {}", self.index);
        assert_eq!((&effects.events, &effects.schedule), (&second.events, &second.schedule));
        self.follow(&effects);
        self.check_tables(&effects);
        effects
    }

    /// One command in its own entry.
    pub fn one(&mut self, kind: Kind) -> CommandResult {
        let mut effects = self.run([kind]);
        assert_eq!(effects.results.len(), 1);
        effects.results.remove(0)
    }

    pub fn done(&mut self, kind: Kind) {
        let result = self.one(kind);
        assert!(!matches!(result, CommandResult::Refused(_)), "{result:?}");
    }

    pub fn status(&self, n: u64) -> MessageStatus {
        query::message(&self.tables, &id(n)).unwrap().expect("exists").1
    }

    /// `Unspecified` when it does not exist.
    pub fn state(&self, n: u64) -> MessageState {
        query::message(&self.tables, &id(n)).unwrap().map_or(MessageState::Unspecified, |(_, s)| s.state())
    }

    /// Lets the message's due time come and begins the next attempt.
    pub fn begin(&mut self, n: u64) {
        self.now_ms = self.now_ms.max(self.status(n).due_ms);
        let result = self.one(begin(n, next_attempt_no(&self.status(n)), self.term));
        assert!(matches!(result, CommandResult::Begun(_)), "{result:?}");
    }

    pub fn outcome(&mut self, n: u64, attempt_no: u32, answer: Outcome) -> CommandResult {
        self.one(outcome(n, attempt_no, answer, &[]))
    }

    /// A new leader in a new term.
    pub fn change_leader(&mut self) {
        self.term += 1;
        self.done(leader_start(self.term));
    }

    fn follow(&mut self, effects: &Effects) {
        for change in &effects.schedule {
            match change {
                ScheduleChange::Due(e) => {
                    self.schedule.insert((e.priority, e.flow, e.due_ms, e.message_id), e.clone());
                }
                ScheduleChange::Gone { message_id, priority, flow, due_ms } => {
                    let gone = self.schedule.remove(&(*priority, *flow, *due_ms, *message_id));
                    assert!(gone.is_some(), "{message_id} was not scheduled");
                }
            }
        }
    }

    fn check_tables(&self, effects: &Effects) {
        let rows = self.tables.rows();
        let mut due: Vec<DueEntry> = Vec::new();
        for flow in query::due_flows(&self.tables, None, usize::MAX).unwrap() {
            let of = (flow.priority, flow.flow);
            let page = query::due_page(&self.tables, of, None, u64::MAX, usize::MAX).unwrap();
            assert_eq!((page.entries[0].due_ms, page.next_due_ms), (flow.due_ms, None));
            due.extend(page.entries);
        }
        due.sort_by_key(|e| (e.priority, e.flow, e.due_ms, e.message_id));
        let followed: Vec<DueEntry> = self.schedule.values().cloned().collect();
        assert_eq!(due, followed, "a scheduler that follows the effects sees table D");
        let flying = query::in_flight_page(&self.tables, None, usize::MAX).unwrap();
        let (mut waiting, mut in_flight, mut queued, mut ordered, mut dead) = (0, 0, 0, 0, 0);
        for (key, row) in rows.iter().filter(|(k, _)| k[0] == b'S') {
            let id = keys::decode_status(key).unwrap();
            let status = MessageStatus::decode(row.clone()).unwrap();
            let state = status.state();
            assert!(rows.contains_key(&keys::payload(&id)));
            let flow = if status.due_by_practice { status.practice_no } else { 0 };
            let due_key = keys::due(status.priority as u8, flow, status.due_ms, &id);
            assert_eq!(rows.contains_key(&due_key), waits(state), "D row in {state:?}");
            assert_eq!(
                rows.contains_key(&keys::in_flight(&id)),
                state == MessageState::InFlight,
                "{state:?}"
            );
            if let Ok(recipient) = status.recipient_index.as_ref().try_into() {
                let key = keys::queued(status.practice_no, recipient, &id);
                assert_eq!(rows.contains_key(&key), waits(state), "N row in {state:?}");
                queued += usize::from(waits(state));
            }
            if status.ordered {
                let recipient = status.recipient_index.as_ref().try_into().unwrap();
                let key = keys::ordered(status.practice_no, recipient, &id);
                assert_eq!(rows.contains_key(&key), holds_up(state), "G row in {state:?}");
                ordered += usize::from(holds_up(state));
            }
            waiting += usize::from(waits(state));
            in_flight += usize::from(state == MessageState::InFlight);
            assert!(status.due_ms <= status.expires_at_ms);
            assert_eq!(status.waiting_reason != 0, state == MessageState::Waiting);
            let numbers: Vec<u32> = status.attempts.iter().map(|a| a.number).collect();
            assert!(numbers.is_sorted() && numbers.len() <= 16);
            let open = status.dead_letter.clone().unwrap_or_default();
            let open = open.listed && open.dropped.is_empty() && open.replayed_as.is_empty();
            let listed = rows.contains_key(&keys::dead_letter(status.practice_no, &id));
            assert_eq!(listed, open && state == MessageState::Dead, "Y row in {state:?}");
            dead += usize::from(listed);
            let guarded = rows.contains_key(&keys::quarantine(status.practice_no, &id));
            assert!(!guarded || state == MessageState::Unknown, "Q row in {state:?}");
        }
        assert_eq!((due.len(), flying.len()), (waiting, in_flight), "no row of D or F without its message");
        let by_recipient = rows.keys().filter(|key| keys::decode_queued(key).is_some()).count();
        assert_eq!(by_recipient, queued, "no row of N without its message");
        let in_order = rows.keys().filter(|key| keys::decode_ordered(key).is_some()).count();
        assert_eq!(in_order, ordered, "no row of G without its message");
        let listed = rows.keys().filter(|key| keys::decode_dead_letter(key).is_some()).count();
        assert_eq!(listed, dead, "no row of Y without its message");
        let base = query::events_base(&self.tables).unwrap();
        let block = query::events_after(&self.tables, base + self.index - 1, 9).unwrap();
        let block = block.into_iter().filter(|(index, _)| *index == base + self.index).collect::<Vec<_>>();
        let written = block.first().map(|(_, b)| b.events.clone()).unwrap_or_default();
        assert_eq!(written, effects.events);
    }
}

/// Tables that insist on the rule of `put_new`.
struct Strict<'a>(&'a mut MemTables);

impl ReadTables for Strict<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.0.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), TableError> {
        self.0.scan(start, end, visit)
    }
}

impl Tables for Strict<'_> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.0.put(key, value);
    }

    fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) {
        assert!(!self.0.rows().contains_key(&key), "put_new of a row that is there");
        self.0.put_new(key, value);
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.0.delete(key);
    }
}

pub fn id(n: u64) -> MessageId {
    MessageId::new(START_MS + n, Slot::new(77).unwrap(), n)
}

/// 16 bytes that stand for a keyed hash.
pub fn index(n: u8) -> Bytes {
    Bytes::from(vec![n; 16])
}

pub fn retry() -> RetryPolicy {
    RetryPolicy { attempts_max: 3, backoff_base_ms: 10_000, backoff_max_ms: 60_000, unknown_policy: 0 }
}

pub fn with_policy(policy: UnknownPolicy) -> RetryPolicy {
    RetryPolicy { unknown_policy: policy as i32, ..retry() }
}

/// An ordinary message, due at once, that lives for an hour; reference 1.
pub fn spec(n: u64) -> Accept {
    Accept {
        message_id: id(n).to_bytes(),
        practice_no: PRACTICE,
        class: MessageClass::Reminder as i32,
        priority: Priority::Normal as i32,
        expires_at_ms: START_MS + 3_600_000,
        sealed_recipient: Bytes::from_static(b"sealed-recipient"),
        recipient_index: index(200),
        sealed_body: Bytes::from_static(b"sealed-body"),
        key_epoch: 1,
        encoding: 1,
        segments: 1,
        content_mac: index(201),
        reference_index: index(1),
        carrier_no: CARRIER,
        retry: Some(retry()),
        indexed_by_recipient: true,
        dead_letter_listed: true,
        ..Default::default()
    }
}

pub fn accept(n: u64) -> Kind {
    Kind::Accept(spec(n))
}

pub fn accept_with(n: u64, change: impl FnOnce(&mut Accept)) -> Kind {
    let mut accept = spec(n);
    change(&mut accept);
    Kind::Accept(accept)
}

pub fn opt_out(practice_no: u32, recipient: u8) -> Kind {
    Kind::OptOut(OptOut { practice_no, recipient_index: index(recipient) })
}

pub fn cancel(n: u64) -> Kind {
    Kind::Cancel(Cancel { message_id: id(n).to_bytes(), practice_no: PRACTICE })
}

pub fn cancel_reference(n: u8) -> Kind {
    Kind::CancelByReference(CancelByReference { practice_no: PRACTICE, reference_index: index(n) })
}

/// Version `version` of reference 1 changes message `n` alone.
pub fn update(n: u64, version: u64, change: impl FnOnce(&mut MessageUpdate)) -> Kind {
    let mut one = MessageUpdate { message_id: id(n).to_bytes(), ..Default::default() };
    change(&mut one);
    updates(version, version as u8, vec![one])
}

/// `content` tells repeats from conflicts.
pub fn updates(version: u64, content: u8, updates: Vec<MessageUpdate>) -> Kind {
    Kind::UpdateByReference(UpdateByReference {
        practice_no: PRACTICE,
        reference_index: index(1),
        version,
        content_mac: index(content),
        updates,
    })
}

pub fn drop_dead_letter(n: u64, reason: &str) -> Kind {
    let reason = reason.to_owned();
    Kind::DropDeadLetter(DropDeadLetter { message_id: id(n).to_bytes(), practice_no: PRACTICE, reason })
}

pub fn resolve_unknown(n: u64, verdict: UnknownVerdict, reason: &str) -> Kind {
    Kind::ResolveUnknown(ResolveUnknown {
        message_id: id(n).to_bytes(),
        practice_no: PRACTICE,
        verdict: verdict as i32,
        reason: reason.to_owned(),
    })
}

pub fn begin(n: u64, attempt_no: u32, term: u64) -> Kind {
    Kind::BeginAttempt(BeginAttempt {
        message_id: id(n).to_bytes(),
        attempt_no,
        carrier_no: CARRIER,
        term,
        send_by_ms: START_MS + 2_000,
        node_id: 1,
        sender: String::new(),
        ..Default::default()
    })
}

pub fn outcome(n: u64, attempt_no: u32, outcome: Outcome, refs: &[&str]) -> Kind {
    Kind::RecordOutcome(RecordOutcome {
        message_id: id(n).to_bytes(),
        attempt_no,
        outcome: outcome as i32,
        carrier_refs: refs.iter().map(|r| (*r).to_owned()).collect(),
        code: "code-7".to_owned(),
        retry_after_ms: 0,
        segments: 0,
    })
}

/// A receipt found by references.
pub fn receipt(refs: &[&str], state: ReceiptState) -> Kind {
    Kind::RecordReceipt(RecordReceipt {
        message_id: Bytes::new(),
        carrier_no: CARRIER,
        carrier_refs: refs.iter().map(|r| (*r).to_owned()).collect(),
        state: state as i32,
        code: String::new(),
    })
}

/// A receipt whose message is known.
pub fn receipt_for(n: u64, refs: &[&str], state: ReceiptState) -> Kind {
    let Kind::RecordReceipt(r) = receipt(refs, state) else { unreachable!() };
    Kind::RecordReceipt(RecordReceipt { message_id: id(n).to_bytes(), ..r })
}

pub fn expire(n: u64) -> Kind {
    Kind::Expire(Expire { message_id: id(n).to_bytes() })
}

pub fn hold_back(n: u64, due_ms: u64) -> Kind {
    let reason = WaitingReason::Paused as i32;
    Kind::HoldBack(HoldBack { message_id: id(n).to_bytes(), due_ms, reason })
}

pub fn leader_start(term: u64) -> Kind {
    Kind::LeaderStart(LeaderStart { term, node_id: 1 })
}

pub fn refused(refusal: Refusal) -> CommandResult {
    CommandResult::Refused(refusal)
}

/// Stored numbers as what they mean.
pub trait Meaning {
    fn state(&self) -> MessageState {
        unreachable!("has no state")
    }

    fn outcome(&self) -> Outcome {
        unreachable!("has no outcome")
    }

    fn waiting_reason(&self) -> WaitingReason {
        unreachable!("has no reason")
    }
}

impl Meaning for MessageStatus {
    fn state(&self) -> MessageState {
        MessageState::try_from(self.state).unwrap()
    }

    fn waiting_reason(&self) -> WaitingReason {
        WaitingReason::try_from(self.waiting_reason).unwrap()
    }
}

impl Meaning for AttemptRecord {
    fn outcome(&self) -> Outcome {
        Outcome::try_from(self.outcome).unwrap()
    }
}

impl Meaning for EventRecord {
    fn state(&self) -> MessageState {
        MessageState::try_from(self.state).unwrap()
    }

    fn outcome(&self) -> Outcome {
        Outcome::try_from(self.outcome).unwrap()
    }
}
