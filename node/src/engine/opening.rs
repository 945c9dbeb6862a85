//! Opens what the engine works on: the two stores, the groups that live here, the meta group's view.
use super::cell::Cell;
use super::handle::Hosted;
use super::identity::Identity;
use super::members::GroupSettings;
use super::recovery;
use crate::config::Config;
use crate::meta::Membership;
use carillon_core::meta::MetaView;
use carillon_store::{EngineLog, EngineLogOptions, StateDb, StateOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Stores {
    pub log: Arc<EngineLog>,
    pub state: Arc<StateDb>,
}

pub fn open_stores(config: &Config, membership: &Membership, identity: &Identity) -> anyhow::Result<Stores> {
    let log_options = EngineLogOptions {
        purge_threshold_bytes: config.tuning.log_bytes_max,
        ..EngineLogOptions::default()
    };
    let log = Arc::new(EngineLog::open(&config.data_dir.join("log"), &log_options)?);
    let options = StateOptions {
        block_cache_bytes: config.tuning.block_cache_bytes,
        waiting_bytes: config.tuning.write_buffers_bytes,
        ..StateOptions::default()
    };
    let state = Arc::new(StateDb::open(&config.data_dir.join("state"), &options)?);
    if identity.is_new() {
        // One write, so there are all of them or none. A node that joins is given its replicas later.
        if log.groups().is_empty() && !membership.founders.is_empty() {
            recovery::create_groups(&log, membership)?;
        }
        identity.ready()?;
    }
    Ok(Stores { log, state })
}

/// What lives here, and what of it can run.
pub struct Opened {
    pub cells: BTreeMap<u32, Cell>,
    /// Replica ids, fenced ones too.
    pub hosted: Hosted,
    pub fenced: BTreeMap<u32, String>,
    /// Applied index of each group, 0 = not here.
    pub applied: Vec<u64>,
}

pub fn open_groups(
    membership: &Membership,
    settings: &GroupSettings,
    stores: &Stores,
) -> anyhow::Result<Opened> {
    let groups_max = membership.partitions as usize + 1;
    let mut opened = Opened {
        cells: BTreeMap::new(),
        hosted: recovery::settle(&stores.log, &stores.state, membership.node_id)?,
        fenced: BTreeMap::new(),
        applied: vec![0; groups_max],
    };
    for (&group, &replica_id) in &opened.hosted {
        anyhow::ensure!(
            (group as usize) < groups_max,
            "the log has group {group} of {}",
            membership.partitions
        );
        match recovery::open_group(&stores.log, &stores.state, settings.config(group, replica_id))? {
            Ok((running, applied)) => {
                opened.cells.insert(group, Cell::new(running));
                opened.applied[group as usize] = applied;
            }
            Err(reason) => {
                tracing::error!(group, reason, "replica fenced");
                opened.fenced.insert(group, reason);
            }
        }
    }
    metrics::gauge!("carillon_replicas_fenced").set(opened.fenced.len() as f64);
    Ok(opened)
}

/// A fenced meta group may still be read as far as it goes; a damaged one is unknown here. A node that joins gets it with
/// the first snapshot of the meta group.
pub fn load_view(state: &StateDb, hosted: bool, fenced: bool) -> anyhow::Result<MetaView> {
    if !hosted && !fenced {
        return Ok(MetaView::default());
    }
    match MetaView::load(&*state.replica(0)?) {
        Err(_) if fenced => Ok(MetaView::default()),
        loaded => Ok(loaded?),
    }
}
