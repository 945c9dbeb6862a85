//! Every command meets a message in every state: one table, one check.
mod support;

use carillon_core::message::{is_final, legal};
use carillon_core::{CommandResult, keys};
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{ReceiptState, UnknownPolicy, UnknownVerdict};
use carillon_proto::public::{MessageState, Outcome};
use support::*;

/// How message 1 comes to be where the command finds it.
///
/// `-` does not exist, `A` ACCEPTED, `W` WAITING for its schedule, `w` WAITING and due, `b` WAITING after a transient
/// failure, `r` WAITING to be sent again after a lost answer, `F` IN_FLIGHT, `S` SUBMITTED, `U` UNKNOWN, `D` DELIVERED,
/// `N` UNDELIVERED, `E` EXPIRED, `C` CANCELED, `R` REJECTED, `O` OPTED_OUT, `X` DEAD.
fn bring(world: &mut World, setup: char) {
    let policy = if setup == 'r' { UnknownPolicy::ResendOnce } else { UnknownPolicy::Hold };
    let attempts_max = if setup == 'X' { 1 } else { 3 };
    let create = accept_with(1, |a| {
        let mut retry = with_policy(policy);
        retry.attempts_max = attempts_max;
        a.retry = Some(retry);
        a.not_before_ms = if setup == 'W' { START_MS + 60_000 } else { 0 };
    });
    match setup {
        '-' => return,
        _ => world.done(create),
    }
    let attempted = |world: &mut World, answer: Outcome| {
        world.begin(1);
        world.done(outcome(1, 1, answer, &["ref-1"]));
    };
    match setup {
        'A' | 'W' => {}
        'w' => world.done(hold_back(1, START_MS)),
        'b' => attempted(world, Outcome::Transient),
        'r' | 'U' => attempted(world, Outcome::Ambiguous),
        'F' => world.begin(1),
        'S' => attempted(world, Outcome::Accepted),
        'D' | 'N' => {
            attempted(world, Outcome::Accepted);
            let state = if setup == 'D' { ReceiptState::Delivered } else { ReceiptState::Undelivered };
            world.done(receipt(&["ref-1"], state));
        }
        'E' => {
            world.now_ms += 3_600_000;
            world.done(expire(1));
            // The clock of the tables stays there.
        }
        'C' => world.done(cancel(1)),
        'R' => attempted(world, Outcome::RejectedNumber),
        'O' => attempted(world, Outcome::OptedOut),
        'X' => attempted(world, Outcome::Transient),
        _ => unreachable!(),
    }
    if matches!(setup, 'b' | 'r') {
        world.now_ms = world.status(1).due_ms;
    }
}

fn state_of(letter: char) -> MessageState {
    match letter {
        '-' => MessageState::Unspecified,
        'A' => MessageState::Accepted,
        'W' | 'w' | 'b' | 'r' => MessageState::Waiting,
        'F' => MessageState::InFlight,
        'S' => MessageState::Submitted,
        'U' => MessageState::Unknown,
        'D' => MessageState::Delivered,
        'N' => MessageState::Undelivered,
        'E' => MessageState::Expired,
        'C' => MessageState::Canceled,
        'R' => MessageState::Rejected,
        'O' => MessageState::OptedOut,
        'X' => MessageState::Dead,
        _ => unreachable!(),
    }
}

const SETUPS: &str = "-AWwbrFSUDNECROX";

/// One row for each command, one letter for each setup above it: the state after it, `=` for "done, same state", `!` for
/// "refused, nothing changed".
const TABLE: [(&str, &str); 20] = [
    ("setup              ", SETUPS),
    ("accept again       ", "A!!!!!!!!!!!!!!!"),
    ("cancel             ", "!CCCCU=========="),
    ("cancel by reference", "=CCCCU=========="),
    ("begin              ", "!F!FFF!!!!!!!!!!"),
    ("outcome accepted   ", "!!!!=SS=S==!!==="),
    ("outcome not sent   ", "!!!!==W=W==!!==="),
    ("receipt enroute    ", "!!!!=S==S======="),
    ("receipt delivered  ", "!!!!DDDDD======="),
    ("receipt undelivered", "!!!!=NNNN======="),
    ("expire             ", "!EEEEU!!!!!!!!!!"),
    ("leader start       ", "======U========="),
    ("hold back          ", "!W====!!!!!!!!!!"),
    ("opt out            ", "=OOOOU=========="),
    ("update             ", "=W===U=========="),
    ("update by cancel   ", "=CCCCU=========="),
    ("drop dead letter   ", "!!!!!!!!!!!!!!!="),
    ("unknown: delivered ", "!!!!!!!!D!!!!!!!"),
    ("unknown: failed    ", "!!!!!!!!N!!!!!!!"),
    ("unknown: send again", "!!!!!!!!W!!!!!!!"),
];

fn command(world: &mut World, name: &str) -> Kind {
    match name.trim() {
        "accept again" => accept(1),
        "cancel" => cancel(1),
        "cancel by reference" => cancel_reference(1),
        "begin" => {
            let exists = world.state(1) != MessageState::Unspecified;
            let attempt_no =
                if exists { carillon_core::message::next_attempt_no(&world.status(1)) } else { 1 };
            begin(1, attempt_no, world.term)
        }
        "outcome accepted" => outcome(1, 1, Outcome::Accepted, &["ref-1"]),
        "outcome not sent" => outcome(1, 1, Outcome::NotSent, &[]),
        "receipt enroute" => receipt_for(1, &[], ReceiptState::Enroute),
        "receipt delivered" => receipt_for(1, &[], ReceiptState::Delivered),
        "receipt undelivered" => receipt_for(1, &[], ReceiptState::Undelivered),
        "expire" => {
            world.now_ms = START_MS + 3_600_000;
            expire(1)
        }
        "leader start" => {
            world.term += 1;
            leader_start(world.term)
        }
        "opt out" => opt_out(PRACTICE, 200),
        "update" => update(1, 7, |u| {
            (u.not_before_ms, u.sealed_body, u.segments) = (world.now_ms + 60_000, index(9), 2);
        }),
        "update by cancel" => update(1, 7, |u| u.cancel = true),
        "drop dead letter" => drop_dead_letter(1, "wrong_number"),
        "unknown: delivered" => resolve_unknown(1, UnknownVerdict::Delivered, "carrier_portal"),
        "unknown: failed" => resolve_unknown(1, UnknownVerdict::Failed, "carrier_portal"),
        "unknown: send again" => resolve_unknown(1, UnknownVerdict::SendAgain, "asked"),
        "hold back" => hold_back(1, world.now_ms + 1_000),
        _ => unreachable!(),
    }
}

fn check(name: &str, setup: char, expected: char) {
    let mut world = World::new();
    bring(&mut world, setup);
    let before = world.state(1);
    assert_eq!(before, state_of(setup), "setup {setup}");
    let kind = command(&mut world, name);
    let status_before = world.tables.rows().get(&keys::status(&id(1))).cloned();
    let result = world.one(kind);
    let after = world.state(1);
    let context = format!("{name} in {setup}: {result:?}, {before:?} to {after:?}");
    let refused = matches!(result, CommandResult::Refused(_));
    assert_eq!(refused, expected == '!', "{context}");
    match expected {
        '!' => {
            assert_eq!(after, before, "{context}");
            let status_after = world.tables.rows().get(&keys::status(&id(1))).cloned();
            assert_eq!(status_after, status_before, "{context}");
        }
        '=' => assert_eq!(after, before, "{context}"),
        letter => assert_eq!(after, state_of(letter), "{context}"),
    }
    assert!(after == before || legal(before, after), "{context}");
    if let CommandResult::Canceled(outcomes) = &result {
        assert_eq!(outcomes.len(), usize::from(setup != '-'), "{context}");
        for o in outcomes {
            assert_eq!((o.message_id, o.state), (id(1), after), "{context}");
            assert_eq!(o.canceled, after == MessageState::Canceled, "{context}");
        }
    }
    if is_final(before) {
        assert_eq!(after, before, "{context}");
    }
}

#[test]
fn every_command_does_what_the_table_says() {
    for (name, row) in &TABLE[1..] {
        assert_eq!(row.len(), SETUPS.len(), "{name}");
        for (setup, expected) in SETUPS.chars().zip(row.chars()) {
            check(name, setup, expected);
        }
    }
}

#[test]
fn the_table_has_every_state() {
    for n in 0..=12 {
        let state = MessageState::try_from(n).unwrap();
        assert!(SETUPS.chars().any(|s| state_of(s) == state), "{state:?}");
    }
}
