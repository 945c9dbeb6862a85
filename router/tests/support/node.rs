//! A fake node: the real service over real TLS, with state in memory and mishaps on demand.
use super::cluster::{Cluster, Mishap, State};
use carillon_proto::MessageId;
use carillon_proto::errors;
use carillon_proto::identity::Role;
use carillon_proto::internal::node_server::{Node, NodeServer};
use carillon_proto::internal::*;
use carillon_proto::public::{
    CancelResult, ErrorReason, ExplainMessageResponse, Message, MessageState, Series,
    UpdateAppointmentResponse, UpdateResult,
};
use carillon_proto::tls::{self, TlsFiles};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

#[derive(Clone)]
struct Fake {
    id: u64,
    cluster: Arc<Cluster>,
}

/// Runs a node in a runtime of its own, so that dropping it cuts every connection at once. Gives its address.
pub fn start(id: u64, cluster: Arc<Cluster>, files: &TlsFiles) -> (Runtime, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = tls::server_config(files).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    runtime.spawn(async move {
        let incoming = tls::incoming(tokio::net::TcpListener::from_std(listener).unwrap(), config);
        let service = NodeServer::new(Fake { id, cluster }).max_decoding_message_size(16 << 20);
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
    });
    (runtime, address)
}

fn only_routers<T>(request: &Request<T>) -> Result<(), Status> {
    let identity = tls::identity(request).ok_or_else(|| Status::permission_denied("no identity"))?;
    match identity.role {
        Role::Router(_) => Ok(()),
        _ => Err(Status::permission_denied("not a router")),
    }
}

type Answer<T> = Result<Response<T>, Status>;

impl Fake {
    fn not_leader(&self, partition: u32) -> Option<NotLeader> {
        let leader = self.cluster.leader(partition);
        (leader != self.id).then_some(NotLeader { leader_hint: leader })
    }

    /// Dies, and never answers.
    async fn die(&self) -> ! {
        self.cluster.deaths.send(self.id).await.unwrap();
        std::future::pending().await
    }

    fn submit_part(
        &self,
        state: &mut State,
        tenant: &str,
        part: PartitionSubmit,
        mishap: Option<Mishap>,
    ) -> PartitionSubmitResult {
        let partition = part.partition;
        let (leader, _) = state.leaders[partition as usize];
        let answer = PartitionSubmitResult { partition, ..PartitionSubmitResult::default() };
        if let Some(Mishap::NotLeader { hint }) = mishap {
            return PartitionSubmitResult { not_leader: true, leader_hint: hint, ..answer };
        }
        if leader != self.id {
            return PartitionSubmitResult { not_leader: true, leader_hint: leader, ..answer };
        }
        let results = part.messages.into_iter().map(|message| match mishap {
            Some(Mishap::UncertainLost) => IngestResult { uncertain: true, ..IngestResult::default() },
            Some(Mishap::UncertainAccepted) => {
                state.accept(tenant, partition, message);
                IngestResult { uncertain: true, ..IngestResult::default() }
            }
            Some(Mishap::Overloaded) => refusal(ErrorReason::Overloaded),
            Some(Mishap::PracticeUnknown) => refusal(ErrorReason::PracticeNotFound),
            _ => {
                let (id, duplicate) = state.accept(tenant, partition, message);
                IngestResult { message_id: id.to_bytes(), duplicate, ..IngestResult::default() }
            }
        });
        PartitionSubmitResult { results: results.collect(), ..answer }
    }
}

#[tonic::async_trait]
impl Node for Fake {
    async fn submit(&self, request: Request<NodeSubmitRequest>) -> Answer<NodeSubmitResponse> {
        only_routers(&request)?;
        assert!(request.metadata().get("grpc-timeout").is_some(), "the router must pass its deadline on");
        let NodeSubmitRequest { tenant, partitions } = request.into_inner();
        let mishap = self.cluster.tell(|state| {
            state.submits.push((self.id, partitions.iter().map(|p| p.partition).collect()));
            state.mishaps.get_mut(&self.id).and_then(std::collections::VecDeque::pop_front)
        });
        match mishap {
            Some(Mishap::Hang) => std::future::pending().await,
            Some(Mishap::Die) => self.die().await,
            Some(Mishap::Panic) => panic!("asked to panic"),
            Some(Mishap::Wait) => {
                let mut release = self.cluster.release.subscribe();
                let _sender_gone = release.wait_for(|open| *open).await;
            }
            _ => {}
        }
        let partitions = self.cluster.with(|state| {
            partitions.into_iter().map(|part| self.submit_part(state, &tenant, part, mishap)).collect()
        });
        if mishap == Some(Mishap::AcceptThenDie) {
            self.die().await;
        }
        Ok(Response::new(NodeSubmitResponse { partitions }))
    }

    async fn get(&self, request: Request<NodeGetRequest>) -> Answer<NodeGetResponse> {
        only_routers(&request)?;
        let request = request.into_inner();
        let id = MessageId::from_bytes(&request.message_id).unwrap();
        let partition = id.slot().partition(super::cluster::PARTITIONS);
        let result = if let Some(hint) = self.not_leader(partition) {
            node_get_response::Result::NotLeader(hint)
        } else {
            let found = self.cluster.with(|state| {
                let stored = state.partitions[partition as usize].messages.get(&id)?;
                (stored.tenant == request.tenant).then(|| message(&id, &stored.message, request.view))
            });
            match found {
                Some(message) => node_get_response::Result::Message(message),
                None => node_get_response::Result::Error(errors::to_rpc(&errors::status(
                    ErrorReason::MessageNotFound,
                    "no such message",
                ))),
            }
        };
        Ok(Response::new(NodeGetResponse { result: Some(result) }))
    }

    /// Pages are at most 3 long, so that tests need several look-ups.
    async fn list(&self, request: Request<NodeListRequest>) -> Answer<NodeListResponse> {
        only_routers(&request)?;
        let request = request.into_inner();
        if let Some(hint) = self.not_leader(request.partition) {
            return Ok(Response::new(NodeListResponse { not_leader: Some(hint), ..Default::default() }));
        }
        let filter = request.filter.unwrap();
        assert!(filter.page_token.is_empty() && filter.page_size == 0 && request.limit > 0);
        let limit = request.limit.min(3) as usize;
        let response = self.cluster.with(|state| {
            let numbers: Vec<u32> = state
                .practices
                .iter()
                .filter(|p| filter.practice.is_empty() || p.practice == filter.practice)
                .map(|p| p.practice_no)
                .collect();
            let rows = &state.partitions[request.partition as usize].messages;
            let after = (!request.after.is_empty()).then(|| MessageId::from_bytes(&request.after).unwrap());
            let mut rows = rows.iter().filter(|(id, stored)| {
                after.is_none_or(|after| **id > after)
                    && stored.tenant == request.tenant
                    && numbers.contains(&stored.message.practice_no)
            });
            let page: Vec<_> = rows.by_ref().take(limit).collect();
            let more = rows.next().is_some();
            let next = page.last().filter(|_| more).map_or_else(Default::default, |(id, _)| id.to_bytes());
            let messages =
                page.iter().map(|(id, stored)| message(id, &stored.message, filter.view)).collect();
            NodeListResponse { messages, next, not_leader: None }
        });
        Ok(Response::new(response))
    }

    async fn cancel(&self, request: Request<NodeCancelRequest>) -> Answer<NodeCancelResponse> {
        only_routers(&request)?;
        let request = request.into_inner();
        if let Some(hint) = self.not_leader(request.partition) {
            return Ok(Response::new(NodeCancelResponse { not_leader: Some(hint), ..Default::default() }));
        }
        let results = self.cluster.with(|state| {
            let rows = &state.partitions[request.partition as usize].messages;
            let by_id = request.message_ids.iter().map(|id| {
                let id = MessageId::from_bytes(id).unwrap();
                match rows.get(&id).filter(|stored| stored.tenant == request.tenant) {
                    Some(_) => canceled(&id, ""),
                    None => CancelResult {
                        error: Some(errors::to_rpc(&errors::status(ErrorReason::MessageNotFound, ""))),
                        ..CancelResult::default()
                    },
                }
            });
            let by_reference = rows.iter().filter(|(_, stored)| {
                stored.tenant == request.tenant
                    && stored.message.practice_no == request.practice_no
                    && request.external_references.contains(&stored.message.external_reference)
            });
            by_id
                .chain(by_reference.map(|(id, stored)| canceled(id, &stored.message.external_reference)))
                .collect()
        });
        Ok(Response::new(NodeCancelResponse { results, not_leader: None }))
    }

    async fn explain(&self, request: Request<NodeExplainRequest>) -> Answer<NodeExplainResponse> {
        only_routers(&request)?;
        let request = request.into_inner();
        let id = MessageId::from_bytes(&request.message_id).unwrap();
        let partition = id.slot().partition(self.cluster.with(|state| state.partitions.len() as u32 - 1));
        if let Some(hint) = self.not_leader(partition) {
            let result = Some(node_explain_response::Result::NotLeader(hint));
            return Ok(Response::new(NodeExplainResponse { result }));
        }
        let result = self.cluster.with(|state| {
            let stored = state.partitions[partition as usize].messages.get(&id);
            match stored.filter(|stored| stored.tenant == request.tenant) {
                Some(stored) => node_explain_response::Result::Explained(ExplainMessageResponse {
                    message: Some(message(&id, &stored.message, 0)),
                    summary: "explained".to_owned(),
                    ..Default::default()
                }),
                None => {
                    let error = errors::status(ErrorReason::MessageNotFound, "");
                    node_explain_response::Result::Error(errors::to_rpc(&error))
                }
            }
        });
        Ok(Response::new(NodeExplainResponse { result: Some(result) }))
    }

    async fn manage_series(&self, request: Request<NodeSeriesRequest>) -> Answer<NodeSeriesResponse> {
        only_routers(&request)?;
        let request = request.into_inner();
        if let Some(hint) = self.not_leader(request.partition) {
            let result = Some(node_series_response::Result::NotLeader(hint));
            return Ok(Response::new(NodeSeriesResponse { result }));
        }
        let result = match request.action {
            Some(node_series_request::Action::Create(create)) => {
                let practice = create.plan.unwrap().rule;
                node_series_response::Result::Series(Series { practice, ..Default::default() })
            }
            _ => {
                let error = errors::status(ErrorReason::MessageNotFound, "");
                node_series_response::Result::Error(errors::to_rpc(&error))
            }
        };
        Ok(Response::new(NodeSeriesResponse { result: Some(result) }))
    }

    /// Says back what it was asked.
    async fn update(&self, request: Request<NodeUpdateRequest>) -> Answer<NodeUpdateResponse> {
        only_routers(&request)?;
        let request = request.into_inner();
        if let Some(hint) = self.not_leader(request.partition) {
            let result = Some(node_update_response::Result::NotLeader(hint));
            return Ok(Response::new(NodeUpdateResponse { result }));
        }
        let known = self.cluster.with(|state| {
            let rows = &state.partitions[request.partition as usize].messages;
            rows.iter()
                .filter(|(_, stored)| stored.message.external_reference == request.external_reference)
                .map(|(id, _)| UpdateResult { message_id: id.to_string(), ..Default::default() })
                .collect()
        });
        let answer = UpdateAppointmentResponse { results: known, duplicate: request.version == 1 };
        let result = Some(node_update_response::Result::Updated(answer));
        Ok(Response::new(NodeUpdateResponse { result }))
    }

    type WatchStream = ReceiverStream<Result<NodeWatchResponse, Status>>;

    async fn watch(&self, request: Request<NodeWatchRequest>) -> Answer<Self::WatchStream> {
        only_routers(&request)?;
        let request = request.into_inner();
        let (fake, (sender, receiver)) = (self.clone(), mpsc::channel(4));
        tokio::spawn(async move { fake.send_events(request, sender).await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type WatchMapStream = ReceiverStream<Result<MapUpdate, Status>>;

    async fn watch_map(&self, request: Request<WatchMapRequest>) -> Answer<Self::WatchMapStream> {
        only_routers(&request)?;
        let (fake, (sender, receiver)) = (self.clone(), mpsc::channel(4));
        tokio::spawn(async move {
            let mut changed = fake.cluster.changed.subscribe();
            while sender.send(Ok(fake.cluster.map(fake.id))).await.is_ok() {
                tokio::select! {
                    result = changed.changed() => if result.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Fake {
    async fn send_events(
        &self,
        request: NodeWatchRequest,
        sender: mpsc::Sender<Result<NodeWatchResponse, Status>>,
    ) {
        let mut changed = self.cluster.changed.subscribe();
        let last = |state: &mut State| {
            state.partitions[request.partition as usize].events.last().map_or(9, |(index, ..)| *index)
        };
        let mut index = if request.from_now { self.cluster.with(last) } else { request.after_index };
        self.cluster.with(|state| state.watches += 1);
        let mut first = true;
        loop {
            if let Some(hint) = self.not_leader(request.partition) {
                let end = NodeWatchResponse { not_leader: Some(hint), ..Default::default() };
                let _gone = sender.send(Ok(end)).await;
                return;
            }
            let (events, now) = self.cluster.with(|state| {
                let all = &state.partitions[request.partition as usize].events;
                let wanted = all.iter().filter(|(at, tenant, practice_no, _)| {
                    *at > index
                        && *tenant == request.tenant
                        && (request.practice_no == 0 || request.practice_no == *practice_no)
                });
                let events: Vec<_> = wanted.map(|(_, _, _, event)| event.clone()).collect();
                (events, all.last().map_or(9, |(at, ..)| *at))
            });
            if first || !events.is_empty() {
                (first, index) = (false, now.max(index));
                let news = NodeWatchResponse { events, index, not_leader: None };
                if sender.send(Ok(news)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                result = changed.changed() => if result.is_err() { return },
                () = sender.closed() => return,
            }
        }
    }
}

fn refusal(reason: ErrorReason) -> IngestResult {
    let error = errors::to_rpc(&errors::status(reason, "refused"));
    IngestResult { error: Some(error), ..IngestResult::default() }
}

fn message(id: &MessageId, stored: &IngestMessage, view: i32) -> Message {
    Message {
        message_id: id.to_string(),
        body: if view == 2 { stored.body.clone() } else { String::new() },
        recipient: stored.recipient.clone(),
        class: stored.class,
        external_reference: stored.external_reference.clone(),
        time_zone: stored.time_zone.clone(),
        state: MessageState::Accepted as i32,
        ..Message::default()
    }
}

fn canceled(id: &MessageId, reference: &str) -> CancelResult {
    CancelResult {
        message_id: id.to_string(),
        canceled: true,
        state: MessageState::Canceled as i32,
        external_reference: reference.to_owned(),
        ..CancelResult::default()
    }
}
