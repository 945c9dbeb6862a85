//! Clients and the logic of a router: the map of leaders, hints, repeats inside the deadline, and idempotency keys. A
//! mirror of the rules of `router/src/batch.rs`:
//!  - what provably was not processed is tried again until the deadline;
//!  - what may have been processed is tried again only with a key;
//!  - a client that got no answer comes back with the same key until it has one.
use super::engine::Refused;
use super::node::{Read, Waiter};
use super::plant::Plant;
use super::rng::hash;
use super::world::{Event, World};
use carillon_core::{CancelOutcome, CommandResult, message, query};
use carillon_proto::internal::{Accept, Cancel, Command, RetryPolicy, UnknownPolicy, command::Kind};
use carillon_proto::public::MessageState;
use carillon_proto::{MessageId, Slot};
use std::collections::BTreeMap;

pub const TENANT: &str = "acme";
pub const PRACTICES: u32 = 6;
const DEADLINE_MS: u64 = 6_000;
const CALL_TIMEOUT_MS: u64 = 1_500;
/// Hints followed without a pause, in one chain of attempts.
const HINTS_MAX: u32 = 3;

pub fn practice_name(practice: u32) -> String {
    format!("practice-{practice}")
}

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Submit { practice: u32, key: Option<u64>, content: u64 },
    Cancel { id: MessageId, practice_no: u32 },
    Get { id: MessageId },
}

/// What a node says.
#[derive(Debug, Clone)]
pub enum Answer {
    Refused(Refused),
    Submitted { id: MessageId, practice_no: u32, result: CommandResult },
    Canceled(Option<CancelOutcome>),
    Got(Option<MessageState>),
}

/// A call under way.
#[derive(Debug, Clone)]
struct Op {
    request: Request,
    partition: u32,
    deadline_ms: u64,
    call_no: u32,
    hints: u32,
    /// What a read that begins now must see at least.
    floor: u8,
}

/// All clients and their router.
pub struct Clients {
    ops: BTreeMap<u64, Op>,
    next_op: u64,
    next_key: u64,
    partitions: u32,
    /// (leader, term)
    leaders: BTreeMap<u32, (u64, u64)>,
    /// Submits with a key that got an answer.
    keys: Vec<(u32, u64, u64)>,
    ids: Vec<(MessageId, u32)>,
    /// The highest rank that anybody was told.
    floor: BTreeMap<MessageId, u8>,
    pub calls: u64,
}

impl Clients {
    pub fn new(partitions: u32) -> Self {
        Self {
            ops: BTreeMap::new(),
            next_op: 0,
            next_key: 0,
            partitions,
            leaders: BTreeMap::new(),
            keys: Vec::new(),
            ids: Vec::new(),
            floor: BTreeMap::new(),
            calls: 0,
        }
    }

    /// The map of leaders has news.
    pub fn learn(&mut self, partition: u32, leader: u64, term: u64) {
        let known = self.leaders.entry(partition).or_insert((leader, term));
        if term > known.1 {
            *known = (leader, term);
        }
    }

    /// Calls that are not answered.
    pub fn open(&self) -> usize {
        self.ops.len()
    }

    fn partition_of(&self, practice: u32) -> u32 {
        Slot::of_practice(TENANT, &practice_name(practice)).partition(self.partitions)
    }

    fn told(&mut self, id: MessageId, rank: u8) {
        let floor = self.floor.entry(id).or_insert(rank);
        *floor = (*floor).max(rank);
    }
}

impl World {
    /// Time for a new call.
    pub fn client(&mut self) {
        if self.calm {
            return;
        }
        let pause = 1 + self.rng.client.below(2_000 / self.plan.ops_per_second);
        self.at(pause, Event::Client);
        if !self.operator.is_done() {
            return;
        }
        let request = self.draw_request();
        self.start_op(request);
    }

    fn draw_request(&mut self) -> Request {
        let rng = &mut self.rng.client;
        let clients = &mut self.clients;
        if rng.chance(200) && !clients.ids.is_empty() {
            let (id, practice_no) = rng.pick(&clients.ids);
            return match rng.chance(400) {
                true => Request::Cancel { id, practice_no },
                false => Request::Get { id },
            };
        }
        if rng.chance(self.plan.repeats) && !clients.keys.is_empty() {
            let (practice, key, content) = rng.pick(&clients.keys);
            let content = if rng.chance(300) { content + 1 } else { content };
            return Request::Submit { practice, key: Some(key), content };
        }
        clients.next_key += 1;
        let key = (!rng.chance(self.plan.keyless)).then_some(clients.next_key);
        // A client may have two calls with the same key under way.
        let practice = rng.below(u64::from(PRACTICES)) as u32;
        let content = rng.next() >> 8;
        if rng.chance(50)
            && let Some(key) = key
        {
            clients.keys.push((practice, key, content));
        }
        Request::Submit { practice, key, content }
    }

    fn start_op(&mut self, request: Request) {
        let clients = &mut self.clients;
        clients.next_op += 1;
        clients.calls += 1;
        let op = clients.next_op;
        let (partition, floor) = match &request {
            Request::Submit { practice, .. } => (clients.partition_of(*practice), 0),
            Request::Cancel { id, .. } => (id.slot().partition(clients.partitions), 0),
            Request::Get { id } => {
                (id.slot().partition(clients.partitions), clients.floor.get(id).copied().unwrap_or(0))
            }
        };
        let deadline_ms = self.now_ms + DEADLINE_MS;
        clients.ops.insert(op, Op { request, partition, deadline_ms, call_no: 0, hints: 0, floor });
        self.call(op);
    }

    /// One call to the leader of the partition, as far as it is known.
    pub fn call(&mut self, op: u64) {
        let Some(open) = self.clients.ops.get_mut(&op) else { return };
        if self.now_ms >= open.deadline_ms {
            return self.give_up(op);
        }
        open.call_no += 1;
        let (call_no, request, partition) = (open.call_no, Box::new(open.request.clone()), open.partition);
        let node = match self.clients.leaders.get(&partition) {
            Some((leader, _)) => *leader as usize - 1,
            None => self.rng.calls.below(self.plan.nodes as u64) as usize,
        };
        if let Some(delay) = self.call_delay(node) {
            self.at(delay, Event::CallArrives { node, op, call_no, request });
        }
        self.at(CALL_TIMEOUT_MS, Event::CallTimeout { op, call_no });
    }

    fn call_delay(&mut self, node: usize) -> Option<u64> {
        if self.net.clients_cut.get(&node).is_some_and(|cuts| *cuts > 0) {
            return None;
        }
        if !self.calm && self.rng.calls.chance(self.plan.rates.call_lost) {
            return None;
        }
        let high = if self.calm { 5 } else { self.plan.rates.net_ms_max };
        Some(1 + self.rng.calls.below(high))
    }

    /// The deadline has passed. Who has a key comes back with it; what others asked stays unknown.
    fn give_up(&mut self, op: u64) {
        let Some(open) = self.clients.ops.get_mut(&op) else { return };
        if matches!(open.request, Request::Submit { key: Some(_), .. }) {
            open.deadline_ms = self.now_ms + DEADLINE_MS + 500;
            open.hints = 0;
            return self.at(500, Event::Call { op });
        }
        self.clients.ops.remove(&op);
    }

    pub fn call_timeout(&mut self, op: u64, call_no: u32) {
        let Some(open) = self.clients.ops.get(&op).filter(|open| open.call_no == call_no) else { return };
        // A leader that does not answer may be one no more; the map will say who is, or somebody's hint.
        let partition = open.partition;
        self.clients.leaders.remove(&partition);
        self.uncertain(op);
    }

    /// It may have been processed: only a key makes a repeat safe, and cancels and reads change nothing twice.
    fn uncertain(&mut self, op: u64) {
        let Some(open) = self.clients.ops.get(&op) else { return };
        if matches!(open.request, Request::Submit { key: None, .. }) {
            self.clients.ops.remove(&op);
            return;
        }
        self.trace.count("uncertain_call_repeated");
        let pause = 20 + self.rng.calls.below(180);
        self.at(pause, Event::Call { op });
    }

    /// A call reaches a node.
    pub fn call_arrives(&mut self, node: usize, op: u64, call_no: u32, request: Request) {
        if !self.nodes[node].up {
            return;
        }
        let partition = match &request {
            Request::Submit { practice, .. } => self.clients.partition_of(*practice),
            Request::Cancel { id, .. } | Request::Get { id } => id.slot().partition(self.plan.partitions),
        };
        if !self.nodes[node].leads(partition) {
            let hint = self.nodes[node].leader_hint(partition);
            return self.reply(node, op, call_no, Answer::Refused(Refused::NotLeader(hint)));
        }
        match request {
            Request::Submit { practice, key, content } => {
                let name = practice_name(practice);
                let found = self.nodes[node].meta.practice(TENANT, &name).cloned();
                let Some(record) = found else {
                    return self.reply(node, op, call_no, Answer::Refused(Refused::Busy));
                };
                let slot = Slot::of_practice(TENANT, &name);
                let id = MessageId::new(self.wall_ms(node), slot, self.rng.ingest.next());
                let accept =
                    self.accept(node, id, (record.practice_no, record.carrier_no), key, content, call_no);
                let command = Command { kind: Some(Kind::Accept(accept)) };
                self.propose(node, partition, vec![command], Waiter::Call { op, call_no, id: Some(id) });
            }
            Request::Cancel { id, practice_no } => {
                let cancel = Cancel { message_id: id.to_bytes(), practice_no };
                let command = Command { kind: Some(Kind::Cancel(cancel)) };
                self.propose(node, partition, vec![command], Waiter::Call { op, call_no, id: None });
            }
            Request::Get { id } => self.ask_read(node, partition, Read { op, call_no, id }),
        }
    }

    /// What ingest makes of a message. Everything but times and the id follows from the content, as a repeat must.
    fn accept(
        &mut self,
        node: usize,
        id: MessageId,
        (practice_no, carrier_no): (u32, u32),
        key: Option<u64>,
        content: u64,
        call_no: u32,
    ) -> Accept {
        let now_ms = self.wall_ms(node);
        let bytes16 = |a: u64, b: u64| [a.to_be_bytes(), b.to_be_bytes()].concat();
        let mut named = key.unwrap_or(0);
        if self.planted(Plant::KeyForgotten) {
            named ^= u64::from(call_no) << 40;
        }
        let draw = super::rng::mix(content);
        let policy =
            [UnknownPolicy::Hold, UnknownPolicy::Hold, UnknownPolicy::ResendOnce, UnknownPolicy::Abandon];
        let life_ms = [1_500, 20_000, 40_000, 40_000][draw as usize % 4];
        let later = if draw >> 8 & 7 == 0 { now_ms + (draw >> 12) % 6_000 } else { 0 };
        let long = (draw >> 24) % 1000 < self.plan.long;
        Accept {
            message_id: id.to_bytes(),
            practice_no,
            class: 1 + ((draw >> 32) % 11) as i32,
            priority: 1 + ((draw >> 36) % 4) as i32,
            not_before_ms: later,
            expires_at_ms: later.max(now_ms) + life_ms,
            time_zone: String::new(),
            sealed_recipient: content.to_be_bytes().to_vec().into(),
            recipient_index: bytes16(draw, 1).into(),
            // What the key named, for the check at the end.
            sealed_body: bytes16(u64::from(practice_no), key.unwrap_or(0)).into(),
            key_epoch: 1,
            encoding: 1,
            segments: if long { 2 + ((draw >> 40) % 2) as u32 } else { 1 },
            idempotency_index: key.map(|_| bytes16(named, hash(b"key")).into()).unwrap_or_default(),
            content_mac: bytes16(content, 2).into(),
            carrier_no,
            retry: Some(RetryPolicy {
                attempts_max: 4,
                backoff_base_ms: 300,
                backoff_max_ms: 2_000,
                unknown_policy: policy[(draw >> 44) as usize % 4] as i32,
            }),
            ..Default::default()
        }
    }

    fn ask_read(&mut self, node: usize, partition: u32, read: Read) {
        let Some(cell) = self.nodes[node].cells.get_mut(&partition) else {
            return self.reply(node, read.op, read.call_no, Answer::Refused(Refused::Busy));
        };
        let ctx = read.op << 16 | u64::from(read.call_no);
        match cell.group.read_index(ctx) {
            Ok(()) => cell.reads_asked.push((ctx, read)),
            Err(_) => return self.reply(node, read.op, read.call_no, Answer::Refused(Refused::Busy)),
        }
        self.pump(node, partition);
    }

    /// Answers confirmed reads that are applied by now.
    pub fn answer_reads(&mut self, node: usize, group: u32) {
        let Some(cell) = self.nodes[node].cells.get_mut(&group) else { return };
        if cell.reads_confirmed.is_empty() {
            return;
        }
        let applied = cell.group.applied_index();
        let (ready, rest) =
            std::mem::take(&mut cell.reads_confirmed).into_iter().partition(|(i, _)| *i <= applied);
        cell.reads_confirmed = rest;
        let ready: Vec<(u64, Read)> = ready;
        for (_, read) in ready {
            let found = query::message(&self.nodes[node].stores[&group], &read.id);
            let result = found.map_err(|_| Refused::Busy).map(|found| {
                found.map(|(_, status)| {
                    MessageState::try_from(status.state).unwrap_or(MessageState::Unspecified)
                })
            });
            self.answer_read(node, &read, result);
        }
    }

    pub fn answer_read(&mut self, node: usize, read: &Read, result: Result<Option<MessageState>, Refused>) {
        let answer = match result {
            Ok(state) => Answer::Got(state),
            Err(refused) => Answer::Refused(refused),
        };
        self.reply(node, read.op, read.call_no, answer);
    }

    /// A client's proposal has its result.
    pub fn call_done(
        &mut self,
        node: usize,
        op: u64,
        call_no: u32,
        id: Option<MessageId>,
        result: Result<Vec<CommandResult>, Refused>,
    ) {
        let answer = match (result, id) {
            (Err(refused), _) => Answer::Refused(refused),
            (Ok(results), Some(id)) => match results.into_iter().next() {
                Some(result) => {
                    let practice_no = self.practice_no_of(node, op);
                    Answer::Submitted { id, practice_no, result }
                }
                None => Answer::Refused(Refused::Uncertain),
            },
            (Ok(results), None) => match results.into_iter().next() {
                Some(CommandResult::Canceled(outcomes)) => Answer::Canceled(outcomes.into_iter().next()),
                _ => Answer::Canceled(None),
            },
        };
        self.reply(node, op, call_no, answer);
    }

    fn practice_no_of(&self, node: usize, op: u64) -> u32 {
        let Some(Op { request: Request::Submit { practice, .. }, .. }) = self.clients.ops.get(&op) else {
            return 0;
        };
        let name = practice_name(*practice);
        self.nodes[node].meta.practice(TENANT, &name).map_or(0, |record| record.practice_no)
    }

    fn reply(&mut self, node: usize, op: u64, call_no: u32, answer: Answer) {
        if let Some(delay) = self.call_delay(node) {
            self.at(delay, Event::CallAnswer { op, call_no, node, answer: Box::new(answer) });
        }
    }

    /// Nodes tell the routers who leads.
    pub fn tell_routers(&mut self, node: usize, group: u32, leader: u64, term: u64) {
        if group > 0
            && leader > 0
            && let Some(delay) = self.call_delay(node)
        {
            self.at(delay, Event::MapNews { partition: group, leader, term });
        }
    }

    /// An answer reaches the router. One of an earlier call of the same operation finds nobody.
    pub fn call_answered(&mut self, op: u64, call_no: u32, _node: usize, answer: Answer) {
        let Some(open) = self.clients.ops.get_mut(&op).filter(|open| open.call_no == call_no) else { return };
        let partition = open.partition;
        match answer {
            Answer::Refused(Refused::NotLeader(hint)) => {
                self.clients.leaders.remove(&partition);
                let open = self.clients.ops.get_mut(&op).expect("it is open");
                let follow = hint != 0 && open.hints < HINTS_MAX;
                if follow {
                    open.hints += 1;
                    self.clients.leaders.insert(partition, (hint, 0));
                }
                // The call is over: its timeout finds another number.
                open_next(&mut self.clients, op);
                let pause = if follow { 1 } else { 20 + self.rng.calls.below(180) };
                self.at(pause, Event::Call { op });
            }
            Answer::Refused(Refused::Busy) => {
                open_next(&mut self.clients, op);
                let pause = 20 + self.rng.calls.below(180);
                self.at(pause, Event::Call { op });
            }
            Answer::Refused(Refused::Uncertain) => {
                open_next(&mut self.clients, op);
                self.uncertain(op);
            }
            other => self.settled_op(op, other),
        }
    }

    fn settled_op(&mut self, op: u64, answer: Answer) {
        let Some(Op { request, floor, .. }) = self.clients.ops.remove(&op) else { return };
        match (request, answer) {
            (Request::Submit { practice, key, content }, Answer::Submitted { id, practice_no, result }) => {
                match &result {
                    CommandResult::Accepted => {
                        self.clients.ids.push((id, practice_no));
                        self.clients.told(id, 1);
                        self.clients.keys.extend(key.map(|key| (practice, key, content)));
                    }
                    CommandResult::Duplicate { message_id } => {
                        self.clients.told(*message_id, 1);
                        self.trace.count("duplicate_submit");
                    }
                    _ => self.trace.count("key_reused"),
                }
                self.note(&[50, op, hash(id.as_bytes())], || format!("acked  key {key:?} {id} {result:?}"));
                self.oracle.submitted(practice_no, key, content, &result, id);
            }
            (Request::Cancel { id, .. }, Answer::Canceled(outcome)) => match outcome {
                Some(outcome) if outcome.canceled => drop(self.oracle.canceled.insert(id, self.now_ms)),
                Some(_) => {}
                None => self
                    .oracle
                    .fail(format!("I1 message {id} was acknowledged, and a cancel does not find it")),
            },
            (Request::Get { id }, Answer::Got(state)) => {
                let rank = state.map_or(0, message::rank);
                if rank < floor.max(1) {
                    self.oracle.fail(format!(
                        "I1 a read of message {id} gives {state:?} (rank {rank}) after rank {floor} was told"
                    ));
                }
                self.clients.told(id, rank);
            }
            (request, answer) => self.oracle.fail(format!("{request:?} was answered with {answer:?}")),
        }
    }
}

/// The call under way is over.
fn open_next(clients: &mut Clients, op: u64) {
    if let Some(open) = clients.ops.get_mut(&op) {
        open.call_no += 1;
    }
}
