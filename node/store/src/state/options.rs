//! Sizes of the state database and what RocksDB is told.
//!
//! Memory of a node: rows that wait, about `waiting_bytes` and at most twice that; blocks, indexes and filters
//! `block_cache_bytes`; a table reader (a few KiB) for each open file. Memtables are never written to.
use rocksdb::statistics::StatsLevel;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ChecksumType, DBCompressionType, LogLevel, Options,
};

/// Sizes; the defaults fit a node with 17 families in a small memory.
#[derive(Debug, Clone)]
pub struct StateOptions {
    pub block_cache_bytes: usize,
    /// Committed rows of all families that wait in memory. A family that has its even share is written.
    pub waiting_bytes: usize,
    /// The share of a family is never less.
    pub share_bytes_min: usize,
    /// Of the first level below level 0. A larger one is rewritten as a
    /// whole by every compaction of level 0, a smaller one makes more levels.
    pub level_base_bytes: u64,
    /// Of one table below level 0. Small enough that most hold one table of the core only: those in the order of time are
    /// then moved down without being rewritten.
    pub table_bytes: u64,
    /// Tables in level 0 that start a compaction. Each one rewrites all of the index tables of the level below, so half as many cost
    /// half as much; look-ups have more tables to ask, which costs little while filters let next to nothing pass.
    pub level_zero_tables: i32,
    /// Deleted rows among 4096 in a row that start a compaction; 0 = never.
    pub compact_on_deletions: usize,
    pub background_threads: i32,
    /// Limit of flushes and compactions together, 0 = none.
    pub background_bytes_per_second: u64,
    /// Tables held open; others are opened anew when they are read. At most half of what the process may have open.
    pub open_files_max: i32,
    /// Key of the applied record in every family.
    pub applied_key: Vec<u8>,
}

impl Default for StateOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 64 << 20,
            waiting_bytes: 64 << 20,
            share_bytes_min: 1 << 20,
            level_base_bytes: 64 << 20,
            table_bytes: 16 << 20,
            level_zero_tables: 40,
            compact_on_deletions: 1024,
            background_threads: 2,
            background_bytes_per_second: 64 << 20,
            open_files_max: 4_096,
            applied_key: carillon_core::keys::applied(),
        }
    }
}

/// What kind of filter a table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// In pieces: a look-up of a key that is not there reads a few KiB. One block of hundreds of KiB for each table of a large
    /// database does not fit into the cache and would be read and checked again for each look-up.
    Pieces,
    /// In one block: small, pinned as long as the table is in level 0, and asked for every key.
    Block,
    /// Payloads are in the order of time, so at most one table can have one.
    None,
}

/// Bits of a filter for each key. Nearly every Accept asks for a key that does not exist, and each table that a filter lets pass costs a
/// read of the disk in the way of acknowledgements: with 10 bits one look-up in twelve, with 16 one in a hundred or less.
const FILTER_BITS: f64 = 16.0;

/// What must live as long as the database.
pub(crate) struct DbParts {
    pub db_options: Options,
    pub family_options: Options,
    /// Of new tables with new payloads only.
    pub payload_options: Options,
    /// Of other new tables.
    pub new_options: Options,
    pub cache: Cache,
}

impl StateOptions {
    pub(crate) fn build(&self) -> DbParts {
        let cache = Cache::new_lru_cache(self.block_cache_bytes);
        let family_options = self.family_options(&cache, Filter::Pieces);
        let new_options = self.family_options(&cache, Filter::Block);
        let payload_options = self.family_options(&cache, Filter::None);
        let mut db_options = family_options.clone();
        self.set_db_options(&mut db_options);
        DbParts { db_options, family_options, payload_options, new_options, cache }
    }

    fn set_db_options(&self, options: &mut Options) {
        options.create_if_missing(true);
        options.set_paranoid_checks(true);
        options.set_use_fsync(false);
        options.increase_parallelism(self.background_threads.max(1));
        options.set_max_background_jobs(self.background_threads.max(2));
        options.set_max_subcompactions(1);
        options.set_max_open_files(self.open_files_max.min(open_files_of_process() / 2));
        options.set_bytes_per_sync(1 << 20);
        options.set_writable_file_max_buffer_size(256 << 10);
        options.set_compaction_readahead_size(512 << 10);
        options.set_skip_stats_update_on_db_open(true);
        options.set_max_manifest_file_size(8 << 20);
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(1 << 20);
        options.set_log_level(LogLevel::Warn);
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        if self.background_bytes_per_second > 0 {
            let limit = i64::try_from(self.background_bytes_per_second).unwrap_or(i64::MAX);
            options.set_ratelimiter(limit, 100_000, 10);
        }
    }

    fn family_options(&self, cache: &Cache, filter: Filter) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(cache);
        table.set_checksum_type(ChecksumType::XXH3);
        table.set_block_size(8 << 10);
        // From 6 on the checksum of a block covers its place and its file: a block that was written to another place is no good one.
        table.set_format_version(6);
        if filter != Filter::None {
            table.set_bloom_filter(FILTER_BITS, false);
        }
        if filter == Filter::Pieces {
            table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
            table.set_partition_filters(true);
            table.set_metadata_block_size(4 << 10);
            table.set_pin_top_level_index_and_filter(true);
        }
        table.set_optimize_filters_for_memory(true);
        // Indexes and filters count against the cache, so that many files do not mean much memory.
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);

        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        // Never written to, so as small as they can be.
        options.set_write_buffer_size(64 << 10);
        options.set_arena_block_size(4 << 10);
        // Each write adds one before and one behind the payloads; the two never overlap.
        options.set_level_zero_file_num_compaction_trigger(self.level_zero_tables);
        options.set_level_zero_slowdown_writes_trigger(104);
        options.set_level_zero_stop_writes_trigger(128);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_max_bytes_for_level_base(self.level_base_bytes);
        options.set_target_file_size_base(self.table_bytes);
        // Payloads are sealed and do not compress.
        options.set_compression_type(DBCompressionType::None);
        // Due times and in-flight marks are queues: their tombstones would slow every scan of the head.
        if filter != Filter::None && self.compact_on_deletions > 0 {
            options.add_compact_on_deletion_collector_factory(4096, self.compact_on_deletions, 0.5);
        }
        options
    }
}

/// How many files this process may have open.
fn open_files_of_process() -> i32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|files| i32::try_from(files).ok()).unwrap_or(i32::MAX)
}
