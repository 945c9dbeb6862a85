//! The clocks of a session: overdue answers and receipts, idle and dead peers, stalled writes, the goodbye.
use super::super::pdu;
use super::super::pool::Phase;
use super::{Closing, PartAnswer, SEND_BY_PASSED, Session, SessionEnd};
use std::time::Duration;
use tokio::time::Instant;

/// Wakes up at least this often; nothing depends on it.
const IDLE_TURN: Duration = Duration::from_secs(60);

impl Session {
    /// Does what is due. `Some` when the session is over.
    pub(super) fn look_at_the_clock(&mut self, now: Instant, phase: Phase) -> Option<SessionEnd> {
        for sequence in self.outbox.withdraw_due(now) {
            self.not_written(sequence, SEND_BY_PASSED);
        }
        self.expire_answers();
        while let Some(sequence) = self.receipts.pop_overdue(&self.shared, now) {
            self.write(pdu::deliver_sm_resp(sequence, super::super::status::TEMPORARY_APP_ERROR));
        }
        if !self.outbox.is_empty() && now >= self.moved_at + self.shared.pool.account.response_timeout {
            return Some(SessionEnd::WriteStalled);
        }
        if let Some(end) = self.keep_alive(now) {
            return Some(end);
        }
        if phase == Phase::Leaving && self.closing.is_none() && self.is_quiet() && self.receipts.is_empty() {
            let sequence = self.next_sequence();
            self.write(pdu::unbind(sequence));
            self.close(SessionEnd::Unbound, now, false);
        }
        let Closing { end, by, early } = self.closing.as_ref()?;
        (now >= *by || (*early && self.is_quiet())).then_some(*end)
    }

    /// Nothing to write and no answer to wait for.
    fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.outbox.is_empty() && !self.flush_due
    }

    /// Answers that had not come when the socket was last seen empty.
    fn expire_answers(&mut self) {
        while let Some((sequence, waiting)) = self.in_flight.pop_overdue(self.drained_at) {
            if self.outbox.withdraw_one(sequence) {
                waiting.reply(PartAnswer::NotWritten(SEND_BY_PASSED));
            } else {
                self.in_flight.remember_late(sequence, waiting.tag);
                waiting.reply(PartAnswer::TimedOut);
            }
        }
    }

    /// How long the peer may owe the answer to an enquire_link.
    fn enquiry_timeout(&self) -> Duration {
        self.shared.pool.account.enquire_link.min(self.shared.pool.account.response_timeout)
    }

    fn keep_alive(&mut self, now: Instant) -> Option<SessionEnd> {
        if self.closing.is_some() {
            return None;
        }
        match self.enquired_at {
            // Anything heard since is a sign of life; silence counts only when the socket was seen empty.
            Some(sent_at) => {
                let due = sent_at.max(self.heard_at) + self.enquiry_timeout();
                (self.drained_at >= due).then_some(SessionEnd::EnquireTimeout)
            }
            None => {
                if now >= self.heard_at + self.shared.pool.account.enquire_link {
                    let sequence = self.next_sequence();
                    self.write(pdu::enquire_link(sequence));
                    self.enquired_at = Some(now);
                }
                None
            }
        }
    }

    /// When something will be due next.
    pub(super) fn next_wake(&self) -> Instant {
        let account = &self.shared.pool.account;
        let enquiry = match self.enquired_at {
            Some(sent_at) => sent_at.max(self.heard_at) + self.enquiry_timeout(),
            None => self.heard_at + account.enquire_link,
        };
        let stall = (!self.outbox.is_empty()).then(|| self.moved_at + account.response_timeout);
        // While it is not read, neither silence nor a missing answer counts: waking up for them would spin.
        let reading = self.may_read();
        [
            self.in_flight.next_deadline().filter(|_| reading),
            Some(enquiry).filter(|_| reading && self.closing.is_none()),
            self.receipts.next_deadline(),
            self.outbox.next_deadline(),
            stall,
            self.closing.as_ref().map(|closing| closing.by),
        ]
        .into_iter()
        .flatten()
        .fold(Instant::now() + IDLE_TURN, Instant::min)
    }
}
