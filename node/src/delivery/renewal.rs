//! Hours of waiting messages, computed anew: the scheduler says for which, and gets the answer as a change of the tables.
use crate::engine::NodeHandle;
use crate::hours::Hours;
use bytes::Bytes;
use carillon_core::query;
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, command::Kind};
use prost::Message as _;

/// Reads the messages, asks the rules, proposes. What fails is decided again by the scheduler.
pub async fn renew(handle: NodeHandle, hours: Hours, partition: u32, ids: Vec<MessageId>, now_ms: u64) {
    let reader = handle.clone();
    let read = move || -> anyhow::Result<Vec<Bytes>> {
        let view = reader.meta();
        let (tables, book) = (reader.local_tables(partition)?, hours.of(&view));
        let mut commands = Vec::with_capacity(ids.len());
        for id in ids {
            // Gone in the meantime.
            let Some((payload, status)) = query::message(&*tables, &id)? else { continue };
            let Some(accept) = payload.accept else { continue };
            let practice = view.practices.get(&accept.practice_no);
            let set = book.renew(&id, &accept, practice, now_ms.max(status.due_ms));
            let (when, held) = match status.hours_stamp == set.hours_stamp {
                true => ("window_over", set.due_ms > 0),
                false => ("rules_changed", set.due_ms > 0),
            };
            if held {
                metrics::counter!("carillon_hours_held_total", "when" => when).increment(1);
            }
            commands.push(Command { kind: Some(Kind::SetHours(set)) }.encode_to_vec().into());
        }
        Ok(commands)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(commands)) if !commands.is_empty() => drop(handle.propose(partition, commands).await),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::error!(partition, %error, "hours cannot be computed"),
        Err(error) => tracing::error!(partition, %error, "hours cannot be computed"),
    }
}
