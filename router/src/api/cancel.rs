//! `CancelMessages`: by id, each at the partition of its slot, and by external reference, at the practice's partition.
//! Cancelling twice changes nothing, so every call may be repeated.
use super::Shared;
use crate::deadline::Deadline;
use crate::route::{self, Reply};
use crate::validate::{self, ITEMS_MAX, KEY_BYTES_MAX};
use crate::violations::{Fault, Violations};
use carillon_proto::MessageId;
use carillon_proto::errors;
use carillon_proto::internal::NodeCancelRequest;
use carillon_proto::public::{CancelMessagesRequest, CancelMessagesResponse, CancelResult, ErrorReason};
use futures::stream::{self, StreamExt as _};
use std::collections::BTreeMap;
use tonic::{Request, Status};

const REFERENCES_MAX: usize = 100;
/// Partitions asked at the same time.
const CONCURRENCY: usize = 16;

pub(super) async fn cancel(
    shared: &Shared,
    request: Request<CancelMessagesRequest>,
) -> Result<CancelMessagesResponse, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let CancelMessagesRequest { message_ids, external_references, practice } = request.into_inner();
    validate::count(message_ids.len() + external_references.len(), ITEMS_MAX + REFERENCES_MAX)?;
    // Without references the practice says nothing.
    let named = if external_references.is_empty() { "" } else { practice.as_str() };
    let partitions = shared.own_practice(caller.tenant(), named, deadline).await?;
    check(&message_ids, &external_references, &practice)?;
    let canceller = Canceller { shared, tenant: caller.tenant(), deadline };
    let by_reference = canceller.by_reference(&practice, external_references);
    let by_id = canceller.by_id(&message_ids, partitions);
    let (by_id, by_reference) = tokio::join!(by_id, by_reference);
    let mut results = by_id;
    results.extend(by_reference?);
    Ok(CancelMessagesResponse { results })
}

fn check(ids: &[String], references: &[String], practice: &str) -> Result<(), Status> {
    if ids.len() > ITEMS_MAX || references.len() > REFERENCES_MAX {
        let what = format!("more than {ITEMS_MAX} ids or {REFERENCES_MAX} external references");
        return Err(errors::status(ErrorReason::TooManyItems, &what));
    }
    let mut bad = Violations::default();
    if !references.is_empty() && practice.is_empty() {
        bad.add("practice", Fault::EMPTY);
    }
    for (index, reference) in references.iter().enumerate() {
        let field = || format!("external_references[{index}]");
        if reference.is_empty() {
            bad.add(&field(), Fault::EMPTY);
        } else if reference.len() > KEY_BYTES_MAX {
            bad.add(&field(), Fault::TOO_LONG);
        }
    }
    bad.into_result()
}

struct Canceller<'a> {
    shared: &'a Shared,
    tenant: &'a str,
    deadline: Deadline,
}

impl Canceller<'_> {
    /// One result for each id, in order.
    async fn by_id(&self, ids: &[String], partitions: u32) -> Vec<CancelResult> {
        let mut results: Vec<Option<CancelResult>> = vec![None; ids.len()];
        let mut groups: BTreeMap<u32, Vec<(usize, MessageId)>> = BTreeMap::new();
        for (index, text) in ids.iter().enumerate() {
            match text.parse::<MessageId>() {
                Ok(id) => groups.entry(id.slot().partition(partitions)).or_default().push((index, id)),
                Err(_) => {
                    let fault = errors::violation(
                        &format!("message_ids[{index}]"),
                        Fault::MALFORMED.reason(),
                        Fault::MALFORMED.description(),
                    );
                    results[index] = Some(failed(String::new(), &errors::invalid_fields(vec![fault])));
                }
            }
        }
        let mut answers = stream::iter(groups.into_iter().map(|(partition, group)| async move {
            let asked = NodeCancelRequest {
                tenant: self.tenant.to_owned(),
                partition,
                message_ids: group.iter().map(|(_, id)| id.to_bytes()).collect(),
                ..NodeCancelRequest::default()
            };
            let answer = self.ask(asked).await.and_then(|results| {
                let fits = results.len() == group.len();
                fits.then_some(results)
                    .ok_or_else(|| errors::status(ErrorReason::Internal, "a node answered wrongly"))
            });
            (group, answer)
        }))
        .buffer_unordered(CONCURRENCY);
        while let Some((group, answer)) = answers.next().await {
            match answer {
                Ok(answer) => {
                    for ((index, id), mut result) in group.into_iter().zip(answer) {
                        result.message_id = id.to_string();
                        results[index] = Some(result);
                    }
                }
                Err(status) => {
                    for (index, id) in group {
                        results[index] = Some(failed(id.to_string(), &status));
                    }
                }
            }
        }
        results.into_iter().map(|result| result.expect("every id is malformed or in a group")).collect()
    }

    /// One result for each message found; if the partition cannot be reached, one error for each reference.
    async fn by_reference(
        &self,
        practice: &str,
        references: Vec<String>,
    ) -> Result<Vec<CancelResult>, Status> {
        if references.is_empty() {
            return Ok(Vec::new());
        }
        let map = self.shared.map.load();
        let practice = map.practice(self.tenant, practice).ok_or_else(validate::practice_not_found)?;
        let asked = NodeCancelRequest {
            tenant: self.tenant.to_owned(),
            partition: practice.partition,
            external_references: references.clone(),
            practice_no: practice.number,
            ..NodeCancelRequest::default()
        };
        Ok(self.ask(asked).await.unwrap_or_else(|status| {
            let result =
                |reference| CancelResult { external_reference: reference, ..failed(String::new(), &status) };
            references.into_iter().map(result).collect()
        }))
    }

    async fn ask(&self, asked: NodeCancelRequest) -> Result<Vec<CancelResult>, Status> {
        route::on_leader(&self.shared.map, asked.partition, "Cancel", self.deadline, |mut client| {
            let asked = asked.clone();
            async move {
                let answer = client.cancel(route::timed(asked, self.deadline)).await?.into_inner();
                Ok(match answer.not_leader {
                    Some(hint) => Reply::NotLeader(hint),
                    None => Reply::Done(answer.results),
                })
            }
        })
        .await
    }
}

fn failed(message_id: String, status: &Status) -> CancelResult {
    CancelResult { message_id, error: Some(errors::to_rpc(status)), ..CancelResult::default() }
}
