//! Series: on the leader of a partition, makes the messages of recurring reminders two days ahead of their time.
//!
//! A message's key follows from the series and the number of the occurrence, and the step of the series is in the same proposal behind its
//! messages. So a leader that is lost in between leaves at worst messages that the next one makes again and gets back as
//! duplicates. What has passed is never made: an outage, or a restore from a backup, brings no late messages.
use crate::clock::now_ms as clock_ms;
use crate::edge::ingest::{self, Ingest};
use crate::edge::series::{open, recurrence};
use crate::engine::NodeHandle;
use crate::seal::{Keyring, Nonces};
use bytes::Bytes;
use carillon_core::{CommandResult, series};
use carillon_proto::MessageId;
use carillon_proto::internal::{AdvanceSeries, Command, IngestMessage, SeriesRecord, command::Kind};
use carillon_proto::public::MessageClass;
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Messages are made so long before they are due.
pub const AHEAD_MS: u64 = 48 * 3_600_000;
/// Series of one partition in one look.
const SERIES_MAX: usize = 64;
/// Messages of one series in one step.
const STEP_MAX: usize = 32;

pub struct Maker {
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
    pub ingest: Ingest,
}

/// Longer than any key of a caller, so that it can be none.
fn key(id: &MessageId, number: u32) -> String {
    format!("{:-<160}", format!("series {id} {number} "))
}

impl Maker {
    /// Runs for as long as the node does.
    pub async fn run(self) {
        let mut ticker = tokio::time::interval(LOOK_EVERY);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticker.tick().await;
            if self.handle.meta().is_restoring() {
                continue;
            }
            for partition in (1..=self.handle.partitions()).filter(|p| self.handle.is_leader(*p)) {
                if let Err(error) = self.partition(partition).await {
                    tracing::warn!(partition, %error, "series wait for the next look");
                }
            }
        }
    }

    async fn partition(&self, partition: u32) -> anyhow::Result<()> {
        let (handle, until_ms) = (self.handle.clone(), clock_ms() + AHEAD_MS);
        let read = move || -> anyhow::Result<_> {
            Ok(series::due(&*handle.local_tables(partition)?, until_ms, SERIES_MAX)?)
        };
        for (id, record) in tokio::task::spawn_blocking(read).await?? {
            self.step(partition, id, record).await?;
        }
        Ok(())
    }

    /// Makes the next messages of one series.
    async fn step(&self, partition: u32, id: MessageId, record: SeriesRecord) -> anyhow::Result<()> {
        let plan = open(&self.handle, &self.keyring, &id, &record)?;
        let rule = recurrence(&plan)?;
        let template = plan.message.unwrap_or_default();
        let view = self.handle.meta();
        let tenant = view.practices.get(&record.practice_no).map(|p| p.tenant.clone()).unwrap_or_default();
        let practice = self.ingest.practice(&tenant, partition, record.practice_no).await?;
        let class = MessageClass::try_from(template.class).unwrap_or(MessageClass::Unspecified);
        let life_ms =
            if plan.valid_ms > 0 { plan.valid_ms } else { self.ingest.classes.get(class).default_expiry_ms };
        let now_ms = clock_ms();
        // Of what was due before the backup was made, nobody knows whether it was sent.
        let guard_ms = view.restore.as_ref().map_or(0, |restore| restore.guard_ms);
        let (mut commands, mut to, mut next_ms): (Vec<Bytes>, _, _) = (Vec::new(), record.made, 0);
        let mut nonces = Nonces::default();
        for occurrence in rule.after(record.made) {
            if occurrence.at_ms > now_ms + AHEAD_MS || commands.len() == STEP_MAX {
                next_ms = occurrence.at_ms;
                break;
            }
            to = occurrence.number;
            if occurrence.at_ms + life_ms <= now_ms || occurrence.at_ms <= guard_ms {
                continue;
            }
            let message = IngestMessage {
                not_before_ms: occurrence.at_ms,
                expires_at_ms: occurrence.at_ms + life_ms,
                idempotency_key: key(&id, occurrence.number),
                // The rule asks for the same text again.
                allow_duplicate: true,
                ..template.clone()
            };
            let (_, accept) = self.ingest.seal_one(&practice, &mut nonces, message)?;
            commands.push(ingest::encode(accept));
        }
        let made = commands.len();
        let advance = AdvanceSeries {
            series_id: id.to_bytes(),
            practice_no: record.practice_no,
            from: record.made,
            to,
            next_ms,
        };
        commands.push(Command { kind: Some(Kind::AdvanceSeries(advance)) }.encode_to_vec().into());
        let results = self.handle.propose(partition, commands).await;
        let results = results.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let (mut new, mut again) = (0, 0);
        for result in &results[..made.min(results.len())] {
            match result {
                CommandResult::Accepted => new += 1,
                CommandResult::Duplicate { .. } => again += 1,
                // The series goes on: one message less is better than none any more.
                other => {
                    let answer = std::mem::discriminant(other);
                    tracing::error!(partition, series = %id, ?answer, "a message of a series was refused");
                }
            }
        }
        metrics::counter!("carillon_series_messages_total").increment(new);
        if again > 0 {
            tracing::info!(partition, series = %id, again, "messages of a series existed already");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_occurrences_differ_and_are_longer_than_any_of_a_caller() {
        let id = MessageId::new(1, carillon_proto::Slot::of_practice("acme", "north"), 2);
        assert!(key(&id, 1).len() > 128 && key(&id, 1) != key(&id, 11));
    }
}
