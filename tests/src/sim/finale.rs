//! A whole run: trouble for a while, then calm, in which everything must come to an end in bounded time (I8), then the
//! comparison of all replicas with each other, with what clients were told and with what the carriers have.
use super::node::Node;
use super::plan::Plan;
use super::world::World;
use carillon_core::{ReadTables as _, applied_record, keys, message, query};
use carillon_proto::MessageId;
use carillon_proto::public::MessageState;
use std::collections::BTreeMap;

/// How long the end may take, in simulated time, besides the largest jump of a clock.
const CALM_MS_MAX: u64 = 240_000;
/// Between two looks at whether everything has ended.
const LOOK_MS: u64 = 500;

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub violation: Option<String>,
    pub hash: u64,
    pub events: u64,
    pub simulated_ms: u64,
    pub messages: u64,
    pub acknowledged: u64,
    pub duplicates: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

/// Runs a plan. A panic of the code under test is a violation, too.
pub fn run(plan: Plan, print: bool) -> Report {
    let mut world = World::new(plan, print);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.whole()));
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        world.oracle.fail(format!("panic: {text}"));
    }
    if let Some(violation) = world.oracle.violation.clone() {
        world.note(&[99], || format!("VIOLATION {violation}"));
    }
    let truth = &world.oracle.truth;
    Report {
        violation: world.oracle.violation.clone(),
        hash: world.trace.hash(),
        events: world.trace.events,
        simulated_ms: world.now_ms,
        messages: world.oracle.messages.len() as u64,
        acknowledged: world.oracle.acked.len() as u64,
        duplicates: truth.duplicates() as u64,
        counts: world.trace.counts.clone(),
    }
}

impl World {
    fn whole(&mut self) {
        if !self.run_until(self.plan.safety_ms) {
            return;
        }
        self.check_use();
        self.heal();
        // A lost cluster is built anew only when nobody's clock can say that it still runs.
        let bound = self.now_ms + CALM_MS_MAX + 4 * self.jumps_ms();
        while let Some(why) = self.unsettled() {
            if self.now_ms > bound {
                return self.oracle.fail(format!("I8 not at an end: {why}"));
            }
            if !self.run_until(self.now_ms + LOOK_MS) {
                return;
            }
        }
        self.check_replicas();
        self.check_messages();
        self.check_rows();
    }

    /// What is still under way, if anything is.
    fn unsettled(&mut self) -> Option<String> {
        if !self.operator.is_done() {
            return Some("the cluster is not created".to_owned());
        }
        if let Some(why) = self.members_unsettled() {
            return Some(why);
        }
        if self.clients.open() > 0 {
            return Some(format!("{} calls are not answered", self.clients.open()));
        }
        for group in self.groups() {
            if let Some(why) = self.group_unsettled(group) {
                return Some(format!("group {group}: {why}"));
            }
        }
        if let Some(why) = self.retention_unsettled() {
            return Some(why);
        }
        let open: usize = self.carriers.iter().map(|carrier| carrier.receipts_open()).sum();
        if open > 0 {
            return Some(format!("{open} receipts are not acknowledged"));
        }
        self.oracle.messages.iter().find_map(|(id, seen)| {
            let rests = message::is_final(seen.state)
                || matches!(seen.state, MessageState::Submitted | MessageState::Unknown);
            (!rests)
                .then(|| format!("message {id} is {:?} ({}); {}", seen.state, seen.detail, self.picture(id)))
        })
    }

    /// Retention has caught up.
    fn retention_unsettled(&mut self) -> Option<String> {
        for partition in 1..=self.plan.partitions {
            let leader =
                (0..self.nodes.len()).find(|n| self.nodes[*n].up && self.nodes[*n].leads(partition))?;
            let lag_ms = self.retention_lag_ms(leader, partition);
            if lag_ms > super::retention::LAG_MS_MAX {
                return Some(format!("retention of partition {partition} is {lag_ms} ms late"));
            }
        }
        None
    }

    /// What the leader of a message's partition has of it.
    fn picture(&self, id: &MessageId) -> String {
        let partition = id.slot().partition(self.plan.partitions);
        let Some(leader) = self.nodes.iter().find(|node| node.leads(partition) && node.up) else {
            return "no leader".to_owned();
        };
        let store = leader.stores[&partition].tables();
        let Ok(Some((_, status))) = query::message(store, id) else { return "no record".to_owned() };
        let rows = store.rows().keys().filter_map(|key| keys::decode_due(key));
        let due: Vec<u64> = rows.filter(|row| row.message_id == *id).map(|row| row.due_ms).collect();
        let now_ms = leader.clock.wall_ms(self.now_ms);
        let stats = leader.wing.stats(now_ms, self.mono(leader.index));
        format!(
            "leader n{} now {now_ms} due {} expires {} rows of D {due:?}; {stats:?}",
            leader.id, status.due_ms, status.expires_at_ms
        )
    }

    fn group_unsettled(&self, group: u32) -> Option<String> {
        let cells = self.nodes.iter().filter_map(|node| node.cells.get(&group));
        let leaders = cells.clone().filter(|cell| cell.group.leader_ready());
        let Some(leader) = leaders.max_by_key(|cell| cell.group.term()) else {
            return Some("no leader is ready".to_owned());
        };
        let last = leader.group.last_index();
        let conf = leader.group.conf_state();
        let member = |id: u64| conf.voters.contains(&id) || conf.learners.contains(&id);
        let mut behind =
            cells.filter(|cell| member(cell.group.node_id()) && cell.group.applied_index() < last);
        behind.next().map(|cell| {
            format!("node {} has applied {} of {last}", cell.group.node_id(), cell.group.applied_index())
        })
    }

    /// I3: equal index, equal tables.
    fn check_replicas(&mut self) {
        let mut wrong = Vec::new();
        for group in self.groups() {
            let live = self.nodes.iter().filter(|node| node.cells.contains_key(&group));
            let mut stores = live.map(|node| (node.id, node.stores[&group].tables()));
            let Some((first_id, first)) = stores.next() else {
                wrong.push(format!("I8 group {group} has no replica"));
                continue;
            };
            for (id, tables) in stores {
                if tables != first {
                    let index = applied_record(tables).map_or(0, |record| record.index);
                    let same = |key: &&Vec<u8>| tables.rows().get(*key) == first.rows().get(*key);
                    let keys = tables.rows().keys().chain(first.rows().keys());
                    let row = keys.clone().find(|key| !same(key)).cloned().unwrap_or_default();
                    wrong.push(format!(
                        "I3 group {group} at {index}: nodes {first_id} and {id} differ in table {}",
                        char::from(row.first().copied().unwrap_or(b'?'))
                    ));
                }
            }
        }
        wrong.into_iter().for_each(|text| self.oracle.fail(text));
    }

    /// I1, I2, I5, I8: what clients were told and what the carriers have, against the final states.
    fn check_messages(&mut self) {
        let mut wrong = Vec::new();
        let mut named: BTreeMap<Vec<u8>, MessageId> = BTreeMap::new();
        let acked: Vec<MessageId> = self.oracle.acked.keys().copied().collect();
        for id in &acked {
            if self.oracle.is_gone(id) {
                continue;
            }
            if !self.oracle.messages.contains_key(id) || self.final_state(id).is_none() {
                wrong.push(format!("I1 message {id} was acknowledged and is lost"));
            }
        }
        for (id, seen) in &self.oracle.messages {
            let Some(state) = self.final_state(id) else { continue };
            if state != seen.state {
                wrong.push(format!("I9 message {id} is {state:?}, its events say {:?}", seen.state));
            }
            wrong.extend(self.wrong_end(id, state));
        }
        for partition in 1..=self.plan.partitions {
            let Some(node) = self.healthy(partition) else { continue };
            let rows = node.stores[&partition].tables().rows().iter();
            for id in rows.filter_map(|(key, _)| keys::decode_payload(key)) {
                let found = query::message(&node.stores[&partition], &id).ok().flatten();
                let Some(accept) = found.and_then(|(payload, _)| payload.accept) else { continue };
                if accept.idempotency_index.is_empty() {
                    continue;
                }
                if let Some(other) = named.insert(first_text(&accept.sealed_body), id) {
                    wrong.push(format!("I2 one key names {other} and {id}"));
                }
            }
        }
        wrong.into_iter().for_each(|text| self.oracle.fail(text));
    }

    /// A node whose replica can be read.
    pub fn healthy(&self, partition: u32) -> Option<&Node> {
        let serves =
            |node: &&Node| node.cells.contains_key(&partition) && !node.stores[&partition].is_rotten();
        self.nodes.iter().find(serves)
    }

    fn final_state(&self, id: &MessageId) -> Option<MessageState> {
        let partition = id.slot().partition(self.plan.partitions);
        let node = self.healthy(partition)?;
        let row = node.stores[&partition].get(&keys::status(id)).ok().flatten();
        row?;
        let (_, status) = query::message(&node.stores[&partition], id).ok().flatten()?;
        MessageState::try_from(status.state).ok()
    }

    /// A final state that the carriers' ground truth contradicts.
    fn wrong_end(&self, id: &MessageId, state: MessageState) -> Option<String> {
        let accepted = self.oracle.truth.is_accepted(id);
        let receipt_lost = self.carriers.iter().any(|carrier| carrier.receipts_lost.contains(id));
        match state {
            MessageState::Expired | MessageState::Canceled | MessageState::Dead if accepted => {
                Some(format!("I5 message {id} is {state:?}, but a carrier has it"))
            }
            MessageState::Submitted if !receipt_lost => {
                Some(format!("I8 message {id} is SUBMITTED although no receipt of it was lost"))
            }
            _ if self.oracle.canceled.contains_key(id) && state != MessageState::Canceled => {
                Some(format!("I1 message {id} is {state:?} after its cancel was acknowledged"))
            }
            _ => None,
        }
    }
}

/// The text before it was changed: it names what the key named.
fn first_text(text: &[u8]) -> Vec<u8> {
    text[..text.len().min(super::care::TEXT_BYTES)].to_vec()
}
