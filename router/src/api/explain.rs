//! `ExplainMessage`.
use super::Shared;
use super::get::message_id;
use crate::route::{self, Reply};
use carillon_proto::errors;
use carillon_proto::internal::{NodeExplainRequest, node_explain_response::Result as Explained};
use carillon_proto::public::{ErrorReason, ExplainMessageRequest, ExplainMessageResponse};
use tonic::{Request, Status};

pub(super) async fn explain(
    shared: &Shared,
    request: Request<ExplainMessageRequest>,
) -> Result<ExplainMessageResponse, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let id = message_id(&request.into_inner().message_id)?;
    let partition = id.slot().partition(shared.partitions(deadline).await?);
    route::on_leader(&shared.map, partition, "Explain", deadline, |mut client| {
        let asked = NodeExplainRequest { tenant: caller.tenant().to_owned(), message_id: id.to_bytes() };
        async move {
            match client.explain(route::timed(asked, deadline)).await?.into_inner().result {
                Some(Explained::Explained(answer)) => Ok(Reply::Done(answer)),
                Some(Explained::NotLeader(hint)) => Ok(Reply::NotLeader(hint)),
                Some(Explained::Error(error)) => Err(errors::from_rpc(&error)),
                None => Err(errors::status(ErrorReason::Internal, "a node answered nothing")),
            }
        }
    })
    .await
}
