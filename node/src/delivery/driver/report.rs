//! What the driver says of itself once a second.
use super::*;

impl Driver {
    pub(super) fn report(&mut self, now_ms: u64) {
        let view = self.handle.meta();
        for carrier in view.carriers.values() {
            let eased = ease_permille(view.lanes.get(&carrier.carrier_no), now_ms);
            metrics::gauge!("carillon_lane_ease_permille", "carrier" => carrier.name.clone())
                .set(f64::from(eased));
        }
        let stats = self.scheduler.stats(now_ms, self.clock.now());
        if let Some(index) = self.scheduler.take_fairness() {
            metrics::gauge!("carillon_scheduler_fairness_index").set(index);
        }
        metrics::gauge!("carillon_scheduler_ready").set(stats.ready as f64);
        metrics::gauge!("carillon_scheduler_in_flight").set(stats.in_flight_attempts as f64);
        metrics::gauge!("carillon_scheduler_rows").set(stats.rows as f64);
        metrics::gauge!("carillon_scheduler_without_lane").set(stats.without_lane as f64);
        metrics::gauge!("carillon_scheduler_oldest_due_seconds")
            .set(stats.oldest_due_age_ms.unwrap_or(0) as f64 / 1000.0);
    }
}
