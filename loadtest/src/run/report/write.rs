//! The files of a report: JSON, and histograms by interval in HdrHistogram's log format.
//!
//! Owns: [`HistogramLog`], which is written while the run goes on, so that nothing of it stays in memory.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::Report;
use crate::bench::measure::Latency;

/// Names of the files in the directory of a run.
pub const JSON: &str = "report.json";
pub const HTML: &str = "report.html";
pub const HISTOGRAMS: &str = "intervals.hlog";

/// A `.hlog` file: one line for each interval and tag, with the compressed histogram.
pub struct HistogramLog(BufWriter<File>);

impl HistogramLog {
    /// `start_ms` is when the first message is due to be sent.
    pub fn create(dir: &Path, start_ms: i64) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(dir.join(HISTOGRAMS))?);
        let start_s = start_ms as f64 / 1_000.0;
        writeln!(file, "#[Response and service times in microseconds; times of the log in seconds]")?;
        writeln!(file, "#[Histogram log format version 1.3]")?;
        writeln!(file, "#[StartTime: {start_s:.3} (seconds since epoch)]")?;
        writeln!(file, "#[BaseTime: 0.000 (seconds since epoch)]")?;
        let heads =
            "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"";
        writeln!(file, "{heads}")?;
        Ok(Self(file))
    }

    /// An interval without values has no line.
    pub fn add(&mut self, tag: &str, from_s: f64, length_s: f64, latency: &Latency) -> io::Result<()> {
        if latency.count() == 0 {
            return Ok(());
        }
        let value = serde_json::to_value(latency).map_err(io::Error::other)?;
        let text = value.as_str().unwrap_or_default();
        let max = latency.histogram().max() as f64 / 1_000_000.0;
        writeln!(self.0, "Tag={tag},{from_s:.3},{length_s:.3},{max:.6},{text}")
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes `report.json`.
pub fn json(dir: &Path, report: &Report) -> anyhow::Result<PathBuf> {
    let path = dir.join(JSON);
    fs_err::write(&path, serde_json::to_vec_pretty(report)?)?;
    Ok(path)
}

/// Reads a report: the file, or the directory of a run.
pub fn read(path: &Path) -> anyhow::Result<Report> {
    use anyhow::Context as _;
    let path = if path.is_dir() { path.join(JSON) } else { path.to_owned() };
    let text = fs_err::read(&path)?;
    let report: Report = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no report of this program", path.display()))?;
    anyhow::ensure!(report.format == super::FORMAT, "{} has the format {}", path.display(), report.format);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::time::Duration;

    #[test]
    fn other_tools_can_read_the_histogram_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = HistogramLog::create(dir.path(), 1_800_000_000_000).unwrap();
        let mut latency = Latency::default();
        log.add("response", 0.0, 1.0, &latency).unwrap();
        latency.record(Duration::from_millis(7), 3);
        log.add("response", 1.0, 1.0, &latency).unwrap();
        log.add("service", 2.0, 1.0, &latency).unwrap();
        log.finish().unwrap();
        let text = std::fs::read(dir.path().join(HISTOGRAMS)).unwrap();
        let intervals: Vec<_> = IntervalLogIterator::new(&text)
            .map(|entry| entry.unwrap())
            .filter_map(|entry| match entry {
                LogEntry::Interval(interval) => Some((
                    interval.tag().map(|tag| tag.as_str().to_owned()),
                    interval.start_timestamp(),
                    interval.encoded_histogram().to_owned(),
                )),
                _ => None,
            })
            .collect();
        assert_eq!(intervals.len(), 2);
        assert_eq!((intervals[0].0.as_deref(), intervals[0].1), (Some("response"), Duration::from_secs(1)));
        let back: Latency = serde_json::from_value(intervals[1].2.clone().into()).unwrap();
        assert_eq!(back.count(), 3);
    }
}
