//! Delivery receipts: planned, sent, acknowledged, sent again.
//!
//! Owns: the receipts that are due or under way (slots), which bind they go
//! to (round robin over the live binds of the account), and their redelivery:
//! not acknowledged in time, refused, or the bind gone.
//! Bounds: `pending_max` slots of about 120 octets; `receipts.window`
//! unacknowledged receipts a bind; `receipts.attempts_max` sendings each.
//! Numbers are held in memory until their receipt is done and nowhere else.

use std::io::Write;

use jiff::Timestamp;
use jiff::tz::Offset;

use super::addr::Addr;
use super::center::{Center, Event};
use super::decide::State;
use super::journal::Line;
use super::rest::Rest;
use super::stats::seconds;
use super::text;
use super::wire::{self, ReceiptPdu, Submit, status};

/// A receipt that is not done.
pub struct Pending {
    id: u64,
    account: u16,
    recipient: Addr,
    sender: Addr,
    state: State,
    err: u16,
    attempts: u8,
    submitted_at_us: u64,
    echo: [u8; 20],
    echo_len: u8,
}

/// A receipt on the wire.
pub struct Unacked {
    pub slot: u32,
}

impl Center {
    /// Plans one receipt for `at_us`.
    #[expect(clippy::too_many_arguments, reason = "the facts of one receipt")]
    pub fn add_receipt(
        &mut self,
        id: u64,
        account: u16,
        submit: &Submit,
        state: State,
        err: u16,
        at_us: u64,
        now_us: u64,
    ) {
        let (echo, echo_len) = echo(submit, self.profile.receipts.text_octets);
        let pending = Pending {
            id,
            account,
            recipient: submit.to,
            sender: submit.from,
            state,
            err,
            attempts: 0,
            submitted_at_us: self.wall_us(now_us),
            echo,
            echo_len,
        };
        let slot = match self.free_slots.pop() {
            Some(slot) => {
                self.pending[slot as usize] = Some(pending);
                slot
            }
            None => {
                self.pending.push(Some(pending));
                (self.pending.len() - 1) as u32
            }
        };
        self.counters.receipts_planned += 1;
        if at_us <= now_us {
            self.accounts[usize::from(account)].ready.push_back(slot);
        } else {
            self.schedule(at_us, Event::Receipt { slot });
        }
    }

    fn release(&mut self, slot: u32) -> Option<Pending> {
        let pending = self.pending.get_mut(slot as usize)?.take()?;
        self.free_slots.push(slot);
        Some(pending)
    }

    /// The time of a delayed receipt has come: returns its account.
    pub fn receipt_due(&mut self, slot: u32) -> Option<u16> {
        let account = self.pending.get(slot as usize)?.as_ref()?.account;
        self.accounts[usize::from(account)].ready.push_back(slot);
        Some(account)
    }

    /// Sends what is ready, as long as a bind has room for it.
    pub fn dispatch(&mut self, account: u16, now_us: u64) {
        while let Some(slot) = self.accounts[usize::from(account)].ready.front().copied() {
            let Some(bind) = self.next_receiver(account) else { return };
            self.accounts[usize::from(account)].ready.pop_front();
            self.send_receipt(bind, slot, now_us);
        }
    }

    fn next_receiver(&mut self, account: u16) -> Option<u32> {
        let account = &mut self.accounts[usize::from(account)];
        let window = self.profile.receipts.window as usize;
        for _ in 0..account.receivers.len() {
            account.next_receiver = (account.next_receiver + 1) % account.receivers.len();
            let id = account.receivers[account.next_receiver];
            let room = |bind: &super::center::Bind| bind.unacked.len() < window && bind.outbox.has_room();
            if self.binds.get(&id).is_some_and(room) {
                return Some(id);
            }
        }
        None
    }

    fn send_receipt(&mut self, bind_id: u32, slot: u32, now_us: u64) {
        let wall_us = self.wall_us(now_us);
        let (Some(bind), Some(Some(pending))) =
            (self.binds.get_mut(&bind_id), self.pending.get_mut(slot as usize))
        else {
            return;
        };
        pending.attempts += 1;
        let (state, attempt, id) = (pending.state, pending.attempts, pending.id);
        self.timers.receipt_delay.record(seconds(wall_us.saturating_sub(pending.submitted_at_us)));
        let sequence = bind.next_sequence;
        bind.next_sequence = if sequence >= 0x7FFF_FFFF { 1 } else { sequence + 1 };
        let ids = self.profile.ids;
        let message_id = ids.receipt.write(id, ids.receipt_width);
        let mut buffer = [0u8; 255];
        let text_len = write_text(&mut buffer, pending, &message_id, wall_us);
        let pdu = ReceiptPdu {
            sequence,
            recipient: &pending.recipient,
            sender: &pending.sender,
            text: &buffer[..text_len],
            message_id: &message_id,
            state: state.tlv(),
            tlvs: self.profile.receipts.tlvs,
            intermediate: state == State::Enroute,
        };
        bind.outbox.append(|out| wire::put_receipt(out, &pdu));
        bind.unacked.insert(sequence, Unacked { slot });
        bind.deadlines.push_back((now_us + self.profile.receipts.ack_timeout_ms * 1000, sequence));
        if !bind.dirty {
            bind.dirty = true;
            self.dirty.push(bind_id);
        }
        self.counters.receipts_sent += 1;
        self.counters.receipts_sent_again += u64::from(attempt > 1);
        self.seconds.now(wall_us).receipts_sent += 1;
        if let Some(record) = self.truth.of_id(id) {
            record.receipts_sent = record.receipts_sent.saturating_add(1);
            record.state = Some(state);
        }
        if let Some(index) = self.truth.index_of(id) {
            let state = state.name().to_owned();
            self.write_line(|at_us| Line::Receipt { index, at_us, bind: bind_id, state, attempt }, now_us);
        }
    }

    /// A deliver_sm_resp (or a generic_nack) came.
    pub fn receipt_answered(&mut self, bind: u32, account: u16, sequence: u32, code: u32, now_us: u64) {
        let unacked = self.binds.get_mut(&bind).and_then(|bind| bind.unacked.remove(&sequence));
        let Some(Unacked { slot }) = unacked else {
            self.counters.acks_late += 1;
            return;
        };
        if code == status::ROK {
            self.counters.receipts_acked += 1;
            let wall_us = self.wall_us(now_us);
            self.seconds.now(wall_us).receipts_acked += 1;
            if let Some(pending) = self.release(slot) {
                self.acknowledged(pending.id, code, now_us);
            }
        } else {
            self.counters.receipts_refused += 1;
            let delay_us = self.profile.receipts.retry_delay_ms * 1000;
            self.send_again(slot, Some(now_us + delay_us), now_us);
        }
        self.dispatch(account, now_us);
    }

    pub fn acknowledged(&mut self, id: u64, code: u32, now_us: u64) {
        if let Some(record) = self.truth.of_id(id) {
            record.receipts_acked = record.receipts_acked.saturating_add(1);
        }
        if let Some(index) = self.truth.index_of(id) {
            self.write_line(|at_us| Line::Acked { index, at_us, status: code }, now_us);
        }
    }

    /// Queues a receipt once more (at `at_us`, or at once), or gives it up.
    pub fn send_again(&mut self, slot: u32, at_us: Option<u64>, now_us: u64) {
        let Some(Some(pending)) = self.pending.get(slot as usize) else { return };
        if pending.attempts >= self.profile.receipts.attempts_max {
            self.counters.receipts_given_up += 1;
            self.release(slot);
            return;
        }
        let account = pending.account;
        match at_us {
            Some(at_us) if at_us > now_us => self.schedule(at_us, Event::Receipt { slot }),
            _ => self.accounts[usize::from(account)].ready.push_back(slot),
        }
    }

    /// Sends again what a bind has not acknowledged in time.
    pub fn expire_receipts(&mut self, now_us: u64) {
        let mut overdue = Vec::new();
        for bind in self.binds.values_mut() {
            while let Some((deadline_us, sequence)) = bind.deadlines.front().copied() {
                let waiting = bind.unacked.contains_key(&sequence);
                if waiting && deadline_us > now_us {
                    break;
                }
                bind.deadlines.pop_front();
                overdue.extend(bind.unacked.remove(&sequence).map(|unacked| unacked.slot));
            }
        }
        self.counters.receipts_timed_out += overdue.len() as u64;
        for slot in overdue {
            self.send_again(slot, None, now_us);
        }
    }

    pub fn receipts_pending(&self) -> usize {
        let callbacks = self.rest.as_ref().map_or(0, Rest::callbacks_pending);
        self.pending.len() - self.free_slots.len() + callbacks
    }
}

/// The first octets of the text as a receipt echoes them, reduced to ASCII.
fn echo(submit: &Submit, octets: u8) -> ([u8; 20], u8) {
    let mut echo = [0; 20];
    if octets == 0 {
        return (echo, 0);
    }
    let mut whole = Vec::with_capacity(submit.octets.len());
    text::decode(submit.coding, &submit.octets, &mut whole);
    let ascii = whole.iter().filter(|octet| (0x20..0x7F).contains(*octet));
    let mut len = 0;
    for octet in ascii.take(usize::from(octets).min(echo.len())) {
        echo[len] = *octet;
        len += 1;
    }
    (echo, len as u8)
}

fn write_text(buffer: &mut [u8; 255], pending: &Pending, message_id: &str, wall_us: u64) -> usize {
    let submitted = Minute::of(pending.submitted_at_us);
    let done = Minute::of(wall_us);
    let delivered = u8::from(pending.state == State::Delivered);
    let mut rest = &mut buffer[..];
    // 255 octets hold the longest id (32 digits) and echo (20) with room left.
    let written = write!(
        rest,
        "id:{message_id} sub:001 dlvrd:00{delivered} submit date:{submitted} done date:{done} stat:{} err:{:03} text:",
        pending.state.name(),
        pending.err,
    )
    .and_then(|()| rest.write_all(&pending.echo[..usize::from(pending.echo_len)]));
    debug_assert!(written.is_ok());
    let left = rest.len();
    buffer.len() - left
}

/// A time written as YYMMDDhhmm in UTC.
struct Minute(jiff::civil::DateTime);

impl Minute {
    fn of(wall_us: u64) -> Self {
        let timestamp = Timestamp::from_second((wall_us / 1_000_000) as i64).unwrap_or(Timestamp::UNIX_EPOCH);
        Self(Offset::UTC.to_datetime(timestamp))
    }
}

impl std::fmt::Display for Minute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(at) = self;
        let year = at.year().rem_euclid(100);
        write!(f, "{year:02}{:02}{:02}{:02}{:02}", at.month(), at.day(), at.hour(), at.minute())
    }
}
