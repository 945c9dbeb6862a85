//! Connectors: the only code that talks to carriers, behind one [`Connector`] trait.
//!
//! Invariants
//!  - A connector tells the truth about bytes: `NOT_SENT` only with proof that no byte of the message was handed to
//!    a socket, `AMBIGUOUS` whenever the carrier may have taken it over and did not say so.
//!  - One permission of the [`SegmentGate`] is taken for each segment, right before it is written.
//!  - Plaintext of a patient lives in [`Clear`] or in buffers wiped on drop, and in no log, error or metric.
//!  - A receipt is acknowledged to the carrier only after the [`InboundSink`] committed it.
//!
//! Not here: when to send, retries of a message, limits, keys, storage.

pub mod clear;
pub mod connector;
pub mod contract;
pub mod smpp;
mod tls;
mod turnstile;
pub mod twilio;

pub use clear::Clear;
pub use connector::{
    BoxFuture, Callback, CallbackAnswer, Connector, ConnectorState, ConnectorStatus, GateClosed, InboundSink,
    LateAnswer, LookUp, LookUpAnswer, OpenGate, ReceiptAck, ReceiptReport, SegmentGate, SendOutcome,
    SendRequest,
};
