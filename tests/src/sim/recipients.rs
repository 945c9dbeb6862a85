//! I10: what the messages of one recipient promise. Counted anew from the events of the canonical history.
//!
//! - An ordered message begins only when no ordered one of the same practice and recipient that was accepted before it waits or is in
//!   flight.
//! - Of the messages that were begun for a recipient on one day, and in one week, there are never more than the caps allow.
use super::settings::Settings;
use carillon_core::message::{holds_up, state_of};
use carillon_core::{MemTables, keys, query};
use carillon_proto::MessageId;
use carillon_proto::internal::{EventRecord, MessageStatus};
use carillon_proto::public::MessageState;
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

type Recipient = (u32, Bytes);

#[derive(Debug, Default)]
pub struct Recipients {
    ordered: BTreeMap<Recipient, BTreeSet<MessageId>>,
    begun: BTreeMap<Recipient, BTreeMap<u32, BTreeSet<MessageId>>>,
}

impl Recipients {
    /// A lost cluster was restored: only what its backup knows counts.
    pub fn restored<'a>(&mut self, tables: impl Iterator<Item = &'a MemTables>) {
        *self = Self::default();
        for tables in tables {
            for id in tables.rows().keys().filter_map(|key| keys::decode_payload(key)) {
                let Ok(Some((payload, status))) = query::message(tables, &id) else { continue };
                let recipient = payload.accept.map(|accept| accept.recipient_index).unwrap_or_default();
                let recipient = (status.practice_no, recipient);
                if status.ordered && holds_up(state_of(&status)) {
                    self.ordered.entry(recipient.clone()).or_default().insert(id);
                }
                if status.counted_day > 0 {
                    let days = self.begun.entry(recipient).or_default();
                    days.entry(status.counted_day).or_default().insert(id);
                }
            }
        }
    }

    pub fn event(
        &mut self,
        event: &EventRecord,
        status: &MessageStatus,
        (recipient, ordered): (Bytes, bool),
        caps: &Settings,
    ) -> Result<(), String> {
        let Ok(id) = MessageId::from_bytes(&event.message_id) else { return Ok(()) };
        let state = MessageState::try_from(event.state).unwrap_or(MessageState::Unspecified);
        let recipient = (status.practice_no, recipient);
        if ordered {
            let open = self.ordered.entry(recipient.clone()).or_default();
            match holds_up(state) {
                true => open.insert(id),
                false => open.remove(&id),
            };
            if state == MessageState::InFlight && open.first() != Some(&id) {
                return Err(format!("I10 ordered message {id} begun before {:?}", open.first()));
            }
        }
        if state == MessageState::InFlight && status.counted_day > 0 {
            let days = self.begun.entry(recipient).or_default();
            let day = status.counted_day;
            days.entry(day).or_default().insert(id);
            let of_week = days.range(day.saturating_sub(6)..=day).map(|(_, ids)| ids.len()).sum::<usize>();
            let of_day = days[&day].len();
            let over = |cap: u32, begun: usize| cap > 0 && begun > cap as usize;
            if over(caps.per_day, of_day) || over(caps.per_week, of_week) {
                return Err(format!("I10 message {id}: {of_day} of the day and {of_week} of the week begun"));
            }
        }
        Ok(())
    }
}
