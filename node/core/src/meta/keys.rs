//! Keys of the meta group's rows; the table is in the module's root.
use crate::keys::KeyRange;

/// What a counter numbers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counted {
    Practices,
    Carriers,
    Nodes,
    Routes,
    Limits,
    Senders,
}

fn join(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![b'm', kind];
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

pub(super) fn bootstrap() -> Vec<u8> {
    join(b'B', &[])
}

pub(super) fn node(node_id: u64) -> Vec<u8> {
    join(b'N', &[&node_id.to_be_bytes()])
}

pub(super) fn partition(partition: u32) -> Vec<u8> {
    join(b'G', &[&partition.to_be_bytes()])
}

pub(super) fn token(node_id: u64) -> Vec<u8> {
    join(b'T', &[&node_id.to_be_bytes()])
}

pub(super) fn shares() -> Vec<u8> {
    join(b'S', &[])
}

pub(super) fn level() -> Vec<u8> {
    join(b'L', &[])
}

pub(super) fn restore() -> Vec<u8> {
    join(b'R', &[])
}

pub(super) fn hours() -> Vec<u8> {
    join(b'H', &[])
}

pub(super) fn practice(practice_no: u32) -> Vec<u8> {
    join(b'P', &[&practice_no.to_be_bytes()])
}

/// Names hold no zero byte (checked before they are stored), so two pairs never share a key.
pub(super) fn practice_name(tenant: &str, practice: &str) -> Vec<u8> {
    join(b'p', &[tenant.as_bytes(), &[0], practice.as_bytes()])
}

/// No practice: the tenant's.
pub(super) fn policy(tenant: &str, practice: &str) -> Vec<u8> {
    join(b'Q', &[tenant.as_bytes(), &[0], practice.as_bytes()])
}

pub(super) fn pause(practice_no: u32, carrier_no: u32) -> Vec<u8> {
    join(b'W', &[&practice_no.to_be_bytes(), &carrier_no.to_be_bytes()])
}

pub(super) fn carrier(carrier_no: u32) -> Vec<u8> {
    join(b'C', &[&carrier_no.to_be_bytes()])
}

pub(super) fn carrier_name(name: &str) -> Vec<u8> {
    join(b'c', &[name.as_bytes()])
}

pub(super) fn route(route_no: u32) -> Vec<u8> {
    join(b'F', &[&route_no.to_be_bytes()])
}

pub(super) fn route_name(name: &str) -> Vec<u8> {
    join(b'f', &[name.as_bytes()])
}

pub(super) fn sender(carrier_no: u32, sender_no: u32) -> Vec<u8> {
    join(b'O', &[&carrier_no.to_be_bytes(), &sender_no.to_be_bytes()])
}

pub(super) fn breaker(carrier_no: u32) -> Vec<u8> {
    join(b'b', &[&carrier_no.to_be_bytes()])
}

pub(super) fn data_key(practice_no: u32, epoch: u32) -> Vec<u8> {
    join(b'K', &[&practice_no.to_be_bytes(), &epoch.to_be_bytes()])
}

pub(super) fn data_keys_of(practice_no: u32) -> KeyRange {
    KeyRange::of_prefix(&join(b'K', &[&practice_no.to_be_bytes()]))
}

pub(super) fn counter(of: Counted) -> Vec<u8> {
    let letter = match of {
        Counted::Practices => b'P',
        Counted::Carriers => b'C',
        Counted::Nodes => b'N',
        Counted::Routes => b'F',
        Counted::Limits => b'V',
        Counted::Senders => b'O',
    };
    join(b'#', &[&[letter]])
}

pub(super) fn limit(limit_no: u32) -> Vec<u8> {
    join(b'V', &[&limit_no.to_be_bytes()])
}

pub(super) fn cap(limit_no: u32) -> Vec<u8> {
    join(b'D', &[&limit_no.to_be_bytes()])
}

pub(super) fn lane(carrier_no: u32) -> Vec<u8> {
    join(b'E', &[&carrier_no.to_be_bytes()])
}

/// All rows of one kind.
pub(super) fn all(kind: u8) -> KeyRange {
    KeyRange::of_prefix(&[b'm', kind])
}
