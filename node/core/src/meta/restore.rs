//! The restore of a backup, as far as the meta group is concerned: that it is under way, what the partitions need of the old meta
//! group (practices, carriers, senders, wrapped keys, all under their old numbers; limits, pauses, hours), and which partitions are done.
//!
//! Numbers of practices, carriers and senders are in messages, keys and sealed data, so they come back as they were; that is why a restore needs a
//! cluster that has given out none. Nodes, map and shares are those of the new cluster.
use super::apply::{Change, MetaRefusal, Outcome, number, put_if_new};
use super::keys::{self, Counted};
use super::view::MetaView;
use super::{hours, limits, rows};
use crate::records::{decode, encode};
use crate::tables::{ReadTables, TableError, Tables};
use carillon_proto::internal::{
    BeginRestore, Bootstrap, CapRecord, ClusterRestore, LimitBackup, LimitRecord, MetaBackup,
    PartitionRestored, PolicyRecord, RestoreMeta,
};

impl MetaView {
    /// What a backup holds of the meta group.
    pub fn backup(&self) -> MetaBackup {
        let limit = |limit: &LimitRecord| LimitBackup {
            limit: Some(limit.clone()),
            cap: self.caps.get(&limit.limit_no).copied(),
        };
        MetaBackup {
            practices: self.practices.values().cloned().collect(),
            carriers: self.carriers.values().cloned().collect(),
            data_keys: self.data_keys.values().cloned().collect(),
            routes: self.routes.values().cloned().collect(),
            policies: self.policy_records(),
            limits: self.limits.values().map(limit).collect(),
            lanes: self.lanes.values().copied().collect(),
            breakers: self.breakers.values().copied().collect(),
            pauses: self.pauses.values().copied().collect(),
            hours: (self.hours.version > 0).then(|| self.hours.clone()),
            senders: self.senders.values().cloned().collect(),
        }
    }

    /// All policies that were set.
    pub fn policy_records(&self) -> Vec<PolicyRecord> {
        let of_tenant = self.policies.iter().flat_map(|(tenant, policies)| {
            policies.iter().map(move |(practice, policy)| PolicyRecord {
                tenant: tenant.clone(),
                practice: practice.clone(),
                policy: Some(policy.clone()),
            })
        });
        of_tenant.collect()
    }
}

pub(super) fn record(tables: &dyn ReadTables) -> Result<Option<ClusterRestore>, TableError> {
    tables.get(&keys::restore())?.map(|row| decode('m', row)).transpose()
}

pub(super) fn is_under_way(tables: &dyn ReadTables) -> Result<bool, TableError> {
    Ok(record(tables)?.is_some_and(|record| !record.done))
}

pub(super) fn begin(tables: &mut dyn Tables, now_ms: u64, command: BeginRestore) -> Outcome {
    match record(tables)? {
        Some(record) if record.backup_id == command.backup_id => return Ok(Ok(Change::Same)),
        Some(_) => return Ok(Err(MetaRefusal::OtherBackup)),
        None => {}
    }
    for kind in [b'P', b'K'] {
        let (range, mut empty) = (keys::all(kind), true);
        tables.scan(&range.start, &range.end, &mut |_, _| {
            empty = false;
            false
        })?;
        if !empty {
            return Ok(Err(MetaRefusal::NotFresh));
        }
    }
    let record = ClusterRestore {
        backup_id: command.backup_id,
        // The old cluster may have been ahead of our clock.
        guard_ms: now_ms.max(command.backup_now_ms),
        ..Default::default()
    };
    tables.put(keys::restore(), encode(&record));
    Ok(Ok(Change::Changed))
}

/// The restore that a command goes on with.
fn under_way(
    tables: &dyn Tables,
    backup_id: &[u8],
) -> Result<Result<ClusterRestore, MetaRefusal>, TableError> {
    Ok(match record(tables)? {
        Some(record) if record.backup_id == backup_id => Ok(record),
        _ => Err(MetaRefusal::OtherBackup),
    })
}

pub(super) fn rows(tables: &mut dyn Tables, command: RestoreMeta) -> Outcome {
    match under_way(tables, &command.backup_id)? {
        Ok(record) if record.done => return Ok(Ok(Change::Same)),
        Ok(_) => {}
        Err(refusal) => return Ok(Err(refusal)),
    }
    let backup = command.rows.unwrap_or_default();
    let nodes = rows::shares(tables)?.senders.len() as u32;
    for carrier in &backup.carriers {
        let own = number(tables, &keys::carrier_name(&carrier.name))?;
        let taken = tables.get(&keys::carrier(carrier.carrier_no))?.is_some();
        if own.is_some_and(|own| own != carrier.carrier_no) || (own.is_none() && taken) {
            return Ok(Err(MetaRefusal::OtherCarrier { name: carrier.name.clone() }));
        }
        if own.is_none() && carrier.segments_per_second < nodes {
            return Ok(Err(MetaRefusal::TooSlow { nodes }));
        }
    }
    for carrier in &backup.carriers {
        let name = keys::carrier_name(&carrier.name);
        // The operator has set it up for the new cluster.
        if number(tables, &name)?.is_none() {
            tables.put(name, carrier.carrier_no.to_be_bytes().to_vec());
            tables.put(keys::carrier(carrier.carrier_no), encode(carrier));
            raise(tables, Counted::Carriers, carrier.carrier_no)?;
        }
    }
    for practice in &backup.practices {
        let name = keys::practice_name(&practice.tenant, &practice.practice);
        tables.put(name, practice.practice_no.to_be_bytes().to_vec());
        tables.put(keys::practice(practice.practice_no), encode(practice));
        raise(tables, Counted::Practices, practice.practice_no)?;
    }
    for route in &backup.routes {
        tables.put(keys::route_name(&route.name), route.route_no.to_be_bytes().to_vec());
        tables.put(keys::route(route.route_no), encode(route));
        raise(tables, Counted::Routes, route.route_no)?;
    }
    for sender in &backup.senders {
        tables.put(keys::sender(sender.carrier_no, sender.sender_no), encode(sender));
        raise(tables, Counted::Senders, sender.sender_no)?;
    }
    for policy in &backup.policies {
        tables.put(keys::policy(&policy.tenant, &policy.practice), encode(policy));
    }
    for key in &backup.data_keys {
        tables.put(keys::data_key(key.practice_no, key.epoch), encode(key));
    }
    for row in backup.limits.iter().cloned() {
        limit(tables, row)?;
    }
    switches(tables, &backup)?;
    Ok(Ok(Change::Changed))
}

/// What operators have stopped, and the rules that they have given. What they have set in the new cluster stays.
fn switches(tables: &mut dyn Tables, backup: &MetaBackup) -> Result<(), TableError> {
    let lanes = backup.lanes.iter().map(|row| (keys::lane(row.carrier_no), encode(row)));
    let breakers = backup.breakers.iter().map(|row| (keys::breaker(row.carrier_no), encode(row)));
    let pauses = backup.pauses.iter().map(|row| (keys::pause(row.practice_no, row.carrier_no), encode(row)));
    for (key, row) in lanes.chain(breakers).chain(pauses) {
        if tables.get(&key)?.is_none() {
            tables.put(key, row);
        }
    }
    if let Some(rules) = backup.hours.as_ref().filter(|rules| rules.version > 0)
        && hours::record(tables)?.version == 0
    {
        tables.put(keys::hours(), encode(rules));
    }
    Ok(())
}

/// A limit comes back under its number, or under a new one if the operator has set another one up before; what limits the same
/// thing in the new cluster stays as it is. Of its day only more can have been taken than the backup knows.
fn limit(tables: &mut dyn Tables, row: LimitBackup) -> Result<(), TableError> {
    let (Some(limit), cap) = (row.limit, row.cap.unwrap_or_default()) else { return Ok(()) };
    let known = limits::all(tables)?;
    let limit_no = match known.iter().find(|other| limits::is_same(other, &limit)) {
        Some(same) => same.limit_no,
        None if known.iter().any(|other| other.limit_no == limit.limit_no) => limits::next(tables)?,
        None => {
            raise(tables, Counted::Limits, limit.limit_no)?;
            limit.limit_no
        }
    };
    if !known.iter().any(|other| other.limit_no == limit_no) {
        tables.put(keys::limit(limit_no), encode(&LimitRecord { limit_no, ..limit }));
    }
    let own = limits::cap(tables, limit_no)?;
    if (cap.day, cap.taken) > (own.day, own.taken) {
        tables.put(keys::cap(limit_no), encode(&CapRecord { limit_no, ..cap }));
    }
    Ok(())
}

/// Numbers up to this one were given out.
fn raise(tables: &mut dyn Tables, of: Counted, to: u32) -> Result<(), TableError> {
    let key = keys::counter(of);
    let highest = number(tables, &key)?.unwrap_or(0).max(to);
    tables.put(key, highest.to_be_bytes().to_vec());
    Ok(())
}

pub(super) fn partition(tables: &mut dyn Tables, command: &PartitionRestored) -> Outcome {
    let mut record = match under_way(tables, &command.backup_id)? {
        Ok(record) => record,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let bootstrap = tables.get(&keys::bootstrap())?;
    let partitions =
        bootstrap.map(|row| decode::<Bootstrap>('m', row)).transpose()?.map_or(0, |b| b.partitions);
    let partition = command.partition;
    if !(1..=partitions).contains(&partition) {
        return Ok(Err(MetaRefusal::NoPartition { partition }));
    }
    if let Err(at) = record.partitions.binary_search(&partition) {
        record.partitions.insert(at, partition);
    }
    record.done = record.partitions.len() as u32 == partitions;
    put_if_new(tables, keys::restore(), encode(&record))
}
