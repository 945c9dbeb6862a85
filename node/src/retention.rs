//! Retention: on the leader of a partition, proposes to drop what was kept long enough. What is dropped and how, is decided by
//! the core (`core/retire.rs`), the same on every replica.
//!
//! One partition after the other and in small pieces, so that applying them delays nobody; pieces are so far apart that
//! `messages_per_second_max` holds.
use crate::clock::now_ms as clock_ms;
use crate::config::Retention;
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_core::{CommandResult, Cutoffs, query};
use carillon_proto::internal::{Command, command::Kind};
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between two looks at the partitions that this node leads.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rounds that a partition is left alone in which nothing was due.
const REST_ROUNDS: u64 = 5;
/// Pieces of one partition before the next one has its turn.
const PIECES_MAX: u32 = 64;

/// Runs for as long as the node does.
pub async fn run(handle: NodeHandle, config: Retention) {
    let mut ticker = tokio::time::interval(LOOK_EVERY);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The round of the next look.
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for round in 0_u64.. {
        ticker.tick().await;
        let mut lag_ms = 0;
        for partition in 1..=handle.partitions() {
            if handle.is_leader(partition) && next.get(&partition).is_none_or(|at| *at <= round) {
                let partition_lag_ms = partition_lag(&handle, &config, partition).await;
                lag_ms = lag_ms.max(partition_lag_ms);
                next.insert(partition, round + if partition_lag_ms == 0 { REST_ROUNDS } else { 1 });
            }
        }
        metrics::gauge!("carillon_retention_lag_seconds").set(lag_ms as f64 / 1000.0);
    }
}

fn cutoffs(config: &Retention) -> Cutoffs {
    Cutoffs::at(clock_ms(), config.final_messages_s, config.idempotency_keys_s)
}

/// Drops what is due in one partition, and gives how late the oldest of it was.
async fn partition_lag(handle: &NodeHandle, config: &Retention, partition: u32) -> u64 {
    let at = cutoffs(config);
    let Some(oldest) = oldest(handle, partition).await else { return 0 };
    let lag_ms = at.lag_ms(oldest);
    if lag_ms == 0 {
        return 0;
    }
    for _ in 0..PIECES_MAX {
        let retire = Kind::Retire(cutoffs(config).command());
        let command = Bytes::from(Command { kind: Some(retire) }.encode_to_vec());
        // Any failure: this or another leader goes on at the next look.
        let Ok(results) = handle.propose(partition, vec![command]).await else { break };
        let Some(CommandResult::Retired(retired)) = results.first() else { break };
        metrics::counter!("carillon_retired_messages_total").increment(u64::from(retired.messages));
        metrics::counter!("carillon_retired_keys_total").increment(u64::from(retired.keys));
        if !retired.more {
            break;
        }
        let rows = u64::from(retired.messages.max(retired.keys).max(1));
        let pause_ms = rows * 1000 / u64::from(config.messages_per_second_max);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    lag_ms
}

/// Reads two rows; on a blocking thread, because they may be cold.
async fn oldest(handle: &NodeHandle, partition: u32) -> Option<(Option<u64>, Option<u64>)> {
    let handle = handle.clone();
    let read = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        Ok(query::oldest_kept_ms(&*handle.local_tables(partition)?)?)
    });
    match read.await {
        Ok(Ok(oldest)) => Some(oldest),
        Ok(Err(error)) => {
            tracing::error!(partition, %error, "cannot tell what is due for retention");
            None
        }
        Err(_) => None,
    }
}
