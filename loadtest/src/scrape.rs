//! Reads Prometheus text pages: sums over labels, and quantiles of histograms.
//!
//! Owns: [`Page`]. A line that does not parse is skipped: a page of a newer release must not stop a run.

use std::collections::BTreeMap;

/// The samples of one or more pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: String,
    value: f64,
}

/// Counts up to each bucket's upper bound, in rising order of the bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(Vec<(f64, f64)>);

impl Page {
    pub fn parse(text: &str) -> Self {
        let mut page = Self::default();
        page.add(text);
        page
    }

    /// Adds the samples of another page.
    pub fn add(&mut self, text: &str) {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        self.samples.extend(lines.filter_map(|line| {
            let (name, labels, value) = match (line.find('{'), line.rfind('}')) {
                (Some(open), Some(close)) if open < close => {
                    (&line[..open], &line[open + 1..close], &line[close + 1..])
                }
                _ => {
                    let (name, value) = line.split_once(' ')?;
                    (name, "", value)
                }
            };
            let value = value.split_whitespace().next()?.parse().ok()?;
            Some(Sample { name: name.to_owned(), labels: labels.to_owned(), value })
        }));
    }

    /// The sum of `name` over all labels; `None` when there is no such sample.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.sum_where(name, "")
    }

    /// The sum over the samples whose labels contain `label`, for example `outcome="accepted"`.
    pub fn sum_where(&self, name: &str, label: &str) -> Option<f64> {
        let mut found = self.samples.iter().filter(|s| s.name == name && s.labels.contains(label)).peekable();
        found.peek()?;
        Some(found.map(|s| s.value).sum())
    }

    /// The buckets of a histogram, summed over all labels.
    pub fn buckets(&self, name: &str) -> Buckets {
        let name = format!("{name}_bucket");
        let mut sums: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for sample in self.samples.iter().filter(|s| s.name == name) {
            let Some(bound) = label_value(&sample.labels, "le").and_then(|le| le.parse::<f64>().ok()) else {
                continue;
            };
            // Bounds are positive, so their bits sort as they do.
            sums.entry(bound.to_bits()).or_insert((bound, 0.0)).1 += sample.value;
        }
        Buckets(sums.into_values().collect())
    }
}

fn label_value<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim_matches('"'))
    })
}

impl Buckets {
    /// What came since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |bound: f64| before.0.iter().find(|b| b.0 == bound).map_or(0.0, |b| b.1);
        // A node that was started again counts from 0.
        Self(self.0.iter().map(|(bound, count)| (*bound, (count - earlier(*bound)).max(0.0))).collect())
    }

    /// Adds the counts of another histogram with the same bounds.
    pub fn add(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for (bound, count) in &mut self.0 {
            *count += other.0.iter().find(|b| b.0 == *bound).map_or(0.0, |b| b.1);
        }
    }

    pub fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |last| last.1)
    }

    /// The quantile, interpolated within its bucket as Prometheus does; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count <= 0.0 {
            return None;
        }
        let wanted = q * count;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, reach) in &self.0 {
            if *reach >= wanted {
                if bound.is_infinite() {
                    return Some(low);
                }
                let share = if *reach > below { (wanted - below) / (reach - below) } else { 1.0 };
                return Some(low + (bound - low) * share);
            }
            (low, below) = (*bound, *reach);
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP carillon_x_total help\n# TYPE carillon_x_total counter\n\
        carillon_x_total{service=\"node\",outcome=\"accepted\"} 7\n\
        carillon_x_total{service=\"node\",outcome=\"refused\"} 2\n\
        carillon_plain 1.5\nnonsense\n\
        carillon_fsync_seconds_bucket{service=\"node\",le=\"0.001\"} 50\n\
        carillon_fsync_seconds_bucket{service=\"node\",le=\"0.01\"} 99\n\
        carillon_fsync_seconds_bucket{service=\"node\",le=\"+Inf\"} 100\n";

    #[test]
    fn samples_are_summed_over_labels_and_pages() {
        let mut page = Page::parse(TEXT);
        assert_eq!(page.sum("carillon_x_total"), Some(9.0));
        assert_eq!(page.sum_where("carillon_x_total", "outcome=\"accepted\""), Some(7.0));
        assert_eq!((page.sum("carillon_plain"), page.sum("carillon_none")), (Some(1.5), None));
        page.add(TEXT);
        assert_eq!(page.sum("carillon_x_total"), Some(18.0));
        assert_eq!(page.buckets("carillon_fsync_seconds").count(), 200.0);
    }

    #[test]
    fn quantiles_are_interpolated_and_of_the_interval() {
        let buckets = Page::parse(TEXT).buckets("carillon_fsync_seconds");
        for (q, wanted) in [(0.25, 0.0005), (0.99, 0.01), (1.0, 0.01)] {
            assert!((buckets.quantile(q).unwrap() - wanted).abs() < 1e-9, "{q}");
        }
        assert_eq!(buckets.since(&buckets).quantile(0.5), None);
        let later = Page::parse(&TEXT.replace("} 99", "} 199").replace("} 100", "} 200"))
            .buckets("carillon_fsync_seconds");
        let added = later.since(&buckets);
        assert_eq!(added.count(), 100.0);
        assert!(added.quantile(0.5).unwrap() > 0.001);
        assert_eq!(Buckets::default().quantile(0.5), None);
    }
}
