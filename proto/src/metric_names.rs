//! The one list of metric names, with type and help text. A tidy test compares it with the sources.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, help }
}
const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, help }
}
const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, help }
}

/// Every metric of every process.
pub const CATALOGUE: &[Metric] = &[
    gauge("carillon_build_info", "Always 1; the version is a label."),
    counter("carillon_panics_total", "Panics; any value above 0 is a defect."),
    counter("carillon_tls_handshake_failures_total", "TLS handshakes that failed or timed out."),
    counter("carillon_authorization_refused_total", "Calls refused because of the caller's certificate."),
    counter("carillon_phi_opened_total", "Messages whose sealed text was opened for a reader, by reason."),
    histogram("carillon_log_sync_seconds", "Time of one synced raft log write, all groups together."),
    histogram("carillon_log_write_bytes", "Entry bytes in one synced raft log write."),
    gauge("carillon_log_disk_bytes", "Raft log on disk."),
    gauge("carillon_log_unflushed_bytes", "Raft log that only memory covers: what a restart applies again."),
    counter(
        "carillon_log_purge_failures_total",
        "Log files that could not be freed because of damaged entries.",
    ),
    gauge("carillon_replicas_fenced", "Replicas of this node that are out of service."),
    gauge("carillon_disk_free_bytes", "Free bytes on the volume of the data directory."),
    gauge(
        "carillon_clock_off",
        "1 while this node's wall clock is further from the median of its peers' than tuning.clock_skew_ms_max.",
    ),
    gauge("carillon_clock_skew_ms", "How far a peer's wall clock is ahead of this node's, by peer."),
    gauge("carillon_disk_near_full", "1 while this node's disk is nearly full."),
    counter("carillon_storage_refused_total", "Messages refused because disks are nearly full."),
    counter("carillon_scrub_bytes_total", "Bytes read by the scrub, by store."),
    counter("carillon_scrub_damage_total", "Replicas found damaged by the scrub, by store."),
    gauge("carillon_scrub_last_end_seconds", "When the last scrub ended, seconds since the epoch."),
    counter(
        "carillon_retired_messages_total",
        "Final messages dropped after their retention, by this leader.",
    ),
    counter("carillon_retired_keys_total", "Idempotency keys dropped after their retention, by this leader."),
    gauge(
        "carillon_retention_lag_seconds",
        "How late the oldest thing is that retention should have dropped.",
    ),
    counter(
        "carillon_hours_held_total",
        "Messages that wait for the recipient's hours, by when that was found: accept, window_over, rules_changed.",
    ),
    counter(
        "carillon_hours_opened_total",
        "Messages that had waited for the recipient's hours and were begun.",
    ),
    histogram("carillon_raft_entry_commands_size", "Commands in one raft entry."),
    gauge("carillon_engine_kept", "What the shard keeps because a thread has no room for it, by thread."),
    gauge("carillon_raft_groups_led", "Groups led by this node, meta group included."),
    counter("carillon_raft_leader_changes_total", "Times this node became leader of a group."),
    counter("carillon_raft_messages_dropped_total", "Raft messages dropped, by reason; raft repeats them."),
    counter("carillon_peer_stream_breaks_total", "Peer streams that broke."),
    histogram("carillon_apply_seconds", "Time to apply and store one run of committed entries."),
    counter("carillon_commands_applied_total", "Commands applied on this replica."),
    counter("carillon_state_flushes_total", "Memtable flushes started by the pacing."),
    counter("carillon_snapshot_installs_total", "Snapshots that took the place of a replica's state here."),
    counter(
        "carillon_snapshot_failures_total",
        "Snapshots not made, fetched or imported, by step; tried again.",
    ),
    counter("carillon_snapshot_sent_bytes_total", "Bytes of snapshot files sent to other nodes."),
    counter("carillon_snapshot_received_bytes_total", "Bytes of snapshot files fetched from other nodes."),
    gauge("carillon_snapshot_exports", "Snapshots on this node that others can fetch."),
    counter("carillon_backup_exports_total", "Partitions whose files were made for a backup here."),
    counter("carillon_restore_received_bytes_total", "Bytes of backup files received to be restored."),
    counter("carillon_restore_rows_total", "Rows of backups proposed by this leader."),
    gauge(
        "carillon_restore_under_way",
        "1 while the cluster is being restored; nothing is accepted or sent.",
    ),
    gauge(
        "carillon_quarantined_messages",
        "Messages held because a restore left their fate unknown, in the partitions that this node leads.",
    ),
    counter("carillon_dead_letters_replayed_total", "Dead letters that operators had sent again."),
    counter(
        "carillon_unknown_resolved_total",
        "Messages with a lost answer that operators resolved, by verdict.",
    ),
    counter("carillon_dead_letters_dropped_total", "Dead letters that operators took out of the list."),
    gauge(
        "carillon_breaker_state",
        "Breaker of a lane on this node: 0 closed, 1 half open, 2 open, by carrier.",
    ),
    counter("carillon_breaker_opened_total", "Times that the breaker of a lane opened, by carrier."),
    counter(
        "carillon_rerouted_total",
        "Messages given to another carrier because theirs failed, by carriers.",
    ),
    counter("carillon_series_messages_total", "Messages made of recurring series."),
    counter("carillon_quarantine_resolved_total", "Messages released or dropped by operators, by action."),
    histogram("carillon_snapshot_export_seconds", "Time to make the files of a snapshot."),
    histogram("carillon_snapshot_import_seconds", "Time to make a state of the files of a snapshot."),
    gauge("carillon_state_overlay_bytes", "Committed rows in memory that RocksDB does not have yet."),
    counter("carillon_state_write_back_bytes_total", "Bytes of committed rows given to RocksDB."),
    counter("carillon_state_write_back_rows_total", "Committed rows given to RocksDB."),
    gauge("carillon_state_block_cache_bytes", "Cached blocks, indexes and filters."),
    gauge("carillon_state_sst_bytes", "State table files on disk."),
    gauge("carillon_state_pending_compaction_bytes", "Compaction debt of the state store."),
    gauge(
        "carillon_state_delayed_write_rate",
        "Bytes per second that state writes are held to; 0 = not held.",
    ),
    gauge("carillon_state_write_stopped", "1 while state writes are stopped."),
    counter("carillon_state_write_stall_micros_total", "Microseconds that state writers were stalled."),
    counter("carillon_state_flushed_bytes_total", "Bytes of rows written to tables."),
    counter("carillon_state_compacted_bytes_total", "Bytes written by compactions."),
    histogram("carillon_scheduler_wait_seconds", "From a message's due time to its attempt, by priority."),
    gauge(
        "carillon_scheduler_fairness_index",
        "Jain's index of what practices with a backlog sent in the last second, by weight; 1 is fair.",
    ),
    counter("carillon_fuse_trips_total", "Messages stopped by a fuse: duplicate content, or a burst."),
    gauge("carillon_practices_paused", "Practices that are paused on a carrier."),
    gauge("carillon_scheduler_ready", "Messages in memory that are due and not begun."),
    gauge("carillon_scheduler_in_flight", "Attempts begun and without an outcome."),
    gauge("carillon_scheduler_rows", "Waiting messages held in memory."),
    gauge("carillon_scheduler_without_lane", "Due messages whose carrier cannot be used on this node."),
    gauge("carillon_scheduler_oldest_due_seconds", "How long the oldest due message has been due."),
    counter("carillon_attempts_total", "Attempts ended, by carrier and outcome."),
    counter("carillon_fact_retries_total", "Outcomes or receipts that had to be proposed again."),
    gauge("carillon_lane_share_segments_per_second", "This node's share of a carrier's limit."),
    gauge(
        "carillon_lane_ease_permille",
        "How much of its limit a carrier's lane may use: less after the carrier said that it was too fast.",
    ),
    counter("carillon_lease_requests_total", "Requests for leases of lane budgets, by outcome."),
    counter("carillon_leases_ended_total", "Leases that ended on this node because nobody renewed them."),
    counter(
        "carillon_lease_surprises_total",
        "Nodes that held more of a limit than its leader knew; any value above 0 is a defect.",
    ),
    counter("carillon_lane_faults_total", "Carriers that could not be set up on this node."),
    counter("carillon_receipts_total", "Delivery reports taken from carriers."),
    counter("carillon_receipts_refused_total", "Delivery reports refused, by reason; carriers repeat them."),
    counter(
        "carillon_receipts_unmatched_total",
        "Delivery reports that belong to no message of ours, by reason; acknowledged, so that they stop coming.",
    ),
    counter("carillon_late_answers_total", "Carrier answers that came after their attempt was UNKNOWN."),
    histogram("carillon_smpp_answer_seconds", "Time from submit_sm to its answer."),
    counter("carillon_smpp_bad_pdus_total", "PDUs of carriers that could not be read."),
    gauge("carillon_smpp_binds_up", "SMPP binds that are up, by carrier."),
    counter("carillon_smpp_disconnects_total", "SMPP connections lost, by carrier and reason."),
    gauge("carillon_smpp_in_flight", "Sends without an answer, by carrier."),
    counter("carillon_smpp_late_answers_total", "submit_sm answers that came too late."),
    counter("carillon_smpp_pauses_total", "Throttle pauses, by carrier."),
    counter("carillon_smpp_receipts_total", "deliver_sm receipts, by carrier and what became of them."),
    counter("carillon_smpp_replies_total", "Inbound texts; acknowledged and counted only."),
    counter("carillon_smpp_sends_total", "Messages sent, by carrier and outcome."),
    counter("carillon_smpp_submit_pdus_total", "submit_sm written, one for each segment."),
    counter(
        "carillon_smpp_congestion_total",
        "Answers in which a carrier said that it is nearly or quite full, by carrier.",
    ),
    gauge("carillon_twilio_connections", "HTTP connections that are open, by carrier."),
    counter("carillon_twilio_connect_failures_total", "HTTP connects that failed, by carrier."),
    gauge("carillon_twilio_in_flight", "Sends and callbacks without an answer, by carrier."),
    histogram("carillon_twilio_answer_seconds", "Time from a create to its answer."),
    counter("carillon_twilio_late_answers_total", "Answers to creates that came too late."),
    counter("carillon_twilio_pauses_total", "Throttle pauses, by carrier."),
    counter("carillon_twilio_sends_total", "Messages sent, by carrier and outcome."),
    counter(
        "carillon_twilio_callbacks_total",
        "Status callbacks, by carrier and what became of them; bad_signature means that somebody else calls, or a wrong secret or URL.",
    ),
    counter("carillon_twilio_look_ups_total", "Questions about single messages, by carrier and answer."),
    counter("carillon_twilio_redactions_total", "Texts removed at the carrier, by carrier and result."),
    counter("carillon_callbacks_without_carrier_total", "Callbacks to a path that is no account's."),
    gauge("carillon_contract_faults", "Contract files that cannot be used; the versions before them go on."),
    counter(
        "carillon_refused_without_baa_total",
        "Messages refused because their carrier may not carry PHI.",
    ),
    gauge("carillon_reconcile_waiting", "Messages that their carrier will be asked about."),
    counter("carillon_reconciled_total", "Messages whose fate a look-up told, by result."),
    counter(
        "carillon_reconcile_notes_lost_total",
        "Messages that will not be asked about before the next change of leader, for lack of room.",
    ),
    gauge("carillon_steward_nodes_alive", "Nodes that answer the steward; only on the meta leader."),
    gauge(
        "carillon_steward_groups_seen",
        "Groups with a leader, the meta group included; only on the meta leader.",
    ),
    gauge("carillon_steward_feature_level", "Feature level of the cluster; only on the meta leader."),
    counter("carillon_steward_steps_total", "Steps of the steward, by kind and outcome."),
    counter("carillon_router_requests_total", "Calls, by method and code."),
    histogram("carillon_router_request_seconds", "Time of a call, by method."),
    counter("carillon_router_items_total", "Messages handed in, by what became of them."),
    histogram("carillon_router_batch_seconds", "Time of one batch of a stream."),
    gauge("carillon_router_batches_in_flight", "Stream batches being processed."),
    gauge("carillon_router_streams_open", "Open client streams."),
    histogram("carillon_router_node_call_seconds", "Time of a call to a node."),
    counter("carillon_router_retries_total", "Calls repeated on another or the same node, by reason."),
    gauge("carillon_router_map_age_seconds", "Time since any node confirmed the map."),
    gauge("carillon_router_partitions_led", "Partitions with a known leader."),
    histogram(
        "carillon_smsc_answer_delay_seconds",
        "Simulator: delay of an answer, as the profile draws it.",
    ),
    gauge("carillon_smsc_binds", "Simulator: binds."),
    gauge("carillon_smsc_contract_violations", "Simulator: submits above the contract."),
    gauge("carillon_smsc_contract_window_max_segments", "Simulator: most segments seen in one window."),
    gauge("carillon_smsc_duplicate_messages", "Simulator: messages accepted more than once."),
    histogram(
        "carillon_smsc_event_lag_seconds",
        "Simulator: how late delayed answers and receipts were; large means that the simulator is too slow.",
    ),
    counter("carillon_smsc_malformed_total", "Simulator: PDUs that could not be read."),
    histogram(
        "carillon_smsc_receipt_delay_seconds",
        "Simulator: time from a submit to the sending of its receipt.",
    ),
    gauge("carillon_smsc_receipts_pending", "Simulator: receipts not acknowledged yet."),
    counter("carillon_smsc_receipts_total", "Simulator: receipts, by what became of them."),
    counter("carillon_smsc_submits_total", "Simulator: submit_sm, by status."),
];
