//! LeaderStart: the first entry of a leader's term. What older leaders left in flight has an unknown fate.
use crate::effect::{CommandResult, Refusal};
use crate::keys;
use crate::message::Message;
use crate::outcome::{self, Answer};
use crate::records::{corrupt, decode};
use crate::tables::TableError;
use crate::turn::Turn;
use carillon_proto::MessageId;
use carillon_proto::internal::{InFlightRecord, LeaderStart};
use carillon_proto::public::Outcome;

/// The code of an attempt whose leader was replaced before its answer was recorded.
pub const CODE_LEADER_CHANGED: &str = "leader_changed";

pub(crate) fn start(turn: &mut Turn, start: &LeaderStart) -> Result<CommandResult, TableError> {
    if start.term != turn.term {
        return Ok(CommandResult::Refused(Refusal::StaleTerm));
    }
    if start.term <= turn.leader_start_term {
        return Ok(CommandResult::Done);
    }
    turn.leader_start_term = start.term;
    for (id, attempt_no) in older(turn, start.term)? {
        let mut message = Message::load(turn.tables, id)?
            .ok_or_else(|| corrupt('F', "names a message that does not exist"))?;
        let position = outcome::position(&message, attempt_no)
            .ok_or_else(|| corrupt('F', "names an attempt that does not exist"))?;
        let answer = Answer::new(Outcome::Ambiguous, CODE_LEADER_CHANGED.to_owned());
        outcome::settle(turn, &mut message, position, &answer)?;
    }
    Ok(CommandResult::Done)
}

/// Attempts begun before `term`. Bounded by the windows of the lanes, which bound what is in flight.
fn older(turn: &Turn, term: u64) -> Result<Vec<(MessageId, u32)>, TableError> {
    let range = keys::in_flight_range();
    let (mut found, mut error) = (Vec::new(), None);
    turn.tables.scan(&range.start, &range.end, &mut |key, row| {
        let Some(id) = keys::decode_in_flight(key) else {
            error = Some(corrupt('F', "key"));
            return false;
        };
        match decode::<InFlightRecord>('F', row) {
            Ok(record) if record.term < term => found.push((id, record.attempt_no)),
            Ok(_) => {}
            Err(e) => error = Some(e),
        }
        error.is_none()
    })?;
    error.map_or(Ok(found), Err)
}
