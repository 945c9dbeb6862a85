//! What the carrier's PDUs do to a session.
use super::super::pdu::{self, Frame};
use super::super::{Shared, status};
use super::{PartAnswer, Session, SessionEnd, Tag};
use crate::connector::LateAnswer;
use rusmpp::{CommandId, Pdu};
use tokio::time::Instant;

impl Session {
    /// Handles the whole PDUs that were read, as long as reading is allowed.
    pub(super) fn read_frames(&mut self, now: Instant) -> Result<(), SessionEnd> {
        while self.may_read() {
            match pdu::next_frame(&mut self.inbuf) {
                Ok(Some(frame)) => {
                    if let Some(end) = self.handle(frame, now) {
                        return Err(end);
                    }
                }
                Ok(None) => break,
                Err(pdu::BadLength(length)) => {
                    tracing::warn!(carrier = self.carrier(), length, "impossible pdu length, closing");
                    return Err(SessionEnd::BadLength);
                }
            }
        }
        Ok(())
    }

    fn carrier(&self) -> &str {
        &self.shared.pool.account.carrier
    }

    pub(super) fn handle(&mut self, frame: Frame, now: Instant) -> Option<SessionEnd> {
        let Frame { header, pdu, undecodable } = frame;
        let sequence = header.sequence;
        if undecodable {
            self.shared.pool.meters.bad_pdus.increment(1);
        }
        match header.command {
            CommandId::SubmitSmResp => {
                let resp = match &pdu {
                    Some(Pdu::SubmitSmResp(resp)) => Some(resp),
                    _ => None,
                };
                if let Some(percent) = resp.and_then(pdu::congestion) {
                    self.shared.pool.congested(percent);
                }
                let id = resp.map(|resp| resp.message_id().as_str());
                let carrier_ref = id
                    .filter(|id| header.status == status::OK && !id.is_empty())
                    .map(|id| self.shared.ids.answered(id));
                self.answered(sequence, header.status, false, carrier_ref, now);
            }
            CommandId::GenericNack => self.answered(sequence, header.status, true, None, now),
            CommandId::DeliverSm => {
                let status = match &pdu {
                    Some(Pdu::DeliverSm(deliver)) => self.receipts.take(&self.shared, deliver, sequence, now),
                    _ => Some(status::PERMANENT_APP_ERROR),
                };
                if let Some(status) = status {
                    self.write(pdu::deliver_sm_resp(sequence, status));
                }
            }
            CommandId::EnquireLink => self.write(pdu::enquire_link_resp(sequence)),
            CommandId::EnquireLinkResp => self.enquired_at = None,
            CommandId::Unbind => {
                self.write(pdu::unbind_resp(sequence));
                self.close(SessionEnd::PeerUnbound, now, true);
            }
            CommandId::UnbindResp => return self.closing.as_ref().map(|closing| closing.end),
            CommandId::AlertNotification | CommandId::Outbind => {}
            other => {
                self.shared.pool.meters.bad_pdus.increment(1);
                if other.is_operation() {
                    self.write(pdu::generic_nack(sequence, status::INVALID_COMMAND_ID));
                }
            }
        }
        None
    }

    /// The carrier answered a submit. A throttle pauses the lane here, before any other sender moves.
    fn answered(
        &mut self,
        sequence: u32,
        status: u32,
        nack: bool,
        carrier_ref: Option<String>,
        now: Instant,
    ) {
        let meaning = status::meaning(&self.shared.pool.account.contract.get(), status, nack);
        let shared = self.shared.clone();
        if let Some(waiting) = self.in_flight.remove(sequence) {
            if meaning.pauses > 0 {
                shared.pool.pause(meaning.pauses);
            }
            shared.pool.meters.answer_seconds.record(now.duration_since(waiting.queued_at).as_secs_f64());
            let tag = waiting.tag;
            let answer = PartAnswer::Answered { status, nack, carrier_ref: carrier_ref.clone() };
            if !waiting.reply(answer) {
                report_late(&shared, tag, status, nack, carrier_ref);
            }
        } else if let Some(tag) = self.in_flight.take_late(sequence) {
            report_late(&shared, tag, status, nack, carrier_ref);
        } else {
            shared.pool.meters.bad_pdus.increment(1);
        }
        if meaning.rebind {
            self.close(SessionEnd::NotBound, now, true);
        }
    }
}

/// The outcome was reported as ambiguous, or nobody waited: the truth goes to the sink.
fn report_late(shared: &Shared, tag: Tag, status: u32, nack: bool, carrier_ref: Option<String>) {
    let meaning = status::meaning(&shared.pool.account.contract.get(), status, nack);
    shared.pool.meters.late_answers.increment(1);
    tracing::info!(
        carrier = shared.pool.account.carrier,
        message_id = %tag.message_id,
        attempt_no = tag.attempt_no,
        part = tag.part,
        status = status::code(status),
        "late answer of the carrier"
    );
    shared.sink.late_answer(LateAnswer {
        message_id: tag.message_id,
        attempt_no: tag.attempt_no,
        part: tag.part,
        parts: tag.parts,
        outcome: meaning.outcome,
        carrier_ref,
        code: status::code(status),
    });
}
