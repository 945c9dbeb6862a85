//! Every kind of broken promise is planted once and must be found, and nothing else.

use super::*;
use crate::carrier::Received;

/// Two messages in each state, seen the same by all three.
struct World {
    acks: Acks,
    listed: Vec<Listed>,
    truth: Truth,
}

const STATES: [MessageState; 8] = [
    MessageState::Delivered,
    MessageState::Undelivered,
    MessageState::Submitted,
    MessageState::Unknown,
    MessageState::Expired,
    MessageState::Canceled,
    MessageState::Rejected,
    MessageState::Dead,
];
const EXPIRES_MS: i64 = 50_000;

fn world() -> World {
    let mut world = World { acks: Acks::default(), listed: Vec::new(), truth: Truth::default() };
    for (n, state) in STATES.iter().chain(&STATES).enumerate() {
        let (id, truth_key) = (format!("id-{n}"), n as u128);
        world.acks.accepted.push(Acknowledged {
            id: id.clone(),
            truth_key,
            parts: Vec::new(),
            class: "reminder".to_owned(),
            ..Acknowledged::default()
        });
        if *state == MessageState::Canceled {
            world.acks.canceled.push(id.clone());
        }
        let lost_answers = u32::from(*state == MessageState::Unknown);
        let reason = if lost_answers > 0 { "answer_timeout" } else { "-" }.to_owned();
        world.listed.push(Listed {
            id,
            class: "reminder".to_owned(),
            practice: "hill".to_owned(),
            state: *state,
            reason,
            expires_at_ms: Some(EXPIRES_MS),
            lost_answers,
            carriers: vec!["first".to_owned()],
        });
        let receipt = match state {
            MessageState::Delivered => Some("DELIVRD"),
            MessageState::Undelivered => Some("UNDELIV"),
            MessageState::Submitted => None,
            // The carrier has one of the two that are held.
            MessageState::Unknown if n < STATES.len() => None,
            _ => continue,
        };
        let state = receipt.map(str::to_owned);
        world.truth.received.insert(
            truth_key,
            Received { accepted: 1, arrivals: 1, last_arrival_ms: 1_000, state, ..Received::default() },
        );
        world.truth.messages += 1;
    }
    world
}

impl World {
    fn compare(&self) -> Ledger {
        compare(&self.acks, &self.listed, &self.truth)
    }

    /// The index of the first message in `state`.
    fn at(&self, state: MessageState) -> usize {
        self.listed.iter().position(|entry| entry.state == state).unwrap()
    }

    fn received(&mut self, at: usize) -> &mut Received {
        self.truth.received.entry(at as u128).or_default()
    }

    /// Exactly one finding, with the id of the message at `at`.
    fn assert_found(&self, finding: Finding, at: usize) {
        let ledger = self.compare();
        let found: Vec<_> = ledger.findings.iter().map(|(finding, found)| (*finding, found.count)).collect();
        assert_eq!(found, [(finding, 1)]);
        let shown = &ledger.findings[&finding].ids[0];
        assert_eq!(shown.split(' ').next(), Some(format!("id-{at}").as_str()), "{shown}");
        assert!(!ledger.is_clean());
    }
}

#[test]
fn three_accounts_that_agree_are_clean_and_fully_counted() {
    let ledger = world().compare();
    assert!(ledger.is_clean(), "{ledger}");
    assert_eq!((ledger.accepted, ledger.received, ledger.lost(), ledger.duplicates()), (16, 7, 0, 0));
    assert_eq!(ledger.states.values().flat_map(|reasons| reasons.values()).sum::<u64>(), 16);
    assert!(STATES.iter().all(|state| ledger.in_state(*state) == 2));
    let held: Vec<_> = ledger.held.iter().map(|held| (held.id.as_str(), held.carrier)).collect();
    assert_eq!(held, [("id-3", CarrierHas::All), ("id-11", CarrierHas::Nothing)]);
    let text = ledger.to_string();
    assert!(text.contains("lost 0   duplicates 0   over limit 0") && text.contains("CLEAN"), "{text}");
}

#[test]
fn a_message_that_the_demo_added_is_told_apart_from_the_day() {
    let line = |world: &World| {
        let text = world.compare().to_string();
        text.lines().find(|line| line.contains("acknowledged")).unwrap().to_owned()
    };
    let mut world = world();
    assert_eq!(line(&world), "  acknowledged               16");
    world.acks.of_quiet_hours = 1;
    assert_eq!(line(&world), "  acknowledged               16  (15 of the day, 1 of the quiet-hours line)");
    // Files of runs before have no such count.
    let mut old = serde_json::to_value(&world.acks).unwrap();
    old.as_object_mut().unwrap().remove("of_quiet_hours");
    assert_eq!(serde_json::from_value::<Acks>(old).unwrap().of_quiet_hours, 0);
}

#[test]
fn a_message_missing_in_the_list_is_lost() {
    let mut world = world();
    world.listed.remove(3);
    world.truth.received.remove(&3);
    world.assert_found(Finding::LostMissing, 3);
    assert_eq!(world.compare().lost(), 1);
}

#[test]
fn a_message_said_to_be_handed_over_that_the_carrier_never_saw_is_lost() {
    for state in [MessageState::Delivered, MessageState::Undelivered, MessageState::Submitted] {
        let mut world = world();
        let at = world.at(state);
        *world.received(at) = Received::default();
        world.assert_found(Finding::LostNotReceived, at);
    }
}

#[test]
fn a_second_copy_is_a_duplicate_in_every_class() {
    for class in ["reminder", "staff"] {
        let mut world = world();
        let at = world.at(MessageState::Delivered);
        world.acks.accepted[at].class = class.to_owned();
        world.listed[at].lost_answers = 1;
        world.received(at).accepted = 3;
        world.assert_found(Finding::Duplicate, at);
        let ledger = world.compare();
        let by_policy = if class == "staff" { 2 } else { 0 };
        assert_eq!((ledger.extra_copies, ledger.extra_copies_by_class_policy), (2, by_policy));
    }
}

#[test]
fn an_arrival_after_expiry_is_found_and_one_within_the_slack_is_not() {
    let mut world = world();
    let at = world.at(MessageState::Delivered);
    world.received(at).last_arrival_ms = EXPIRES_MS + EXPIRY_SLACK_MS;
    assert!(world.compare().is_clean());
    world.received(at).last_arrival_ms += 1;
    world.assert_found(Finding::SentAfterExpiry, at);
}

#[test]
fn a_canceled_message_that_the_carrier_has_is_found_even_after_a_lost_answer() {
    for lost_answers in [0, 1] {
        let mut world = world();
        let at = world.at(MessageState::Canceled);
        world.listed[at].lost_answers = lost_answers;
        world.received(at).accepted = 1;
        world.assert_found(Finding::CanceledButReceived, at);
    }
}

#[test]
fn a_cancel_in_time_must_be_kept() {
    let mut world = world();
    let at = world.at(MessageState::Delivered);
    world.acks.canceled.push(format!("id-{at}"));
    world.assert_found(Finding::CancelNotKept, at);
}

#[test]
fn not_handed_over_but_received_needs_a_lost_answer_to_be_explained() {
    for state in [MessageState::Expired, MessageState::Rejected, MessageState::Dead] {
        let mut world = world();
        let at = world.at(state);
        world.received(at).accepted = 1;
        world.assert_found(Finding::ReceivedButNotSaid, at);
        world.listed[at].lost_answers = 1;
        assert!(world.compare().is_clean(), "{state:?}");
    }
}

#[test]
fn parts_of_a_long_message_count_where_nothing_may_be_handed_over() {
    for (state, finding) in [
        (MessageState::Canceled, Finding::CanceledButReceived),
        (MessageState::Expired, Finding::ReceivedButNotSaid),
        (MessageState::Rejected, Finding::ReceivedButNotSaid),
    ] {
        let mut world = world();
        let at = world.at(state);
        world.acks.accepted[at].parts = vec![[1, 1], [1, 2]];
        assert!(world.compare().is_clean());
        world.truth.parts.insert([1, 2], 1);
        world.assert_found(finding, at);
    }
    let mut world = world();
    let held = world.listed.iter().rposition(|entry| entry.state == MessageState::Unknown).unwrap();
    world.acks.accepted[held].parts = vec![[1, 1], [1, 2]];
    world.truth.parts.insert([1, 1], 1);
    world.truth.received.remove(&(held as u128));
    let ledger = world.compare();
    assert!(ledger.is_clean());
    assert_eq!(ledger.held_by()[&("answer_timeout", CarrierHas::Parts)], 1);
    // Said to be handed over, but a part is missing: that message never reached the phone whole.
    world.listed[held].state = MessageState::Submitted;
    world.assert_found(Finding::LostNotReceived, held);
}

#[test]
fn a_class_that_gives_up_after_a_lost_answer_is_explained() {
    let mut world = world();
    let at = world.at(MessageState::Undelivered);
    world.listed[at].reason = ABANDONED.to_owned();
    for received in [
        Received::default(),
        Received {
            accepted: 1,
            arrivals: 1,
            last_arrival_ms: 1,
            state: Some("DELIVRD".to_owned()),
            ..Received::default()
        },
    ] {
        *world.received(at) = received;
        assert!(world.compare().is_clean());
    }
}

#[test]
fn a_receipt_that_says_otherwise_is_found() {
    let mut world = world();
    let (delivered, undelivered) = (world.at(MessageState::Delivered), world.at(MessageState::Undelivered));
    // An interim notice that came last contradicts nothing.
    world.received(delivered).state = Some("ENROUTE".to_owned());
    assert!(world.compare().is_clean());
    world.received(delivered).state = Some("UNDELIV".to_owned());
    world.assert_found(Finding::ReceiptContradicted, delivered);
    world.received(delivered).state = None;
    world.received(undelivered).state = Some("DELIVRD".to_owned());
    world.assert_found(Finding::ReceiptContradicted, undelivered);
}

#[test]
fn what_is_not_settled_is_found() {
    for state in [MessageState::Accepted, MessageState::Waiting, MessageState::InFlight] {
        let mut world = world();
        let at = world.at(MessageState::Expired);
        world.listed[at].state = state;
        world.assert_found(Finding::Unsettled, at);
    }
}

#[test]
fn each_held_message_is_shown_with_its_reason_and_what_the_carrier_has() {
    let text = world().compare().to_string();
    for line in [
        "  held                        2",
        "    answer_timeout            1  the carrier has it",
        "      id-3  reminder  hill  answer_timeout  the carrier has it",
        "      id-11  reminder  hill  answer_timeout  the carrier does not have it",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in {text}");
    }
    assert!(!text.contains(" more"), "{text}");
    // Very many: some of them, and how many there are.
    let mut ledger = world().compare();
    ledger.held = vec![ledger.held[0].clone(); HELD_SHOWN_MAX + 3];
    let text = ledger.to_string();
    assert_eq!(text.lines().filter(|line| line.starts_with("      id-3 ")).count(), HELD_SHOWN_MAX);
    assert!(text.contains("      and 3 more\n"), "{text}");
}

#[test]
fn a_held_message_without_a_reason_is_found() {
    let mut world = world();
    let at = world.at(MessageState::Unknown);
    world.listed[at].reason = NO_REASON.to_owned();
    world.assert_found(Finding::HeldWithoutReason, at);
}

#[test]
fn messages_that_nobody_acknowledged_are_found_on_both_sides() {
    let mut world = world();
    let stranger = Listed { id: "id-99".to_owned(), ..world.listed[4].clone() };
    world.listed.push(stranger);
    world.assert_found(Finding::NeverAcknowledged, 99);
    world.listed.pop();
    world.received(77).accepted = 1;
    let found = world.compare().findings;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [Finding::ReceivedFromNowhere]);
    // An arrival that the carrier refused is no message.
    world.received(77).accepted = 0;
    assert!(world.compare().is_clean());
}

#[test]
fn limits_keys_surprises_and_incomplete_truth_spoil_the_verdict() {
    let spoil: [fn(&mut World); 4] = [
        |w| w.truth.violations = 1,
        |w| w.truth.unrecorded = 1,
        |w| w.acks.repeated_with_other_id.push("id-1".to_owned()),
        |w| {
            w.acks.surprises.insert("Internal".to_owned(), 1);
        },
    ];
    for spoil in spoil {
        let mut world = world();
        spoil(&mut world);
        assert!(!world.compare().is_clean());
    }
}

#[test]
fn acknowledgements_survive_their_file_form() {
    let acks = world().acks;
    let back: Acks = serde_json::from_str(&serde_json::to_string(&acks).unwrap()).unwrap();
    assert_eq!((back.accepted, back.canceled), (acks.accepted, acks.canceled));
}

#[test]
fn a_listed_message_keeps_ids_states_and_reasons_only() {
    let message = Message {
        message_id: "id-1".to_owned(),
        recipient: "+12125550123".to_owned(),
        state: MessageState::Waiting as i32,
        waiting_reason: carillon_proto::public::WaitingReason::Backoff as i32,
        expires_at: Some(crate::sample_day::timestamp(1_234)),
        attempts: vec![carillon_proto::public::Attempt {
            outcome: Outcome::Ambiguous as i32,
            ..Default::default()
        }],
        ..Default::default()
    };
    let listed = Listed::of(&message);
    assert_eq!(
        (listed.reason.as_str(), listed.expires_at_ms, listed.lost_answers),
        ("BACKOFF", Some(1_234), 1)
    );
    assert!(!format!("{listed:?}").contains("555"));
}

#[test]
fn a_message_that_is_due_later_waits_and_must_not_leave_before() {
    let mut world = world();
    let at = world.at(MessageState::Delivered);
    world.listed[at].state = MessageState::Waiting;
    world.acks.accepted[at].stays = true;
    world.truth.received.remove(&(at as u128));
    assert!(world.compare().is_clean());
    world.acks.accepted[at].stays = false;
    world.acks.accepted[at].not_before_ms = Some(9_000);
    let early = Received { arrivals: 1, first_arrival_us: 8_999_000, ..Received::default() };
    world.truth.received.insert(at as u128, early);
    assert_eq!(world.compare().count(Finding::SentBeforeDue), 1);
    world.received(at).first_arrival_us = 9_000_000;
    assert_eq!(world.compare().count(Finding::SentBeforeDue), 0);
}

#[test]
fn an_ordered_message_may_not_overtake_one_that_was_acknowledged_before_it_was_sent() {
    let order = |sent_us, acked_us| Some(Order { group: 1, sent_us, acked_us });
    let compared = |second_sent_us, second_accepted_us| {
        let mut world = world();
        let delivered: Vec<usize> =
            (0..2 * STATES.len()).filter(|at| world.listed[*at].state == MessageState::Delivered).collect();
        world.acks.accepted[delivered[0]].order = order(10, 20);
        world.acks.accepted[delivered[1]].order = order(second_sent_us, second_sent_us + 10);
        world.received(delivered[0]).first_accept_us = 500;
        world.received(delivered[1]).first_accept_us = second_accepted_us;
        world.compare().count(Finding::OutOfOrder)
    };
    assert_eq!(compared(20, 499), 1);
    assert_eq!(compared(20, 501), 0);
    // Both were on their way together: either may be first.
    assert_eq!(compared(19, 499), 0);
}

#[test]
fn a_message_that_went_to_another_carrier_is_told_and_one_that_both_have_is_a_duplicate() {
    let mut world = world();
    world.listed[0].carriers = vec!["first".to_owned(), "second".to_owned()];
    let ledger = compare(&world.acks, &world.listed, &world.truth);
    assert_eq!(ledger.failovers, BTreeMap::from([("first to second".to_owned(), 1)]));
    assert_eq!(ledger.by_carrier["second"], 1);
    let text = ledger.to_string();
    assert!(text.contains("left by the other: first to second 1"), "{text}");
    assert_eq!(ledger.duplicates(), 0);
    let mut second = Truth::default();
    let taken =
        Received { accepted: 1, arrivals: 1, state: Some("DELIVRD".to_owned()), ..Received::default() };
    second.received.insert(world.acks.accepted[0].truth_key, taken);
    world.truth.merge(second);
    assert_eq!(compare(&world.acks, &world.listed, &world.truth).duplicates(), 1);
}
