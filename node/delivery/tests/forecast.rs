//! Forecasts on lanes whose future can be worked out by hand; estimates against a run of the scheduler are in `estimates.rs`.
use carillon_delivery::explain::{LaneState, explain, reason};
use carillon_delivery::forecast::{Capacity, DailyCap, Waiting, forecast};
use carillon_proto::internal::{AttemptRecord, MessageStatus};
use carillon_proto::public::{MessageState, Outcome, WaitingReason};
use carillon_proto::{MessageId, Slot};

const NOW: u64 = 1_793_000_000_000;
const HOUR: u64 = 3_600_000;

fn id(n: u64) -> MessageId {
    MessageId::new(NOW, Slot::new(1).unwrap(), n)
}

fn waiting(n: u64) -> Waiting {
    Waiting {
        message_id: id(n),
        practice_no: 1,
        weight: 1,
        priority: 3,
        due_ms: NOW,
        expires_at_ms: NOW + 24 * HOUR,
        deadline_ms: 0,
        segments: 1,
    }
}

fn capacity(segments_per_second: u32) -> Capacity {
    Capacity { segments_per_second, ageing_ms: 300_000, ..Capacity::default() }
}

#[test]
fn a_backlog_ends_when_its_segments_have_passed() {
    let rows = (0..1_000).map(|n| Waiting { segments: 1 + (n % 2) as u32, ..waiting(n) }).collect();
    let seen = forecast(rows, capacity(100), NOW);
    assert_eq!((seen.due_messages, seen.due_segments), (1_000, 1_500));
    assert_eq!(seen.backlog_ends_ms, Some(NOW + 15_000));
    assert_eq!((seen.late, seen.expired, seen.cap_reached_ms), (0, 0, None));
    assert_eq!(seen.departures[0].at_ms, Some(NOW));
    assert!(seen.departures.windows(2).all(|pair| pair[0].position + 1 == pair[1].position));
}

#[test]
fn urgent_messages_pass_and_late_ones_are_named() {
    let mut rows: Vec<Waiting> = (0..100).map(waiting).collect();
    rows.push(Waiting { priority: 1, due_ms: NOW + 2_000, ..waiting(500) });
    rows.push(Waiting { deadline_ms: NOW + 500, expires_at_ms: NOW + 60_000, ..waiting(600) });
    rows.push(Waiting { priority: 4, deadline_ms: NOW + 3_000, expires_at_ms: NOW + 5_000, ..waiting(700) });
    let seen = forecast(rows, capacity(10), NOW);
    let of = |n: u64| *seen.departures.iter().find(|d| d.message_id == id(n)).unwrap();
    assert_eq!(of(500).at_ms, Some(NOW + 2_000), "passes a full backlog");
    assert_eq!((of(600).at_ms, of(600).late), (Some(NOW), false), "the earliest deadline goes first");
    assert_eq!((of(700).at_ms, of(700).late), (None, true), "passes last and expires before its turn");
    assert_eq!((seen.late, seen.expired), (1, 1));
}

#[test]
fn what_waits_long_gets_a_part_of_the_lane_as_from_the_scheduler() {
    let mut rows: Vec<Waiting> =
        (0..4_000).map(|n| Waiting { due_ms: NOW + n * 100, ..waiting(n) }).collect();
    rows.push(Waiting { priority: 4, expires_at_ms: NOW + 23 * HOUR, ..waiting(9_000) });
    let seen = forecast(rows, capacity(9), NOW);
    let bulk = seen.departures.iter().find(|d| d.message_id == id(9_000)).unwrap();
    let aged_ms = bulk.at_ms.unwrap() - NOW;
    assert!((300_000..301_000).contains(&aged_ms), "{aged_ms}");
}

#[test]
fn a_daily_cap_puts_the_rest_off_to_its_reset() {
    let cap = DailyCap { left: 30, resets_at_ms: NOW + HOUR, limit: 50, period_ms: 24 * HOUR };
    let rows: Vec<Waiting> =
        (0..60).map(|n| Waiting { expires_at_ms: NOW + 48 * HOUR, ..waiting(n) }).collect();
    let seen = forecast(rows, Capacity { daily: Some(cap), ..capacity(10) }, NOW);
    assert_eq!(seen.cap_reached_ms, Some(NOW + 3_000));
    assert_eq!(seen.departures[29].at_ms, Some(NOW + 2_900));
    assert_eq!(seen.departures[30].at_ms, Some(NOW + HOUR));
    assert_eq!(seen.backlog_ends_ms, Some(NOW + HOUR + 3_000));
}

#[test]
fn a_closed_lane_and_one_without_rate_say_so() {
    let closed = Capacity { closed_until_ms: NOW + 5_000, ..capacity(10) };
    assert_eq!(forecast(vec![waiting(1)], closed, NOW).departures[0].at_ms, Some(NOW + 5_000));
    let dead = forecast(vec![waiting(1)], capacity(0), NOW);
    assert_eq!((dead.departures[0].at_ms, dead.backlog_ends_ms, dead.expired), (None, None, 1));
    assert_eq!(forecast(Vec::new(), capacity(0), NOW).backlog_ends_ms, Some(NOW));
}

fn lane() -> LaneState {
    let name = "main".to_owned();
    LaneState { name, configured: true, connected: true, segments_per_second: 10, ..LaneState::default() }
}

fn status(state: MessageState, reason: WaitingReason, due_ms: u64) -> MessageStatus {
    MessageStatus { state: state as i32, waiting_reason: reason as i32, due_ms, ..Default::default() }
}

#[test]
fn every_reason_is_told_and_the_one_that_ends_last_binds() {
    let rows: Vec<Waiting> = (0..50).map(waiting).collect();
    let seen = forecast(rows, capacity(10), NOW);
    let last = seen.departures.last().unwrap();
    let held = status(MessageState::Waiting, WaitingReason::QuietHours, NOW + HOUR);
    let paused = LaneState { paused_until_ms: NOW + 2_000, ..lane() };
    let told = explain(&held, &paused, Some(last), NOW);
    let reasons: Vec<_> = told.holds.iter().map(|hold| (hold.reason, hold.until_ms - NOW)).collect();
    use WaitingReason::{LaneLimit, QuietHours};
    assert_eq!(reasons, [(QuietHours, HOUR), (LaneLimit, 4_900), (LaneLimit, 2_000)]);
    assert!(told.binding_limit.contains("quiet hours"), "{told:?}");
    let broken = LaneState { breaker_until_ms: NOW + 2 * HOUR, connected: false, ..lane() };
    let told = explain(&held, &broken, None, NOW);
    assert_eq!(told.holds[0].limit, "carrier main: not connected", "its end is not known");
    assert_eq!(told.holds[1].reason, WaitingReason::BreakerOpen);
}

#[test]
fn tighter_limits_caps_and_pauses_are_named() {
    let waits = status(MessageState::Accepted, WaitingReason::Unspecified, NOW);
    let tighter = LaneState { tighter_limit: "brand".into(), ..lane() };
    assert_eq!(explain(&waits, &tighter, None, NOW).binding_limit, "limit brand: 10 segments/s");
    let capped = LaneState { cap_reached: "brand-day".into(), paused_by_operator: true, ..lane() };
    let told = explain(&waits, &capped, None, NOW);
    let reasons: Vec<_> = told.holds.iter().map(|hold| hold.reason).collect();
    assert_eq!(reasons, [WaitingReason::Paused, WaitingReason::DailyCap]);
    assert_eq!(told.holds[1].limit, "limit brand-day: its daily cap is used up");
}

#[test]
fn a_free_lane_holds_nothing_and_what_does_not_wait_is_told_in_a_sentence() {
    let told = explain(&status(MessageState::Accepted, WaitingReason::Unspecified, NOW), &lane(), None, NOW);
    assert_eq!((told.holds.len(), told.binding_limit.as_str()), (0, "carrier main: 10 segments/s"));
    let attempt = AttemptRecord {
        outcome: Outcome::Ambiguous as i32,
        code: "answer_timeout".into(),
        ..Default::default()
    };
    let unknown = MessageStatus {
        attempts: vec![attempt],
        ..status(MessageState::Unknown, WaitingReason::Unspecified, 0)
    };
    let told = explain(&unknown, &lane(), None, NOW);
    assert_eq!(told.summary, "held: the carrier's answer to 1 attempts was lost (answer_timeout)");
    let half = AttemptRecord {
        outcome: Outcome::Ambiguous as i32,
        code: "paused".into(),
        segments: 1,
        ..Default::default()
    };
    let unknown = MessageStatus {
        attempts: vec![half],
        segments: 3,
        ..status(MessageState::Unknown, WaitingReason::Unspecified, 0)
    };
    let told = explain(&unknown, &lane(), None, NOW);
    assert_eq!(told.summary, "held: the carrier acknowledged 1 of 3 parts, and not the rest (paused)");
    for state in (1..=12).filter_map(|n| MessageState::try_from(n).ok()) {
        let told = explain(&status(state, WaitingReason::Unspecified, 0), &lane(), None, NOW);
        assert!(!told.summary.is_empty(), "{state:?}");
    }
}

#[test]
fn a_message_that_is_due_shows_what_keeps_its_lane_and_nothing_else() {
    use WaitingReason as W;
    let waits = |own, due_ms| status(MessageState::Waiting, own, due_ms);
    let capped = LaneState { cap_reached: "brand-day".into(), cap_resets_ms: NOW + HOUR, ..lane() };
    let broken = LaneState { breaker_until_ms: NOW + 5_000, ..lane() };
    let table = [
        ("its time has not come", waits(W::QuietHours, NOW + 1), &broken, W::QuietHours),
        ("its retry has not come", waits(W::Backoff, NOW + 1), &capped, W::Backoff),
        ("the breaker", waits(W::Backoff, NOW), &broken, W::BreakerOpen),
        ("the cap", waits(W::Schedule, NOW - 9), &capped, W::DailyCap),
        (
            "both: what ends last",
            waits(W::Schedule, NOW),
            &LaneState { breaker_until_ms: NOW + 5_000, ..capped.clone() },
            W::DailyCap,
        ),
        (
            "an operator has no end",
            waits(W::Schedule, NOW),
            &LaneState { closed_by_operator: true, ..capped.clone() },
            W::BreakerOpen,
        ),
        ("not connected", waits(W::Schedule, NOW), &LaneState { connected: false, ..lane() }, W::BreakerOpen),
        (
            "a stopped lane",
            waits(W::Schedule, NOW),
            &LaneState { paused_by_operator: true, ..lane() },
            W::Paused,
        ),
        (
            "a stopped practice",
            waits(W::Schedule, NOW),
            &LaneState { practice_paused: true, ..lane() },
            W::Paused,
        ),
        (
            "too fast",
            waits(W::Schedule, NOW),
            &LaneState { paused_until_ms: NOW + 900, ..lane() },
            W::LaneLimit,
        ),
        ("its turn", waits(W::QuietHours, NOW - 500), &lane(), W::LaneLimit),
        ("about to be sent", waits(W::Unspecified, NOW - 499), &lane(), W::Unspecified),
        ("the message before it", waits(W::Order, NOW - 900), &broken, W::Order),
        (
            "it does not wait",
            status(MessageState::Submitted, W::Unspecified, NOW - 900),
            &broken,
            W::Unspecified,
        ),
    ];
    for (name, message, lane, wanted) in table {
        assert_eq!(reason(&message, lane, NOW), wanted, "{name}");
    }
    // A breaker that has closed again, a pause that is over.
    let over = LaneState { breaker_until_ms: NOW, paused_until_ms: NOW, ..lane() };
    assert_eq!(reason(&waits(W::Schedule, NOW - 9_000), &over, NOW), W::LaneLimit);
}
