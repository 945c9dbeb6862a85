//! The store of everything held about a message: its row of table D, its unresolved attempt, or both.
//!
//! A cell lives while it has one of the two. Its number is small and is what the ordered structures carry.
use crate::types::{Attempt, Row};
use carillon_proto::MessageId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::ops::{Index, IndexMut};

pub(crate) type CellNo = u32;

/// One message.
#[derive(Debug)]
pub(crate) struct Cell {
    pub id: MessageId,
    pub partition: u32,
    pub row: Option<Row>,
    pub attempt: Option<Attempt>,
}

/// All messages in memory. Bounded by the windows and by the lanes' limits of attempts.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    cells: Vec<Option<Cell>>,
    free: Vec<CellNo>,
    // Only for look-ups, with a fixed hash: iteration order never matters and never varies.
    by_id: HashMap<MessageId, CellNo, BuildHasherDefault<DefaultHasher>>,
}

impl Cells {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The cell of the message, if it belongs to the partition.
    pub fn find(&self, partition: u32, id: MessageId) -> Option<CellNo> {
        let no = *self.by_id.get(&id)?;
        (self[no].partition == partition).then_some(no)
    }

    /// The cell of the message, made if there is none. `None` if another partition has it.
    pub fn find_or_add(&mut self, partition: u32, id: MessageId) -> Option<CellNo> {
        if let Some(&no) = self.by_id.get(&id) {
            return (self[no].partition == partition).then_some(no);
        }
        let cell = Some(Cell { id, partition, row: None, attempt: None });
        let no = match self.free.pop() {
            Some(no) => {
                self.cells[no as usize] = cell;
                no
            }
            None => {
                let no = CellNo::try_from(self.cells.len()).expect("windows hold far fewer than 2^32 rows");
                self.cells.push(cell);
                no
            }
        };
        self.by_id.insert(id, no);
        Some(no)
    }

    /// Frees the cell if nothing is left in it.
    pub fn release_if_empty(&mut self, no: CellNo) {
        let cell = &self[no];
        if cell.row.is_some() || cell.attempt.is_some() {
            return;
        }
        let id = cell.id;
        self.by_id.remove(&id);
        self.cells[no as usize] = None;
        self.free.push(no);
        if self.by_id.is_empty() {
            // Give the memory of a past peak back.
            *self = Self::default();
        }
    }
}

impl Index<CellNo> for Cells {
    type Output = Cell;

    fn index(&self, no: CellNo) -> &Cell {
        self.cells[no as usize].as_ref().expect("a cell number lives as long as its cell")
    }
}

impl IndexMut<CellNo> for Cells {
    fn index_mut(&mut self, no: CellNo) -> &mut Cell {
        self.cells[no as usize].as_mut().expect("a cell number lives as long as its cell")
    }
}
