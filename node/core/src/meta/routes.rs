//! Routes: which carrier a message uses, by rules; and the operators' word about breakers.
//!
//! Applying keeps the rows; [`route`] and [`choose`] are what leaders ask before they propose. A route never moves a message that may
//! have been handed over: see `reroute.rs` of the core.
use super::apply::{Change, Outcome, number, put_if_new};
use super::keys::{self, Counted};
use super::{MetaRefusal, MetaView, ROUTES_MAX};
use crate::records::encode;
use crate::tables::Tables;
use carillon_proto::MessageId;
use carillon_proto::internal::{
    BreakerMode, BreakerRecord, DropRoute, PracticeRecord, PutRoute, RouteRecord, SetBreaker,
};
use siphasher::sip::SipHasher24;
use std::hash::Hasher as _;

/// Fixed key of the hash that spreads messages over the targets of a route.
const SPREAD_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x726f_7574_6573_3031);

pub(super) fn put(tables: &mut dyn Tables, command: PutRoute) -> Outcome {
    let Some(mut record) = command.route else { return Ok(Err(MetaRefusal::Empty)) };
    for target in &record.targets {
        if number(tables, &keys::carrier_name(&target.carrier))?.is_none() {
            return Ok(Err(MetaRefusal::NoCarrier));
        }
    }
    if !record.practice.is_empty()
        && number(tables, &keys::practice_name(&record.tenant, &record.practice))?.is_none()
    {
        return Ok(Err(MetaRefusal::NoPractice));
    }
    let name = keys::route_name(&record.name);
    record.route_no = match number(tables, &name)? {
        Some(route_no) => route_no,
        None => match super::apply::next_number(tables, Counted::Routes, ROUTES_MAX)? {
            Some(route_no) => route_no,
            None => return Ok(Err(MetaRefusal::TooMany { what: "routes", max: ROUTES_MAX })),
        },
    };
    tables.put(name, record.route_no.to_be_bytes().to_vec());
    put_if_new(tables, keys::route(record.route_no), encode(&record))
}

pub(super) fn drop_one(tables: &mut dyn Tables, command: &DropRoute) -> Outcome {
    let name = keys::route_name(&command.name);
    let Some(route_no) = number(tables, &name)? else { return Ok(Err(MetaRefusal::NoRoute)) };
    tables.delete(name);
    tables.delete(keys::route(route_no));
    Ok(Ok(Change::Changed))
}

pub(super) fn set_breaker(tables: &mut dyn Tables, command: &SetBreaker) -> Outcome {
    let Some(carrier_no) = number(tables, &keys::carrier_name(&command.carrier))? else {
        return Ok(Err(MetaRefusal::NoCarrier));
    };
    put_if_new(tables, keys::breaker(carrier_no), encode(&BreakerRecord { carrier_no, mode: command.mode }))
}

/// The rule for a message, if one fits. `number` is the recipient's in E.164.
pub fn route<'a>(
    view: &'a MetaView,
    practice: &PracticeRecord,
    class: i32,
    number: &str,
) -> Option<&'a RouteRecord> {
    let fits = |route: &&RouteRecord| {
        let any = |empty: bool, fits: bool| empty || fits;
        any(route.tenant.is_empty(), route.tenant == practice.tenant)
            && any(route.practice.is_empty(), route.practice == practice.practice)
            && any(route.classes.is_empty(), route.classes.contains(&class))
            && any(
                route.number_prefixes.is_empty(),
                route.number_prefixes.iter().any(|prefix| number.starts_with(prefix.as_str())),
            )
    };
    view.routes.values().filter(fits).min_by_key(|route| (route.rank, route.name.as_str()))
}

/// The carrier of a route for a message: by weight among those that can be used, the same one for the same message as long as
/// the same ones can be; one without weight when no other can. `None`: none can be used.
pub fn choose(
    view: &MetaView,
    route: &RouteRecord,
    id: &MessageId,
    usable: impl Fn(u32) -> bool,
) -> Option<u32> {
    let numbered = |carrier: &str| view.carrier(carrier).map(|record| record.carrier_no);
    let targets = route.targets.iter().filter_map(|t| Some((numbered(&t.carrier)?, u64::from(t.weight))));
    let targets: Vec<(u32, u64)> = targets.filter(|(carrier_no, _)| usable(*carrier_no)).collect();
    let sum: u64 = targets.iter().map(|(_, weight)| weight).sum();
    if sum == 0 {
        return targets.first().map(|(carrier_no, _)| *carrier_no);
    }
    let mut hasher = SipHasher24::new_with_keys(SPREAD_KEY.0, SPREAD_KEY.1);
    hasher.write(id.as_bytes());
    let mut at = hasher.finish() % sum;
    for (carrier_no, weight) in &targets {
        if at < *weight {
            return Some(*carrier_no);
        }
        at -= weight;
    }
    None
}

/// What operators want of a carrier's breaker.
pub fn breaker_mode(view: &MetaView, carrier_no: u32) -> BreakerMode {
    let record = view.breakers.get(&carrier_no);
    record.and_then(|record| BreakerMode::try_from(record.mode).ok()).unwrap_or(BreakerMode::Auto)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;
    use carillon_proto::internal::{CarrierRecord, RouteTarget};

    fn view(routes: Vec<RouteRecord>) -> MetaView {
        let carriers = [(1, "a"), (2, "b"), (3, "spare")];
        let carriers = carriers.map(|(carrier_no, name)| {
            (carrier_no, CarrierRecord { carrier_no, name: name.to_owned(), ..Default::default() })
        });
        let routes = routes.into_iter().enumerate().map(|(n, r)| (n as u32 + 1, r)).collect();
        MetaView { carriers: carriers.into(), routes, ..MetaView::default() }
    }

    fn rule(name: &str, rank: u32, targets: &[(&str, u32)]) -> RouteRecord {
        let target =
            |(carrier, weight): &(&str, u32)| RouteTarget { carrier: (*carrier).to_owned(), weight: *weight };
        let targets = targets.iter().map(target).collect();
        RouteRecord { name: name.to_owned(), rank, targets, ..Default::default() }
    }

    fn id(n: u64) -> MessageId {
        MessageId::new(1, Slot::new(1).unwrap(), n)
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let staff = RouteRecord { classes: vec![6], ..rule("staff", 1, &[("b", 1)]) };
        let canada = RouteRecord { number_prefixes: vec!["+1416".into()], ..rule("canada", 2, &[("b", 1)]) };
        let one = RouteRecord { tenant: "t".into(), practice: "p".into(), ..rule("one", 3, &[("a", 1)]) };
        let view = view(vec![rule("rest", 9, &[("a", 1)]), one, canada, staff]);
        let practice =
            |name: &str| PracticeRecord { tenant: "t".into(), practice: name.into(), ..Default::default() };
        let name = |practice_name: &str, class, number| {
            route(&view, &practice(practice_name), class, number).map(|r| r.name.as_str())
        };
        assert_eq!(name("p", 6, "+14165550100"), Some("staff"));
        assert_eq!(name("p", 2, "+14165550100"), Some("canada"));
        assert_eq!(name("p", 2, "+12125550100"), Some("one"));
        assert_eq!(name("q", 2, "+12125550100"), Some("rest"));
    }

    #[test]
    fn weights_spread_and_health_decides_who_can_be_used() {
        let rule = rule("r", 1, &[("a", 3), ("b", 1), ("spare", 0)]);
        let view = view(vec![rule.clone()]);
        let count = |usable: &dyn Fn(u32) -> bool| {
            let mut counts = [0_u32; 4];
            (0..4_000).for_each(|n| counts[choose(&view, &rule, &id(n), usable).unwrap_or(0) as usize] += 1);
            counts
        };
        let all = count(&|_| true);
        assert!((2_850..3_150).contains(&all[1]) && all[1] + all[2] == 4_000, "{all:?}");
        assert_eq!(count(&|n| n != 1), [0, 0, 4_000, 0]);
        assert_eq!(count(&|n| n == 3), [0, 0, 0, 4_000], "the one without weight only when no other can");
        assert_eq!(count(&|_| false), [4_000, 0, 0, 0]);
        let again = |usable: &dyn Fn(u32) -> bool| choose(&view, &rule, &id(7), usable);
        assert_eq!(again(&|_| true), again(&|_| true), "the same message, the same carrier");
    }
}
