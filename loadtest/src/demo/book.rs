//! What the health system remembers of its day: which message got which id, and what it was told.
//!
//! Owns: turning answers into [`Acks`]. Bounds: one entry for each line of the day.

use std::collections::{BTreeMap, HashMap};

use carillon_proto::google::rpc::Status as RpcStatus;
use carillon_proto::public::{AcceptedMessage, CancelResult};
use carillon_proto::sms;

use crate::carrier::part_key;
use crate::client::reason_of_item;
use crate::ledger::{Acknowledged, Acks, state_name};
use crate::sample_day::DayMessage;
use crate::smsc::{TruthKey, truth_key};

/// Which line of the day a submitted message stands for.
#[derive(Clone)]
pub enum Origin {
    Message(Box<DayMessage>),
    /// A repetition of the message with this key.
    Again(String),
}

/// The memory of a run.
#[derive(Default)]
pub struct Book {
    pub acks: Acks,
    pub segments: u64,
    ids: HashMap<String, String>,
    /// Ids that repetitions were told, by key.
    told_again: Vec<(String, String)>,
    pub answered: u64,
}

/// The keys of the parts of a long message; none for a short one.
pub fn part_keys(to: &str, text: &str) -> Vec<[u64; 2]> {
    let (key, parts) = (TruthKey::default(), sms::split(text));
    let destination = key.number(to.trim_start_matches('+').as_bytes());
    match parts.len() {
        0 | 1 => Vec::new(),
        _ => parts.iter().map(|part| part_key(destination, key.octets(part))).collect(),
    }
}

fn add(counts: &mut BTreeMap<String, u64>, what: String) {
    *counts.entry(what).or_insert(0) += 1;
}

impl Book {
    /// The id of a message, once it is known.
    pub fn id_of(&self, key: &str) -> Option<String> {
        self.ids.get(key).cloned()
    }

    /// Takes down one answer. `start_ms` is when the day began.
    pub fn answer(&mut self, origin: &Origin, result: &Result<AcceptedMessage, RpcStatus>, start_ms: i64) {
        self.answered += 1;
        match (origin, result) {
            (Origin::Message(message), Ok(accepted)) => self.accepted(message, accepted, start_ms),
            (Origin::Message(message), Err(error)) => {
                let reason = reason_of_item(error);
                if message.refuse.as_ref() == Some(&reason) {
                    add(&mut self.acks.refused, reason);
                } else {
                    add(&mut self.acks.surprises, format!("refused with {reason}"));
                }
            }
            (Origin::Again(key), Ok(accepted)) => {
                self.acks.repeated += 1;
                self.told_again.push((key.clone(), accepted.message_id.clone()));
            }
            (Origin::Again(_), Err(error)) => {
                add(&mut self.acks.surprises, format!("repetition refused with {}", reason_of_item(error)));
            }
        }
    }

    fn accepted(&mut self, message: &DayMessage, accepted: &AcceptedMessage, start_ms: i64) {
        if let Some(reason) = &message.refuse {
            // It counts as a message all the same: whatever is acknowledged must be found later.
            add(&mut self.acks.surprises, format!("accepted, although {reason} was due"));
        }
        self.segments += u64::from(accepted.segments);
        self.ids.insert(message.key.clone(), accepted.message_id.clone());
        self.acks.accepted.push(Acknowledged {
            id: accepted.message_id.clone(),
            truth_key: truth_key(&TruthKey::default(), &message.to, &message.text),
            parts: part_keys(&message.to, &message.text),
            class: message.class.clone(),
            expires_at_ms: message.expires_ms.map(|offset_ms| start_ms + offset_ms),
            ..Acknowledged::default()
        });
    }

    /// Takes down the answer to a cancel. A message that was taken back before says CANCELED again.
    pub fn cancel_answer(&mut self, result: &CancelResult) {
        if let Some(error) = &result.error {
            add(&mut self.acks.surprises, format!("cancel failed with {}", reason_of_item(error)));
        } else if result.canceled {
            if !self.acks.canceled.contains(&result.message_id) {
                self.acks.canceled.push(result.message_id.clone());
            }
        } else {
            add(&mut self.acks.too_late, state_name(result.state()).to_owned());
        }
    }

    pub fn surprise(&mut self, what: String) {
        add(&mut self.acks.surprises, what);
    }

    /// Closes the book: compares what repetitions were told with the first answers.
    pub fn close(&mut self) {
        for (key, id) in std::mem::take(&mut self.told_again) {
            if self.ids.get(&key) != Some(&id) {
                self.acks.repeated_with_other_id.push(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::errors;
    use carillon_proto::public::{ErrorReason, MessageState};

    fn message(key: &str, refuse: Option<&str>) -> Origin {
        Origin::Message(Box::new(DayMessage {
            key: key.to_owned(),
            to: "+12125550123".to_owned(),
            text: "hello".to_owned(),
            class: "reminder".to_owned(),
            expires_ms: Some(500),
            refuse: refuse.map(str::to_owned),
            ..Default::default()
        }))
    }

    fn accepted(id: &str) -> Result<AcceptedMessage, RpcStatus> {
        Ok(AcceptedMessage { message_id: id.to_owned(), segments: 2, ..Default::default() })
    }

    fn refused(reason: ErrorReason) -> Result<AcceptedMessage, RpcStatus> {
        Err(errors::to_rpc(&errors::status(reason, "")))
    }

    #[test]
    fn answers_are_expected_or_surprises() {
        let mut book = Book::default();
        book.answer(&message("a", None), &accepted("id-a"), 1_000);
        book.answer(&message("b", Some("INVALID_FIELDS")), &refused(ErrorReason::InvalidFields), 1_000);
        assert!(book.acks.surprises.is_empty());
        assert_eq!(book.acks.refused, BTreeMap::from([("INVALID_FIELDS".to_owned(), 1)]));
        assert_eq!((book.acks.accepted[0].expires_at_ms, book.segments), (Some(1_500), 2));
        book.answer(&message("c", None), &refused(ErrorReason::PracticeNotFound), 1_000);
        book.answer(&message("d", Some("INVALID_FIELDS")), &refused(ErrorReason::Internal), 1_000);
        book.answer(&message("e", Some("INVALID_FIELDS")), &accepted("id-e"), 1_000);
        assert_eq!(book.acks.surprises.values().sum::<u64>(), 3);
        assert_eq!((book.acks.accepted.len(), book.answered), (2, 5));
    }

    #[test]
    fn a_repetition_must_be_told_the_first_id() {
        let mut book = Book::default();
        // The repetition may be answered before the message itself.
        book.answer(&Origin::Again("a".to_owned()), &accepted("id-a"), 0);
        book.answer(&message("a", None), &accepted("id-a"), 0);
        book.answer(&message("b", None), &accepted("id-b"), 0);
        book.answer(&Origin::Again("b".to_owned()), &accepted("id-x"), 0);
        book.close();
        assert_eq!(book.acks.repeated_with_other_id, ["id-x"]);
        assert_eq!(book.acks.repeated, 2);
    }

    #[test]
    fn cancels_are_in_time_once_or_too_late() {
        let mut book = Book::default();
        let canceled = CancelResult { message_id: "id-a".to_owned(), canceled: true, ..Default::default() };
        book.cancel_answer(&canceled);
        book.cancel_answer(&canceled);
        let late = CancelResult { state: MessageState::Delivered as i32, ..Default::default() };
        book.cancel_answer(&late);
        assert_eq!(book.acks.canceled, ["id-a"]);
        assert_eq!(book.acks.too_late, BTreeMap::from([("DELIVERED".to_owned(), 1)]));
    }
}
