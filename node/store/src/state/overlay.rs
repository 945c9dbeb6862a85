//! Rows that are committed and not yet given to RocksDB.
//!
//! Most rows of a message live for a moment: it is due, in flight, submitted, delivered. Because the raft log is the
//! WAL, committed rows may wait in memory: a row that is written again replaces itself here, and one that is created and
//! deleted here never reaches RocksDB at all.
//!
//! [`Layers`] is what a replica has of them: rows that are added to, over rows that are being written at the moment and do not change
//! any more (`write_back.rs`).
//!
//! Where a row is follows from its table. Payloads ([`RISING`]) come in the order of their keys and hardly ever change: they are
//! a list. Tables that are read by range ([`RANGED`]) are kept in order. The others are in a hash map: a scan over them is rare
//! and sorts. Keys are kept inline, so that neither looking up nor sorting follows a pointer for each.
//! Bound: `StateOptions::waiting_bytes` for all replicas; whoever commits beyond twice a replica's share of it writes.
use bytes::Bytes;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// Bytes that a row costs in memory besides its key and value, about.
const ROW_BYTES: usize = 96;

/// Letters of the tables whose rows are read by range all the time: due times, events, keys that outlive their message.
const RANGED: [u8; 3] = [b'D', b'E', b'K'];

/// The table of payloads: most of the bytes, in the order of time.
pub(super) const RISING: u8 = b'M';

/// A key; only those of two small tables are longer than what fits in.
pub(super) type Key = SmallVec<[u8; 36]>;

/// A row as one layer knows it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// `None` = deleted.
    pub value: Option<Bytes>,
    /// The layers below have no such row, so deleting it leaves nothing to say.
    pub fresh: bool,
}

/// New payloads, keys rising.
pub(super) type Payloads = Vec<(Key, Bytes)>;

/// The committed rows of one replica that RocksDB does not have.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    ranged: BTreeMap<Key, Row>,
    others: HashMap<Key, Row>,
    payloads: Payloads,
    /// Payloads that were changed, deleted, or came out of order: in `others`, over `payloads`.
    payloads_elsewhere: bool,
    bytes: usize,
}

/// What lies over RocksDB.
#[derive(Debug, Default)]
pub(super) struct Layers {
    active: Overlay,
    /// Rows that a write is under way for.
    frozen: Option<Arc<Overlay>>,
}

impl Layers {
    /// `None` = ask RocksDB, `Some(None)` = deleted.
    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.active.get(key).or_else(|| self.frozen.as_ref()?.get(key))
    }

    /// Rows with `start <= key < end`: `None` = deleted.
    pub fn range(&self, start: &[u8], end: &[u8]) -> BTreeMap<Key, Option<Bytes>> {
        let Some(frozen) = &self.frozen else { return self.active.range(start, end) };
        let mut rows = frozen.range(start, end);
        rows.extend(self.active.range(start, end));
        rows
    }

    /// Takes over the rows of a batch, the new payloads first. Gives what waits now and is not being written.
    pub fn merge(
        &mut self,
        payloads: impl Iterator<Item = (Key, Bytes)>,
        rows: impl Iterator<Item = (Key, Row)>,
    ) -> usize {
        payloads.for_each(|(key, value)| self.active.append(key, value));
        rows.for_each(|(key, row)| self.active.merge(key, row));
        self.active.bytes
    }

    /// All that waits.
    pub fn bytes(&self) -> usize {
        self.active.bytes + self.frozen.as_ref().map_or(0, |frozen| frozen.bytes)
    }

    /// From now on these rows do not change; `None` when there are none. Only while nothing else is frozen.
    pub fn freeze(&mut self) -> Option<Arc<Overlay>> {
        assert!(self.frozen.is_none(), "one write at a time");
        if self.active.len() == 0 {
            return None;
        }
        let room = (self.active.others.len(), self.active.payloads.len());
        let frozen = Arc::new(std::mem::take(&mut self.active));
        // The next ones will be about as many.
        self.active.others.reserve(room.0);
        self.active.payloads.reserve(room.1);
        self.frozen = Some(Arc::clone(&frozen));
        Some(frozen)
    }

    /// RocksDB has what was frozen.
    pub fn written(&mut self) -> Option<Arc<Overlay>> {
        self.frozen.take()
    }
}

fn is_ranged(key: &[u8]) -> bool {
    key.first().is_some_and(|letter| RANGED.contains(letter))
}

/// Whether it is the key of a payload.
pub(super) fn is_payload(key: &[u8]) -> bool {
    key.first() == Some(&RISING)
}

/// The payload of a key.
pub(super) fn find_payload<'a>(payloads: &'a Payloads, key: &[u8]) -> Option<&'a Bytes> {
    let at = payloads.binary_search_by(|(other, _)| other.as_slice().cmp(key)).ok()?;
    Some(&payloads[at].1)
}

fn value_bytes(value: &Option<Bytes>) -> usize {
    value.as_ref().map_or(0, Bytes::len)
}

impl Overlay {
    /// `None` = ask a lower layer, `Some(None)` = deleted.
    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        if is_payload(key) {
            let changed = self.payloads_elsewhere.then(|| self.others.get(key)).flatten();
            return match changed {
                Some(row) => Some(row.value.clone()),
                None => find_payload(&self.payloads, key).map(|value| Some(value.clone())),
            };
        }
        let row = if is_ranged(key) { self.ranged.get(key) } else { self.others.get(key) };
        row.map(|row| row.value.clone())
    }

    /// Rows with `start <= key < end`: `None` = deleted.
    pub fn range(&self, start: &[u8], end: &[u8]) -> BTreeMap<Key, Option<Bytes>> {
        if start >= end {
            return BTreeMap::new();
        }
        let copy = |(key, row): (&Key, &Row)| (key.clone(), row.value.clone());
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let mut rows: BTreeMap<_, _> = self.ranged.range::<[u8], _>(bounds).map(copy).collect();
        // Within one ranged table there is nothing else to find.
        let one_table = start.first().is_some_and(|letter| is_ranged(start) && end <= &[letter + 1][..]);
        if !one_table {
            let below = |bound: &[u8]| self.payloads.partition_point(|(key, _)| key.as_slice() < bound);
            let payloads = &self.payloads[below(start)..below(end)];
            rows.extend(payloads.iter().map(|(key, value)| (key.clone(), Some(value.clone()))));
            let within = |key: &[u8]| start <= key && key < end;
            rows.extend(self.others.iter().filter(|(key, _)| within(key.as_slice())).map(copy));
        }
        rows
    }

    /// Takes over a payload that was not there before.
    fn append(&mut self, key: Key, value: Bytes) {
        let last = self.payloads.last().is_none_or(|(last, _)| *last < key);
        if last && !(self.payloads_elsewhere && self.others.contains_key(&key)) {
            self.bytes += key.len() + ROW_BYTES + value.len();
            self.payloads.push((key, value));
        } else {
            self.merge(key, Row { value: Some(value), fresh: false });
        }
    }

    /// Takes over a row of a batch.
    pub fn merge(&mut self, key: Key, row: Row) {
        let key_bytes = key.len() + ROW_BYTES;
        if is_ranged(&key) {
            // Deleted and made rows alternate here, so the entry is looked up once more only to remove it.
            let (old, new) = (self.ranged.get_mut(&key), value_bytes(&row.value));
            match old {
                None => {
                    self.bytes += key_bytes + new;
                    self.ranged.insert(key, row);
                }
                Some(old) if row.value.is_none() && old.fresh => {
                    self.bytes -= key_bytes + value_bytes(&old.value);
                    self.ranged.remove(&key);
                }
                Some(old) => {
                    self.bytes = self.bytes + new - value_bytes(&old.value);
                    // What RocksDB has does not change with the value.
                    old.value = row.value;
                }
            }
            return;
        }
        // A payload is never fresh here: one may lie below in the list.
        let payload = is_payload(&key);
        self.payloads_elsewhere |= payload;
        match self.others.entry(key) {
            Entry::Vacant(vacant) => {
                self.bytes += key_bytes + value_bytes(&row.value);
                vacant.insert(Row { fresh: row.fresh && !payload, ..row });
            }
            Entry::Occupied(occupied) if row.value.is_none() && occupied.get().fresh => {
                self.bytes -= key_bytes + value_bytes(&occupied.get().value);
                occupied.remove();
            }
            Entry::Occupied(mut occupied) => {
                self.bytes = self.bytes + value_bytes(&row.value) - value_bytes(&occupied.get().value);
                occupied.get_mut().value = row.value;
            }
        }
    }

    pub fn len(&self) -> usize {
        self.ranged.len() + self.others.len() + self.payloads.len()
    }

    /// All rows in key order; `None` = deleted.
    pub fn sorted(&self) -> Vec<(&[u8], Option<&Bytes>)> {
        // Comparing the first bytes as a number keeps nearly all of the sort away from the rest.
        let mut rows: Vec<(u128, &[u8], Option<&Bytes>)> = self
            .ranged
            .iter()
            .chain(&self.others)
            .map(|(key, row)| (head(key), key.as_slice(), row.value.as_ref()))
            .collect();
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        let below = |end: &[u8]| rows.partition_point(|(_, key, _)| *key < end);
        let (start, end) = (below(&[RISING]), below(&[RISING + 1]));
        let mut all = Vec::with_capacity(rows.len() + self.payloads.len());
        all.extend(rows[..start].iter().map(pair));
        let mut changed = rows[start..end].iter().map(pair).peekable();
        for (key, value) in &self.payloads {
            while let Some(row) = changed.next_if(|(other, _)| *other < key.as_slice()) {
                all.push(row);
            }
            if changed.peek().is_none_or(|(other, _)| *other != key.as_slice()) {
                all.push((key.as_slice(), Some(value)));
            }
        }
        all.extend(changed);
        all.extend(rows[end..].iter().map(pair));
        all
    }
}

fn pair<'r>(row: &(u128, &'r [u8], Option<&'r Bytes>)) -> (&'r [u8], Option<&'r Bytes>) {
    (row.1, row.2)
}

/// The first 16 bytes, filled up with zeros: orders keys wherever it differs.
fn head(key: &[u8]) -> u128 {
    let (mut bytes, length) = ([0; 16], key.len().min(16));
    bytes[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(value: &'static [u8], fresh: bool) -> Row {
        Row { value: Some(Bytes::from_static(value)), fresh }
    }

    const GONE: Row = Row { value: None, fresh: false };

    fn key(text: &str) -> Key {
        Key::from_slice(text.as_bytes())
    }

    #[test]
    fn a_row_made_and_deleted_here_leaves_nothing() {
        let mut overlay = Overlay::default();
        overlay.merge(key("a"), live(b"1", true));
        overlay.merge(key("a"), live(b"22", false));
        assert_eq!(overlay.get(b"a"), Some(Some(Bytes::from_static(b"22"))));
        overlay.merge(key("a"), GONE);
        assert_eq!((overlay.get(b"a"), overlay.bytes), (None, 0));
    }

    #[test]
    fn a_row_that_rocksdb_may_have_leaves_a_tombstone() {
        let mut overlay = Overlay::default();
        overlay.merge(key("a"), GONE);
        // Made again: what lies below is still hidden by the first delete only.
        overlay.merge(key("a"), live(b"1", true));
        overlay.merge(key("a"), GONE);
        assert_eq!(overlay.get(b"a"), Some(None));
    }

    #[test]
    fn ranges_are_half_open_and_may_be_empty() {
        let mut overlay = Overlay::default();
        for key in ["D1", "D2", "M1", "M2", "E1"] {
            overlay.merge(self::key(key), live(b"1", true));
        }
        let keys = |start: &str, end: &str| {
            let rows = overlay.range(start.as_bytes(), end.as_bytes());
            rows.into_keys().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(keys("D", "E"), ["D1", "D2"]);
        assert_eq!(keys("D2", "M2"), ["D2", "E1", "M1"]);
        assert_eq!(keys("M1", "N"), ["M1", "M2"]);
        assert!(keys("M1", "M1").is_empty() && keys("M2", "D1").is_empty());
    }

    #[test]
    fn bytes_return_to_zero_when_everything_is_gone() {
        let mut overlay = Overlay::default();
        for key in ["D1", "S1"] {
            overlay.merge(self::key(key), live(b"12345", true));
            overlay.merge(self::key(key), live(b"1", false));
            assert!(overlay.bytes > 0);
            overlay.merge(self::key(key), GONE);
            assert_eq!(overlay.bytes, 0);
        }
    }

    #[test]
    fn rows_come_in_key_order_whatever_they_begin_with() {
        let mut overlay = Overlay::default();
        let long = "M-the first sixteen bytes are equal";
        for key in
            [long, "M", "M\0", "D2", "S", "M-the first sixteen bytes are equa", "D1", "M-the first sixt"]
        {
            overlay.merge(self::key(key), live(b"1", true));
        }
        let keys: Vec<&[u8]> = overlay.sorted().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 8);
        assert!(keys.is_sorted(), "{keys:?}");
    }

    #[test]
    fn newer_rows_hide_those_that_are_being_written() {
        let mut layers = Layers::default();
        let merge = |layers: &mut Layers, key: &str, row| {
            layers.merge(std::iter::empty(), std::iter::once((self::key(key), row)))
        };
        merge(&mut layers, "D1", live(b"1", true));
        merge(&mut layers, "D2", live(b"1", true));
        let frozen = layers.freeze().unwrap();
        assert_eq!((frozen.len(), layers.bytes() > 0), (2, true));
        merge(&mut layers, "D1", GONE);
        merge(&mut layers, "D3", live(b"3", true));
        assert_eq!(layers.get(b"D1"), Some(None), "RocksDB will have it, so it needs a tombstone");
        assert_eq!(layers.get(b"D2"), Some(Some(Bytes::from_static(b"1"))));
        let rows: Vec<_> = layers.range(b"D", b"E").into_values().map(|value| value.is_some()).collect();
        assert_eq!(rows, [false, true, true]);
        layers.written();
        assert_eq!((layers.get(b"D1"), layers.get(b"D2")), (Some(None), None));
        assert_eq!(layers.freeze().unwrap().len(), 2);
        layers.written();
        assert!(layers.freeze().is_none() && layers.bytes() == 0);
    }

    #[test]
    fn payloads_are_a_list_and_what_changes_of_them_lies_over_it() {
        let mut overlay = Overlay::default();
        let value = |text: &'static str| Bytes::from_static(text.as_bytes());
        for (name, text) in [("M2", "2"), ("M4", "4"), ("M6", "6"), ("M3", "late"), ("M8", "8")] {
            overlay.append(key(name), value(text));
        }
        assert_eq!((overlay.payloads.len(), overlay.others.len(), overlay.len()), (4, 1, 5));
        overlay.merge(key("M4"), live(b"new", false));
        overlay.merge(key("M6"), GONE);
        overlay.merge(key("M3"), GONE);
        overlay.merge(key("D1"), live(b"d", true));
        overlay.merge(key("S1"), live(b"s", true));
        let wanted = [
            ("D1", Some("d")),
            ("M2", Some("2")),
            ("M3", None),
            ("M4", Some("new")),
            ("M6", None),
            ("M8", Some("8")),
            ("S1", Some("s")),
        ];
        let rows: Vec<_> = overlay.sorted();
        let told = wanted.map(|(name, text)| (name.as_bytes(), text.map(value)));
        assert_eq!(rows, told.iter().map(|(name, value)| (*name, value.as_ref())).collect::<Vec<_>>());
        for (name, value) in &told {
            assert_eq!(overlay.get(name), Some(value.clone()));
        }
        assert_eq!(overlay.get(b"M5"), None);
        let range = overlay.range(b"M3", b"M8");
        let range: Vec<_> = range.iter().map(|(key, value)| (key.as_slice(), value.clone())).collect();
        assert_eq!(range, told[2..5].to_vec());
        overlay.append(key("M6"), value("again"));
        assert_eq!(overlay.get(b"M6"), Some(Some(value("again"))));
    }
}
