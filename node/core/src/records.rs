//! Reading of stored records. A row that does not decode is corrupt storage, never a refusal.
use crate::keys;
use crate::tables::{ReadTables, TableError};
use carillon_proto::MessageId;
use carillon_proto::internal::{
    AppliedRecord, MessagePayload, MessageStatus, PartitionRestore, RetentionRecord,
};
use prost::bytes::Buf;

/// Decodes a row of `table`.
pub(crate) fn decode<M: prost::Message + Default>(table: char, row: impl Buf) -> Result<M, TableError> {
    M::decode(row).map_err(|error| corrupt(table, &error.to_string()))
}

pub(crate) fn corrupt(table: char, reason: &str) -> TableError {
    TableError::Corrupt { table, reason: reason.to_owned() }
}

/// How far the log was applied to these tables; all zero in new ones.
pub fn applied_record(tables: &dyn ReadTables) -> Result<AppliedRecord, TableError> {
    match tables.get(&keys::applied())? {
        Some(row) => decode('A', row),
        None => Ok(AppliedRecord::default()),
    }
}

/// How far retention has come; all zero where nothing was dropped yet.
pub(crate) fn retention(tables: &dyn ReadTables) -> Result<RetentionRecord, TableError> {
    match tables.get(&keys::retention())? {
        Some(row) => decode('P', row),
        None => Ok(RetentionRecord::default()),
    }
}

/// The backup that the partition was restored from, if it was.
pub(crate) fn restore(tables: &dyn ReadTables) -> Result<Option<PartitionRestore>, TableError> {
    tables.get(&keys::restore())?.map(|row| decode('B', row)).transpose()
}

pub(crate) fn payload(tables: &dyn ReadTables, id: &MessageId) -> Result<Option<MessagePayload>, TableError> {
    tables.get(&keys::payload(id))?.map(|row| decode('M', row)).transpose()
}

pub(crate) fn status(tables: &dyn ReadTables, id: &MessageId) -> Result<Option<MessageStatus>, TableError> {
    tables.get(&keys::status(id))?.map(|row| decode('S', row)).transpose()
}

/// Encodes a record into a row.
pub(crate) fn encode(record: &impl prost::Message) -> Vec<u8> {
    record.encode_to_vec()
}

/// Decodes a batch of commands; the log holds nothing else that reaches the core.
pub(crate) fn decode_batch<M: prost::Message + Default>(data: &bytes::Bytes) -> Result<M, TableError> {
    M::decode(data.clone()).map_err(|error| corrupt('L', &format!("batch: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{MemTables, Tables as _};

    #[test]
    fn a_row_that_does_not_decode_is_corrupt() {
        let mut tables = MemTables::default();
        tables.put(keys::applied(), vec![0xff; 3]);
        let error = applied_record(&tables).unwrap_err();
        assert!(matches!(error, TableError::Corrupt { table: 'A', .. }), "{error}");
    }

    #[test]
    fn new_tables_were_applied_up_to_nothing() {
        assert_eq!(applied_record(&MemTables::default()).unwrap(), AppliedRecord::default());
    }
}
