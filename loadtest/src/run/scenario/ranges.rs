//! Numbers of a scenario with their ranges: a value outside is an error of the parser, so it names key and line.

use serde::de::{Deserialize, Deserializer, Error};

/// Makes a function for `deserialize_with` that takes only `$min` to `$max`.
macro_rules! range {
    ($name:ident, $kind:ty, $min:expr, $max:expr) => {
        pub fn $name<'de, D: Deserializer<'de>>(from: D) -> Result<$kind, D::Error> {
            let value = <$kind>::deserialize(from)?;
            if ($min..=$max).contains(&value) {
                return Ok(value);
            }
            Err(D::Error::custom(format!("{value} is not in {} to {}", $min, $max)))
        }
    };
}

range!(share, f64, 0.0, 1.0);
range!(rate, f64, 0.0, 10_000_000.0);
range!(duration_s, f64, 0.001, 604_800.0);
range!(offset_s, f64, 0.0, 604_800.0);
range!(weight, f64, 0.0, 1_000_000.0);
range!(skew, f64, 0.0, 3.0);
range!(wait_s, u64, 0, 86_400);
range!(connections, u16, 1, 256);
range!(batch, u16, 1, 1_000);
range!(window, u16, 1, 4_096);
range!(processes, u16, 1, 64);
range!(watchers, u16, 0, 64);
range!(deadline_ms, u64, 100, 600_000);
range!(practices, u32, 1, 200_000);
range!(row, u64, 1, 1_000_000);
range!(body_bytes, usize, 60, 1_500);
range!(nodes, u64, 1, 7);
range!(partitions, u32, 1, 256);
range!(lane_limit, u32, 1, 1_000_000);

/// Points of a curve: 2 to 1,000 of them, none negative, not all 0.
pub fn curve<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let points = Vec::<f64>::deserialize(from)?;
    let fits = (2..=1_000).contains(&points.len())
        && points.iter().all(|p| (0.0..=1_000.0).contains(p))
        && points.iter().any(|p| *p > 0.0);
    if fits {
        return Ok(points);
    }
    Err(D::Error::custom("a curve has 2 to 1000 points of 0 to 1000, and not all are 0"))
}
