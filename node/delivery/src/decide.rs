//! The decision: which messages begin now, which have expired, and when to decide again.
use crate::cells::{CellNo, Cells};
use crate::scheduler::Scheduler;
use crate::types::{Attempt, BeginDecision, Decision, Row, Stage, ms_until};
use carillon_proto::MessageId;
use std::time::Duration;

impl Scheduler {
    /// Decides at `now_ms` of the wall clock and `mono` of the monotonic clock. Bounded by the lanes'
    /// prefetch and by `expire_max`.
    pub fn decide(&mut self, now_ms: u64, mono: Duration) -> Decision {
        self.now_ms = now_ms;
        let mut decision = Decision::default();
        let mut put_off = PutOff::default();
        while let Some(&(at_ms, no)) = self.timers.first()
            && at_ms <= now_ms
        {
            self.look_at(no, &mut decision, &mut put_off);
        }
        self.choose(mono, &mut decision);
        self.lanes.retain(|_, lane| !lane.is_idle(mono));
        decision.next_wake_ms = self.next_wake_ms(now_ms, mono);
        decision
    }

    /// A row's timer has passed: it is due, has aged, its hours are over, or it has expired. Its next timer, if any,
    /// lies in the future. `put_off` counts what this decision has no room for: it comes so much at a time.
    fn look_at(&mut self, no: CellNo, decision: &mut Decision, put_off: &mut PutOff) {
        self.set_timer(no, None);
        let now_ms = self.now_ms;
        let (partition, id) = (self.cells[no].partition, self.cells[no].id);
        let Some(row) = &mut self.cells[no].row else { return };
        let stamp = self.stamps.of(row.practice_no);
        let retry_ms = self.config.expire_retry_ms;
        if row.expires_at_ms <= now_ms {
            let (list, max) = (&mut decision.expire, self.config.expire_max);
            let again_ms =
                hand_out(list, max, &mut put_off.expire, &mut self.counts.expired, (partition, id));
            return self.set_aside(no, now_ms.saturating_add(again_ms.unwrap_or(retry_ms)));
        }
        if row.is_closed(stamp, now_ms) {
            let (list, max) = (&mut decision.closed, self.config.closed_max);
            let again_ms = hand_out(list, max, &mut put_off.closed, &mut self.counts.closed, (partition, id));
            return self.set_aside(no, now_ms.saturating_add(again_ms.unwrap_or(retry_ms)));
        }
        let aged_ms = row.due_ms.saturating_add(self.config.ageing_ms);
        let aged = aged_ms <= now_ms;
        let next_ms = if aged { row.expires_at_ms } else { aged_ms.min(row.expires_at_ms) };
        let next_ms = match row.open_until_ms {
            until_ms if until_ms > 0 && stamp != 0 => next_ms.min(until_ms),
            _ => next_ms,
        };
        self.leave_lane(no);
        self.join_lane(no, aged);
        self.set_timer(no, Some(next_ms));
    }

    /// The row waits for a change that was asked for.
    fn set_aside(&mut self, no: CellNo, again_at_ms: u64) {
        self.leave_lane(no);
        if let Some(row) = &mut self.cells[no].row {
            row.stage = Stage::Expiring;
        }
        self.set_timer(no, Some(again_at_ms));
    }

    /// Fills each lane's prefetch in order. The first message that does not fit stops its lane, so order
    /// holds.
    fn choose(&mut self, mono: Duration, decision: &mut Decision) {
        let Self { config, cells, partitions, lanes, timers, counts, weights, begun_of, now_ms, .. } = self;
        let urgent_until = now_ms.saturating_add(config.urgent_ms);
        for (carrier_no, lane) in lanes.iter_mut() {
            if lane.config.is_none() || lane.is_paused(mono) {
                continue;
            }
            while let Some(next) = lane.first(urgent_until) {
                let no = next.no;
                let segments = segments_of(cells, no);
                if !lane.has_room(segments, config) {
                    break;
                }
                let cell = &mut cells[no];
                let row = cell.row.as_mut().expect("a ready message has a row");
                let aged = row.stage == Stage::Ready { aged: true };
                let weight = weights.get(&next.practice_no).copied().unwrap_or(1);
                lane.take(&next, aged, segments, weight);
                *begun_of.entry(next.practice_no).or_default() += u64::from(segments);
                row.stage = Stage::Held;
                if let Some(at_ms) = row.timer_ms.take() {
                    timers.remove(&(at_ms, no));
                }
                cell.attempt = Some(Attempt {
                    carrier_no: *carrier_no,
                    sender_no: row.sender_no,
                    practice_no: row.practice_no,
                    segments,
                    due_ms: row.due_ms,
                    priority: row.priority,
                    flow: row.flow,
                    row_gone: false,
                    sent: false,
                });
                if let Some(led) = partitions.get_mut(&cell.partition) {
                    led.attempts.insert(cell.id);
                }
                counts.chosen += 1;
                decision.begin.push(begin_decision(cell.partition, cell.id, row));
            }
        }
    }

    /// Later than now, or the driver would spin: everything that was due now has been decided.
    fn next_wake_ms(&self, now_ms: u64, mono: Duration) -> Option<u64> {
        let timer_ms = self.timers.first().map(|(at_ms, _)| *at_ms);
        let pause_ms = self
            .lanes
            .values()
            .filter(|lane| lane.config.is_some() && lane.is_paused(mono) && lane.has_ready())
            .map(|lane| now_ms.saturating_add(ms_until(lane.resumes_at(), mono)))
            .min();
        let page_ms = self.next_page_ms(now_ms);
        let first_ms = [timer_ms, pause_ms, page_ms].into_iter().flatten().min()?;
        Some(first_ms.max(now_ms.saturating_add(1)))
    }
}

/// What one decision has no room for.
#[derive(Debug, Default)]
struct PutOff {
    expire: usize,
    closed: usize,
}

/// Puts a message on a list, or says after how many ms there may be room for it.
fn hand_out(
    list: &mut Vec<(u32, MessageId)>,
    max: usize,
    put_off: &mut usize,
    count: &mut u64,
    message: (u32, MessageId),
) -> Option<u64> {
    if list.len() < max {
        list.push(message);
        *count += 1;
        return None;
    }
    *put_off += 1;
    Some(put_off.div_ceil(max) as u64)
}

/// What the message costs on its lane; a message of no known length costs one.
fn segments_of(cells: &Cells, no: CellNo) -> u32 {
    cells[no].row.as_ref().map_or(1, |row| row.segments.max(1))
}

fn begin_decision(partition: u32, message_id: MessageId, row: &Row) -> BeginDecision {
    BeginDecision {
        partition,
        message_id,
        attempt_no: row.attempt_no,
        carrier_no: row.carrier_no,
        sender_no: row.sender_no,
        practice_no: row.practice_no,
        class: row.class,
        priority: row.priority,
        segments: row.segments,
        due_ms: row.due_ms,
        expires_at_ms: row.expires_at_ms,
        deadline_ms: row.deadline_ms,
    }
}
