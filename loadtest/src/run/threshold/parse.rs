//! The grammar of a threshold: `metric comparison number[unit]`, with spaces where one likes.

use super::{Comparison, Kind, METRICS, Threshold, kind_of};

/// Longest first, so that `<=` is not read as `<`.
const COMPARISONS: [(&str, Comparison); 6] = [
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("==", Comparison::Equal),
    ("!=", Comparison::Different),
    ("<", Comparison::Less),
    (">", Comparison::More),
];

fn is_name(name: &str) -> bool {
    let fits = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-*".contains(&b))
    };
    name.split('.').all(fits)
}

/// The number in the unit of `kind`.
fn number(text: &str, kind: Kind) -> Result<f64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = (&text[..end], text[end..].trim());
    let value: f64 =
        digits.parse().map_err(|_| format!("{text:?} does not begin with a number of 0 or more"))?;
    let scale = match (kind, unit) {
        (Kind::Time, "us") => 0.001,
        (Kind::Time, "ms") => 1.0,
        (Kind::Time, "s") => 1_000.0,
        (Kind::Time, "") => return Err("a time needs a unit: us, ms or s".to_owned()),
        (Kind::Ratio, "%") => 0.01,
        (Kind::Rate, "/s") | (Kind::Ratio | Kind::Rate | Kind::Count, "") => 1.0,
        _ => return Err(format!("the unit {unit:?} does not fit this metric")),
    };
    if kind == Kind::Count && value.fract() != 0.0 {
        return Err("a count is a whole number".to_owned());
    }
    Ok(value * scale)
}

/// The names that a wrong one may have meant, or all.
fn known(metric: &str) -> String {
    let head = metric.split('.').next().unwrap_or(metric);
    let near = METRICS.iter().map(|(name, ..)| *name).filter(|name| name.split('.').next() == Some(head));
    let near: Vec<_> = near.collect();
    if near.is_empty() {
        METRICS.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
    } else {
        near.join(", ")
    }
}

/// Reads a threshold.
pub fn parse(text: &str) -> Result<Threshold, String> {
    let found = COMPARISONS
        .iter()
        .filter_map(|(sign, comparison)| Some((text.find(sign)?, *sign, *comparison)))
        // The first sign; of those that begin there, the longest.
        .min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len())));
    let (at, sign, comparison) = found.ok_or("there is no comparison: <, <=, >, >=, == or !=")?;
    let (metric, rest) = (text[..at].trim(), text[at + sign.len()..].trim());
    if !is_name(metric) {
        return Err(format!("{metric:?} is not the name of a metric"));
    }
    let kind = kind_of(metric).ok_or_else(|| {
        format!("there is no metric {metric}; there are {} (% is mean, p50 to p9999 or max)", known(metric))
    })?;
    let wanted = number(rest, kind)?;
    Ok(Threshold {
        text: text.trim().to_owned(),
        metric: metric.to_owned(),
        kind,
        comparison,
        wanted,
        abort_after_s: None,
    })
}
