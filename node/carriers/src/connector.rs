//! The contract between the node and a connector: what goes in, what comes out, and who may say what.
//!
//! The node calls [`Connector::send`] only after the attempt is committed; the connector answers with exactly one
//! [`SendOutcome`] and never repeats a message on its own. Receipts come back through the [`InboundSink`].
use crate::Clear;
use crate::contract::LookUpTerms;
use carillon_proto::MessageId;
use carillon_proto::internal::ReceiptState;
use carillon_proto::public::{Encoding, Outcome};
use std::fmt;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

pub use futures::future::BoxFuture;

/// One committed attempt, opened. It is consumed by the send, so its payload can be used once.
#[derive(Debug)]
pub struct SendRequest {
    pub message_id: MessageId,
    pub attempt_no: u32,
    /// E.164, with or without the leading plus.
    pub recipient: Clear<String>,
    pub body: Clear<String>,
    /// The sender of this message; `None`: the account's.
    pub sender: Option<String>,
    /// As counted when the message was accepted.
    pub encoding: Encoding,
    pub segments: u32,
    /// Time until the message expires or the recipient's hours end; the carrier is asked to give up then. `None`: the
    /// carrier's default.
    pub validity: Option<Duration>,
    /// The same moment, ms since the epoch; 0 = the carrier's default.
    pub valid_until_ms: u64,
    /// No byte may be written at or after this.
    pub send_by: Instant,
    /// A message of which nothing was accepted by then is not begun any more; it can be sent later, over any node. At most `send_by`,
    /// which leaves more time to a message that is half sent.
    pub start_by: Instant,
    /// It goes before those that wait in line and are not urgent.
    pub urgent: bool,
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendOutcome {
    pub outcome: Outcome,
    /// The carrier's ids in canonical form, in the order of the parts. Also given with `AMBIGUOUS` for the parts that
    /// were accepted, so that their receipts can be matched.
    pub carrier_refs: Vec<String>,
    /// Stable: the carrier's status such as `0x00000058`, or a word such as `answer_timeout`.
    pub code: String,
    /// Do not try again before this has passed.
    pub retry_after: Option<Duration>,
    /// Segments that were handed to the carrier or may have been.
    pub segments: u32,
}

/// A connection to one carrier account.
pub trait Connector: Send + Sync {
    /// Hands one message to the carrier. Ends when the carrier answered, or with `AMBIGUOUS` when it did not in time,
    /// or with `NOT_SENT` when nothing left before `send_by`.
    fn send<'a>(&'a self, request: SendRequest, gate: &'a dyn SegmentGate) -> BoxFuture<'a, SendOutcome>;

    fn status(&self) -> ConnectorStatus;

    /// An HTTP call of the carrier to the callback address of this account.
    fn callback(&self, callback: Callback) -> BoxFuture<'_, CallbackAnswer> {
        drop(callback);
        Box::pin(std::future::ready(CallbackAnswer::NotExpected))
    }

    /// How the carrier can be asked about messages; `None`: not at all.
    fn look_up_terms(&self) -> Option<LookUpTerms> {
        None
    }

    /// Asks the carrier what it knows of a message whose fate is unknown, within the carrier's quota.
    fn look_up(&self, question: LookUp) -> BoxFuture<'_, LookUpAnswer> {
        drop(question);
        Box::pin(std::future::ready(LookUpAnswer::Unsupported))
    }

    /// Takes no more messages, waits for the answers of those that are out, acknowledges the receipts it has, and
    /// says goodbye. Ends by itself: every wait in it has a time limit.
    fn drain(&self) -> BoxFuture<'_, ()>;
}

/// An HTTP call of a carrier, as it came in. Its body may quote the patient.
#[derive(Debug)]
pub struct Callback {
    /// As it was sent, without the question mark; it is part of what is signed.
    pub query: String,
    /// The header with the carrier's signature.
    pub signature: Option<String>,
    pub body: Clear<Vec<u8>>,
}

/// What the carrier is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackAnswer {
    /// Recorded, or it can never be: the carrier may forget it.
    Done,
    /// Not recorded: the carrier shall repeat it.
    TryAgain,
    /// The signature is missing or wrong.
    BadSignature,
    /// Signed, and still not something that can be read.
    Malformed,
    /// This account has no callbacks.
    NotExpected,
}

/// Which message is asked about.
#[derive(Debug)]
pub struct LookUp {
    pub message_id: MessageId,
    /// The carrier's id, when its answer came. Without it the message is looked for by number, text and time.
    pub carrier_ref: Option<String>,
    pub recipient: Clear<String>,
    pub body: Clear<String>,
    /// When the attempt began and when it was given up.
    pub sent_after: SystemTime,
    pub sent_before: SystemTime,
}

/// What the carrier knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookUpAnswer {
    Found {
        carrier_ref: String,
        state: ReceiptState,
        code: String,
    },
    /// The carrier does not have it. `proven`: by its contract it was never taken over.
    Absent {
        proven: bool,
    },
    /// More than one message fits: nobody can tell.
    Several,
    /// The carrier did not answer, or its quota is used up.
    NotNow {
        retry_after: Duration,
    },
    Unsupported,
}

/// Permission to write.
pub trait SegmentGate: Send + Sync {
    /// Waits for the permission to write exactly one segment now.
    fn acquire(&self) -> BoxFuture<'_, Result<(), GateClosed>>;

    /// The same, with the moment after which the permission is void: the first octet must have left by then, or another
    /// permission is needed. Whoever was stopped in between must not send on what somebody else has by now.
    fn acquire_fresh(&self) -> BoxFuture<'_, Result<Instant, GateClosed>> {
        Box::pin(async {
            self.acquire().await?;
            Ok(Instant::now() + Duration::from_secs(86_400))
        })
    }

    /// The permission for segments that leave in one piece, all or none: no window holds more than the limit with all of them in it.
    fn acquire_together(&self, segments: u32) -> BoxFuture<'_, Result<Instant, GateClosed>>;
}

/// The lane was closed: nothing more may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lane is closed")]
pub struct GateClosed;

/// A gate that is always open, for tools and tests without limits.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenGate;

impl SegmentGate for OpenGate {
    fn acquire(&self) -> BoxFuture<'_, Result<(), GateClosed>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn acquire_together(&self, _: u32) -> BoxFuture<'_, Result<Instant, GateClosed>> {
        self.acquire_fresh()
    }
}

/// In which state the connection to the carrier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectorState {
    /// At least one bind is up.
    Up,
    /// No bind is up; it is being tried.
    Down,
    /// No bind is up and the carrier refuses our credentials; it is tried again rarely. The number is the protocol's.
    Broken { status: u32 },
    /// It takes no more messages.
    Draining,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorStatus {
    pub state: ConnectorState,
    pub binds_up: u32,
    pub binds_wanted: u32,
    /// Sends that were not answered yet, waiting ones included.
    pub in_flight: u32,
    /// The carrier asked us to be quiet for this long.
    pub paused_for: Option<Duration>,
}

/// Where receipts go. Calls must not block: hand over to a bounded channel and refuse when it is full.
pub trait InboundSink: Send + Sync {
    /// A delivery report. Dropping the acknowledgement refuses it.
    fn receipt(&self, report: ReceiptReport);

    /// An answer that came after its attempt had been reported as `AMBIGUOUS`, or that nobody waited for any more.
    fn late_answer(&self, answer: LateAnswer) {
        let _ = answer;
    }
}

/// A delivery report of the carrier.
#[derive(Debug)]
pub struct ReceiptReport {
    /// Candidates in canonical form, to be tried in order.
    pub carrier_refs: Vec<String>,
    pub state: ReceiptState,
    /// The carrier's error code, or the name of the state.
    pub code: String,
    /// The message, when this connector knows it without the reference.
    pub known: Option<MessageId>,
    pub ack: ReceiptAck,
}

/// The carrier's answer to one part, too late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateAnswer {
    pub message_id: MessageId,
    pub attempt_no: u32,
    /// From 0; the whole message was taken over only if `parts` is 1.
    pub part: u32,
    pub parts: u32,
    pub outcome: Outcome,
    pub carrier_ref: Option<String>,
    pub code: String,
}

/// Answers one receipt: exactly once, by the latest when it is dropped.
pub struct ReceiptAck(Option<Box<dyn FnOnce(bool) + Send>>);

impl ReceiptAck {
    /// `answer` is called with true when the receipt is durable, with false when it must be sent again.
    pub fn new(answer: impl FnOnce(bool) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// The receipt is durable: the carrier may forget it.
    pub fn commit(mut self) {
        self.answer(true);
    }

    /// Not taken: the carrier must send it again.
    pub fn refuse(mut self) {
        self.answer(false);
    }

    fn answer(&mut self, committed: bool) {
        if let Some(answer) = self.0.take() {
            answer(committed);
        }
    }
}

impl Drop for ReceiptAck {
    fn drop(&mut self) {
        self.answer(false);
    }
}

impl fmt::Debug for ReceiptAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiptAck")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn an_acknowledgement_answers_once_and_a_drop_refuses() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ack = |name: &'static str| {
            let seen = seen.clone();
            ReceiptAck::new(move |committed| seen.lock().unwrap().push((name, committed)))
        };
        ack("committed").commit();
        ack("refused").refuse();
        drop(ack("dropped"));
        assert_eq!(*seen.lock().unwrap(), [("committed", true), ("refused", false), ("dropped", false)]);
    }
}
