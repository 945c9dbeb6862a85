//! `GetMessage`.
use super::Shared;
use crate::route::{self, Reply};
use crate::violations::{Fault, Violations};
use carillon_proto::MessageId;
use carillon_proto::errors;
use carillon_proto::internal::{NodeGetRequest, node_get_response};
use carillon_proto::public::{ErrorReason, GetMessageRequest, Message, MessageView};
use tonic::{Request, Status};

/// The id in a request, or the error for the caller.
pub(super) fn message_id(text: &str) -> Result<MessageId, Status> {
    let mut bad = Violations::default();
    let id = checked_id(text, &mut bad);
    bad.into_result()?;
    Ok(id.expect("a malformed id was refused"))
}

fn checked_id(text: &str, bad: &mut Violations) -> Option<MessageId> {
    let id = text.parse::<MessageId>();
    match &id {
        Err(_) if text.is_empty() => bad.add("message_id", Fault::EMPTY),
        Err(_) => bad.add("message_id", Fault::MALFORMED),
        Ok(_) => {}
    }
    id.ok()
}

pub(super) async fn get(shared: &Shared, request: Request<GetMessageRequest>) -> Result<Message, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let request = request.into_inner();
    let mut bad = Violations::default();
    if MessageView::try_from(request.view).is_err() {
        bad.add("view", Fault::UNKNOWN_VIEW);
    }
    let id = checked_id(&request.message_id, &mut bad);
    bad.into_result()?;
    let id = id.expect("a malformed id was refused");
    let partition = id.slot().partition(shared.partitions(deadline).await?);
    route::on_leader(&shared.map, partition, "Get", deadline, |mut client| {
        let asked = NodeGetRequest {
            tenant: caller.tenant().to_owned(),
            message_id: id.to_bytes(),
            view: request.view,
        };
        async move {
            match client.get(route::timed(asked, deadline)).await?.into_inner().result {
                Some(node_get_response::Result::Message(message)) => Ok(Reply::Done(message)),
                Some(node_get_response::Result::NotLeader(hint)) => Ok(Reply::NotLeader(hint)),
                Some(node_get_response::Result::Error(error)) => Err(errors::from_rpc(&error)),
                None => Err(errors::status(ErrorReason::Internal, "a node answered nothing")),
            }
        }
    })
    .await
}
