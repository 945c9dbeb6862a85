//! Keeps the map up to date: one `WatchMap` stream to every node that is configured or was learnt, each reconnecting
//! on its own. Any single live stream is enough.
use super::MapCache;
use crate::backoff::Backoff;
use crate::metrics;
use carillon_proto::internal::WatchMapRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Opening a stream may take this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between attempts to reach one node.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 50..=2_000;

/// Watches until `stop`. `seeds` are the configured addresses; they are watched even when no map names them.
pub async fn run(map: Arc<MapCache>, seeds: Vec<String>, stop: CancellationToken) {
    let mut changed = map.subscribe();
    let mut watchers: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    loop {
        let wanted: BTreeSet<String> =
            seeds.iter().cloned().chain(map.load().addresses().map(|(_, address)| address.clone())).collect();
        watchers.retain(|address, watcher| {
            let keep = wanted.contains(address);
            if !keep {
                watcher.abort();
            }
            keep
        });
        for address in wanted {
            watchers
                .entry(address.clone())
                .or_insert_with(|| tokio::spawn(watch_address(Arc::clone(&map), address)));
        }
        metrics::map(&map);
        tokio::select! {
            () = stop.cancelled() => break,
            result = changed.changed() => if result.is_err() { break },
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
    }
    watchers.into_values().for_each(|watcher| watcher.abort());
}

async fn watch_address(map: Arc<MapCache>, address: String) {
    let mut backoff = Backoff::new(PAUSE_MS);
    loop {
        if let Err(reason) = watch_once(&map, &address, &mut backoff).await {
            tracing::info!(node = address, reason, "map stream ended");
        }
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

/// Counts a stream as open for as long as it lives, also when its watcher is aborted.
struct Open<'a>(&'a MapCache);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.stream_closed();
    }
}

async fn watch_once(map: &MapCache, address: &str, backoff: &mut Backoff) -> Result<(), String> {
    let mut client = map.dialer.seed(address).map_err(|e| e.to_string())?;
    let opened = tokio::time::timeout(OPEN_TIMEOUT, client.watch_map(WatchMapRequest {})).await;
    let mut stream = opened
        .map_err(|_| "no answer".to_owned())?
        .map_err(|status| format!("{:?}", status.code()))?
        .into_inner();
    map.stream_opened();
    let _open = Open(map);
    loop {
        match stream.message().await {
            Ok(Some(update)) => {
                map.apply(update).map_err(|e| e.to_string())?;
                backoff.reset();
            }
            Ok(None) => return Ok(()),
            Err(status) => return Err(format!("{:?}", status.code())),
        }
    }
}
