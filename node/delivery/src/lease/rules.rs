//! The limits that are in force, as the meta group has them. Pure.
use super::{Limit, LimitId, LimitRule};
use carillon_core::meta::{MetaView, share_of};
use carillon_proto::internal::ShareRecord;
use std::collections::BTreeMap;

/// Every limit. `kept`: the epoch of the shares that each node says it keeps to; what nodes may still send on fixed shares is not
/// given out. Empty while nodes do not send on leases.
pub fn rules(view: &MetaView, kept: &BTreeMap<u64, u64>) -> BTreeMap<LimitId, LimitRule> {
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
        let limit = carrier.segments_per_second;
        let fixed: Vec<u32> = late.iter().map(|id| share_of(&before, *id, limit)).collect();
        let rule = LimitRule {
            fixed: fixed.iter().sum(),
            fixed_nodes: fixed.len() as u32,
            ..LimitRule::of(Limit::per_second(limit))
        };
        (carrier.carrier_no, rule)
    });
    of_account.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_core::meta::level;
    use carillon_proto::internal::CarrierRecord;

    #[test]
    fn what_nodes_still_send_on_shares_is_not_given_out() {
        let mut view = MetaView { level: level::LEVEL_DELIVERY, ..Default::default() };
        let carrier = CarrierRecord { carrier_no: 3, segments_per_second: 60, ..Default::default() };
        view.carriers.insert(3, carrier);
        view.shares = ShareRecord { epoch: 2, senders: vec![1, 2, 3], next: vec![], changing: true };
        let fixed = |view: &MetaView, kept: &[(u64, u64)]| {
            let found = rules(view, &kept.iter().copied().collect());
            found.get(&3).map(|rule| (rule.fixed, rule.fixed_nodes))
        };
        assert_eq!(fixed(&view, &[]), Some((60, 3)));
        assert_eq!(fixed(&view, &[(1, 2), (2, 1)]), Some((40, 2)));
        view.shares = ShareRecord { epoch: 2, ..Default::default() };
        assert_eq!(fixed(&view, &[]), Some((0, 0)), "all have said that they gave them up");
        view.shares = ShareRecord { epoch: 1, senders: vec![1, 2, 3], ..Default::default() };
        assert_eq!(fixed(&view, &[(1, 1)]), None, "nobody holds leases yet");
    }
}
