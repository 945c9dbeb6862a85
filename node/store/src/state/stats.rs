//! What the state database says about itself: memory, disk and write stalls, and the metrics made of it.
use super::{Family, Shared};
use rocksdb::properties;
use rocksdb::statistics::Ticker;

/// Memory of the database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Committed rows that are not written yet.
    pub waiting_bytes: u64,
    /// Blocks, indexes and filters.
    pub block_cache_bytes: u64,
    /// Outside the cache.
    pub table_reader_bytes: u64,
}

/// Disk and stalls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateMetrics {
    pub sst_bytes: u64,
    pub pending_compaction_bytes: u64,
    /// Since open, all writers.
    pub stall_micros: u64,
    /// Bytes per second that writes are held to, 0 = not delayed.
    pub delayed_write_rate: u64,
    pub write_stopped: bool,
    /// Of rows, when they left memory.
    pub flushed_bytes: u64,
    pub compacted_bytes: u64,
    pub background_errors: u64,
}

impl MemoryStats {
    pub(super) fn read(shared: &Shared, families: &[Family], waiting_bytes: usize) -> Self {
        Self {
            waiting_bytes: waiting_bytes as u64,
            block_cache_bytes: shared.parts.cache.get_usage() as u64,
            table_reader_bytes: sum(shared, families, properties::ESTIMATE_TABLE_READERS_MEM),
        }
    }
}

impl StateMetrics {
    pub(super) fn read(shared: &Shared, families: &[Family]) -> Self {
        let ticker = |ticker| shared.parts.db_options.get_ticker_count(ticker);
        Self {
            sst_bytes: sum(shared, families, properties::TOTAL_SST_FILES_SIZE),
            pending_compaction_bytes: sum(shared, families, properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            stall_micros: ticker(Ticker::StallMicros),
            delayed_write_rate: whole(shared, properties::ACTUAL_DELAYED_WRITE_RATE),
            write_stopped: whole(shared, properties::IS_WRITE_STOPPED) != 0,
            flushed_bytes: shared.written_bytes(),
            compacted_bytes: ticker(Ticker::CompactWriteBytes),
            background_errors: whole(shared, properties::BACKGROUND_ERRORS),
        }
    }

    pub(super) fn publish(&self, memory: &MemoryStats) {
        metrics::gauge!("carillon_state_overlay_bytes").set(memory.waiting_bytes as f64);
        metrics::gauge!("carillon_state_block_cache_bytes").set(memory.block_cache_bytes as f64);
        metrics::gauge!("carillon_state_sst_bytes").set(self.sst_bytes as f64);
        metrics::gauge!("carillon_state_pending_compaction_bytes").set(self.pending_compaction_bytes as f64);
        metrics::gauge!("carillon_state_delayed_write_rate").set(self.delayed_write_rate as f64);
        metrics::gauge!("carillon_state_write_stopped").set(f64::from(u8::from(self.write_stopped)));
        metrics::counter!("carillon_state_write_stall_micros_total").absolute(self.stall_micros);
        metrics::counter!("carillon_state_flushed_bytes_total").absolute(self.flushed_bytes);
        metrics::counter!("carillon_state_compacted_bytes_total").absolute(self.compacted_bytes);
    }
}

fn sum(shared: &Shared, families: &[Family], property: &properties::PropName) -> u64 {
    families
        .iter()
        .filter_map(|family| shared.handle(&family.to_string()))
        .filter_map(|handle| shared.db.property_int_value_cf(&handle, property).ok().flatten())
        .sum()
}

fn whole(shared: &Shared, property: &properties::PropName) -> u64 {
    shared.db.property_int_value(property).ok().flatten().unwrap_or(0)
}
