//! Delays with a given shape, and the draws that choose them.
//!
//! Owns: [`Delay`] (minimum, median, 99th percentile: a shifted log-normal
//! curve through the three) and [`Draws`], a stream of numbers that depends on
//! its seed only.
//! Why not the `rand` crate here: its small generators may change with a
//! version, and a recorded seed must give the same faults for ever.

use serde::{Deserialize, Serialize};

/// The 99 % point of the standard normal distribution.
const Z99: f64 = 2.326_347_874;

/// A distribution of delays in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    pub min_ms: f64,
    pub median_ms: f64,
    pub p99_ms: f64,
}

impl Delay {
    pub const ZERO: Self = Self { min_ms: 0.0, median_ms: 0.0, p99_ms: 0.0 };

    pub const fn new(min_ms: f64, median_ms: f64, p99_ms: f64) -> Self {
        Self { min_ms, median_ms, p99_ms }
    }

    pub fn is_valid(&self) -> bool {
        let ordered = 0.0 <= self.min_ms && self.min_ms <= self.median_ms && self.median_ms <= self.p99_ms;
        ordered && self.p99_ms <= 86_400_000.0
    }

    /// The delay at the quantile `u` of [0, 1), at most four times the p99.
    pub fn at_us(&self, u: f64) -> u64 {
        let body = self.median_ms - self.min_ms;
        let ms = if body <= 0.0 {
            // No body to scale: the slowest hundredth reaches the p99, the rest the median.
            if u >= 0.99 { self.p99_ms } else { self.median_ms }
        } else {
            let sigma = ((self.p99_ms - self.min_ms) / body).ln() / Z99;
            self.min_ms + body * (sigma * normal_quantile(u)).exp()
        };
        (ms.min(self.p99_ms * 4.0) * 1000.0) as u64
    }
}

/// The inverse of the standard normal distribution (Acklam's rational
/// approximation, relative error below 1.2e-9).
fn normal_quantile(u: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e+01,
        2.209460984245205e+02,
        -2.759285104469687e+02,
        1.38357751867269e+02,
        -3.066479806614716e+01,
        2.506628277459239e+00,
    ];
    const B: [f64; 5] = [
        -5.447609879822406e+01,
        1.615858368580409e+02,
        -1.556989798598866e+02,
        6.680131188771972e+01,
        -1.328068155288572e+01,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-03,
        -3.223964580411365e-01,
        -2.400758277161838e+00,
        -2.549732539343734e+00,
        4.374664141464968e+00,
        2.938163982698783e+00,
    ];
    const D: [f64; 4] =
        [7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00, 3.754408661907416e+00];
    let p = u.clamp(1e-12, 1.0 - 1e-12);
    let tail = |q: f64| {
        (((((C[0] * q + C[1]) * q + C[2]) * q + C[3]) * q + C[4]) * q + C[5])
            / ((((D[0] * q + D[1]) * q + D[2]) * q + D[3]) * q + 1.0)
    };
    if p < 0.02425 {
        return tail((-2.0 * p.ln()).sqrt());
    }
    if p > 1.0 - 0.02425 {
        return -tail((-2.0 * (1.0 - p).ln()).sqrt());
    }
    let q = p - 0.5;
    let r = q * q;
    (((((A[0] * r + A[1]) * r + A[2]) * r + A[3]) * r + A[4]) * r + A[5]) * q
        / (((((B[0] * r + B[1]) * r + B[2]) * r + B[3]) * r + B[4]) * r + 1.0)
}

/// SplitMix64: a stream of draws fixed by its seed.
pub struct Draws(u64);

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_goes_through_its_three_points() {
        let delay = Delay::new(5.0, 40.0, 250.0);
        assert!(delay.at_us(0.5).abs_diff(40_000) < 50);
        assert!(delay.at_us(0.99).abs_diff(250_000) < 500);
        assert!(delay.at_us(0.0) >= 5_000 && delay.at_us(1e-6) < 12_000);
        assert!(delay.at_us(0.999_999_999) <= 1_000_000);
        assert_eq!(Delay::ZERO.at_us(0.7), 0);
        assert_eq!(Delay::new(3.0, 3.0, 9.0).at_us(0.995), 9_000);
    }

    #[test]
    fn draws_are_even_and_fixed_by_the_seed() {
        let mut draws = Draws::new(42);
        let mean = (0..100_000).map(|_| draws.unit()).sum::<f64>() / 100_000.0;
        assert!((mean - 0.5).abs() < 0.01);
        // The reference value of SplitMix64 for seed 0.
        assert_eq!(Draws::new(0).next(), 0xE220_A839_7B1D_CDAF);
    }
}
