//! Messages whose fate a restore left unknown, for operators: listed, released, dropped. Ids and counts only; nothing is opened.
use super::backup::led;
use super::propose_status;
use crate::engine::NodeHandle;
use bytes::Bytes;
use carillon_core::meta::{MetaView, level::LEVEL_DELIVERY};
use carillon_core::{CommandResult, RESOLVE_LIMIT_MAX, ReadTables, TableError, is_taken_over, query};
use carillon_proto::admin::{
    ListQuarantineRequest, ListQuarantineResponse, QuarantineCount, QuarantinedMessage,
    ResolveQuarantineRequest, ResolveQuarantineResponse,
};
use carillon_proto::internal::{Command, ResolveQuarantine, command::Kind};
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::Status;

const PAGE: usize = 1_000;
/// Messages named in one answer, at most.
const LIST_MAX: usize = 10_000;
/// Messages that stay and are named in the answer of one partition, at most.
const KEPT_NAMED_MAX: usize = 100;
/// Between two looks for the gauge.
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Quarantine<'a> {
    pub handle: &'a NodeHandle,
}

/// 0 = all.
pub(super) fn practice_no(view: &MetaView, tenant: &str, practice: &str) -> Result<u32, Status> {
    if tenant.is_empty() && practice.is_empty() {
        return Ok(0);
    }
    let found = view.practice(tenant, practice).map(|record| record.practice_no);
    found.ok_or_else(|| Status::not_found(format!("there is no practice {tenant}/{practice}")))
}

/// Counts by practice.
fn counts(tables: &dyn ReadTables, practice_no: u32) -> Result<BTreeMap<u32, u64>, TableError> {
    let (mut counts, mut after) = (BTreeMap::new(), None);
    loop {
        let page = query::quarantined(tables, practice_no, after, PAGE)?;
        for (practice_no, _) in &page {
            *counts.entry(*practice_no).or_default() += 1;
        }
        after = page.last().copied();
        if page.len() < PAGE {
            return Ok(counts);
        }
    }
}

fn named(
    tables: &dyn ReadTables,
    practice_no: u32,
    limit: usize,
) -> Result<Vec<(u32, QuarantinedMessage)>, TableError> {
    let mut named = Vec::new();
    for (practice_no, id) in query::quarantined(tables, practice_no, None, limit)? {
        let Some((_, status)) = query::message(tables, &id)? else { continue };
        let message = QuarantinedMessage {
            message_id: id.to_string(),
            class: status.class,
            accepted_at_ms: status.accepted_at_ms,
            expires_at_ms: status.expires_at_ms,
            // The last one stands for what nobody knows.
            attempts: status.attempts.len().saturating_sub(1) as u32,
            taken_over: is_taken_over(&status),
            ..Default::default()
        };
        named.push((practice_no, message));
    }
    Ok(named)
}

impl Quarantine<'_> {
    /// What is in quarantine, of the partitions that this node leads.
    pub async fn list(&self, request: ListQuarantineRequest) -> Result<ListQuarantineResponse, Status> {
        let view = self.handle.meta();
        let practice_no = practice_no(&view, &request.tenant, &request.practice)?;
        let partitions = match request.partition {
            0 => (1..=self.handle.partitions()).filter(|p| self.handle.is_leader(*p)).collect(),
            partition => vec![led(self.handle, partition)?],
        };
        let mut answer = ListQuarantineResponse { partitions: partitions.clone(), ..Default::default() };
        let limit = (request.limit as usize).min(LIST_MAX);
        for partition in partitions {
            let tables = self.handle.read(partition).await.map_err(|error| propose_status(&error))?;
            let left = limit - answer.messages.len();
            let read = tokio::task::spawn_blocking(move || {
                Ok::<_, TableError>((counts(&*tables, practice_no)?, named(&*tables, practice_no, left)?))
            });
            let (counts, named) = match read.await {
                Ok(Ok(found)) => found,
                _ => return Err(super::internal("unreadable rows")),
            };
            let of = |no: u32| {
                let record = view.practices.get(&no);
                record.map(|r| (r.tenant.clone(), r.practice.clone())).unwrap_or_default()
            };
            answer.counts.extend(counts.into_iter().map(|(no, messages)| {
                let (tenant, practice) = of(no);
                QuarantineCount { partition, tenant, practice, messages }
            }));
            answer.messages.extend(named.into_iter().map(|(no, message)| {
                let (tenant, practice) = of(no);
                QuarantinedMessage { partition, tenant, practice, ..message }
            }));
        }
        Ok(answer)
    }

    pub async fn resolve(
        &self,
        request: &ResolveQuarantineRequest,
    ) -> Result<ResolveQuarantineResponse, Status> {
        let partition = led(self.handle, request.partition)?;
        let practice_no = practice_no(&self.handle.meta(), &request.tenant, &request.practice)?;
        let delivery = self.handle.meta().level >= LEVEL_DELIVERY;
        let mut command = ResolveQuarantine {
            practice_no,
            action: request.action,
            limit: RESOLVE_LIMIT_MAX,
            keep_taken_over: delivery && !request.taken_over_too,
            ..Default::default()
        };
        let mut answer = ResolveQuarantineResponse::default();
        loop {
            let kind = Some(Kind::ResolveQuarantine(command.clone()));
            let encoded = Bytes::from(Command { kind }.encode_to_vec());
            let results = self.handle.propose(partition, vec![encoded]).await;
            let results = results.map_err(|error| propose_status(&error))?;
            let Some(CommandResult::Resolved(resolved)) = results.first() else {
                return Err(Status::failed_precondition("name an action, and wait until a restore is done"));
            };
            answer.messages += u64::from(resolved.messages);
            answer.kept += resolved.kept.len() as u64;
            let room = KEPT_NAMED_MAX.saturating_sub(answer.kept_message_ids.len());
            answer.kept_message_ids.extend(resolved.kept.iter().take(room).map(ToString::to_string));
            let action = request.action().as_str_name();
            metrics::counter!("carillon_quarantine_resolved_total", "action" => action)
                .increment(u64::from(resolved.messages));
            if !resolved.more {
                let (messages, kept) = (answer.messages, answer.kept);
                tracing::info!(partition, practice_no, messages, kept, action, "quarantine resolved");
                return Ok(answer);
            }
            if let Some((practice_no, id)) = resolved.last.filter(|_| delivery) {
                (command.after_practice_no, command.after_message_id) = (practice_no, id.to_bytes());
            }
        }
    }
}

/// Keeps the gauge, in a cluster that was restored. Runs for as long as the node does.
pub async fn watch(handle: NodeHandle) {
    let mut ticker = tokio::time::interval(LOOK_EVERY);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let view = handle.meta();
        metrics::gauge!("carillon_restore_under_way").set(f64::from(u8::from(view.is_restoring())));
        if view.restore.is_none() {
            continue;
        }
        let led: Vec<u32> = (1..=handle.partitions()).filter(|p| handle.is_leader(*p)).collect();
        let reader = handle.clone();
        let read = tokio::task::spawn_blocking(move || {
            let count = |partition: u32| -> anyhow::Result<u64> {
                Ok(counts(&*reader.local_tables(partition)?, 0)?.values().sum())
            };
            led.into_iter().map(|partition| count(partition).unwrap_or(0)).sum::<u64>()
        });
        metrics::gauge!("carillon_quarantined_messages").set(read.await.unwrap_or(0) as f64);
    }
}
