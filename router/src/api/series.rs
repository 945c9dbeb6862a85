//! Series of recurring messages: the message is checked like any other; the rule is read by the node, which has the one reader of it.
use super::Shared;
use super::get::message_id;
use crate::deadline::Deadline;
use crate::route::{self, Reply};
use crate::validate::{self, AHEAD_MAX_MS};
use crate::violations::{Fault, Violations};
use carillon_proto::errors;
use carillon_proto::internal::node_series_request::Action;
use carillon_proto::internal::node_series_response::Result as Answered;
use carillon_proto::internal::{NodeCreateSeries, NodeSeriesRequest, SeriesPlan};
use carillon_proto::public::{
    CreateSeriesRequest, EndSeriesRequest, ErrorReason, GetSeriesRequest, MessageSpec, Series,
};
use tonic::{Request, Status};

/// Bytes of a rule.
const RULE_BYTES_MAX: usize = 512;
const EXCEPTIONS_MAX: usize = 366;

pub(super) async fn create(shared: &Shared, request: Request<CreateSeriesRequest>) -> Result<Series, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let CreateSeriesRequest { message, rule, start, exceptions, valid_for } = request.into_inner();
    let spec = message.unwrap_or_default();
    shared.own_practice(caller.tenant(), &spec.practice, deadline).await?;
    let mut bad = Violations::default();
    for (field, text) in [("rule", &rule), ("start", &start)] {
        match text.len() {
            0 => bad.add(field, Fault::EMPTY),
            bytes if bytes > RULE_BYTES_MAX => bad.add(field, Fault::TOO_LONG),
            _ => {}
        }
    }
    if exceptions.len() > EXCEPTIONS_MAX {
        bad.add("exceptions", Fault::TOO_MANY);
    }
    let valid_ms = match &valid_for {
        None => 0,
        Some(given) => match u64::try_from(given.seconds).ok().and_then(|s| s.checked_mul(1_000)) {
            Some(ms) if (1_000..=AHEAD_MAX_MS).contains(&ms) => ms,
            _ => {
                bad.add("valid_for", Fault::INVALID_DURATION);
                0
            }
        },
    };
    let times =
        [("not_before", &spec.not_before), ("expires_at", &spec.expires_at), ("deadline", &spec.deadline)];
    for (field, _) in times.into_iter().filter(|(_, time)| time.is_some()) {
        bad.add(&format!("message.{field}"), Fault::TIMES_OF_A_SERIES);
    }
    bad.into_result()?;
    let (message, partition, idempotency_key) = checked(shared, caller.tenant(), spec)?;
    let plan = SeriesPlan { message: Some(message), rule, start, exceptions, valid_ms };
    let action = Action::Create(NodeCreateSeries { plan: Some(plan), idempotency_key });
    ask(shared, caller.tenant(), partition, action, deadline).await
}

/// The message without its key, its partition, and the key.
fn checked(
    shared: &Shared,
    tenant: &str,
    spec: MessageSpec,
) -> Result<(carillon_proto::internal::IngestMessage, u32, String), Status> {
    let map = shared.map.load();
    let practice = map.practice(tenant, &spec.practice);
    let mut message = validate::check(spec, practice, super::now_ms())?.message;
    let partition = practice.ok_or_else(validate::practice_not_found)?.partition;
    let key = std::mem::take(&mut message.idempotency_key);
    Ok((message, partition, key))
}

pub(super) async fn get(shared: &Shared, request: Request<GetSeriesRequest>) -> Result<Series, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let id = message_id(&request.into_inner().series_id)?;
    let partition = id.slot().partition(shared.partitions(deadline).await?);
    ask(shared, caller.tenant(), partition, Action::Get(id.to_bytes()), deadline).await
}

pub(super) async fn end(shared: &Shared, request: Request<EndSeriesRequest>) -> Result<Series, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let id = message_id(&request.into_inner().series_id)?;
    let partition = id.slot().partition(shared.partitions(deadline).await?);
    ask(shared, caller.tenant(), partition, Action::End(id.to_bytes()), deadline).await
}

/// Repeats are safe with a key; without one a second series may come of a lost answer, as with messages.
async fn ask(
    shared: &Shared,
    tenant: &str,
    partition: u32,
    action: Action,
    deadline: Deadline,
) -> Result<Series, Status> {
    let asked = NodeSeriesRequest { tenant: tenant.to_owned(), partition, action: Some(action) };
    route::on_leader(&shared.map, partition, "ManageSeries", deadline, |mut client| {
        let asked = asked.clone();
        async move {
            match client.manage_series(route::timed(asked, deadline)).await?.into_inner().result {
                Some(Answered::Series(series)) => Ok(Reply::Done(series)),
                Some(Answered::NotLeader(hint)) => Ok(Reply::NotLeader(hint)),
                Some(Answered::Error(error)) => Err(errors::from_rpc(&error)),
                None => Err(errors::status(ErrorReason::Internal, "a node answered nothing")),
            }
        }
    })
    .await
}
