//! The decision: which messages begin now, which have expired, and when to decide again.
use crate::cells::{CellNo, Cells};
use crate::scheduler::Scheduler;
use crate::types::{Attempt, BeginDecision, Decision, Row, Stage, ms_until};
use std::time::Duration;

impl Scheduler {
    /// Decides at `now_ms` of the wall clock and `mono` of the monotonic clock. Bounded by the lanes'
    /// prefetch and by `expire_max`.
    pub fn decide(&mut self, now_ms: u64, mono: Duration) -> Decision {
        self.now_ms = now_ms;
        let mut decision = Decision::default();
        let mut put_off = 0;
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

    /// A row's timer has passed: it is due, has aged, or has expired. Its next timer, if any, lies in the
    /// future. `put_off` counts the expiries that this decision has no room for: they come `expire_max` at a
    /// time.
    fn look_at(&mut self, no: CellNo, decision: &mut Decision, put_off: &mut usize) {
        self.set_timer(no, None);
        let now_ms = self.now_ms;
        let (partition, id) = (self.cells[no].partition, self.cells[no].id);
        let Some(row) = &mut self.cells[no].row else { return };
        if row.expires_at_ms <= now_ms {
            self.leave_lane(no);
            let again_ms = if decision.expire.len() < self.config.expire_max {
                decision.expire.push((partition, id));
                self.counts.expired += 1;
                self.config.expire_retry_ms
            } else {
                *put_off += 1;
                put_off.div_ceil(self.config.expire_max) as u64
            };
            if let Some(row) = &mut self.cells[no].row {
                row.stage = Stage::Expiring;
            }
            self.set_timer(no, Some(now_ms.saturating_add(again_ms)));
            return;
        }
        let aged_ms = row.due_ms.saturating_add(self.config.ageing_ms);
        let aged = aged_ms <= now_ms;
        let next_ms = if aged { row.expires_at_ms } else { aged_ms.min(row.expires_at_ms) };
        self.leave_lane(no);
        self.join_lane(no, aged);
        self.set_timer(no, Some(next_ms));
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
            .map(|lane| now_ms.saturating_add(ms_until(lane.paused_until, mono)))
            .min();
        let page_ms = self.next_page_ms(now_ms);
        let first_ms = [timer_ms, pause_ms, page_ms].into_iter().flatten().min()?;
        Some(first_ms.max(now_ms.saturating_add(1)))
    }
}

/// What the message costs on its lane; a message of no known length costs one.
fn segments_of(cells: &Cells, no: CellNo) -> u32 {
    cells[no].row.as_ref().map_or(1, |row| row.segments.max(1))
}

fn begin_decision(partition: u32, message_id: carillon_proto::MessageId, row: &Row) -> BeginDecision {
    BeginDecision {
        partition,
        message_id,
        attempt_no: row.attempt_no,
        carrier_no: row.carrier_no,
        practice_no: row.practice_no,
        class: row.class,
        priority: row.priority,
        segments: row.segments,
        due_ms: row.due_ms,
        expires_at_ms: row.expires_at_ms,
        deadline_ms: row.deadline_ms,
    }
}
