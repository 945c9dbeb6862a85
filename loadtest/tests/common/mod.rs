//! A stand-in for the router: the Messages service over TLS with client certificates, in this process.
//!
//! It keeps idempotency keys like the real one, and breaks streams, refuses items and falls silent on order.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use carillon_loadtest::client::{Client, ClientConfig};
use carillon_loadtest::run::engine::Address;
use carillon_proto::errors;
use carillon_proto::public::messages_server::{Messages, MessagesServer};
use carillon_proto::public::submit_result::Result as Item;
use carillon_proto::public::*;
use carillon_proto::tls::{self, TlsFiles};
use carillon_proto::{MessageId, Slot};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// What the stand-in does to one request of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Answer,
    /// Accepts everything, then ends the stream with an error instead of an answer.
    BreakAfterAccepting,
    /// Ends the stream with an error and accepts nothing.
    BreakBefore,
    /// Never answers.
    Silence,
    /// Refuses the whole batch for now.
    Overloaded,
    /// Accepts every other message, and refuses the others for now.
    Half,
    /// Holds the answer back until the next one was given.
    Swap,
    /// Refuses the stream for good.
    Forbidden,
}

#[derive(Default)]
pub struct State {
    pub ids: HashMap<String, String>,
    /// What to do with the n-th request (of all streams); then `Answer`.
    pub script: Vec<Act>,
    pub requests: usize,
    pub streams: usize,
    /// Requests read and not answered, at most, on one stream.
    pub in_flight_max: usize,
    pub list_failures: usize,
    pub list_calls: usize,
    pub cursors: Vec<String>,
    /// What each call of WatchEvents sends before it ends.
    pub watch: Vec<Vec<WatchEventsResponse>>,
    pub practices_seen: HashSet<String>,
    /// Accepted ids, sent as DELIVERED events when somebody watches.
    pub delivered: Option<mpsc::Sender<Event>>,
}

#[derive(Clone, Default)]
pub struct Fake(pub Arc<Mutex<State>>);

impl Fake {
    fn accept(&self, message: &MessageSpec) -> SubmitResult {
        let mut state = self.0.lock();
        let next = state.ids.len() as u64;
        state.practices_seen.insert(message.practice.clone());
        let duplicate = state.ids.contains_key(&message.idempotency_key);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let fresh = MessageId::new(now.as_millis() as u64, Slot::new(7).unwrap(), next).to_string();
        let message_id = state.ids.entry(message.idempotency_key.clone()).or_insert(fresh).clone();
        if let (Some(events), false) = (&state.delivered, duplicate) {
            let time = Some(carillon_loadtest::sample_day::timestamp(now.as_millis() as i64 + 5));
            let delivered = MessageState::Delivered as i32;
            let event =
                Event { message_id: message_id.clone(), state: delivered, time, ..Default::default() };
            events.try_send(event).expect("the test makes the channel large enough");
        }
        let accepted = AcceptedMessage { message_id, duplicate, segments: 1, ..Default::default() };
        SubmitResult { result: Some(Item::Accepted(accepted)) }
    }

    fn next_act(&self) -> Act {
        let mut state = self.0.lock();
        state.requests += 1;
        state.script.get(state.requests - 1).copied().unwrap_or(Act::Answer)
    }

    fn answer(&self, request: &StreamMessagesRequest, act: Act) -> StreamMessagesResponse {
        let busy = errors::to_rpc(&errors::status(ErrorReason::Overloaded, ""));
        let results = match act {
            Act::Overloaded => Vec::new(),
            _ => {
                let item = |(at, message)| match act {
                    Act::Half if at % 2 == 1 => SubmitResult { result: Some(Item::Error(busy.clone())) },
                    _ => self.accept(message),
                };
                request.messages.iter().enumerate().map(item).collect()
            }
        };
        let error = (act == Act::Overloaded).then_some(busy.clone());
        StreamMessagesResponse { batch_id: request.batch_id, results, error }
    }

    async fn serve(
        self,
        mut inbound: Streaming<StreamMessagesRequest>,
        answers: mpsc::Sender<Result<StreamMessagesResponse, Status>>,
    ) {
        let (mut held, mut silent) = (None, 0);
        while let Ok(Some(request)) = inbound.message().await {
            let act = self.next_act();
            if matches!(act, Act::Answer | Act::BreakAfterAccepting) && request.messages.is_empty() {
                return;
            }
            match act {
                Act::Forbidden => {
                    let _ = answers.send(Err(Status::permission_denied("no"))).await;
                    return;
                }
                Act::BreakBefore | Act::BreakAfterAccepting => {
                    if act == Act::BreakAfterAccepting {
                        self.answer(&request, Act::Answer);
                    }
                    let _ = answers.send(Err(Status::unavailable("broken on order"))).await;
                    return;
                }
                Act::Silence => silent += 1,
                Act::Swap => held = Some(self.answer(&request, Act::Answer)),
                act => {
                    let _ = answers.send(Ok(self.answer(&request, act))).await;
                    if let Some(held) = held.take() {
                        let _ = answers.send(Ok(held)).await;
                    }
                }
            }
            let waiting = silent + usize::from(held.is_some());
            let mut state = self.0.lock();
            state.in_flight_max = state.in_flight_max.max(waiting);
        }
        if let Some(held) = held {
            let _ = answers.send(Ok(held)).await;
        }
    }
}

fn need_deadline<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("grpc-timeout") {
        Some(_) => Ok(()),
        None => Err(errors::status(ErrorReason::DeadlineRequired, "")),
    }
}

#[tonic::async_trait]
impl Messages for Fake {
    type StreamMessagesStream = Answers<StreamMessagesResponse>;
    type WatchEventsStream = Answers<WatchEventsResponse>;

    async fn submit_messages(
        &self,
        request: Request<SubmitMessagesRequest>,
    ) -> Result<Response<SubmitMessagesResponse>, Status> {
        need_deadline(&request)?;
        let results = request.get_ref().messages.iter().map(|message| self.accept(message)).collect();
        Ok(Response::new(SubmitMessagesResponse { results }))
    }

    async fn stream_messages(
        &self,
        request: Request<Streaming<StreamMessagesRequest>>,
    ) -> Result<Response<Self::StreamMessagesStream>, Status> {
        need_deadline(&request)?;
        self.0.lock().streams += 1;
        let (answers, outbound) = mpsc::channel(64);
        tokio::spawn(self.clone().serve(request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn get_message(&self, _: Request<GetMessageRequest>) -> Result<Response<Message>, Status> {
        Err(errors::status(ErrorReason::MessageNotFound, ""))
    }

    async fn explain_message(
        &self,
        _: Request<ExplainMessageRequest>,
    ) -> Result<Response<ExplainMessageResponse>, Status> {
        Err(errors::status(ErrorReason::MessageNotFound, ""))
    }

    async fn list_messages(
        &self,
        request: Request<ListMessagesRequest>,
    ) -> Result<Response<ListMessagesResponse>, Status> {
        need_deadline(&request)?;
        let mut state = self.0.lock();
        state.list_calls += 1;
        if state.list_calls <= state.list_failures {
            return Err(errors::status(ErrorReason::NotLeader, ""));
        }
        // Two messages a page, in the order of their ids.
        let mut ids: Vec<String> = state.ids.values().cloned().collect();
        ids.sort();
        let from: usize = request.get_ref().page_token.parse().unwrap_or(0);
        let page = ids.iter().skip(from).take(2);
        let messages = page.map(|id| Message { message_id: id.clone(), ..Default::default() }).collect();
        let next = if from + 2 < ids.len() { (from + 2).to_string() } else { String::new() };
        Ok(Response::new(ListMessagesResponse { messages, next_page_token: next }))
    }

    async fn cancel_messages(
        &self,
        request: Request<CancelMessagesRequest>,
    ) -> Result<Response<CancelMessagesResponse>, Status> {
        need_deadline(&request)?;
        let state = MessageState::Canceled as i32;
        let result = |id: &String| CancelResult {
            message_id: id.clone(),
            canceled: true,
            state,
            ..Default::default()
        };
        let results = request.get_ref().message_ids.iter().map(result).collect();
        Ok(Response::new(CancelMessagesResponse { results }))
    }

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        need_deadline(&request)?;
        let mut state = self.0.lock();
        state.cursors.push(request.get_ref().cursor.clone());
        if state.watch.is_empty() {
            let (events, inbound) = mpsc::channel(1_000_000);
            state.delivered = Some(events);
            let stream = tokio_stream::StreamExt::map(ReceiverStream::new(inbound), |event| {
                Ok(WatchEventsResponse { events: vec![event], cursor: "live".to_owned() })
            });
            return Ok(Response::new(Box::pin(stream)));
        }
        let responses: Vec<_> = state.watch.remove(0).into_iter().map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(responses))))
    }
}

fn write_pair(dir: &Path, name: &str, ca: &CertifiedIssuer<'_, KeyPair>, san: SanType) -> TlsFiles {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![san];
    let cert = params.signed_by(&key, ca).unwrap();
    let files = TlsFiles {
        cert: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join("ca.pem"),
    };
    std::fs::write(&files.cert, cert.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// A stand-in that serves, and what a client needs to reach it.
pub struct Served {
    pub fake: Fake,
    pub address: SocketAddr,
    pub files: TlsFiles,
    _dir: tempfile::TempDir,
}

impl Served {
    pub async fn start(fake: Fake) -> Self {
        tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
        let ip = SanType::IpAddress([127, 0, 0, 1].into());
        let server = write_pair(dir.path(), "server", &ca, ip);
        let tenant = SanType::URI("spiffe://lab/tenant/lakeside".try_into().unwrap());
        let files = write_pair(dir.path(), "tenant", &ca, tenant);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tls::incoming(listener, tls::server_config(&server).unwrap());
        let service = MessagesServer::new(fake.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { fake, address, files, _dir: dir }
    }

    pub fn address(&self) -> Address {
        let TlsFiles { cert, key, ca } = self.files.clone();
        Address { router: self.address.to_string(), cert, key, ca }
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.address.to_string(), &self.files, ClientConfig::default()).unwrap()
    }
}
