//! Series of recurring messages: made, looked at, ended. The rule is checked here and sealed with the message; [`crate::series`] makes the messages.
use super::ingest::{keyring_status, restoring};
use super::query::{missing, not_leader};
use super::view::timestamp;
use super::{internal, propose_status};
use crate::clock::now_ms as clock_ms;
use crate::engine::{NodeHandle, ProposeError};
use crate::seal::{Context, Field, Keyring, Nonces};
use carillon_core::meta::level::LEVEL_DELIVERY;
use carillon_core::{CommandResult, Refusal, series};
use carillon_delivery::recur::{RuleError, Series as Recurrence};
use carillon_proto::errors::{self, invalid_fields, violation};
use carillon_proto::internal::node_series_request::Action;
use carillon_proto::internal::node_series_response::Result as SeriesAnswer;
use carillon_proto::internal::{
    Command, EndSeries, NodeCreateSeries, NodeSeriesRequest, NodeSeriesResponse, PutSeries, SeriesPlan,
    SeriesRecord, command::Kind,
};
use carillon_proto::public::{ErrorReason, Series};
use carillon_proto::{MessageId, Slot};
use prost::Message as _;
use std::sync::Arc;
use tonic::Status;

/// Occurrences shown.
const UPCOMING_MAX: usize = 10;

#[derive(Clone)]
pub struct SeriesDesk {
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
}

enum Out {
    Propose(ProposeError),
    Refused(Status),
}

impl From<Status> for Out {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// The rule of a plan.
pub fn recurrence(plan: &SeriesPlan) -> Result<Recurrence, RuleError> {
    let zone = plan.message.as_ref().map_or("", |message| message.time_zone.as_str());
    Recurrence::parse(&plan.rule, &plan.start, zone, &plan.exceptions)
}

impl SeriesDesk {
    pub async fn manage(&self, request: NodeSeriesRequest) -> Result<NodeSeriesResponse, Status> {
        let NodeSeriesRequest { tenant, partition, action } = request;
        if partition == 0 || partition > self.handle.partitions() {
            return Err(internal("no such partition"));
        }
        let done = match action {
            Some(Action::Create(create)) => self.create(&tenant, partition, create).await,
            Some(Action::Get(id)) => self.get(&tenant, partition, &id).await,
            Some(Action::End(id)) => self.end(&tenant, partition, &id).await,
            None => Err(internal("nothing is asked for").into()),
        };
        let result = match done {
            Ok(series) => SeriesAnswer::Series(series),
            Err(Out::Propose(error @ ProposeError::NotLeader { .. })) => {
                SeriesAnswer::NotLeader(not_leader(&error))
            }
            Err(Out::Propose(error)) => return Err(propose_status(&error)),
            Err(Out::Refused(status)) => SeriesAnswer::Error(errors::to_rpc(&status)),
        };
        Ok(NodeSeriesResponse { result: Some(result) })
    }

    async fn create(&self, tenant: &str, partition: u32, create: NodeCreateSeries) -> Result<Series, Out> {
        let plan = create.plan.unwrap_or_default();
        let practice_no = plan.message.as_ref().map_or(0, |message| message.practice_no);
        let view = self.handle.meta();
        let unknown = || errors::status(ErrorReason::PracticeNotFound, "no such practice");
        let practice = view.practices.get(&practice_no).filter(|p| p.tenant == tenant).ok_or_else(unknown)?;
        let slot = Slot::of_practice(&practice.tenant, &practice.practice);
        if slot.partition(self.handle.partitions()) != partition {
            return Err(Out::Propose(ProposeError::NotLeader { leader_hint: 0 }));
        }
        if view.level < LEVEL_DELIVERY {
            let what = "series need feature level 5; upgrade every node first";
            return Err(errors::status(ErrorReason::Overloaded, what).into());
        }
        let rule = recurrence(&plan).map_err(|error| refused_rule(&error))?;
        let Some(first) = rule.after(0).next() else {
            let fault = violation("rule", "NO_OCCURRENCE", "has no occurrence");
            return Err(invalid_fields(vec![fault]).into());
        };
        let keys = self.keyring.newest(practice_no).await.map_err(|error| keyring_status(&error))?;
        let id = MessageId::new(clock_ms(), slot, rand::random());
        let context = Context { cluster_id: &view.cluster_id, practice_no, message_id: &id };
        let encoded = plan.encode_to_vec();
        let idempotency_index = match create.idempotency_key.as_str() {
            "" => Default::default(),
            key => keys.idempotency_index(key),
        };
        let command = PutSeries {
            series_id: id.to_bytes(),
            practice_no,
            sealed_plan: keys
                .seal(&mut Nonces::default(), context, Field::Plan, &encoded)
                .map_err(|_| internal("sealing failed"))?,
            key_epoch: keys.epoch,
            idempotency_index,
            // Labels are a map without an order; everything else is in the order of its fields.
            content_mac: keys.content_mac(&canonical(plan.clone())),
            next_ms: first.at_ms.max(1),
        };
        let made = SeriesRecord { practice_no, ..SeriesRecord::default() };
        match self.propose(partition, Kind::PutSeries(command)).await? {
            CommandResult::Accepted => Ok(self.shown(&id, &made, &rule)),
            CommandResult::Duplicate { message_id } => {
                let tables = self.handle.read(partition).await.map_err(Out::Propose)?;
                let found = series::load(&*tables, &message_id).map_err(|_| internal("unreadable record"))?;
                Ok(match found {
                    Some(record) => Series { duplicate: true, ..self.shown(&message_id, &record, &rule) },
                    None => Series {
                        duplicate: true,
                        ended: true,
                        upcoming: Vec::new(),
                        ..self.shown(&message_id, &made, &rule)
                    },
                })
            }
            CommandResult::KeyReused { message_id } => Err(errors::status_with(
                ErrorReason::IdempotencyKeyReused,
                "the idempotency key names something else",
                &[("message_id", message_id.to_string())],
            )
            .into()),
            CommandResult::Refused(Refusal::Restoring) => Err(restoring().into()),
            _ => Err(internal("the series was refused").into()),
        }
    }

    async fn find(&self, tenant: &str, partition: u32, id: &[u8]) -> Result<(MessageId, SeriesRecord), Out> {
        let id = MessageId::from_bytes(id).map_err(|_| missing())?;
        let tables = self.handle.read(partition).await.map_err(Out::Propose)?;
        let found = series::load(&*tables, &id).map_err(|_| internal("unreadable record"))?;
        let view = self.handle.meta();
        let own = |no: u32| view.practices.get(&no).is_some_and(|p| p.tenant == tenant);
        let record = found.filter(|record| own(record.practice_no)).ok_or_else(missing)?;
        Ok((id, record))
    }

    async fn get(&self, tenant: &str, partition: u32, id: &[u8]) -> Result<Series, Out> {
        let (id, record) = self.find(tenant, partition, id).await?;
        let plan = open(&self.handle, &self.keyring, &id, &record)?;
        let rule = recurrence(&plan).map_err(|_| internal("a stored rule is not understood"))?;
        Ok(self.shown(&id, &record, &rule))
    }

    async fn end(&self, tenant: &str, partition: u32, id: &[u8]) -> Result<Series, Out> {
        let (id, record) = self.find(tenant, partition, id).await?;
        let plan = open(&self.handle, &self.keyring, &id, &record)?;
        let rule = recurrence(&plan).map_err(|_| internal("a stored rule is not understood"))?;
        let command = EndSeries { series_id: id.to_bytes(), practice_no: record.practice_no };
        match self.propose(partition, Kind::EndSeries(command)).await? {
            // Not found: it ended a moment ago.
            CommandResult::Done | CommandResult::Refused(Refusal::NotFound) => {
                Ok(Series { ended: true, upcoming: Vec::new(), ..self.shown(&id, &record, &rule) })
            }
            CommandResult::Refused(Refusal::Restoring) => Err(restoring().into()),
            _ => Err(internal("the end of the series was refused").into()),
        }
    }

    async fn propose(&self, partition: u32, kind: Kind) -> Result<CommandResult, Out> {
        let command = Command { kind: Some(kind) }.encode_to_vec();
        let results = self.handle.propose(partition, vec![command.into()]).await.map_err(Out::Propose)?;
        results.into_iter().next().ok_or_else(|| internal("no answer").into())
    }

    fn shown(&self, id: &MessageId, record: &SeriesRecord, rule: &Recurrence) -> Series {
        let view = self.handle.meta();
        let practice = view.practices.get(&record.practice_no).map(|p| p.practice.clone());
        let upcoming = rule.after(record.made).take(UPCOMING_MAX);
        Series {
            series_id: id.to_string(),
            practice: practice.unwrap_or_default(),
            made: record.made,
            upcoming: upcoming.filter_map(|occurrence| timestamp(occurrence.at_ms)).collect(),
            duplicate: false,
            ended: false,
        }
    }
}

/// The plan of a series, opened.
pub fn open(
    handle: &NodeHandle,
    keyring: &Keyring,
    id: &MessageId,
    record: &SeriesRecord,
) -> Result<SeriesPlan, Status> {
    let keys =
        keyring.of_epoch(record.practice_no, record.key_epoch).map_err(|error| keyring_status(&error))?;
    let view = handle.meta();
    let context = Context { cluster_id: &view.cluster_id, practice_no: record.practice_no, message_id: id };
    let opened =
        keys.open(context, Field::Plan, &record.sealed_plan).map_err(|_| internal("a plan does not open"))?;
    SeriesPlan::decode(opened.as_slice()).map_err(|_| internal("a plan does not decode"))
}

fn refused_rule(error: &RuleError) -> Status {
    let (field, word) = match error {
        RuleError::Start => ("start", "INVALID_START"),
        RuleError::Zone => ("message.time_zone", "UNKNOWN_TIME_ZONE"),
        RuleError::Exceptions => ("exceptions", "INVALID_DATE"),
        _ => ("rule", "INVALID_RULE"),
    };
    invalid_fields(vec![violation(field, word, &error.to_string())])
}

/// What makes two calls with one key "the same": everything, with the labels in order.
fn canonical(mut plan: SeriesPlan) -> Vec<u8> {
    let mut out = b"series".to_vec();
    let labels = plan.message.as_mut().map(|message| std::mem::take(&mut message.labels)).unwrap_or_default();
    let mut labels: Vec<_> = labels.into_iter().collect();
    labels.sort_unstable();
    for text in labels.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(&(text.len() as u32).to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(&plan.encode_to_vec());
    out
}
