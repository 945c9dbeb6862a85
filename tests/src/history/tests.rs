//! Bad histories: each rule finds the one fault that is planted for it, and a good history passes all of them.

use super::*;
use carillon_loadtest::carrier::Received;
use carillon_loadtest::ledger::Listed;
use carillon_proto::public::{MessageState as S, Outcome};

const PRACTICE: &str = "north";

fn submit(op: u64, at: u64, key: &str, variant: u32, answer: Option<Answer>) -> Op {
    let call = Call::Submit {
        practice: PRACTICE.to_owned(),
        key: key.to_owned(),
        variant,
        truth: format!("{:032x}", truth_of(key)),
    };
    done(op, at, call, answer)
}

fn truth_of(key: &str) -> u128 {
    key.bytes().fold(7, |hash, byte| hash * 31 + u128::from(byte))
}

/// Takes 5 us.
fn done(op: u64, at: u64, call: Call, answer: Option<Answer>) -> Op {
    let end = answer.map_or(End::Info, |answer| End::Ok { at_us: at + 5, answer });
    Op { op, begin_us: at, call, end }
}

fn accepted(id: &str, duplicate: bool) -> Option<Answer> {
    Some(Answer::Accepted { id: id.to_owned(), duplicate })
}

fn get(op: u64, at: u64, id: &str, answer: Answer) -> Op {
    done(op, at, Call::Get { id: id.to_owned() }, Some(answer))
}

fn seen(op: u64, at: u64, id: &str, state: S) -> Op {
    get(op, at, id, Answer::Seen { state })
}

fn cancel(op: u64, at: u64, id: &str, canceled: bool, state: S) -> Op {
    done(op, at, Call::Cancel { id: id.to_owned() }, Some(Answer::CancelAnswer { canceled, state }))
}

fn present(id: &str, key: &str, state: S, attempts: &[(u32, Outcome)]) -> Present {
    let listed = Listed {
        id: id.to_owned(),
        class: "reminder".to_owned(),
        practice: PRACTICE.to_owned(),
        state,
        reason: if state == S::Unknown { "answer_timeout" } else { "-" }.to_owned(),
        expires_at_ms: None,
        lost_answers: 0,
        carriers: Vec::new(),
    };
    Present {
        listed,
        practice: PRACTICE.to_owned(),
        key: key.to_owned(),
        class: "reminder".to_owned(),
        attempts: attempts.to_vec(),
    }
}

fn feed(id: &str, steps: &[(S, u32)]) -> Vec<Feed> {
    let event = |(at, (state, attempt)): (usize, &(S, u32))| Feed {
        id: id.to_owned(),
        state: *state,
        attempt: *attempt,
        time_ms: at as i64,
    };
    steps.iter().enumerate().map(event).collect()
}

fn received(key: &str, accepted: u32, arrivals: u32) -> (u128, Received) {
    (truth_of(key), Received { accepted, arrivals, last_arrival_ms: 1, ..Received::default() })
}

fn replica(node: u64, index: u64, digest: u8) -> ReplicaDigest {
    ReplicaDigest { node, group: 3, index, digest: vec![digest] }
}

/// Message `a` is delivered at the second attempt, `b` is taken back, `c` has no answer but is there and held.
fn good() -> Evidence {
    let ops = vec![
        submit(1, 0, "ka", 0, accepted("a", false)),
        submit(2, 2, "ka", 0, accepted("a", true)),
        submit(3, 10, "ka", 1, Some(Answer::KeyReused)),
        submit(4, 20, "kb", 0, accepted("b", false)),
        submit(5, 20, "kc", 0, None),
        get(6, 18, "b", Answer::Missing),
        seen(7, 30, "a", S::InFlight),
        seen(8, 31, "a", S::Waiting),
        cancel(9, 40, "b", true, S::Canceled),
        seen(10, 41, "b", S::Accepted),
        cancel(11, 50, "a", false, S::Submitted),
        seen(12, 60, "b", S::Canceled),
        submit(13, 70, "kc", 0, accepted("c", true)),
    ];
    let listed = vec![
        present("a", "ka", S::Delivered, &[(1, Outcome::Throttled), (2, Outcome::Accepted)]),
        present("b", "kb", S::Canceled, &[]),
        present("c", "kc", S::Unknown, &[(1, Outcome::Ambiguous)]),
    ];
    let mut events = feed(
        "a",
        &[
            (S::Accepted, 0),
            (S::InFlight, 1),
            (S::Waiting, 1),
            (S::InFlight, 2),
            (S::Submitted, 2),
            (S::Delivered, 2),
        ],
    );
    events.extend(feed("b", &[(S::Accepted, 0), (S::Canceled, 0)]));
    events.extend(feed("c", &[(S::Accepted, 0), (S::InFlight, 1), (S::Unknown, 1)]));
    // After a break the feed says again what it had said.
    events.extend(feed("c", &[(S::Accepted, 0), (S::InFlight, 1)]));
    let mut truth = carillon_loadtest::carrier::Truth::default();
    truth.received.extend([received("ka", 1, 2), received("kc", 1, 1)]);
    truth.messages = 2;
    let replicas = vec![replica(1, 8, 1), replica(2, 8, 1), replica(3, 7, 2)];
    Evidence { ops, listed, events, truth, replicas }
}

/// The rules that a changed history breaks.
fn broken(change: impl FnOnce(&mut Evidence)) -> Vec<&'static str> {
    let mut evidence = good();
    change(&mut evidence);
    let mut rules: Vec<_> = check(&evidence).violations.into_iter().map(|v| v.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

#[test]
fn a_good_history_is_clean_and_counted() {
    let report = check(&good());
    assert_eq!(report.violations, []);
    assert_eq!((report.ops, report.uncertain, report.acknowledged, report.listed), (13, 1, 3, 3));
    assert_eq!((report.reads, report.attempts, report.events, report.at_carrier), (7, 3, 11, 2));
    assert!(report.to_string().ends_with("CLEAN") && !report.to_string().contains("NOT CLEAN"));
}

#[test]
fn a_lost_message_is_found() {
    let lost = |e: &mut Evidence| {
        e.listed.remove(1);
        e.events.retain(|event| event.id != "b");
    };
    assert_eq!(broken(lost), ["nothing acknowledged is lost"]);
    let mut evidence = good();
    lost(&mut evidence);
    assert_eq!(check(&evidence).lost, 1);
    let unsent = |e: &mut Evidence| drop(e.truth.received.remove(&truth_of("ka")));
    assert_eq!(broken(unsent), ["nothing acknowledged is lost"]);
}

#[test]
fn a_key_with_two_messages_is_found() {
    // Told to two callers.
    let two = |e: &mut Evidence| e.ops[1] = submit(2, 2, "ka", 0, accepted("b", true));
    assert!(broken(two).contains(&"one id per key"));
    // One of them was never told to anybody.
    let hidden = |e: &mut Evidence| {
        e.listed.push(present("d", "ka", S::Canceled, &[]));
        e.events.extend(feed("d", &[(S::Accepted, 0), (S::Canceled, 0)]));
    };
    assert!(broken(hidden).contains(&"one id per key"));
    // The same id, but made twice.
    let again = |e: &mut Evidence| e.ops[1] = submit(2, 2, "ka", 0, accepted("a", false));
    assert_eq!(broken(again), ["one id per key"]);
}

#[test]
fn another_text_under_a_key_is_found_and_so_is_a_refusal_without_one() {
    let other = |e: &mut Evidence| e.ops[2] = submit(3, 10, "ka", 1, accepted("a", true));
    assert_eq!(broken(other), ["another text is refused"]);
    let alone = |e: &mut Evidence| e.ops.push(submit(14, 80, "kb", 0, Some(Answer::KeyReused)));
    assert_eq!(broken(alone), ["refused for a reason"]);
    let odd = |e: &mut Evidence| {
        let (op, begin_us) = (14, 80);
        let call = e.ops[0].call.clone();
        e.ops.push(Op { op, begin_us, call, end: End::Fail { why: "INTERNAL".to_owned() } });
    };
    assert_eq!(broken(odd), ["errors are explained"]);
}

#[test]
fn reads_that_go_back_are_found_and_overlapping_ones_are_not() {
    let rule = ["reads are linearizable"];
    assert_eq!(broken(|e| e.ops.push(seen(14, 56, "a", S::Waiting))), rule);
    assert_eq!(broken(|e| e.ops.push(seen(14, 54, "a", S::Waiting))), [] as [&str; 0]);
    assert_eq!(
        broken(|e| e.ops.push(seen(14, 80, "b", S::Delivered))),
        ["reads are linearizable", "the list agrees with the reads"]
    );
    assert_eq!(broken(|e| e.ops.push(get(14, 26, "b", Answer::Missing))), rule);
    // It overlaps the submit, so either order is possible.
    assert_eq!(broken(|e| e.ops.push(get(14, 25, "b", Answer::Missing))), [] as [&str; 0]);
}

#[test]
fn a_list_that_contradicts_a_read_is_found() {
    let back = |e: &mut Evidence| e.ops.push(seen(14, 80, "c", S::Submitted));
    assert_eq!(broken(back), ["the list agrees with the reads"]);
}

#[test]
fn a_cancel_that_says_what_is_not_so_is_found() {
    let not_done = |e: &mut Evidence| e.ops.push(cancel(14, 80, "b", false, S::Canceled));
    assert_eq!(broken(not_done), ["a cancel says what it did"]);
    let waits = |e: &mut Evidence| e.ops.push(cancel(14, 19, "b", false, S::Accepted));
    assert_eq!(broken(waits), ["a cancel says what it did"]);
    // In time, and the carrier has it all the same.
    let kept = |e: &mut Evidence| e.truth.received.extend([received("kb", 1, 1)]);
    let rules = ["an attempt is sent once", "states are what the carrier saw"];
    assert_eq!(broken(kept), rules);
}

#[test]
fn messages_from_nowhere_are_found() {
    let unasked = |e: &mut Evidence| {
        e.listed.push(present("x", "kx", S::Canceled, &[]));
        e.events.extend(feed("x", &[(S::Accepted, 0), (S::Canceled, 0)]));
    };
    assert!(broken(unasked).contains(&"nothing from nowhere"));
    let unlisted = |e: &mut Evidence| e.events.extend(feed("x", &[(S::Accepted, 0)]));
    assert_eq!(broken(unlisted), ["nothing from nowhere"]);
    let at_carrier = |e: &mut Evidence| e.truth.received.extend([received("kx", 1, 1)]);
    assert_eq!(broken(at_carrier), ["states are what the carrier saw"]);
}

#[test]
fn an_attempt_that_two_terms_began_is_found() {
    let twice = |e: &mut Evidence| {
        let mut events = feed(
            "c",
            &[
                (S::Accepted, 0),
                (S::InFlight, 1),
                (S::Unknown, 1),
                (S::Waiting, 1),
                (S::InFlight, 1),
                (S::Unknown, 1),
            ],
        );
        e.events.retain(|event| event.id != "c");
        e.events.append(&mut events);
    };
    assert_eq!(broken(twice), ["an attempt is begun once"]);
    let unrecorded = |e: &mut Evidence| e.listed[2].attempts.clear();
    assert!(broken(unrecorded).contains(&"an attempt is begun once"));
}

#[test]
fn a_second_attempt_after_a_lost_answer_is_found() {
    let resent = |e: &mut Evidence| e.listed[0].attempts[0].1 = Outcome::Ambiguous;
    assert_eq!(broken(resent), ["another attempt needs proof"]);
    let open = |e: &mut Evidence| e.listed[0].attempts[0].1 = Outcome::Unspecified;
    assert_eq!(broken(open), ["another attempt needs proof"]);
}

#[test]
fn illegal_steps_and_gaps_in_the_feed_are_found() {
    let jump = |e: &mut Evidence| drop(e.events.remove(4));
    let after_final = |e: &mut Evidence| {
        e.events.extend(vec![Feed { id: "b".to_owned(), state: S::Submitted, attempt: 0, time_ms: 9 }]);
    };
    // From IN_FLIGHT to DELIVERED is legal: a receipt can be faster than the answer.
    assert_eq!(broken(jump), [] as [&str; 0]);
    assert_eq!(broken(after_final), ["steps are legal", "the feed is complete"]);
    let short = |e: &mut Evidence| drop(e.events.remove(5));
    assert_eq!(broken(short), ["the feed is complete"]);
}

#[test]
fn sends_beyond_the_attempts_and_copies_are_found() {
    let double = |e: &mut Evidence| e.truth.received.extend([received("kc", 2, 2)]);
    assert_eq!(broken(double), ["an attempt is sent once", "nothing is sent twice"]);
    let refused = |e: &mut Evidence| e.truth.received.extend([received("ka", 1, 3)]);
    assert_eq!(broken(refused), ["an attempt is sent once"]);
    let unsent = |e: &mut Evidence| e.listed[0].attempts[0].1 = Outcome::NotSent;
    assert_eq!(broken(unsent), ["an attempt is sent once"]);
    assert_eq!(broken(|e| e.truth.violations = 1), ["the limit is a wall"]);
    assert_eq!(broken(|e| e.truth.unrecorded = 1), ["the ground truth is complete"]);
}

#[test]
fn a_receipt_that_was_acknowledged_and_forgotten_is_found() {
    let forgotten = |e: &mut Evidence| {
        let received = Received { acknowledged: true, ..received("kc", 1, 1).1 };
        e.truth.received.insert(truth_of("kc"), received);
    };
    assert_eq!(broken(forgotten), ["an acknowledged receipt is kept"]);
}

#[test]
fn unsettled_messages_and_unequal_replicas_are_found() {
    let moving = |e: &mut Evidence| {
        e.listed[2].listed.state = S::InFlight;
        e.events.retain(|event| event.state != S::Unknown);
    };
    assert_eq!(broken(moving), [COMES_TO_REST]);
    assert_eq!(broken(|e| e.replicas[1].digest = vec![9]), ["replicas are equal"]);
    assert_eq!(broken(|e| e.replicas[2].digest = vec![9]), [] as [&str; 0], "at another index");
}

#[test]
fn lines_become_operations_and_a_broken_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let writer = Writer::create(&path).unwrap();
    let call = Call::Get { id: "a".to_owned() };
    let first = writer.invoke(1, call.clone()).unwrap();
    let second = writer.invoke(2, call.clone()).unwrap();
    writer.end(second, 2, What::Ok(Answer::Seen { state: S::OptedOut })).unwrap();
    let third = writer.invoke(2, call.clone()).unwrap();
    writer.end(third, 2, What::Fail { why: "OVERLOADED".to_owned() }).unwrap();
    let lines = read(&path).unwrap();
    let ops = ops(&lines).unwrap();
    assert_eq!(ops.len(), 3);
    assert_eq!((ops[0].op, &ops[0].end), (first, &End::Info), "no end is no answer");
    assert!(
        matches!(&ops[1].end, End::Ok { at_us, answer: Answer::Seen { state: S::OptedOut } } if *at_us >= ops[1].begin_us)
    );
    assert_eq!(ops[2].end, End::Fail { why: "OVERLOADED".to_owned() });

    let twice = [lines.as_slice(), &lines[2..3]].concat();
    assert!(matches!(super::ops(&twice), Err(HistoryError::Order { op: 2, .. })));
    assert!(matches!(super::ops(&lines[1..3]), Ok(ops) if ops.len() == 1));
    assert!(matches!(super::ops(&lines[2..]), Err(HistoryError::Order { .. })));
    std::fs::write(&path, "{\"op\":1").unwrap();
    assert!(matches!(read(&path), Err(HistoryError::Line { line: 1, .. })));
}
