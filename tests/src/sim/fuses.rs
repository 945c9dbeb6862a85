//! I14: the fuses and the pauses. By the oracle's own books, in the order of the log: the same content is accepted once within the
//! window and refused only for a reason, and one recipient never gets much more than a burst. Also the operator who lets
//! practices go on, and when practices are paused by hand.
use super::client::{TENANT, practice_name};
use super::operator::{Order, put};
use super::settings::BURST_WINDOW_S;
use super::world::World;
use carillon_core::{CommandResult, message, query};
use carillon_proto::MessageId;
use carillon_proto::internal::meta_command::Kind as MetaKind;
use carillon_proto::internal::{Accept, PauseCause, PausePractice};
use carillon_proto::public::MessageState;
use prost::bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// How long the operator looks at what a fuse has stopped.
const LOOKS_FOR_MS: u64 = 2_500;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Fuses {
    /// (practice, content) -> the message that was accepted with it last, and when.
    contents: BTreeMap<(u32, Bytes), (MessageId, u64)>,
    /// (practice, recipient) -> messages that were begun, with their time.
    begun: BTreeMap<(u32, Bytes), VecDeque<(u64, MessageId)>>,
    /// How often each practice was let go on.
    resumed: BTreeMap<u32, u64>,
    /// Paused practices and carriers, since when.
    paused: BTreeMap<(u32, u32), u64>,
    /// Every node knows how large a burst is, since then.
    pub known_ms: Option<u64>,
    /// A lost cluster was restored: what was accepted before is not in these books.
    restored: bool,
}

impl Fuses {
    pub fn restored(&mut self) {
        *self = Self { restored: true, ..Self::default() };
    }

    /// A message is begun for a recipient. `burst`: as many as the fuse lets through in its window, which begins with the first one; so
    /// in any window twice as many, and again as many after each look of an operator.
    fn begin(&mut self, id: MessageId, recipient: (u32, Bytes), now_ms: u64, burst: u64) -> Option<String> {
        let looks = self.resumed.get(&recipient.0).copied().unwrap_or(0);
        let begun = self.begun.entry(recipient).or_default();
        if !begun.iter().any(|(_, other)| *other == id) {
            begun.push_back((now_ms, id));
        }
        let window_ms = u64::from(BURST_WINDOW_S) * 1_000;
        while begun.front().is_some_and(|(at_ms, _)| at_ms + window_ms <= now_ms) {
            begun.pop_front();
        }
        let most = burst * (2 + looks);
        (begun.len() as u64 > most).then(|| {
            format!("I14 {} messages to one recipient within {BURST_WINDOW_S} s, not {most}", begun.len())
        })
    }
}

impl World {
    /// In the order of the log, with the tables as they are after the entry.
    pub fn follow_content(
        &mut self,
        node: usize,
        partition: u32,
        accept: &Accept,
        result: &CommandResult,
        now_ms: u64,
    ) {
        if accept.duplicate_index.is_empty() {
            return;
        }
        let Ok(id) = MessageId::from_bytes(&accept.message_id) else { return };
        let key = (accept.practice_no, accept.duplicate_index.clone());
        let known = self.oracle.fuses.contents.get(&key).copied();
        let window_ms = u64::from(accept.duplicate_window_ms);
        let open = known.filter(|(_, at_ms)| at_ms + window_ms > now_ms);
        match result {
            CommandResult::Accepted => {
                let store = self.nodes[node].stores[&partition].tables();
                let lives = |other: &MessageId| {
                    let found = query::message(store, other).ok().flatten();
                    found.is_some_and(|(_, status)| !ended_unsent(message::state_of(&status)))
                };
                if let Some((other, _)) = open.filter(|(other, _)| lives(other)) {
                    self.oracle
                        .fail(format!("I14 message {id} has the content of {other}, and was accepted"));
                }
                self.oracle.fuses.contents.insert(key, (id, now_ms));
            }
            CommandResult::SameContent { message_id } => {
                self.trace.count("same_content_refused");
                let right = open.is_some_and(|(other, _)| other == *message_id);
                if !right && !self.oracle.fuses.restored {
                    self.oracle
                        .fail(format!("I14 a message was refused as the content of {message_id}: {known:?}"));
                }
            }
            _ => {}
        }
    }

    /// In the order of the log: an attempt begins. Whom the policy leaves alone has no rule.
    pub fn follow_burst(&mut self, message_id: &[u8], recipient: (u32, Bytes), exempt: bool, now_ms: u64) {
        let burst = u64::from(self.plan.settings.burst);
        // What was proposed before is on its way for a moment.
        let known = self.oracle.fuses.known_ms.is_some_and(|known_ms| known_ms + 3_000 < self.now_ms);
        if burst == 0 || exempt || !known {
            return;
        }
        let Ok(id) = MessageId::from_bytes(message_id) else { return };
        if let Some(text) = self.oracle.fuses.begin(id, recipient, now_ms, burst) {
            self.oracle.fail(text);
        }
    }

    /// Practices that a fuse has stopped are looked at and let go on; all of them when it is calm.
    pub fn look_at_pauses(&mut self) {
        let Some(view) = self.newest_view() else { return };
        let paused: Vec<((u32, u32), bool)> = view
            .pauses
            .iter()
            .filter(|(_, pause)| pause.paused)
            .map(|(key, pause)| (*key, pause.cause == PauseCause::Burst as i32))
            .collect();
        let (now_ms, calm) = (self.now_ms, self.calm);
        let fuses = &mut self.oracle.fuses;
        fuses.paused.retain(|key, _| paused.iter().any(|(other, _)| other == key));
        let mut go_on = Vec::new();
        for (key, by_fuse) in paused {
            let since = *fuses.paused.entry(key).or_insert(now_ms);
            if calm || (by_fuse && since + LOOKS_FOR_MS <= now_ms) {
                go_on.push(key);
            }
        }
        for (practice_no, carrier_no) in go_on {
            let order = pause(practice_no, carrier_no, false);
            if !self.operator.has(&order) {
                // It counts from when it may be in force.
                *self.oracle.fuses.resumed.entry(practice_no).or_default() += 1;
                self.operator.push(order);
            }
        }
    }

    /// An operator pauses a practice on its carrier, or lets it go on.
    pub fn pause_by_hand(&mut self, practice: u32, paused: bool) {
        let Some(view) = self.newest_view().filter(|view| view.leases()) else { return };
        let Some(record) = view.practice(TENANT, &practice_name(practice)) else { return };
        let (practice_no, carrier_no) = (record.practice_no, record.carrier_no);
        if !paused {
            *self.oracle.fuses.resumed.entry(practice_no).or_default() += 1;
        }
        self.operator.push(pause(practice_no, carrier_no, paused));
    }
}

fn pause(practice_no: u32, carrier_no: u32, paused: bool) -> Order {
    let cause = PauseCause::Operator.into();
    put(MetaKind::PausePractice(PausePractice { practice_no, carrier_no, paused, cause }))
}

/// Nothing of it left: its text may be sent again.
fn ended_unsent(state: MessageState) -> bool {
    matches!(
        state,
        MessageState::Expired
            | MessageState::Canceled
            | MessageState::Rejected
            | MessageState::Dead
            | MessageState::OptedOut
    )
}
