//! What the carrier sends us on one session: receipts wait here for their commit, texts from people are counted.
//!
//! Invariants
//!  - `deliver_sm_resp` with ROK is written only after the sink committed; refused, dropped or not committed in
//!    `receipt_ack_timeout` means ESME_RX_T_APPN, so the carrier keeps the receipt and sends it again.
//!  - At most `receipts_unacked_max` receipts wait; then the session is not read until some are answered, which the
//!    time limit guarantees. Missing answers are not declared lost while it is not read (session.rs).
//!  - Neither text nor number of anybody is kept or logged.
use super::receipt::{self, Inbound, Receipt};
use super::{Shared, status};
use crate::connector::{ReceiptAck, ReceiptReport};
use rusmpp::pdus::DeliverSm;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The sink's answer to one receipt.
pub(crate) struct Acked {
    token: u64,
    committed: bool,
}

pub(crate) struct Receipts {
    acks: mpsc::Sender<Acked>,
    tokens: u64,
    /// Token -> sequence number to answer, time to refuse. Tokens grow, so the first is the oldest.
    waiting: BTreeMap<u64, (u32, Instant)>,
    waiting_max: usize,
}

impl Receipts {
    /// The channel holds one answer for each receipt that can wait, twice: late answers of refused ones come too.
    pub fn new(waiting_max: usize) -> (Self, mpsc::Receiver<Acked>) {
        let (acks, acked) = mpsc::channel(2 * waiting_max.max(1));
        (Self { acks, tokens: 0, waiting: BTreeMap::new(), waiting_max }, acked)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.waiting.len() >= self.waiting_max
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(_, (_, deadline))| *deadline)
    }

    /// Takes a `deliver_sm`. The status to answer at once, or `None` when the sink will tell.
    pub fn take(&mut self, shared: &Shared, deliver: &DeliverSm, sequence: u32, now: Instant) -> Option<u32> {
        match receipt::read(deliver) {
            Inbound::Receipt(receipt) => {
                self.report(shared, receipt, deliver.source_addr.as_str(), sequence, now);
                None
            }
            Inbound::Unreadable => {
                // Sending it again would not make it readable.
                shared.pool.meters.receipts_unreadable.increment(1);
                Some(status::OK)
            }
            Inbound::Message => {
                shared.pool.meters.replies.increment(1);
                Some(status::OK)
            }
        }
    }

    fn report(&mut self, shared: &Shared, receipt: Receipt, from: &str, sequence: u32, now: Instant) {
        self.tokens += 1;
        let token = self.tokens;
        self.waiting.insert(token, (sequence, now + shared.pool.account.receipt_ack_timeout()));
        let acks = self.acks.clone();
        let ack = ReceiptAck::new(move |committed| {
            // Full or closed: the carrier is told to try again by the time limit, or the session is gone.
            let _ = acks.try_send(Acked { token, committed });
        });
        let known = receipt.user_message_reference.and_then(|reference| shared.recent.find(reference, from));
        shared.sink.receipt(ReceiptReport {
            carrier_refs: shared.ids.reported(&receipt.id),
            state: receipt.state,
            code: receipt.code,
            known,
            ack,
        });
    }

    /// The sink answered. Gives the sequence number and status to answer, unless that was done already.
    pub fn acked(&mut self, shared: &Shared, acked: Acked) -> Option<(u32, u32)> {
        let (sequence, _) = self.waiting.remove(&acked.token)?;
        let meters = &shared.pool.meters;
        if acked.committed {
            meters.receipts_committed.increment(1);
            Some((sequence, status::OK))
        } else {
            meters.receipts_refused.increment(1);
            Some((sequence, status::TEMPORARY_APP_ERROR))
        }
    }

    /// The next receipt that waited too long.
    pub fn pop_overdue(&mut self, shared: &Shared, now: Instant) -> Option<u32> {
        let first = self.waiting.first_entry()?;
        if first.get().1 > now {
            return None;
        }
        shared.pool.meters.receipts_timed_out.increment(1);
        Some(first.remove().0)
    }
}
