//! A rate that several copies share: each one reserves its bytes and waits for its turn.
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

pub(super) struct Pace {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    /// 0 = no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    pub async fn take(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let start = {
            let mut free_at = self.free_at.lock();
            let start = (*free_at).max(Instant::now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}
