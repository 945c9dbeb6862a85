//! Recurring messages, as the simulator runs them: a mirror of `node/src/series.rs` and of the making of a series, and what must hold (I10).
use super::care::Changes;
use super::client::{Answer, TENANT, practice_name};
use super::engine::Refused;
use super::node::Waiter;
use super::plant::Plant;
use super::rng::{hash, mix};
use super::world::World;
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::series;
use carillon_proto::internal::{Accept, AdvanceSeries, Command, PutSeries, command::Kind};
use carillon_proto::{MessageId, Slot};
use prost::bytes::Bytes;

/// Messages of a series, and how far apart they are.
const COUNT: u32 = 6;
const APART_MS: u64 = 900;
/// Messages are made so long before they are due.
const AHEAD_MS: u64 = 1_500;
/// Between two looks; shorter than a proposal may take, so that steps overlap.
const LOOK_EVERY_MS: u64 = 120;
const SERIES_MAX: usize = 8;

/// Texts of series have it, those of callers do not.
const OF_SERIES: u64 = 1 << 63;

/// What names an occurrence, here and in the text of its message.
fn occurrence_key(series: &MessageId, number: u32) -> u64 {
    mix(hash(series.as_bytes()) ^ u64::from(number)) | OF_SERIES
}

impl World {
    /// A call that begins a series.
    pub fn series_arrives(
        &mut self,
        node: usize,
        partition: u32,
        (op, call_no): (u64, u32),
        (practice, key): (u32, u64),
    ) {
        let meta = &self.nodes[node].meta;
        let Some(record) = meta.practice(TENANT, &practice_name(practice)).cloned() else {
            return self.reply(node, op, call_no, Answer::Refused(Refused::Busy));
        };
        if meta.level < LEVEL_DELIVERY {
            return self.reply(node, op, call_no, Answer::TooOld);
        }
        let now_ms = self.wall_ms(node);
        let slot = Slot::of_practice(TENANT, &practice_name(practice));
        let id = MessageId::new(now_ms, slot, self.rng.care.next());
        let first_ms = now_ms + APART_MS;
        let put = PutSeries {
            series_id: id.to_bytes(),
            practice_no: record.practice_no,
            sealed_plan: first_ms.to_be_bytes().to_vec().into(),
            key_epoch: 1,
            idempotency_index: index(key, 7),
            content_mac: index(key, 8),
            next_ms: first_ms,
        };
        let command = Command { kind: Some(Kind::PutSeries(put)) };
        self.propose(node, partition, vec![command], Waiter::Call { op, call_no, id: None });
    }

    /// Makes what is due soon, of every partition that this node leads.
    pub fn make_series(&mut self, node: usize) {
        if self.now_ms < self.nodes[node].wing.series_at || self.nodes[node].meta.level < LEVEL_DELIVERY {
            return;
        }
        self.nodes[node].wing.series_at = self.now_ms + LOOK_EVERY_MS;
        let until_ms = self.wall_ms(node) + AHEAD_MS;
        for partition in 1..=self.plan.partitions {
            if !self.nodes[node].leads(partition) {
                continue;
            }
            let Some(store) = self.nodes[node].stores.get(&partition) else { continue };
            for (id, record) in series::due(store, until_ms, SERIES_MAX).unwrap_or_default() {
                self.step_series(node, partition, id, &record, until_ms);
            }
        }
    }

    fn step_series(
        &mut self,
        node: usize,
        partition: u32,
        id: MessageId,
        record: &carillon_proto::internal::SeriesRecord,
        until_ms: u64,
    ) {
        let first_ms = record.sealed_plan.as_ref().try_into().map_or(0, u64::from_be_bytes);
        let at_ms = |number: u32| first_ms + u64::from(number - 1) * APART_MS;
        let carrier_no = self.nodes[node].meta.practices.get(&record.practice_no).map_or(1, |p| p.carrier_no);
        let (mut commands, mut to, mut next_ms) = (Vec::new(), record.made, 0);
        for number in record.made + 1..=COUNT {
            if at_ms(number) > until_ms {
                next_ms = at_ms(number);
                break;
            }
            to = number;
            let mut key = occurrence_key(&id, number);
            let content = key;
            if self.planted(Plant::SeriesKeyForgotten) {
                key ^= self.rng.care.next() >> 1;
            }
            let new = MessageId::new(self.wall_ms(node), id.slot(), self.rng.care.next());
            let accept = self.accept(node, new, (record.practice_no, carrier_no), Some(key), content, 0);
            let text = Bytes::from(
                [u64::from(record.practice_no), occurrence_key(&id, number)].map(u64::to_be_bytes).concat(),
            );
            let (from_ms, expires_at_ms) = (at_ms(number).max(self.wall_ms(node)), at_ms(number) + 40_000);
            // Its hours are those of its own time, not of the one that the content draws.
            let asked = (accept.class, accept.priority);
            let hours = self.hours(node, record.practice_no, content, asked, (from_ms, expires_at_ms));
            let (place, plan) = hours.unzip();
            let plan = plan.unwrap_or_default();
            let accept = Accept {
                not_before_ms: at_ms(number),
                expires_at_ms,
                place,
                due_ms: plan.due_ms,
                open_until_ms: plan.open_until_ms,
                hours_stamp: plan.stamp,
                // The rule asks for the same text again.
                duplicate_window_ms: 0,
                sealed_body: text,
                ..accept
            };
            commands.push(Command { kind: Some(Kind::Accept(accept)) });
        }
        let advance = AdvanceSeries {
            series_id: id.to_bytes(),
            practice_no: record.practice_no,
            from: record.made,
            to,
            next_ms,
        };
        commands.push(Command { kind: Some(Kind::AdvanceSeries(advance)) });
        self.propose(node, partition, commands, Waiter::Nobody);
    }

    /// In the order of the log: a series moved on, so every message of it up to there exists.
    pub fn follow_advance(&mut self, advance: &AdvanceSeries) {
        self.trace.count("series_advanced");
        let Ok(id) = MessageId::from_bytes(&advance.series_id) else { return };
        for number in advance.from + 1..=advance.to {
            let text = (u64::from(advance.practice_no), occurrence_key(&id, number));
            if self.oracle.changes.accepted.get(&text).copied().unwrap_or(0) != 1 {
                self.oracle.fail(format!("I10 series {id} moved to {} without message {number}", advance.to));
            }
        }
    }
}

impl Changes {
    /// In the order of the log: a message came into being. The text names the occurrence: twice is one too many.
    pub fn accepted(&mut self, accept: &Accept) -> Option<String> {
        let text = named(accept).filter(|(_, key)| key & OF_SERIES != 0)?;
        let count = self.accepted.entry(text).or_insert(0);
        *count += 1;
        (*count > 1).then(|| format!("I10 an occurrence of a series came into being {count} times"))
    }
}

/// What the key of a message named: (practice, key), as its text says. `None`: it has no key.
pub fn named(accept: &Accept) -> Option<(u64, u64)> {
    let (practice_no, rest) = accept.sealed_body.split_first_chunk::<8>()?;
    // A text that was changed goes on behind it.
    let key = rest.first_chunk::<8>()?;
    let text = (u64::from_be_bytes(*practice_no), u64::from_be_bytes(*key));
    (!accept.idempotency_index.is_empty()).then_some(text)
}

fn index(key: u64, purpose: u64) -> Bytes {
    [key.to_be_bytes(), purpose.to_be_bytes()].concat().into()
}
