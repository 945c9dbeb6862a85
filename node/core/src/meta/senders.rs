//! Senders of carriers: the numbers, short codes and names that a carrier sends under besides its account's own, and who gets which.
//!
//! Applying keeps the rows. [`of_pool`] chooses for a recipient: by weight, from a hash of what names the recipient, so the same recipient
//! has the same sender for as long as that one can be used, on every node and without a row that remembers it. When a sender fails only
//! its own recipients get another one, and they come back when it works again.
//!
//! Invariants
//!  - Numbers of senders are never reused: messages name their sender by its number.
//!  - A sender that a route names exists.
use super::apply::{Change, MetaRefusal, Outcome, number, put_if_new};
use super::keys::{self, Counted};
use super::{MetaView, SENDERS_MAX, SENDERS_OF_CARRIER_MAX, rows};
use crate::records::encode;
use crate::tables::{ReadTables, TableError, Tables};
use carillon_proto::internal::{CarrierRecord, DropSender, PutSender, RouteRecord, SenderRecord};
use siphasher::sip::SipHasher24;
use std::hash::Hasher as _;

/// Fixed key of the hash that spreads recipients.
const SPREAD_KEY: (u64, u64) = (0x6361_7269_6c6c_6f6e, 0x7365_6e64_6572_3031);

/// E.164 with its plus, a short code, or a name with at least one letter: what every connector can carry.
pub fn is_address(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if let Some(number) = text.strip_prefix('+') {
        return (7..=15).contains(&number.len()) && digits(number) && !number.starts_with('0');
    }
    if digits(text) {
        return (3..=6).contains(&text.len());
    }
    text.len() <= 11
        && text.bytes().any(|b| b.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" -.&_".contains(&b))
        && text.trim() == text
}

pub(super) fn put(tables: &mut dyn Tables, command: PutSender) -> Outcome {
    let Some(mut record) = command.sender else { return Ok(Err(MetaRefusal::Empty)) };
    let Some(carrier_no) = number(tables, &keys::carrier_name(&command.carrier))? else {
        return Ok(Err(MetaRefusal::NoCarrier));
    };
    let known = all(tables)?;
    let own = || known.iter().filter(|other| other.carrier_no == carrier_no);
    record.carrier_no = carrier_no;
    record.sender_no = match own().find(|other| other.address == record.address) {
        Some(other) => other.sender_no,
        None if own().count() >= SENDERS_OF_CARRIER_MAX => {
            let max = SENDERS_OF_CARRIER_MAX as u32;
            return Ok(Err(MetaRefusal::TooMany { what: "senders of a carrier", max }));
        }
        None => match super::apply::next_number(tables, Counted::Senders, SENDERS_MAX)? {
            Some(sender_no) => sender_no,
            None => return Ok(Err(MetaRefusal::TooMany { what: "senders", max: SENDERS_MAX })),
        },
    };
    put_if_new(tables, keys::sender(carrier_no, record.sender_no), encode(&record))
}

pub(super) fn drop_one(tables: &mut dyn Tables, command: &DropSender) -> Outcome {
    let Some(carrier_no) = number(tables, &keys::carrier_name(&command.carrier))? else {
        return Ok(Err(MetaRefusal::NoCarrier));
    };
    let Some(sender_no) = find(tables, carrier_no, &command.address)? else {
        return Ok(Err(MetaRefusal::NoSender { address: command.address.clone() }));
    };
    let mut named = None;
    rows::each(tables, b'F', |route: RouteRecord| {
        let names = |t: &carillon_proto::internal::RouteTarget| {
            t.carrier == command.carrier && t.sender == command.address
        };
        if route.targets.iter().any(names) {
            named = Some(route.name);
        }
    })?;
    if let Some(route) = named {
        return Ok(Err(MetaRefusal::SenderOfRoute { route }));
    }
    tables.delete(keys::sender(carrier_no, sender_no));
    Ok(Ok(Change::Changed))
}

/// The number of a carrier's sender.
pub(super) fn find(
    tables: &dyn ReadTables,
    carrier_no: u32,
    address: &str,
) -> Result<Option<u32>, TableError> {
    let is = |other: &SenderRecord| other.carrier_no == carrier_no && other.address == address;
    Ok(all(tables)?.into_iter().find(is).map(|other| other.sender_no))
}

fn all(tables: &dyn ReadTables) -> Result<Vec<SenderRecord>, TableError> {
    let mut found = Vec::new();
    rows::each(tables, b'O', |record: SenderRecord| found.push(record))?;
    Ok(found)
}

/// What recipients see of an account whose messages name no sender.
pub fn own_address(carrier: &CarrierRecord) -> &str {
    match (&carrier.smpp, &carrier.twilio) {
        (Some(smpp), _) => &smpp.source_address,
        (None, Some(twilio)) if twilio.from.is_empty() => &twilio.messaging_service_sid,
        (None, Some(twilio)) => &twilio.from,
        (None, None) => "",
    }
}

/// What recipients see: the sender's address, or the account's own for 0 and for a sender that is gone.
pub fn address(view: &MetaView, carrier_no: u32, sender_no: u32) -> &str {
    match view.senders.get(&(carrier_no, sender_no)) {
        Some(sender) => &sender.address,
        None => view.carriers.get(&carrier_no).map_or("", own_address),
    }
}

/// The senders of a carrier.
pub fn of_carrier(view: &MetaView, carrier_no: u32) -> impl Iterator<Item = &SenderRecord> {
    view.senders.range((carrier_no, 0)..=(carrier_no, u32::MAX)).map(|(_, sender)| sender)
}

/// Whether a message may wait for this sender: 0 only of a carrier that has none of its own.
pub fn can_be_used(view: &MetaView, carrier_no: u32, sender_no: u32) -> bool {
    match view.senders.get(&(carrier_no, sender_no)) {
        Some(sender) => !sender.paused,
        None => sender_no == 0 && of_carrier(view, carrier_no).next().is_none(),
    }
}

/// The sender of a recipient among those of a carrier that can be used (at least: [`can_be_used`]); 0 = the account's own, of a carrier
/// without others. `None`: it has senders and none of them can be used.
pub fn of_pool(view: &MetaView, carrier_no: u32, spread: &[u8], usable: impl Fn(u32) -> bool) -> Option<u32> {
    let pool: Vec<(u32, u32)> = of_carrier(view, carrier_no).map(|s| (s.sender_no, s.weight)).collect();
    if pool.is_empty() {
        return usable(0).then_some(0);
    }
    by_weight(&pool, SPREAD_KEY, spread, |sender_no| usable(*sender_no).then_some(*sender_no))
}

/// One of a list by weight, the same for the same `spread`, if `take` takes it; else another one, so that only the share of those that
/// cannot be taken is spread anew. Those without a weight are tried last, in their order.
pub(super) fn by_weight<T: Clone, R>(
    list: &[(T, u32)],
    key: (u64, u64),
    spread: &[u8],
    take: impl Fn(&T) -> Option<R>,
) -> Option<R> {
    let (mut left, last): (Vec<_>, Vec<_>) = list.iter().cloned().partition(|(_, weight)| *weight > 0);
    for round in 0_u32.. {
        let sum: u64 = left.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if sum == 0 {
            break;
        }
        let mut hasher = SipHasher24::new_with_keys(key.0, key.1);
        hasher.write(spread);
        if round > 0 {
            hasher.write_u32(round);
        }
        let mut at = hasher.finish() % sum;
        let place = left.iter().position(|(_, weight)| {
            let here = at < u64::from(*weight);
            at = at.saturating_sub((*weight).into());
            here
        });
        let (chosen, _) = left.remove(place.unwrap_or(0));
        if let Some(taken) = take(&chosen) {
            return Some(taken);
        }
    }
    last.iter().find_map(|(other, _)| take(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(senders: &[(u32, u32, bool)]) -> MetaView {
        let mut view = MetaView::default();
        for (sender_no, weight, paused) in senders {
            let record = SenderRecord {
                sender_no: *sender_no,
                carrier_no: 4,
                address: format!("+1212555010{sender_no}"),
                weight: *weight,
                paused: *paused,
            };
            view.senders.insert((4, *sender_no), record);
        }
        view
    }

    fn given(view: &MetaView, usable: impl Fn(u32) -> bool) -> Vec<Option<u32>> {
        (0..3_000_u32).map(|n| of_pool(view, 4, &n.to_be_bytes(), &usable)).collect()
    }

    fn count(given: &[Option<u32>], sender_no: u32) -> usize {
        given.iter().filter(|chosen| **chosen == Some(sender_no)).count()
    }

    #[test]
    fn addresses_are_numbers_short_codes_and_names_and_nothing_else() {
        for good in ["+12125550100", "+4915123456789", "88022", "787", "123456", "CLINIC", "St. Mary-1"] {
            assert!(is_address(good), "{good}");
        }
        let bad = ["", "+", "+0125550100", "+123456", "+1234567890123456", "12125550100", "12", "1234567"];
        for bad in bad.into_iter().chain(["- .", "ELEVENCHARSX", " CLINIC", "Caf\u{e9}", "+1 212 555 0100"]) {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn a_recipient_keeps_its_sender_and_only_those_of_a_failed_one_move() {
        let view = view(&[(1, 2, false), (2, 1, false), (3, 0, false)]);
        let before = given(&view, |_| true);
        assert!(
            (1_900..2_100).contains(&count(&before, 1)) && count(&before, 3) == 0,
            "{}",
            count(&before, 1)
        );
        assert_eq!(before, given(&view, |_| true), "the same recipient, the same sender");
        let failed = given(&view, |no| no != 1);
        for (was, is) in before.iter().zip(&failed) {
            assert_eq!(*is, Some(2), "of {was:?}");
        }
        let none = given(&view, |no| no == 3);
        assert_eq!(count(&none, 3), 3_000, "the one without weight only when no other can");
        assert_eq!(given(&view, |_| false)[0], None);
    }

    #[test]
    fn of_three_a_failed_one_gives_its_recipients_to_both_others() {
        let view = view(&[(1, 1, false), (2, 1, false), (3, 1, false)]);
        let (before, failed) = (given(&view, |_| true), given(&view, |no| no != 2));
        let moved: Vec<_> = before.iter().zip(&failed).filter(|(was, is)| was != is).collect();
        assert!(moved.iter().all(|(was, _)| **was == Some(2)), "nobody else moves");
        assert_eq!(moved.len(), count(&before, 2));
        let to_first = moved.iter().filter(|(_, is)| **is == Some(1)).count();
        assert!((400..600).contains(&to_first), "{to_first} of {}", moved.len());
    }

    #[test]
    fn a_paused_sender_gets_nobody_and_an_account_without_senders_uses_its_own() {
        let given_some = |view: &MetaView| given(view, |no| can_be_used(view, 4, no));
        assert_eq!(count(&given_some(&view(&[(1, 1, true), (2, 1, false)])), 2), 3_000);
        assert_eq!(given_some(&view(&[(1, 1, true)]))[0], None);
        assert_eq!(given(&view(&[]), |_| true)[0], Some(0));
        let view = view(&[(1, 1, true)]);
        assert!(!can_be_used(&view, 4, 0) && !can_be_used(&view, 4, 1) && !can_be_used(&view, 4, 9));
        assert!(can_be_used(&view, 5, 0));
    }
}
