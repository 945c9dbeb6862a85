//! Each planted bug must be found within a stated number of seeds, and by the invariant that it breaks.
use carillon_tests::sim::{self, Plan, Plant, Scenario};

/// Runs seeds with the bug until one fails: (seeds needed, violation).
fn hunt(plant: Plant, seeds_max: u64, change: impl Fn(&mut Plan) + Sync) -> (u64, String) {
    let planted = |plan: &mut Plan| {
        plan.plant = Some(plant);
        change(plan);
    };
    let total = sim::swarm(1_000, 1, |number| number < seeds_max, planted);
    match total.failures.into_iter().next() {
        Some((seed, violation)) => {
            println!("{plant:?}: found after {} seeds: {violation}", seed - 999);
            (seed - 999, violation)
        }
        None => panic!("{plant:?} was not found within {seeds_max} seeds"),
    }
}

fn found_by(plant: Plant, seeds_max: u64, invariants: &[&str]) {
    let (_, violation) = hunt(plant, seeds_max, |_| {});
    let named = invariants.iter().any(|invariant| violation.contains(invariant));
    assert!(named, "{plant:?} was found by {violation}, not by {invariants:?}");
}

fn found_in(scenario: Scenario, plant: Plant, seeds_max: u64, signs: &[&str]) {
    let (_, violation) = hunt(plant, seeds_max, |plan| scenario.shape(plan));
    assert!(
        signs.iter().any(|sign| violation.contains(sign)),
        "{plant:?} was found by {violation}, not by {signs:?}"
    );
}

/// Without the comparison of promises with the disk, so that the consequences must show.
fn found_by_its_consequences(scenario: Scenario, plant: Plant, seeds_max: u64) {
    let change = |plan: &mut Plan| {
        scenario.shape(plan);
        plan.check_promises = false;
    };
    hunt(plant, seeds_max, change);
}

#[test]
fn acknowledging_before_the_write() {
    found_by(Plant::AckBeforePersist, 2, &["I3"]);
    found_by_its_consequences(Scenario::PowerCuts, Plant::AckBeforePersist, 20);
}

#[test]
fn going_on_after_a_failed_sync() {
    found_in(Scenario::SyncErrors, Plant::IgnoreSyncError, 5, &["I3", "I1"]);
}

#[test]
fn answering_waiters_of_another_term() {
    found_in(Scenario::Isolations, Plant::SkipTermCheck, 30, &["I1", "I2", "I4", "was answered with"]);
}

#[test]
fn writing_hard_state_apart_from_entries() {
    found_in(Scenario::PowerCuts, Plant::HardStateApart, 20, &["cannot start", "panic"]);
}

#[test]
fn not_writing_the_vote() {
    found_by(Plant::VoteNotPersisted, 2, &["I3"]);
    found_by_its_consequences(Scenario::QuickRestarts, Plant::VoteNotPersisted, 100);
}

#[test]
fn applied_index_ahead_of_the_flush() {
    found_by(Plant::AppliedAheadOfFlush, 20, &["I3", "I9", "I1"]);
}

#[test]
fn cutting_the_log_ahead_of_the_flush() {
    found_in(Scenario::PowerCuts, Plant::CutAheadOfFlush, 10, &["cannot start"]);
}

#[test]
fn resending_after_a_lost_answer() {
    found_by(Plant::ResendOnUnknown, 20, &["I5", "I4"]);
}

#[test]
fn gluing_appends_together() {
    found_in(Scenario::Isolations, Plant::BatchAppend, 10, &["out of order", "panic"]);
}

#[test]
fn a_whole_lane_for_every_node() {
    found_by(Plant::WholeShare, 20, &["I6"]);
}

#[test]
fn acknowledging_a_change_before_it_is_committed() {
    found_by(Plant::UpdateAssumed, 20, &["I10"]);
}

#[test]
fn forgetting_which_messages_of_a_series_exist() {
    found_by(Plant::SeriesKeyForgotten, 20, &["I10", "I2"]);
}

#[test]
fn a_lane_share_that_two_nodes_have() {
    found_in(Scenario::Shares, Plant::ShareTwice, 20, &["I6"]);
}

#[test]
fn a_lease_that_is_granted_twice() {
    found_in(Scenario::Leases, Plant::LeaseTwice, 5, &["I6"]);
}

#[test]
fn looking_for_an_opt_out_outside_of_apply() {
    found_by(Plant::StopOutsideApply, 20, &["I6"]);
}

#[test]
fn proposing_opt_outs_to_older_programs() {
    found_in(Scenario::OldPrograms, Plant::LevelIgnored, 3, &["I3"]);
}

#[test]
fn a_wiped_disk_that_comes_back_under_its_old_name() {
    found_in(Scenario::Wipes, Plant::WipedComesBack, 20, &["I1", "I3"]);
}

#[test]
fn a_membership_that_a_crash_forgets() {
    found_in(Scenario::Growth, Plant::MembersNotPersisted, 20, &["I1", "I3", "I8", "panic"]);
}

#[test]
fn sending_before_the_attempt_is_committed() {
    found_by(Plant::SendBeforeCommit, 5, &["I4"]);
}

#[test]
fn forgetting_idempotency_keys() {
    found_by(Plant::KeyForgotten, 10, &["I2"]);
}

#[test]
fn looking_at_the_hours_only_when_a_message_is_accepted() {
    found_in(Scenario::Nights, Plant::HoursOnlyAtAccept, 10, &["I7"]);
}

#[test]
fn hours_that_do_not_know_that_clocks_are_changed() {
    found_in(Scenario::Nights, Plant::HoursByFixedOffset, 10, &["I7"]);
}

/// Found by the simulator: a leader that regained a shorter log never appended again, or never knew that it led.
#[test]
fn keeping_waiters_of_lost_entries() {
    found_in(Scenario::Isolations, Plant::WaitersOfOldTerms, 60, &["I8"]);
}

/// Found by the simulator: two live replicas of three refuse each other for ever.
#[test]
fn priorities_in_elections() {
    found_in(Scenario::Isolations, Plant::Priorities, 100, &["I8"]);
}

/// Found by tables that differ, or by a key that names two messages.
#[test]
fn forgetting_keys_in_a_snapshot() {
    found_by(Plant::KeyForgottenBySnapshot, 60, &["I2", "I3"]);
}

#[test]
fn dropping_messages_at_once() {
    found_in(Scenario::ShortRetention, Plant::RetiredEarly, 3, &["I1"]);
}

#[test]
fn dropping_young_keys_with_their_message() {
    found_in(Scenario::ShortRetention, Plant::KeyRetiredEarly, 4, &["I1", "I2"]);
}

#[test]
fn dropping_keys_before_their_message() {
    found_in(Scenario::ShortRetention, Plant::KeyBeforeMessage, 10, &["I2"]);
}

#[test]
fn taking_messages_on_a_nearly_full_disk() {
    found_in(Scenario::FullDisks, Plant::SpaceIgnored, 3, &["I12"]);
}

#[test]
fn refusing_for_ever_after_a_full_disk() {
    found_in(Scenario::FullDisks, Plant::FullForEver, 10, &["I8"]);
}

#[test]
fn copying_a_backup_from_any_replica() {
    found_in(Scenario::Restores, Plant::BackupUnconfirmed, 20, &["I1"]);
}

#[test]
fn forgetting_the_resend_guard() {
    found_in(Scenario::Restores, Plant::GuardForgotten, 10, &["I5", "I4", "I8 a receipt"]);
}

/// Found by the simulator: a partition whose restore had not begun said that there is no such message, and the receipt was acknowledged.
#[test]
fn ending_receipts_during_a_restore() {
    found_in(Scenario::Restores, Plant::ReceiptsLostInRestore, 20, &["I8"]);
}

#[test]
fn believing_a_wrong_clock() {
    found_in(Scenario::WrongClocks, Plant::ClockUnbounded, 5, &["I11"]);
}

#[test]
fn reading_a_damaged_entry() {
    found_in(Scenario::RottenLogs, Plant::LogRotIgnored, 40, &["I3", "I9", "panic", "I1"]);
}

#[test]
fn a_stacked_limit_that_is_granted_twice() {
    found_in(Scenario::StackedLimits, Plant::StackLeaseTwice, 4, &["I6"]);
}

#[test]
fn sending_without_a_permit_of_every_limit() {
    found_in(Scenario::StackedLimits, Plant::StackIgnored, 3, &["I6"]);
}

#[test]
fn sending_without_a_permit_of_the_sender() {
    found_in(Scenario::Senders, Plant::SenderIgnored, 4, &["I6"]);
}

#[test]
fn one_permit_for_a_message_that_leaves_in_one_piece() {
    found_in(Scenario::Pieces, Plant::PiecesApart, 4, &["I6"]);
}

#[test]
fn who_waits_at_a_gate_keeps_to_limits_that_are_gone() {
    found_in(Scenario::StackedLimits, Plant::StackKept, 20, &["I6"]);
}

/// Found by reading: two thirds of a limit lay with nodes that had no use for it.
#[test]
fn asking_for_limits_that_nothing_needs() {
    found_in(Scenario::DailyCaps, Plant::DemandOfCarrier, 6, &["I8"]);
}

/// The next leader of the meta group begins the day anew.
#[test]
fn a_daily_cap_that_only_its_leader_counts() {
    found_in(Scenario::DailyCaps, Plant::CapForgotten, 6, &["I6"]);
}

#[test]
fn counting_the_messages_to_a_recipient_outside_of_apply() {
    found_by(Plant::CapOutsideApply, 30, &["I10"]);
}

#[test]
fn ordered_messages_that_are_overtaken() {
    found_by(Plant::OrderIgnored, 10, &["I10"]);
}

#[test]
fn a_scheduler_that_does_not_tell_practices_apart() {
    found_in(Scenario::Fairness, Plant::FairnessIgnored, 4, &["I13"]);
}

#[test]
fn weights_that_do_not_count() {
    found_in(Scenario::Fairness, Plant::WeightsIgnored, 4, &["I13"]);
}

#[test]
fn a_fuse_for_bursts_that_never_blows() {
    found_in(Scenario::Fuses, Plant::BurstIgnored, 4, &["I14"]);
}

#[test]
fn a_pause_that_the_scheduler_does_not_hear_of() {
    found_in(Scenario::Fuses, Plant::PauseIgnored, 4, &["I14"]);
}

#[test]
fn forgetting_contents_in_a_snapshot() {
    found_in(Scenario::Fuses, Plant::ContentForgottenBySnapshot, 20, &["I14", "I3"]);
}

#[test]
fn giving_what_a_carrier_may_have_to_another_one() {
    found_in(Scenario::Failover, Plant::FailoverOfUnknown, 6, &["I5", "I4", "I10"]);
}
