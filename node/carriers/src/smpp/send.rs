//! One message through the lane: its parts in order on one bind, and the one outcome that comes of it.
//!
//! The first part waits in line: a turnstile keeps senders in order while the window is full or the lane is paused.
//! Later parts do not queue again, because part of the message is out already; they keep the seat of the first one.
//!
//! Each part waits for the answer to the one before, so a refused first part means that nothing was taken over and the
//! message simply has that outcome. Once a part was accepted the message can neither be sent again (the patient would
//! get the first part twice) nor be called refused (something will arrive). So a later part is
//!  - sent after the pause when the carrier said "slow down", to this message or to another one, as long as `send_by` allows:
//!    it was provably not taken over. The first part has only until `start_by`, as a message that was not begun loses nothing;
//!  - otherwise the end: `AMBIGUOUS` with the code of what happened and the ids of the accepted parts, whose receipts
//!    then tell what the patient got.
use super::config::{Source, international_digits};
use super::parts::Parts;
use super::pool::{Pool, Seat, View};
use super::session::{PartAnswer, SEND_BY_PASSED, Submission, Tag};
use super::{Shared, pdu, status};
use crate::connector::{ConnectorState, SegmentGate, SendOutcome, SendRequest};
use carillon_proto::public::Outcome;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// Why a part never got to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Draining,
    /// The carrier refuses our credentials; when they are tried again.
    Broken(u32, Option<Instant>),
    NotConnected(Option<Instant>),
    /// The pause ends too late.
    Paused(Instant),
    SendByPassed,
    GateClosed,
    NotWritten(&'static str),
}

impl Refusal {
    fn outcome(self) -> SendOutcome {
        let (outcome, code, until) = match self {
            Self::Draining => (Outcome::NotSent, "draining".to_owned(), None),
            Self::Broken(status, next_try) => (Outcome::LaneBroken, status::code(status), next_try),
            Self::NotConnected(next_try) => (Outcome::NotSent, "not_connected".to_owned(), next_try),
            Self::Paused(until) => (Outcome::NotSent, "paused".to_owned(), Some(until)),
            Self::SendByPassed => (Outcome::NotSent, SEND_BY_PASSED.to_owned(), None),
            Self::GateClosed => (Outcome::NotSent, "gate_closed".to_owned(), None),
            Self::NotWritten(code) => (Outcome::NotSent, code.to_owned(), None),
        };
        let retry_after = until.map(|until| until.saturating_duration_since(Instant::now()));
        SendOutcome { outcome, carrier_refs: Vec::new(), code, retry_after, segments: 0 }
    }
}

/// The way of one message so far.
#[derive(Default)]
struct Progress {
    seat: Option<Arc<Seat>>,
    /// Parts that the carrier accepted.
    accepted: u32,
    carrier_refs: Vec<String>,
    /// Submits that were written or may have been.
    written: u32,
}

impl Progress {
    fn end(self, outcome: Outcome, code: String, retry_after: Option<Duration>) -> SendOutcome {
        SendOutcome { outcome, carrier_refs: self.carrier_refs, code, retry_after, segments: self.written }
    }

    /// Nothing of this part left. Once a part was accepted, the rest is missing for good.
    fn refused(self, refusal: Refusal) -> SendOutcome {
        let outcome = refusal.outcome();
        if self.accepted > 0 {
            return self.end(Outcome::Ambiguous, outcome.code, None);
        }
        SendOutcome { segments: self.written, ..outcome }
    }
}

/// Sends one message.
pub(crate) async fn send(shared: &Arc<Shared>, request: SendRequest, gate: &dyn SegmentGate) -> SendOutcome {
    let _active = shared.pool.enter();
    let outcome = attempt(shared, request, gate).await;
    shared.pool.meters.outcome(outcome.outcome);
    outcome
}

async fn attempt(shared: &Arc<Shared>, request: SendRequest, gate: &dyn SegmentGate) -> SendOutcome {
    let progress = Progress::default();
    let Some(digits) = international_digits(request.recipient.expose()) else {
        return progress.end(Outcome::RejectedNumber, "bad_number".into(), None);
    };
    let own = match request.sender.as_deref().map(Source::parse) {
        // A wrong setting: it keeps the messages.
        Some(None) => return progress.end(Outcome::LaneBroken, "bad_sender".into(), None),
        Some(own) => own,
        None => None,
    };
    let source = own.as_ref().unwrap_or(&shared.pool.account.source);
    let reference = shared.concatenation_reference.fetch_add(1, Ordering::Relaxed);
    let Ok(parts) = Parts::cut(request.body.expose(), reference) else {
        return progress.end(Outcome::RejectedContent, "too_many_parts".into(), None);
    };
    if parts.octets.len() != request.segments as usize {
        tracing::warn!(
            message_id = %request.message_id,
            counted = request.segments,
            parts = parts.octets.len(),
            "the text has another number of parts than was counted"
        );
    }
    let user_message_reference = shared.recent.remember(request.message_id, digits);
    let wires = parts.octets.iter().map(|octets| pdu::Submit {
        source,
        recipient: digits,
        encoding: parts.encoding,
        octets,
        concatenated: parts.is_concatenated(),
        validity: None,
        user_message_reference,
    });
    in_order(shared, &request, wires.collect(), gate, progress).await
}

/// Sends the parts one after the other.
async fn in_order(
    shared: &Arc<Shared>,
    request: &SendRequest,
    mut parts: Vec<pdu::Submit<'_>>,
    gate: &dyn SegmentGate,
    mut progress: Progress,
) -> SendOutcome {
    let contract = shared.pool.account.contract.get();
    let began = Instant::now();
    while let Some(part) = parts.get_mut(progress.accepted as usize) {
        // All parts end at the same moment, also one that had to wait.
        let (send_by, waited) = match progress.accepted {
            0 => (request.start_by.min(request.send_by), Duration::ZERO),
            _ => (request.send_by, began.elapsed()),
        };
        part.validity = request.validity.map(|wanted| contract.validity(wanted.saturating_sub(waited)));
        let Ok(wire) = pdu::submit(part) else {
            return progress.end(Outcome::RejectedContent, "bad_field".into(), None);
        };
        let tag = Tag {
            message_id: request.message_id,
            attempt_no: request.attempt_no,
            part: progress.accepted,
            parts: parts.len() as u32,
        };
        let answer =
            match hand_over(shared, &mut progress.seat, wire, tag, (send_by, request.urgent), gate).await {
                // The session answers every submission; if its task died, the PDU may have been written.
                Ok(answer) => answer.await.unwrap_or(PartAnswer::Lost),
                Err(refusal) => return progress.refused(refusal),
            };
        if !matches!(answer, PartAnswer::NotWritten(_)) {
            progress.written += 1;
        }
        match answer {
            // The permission was void before its turn at the socket came: another one.
            PartAnswer::NotWritten(SEND_BY_PASSED) if Instant::now() < send_by => {}
            PartAnswer::NotWritten(code) => return progress.refused(Refusal::NotWritten(code)),
            PartAnswer::TimedOut => return progress.end(Outcome::Ambiguous, "answer_timeout".into(), None),
            PartAnswer::Lost => return progress.end(Outcome::Ambiguous, "connection_lost".into(), None),
            PartAnswer::Answered { status, nack, carrier_ref } => {
                let meaning = status::meaning(&contract, status, nack);
                let first = progress.accepted == 0;
                match meaning.outcome {
                    Outcome::Accepted => {
                        progress.accepted += 1;
                        progress.carrier_refs.extend(carrier_ref);
                    }
                    // The same part again: waits for the end of the pause, or is refused if that is too late.
                    Outcome::Throttled if !first => {}
                    outcome => {
                        let code = if nack {
                            format!("nack_{}", status::code(status))
                        } else {
                            status::code(status)
                        };
                        let pause = shared.pool.paused_until().map(|until| until - Instant::now());
                        let retry_after = pause.filter(|_| outcome == Outcome::Throttled);
                        let outcome = if first { outcome } else { Outcome::Ambiguous };
                        return progress.end(outcome, code, retry_after);
                    }
                }
            }
        }
    }
    progress.end(Outcome::Accepted, status::code(status::OK), None)
}

type Answer = oneshot::Receiver<PartAnswer>;

/// Gets a part to its session, or says why it did not get there.
async fn hand_over(
    shared: &Arc<Shared>,
    seat: &mut Option<Arc<Seat>>,
    wire: pdu::Wire,
    tag: Tag,
    (send_by, urgent): (Instant, bool),
    gate: &dyn SegmentGate,
) -> Result<Answer, Refusal> {
    let pool = &shared.pool;
    let submit = |seat: Arc<Seat>, fresh_until: Instant| {
        let (reply, answer) = oneshot::channel();
        let send_by = send_by.min(fresh_until);
        let submission = Submission { wire, send_by, tag, seat: seat.clone(), reply };
        seat.submit(submission).map(|()| answer).map_err(|_| Refusal::NotWritten("connection_lost"))
    };
    if let Some(seat) = seat {
        return tokio::select! {
            biased;
            permitted = permission(pool, seat, send_by, gate) => permitted.and_then(|fresh_until| submit(seat.clone(), fresh_until)),
            () = sleep_until(send_by) => Err(Refusal::SendByPassed),
        };
    }
    let mut view = pool.watch();
    let now = *view.borrow_and_update();
    hopeless(now, send_by).map_or(Ok(()), Err)?;
    let first = async {
        let _turn = shared.turnstile.pass(urgent).await;
        let taken = Arc::new(pool.seat().await);
        let fresh_until = permission(pool, &taken, send_by, gate).await?;
        if tag.parts > 1 {
            *seat = Some(taken.clone());
        }
        submit(taken, fresh_until)
    };
    tokio::select! {
        biased;
        answer = first => answer,
        refusal = no_more_hope(view, send_by) => Err(refusal),
    }
}

/// Waits for the end of the pause, for the bind's turn and for the gate; gives the moment after which the permission is void. A pause that began while the gate was waited for makes the
/// permission stale: it would add to the burst after the pause.
async fn permission(
    pool: &Pool,
    seat: &Seat,
    send_by: Instant,
    gate: &dyn SegmentGate,
) -> Result<Instant, Refusal> {
    loop {
        while let Some(until) = pool.paused_until() {
            if until >= send_by {
                return Err(Refusal::Paused(until));
            }
            sleep_until(until).await;
        }
        let free_at = seat.free_at();
        if free_at > Instant::now() {
            sleep_until(free_at).await;
            continue;
        }
        let fresh_until = gate.acquire_fresh().await.map_err(|_| Refusal::GateClosed)?;
        if pool.paused_until().is_none() && seat.take_turn() {
            return Ok(fresh_until);
        }
    }
}

/// The state of the lane leaves no hope of sending in time.
fn hopeless(view: View, send_by: Instant) -> Option<Refusal> {
    match view.state() {
        ConnectorState::Draining => Some(Refusal::Draining),
        ConnectorState::Broken { status } => Some(Refusal::Broken(status, view.next_try)),
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
