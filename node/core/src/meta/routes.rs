//! Routes: which carrier and which sender a message uses, by rules; and the operators' word about breakers.
//!
//! Applying keeps the rows; [`route`] and [`choose`] are what leaders ask before they propose. A route never moves a message that may
//! have been handed over: see `reroute.rs` of the core. The choice is by a hash of the recipient: see `senders.rs`.
use super::apply::{Change, Outcome, number, put_if_new};
use super::keys::{self, Counted};
use super::{MetaRefusal, MetaView, ROUTES_MAX, senders};
use crate::records::encode;
use crate::tables::Tables;
use carillon_proto::internal::{
    BreakerMode, BreakerRecord, DropRoute, PracticeRecord, PutRoute, RouteRecord, RouteTarget, SetBreaker,
};

/// Fixed key of the hash that spreads recipients over the targets of a route.
const SPREAD_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x726f_7574_6573_3031);

pub(super) fn put(tables: &mut dyn Tables, command: PutRoute) -> Outcome {
    let Some(mut record) = command.route else { return Ok(Err(MetaRefusal::Empty)) };
    for target in &record.targets {
        let Some(carrier_no) = number(tables, &keys::carrier_name(&target.carrier))? else {
            return Ok(Err(MetaRefusal::NoCarrier));
        };
        if !target.sender.is_empty() && senders::find(tables, carrier_no, &target.sender)?.is_none() {
            return Ok(Err(MetaRefusal::NoSender { address: target.sender.clone() }));
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

/// What a message uses: a carrier, and one of its senders (0 = the account's own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub carrier_no: u32,
    pub sender_no: u32,
}

impl Way {
    /// Its sender exists and is not paused.
    pub fn can_be_used(self, view: &MetaView) -> bool {
        senders::can_be_used(view, self.carrier_no, self.sender_no)
    }
}

/// What a route gives a recipient: by weight among the targets that can be used (at least: [`Way::can_be_used`]), the same for the same `spread` (what names the recipient) as
/// long as that one can be; one without weight when no other can. Of a target without a sender, one of the carrier's. `None`: none
/// can be used.
pub fn choose(
    view: &MetaView,
    route: &RouteRecord,
    spread: &[u8],
    usable: impl Fn(Way) -> bool,
) -> Option<Way> {
    let targets: Vec<(&RouteTarget, u32)> = route.targets.iter().map(|t| (t, t.weight)).collect();
    senders::by_weight(&targets, SPREAD_KEY, spread, |target| {
        let carrier_no = view.carrier(&target.carrier)?.carrier_no;
        let way = |sender_no| Way { carrier_no, sender_no };
        if target.sender.is_empty() {
            return senders::of_pool(view, carrier_no, spread, |no| usable(way(no))).map(way);
        }
        let named = senders::of_carrier(view, carrier_no).find(|s| s.address == target.sender)?;
        usable(way(named.sender_no)).then_some(way(named.sender_no))
    })
}

/// What operators want of a carrier's breaker.
pub fn breaker_mode(view: &MetaView, carrier_no: u32) -> BreakerMode {
    let record = view.breakers.get(&carrier_no);
    record.and_then(|record| BreakerMode::try_from(record.mode).ok()).unwrap_or(BreakerMode::Auto)
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::internal::{CarrierRecord, SenderRecord};

    fn view(routes: Vec<RouteRecord>) -> MetaView {
        let carriers = [(1, "a"), (2, "b"), (3, "spare")];
        let carriers = carriers.map(|(carrier_no, name)| {
            (carrier_no, CarrierRecord { carrier_no, name: name.to_owned(), ..Default::default() })
        });
        let routes = routes.into_iter().enumerate().map(|(n, r)| (n as u32 + 1, r)).collect();
        MetaView { carriers: carriers.into(), routes, ..MetaView::default() }
    }

    fn rule(name: &str, rank: u32, targets: &[(&str, u32)]) -> RouteRecord {
        let target = |(carrier, weight): &(&str, u32)| {
            let (carrier, sender) = carrier.split_once(' ').unwrap_or((carrier, ""));
            RouteTarget { carrier: carrier.to_owned(), weight: *weight, sender: sender.to_owned() }
        };
        let targets = targets.iter().map(target).collect();
        RouteRecord { name: name.to_owned(), rank, targets, ..Default::default() }
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
            for n in 0..4_000_u32 {
                let chosen = choose(&view, &rule, &n.to_be_bytes(), |way| usable(way.carrier_no));
                counts[chosen.map_or(0, |way| way.carrier_no as usize)] += 1;
            }
            counts
        };
        let all = count(&|_| true);
        assert!((2_850..3_150).contains(&all[1]) && all[1] + all[2] == 4_000, "{all:?}");
        assert_eq!(count(&|n| n != 1), [0, 0, 4_000, 0]);
        assert_eq!(count(&|n| n == 3), [0, 0, 0, 4_000], "the one without weight only when no other can");
        assert_eq!(count(&|_| false), [4_000, 0, 0, 0]);
        let again = || choose(&view, &rule, b"one", |_| true);
        assert_eq!(again(), again(), "the same recipient, the same carrier");
    }

    #[test]
    fn a_target_names_a_sender_or_leaves_it_to_the_carrier() {
        let (first, second) = ("+12125550101", "+12125550102");
        let named = format!("a {first}");
        let rule = rule("r", 1, &[(named.as_str(), 1), ("b", 1)]);
        let mut view = view(vec![rule.clone()]);
        for (carrier_no, sender_no, address) in [(1, 1, first), (2, 2, first), (2, 3, second)] {
            let sender =
                SenderRecord { sender_no, carrier_no, address: address.into(), weight: 1, paused: false };
            view.senders.insert((carrier_no, sender_no), sender);
        }
        let ways = |view: &MetaView, usable: &dyn Fn(Way) -> bool| {
            let mut seen: Vec<(u32, u32)> = (0..400_u32)
                .filter_map(|n| choose(view, &rule, &n.to_be_bytes(), usable))
                .map(|way| (way.carrier_no, way.sender_no))
                .collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(ways(&view, &|_| true), [(1, 1), (2, 2), (2, 3)]);
        assert_eq!(ways(&view, &|way| way.sender_no != 2), [(1, 1), (2, 3)], "another sender of the carrier");
        assert_eq!(ways(&view, &|way| way.sender_no != 1), [(2, 2), (2, 3)], "the other carrier");
        view.senders.get_mut(&(2, 3)).unwrap().paused = true;
        let can = |way: Way| way.can_be_used(&view);
        assert_eq!(ways(&view, &can), [(1, 1), (2, 2)], "nothing goes to one that is paused");
    }
}
