//! Hours of waiting messages, computed anew: when the scheduler says so, and for all that are held when the rules change.
use crate::clock::now_ms as clock_ms;
use crate::engine::NodeHandle;
use crate::hours::Hours;
use bytes::Bytes;
use carillon_core::meta::MetaView;
use carillon_core::{ReadTables, query};
use carillon_delivery::PRIORITIES;
use carillon_delivery::hours::{Rulebook, Stamps};
use carillon_proto::MessageId;
use carillon_proto::internal::{Command, command::Kind};
use prost::Message as _;
use std::sync::Arc;

/// Rows that a sweep looks at and proposes at a time.
const SWEEP_ROWS: usize = 256;
/// A sweep looks so far ahead. Nights and closed days end before that; what is due later is looked at when it is due.
const SWEEP_AHEAD_MS: u64 = 4 * 24 * 3_600_000;

/// Cheap to clone.
#[derive(Clone)]
pub struct Renewal {
    pub handle: NodeHandle,
    pub hours: Hours,
    /// Held by the one sweep that runs: after the death of a node its partitions come all at once.
    sweeping: Arc<tokio::sync::Mutex<()>>,
}

impl Renewal {
    pub fn new(handle: NodeHandle, hours: Hours) -> Self {
        Self { handle, hours, sweeping: Arc::default() }
    }

    /// For these messages. What fails is decided again by the scheduler.
    pub async fn renew(self, partition: u32, ids: Vec<MessageId>) {
        let reader = self.clone();
        let read = move || -> anyhow::Result<Vec<Bytes>> {
            let view = reader.handle.meta();
            let (tables, book) = (reader.handle.local_tables(partition)?, reader.hours.of(&view));
            commands(&*tables, &book, &view, ids)
        };
        if let Some(commands) = off_thread(partition, read).await {
            self.propose(partition, commands).await;
        }
    }

    /// For everything that waits and was computed by other rules: rules that were loosened let it go now. When rules change, and when
    /// this node begins to lead: whoever led before may not have come to it.
    pub async fn sweep(self, partition: u32) {
        let _one = self.sweeping.lock().await;
        if self.hours.stamps(&self.handle.meta()) == Stamps::default() {
            return;
        }
        for priority in PRIORITIES {
            let mut after = None;
            loop {
                let reader = self.clone();
                let read = move || -> anyhow::Result<(Vec<Bytes>, Option<query::DuePlace>)> {
                    let view = reader.handle.meta();
                    let (tables, book) = (reader.handle.local_tables(partition)?, reader.hours.of(&view));
                    let stamps = reader.hours.stamps(&view);
                    let until_ms = clock_ms() + SWEEP_AHEAD_MS;
                    let rows = query::due_sweep(&*tables, priority, after, until_ms, SWEEP_ROWS)?;
                    let last = rows.last().map(query::due_place);
                    let next = last.filter(|_| rows.len() == SWEEP_ROWS);
                    let stale = rows.iter().filter(|row| stamps.of(row.practice_no) != row.hours_stamp);
                    let ids = stale.map(|row| row.message_id).collect();
                    Ok((commands(&*tables, &book, &view, ids)?, next))
                };
                let Some((commands, next)) = off_thread(partition, read).await else { return };
                self.propose(partition, commands).await;
                after = next;
                if next.is_none() || !self.handle.is_leader(partition) {
                    break;
                }
            }
        }
    }

    async fn propose(&self, partition: u32, commands: Vec<Bytes>) {
        if !commands.is_empty() {
            drop(self.handle.propose(partition, commands).await);
        }
    }
}

async fn off_thread<T: Send + 'static>(
    partition: u32,
    read: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Option<T> {
    let read = tokio::task::spawn_blocking(read).await.map_err(anyhow::Error::from).and_then(|read| read);
    read.map_err(|error| tracing::error!(partition, %error, "hours cannot be computed")).ok()
}

fn commands(
    tables: &dyn ReadTables,
    book: &Rulebook,
    view: &MetaView,
    ids: Vec<MessageId>,
) -> anyhow::Result<Vec<Bytes>> {
    let mut commands = Vec::with_capacity(ids.len());
    let now_ms = clock_ms();
    for id in ids {
        // Gone in the meantime.
        let Some((payload, status)) = query::message(tables, &id)? else { continue };
        let Some(accept) = payload.accept else { continue };
        let practice = view.practices.get(&accept.practice_no);
        let set = book.renew(&id, &accept, &status, practice, now_ms);
        if set.due_ms > now_ms {
            let same = status.hours_stamp == set.hours_stamp;
            let when = if same { "window_over" } else { "rules_changed" };
            metrics::counter!("carillon_hours_held_total", "when" => when).increment(1);
        }
        commands.push(Command { kind: Some(Kind::SetHours(set)) }.encode_to_vec().into());
    }
    Ok(commands)
}
