//! What happened: a hash over every event (same seed, same hash), counters of rare branches, and one readable line for
//! each event when asked for.
use super::rng::mix;
use std::collections::BTreeMap;

/// Rare branches that a set of runs must have reached. A run over many seeds fails when one was never hit.
pub const SOMETIMES: [&str; 91] = [
    "torn_tail",
    "unsynced_writes_lost",
    "sync_error_halt",
    "disk_full_halt",
    "state_lost_and_replayed",
    "log_cut",
    "snapshot_install",
    "snapshot_fetch_failed",
    "follower_caught_up_from_log",
    "entries_overwritten",
    "leader_changed_with_attempts_in_flight",
    "attempt_unknown",
    "unknown_resolved_by_receipt",
    "unknown_resolved_by_late_answer",
    "resent_by_policy",
    "replica_fenced",
    "node_lost",
    "uncertain_call_repeated",
    "duplicate_submit",
    "key_reused",
    "receipt_found_by_reference",
    "receipt_before_outcome",
    "long_message_part_refused",
    "send_by_passed",
    "canceled",
    "expired",
    "joint_configuration",
    "replica_destroyed",
    "replica_moved",
    "leader_transfer",
    "node_joined",
    "node_removed",
    "wiped_disk",
    "wiped_disk_refused",
    "replica_repaired",
    "share_epoch_changed",
    "level_raised",
    "upgraded_while_running",
    "stop_refused_by_level",
    "ended_by_stop",
    "begin_refused_after_stop",
    "message_retired",
    "key_retired",
    "key_outlived_its_message",
    "disk_nearly_full",
    "disk_has_room_again",
    "refused_by_own_disk",
    "refused_by_disks_of_others",
    "outcome_while_nearly_full",
    "backup_made",
    "cluster_lost",
    "cluster_restored",
    "restore_piece",
    "messages_lost_with_the_cluster",
    "quarantined",
    "quarantine_resolved",
    "receipt_of_a_gone_message",
    "log_rotten",
    "clock_off",
    "leader_moved_off_a_wrong_clock",
    "update_took_effect",
    "update_in_doubt",
    "update_repeated",
    "update_of_an_old_version",
    "breaker_opened_by_hand",
    "limits_changed",
    "limits_settled",
    "long_message_in_one_piece",
    "series_advanced",
    "series_step_refused",
    "attempt_on_another_carrier",
    "leased",
    "lease_ended",
    "grantor_changed",
    "lane_eased",
    "held_for_hours",
    "hours_renewed",
    "begun_after_hold",
    "expired_in_quiet_hours",
    "held_by_frequency_cap",
    "held_for_order",
    "stacked_limit_in_force",
    "cap_slice_taken",
    "single_message_among_others",
    "same_content_refused",
    "fuse_for_bursts_blew",
    "practice_paused",
    "practice_resumed",
    "breaker_opened",
    "breaker_half_open",
    "rerouted_from_open_breaker",
];

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    print: bool,
    pub events: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    pub fn new(print: bool) -> Self {
        Self { print, ..Self::default() }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Notes an event; `text` is only made when lines are wanted.
    pub fn note(&mut self, now_ms: u64, words: &[u64], text: impl FnOnce() -> String) {
        self.hash = words.iter().fold(mix(self.hash ^ now_ms), |hash, word| mix(hash ^ word).wrapping_add(1));
        if self.print {
            println!("{:>8}.{:03} {}", now_ms / 1000, now_ms % 1000, text());
        }
    }

    /// A branch was taken.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}
