//! Cuts the tables of a backup into the pieces of a restore. The tables decide where pieces end, so whoever goes on after a
//! failure cuts them the same way from where the partition stands.
use crate::keys;
use crate::tables::{ReadTables, TableError};
use bytes::Bytes;
use carillon_proto::internal::{RestorePosition, RestoreRow};

/// Rows in one piece, at most.
const ROWS_MAX: usize = 2_048;
/// What a row costs besides key and value.
const ROW_OVERHEAD_BYTES: usize = 16;

/// The rows after a position, about `bytes_max` of them, and whether they are the last ones. Values that are too long come in
/// parts; statuses never do, and they are small.
pub fn next_piece(
    tables: &dyn ReadTables,
    after: &RestorePosition,
    bytes_max: usize,
) -> Result<(Vec<RestoreRow>, bool), TableError> {
    let range = keys::content_range();
    let start = if after.key.is_empty() { range.start } else { after.key.to_vec() };
    let (mut rows, mut room, mut last) = (Vec::new(), bytes_max, true);
    tables.scan(&start, &range.end, &mut |key, value| {
        // In flight, queued and ordered follow from the statuses.
        if matches!(key.first(), Some(b'F' | b'N' | b'G')) {
            return true;
        }
        let append = key == after.key.as_ref();
        let rest = if append { value.get(after.value_bytes as usize..).unwrap_or_default() } else { value };
        if append && rest.is_empty() {
            return true;
        }
        let whole = matches!(key.first(), Some(b'S' | b'P'));
        let overhead = key.len() + ROW_OVERHEAD_BYTES;
        let full = rows.len() == ROWS_MAX || room <= overhead || (whole && room < overhead + rest.len());
        if full && !rows.is_empty() {
            last = false;
            return false;
        }
        let taken = if whole { rest.len() } else { rest.len().min(room.saturating_sub(overhead).max(1)) };
        rows.push(RestoreRow {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(&rest[..taken]),
            append,
        });
        room = room.saturating_sub(overhead + taken);
        last = taken == rest.len();
        last
    })?;
    Ok((rows, last))
}

/// Where a piece ends.
pub fn position_after(before: RestorePosition, rows: &[RestoreRow]) -> RestorePosition {
    rows.iter().fold(before, |position, row| RestorePosition {
        value_bytes: row.value.len() as u32 + if row.append { position.value_bytes } else { 0 },
        key: row.key.clone(),
    })
}
