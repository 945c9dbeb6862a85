//! What happens when a carrier says "too fast": its lane pauses for everybody, and is eased.
//!
//! Runs beside the [`super::Grantor`]. The pause is volatile: a new leader hears of it with the next answer of that kind. Easing is a
//! command of the meta group, so every leader knows it; what comes back with time is a function of that record.
use super::{LimitId, LimitRule};
use carillon_core::meta::{MetaView, ease_permille};
use carillon_proto::internal::{EaseLane, LaneAnswers};
use std::collections::BTreeMap;
use std::time::Duration;

/// A lane is eased when at least one attempt in so many was too fast, ...
const THROTTLED_ONE_IN: u64 = 20;
/// ... and at least so many of them in a few seconds (one is bad luck), ...
const THROTTLED_MIN: u32 = 3;
/// ... to so many permille of what it had, ...
const EASE_TO_PERMILLE: u32 = 700;
/// ... and not again before this time: the last step must show first.
const EASE_EVERY: Duration = Duration::from_secs(2);
/// Answers are counted together for this long.
const COUNT_FOR: Duration = Duration::from_secs(5);
/// A carrier's word is heard up to this pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// See the module documentation. Bounded by the carriers that there are.
#[derive(Debug, Default)]
pub struct Easer {
    paused: BTreeMap<u32, Duration>,
    eased: BTreeMap<u32, Duration>,
    heard: BTreeMap<u32, Heard>,
}

/// Answers of a carrier since a moment.
#[derive(Debug, Default)]
struct Heard {
    since: Duration,
    attempts: u64,
    throttled: u64,
}

impl Easer {
    /// What a node says that a carrier answered. Gives the command that eases the lane, if it is to be eased now.
    pub fn hear(
        &mut self,
        answer: &LaneAnswers,
        view: &MetaView,
        now_ms: u64,
        mono: Duration,
    ) -> Option<EaseLane> {
        let LaneAnswers { carrier_no, attempts, throttled, pause_ms } = *answer;
        if !view.carriers.contains_key(&carrier_no) {
            return None;
        }
        let heard = self.heard.entry(carrier_no).or_default();
        if mono.saturating_sub(heard.since) > COUNT_FOR {
            *heard = Heard { since: mono, ..Heard::default() };
        }
        heard.attempts += u64::from(attempts);
        heard.throttled += u64::from(throttled);
        let few =
            heard.throttled < u64::from(THROTTLED_MIN) || heard.throttled * THROTTLED_ONE_IN < heard.attempts;
        if throttled == 0 || few {
            return None;
        }
        let until = mono + Duration::from_millis(pause_ms.into()).min(PAUSE_MAX);
        let paused = self.paused.entry(carrier_no).or_insert(until);
        *paused = until.max(*paused);
        if self.eased.get(&carrier_no).is_some_and(|at| mono.saturating_sub(*at) < EASE_EVERY) {
            return None;
        }
        self.eased.insert(carrier_no, mono);
        self.heard.remove(&carrier_no);
        let lane = view.lanes.get(&carrier_no);
        let permille = ease_permille(lane, now_ms) * EASE_TO_PERMILLE / 1_000;
        Some(EaseLane { carrier_no, permille, expected: lane.map_or(0, |lane| lane.eased) })
    }

    /// Lanes that pause get nothing.
    pub fn pause(&mut self, rules: &mut BTreeMap<LimitId, LimitRule>, mono: Duration) {
        self.paused.retain(|_, until| *until > mono);
        for carrier_no in self.paused.keys() {
            if let Some(rule) = rules.get_mut(carrier_no) {
                rule.paused = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Limit;
    use carillon_proto::internal::CarrierRecord;

    #[test]
    fn many_throttled_attempts_ease_a_lane_once_and_pause_it_and_few_do_nothing() {
        let mut view = MetaView::default();
        view.carriers.insert(3, CarrierRecord { carrier_no: 3, ..Default::default() });
        let at = Duration::from_millis;
        let said = |attempts, throttled| LaneAnswers { carrier_no: 3, attempts, throttled, pause_ms: 1_500 };
        let mut easer = Easer::default();
        assert_eq!(easer.hear(&said(1, 1), &view, 0, at(0)), None, "one is bad luck");
        assert_eq!(easer.hear(&said(100, 4), &view, 0, at(0)), None, "one in twenty would be 5.05");
        let command = easer.hear(&said(10, 5), &view, 0, at(0));
        assert_eq!(command, Some(EaseLane { carrier_no: 3, permille: 700, expected: 0 }));
        assert_eq!(easer.hear(&said(10, 10), &view, 0, at(1_000)), None, "the last step must show first");
        let paused = |easer: &mut Easer, ms| {
            let mut rules = BTreeMap::from([(3, LimitRule::of(Limit::per_second(9)))]);
            easer.pause(&mut rules, at(ms));
            rules[&3].paused
        };
        assert!(paused(&mut easer, 2_400), "the second word made it longer");
        assert!(!paused(&mut easer, 2_500));
        assert!(easer.hear(&said(10, 10), &view, 0, at(3_000)).is_some());
    }
}
