//! Limits that only some messages of a lane need are asked for by these; and what is paused saves nothing up.
mod common;

use carillon_delivery::lease::LimitId;
use carillon_delivery::{BeginResult, SchedulerConfig};
use common::*;

/// 100 messages of practice 1 and then 20 of practice 2, on a lane of 100 segments a second.
fn rig() -> Rig {
    let mut rig = Rig::new(SchedulerConfig::default());
    rig.scheduler.set_lane(lane(CARRIER, 100, 1_000));
    (0..100).for_each(|n| rig.due(&row_of(1, n, T0)));
    (200..220).for_each(|n| rig.due(&row_of(2, n, T0)));
    rig
}

#[test]
fn demand_of_a_limit_is_what_needs_it() {
    use carillon_core::meta::MetaView;
    use carillon_delivery::lease::{LIMIT_BASE, Stacks};
    use carillon_proto::internal::{CarrierRecord, LimitRecord, LimitScope, PracticeRecord};
    let mut rig = rig();
    let mut view = MetaView::default();
    view.carriers.insert(CARRIER, CarrierRecord { carrier_no: CARRIER, ..Default::default() });
    for practice_no in [1, 2] {
        let record = PracticeRecord { practice_no, carrier_no: CARRIER, ..Default::default() };
        view.practices.insert(practice_no, record);
    }
    for (limit_no, scope, practice_no) in
        [(1, LimitScope::Account, 0), (2, LimitScope::Practice, 2), (3, LimitScope::Practice, 9)]
    {
        let scope = scope.into();
        let record = LimitRecord {
            limit_no,
            carrier_no: CARRIER,
            scope,
            practice_no,
            amount: 9,
            window_s: 1,
            ..Default::default()
        };
        view.limits.insert(limit_no, record);
    }
    rig.decide();
    let mut stacks = Stacks::default();
    stacks.sync(&view);
    let demand = rig.scheduler.demand_of(&view, &mut stacks, [CARRIER].into_iter());
    let of = |limit: LimitId| demand.get(&limit).copied();
    assert_eq!((of(CARRIER), of(LIMIT_BASE + 1)), (Some(120), Some(120)));
    assert_eq!(of(LIMIT_BASE + 2), Some(20), "begun or not, as long as it has not left");
    assert_eq!(of(LIMIT_BASE + 3), Some(0), "nothing of practice 9 waits");
}

#[test]
fn demand_of_a_senders_limit_is_what_leaves_under_it() {
    use carillon_core::meta::MetaView;
    use carillon_delivery::lease::{LIMIT_BASE, Stacks, common, stack};
    use carillon_proto::internal::{CarrierRecord, LimitRecord, LimitScope, PracticeRecord, SenderRecord};
    let mut rig = Rig::new(SchedulerConfig::default());
    rig.scheduler.set_lane(lane(CARRIER, 100, 1_000));
    let of = |n: u64, sender_no| carillon_core::DueEntry { sender_no, ..row(n, T0) };
    (0..30).for_each(|n| rig.due(&of(n, 4)));
    (100..112).for_each(|n| rig.due(&of(n, 5)));
    let mut view = MetaView::default();
    view.carriers.insert(CARRIER, CarrierRecord { carrier_no: CARRIER, ..Default::default() });
    let practice = PracticeRecord { practice_no: 1, carrier_no: CARRIER, ..Default::default() };
    view.practices.insert(1, practice);
    for sender_no in [4, 5] {
        let address = format!("+1212555010{sender_no}");
        let record =
            SenderRecord { sender_no, carrier_no: CARRIER, address: address.clone(), ..Default::default() };
        view.senders.insert((CARRIER, sender_no), record);
        let limit = LimitRecord {
            limit_no: sender_no,
            carrier_no: CARRIER,
            scope: LimitScope::Sender.into(),
            key: address.trim_start_matches('+').to_owned(),
            amount: 9,
            window_s: 1,
            ..Default::default()
        };
        view.limits.insert(sender_no, limit);
    }
    rig.decide();
    let mut stacks = Stacks::default();
    stacks.sync(&view);
    let demand = rig.scheduler.demand_of(&view, &mut stacks, [CARRIER].into_iter());
    assert_eq!(demand[&CARRIER], 42);
    assert_eq!((demand[&(LIMIT_BASE + 4)], demand[&(LIMIT_BASE + 5)]), (30, 12));
    assert_eq!(common(&view, CARRIER), [CARRIER], "no message needs both");
    assert_eq!(stack(&view, CARRIER, 1, "+12125550105"), [CARRIER, LIMIT_BASE + 5]);
}

/// Found by the simulator: a node with a backlog that waits for a narrow limit, or for tomorrow, held most of what the whole lane needs.
#[test]
fn what_a_narrow_limit_holds_up_asks_for_nothing_that_others_could_use() {
    let waits = |rig: &Rig| rig.scheduler.demand().next();
    let mut rig = rig();
    // Nothing is begun.
    rig.scheduler.set_lane(lane(CARRIER, 0, 1_000));
    rig.decide();
    rig.scheduler.group_practices(CARRIER, vec![vec![1]]);
    assert_eq!(waits(&rig), Some((CARRIER, 120)), "nothing is known of its limits yet");
    rig.scheduler.set_group_room(CARRIER, 0, 0, 4);
    assert_eq!(waits(&rig), Some((CARRIER, 24)));
    rig.scheduler.set_group_room(CARRIER, 0, 0, 0);
    assert_eq!(waits(&rig), Some((CARRIER, 20)), "a cap is used up");
    rig.scheduler.pause_practice(CARRIER, 2, true);
    assert_eq!(waits(&rig), Some((CARRIER, 0)), "an operator stopped the other one");
    rig.scheduler.group_practices(CARRIER, vec![]);
    rig.scheduler.pause_practice(CARRIER, 2, false);
    assert_eq!(waits(&rig), Some((CARRIER, 120)));
}

/// Found by the simulator: a level that could not be chosen kept count of what passed it by, and then went before all urgent ones.
#[test]
fn what_is_paused_saves_up_nothing_for_later() {
    let config = SchedulerConfig { ageing_ms: 1_000, prefetch_segments_min: 1, ..SchedulerConfig::default() };
    let mut rig = Rig::new(config);
    rig.scheduler.set_lane(lane(CARRIER, 1, 1_000));
    rig.scheduler.pause_practice(CARRIER, 3, true);
    let bulk = |n: u64| carillon_core::DueEntry { priority: 4, ..row_of(3, n, T0) };
    (5_000..5_200).for_each(|n| rig.due(&bulk(n)));
    rig.at(T0 + 2_000);
    let next = |rig: &mut Rig, count: u64, first: u64| {
        let mut practices = Vec::new();
        for n in first..first + count {
            rig.due(&carillon_core::DueEntry { priority: 1, ..row_of(1, n, T0) });
            for begun in rig.decide().begin {
                practices.push(begun.practice_no);
                rig.scheduler.on_begun(PARTITION, begun.message_id, BeginResult::Ok);
                rig.scheduler.on_sent(PARTITION, begun.message_id);
                rig.scheduler.on_finished(PARTITION, begun.message_id);
            }
        }
        practices
    };
    assert!(next(&mut rig, 500, 0).iter().all(|practice_no| *practice_no == 1));
    rig.scheduler.pause_practice(CARRIER, 3, false);
    let after = next(&mut rig, 90, 600);
    let bulk = after.iter().filter(|practice_no| **practice_no == 3).count();
    assert!((8..=11).contains(&bulk), "one in nine, not {bulk} of {}", after.len());
}
