//! Tells how the lane fares: eased when the carrier says "too fast", and recovering afterwards.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::failover::FIRST;
use super::show::Show;
use crate::http::Http;
use crate::scrape::Page;

const EASE_METRIC: &str = "carillon_lane_ease_permille";
const EVERY: Duration = Duration::from_secs(1);
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(700);
/// A line for every so many permille that come back.
const STEP: u64 = 100;

/// What to say when `now` permille of the limit may be used and `said` was told last.
fn news(said: u64, now: u64) -> Option<String> {
    let text = match () {
        () if now < said => "*** the carrier says \"too fast\": the lane pauses and is eased to",
        () if now >= 1_000 && said < 1_000 => "*** the lane has recovered:",
        () if now >= said + STEP => "*** the lane recovers:",
        () => return None,
    };
    Some(format!("{text} {}.{} % of its limit ***", now / 10, now % 10))
}

/// Until `stop`.
pub async fn watch(show: Show, http: Http, nodes: Vec<String>, stop: CancellationToken) {
    let mut said = 1_000;
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        // Each node knows it from the meta group; one that is down says nothing.
        for node in &nodes {
            let page = tokio::time::timeout(SCRAPE_TIMEOUT, http.get(node, "/metrics")).await;
            let Ok(Ok(body)) = page else { continue };
            let page = Page::parse(&String::from_utf8_lossy(&body));
            let Some(now) = page.sum_where(EASE_METRIC, &format!("carrier=\"{FIRST}\"")) else { continue };
            let now = now as u64;
            if let Some(text) = news(said, now) {
                show.say(text);
                said = now;
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_told_of_when_it_is_eased_and_while_it_recovers() {
        assert_eq!(news(1_000, 1_000), None);
        assert!(news(1_000, 700).unwrap().contains("eased to 70.0 %"));
        assert_eq!(news(700, 790), None);
        assert!(news(700, 805).unwrap().contains("recovers: 80.5 %"));
        assert!(news(950, 1_000).unwrap().contains("has recovered"));
    }
}
