//! Counting what a carrier received, from its own record of arrivals in microseconds.

/// The most arrivals in any half-open window of `window_us`. `arrivals_us` is sorted.
pub fn fullest(arrivals_us: &[u64], window_us: u64) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, at) in arrivals_us.iter().enumerate() {
        while arrivals_us[first] + window_us <= *at {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

/// Arrivals per second over the middle half: without how a run begins and ends.
pub fn middle_rate(arrivals_us: &[u64]) -> f64 {
    let (from, to) = (arrivals_us.len() / 4, arrivals_us.len() * 3 / 4);
    if to <= from || arrivals_us[to] == arrivals_us[from] {
        return 0.0;
    }
    (to - from) as f64 / ((arrivals_us[to] - arrivals_us[from]) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_half_open_and_the_fullest_is_found() {
        assert_eq!(fullest(&[], 1_000), 0);
        assert_eq!(fullest(&[0, 999, 1_000, 1_999], 1_000), 2);
        assert_eq!(fullest(&[0, 5_000, 5_001, 5_002, 9_000], 1_000), 3);
    }

    #[test]
    fn the_rate_is_that_of_the_middle() {
        let steady: Vec<u64> = (0..100).map(|i| i * 50_000).collect();
        assert!((middle_rate(&steady) - 20.0).abs() < 1e-9);
        // A pause in the middle halves it; one at the end does not count.
        let paused: Vec<u64> = (0..100).map(|i| i * 50_000 + if i > 50 { 2_500_000 } else { 0 }).collect();
        assert!((middle_rate(&paused) - 10.0).abs() < 1e-9);
        let late: Vec<u64> = (0..100).map(|i| i * 50_000 + if i > 90 { 2_500_000 } else { 0 }).collect();
        assert!((middle_rate(&late) - 20.0).abs() < 1e-9);
    }
}
