//! One message: in line for a connection, through the lane, over the wire, and the one outcome that comes of it.
//!
//! The exchange runs on a task of its own: an answer that comes after its message was called ambiguous, or that nobody
//! waits for any more, is still heard and told to the sink.
use super::Shared;
use super::account::{Account, Sender};
use super::answer::{Answer, BODY_OCTETS_MAX, Verdict, judge};
use super::flight::{Flight, Payload};
use super::pool::{Pool, Seat, View};
use crate::clear::Clear;
use crate::connector::{ConnectorState, LateAnswer, SegmentGate, SendOutcome, SendRequest};
use crate::smpp::international_digits;
use carillon_proto::MessageId;
use carillon_proto::public::Outcome;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Limited};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use zeroize::Zeroizing;

const FORM: &str = "application/x-www-form-urlencoded";

/// Why a message never got to the socket.
enum Refusal {
    Draining,
    Broken(u32, Instant),
    NotConnected(Option<Instant>),
    /// The pause ends too late.
    Paused(Instant),
    SendByPassed,
    GateClosed,
    ConnectionLost,
}

impl Refusal {
    fn outcome(self) -> SendOutcome {
        let (outcome, code, until) = match self {
            Self::Draining => (Outcome::NotSent, "draining".to_owned(), None),
            Self::Broken(status, until) => (Outcome::LaneBroken, format!("http_{status}"), Some(until)),
            Self::NotConnected(next_try) => (Outcome::NotSent, "not_connected".to_owned(), next_try),
            Self::Paused(until) => (Outcome::NotSent, "paused".to_owned(), Some(until)),
            Self::SendByPassed => (Outcome::NotSent, "send_by_passed".to_owned(), None),
            Self::GateClosed => (Outcome::NotSent, "gate_closed".to_owned(), None),
            Self::ConnectionLost => (Outcome::NotSent, "connection_lost".to_owned(), None),
        };
        let retry_after = until.map(|until| until.saturating_duration_since(Instant::now()));
        SendOutcome { outcome, carrier_refs: Vec::new(), code, retry_after, segments: 0 }
    }
}

fn end(outcome: Outcome, code: &str, segments: u32) -> SendOutcome {
    SendOutcome { outcome, carrier_refs: Vec::new(), code: code.to_owned(), retry_after: None, segments }
}

/// Sends one message.
pub(crate) async fn send(shared: &Arc<Shared>, request: SendRequest, gate: &dyn SegmentGate) -> SendOutcome {
    let _active = shared.pool.enter();
    let outcome = attempt(shared, &request, gate).await;
    shared.pool.meters.outcome(outcome.outcome);
    outcome
}

async fn attempt(shared: &Arc<Shared>, request: &SendRequest, gate: &dyn SegmentGate) -> SendOutcome {
    let contract = shared.account().contract.get();
    if international_digits(request.recipient.expose()).is_none() {
        return end(Outcome::RejectedNumber, "bad_number", 0);
    }
    if contract.body_chars_max.is_some_and(|most| request.body.expose().chars().count() > most) {
        return end(Outcome::RejectedContent, "too_long", 0);
    }
    let Some(form) = form(shared.account(), request) else {
        // A wrong setting: it keeps the messages.
        return end(Outcome::LaneBroken, "bad_sender", 0);
    };
    let (mut seat, fresh_until) = match in_line(shared, request, gate).await {
        Ok(seated) => seated,
        Err(refusal) => return refusal.outcome(),
    };
    let send_by = request.send_by.min(fresh_until);
    let (payload, flight) = Payload::until(form, send_by);
    let Ok(create) = create(shared.account(), payload) else {
        return end(Outcome::LaneBroken, "bad_request", 0);
    };
    let requests = match seat.connected().await {
        // In line it was connected; if that connection is gone by now, nothing of this message was on it.
        Ok(requests) => requests,
        Err(_) => return Refusal::NotConnected(shared.pool.view().next()).outcome(),
    };
    let answered = requests.try_send_request(create);
    let tag = Tag { message_id: request.message_id, attempt_no: request.attempt_no };
    let (reply, answer) = oneshot::channel();
    let exchange = Exchange { shared: shared.clone(), seat, flight: flight.clone(), tag };
    tokio::spawn(exchange.run(answered, reply));
    wait(shared, request, send_by, &flight, answer).await
}

/// Waits for the answer: until `send_by` for the body to leave, then as long as the carrier may take.
async fn wait(
    shared: &Shared,
    request: &SendRequest,
    send_by: Instant,
    flight: &Flight,
    mut answer: oneshot::Receiver<Heard>,
) -> SendOutcome {
    let heard = tokio::select! {
        biased;
        heard = &mut answer => Some(heard),
        () = flight.taken() => None,
        () = sleep_until(send_by) => {
            if flight.ground() {
                return Refusal::SendByPassed.outcome();
            }
            None
        }
    };
    let heard = match heard {
        Some(heard) => heard,
        None => match timeout(shared.account().response_timeout, answer).await {
            Ok(heard) => heard,
            Err(_) => return end(Outcome::Ambiguous, "answer_timeout", request.segments),
        },
    };
    match heard {
        Ok(Heard::Answered(verdict)) => {
            let pause =
                shared.pool.paused_until().map(|until| until.saturating_duration_since(Instant::now()));
            let slow = matches!(verdict.outcome, Outcome::Throttled | Outcome::CapReached);
            let broken = verdict.broken.map(|_| shared.account().tuning.broken_retry);
            SendOutcome {
                outcome: verdict.outcome,
                carrier_refs: verdict.carrier_ref.into_iter().collect(),
                code: verdict.code,
                retry_after: pause.filter(|_| slow).or(broken),
                segments: request.segments,
            }
        }
        Ok(Heard::NotSent) => Refusal::ConnectionLost.outcome(),
        Ok(Heard::Lost) => end(Outcome::Ambiguous, "connection_lost", request.segments),
        // The task died: its body may have left.
        Err(_) if flight.ground() => Refusal::ConnectionLost.outcome(),
        Err(_) => end(Outcome::Ambiguous, "connection_lost", request.segments),
    }
}

/// Whose answer it is.
#[derive(Clone, Copy)]
struct Tag {
    message_id: MessageId,
    attempt_no: u32,
}

/// How an exchange ended.
enum Heard {
    Answered(Verdict),
    /// Proven: the body did not leave and will not.
    NotSent,
    Lost,
}

/// One request on its connection.
struct Exchange {
    shared: Arc<Shared>,
    seat: Seat,
    flight: Flight,
    tag: Tag,
}

type TryError = hyper::client::conn::TrySendError<Request<Payload>>;

impl Exchange {
    async fn run(
        self,
        answered: impl Future<Output = Result<http::Response<hyper::body::Incoming>, TryError>>,
        reply: oneshot::Sender<Heard>,
    ) {
        let began = Instant::now();
        let account = self.shared.account();
        // A message that is still in line has `send_by`; what left has an answer or a timeout.
        let longest = account.response_timeout + account.tuning.late_wait;
        let heard = match timeout(longest, Self::answer(answered)).await {
            Ok(Some(answer)) => {
                self.shared.pool.meters.answer_seconds.record(began.elapsed().as_secs_f64());
                let verdict = judge(account, &answer);
                if let Some((told, times)) = verdict.pause {
                    // Here, before any other sender moves.
                    self.shared.pool.pause(told, times);
                }
                if let Some(status) = verdict.broken {
                    self.shared.pool.broke(status);
                }
                Heard::Answered(verdict)
            }
            _ if self.flight.ground() => Heard::NotSent,
            _ => Heard::Lost,
        };
        let answered = matches!(heard, Heard::Answered(_));
        if let Err(Heard::Answered(verdict)) = reply.send(heard) {
            report_late(&self.shared, self.tag, verdict);
        }
        if answered {
            self.seat.keep().await;
        }
    }

    async fn answer(
        answered: impl Future<Output = Result<http::Response<hyper::body::Incoming>, TryError>>,
    ) -> Option<Answer> {
        let (head, body) = answered.await.ok()?.into_parts();
        // A head without its body: the status alone decides, as far as it can.
        match Limited::new(body, BODY_OCTETS_MAX).collect().await {
            Ok(body) => Some(Answer::new(head.status, &head.headers, body.to_bytes())),
            Err(_) if head.status.is_client_error() => {
                Some(Answer::new(head.status, &head.headers, bytes::Bytes::new()))
            }
            Err(_) => None,
        }
    }
}

/// The outcome was reported as ambiguous, or nobody waited: the truth goes to the sink.
fn report_late(shared: &Shared, tag: Tag, verdict: Verdict) {
    if verdict.outcome == Outcome::Ambiguous {
        return;
    }
    shared.pool.meters.late_answers.increment(1);
    tracing::info!(
        carrier = shared.account().carrier,
        message_id = %tag.message_id,
        attempt_no = tag.attempt_no,
        code = verdict.code,
        "late answer of the carrier"
    );
    shared.sink.late_answer(LateAnswer {
        message_id: tag.message_id,
        attempt_no: tag.attempt_no,
        part: 0,
        parts: 1,
        outcome: verdict.outcome,
        carrier_ref: verdict.carrier_ref,
        code: verdict.code,
    });
}

fn create(account: &Account, payload: Payload) -> http::Result<Request<Payload>> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("{}.json", account.messages_path()))
        .header(header::HOST, &account.origin.authority)
        .header(header::AUTHORIZATION, authorization(account))
        .header(header::CONTENT_TYPE, FORM)
        .header(header::ACCEPT, "application/json")
        .body(payload)
}

/// Marked, so that nothing prints it.
pub(crate) fn authorization(account: &Account) -> http::HeaderValue {
    let mut value = http::HeaderValue::from_str(account.authorization.expose()).expect("base64 is ascii");
    value.set_sensitive(true);
    value
}

/// The form of a create. `None`: the sender is not one.
fn form(account: &Account, request: &SendRequest) -> Option<Zeroizing<Vec<u8>>> {
    let contract = account.contract.get();
    let number = request.recipient.expose();
    let to = Clear::new(format!("+{}", international_digits(number)?));
    // Room for everything at once: a buffer that grows leaves a copy behind.
    let text =
        Zeroizing::new(String::with_capacity(3 * (request.body.expose().len() + number.len()) + 2_048));
    let mut form = form_urlencoded::Serializer::new(Taken(text));
    form.append_pair("To", to.expose());
    match (&request.sender, &account.sender) {
        (Some(own), _) if !super::account::is_sender(own) => return None,
        (Some(own), _) => form.append_pair("From", own),
        (None, Sender::Number(number)) => form.append_pair("From", number),
        (None, Sender::Service(service)) => form.append_pair("MessagingServiceSid", service),
    };
    form.append_pair("Body", request.body.expose());
    if let Some(validity) = request.validity {
        form.append_pair("ValidityPeriod", &contract.validity(validity).as_secs().to_string());
    }
    if let Some(url) = &account.callback_url {
        form.append_pair("StatusCallback", &callback_url(url, request, &contract.url_fragment));
    }
    let Taken(mut text) = form.finish();
    Some(Zeroizing::new(std::mem::take(&mut *text).into_bytes()))
}

/// The callback URL of one attempt: our reference to it is in the query, which is signed.
fn callback_url(url: &str, request: &SendRequest, fragment: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    let hash = if fragment.is_empty() { "" } else { "#" };
    format!("{url}{joint}m={}&a={}{hash}{fragment}", request.message_id, request.attempt_no)
}

/// Lets the serializer write into memory that is wiped.
struct Taken(Zeroizing<String>);

impl form_urlencoded::Target for Taken {
    type Finished = Self;

    fn as_mut_string(&mut self) -> &mut String {
        &mut self.0
    }

    fn finish(self) -> Self {
        self
    }
}

/// A seat with its connection and all permissions, in the order of arrival, and the moment after which they are void.
async fn in_line(
    shared: &Arc<Shared>,
    request: &SendRequest,
    gate: &dyn SegmentGate,
) -> Result<(Seat, Instant), Refusal> {
    let pool = &shared.pool;
    let mut view = pool.watch();
    let now = *view.borrow_and_update();
    hopeless(now, request.send_by).map_or(Ok(()), Err)?;
    let first = async {
        let _turn = shared.turnstile.pass(request.urgent).await;
        let mut seat = pool.seat().await;
        loop {
            // Before the permissions: they must not get old while a handshake takes its time.
            match seat.connected().await {
                Ok(_) => break,
                // The keeper tries again; `no_more_hope` ends the waiting.
                Err(_) => {
                    let mut view = pool.watch();
                    if view.wait_for(|view| view.connected).await.is_err() {
                        return Err(Refusal::Draining);
                    }
                }
            }
        }
        let fresh_until = permission(pool, request, gate).await?;
        Ok((seat, fresh_until))
    };
    tokio::select! {
        biased;
        seated = first => seated,
        refusal = no_more_hope(view, request.send_by) => Err(refusal),
    }
}

/// Waits for the end of the pause and for the permission to let the whole message leave. A pause that began while the gate was waited for makes
/// the permission stale: it would add to the burst after the pause.
async fn permission(pool: &Pool, request: &SendRequest, gate: &dyn SegmentGate) -> Result<Instant, Refusal> {
    loop {
        while let Some(until) = pool.paused_until() {
            if until >= request.send_by {
                return Err(Refusal::Paused(until));
            }
            sleep_until(until).await;
        }
        let together = gate.acquire_together(request.segments.max(1)).await;
        let fresh_until = together.map_err(|_| Refusal::GateClosed)?;
        if pool.paused_until().is_none() {
            return Ok(fresh_until);
        }
    }
}

/// The state of the lane leaves no hope of sending in time.
fn hopeless(view: View, send_by: Instant) -> Option<Refusal> {
    match view.state() {
        ConnectorState::Draining => Some(Refusal::Draining),
        ConnectorState::Broken { status } => {
            Some(Refusal::Broken(status, view.next().unwrap_or_else(Instant::now)))
        }
        ConnectorState::Down => {
            view.next_try.filter(|next_try| *next_try >= send_by).map(|at| Refusal::NotConnected(Some(at)))
        }
        ConnectorState::Up => None,
    }
}

/// Ends when the lane's state leaves no hope, at the latest at `send_by`.
async fn no_more_hope(mut view: watch::Receiver<View>, send_by: Instant) -> Refusal {
    let hopeless = async {
        loop {
            let now = *view.borrow_and_update();
            if let Some(refusal) = hopeless(now, send_by) {
                return refusal;
            }
            if view.changed().await.is_err() {
                return Refusal::Draining;
            }
        }
    };
    tokio::select! {
        biased;
        refusal = hopeless => return refusal,
        () = sleep_until(send_by) => {}
    }
    let last = *view.borrow();
    match last.state() {
        ConnectorState::Down => Refusal::NotConnected(last.next_try),
        _ => Refusal::SendByPassed,
    }
}

/// A request without a text of a patient; its answer, or `None` when there was none in time.
pub(crate) async fn ask(shared: &Shared, method: Method, path: &str, form: Vec<u8>) -> Option<Answer> {
    let account = shared.account();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, &account.origin.authority)
        .header(header::AUTHORIZATION, authorization(account))
        .header(header::CONTENT_TYPE, FORM)
        .header(header::ACCEPT, "application/json")
        .body(Payload::of(form))
        .ok()?;
    let exchange = async {
        let mut seat = shared.pool.seat().await;
        let answered = seat.connected().await.ok()?.try_send_request(request);
        let answer = Exchange::answer(answered).await?;
        seat.keep().await;
        Some(answer)
    };
    let limit: Duration = account.response_timeout;
    timeout(limit, exchange).await.ok().flatten()
}
