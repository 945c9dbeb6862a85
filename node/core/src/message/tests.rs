//! The table of transitions, written a second time as pictures of rows, pair by pair.
use super::*;

fn all() -> impl Iterator<Item = MessageState> {
    (0..=12).map(|n| MessageState::try_from(n).unwrap())
}

/// Columns: Unspecified, Accepted, Waiting, InFlight, Submitted, Unknown, Delivered, Undelivered, Expired, Canceled,
/// Rejected, OptedOut, Dead.
const TABLE: [(MessageState, &str); 13] = [
    (MessageState::Unspecified, ".xx..x......."),
    (MessageState::Accepted, "..xx....xx.x."),
    (MessageState::Waiting, "..xxxxxxxxxx."),
    (MessageState::InFlight, "..x.xxxxxxxxx"),
    (MessageState::Submitted, "......xx....."),
    (MessageState::Unknown, "..x.x.xxxxxxx"),
    (MessageState::Delivered, "............."),
    (MessageState::Undelivered, "............."),
    (MessageState::Expired, "............."),
    (MessageState::Canceled, "............."),
    (MessageState::Rejected, "............."),
    (MessageState::OptedOut, "............."),
    (MessageState::Dead, "............."),
];

#[test]
fn every_pair_of_states_is_as_drawn() {
    assert!(MessageState::try_from(13).is_err(), "a new state needs a row here");
    for (from, row) in TABLE {
        for (to, mark) in all().zip(row.bytes()) {
            assert_eq!(legal(from, to), mark == b'x', "{from:?} to {to:?}");
        }
    }
}

#[test]
fn ranks_never_fall() {
    for from in all() {
        for to in all().filter(|to| legal(from, *to)) {
            assert!(rank(from) <= rank(to), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn final_states_lead_nowhere_and_all_others_reach_one() {
    for from in all() {
        assert_eq!(is_final(from), all().all(|to| !legal(from, to)), "{from:?}");
        let mut reached = vec![from];
        let mut next = 0;
        while let Some(state) = reached.get(next).copied() {
            reached.extend(all().filter(|to| legal(state, *to) && !reached.contains(to)).collect::<Vec<_>>());
            next += 1;
        }
        assert!(reached.iter().any(|s| is_final(*s)), "{from:?}");
    }
}

#[test]
fn attempts_are_bounded_and_an_unresolved_one_is_kept() {
    let id = MessageId::new(1, carillon_proto::Slot::new(1).unwrap(), 1);
    let mut message = Message::new(id, MessageStatus::default());
    for number in 1..=100 {
        let outcome = if number == 1 { Outcome::Ambiguous } else { Outcome::Throttled } as i32;
        assert_eq!(next_attempt_no(&message.status), number);
        message.push_attempt(AttemptRecord { number, outcome, ..Default::default() });
    }
    let kept: Vec<u32> = message.status.attempts.iter().map(|a| a.number).collect();
    assert_eq!(kept.len(), ATTEMPTS_KEPT_MAX);
    assert_eq!((kept[0], kept[1], kept[15]), (1, 86, 100));
}
