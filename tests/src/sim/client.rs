//! Clients and the logic of a router: the map of leaders, hints, repeats inside the deadline, and idempotency keys. A
//! mirror of the rules of `router/src/batch.rs`:
//!  - what provably was not processed is tried again until the deadline;
//!  - what may have been processed is tried again only with a key;
//!  - a client that got no answer comes back with the same key until it has one.
use super::engine::Refused;
use super::rng::hash;
use super::world::{Event, World};
use carillon_core::{CancelOutcome, CommandResult, Refusal, Updated, message};
use carillon_proto::public::MessageState;
use carillon_proto::{MessageId, Slot};
use std::collections::BTreeMap;

pub const TENANT: &str = "acme";
/// Of each practice.
pub const RECIPIENTS: u64 = 40;
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
    Submit {
        practice: u32,
        key: Option<u64>,
        content: u64,
    },
    Cancel {
        id: MessageId,
        practice_no: u32,
    },
    Get {
        id: MessageId,
    },
    /// A recipient wants nothing more from a practice.
    Stop {
        practice: u32,
        recipient: u64,
    },
    /// An appointment changes.
    Update {
        practice: u32,
        reference: u64,
        version: u64,
    },
    /// A series of recurring messages begins.
    Series {
        practice: u32,
        key: u64,
    },
}

/// What a node says.
#[derive(Debug, Clone)]
pub enum Answer {
    Refused(Refused),
    Submitted {
        id: MessageId,
        practice_no: u32,
        result: CommandResult,
    },
    Canceled(Option<CancelOutcome>),
    Got(Option<MessageState>),
    Stopped,
    /// Nothing new while disks are nearly full.
    NearlyFull,
    Updated(Updated),
    SeriesMade,
    /// A later version of the appointment took effect.
    OldVersion,
    /// The cluster does not know opt-outs or appointments yet.
    TooOld,
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
    /// (practice, reference) of messages that were accepted.
    pub appointments: Vec<(u32, u64)>,
    pub versions: BTreeMap<(u32, u64), u64>,
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
            appointments: Vec::new(),
            versions: BTreeMap::new(),
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

    pub fn partition_of(&self, practice: u32) -> u32 {
        Slot::of_practice(TENANT, &practice_name(practice)).partition(self.partitions)
    }

    /// A lost cluster was restored: only these messages are there, with their ranks.
    pub fn lost_since(&mut self, ranks: &BTreeMap<MessageId, u8>) {
        self.leaders.clear();
        self.ids.retain(|(id, _)| ranks.contains_key(id));
        self.floor.retain(|id, floor| {
            *floor = (*floor).min(ranks.get(id).copied().unwrap_or(0));
            ranks.contains_key(id)
        });
        self.ops.retain(|_, op| match &op.request {
            Request::Get { id } | Request::Cancel { id, .. } => ranks.contains_key(id),
            Request::Submit { .. }
            | Request::Stop { .. }
            | Request::Update { .. }
            | Request::Series { .. } => true,
        });
        self.ops.values_mut().for_each(|op| op.floor = 0);
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
        let request = self.draw_update().unwrap_or_else(|| self.draw_request());
        self.start_op(request);
    }

    fn draw_request(&mut self) -> Request {
        let rng = &mut self.rng.client;
        let clients = &mut self.clients;
        if rng.chance(self.plan.stops) {
            let practice = rng.below(u64::from(self.plan.practices)) as u32;
            return Request::Stop { practice, recipient: rng.below(RECIPIENTS) };
        }
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
        let heavy = &self.plan.settings.heavy;
        let practice = match !heavy.is_empty() && rng.chance(750) {
            true => rng.pick(heavy),
            false => rng.below(u64::from(self.plan.practices)) as u32,
        };
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
            Request::Submit { practice, .. }
            | Request::Stop { practice, .. }
            | Request::Update { practice, .. }
            | Request::Series { practice, .. } => (clients.partition_of(*practice), 0),
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
        // Routers are led to a new cluster when its restore is done.
        if !self.operator.is_done() {
            return self.at(500, Event::Call { op });
        }
        open.call_no += 1;
        let (call_no, request, partition) = (open.call_no, Box::new(open.request.clone()), open.partition);
        let node = match self.clients.leaders.get(&partition) {
            Some((leader, _)) => *leader as usize - 1,
            None => self.rng.calls.below(self.nodes.len() as u64) as usize,
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

    /// A client's proposal has its result.
    pub fn call_done(
        &mut self,
        node: usize,
        op: u64,
        call_no: u32,
        id: Option<MessageId>,
        result: Result<Vec<CommandResult>, Refused>,
    ) {
        let restoring = |results: &[CommandResult]| {
            matches!(results.first(), Some(CommandResult::Refused(Refusal::Restoring)))
        };
        let answer = match (result, id) {
            (Ok(results), _) if restoring(&results) => Answer::Refused(Refused::Busy),
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
                Some(CommandResult::Done) => Answer::Stopped,
                Some(CommandResult::Updated(updated)) => Answer::Updated(updated),
                Some(CommandResult::Accepted | CommandResult::Duplicate { .. }) => Answer::SeriesMade,
                // The node reads again; here the client does.
                Some(CommandResult::Refused(Refusal::MovedOn)) => Answer::Refused(Refused::Busy),
                Some(CommandResult::Refused(Refusal::OldVersion { .. })) => Answer::OldVersion,
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

    pub fn reply(&mut self, node: usize, op: u64, call_no: u32, answer: Answer) {
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
            Answer::NearlyFull => {
                // As RetryInfo says.
                open_next(&mut self.clients, op);
                let pause = 500 + self.rng.calls.below(1_000);
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
            // The client thinks again; its key names nothing.
            (Request::Submit { .. }, Answer::Submitted { result: CommandResult::SameContent { .. }, .. }) => {
            }
            (Request::Submit { practice, key, content }, Answer::Submitted { id, practice_no, result }) => {
                match &result {
                    CommandResult::Accepted => {
                        self.clients.ids.push((id, practice_no));
                        self.clients.appointments.push((practice, super::care::reference_of(content)));
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
                None if self.oracle.is_gone(&id) => self.trace.count("cancel_of_a_retired_message"),
                None => self
                    .oracle
                    .fail(format!("I1 message {id} was acknowledged, and a cancel does not find it")),
            },
            (Request::Get { id }, Answer::Got(state)) => {
                let rank = state.map_or(0, message::rank);
                if state.is_none() && self.oracle.is_gone(&id) {
                    return;
                }
                if rank < floor.max(1) {
                    self.oracle.fail(format!(
                        "I1 a read of message {id} gives {state:?} (rank {rank}) after rank {floor} was told"
                    ));
                }
                self.clients.told(id, rank);
            }
            (Request::Update { practice, reference, version }, Answer::Updated(updated)) => {
                self.update_told((practice, reference, version), &updated);
            }
            (Request::Update { .. }, Answer::OldVersion) => self.trace.count("update_of_an_old_version"),
            (Request::Series { .. }, Answer::SeriesMade) => self.trace.count("series_made"),
            (Request::Series { .. }, Answer::TooOld) => self.trace.count("series_refused_by_level"),
            (Request::Update { .. }, Answer::TooOld) => self.trace.count("update_refused_by_level"),
            (Request::Stop { .. }, Answer::Stopped) => self.trace.count("stop_acknowledged"),
            (Request::Stop { .. }, Answer::TooOld) => self.trace.count("stop_refused_by_level"),
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
