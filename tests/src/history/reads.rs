//! Reads of one message: whether there is one order of all of them that real time and the message's life allow.
//!
//! A message moves by itself and only forward, so between any two reads it may have taken any legal path. A set of
//! reads is then linearizable exactly when no read that began after another had ended shows an earlier rank, no final state
//! is followed by another, and what a carrier took over ends as delivered or not: a cycle of real time and rank
//! always holds one pair that goes back.

use carillon_core::message::{is_final, rank};
use carillon_loadtest::ledger::state_name;
use carillon_proto::public::MessageState;

/// One answer that says in which state a message was.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    pub op: u64,
    pub begin_us: u64,
    pub end_us: u64,
    pub state: MessageState,
}

/// May `later` be what comes of `earlier`, after any time?
fn may_become(earlier: MessageState, later: MessageState) -> bool {
    use MessageState::{Delivered, Submitted, Undelivered};
    match earlier {
        state if is_final(state) => later == state,
        Submitted => matches!(later, Submitted | Delivered | Undelivered),
        state => rank(later) >= rank(state),
    }
}

/// Every pair that goes back, as text.
pub fn check(id: &str, observations: &[Observation]) -> Vec<String> {
    let mut found = Vec::new();
    for a in observations {
        for b in observations {
            let said = || {
                let (first, second) = (state_name(a.state), state_name(b.state));
                format!("{id}: operation {} saw {first}, operation {} saw {second}", a.op, b.op)
            };
            if a.end_us < b.begin_us && !may_become(a.state, b.state) {
                found.push(format!("{} later", said()));
            } else if a.op < b.op && is_final(a.state) && is_final(b.state) && a.state != b.state {
                // Whatever their order, one final state was left again.
                found.push(said());
            }
        }
    }
    found
}
