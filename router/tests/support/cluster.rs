//! What the fake nodes share: who leads what, what was accepted, and how the next calls shall misbehave.
use carillon_proto::internal::{IngestMessage, MapUpdate, MetaNode, PartitionLeader, PracticeRecord};
use carillon_proto::public::Event;
use carillon_proto::{MessageId, Slot};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::watch;

pub const PARTITIONS: u32 = 16;

/// How the next submit that reaches a node goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mishap {
    /// Says that it does not lead, and names a leader (0 = none known).
    NotLeader { hint: u64 },
    /// Accepts everything, then the process dies before the answer.
    AcceptThenDie,
    /// The process dies before it did anything.
    Die,
    /// The proposal's fate is unknown to the node; it did take effect.
    UncertainAccepted,
    /// The proposal's fate is unknown to the node; it did not take effect.
    UncertainLost,
    /// The handler panics: the call breaks off, the process lives.
    Panic,
    /// Never answers.
    Hang,
    /// Waits until the test releases it.
    Wait,
    /// Refuses each message as overloaded.
    Overloaded,
    /// Has not heard of the practice yet.
    PracticeUnknown,
}

pub struct Stored {
    pub tenant: String,
    pub message: IngestMessage,
}

#[derive(Default)]
pub struct Partition {
    pub messages: BTreeMap<MessageId, Stored>,
    keys: HashMap<(u32, String), MessageId>,
    /// Entry index, tenant, practice number, event.
    pub events: Vec<(u64, String, u32, Event)>,
}

pub struct State {
    pub leaders: Vec<(u64, u64)>,
    pub nodes: BTreeMap<u64, String>,
    pub practices: Vec<PracticeRecord>,
    pub partitions: Vec<Partition>,
    pub mishaps: HashMap<u64, VecDeque<Mishap>>,
    /// Node and partitions of every submit, in the order in which they came.
    pub submits: Vec<(u64, Vec<u32>)>,
    pub watches: usize,
    pub meta_index: u64,
    ids: u64,
}

/// Shared by the nodes and the test.
pub struct Cluster {
    state: Mutex<State>,
    pub changed: watch::Sender<u64>,
    /// Opens the gate of [`Mishap::Wait`].
    pub release: watch::Sender<bool>,
    /// Nodes that shall die now.
    pub deaths: tokio::sync::mpsc::Sender<u64>,
}

impl Cluster {
    pub fn new(deaths: tokio::sync::mpsc::Sender<u64>) -> Arc<Self> {
        let leaders = (0..=PARTITIONS).map(|p| (u64::from(p % 3 + 1), 5)).collect();
        let state = State {
            leaders,
            nodes: BTreeMap::new(),
            practices: Vec::new(),
            partitions: (0..=PARTITIONS).map(|_| Partition::default()).collect(),
            mishaps: HashMap::new(),
            submits: Vec::new(),
            watches: 0,
            meta_index: 1,
            ids: 0,
        };
        let (changed, release) = (watch::Sender::new(0), watch::Sender::new(false));
        Arc::new(Self { state: Mutex::new(state), changed, release, deaths })
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock())
    }

    /// Changes and tells everybody who watches.
    pub fn tell<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = self.with(change);
        self.changed.send_modify(|version| *version += 1);
        result
    }

    pub fn add_practice(&self, tenant: &str, practice: &str, time_zone: &str) {
        self.tell(|state| {
            state.meta_index += 1;
            state.practices.push(PracticeRecord {
                practice_no: state.practices.len() as u32 + 1,
                tenant: tenant.to_owned(),
                practice: practice.to_owned(),
                time_zone: time_zone.to_owned(),
                carrier_no: 1,
                ..Default::default()
            });
        });
    }

    /// Makes `node` the leader in the next term.
    pub fn lead(&self, partition: u32, node: u64) {
        self.tell(|state| {
            let (leader, term) = &mut state.leaders[partition as usize];
            (*leader, *term) = (node, *term + 1);
        });
    }

    /// Gives everything that `dead` led to `heir`.
    pub fn fail_over(&self, dead: u64, heir: u64) {
        self.tell(|state| {
            for (leader, term) in state.leaders.iter_mut().filter(|(leader, _)| *leader == dead) {
                (*leader, *term) = (heir, *term + 1);
            }
        });
    }

    pub fn leader(&self, partition: u32) -> u64 {
        self.with(|state| state.leaders[partition as usize].0)
    }

    pub fn misbehave(&self, node: u64, mishaps: &[Mishap]) {
        self.with(|state| state.mishaps.entry(node).or_default().extend(mishaps));
    }

    /// Everything that was accepted.
    pub fn accepted(&self) -> usize {
        self.with(|state| state.partitions.iter().map(|p| p.messages.len()).sum())
    }

    pub fn submits(&self) -> usize {
        self.with(|state| state.submits.len())
    }

    /// Adds an event and gives its index.
    pub fn emit(&self, tenant: &str, practice_no: u32, partition: u32, id: &str) -> u64 {
        self.tell(|state| {
            let events = &mut state.partitions[partition as usize].events;
            let index = events.last().map_or(10, |(index, ..)| index + 1);
            let event = Event { message_id: id.to_owned(), state: 4, ..Event::default() };
            events.push((index, tenant.to_owned(), practice_no, event));
            index
        })
    }

    /// The whole map as `node` tells it.
    pub fn map(&self, node: u64) -> MapUpdate {
        self.with(|state| MapUpdate {
            full: true,
            cluster_id: "lab".to_owned(),
            partitions: PARTITIONS,
            nodes: state
                .nodes
                .iter()
                .map(|(id, address)| MetaNode {
                    node_id: *id,
                    peer_address: address.clone(),
                    ..Default::default()
                })
                .collect(),
            leaders: (1..=PARTITIONS)
                .map(|partition| {
                    let (leader, term) = state.leaders[partition as usize];
                    PartitionLeader { partition, leader, term, epoch: 1 }
                })
                .collect(),
            practices: state.practices.clone(),
            meta_index: state.meta_index,
            node_id: node,
        })
    }
}

impl State {
    /// Accepts a message, or finds the one with the same key.
    pub fn accept(&mut self, tenant: &str, partition: u32, message: IngestMessage) -> (MessageId, bool) {
        let practice = &self.practices[message.practice_no as usize - 1];
        assert_eq!(practice.tenant, tenant, "the router mixed tenants up");
        let slot = Slot::of_practice(tenant, &practice.practice);
        assert_eq!(slot.partition(PARTITIONS), partition, "the router chose a wrong partition");
        let place = &mut self.partitions[partition as usize];
        let key = (message.practice_no, message.idempotency_key.clone());
        if let Some(known) = place.keys.get(&key) {
            return (*known, true);
        }
        self.ids += 1;
        let id = MessageId::new(1_800_000_000_000 + self.ids, slot, self.ids);
        if !key.1.is_empty() {
            place.keys.insert(key, id);
        }
        place.messages.insert(id, Stored { tenant: tenant.to_owned(), message });
        (id, false)
    }
}
