//! The fail points that a node under this load reaches (their table is in `failpoints.rs` of carillon-node), one after the
//! other; the rest is in `membership.rs`. Flushes, truncations and purges come every few seconds because the cluster is told so ([`NODE_CONFIG`]).
use carillon_tests::faults::{arm, disarm};
use carillon_tests::trial::Trial;

/// Makes the maintenance thread busy.
pub const NODE_CONFIG: &str = "[tuning]\nunflushed_log_age_max_s = 2\n";

/// Points that a node under load reaches by itself.
const UNDER_LOAD: [&str; 25] = [
    "log::before_sync",
    "log::after_sync",
    "log::sync_error",
    "log::before_replies",
    "log::after_replies",
    "apply::before_batch",
    "apply::after_batch",
    "apply::after_answers",
    "apply::write_error",
    "send::before_intent",
    "send::after_intent",
    "send::before_first_byte",
    "send::after_last_byte",
    "send::after_answer",
    "fact::before_commit",
    "fact::after_commit",
    "state::before_flush",
    "state::after_flush",
    "write::before_tables",
    "write::after_tables",
    "write::after_taken",
    "log::before_truncate",
    "log::after_truncate",
    "log::before_purge",
    "log::after_purge",
];
/// Points that a node reaches when it starts after a crash.
const AT_START: [&str; 2] = ["recovery::before_replay", "recovery::after_batch"];

pub async fn each(trial: &Trial) {
    for (turn, point) in UNDER_LOAD.into_iter().enumerate() {
        // In turns, so that the one that dies leads again by the time it is due.
        let node = 1 + turn as u64 % 3;
        let data = trial.rig.lab.data_dir(node);
        // Not at the first time: in the middle of its work.
        let is_rare = point.starts_with("write::")
            || ["_flush", "_truncate", "_purge"].iter().any(|end| point.ends_with(end));
        arm(&data, &[(point, if is_rare { "return" } else { "20*off->return" })]).unwrap();
        trial.until_ended(node).await;
        disarm(&data).unwrap();
        trial.start_nodes(&[node]).await;
        trial.works().await;
        trial.say(&format!("node {node} died at {point}"));
    }
    for (turn, point) in AT_START.into_iter().enumerate() {
        let node = 1 + turn as u64 % 3;
        let data = trial.rig.lab.data_dir(node);
        trial.rig.lab.kill_node(node).unwrap();
        arm(&data, &[(point, "return")]).unwrap();
        trial.rig.lab.start_node(node).unwrap();
        trial.until_ended(node).await;
        disarm(&data).unwrap();
        trial.start_nodes(&[node]).await;
        trial.works().await;
        trial.say(&format!("node {node} died at {point}"));
    }
}
