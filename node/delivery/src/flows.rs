//! The windows of one priority of one partition, one for each practice with rows in table D, and together bounded.
//!
//! The practice with the most rows in memory gives one up when there are too many. So a practice with a million rows holds what is
//! left by the others, and a single row of another practice is always held: nothing hides it. Two rows for each practice
//! and lane always fit; with less, starving ones would push each other out for ever.
//!
//! Also which flows there are at all: found at the start by skipping from flow to flow, kept by the changes afterwards.
use crate::cells::CellNo;
use crate::window::Window;
use std::collections::{BTreeMap, BTreeSet};

/// What a partition's flows are read up to.
#[derive(Debug, Default)]
pub(crate) struct Discovery {
    pub after: Option<(u8, u32)>,
    pub asked: bool,
    pub done: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    windows: BTreeMap<u32, Window>,
    /// Windows with rows by their number.
    sizes: BTreeSet<(usize, u32)>,
    rows: usize,
    /// Lanes held by all windows together.
    lanes: usize,
}

impl Flows {
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn get(&self, flow: u32) -> Option<&Window> {
        self.windows.get(&flow)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Window)> {
        self.windows.iter().map(|(flow, window)| (*flow, window))
    }

    /// Makes the window if there is none.
    pub fn open(&mut self, flow: u32, next_due_ms: Option<u64>) {
        self.windows.entry(flow).or_insert_with(|| Window::new(next_due_ms));
    }

    /// The only way to change a window: keeps the sums. `None` if there is no such window.
    pub fn change<T>(&mut self, flow: u32, change: impl FnOnce(&mut Window) -> T) -> Option<T> {
        let window = self.windows.get_mut(&flow)?;
        let (rows, lanes) = (window.rows(), window.lanes_held());
        let result = change(window);
        self.lanes = self.lanes - lanes + window.lanes_held();
        if window.rows() != rows {
            self.sizes.remove(&(rows, flow));
            if window.rows() > 0 {
                self.sizes.insert((window.rows(), flow));
            }
            self.rows = self.rows - rows + window.rows();
        }
        Some(result)
    }

    pub fn drop_if_idle(&mut self, flow: u32) {
        if self.windows.get(&flow).is_some_and(|window| window.is_idle() && window.listed.is_none()) {
            self.windows.remove(&flow);
        }
    }

    /// Rows that one flow may hold when all that have rows hold the same.
    pub fn quota(&self, rows_max: usize) -> usize {
        (rows_max / self.sizes.len().max(1)).max(2)
    }

    /// Gives one row up if there are more than `rows_max`.
    pub fn evict(&mut self, rows_max: usize) -> Option<(u32, CellNo)> {
        if self.rows <= rows_max.max(2 * self.lanes) {
            return None;
        }
        let (_, flow) = *self.sizes.last()?;
        self.change(flow, Window::evict)?.map(|no| (flow, no))
    }
}
