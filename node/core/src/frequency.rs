//! How many messages one recipient gets from a practice: caps for a day and a week, and the fuse for bursts.
//!
//! Counted is what was begun, once for a message and day, by the replicated counters of table H; so the caps hold through every
//! change of leaders. A message whose attempt came to nothing stays counted: the caps are never exceeded, and the rare
//! recipient who loses a place gets the message the next day. Days are those of the practice's zone; which day it was for the leader
//! and when the next ones begin comes with the command, and which one of these it is says the clock of the log, which never goes back:
//! counters of later days than this one there are none, whatever clocks do.
//!
//! A message beyond a cap waits with the reason FREQUENCY_CAP until the day on which there is room, or until it expires. A burst is not
//! a matter of waiting: the attempt is refused, the message stays as it is, and the leader pauses the practice.
use crate::effect::Refusal;
use crate::keys::{self, Index};
use crate::message::{Message, Step};
use crate::records::{corrupt, decode, encode};
use crate::tables::{ReadTables, TableError};
use crate::turn::Turn;
use carillon_proto::internal::{FrequencyRecord, FrequencyRule};
use carillon_proto::public::WaitingReason;

/// Days that a week's cap looks at.
const WEEK_DAYS: u32 = 7;
/// Counters are kept for so many days: a week, and what zones and clocks may differ.
const KEPT_DAYS: u64 = 10;
const DAY_MS: u64 = 86_400_000;

/// Counts the message, or says why it must not be sent now.
pub(crate) fn admit(
    turn: &mut Turn,
    message: &mut Message,
    recipient: &Index,
    rule: &FrequencyRule,
) -> Result<Option<Refusal>, TableError> {
    if rule.day < WEEK_DAYS || rule.day_starts_ms.len() != WEEK_DAYS as usize {
        return Ok(Some(Refusal::Malformed));
    }
    // The leader's clock may have gone back behind a midnight.
    let ahead = rule.day_starts_ms.iter().take_while(|starts_ms| **starts_ms <= turn.now_ms).count();
    let (day, starts) = (rule.day + ahead as u32, &rule.day_starts_ms[ahead..]);
    if starts.is_empty() {
        return Ok(Some(Refusal::Malformed));
    }
    if message.status.counted_day == day {
        return Ok(None);
    }
    let practice_no = message.status.practice_no;
    let key = keys::frequency(day, practice_no, recipient);
    let mut today = record(turn.tables, &key)?;
    if let Some(due_ms) = full_until(turn, rule, (day, starts), (practice_no, recipient), today.messages)? {
        message.advance(turn, Step::wait(WaitingReason::FrequencyCap, due_ms.max(turn.now_ms)));
        return Ok(Some(Refusal::FrequencyCap));
    }
    let window_ends_ms = today.burst_from_ms.saturating_add(u64::from(rule.burst_window_ms));
    if window_ends_ms <= turn.now_ms || today.burst_from_ms < rule.burst_since_ms {
        (today.burst_from_ms, today.burst) = (turn.now_ms, 0);
    }
    if rule.burst > 0 && today.burst >= rule.burst {
        return Ok(Some(Refusal::Burst));
    }
    today.messages += 1;
    today.burst += 1;
    turn.tables.put(key, encode(&today));
    message.status.counted_day = day;
    Ok(None)
}

fn record(tables: &dyn ReadTables, key: &[u8]) -> Result<FrequencyRecord, TableError> {
    tables.get(key)?.map_or(Ok(FrequencyRecord::default()), |row| decode('H', row))
}

/// When there is room again, if there is none.
fn full_until(
    turn: &Turn,
    rule: &FrequencyRule,
    (day, starts): (u32, &[u64]),
    (practice_no, recipient): (u32, &Index),
    today: u32,
) -> Result<Option<u64>, TableError> {
    let mut until = (rule.per_day > 0 && today >= rule.per_day).then(|| starts[0]);
    if rule.per_week > 0 {
        let mut days = vec![today];
        for back in 1..WEEK_DAYS {
            let key = keys::frequency(day - back, practice_no, recipient);
            days.push(record(turn.tables, &key)?.messages);
        }
        // After `wait` days the oldest `wait` ones are out of the week.
        let of_week = |wait: usize| days[..days.len() - wait].iter().map(|n| u64::from(*n)).sum::<u64>();
        if of_week(0) >= u64::from(rule.per_week) {
            let wait = (1..days.len()).find(|wait| of_week(*wait) < u64::from(rule.per_week));
            // Further ahead nothing is known: there it is looked at again.
            until = until.max(Some(starts[wait.unwrap_or(starts.len()).min(starts.len()) - 1]));
        }
    }
    Ok(until)
}

/// Drops counters that no cap looks at any more, at most `limit`; gives their number.
pub(crate) fn retire(turn: &mut Turn, limit: usize) -> Result<usize, TableError> {
    let Some(day) = (turn.now_ms / DAY_MS).checked_sub(KEPT_DAYS) else { return Ok(0) };
    let range = keys::frequency_before(u32::try_from(day).unwrap_or(u32::MAX));
    let (mut old, mut readable) = (Vec::new(), true);
    turn.tables.scan(&range.start, &range.end, &mut |key, _| {
        readable = keys::decode_frequency(key).is_some();
        old.push(key.to_vec());
        readable && old.len() < limit
    })?;
    if !readable {
        return Err(corrupt('H', "key"));
    }
    let count = old.len();
    old.into_iter().for_each(|key| turn.tables.delete(key));
    Ok(count)
}
