//! Applies the entries of the meta group.
use super::keys::{self, Counted};
use super::{
    CARRIERS_MAX, KEY_EPOCHS_MAX, PRACTICES_MAX, check, hours, level, limits, members, place, policy,
    replicas, restore, routes, rows, senders, shares,
};
use crate::applied::{self, EntryMeta};
use crate::digest::Digest;
use crate::records::{self, applied_record, corrupt, decode, encode};
use crate::tables::{TableError, Tables};
use bytes::Bytes;
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{
    AppliedRecord, Bootstrap, CarrierRecord, DataKeyRecord, MetaBatch, MetaCommand, MetaNode, NodeStatus,
    PracticeRecord, PutDataKey, PutPractice, ShareRecord,
};

/// Why a meta command was refused. The text is what operators see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaRefusal {
    #[error("empty command")]
    Empty,
    #[error("{field} {rule}")]
    Invalid { field: &'static str, rule: &'static str },
    #[error("the cluster was already created, and differently")]
    OtherCluster,
    #[error("no such carrier")]
    NoCarrier,
    #[error("no such practice")]
    NoPractice,
    #[error("no such route")]
    NoRoute,
    #[error("no such sender: {address}; `carillonctl sender list` shows all of them")]
    NoSender { address: String },
    #[error("route {route} names this sender; change the route first")]
    SenderOfRoute { route: String },
    #[error("no such limit; `carillonctl limit list` shows all of them")]
    NoLimit,
    #[error("the cap of the day is reached")]
    CapReached,
    #[error(
        "nodes still send on fixed shares; wait until lanes are leased, a few seconds after the feature level rose"
    )]
    NotYetLeases,
    #[error("no practice of this tenant is known")]
    NoTenant,
    #[error("segments_per_second must be at least the number of nodes ({nodes}), so that each has a share")]
    TooSlow { nodes: u32 },
    /// Another key of this practice and epoch was first; the proposer uses that one.
    #[error("exists")]
    Exists,
    #[error("too many {what} (at most {max})")]
    TooMany { what: &'static str, max: u32 },
    #[error("node {node_id} is not known; `carillonctl node list` shows all nodes")]
    NoNode { node_id: u64 },
    #[error("partition {partition} does not exist")]
    NoPartition { partition: u32 },
    #[error("the state has moved on to epoch {epoch}; look again and repeat")]
    MovedOn { epoch: u64 },
    #[error(
        "this needs feature level {needed} and the cluster is at {level}; upgrade every node first, `carillonctl node list` shows who is behind"
    )]
    Level { needed: u32, level: u32 },
    #[error("node {node_id} understands feature level {level} only, not {to}; upgrade it")]
    Behind { node_id: u64, level: u32, to: u32 },
    #[error(
        "the cluster is at feature level {cluster} and this program understands {level}; install a newer version"
    )]
    TooOld { level: u32, cluster: u32 },
    #[error(
        "node {node_id} belongs to another data directory: if its disk was lost, run `carillonctl node replace {node_id}` and let a new node join with a token of `carillonctl node token`"
    )]
    OtherStore { node_id: u64 },
    #[error(
        "node {node_id} was removed and its identity is not accepted again: let a new node join with a token of `carillonctl node token`"
    )]
    Gone { node_id: u64 },
    #[error("the token is unknown, used or expired; make a new one with `carillonctl node token`")]
    BadToken,
    #[error("the address is that of node {node_id}; give each node its own")]
    AddressTaken { node_id: u64 },
    #[error("the rules of the hours are at version {version} now; look at them and repeat")]
    OtherHours { version: u64 },
    #[error("a restore is under way; wait until it is done, or let it go on with `carillonctl restore`")]
    Restoring,
    #[error("this cluster was begun with another backup; restore into a new cluster")]
    OtherBackup,
    #[error(
        "this cluster has practices or keys of its own; restore into a new cluster, before any practice is registered"
    )]
    NotFresh,
    #[error(
        "carrier {name} has another number here than in the backup; restore into a new cluster without carriers"
    )]
    OtherCarrier { name: String },
    #[error("node {node_id} is {from} and cannot become {to}")]
    Status { node_id: u64, from: &'static str, to: &'static str },
    #[error("node {node_id} still has replicas or a share of the lanes; wait until they are moved")]
    StillInUse { node_id: u64 },
    #[error(
        "only {others} other active nodes would be left and partitions need {needed}; let another node join first"
    )]
    TooFewNodes { others: u32, needed: u32 },
    #[error(
        "without node {node_id} partition {partition} would have no majority left; bring the other missing nodes back first"
    )]
    NoMajority { node_id: u64, partition: u32 },
}

/// What a meta batch caused.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetaEffects {
    /// Aligned with the commands of the batch.
    pub results: Vec<Result<(), MetaRefusal>>,
    /// Some row changed: load the view again.
    pub changed: bool,
}

/// Of one command: the outer error is corrupt storage, the inner one a refusal.
pub(super) type Outcome = Result<Result<Change, MetaRefusal>, TableError>;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    Changed,
    Same,
}

/// Applies one entry. `data` is an encoded `MetaBatch`, or empty for raft's own entries. `effects` is emptied first.
pub fn apply(
    tables: &mut dyn Tables,
    meta: EntryMeta,
    data: &Bytes,
    effects: &mut MetaEffects,
) -> Result<AppliedRecord, TableError> {
    effects.results.clear();
    effects.changed = false;
    let last = applied_record(tables)?;
    if data.is_empty() {
        return Ok(applied::pass(tables, &last, meta));
    }
    applied::check_order(&last, meta);
    let batch: MetaBatch = records::decode_batch(data)?;
    let now_ms = batch.now_ms.max(last.now_ms);
    let mut digest = Digest::of_entry(&last.digest, meta, data);
    for command in batch.commands {
        let result = run(tables, now_ms, command)?;
        match &result {
            Ok(change) => {
                effects.changed |= *change == Change::Changed;
                digest.add(&[1]);
            }
            Err(refusal) => digest.add(digest_text(refusal).as_bytes()),
        }
        effects.results.push(result.map(|_| ()));
    }
    Ok(applied::write(tables, &last, meta, now_ms, last.leader_start_term, digest.finish()))
}

/// What the digest says of a refusal. An older program sees an empty command where this one sees a command of a level that the
/// cluster has not reached, and another reason why the level cannot rise; both must come to the same digest.
fn digest_text(refusal: &MetaRefusal) -> String {
    match refusal {
        MetaRefusal::Level { .. } | MetaRefusal::Behind { .. } => MetaRefusal::Empty.to_string(),
        other => other.to_string(),
    }
}

fn run(tables: &mut dyn Tables, now_ms: u64, command: MetaCommand) -> Outcome {
    let Some(kind) = command.kind else { return Ok(Err(MetaRefusal::Empty)) };
    let (needed, level) = (level::needed(&kind), rows::level(tables)?);
    if needed > level.max(level::LEVEL_BASE) {
        return Ok(Err(MetaRefusal::Level { needed, level }));
    }
    if let Err(refusal) = check::kind(&kind, level) {
        return Ok(Err(refusal));
    }
    match kind {
        Kind::Bootstrap(c) => bootstrap(tables, &c),
        Kind::PutPractice(_) | Kind::PutDataKey(_) if restore::is_under_way(tables)? => {
            Ok(Err(MetaRefusal::Restoring))
        }
        Kind::PutPractice(c) => put_practice(tables, c),
        Kind::PutCarrier(c) => match c.carrier {
            Some(record) => put_carrier(tables, now_ms, record),
            None => Ok(Err(MetaRefusal::Empty)),
        },
        Kind::PutDataKey(c) => put_data_key(tables, now_ms, c),
        Kind::PutHours(c) => hours::put(tables, now_ms, c),
        Kind::PutPolicy(c) => policy::put(tables, c),
        Kind::PausePractice(c) => policy::pause(tables, now_ms, &c),
        Kind::CreateToken(c) => members::create_token(tables, now_ms, &c),
        Kind::JoinNode(c) => members::join(tables, now_ms, c),
        Kind::RegisterNode(c) => members::register(tables, c),
        Kind::SetNodeStatus(c) => members::set_status(tables, &c),
        Kind::ChangeReplicas(c) => replicas::change(tables, &c),
        Kind::SetShares(c) => shares::set(tables, c),
        Kind::SettleShares(c) => shares::settle(tables, &c),
        Kind::PutLimit(c) => limits::put(tables, c),
        Kind::DropLimit(c) => limits::drop_limit(tables, &c),
        Kind::SetLane(c) => limits::set_lane(tables, &c),
        Kind::EaseLane(c) => limits::ease(tables, now_ms, &c),
        Kind::TakeCap(c) => limits::take_cap(tables, &c),
        Kind::RaiseLevel(c) => members::raise_level(tables, c.level),
        Kind::BeginRestore(c) => restore::begin(tables, now_ms, c),
        Kind::RestoreMeta(c) => restore::rows(tables, c),
        Kind::PartitionRestored(c) => restore::partition(tables, &c),
        Kind::SetBreaker(c) => routes::set_breaker(tables, &c),
        Kind::PutRoute(c) => routes::put(tables, c),
        Kind::DropRoute(c) => routes::drop_one(tables, &c),
        Kind::PutSender(c) => senders::put(tables, c),
        Kind::DropSender(c) => senders::drop_one(tables, &c),
    }
}

fn bootstrap(tables: &mut dyn Tables, command: &Bootstrap) -> Outcome {
    if let Some(row) = tables.get(&keys::bootstrap())? {
        let stored: Bootstrap = decode('m', row)?;
        return Ok(if stored == *command { Ok(Change::Same) } else { Err(MetaRefusal::OtherCluster) });
    }
    let mut ids: Vec<u64> = command.nodes.iter().map(|n| n.node_id).collect();
    ids.sort_unstable();
    let nodes = ids.len() as u32;
    if slowest_carrier(tables)?.is_some_and(|rate| rate < nodes) {
        return Ok(Err(MetaRefusal::TooSlow { nodes }));
    }
    tables.put(keys::bootstrap(), encode(command));
    for node in &command.nodes {
        let founder = MetaNode { status: NodeStatus::Active.into(), ..node.clone() };
        rows::put_node(tables, &founder);
    }
    for partition in 0..=command.partitions {
        rows::put_partition(tables, &place::founding(partition, &ids));
    }
    rows::put_shares(tables, &ShareRecord { epoch: 1, senders: ids, ..Default::default() });
    tables.put(keys::level(), level::LEVEL_BASE.to_be_bytes().to_vec());
    Ok(Ok(Change::Changed))
}

/// Segments per second of the slowest carrier account.
pub(super) fn slowest_carrier(tables: &dyn Tables) -> Result<Option<u32>, TableError> {
    let range = keys::all(b'C');
    let (mut slowest, mut error) = (None, None);
    tables.scan(&range.start, &range.end, &mut |_, row| {
        match decode::<CarrierRecord>('m', row) {
            Ok(r) => {
                slowest = Some(slowest.map_or(r.segments_per_second, |s: u32| s.min(r.segments_per_second)))
            }
            Err(e) => error = Some(e),
        }
        error.is_none()
    })?;
    error.map_or(Ok(slowest), Err)
}

fn put_practice(tables: &mut dyn Tables, command: PutPractice) -> Outcome {
    let Some(carrier_no) = number(tables, &keys::carrier_name(&command.carrier))? else {
        return Ok(Err(MetaRefusal::NoCarrier));
    };
    let name = keys::practice_name(&command.tenant, &command.practice);
    let known = number(tables, &name)?;
    let practice_no = match known {
        Some(practice_no) => practice_no,
        None => match next_number(tables, Counted::Practices, PRACTICES_MAX)? {
            Some(practice_no) => practice_no,
            None => return Ok(Err(MetaRefusal::TooMany { what: "practices", max: PRACTICES_MAX })),
        },
    };
    let mut record = PracticeRecord {
        practice_no,
        tenant: command.tenant,
        practice: command.practice,
        time_zone: command.time_zone,
        carrier_no,
        campaign: command.campaign,
        brand: command.brand,
        hours: command.hours,
        recipient_zones: command.recipient_zones,
        weight: command.weight,
    };
    if rows::level(tables)? < level::LEVEL_DELIVERY {
        // An older program drops what it does not know.
        (record.campaign, record.brand) = Default::default();
    }
    if known.is_none() {
        tables.put(name, practice_no.to_be_bytes().to_vec());
    }
    put_if_new(tables, keys::practice(practice_no), encode(&record))
}

fn put_carrier(tables: &mut dyn Tables, now_ms: u64, mut record: CarrierRecord) -> Outcome {
    if rows::level(tables)? < level::LEVEL_DELIVERY {
        // An older program drops what it does not know.
        (record.campaign, record.brand) = Default::default();
    }
    let shares = rows::shares(tables)?;
    let nodes = shares.senders.len().max(shares.next.len()) as u32;
    if record.segments_per_second < nodes {
        return Ok(Err(MetaRefusal::TooSlow { nodes }));
    }
    let name = keys::carrier_name(&record.name);
    let known = number(tables, &name)?;
    record.carrier_no = match known {
        Some(carrier_no) => carrier_no,
        None => match next_number(tables, Counted::Carriers, CARRIERS_MAX)? {
            Some(carrier_no) => carrier_no,
            None => return Ok(Err(MetaRefusal::TooMany { what: "carriers", max: CARRIERS_MAX })),
        },
    };
    if known.is_none() {
        tables.put(name, record.carrier_no.to_be_bytes().to_vec());
    }
    if record.segments_per_second == 0 {
        limits::begin_slowly(tables, now_ms, record.carrier_no)?;
    }
    put_if_new(tables, keys::carrier(record.carrier_no), encode(&record))
}

fn put_data_key(tables: &mut dyn Tables, now_ms: u64, command: PutDataKey) -> Outcome {
    if tables.get(&keys::practice(command.practice_no))?.is_none() {
        return Ok(Err(MetaRefusal::NoPractice));
    }
    let key = keys::data_key(command.practice_no, command.epoch);
    if let Some(row) = tables.get(&key)? {
        let stored: DataKeyRecord = decode('m', row)?;
        let same =
            stored.wrapped_key == command.wrapped_key && stored.provider_key_id == command.provider_key_id;
        return Ok(if same { Ok(Change::Same) } else { Err(MetaRefusal::Exists) });
    }
    if epochs(tables, command.practice_no)? >= KEY_EPOCHS_MAX {
        return Ok(Err(MetaRefusal::TooMany { what: "key epochs", max: KEY_EPOCHS_MAX as u32 }));
    }
    let record = DataKeyRecord {
        practice_no: command.practice_no,
        epoch: command.epoch,
        wrapped_key: command.wrapped_key,
        provider_key_id: command.provider_key_id,
        created_at_ms: now_ms,
    };
    tables.put(key, encode(&record));
    Ok(Ok(Change::Changed))
}

fn epochs(tables: &dyn Tables, practice_no: u32) -> Result<usize, TableError> {
    let (range, mut count) = (keys::data_keys_of(practice_no), 0);
    tables.scan(&range.start, &range.end, &mut |_, _| {
        count += 1;
        true
    })?;
    Ok(count)
}

pub(super) fn put_if_new(tables: &mut dyn Tables, key: Vec<u8>, row: Vec<u8>) -> Outcome {
    if tables.get(&key)?.is_some_and(|stored| stored == row) {
        return Ok(Ok(Change::Same));
    }
    tables.put(key, row);
    Ok(Ok(Change::Changed))
}

/// A row that holds a number.
pub(super) fn number(tables: &dyn Tables, key: &[u8]) -> Result<Option<u32>, TableError> {
    let Some(row) = tables.get(key)? else { return Ok(None) };
    let bytes = row.as_ref().try_into().map_err(|_| corrupt('m', "a number has 4 bytes"))?;
    Ok(Some(u32::from_be_bytes(bytes)))
}

/// Gives out the next number, from 1; `None` when there are too many.
pub(super) fn next_number(tables: &mut dyn Tables, of: Counted, max: u32) -> Result<Option<u32>, TableError> {
    let key = keys::counter(of);
    let next = number(tables, &key)?.unwrap_or(0) + 1;
    if next > max {
        return Ok(None);
    }
    tables.put(key, next.to_be_bytes().to_vec());
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::MemTables;
    use carillon_proto::internal::CreateToken;
    use prost::Message as _;

    /// What a program does that does not know the command.
    #[test]
    fn a_command_of_a_later_level_leaves_the_digest_of_an_unknown_one() {
        for secret_hash in [Bytes::from(vec![7; 32]), Bytes::new()] {
            let command =
                MetaCommand { kind: Some(Kind::CreateToken(CreateToken { secret_hash, life_s: 9 })) };
            let data = Bytes::from(MetaBatch { now_ms: 1, commands: vec![command] }.encode_to_vec());
            let (meta, mut effects) = (EntryMeta { index: 1, term: 1 }, MetaEffects::default());
            let mut tables = MemTables::default();
            let record = apply(&mut tables, meta, &data, &mut effects).unwrap();
            assert!(matches!(effects.results[0], Err(MetaRefusal::Level { .. })));
            let mut unknown = Digest::of_entry(&AppliedRecord::default().digest, meta, &data);
            unknown.add(MetaRefusal::Empty.to_string().as_bytes());
            assert_eq!(record.digest, unknown.finish());
        }
    }
}
