//! Reading and writing the rows of membership: nodes, partition map, shares, level, tokens.
use super::keys;
use crate::records::{corrupt, decode, encode};
use crate::tables::{ReadTables, TableError, Tables};
use carillon_proto::internal::{MetaNode, NodeStatus, PartitionRecord, ShareRecord, TokenRecord};
use std::collections::BTreeMap;

pub(super) fn node(tables: &dyn ReadTables, node_id: u64) -> Result<Option<MetaNode>, TableError> {
    tables.get(&keys::node(node_id))?.map(|row| decode('m', row)).transpose()
}

pub(super) fn nodes(tables: &dyn ReadTables) -> Result<BTreeMap<u64, MetaNode>, TableError> {
    let mut found = BTreeMap::new();
    each(tables, b'N', |node: MetaNode| drop(found.insert(node.node_id, node)))?;
    Ok(found)
}

pub(super) fn put_node(tables: &mut dyn Tables, node: &MetaNode) {
    tables.put(keys::node(node.node_id), encode(node));
}

pub(super) fn partition(
    tables: &dyn ReadTables,
    partition: u32,
) -> Result<Option<PartitionRecord>, TableError> {
    tables.get(&keys::partition(partition))?.map(|row| decode('m', row)).transpose()
}

pub(super) fn partitions(tables: &dyn ReadTables) -> Result<BTreeMap<u32, PartitionRecord>, TableError> {
    let mut found = BTreeMap::new();
    each(tables, b'G', |record: PartitionRecord| drop(found.insert(record.partition, record)))?;
    Ok(found)
}

pub(super) fn put_partition(tables: &mut dyn Tables, record: &PartitionRecord) {
    tables.put(keys::partition(record.partition), encode(record));
}

pub(super) fn shares(tables: &dyn ReadTables) -> Result<ShareRecord, TableError> {
    Ok(tables.get(&keys::shares())?.map(|row| decode('m', row)).transpose()?.unwrap_or_default())
}

pub(super) fn put_shares(tables: &mut dyn Tables, record: &ShareRecord) {
    tables.put(keys::shares(), encode(record));
}

pub(super) fn tokens(tables: &dyn ReadTables) -> Result<BTreeMap<u64, TokenRecord>, TableError> {
    let mut found = BTreeMap::new();
    each(tables, b'T', |token: TokenRecord| drop(found.insert(token.node_id, token)))?;
    Ok(found)
}

/// 0 before the cluster is bootstrapped.
pub(super) fn level(tables: &dyn ReadTables) -> Result<u32, TableError> {
    let Some(row) = tables.get(&keys::level())? else { return Ok(0) };
    let bytes = row.as_ref().try_into().map_err(|_| corrupt('m', "a level has 4 bytes"))?;
    Ok(u32::from_be_bytes(bytes))
}

/// Takes part, or is about to: neither removed nor dead.
pub fn is_present(node: &MetaNode) -> bool {
    !matches!(node.status(), NodeStatus::Removed | NodeStatus::Dead)
}

/// Visits every record of a kind.
pub(super) fn each<M: prost::Message + Default>(
    tables: &dyn ReadTables,
    kind: u8,
    mut visit: impl FnMut(M),
) -> Result<(), TableError> {
    let (range, mut error) = (keys::all(kind), None);
    tables.scan(&range.start, &range.end, &mut |_, row| {
        match decode::<M>('m', row) {
            Ok(record) => visit(record),
            Err(e) => error = Some(e),
        }
        error.is_none()
    })?;
    error.map_or(Ok(()), Err)
}
