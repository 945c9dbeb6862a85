//! Why a message has not left yet, in words of operation: everything that it waits for, and what binds.
//!
//! Pure: takes what the tables, the lane and the forecast say, and gives reasons. Nothing here names a patient.
use crate::forecast::Departure;
use carillon_core::message::state_of;
use carillon_proto::internal::MessageStatus;
use carillon_proto::public::{MessageState, Outcome, WaitingReason};

/// A lane as it stands, on the node that would send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaneState {
    /// Of the carrier account.
    pub name: String,
    /// It exists on this node and has a share.
    pub configured: bool,
    /// The carrier can be reached.
    pub connected: bool,
    /// This node's share.
    pub segments_per_second: u32,
    /// The carrier asked for a pause until then; 0 = it did not.
    pub paused_until_ms: u64,
    /// The breaker is open until then; 0 = it is not.
    pub breaker_until_ms: u64,
    /// An operator opened its breaker.
    pub closed_by_operator: bool,
    /// An operator paused it.
    pub paused_by_operator: bool,
    /// Of the limits that the message needs besides the account's, the tightest one that is tighter; empty = none is.
    pub tighter_limit: String,
    /// A limit whose daily cap is used up; empty = none is.
    pub cap_reached: String,
    /// When that cap begins anew; 0 = not known.
    pub cap_resets_ms: u64,
    /// The practice is stopped on it.
    pub practice_paused: bool,
    /// The sender of the message; empty = the account's own.
    pub sender: String,
    /// An operator paused that sender.
    pub sender_paused: bool,
    /// The carrier refuses it; it is tried again then. 0 = it does not.
    pub sender_refused_until_ms: u64,
}

impl LaneState {
    /// The limit that paces the message, with its rate.
    fn pace(&self) -> String {
        let rate = self.segments_per_second;
        match self.tighter_limit.as_str() {
            "" => format!("carrier {}: {rate} segments/s", self.name),
            limit => format!("limit {limit}: {rate} segments/s"),
        }
    }
}

/// One thing that a message waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub reason: WaitingReason,
    pub limit: String,
    /// 0 = not known.
    pub until_ms: u64,
}

/// Why, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The one that ends last first; one whose end is not known ends last.
    pub holds: Vec<Hold>,
    pub binding_limit: String,
    pub summary: String,
}

/// Explains a message. `departure` is its place in the forecast of its lane, if it waits.
pub fn explain(
    status: &MessageStatus,
    lane: &LaneState,
    departure: Option<&Departure>,
    now_ms: u64,
) -> Explanation {
    let state = state_of(status);
    if !matches!(state, MessageState::Accepted | MessageState::Waiting) {
        return Explanation { summary: elsewhere(status), ..Explanation::default() };
    }
    let mut holds: Vec<Hold> = of_message(status, now_ms).into_iter().chain(of_lane(lane, now_ms)).collect();
    let ahead = departure.map_or(0, |d| d.position);
    let leaves_ms = departure.and_then(|d| d.at_ms).unwrap_or(0);
    if lane.configured && ahead > 0 {
        holds.push(Hold { reason: WaitingReason::LaneLimit, limit: lane.pace(), until_ms: leaves_ms });
    }
    holds.sort_by_key(|hold| std::cmp::Reverse(ends_ms(hold)));
    let binding_limit = match holds.first() {
        Some(hold) => hold.limit.clone(),
        None => lane.pace(),
    };
    let summary = match holds.first() {
        Some(hold) if ahead > 0 => format!("waits for {}; {ahead} messages go before it", hold.limit),
        Some(hold) => format!("waits for {}", hold.limit),
        None => "is about to be sent".to_owned(),
    };
    Explanation { holds, binding_limit, summary }
}

/// One whose end is not known ends last.
fn ends_ms(hold: &Hold) -> u64 {
    if hold.until_ms == 0 { u64::MAX } else { hold.until_ms }
}

/// Beginning an attempt takes less; a message that has been due for longer waits for its lane.
const BEGINS_WITHIN_MS: u64 = 500;

/// The one reason that a message shows while it waits: its own as long as its time has not come, then what keeps its lane, and when nothing does
/// the lane's limit. It is worked out when somebody reads: no row is written for what all messages of a lane wait for.
pub fn reason(status: &MessageStatus, lane: &LaneState, now_ms: u64) -> WaitingReason {
    let own = WaitingReason::try_from(status.waiting_reason).unwrap_or(WaitingReason::Unspecified);
    let waits = matches!(state_of(status), MessageState::Accepted | MessageState::Waiting);
    // The message before it has not been handed over: it is not among those of its lane.
    if !waits || own == WaitingReason::Order || status.due_ms > now_ms {
        return own;
    }
    match of_lane(lane, now_ms).iter().max_by_key(|hold| ends_ms(hold)) {
        Some(hold) => hold.reason,
        None if status.due_ms.saturating_add(BEGINS_WITHIN_MS) <= now_ms => WaitingReason::LaneLimit,
        None => own,
    }
}

/// What the message itself waits for.
fn of_message(status: &MessageStatus, now_ms: u64) -> Option<Hold> {
    if status.due_ms <= now_ms {
        return None;
    }
    let reason = match WaitingReason::try_from(status.waiting_reason).unwrap_or(WaitingReason::Unspecified) {
        WaitingReason::Unspecified => WaitingReason::Schedule,
        known => known,
    };
    let last = status.attempts.last().map(|attempt| (attempt.number, attempt.code.as_str()));
    let limit = match (reason, last) {
        (WaitingReason::Schedule, _) => "its time to be sent".to_owned(),
        (WaitingReason::QuietHours, _) => "the end of the recipient's quiet hours".to_owned(),
        (WaitingReason::DailyCap, _) => "the reset of a daily cap".to_owned(),
        (WaitingReason::FrequencyCap, _) => "the recipient's frequency cap".to_owned(),
        (WaitingReason::Paused, _) => "the end of a pause by an operator".to_owned(),
        (WaitingReason::Order, _) => "the message before it for the same recipient".to_owned(),
        (
            WaitingReason::Backoff | WaitingReason::LaneLimit | WaitingReason::BreakerOpen,
            Some((number, code)),
        ) => format!("the retry after attempt {number} ({code})"),
        (reason, _) => reason.as_str_name().trim_start_matches("WAITING_REASON_").to_ascii_lowercase(),
    };
    Some(Hold { reason, limit, until_ms: status.due_ms })
}

/// What keeps its lane.
fn of_lane(lane: &LaneState, now_ms: u64) -> Vec<Hold> {
    let mut holds = Vec::new();
    let mut hold = |reason, limit: String, until_ms| holds.push(Hold { reason, limit, until_ms });
    let name = &lane.name;
    if lane.closed_by_operator {
        hold(WaitingReason::BreakerOpen, format!("carrier {name}: opened by an operator"), 0);
    } else if lane.breaker_until_ms > now_ms {
        let what = format!("carrier {name}: breaker open after failures");
        hold(WaitingReason::BreakerOpen, what, lane.breaker_until_ms);
    }
    if lane.paused_by_operator {
        hold(WaitingReason::Paused, format!("carrier {name}: paused by an operator"), 0);
    }
    if lane.practice_paused {
        hold(WaitingReason::Paused, format!("the practice is stopped on carrier {name}"), 0);
    }
    if lane.sender_paused {
        hold(WaitingReason::Paused, format!("sender {}: paused by an operator", lane.sender), 0);
    } else if lane.sender_refused_until_ms > now_ms {
        let what = format!("sender {}: refused by carrier {name}", lane.sender);
        hold(WaitingReason::BreakerOpen, what, lane.sender_refused_until_ms);
    }
    if !lane.cap_reached.is_empty() {
        let what = format!("limit {}: its daily cap is used up", lane.cap_reached);
        hold(WaitingReason::DailyCap, what, lane.cap_resets_ms);
    }
    if !lane.configured {
        hold(WaitingReason::LaneLimit, format!("carrier {name}: no share of its limit on this node"), 0);
    } else if !lane.connected {
        hold(WaitingReason::BreakerOpen, format!("carrier {name}: not connected"), 0);
    }
    if lane.paused_until_ms > now_ms {
        let what = format!("carrier {name}: asked for a pause");
        hold(WaitingReason::LaneLimit, what, lane.paused_until_ms);
    }
    holds
}

/// A message that does not wait.
fn elsewhere(status: &MessageStatus) -> String {
    let code = status.attempts.last().map_or("", |attempt| attempt.code.as_str());
    let detail = if status.detail.is_empty() { code } else { status.detail.as_str() };
    let with = |text: &str| if detail.is_empty() { text.to_owned() } else { format!("{text} ({detail})") };
    match state_of(status) {
        MessageState::InFlight => "an attempt is under way".to_owned(),
        MessageState::Submitted => "the carrier has it; its receipt has not come".to_owned(),
        MessageState::Unknown => {
            let lost = || status.attempts.iter().filter(|a| a.outcome == Outcome::Ambiguous as i32);
            match lost().next_back() {
                // Whether the rest was not sent, refused or not answered says the detail.
                Some(half) if half.segments > 0 => with(&format!(
                    "held: the carrier acknowledged {} of {} parts, and not the rest",
                    half.segments, status.segments
                )),
                _ => with(&format!("held: the carrier's answer to {} attempts was lost", lost().count())),
            }
        }
        MessageState::Delivered => "delivered".to_owned(),
        MessageState::Undelivered => with("not delivered"),
        MessageState::Expired => "expired before it could be handed over".to_owned(),
        MessageState::Canceled => "taken back in time".to_owned(),
        MessageState::Rejected => with("refused by the carrier for good"),
        MessageState::OptedOut => "the recipient opted out".to_owned(),
        MessageState::Dead => with("dead letter: all retries are spent"),
        MessageState::Unspecified | MessageState::Accepted | MessageState::Waiting => String::new(),
    }
}
