//! What leaders propose about hours: with a new message, and for one whose window is over or was computed by other rules.
use super::{Answer, Ask, Rulebook};
use carillon_proto::MessageId;
use carillon_proto::internal::{Accept, MessageStatus, Place, PracticeRecord, SetHours, ZoneSource};
use carillon_proto::public::WaitingReason;

/// Closed for good: apply refuses every attempt of a message that is open until then.
const NEVER_MS: u64 = 1;

/// The fields of an `Accept`, and what its caller is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoursPlan {
    /// 0: it may go at once.
    pub due_ms: u64,
    pub open_until_ms: u64,
    pub stamp: u32,
    /// First moment at which it may be sent.
    pub first_send_ms: u64,
    /// It can only expire.
    pub expires_before: bool,
}

impl Rulebook {
    /// For a new message.
    pub fn plan(&self, ask: &Ask<'_>, expires_at_ms: u64) -> HoursPlan {
        let (due_ms, open_until_ms, _) = self.place_in_time(ask, expires_at_ms);
        let first_send_ms = if due_ms == 0 { ask.from_ms } else { due_ms };
        HoursPlan {
            due_ms,
            open_until_ms,
            stamp: self.stamp_with(ask.practice),
            first_send_ms,
            expires_before: first_send_ms >= expires_at_ms,
        }
    }

    /// For a message that waits. One that is held for its hours goes as soon as they allow; any other one not before it is due.
    pub fn renew(
        &self,
        message_id: &MessageId,
        accept: &Accept,
        status: &MessageStatus,
        practice: Option<&PracticeRecord>,
        now_ms: u64,
    ) -> SetHours {
        let held = status.waiting_reason == WaitingReason::QuietHours as i32;
        let from_ms = now_ms.max(if held { accept.not_before_ms } else { status.due_ms });
        let place = place_of(accept, practice);
        let ask = Ask {
            place: &place,
            class: accept.class,
            priority: accept.priority,
            practice: practice.and_then(|record| record.hours.as_ref()),
            from_ms,
        };
        let (due_ms, open_until_ms, rule) = self.place_in_time(&ask, accept.expires_at_ms);
        let due_ms = if held && due_ms == 0 && status.due_ms > from_ms { from_ms } else { due_ms };
        SetHours {
            message_id: message_id.to_bytes(),
            due_ms,
            open_until_ms,
            hours_stamp: self.stamp_with(ask.practice),
            rule,
            asked_ms: from_ms,
        }
    }

    /// (due, open until, rule): due is 0 when it is open at the moment asked for.
    fn place_in_time(&self, ask: &Ask<'_>, expires_at_ms: u64) -> (u64, u64, String) {
        match self.ask(ask) {
            Answer::Exempt(_) => (0, 0, String::new()),
            Answer::Window(window) if window.open_ms <= ask.from_ms => (0, window.until_ms, String::new()),
            Answer::Window(window) => (window.open_ms, window.until_ms, window.rule),
            Answer::Never(rule) => (expires_at_ms, NEVER_MS, rule),
        }
    }
}

/// Messages that were accepted below the feature level of hours have no place: the zone they came with, then the practice's.
fn place_of(accept: &Accept, practice: Option<&PracticeRecord>) -> Place {
    if let Some(place) = &accept.place {
        return place.clone();
    }
    let zone = match (accept.time_zone.as_str(), practice) {
        ("", Some(practice)) => practice.time_zone.clone(),
        (given, _) => given.to_owned(),
    };
    Place { time_zones: vec![zone], regions: Vec::new(), source: ZoneSource::Unspecified.into() }
}
