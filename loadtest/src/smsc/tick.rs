//! What time does to the carrier: due events and upkeep.
//!
//! Owns: the order of a tick, and the upkeep every 100 ms (links that fell
//! silent, binds that never came, receipts not acknowledged, metrics).

use std::cmp::Reverse;

use super::center::{Center, Event};
use super::journal::Line;
use super::stats::seconds;
use super::wire;

/// The longest sleep between two ticks.
pub const UPKEEP_US: u64 = 100_000;
/// Due times are rounded up to this, so that a busy server ticks once for many events.
pub const GRAIN_US: u64 = 1_000;

impl Center {
    /// Does what is due and returns when to come again.
    pub fn tick(&mut self, now_us: u64) -> u64 {
        while let Some(Reverse((due_us, _, event))) = self.heap.peek().copied() {
            if due_us > now_us {
                break;
            }
            self.heap.pop();
            self.lag_us.saturating_record((now_us - due_us).max(1));
            self.timers.event_lag.record(seconds(now_us - due_us));
            match event {
                Event::Answer { bind, id, sequence, code } => {
                    self.answers_waiting -= 1;
                    self.answer_due(bind, id, sequence, code, now_us);
                }
                Event::Receipt { slot } => {
                    self.receipt_due(slot);
                }
                Event::Callback { slot } => self.callback_due(slot, now_us),
            }
        }
        for account in 0..self.accounts.len() {
            self.dispatch(account as u16, now_us);
        }
        self.wake_writers();
        let next_us = self.heap.peek().map_or(u64::MAX, |Reverse((due_us, ..))| *due_us);
        self.wake_at_us = next_us.min(now_us + UPKEEP_US).max(now_us + GRAIN_US);
        self.wake_sooner = false;
        self.wake_at_us
    }

    fn answer_due(&mut self, bind: u32, id: u64, sequence: u32, code: u32, now_us: u64) {
        if !self.put_answer(bind, id, sequence, code) {
            return;
        }
        if let Some(record) = self.truth.of_id(id) {
            record.answer_sent = true;
        }
        if let Some(index) = self.truth.index_of(id) {
            self.write_line(|at_us| Line::Answered { index, at_us }, now_us);
        }
    }

    /// Upkeep; call it every [`UPKEEP_US`].
    pub fn upkeep(&mut self, now_us: u64) {
        self.expire_receipts(now_us);
        self.assembly.expire(now_us);
        self.check_links(now_us);
        if let Some(journal) = &mut self.journal {
            journal.hand_over();
        }
        self.wake_writers();
        self.emit_metrics();
    }

    fn check_links(&mut self, now_us: u64) {
        let bind_us = self.config.bind_timeout_ms * 1000;
        let enquire_us = self.config.enquire_link_ms * 1000;
        let mut ask = Vec::new();
        for (id, bind) in &self.binds {
            match (bind.account, bind.asked_at_us) {
                (None, _) if bind.opened_at_us + bind_us <= now_us => bind.outbox.close(),
                (Some(_), Some(asked_us)) if asked_us + enquire_us <= now_us => bind.outbox.close(),
                (Some(_), None) if bind.seen_at_us + enquire_us <= now_us => ask.push(*id),
                _ => {}
            }
        }
        for id in ask {
            let Some(bind) = self.binds.get_mut(&id) else { continue };
            bind.asked_at_us = Some(now_us);
            let sequence = bind.next_sequence;
            bind.next_sequence = if sequence >= 0x7FFF_FFFF { 1 } else { sequence + 1 };
            self.put(id, |out| wire::put_header(out, wire::ENQUIRE_LINK, 0, sequence));
        }
    }

    /// Says goodbye to every bind; with `unbind` in the words of the protocol.
    pub fn close_all(&mut self, unbind: bool) -> usize {
        let ids: Vec<u32> = self.binds.keys().copied().collect();
        for id in &ids {
            let Some(bind) = self.binds.get_mut(id) else { continue };
            let (sequence, bound) = (bind.next_sequence, bind.account.is_some());
            bind.next_sequence += 1;
            if unbind && bound {
                self.put(*id, |out| wire::put_header(out, wire::UNBIND, 0, sequence));
            }
            if let Some(bind) = self.binds.get(id) {
                bind.outbox.close();
            }
        }
        self.wake_writers();
        ids.len()
    }
}
