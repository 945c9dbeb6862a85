//! I16 at the end of a run: every message that waits has its row in table D, in the flow of its practice, and in the tables of its
//! recipient; no other one has.
use super::store::SimStore;
use super::world::World;
use carillon_core::message::{holds_up, state_of, waits};
use carillon_core::{keys, query};

impl World {
    pub fn check_rows(&mut self) {
        let mut wrong = Vec::new();
        for partition in 1..=self.plan.partitions {
            if let Some(node) = self.healthy(partition) {
                wrong.extend(wrong_rows(&node.stores[&partition]));
            }
        }
        wrong.into_iter().for_each(|text| self.oracle.fail(format!("I16 {text}")));
    }
}

fn wrong_rows(store: &SimStore) -> Option<String> {
    let rows = store.tables().rows();
    let has = |key: Vec<u8>| rows.contains_key(&key);
    let (mut waiting, mut queued, mut ordered) = (0, 0, 0);
    for id in rows.keys().filter_map(|key| keys::decode_payload(key)) {
        let (_, status) = query::message(store, &id).ok().flatten()?;
        let (practice_no, state) = (status.practice_no, state_of(&status));
        let flow = if status.due_by_practice { practice_no } else { 0 };
        let due = keys::due(status.priority as u8, flow, status.due_ms, &id);
        waiting += usize::from(waits(state));
        if has(due) != waits(state) {
            return Some(format!("message {id} is {state:?}, flow {flow}, due {}: table D", status.due_ms));
        }
        let Ok(recipient) = status.recipient_index.as_ref().try_into() else { continue };
        queued += usize::from(waits(state));
        if has(keys::queued(practice_no, recipient, &id)) != waits(state) {
            return Some(format!("message {id} is {state:?}: table N"));
        }
        let in_order = status.ordered && holds_up(state);
        ordered += usize::from(in_order);
        if has(keys::ordered(practice_no, recipient, &id)) != in_order {
            return Some(format!("message {id} is {state:?}: table G"));
        }
    }
    let count = |table: u8| rows.keys().filter(|key| key.first() == Some(&table)).count();
    let found = [count(b'D'), count(b'N'), count(b'G')];
    (found != [waiting, queued, ordered])
        .then(|| format!("{found:?} rows in D, N and G for {:?} messages", [waiting, queued, ordered]))
}
