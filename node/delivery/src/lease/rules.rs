//! The limits that are in force, as the meta group has them, and which of them apply to a message. Pure.
use super::{LIMIT_BASE, Limit, LimitId, LimitRule};
use carillon_core::meta::{MetaView, UNPUBLISHED_MAX, applies, ease_permille, senders, share_of};
use carillon_proto::internal::{LimitRecord, LimitScope, PracticeRecord, ShareRecord};
use std::collections::BTreeMap;
use std::time::Duration;

/// Every limit with a sliding window. `kept`: the epoch of the shares that each node says it keeps to; what nodes may still send on
/// fixed shares is not given out. `now_ms`: the wall clock, for lanes that get back what was taken from them. Empty while nodes
/// do not send on leases.
pub fn rules(view: &MetaView, kept: &BTreeMap<u64, u64>, now_ms: u64) -> BTreeMap<LimitId, LimitRule> {
    if !view.leases() || view.is_restoring() {
        return BTreeMap::new();
    }
    let shares = &view.shares;
    let before = ShareRecord { changing: false, next: Vec::new(), ..shares.clone() };
    let late: Vec<u64> = match shares.changing {
        true => shares.senders.iter().copied().filter(|id| kept.get(id) < Some(&shares.epoch)).collect(),
        false => Vec::new(),
    };
    let of_account = view.carriers.values().map(|carrier| {
        let lane = view.lanes.get(&carrier.carrier_no);
        let published = carrier.segments_per_second;
        let limit = if published == 0 { UNPUBLISHED_MAX } else { published };
        let fixed: Vec<u32> = late.iter().map(|id| share_of(&before, *id, published)).collect();
        let rule = LimitRule {
            limit: Limit::per_second(limit),
            ease_permille: ease_permille(lane, now_ms),
            paused: lane.is_some_and(|lane| lane.paused),
            fixed: fixed.iter().sum(),
            fixed_nodes: fixed.len() as u32,
        };
        (carrier.carrier_no, rule)
    });
    let others = view.limits.values().filter(|limit| limit.window_s > 0).map(|limit| {
        let window = Duration::from_secs(limit.window_s.into());
        (LIMIT_BASE + limit.limit_no, LimitRule::of(Limit { amount: limit.amount, window }))
    });
    of_account.chain(others).collect()
}

/// Limits of a calendar day, and their amounts.
pub fn caps(view: &MetaView) -> BTreeMap<LimitId, u32> {
    let days = view.limits.values().filter(|limit| limit.window_s == 0);
    days.map(|limit| (LIMIT_BASE + limit.limit_no, limit.amount)).collect()
}

/// Names everything that operators can set about limits, accounts and lanes, as it is in this view: equal stamps, equal settings. Never 0.
/// Not in it: campaigns and brands of single practices, and what is eased or taken.
pub fn stamp(view: &MetaView) -> u64 {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    for limit in view.limits.values() {
        hash.numbers(&[limit.limit_no, limit.carrier_no, limit.scope as u32, limit.practice_no]);
        hash.numbers(&[limit.amount, limit.window_s]);
        [&limit.key, &limit.network, &limit.time_zone].into_iter().for_each(|text| hash.text(text));
    }
    for carrier in view.carriers.values() {
        hash.numbers(&[carrier.carrier_no, carrier.segments_per_second]);
        [&carrier.campaign, &carrier.brand].into_iter().for_each(|text| hash.text(text));
        carrier.smpp.iter().for_each(|smpp| hash.text(&smpp.source_address));
        carrier.twilio.iter().for_each(|twilio| hash.text(&twilio.from));
    }
    for lane in view.lanes.values().filter(|lane| lane.paused) {
        hash.numbers(&[lane.carrier_no]);
    }
    hash.0.max(1)
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Fnv {
    fn octets(&mut self, octets: &[u8]) {
        for octet in octets {
            self.0 = (self.0 ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn numbers(&mut self, numbers: &[u32]) {
        numbers.iter().for_each(|number| self.octets(&number.to_be_bytes()));
    }

    fn text(&mut self, text: &str) {
        self.numbers(&[text.len() as u32]);
        self.octets(text.as_bytes());
    }
}

/// The limits that every segment of a carrier needs, whatever practice it is of and whatever sender it leaves under.
pub fn common(view: &MetaView, carrier_no: u32) -> Vec<LimitId> {
    let of_all = |limit: &&LimitRecord| limit.scope() == LimitScope::Account;
    let own = if has_senders(view, carrier_no) { Vec::new() } else { of_sender(view, carrier_no, "") };
    let account = view.limits.values().filter(of_all).filter(|limit| limit.carrier_no == carrier_no);
    let mut others: Vec<LimitId> = account.map(|limit| LIMIT_BASE + limit.limit_no).chain(own).collect();
    others.sort_unstable();
    std::iter::once(carrier_no).chain(others).collect()
}

/// The carrier sends under more than its account's own sender.
pub fn has_senders(view: &MetaView, carrier_no: u32) -> bool {
    senders::of_carrier(view, carrier_no).next().is_some()
}

/// The limits of a sender (its address; empty: the account's own).
pub fn of_sender(view: &MetaView, carrier_no: u32, sender: &str) -> Vec<LimitId> {
    let Some(carrier) = view.carriers.get(&carrier_no) else { return Vec::new() };
    let practice = PracticeRecord::default();
    let of = |limit: &&LimitRecord| {
        limit.scope() == LimitScope::Sender && applies(limit, carrier, &practice, sender)
    };
    view.limits.values().filter(of).map(|limit| LIMIT_BASE + limit.limit_no).collect()
}

/// The limits of a practice that not all messages of its carrier need: its own, and those of its campaign and its brand.
pub fn of_practice(view: &MetaView, carrier_no: u32, practice_no: u32) -> Vec<LimitId> {
    let (Some(carrier), Some(practice)) = (view.carriers.get(&carrier_no), view.practices.get(&practice_no))
    else {
        return Vec::new();
    };
    let of_all = |limit: &LimitRecord| matches!(limit.scope(), LimitScope::Account | LimitScope::Sender);
    let of = |limit: &&LimitRecord| !of_all(limit) && applies(limit, carrier, practice, "");
    view.limits.values().filter(of).map(|limit| LIMIT_BASE + limit.limit_no).collect()
}

/// All limits that must grant before a segment of a practice leaves on a carrier under a sender (its address; empty: the account's own), the
/// account's first.
pub fn stack(view: &MetaView, carrier_no: u32, practice_no: u32, sender: &str) -> Vec<LimitId> {
    let others = view.limits_of(carrier_no, practice_no, sender);
    std::iter::once(carrier_no).chain(others.into_iter().map(|limit_no| LIMIT_BASE + limit_no)).collect()
}

/// Segments that wait for each limit; `waits`: those of each carrier that has a lane.
pub fn demand(view: &MetaView, mut waits: BTreeMap<u32, u32>) -> BTreeMap<LimitId, u32> {
    let of_limit = |limit: &LimitRecord| {
        (LIMIT_BASE + limit.limit_no, waits.get(&limit.carrier_no).copied().unwrap_or(0))
    };
    let others: Vec<(LimitId, u32)> = view.limits.values().map(of_limit).collect();
    waits.extend(others);
    waits
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_core::meta::level;
    use carillon_proto::internal::{CarrierRecord, LaneRecord, SmppSettings};

    fn view() -> MetaView {
        let mut view = MetaView { level: level::LEVEL_DELIVERY, ..Default::default() };
        let smpp = Some(SmppSettings { source_address: "12125550100".into(), ..Default::default() });
        let campaign = "reminders".into();
        let carrier =
            CarrierRecord { carrier_no: 3, segments_per_second: 60, smpp, campaign, ..Default::default() };
        view.carriers.insert(3, carrier);
        view
    }

    #[test]
    fn what_nodes_still_send_on_shares_is_not_given_out() {
        let mut view = view();
        view.shares = ShareRecord { epoch: 2, senders: vec![1, 2, 3], next: vec![], changing: true };
        let fixed = |view: &MetaView, kept: &[(u64, u64)]| {
            let found = rules(view, &kept.iter().copied().collect(), 0);
            found.get(&3).map(|rule| (rule.fixed, rule.fixed_nodes))
        };
        assert_eq!(fixed(&view, &[]), Some((60, 3)));
        assert_eq!(fixed(&view, &[(1, 2), (2, 1)]), Some((40, 2)));
        view.shares = ShareRecord { epoch: 2, ..Default::default() };
        assert_eq!(fixed(&view, &[]), Some((0, 0)), "all have said that they gave them up");
        view.shares = ShareRecord { epoch: 1, senders: vec![1, 2, 3], ..Default::default() };
        assert_eq!(fixed(&view, &[(1, 1)]), None, "nobody holds leases yet");
    }

    #[test]
    fn an_eased_lane_gets_back_one_percent_a_second_and_an_unpublished_limit_is_found_out() {
        let mut view = view();
        let permille = |view: &MetaView, now_ms| rules(view, &BTreeMap::new(), now_ms)[&3].ease_permille;
        assert_eq!(permille(&view, 5_000), 1_000);
        let lane = LaneRecord {
            carrier_no: 3,
            eased: 4,
            eased_permille: 350,
            eased_at_ms: 5_000,
            ..Default::default()
        };
        view.lanes.insert(3, lane);
        assert_eq!([4_000, 5_000, 15_000, 500_000].map(|at| permille(&view, at)), [350, 350, 450, 1_000]);
        view.carriers.get_mut(&3).unwrap().segments_per_second = 0;
        assert_eq!(rules(&view, &BTreeMap::new(), 5_000)[&3].limit, Limit::per_second(UNPUBLISHED_MAX));
        view.lanes.get_mut(&3).unwrap().paused = true;
        assert!(rules(&view, &BTreeMap::new(), 5_000)[&3].paused);
    }

    #[test]
    fn the_stamp_changes_with_everything_that_binds_and_with_nothing_else() {
        let mut seen = BTreeMap::new();
        let mut view = view();
        let mut is_new = |view: &MetaView, what: &str| {
            let before = seen.insert(stamp(view), what.to_owned());
            assert_eq!(before, None, "{what}");
        };
        is_new(&view, "as it was");
        view.carriers.get_mut(&3).unwrap().segments_per_second = 61;
        is_new(&view, "another limit of the account");
        let limit = LimitRecord { limit_no: 1, carrier_no: 3, amount: 25, ..Default::default() };
        view.limits.insert(1, limit.clone());
        is_new(&view, "a cap");
        view.limits.insert(1, LimitRecord { amount: 24, ..limit.clone() });
        is_new(&view, "a lower cap");
        view.limits.insert(1, LimitRecord { key: "a".into(), network: "b".into(), ..limit.clone() });
        is_new(&view, "key and network");
        view.limits.insert(1, LimitRecord { key: "ab".into(), ..limit });
        is_new(&view, "the same letters elsewhere");
        view.lanes.insert(3, LaneRecord { carrier_no: 3, paused: true, ..Default::default() });
        is_new(&view, "a stopped lane");
        let before = stamp(&view);
        view.lanes.get_mut(&3).unwrap().eased = 5;
        assert_eq!(stamp(&view), before, "a carrier said something");
    }

    #[test]
    fn a_message_needs_a_permit_of_everything_that_applies_to_it() {
        let mut view = view();
        for (practice_no, campaign, brand) in [(1, "", ""), (2, "recalls", "acme")] {
            let (campaign, brand) = (campaign.to_owned(), brand.to_owned());
            let practice =
                PracticeRecord { practice_no, carrier_no: 3, campaign, brand, ..Default::default() };
            view.practices.insert(practice_no, practice);
        }
        let mut put = |limit_no, scope: LimitScope, key: &str, practice_no, network: &str, window_s| {
            let (key, network, scope) = (key.to_owned(), network.to_owned(), scope.into());
            let amount = 10;
            let limit = LimitRecord {
                limit_no,
                carrier_no: 3,
                scope,
                key,
                practice_no,
                network,
                amount,
                window_s,
                ..Default::default()
            };
            view.limits.insert(limit_no, limit);
        };
        put(1, LimitScope::Account, "", 0, "", 10);
        put(2, LimitScope::Sender, "12125550100", 0, "", 1);
        put(3, LimitScope::Sender, "999", 0, "", 1);
        put(4, LimitScope::Campaign, "reminders", 0, "att", 60);
        put(5, LimitScope::Campaign, "reminders", 0, "*", 60);
        put(6, LimitScope::Brand, "acme", 0, "tmobile", 0);
        put(7, LimitScope::Practice, "", 1, "", 1);
        let numbers = |practice_no| {
            let stack = stack(&view, 3, practice_no, "");
            stack.into_iter().map(|id| id % LIMIT_BASE).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), [3, 1, 2, 4, 5, 7], "the network is not known, so all of them count");
        assert_eq!(numbers(2), [3, 1, 2, 6]);
        assert_eq!(common(&view, 3), [3, LIMIT_BASE + 1, LIMIT_BASE + 2]);
        let under = |sender: &str| stack(&view, 3, 2, sender).into_iter().map(|id| id % LIMIT_BASE);
        assert!(under("999").eq([3, 1, 3, 6]), "the limit of the sender that it leaves under, and no other");
        assert_eq!(caps(&view), BTreeMap::from([(LIMIT_BASE + 6, 10)]));
        assert!(!rules(&view, &BTreeMap::new(), 0).contains_key(&(LIMIT_BASE + 6)));
        assert_eq!(
            rules(&view, &BTreeMap::new(), 0)[&(LIMIT_BASE + 4)].limit.window,
            Duration::from_secs(60)
        );
    }
}
