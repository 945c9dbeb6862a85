//! One attempt: opens the payload, waits for the gate, calls the connector, reports the outcome as a fact.
//!
//! Invariant: every attempt gets its outcome, whatever happens. A panic before the connector was called is a failure that counts
//! (nothing left, and the same message would panic again); one after that may have been sent. Neither says anything about the carrier.
use super::agreement;
use super::driver::Local;
use super::facts::{Fact, Facts};
use super::lanes::{Lane, NoPermit, NodeGate};
use super::leases::Leases;
use super::reconcile::{Note, Reconciler, wants_note};
use crate::engine::NodeHandle;
use crate::failpoints;
use crate::seal::{Context, Field, Keyring};
use carillon_carriers::Clear;
use carillon_carriers::connector::{BoxFuture, GateClosed, SegmentGate, SendOutcome, SendRequest};
use carillon_core::Permit;
use carillon_core::meta::senders;
use carillon_delivery::hours::MARGIN_MS;
use carillon_delivery::lease::{common, stack};
use carillon_proto::internal::{Command, RecordOutcome, command::Kind};
use carillon_proto::public::{Encoding, Outcome};
use futures::FutureExt as _;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Code of an attempt in which we panicked.
const PANIC_CODE: &str = "panic";

/// What every send needs; cheap to clone.
#[derive(Clone)]
pub struct Sender {
    pub handle: NodeHandle,
    pub keyring: Arc<Keyring>,
    pub facts: Facts,
    pub leases: Leases,
    pub reconciler: Reconciler,
    pub local: mpsc::Sender<Local>,
    /// Attempts under way, for the drain.
    pub attempts: TaskTracker,
}

/// The clock when the permits came back, and until when a message may begin to leave; how long the rest of it may take is in its permit.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub now_ms: u64,
    pub start_by_ms: u64,
}

/// The lane's gate, counting permits so that the driver learns when the last segment may leave.
struct CountingGate<'a> {
    chosen: Mutex<Chosen>,
    /// Chooses again, when limits were changed.
    choose: Box<dyn Fn() -> Chosen + Send + Sync + 'a>,
    /// Its turn among those that need the same limits; given up with the first permit.
    turn: Mutex<Option<OwnedMutexGuard<()>>>,
    left: AtomicU32,
    urgent: bool,
    sent: Box<dyn Fn() + Send + Sync + 'a>,
}

/// The gate of a message, and the settings of the limits by which it is that one.
#[derive(Clone)]
struct Chosen {
    gate: Arc<NodeGate>,
    stamp: u64,
    /// It needs limits that other messages of the carrier do not.
    own: bool,
}

impl SegmentGate for CountingGate<'_> {
    fn acquire(&self) -> BoxFuture<'_, Result<(), GateClosed>> {
        Box::pin(async { self.acquire_together(1).await.map(drop) })
    }

    fn acquire_fresh(&self) -> BoxFuture<'_, Result<Instant, GateClosed>> {
        self.acquire_together(1)
    }

    fn acquire_together(&self, segments: u32) -> BoxFuture<'_, Result<Instant, GateClosed>> {
        Box::pin(async move {
            let fresh_until = loop {
                let Chosen { gate, stamp, .. } = self.chosen.lock().clone();
                match gate.acquire_as(self.urgent, stamp, segments).await {
                    Ok(fresh_until) => break fresh_until,
                    Err(NoPermit::Closed) => return Err(GateClosed),
                    Err(NoPermit::Changed) => *self.chosen.lock() = (self.choose)(),
                }
            };
            drop(self.turn.lock().take());
            let left = self.left.load(Ordering::Relaxed);
            self.left.store(left.saturating_sub(segments), Ordering::Relaxed);
            if (1..=segments).contains(&left) {
                (self.sent)();
            }
            Ok(fresh_until)
        })
    }
}

impl Sender {
    /// Runs one committed attempt to its outcome.
    pub async fn run(
        self,
        (partition, term): (u32, u64),
        permit: Permit,
        urgent: bool,
        lane: Option<Arc<Lane>>,
        times: Times,
    ) {
        let id = permit.message_id;
        let outcome = match &lane {
            None => not_sent("no_lane"),
            // Whatever decided to send it: this is the last wall.
            Some(lane) if !agreement::covers(lane, permit.class) => not_sent(agreement::CODE),
            Some(lane) => match self.opened(&permit, urgent, times) {
                Err(outcome) => outcome,
                Ok(request) => {
                    // The gate must not wait; without room `Finished` says it a little later.
                    let sent = || drop(self.local.try_send(Local::Sent { partition, term, message_id: id }));
                    match self.turn_of(lane, &permit, (request.start_by, urgent)).await {
                        None => not_sent("send_by_passed"),
                        Some((chosen, turn)) => {
                            let gate = CountingGate {
                                chosen: Mutex::new(chosen),
                                choose: Box::new(|| self.choose(lane, &permit)),
                                turn: Mutex::new(turn),
                                left: AtomicU32::new(permit.segments.max(1)),
                                urgent,
                                sent: Box::new(sent),
                            };
                            failpoints::hit("send::before_first_byte");
                            let sending = async {
                                panic_if_asked("send::panic_handed_over", &request);
                                lane.connector.send(request, &gate).await
                            };
                            let outcome = AssertUnwindSafe(sending).catch_unwind().await;
                            failpoints::hit("send::after_answer");
                            outcome.unwrap_or_else(|_| panicked(Outcome::Ambiguous))
                        }
                    }
                }
            },
        };
        let carrier = lane.as_ref().map_or_else(|| "none".to_owned(), |lane| lane.record.name.clone());
        let word = outcome.outcome.as_str_name().trim_start_matches("OUTCOME_").to_ascii_lowercase();
        metrics::counter!("carillon_attempts_total", "carrier" => carrier, "outcome" => word).increment(1);
        if outcome.code != PANIC_CODE {
            let (carrier_no, sender_no) = (permit.carrier_no, permit.sender_no);
            let answered = Local::Answered { carrier_no, sender_no, outcome: outcome.outcome };
            drop(self.local.send(answered).await);
        }
        let pause = outcome.retry_after.unwrap_or(Duration::from_secs(1));
        let throttled = (outcome.outcome == Outcome::Throttled).then_some(pause);
        self.leases.answered(permit.carrier_no, throttled);
        // One sender that is refused does not stop the others.
        let broken = outcome.outcome == Outcome::LaneBroken && permit.sender_no == 0;
        if broken || matches!(outcome.outcome, Outcome::Throttled | Outcome::CapReached) {
            drop(self.local.send(Local::Pause { carrier_no: permit.carrier_no, pause }).await);
        }
        drop(self.local.send(Local::Finished { partition, term, message_id: id }).await);
        if lane.as_ref().is_some_and(|lane| wants_note(lane, outcome.outcome)) {
            self.reconciler.note(Note {
                message_id: id,
                carrier_no: permit.carrier_no,
                carrier_ref: outcome.carrier_refs.first().cloned(),
                submitted: outcome.outcome == Outcome::Accepted,
            });
        }
        self.report(partition, &permit, outcome).await;
    }

    /// The gate of a message, and its turn there if it needs limits that others of the carrier do not. `None`: it did not come
    /// in time.
    async fn turn_of(
        &self,
        lane: &Lane,
        permit: &Permit,
        (start_by, urgent): (Instant, bool),
    ) -> Option<(Chosen, Option<OwnedMutexGuard<()>>)> {
        let turn = async {
            loop {
                let chosen = self.choose(lane, permit);
                if !chosen.own {
                    return (chosen, None);
                }
                // In parts over SMPP; over HTTP all of it leaves at once.
                let together = if lane.record.smpp.is_some() { 1 } else { permit.segments.max(1) };
                if let Some(turn) = chosen.gate.near(urgent, chosen.stamp, together).await {
                    return (chosen, Some(turn));
                }
            }
        };
        tokio::time::timeout_at(start_by, turn).await.ok()
    }

    /// The gate of all limits that the message needs. The stamp comes first: limits that are newer than it are looked at again.
    fn choose(&self, lane: &Lane, permit: &Permit) -> Chosen {
        let stamp = self.leases.stamp();
        let view = self.handle.meta();
        let sender = own_sender(permit).unwrap_or_default();
        let stack = stack(&view, permit.carrier_no, permit.practice_no, sender);
        let own = stack != common(&view, permit.carrier_no);
        Chosen { gate: lane.gate(&stack), stamp, own }
    }

    fn opened(&self, permit: &Permit, urgent: bool, times: Times) -> Result<SendRequest, SendOutcome> {
        let open = || -> Result<SendRequest, &'static str> {
            let request = self.open(permit, urgent, times)?;
            panic_if_asked("send::panic_opened", &request);
            Ok(request)
        };
        let opened = catch_unwind(AssertUnwindSafe(open));
        opened.map_or_else(|_| Err(panicked(Outcome::Transient)), |result| result.map_err(not_sent))
    }

    fn open(&self, permit: &Permit, urgent: bool, times: Times) -> Result<SendRequest, &'static str> {
        let keys = self.keyring.of_epoch(permit.practice_no, permit.key_epoch).map_err(|error| {
            tracing::error!(%error, "practice key unavailable");
            "key_unavailable"
        })?;
        let view = self.handle.meta();
        let context = Context {
            cluster_id: &view.cluster_id,
            practice_no: permit.practice_no,
            message_id: &permit.message_id,
        };
        let text = |field, sealed: &[u8]| {
            let opened = keys.open(context, field, sealed).map_err(|error| {
                tracing::error!(%error, message_id = %permit.message_id, "payload does not open");
                "payload_unreadable"
            })?;
            String::from_utf8(opened.to_vec()).map(Clear::new).map_err(|_| "payload_unreadable")
        };
        let now = Instant::now();
        let after = |at_ms: u64| Duration::from_millis(at_ms.saturating_sub(times.now_ms));
        Ok(SendRequest {
            message_id: permit.message_id,
            attempt_no: permit.attempt_no,
            recipient: text(Field::Recipient, &permit.sealed_recipient)?,
            body: text(Field::Body, &permit.sealed_body)?,
            sender: own_sender(permit).map(str::to_owned),
            encoding: Encoding::try_from(permit.encoding).unwrap_or(Encoding::Gsm7),
            segments: permit.segments,
            validity: Some(validity(permit, times.now_ms)),
            valid_until_ms: valid_until_ms(permit),
            send_by: now + after(permit.send_by_ms),
            start_by: now + after(times.start_by_ms.min(permit.send_by_ms)),
            urgent,
        })
    }

    /// The outcome becomes a fact.
    async fn report(&self, partition: u32, permit: &Permit, outcome: SendOutcome) {
        let command = Command {
            kind: Some(Kind::RecordOutcome(RecordOutcome {
                message_id: permit.message_id.to_bytes(),
                attempt_no: permit.attempt_no,
                outcome: outcome.outcome as i32,
                carrier_refs: outcome.carrier_refs,
                code: outcome.code,
                retry_after_ms: outcome.retry_after.map_or(0, |d| d.as_millis() as u32),
                segments: outcome.segments,
            })),
        };
        self.facts.push(partition, Fact { command, done: None }).await;
    }
}

/// For the canary suite, which proves that no trace of the plaintext is left. Armed in labs only.
fn panic_if_asked(point: &'static str, request: &SendRequest) {
    assert!(
        !failpoints::fails(point),
        "asked to panic by {} {}",
        request.recipient.expose(),
        request.body.expose(),
    );
}

fn panicked(outcome: Outcome) -> SendOutcome {
    let code = PANIC_CODE.to_owned();
    SendOutcome { outcome, carrier_refs: Vec::new(), code, retry_after: None, segments: 0 }
}

/// The sender that the attempt was committed with, if it is not the account's own.
fn own_sender(permit: &Permit) -> Option<&str> {
    (permit.sender_no > 0 && senders::is_address(&permit.sender)).then_some(permit.sender.as_str())
}

/// Until when the carrier may deliver it: the expiry or the end of the recipient's hours, whichever comes first.
fn valid_until_ms(permit: &Permit) -> u64 {
    match permit.open_until_ms {
        0 => permit.expires_at_ms,
        until_ms => permit.expires_at_ms.min(until_ms + MARGIN_MS),
    }
}

/// For how long from now the carrier may try.
fn validity(permit: &Permit, now_ms: u64) -> Duration {
    Duration::from_millis(valid_until_ms(permit).saturating_sub(now_ms))
}

fn not_sent(code: &str) -> SendOutcome {
    SendOutcome {
        outcome: Outcome::NotSent,
        carrier_refs: Vec::new(),
        code: code.to_owned(),
        retry_after: Some(Duration::from_secs(5)),
        segments: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::{MessageId, Slot};

    const NOW_MS: u64 = 1_793_000_000_000;

    fn permit(expires_in_ms: u64, open_for_ms: Option<u64>) -> Permit {
        Permit {
            message_id: MessageId::new(NOW_MS, Slot::new(9).unwrap(), 1),
            attempt_no: 1,
            carrier_no: 3,
            practice_no: 1,
            class: 2,
            key_epoch: 1,
            sealed_recipient: Default::default(),
            sealed_body: Default::default(),
            encoding: 1,
            segments: 1,
            expires_at_ms: NOW_MS + expires_in_ms,
            send_by_ms: NOW_MS + 2_000,
            open_until_ms: open_for_ms.map_or(0, |open_for_ms| NOW_MS + open_for_ms),
            was_held: false,
            sender_no: 0,
            sender: "12125550100".to_owned(),
        }
    }

    #[test]
    fn the_carrier_gives_up_at_the_expiry_or_at_the_end_of_the_hours_whichever_is_first() {
        // Nothing begins in the last minute of the hours, and the carrier has it.
        for (expires_in_ms, open_for_ms, expected_ms) in [
            (86_400_000, None, 86_400_000),
            (86_400_000, Some(754_000), 754_000 + MARGIN_MS),
            (500_000, Some(754_000), 500_000),
            (754_000 + MARGIN_MS, Some(754_000), 754_000 + MARGIN_MS),
        ] {
            let permit = permit(expires_in_ms, open_for_ms);
            assert_eq!(valid_until_ms(&permit), NOW_MS + expected_ms);
            assert_eq!(validity(&permit, NOW_MS), Duration::from_millis(expected_ms));
            assert_eq!(validity(&permit, NOW_MS + 4_000), Duration::from_millis(expected_ms - 4_000));
        }
        assert_eq!(validity(&permit(1_000, None), NOW_MS + 2_000), Duration::ZERO, "never in the past");
    }

    #[test]
    fn a_message_leaves_under_the_sender_that_its_attempt_was_committed_with() {
        let own = |sender_no, sender: &str| {
            let permit = Permit { sender_no, sender: sender.to_owned(), ..permit(1_000, None) };
            own_sender(&permit).map(str::to_owned)
        };
        assert_eq!(own(0, "12125550100"), None, "the account's own, as it is set now");
        assert_eq!(own(4, "+12125550104").as_deref(), Some("+12125550104"));
        assert_eq!(own(4, "88022").as_deref(), Some("88022"));
        // Its sender was dropped meanwhile: what was committed is the account's own, which connectors know better.
        assert_eq!(own(4, "12125550100"), None);
        assert_eq!(own(4, "MG00000000000000000000000000000001"), None);
    }
}
